"""The card of a trained model: README.md in its final/, with the front matter that model hubs read.

A card is made from what lies in the folders of the run, of the runs before it and of its pipeline's evaluations. It is
written when training ends, and once more with the figures of the evaluations when the pipeline has its summary. What is
not on record is not in the card.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from safetensors import safe_open

from prefloop.runs.folder import RunFolder, read_alarms, replace_atomically
from prefloop.runs.lineage import Input, Made, beginning, choices, lineage, stage_and_recipe
from prefloop.runs.loading_example import loading_example
from prefloop.runs.plan import stage_provenance
from prefloop.runs.settings import to_yaml
from prefloop.runs.stage_settings import EvaluatePolicies, EvaluateReward, Pipeline, TrainingStage

CARD = "README.md"
DASH = "\u2013"

WHAT = {
    "sft": "a language model after supervised fine-tuning: it imitates demonstrations",
    "reward_modelling": "a reward model: it reads a prompt with an answer and gives one score, higher for better",
    "dpo": "a language model after direct preference optimisation (DPO) on pairs of a chosen and a rejected answer",
    "ppo": "a language model after proximal policy optimisation (PPO) against the scores of a reward model",
}
TAGS = {
    "sft": ["sft"],
    "reward_modelling": ["reward-model", "rlhf"],
    "dpo": ["dpo", "preference-optimization"],
    "ppo": ["ppo", "rlhf"],
}
WHO_CHOSE = {
    "simulated": "simulated annotators, who know the rubric of the embedded world; no person chose",
    "simulated_over_http": "simulated annotators, who know the rubric of the embedded world; no person chose",
    "people": "people",
    "votes": "votes and accepted answers of people elsewhere",
}


class _Evaluation(NamedTuple):
    """Where an evaluation lies, its settings, and what it found."""

    place: Path
    stage: EvaluateReward | EvaluatePolicies
    found: Mapping[str, Any]


def write_card(run: Path, folder: Path) -> None:
    """Writes the card of the run's model into `folder`, which holds the model: its final/, or what is to become it."""
    replace_atomically(folder / CARD, model_card(run, folder))


def complete_cards(pipeline: Pipeline, folder: Path) -> None:
    """Writes the cards of a finished pipeline's models anew, with the figures of its evaluations."""
    for name, stage in pipeline.stages.items():
        if isinstance(stage, TrainingStage):
            write_card(folder / name, folder / name / "final")


def model_card(run: Path, folder: Path) -> str:
    """The whole of README.md. Raises RunError or SettingsError where the run cannot be read."""
    made = lineage(run)
    this = made[-1]
    stage, recipe = stage_and_recipe(run)
    assert isinstance(stage, TrainingStage), "only training stages leave a model"
    evaluations = _evaluations(run, recipe) if isinstance(recipe, Pipeline) else []
    sections = [
        f"# {recipe.name}: {this.name}" if isinstance(recipe, Pipeline) else f"# {recipe.name}",
        _opening(made, folder),
        "## Data\n\n" + _data(run),
        "## Where it comes from\n\n" + _lineage(made),
        "## Figures\n\n" + (_figures(this.name, evaluations) or "No evaluation has measured this model."),
        _progress(run),
        "## Intended use\n\n" + _intended_use(this.kind),
        "## Limits\n\n" + _limits(made, run, evaluations),
        "## How to load it\n\n" + loading_example(folder, is_reward_model=this.kind == "reward_modelling"),
        f"## Settings\n\nSeed {this.seed}, {_versions(run)}.\n\n```yaml\n{to_yaml(stage)}```",
    ]
    front_matter = yaml.safe_dump(_front_matter(made, recipe.license), sort_keys=False, allow_unicode=True)
    return f"---\n{front_matter}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(made: list[Made], license_name: str | None) -> dict[str, Any]:
    """What hubs read. Only names that a hub can know are named as base and data."""
    is_reward_model = made[-1].kind == "reward_modelling"
    start = beginning(made)
    outside = [one for before in made for one in before.inputs if one.is_hub_name and not one.reference.is_model]
    facts = {
        "license": license_name or "unknown",
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if is_reward_model else "text-generation",
        "base_model": start.reference.text if isinstance(start, Input) and start.is_hub_name else None,
        "datasets": list(dict.fromkeys(one.reference.text for one in outside)),
        "tags": ["prefloop", *TAGS[made[-1].kind]],
    }
    return {name: value for name, value in facts.items() if value}


# What it is


def _opening(made: list[Made], folder: Path) -> str:
    start = beginning(made)
    if isinstance(start, Input):
        began = f"Its weights started from {_outside(start)}."
    elif start.fault:
        began = f"Its weights come from a run of which nothing more is known ({start.fault})."
    else:
        began = "Its weights started at random: nothing was pretrained."
    stage = made[-1].stage
    if isinstance(stage, TrainingStage) and stage.lora is not None:
        began += f" It was trained as low-rank adapters of rank {stage.lora.rank}, which are merged into the weights."
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    shape = f"{' '.join(config.get('architectures') or ['a network'])} of {_num_weights(folder):,} weights"
    return f"This is {WHAT[made[-1].kind]}. It was trained with prefloop. {began} It is a {shape}."


