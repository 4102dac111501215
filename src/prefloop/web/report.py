"""The report of a run: one file that needs no network, no script and no other file, whoever opens it.

What models and people wrote is escaped by the template and never becomes markup; a content security policy in the page
forbids scripts and every request besides.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePath
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from prefloop.errors import RunError
from prefloop.runs.folder import RunFolder, read_alarms, replace_atomically
from prefloop.runs.settings import load_yaml
from prefloop.web import report_blocks as blocks
from prefloop.web import report_formats as formats
from prefloop.web.report_stages import Stage, headline, measured_alarms, overoptimisation, training_curves

PIPELINE_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class StageAlarm:
    """Something that the reader must not miss. `step` is None for what concerns the whole stage."""

    stage: str
    step: int | None
    message: str


@dataclass(frozen=True)
class Source:
    """Where a stage's input came from: its role, and the stage (with its anchor) or the path."""

    role: str
    name: str
    anchor: str | None


def render_report(path: Path) -> Path:
    """Writes report.html into a run folder (one stage) or a pipeline's folder (many), and returns where it is.

    Raises RunError if `path` holds neither pipeline.json nor run.json, or one of its files is damaged.
    """
    pipeline = _read_json(path / "pipeline.json")
    if pipeline is None and not (path / "run.json").exists():
        raise RunError(f"{path} is neither a run nor a pipeline: it has no run.json and no pipeline.json.")
    summary = _read_json(path / "summary.json") or {}
    context = _single_context(path, summary) if pipeline is None else _pipeline_context(path, pipeline, summary)
    target = path / "report.html"
    replace_atomically(target, _environment().get_template("report.html").render(context))
    return target


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("prefloop.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for function in (
        formats.number,
        formats.percent,
        formats.percent_interval,
        formats.number_interval,
        formats.duration,
        formats.words,
        formats.heading,
    ):
        environment.filters[function.__name__] = function
    return environment


def _pipeline_context(path: Path, pipeline: Mapping[str, Any], summary: Mapping[str, Any]) -> dict[str, Any]:
    version = pipeline.get("schema_version")
    if version != PIPELINE_SCHEMA_VERSION:
        raise RunError(
            f"{path / 'pipeline.json'} has schema version {version}; this prefloop reads {PIPELINE_SCHEMA_VERSION}."
        )
    wall_seconds = formats.group(summary, "wall_seconds")
    stages = []
    for index, entry in enumerate(formats.groups(pipeline, "stages")):
        name = str(entry.get("name", f"stage {index + 1}"))
        seconds = entry.get("seconds")
        stages.append(
            _read_stage(
                path / str(entry.get("folder") or name),
                name=name,
                kind=str(entry.get("kind", "")),
                anchor=f"stage-{index + 1}",
                state=entry.get("state"),
                seconds=seconds if formats.is_number(seconds) else wall_seconds.get(name),
            )
        )
    policies = blocks.policies_of(summary)
    facts = [str(pipeline[key]) for key in ("recipe",) if pipeline.get(key)]
    facts += [f"seed {pipeline['seed']}"] if pipeline.get("seed") is not None else []
    state = str(pipeline.get("state") or "unknown")
    return _context(
        title=str(pipeline.get("name") or path.resolve().name),
        description=str(pipeline.get("description") or ""),
        state=state,
        facts=facts,
        verdict=blocks.verdict(policies) or _state_sentence(state, stages),
        stages=stages,
        summary=summary,
        samples=blocks.sample_blocks(summary),
        is_pipeline=True,
    )


