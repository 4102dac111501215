"""The plan of a pipeline: what every stage reads, whether that can be, and what is to be done about each stage.

A stage's fingerprint covers its settings, its seed, the fingerprints of the stages it reads from, and the files it
reads from outside. A finished stage with the same fingerprint is done; an interrupted training stage with the same
fingerprint goes on from its checkpoint; anything else is made anew, and so is whatever was made from it.
"""

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from prefloop.data.row_files import data_suffix
from prefloop.errors import RunError, SettingsError
from prefloop.runs.folder import RunFolder, json_text
from prefloop.runs.settings import load_yaml
from prefloop.runs.stage_settings import (
    AnyStage,
    Collect,
    Contrast,
    EvaluatePolicies,
    EvaluateReward,
    Judge,
    Label,
    Pipeline,
    Prepare,
    PreparePosts,
    Recipe,
    RewardStage,
    SFTStage,
    TrainingStage,
    World,
)

MODELS = frozenset({"model", "policy", "other_policy", "reference", "reward_model", "reward_models", "policies"})
"""Settings that name models: of stages, of folders, or of the Hub."""
FILES = frozenset(
    {
        "source",
        "sources",
        "train",
        "evaluate",
        "prompts",
        "evaluation_prompts",
        "demonstrations",
        "comparisons",
        "pairs",
        "train_pairs",
        "test",
        "agreement_of",
    }
)
"""Settings that name data: files of stages, files and folders from outside, or data sets of the Hub."""

POST_FILES = ("prompts", "demonstrations", "summaries", "pairs", "comparisons", "labelled")
"""What `prepare_posts` writes for each share, as <share>_<name>.jsonl."""

HASHED_BYTES = 1 << 26
"""Files from outside up to this size count by their contents, larger ones by size and time of change."""

DONE, GOES_ON = "done already", "goes on from its last checkpoint"


class Reference(NamedTuple):
    """An input as a stage's settings name it. `role` is the setting."""

    role: str
    text: str
    is_model: bool

    @property
    def stage(self) -> str:
        """The name of the stage, if it is one of a stage."""
        return self.text.partition("/")[0]

    @property
    def file(self) -> str:
        """What is read of that stage; empty for its model."""
        return self.text.partition("/")[2]

    @property
    def outside(self) -> Path:
        """Where it is, if it is from outside."""
        return Path(self.text).expanduser()


@dataclass(frozen=True)
class Planned:
    """One line of the plan: what will happen to a stage, and what it reads from."""

    name: str
    kind: str
    action: str
    parents: tuple[str, ...]
    fingerprint: str


def plan(pipeline: Pipeline, folder: Path) -> list[Planned]:
    """What `run_pipeline` would do, stage by stage.

    Raises SettingsError that names every stage whose inputs cannot be there, and RunError for a stage's folder whose
    records cannot be read.
    """
    check(pipeline)
    planned: list[Planned] = []
    fingerprints: dict[str, str] = {}
    for name, stage in pipeline.stages.items():
        named = [one.stage for one in references(stage, pipeline)]
        parents = tuple(one for one in dict.fromkeys(named) if one in fingerprints)
        fingerprints[name] = _as_it_was_made(folder / name, pipeline, stage, fingerprints)
        action = _action(folder, name, fingerprints[name], stage, [one for one in planned if one.name in parents])
        planned.append(Planned(name, stage.kind, action, parents, fingerprints[name]))
    return planned


def references(stage: AnyStage, recipe: Pipeline | Recipe) -> list[Reference]:
    """Every input that a stage's settings name, and what it takes from the recipe where it names none."""
    found = list(_named(stage))
    starts_new = isinstance(stage, SFTStage | RewardStage) and stage.from_scratch is not None
    if isinstance(stage, SFTStage | RewardStage) and stage.model is None and not starts_new and recipe.model:
        found.append(Reference("model", recipe.model, True))
    if isinstance(recipe, Pipeline) and isinstance(stage, Prepare) and stage.source is None and recipe.data:
        found.append(Reference("source", recipe.data, False))
    if isinstance(recipe, Pipeline) and isinstance(stage, PreparePosts) and not stage.sources and recipe.data:
        found.append(Reference("sources", recipe.data, False))
    return found


