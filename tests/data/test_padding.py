"""Padded batches hold every response once, in their groups' order, and similar lengths together."""

import random

import pytest
import torch
from jaxtyping import TypeCheckError

from prefloop.batches import PaddedBatch, TokenGroup
from prefloop.data.layouts import batches_of
from prefloop.data.packing import micro_batches, pack
from prefloop.data.padding import MAX_LENGTH_RATIO, MIN_ROWS_PER_BUCKET, pad, padded_batches

PAIR = TokenGroup((1, 4, 5, 2), ((6, 2), (7, 8, 9)))
ALONE = TokenGroup((1,), ((6, 7, 2),))


def _random_groups(seed: int, count: int) -> list[TokenGroup]:
    rng = random.Random(seed)

    def tokens(longest: int) -> tuple[int, ...]:
        return tuple(rng.randrange(1, 50) for _ in range(rng.randint(1, longest)))

    return [TokenGroup(tokens(20), tuple(tokens(30) for _ in range(1 + n % 3))) for n in range(count)]


def test_two_groups_by_hand() -> None:
    batch = pad([PAIR, ALONE])
    assert batch.tokens.tolist() == [[1, 4, 5, 2, 6, 2, 0], [1, 4, 5, 2, 7, 8, 9], [1, 6, 7, 2, 0, 0, 0]]
    assert batch.is_token.sum(1).tolist() == [6, 7, 4]
    assert batch.is_second_text.int().tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1], [0] * 7]
    assert batch.num_responses == 3


def test_nothing_to_pad_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to pad"):
        pad([TokenGroup((1, 2), ())])


def test_parts_that_do_not_fit_together_are_no_batch() -> None:
    tokens = torch.zeros(2, 3, dtype=torch.long)
    with pytest.raises((ValueError, TypeCheckError), match=r"differ in shape|is_second_text"):
        PaddedBatch(tokens, torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 4, dtype=torch.bool))


@pytest.mark.parametrize("max_tokens", [1, 100, 400, 100_000])
def test_every_group_stands_once_and_whole_in_batches_that_fit(max_tokens: int) -> None:
    groups = _random_groups(1, 60)
    seen: list[int] = []
    for part, batch in padded_batches(groups, max_tokens=max_tokens):
        rows = [[*groups[n].prompt, *response] for n in part for response in groups[n].responses]
        found = [row[real].tolist() for row, real in zip(batch.tokens, batch.is_token, strict=True)]
        assert found == rows
        assert batch.tokens.numel() <= max_tokens or len(part) == 1
        seen += part
    assert sorted(seen) == list(range(60))


def test_similar_lengths_stand_together() -> None:
    groups = _random_groups(2, 300)
    batches = [batch for _, batch in padded_batches(groups, max_tokens=100_000)]
    assert len(batches) > 3
    for batch in batches:
        lengths = batch.is_token.sum(1)
        assert len(lengths) >= MIN_ROWS_PER_BUCKET or batch is batches[-1]
    whole = pad(groups).tokens.numel()
    real = sum(int(batch.is_token.sum()) for batch in batches)
    padded = sum(batch.tokens.numel() for batch in batches)
    assert padded < 1.35 * real < whole
    assert MAX_LENGTH_RATIO > 1


def test_the_layout_is_chosen_by_name() -> None:
    groups = _random_groups(3, 8)
    packed = list(batches_of(groups, layout="packed", max_tokens=100))
    assert [part for part, _ in packed] == list(micro_batches(groups, max_tokens=100))
    for part, batch in packed:
        assert torch.equal(batch.tokens, pack([groups[number] for number in part]).tokens)
    padded = list(batches_of(groups, layout="padded", max_tokens=100))
    assert [part for part, _ in padded] == [part for part, _ in padded_batches(groups, max_tokens=100)]
    assert all(isinstance(batch, PaddedBatch) for _, batch in padded)
