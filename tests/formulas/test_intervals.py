"""Intervals: hand-worked bounds, coverage of known truths, and independence of torch."""

import math
import subprocess
import sys

import numpy as np
import pytest

from prefloop.errors import DataError, SettingsError
from prefloop.formulas.intervals import cluster_bootstrap, difference_bootstrap, wilson_interval

Z95 = 1.959963984540054


def test_wilson_by_hand():
    # Both bounds solve (rate - p)^2 = z^2 p (1 - p) / n.
    low, high = wilson_interval(8, 10)
    for bound in (low, high):
        assert (0.8 - bound) ** 2 == pytest.approx(Z95**2 * bound * (1 - bound) / 10)
    assert (low, high) == (pytest.approx(0.4901625, abs=1e-6), pytest.approx(0.9433178, abs=1e-6))


def test_wilson_limits():
    assert wilson_interval(0, 10) == (0.0, pytest.approx(Z95**2 / (10 + Z95**2)))
    assert wilson_interval(10, 10) == (pytest.approx(10 / (10 + Z95**2)), 1.0)
    low, high = wilson_interval(500_000, 1_000_000)
    assert high - low == pytest.approx(2 * Z95 * 0.5 / 1000, rel=1e-3)
    tight = wilson_interval(8, 10, confidence=0.5)
    assert wilson_interval(8, 10)[0] < tight[0] < 0.8 < tight[1] < wilson_interval(8, 10)[1]


def test_wilson_counts_ties_as_halves_and_is_symmetric():
    low, high = wilson_interval(7.5, 10)
    mirrored_low, mirrored_high = wilson_interval(2.5, 10)
    assert low == pytest.approx(1 - mirrored_high)
    assert high == pytest.approx(1 - mirrored_low)
    assert wilson_interval(7, 10)[0] < low < wilson_interval(8, 10)[0]


@pytest.mark.parametrize("rate", [0.03, 0.5, 0.9])
def test_wilson_covers_the_truth_as_often_as_it_says(rate: float):
    probabilities = [math.comb(60, count) * rate**count * (1 - rate) ** (60 - count) for count in range(61)]
    covered = 0.0
    for count, probability in enumerate(probabilities):
        low, high = wilson_interval(count, 60)
        covered += probability * (low <= rate <= high)
    assert covered == pytest.approx(0.95, abs=0.025)


def test_bootstrap_of_a_mean_is_near_the_normal_interval():
    values = np.random.default_rng(0).normal(3.0, 2.0, size=400)
    low, high = cluster_bootstrap(values, range(400), seed=1)
    half_width = Z95 * values.std() / 20
    assert low == pytest.approx(values.mean() - half_width, abs=0.05)
    assert high == pytest.approx(values.mean() + half_width, abs=0.05)


def test_bootstrap_of_two_clusters_by_hand():
    # Clusters [0, 0, 0] and [4]: the three possible draws have means 0, 1 and 4, with chances 1/4, 1/2 and 1/4.
    low, high = cluster_bootstrap([0.0, 0.0, 0.0, 4.0], ["a", "a", "a", "b"], seed=0)
    assert (low, high) == (0.0, 4.0)
    low, high = cluster_bootstrap([0.0, 0.0, 0.0, 4.0], ["a", "a", "a", "b"], seed=0, confidence=0.3)
    assert (low, high) == (1.0, 1.0)


def test_the_fast_mean_equals_the_general_statistic():
    values = np.random.default_rng(2).normal(size=60)
    clusters = [f"prompt {row % 13}" for row in range(60)]
    fast = cluster_bootstrap(values, clusters, seed=5, num_resamples=300)
    general = cluster_bootstrap(values, clusters, seed=5, num_resamples=300, statistic=lambda rows: float(rows.mean()))
    assert fast == pytest.approx(general, abs=1e-12)
    median = cluster_bootstrap(
        values, clusters, seed=5, num_resamples=300, statistic=lambda rows: float(np.median(rows))
    )
    assert median != pytest.approx(fast, abs=1e-6)


def test_the_same_seed_gives_the_same_interval():
    values = np.random.default_rng(3).normal(size=50)
    assert cluster_bootstrap(values, range(50), seed=1) == cluster_bootstrap(values, range(50), seed=1)
    assert cluster_bootstrap(values, range(50), seed=1) != cluster_bootstrap(values, range(50), seed=2)


def clustered_sample(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    clusters = np.repeat(np.arange(40), 5)
    return generator.normal(size=40)[clusters] + 0.3 * generator.normal(size=200), clusters


def test_clustered_intervals_cover_the_truth_and_row_by_row_intervals_do_not():
    generator = np.random.default_rng(7)
    clustered_hits = row_hits = 0
    for seed in range(150):
        values, clusters = clustered_sample(generator)
        low, high = cluster_bootstrap(values, clusters, seed=seed, num_resamples=200)
        clustered_hits += low <= 0.0 <= high
        low, high = cluster_bootstrap(values, np.arange(200), seed=seed, num_resamples=200)
        row_hits += low <= 0.0 <= high
    assert clustered_hits / 150 > 0.87
    assert row_hits / 150 < 0.75


def test_pairing_takes_the_difficulty_of_the_prompts_out():
    generator = np.random.default_rng(4)
    difficulty = 10 * generator.normal(size=200)
    baseline = difficulty + generator.normal(size=200)
    system = difficulty + 0.5 + generator.normal(size=200)
    low, high = difference_bootstrap(system, baseline, seed=0)
    assert 0 < low < np.mean(system - baseline) < high
    assert high - low == pytest.approx(2 * Z95 * math.sqrt(2 / 200), rel=0.2)
    opposite_low, opposite_high = difference_bootstrap(baseline, system, seed=0)
    assert (opposite_low, opposite_high) == (pytest.approx(-high), pytest.approx(-low))
    assert difference_bootstrap(baseline, baseline, seed=0) == (0.0, 0.0)


def test_difference_with_clusters_is_the_clustered_interval_of_the_differences():
    values, clusters = clustered_sample(np.random.default_rng(8))
    paired = difference_bootstrap(values + 1.0, np.ones(200), seed=3, clusters=clusters)
    assert paired == pytest.approx(cluster_bootstrap(values, clusters, seed=3))


def test_what_is_refused():
    with pytest.raises(DataError, match="0 trials"):
        wilson_interval(0, 0)
    for successes in (-1, 11, math.nan):
        with pytest.raises(DataError, match="10 trials"):
            wilson_interval(successes, 10)
    with pytest.raises(SettingsError, match="confidence"):
        wilson_interval(1, 2, confidence=95)
    with pytest.raises(DataError, match="at least two prompts"):
        cluster_bootstrap([1.0, 2.0], ["a", "a"], seed=0)
    with pytest.raises(DataError, match="3 values and 2 cluster names"):
        cluster_bootstrap([1.0, 2.0, 3.0], ["a", "b"], seed=0)
    with pytest.raises(DataError, match="row 1 is not finite"):
        cluster_bootstrap([1.0, math.nan], ["a", "b"], seed=0)
    with pytest.raises(DataError, match="one dimension"):
        cluster_bootstrap([[1.0], [2.0]], ["a", "b"], seed=0)
    with pytest.raises(SettingsError, match="num_resamples"):
        cluster_bootstrap([1.0, 2.0], ["a", "b"], seed=0, num_resamples=10)
    with pytest.raises(DataError, match="2 and 3 values"):
        difference_bootstrap([1.0, 2.0], [1.0, 2.0, 3.0], seed=0)


def test_intervals_need_no_torch():
    code = "import sys, prefloop.formulas.intervals; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
