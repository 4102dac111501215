"""Every statistic of agreement, each with its interval: the kappas of Cohen and Fleiss, and both alphas.

Labels are coded as in `agreement`: by the pair's own sides, skips missing. Pairs are resampled whole.

Sources: Cohen (1960), "A Coefficient of Agreement for Nominal Scales"; Fleiss (1971), "Measuring Nominal Scale
Agreement Among Many Raters"; Krippendorff (2011), "Computing Krippendorff's Alpha-Reliability", section E (ordinal
differences).
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from prefloop.collection.aggregation import choices_by_pair
from prefloop.collection.agreement import (
    CATEGORIES,
    Interval,
    agreeing_shares,
    agreement_report,
    category_counts,
    check_num_resamples,
    compared_counts,
    finite_interval95,
    krippendorff_alpha,
    resampled_sums,
)
from prefloop.randomness import derived_seed
from prefloop.records import Choice, Label

# The ordinal scale: the first three categories.
_SCALE: tuple[Choice, ...] = ("left", "tie", "right")

_NO_SECOND = "no pair has labels of two annotators"
_ONE_CATEGORY = "all choices are the same"


@dataclass(frozen=True)
class Figure:
    """A statistic with its 95 % interval, and how many pairs and labels it is from.

    `value` is None where the statistic does not exist, `ci95` also with fewer than two pairs. `note` says in words what
    was left out, or why there is no value.
    """

    value: float | None
    ci95: Interval | None
    num_pairs: int
    num_labels: int
    note: str = ""


@dataclass(frozen=True)
class CohenKappa:
    """Cohen's kappa of two annotators over the pairs that both labelled."""

    first: str
    second: str
    kappa: Figure


@dataclass(frozen=True)
class AgreementFigures:
    """Every statistic of agreement over one set of labels. Skips are missing values."""

    percent_agreement: Figure
    cohen_kappas: list[CohenKappa]
    fleiss_kappa: Figure
    krippendorff_alpha_nominal: Figure
    krippendorff_alpha_ordinal: Figure


def agreement_figures(labels: Iterable[Label], seed: int, *, num_resamples: int = 1000) -> AgreementFigures:
    """Percent agreement, both kappas and both alphas; raises as `agreement_report` does."""
    labels = list(labels)
    report = agreement_report(labels, seed, num_resamples=num_resamples)
    counts = compared_counts(category_counts(choices_by_pair(labels)))
    size = len(counts), int(counts.sum())
    why_no_alpha = "" if report.krippendorff_alpha is not None else _why_no_value(counts)
    return AgreementFigures(
        percent_agreement=Figure(
            report.percent_agreement, report.percent_agreement_ci95, *size, note="" if len(counts) else _NO_SECOND
        ),
        cohen_kappas=cohen_kappas(labels, seed, num_resamples=num_resamples),
        fleiss_kappa=fleiss_kappa(labels, seed, num_resamples=num_resamples),
        krippendorff_alpha_nominal=Figure(
            report.krippendorff_alpha, report.krippendorff_alpha_ci95, *size, note=why_no_alpha
        ),
        krippendorff_alpha_ordinal=ordinal_alpha(labels, seed, num_resamples=num_resamples),
    )


def cohen_kappas(labels: Iterable[Label], seed: int, *, num_resamples: int = 1000) -> list[CohenKappa]:
    """Cohen's kappa of each two annotators who have a pair in common, by name.

    kappa = (observed - chance agreement) / (1 - chance agreement), with each annotator's own shares of the four
    categories; it does not exist when both made one and the same choice throughout.
    """
    from sklearn.metrics import cohen_kappa_score  # Takes a second to load.

    check_num_resamples(num_resamples)
    first_codes, second_codes = np.indices((len(CATEGORIES), len(CATEGORIES))).reshape(2, -1)
    kappas: list[CohenKappa] = []
    for (first, second), table in sorted(_tables_of_two(choices_by_pair(labels)).items()):
        num_pairs, cells = int(table.sum()), table.reshape(-1)
        used = cells > 0
        if len({*first_codes[used], *second_codes[used]}) < 2:
            nothing = Figure(None, None, num_pairs, 2 * num_pairs, _ONE_CATEGORY)
            kappas.append(CohenKappa(first, second, nothing))
            continue
        value = float(cohen_kappa_score(first_codes[used], second_codes[used], sample_weight=cells[used]))
        # Each pair is one count in one cell of the table, so drawing pairs is drawing from a multinomial.
        generator = np.random.default_rng(derived_seed(seed, f"cohen_kappa/{first}/{second}"))
        drawn = generator.multinomial(num_pairs, cells / num_pairs, size=num_resamples)
        resampled = _cohen_kappa(drawn.reshape(-1, *table.shape))
        interval = finite_interval95(resampled) if num_pairs > 1 else None
        kappas.append(CohenKappa(first, second, Figure(value, interval, num_pairs, 2 * num_pairs)))
    return kappas


