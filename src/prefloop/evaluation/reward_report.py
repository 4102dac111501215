"""How well scores agree with choices: accuracy, three kinds of AUC, calibration, and the ceiling that label noise sets.

"AUC" means three things on pairs, so each has its own name here:

- concordance: how often the chosen answer of a pair outscores its rejected one. This is accuracy, by definition.
- oriented: each pair is shown both ways round; how well the signed margin separates "first wins" from "second wins".
  It rewards large margins where the model is right.
- pooled: every chosen score against every rejected score, across prompts. It punishes scores that are not comparable
  between prompts, which policy optimisation cares about and ranking does not.
"""

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score

from prefloop.errors import DataError
from prefloop.formulas.intervals import cluster_bootstrap, wilson_interval


@dataclass(frozen=True)
class CalibrationBin:
    """Predictions of similar size: their mean, the share that came true, and how many there are."""

    mean_predicted: float
    observed_share: float
    count: int


@dataclass(frozen=True)
class RewardReport:
    """How well a reward model (pairs) or a classifier (single texts) agrees with labels it has not seen.

    Attributes:
        n: pairs, or texts.
        num_ties: pairs with equal scores, or texts with a score of exactly 0; each counts as half right.
        accuracy: share right, in [0, 1].
        accuracy_ci95: its 95 % interval; bootstrapped by cluster for pairs, Wilson for texts.
        auc_concordance, auc_oriented, auc_pooled: the three AUCs of pairs (see the module); None for texts.
        roc_auc: area under the receiver operating curve of single texts; None for pairs.
        brier: mean squared error of the predicted probability, in [0, 1]; 0.25 is what always saying one half gets.
        calibration: the calibration curve in bins of equal mass. Pairs enter both ways round, so it spans 0 to 1.
        expected_calibration_error: mean distance between predicted and observed, in [0, 1], weighted by count.
        mean_margin: mean of chosen minus rejected score (pairs), or of positive minus negative mean score (texts), in
            units of the score.
        agreement: probability that two annotators agree, as given; None when unknown, and for texts.
        accuracy_ceiling: the best accuracy that labels of this agreement allow; None when the agreement is unknown or
            not above one half (there is then no signal to be right about).
    """

    n: int
    num_ties: int
    accuracy: float
    accuracy_ci95: tuple[float, float]
    auc_concordance: float | None
    auc_oriented: float | None
    auc_pooled: float | None
    roc_auc: float | None
    brier: float
    calibration: tuple[CalibrationBin, ...]
    expected_calibration_error: float
    mean_margin: float
    agreement: float | None
    accuracy_ceiling: float | None

    def to_json(self) -> dict[str, Any]:
        """The report as a dictionary that `json.dumps` accepts."""
        return asdict(self)


def reward_report(
    chosen_scores: ArrayLike,
    rejected_scores: ArrayLike,
    *,
    clusters: Sequence[Hashable] | NDArray[np.generic],
    seed: int,
    agreement: float | None = None,
) -> RewardReport:
    """The report of a reward model on held-out pairs; row i of both arrays is one pair, `clusters[i]` its prompt.

    A margin becomes a probability through the sigmoid, the model of Bradley and Terry (1952). `agreement` is the
    probability that two annotators give one pair the same label. Raises DataError when the lengths differ, a score is
    not finite, the agreement is no probability, or there are fewer than two prompts.

    Source: AUC as concordance: Hanley and McNeil (1982); score: Brier (1950).
    """
    chosen, rejected = _finite_scores(chosen_scores), _finite_scores(rejected_scores)
    if len(chosen) != len(rejected):
        raise DataError(f"{len(chosen)} chosen and {len(rejected)} rejected scores were given; a pair has one of each.")
    if agreement is not None and not 0 <= agreement <= 1:
        raise DataError(f"The annotator agreement is {agreement}; it must lie between 0 and 1.")
    margins = chosen - rejected
    correct = np.heaviside(margins, 0.5)
    interval = cluster_bootstrap(correct, clusters, seed=seed)
    accuracy = float(correct.mean())
    both_margins = np.concatenate([margins, -margins])
    first_wins = np.concatenate([np.ones(len(margins)), np.zeros(len(margins))])
    calibration = calibration_curve(_sigmoid(both_margins), first_wins)
    return RewardReport(
        n=len(margins),
        num_ties=int((margins == 0).sum()),
        accuracy=accuracy,
        accuracy_ci95=interval,
        auc_concordance=accuracy,
        auc_oriented=float(roc_auc_score(first_wins, both_margins)),
        auc_pooled=float(roc_auc_score(first_wins, np.concatenate([chosen, rejected]))),
        roc_auc=None,
        brier=float(np.square(_sigmoid(-margins)).mean()),
        calibration=calibration,
        expected_calibration_error=expected_calibration_error(calibration),
        mean_margin=float(margins.mean()),
        agreement=agreement,
        accuracy_ceiling=(
            accuracy_ceiling_from_agreement(agreement) if agreement is not None and agreement > 0.5 else None
        ),
    )