def _num_weights(folder: Path) -> int:
    num = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as weights:
            num += sum(math.prod(weights.get_slice(name).get_shape()) for name in weights.keys())  # noqa: SIM118
    return num


def _outside(one: Input) -> str:
    mark = f" (SHA-256 {one.fingerprint[:12]})" if one.fingerprint else ""
    return f"`{one.reference.text}`{mark}"


# What it learned from


def _data(run: Path) -> str:
    """Every account of audit.json, row by row; a policy trained by PPO has none, because it answers prompts."""
    file = run / "audit.json"
    if not file.exists():
        return "It learned from scores of its own answers; the prompts are named below."
    parts = json.loads(file.read_text(encoding="utf-8"))["parts"]
    lines = ["| data | rows read | used | dropped | tokens | learned from |", "|---|---:|---:|---:|---:|---:|"]
    for name, part in parts.items():
        reasons = "; ".join(f"{count:,} {reason}" for reason, count in part["dropped"].items())
        dropped = f"{sum(part['dropped'].values()):,}" + (f" ({reasons})" if reasons else "")
        lines.append(
            f"| {name} | {part['rows_read']:,} | {part['used']:,} | {dropped} | {part['total_tokens']:,} "
            f"| {part['supervised_share']:.1%} |"
        )
    cut = [f"{part['num_truncated']:,} rows of the {name} were cut" for name, part in parts.items()]
    cut = [words for words, part in zip(cut, parts.values(), strict=True) if part["num_truncated"]]
    return "\n".join(lines) + (f"\n\n{'; '.join(cut)}." if cut else "")


def _lineage(made: list[Made]) -> str:
    lines = ["Every run that this one builds on, in the order in which they were made:", ""]
    for number, one in enumerate(made, start=1):
        lines.append(f"{number}. **{one.name}** ({one.kind}){_read(one)}{_people(one)}")
    if not any(choices(one) for one in made):
        lines += ["", "No run among them collected choices."]
    return "\n".join(lines)


def _read(made: Made) -> str:
    if made.fault:
        return f": nothing more is known of it ({made.fault})"
    shown: dict[str, list[str]] = {}
    for one in made.inputs:
        text = _outside(one) if one.made_by is None else f"`{one.reference.text}`"
        shown.setdefault(one.role.replace("_", " "), []).append(text)
    return "; ".join(["", *(f"{role}: {', '.join(texts)}" for role, texts in shown.items())]).replace("; ", ": ", 1)


def _people(made: Made) -> str:
    """Who chose, how often, and how far they agree. Names of people stay out of a card that may be published."""
    found = choices(made)
    if found is None:
        return ""
    text = f". {found['num_labels']:,} choices on {found['num_pairs']:,} pairs"
    text += f" by {len(found['per_annotator'])} annotators: {WHO_CHOSE[found['by']]}"
    if found["by"] == "votes" and found["simulated_readers"]:
        text += f", and {found['simulated_readers']} simulated readers of the votes"
    if found["percent_agreement"] is not None:
        text += f". Two of them agree on {found['percent_agreement']:.1%}{_interval(found['percent_agreement_ci95'])}"
    return text


# Figures


def _evaluations(run: Path, pipeline: Pipeline) -> list[_Evaluation]:
    """The finished evaluations that read this very run."""
    this, found = RunFolder(run), []
    for name, stage in pipeline.stages.items():
        place = run.parent / name
        if not isinstance(stage, EvaluateReward | EvaluatePolicies) or not (place / "summary.json").exists():
            continue
        read = (stage_provenance(place) or {}).get("parent_runs", {})
        if RunFolder(place).is_finished and read.get(this.name) == this.run_id:
            found.append(_Evaluation(place, stage, json.loads((place / "summary.json").read_text(encoding="utf-8"))))
    return found


def _figures(name: str, evaluations: Sequence[_Evaluation]) -> str | None:
    parts = []
    for _, stage, found in evaluations:
        if isinstance(stage, EvaluatePolicies):
            wanted = [called for called, model in stage.policies.items() if model == name]
            if wanted:
                parts.append(_policy_table(stage, found, wanted))
        elif stage.reward_model == name:
            parts.append(_reward_lines(stage, found["reward_model"]))
    return "\n\n".join(parts) or None


