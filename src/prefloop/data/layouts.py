"""Token groups as the batches that a model reads: one packed row for decoders, padded rows for encoders."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prefloop.batches import BatchLayout, TokenGroup
from prefloop.data.packing import packed_batches
from prefloop.data.padding import padded_batches

LAYOUTS: dict[BatchLayout, Callable[..., Iterator[tuple[list[int], Any]]]] = {
    "packed": packed_batches,
    "padded": padded_batches,
}


def batches_of(
    groups: Sequence[TokenGroup], *, layout: BatchLayout, max_tokens: int
) -> Iterator[tuple[list[int], Any]]:
    """Batches of at most `max_tokens` in that layout, each with the numbers of its groups, responses in their order."""
    return LAYOUTS[layout](groups, max_tokens=max_tokens)