def classifier_report(scores: ArrayLike, labels: ArrayLike) -> RewardReport:
    """The report of a classifier on held-out texts; a score above 0 says label 1, and sigmoid(score) how surely.

    Raises DataError when the lengths differ, a score is not finite, a label is neither 0 nor 1, or one of the two
    labels does not occur (AUC has then no meaning).

    Source: Hanley and McNeil (1982); Brier (1950); interval: Wilson (1927).
    """
    score, label = _finite_scores(scores), np.asarray(labels, dtype=np.float64)
    if label.shape != score.shape:
        raise DataError(f"{len(score)} scores and labels of shape {label.shape} were given; a text has one of each.")
    if not np.isin(label, (0.0, 1.0)).all():
        raise DataError(f"The label of row {int(np.flatnonzero(~np.isin(label, (0.0, 1.0)))[0])} is neither 0 nor 1.")
    if label.min() == label.max():
        raise DataError(f"All {len(label)} labels are {int(label[0])}; a report needs texts of both labels.")
    correct = np.heaviside(score * (2 * label - 1), 0.5)
    probabilities = _sigmoid(score)
    calibration = calibration_curve(probabilities, label)
    return RewardReport(
        n=len(score),
        num_ties=int((score == 0).sum()),
        accuracy=float(correct.mean()),
        accuracy_ci95=wilson_interval(float(correct.sum()), len(score)),
        auc_concordance=None,
        auc_oriented=None,
        auc_pooled=None,
        roc_auc=float(roc_auc_score(label, score)),
        brier=float(np.square(probabilities - label).mean()),
        calibration=calibration,
        expected_calibration_error=expected_calibration_error(calibration),
        mean_margin=float(score[label == 1].mean() - score[label == 0].mean()),
        agreement=None,
        accuracy_ceiling=None,
    )


def calibration_curve(
    probabilities: ArrayLike, outcomes: ArrayLike, *, num_bins: int = 10
) -> tuple[CalibrationBin, ...]:
    """At most `num_bins` bins of about equal mass, from low to high predicted probability; outcomes are 0 or 1.

    Equal predictions always share a bin, so a curve with many ties has fewer bins. Raises DataError without predictions
    or when the lengths differ.

    Source: Naeini, Cooper and Hauskrecht (2015), with bins of equal mass as in Nixon et al. (arXiv 1904.01685).
    """
    predicted, outcome = np.asarray(probabilities, dtype=np.float64), np.asarray(outcomes, dtype=np.float64)
    if predicted.shape != outcome.shape or predicted.ndim != 1 or len(predicted) == 0:
        raise DataError(
            f"Predictions of shape {predicted.shape} and outcomes of shape {outcome.shape} were given; "
            "a calibration curve needs one outcome per prediction, and at least one."
        )
    # A prediction's bin follows from its middle rank, which equal predictions share: ties stay together.
    _, value_of_row, counts = np.unique(predicted, return_inverse=True, return_counts=True)
    middle_rank = np.cumsum(counts) - counts / 2
    bin_of_row = np.floor(num_bins * middle_rank / len(predicted))[value_of_row]
    curve = []
    for number in np.unique(bin_of_row):
        members = bin_of_row == number
        curve.append(
            CalibrationBin(
                mean_predicted=float(predicted[members].mean()),
                observed_share=float(outcome[members].mean()),
                count=int(members.sum()),
            )
        )
    return tuple(curve)


def expected_calibration_error(calibration: Sequence[CalibrationBin]) -> float:
    """Mean distance between predicted and observed share over the bins, weighted by their counts; in [0, 1].

    Source: Naeini, Cooper and Hauskrecht (2015), "Obtaining Well Calibrated Probabilities Using Bayesian Binning".
    """
    total = sum(part.count for part in calibration)
    return sum(part.count * abs(part.mean_predicted - part.observed_share) for part in calibration) / total


def accuracy_ceiling_from_agreement(agreement: float) -> float:
    """Best accuracy against one annotator's labels when two annotators agree with probability `agreement`.

    If every annotator is right with probability a, independently, two agree with probability a^2 + (1 - a)^2. Solved
    for a this is (1 + sqrt(2 agreement - 1)) / 2, and a model that is always right still meets a wrong label with
    probability 1 - a. Where some pairs are harder than others the true ceiling is lower still (Jensen's inequality).
    Raises DataError for an agreement that is not above one half, where the labels carry no signal, or above 1.
    """
    if not 0.5 < agreement <= 1:
        raise DataError(f"The annotator agreement is {agreement}; a ceiling needs one above 0.5, and at most 1.")
    return 0.5 * (1 + math.sqrt(2 * agreement - 1))


def _finite_scores(scores: ArrayLike) -> NDArray[np.float64]:
    vector = np.asarray(scores, dtype=np.float64)
    if vector.ndim != 1 or len(vector) == 0:
        raise DataError(f"Scores of shape {vector.shape} were given; give one score per row, and at least one.")
    if not np.isfinite(vector).all():
        raise DataError(f"The score of row {int(np.flatnonzero(~np.isfinite(vector))[0])} is not finite.")
    return vector


def _sigmoid(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The logistic function by way of tanh, which does not overflow."""
    return 0.5 * (1 + np.tanh(0.5 * scores))
