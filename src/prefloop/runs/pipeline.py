"""A recipe as a chain of stages: each one is run, skipped because nothing it depends on changed, or taken up again.

A stage's fingerprint covers its settings, its seed, the fingerprints of the stages it reads from, and the files it reads
from outside. A finished stage with the same fingerprint is skipped; an interrupted training stage with the same
fingerprint goes on from its checkpoint; anything else is made anew.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.errors import PrefloopError, RunError, SettingsError
from prefloop.runs.folder import Parent, RunFolder, json_text, replace_atomically
from prefloop.runs.progress import Progress
from prefloop.runs.provenance import provenance
from prefloop.runs.settings import to_yaml
from prefloop.runs.stage_context import StageContext, parent_of
from prefloop.runs.stage_settings import AnyStage, Pipeline, Recipe, TrainingStage
from prefloop.runs.stages_data import run_collect, run_label, run_prepare, run_world
from prefloop.runs.stages_evaluate import run_evaluate_policies, run_evaluate_reward
from prefloop.runs.stages_train import run_dpo, run_ppo, run_reward_modelling, run_sft
from prefloop.runs.summary import summarise

RUNNERS: dict[str, Callable[[Any, StageContext], None]] = {
    "world": run_world,
    "prepare": run_prepare,
    "collect": run_collect,
    "label": run_label,
    "sft": run_sft,
    "reward_modelling": run_reward_modelling,
    "dpo": run_dpo,
    "ppo": run_ppo,
    "evaluate_reward": run_evaluate_reward,
    "evaluate_policies": run_evaluate_policies,
}
SCHEMA_VERSION = 1
HASHED_BYTES = 1 << 26
"""Files from outside up to this size count by their contents, larger ones by size and time of change."""


@dataclass(frozen=True)
class Planned:
    """One line of the plan: what will happen to a stage, and what it reads from."""

    name: str
    kind: str
    action: str
    parents: tuple[str, ...]
    fingerprint: str


def plan(pipeline: Pipeline, folder: Path) -> list[Planned]:
    """What `run_pipeline` would do, stage by stage. Raises SettingsError for a stage that reads from a later one."""
    planned: list[Planned] = []
    fingerprints: dict[str, str] = {}
    for name, stage in pipeline.stages.items():
        named = list(dict.fromkeys(text.partition("/")[0] for text in _references(stage)))
        ahead = [one for one in named if one in pipeline.stages and one not in fingerprints]
        if ahead:
            raise SettingsError(
                f"stage {name} reads from {', '.join(ahead)}, which does not come before it: reorder the stages"
            )
        parents = tuple(one for one in named if one in fingerprints)
        fingerprints[name] = _fingerprint(pipeline, stage, fingerprints)
        action = _action(folder / name, fingerprints[name], stage)
        planned.append(Planned(name, stage.kind, action, parents, fingerprints[name]))
    return planned


def run_pipeline(pipeline: Pipeline, folder: Path, *, progress: Progress, resume_command: str) -> dict[str, Any]:
    """Runs the stages in `folder` and returns the summary, which is also written there."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_atomically(folder / "config.yaml", to_yaml(pipeline))
    planned = plan(pipeline, folder)
    stages: dict[str, Path] = {}
    state = "failed"
    try:
        for number, step in enumerate(planned, start=1):
            progress.note(f"[{number}/{len(planned)}] {step.name} ({step.kind}): {step.action}")
            _run_stage(pipeline, step, folder, stages, progress, resume_command)
            stages[step.name] = folder / step.name
            _write_record(pipeline, planned, folder, "running")
        state = "finished"
    except KeyboardInterrupt:
        state = "interrupted"
        raise
    except PrefloopError as error:
        state = "interrupted" if error.exit_code == 130 else "failed"
        raise
    finally:
        _write_record(pipeline, planned, folder, state)
    summary = summarise(pipeline, folder)
    replace_atomically(folder / "summary.json", json_text(summary, indent=2) + "\n")
    return summary


def run_recipe(recipe: Recipe, folder: Path, *, progress: Progress, resume_command: str, resume: bool) -> None:
    """Runs the one training stage of a recipe in `folder`."""
    fingerprint = _fingerprint(recipe, recipe.stage, {})
    if resume:
        run = RunFolder(folder)
        known = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["fingerprint"]
        if known != fingerprint:
            raise RunError(f"{folder} was made with other settings or other data: resume it with its own config.yaml")
        if run.is_finished:
            raise RunError(f"{folder} is finished: there is nothing to resume")
    else:
        run = RunFolder.create(folder, name=recipe.name, algorithm=recipe.stage.kind, seed=recipe.seed)
        run.write_provenance({**provenance({}), "fingerprint": fingerprint})
        run.write_config(to_yaml(recipe))
    context = _context(recipe, recipe.stage, recipe.name, run, {}, progress, resume_command, resume=resume)
    _guarded(recipe.stage, context)


