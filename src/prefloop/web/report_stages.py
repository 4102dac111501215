"""What a report shows of one stage over time: its training curves, and its score beside its judge."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from markupsafe import Markup

from prefloop.algorithms import ALGORITHMS
from prefloop.evaluation.overoptimisation import Alarm, overoptimisation_alarms
from prefloop.runs.drive import WALL_CLOCK_FIELDS
from prefloop.runs.folder import RunFolder
from prefloop.web import report_formats as formats
from prefloop.web.charts import Curve, Panel, curve_chart

EVALUATE = "evaluate/"
KL = "evaluate/kl_policy_from_reference"
STEADY_SHARE_OF_RISES = 0.75
"""The policy moves away steadily when so many of its evaluations lie further from the reference than the last."""
MAX_CURVES_WITHOUT_HEADLINE = 6


@dataclass(frozen=True)
class Stage:
    """One stage as it is shown. `run` is None while it has no run folder yet."""

    name: str
    kind: str
    anchor: str
    state: str
    seconds: float | None
    run: RunFolder | None
    rows: tuple[dict[str, Any], ...]
    config: Mapping[str, Any]
    config_text: str
    audit: tuple[str, ...]

    @property
    def reason(self) -> str | None:
        return self.run.reason if self.run else None


def headline(stage: Stage) -> tuple[str, ...]:
    """The stage's metrics that matter, as its algorithm orders them; without an algorithm, the first few on record."""
    algorithm = stage.run.algorithm if stage.run else stage.kind
    if algorithm in ALGORITHMS:
        return ALGORITHMS[algorithm][0].headline
    names = dict.fromkeys(name for row in stage.rows for name in row)
    kept = [name for name in names if name not in WALL_CLOCK_FIELDS | {"step", "num_tokens"}]
    return tuple(kept[:MAX_CURVES_WITHOUT_HEADLINE])


def training_curves(stage: Stage) -> list[Markup]:
    """One chart per headline metric; what was measured in training and on held-out data shares a chart."""
    charts = []
    for index, name in enumerate(dict.fromkeys(one.removeprefix(EVALUATE) for one in headline(stage))):
        curves = [
            curve
            for curve in (
                _curve(stage.rows, "step", name, label="training"),
                _curve(stage.rows, "step", EVALUATE + name, label="held out", drawn_as="points"),
            )
            if curve.x
        ]
        if curves:
            label = f"{formats.heading(stage.name)}: {formats.words(name)}"
            chart_id = f"{stage.anchor}-curve-{index}"
            panel = Panel(formats.heading(name), curves)
            charts.append(curve_chart([panel], label=label, chart_id=chart_id, x_label="step", width=290))
    return charts


def _curve(rows: Sequence[Mapping[str, Any]], x: str, y: str, *, label: str, drawn_as: Any = "line") -> Curve:
    points = [(row[x], row[y]) for row in rows if formats.is_number(row.get(x)) and formats.is_number(row.get(y))]
    return Curve(label, [point[0] for point in points], [point[1] for point in points], drawn_as=drawn_as)


def overoptimisation(stage: Stage) -> tuple[Stage, Markup, str] | None:
    """A PPO stage's score and judge against its distance from the reference, with a caption.

    Where the policy does not move away steadily, the steps are the x-axis: a curve that turns back cannot be read.
    """
    rows = [row for row in stage.rows if formats.is_number(row.get(f"{EVALUATE}score"))]
    if (stage.run.algorithm if stage.run else stage.kind) != "ppo" or len(rows) < 2:
        return None
    distances = [row[KL] for row in rows if formats.is_number(row.get(KL))]
    moves_away = len(distances) == len(rows) and _share_of_rises(distances) >= STEADY_SHARE_OF_RISES
    x = KL if moves_away else "step"
    judge = _curve(rows, x, f"{EVALUATE}judge", label="judge", drawn_as="points")
    panels = [Panel("Reward model's score", [_curve(rows, x, f"{EVALUATE}score", label="score", drawn_as="points")])]
    if judge.x:
        places = [(alarm.kl if moves_away else alarm.step, alarm.judge) for alarm in measured_alarms(stage)]
        marked = [(place, height) for place, height in places if place is not None]
        is_share = all(0 <= value <= 1 for value in judge.y)
        panels.append(Panel("Judge", [judge], as_percent=is_share, marked=marked))
    budget = _setting(stage.config, "kl_budget")
    is_near = moves_away and formats.is_number(budget) and budget <= 1.5 * max(distances)
    chart = curve_chart(
        panels,
        label=f"{formats.heading(stage.name)}: score and judge as the policy leaves its reference",
        chart_id=f"{stage.anchor}-overoptimisation",
        x_label="KL from the reference, nats per answer" if moves_away else "step",
        x_limit=(budget, f"KL budget {formats.number(budget)}") if is_near else None,
    )
    return stage, chart, _overoptimisation_caption(distances, budget, has_judge=bool(judge.x))


def _share_of_rises(values: Sequence[float]) -> float:
    return sum(after > before for before, after in pairwise(values)) / (len(values) - 1)


def _overoptimisation_caption(distances: Sequence[float], budget: Any, *, has_judge: bool) -> str:
    sentences = ["Held-out prompts."]
    if distances:
        of_budget = f" of its budget of {formats.number(budget)}" if formats.is_number(budget) else ""
        sentences.append(
            f"The KL from the reference reached {formats.number(max(distances))}{of_budget} nats per answer."
        )
    if not has_judge:
        sentences.append("No judge was measured, so this chart cannot show over-optimisation.")
    return " ".join(sentences)


def _setting(config: Mapping[str, Any], name: str) -> Any:
    """The value of the first setting of that name, wherever its group stands; None where there is none."""
    if name in config:
        return config[name]
    below = (_setting(group, name) for group in config.values() if isinstance(group, Mapping))
    return next((value for value in below if value is not None), None)


def measured_alarms(stage: Stage) -> list[Alarm]:
    """Alarms from a stage's own evaluations; none where the judge is no share or the number of samples is unknown."""
    num_samples = _setting(stage.config, "num_evaluation_samples")
    judges = [row[EVALUATE + "judge"] for row in stage.rows if formats.is_number(row.get(EVALUATE + "judge"))]
    if not judges or not isinstance(num_samples, int) or num_samples < 1 or not all(0 <= one <= 1 for one in judges):
        return []
    return overoptimisation_alarms(stage.rows, num_samples=num_samples)
