"""Reward and classifier reports against hand-worked numbers, naive loops and known limits."""

import json
import math

import numpy as np
import pytest

from prefloop.errors import DataError
from prefloop.evaluation.reward_report import (
    CalibrationBin,
    accuracy_ceiling_from_agreement,
    calibration_curve,
    classifier_report,
    expected_calibration_error,
    reward_report,
)


def naive_auc(positive: list[float], negative: list[float]) -> float:
    wins = sum(0.5 + 0.5 * ((a > b) - (a < b)) for a in positive for b in negative)
    return wins / (len(positive) * len(negative))


def random_scores(*, seed: int = 0, num_pairs: int = 120) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    chosen = generator.normal(0.7, 1.0, num_pairs).round(1)  # rounded, so that ties occur
    rejected = generator.normal(0.0, 1.0, num_pairs).round(1)
    return chosen, rejected


def test_three_aucs_by_hand():
    report = reward_report([3.0, 0.0, 1.0], [1.0, -0.5, 2.0], clusters=["a", "b", "c"], seed=0)
    assert (report.n, report.num_ties) == (3, 0)
    assert report.accuracy == report.auc_concordance == pytest.approx(2 / 3)
    # Margins 2, 0.5 and -1: m_i + m_j > 0 for 6 of the 9 ordered pairs, 2 with anything and 0.5 with itself.
    assert report.auc_oriented == pytest.approx(6 / 9)
    # Chosen 3 beats all three rejected, 0 beats -0.5, and 1 beats -0.5 and ties with 1.
    assert report.auc_pooled == pytest.approx((3 + 1 + 1.5) / 9)
    assert report.mean_margin == pytest.approx(0.5)
    assert report.roc_auc is None
    assert report.accuracy_ceiling is None


