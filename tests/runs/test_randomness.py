"""The generators of the process follow from seed, stream and step alone."""

import random

import numpy
import torch

from prefloop.runs.randomness import seed_global_generators


def draws(seed: int, stream: str, step: int) -> tuple[float, float, float]:
    seed_global_generators(seed, stream, step)
    return random.random(), float(numpy.random.rand()), float(torch.rand(()))


def test_the_same_place_draws_the_same_whatever_was_drawn_before() -> None:
    first = draws(1, "global/step", 5)
    draws(2, "other", 9)
    assert draws(1, "global/step", 5) == first


def test_seed_stream_and_step_all_count() -> None:
    places = [(1, "a", 0), (2, "a", 0), (1, "b", 0), (1, "a", 1)]
    drawn = [draws(*place) for place in places]
    for column in zip(*drawn, strict=True):
        assert len(set(column)) == len(places)


def test_dropout_is_drawn_again_exactly() -> None:
    dropout = torch.nn.Dropout(0.5)
    seed_global_generators(0, "global/step", 3)
    first = dropout(torch.ones(64))
    seed_global_generators(0, "global/step", 3)
    assert torch.equal(dropout(torch.ones(64)), first)
