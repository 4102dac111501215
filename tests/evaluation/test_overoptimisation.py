"""The alarm for a rising reward with a falling judge: when it sounds, and above all when it does not."""

import math
from typing import Any

import pytest

from prefloop.errors import DataError
from prefloop.evaluation.overoptimisation import Alarm, overoptimisation_alarms


def rows(scores: list[float], judges: list[float]) -> list[dict[str, Any]]:
    return [
        {"step": 10 * number, "score": score, "judge": judge, "kl": 2.0 * number}
        for number, (score, judge) in enumerate(zip(scores, judges, strict=True))
    ]


def steps(scores: list[float], judges: list[float], *, num_samples: int = 100) -> list[int]:
    return [alarm.step for alarm in overoptimisation_alarms(rows(scores, judges), num_samples=num_samples)]


def test_the_classic_curve_raises_the_alarm_after_the_turn():
    # Two standard errors at 0.7 and 100 samples are 0.0917, so 0.65 is noise; at 0.5 and 100 they are 0.1.
    assert steps([0, 1, 2, 3, 4], [0.4, 0.6, 0.7, 0.65, 0.5]) == [40]


def test_an_alarm_carries_the_figures_it_speaks_of():
    (alarm,) = overoptimisation_alarms(rows([0, 1, 2, 3, 4], [0.4, 0.6, 0.7, 0.65, 0.5]), num_samples=100)
    assert (alarm.step, alarm.kl, alarm.score, alarm.judge, alarm.best_judge) == (40, 8.0, 4.0, 0.5, 0.7)
    # The score is compared with its best up to the first of the last three evaluations (step 20), which is 2.
    for part in ("step 40", "8.0 nats", "from 2.00 to 4.00", "50 %", "70 % at step 20"):
        assert part in alarm.message
    assert Alarm(**alarm.to_json()) == alarm


@pytest.mark.parametrize(
    ("scores", "judges"),
    [
        ([0, 1, 2, 3], [0.4, 0.5, 0.6, 0.7]),  # both rise
        ([3, 2, 1, 0], [0.7, 0.6, 0.4, 0.2]),  # both fall
        ([0, 1, 2, 2], [0.7, 0.7, 0.7, 0.7]),  # the judge stands still
        ([5, 1, 2, 3], [0.7, 0.7, 0.4, 0.2]),  # the score climbs, but not above its best
        ([0, 9], [0.9, 0.1]),  # too few evaluations to speak of a rise
        ([], []),
    ],
)
def test_no_alarm_without_both_halves(scores: list[float], judges: list[float]):
    assert steps(scores, judges) == []


def test_the_margin_is_two_standard_errors_of_the_larger_of_both_shares():
    # sqrt(0.5 * 0.5 / 100) = 0.05, so a fall from 0.6 to 0.5 is exactly the margin of 0.1, and 0.49 is below it.
    assert steps([0, 1, 2], [0.6, 0.6, 0.5001]) == []
    assert steps([0, 1, 2], [0.6, 0.6, 0.49]) == [20]
    # The same fall is noise with fewer samples.
    assert steps([0, 1, 2], [0.6, 0.6, 0.49], num_samples=50) == []
    # A perfect judge has no standard error of its own; one failure in a hundred is not yet an alarm.
    assert steps([0, 1, 2], [1.0, 1.0, 0.99]) == []


def test_equal_to_a_naive_search():
    scores = [math.sin(3.1 * number) + 0.2 * number for number in range(40)]
    judges = [0.5 + 0.4 * math.cos(0.9 * number) for number in range(40)]
    expected = []
    for now in range(2, 40):
        rises = all(scores[now] > scores[before] for before in range(now - 1))
        best = max(judges[: now + 1])
        variance = max(best * (1 - best), judges[now] * (1 - judges[now]))
        if rises and judges[now] < best - 2 * math.sqrt(variance / 128):
            expected.append(10 * now)
    assert len(expected) > 2
    assert steps(scores, judges, num_samples=128) == expected


def test_rows_of_a_metrics_file_are_read_by_their_evaluation_names():
    plain = rows([0, 1, 2], [0.8, 0.8, 0.3])
    # The training rollout's own score falls; only the held-out one counts. Rows without an evaluation are passed over.
    prefixed = [
        {"step": row["step"], "score": -row["step"]}
        | {
            "evaluate/score": row["score"],
            "evaluate/judge": row["judge"],
            "evaluate/kl_policy_from_reference": row["kl"],
        }
        for row in plain
    ]
    prefixed.insert(1, {"step": 5, "score": 9.0, "judge": 0.0, "evaluate/seconds": 1.0})
    prefixed.insert(2, {"step": 6, "evaluate/score": None, "evaluate/judge": 0.0})
    assert overoptimisation_alarms(prefixed, num_samples=100) == overoptimisation_alarms(plain, num_samples=100) != []


def test_the_distance_may_be_missing():
    unmeasured = [{"step": step, "score": step, "judge": judge} for step, judge in enumerate([0.8, 0.8, 0.3])]
    (alarm,) = overoptimisation_alarms(unmeasured, num_samples=100)
    assert alarm.kl is None
    assert "nats" not in alarm.message


@pytest.mark.parametrize(("judge", "num_samples"), [(1.5, 100), (-0.1, 100), (0.5, 0)])
def test_what_is_no_share_is_refused(judge: float, num_samples: int):
    with pytest.raises(DataError, match=r"share"):
        overoptimisation_alarms(rows([0, 1, 2], [0.5, 0.5, judge]), num_samples=num_samples)