def fleiss_kappa(labels: Iterable[Label], seed: int, *, num_resamples: int = 1000) -> Figure:
    """Fleiss' kappa, over the pairs with the commonest number of labels (of two or more; the larger of equals).

    The statistic wants the same number of labels on every pair; `note` says which pairs it is from.
    """
    from statsmodels.stats import inter_rater  # Takes a second to load.

    check_num_resamples(num_resamples)
    counts = compared_counts(category_counts(choices_by_pair(labels)))
    if not len(counts):
        return Figure(None, None, 0, 0, _NO_SECOND)
    num_labels = counts.sum(axis=1)
    num_pairs_with = Counter(num_labels.tolist())
    commonest = max(num_pairs_with, key=lambda number: (num_pairs_with[number], number))
    counts = counts[num_labels == commonest]
    note = f"from the {len(counts)} pairs with {commonest} labels"
    if len(counts) < len(num_labels):
        note += f"; {len(num_labels) - len(counts)} pairs with another number are left out"
    size = len(counts), int(counts.sum())
    if np.count_nonzero(counts.sum(axis=0)) < 2:
        return Figure(None, None, *size, f"{_ONE_CATEGORY} ({note})")
    value = float(inter_rater.fleiss_kappa(counts, method="fleiss"))
    summands = np.column_stack([agreeing_shares(counts), counts.astype(np.float64)])
    sums = resampled_sums(summands, seed=derived_seed(seed, "fleiss_kappa"), num_resamples=num_resamples)
    return Figure(value, finite_interval95(_fleiss_kappa(sums, num_pairs=len(counts))), *size, note)


def ordinal_alpha(labels: Iterable[Label], seed: int, *, num_resamples: int = 1000) -> Figure:
    """Krippendorff's alpha with left < tie < right; both_bad has no place on that scale, is left out and counted."""
    check_num_resamples(num_resamples)
    labels = list(labels)
    num_both_bad = sum(label.choice == "both_bad" for label in labels)
    labels = [label for label in labels if label.choice != "both_bad"]
    note = f"{num_both_bad} both_bad labels are left out" if num_both_bad else ""
    compared = compared_counts(category_counts(choices_by_pair(labels)))
    size = len(compared), int(compared.sum())
    if np.count_nonzero(compared.sum(axis=0)) < 2:
        return Figure(None, None, *size, "; ".join(part for part in (_why_no_value(compared), note) if part))
    coincidences = _coincidences(compared[:, : len(_SCALE)]).reshape(len(compared), -1)
    sums = resampled_sums(coincidences, seed=derived_seed(seed, "ordinal_alpha"), num_resamples=num_resamples)
    interval = finite_interval95(_ordinal_alpha(sums))
    return Figure(krippendorff_alpha(labels, "ordinal"), interval, *size, note)


def _why_no_value(counts: NDArray[np.int64]) -> str:
    return _ONE_CATEGORY if len(counts) else _NO_SECOND


def _tables_of_two(choices: Mapping[str, Mapping[str, Choice]]) -> dict[tuple[str, str], NDArray[np.int64]]:
    """For each two annotators with a pair in common, how often they made which two choices."""
    tables: dict[tuple[str, str], NDArray[np.int64]] = {}
    for by_annotator in choices.values():
        codes = {name: CATEGORIES.index(choice) for name, choice in by_annotator.items() if choice != "skip"}
        for first, second in combinations(sorted(codes), 2):
            if (first, second) not in tables:
                tables[first, second] = np.zeros((len(CATEGORIES), len(CATEGORIES)), dtype=np.int64)
            tables[first, second][codes[first], codes[second]] += 1
    return tables


def _cohen_kappa(tables: NDArray[np.int64]) -> NDArray[np.float64]:
    """Kappa of each table [num_tables, num_categories, num_categories]; NaN where chance agreement is 1."""
    num_pairs = tables.sum(axis=(1, 2))
    observed = np.trace(tables, axis1=1, axis2=2) / num_pairs
    chance = (tables.sum(axis=1) * tables.sum(axis=2)).sum(axis=1) / num_pairs**2
    return _above_chance(observed, chance)


def _fleiss_kappa(sums: NDArray[np.float64], *, num_pairs: int) -> NDArray[np.float64]:
    """Kappa of each row of sums of (agreeing share, count by category); NaN where chance agreement is 1."""
    shares = sums[:, 1:] / np.maximum(sums[:, 1:].sum(axis=1, keepdims=True), 1)
    return _above_chance(sums[:, 0] / num_pairs, (shares**2).sum(axis=1))


def _above_chance(observed: NDArray[np.float64], chance: NDArray[np.float64]) -> NDArray[np.float64]:
    # Shares add up to one only to the last bit: a single category gives a chance agreement of almost exactly 1.
    exists = chance < 1 - 1e-12
    return np.divide(observed - chance, 1 - chance, out=np.full_like(observed, np.nan), where=exists)


def _coincidences(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Per pair, its coincidences of two categories: [num_pairs, num_categories, num_categories]."""
    together = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(counts.shape[1], dtype=np.int64)
    return together / (counts.sum(axis=1) - 1)[:, None, None]


def _ordinal_alpha(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ordinal alpha of each row of summed coincidences: [num_rows]; NaN where only one category occurs.

    The squared difference of two categories is (labels from one to the other, with half of each end) ** 2.
    """
    observed = sums.reshape(len(sums), len(_SCALE), len(_SCALE))
    totals = observed.sum(axis=2)
    middles = np.cumsum(totals, axis=1) - totals / 2
    differences = (middles[:, :, None] - middles[:, None, :]) ** 2
    mismatches = (observed * differences).sum(axis=(1, 2))
    chance = (totals[:, :, None] * totals[:, None, :] * differences).sum(axis=(1, 2))
    used = np.count_nonzero(totals > 1e-9, axis=1) > 1
    num_labels = totals.sum(axis=1)
    ratio = np.divide((num_labels - 1) * mismatches, chance, out=np.full_like(chance, np.nan), where=used)
    return 1 - ratio
