"""Whose labels to trust, from the labels alone: the model of Dawid and Skene, made blind to which side is called left.

Each pair has a true answer (left or right is better, or tie where ties occur), drawn with unknown shares; each
annotator gives it right or wrong with unknown probabilities of their own. Expectation maximisation finds both. Somebody
whom the others rarely confirm counts less, and somebody whom they reliably contradict counts the other way round.

Departures from the paper:

1. Which text is called left is arbitrary, so left and right share one probability of being better, and an annotator's
   confusion matrix is the same after exchanging them. Swapping the sides of any pair changes nothing.
2. Probabilities have a Dirichlet prior worth a few labels, mostly right ones (see `PRIOR_RIGHT_SHARE`). It keeps them
   off 0 and 1, and decides what the labels leave open: one annotator alone says nothing about their own reliability.

Source: Dawid and Skene (1979), "Maximum Likelihood Estimation of Observer Error-Rates Using the EM Algorithm".
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from prefloop.errors import DataError, SettingsError
from prefloop.records import Choice

PRIOR_RIGHT_SHARE = 0.8
_CATEGORIES: tuple[Choice, ...] = ("left", "right", "tie")
_LEFT, _RIGHT, _TIE = range(3)
_RELATIVE_TOLERANCE = 1e-10


@dataclass(frozen=True)
class DawidSkene:
    """`posteriors` are the probabilities, per pair id, that left is better, right is better, or they tie; sum 1.

    `reliability` is, per annotator, the probability of naming the better side where one is better. `log_posterior`
    (nats) has the objective at the start and after each iteration; it never falls. `converged` is false when the
    iterations ran out.
    """

    posteriors: dict[str, tuple[float, float, float]]
    reliability: dict[str, float]
    tie_share: float
    log_posterior: list[float]
    converged: bool


@dataclass(frozen=True)
class _Labels:
    """Labels as parallel arrays [num_labels]."""

    pair: NDArray[np.int64]
    annotator: NDArray[np.int64]
    category: NDArray[np.int64]
    num_pairs: int
    num_annotators: int
    with_ties: bool


@dataclass(frozen=True)
class _Rates:
    """Probabilities of the model; a row per annotator.

    `on_side` [num_annotators, 3] are those of naming the better side, the worse side, and a tie, where a side is
    better; `on_tie` [num_annotators, 2] those of naming either side (both together) and a tie, where it is one.
    """

    on_side: NDArray[np.float64]
    on_tie: NDArray[np.float64]
    tie_share: float


def dawid_skene(
    choices: Mapping[str, Mapping[str, Choice]], *, prior_labels: float = 5.0, max_iterations: int = 10_000
) -> DawidSkene:
    """The model fitted to pair_id -> annotator -> left, right or tie.

    `prior_labels` is how many labels the prior is worth for each annotator. Raises DataError for other choices and for
    no choice at all, SettingsError for a prior that is not positive.
    """
    if not prior_labels > 0:
        raise SettingsError(f"prior_labels is {prior_labels}; it must be positive, for example 5.")
    names = sorted({name for by_annotator in choices.values() for name in by_annotator})
    labels = _label_arrays(choices, names)
    rates = _prior_rates(labels)
    trace: list[float] = []
    converged = False
    while True:
        posteriors, log_likelihood = _expectation(labels, rates)
        trace.append(log_likelihood + _log_prior(labels, rates, prior_labels))
        converged = len(trace) > 1 and trace[-1] - trace[-2] <= _RELATIVE_TOLERANCE * abs(trace[-1])
        if converged or len(trace) > max_iterations:
            break
        rates = _maximisation(labels, posteriors, prior_labels)
    shares = {
        pair_id: (float(row[_LEFT]), float(row[_RIGHT]), float(row[_TIE]))
        for pair_id, row in zip(choices, posteriors, strict=True)
    }
    reliability = {name: float(right) for name, right in zip(names, rates.on_side[:, 0], strict=True)}
    return DawidSkene(shares, reliability, rates.tie_share, trace, converged)


def _label_arrays(choices: Mapping[str, Mapping[str, Choice]], names: list[str]) -> _Labels:
    code_of = {name: code for code, name in enumerate(names)}
    rows: list[tuple[int, int, int]] = []
    for pair, (pair_id, by_annotator) in enumerate(choices.items()):
        for name, choice in by_annotator.items():
            if choice not in _CATEGORIES:
                raise DataError(f"The label of {name!r} on pair {pair_id!r} is {choice}; give left, right or tie only.")
            rows.append((pair, code_of[name], _CATEGORIES.index(choice)))
    if not rows:
        raise DataError("There is no label to learn reliabilities from. Collect labels first.")
    pair, annotator, category = np.array(rows, dtype=np.int64).T
    return _Labels(pair, annotator, category, len(choices), len(names), bool((category == _TIE).any()))


def _pseudo_counts(labels: _Labels, prior_labels: float) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """How many labels the prior adds to the cells of `on_side` and of `on_tie`, and pairs to each true answer."""
    right, wrong = PRIOR_RIGHT_SHARE * prior_labels, (1 - PRIOR_RIGHT_SHARE) * prior_labels
    if not labels.with_ties:
        return np.array([right, wrong, 0.0]), np.array([wrong, right]), 0.0
    return np.array([right, wrong / 2, wrong / 2]), np.array([wrong, right]), 1.0


def _prior_rates(labels: _Labels) -> _Rates:
    on_side, on_tie, _ = _pseudo_counts(labels, 1.0)
    num = labels.num_annotators
    return _Rates(np.tile(on_side, (num, 1)), np.tile(on_tie, (num, 1)), 1 / 3 if labels.with_ties else 0.0)


def _log(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logarithms with log 0 = 0: a zero stands only where ties do not occur, and nothing is multiplied with it."""
    return np.log(probabilities, out=np.zeros_like(probabilities), where=probabilities > 0)