def _named(settings: AnyStage | Judge) -> Iterator[Reference]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Judge):
            yield from _named(value)
        elif name in MODELS | FILES and not (name == "reference" and isinstance(settings, EvaluatePolicies)):
            texts = [value] if isinstance(value, str) else value.values() if isinstance(value, dict) else value or ()
            yield from (Reference(name, text, name in MODELS) for text in texts)


# What can be


def check(recipe: Pipeline | Recipe) -> None:
    """Raises one SettingsError that names every input that no stage before and no file outside provides."""
    faults: list[str] = []
    stages: Mapping[str, AnyStage] = recipe.stages if isinstance(recipe, Pipeline) else {"stage": recipe.stage}
    before: dict[str, AnyStage] = {}
    for name, stage in stages.items():
        if not re.fullmatch(r"\w[\w.-]*", name):
            faults.append(f"{name!r} cannot name a folder: use letters, digits, '_', '-' and '.'")
        faults += [f"{name}: {fault}" for fault in _missing_settings(stage, recipe)]
        for one in references(stage, recipe):
            fault = _fault(one, stages, before)
            if fault:
                faults.append(f"{name}.{one.role}: {fault}")
        before[name] = stage
    if faults:
        head = f"{recipe.name} cannot run as it stands:"
        what = [f"what it is: {recipe.description}"] if isinstance(recipe, Pipeline) and recipe.description else []
        raise SettingsError("\n  ".join([head, *dict.fromkeys(faults), *what]))


def _fault(one: Reference, stages: Mapping[str, AnyStage], before: Mapping[str, AnyStage]) -> str | None:
    """Why an input cannot be there; None when it can."""
    if one.stage in before:
        writes = _writes(before[one.stage])
        is_there = (one.file in ("", *writes) or one.file.startswith("checkpoints/")) if "final" in writes else False
        if one.is_model:
            return _model_fault(one, before[one.stage]) if is_there else f"the stage {one.stage} trains no model"
        if one.file in writes:
            return None
        return f"the stage {one.stage} does not write {one.file or 'a file of that name'}; {_listed(one.stage, writes)}"
    if one.stage in stages:
        return f"the stage {one.stage} does not come before it; reorder the stages"
    if one.outside.exists() or not _needs_a_path(one):
        return None
    near = difflib.get_close_matches(one.stage, before, n=1)
    hint = f"did you mean the stage {near[0]}?" if near else "give an existing path, or a file of a stage before it"
    return f"there is no file or folder {one.text}; {hint}"


def _model_fault(one: Reference, stage: AnyStage) -> str | None:
    """Whether a policy is asked of a reward model, or the other way round."""
    if isinstance(stage, RewardStage) and one.role in ("policy", "other_policy", "policies", "reference"):
        return f"the stage {one.stage} trains a reward model, and a policy is a language model"
    if not isinstance(stage, RewardStage) and one.role in ("reward_model", "reward_models"):
        return f"the stage {one.stage} trains a language model, and no reward model"
    return None


def _needs_a_path(one: Reference) -> bool:
    """Whether a text can be no name on the Hub, which are `name` and `owner/name`; dumps are files."""
    if one.role == "sources":
        return True
    is_name = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", one.text) is not None
    return not is_name or (not one.is_model and data_suffix(Path(one.text)) is not None)


def _writes(stage: AnyStage) -> tuple[str, ...]:
    """What later stages may read of a stage."""
    if isinstance(stage, World):
        return ("demonstrations.jsonl", "prompts.jsonl", "held_out.jsonl")
    if isinstance(stage, Prepare):
        return tuple(f"{part}.jsonl" for part in stage.shares)
    if isinstance(stage, PreparePosts):
        return tuple(f"{part}_{what}.jsonl" for part in stage.shares for what in POST_FILES)
    if isinstance(stage, Collect):
        return ("comparisons.jsonl",)
    if isinstance(stage, Contrast):
        return ("preferences.jsonl", "accepted.jsonl", "rejected.jsonl", "comparisons.jsonl")
    if isinstance(stage, Label):
        return ("preferences.jsonl", "labels.jsonl", "agreement.json")
    return ("final",) if isinstance(stage, TrainingStage) else ()


def _listed(name: str, writes: tuple[str, ...]) -> str:
    return "it writes " + ", ".join(f"{name}/{file}" for file in writes) if writes else "it writes no data"