def _run_stage(
    pipeline: Pipeline,
    step: Planned,
    folder: Path,
    stages: dict[str, Path],
    progress: Progress,
    resume_command: str,
) -> None:
    if step.action == "done already":
        return
    place = folder / step.name
    stage = pipeline.stages[step.name]
    resume = step.action.startswith("goes on")
    if resume:
        run = RunFolder(place)
    else:
        if place.exists():
            shutil.rmtree(place)
        found = [parent_of(text, "input", stages) for text in _references(stage)]
        parents: list[Parent] = list(dict.fromkeys(parent for parent in found if parent is not None))
        seed = stage.seed if stage.seed is not None else pipeline.seed
        run = RunFolder.create(place, name=step.name, algorithm=step.kind, seed=seed, parents=parents)
        outside = {text: _file_fingerprint(Path(text)) for text in _references(stage) if Path(text).exists()}
        run.write_provenance({**provenance(outside), "fingerprint": step.fingerprint})
        run.write_config(to_yaml(stage))
    context = _context(pipeline, stage, step.name, run, stages, progress, resume_command, resume=resume)
    start = time.monotonic()
    _guarded(stage, context)
    seconds = time.monotonic() - start
    replace_atomically(place / "wall_seconds.json", json_text({"seconds": seconds}) + "\n")
    progress.note(f"  {step.name} took {seconds:.1f} s")


def _guarded(stage: AnyStage, context: StageContext) -> None:
    """Runs a stage; its folder says how it ended, whatever happens."""
    try:
        RUNNERS[stage.kind](stage, context)
    except KeyboardInterrupt:
        context.folder.mark("interrupted", "stopped by the person")
        raise
    except Exception as error:
        if context.folder.state == "running":
            context.folder.mark("failed", f"{type(error).__name__}: {error}")
        raise
    context.folder.mark("finished")


def _context(
    recipe: Pipeline | Recipe,
    stage: AnyStage,
    name: str,
    run: RunFolder,
    stages: dict[str, Path],
    progress: Progress,
    resume_command: str,
    *,
    resume: bool,
) -> StageContext:
    return StageContext(
        name=name,
        folder=run,
        seed=stage.seed if stage.seed is not None else recipe.seed,
        progress=progress,
        precision=recipe.precision,
        resume_command=resume_command,
        stages=stages,
        default_model=recipe.model,
        default_data=recipe.data,
        resume=resume,
    )


# Fingerprints

NOT_REFERENCES = {"kind", "records", "columns", "training", "split", "shares", "from_scratch", "lora"}
"""Fields of stages that never name a stage or a file."""


def _references(stage: AnyStage) -> list[str]:
    """The texts of a stage's settings that may name another stage or a file."""
    values = {name: value for name, value in stage.model_dump().items() if name not in NOT_REFERENCES}
    return list(_texts(values))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for below in value.values():
            yield from _texts(below)
    elif isinstance(value, list | tuple):
        for below in value:
            yield from _texts(below)


def _fingerprint(recipe: Pipeline | Recipe, stage: AnyStage, known: dict[str, str]) -> str:
    """See the module's docstring."""
    settings = {
        "stage": stage.model_dump(mode="json"),
        "seed": stage.seed if stage.seed is not None else recipe.seed,
        "precision": recipe.precision,
        "model": recipe.model,
        "data": recipe.data,
    }
    inputs = {}
    for text in [*_references(stage), *[t for t in (recipe.model, recipe.data) if t]]:
        first = text.partition("/")[0]
        if first in known:
            inputs[text] = known[first]
        elif Path(text).exists():
            inputs[text] = _file_fingerprint(Path(text))
    return hashlib.sha256(json_text([settings, sorted(inputs.items())]).encode()).hexdigest()


def _file_fingerprint(path: Path) -> str:
    """A hash of a file, or of all files below a folder."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
    for file in files:
        facts = file.stat()
        digest.update(str(file.relative_to(path)).encode())
        if facts.st_size <= HASHED_BYTES:
            digest.update(file.read_bytes())
        else:
            digest.update(f"{facts.st_size}/{facts.st_mtime_ns}".encode())
    return digest.hexdigest()


def _action(place: Path, fingerprint: str, stage: AnyStage) -> str:
    """What is to be done about a stage."""
    if not (place / "run.json").exists() or not (place / "provenance.json").exists():
        return "to do"
    run = RunFolder(place)
    known = json.loads((place / "provenance.json").read_text(encoding="utf-8")).get("fingerprint")
    if known != fingerprint:
        return "to do again, because what it depends on changed"
    if run.is_finished:
        return "done already"
    if isinstance(stage, TrainingStage) and run.checkpoints.exists():
        return "goes on from its last checkpoint"
    return "to do again, because it was not finished"


def _write_record(pipeline: Pipeline, planned: Sequence[Planned], folder: Path, state: str) -> None:
    """pipeline.json: the stages and how they stand."""
    stages = []
    for step in planned:
        place = folder / step.name
        reached = RunFolder(place).state if (place / "run.json").exists() else "to do"
        wall = place / "wall_seconds.json"
        seconds = json.loads(wall.read_text(encoding="utf-8"))["seconds"] if wall.exists() else None
        stages.append(
            {
                "name": step.name,
                "kind": step.kind,
                "folder": step.name,
                "state": reached,
                "seconds": seconds,
                "parents": list(step.parents),
            }
        )
    record = {
        "schema_version": SCHEMA_VERSION,
        "name": pipeline.name,
        "description": pipeline.description,
        "seed": pipeline.seed,
        "state": state,
        "stages": stages,
    }
    replace_atomically(folder / "pipeline.json", json_text(record, indent=2) + "\n")
