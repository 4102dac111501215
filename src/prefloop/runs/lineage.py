"""Where a trained model comes from: the runs before it, back to the answers that people gave, read from their folders.

Everything is read from disk, so the lineage of a run can be told again whenever its folder is at hand. A model or file
from outside that lies in another run's folder is followed into that run.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefloop.contracts import Settings
from prefloop.errors import PrefloopError
from prefloop.runs.folder import RunFolder
from prefloop.runs.plan import Reference, references, stage_provenance
from prefloop.runs.settings import load_yaml, validate
from prefloop.runs.stage_settings import AnyStage, Label, Pipeline, PPOStage, Recipe

STARTS_FROM = ("model", "policy")
"""Roles of the model that training starts from; other roles only steer it."""


class _StoredStage(Settings):
    stage: AnyStage


@dataclass(frozen=True)
class Input:
    """What a run read. `made_by` is the folder of the run that made it, None for what comes from elsewhere; then
    `fingerprint` is its SHA-256 where it was a file or folder, and None for a name on the Hub.
    """

    reference: Reference
    made_by: Path | None
    fingerprint: str | None

    @property
    def role(self) -> str:
        return self.reference.role

    @property
    def is_hub_name(self) -> bool:
        return self.made_by is None and self.fingerprint is None


@dataclass(frozen=True)
class Made:
    """One run of a lineage. `fault` says why nothing more is known of it; then it has no stage."""

    place: Path
    name: str
    kind: str
    seed: int | None
    stage: AnyStage | None
    inputs: tuple[Input, ...] = ()
    fault: str | None = None


def lineage(place: Path) -> list[Made]:
    """The run in `place` and every run it comes from, each after those that it read from; itself last.

    Raises RunError or SettingsError where the run itself cannot be read. A run before it that cannot be read (made by
    another version, say) is listed with its fault.
    """
    found: dict[Path, Made] = {}
    _add(_read(place), found)
    return list(found.values())


def _add(made: Made, found: dict[Path, Made]) -> None:
    for parent in dict.fromkeys(one.made_by for one in made.inputs if one.made_by is not None):
        if parent.resolve() not in found:
            _add(_read_or_fault(parent), found)
    found[made.place.resolve()] = made


def _read_or_fault(place: Path) -> Made:
    try:
        return _read(place)
    except PrefloopError as problem:
        return Made(place, place.name, "unknown", None, None, fault=str(problem).splitlines()[0])


def _read(place: Path) -> Made:
    run = RunFolder(place)
    stage, recipe = stage_and_recipe(place)
    # The judge that watches PPO decides nothing, so what it reads is no ancestor.
    learner = stage.model_copy(update={"judge": None}) if isinstance(stage, PPOStage) else stage
    facts = stage_provenance(place) or {}
    inputs = tuple(_input(one, place, recipe, facts) for one in references(learner, recipe))
    return Made(place, run.name, stage.kind, run.seed, stage, inputs)


def stage_and_recipe(place: Path) -> tuple[AnyStage, Pipeline | Recipe]:
    """The settings of a run and of the recipe that it is part of, as they are stored.

    Raises SettingsError where they cannot be read.
    """
    stored = load_yaml(place / "config.yaml")
    if "stage" in stored:
        recipe = validate(Recipe, stored, origin=str(place / "config.yaml"))
        return recipe.stage, recipe
    stage = validate(_StoredStage, {"stage": stored}, origin=str(place / "config.yaml")).stage
    whole = place.parent / "config.yaml"
    return stage, validate(Pipeline, load_yaml(whole), origin=str(whole))


def _input(one: Reference, place: Path, recipe: Pipeline | Recipe, facts: dict[str, Any]) -> Input:
    if isinstance(recipe, Pipeline) and one.stage in recipe.stages:
        return Input(one, place.parent / one.stage, None)
    # .../<run>/final, .../<run>/<file> and .../<run>/checkpoints/<step>
    runs = [folder for folder in one.outside.parents[:2] if (folder / "run.json").is_file()]
    return Input(one, runs[0] if runs else None, facts.get("data", {}).get(one.text))


def beginning(lineage: list[Made]) -> Input | Made:
    """Where the last run's weights began: the model from elsewhere, or the run that made them new.

    A run that cannot be read (see `lineage`) hides what lies before it, and is then returned with its fault.
    """
    by_place = {made.place.resolve(): made for made in lineage}
    made = lineage[-1]
    while True:
        before = next((one for one in made.inputs if one.role in STARTS_FROM), None)
        if before is None:
            return made
        if before.made_by is None:
            return before
        made = by_place[before.made_by.resolve()]


def choices(made: Made) -> dict[str, Any] | None:
    """What agreement.json of a label stage says, with `by` (who chose) added; None for any other run."""
    if not isinstance(made.stage, Label):
        return None
    figures = json.loads((made.place / "agreement.json").read_text(encoding="utf-8"))
    return {**figures, "by": made.stage.by, "simulated_readers": made.stage.simulated_readers}
