"""How sure a measured number is: confidence intervals for rates, means and differences. NumPy only."""

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prefloop.errors import DataError, SettingsError


def wilson_interval(num_successes: float, num_trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """(low, high) bounds of a rate, both in [0, 1], from independent trials.

    Successes may be fractional: a tie counts one half. Unlike the textbook interval it keeps its coverage near 0 and 1
    and for few trials. Raises DataError without trials or with successes outside 0 to num_trials, and SettingsError for
    a confidence outside (0, 1).

    Source: Wilson (1927), "Probable Inference, the Law of Succession, and Statistical Inference"; the form of Brown,
    Cai and DasGupta (2001), "Interval Estimation for a Binomial Proportion", equation 4.
    """
    _check_confidence(confidence)
    if num_trials < 1:
        raise DataError(f"A rate was asked for {num_trials} trials; it needs at least one.")
    if not 0 <= num_successes <= num_trials:
        raise DataError(
            f"{num_successes} successes were counted in {num_trials} trials; give between 0 and all of them."
        )
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = num_successes / num_trials
    denominator = 1 + z**2 / num_trials
    centre = (rate + z**2 / (2 * num_trials)) / denominator
    half_width = z / denominator * math.sqrt(rate * (1 - rate) / num_trials + z**2 / (4 * num_trials**2))
    # At 0 and at num_trials one bound is exactly the edge; rounding must not push it past, nor hold it short.
    low = 0.0 if num_successes == 0 else max(0.0, centre - half_width)
    high = 1.0 if num_successes == num_trials else min(1.0, centre + half_width)
    return low, high


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence[Hashable] | NDArray[np.generic],
    *,
    seed: int,
    num_resamples: int = 2000,
    statistic: Literal["mean"] | Callable[[NDArray[np.float64]], float] = "mean",
    confidence: float = 0.95,
) -> tuple[float, float]:
    """(low, high) percentile bounds of a statistic of the values, in their unit; whole clusters are drawn.

    `clusters` names the cluster (the prompt) of each value; values of one prompt rise and fall together, so drawing
    rows one by one would make the interval too narrow. The statistic is the mean over all rows drawn, or any function
    of the one-dimensional array of the rows drawn. The same seed gives the same interval.

    Raises DataError when the lengths differ, a value is not finite, or there are fewer than two clusters (there is then
    nothing to resample); SettingsError for fewer than 100 resamples or a confidence outside (0, 1).

    Source: Efron and Tibshirani (1993), section 13.3 (percentiles); Davison and Hinkley (1997), section 3.8 (clusters).
    """
    _check_confidence(confidence)
    if num_resamples < 100:
        raise SettingsError(f"num_resamples is {num_resamples}; percentiles need at least 100.")
    rows = _finite_vector(values)
    members = _rows_by_cluster(clusters, num_rows=len(rows))
    generator = np.random.default_rng(seed)
    num_clusters = len(members)
    statistics = np.empty(num_resamples)
    if statistic == "mean":
        # Sums and counts per cluster are enough for a mean: the rows need not be gathered again.
        sums = np.array([rows[member].sum() for member in members])
        counts = np.array([len(member) for member in members])
        for resample in range(num_resamples):
            drawn = generator.integers(num_clusters, size=num_clusters)
            statistics[resample] = sums[drawn].sum() / counts[drawn].sum()
    else:
        for resample in range(num_resamples):
            drawn = generator.integers(num_clusters, size=num_clusters)
            statistics[resample] = statistic(rows[np.concatenate([members[cluster] for cluster in drawn])])
    low, high = np.quantile(statistics, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def difference_bootstrap(
    system_values: ArrayLike,
    baseline_values: ArrayLike,
    *,
    seed: int,
    clusters: Sequence[Hashable] | NDArray[np.generic] | None = None,
    num_resamples: int = 2000,
    confidence: float = 0.95,
) -> tuple[float, float]:
    """(low, high) bounds of mean(system) - mean(baseline), in their unit, for two systems measured on the same rows.

    Row i of both belongs to the same prompt, so each prompt's difference is drawn as one and the difficulty of the
    prompts cancels. Without `clusters` every row is a prompt of its own. An interval that leaves out 0 is a difference.
    Raises as `cluster_bootstrap` does, and DataError when the two have different lengths.

    Source: Efron and Tibshirani (1993), section 13.3, applied to the paired differences.
    """
    system, baseline = _finite_vector(system_values), _finite_vector(baseline_values)
    if len(system) != len(baseline):
        raise DataError(
            f"{len(system)} and {len(baseline)} values were given; pairs need as many of one as of the other."
        )
    return cluster_bootstrap(
        system - baseline,
        np.arange(len(system)) if clusters is None else clusters,
        seed=seed,
        num_resamples=num_resamples,
        confidence=confidence,
    )


def _finite_vector(values: ArrayLike) -> NDArray[np.float64]:
    vector = np.asarray(values, dtype=np.float64)
    if vector.ndim != 1:
        raise DataError(f"Values of shape {vector.shape} were given; give one value per row, in one dimension.")
    if not np.isfinite(vector).all():
        raise DataError(f"The value of row {int(np.flatnonzero(~np.isfinite(vector))[0])} is not finite.")
    return vector


def _rows_by_cluster(clusters: Sequence[Hashable] | NDArray[np.generic], *, num_rows: int) -> list[NDArray[np.int64]]:
    if len(clusters) != num_rows:
        raise DataError(f"{num_rows} values and {len(clusters)} cluster names were given; give one name per value.")
    rows: dict[Hashable, list[int]] = {}
    for row, cluster in enumerate(clusters):
        rows.setdefault(cluster, []).append(row)
    if len(rows) < 2:
        raise DataError(f"The {num_rows} values belong to {len(rows)} prompts; an interval needs at least two prompts.")
    return [np.array(members, dtype=np.int64) for members in rows.values()]


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise SettingsError(f"confidence is {confidence}; it must lie between 0 and 1, for example 0.95.")