def _missing_settings(stage: AnyStage, recipe: Pipeline | Recipe) -> Iterator[str]:
    """What settings that are fine one by one lack together."""
    roles = {one.role for one in references(stage, recipe)}
    is_new = isinstance(stage, SFTStage | RewardStage) and stage.from_scratch is not None
    if isinstance(stage, SFTStage | RewardStage) and "model" not in roles and not is_new:
        yield "it names no model and the recipe has none; set model=PATH_OR_NAME"
    if is_new and "model" in roles:
        yield "both model and from_scratch are set; keep one"
    if isinstance(stage, Prepare) and "source" not in roles:
        yield "it names no source and the recipe has no data; set data=PATH_OR_NAME"
    if isinstance(stage, PreparePosts) and "sources" not in roles:
        yield "it names no dumps and the recipe has no data; set data=PATH to a file or folder of posts with replies"
    if isinstance(stage, EvaluateReward) and (stage.comparisons is None) == (stage.pairs is None):
        yield "it needs either comparisons or pairs to evaluate the reward model on"
    if isinstance(stage, EvaluateReward) and stage.label_agreement is not None and stage.agreement_of is not None:
        yield "both label_agreement and agreement_of are set; keep one"
    if isinstance(stage, EvaluatePolicies):
        strangers = [one for one in (stage.reference, *stage.greedy) if one not in stage.policies]
        for one in strangers:
            yield f"{one} is not among its policies, which are {', '.join(stage.policies)}"
        if stage.best_of_n is not None and stage.reward_model is None:
            yield "best_of_n needs a reward_model to pick the best by"
        yield from _name_clashes(stage)
    for one in (getattr(stage, "judge", None), getattr(stage, "second_judge", None)):
        if isinstance(one, Judge):
            yield from _missing_of_judge(one, stage)


def _missing_of_judge(judge: Judge, stage: AnyStage) -> Iterator[str]:
    if judge.kind == "text_classifier" and not (judge.train and judge.test):
        yield f"the judge {judge.name} is a text classifier: it needs train and test files"
    if judge.kind == "reward_model" and not (judge.reward_model and judge.test):
        yield f"the judge {judge.name} is a reward model: it needs reward_model, and pairs in test"
    if judge.kind == "reward_model" and not isinstance(stage, EvaluatePolicies):
        yield f"the judge {judge.name} compares with answers of the reference, which evaluate_policies alone has"


def _name_clashes(stage: EvaluatePolicies) -> Iterator[str]:
    derived = [f"{name}_greedy" for name in stage.greedy] + (["best_of_n"] if stage.best_of_n is not None else [])
    for name in derived:
        if name in stage.policies:
            yield f"a policy is called {name}, which is what a figure of its own will be called; rename it"


# Fingerprints


def fingerprint(
    recipe: Pipeline | Recipe, stage: AnyStage, known: Mapping[str, str], *, own: Mapping[str, Any] | None = None
) -> str:
    """See the module's docstring; `known` holds the fingerprints of the stages before, `own` the stage's settings."""
    settings = {
        "stage": stage.model_dump(mode="json") if own is None else own,
        "seed": stage.seed if stage.seed is not None else recipe.seed,
        "precision": None if isinstance(stage, World | Prepare | PreparePosts | Label) else recipe.precision,
    }
    inputs = []
    for one in references(stage, recipe):
        content = known.get(one.stage)
        if content is None and one.outside.exists():
            content = file_fingerprint(one.outside)
        inputs.append([one.role, one.text, content])
    return hashlib.sha256(json_text([settings, inputs]).encode()).hexdigest()


def _as_it_was_made(place: Path, pipeline: Pipeline, stage: AnyStage, known: Mapping[str, str]) -> str:
    """The fingerprint without settings that the version which made the stage did not have, where they say nothing.

    A setting that is new here stands at its default, and a default keeps what older versions did: that alone is no
    reason to make a stage again.
    """
    now = fingerprint(pipeline, stage, known)
    facts = stage_provenance(place) if (place / "run.json").exists() else None
    if facts is None or facts["fingerprint"] == now:
        return now
    try:
        before = load_yaml(place / "config.yaml")
    except SettingsError:
        return now
    then = fingerprint(pipeline, stage, known, own=_as_before(stage, before))
    return then if then == facts["fingerprint"] else now


