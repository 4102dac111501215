"""A recipe as a chain of stages: each one is run, skipped because nothing it depends on changed, or taken up again."""

import fcntl
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.errors import Interrupted, ModelError, PrefloopError, RunError
from prefloop.runs.folder import RunFolder, json_text, replace_atomically
from prefloop.runs.model_card import complete_cards
from prefloop.runs.plan import (
    DONE,
    GOES_ON,
    Planned,
    check,
    file_fingerprint,
    fingerprint,
    plan,
    read_stage,
    references,
    stage_provenance,
)
from prefloop.runs.progress import Progress
from prefloop.runs.provenance import provenance
from prefloop.runs.settings import to_yaml
from prefloop.runs.stage_context import StageContext, parent_of, require_model
from prefloop.runs.stage_settings import AnyStage, Pipeline, Recipe
from prefloop.runs.stages_contrast import run_contrast
from prefloop.runs.stages_data import run_collect, run_prepare, run_world
from prefloop.runs.stages_evaluate import run_evaluate_policies, run_evaluate_reward
from prefloop.runs.stages_label import run_label
from prefloop.runs.stages_posts import run_prepare_posts
from prefloop.runs.stages_train import run_dpo, run_ppo, run_reward_modelling, run_sft
from prefloop.runs.summary import summarise

RUNNERS: dict[str, Callable[[Any, StageContext], None]] = {
    "world": run_world,
    "prepare": run_prepare,
    "prepare_posts": run_prepare_posts,
    "collect": run_collect,
    "contrast": run_contrast,
    "label": run_label,
    "sft": run_sft,
    "reward_modelling": run_reward_modelling,
    "dpo": run_dpo,
    "ppo": run_ppo,
    "evaluate_reward": run_evaluate_reward,
    "evaluate_policies": run_evaluate_policies,
}
SCHEMA_VERSION = 1
LOCK_FILE = ".lock"


@dataclass(frozen=True)
class _Work:
    """What every stage of one recipe shares; `stages` fills as they finish."""

    recipe: Pipeline | Recipe
    progress: Progress
    resume_command: str
    stages: dict[str, Path]

    def context(self, stage: AnyStage, name: str, run: RunFolder, *, resume: bool) -> StageContext:
        return StageContext(
            name=name,
            folder=run,
            seed=_seed(self.recipe, stage),
            progress=self.progress,
            precision=self.recipe.precision,
            resume_command=self.resume_command,
            stages=self.stages,
            default_model=self.recipe.model,
            default_data=self.recipe.data if isinstance(self.recipe, Pipeline) else None,
            resume=resume,
        )


def run_pipeline(pipeline: Pipeline, folder: Path, *, progress: Progress, resume_command: str) -> dict[str, Any]:
    """Runs the stages in `folder` and returns the summary, which is also written there.

    Raises SettingsError and RunError before anything is written for a plan that cannot be (see `plan`), ModelError for
    a model outside that cannot be had, RunError when another process is at work in the folder, Interrupted after
    Ctrl-C, and what a stage raises.
    """
    planned = plan(pipeline, folder)
    _require_outside_models(pipeline, planned)
    _require_own_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    work = _Work(pipeline, progress, resume_command, {})
    with _alone(folder):
        state = "failed"
        try:
            _write_record(pipeline, planned, folder, "running")
            replace_atomically(folder / "config.yaml", to_yaml(pipeline))
            if any(step.action != DONE for step in planned):
                # What stands there is about other stages; until the end, there is nothing to sum up.
                (folder / "summary.json").unlink(missing_ok=True)
            for number, step in enumerate(planned, start=1):
                progress.note(f"[{number}/{len(planned)}] {step.name} ({step.kind}): {step.action}")
                _run_stage(pipeline, step, folder, work)
                work.stages[step.name] = folder / step.name
                _write_record(pipeline, planned, folder, "running")
            state = "finished"
        except Interrupted:
            state = "interrupted"
            raise
        finally:
            _write_record(pipeline, planned, folder, state)
        summary = summarise(pipeline, folder)
        replace_atomically(folder / "summary.json", json_text(summary, indent=2) + "\n")
        complete_cards(pipeline, folder)
    return summary


def run_recipe(recipe: Recipe, folder: Path, *, progress: Progress, resume_command: str, resume: bool) -> None:
    """Runs the one training stage of a recipe in `folder`.

    Raises SettingsError for inputs that cannot be there; RunError when `resume` finds no run of these settings to go
    on with, or a new run finds the folder taken; Interrupted after Ctrl-C; and what the stage raises.
    """
    check(recipe)
    wanted = fingerprint(recipe, recipe.stage, {})
    work = _Work(recipe, progress, resume_command, {})
    if resume:
        run = RunFolder(folder)
        facts = stage_provenance(folder)
        if facts is None or facts["fingerprint"] != wanted:
            raise RunError(f"{folder} was made with other settings or other data: resume it with its own config.yaml")
        if run.is_finished:
            raise RunError(f"{folder} is finished: there is nothing to resume")
    else:
        run = RunFolder.create(folder, name=recipe.name, algorithm=recipe.stage.kind, seed=_seed(recipe, recipe.stage))
        run.write_provenance({**provenance(_outside_fingerprints(recipe, recipe.stage)), "fingerprint": wanted})
        run.write_config(to_yaml(recipe))
    with _alone(folder):
        _guarded(recipe.stage, work.context(recipe.stage, recipe.name, run, resume=resume))


