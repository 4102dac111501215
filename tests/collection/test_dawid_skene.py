"""The model of Dawid and Skene: limits by hand, a naive likelihood, planted reliabilities, an objective that rises."""

import math
import random

import numpy as np
import pytest

from prefloop.collection.dawid_skene import PRIOR_RIGHT_SHARE, dawid_skene
from prefloop.errors import DataError, SettingsError
from prefloop.records import Choice

Choices = dict[str, dict[str, Choice]]
OTHER: dict[Choice, Choice] = {"left": "right", "right": "left", "tie": "tie"}


def planted(
    reliability: dict[str, float], *, num_pairs: int, seed: int = 0, tie_share: float = 0.0, share_labelled: float = 1.0
) -> tuple[Choices, dict[str, Choice]]:
    """Labels of people who are right as often as said (else any other answer), and the truth."""
    rng = random.Random(seed)
    answers: tuple[Choice, ...] = ("left", "right", "tie") if tie_share else ("left", "right")
    truth: dict[str, Choice] = {}
    for number in range(num_pairs):
        truth[f"pair-{number}"] = "tie" if rng.random() < tie_share else rng.choice(answers[:2])
    choices: Choices = {}
    for pair_id, right in truth.items():
        wrong: list[Choice] = [answer for answer in answers if answer != right]
        said: dict[str, Choice] = {
            name: right if rng.random() < rate else rng.choice(wrong)
            for name, rate in reliability.items()
            if rng.random() < share_labelled
        }
        if said:
            choices[pair_id] = said
    return choices, truth


def test_one_annotator_is_as_good_as_the_prior_says():
    model = dawid_skene({"p": {"a": "left"}, "q": {"a": "right"}, "r": {"a": "right"}})
    assert model.posteriors["p"] == pytest.approx((PRIOR_RIGHT_SHARE, 1 - PRIOR_RIGHT_SHARE, 0.0))
    assert model.posteriors["q"] == pytest.approx((1 - PRIOR_RIGHT_SHARE, PRIOR_RIGHT_SHARE, 0.0))
    assert model.reliability == pytest.approx({"a": PRIOR_RIGHT_SHARE})
    assert model.converged


def test_people_who_always_agree_are_near_certain():
    choices: Choices = {f"p{number}": dict.fromkeys("abc", ("left", "right")[number % 2]) for number in range(100)}
    model = dawid_skene(choices)
    # Right 100 times and 4 of the prior's 5 labels.
    assert model.reliability == pytest.approx(dict.fromkeys("abc", 104 / 105), abs=1e-5)
    odds = 104**3
    assert model.posteriors["p0"] == pytest.approx((odds / (odds + 1), 1 / (odds + 1), 0.0), abs=1e-6)
    assert model.posteriors["p1"][1] == pytest.approx(odds / (odds + 1), abs=1e-6)


def test_planted_reliabilities_are_recovered():
    reliability = {"a": 0.95, "b": 0.85, "c": 0.75, "d": 0.65, "e": 0.5}
    choices, truth = planted(reliability, num_pairs=3000, share_labelled=0.8)
    model = dawid_skene(choices)
    assert model.reliability == pytest.approx(reliability, abs=0.03)
    named = [("left", "right")[row[1] > row[0]] == truth[pair_id] for pair_id, row in model.posteriors.items()]
    # Posteriors are calibrated: the mean certainty is the share that is right.
    assert np.mean(named) == pytest.approx(np.mean([max(row) for row in model.posteriors.values()]), abs=0.02)


def test_planted_reliabilities_are_recovered_with_ties():
    reliability = {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}
    choices, _ = planted(reliability, num_pairs=3000, tie_share=0.2)
    model = dawid_skene(choices)
    assert model.reliability == pytest.approx(reliability, abs=0.04)
    assert model.tie_share == pytest.approx(0.2, abs=0.03)


def test_an_adversary_counts_the_other_way_round():
    choices, truth = planted({"a": 0.85, "b": 0.85, "c": 0.85, "adversary": 0.1}, num_pairs=1500)
    model = dawid_skene(choices)
    assert model.reliability["adversary"] == pytest.approx(0.1, abs=0.03)
    against: Choices = {pair_id: {name: said for name, said in row.items() if name != "adversary"}
                        for pair_id, row in choices.items()}  # fmt: skip

    def share_right(posteriors: dict[str, tuple[float, float, float]]) -> float:
        return float(np.mean([("left", "right")[row[1] > row[0]] == truth[key] for key, row in posteriors.items()]))

    # Knowing whom to contradict is worth more than not asking them.
    assert share_right(model.posteriors) > share_right(dawid_skene(against).posteriors)


