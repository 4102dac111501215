"""How far annotators agree: percent agreement and Krippendorff's alpha, with intervals from resampling pairs.

Categories are coded by response identity: "left" is the comparison's own left response, the same text for every
annotator, whatever side it was shown on. Labels by displayed side would count two people who chose the same text as
disagreeing.

Read alpha with that coding in mind. Which response is called left is arbitrary, so left and right each take about half
of the choices, chance agreement is near one half, and alpha is close to 2 * percent agreement - 1. Coding by quality
instead ("the better one") or by system ("the new model") would skew the shares of the categories, raise chance
agreement and lower alpha for the very same choices; such figures do not compare with these.

"tie" and "both_bad" are categories of their own; a skip is a missing value.

Sources: Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability" (coincidences, section C); Efron and
Tibshirani (1993), "An Introduction to the Bootstrap", section 13.3 (percentile intervals).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import krippendorff
import numpy as np
from numpy.typing import NDArray

from prefloop.collection.aggregation import choices_by_pair
from prefloop.errors import DataError, SettingsError
from prefloop.records import Choice, Label

# In the order from left to right, which the ordinal level reads; both_bad has no place on that scale and comes last.
CATEGORIES: tuple[Choice, ...] = ("left", "tie", "right", "both_bad")


Interval = tuple[float, float]


@dataclass(frozen=True)
class AnnotatorAgreement:
    """One annotator among the others.

    `num_labels` leaves out skips. `left_share` is the share of left among left and right choices, by the sides the
    labels name (None without any). `agreement_with_others` is the share of equal choices among all meetings with
    another annotator on a pair (None without any).
    """

    num_labels: int
    num_skips: int
    left_share: float | None
    agreement_with_others: float | None


@dataclass(frozen=True)
class AgreementReport:
    """Agreement over a set of labels; skips are left out everywhere but in `num_skips`.

    `num_pairs` have a label, `num_compared_pairs` have two or more, and only the latter enter agreement and alpha. A
    figure is None where it does not exist: without a compared pair, alpha when all choices are the same category, and
    intervals with fewer than two compared pairs.
    """

    num_pairs: int
    num_compared_pairs: int
    num_labels: int
    annotators_per_pair: float | None
    percent_agreement: float | None
    percent_agreement_ci95: Interval | None
    krippendorff_alpha: float | None
    krippendorff_alpha_ci95: Interval | None
    per_annotator: Mapping[str, AnnotatorAgreement]


def percent_agreement(labels: Iterable[Label]) -> float:
    """The mean over pairs of the share of annotator pairs who made the same choice, in [0, 1].

    Raises DataError when no pair has two labels, or an annotator labelled a pair twice.
    """
    counts = compared_counts(category_counts(choices_by_pair(labels)))
    if len(counts) == 0:
        raise DataError(
            "No pair has labels of two annotators, so there is no agreement to measure. Collect more labels."
        )
    return float(agreeing_shares(counts).mean())


def krippendorff_alpha(labels: Iterable[Label], level: Literal["nominal", "ordinal"] = "nominal") -> float:
    """Krippendorff's alpha: 1 is perfect agreement, 0 is chance, below 0 is systematic disagreement.

    "ordinal" orders left < tie < right and takes no both_bad. Raises DataError when no pair has two labels, when all
    choices of such pairs are one category (alpha is then 0/0), for both_bad at the ordinal level, or when an annotator
    labelled a pair twice.
    """
    counts = compared_counts(category_counts(choices_by_pair(labels)))
    if level == "ordinal":
        num_both_bad = int(counts[:, CATEGORIES.index("both_bad")].sum())
        if num_both_bad:
            raise DataError(
                f"{num_both_bad} labels are both_bad, which has no place between left and right. "
                "Use the nominal level, or leave those labels out."
            )
    num_used = np.count_nonzero(counts.sum(axis=0))
    if num_used < 2:
        raise DataError(
            f"Pairs with two labels show {num_used} different choices; alpha needs at least two. Collect more labels."
        )
    used = counts.sum(axis=0) > 0
    return float(krippendorff.alpha(value_counts=counts[:, used], level_of_measurement=level))


def agreement_report(labels: Iterable[Label], seed: int, *, num_resamples: int = 1000) -> AgreementReport:
    """All figures of agreement with 95 % percentile intervals; whole pairs are resampled.

    The same seed gives the same intervals. Resamples in which a single category is left have no alpha and do not enter
    its interval. Raises DataError when an annotator labelled a pair twice, SettingsError for fewer than 100 resamples.
    """
    check_num_resamples(num_resamples)
    labels = list(labels)
    choices = choices_by_pair(labels)
    counts = category_counts(choices)
    compared = compared_counts(counts)
    num_pairs, num_labels = int((counts.sum(axis=1) > 0).sum()), int(counts.sum())
    has_alpha = np.count_nonzero(compared.sum(axis=0)) > 1
    percent_interval, alpha_interval = _bootstrap_intervals(compared, seed=seed, num_resamples=num_resamples)
    return AgreementReport(
        num_pairs=num_pairs,
        num_compared_pairs=len(compared),
        num_labels=num_labels,
        annotators_per_pair=num_labels / num_pairs if num_pairs else None,
        percent_agreement=float(agreeing_shares(compared).mean()) if len(compared) else None,
        percent_agreement_ci95=percent_interval,
        krippendorff_alpha=krippendorff_alpha(labels) if has_alpha else None,
        krippendorff_alpha_ci95=alpha_interval,
        per_annotator=_per_annotator(choices),
    )


def check_num_resamples(num_resamples: int) -> None:
    if num_resamples < 100:
        raise SettingsError(f"num_resamples is {num_resamples}; percentiles need at least 100.")


def category_counts(choices: Mapping[str, Mapping[str, Choice]]) -> NDArray[np.int64]:
    """How many annotators made each choice: [num_pairs, num_categories], without skips."""
    counts = np.zeros((len(choices), len(CATEGORIES)), dtype=np.int64)
    for row, by_annotator in enumerate(choices.values()):
        for choice in by_annotator.values():
            if choice != "skip":
                counts[row, CATEGORIES.index(choice)] += 1
    return counts


def compared_counts(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    return counts[counts.sum(axis=1) >= 2]


def agreeing_shares(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Per pair, the share of annotator pairs with the same choice: [num_pairs]."""
    num_labels = counts.sum(axis=1)
    return np.true_divide((counts * (counts - 1)).sum(axis=1), num_labels * (num_labels - 1), dtype=np.float64)


