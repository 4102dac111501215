"""Variety, length and rates of texts."""

import json

import numpy as np
import pytest

from prefloop.errors import DataError
from prefloop.evaluation.text_statistics import (
    distinct_n,
    distinct_n_of_first,
    rate_with_interval,
    unique_share,
    word_counts,
)
from prefloop.formulas.intervals import wilson_interval


def test_distinct_n_by_hand():
    texts = ["the cat saw the cat", "the cat"]
    # Pairs: the-cat, cat-saw, saw-the, the-cat | the-cat. Three different of five.
    assert distinct_n(texts) == pytest.approx(3 / 5)
    assert distinct_n(texts, 1) == pytest.approx(3 / 7)
    assert distinct_n(texts, 5) == 1.0


def test_ngrams_do_not_cross_texts():
    assert distinct_n(["a b", "b a"]) == 1.0
    assert distinct_n(["a", "b", "c"]) is None
    assert distinct_n([]) is None
    assert distinct_n(["  a\t b\n"]) == 1.0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_n_equals_a_naive_loop(n: int):
    generator = np.random.default_rng(0)
    texts = [" ".join(generator.choice(list("abcd"), size)) for size in generator.integers(0, 9, 30)]
    seen, total = set(), 0
    for text in texts:
        words = text.split()
        for start in range(len(words) - n + 1):
            seen.add(" ".join(words[start : start + n]))
            total += 1
    assert distinct_n(texts, n) == pytest.approx(len(seen) / total)
    assert distinct_n_of_first(texts, n, num_ngrams=total) == distinct_n(texts, n)


def test_the_first_ngrams_take_the_length_out():
    short, long = ["a b c d"] * 2, ["a b c d"] * 50
    assert distinct_n(short) == pytest.approx(0.5)
    assert distinct_n(long) == pytest.approx(3 / 150)
    assert distinct_n_of_first(short, num_ngrams=6) == distinct_n_of_first(long, num_ngrams=6) == pytest.approx(0.5)
    assert distinct_n_of_first(short, num_ngrams=4) == pytest.approx(3 / 4)
    assert distinct_n_of_first(short, num_ngrams=7) is None


def test_unique_share_and_word_counts():
    assert unique_share(["a", "a", "A", "a "]) == 0.75
    assert unique_share(["a"]) == 1.0
    assert word_counts(["one two  three", "", " one\n"]) == [3, 0, 1]


def test_rate_with_interval():
    rate = rate_with_interval([1, 1, 0, 0.5, True])
    assert (rate["rate"], rate["n"]) == (pytest.approx(0.7), 5)
    assert rate["ci95"] == wilson_interval(3.5, 5)
    assert json.loads(json.dumps(rate))["n"] == 5
    assert rate_with_interval([0.0] * 4)["ci95"][0] == 0.0


def test_what_is_refused():
    for call in (
        lambda: distinct_n(["a b"], 0),
        lambda: distinct_n_of_first(["a b"], num_ngrams=0),
        lambda: unique_share([]),
        lambda: rate_with_interval([]),
        lambda: rate_with_interval([0.5, 2.0]),
        lambda: rate_with_interval([float("nan")]),
    ):
        with pytest.raises(DataError):
            call()
