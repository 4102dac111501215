"""Agreement: hand-worked numbers, limiting cases, and equality with the reference package."""

import random
import time
from itertools import combinations

import krippendorff
import numpy as np
import pytest

from prefloop.collection import agreement
from prefloop.collection.agreement import AnnotatorAgreement, agreement_report, krippendorff_alpha, percent_agreement
from prefloop.collection.annotators import cast, label_pairs
from prefloop.errors import DataError, SettingsError
from prefloop.records import Choice, Comparison, Completion, Label

CHOICES: tuple[Choice, ...] = ("left", "right", "tie", "both_bad", "skip")


def labels_from(*rows: str) -> list[Label]:
    """One row per pair, one letter per annotator: L, R, T(ie), B(oth bad), S(kip); a dot is no label."""
    names: dict[str, Choice] = {"L": "left", "R": "right", "T": "tie", "B": "both_bad", "S": "skip"}
    return [
        Label(f"pair-{pair}", f"annotator-{annotator}", names[letter])
        for pair, row in enumerate(rows)
        for annotator, letter in enumerate(row)
        if letter != "."
    ]


def random_labels(num_pairs: int, *, num_annotators: int, seed: int, choices: tuple[Choice, ...]) -> list[Label]:
    rng = random.Random(seed)
    return [
        Label(f"pair-{pair}", f"annotator-{annotator}", rng.choice(choices))
        for pair in range(num_pairs)
        for annotator in range(num_annotators)
        if rng.random() < 0.8
    ]


def test_two_annotators_by_hand():
    labels = labels_from("LL", "LR", "RR")
    assert percent_agreement(labels) == pytest.approx(2 / 3)
    # n = 6, three of each; mismatching coincidences 2: 1 - 5 * 2 / (3 * 3 + 3 * 3) = 4 / 9.
    assert krippendorff_alpha(labels) == pytest.approx(4 / 9)


def test_three_annotators_with_skips_by_hand():
    labels = labels_from("LLR", "RRS", "LSS", "LRR")
    # Shares 1/3, 1, (one label: left out), 1/3.
    assert percent_agreement(labels) == pytest.approx(5 / 9)
    # n = 8 with 3 left and 5 right; each split triple has (2 * 1 + 1 * 2) / 2 = 2 mismatches:
    # 1 - 7 * 4 / (3 * 5 + 5 * 3) = 2 / 30.
    assert krippendorff_alpha(labels) == pytest.approx(1 / 15)


def test_a_published_example():
    # Three observers, fifteen units, four values, many missing: nominal alpha 0.691, as worked through in Wikipedia's
    # article "Krippendorff's alpha" (values 1 to 4 are L, T, R, B here).
    first = "....." + "RBLTLLRR.R"
    second = "L.TLRRBR......."
    third = "..TLRBB.TLLRR.B"
    labels = labels_from(*[a + b + c for a, b, c in zip(first, second, third, strict=True)])
    assert krippendorff_alpha(labels) == pytest.approx(0.691358, abs=1e-6)


def test_perfect_agreement_and_perfect_disagreement():
    assert percent_agreement(labels_from("LL", "RR")) == 1.0
    assert krippendorff_alpha(labels_from("LL", "RR")) == 1.0
    assert percent_agreement(labels_from("LR", "RL")) == 0.0
    # n = 4, two of each, 4 mismatches: 1 - 3 * 4 / 8 = -1/2.
    assert krippendorff_alpha(labels_from("LR", "RL")) == pytest.approx(-0.5)


def test_coin_flips_agree_by_chance_only():
    labels = random_labels(2000, num_annotators=3, seed=0, choices=("left", "right"))
    report = agreement_report(labels, 1)
    assert report.krippendorff_alpha == pytest.approx(0.0, abs=0.06)
    assert report.percent_agreement == pytest.approx(0.5, abs=0.03)
    assert report.krippendorff_alpha_ci95 is not None
    low, high = report.krippendorff_alpha_ci95
    assert low < 0 < high


def test_ordinal_alpha_counts_a_tie_as_nearer_than_the_other_side():
    near, far = labels_from("LL", "RR", "TT", "LT", "RT"), labels_from("LL", "RR", "TT", "LR", "RT")
    assert krippendorff_alpha(near, "ordinal") > krippendorff_alpha(far, "ordinal")
    assert krippendorff_alpha(near, "ordinal") > krippendorff_alpha(near, "nominal")
    with pytest.raises(DataError, match="both_bad"):
        krippendorff_alpha(labels_from("LB", "RR"), "ordinal")


def test_figures_equal_naive_loops_and_the_package_on_random_labels():
    for seed in range(5):
        labels = random_labels(40, num_annotators=4, seed=seed, choices=CHOICES)
        rows: dict[str, list[Choice]] = {}
        for label in labels:
            if label.choice != "skip":
                rows.setdefault(label.pair_id, []).append(label.choice)
        shares = [np.mean([a == b for a, b in combinations(row, 2)]) for row in rows.values() if len(row) > 1]
        assert percent_agreement(labels) == pytest.approx(np.mean(shares))
        data = [
            [
                next(
                    (
                        CHOICES.index(label.choice)
                        for label in labels
                        if (label.pair_id, label.annotator) == (f"pair-{pair}", f"annotator-{annotator}")
                        and label.choice != "skip"
                    ),
                    np.nan,
                )
                for pair in range(40)
            ]
            for annotator in range(4)
        ]
        expected = krippendorff.alpha(reliability_data=data, level_of_measurement="nominal")
        assert krippendorff_alpha(labels) == pytest.approx(expected)


