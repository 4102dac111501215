"""Simulated annotators: characters who choose between two answers by a known gold score, with human weaknesses.

Because the truth is known, they test everything downstream: a reward model can be compared with the score that made
its labels, and every weakness (haste, fondness of length, preference for one side) can be switched on by itself.

Choice model: Bradley and Terry (1952), "Rank Analysis of Incomplete Block Designs", on the difference in gold score;
the lapse rate is the one of psychophysics, Wichmann and Hill (2001), "The psychometric function I", equation 1.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prefloop.collection.aggregation import check_unique
from prefloop.errors import DataError, SettingsError
from prefloop.records import Choice, Comparison, Completion, Label, Prompt

GoldScore = Callable[[Prompt, Completion], float]

WORDS_PER_LENGTH_UNIT = 10


@dataclass(frozen=True)
class SimulatedAnnotator:
    """Someone who prefers the answer with the higher gold score, more or less reliably.

    `slope` is in logits per point of gold score; `length_weight` in logits per ten words that one answer is longer;
    `left_bias` in logits towards the left side as displayed; `lapse_rate` is the probability of a coin flip instead
    of a judgement. Raises SettingsError for a lapse rate outside [0, 1] or a number that is not finite.
    """

    name: str
    gold_score: GoldScore
    slope: float = 3.0
    lapse_rate: float = 0.0
    length_weight: float = 0.0
    left_bias: float = 0.0
    description: str = ""

    def __post_init__(self) -> None:
        if not 0.0 <= self.lapse_rate <= 1.0:
            raise SettingsError(f"lapse_rate of {self.name} is {self.lapse_rate}; choose a probability from 0 to 1.")
        for setting in ("slope", "length_weight", "left_bias"):
            value = getattr(self, setting)
            if not math.isfinite(value):
                raise SettingsError(f"{setting} of {self.name} is {value}; choose a finite number of logits.")

    def probability_left(self, comparison: Comparison) -> float:
        """The probability, in [0, 1], of choosing the left answer of the comparison as it stands.

        Raises DataError when the gold score is not finite.
        """
        gold_left = self._finite_score(comparison, comparison.left)
        gold_right = self._finite_score(comparison, comparison.right)
        extra_words = len(comparison.left.text.split()) - len(comparison.right.text.split())
        logit = (
            self.slope * (gold_left - gold_right)
            + self.length_weight * extra_words / WORDS_PER_LENGTH_UNIT
            + self.left_bias
        )
        return (1.0 - self.lapse_rate) * _sigmoid(logit) + self.lapse_rate * 0.5

    def choose(self, comparison: Comparison, rng: random.Random) -> Label:
        """A choice, always left or right, by side as displayed in the comparison given; takes one draw of `rng`."""
        choice: Choice = "left" if rng.random() < self.probability_left(comparison) else "right"
        return Label(comparison.pair_id, self.name, choice)

    def _finite_score(self, comparison: Comparison, completion: Completion) -> float:
        score = self.gold_score(comparison.prompt, completion)
        if not math.isfinite(score):
            raise DataError(
                f"The gold score of an answer of pair {comparison.pair_id!r} is {score}. "
                "Annotators need a finite score for every answer."
            )
        return score


def cast(gold_score: GoldScore, *, slope: float = 3.0) -> tuple[SimulatedAnnotator, ...]:
    """Three characters who share one gold score: a careful one, a careless one, and one who likes length."""
    return (
        SimulatedAnnotator("Clara", gold_score, slope, lapse_rate=0.01, description="reads every line and seldom errs"),
        SimulatedAnnotator(
            "Leo", gold_score, slope, lapse_rate=0.1, description="is in a hurry: one choice in ten is a coin flip"
        ),
        SimulatedAnnotator(
            "Wanda", gold_score, slope, lapse_rate=0.01, length_weight=0.5, description="is fond of long answers"
        ),
    )


def label_pairs(
    comparisons: Sequence[Comparison], annotators: Sequence[SimulatedAnnotator], *, seed: int
) -> list[Label]:
    """One label per comparison and annotator, comparison by comparison.

    Each annotator sees each pair with its sides in an order of its own (`shows_swapped`); the choice comes back by the
    comparison's own left and right, so that labels of one pair can be compared. Every draw depends on the seed, the
    annotator's name and the pair alone: neither order nor subsets change a label. Raises DataError when two
    comparisons or two annotators share a name.
    """
    check_unique("pair_id", (comparison.pair_id for comparison in comparisons))
    check_unique("annotator name", (annotator.name for annotator in annotators))
    labels: list[Label] = []
    for comparison in comparisons:
        for annotator in annotators:
            swapped = shows_swapped(comparison.pair_id, annotator.name, seed=seed)
            rng = _stream("choice", comparison.pair_id, annotator.name, seed=seed)
            label = annotator.choose(comparison.swap() if swapped else comparison, rng)
            labels.append(Label(label.pair_id, label.annotator, _other_side(label.choice) if swapped else label.choice))
    return labels


def shows_swapped(pair_id: str, annotator: str, *, seed: int) -> bool:
    """Whether `label_pairs` with this seed shows this annotator the pair with its sides exchanged (one half of all)."""
    return _stream("sides", pair_id, annotator, seed=seed).random() < 0.5


def left_as_displayed_share(labels: Iterable[Label], *, seed: int) -> dict[str, float]:
    """Per annotator, the share of left choices as displayed, among left and right choices of `label_pairs`.

    One half is fair: sides are drawn, so quality cannot lean to one. `seed` is the one given to `label_pairs`.
    Annotators without any left or right choice are absent.
    """
    num_left: Counter[str] = Counter()
    num_choices: Counter[str] = Counter()
    for label in labels:
        if label.choice in ("left", "right"):
            swapped = shows_swapped(label.pair_id, label.annotator, seed=seed)
            num_choices[label.annotator] += 1
            num_left[label.annotator] += (_other_side(label.choice) if swapped else label.choice) == "left"
    return {annotator: num_left[annotator] / num for annotator, num in num_choices.items()}


def _other_side(choice: Choice) -> Choice:
    if choice == "left":
        return "right"
    return "left" if choice == "right" else choice


def _stream(purpose: str, pair_id: str, annotator: str, *, seed: int) -> random.Random:
    """A generator of its own for one purpose; text seeds go through SHA-512, so every process draws the same."""
    return random.Random(repr((purpose, seed, annotator, pair_id)))


def _sigmoid(logit: float) -> float:
    # The exponent is never positive, so it cannot overflow.
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    return math.exp(logit) / (1.0 + math.exp(logit))
