"""Statistics of a label project: small projects worked by hand, planted weaknesses found, and nothing that is NaN."""

import json
import math
import random
import time
from dataclasses import asdict, replace

import pytest
from scipy.stats import binomtest

from label_examples import label, labelled, stored_pair
from prefloop.collection.label_records import LabelEvent, StoredPair
from prefloop.collection.label_statistics import LabelStatistics, Rate, label_statistics, regular_labels
from prefloop.errors import DataError
from prefloop.formulas.intervals import wilson_interval
from prefloop.records import Choice


def statistics_of(pairs: list[StoredPair], labels: list[LabelEvent]) -> LabelStatistics:
    return label_statistics(pairs, labels, seed=0, num_resamples=100)


def judged(*, num: int, right: float, seed: int = 0, seconds: float = 8.0) -> tuple[list[StoredPair], list[LabelEvent]]:
    """Pairs whose left is better, on which a and b are always right and c as often as said."""
    rng = random.Random(seed)
    pairs = [stored_pair(f"pair-{number}") for number in range(num)]
    labels: list[LabelEvent] = []
    for pair in pairs:
        for name in "abc":
            choice: Choice = "left" if name != "c" or rng.random() < right else "right"
            swapped = rng.random() < 0.5
            labels.append(label(pair.comparison.pair_id, name, choice, swapped=swapped, seconds=seconds))
    return pairs, labels


def test_counts_by_hand():
    pairs, labels = labelled("LLR", "RS.", "TB.", "...")
    found = statistics_of(pairs, labels)
    assert (found.num_pairs, found.num_gold_pairs, found.num_pairs_labelled, found.num_labels) == (4, 0, 3, 6)
    assert found.num_labels_by_kind == {"regular": 7, "gold": 0, "repeat": 0}
    assert found.annotators_per_pair == {0: 1, 1: 1, 2: 1, 3: 1}
    assert found.mean_annotators_per_pair == 2.0
    assert found.choices == {"left": 2, "right": 2, "tie": 1, "both_bad": 1, "skip": 1}
    # Sides are exchanged on odd (row + column): L, R(swapped left), R, L(swapped right).
    assert found.displayed_choices == {"left": 2, "right": 2, "tie": 1, "both_bad": 1, "skip": 1}
    assert [(one.annotator, one.num_labels, one.num_skips) for one in found.annotators] == [
        ("a", 3, 0), ("b", 2, 1), ("c", 1, 0),
    ]  # fmt: skip
    assert found.agreement.percent_agreement.value == pytest.approx((1 / 3 + 0) / 2)


def test_gold_and_repeats_never_enter_agreement():
    pairs, labels = labelled("LLR", "RR.", "LR.", "TTT")
    gold = stored_pair("gold", gold_choice="left")
    extra = [
        label("gold", "a", "left", kind="gold"),
        label("gold", "b", "right", kind="gold"),
        label("pair-0", "a", "right", kind="repeat"),
        label("pair-1", "b", "skip", kind="repeat"),
    ]
    without, found = statistics_of(pairs, labels), statistics_of([*pairs, gold], labels + extra)
    assert found.agreement == without.agreement
    assert found.choices == without.choices
    assert found.annotators_per_pair == without.annotators_per_pair
    assert found.response_lengths == without.response_lengths
    assert [one.consensus for one in found.annotators] == [one.consensus for one in without.annotators]
    assert found.num_labels_by_kind == {"regular": 10, "gold": 2, "repeat": 2}
    assert (found.num_pairs, found.num_gold_pairs) == (4, 1)
    assert regular_labels(labels + extra) == regular_labels(labels)
    first, second, _ = found.annotators
    assert (first.gold.rate, second.gold.rate) == (1.0, 0.0)
    assert first.self_consistency == Rate(0, 1, 0.0, wilson_interval(0, 1))
    # A skipped repeat says nothing.
    assert second.self_consistency == Rate(0, 0, None, None)
    assert (second.num_repeats, second.num_skips) == (0, 1)


def test_consensus_leaves_the_annotator_out():
    # For a: b and c say L, then R; then one each (no consensus); then only b.
    pairs, labels = labelled("LLL", "LRR", "LLR", "RL.", "L..")
    first, second, third = statistics_of(pairs, labels).annotators
    assert (first.consensus.num_successes, first.consensus.num_trials) == (1, 3)
    assert first.consensus.ci95 == wilson_interval(1, 3)
    # For b: a and c agree only in the first; in the fourth there is only a.
    assert (second.consensus.num_successes, second.consensus.num_trials) == (1, 2)
    # For c: the first and the third, where a and b say L.
    assert (third.consensus.num_successes, third.consensus.num_trials) == (1, 2)


