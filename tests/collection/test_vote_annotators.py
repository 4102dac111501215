"""Votes as annotators: people's choices as they were, and readers who err as they should."""

import math
from typing import Any

import pytest

from prefloop.collection.vote_annotators import ASKER, VOTERS, probability_left, reader_name, vote_labels
from prefloop.errors import DataError
from prefloop.records import Comparison, Completion, Label


def comparison(pair_id: str, left: int, right: int, accepted: tuple[bool, bool] | None = None) -> Comparison:
    details: dict[str, Any] = {"votes": {"left": left, "right": right}}
    if accepted is not None:
        details["accepted"] = dict(zip(("left", "right"), accepted, strict=True))
    return Comparison(pair_id, "p", Completion("one"), Completion("other"), details)


def people(one: Comparison) -> dict[str, str]:
    return {label.annotator: label.choice for label in vote_labels([one], num_readers=0, slope=3.0, seed=0)}


def test_voters_choose_by_votes_and_the_asker_by_accepting() -> None:
    assert people(comparison("a", 5, 2, (False, True))) == {VOTERS: "left", ASKER: "right"}
    assert people(comparison("a", -1, 2, (True, False))) == {VOTERS: "right", ASKER: "left"}
    assert people(comparison("a", 2, 2)) == {VOTERS: "tie"}
    assert people(comparison("a", 5, 2, (False, False))) == {VOTERS: "left"}
    assert people(comparison("a", 5, 2, (True, True))) == {VOTERS: "left"}


def test_the_probability_is_bradley_terry_on_the_logarithm_of_votes() -> None:
    # ln(8) - ln(2) = ln(4): the odds are 4 ** slope.
    assert probability_left(7, 1, slope=1.0) == pytest.approx(4 / 5)
    assert probability_left(7, 1, slope=2.0) == pytest.approx(16 / 17)
    assert probability_left(1, 7, slope=1.0) == pytest.approx(1 / 5)
    assert probability_left(3, 3, slope=9.0) == 0.5
    # Below zero the scale is mirrored: 0 against -3 is as 3 against 0.
    assert probability_left(0, -3, slope=1.0) == pytest.approx(probability_left(3, 0, slope=1.0))
    assert probability_left(20, 10, slope=1.0) < probability_left(11, 1, slope=1.0)


def test_readers_err_as_often_as_their_probability_says() -> None:
    pairs = [comparison(str(number), 7, 1) for number in range(2000)]
    labels = vote_labels(pairs, num_readers=2, slope=1.0, seed=3)
    by_reader = {
        name: [one.choice for one in labels if one.annotator == name] for name in (reader_name(1), reader_name(2))
    }
    for choices in by_reader.values():
        assert choices.count("left") / 2000 == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / 2000))
    # Two readers are two people: they do not err together.
    both = [one == other for one, other in zip(*by_reader.values(), strict=True)]
    assert sum(both) / 2000 == pytest.approx(0.68, abs=0.05)


def test_a_choice_depends_on_seed_reader_and_pair_alone() -> None:
    pairs = [comparison(str(number), 2, 1) for number in range(50)]

    def labels(some: list[Comparison], num_readers: int, seed: int = 0) -> set[Label]:
        return set(vote_labels(some, num_readers=num_readers, slope=1.0, seed=seed))

    assert labels(pairs[::-1], 1) < labels(pairs, 2)
    assert labels(pairs, 1) != labels(pairs, 1, seed=1)


@pytest.mark.parametrize("details", [{}, {"votes": {"left": 3}}, {"votes": {"left": 3, "right": None}}, {"votes": 3}])
def test_pairs_without_votes_are_refused(details: dict[str, Any]) -> None:
    one = Comparison("a", "p", Completion("one"), Completion("other"), details)
    with pytest.raises(DataError, match="holds no votes"):
        vote_labels([one], num_readers=1, slope=1.0, seed=0)
