"""Kappas and alphas: hand-worked numbers, the reference packages, naive bootstraps, and what does not exist."""

import random
import time

import krippendorff
import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score
from statsmodels.stats import inter_rater

from prefloop.collection import agreement_figures as figures
from prefloop.collection.aggregation import choices_by_pair
from prefloop.collection.agreement import CATEGORIES, category_counts, compared_counts
from prefloop.collection.agreement_figures import agreement_figures, cohen_kappas, fleiss_kappa, ordinal_alpha
from prefloop.errors import DataError, SettingsError
from prefloop.records import Choice, Label

LETTERS: dict[str, Choice] = {"L": "left", "R": "right", "T": "tie", "B": "both_bad", "S": "skip"}


def labels_from(*rows: str) -> list[Label]:
    """One row per pair, one letter per annotator (a, b, c); a dot is no label."""
    return [
        Label(f"pair-{pair}", "abcdef"[place], LETTERS[letter])
        for pair, row in enumerate(rows)
        for place, letter in enumerate(row)
        if letter != "."
    ]


def random_labels(num_pairs: int, *, num_annotators: int = 3, seed: int = 0, letters: str = "LLLRRTB") -> list[Label]:
    """Annotators who often repeat what the first one said."""
    rng = random.Random(seed)
    rows = []
    for _ in range(num_pairs):
        truth = rng.choice(letters)
        rows.append("".join(truth if rng.random() < 0.6 else rng.choice(letters + ".S") for _ in range(num_annotators)))
    return labels_from(*rows)


def test_cohen_by_hand():
    # Observed 3 of 4; chance (3 * 2 + 1 * 2) / 16 = 1/2: kappa = (3/4 - 1/2) / (1/2) = 1/2.
    (one,) = cohen_kappas(labels_from("LL", "LL", "LR", "RR"), 0)
    assert (one.first, one.second, one.kappa.num_pairs, one.kappa.num_labels) == ("a", "b", 4, 8)
    assert one.kappa.value == pytest.approx(0.5)
    # Never the same, half and half: (0 - 1/2) / (1/2) = -1.
    assert cohen_kappas(labels_from("LR", "RL"), 0)[0].kappa.value == pytest.approx(-1.0)
    assert cohen_kappas(labels_from("LL", "RR"), 0)[0].kappa.value == 1.0


def test_skips_and_missing_labels_leave_a_pair_out_of_cohen():
    with_gaps = cohen_kappas(labels_from("LL", "LL", "LR", "RR", "LS", "R."), 0)
    assert with_gaps == cohen_kappas(labels_from("LL", "LL", "LR", "RR"), 0)


def test_cohen_is_given_for_each_two_and_equals_sklearn():
    labels = random_labels(200, num_annotators=4)
    by_pair = choices_by_pair(labels)
    found = cohen_kappas(labels, 1)
    assert [one.first + one.second for one in found] == ["ab", "ac", "ad", "bc", "bd", "cd"]
    for one in found:
        both = [
            row for row in by_pair.values() if "skip" not in (row.get(one.first, "skip"), row.get(one.second, "skip"))
        ]
        expected = cohen_kappa_score([row[one.first] for row in both], [row[one.second] for row in both])
        assert one.kappa.value == pytest.approx(expected)
        assert one.kappa.num_pairs == len(both)
        assert one.kappa.ci95 is not None
        assert one.kappa.ci95[0] < expected < one.kappa.ci95[1]


def test_resampled_cohen_equals_sklearn_on_each_resample():
    rng = np.random.default_rng(2)
    tables = rng.integers(0, 5, size=(20, 4, 4))
    for table, kappa in zip(tables, figures._cohen_kappa(tables), strict=True):
        first, second = np.indices((4, 4)).reshape(2, -1)
        pairs = np.repeat(np.column_stack([first, second]), table.reshape(-1), axis=0)
        assert kappa == pytest.approx(cohen_kappa_score(pairs[:, 0], pairs[:, 1]))
    one_category = np.zeros((1, 4, 4), dtype=np.int64)
    one_category[0, 1, 1] = 7
    assert np.isnan(figures._cohen_kappa(one_category)[0])