def _expectation(labels: _Labels, rates: _Rates) -> tuple[NDArray[np.float64], float]:
    """Probabilities of each pair's true answer, [num_pairs, 3], and the log-likelihood of the labels in nats."""
    right, wrong, tie = _log(rates.on_side)[labels.annotator].T
    side_on_tie, tie_on_tie = _log(rates.on_tie * [0.5, 1.0])[labels.annotator].T
    said_left, said_right = labels.category == _LEFT, labels.category == _RIGHT
    evidence = np.stack(
        [
            np.select([said_left, said_right], [right, wrong], tie),
            np.select([said_left, said_right], [wrong, right], tie),
            np.where(said_left | said_right, side_on_tie, tie_on_tie),
        ]
    )
    side_share = (1 - rates.tie_share) / 2
    with np.errstate(divide="ignore"):
        logits = np.log([side_share, side_share, rates.tie_share]) + np.stack(
            [np.bincount(labels.pair, weights=row, minlength=labels.num_pairs) for row in evidence], axis=1
        )
    highest = logits.max(axis=1, keepdims=True)
    weights = np.exp(logits - highest)
    totals = weights.sum(axis=1, keepdims=True)
    return weights / totals, float((highest + np.log(totals)).sum())


def _maximisation(labels: _Labels, posteriors: NDArray[np.float64], prior_labels: float) -> _Rates:
    on_side_prior, on_tie_prior, answer_prior = _pseudo_counts(labels, prior_labels)
    left, right, tie = posteriors[labels.pair].T
    said_left, said_right, said_tie = (labels.category == code for code in (_LEFT, _RIGHT, _TIE))
    said_right_one = said_left * left + said_right * right
    said_wrong_one = said_left * right + said_right * left
    on_side = on_side_prior + _by_annotator(labels, said_right_one, said_wrong_one, said_tie * (left + right))
    on_tie = on_tie_prior + _by_annotator(labels, ~said_tie * tie, said_tie * tie)
    tie_share = (posteriors[:, _TIE].sum() + answer_prior) / (labels.num_pairs + 3 * answer_prior)
    return _Rates(
        on_side / on_side.sum(axis=1, keepdims=True), on_tie / on_tie.sum(axis=1, keepdims=True), float(tie_share)
    )


def _by_annotator(labels: _Labels, *weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of weights of labels: [num_annotators, number of weights]."""
    sums = np.empty((labels.num_annotators, len(weights)))
    for column, weight in enumerate(weights):
        sums[:, column] = np.bincount(labels.annotator, weights=weight, minlength=labels.num_annotators)
    return sums


def _log_prior(labels: _Labels, rates: _Rates, prior_labels: float) -> float:
    """Logarithm of the prior density in nats, but for a constant."""
    on_side_prior, on_tie_prior, answer_prior = _pseudo_counts(labels, prior_labels)
    total = (_log(rates.on_side) * on_side_prior).sum() + (_log(rates.on_tie) * on_tie_prior).sum()
    shares = np.array([1 - rates.tie_share, 1 - rates.tie_share, rates.tie_share])
    return float(total + answer_prior * _log(shares).sum())
