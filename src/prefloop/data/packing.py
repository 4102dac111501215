"""From token groups to the packed batch (see `prefloop.batches`)."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from prefloop.batches import AttentionLayout, PackedBatch, RowBucket, TokenGroup

ROW_MULTIPLE = 128
"""The row is rounded up to this many tokens: every new matrix shape costs milliseconds on a CPU."""

LENGTH_MULTIPLE = 16
"""Attention rows are rounded up to this length, for the same reason."""

MIN_ROWS_PER_BUCKET = 4
"""A bucket takes longer leaves until it has this many rows; then a longer leaf opens the next bucket."""


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


def pack(groups: Sequence[TokenGroup], *, row_multiple: int = ROW_MULTIPLE) -> PackedBatch:
    """The groups in one row, in their order; responses are numbered through in that order.

    Raises ValueError for no groups or for no counted response token.
    """
    if not groups:
        raise ValueError("nothing to pack: no groups were given")
    tokens: list[int] = []
    positions: list[int] = []
    leaves: list[np.ndarray] = []
    target_index: list[int] = []
    predictor_index: list[int] = []
    segment: list[int] = []
    last_index: list[int] = []
    for group in groups:
        start = len(tokens)
        length = len(group.prompt)
        tokens.extend(group.prompt)
        positions.extend(range(length))
        prompt_places = np.arange(start, start + length)
        for number, response in enumerate(group.responses):
            at = len(tokens)
            tokens.extend(response)
            positions.extend(range(length, length + len(response)))
            leaves.append(np.concatenate([prompt_places, np.arange(at, at + len(response))]))
            mask = group.supervised[number] if group.supervised is not None else None
            for offset in range(len(response)):
                if mask is None or mask[offset]:
                    target_index.append(at + offset)
                    predictor_index.append(at + offset - 1 if offset else start + length - 1)
                    segment.append(len(last_index))
            last_index.append(at + len(response) - 1)
        if not group.responses:
            leaves.append(prompt_places)
    num_tokens = len(tokens)
    total = round_up(num_tokens, row_multiple)
    tail = total - num_tokens
    return PackedBatch(
        tokens=torch.tensor(tokens + [0] * tail),
        positions=torch.tensor(positions + [0] * tail),
        layout=attention_layout(leaves, total),
        target_index=torch.tensor(target_index, dtype=torch.long),
        predictor_index=torch.tensor(predictor_index, dtype=torch.long),
        segment=torch.tensor(segment, dtype=torch.long),
        last_index=torch.tensor(last_index, dtype=torch.long),
        num_tokens=num_tokens,
    )


def attention_layout(leaves: Sequence[np.ndarray], total: int) -> AttentionLayout:
    """Rows of similar length together. `leaves` are places in the row, in attention order; `total` its length.

    A prompt shared by several leaves is computed in each of their rows; `back` reads one of the (equal) copies.
    The tail of the row reads place 0: finite values that carry no loss.
    """
    order = sorted(range(len(leaves)), key=lambda number: len(leaves[number]))
    back = np.zeros(total, dtype=np.int64)
    buckets: list[RowBucket] = []
    place = 0
    for members in _bucket_members([len(leaves[number]) for number in order]):
        rows = [leaves[order[member]] for member in members]
        length = round_up(len(rows[-1]), LENGTH_MULTIPLE)
        index = np.zeros((len(rows), length), dtype=np.int64)
        for number, leaf in enumerate(rows):
            index[number, : len(leaf)] = leaf
            back[leaf] = place + number * length + np.arange(len(leaf))
        place += index.size
        buckets.append(RowBucket(torch.from_numpy(index.reshape(-1)), len(rows), length))
    return AttentionLayout(tuple(buckets), torch.from_numpy(back), max(len(leaf) for leaf in leaves))


def _bucket_members(lengths: Sequence[int]) -> Iterator[range]:
    """Runs of consecutive leaves (sorted by length) that share a bucket."""
    start = 0
    for number in range(1, len(lengths) + 1):
        at_end = number == len(lengths)
        if at_end or (
            number - start >= MIN_ROWS_PER_BUCKET
            and round_up(lengths[number], LENGTH_MULTIPLE) > round_up(lengths[number - 1], LENGTH_MULTIPLE)
        ):
            yield range(start, number)
            start = number


def micro_batches(groups: Sequence[TokenGroup], *, max_tokens: int) -> Iterator[list[int]]:
    """Indices of groups, in order, cut so that each part holds at most `max_tokens` (a longer group stands alone)."""
    part: list[int] = []
    held = 0
    for number, group in enumerate(groups):
        if part and held + group.num_tokens > max_tokens:
            yield part
            part, held = [], 0
        part.append(number)
        held += group.num_tokens
    if part:
        yield part


def packed_batches(groups: Sequence[TokenGroup], *, max_tokens: int) -> Iterator[tuple[list[int], PackedBatch]]:
    """The groups in packed batches of at most `max_tokens`, each with its groups' numbers, which stand in order."""
    for part in micro_batches(groups, max_tokens=max_tokens):
        yield part, pack([groups[number] for number in part])
