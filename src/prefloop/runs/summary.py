"""The headline figures of a whole pipeline, from what its stages wrote."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from prefloop.collection.agreement import agreement_report
from prefloop.records import Label
from prefloop.runs.folder import read_alarms
from prefloop.runs.stage_settings import EvaluatePolicies, EvaluateReward, Pipeline
from prefloop.runs.stage_settings import Label as LabelStage


def summarise(pipeline: Pipeline, folder: Path) -> dict[str, Any]:
    """What summary.json holds; a part is there when the pipeline has a stage for it."""
    summary: dict[str, Any] = {"name": pipeline.name, "seed": pipeline.seed}
    rounds = [name for name, stage in pipeline.stages.items() if isinstance(stage, LabelStage)]
    if rounds:
        summary["dataset"] = _dataset(folder, rounds, pipeline.seed)
    for name, stage in pipeline.stages.items():
        if isinstance(stage, EvaluateReward | EvaluatePolicies):
            found = json.loads((folder / name / "summary.json").read_text(encoding="utf-8"))
            if isinstance(stage, EvaluateReward) and stage.reported_as is not None:
                summary.setdefault("reward_models", {})[stage.reported_as] = found["reward_model"]
            else:
                summary |= {key: value for key, value in found.items() if value is not None}
    summary["alarms"] = [alarm for name in pipeline.stages for alarm in read_alarms(folder / name)]
    record = json.loads((folder / "pipeline.json").read_text(encoding="utf-8"))
    summary["wall_seconds"] = {stage["name"]: stage["seconds"] for stage in record["stages"]}
    summary["next_commands"] = [
        command.replace("{folder}", shlex.quote(str(folder))) for command in pipeline.next_commands
    ]
    return summary


def _dataset(folder: Path, rounds: list[str], seed: int) -> dict[str, Any]:
    """Agreement over all rounds of labels together, and of each."""
    figures, everything = [], []
    for number, name in enumerate(rounds, start=1):
        with (folder / name / "labels.jsonl").open(encoding="utf-8") as lines:
            labels = [Label(**json.loads(line)) for line in lines]
        # Rounds may ask about the same pair; to agreement these are two pairs.
        everything += [replace(one, pair_id=f"{name}/{one.pair_id}") for one in labels]
        shown = _agreement(labels, seed, sides=[_displayed_sides(folder / name)])
        figures.append({"round": number, "stage": name, **shown, **_people(folder / name)})
    sides = [_displayed_sides(folder / name) for name in rounds]
    return {**_agreement(everything, seed, sides=sides), "rounds": figures}


def _displayed_sides(place: Path) -> dict[str, float]:
    """Per annotator of a stage, the share of left by the side on the screen; any other left is only a name."""
    return json.loads((place / "agreement.json").read_text(encoding="utf-8"))["left_as_displayed_share"]


def _people(place: Path) -> dict[str, Any]:
    """How far the people among the annotators of a stage agree, where simulated readers stood beside them."""
    found = json.loads((place / "agreement.json").read_text(encoding="utf-8")).get("people")
    if found is None:
        return {}
    names = {"pairs": "num_compared_pairs", "agreement_rate": "percent_agreement"}
    names |= {"agreement_rate_ci95": "percent_agreement_ci95", "krippendorff_alpha": "krippendorff_alpha"}
    return {"people": {name: found[theirs] for name, theirs in names.items()}}


def _agreement(labels: list[Label], seed: int, *, sides: list[dict[str, float]]) -> dict[str, Any]:
    """The figures of some labels. The share of the left side is the mean over the rounds that an annotator was in."""
    report = agreement_report(labels, seed=seed)
    return {
        "pairs": report.num_pairs,
        "labels": report.num_labels,
        "annotators_per_pair": report.annotators_per_pair,
        "agreement_rate": report.percent_agreement,
        "agreement_rate_ci95": report.percent_agreement_ci95,
        "krippendorff_alpha": report.krippendorff_alpha,
        "krippendorff_alpha_ci95": report.krippendorff_alpha_ci95,
        "per_annotator": {
            name: {
                "num_labels": one.num_labels,
                "left_share": fmean(known) if (known := [share[name] for share in sides if name in share]) else None,
                "agreement_with_others": one.agreement_with_others,
            }
            for name, one in report.per_annotator.items()
        },
    }
