"""Aggregation: majorities by hand, rules for ties and both bad, and reliabilities in place of equal votes."""

import random

import pytest

from prefloop.collection.aggregation import (
    NO_SIDE,
    TIED,
    TOO_FEW,
    UNLABELLED,
    Aggregation,
    aggregate,
)
from prefloop.errors import DataError, SettingsError
from prefloop.records import Choice, Comparison, Completion, Label, PreferencePair


def comparison(left: str, right: str, *, pair_id: str = "pair") -> Comparison:
    return Comparison(pair_id, "question", Completion(left), Completion(right))


def labels_of(pair_id: str, *choices: Choice) -> list[Label]:
    return [Label(pair_id, f"annotator-{index}", choice) for index, choice in enumerate(choices)]


def test_majorities_by_hand():
    pairs = [comparison(f"left {name}", f"right {name}", pair_id=name) for name in "abcdefgh"]
    labels = [
        *labels_of("a", "left", "left", "right"),
        *labels_of("b", "right"),
        *labels_of("c", "left", "right"),
        *labels_of("d", "skip", "skip"),
        *labels_of("e", "right", "tie"),
        *labels_of("f", "tie", "both_bad"),
        *labels_of("g", "skip", "right", "right"),
    ]
    result = aggregate(pairs, labels)
    assert result.pairs == [
        PreferencePair("question", "left a", "right a", agreement=2 / 3, num_annotators=3),
        PreferencePair("question", "right b", "left b", agreement=1.0, num_annotators=1),
        PreferencePair("question", "right e", "left e", agreement=0.75, num_annotators=2),
        PreferencePair("question", "right g", "left g", agreement=1.0, num_annotators=2),
    ]
    assert result.num_tied == 2  # c, f
    assert result.num_unlabelled == 2  # d, h


def test_cut_completions_stay_marked():
    pair = Comparison("p", "question", Completion("cut", ended=False), Completion("whole"))
    (left_wins,) = aggregate([pair], labels_of("p", "left")).pairs
    assert (left_wins.chosen_ended, left_wins.rejected_ended) == (False, True)
    (right_wins,) = aggregate([pair], labels_of("p", "right")).pairs
    assert (right_wins.chosen_ended, right_wins.rejected_ended) == (True, False)


def chosen(result: Aggregation) -> dict[str, str]:
    return {verdict.comparison.pair_id: verdict.chosen for verdict in result.verdicts}


def test_rules_for_ties_and_both_bad_by_hand():
    pairs = [comparison(f"left {name}", f"right {name}", pair_id=name) for name in "abcdef"]
    labels = [
        *labels_of("a", "left", "tie"),
        *labels_of("b", "right", "both_bad", "both_bad"),
        *labels_of("c", "tie", "tie"),
        *labels_of("d", "both_bad", "skip"),
        *labels_of("e", "skip"),
        *labels_of("f", "left", "right", "tie"),
    ]

    def figures(**rules) -> tuple[list[tuple[str, float, int]], dict[str, int]]:
        result = aggregate(pairs, labels, **rules)
        return [(one.comparison.pair_id, one.agreement, one.num_annotators) for one in result.verdicts], result.dropped

    assert figures() == (
        [("a", 0.75, 2), ("b", pytest.approx(2 / 3), 3)], {TIED: 3, UNLABELLED: 1}
    )  # fmt: skip
    assert figures(ties="drop") == ([("a", 1.0, 1), ("b", 1.0, 1)], {NO_SIDE: 2, UNLABELLED: 1, TIED: 1})
    # Both bad as a tie is dropped with the ties.
    assert figures(ties="drop", both_bad="drop") == figures(ties="drop")
    assert figures(both_bad="drop") == ([("a", 0.75, 2), ("b", 1.0, 1)], {NO_SIDE: 1, UNLABELLED: 1, TIED: 2})
    assert figures(both_bad="drop", min_annotators=2) == (
        [("a", 0.75, 2)], {NO_SIDE: 1, UNLABELLED: 1, TIED: 2, TOO_FEW: 1}
    )  # fmt: skip


