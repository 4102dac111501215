"""Counts over generated texts: how varied they are, how long, and rates with their interval."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TypedDict

from prefloop.errors import DataError
from prefloop.formulas.intervals import wilson_interval


class Rate(TypedDict):
    """A share in [0, 1], its 95 % interval, and the number of trials."""

    rate: float
    ci95: tuple[float, float]
    n: int


def distinct_n(texts: Sequence[str], n: int = 2) -> float | None:
    """Different n-grams divided by all n-grams, pooled over the texts, in (0, 1]; None when there is no n-gram.

    Words are what whitespace separates; no n-gram crosses from one text into the next. The figure falls as texts get
    longer or more numerous: compare equal amounts with `distinct_n_of_first`. Raises DataError for n below 1.

    Source: Li et al. (arXiv 1510.03055), section 5.
    """
    return _distinct_share(list(_ngrams(texts, n)))


def distinct_n_of_first(texts: Sequence[str], n: int = 2, *, num_ngrams: int) -> float | None:
    """Different n-grams divided by all, among the first `num_ngrams` n-grams of the texts in their order; in (0, 1].

    With the same `num_ngrams` two sets of texts compare whatever their lengths. None when the texts hold fewer: the
    figure would not be comparable. Raises DataError for n or num_ngrams below 1.
    """
    if num_ngrams < 1:
        raise DataError(f"distinct-{n} was asked over {num_ngrams} n-grams; it needs at least one.")
    first = list(islice(_ngrams(texts, n), num_ngrams))
    return _distinct_share(first) if len(first) == num_ngrams else None


def unique_share(texts: Sequence[str]) -> float:
    """Different texts divided by all texts, compared character by character; in (0, 1].

    Raises DataError without texts.
    """
    if not texts:
        raise DataError("The share of unique texts was asked for no texts; it needs at least one.")
    return len(set(texts)) / len(texts)


def word_counts(texts: Sequence[str]) -> list[int]:
    """How many words, separated by whitespace, each text has."""
    return [len(text.split()) for text in texts]


def rate_with_interval(successes: Sequence[float]) -> Rate:
    """The mean of successes (1), failures (0) and ties (0.5) with its 95 % Wilson interval and count.

    Meant for independent trials; rows that share a prompt belong in `cluster_bootstrap`. Raises DataError without
    trials or for a value outside [0, 1].
    """
    for row, success in enumerate(successes):
        if not 0 <= success <= 1:
            raise DataError(f"Trial {row} is {success}; it must lie between 0 (failure) and 1 (success).")
    total = float(sum(successes))
    interval = wilson_interval(total, len(successes))
    return Rate(rate=total / len(successes), ci95=interval, n=len(successes))


def _ngrams(texts: Sequence[str], n: int) -> Iterator[tuple[str, ...]]:
    if n < 1:
        raise DataError(f"n-grams were asked for n = {n}; n must be at least 1.")
    for text in texts:
        words = text.split()
        yield from zip(*(words[start:] for start in range(n)), strict=False)


def _distinct_share(ngrams: Sequence[tuple[str, ...]]) -> float | None:
    return len(set(ngrams)) / len(ngrams) if ngrams else None