def test_report_equals_naive_loops():
    chosen, rejected = random_scores()
    report = reward_report(chosen, rejected, clusters=np.arange(120) // 3, seed=0, agreement=0.73)
    margins = (chosen - rejected).tolist()
    ties = sum(margin == 0 for margin in margins)
    assert report.num_ties == ties > 0
    assert report.accuracy == pytest.approx((sum(margin > 0 for margin in margins) + ties / 2) / 120)
    assert report.auc_oriented == pytest.approx(naive_auc(margins, [-margin for margin in margins]))
    assert report.auc_pooled == pytest.approx(naive_auc(chosen.tolist(), rejected.tolist()))
    probabilities = [1 / (1 + math.exp(-margin)) for margin in margins]
    assert report.brier == pytest.approx(sum((1 - p) ** 2 for p in probabilities) / 120)
    assert report.accuracy_ci95[0] < report.accuracy < report.accuracy_ci95[1]
    assert report.accuracy_ceiling == pytest.approx(0.5 + 0.5 * math.sqrt(0.46))


def test_perfect_constant_and_reversed_scores():
    perfect = reward_report([1e4, 2e4, 3e4], [0.0, 0.0, 0.0], clusters="abc", seed=0)
    assert (perfect.accuracy, perfect.auc_oriented, perfect.auc_pooled, perfect.brier) == (1.0, 1.0, 1.0, 0.0)
    assert perfect.expected_calibration_error == 0.0
    constant = reward_report([1.0] * 3, [1.0] * 3, clusters="abc", seed=0)
    assert (constant.accuracy, constant.auc_oriented, constant.auc_pooled) == (0.5, 0.5, 0.5)
    assert (constant.brier, constant.num_ties) == (0.25, 3)
    assert constant.calibration == (CalibrationBin(mean_predicted=0.5, observed_share=0.5, count=6),)
    chosen, rejected = random_scores()
    forward = reward_report(chosen, rejected, clusters=range(120), seed=0)
    backward = reward_report(rejected, chosen, clusters=range(120), seed=0)
    assert backward.accuracy == pytest.approx(1 - forward.accuracy)
    assert backward.auc_oriented is not None
    assert forward.auc_oriented is not None
    assert backward.auc_oriented == pytest.approx(1 - forward.auc_oriented)


def test_scores_that_do_not_compare_across_prompts_show_in_the_pooled_auc_alone():
    offsets = np.linspace(-50, 50, 40)
    margins = np.random.default_rng(1).uniform(0.1, 1.0, 40)
    report = reward_report(offsets + margins, offsets, clusters=range(40), seed=0)
    assert report.accuracy == report.auc_oriented == 1.0
    assert report.auc_pooled is not None
    assert report.auc_pooled < 0.55


def test_a_reward_model_that_is_the_truth_is_calibrated_and_an_overconfident_one_is_not():
    generator = np.random.default_rng(5)
    margins = generator.normal(0, 1.5, 20_000)
    first_wins = generator.random(20_000) < 1 / (1 + np.exp(-margins))
    truth = np.where(first_wins, margins, -margins)
    zeros = np.zeros(20_000)
    honest = reward_report(truth, zeros, clusters=range(20_000), seed=0)
    loud = reward_report(4 * truth, zeros, clusters=range(20_000), seed=0)
    assert honest.expected_calibration_error < 0.015
    assert loud.expected_calibration_error > 0.1
    assert loud.brier > honest.brier
    predicted = [part.mean_predicted for part in honest.calibration]
    assert predicted == sorted(predicted)
    assert predicted[0] < 0.1
    assert predicted[-1] > 0.9
    assert sum(part.count for part in honest.calibration) == 40_000


def test_the_interval_is_wider_when_rows_share_prompts():
    generator = np.random.default_rng(6)
    margins = np.repeat(generator.normal(0.3, 1.0, 50), 8)
    rows = reward_report(margins, 0 * margins, clusters=range(400), seed=0).accuracy_ci95
    prompts = reward_report(margins, 0 * margins, clusters=np.repeat(range(50), 8), seed=0).accuracy_ci95
    assert prompts[1] - prompts[0] > 2 * (rows[1] - rows[0])


def test_calibration_bins_by_hand():
    curve = calibration_curve([0.1, 0.2, 0.6, 0.8], [0, 1, 1, 1], num_bins=2)
    low, high = curve
    assert (low.mean_predicted, low.observed_share, low.count) == (pytest.approx(0.15), 0.5, 2)
    assert (high.mean_predicted, high.observed_share, high.count) == (pytest.approx(0.7), 1.0, 2)
    assert expected_calibration_error(curve) == pytest.approx((2 * 0.35 + 2 * 0.3) / 4)


def test_bins_have_equal_mass_and_ties_stay_together():
    spread = calibration_curve(np.linspace(0, 1, 200) ** 3, np.zeros(200))
    assert [part.count for part in spread] == [20] * 10
    tied = calibration_curve([0.3] * 7 + [0.9], [1, 1, 1, 0, 0, 0, 0, 1], num_bins=4)
    assert [(part.observed_share, part.count) for part in tied] == [(pytest.approx(3 / 7), 7), (1.0, 1)]


def test_ceiling():
    assert accuracy_ceiling_from_agreement(1.0) == 1.0
    assert accuracy_ceiling_from_agreement(0.9**2 + 0.1**2) == pytest.approx(0.9)
    for agreement in (0.5, 0.3, 1.01, math.nan):
        with pytest.raises(DataError, match="agreement"):
            accuracy_ceiling_from_agreement(agreement)


def test_the_ceiling_is_what_an_always_right_model_gets_from_noisy_annotators():
    generator = np.random.default_rng(2)
    first, second = generator.random((2, 100_000)) < 0.8  # both right with probability 0.8
    assert accuracy_ceiling_from_agreement(float((first == second).mean())) == pytest.approx(first.mean(), abs=0.01)


def test_agreement_at_or_below_chance_leaves_no_ceiling():
    report = reward_report([1.0, 2.0], [0.0, 0.0], clusters="ab", seed=0, agreement=0.5)
    assert report.agreement == 0.5
    assert report.accuracy_ceiling is None
    with pytest.raises(DataError, match="agreement is 73"):
        reward_report([1.0, 2.0], [0.0, 0.0], clusters="ab", seed=0, agreement=73)


def test_classifier_by_hand():
    report = classifier_report([2.0, -1.0, 0.0, -3.0], [1, 1, 0, 0])
    assert (report.n, report.num_ties, report.accuracy) == (4, 1, pytest.approx(2.5 / 4))
    assert report.roc_auc == pytest.approx(naive_auc([2.0, -1.0], [0.0, -3.0])) == pytest.approx(3 / 4)
    probabilities = [1 / (1 + math.exp(-score)) for score in (2.0, -1.0, 0.0, -3.0)]
    errors = [p - label for p, label in zip(probabilities, (1, 1, 0, 0), strict=True)]
    assert report.brier == pytest.approx(sum(error**2 for error in errors) / 4)
    assert report.mean_margin == pytest.approx(0.5 + 1.5)
    assert report.auc_pooled is None
    assert report.accuracy_ci95[0] < report.accuracy < report.accuracy_ci95[1]


def test_flipping_scores_and_labels_of_a_classifier_changes_nothing_that_is_right():
    generator = np.random.default_rng(3)
    labels = generator.integers(0, 2, 300)
    scores = generator.normal(2.0 * labels - 1.0, 1.5)
    report, flipped = classifier_report(scores, labels), classifier_report(-scores, 1 - labels)
    for name in ("accuracy", "roc_auc", "brier", "mean_margin"):
        assert getattr(report, name) == pytest.approx(getattr(flipped, name))
    assert report.accuracy > 0.65


def test_reports_become_json():
    pairs = reward_report(*random_scores(), clusters=np.arange(120), seed=0, agreement=0.8).to_json()
    texts = classifier_report([1.0, -1.0], [1, 0]).to_json()
    for report in (pairs, texts):
        again = json.loads(json.dumps(report, allow_nan=False))
        assert again["accuracy"] == report["accuracy"]
        assert again["calibration"][0]["count"] == report["calibration"][0]["count"]
        assert len(again["accuracy_ci95"]) == 2


def test_what_is_refused():
    with pytest.raises(DataError, match="2 chosen and 1 rejected"):
        reward_report([1.0, 2.0], [1.0], clusters="ab", seed=0)
    with pytest.raises(DataError, match="row 1 is not finite"):
        reward_report([1.0, math.nan], [1.0, 1.0], clusters="ab", seed=0)
    with pytest.raises(DataError, match="at least one"):
        reward_report([], [], clusters=[], seed=0)
    with pytest.raises(DataError, match="at least two prompts"):
        reward_report([1.0, 2.0], [0.0, 0.0], clusters="aa", seed=0)
    with pytest.raises(DataError, match="row 0 is neither"):
        classifier_report([1.0, 2.0], [2, 0])
    with pytest.raises(DataError, match="both labels"):
        classifier_report([1.0, 2.0], [1, 1])
    with pytest.raises(DataError, match="one of each"):
        classifier_report([1.0, 2.0], [1])
    with pytest.raises(DataError, match="one outcome per prediction"):
        calibration_curve([], [])
