"""Baselines that must find what is planted, and nothing where nothing is."""

import json

import numpy as np
import pytest

from prefloop.errors import DataError
from prefloop.evaluation.surface_baselines import bag_of_words_accuracy, length_only_accuracy

WORDS = ["apple", "bridge", "cloud", "door", "engine", "forest", "garden", "house"]


def random_pairs(*, seed: int, num_pairs: int = 200, planted: str = "") -> list[tuple[str, str]]:
    """Pairs of six random words; the planted word, if any, takes the last place of the chosen text."""
    generator = np.random.default_rng(seed)
    pairs = []
    for _ in range(num_pairs):
        chosen, rejected = (list(generator.choice(WORDS, 6)) for _ in range(2))
        if planted:
            chosen[-1] = planted
        pairs.append((" ".join(chosen), " ".join(rejected)))
    return pairs


def test_length_by_hand():
    train = [("long answer", "short"), ("longer one", "tiny"), ("a", "ab")]
    result = length_only_accuracy(train, [("abc", "a"), ("a", "abc"), ("ab", "ba"), ("abcd", "abc")])
    assert result.rule == "longer wins"
    assert (result.accuracy, result.num_ties, result.n) == (2.5 / 4, 1, 4)
    assert result.accuracy_ci95[0] < 2.5 / 4 < result.accuracy_ci95[1]


def test_the_direction_is_learned_from_the_training_pairs_alone():
    shorter = [("a", "abc"), ("ab", "abcd")]
    longer = [(rejected, chosen) for chosen, rejected in shorter]
    assert length_only_accuracy(shorter, shorter).accuracy == 1.0
    assert length_only_accuracy(shorter, shorter).rule == "shorter wins"
    assert length_only_accuracy(longer, shorter).accuracy == 0.0
    assert length_only_accuracy([("a", "abc"), ("abc", "a")], longer).rule == "longer wins"


def test_one_very_long_answer_does_not_decide_the_direction():
    train = [("x" * 1000, "x"), ("x", "xx"), ("x", "xxx")]
    assert length_only_accuracy(train, train).rule == "shorter wins"


def test_bag_of_words_finds_a_planted_word_and_its_opposite():
    train = random_pairs(seed=0, planted="marvellous")
    assert bag_of_words_accuracy(train, random_pairs(seed=1, planted="marvellous")).accuracy > 0.99
    reversed_test = [(rejected, chosen) for chosen, rejected in random_pairs(seed=1, planted="marvellous")]
    assert bag_of_words_accuracy(train, reversed_test).accuracy < 0.01


def test_bag_of_words_finds_nothing_in_noise():
    result = bag_of_words_accuracy(random_pairs(seed=2), random_pairs(seed=3, num_pairs=400))
    assert result.accuracy_ci95[0] < 0.5 < result.accuracy_ci95[1]


def test_bag_of_words_is_the_same_every_time_and_blind_to_sides():
    train, test = random_pairs(seed=4, planted="marvellous"), random_pairs(seed=5)
    result = bag_of_words_accuracy(train, test)
    assert bag_of_words_accuracy(train, test) == result
    swapped = bag_of_words_accuracy(train, [(rejected, chosen) for chosen, rejected in test])
    assert swapped.accuracy == pytest.approx(1 - result.accuracy)


def test_texts_the_training_pairs_never_saw_are_ties():
    result = bag_of_words_accuracy(random_pairs(seed=0), [("unseen words", "something else"), ("apple", "apple")])
    assert (result.accuracy, result.num_ties) == (0.5, 2)


def test_results_become_json():
    pairs = random_pairs(seed=0, num_pairs=20)
    for result in (length_only_accuracy(pairs, pairs), bag_of_words_accuracy(pairs, pairs)):
        assert json.loads(json.dumps(result.to_json()))["n"] == 20


@pytest.mark.parametrize("baseline", [length_only_accuracy, bag_of_words_accuracy])
def test_empty_lists_are_refused(baseline):
    with pytest.raises(DataError, match="0 training and 1 test"):
        baseline([], [("a", "b")])
    with pytest.raises(DataError, match="1 training and 0 test"):
        baseline([("a", "b")], [])


def test_too_little_for_a_bag_of_words_is_refused():
    with pytest.raises(DataError, match="at least two"):
        bag_of_words_accuracy([("one", "two")], [("one", "two")])
    with pytest.raises(DataError, match="no word"):
        bag_of_words_accuracy([("", "!"), ("?", "a")], [("one", "two")])
