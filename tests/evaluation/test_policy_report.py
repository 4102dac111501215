"""The figures of one policy, and the best of n."""

import random

import pytest

from prefloop.evaluation.policy_report import best_of, policy_figures
from prefloop.records import Completion

COMPLETIONS = [
    Completion("one two three", ended=True, token_ids=(1, 2, 3)),
    Completion("one two", ended=False, token_ids=(1, 2)),
    Completion("one two three", ended=True, token_ids=(1, 2, 3)),
    Completion("four five six seven", ended=True, token_ids=(4, 5, 6, 7)),
]


def test_figures_by_hand() -> None:
    figures = policy_figures(
        COMPLETIONS, [1.0, 0.0, 0.5, 1.0], kl_per_sequence=[0.5, -0.25, 1.0, 0.75], scores=None, judged_by="Leo"
    )
    assert figures["success_rate"] == 2.5 / 4
    assert figures["n"] == 4
    assert figures["kl_from_reference"] == 0.5
    assert figures["mean_response_tokens"] == 3.0
    assert figures["median_words"] == 3.0
    assert figures["ended_share"] == 0.75
    assert figures["unique_share"] == 0.75
    assert figures["mean_score"] is None
    assert figures["judged_by"] == "Leo"


def test_distinct_2_counts_word_pairs_over_all_texts() -> None:
    """(one two), (two three), (one two), (one two), (two three), (four five), (five six), (six seven): 5 of 8."""
    figures = policy_figures(COMPLETIONS, [0.0] * 4, kl_per_sequence=None, scores=[1.0, 2.0, 3.0, 6.0], judged_by="x")
    assert figures["distinct_2"] == 5 / 8
    assert figures["mean_score"] == 3.0
    assert figures["kl_from_reference"] is None


def test_the_interval_is_wilsons() -> None:
    """No success in four: the upper bound is z^2 / (n + z^2)."""
    low, high = policy_figures(COMPLETIONS, [0.0] * 4, kl_per_sequence=None, scores=None, judged_by="x")["ci95"]
    assert low == 0.0
    assert high == pytest.approx(1.959964**2 / (4 + 1.959964**2), abs=1e-6)


def test_best_of_by_hand_and_against_a_naive_loop() -> None:
    assert best_of([0.0, 2.0, 1.0, 5.0, 5.0, -1.0], 3) == [1, 3]
    rng = random.Random(1)
    scores = [rng.random() for _ in range(60)]
    for n in (1, 2, 4, 60):
        naive = []
        for start in range(0, 60, n):
            best = start
            for place in range(start, start + n):
                if scores[place] > scores[best]:
                    best = place
            naive.append(best)
        assert best_of(scores, n) == naive


def test_best_of_refuses_a_part_of_a_group() -> None:
    with pytest.raises(ValueError, match="5 scores do not make whole groups of 2"):
        best_of([0.0] * 5, 2)


def test_answers_to_prompts_that_repeat_have_an_interval_over_prompts() -> None:
    """Two prompts, one always right and one never: four answers or a hundred, it is two prompts that were seen."""
    completions = [Completion("yes")] * 100
    successes = [1.0, 0.0] * 50

    def interval(prompts: list[str]) -> tuple[float, float]:
        found = policy_figures(
            completions, successes, kl_per_sequence=None, scores=None, judged_by="x", prompts=prompts
        )
        assert found["num_prompts"] == len(set(prompts))
        return found["ci95"]

    assert interval(["a", "b"] * 50) == (0.0, 1.0)
    low, high = interval([str(number) for number in range(100)])
    assert 0.39 < low < 0.41
    assert 0.59 < high < 0.61
    # One prompt for all is no prompt at all: the samples are independent.
    assert interval([""] * 100) == (low, high)