def test_the_interval_of_cohen_is_that_of_drawing_pairs():
    labels = random_labels(60, num_annotators=2, seed=3, letters="LR")
    (one,) = cohen_kappas(labels, 0, num_resamples=4000)
    both = [row for row in choices_by_pair(labels).values() if len(row) == 2 and "skip" not in row.values()]
    rng = random.Random(1)
    kappas = []
    for _ in range(1500):
        drawn = rng.choices(both, k=len(both))
        kappas.append(cohen_kappa_score([row["a"] for row in drawn], [row["b"] for row in drawn]))
    # Two independent draws of the same bootstrap: bounds are equal up to their own noise.
    assert one.kappa.ci95 == pytest.approx(tuple(np.quantile(kappas, [0.025, 0.975])), abs=0.04)


def test_fleiss_by_hand():
    # Shares of agreement 1, 1/3, 1, 1/3: mean 2/3; categories 6 and 6 of 12: chance 1/2; (2/3 - 1/2) / (1/2) = 1/3.
    figure = fleiss_kappa(labels_from("LLL", "LLR", "RRR", "LRR"), 0)
    assert figure.value == pytest.approx(1 / 3)
    assert (figure.num_pairs, figure.num_labels) == (4, 12)
    assert figure.note == "from the 4 pairs with 3 labels"


def test_fleiss_says_which_pairs_it_is_from():
    figure = fleiss_kappa(labels_from("LLL", "LLR", "RRR", "LRR", "LL.", "RSR", "L..", "SSS"), 0)
    assert figure.value == pytest.approx(1 / 3)
    assert figure.note == "from the 4 pairs with 3 labels; 2 pairs with another number are left out"
    # As many pairs with two labels as with three: the larger number.
    assert fleiss_kappa(labels_from("LLR", "RRR", "LL.", "RR."), 0).num_labels == 6


def test_fleiss_and_its_interval_equal_the_package_on_pairs_drawn_one_by_one():
    counts = compared_counts(category_counts(choices_by_pair(random_labels(80, seed=4))))
    labels = labels_from(*["".join("LTRB"[code] * num for code, num in enumerate(row)) for row in counts])
    figure = fleiss_kappa(labels, 7, num_resamples=100)
    threes = counts[counts.sum(axis=1) == 3]
    assert figure.num_pairs == len(threes)
    assert figure.value == pytest.approx(inter_rater.fleiss_kappa(threes))
    generator = np.random.default_rng(figures.derived_seed(7, "fleiss_kappa"))
    drawn = [threes[generator.integers(len(threes), size=len(threes))] for _ in range(100)]
    naive = np.quantile([inter_rater.fleiss_kappa(one) for one in drawn], [0.025, 0.975])
    assert figure.ci95 == pytest.approx(tuple(naive))


def test_ordinal_alpha_by_hand():
    # Left, tie, right are used twice each. Squared differences: left-tie (1 + 1)^2 = 4, left-right (1 + 2 + 1)^2 = 16.
    # Mismatching coincidences: left-tie twice. Chance: 2 * (4 * 4 + 4 * 4 + 4 * 16) = 192. 1 - 5 * 2 * 4 / 192.
    figure = ordinal_alpha(labels_from("LT", "RR", "TL"), 0)
    assert figure.value == pytest.approx(1 - 5 * 2 * 2 * 4 / 192)
    assert ordinal_alpha(labels_from("LL", "RR", "TT"), 0).value == 1.0


def test_ordinal_alpha_leaves_both_bad_out_and_counts_it():
    figure = ordinal_alpha(labels_from("LT", "RR", "TL", "BB", "LB", "LLB"), 0)
    assert figure.note == "4 both_bad labels are left out"
    assert figure.value == ordinal_alpha(labels_from("LT", "RR", "TL", "LL"), 0).value
    assert figure.num_pairs == 4


