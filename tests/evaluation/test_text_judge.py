"""The judge learns what is there, gives probabilities, and is never pickled."""

import pickle

import numpy as np
import pytest

from prefloop.errors import DataError
from prefloop.evaluation.text_judge import TextJudge

NEUTRAL = ["film", "scene", "actor", "story", "music", "ending"]


def labelled_texts(*, seed: int, num_texts: int = 200) -> tuple[list[str], list[int]]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, num_texts).tolist()
    texts = []
    for label in labels:
        words = list(generator.choice(NEUTRAL, 5))
        words.insert(int(generator.integers(0, 6)), "splendid" if label else "dreadful")
        texts.append(" ".join(words))
    return texts, labels


def test_it_learns_the_label_and_says_how_surely():
    judge = TextJudge.fit(*labelled_texts(seed=0))
    texts, labels = labelled_texts(seed=1, num_texts=100)
    accuracy = judge.accuracy(texts, labels)
    assert (accuracy["rate"], accuracy["n"]) == (1.0, 100)
    assert accuracy["ci95"][0] > 0.95
    good, bad = judge.probability_positive(["splendid film", "dreadful film"])
    assert bad < 0.1 < 0.9 < good


def test_accuracy_equals_a_naive_count_and_flips_with_the_labels():
    judge = TextJudge.fit(*labelled_texts(seed=0))
    texts = ["splendid film", "dreadful story", "splendid dreadful scene", "dreadful music"]
    labels = [1, 1, 0, 0]
    probabilities = judge.probability_positive(texts)
    right = sum((p > 0.5) == (label == 1) for p, label in zip(probabilities, labels, strict=True))
    assert judge.accuracy(texts, labels)["rate"] == right / 4
    assert judge.accuracy(texts, [1 - label for label in labels])["rate"] == 1 - right / 4


def test_word_pairs_count():
    texts = ["not good at all", "not bad at all", "good at all", "bad at all"] * 10
    judge = TextJudge.fit(texts, [0, 1, 1, 0] * 10)
    assert judge.accuracy(texts[:4], [0, 1, 1, 0])["rate"] == 1.0


def test_two_fits_are_the_same_judge():
    texts, labels = labelled_texts(seed=0)
    first, second = (TextJudge.fit(texts, labels).probability_positive(texts) for _ in range(2))
    assert np.array_equal(first, second)


def test_unknown_words_get_the_prior_and_no_texts_no_probabilities():
    texts, labels = labelled_texts(seed=0)
    judge = TextJudge.fit([*texts, *["splendid"] * 400], [*labels, *[1] * 400])
    unknown = judge.probability_positive(["zebra crossing", ""])
    (intercept,) = np.asarray(judge.classifier.intercept_)
    assert unknown[0] == unknown[1] == pytest.approx(1 / (1 + np.exp(-intercept)))
    assert unknown[0] > 0.5
    assert len(judge.probability_positive([])) == 0


def test_it_is_never_pickled():
    judge = TextJudge.fit(*labelled_texts(seed=0, num_texts=20))
    with pytest.raises(TypeError, match="never pickled"):
        pickle.dumps(judge)


def test_what_is_refused():
    judge = TextJudge.fit(*labelled_texts(seed=0, num_texts=20))
    with pytest.raises(DataError, match="2 texts and 1 labels"):
        TextJudge.fit(["one", "two"], [1])
    with pytest.raises(DataError, match="row 1 is 2"):
        TextJudge.fit(["one", "two"], [1, 2])
    with pytest.raises(DataError, match="both labels"):
        TextJudge.fit(["one", "two"], [1, 1])
    with pytest.raises(DataError, match="no word"):
        TextJudge.fit(["a", "!"], [1, 0])
    with pytest.raises(DataError, match="1 texts and 2 labels"):
        judge.accuracy(["one"], [1, 0])
    with pytest.raises(DataError, match="0 trials"):
        judge.accuracy([], [])