def _run_stage(pipeline: Pipeline, step: Planned, folder: Path, work: _Work) -> None:
    if step.action == DONE:
        return
    place = folder / step.name
    stage = pipeline.stages[step.name]
    resume = step.action == GOES_ON
    run = RunFolder(place) if resume else _new_stage(pipeline, step, place, work.stages)
    earlier_seconds = _seconds(place) or 0.0
    start = time.monotonic()
    try:
        _guarded(stage, work.context(stage, step.name, run, resume=resume))
    except Interrupted:
        raise
    except PrefloopError as problem:
        raise type(problem)(f"stage {step.name}: {problem}") from problem
    finally:
        seconds = earlier_seconds + time.monotonic() - start
        replace_atomically(place / "wall_seconds.json", json_text({"seconds": seconds}) + "\n")
    work.progress.note(f"  {step.name} took {seconds:.1f} s")


def _new_stage(pipeline: Pipeline, step: Planned, place: Path, stages: dict[str, Path]) -> RunFolder:
    """An empty run folder for the stage; what an earlier run left there is removed."""
    doomed = place.with_name(f".removed-{place.name}")
    if doomed.exists():
        shutil.rmtree(doomed)
    if place.exists():
        # Renamed first, so that a crash in the middle leaves no half of a run.
        place.rename(doomed)
        shutil.rmtree(doomed)
    stage = pipeline.stages[step.name]
    found = [parent_of(one.text, one.role, stages) for one in references(stage, pipeline)]
    parents = list(dict.fromkeys(parent for parent in found if parent is not None))
    run = RunFolder.create(place, name=step.name, algorithm=step.kind, seed=_seed(pipeline, stage), parents=parents)
    facts = provenance(_outside_fingerprints(pipeline, stage))
    read = {name: RunFolder(stages[name]).run_id for name in step.parents}
    run.write_provenance({**facts, "fingerprint": step.fingerprint, "parent_runs": read})
    run.write_config(to_yaml(stage))
    return run


def _guarded(stage: AnyStage, context: StageContext) -> None:
    """Runs a stage; its folder says how it ended, whatever happens."""
    try:
        RUNNERS[stage.kind](stage, context)
    except KeyboardInterrupt:
        if context.folder.state == "running":
            context.folder.mark("interrupted", "stopped by the person")
        raise Interrupted(
            f"stopped at once in {context.name}; what was saved before is complete. To go on: {context.resume_command}"
        ) from None
    except Exception as error:
        if context.folder.state == "running":
            context.folder.mark("failed", f"{type(error).__name__}: {error}")
        raise
    context.folder.mark("finished")


def _seed(recipe: Pipeline | Recipe, stage: AnyStage) -> int:
    return stage.seed if stage.seed is not None else recipe.seed


def _outside_fingerprints(recipe: Pipeline | Recipe, stage: AnyStage) -> dict[str, str]:
    """The files and folders from outside that a stage reads."""
    found = [one for one in references(stage, recipe) if one.outside.exists()]
    return {one.text: file_fingerprint(one.outside) for one in found}


def _require_outside_models(pipeline: Pipeline, planned: Sequence[Planned]) -> None:
    """Raises ModelError now for models that a stage would look for in vain an hour later, with all their settings."""
    settings: dict[str, list[str]] = {}
    for step in planned:
        stage = pipeline.stages[step.name]
        for one in references(stage, pipeline):
            if step.action != DONE and one.is_model and one.stage not in pipeline.stages:
                own = getattr(stage, one.role, None) == one.text
                settings.setdefault(one.text, []).append(f"stages.{step.name}.{one.role}" if own else "model")
    problems: dict[str, ModelError] = {}
    for name in sorted(settings):
        try:
            require_model(name)
        except ModelError as problem:
            problems[name] = problem
    if problems:
        said = [str(problem) for problem in problems.values()]
        named = [one for name in problems if not Path(name).exists() for one in dict.fromkeys(settings[name])]
        if named and named != ["model"]:
            said[-1] += f" (here: {' '.join(f'{one}=path/to/folder' for one in named)})"
        raise ModelError("\n".join(said)) from next(iter(problems.values()))


def _require_own_folder(folder: Path) -> None:
    """Raises RunError for a folder in which files of somebody else would be written over."""
    if (folder / "pipeline.json").exists():
        return
    taken = [name for name in ("config.yaml", "summary.json", "report.html") if (folder / name).exists()]
    if taken:
        raise RunError(f"{folder} holds a {taken[0]} that is not of a pipeline: choose another folder with --output")


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, which ends with the process. Raises RunError when another process holds it."""
    with (folder / LOCK_FILE).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RunError(
                f"another prefloop is at work in {folder}: wait until it is done, or choose another folder"
            ) from None
        yield


def _seconds(place: Path) -> float | None:
    """What a stage took so far; None where nothing says so."""
    try:
        return json.loads((place / "wall_seconds.json").read_text(encoding="utf-8"))["seconds"]
    except FileNotFoundError:
        return None


def _write_record(pipeline: Pipeline, planned: Sequence[Planned], folder: Path, state: str) -> None:
    """pipeline.json: the stages and how they stand."""
    stages = [
        {
            "name": step.name,
            "kind": step.kind,
            "folder": step.name,
            "state": read_stage(folder / step.name).state if (folder / step.name / "run.json").exists() else "to do",
            "seconds": _seconds(folder / step.name),
            "parents": list(step.parents),
        }
        for step in planned
    ]
    record = {
        "schema_version": SCHEMA_VERSION,
        "name": pipeline.name,
        "description": pipeline.description,
        "seed": pipeline.seed,
        "state": state,
        "stages": stages,
    }
    replace_atomically(folder / "pipeline.json", json_text(record, indent=2) + "\n")