def test_exchanging_sides_changes_nothing():
    rng = random.Random(3)
    choices, _ = planted({"a": 0.9, "b": 0.7, "c": 0.6}, num_pairs=200, tie_share=0.1)
    swapped = {pair_id for pair_id in choices if rng.random() < 0.3}
    exchanged: Choices = {
        pair_id: {name: OTHER[said] if pair_id in swapped else said for name, said in row.items()}
        for pair_id, row in choices.items()
    }
    one, too = dawid_skene(choices), dawid_skene(exchanged)
    assert too.reliability == pytest.approx(one.reliability, abs=1e-6)
    assert too.log_posterior[-1] == pytest.approx(one.log_posterior[-1])
    for pair_id, (left, right, tie) in one.posteriors.items():
        expected = (right, left, tie) if pair_id in swapped else (left, right, tie)
        assert too.posteriors[pair_id] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("tie_share", [0.0, 0.2])
@pytest.mark.parametrize("prior_labels", [1e-6, 5.0])
def test_the_objective_never_falls(tie_share, prior_labels):
    for seed in range(4):
        choices, _ = planted({"a": 0.9, "b": 0.6, "c": 0.3, "d": 0.5}, num_pairs=60, seed=seed, tie_share=tie_share)
        trace = dawid_skene(choices, prior_labels=prior_labels).log_posterior
        assert len(trace) > 2
        assert min(np.diff(trace)) > -1e-9 * abs(trace[0])


def naive_log_likelihood(choices: Choices, right: dict[str, float]) -> float:
    """Without ties, pair by pair."""
    total = 0.0
    for row in choices.values():
        total += math.log(
            sum(
                0.5 * math.prod(right[name] if said == truth else 1 - right[name] for name, said in row.items())
                for truth in ("left", "right")
            )
        )
    return total


def test_the_objective_is_the_likelihood_and_the_prior():
    choices, _ = planted({"a": 0.9, "b": 0.7, "c": 0.6}, num_pairs=50, share_labelled=0.7)
    model = dawid_skene(choices)
    prior = sum(4 * math.log(rate) + math.log(1 - rate) for rate in model.reliability.values())
    # The rows for true ties stay at the prior, since there are none.
    unused = 3 * (math.log(0.2) + 4 * math.log(0.8))
    expected = naive_log_likelihood(choices, model.reliability) + prior + unused
    assert model.log_posterior[-1] == pytest.approx(expected, abs=1e-4)
    # It is a maximum: moving any rate makes it worse.
    for name, rate in model.reliability.items():
        for step in (-0.02, 0.02):
            moved = model.reliability | {name: rate + step}
            prior_moved = sum(4 * math.log(value) + math.log(1 - value) for value in moved.values())
            assert naive_log_likelihood(choices, moved) + prior_moved + unused < model.log_posterior[-1]


def test_the_posterior_is_bayes_rule():
    choices, _ = planted({"a": 0.9, "b": 0.7, "c": 0.6}, num_pairs=80)
    model = dawid_skene(choices)
    for pair_id, row in choices.items():
        left, right = (
            math.prod(
                model.reliability[name] if said == truth else 1 - model.reliability[name] for name, said in row.items()
            )
            for truth in ("left", "right")
        )
        assert model.posteriors[pair_id][0] == pytest.approx(left / (left + right), abs=1e-4)
        assert sum(model.posteriors[pair_id]) == pytest.approx(1.0)


def test_running_out_of_iterations_is_said():
    choices, _ = planted({"a": 0.9, "b": 0.7, "c": 0.6}, num_pairs=80)
    model = dawid_skene(choices, max_iterations=2)
    assert not model.converged
    assert len(model.log_posterior) == 3


def test_bad_input_is_an_error():
    with pytest.raises(DataError, match="skip"):
        dawid_skene({"p": {"a": "skip"}})
    with pytest.raises(DataError, match="no label"):
        dawid_skene({})
    with pytest.raises(SettingsError, match="prior_labels"):
        dawid_skene({"p": {"a": "left"}}, prior_labels=0.0)