def _policy_table(stage: EvaluatePolicies, found: Mapping[str, Any], wanted: Sequence[str]) -> str:
    """The model's rows, and that of the reference beside them."""
    judge = found["judge"]
    lines = [
        f"Judged by {judge['name']}{_of_judge(judge)}. KL is measured from {stage.reference}, in nats per answer.",
        "",
        "| policy | success | 95 % interval | n | KL | tokens | distinct-2 |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for called, row in found["policies"].items():
        stem = stage.reference if called == "best_of_n" else called.removesuffix("_greedy")
        if called != stage.reference and called not in wanted and stem not in wanted:
            continue
        kl = row["kl_from_reference"]
        shown = DASH if kl is None else ("≤ " if row.get("kl_is_bound") else "") + f"{kl:.2f}"
        lines.append(
            f"| {called} | {row['success_rate']:.1%} | {_bounds(row['ci95'])} | {row['n']:,} | {shown} "
            f"| {_number(row['mean_response_tokens'], '.1f')} | {_number(row['distinct_2'], '.3f')} |"
        )
    return "\n".join(lines)


def _of_judge(judge: Mapping[str, Any]) -> str:
    if judge.get("exact"):
        return ", which is exact"
    return f" (itself right in {judge['accuracy']:.1%}{_interval(judge['ci95'])} of {judge['n']:,})"


def _reward_lines(stage: EvaluateReward, row: Mapping[str, Any]) -> str:
    """Accuracy with its interval, beside what is easy to reach and what is possible."""
    verb = "Classifies" if "labels" in str(row["against"]) else "Orders"
    named = f" ({stage.reported_as})" if stage.reported_as else ""
    lines = [
        f"{verb} {row['accuracy']:.1%}{_interval(row['accuracy_ci95'])} of {row['n']:,} as {row['against']}{named}."
    ]
    names = {
        "length_only_accuracy": "Length alone reaches",
        "bag_of_words_accuracy": "A bag of words reaches",
        "accuracy_ceiling": "Label noise allows at most",
    }
    lines += [f"{words} {row[key]:.1%}." for key, words in names.items() if row.get(key) is not None]
    return " ".join(lines)


def _bounds(interval: Sequence[float] | None) -> str:
    return DASH if interval is None else f"{interval[0]:.1%} to {interval[1]:.1%}"


def _interval(interval: Sequence[float] | None) -> str:
    return "" if interval is None else f" [{_bounds(interval)}]"


def _progress(run: Path) -> str:
    """The held-out measurements before and after training, which carry no interval."""
    rows = RunFolder(run).read_metrics()
    measured = [row for row in rows if any(name.startswith("evaluate/") for name in row)]
    steps = max((row["step"] for row in rows), default=0)
    tokens = sum(row.get("num_tokens") or 0 for row in rows)
    text = f"## Training\n\n{steps:,} steps, {tokens:,.0f} tokens."
    names = [name for name in (measured[-1] if measured else {}) if name.startswith("evaluate/")]
    names = [name for name in names if name != "evaluate/seconds" and measured[-1][name] is not None]
    if not names:
        return text
    first, last = measured[0], measured[-1]
    lines = [
        f"| measured in training, without intervals | step {first['step']} | step {last['step']} |",
        "|---|---:|---:|",
    ]
    lines += [
        f"| {name.removeprefix('evaluate/')} | {_number(first.get(name))} | {_number(last[name])} |" for name in names
    ]
    return text + "\n\n" + "\n".join(lines)


def _number(value: float | None, form: str = ".4g") -> str:
    return DASH if value is None else format(value, form)


# What it is for


def _intended_use(kind: str) -> str:
    if kind == "reward_modelling":
        return (
            "Comparing answers to the same prompt: for training a policy, picking the best of several, or ranking "
            "one's own. A score means nothing by itself and cannot be compared across prompts."
        )
    return (
        "Learning and research on training from preferences, with prompts like those it was trained on. It is no "
        "product, and nobody tested what it says to other prompts."
    )


def _limits(
    made: list[Made],
    run: Path,
    evaluations: Sequence[_Evaluation],
) -> str:
    limits = ["No test looked for harmful, false or unfair answers."]
    collected = [found for found in map(choices, made) if found is not None]
    if collected and all(found["by"].startswith("simulated") for found in collected):
        limits.append("The preferences are a program's. What people would choose was not asked.")
    start = beginning(made)
    if isinstance(start, Made) and not start.fault:
        limits.append("It has read nothing but the data above: outside it, it knows no language and no fact.")
    if made[-1].kind == "reward_modelling":
        limits.append("A policy that is trained on its score finds what it overrates; watch it with another judge.")
    if evaluations:
        limits.append("The figures hold for the prompts and the judge that they were measured with.")
    limits += [f"An alarm of its training: {one['message']}" for one in read_alarms(run)]
    for place, stage, _ in evaluations:
        if isinstance(stage, EvaluateReward) and stage.reward_model == made[-1].name:
            limits += [f"An alarm of its evaluation: {one['message']}" for one in read_alarms(place)]
    return "\n".join(f"- {limit}" for limit in limits)


def _versions(run: Path) -> str:
    packages = (stage_provenance(run) or {}).get("packages", {})
    names = [name for name in ("prefloop", "torch", "transformers", "peft") if name in packages]
    return ", ".join(f"{name} {packages[name]}" for name in names)
