"""When a learned reward keeps rising while what it stands for falls: the sign of a policy that is trained too far.

Source: Gao, Schulman and Hilton (arXiv 2210.10760): past some distance from the reference the score of the reward model
and the judgement it was trained to predict part ways.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prefloop.errors import DataError

WINDOW = 3
"""Evaluations, the present one included, over which the score must have risen."""

NUM_STANDARD_ERRORS = 2.0
"""How many standard errors of a proportion the judge must have fallen by: less is noise."""


@dataclass(frozen=True)
class Alarm:
    """One evaluation at which the score had risen and the judge had fallen.

    `kl` is the KL from the reference in nats per sequence, None where it was not measured. `best_judge` is the judge's
    highest share so far, `judge` the present one, both in [0, 1]; `score` is in the reward model's own units.
    """

    step: int
    kl: float | None
    score: float
    judge: float
    best_judge: float
    message: str

    def to_json(self) -> dict[str, Any]:
        """The alarm as a dictionary that `json.dumps` accepts."""
        return asdict(self)


@dataclass(frozen=True)
class _Evaluation:
    step: int
    kl: float | None
    score: float
    judge: float


def overoptimisation_alarms(evaluations: Sequence[Mapping[str, Any]], *, num_samples: int) -> list[Alarm]:
    """The evaluations, in order, at which the score is above its best from before while the judge is below its own.

    `evaluations` are rows over time with `step`, `score`, `judge` and, where measured, `kl`; or rows of metrics.jsonl,
    of which those names' `evaluate/` metrics are read. Rows without score or judge are passed over. Each share of the
    judge comes from `num_samples` completions. An alarm is raised when the score exceeds every score up to
    the first of the last three evaluations, and the judge lies more than two standard errors of a proportion below its
    best so far (the larger error of the two shares, since that of 0 and of 1 is zero).

    Raises DataError when the judge is no share in [0, 1] or `num_samples` is below 1.
    """
    if num_samples < 1:
        raise DataError(f"num_samples is {num_samples}; a share needs at least one sample behind it.")
    measured = [found for row in evaluations if (found := _evaluation(row)) is not None]
    alarms = []
    for number in range(WINDOW - 1, len(measured)):
        now = measured[number]
        best_score_before = max(one.score for one in measured[: number - WINDOW + 2])
        best = max(measured[: number + 1], key=lambda one: one.judge)
        noise = NUM_STANDARD_ERRORS * max(_standard_error(share, num_samples) for share in (best.judge, now.judge))
        if now.score > best_score_before and best.judge - now.judge > noise:
            alarms.append(_alarm(now, best, best_score_before, num_samples))
    return alarms


def _standard_error(share: float, num_samples: int) -> float:
    return math.sqrt(share * (1.0 - share) / num_samples)


def _alarm(now: _Evaluation, best: _Evaluation, best_score_before: float, num_samples: int) -> Alarm:
    distance = "" if now.kl is None else f", {now.kl:.1f} nats from the reference"
    return Alarm(
        step=now.step,
        kl=now.kl,
        score=now.score,
        judge=now.judge,
        best_judge=best.judge,
        message=(
            f"At step {now.step}{distance}, the reward model's score rose from {best_score_before:.2f} to "
            f"{now.score:.2f} while the judge fell to {100 * now.judge:.0f} % of {num_samples} answers from "
            f"{100 * best.judge:.0f} % at step {best.step}: the policy learns to please the reward model "
            f"instead of the judge. Prefer the policy of about step {best.step}, or set a smaller KL budget."
        ),
    )


def _evaluation(row: Mapping[str, Any]) -> _Evaluation | None:
    """The row's evaluation. In a row of metrics.jsonl the bare names belong to the training rollout."""
    if any(key.startswith("evaluate/") for key in row):
        names = ("evaluate/score", "evaluate/judge", "evaluate/kl_policy_from_reference")
    else:
        names = ("score", "judge", "kl")
    score, judge, kl = (_finite(row.get(name)) for name in names)
    if score is None or judge is None:
        return None
    if not 0.0 <= judge <= 1.0:
        raise DataError(f"The judge of step {row['step']} is {judge}; it must be a share between 0 and 1.")
    return _Evaluation(int(row["step"]), kl, score, judge)


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
