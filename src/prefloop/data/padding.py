"""From token groups to padded batches (see `prefloop.batches`), sequences of similar length together."""

from collections.abc import Iterator, Sequence

import torch

from prefloop.batches import PaddedBatch, TokenGroup

MIN_ROWS_PER_BUCKET = 8
"""A batch takes longer sequences until it has this many rows; then a much longer one opens the next."""

MAX_LENGTH_RATIO = 1.25
"""What "much longer" means: this many times the shortest of the batch."""


def pad(groups: Sequence[TokenGroup]) -> PaddedBatch:
    """One row per response: its group's prompt, then itself. Raises ValueError where there is no response.

    A prompt of one token is the opening token of a text that stands alone; only a longer one makes the response a
    second text.
    """
    rows = [(group.prompt, response) for group in groups for response in group.responses]
    if not rows:
        raise ValueError("nothing to pad: the groups hold no response")
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    tokens = torch.zeros(len(rows), longest, dtype=torch.long)
    is_token = torch.zeros(len(rows), longest, dtype=torch.bool)
    is_second_text = torch.zeros(len(rows), longest, dtype=torch.bool)
    for number, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        tokens[number, :end] = torch.tensor([*prompt, *response])
        is_token[number, :end] = True
        is_second_text[number, len(prompt) : end] = len(prompt) > 1
    return PaddedBatch(tokens, is_token, is_second_text)


def padded_batches(groups: Sequence[TokenGroup], *, max_tokens: int) -> Iterator[tuple[list[int], PaddedBatch]]:
    """The groups in padded batches, shortest first, each with its groups' numbers.

    A batch holds at most `max_tokens` places, padding included (a larger group stands alone), and beyond
    MIN_ROWS_PER_BUCKET rows no sequence MAX_LENGTH_RATIO times as long as its shortest.
    """
    order = sorted(range(len(groups)), key=lambda number: groups[number].longest_leaf)
    part: list[int] = []
    num_rows = 0
    for number in order:
        group = groups[number]
        is_full = (num_rows + len(group.responses)) * group.longest_leaf > max_tokens
        is_far = num_rows >= MIN_ROWS_PER_BUCKET and (
            group.longest_leaf > MAX_LENGTH_RATIO * groups[part[0]].longest_leaf
        )
        if part and (is_full or is_far):
            yield part, pad([groups[member] for member in part])
            part, num_rows = [], 0
        part.append(number)
        num_rows += len(group.responses)
    if part:
        yield part, pad([groups[member] for member in part])