def test_side_bias_by_hand():
    pairs = [stored_pair(f"p{number}") for number in range(12)]
    labels = [label(pair.comparison.pair_id, "a", "left", swapped=number < 3) for number, pair in enumerate(pairs[:10])]
    labels += [label("p10", "a", "tie"), label("p11", "a", "skip")]
    found = statistics_of(pairs, labels)
    assert found.side_bias.left_as_displayed == Rate(7, 10, 0.7, wilson_interval(7, 10))
    # Two-sided: 2 * (120 + 45 + 10 + 1) / 1024.
    assert found.side_bias.p_value == pytest.approx(2 * 176 / 1024)
    assert found.annotators[0].side_bias == found.side_bias


def test_seconds_are_the_median_without_skips_and_unknown_times():
    pairs = [stored_pair(f"p{number}") for number in range(5)]
    labels = [label(f"p{number}", "a", "left", seconds=seconds) for number, seconds in enumerate((3.0, 4.0, 10.0))]
    labels += [label("p3", "a", "skip", seconds=100.0), label("p4", "a", "left", seconds=0.0)]
    assert statistics_of(pairs, labels).annotators[0].median_seconds == pytest.approx(4.0)
    assert statistics_of(pairs, labels[4:]).annotators[0].median_seconds is None


def test_response_lengths_by_hand():
    pairs = [
        stored_pair("p0", left="one two three", right="one"),
        stored_pair("p1", left="one", right="one two three four five"),
        stored_pair("p2", left="same length", right="other words"),
        stored_pair("p3", left="a a a a a a", right="b"),
    ]
    labels = [label("p0", "a", "left"), label("p1", "a", "left"), label("p2", "a", "right"), label("p3", "a", "tie")]
    found = statistics_of(pairs, labels).response_lengths
    assert (found.num_pairs, found.chosen_mean_words, found.rejected_mean_words) == (3, 2.0, pytest.approx(8 / 3))
    assert (found.chosen_median_words, found.rejected_median_words) == (2.0, 2.0)
    assert found.chosen_longer == Rate(1.5, 3, 0.5, wilson_interval(1.5, 3))
    assert sum(found.chosen_histogram) == sum(found.rejected_histogram) == 3
    assert len(found.edges) == len(found.chosen_histogram) + 1


def test_labels_in_time_by_hour_by_day_and_by_month():
    pairs, _ = labelled("L", "L", "L")
    hour = 3600.0

    def counts(*times: float) -> list[tuple[str, int]]:
        labels = [label(f"pair-{number}", "a", "left", received_at=time) for number, time in enumerate(times)]
        return [(one.start, one.num_labels) for one in statistics_of(pairs, labels).labels_in_time]

    assert counts(0.5 * hour, 0.9 * hour, 2.1 * hour) == [
        ("1970-01-01T00:00:00+00:00", 2), ("1970-01-01T01:00:00+00:00", 0), ("1970-01-01T02:00:00+00:00", 1),
    ]  # fmt: skip
    by_day = counts(1.0, 24 * 5 * hour, 24 * 5 * hour)
    assert (len(by_day), by_day[-1]) == (6, ("1970-01-06T00:00:00+00:00", 2))
    assert len(counts(1.0, 24 * 2000 * hour)) == 67
    # Labels without a time, as some imports have them, have no place.
    assert counts(0.0) == []


def test_nothing_yet_is_none_and_json():
    found = statistics_of([], [])
    assert (found.num_labels, found.mean_annotators_per_pair, found.annotators, found.warnings) == (0, None, [], [])
    assert found.side_bias.p_value is None
    assert found.response_lengths.chosen_longer.rate is None
    json.dumps(asdict(found), allow_nan=False)
    pairs, labels = labelled("S", "T", "B")
    json.dumps(asdict(statistics_of(pairs, labels)), allow_nan=False)
    assert statistics_of(pairs, labels).side_bias.left_as_displayed.rate is None


def test_all_figures_are_json_without_nan():
    pairs, labels = judged(num=40, right=0.7)
    again = json.loads(json.dumps(asdict(statistics_of(pairs, labels)), allow_nan=False))
    # The others always say left.
    num_left = sum(one.choice == "left" for one in labels if one.annotator == "c")
    assert again["annotators"][2]["consensus"]["rate"] == pytest.approx(num_left / 40)
    assert len(again["agreement"]["cohen_kappas"]) == 3


