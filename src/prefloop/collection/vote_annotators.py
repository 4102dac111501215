"""Votes as annotators: who said what about two replies elsewhere, and simulated readers of the votes.

Two annotators are people. The *voters* are all who voted, taken as one: they chose the reply with more votes. The
*asker* is who asked, and chose a reply by accepting it. Simulated readers see the votes and nothing else: they choose
by Bradley-Terry noise on the difference of the logarithms, so that 2 against 1 decides less than 20 against 1. Where
they agree with the voters, that says how clear the votes are, and nothing about people.

Choice model: Bradley and Terry (1952), "Rank Analysis of Incomplete Block Designs".
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from prefloop.errors import DataError
from prefloop.randomness import python_random
from prefloop.records import Choice, Comparison, Label

VOTERS = "voters"
ASKER = "asker"
PEOPLE = (VOTERS, ASKER)


def reader_name(number: int) -> str:
    """What the simulated reader of that number, from 1, is called."""
    return f"simulated reader {number}"


def vote_labels(comparisons: Sequence[Comparison], *, num_readers: int, slope: float, seed: int) -> list[Label]:
    """The labels of each comparison in turn: the voters', the asker's where one reply alone was accepted, the readers'.

    `slope` is in logits per unit of the logarithm of votes. A draw depends on the seed, the reader and the pair alone.
    Raises DataError for a comparison whose `details` hold no votes.
    """
    labels: list[Label] = []
    for one in comparisons:
        left, right = _both(one, "votes")
        labels.append(Label(one.pair_id, VOTERS, "tie" if left == right else "left" if left > right else "right"))
        accepted = _accepted(one)
        if accepted is not None:
            labels.append(Label(one.pair_id, ASKER, accepted))
        chance = probability_left(left, right, slope=slope)
        for number in range(1, num_readers + 1):
            draw = python_random(seed, f"{reader_name(number)} reads {one.pair_id}").random()
            labels.append(Label(one.pair_id, reader_name(number), "left" if draw < chance else "right"))
    return labels


def probability_left(votes_left: float, votes_right: float, *, slope: float) -> float:
    """The probability, in (0, 1), that a simulated reader chooses the left reply."""
    return 0.5 * (1 + math.tanh(0.5 * slope * (_weight(votes_left) - _weight(votes_right))))


def _weight(votes: float) -> float:
    """The logarithm of votes, made to pass through 0 and to go on below it."""
    return math.copysign(math.log1p(abs(votes)), votes)


def _accepted(comparison: Comparison) -> Choice | None:
    accepted: Mapping[str, Any] = comparison.details.get("accepted") or {}
    left, right = accepted.get("left") is True, accepted.get("right") is True
    if left == right:
        return None
    return "left" if left else "right"


def _both(comparison: Comparison, name: str) -> tuple[float, float]:
    found = comparison.details.get(name)
    sides = (found.get("left"), found.get("right")) if isinstance(found, Mapping) else (None, None)
    left, right = (float(one) if isinstance(one, int | float) else None for one in sides)
    if left is None or right is None:
        raise DataError(
            f"The pair {comparison.pair_id!r} holds no votes: labels by votes need comparisons of prepare_posts."
        )
    return left, right