def test_the_resampled_alpha_equals_the_package_on_the_full_data():
    rng = np.random.default_rng(4)
    for _ in range(5):
        counts = rng.integers(0, 4, size=(30, 4))
        counts = counts[counts.sum(axis=1) >= 2]
        sums = agreement._alpha_summands(counts).sum(axis=0, keepdims=True)
        expected = krippendorff.alpha(value_counts=counts, level_of_measurement="nominal")
        assert agreement._nominal_alpha(sums)[0] == pytest.approx(expected)


def test_intervals_equal_a_bootstrap_that_draws_the_pairs_themselves():
    labels = random_labels(50, num_annotators=3, seed=2, choices=("left", "left", "right"))
    report = agreement_report(labels, 5, num_resamples=200)
    counts = agreement.compared_counts(agreement.category_counts(agreement.choices_by_pair(labels)))
    generator = np.random.default_rng(5)
    percents, alphas = [], []
    for _ in range(200):
        drawn = counts[generator.integers(len(counts), size=len(counts))]
        percents.append(agreement.agreeing_shares(drawn).mean())
        alphas.append(krippendorff.alpha(value_counts=drawn, level_of_measurement="nominal"))
    assert report.percent_agreement_ci95 == pytest.approx(tuple(np.quantile(percents, [0.025, 0.975])))
    assert report.krippendorff_alpha_ci95 == pytest.approx(tuple(np.quantile(alphas, [0.025, 0.975])))


def test_the_interval_is_wide_for_few_pairs_and_narrow_for_many():
    widths = []
    for num_pairs in (50, 800):
        report = agreement_report(random_labels(num_pairs, num_annotators=3, seed=3, choices=("left", "right")), 0)
        assert report.percent_agreement is not None
        assert report.percent_agreement_ci95 is not None
        low, high = report.percent_agreement_ci95
        assert low < report.percent_agreement < high
        widths.append(high - low)
    # Sixteen times the pairs: a quarter of the width.
    assert widths[0] / widths[1] == pytest.approx(4, rel=0.35)


def test_a_thousand_resamples_of_five_thousand_pairs_are_fast():
    labels = random_labels(5000, num_annotators=3, seed=1, choices=("left", "right"))
    start_seconds = time.perf_counter()
    agreement_report(labels, 0)
    # Measured: 0.2 s. The bound leaves room for a busy machine; resampling labels one by one takes a minute.
    assert time.perf_counter() - start_seconds < 3


def test_the_report_by_hand():
    report = agreement_report(labels_from("LLR", "RRS", "LSS", "SSS"), 0)
    assert (report.num_pairs, report.num_compared_pairs, report.num_labels) == (3, 2, 6)
    assert report.annotators_per_pair == pytest.approx(2.0)
    assert report.percent_agreement == pytest.approx(2 / 3)
    assert report.krippendorff_alpha == pytest.approx(krippendorff_alpha(labels_from("LLR", "RR.")))
    assert report.per_annotator == {
        "annotator-0": AnnotatorAgreement(3, 1, 2 / 3, 2 / 3),
        "annotator-1": AnnotatorAgreement(2, 2, 0.5, 2 / 3),
        "annotator-2": AnnotatorAgreement(1, 3, 0.0, 0.0),
    }


def test_what_does_not_exist_is_none_in_the_report_and_an_error_alone():
    alone = labels_from("L", "R", "S")
    report = agreement_report(alone, 0)
    assert (report.num_pairs, report.num_compared_pairs, report.annotators_per_pair) == (2, 0, 1.0)
    assert report.percent_agreement is report.percent_agreement_ci95 is None
    assert report.krippendorff_alpha is report.krippendorff_alpha_ci95 is None
    assert report.per_annotator["annotator-0"] == AnnotatorAgreement(2, 1, 0.5, None)
    for measure in (percent_agreement, krippendorff_alpha):
        with pytest.raises(DataError, match="Collect more labels"):
            measure(alone)

    one_category = agreement_report(labels_from("LL", "LL"), 0)
    assert one_category.percent_agreement == 1.0
    assert one_category.percent_agreement_ci95 == (1.0, 1.0)
    assert one_category.krippendorff_alpha is one_category.krippendorff_alpha_ci95 is None
    with pytest.raises(DataError, match="1 different choices"):
        krippendorff_alpha(labels_from("LL", "LL"))

    assert agreement_report([], 0).annotators_per_pair is None
    assert agreement_report(labels_from("T"), 0).per_annotator["annotator-0"].left_share is None


def test_resamples_without_a_second_category_are_left_out():
    report = agreement_report(labels_from("LL", "RR"), 0)
    assert report.krippendorff_alpha_ci95 == (1.0, 1.0)


def test_bad_input_is_an_error():
    with pytest.raises(DataError, match="two labels"):
        agreement_report([Label("p", "A", "left"), Label("p", "A", "left")], 0)
    with pytest.raises(SettingsError, match="num_resamples"):
        agreement_report(labels_from("LL"), 0, num_resamples=10)


def test_the_careless_agree_less_than_the_careful():
    rng = random.Random(0)
    pairs = [
        Comparison(
            f"pair-{index}", "question", Completion(str(rng.randint(-3, 0))), Completion(str(rng.randint(-3, 0)))
        )
        for index in range(800)
    ]
    careful, careless, lengthy = cast(lambda prompt, completion: float(completion.text))
    report = agreement_report(label_pairs(pairs, (careful, careless, lengthy), seed=3), 0)
    with_others = {name: row.agreement_with_others or 0.0 for name, row in report.per_annotator.items()}
    assert with_others[careless.name] < with_others[careful.name]
    assert with_others[careless.name] < with_others[lengthy.name]
    assert report.krippendorff_alpha is not None
    assert report.percent_agreement is not None
    # Left is an arbitrary name: alpha stays near twice the agreement minus one.
    assert report.krippendorff_alpha == pytest.approx(2 * report.percent_agreement - 1, abs=0.02)