def _single_context(path: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    run = RunFolder(path)
    stage = _read_stage(path, name=run.name, kind=run.algorithm, anchor="stage-1", state=run.state, seconds=None)
    facts = [formats.words(run.algorithm), f"seed {run.seed}", f"started {run.started_at[:16].replace('T', ' ')} UTC"]
    return _context(
        title=run.name,
        description="",
        state=run.state,
        facts=facts,
        verdict=blocks.verdict(blocks.policies_of(summary)) or _progress_sentence(stage),
        stages=[stage],
        summary=summary,
        samples=blocks.sample_blocks(summary) or blocks.samples_over_time(run.read_samples()),
        is_pipeline=False,
    )


def _context(
    *,
    title: str,
    description: str,
    state: str,
    facts: Sequence[str],
    verdict: str,
    stages: Sequence[Stage],
    summary: Mapping[str, Any],
    samples: Sequence[blocks.SampleBlock],
    is_pipeline: bool,
) -> dict[str, Any]:
    """Everything that the template reads."""
    policies = blocks.policies_of(summary)
    dataset, reward_model = formats.group(summary, "dataset"), formats.group(summary, "reward_model")
    seconds = [stage.seconds for stage in stages if formats.is_number(stage.seconds)]
    return {
        "title": title,
        "description": description,
        "state": state,
        "facts": [*facts, *([f"{formats.duration(sum(seconds))} in all"] if seconds else [])],
        "verdict": verdict,
        "verdict_note": blocks.verdict_note(policies),
        "is_pipeline": is_pipeline,
        "css": Markup(resources.files("prefloop.web").joinpath("static/report.css").read_text("utf-8")),  # noqa: S704
        "stages": stages,
        "longest_seconds": max(seconds, default=0.0),
        "policy_table": blocks.policy_table(policies) if policies else None,
        "policy_chart": blocks.policy_chart(policies),
        "text_table": blocks.text_table(policies),
        "flaw_table": blocks.flaw_table(policies),
        "judges": [
            (label, formats.group(summary, key))
            for label, key in (("Judge", "judge"), ("Second judge", "second_judge"))
            if formats.group(summary, key)
        ],
        "samples": samples,
        "alarms": _by_stage(_alarms(stages)),
        "overoptimisation": [chart for stage in stages if (chart := overoptimisation(stage)) is not None],
        "dataset": dataset,
        "agreement_chart": blocks.agreement_chart(dataset),
        "round_table": blocks.round_table(dataset),
        "annotator_table": blocks.annotator_table(dataset),
        "reward_model": reward_model,
        "accuracy_chart": blocks.accuracy_chart(reward_model),
        "calibration": blocks.calibration_of(reward_model),
        "auc_table": blocks.auc_table(reward_model),
        "reward_models_table": blocks.reward_models_table(summary),
        "curves": [(stage, charts) for stage in stages if (charts := training_curves(stage))],
        "lineage": [(stage, sources) for stage in stages if (sources := _sources(stage, stages))],
        "figures": {} if is_pipeline else {key: one for key, one in summary.items() if _is_figure(one)},
        "next_commands": [one for one in summary.get("next_commands") or () if isinstance(one, str)],
    }


def _is_figure(value: Any) -> bool:
    return value is None or isinstance(value, str | bool) or formats.is_number(value)


def _read_stage(path: Path, *, name: str, kind: str, anchor: str, state: Any, seconds: Any) -> Stage:
    run = RunFolder(path) if (path / "run.json").exists() else None
    config_file, audit = path / "config.yaml", _read_json(path / "audit.json") or {}
    rows = tuple(run.read_metrics()) if run else ()
    if not formats.is_number(seconds):
        timed = [row[key] for row in rows for key in ("seconds", "evaluate/seconds") if formats.is_number(row.get(key))]
        seconds = sum(timed) if timed else None
    lines = audit.get("lines")
    return Stage(
        name=name,
        kind=kind,
        anchor=anchor,
        state=str(state or (run.state if run else "not started")),
        seconds=seconds,
        run=run,
        rows=rows,
        config=load_yaml(config_file) if config_file.exists() else {},
        config_text=config_file.read_text("utf-8") if config_file.exists() else "",
        audit=tuple(str(line) for line in lines) if isinstance(lines, list) else (),
    )


def _read_json(file: Path) -> dict[str, Any] | None:
    """The object in a file; None where there is no file."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise RunError(f"{file} holds a {type(value).__name__}, and not an object; the file was changed by hand.")
    return value


def _state_sentence(state: str, stages: Sequence[Stage]) -> str:
    num_finished = sum(stage.state == "finished" for stage in stages)
    return (
        f"The pipeline is {state}: {num_finished} of {len(stages)} stages are finished, and no policy is measured yet."
    )


def _progress_sentence(stage: Stage) -> str:
    """What a single run did to its first headline metric."""
    num_steps = stage.rows[-1]["step"] if stage.rows else 0
    if not num_steps:
        return f"The run is {stage.state}; no training step is on record."
    sentence = f"The run is {stage.state} after {num_steps:,} step{'s' if num_steps > 1 else ''}"
    for name in headline(stage):
        values = [row[name] for row in stage.rows if formats.is_number(row.get(name))]
        if len(values) > 1:
            change = f"went from {formats.number(values[0])} to {formats.number(values[-1])}"
            return f"{sentence}: {formats.words(name)} {change}."
    return f"{sentence}."


def _alarms(stages: Sequence[Stage]) -> list[StageAlarm]:
    """Stages that did not end well, then what each has on record, or what its evaluations give while it runs."""
    alarms = [
        StageAlarm(stage.name, None, f"This stage is {stage.state}" + (f": {stage.reason}" if stage.reason else "."))
        for stage in stages
        if stage.state in ("failed", "interrupted")
    ]
    for stage in stages:
        if stage.run is not None and stage.run.is_finished:
            recorded = read_alarms(stage.run.path)
            alarms += [StageAlarm(str(one["stage"]), one["step"], str(one["message"])) for one in recorded]
        else:
            alarms += [StageAlarm(stage.name, one.step, one.message) for one in measured_alarms(stage)]
    return alarms


def _by_stage(alarms: Sequence[StageAlarm]) -> dict[str, list[StageAlarm]]:
    """The alarms of each stage in their order: the later ones of a stage say little more than its first."""
    grouped: dict[str, list[StageAlarm]] = {}
    for alarm in alarms:
        grouped.setdefault(alarm.stage, []).append(alarm)
    return grouped


def _sources(stage: Stage, stages: Sequence[Stage]) -> list[Source]:
    """The stage's parents; one that lies in another stage's folder is shown as that stage."""
    sources = []
    for parent in stage.run.parents if stage.run else ():
        parts = PurePath(parent.path).parts
        fed_by = [other for other in stages if other is not stage and other.run and other.run.path.name in parts]
        if fed_by:
            sources.append(Source(parent.role, fed_by[-1].name, fed_by[-1].anchor))
        else:
            sources.append(Source(parent.role, parent.path, None))
    return sources
