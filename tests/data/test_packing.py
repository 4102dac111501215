import random

import numpy as np
import pytest
import torch

from prefloop.batches import TokenGroup
from prefloop.data.packing import attention_layout, micro_batches, pack, round_up

PAIR = TokenGroup((1, 2), ((3, 4, 5), (6,)))
CONVERSATION = TokenGroup((7,), ((8, 9, 10, 11),), ((True, False, False, True),))
PROMPT = TokenGroup((12, 13), ())


def random_groups(rng, number):
    groups = []
    for _ in range(number):
        prompt = tuple(rng.randrange(100) for _ in range(rng.randrange(1, 9)))
        responses = tuple(
            tuple(rng.randrange(100) for _ in range(rng.randrange(1, 30))) for _ in range(rng.randrange(4))
        )
        masks = tuple(tuple(rng.random() < 0.5 for _ in response) for response in responses)
        groups.append(TokenGroup(prompt, responses, masks if rng.random() < 0.5 else None))
    return groups


def test_a_small_row_by_hand():
    batch = pack([PAIR, CONVERSATION, PROMPT], row_multiple=16)
    assert batch.tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 0, 0, 0]
    # Both responses of the pair continue from their prompt of two; the next group starts at zero again.
    assert batch.positions.tolist() == [0, 1, 2, 3, 4, 2, 0, 1, 2, 3, 4, 0, 1, 0, 0, 0]
    assert batch.target_index.tolist() == [2, 3, 4, 5, 7, 10]
    # The first token of either response is predicted from the prompt's last token (place 1), never from its sibling.
    assert batch.predictor_index.tolist() == [1, 2, 3, 1, 6, 9]
    assert batch.segment.tolist() == [0, 0, 0, 1, 2, 2]
    assert batch.last_index.tolist() == [4, 5, 10]
    assert batch.targets.tolist() == [3, 4, 5, 6, 8, 11]
    assert (batch.num_tokens, batch.num_responses, batch.num_targets) == (13, 3, 6)
    assert batch.layout.longest_leaf == 5


def test_the_attention_rows_by_hand():
    layout = pack([PAIR], row_multiple=8).layout
    (bucket,) = layout.buckets
    assert (bucket.num_rows, bucket.length) == (2, 16)
    rows = bucket.token_index.view(2, 16).tolist()
    assert rows[0] == [0, 1, 5] + [0] * 13, "the shorter leaf first: prompt and second response"
    assert rows[1] == [0, 1, 2, 3, 4] + [0] * 11
    assert layout.back[2:6].tolist() == [18, 19, 20, 2]
    assert layout.back[:2].tolist() in ([0, 1], [16, 17]), "either copy of the prompt"
    assert layout.back[6:].tolist() == [0, 0], "the tail reads place 0"


def test_random_rows_against_a_naive_walk():
    rng = random.Random(0)
    for _ in range(30):
        groups = random_groups(rng, rng.randrange(1, 12))
        batch = pack(groups)
        place, response_number, targets, lasts = 0, 0, [], []
        for group in groups:
            begin = place
            for offset, token in enumerate(group.prompt):
                assert (batch.tokens[place], batch.positions[place]) == (token, offset)
                place += 1
            for number, response in enumerate(group.responses):
                before = begin + len(group.prompt) - 1
                for offset, token in enumerate(response):
                    assert (batch.tokens[place], batch.positions[place]) == (token, len(group.prompt) + offset)
                    if group.supervised is None or group.supervised[number][offset]:
                        targets.append((place, before, response_number))
                    before = place
                    place += 1
                lasts.append(place - 1)
                response_number += 1
        found = zip(
            *(index.tolist() for index in (batch.target_index, batch.predictor_index, batch.segment)), strict=True
        )
        assert list(found) == targets
        assert batch.last_index.tolist() == lasts
        assert batch.num_tokens == place
        assert len(batch.tokens) == round_up(place, 128)
        assert not batch.tokens[place:].any()