def _bootstrap_intervals(
    counts: NDArray[np.int64], *, seed: int, num_resamples: int
) -> tuple[Interval | None, Interval | None]:
    """95 % intervals of percent agreement and nominal alpha.

    Both are functions of sums over pairs, so a resample is a product of how often each pair was drawn with the
    pairs' summands, and no label is looked at again.
    """
    summands = np.column_stack([agreeing_shares(counts), _alpha_summands(counts)])
    sums = resampled_sums(summands, seed=seed, num_resamples=num_resamples)
    return finite_interval95(sums[:, 0] / max(len(counts), 1)), finite_interval95(_nominal_alpha(sums[:, 1:]))


def resampled_sums(summands: NDArray[np.float64], *, seed: int, num_resamples: int) -> NDArray[np.float64]:
    """Sums over pairs drawn with replacement: [num_resamples, num_summands]; no rows with fewer than two pairs."""
    num_pairs = len(summands)
    if num_pairs < 2:
        return np.empty((0, summands.shape[1]))
    generator = np.random.default_rng(seed)
    sums = np.empty((num_resamples, summands.shape[1]))
    for resample in range(num_resamples):
        times_drawn = np.bincount(generator.integers(num_pairs, size=num_pairs), minlength=num_pairs)
        sums[resample] = times_drawn @ summands
    return sums


def _alpha_summands(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Per pair, its mismatching coincidences and its number of labels by category: [num_pairs, 1 + num_categories]."""
    num_labels = counts.sum(axis=1)
    mismatches = (counts * (num_labels[:, None] - counts)).sum(axis=1) / (num_labels - 1)
    return np.column_stack([mismatches, counts]).astype(np.float64)


def _nominal_alpha(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Nominal alpha of each row of summed `_alpha_summands`: [num_rows]; NaN where only one category occurs.

    alpha = 1 - (n - 1) * mismatches / sum over categories c of n_c * (n - n_c).
    """
    mismatches, category_totals = sums[:, 0], sums[:, 1:]
    num_labels = category_totals.sum(axis=1)
    chance = (category_totals * (num_labels[:, None] - category_totals)).sum(axis=1)
    ratio = np.divide((num_labels - 1) * mismatches, chance, out=np.full_like(chance, np.nan), where=chance > 0)
    return 1 - ratio


def finite_interval95(statistics: NDArray[np.float64]) -> Interval | None:
    statistics = statistics[np.isfinite(statistics)]
    if not len(statistics):
        return None
    low, high = np.quantile(statistics, [0.025, 0.975])
    return float(low), float(high)


def _per_annotator(choices: Mapping[str, Mapping[str, Choice]]) -> dict[str, AnnotatorAgreement]:
    names = sorted({annotator for by_annotator in choices.values() for annotator in by_annotator})
    report: dict[str, AnnotatorAgreement] = {}
    for name in names:
        pairs = [by_annotator for by_annotator in choices.values() if name in by_annotator]
        own = [by_annotator[name] for by_annotator in pairs]
        num_skips = own.count("skip")
        num_sided = own.count("left") + own.count("right")
        meetings = [
            by_annotator[name] == choice
            for by_annotator in pairs
            for other, choice in by_annotator.items()
            if other != name and "skip" not in (choice, by_annotator[name])
        ]
        report[name] = AnnotatorAgreement(
            num_labels=len(own) - num_skips,
            num_skips=num_skips,
            left_share=own.count("left") / num_sided if num_sided else None,
            agreement_with_others=sum(meetings) / len(meetings) if meetings else None,
        )
    return report