def _as_before(stage: AnyStage, before: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's settings without those that were not there before and that nobody said anything about."""
    return _known_before(stage.model_dump(mode="json"), before, stage.model_dump(mode="json", exclude_defaults=True))


def _known_before(settings: Mapping[str, Any], before: Mapping[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in settings.items():
        if name not in before and name not in said:
            continue
        inside = before.get(name), said.get(name, {})
        if isinstance(value, Mapping) and all(isinstance(one, Mapping) for one in inside):
            kept[name] = _known_before(value, *inside)  # type: ignore[arg-type]  # just checked
        else:
            kept[name] = value
    return kept


def file_fingerprint(path: Path) -> str:
    """A hash of a file, or of all files below a folder."""
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if _counts(file))
    for file in files:
        facts = file.stat()
        digest.update(str(file.relative_to(path)).encode())
        if facts.st_size <= HASHED_BYTES:
            digest.update(file.read_bytes())
        else:
            digest.update(f"{facts.st_size}/{facts.st_mtime_ns}".encode())
    return digest.hexdigest()


def _counts(file: Path) -> bool:
    """Whether a file of a folder may change what a stage makes of it; the card of a model does not."""
    return file.is_file() and not (file.name == "README.md" and (file.parent / "config.json").is_file())


# What is to be done


def stage_provenance(place: Path) -> dict[str, Any] | None:
    """What provenance.json says of a stage; None where there is none. Raises RunError when it cannot be read."""
    file = place / "provenance.json"
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as problem:
        raise RunError(f"{file} cannot be read ({problem}); delete {place} to make it anew.") from problem
    if not isinstance(facts, dict) or not isinstance(facts.get("fingerprint"), str):
        raise RunError(f"{file} names no fingerprint; delete {place} to make it anew.")
    return facts


def read_stage(place: Path) -> RunFolder:
    """The run folder of a stage. Raises RunError, with the way out, when run.json cannot be read."""
    try:
        return RunFolder(place)
    except RunError as problem:
        raise RunError(f"{problem} Delete {place} to make it anew.") from problem


def _action(folder: Path, name: str, wanted: str, stage: AnyStage, parents: list[Planned]) -> str:
    """What is to be done about a stage."""
    place = folder / name
    if not (place / "run.json").exists():
        # A run that was killed while its folder was made leaves no more than the staged record.
        if place.exists() and any(file.name != ".run.json.staging" for file in place.iterdir()):
            raise RunError(f"{place} holds files that are no run of ours: choose another folder with --output")
        return "to do"
    run, facts = read_stage(place), stage_provenance(place)
    if facts is None:
        return "to do again, because it was not finished"
    changed = _changed_settings(place, stage) if facts["fingerprint"] != wanted else ""
    if changed:
        return f"to do again, because {changed}"
    made_again = [one.name for one in parents if one.action != DONE or not _was_read(facts, folder, one.name)]
    if made_again:
        return f"to do again, because {made_again[0]} is made again"
    if facts["fingerprint"] != wanted:
        return "to do again, because the seed, the precision or a file that it reads changed"
    if run.is_finished:
        missing = [output for output, path in run.outputs.items() if not path.exists()]
        return f"to do again, because its {missing[0]} is missing" if missing else DONE
    if isinstance(stage, TrainingStage) and run.checkpoints.exists():
        return GOES_ON
    return "to do again, because it was not finished"


def _changed_settings(place: Path, stage: AnyStage) -> str:
    """Which of a stage's own settings changed since it was made; empty where none did."""
    try:
        made_with = load_yaml(place / "config.yaml")
    except SettingsError as problem:
        return str(problem)
    before, now = _flat(made_with), _flat(_as_before(stage, made_with))
    changed = [
        f"{name} was {before[name]!r} and is {value!r}" if name in before else f"{name} is set to {value!r}"
        for name, value in now.items()
        if name not in before or before[name] != value
    ]
    # A group that was not set before is one name there and several here.
    changed += [
        f"{name} is no longer set" for name in before if not any(f"{one}.".startswith(f"{name}.") for one in now)
    ]
    return "; ".join(changed[:3]) + (f"; and {len(changed) - 3} more" if len(changed) > 3 else "")


def _flat(settings: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Nested settings by their dotted names."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{above}{name}.") if isinstance(value, Mapping) else {f"{above}{name}": value}
    return found


def _was_read(facts: Mapping[str, Any], folder: Path, parent: str) -> bool:
    """Whether it is this very run of its parent that a stage read."""
    return facts.get("parent_runs", {}).get(parent) == read_stage(folder / parent).run_id