def test_every_leaf_has_one_row_and_every_token_reads_itself_back():
    rng = random.Random(1)
    for _ in range(30):
        groups = random_groups(rng, rng.randrange(1, 12))
        batch = pack(groups)
        gathered = torch.cat([bucket.token_index for bucket in batch.layout.buckets])
        real = batch.num_tokens
        assert gathered[batch.layout.back[:real]].tolist() == list(range(real))
        assert batch.layout.back[real:].eq(0).all()
        rows = []
        for bucket in batch.layout.buckets:
            assert bucket.length % 16 == 0
            rows += [batch.tokens[row].tolist() for row in bucket.token_index.view(bucket.num_rows, bucket.length)]
        leaves = [group.prompt + response for group in groups for response in group.responses or ((),)]
        assert len(rows) == len(leaves)
        assert sorted(leaves, key=len) == [
            tuple(row[: len(leaf)]) for row, leaf in zip(rows, sorted(leaves, key=len), strict=True)
        ]
        assert batch.layout.longest_leaf == max(map(len, leaves))


def test_a_token_reads_back_from_its_own_place_in_its_leaf():
    """A copy at another offset would attend to other tokens: positions along a row count up from zero."""
    batch = pack(random_groups(random.Random(2), 10))
    offsets = torch.cat([torch.arange(bucket.length).repeat(bucket.num_rows) for bucket in batch.layout.buckets])
    real = batch.num_tokens
    assert torch.equal(offsets[batch.layout.back[:real]], batch.positions[:real])


def test_buckets_hold_leaves_of_similar_length():
    leaves = [np.arange(length) for length in (5, 100, 6, 7, 8, 101, 102, 103)]
    layout = attention_layout(leaves, 128)
    assert [(bucket.num_rows, bucket.length) for bucket in layout.buckets] == [(4, 16), (4, 112)]
    # Fewer than four leaves wait for longer company.
    layout = attention_layout([np.arange(length) for length in (5, 6, 7, 100)], 128)
    assert [(bucket.num_rows, bucket.length) for bucket in layout.buckets] == [(4, 112)]


@pytest.mark.parametrize(("number", "expected"), [(1, 128), (127, 128), (128, 128), (129, 256)])
def test_the_row_is_rounded_up(number, expected):
    assert round_up(number, 128) == expected
    assert len(pack([TokenGroup((1,) * number, ())]).tokens) == expected


def test_masks_choose_the_targets_and_leave_the_layout():
    masked = pack([CONVERSATION])
    whole = pack([TokenGroup(CONVERSATION.prompt, CONVERSATION.responses)])
    assert torch.equal(masked.tokens, whole.tokens)
    assert torch.equal(masked.layout.back, whole.layout.back)
    assert whole.target_index.tolist() == [1, 2, 3, 4]
    assert masked.target_index.tolist() == [1, 4]
    assert masked.last_index.tolist() == whole.last_index.tolist() == [4]


def test_nothing_to_pack_is_an_error():
    with pytest.raises(ValueError, match="no groups"):
        pack([])


def test_micro_batches_by_hand():
    groups = [TokenGroup((1,) * size, ()) for size in (3, 4, 2, 9, 1, 5)]
    assert list(micro_batches(groups, max_tokens=7)) == [[0, 1], [2], [3], [4, 5]]
    assert list(micro_batches(groups, max_tokens=1)) == [[0], [1], [2], [3], [4], [5]]
    assert list(micro_batches(groups, max_tokens=24)) == [[0, 1, 2, 3, 4, 5]]
    assert list(micro_batches([], max_tokens=7)) == []


def test_micro_batches_hold_every_group_once_and_no_more_than_they_may():
    rng = random.Random(3)
    for _ in range(50):
        groups = random_groups(rng, rng.randrange(1, 30))
        limit = rng.randrange(1, 120)
        parts = list(micro_batches(groups, max_tokens=limit))
        assert [number for part in parts for number in part] == list(range(len(groups)))
        sizes = [sum(groups[number].num_tokens for number in part) for part in parts]
        for part, size in zip(parts, sizes, strict=True):
            assert size <= limit or len(part) == 1
        # No part could have taken the next group as well.
        for number, size in enumerate(sizes[:-1]):
            assert size + groups[parts[number + 1][0]].num_tokens > limit
