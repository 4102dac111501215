"""Whether each shipped recipe runs on this machine as it stands, why not, and how long it took here before.

Only folders of this machine are looked at. A time is told only where a run of the very same recipe is at hand that this
machine has finished.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefloop.errors import PrefloopError, SettingsError
from prefloop.runs.plan import check, references
from prefloop.runs.settings import load_yaml, validate
from prefloop.runs.stage_settings import Pipeline

NO_MATTER = frozenset({"seed", "license", "next_commands", "description"})
"""Settings of a recipe that say nothing about how long it takes."""


def verdict(recipe_file: Path, *, hub_answers: bool | None, runs: Path, hardware: Mapping[str, Any]) -> str:
    """One line on a recipe. `hub_answers` is None where nobody asked; `runs` holds earlier runs.

    `hardware` is what this machine's provenance says of it.
    """
    pipeline = validate(Pipeline, load_yaml(recipe_file), origin=str(recipe_file))
    try:
        check(pipeline)
    except SettingsError as problem:
        return f"not here yet: {str(problem).splitlines()[1].strip()}"
    missing = _not_here(pipeline)
    took = _measured(pipeline, runs, hardware)
    if not missing:
        return "runs here, with no download" + took
    names = _listed(list(missing))
    if hub_answers:
        return f"runs here; downloads {names}" + took
    how = " ".join(f"{key}=PATH" for key in dict.fromkeys(key for keys in missing.values() for key in keys))
    why = (
        "needs the Hub (--hub asks whether it answers)"
        if hub_answers is None
        else "does not run here: it needs the Hub, which cannot be reached,"
    )
    return f"{why} for {names}; or give local copies: {how}"


def _not_here(pipeline: Pipeline) -> dict[str, list[str]]:
    """Models and data that are neither on the disk nor in the Hub's cache, each with the settings that name it."""
    missing: dict[str, list[str]] = {}
    for name, stage in pipeline.stages.items():
        for one in references(stage, pipeline):
            if one.stage in pipeline.stages or one.outside.exists() or _is_cached(one.text, is_model=one.is_model):
                continue
            owner = next((key for key in ("model", "data") if getattr(pipeline, key) == one.text), None)
            missing.setdefault(one.text, []).append(owner or f"stages.{name}.{one.role}")
    return missing


def _is_cached(name: str, *, is_model: bool) -> bool:
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.file_download import repo_folder_name

    folder = repo_folder_name(repo_id=name, repo_type="model" if is_model else "dataset")
    snapshots = Path(HF_HUB_CACHE) / folder / "snapshots"
    return snapshots.is_dir() and any(snapshots.iterdir())


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _measured(pipeline: Pipeline, runs: Path, hardware: Mapping[str, Any]) -> str:
    """How long the newest finished run of this very recipe took on hardware like this; empty without one."""
    found = []
    for record_file in runs.glob("*/pipeline.json"):
        try:
            record = json.loads(record_file.read_text(encoding="utf-8"))
            stored = validate(Pipeline, load_yaml(record_file.parent / "config.yaml"), origin="a run")
            seconds = [stage["seconds"] for stage in record["stages"]]
            used = [_hardware_of(record_file.parent / stage["folder"]) for stage in record["stages"]]
        except (PrefloopError, OSError, ValueError, KeyError):
            # Somebody else's folder, or one of another version: it says nothing about this machine.
            continue
        is_same = stored.model_dump(exclude=set(NO_MATTER)) == pipeline.model_dump(exclude=set(NO_MATTER))
        is_here = all(_alike(one, hardware) for one in used)
        if record["state"] == "finished" and None not in seconds and is_same and is_here:
            found.append((record_file.stat().st_mtime, sum(seconds), record_file.parent))
    if not found:
        return ""
    _, seconds, folder = max(found)
    return f"; took {_minutes(seconds)} here, in {folder}"


def _hardware_of(place: Path) -> Mapping[str, Any]:
    return json.loads((place / "provenance.json").read_text(encoding="utf-8"))["hardware"]


def _alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(one.get(name) == other.get(name) for name in ("num_cpus", "cuda_devices"))


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
