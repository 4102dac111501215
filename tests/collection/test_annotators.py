"""Simulated annotators: the stated probabilities, and labels that depend on nothing else."""

import math
import random

import pytest

from prefloop.collection.annotators import (
    SimulatedAnnotator,
    cast,
    label_pairs,
    left_as_displayed_share,
    shows_swapped,
)
from prefloop.errors import DataError, SettingsError
from prefloop.records import Comparison, Completion, Label, Prompt


def gold_from_text(prompt: Prompt, completion: Completion) -> float:
    """The first word of the text is its score."""
    return float(completion.text.split()[0])


def comparison(left: str, right: str, *, pair_id: str = "pair") -> Comparison:
    return Comparison(pair_id, "question", Completion(left), Completion(right))


def many(left: str, right: str, num: int) -> list[Comparison]:
    return [comparison(left, right, pair_id=f"pair-{index}") for index in range(num)]


def share_left(labels: list[Label]) -> float:
    return sum(label.choice == "left" for label in labels) / len(labels)


def within_binomial_error(share: float, probability: float, num: int) -> bool:
    return abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / num)


def test_probabilities_by_hand():
    pair = comparison("-1 word", "-2 word")
    # sigmoid(3) = 1 / (1 + e^-3) = 0.952574
    assert SimulatedAnnotator("A", gold_from_text).probability_left(pair) == pytest.approx(0.952574, abs=1e-6)
    assert SimulatedAnnotator("A", gold_from_text).probability_left(pair.swap()) == pytest.approx(0.047426, abs=1e-6)
    # A lapse of 0.2 leaves 0.8 of that and adds 0.1.
    lapsing = SimulatedAnnotator("A", gold_from_text, lapse_rate=0.2)
    assert lapsing.probability_left(pair) == pytest.approx(0.8 * 0.952574 + 0.1, abs=1e-6)
    # Equal scores: a bias of ln 3 to the left is 3 : 1.
    biased = SimulatedAnnotator("A", gold_from_text, left_bias=math.log(3))
    assert biased.probability_left(comparison("0 a", "0 b")) == pytest.approx(0.75)
    # Equal scores, 20 words more on the left at 0.5 logits per ten words: sigmoid(1) = 0.731059.
    lengthy = SimulatedAnnotator("A", gold_from_text, length_weight=0.5)
    assert lengthy.probability_left(comparison("0" + " word" * 20, "0")) == pytest.approx(0.731059, abs=1e-6)
    assert lengthy.probability_left(comparison("0", "0" + " word" * 20)) == pytest.approx(0.268941, abs=1e-6)


def test_extreme_scores_do_not_overflow():
    annotator = SimulatedAnnotator("A", gold_from_text)
    assert annotator.probability_left(comparison("1e6", "-1e6")) == 1.0
    assert annotator.probability_left(comparison("-1e6", "1e6")) == 0.0


def test_choices_come_at_the_bradley_terry_probability():
    num = 4000
    annotator = SimulatedAnnotator("A", gold_from_text, slope=1.0)
    labels = label_pairs(many("1.0", "0.2", num), [annotator], seed=3)
    assert within_binomial_error(share_left(labels), 1 / (1 + math.exp(-0.8)), num)
    rng = random.Random(5)
    direct = [annotator.choose(comparison("1.0", "0.2"), rng) for _ in range(num)]
    assert within_binomial_error(share_left(direct), 1 / (1 + math.exp(-0.8)), num)


def test_sides_are_randomised_and_choices_mapped_back():
    num = 2000
    sides = SimulatedAnnotator("Sides", lambda prompt, completion: 0.0, left_bias=50.0)
    pairs = many("0", "0", num)
    labels = label_pairs(pairs, [sides], seed=9)
    # Always left as displayed, hence either response half of the time.
    assert left_as_displayed_share(labels, seed=9) == {"Sides": 1.0}
    assert within_binomial_error(share_left(labels), 0.5, num)
    for label in labels:
        assert label.choice == ("right" if shows_swapped(label.pair_id, "Sides", seed=9) else "left")
    # A clear difference in quality wins on whichever side it stands.
    judge = SimulatedAnnotator("Judge", gold_from_text, slope=100.0)
    clear = label_pairs(many("1", "0", num), [judge], seed=9)
    assert share_left(clear) == 1.0
    assert within_binomial_error(left_as_displayed_share(clear, seed=9)["Judge"], 0.5, num)


def test_annotators_see_sides_independently():
    num = 2000
    same = sum(
        shows_swapped(f"pair-{index}", "A", seed=1) == shows_swapped(f"pair-{index}", "B", seed=1)
        for index in range(num)
    )
    assert within_binomial_error(same / num, 0.5, num)


def test_shares_leave_out_choices_without_a_side():
    labels = [Label("p", "A", "tie"), Label("q", "A", "skip")]
    assert left_as_displayed_share(labels, seed=0) == {}


def test_labels_do_not_depend_on_order_or_subset():
    pairs = [comparison(f"{index % 3 / 4}", "0.2", pair_id=f"pair-{index}") for index in range(60)]
    team = cast(gold_from_text)
    everything = label_pairs(pairs, team, seed=7)
    assert len(everything) == 180
    assert set(label_pairs(pairs[::-1], team[::-1], seed=7)) == set(everything)
    assert set(label_pairs(pairs[10:20], team[1:], seed=7)) == {
        label
        for label in everything
        if label.annotator != team[0].name and label.pair_id in {pair.pair_id for pair in pairs[10:20]}
    }
    assert label_pairs(pairs, team, seed=8) != everything


def test_renaming_an_annotator_gives_other_draws():
    pairs = many("0", "0", 200)
    first, second = (SimulatedAnnotator(name, gold_from_text) for name in ("A", "B"))
    choices = [[label.choice for label in label_pairs(pairs, [who], seed=1)] for who in (first, second)]
    assert choices[0] != choices[1]


def test_the_cast_has_its_characters():
    careful, careless, lengthy = cast(gold_from_text, slope=2.0)
    assert len({annotator.name for annotator in (careful, careless, lengthy)}) == 3
    assert all(annotator.description and annotator.slope == 2.0 for annotator in (careful, careless, lengthy))
    num = 2000
    clear = many("3", "0", num)
    right_choices = {who.name: share_left(label_pairs(clear, [who], seed=2)) for who in (careful, careless)}
    # Half of the careless one's lapses hit the worse answer: 5 %; the careful one's 0.5 %.
    assert right_choices[careless.name] < 0.97 < right_choices[careful.name]
    longer = many("0" + " word" * 20, "0", num)
    assert share_left(label_pairs(longer, [lengthy], seed=2)) > 0.68
    assert 0.45 < share_left(label_pairs(longer, [careful], seed=2)) < 0.55


def test_confusion_is_an_error():
    pair = comparison("1", "0")
    annotator = SimulatedAnnotator("A", gold_from_text)
    with pytest.raises(DataError, match=r"pair_id 'pair'.*more than once"):
        label_pairs([pair, pair], [annotator], seed=0)
    with pytest.raises(DataError, match=r"annotator name 'A'.*more than once"):
        label_pairs([pair], [annotator, annotator], seed=0)


def test_bad_settings_and_scores_are_errors():
    with pytest.raises(SettingsError, match="lapse_rate"):
        SimulatedAnnotator("A", gold_from_text, lapse_rate=1.5)
    with pytest.raises(SettingsError, match="slope"):
        SimulatedAnnotator("A", gold_from_text, slope=math.nan)
    with pytest.raises(DataError, match="gold score"):
        SimulatedAnnotator("A", gold_from_text).probability_left(comparison("nan", "0"))