def test_every_comparison_is_a_verdict_or_counted():
    rng = random.Random(0)
    choices: tuple[Choice, ...] = ("left", "right", "tie", "both_bad", "skip")
    pairs = [comparison("1", "2", pair_id=f"pair-{number}") for number in range(200)]
    labels = [Label(pair.pair_id, name, rng.choice(choices)) for pair in pairs for name in "abc" if rng.random() < 0.7]
    for method in ("majority", "dawid_skene"):
        for ties in ("half", "drop"):
            for both_bad in ("tie", "drop"):
                result = aggregate(pairs, labels, method=method, ties=ties, both_bad=both_bad, min_annotators=2)
                assert len(result.verdicts) + sum(result.dropped.values()) == 200
                assert all(0.5 < one.agreement <= 1.0 for one in result.verdicts)
                assert result.converged


def test_sides_exchanged_give_the_same_preferences():
    rng = random.Random(1)
    other: dict[Choice, Choice] = {"left": "right", "right": "left", "tie": "tie"}
    pairs = [comparison(f"first {number}", f"second {number}", pair_id=f"p{number}") for number in range(80)]
    labels = [
        Label(pair.pair_id, name, rng.choice(("left", "left", "right", "tie"))) for pair in pairs for name in "abc"
    ]
    swapped = {pair.pair_id for pair in pairs if rng.random() < 0.5}
    pairs_too = [pair.swap() if pair.pair_id in swapped else pair for pair in pairs]
    labels_too = [
        Label(one.pair_id, one.annotator, other[one.choice]) if one.pair_id in swapped else one for one in labels
    ]
    for method in ("majority", "dawid_skene"):
        one, too = aggregate(pairs, labels, method=method), aggregate(pairs_too, labels_too, method=method)
        assert [(pair.chosen, pair.rejected) for pair in one.pairs] == [
            (pair.chosen, pair.rejected) for pair in too.pairs
        ]
        assert [pair.agreement for pair in one.pairs] == pytest.approx([pair.agreement for pair in too.pairs])
        assert one.dropped == too.dropped


def test_reliable_people_outvote_a_careless_majority():
    """Two coin flippers against one careful person: a majority follows the coins, reliabilities do not."""
    rng = random.Random(2)
    pairs = [comparison("good", "bad", pair_id=f"p{number}") for number in range(600)]
    labels: list[Label] = []
    for pair in pairs:
        labels += [
            Label(pair.pair_id, name, "left" if rng.random() < 0.95 else "right") for name in ("careful", "also")
        ]
        labels += [Label(pair.pair_id, f"coin-{number}", rng.choice(("left", "right"))) for number in range(4)]
    majority, weighted = aggregate(pairs, labels), aggregate(pairs, labels, method="dawid_skene")
    right = {name: list(chosen(result).values()).count("left") / 600 for name, result in
             (("majority", majority), ("weighted", weighted))}  # fmt: skip
    assert right["majority"] < 0.88
    # The two careful people differ on a tenth of the pairs, and no method can know which one is right there.
    assert right["weighted"] > 0.92
    assert weighted.reliability["careful"] == pytest.approx(0.95, abs=0.04)
    assert weighted.reliability["coin-0"] == pytest.approx(0.5, abs=0.08)
    assert majority.reliability == {}


def test_agreement_is_the_posterior_with_half_of_a_tie():
    (verdict,) = aggregate([comparison("1", "2")], labels_of("pair", "right"), method="dawid_skene").verdicts
    # One annotator, no tie: the prior's share of right labels.
    assert (verdict.chosen, verdict.num_annotators) == ("right", 1)
    assert verdict.agreement == pytest.approx(0.8)
    tied = aggregate([comparison("1", "2")], labels_of("pair", "tie", "tie", "left"), method="dawid_skene")
    assert (tied.verdicts, tied.dropped) == ([], {TIED: 1})
    assert aggregate([comparison("1", "2")], [], method="dawid_skene").dropped == {UNLABELLED: 1}


def test_confusion_is_an_error():
    pair = comparison("1", "0")
    with pytest.raises(DataError, match="more than once"):
        aggregate([pair, pair], [])
    with pytest.raises(DataError, match="'stranger'"):
        aggregate([pair], [Label("stranger", "A", "left")])
    with pytest.raises(DataError, match="two labels"):
        aggregate([pair], [Label("pair", "A", "left"), Label("pair", "A", "right")])


@pytest.mark.parametrize(
    "setting", [{"method": "median"}, {"ties": "keep"}, {"both_bad": "half"}, {"min_annotators": 0}]
)
def test_unknown_settings_are_errors(setting):
    with pytest.raises(SettingsError, match=next(iter(setting))):
        aggregate([], [], **setting)