def test_ordinal_alpha_and_its_interval_equal_the_package_on_pairs_drawn_one_by_one():
    labels = random_labels(60, seed=5, letters="LRT")
    figure = ordinal_alpha(labels, 7, num_resamples=100)
    counts = compared_counts(category_counts(choices_by_pair(labels)))[:, :3]
    generator = np.random.default_rng(figures.derived_seed(7, "ordinal_alpha"))
    drawn = [counts[generator.integers(len(counts), size=len(counts))] for _ in range(100)]
    naive = [krippendorff.alpha(value_counts=one, level_of_measurement="ordinal") for one in drawn]
    assert figure.ci95 == pytest.approx(tuple(np.quantile(naive, [0.025, 0.975])))


def test_coin_flips_have_figures_near_zero():
    rng = random.Random(0)
    labels = labels_from(*["".join(rng.choice("LR") for _ in "abc") for _ in range(2000)])
    found = agreement_figures(labels, 0)
    for figure in (
        *(one.kappa for one in found.cohen_kappas),
        found.fleiss_kappa,
        found.krippendorff_alpha_nominal,
        found.krippendorff_alpha_ordinal,
    ):
        assert figure.value == pytest.approx(0.0, abs=0.06)
        assert figure.ci95 is not None
        assert figure.ci95[0] < 0 < figure.ci95[1]


def test_what_does_not_exist_is_none_and_says_why():
    nothing = agreement_figures([], 0)
    assert nothing.cohen_kappas == []
    alone = agreement_figures(labels_from("L", "R", "S"), 0)
    for found in (nothing, alone):
        for figure in (found.percent_agreement, found.fleiss_kappa, found.krippendorff_alpha_nominal):
            assert (figure.value, figure.ci95, figure.num_pairs) == (None, None, 0)
            assert figure.note == "no pair has labels of two annotators"
    same = agreement_figures(labels_from("LLL", "LLL"), 0)
    assert same.percent_agreement.value == 1.0
    for figure in (
        same.cohen_kappas[0].kappa,
        same.fleiss_kappa,
        same.krippendorff_alpha_nominal,
        same.krippendorff_alpha_ordinal,
    ):
        assert (figure.value, figure.ci95) == (None, None)
        assert "all choices are the same" in figure.note
    single = agreement_figures(labels_from("LR"), 0)
    assert single.cohen_kappas[0].kappa.value == 0.0
    assert single.cohen_kappas[0].kappa.ci95 is single.fleiss_kappa.ci95 is None
    only_bad = ordinal_alpha(labels_from("BB", "BB"), 0)
    assert only_bad.value is None
    assert only_bad.note == "no pair has labels of two annotators; 4 both_bad labels are left out"


def test_a_rare_second_category_gives_no_nan():
    rows = ["LL"] * 5 + ["LR"]
    for figure in (
        cohen_kappas(labels_from(*rows), 0)[0].kappa,
        fleiss_kappa(labels_from(*rows), 0),
        ordinal_alpha(labels_from(*rows), 0),
    ):
        assert figure.value is not None
        assert figure.ci95 is not None
        assert np.isfinite([figure.value, *figure.ci95]).all()


def test_the_same_seed_gives_the_same_figures():
    labels = random_labels(50)
    assert agreement_figures(labels, 3) == agreement_figures(labels, 3)
    assert agreement_figures(labels, 3) != agreement_figures(labels, 4)


def test_bad_input_is_an_error():
    twice = [Label("p", "a", "left"), Label("p", "a", "right")]
    for measure in (cohen_kappas, fleiss_kappa, ordinal_alpha):
        with pytest.raises(DataError, match="two labels"):
            measure(twice, 0)
        with pytest.raises(SettingsError, match="num_resamples"):
            measure(labels_from("LL"), 0, num_resamples=10)


def test_five_thousand_pairs_and_twenty_annotators_are_fast():
    rng = random.Random(0)
    labels = [
        Label(f"pair-{pair}", f"person-{person}", rng.choice(CATEGORIES))
        for pair in range(5000)
        for person in rng.sample(range(20), 3)
    ]
    agreement_figures(labels_from("LL", "LR"), 0)  # loads the packages
    start_seconds = time.perf_counter()
    assert len(agreement_figures(labels, 0).cohen_kappas) == 190
    # Measured: 1.1 s. The bound leaves room for a busy machine; drawing labels one by one takes many minutes.
    assert time.perf_counter() - start_seconds < 10