def test_careful_people_get_no_warning():
    pairs, labels = judged(num=200, right=0.9)
    # Alpha needs two answers that occur.
    for number, one in enumerate(labels):
        if int(one.pair_id.partition("-")[2]) % 2:
            labels[number] = replace(one, choice="right" if one.choice == "left" else "left")
    assert statistics_of(pairs, labels).warnings == []


def test_a_warning_for_each_weakness():
    pairs, labels = judged(num=40, right=0.5)
    hasty = [replace(one, opened_at=one.submitted_at - 1.0) if one.annotator == "a" else one for one in labels]
    (text,) = [one for one in statistics_of(pairs, hasty).warnings if "too fast" in one]
    assert text.startswith("a needs 1.0 seconds")
    assert not [one for one in statistics_of(pairs[:9], hasty[:27]).warnings if "too fast" in one]

    sided = [replace(one, displayed_choice="right") if one.annotator == "b" else one for one in labels]
    (text,) = [one for one in statistics_of(pairs, sided).warnings if "side" in one]
    assert text.startswith("b chose the right side in 100% of 40 choices")

    (text,) = [one for one in statistics_of(pairs, labels).warnings if one.startswith("c agrees")]
    assert "of 40 pairs, hardly more than a coin would" in text

    gold = [stored_pair(f"gold-{number}", gold_choice="left") for number in range(10)]
    wrong = [
        label(pair.comparison.pair_id, "a", "right" if number < 5 else "left", kind="gold", swapped=number % 2 == 0)
        for number, pair in enumerate(gold)
    ]
    (text,) = statistics_of(gold, wrong).warnings
    assert text == "a chose the known answer on 5 of 10 gold pairs (50%)."
    assert statistics_of(gold[:9], wrong[:9]).warnings == []

    repeats = [
        label(one.pair_id, "a", "right" if number < 9 else "left", kind="repeat", swapped=number % 2 == 0)
        for number, one in enumerate(one for one in labels[:45] if one.annotator == "a")
    ]
    (text,) = [one for one in statistics_of(pairs, labels + repeats).warnings if "came back" in one]
    assert "6 of 15" in text
    assert "(40%)" in text


def test_agreement_at_chance_is_a_warning():
    rng = random.Random(0)
    pairs, labels = labelled(*["".join(rng.choice("LR") for _ in "abc") for _ in range(200)])
    assert "no better than chance" in statistics_of(pairs, labels).warnings[0]


def test_the_binomial_test_is_scipys():
    pairs, labels = judged(num=30, right=0.8, seed=3)
    found = statistics_of(pairs, labels).side_bias
    left = [one.displayed_choice for one in labels].count("left")
    assert found.p_value == pytest.approx(binomtest(left, 90).pvalue)
    assert math.isclose(found.left_as_displayed.rate or 0.0, left / 90)


def test_confusion_is_an_error():
    pairs, labels = labelled("LL")
    with pytest.raises(DataError, match="undo"):
        statistics_of(pairs, [replace(labels[0], event="undo", choice=None)])
    with pytest.raises(DataError, match="no pair"):
        statistics_of([], labels)
    with pytest.raises(DataError, match="no known answer"):
        statistics_of(pairs, [replace(labels[0], kind="gold")])
    with pytest.raises(DataError, match="twice"):
        statistics_of(pairs, [labels[0], labels[0]])


def test_regular_labels_of_a_gold_pair_count_as_labels():
    """An import may hold labels of pairs whose answer is known."""
    gold = stored_pair("gold", gold_choice="left")
    found = statistics_of([gold], [label("gold", "a", "left"), label("gold", "b", "left")])
    assert (found.num_gold_pairs, found.num_pairs_labelled, found.annotators_per_pair) == (1, 1, {2: 1})
    assert statistics_of([gold], [label("gold", "a", "skip")]).num_pairs_labelled == 0


def test_five_thousand_pairs_are_fast():
    pairs, labels = judged(num=5000, right=0.8)
    statistics_of(pairs[:2], labels[:6])  # loads the packages
    start_seconds = time.perf_counter()
    label_statistics(pairs, labels, seed=0)
    # Measured: 1.0 s. The bound leaves room for a busy machine.
    assert time.perf_counter() - start_seconds < 10
