"""The card of a trained model: what it says is what lies in the folders, and its code runs in plain transformers."""

import contextlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from prefloop.records import Completion
from prefloop.rollouts.rewards import ModelReward
from prefloop.runs import loading_example
from prefloop.runs.lineage import Input, Made, beginning, lineage
from prefloop.runs.model_card import model_card
from prefloop.runs.pipeline import run_pipeline, run_recipe
from prefloop.runs.plan import file_fingerprint
from prefloop.runs.progress import Progress
from prefloop.runs.settings import validate
from prefloop.runs.stage_context import read_policy, read_reward_model
from prefloop.runs.stage_settings import Recipe
from toy_recipes import pipeline_of, tiny_gpt2, tutorials, world_and_sft


def run(recipe: dict[str, Any], folder: Path) -> None:
    run_pipeline(pipeline_of(recipe), folder, progress=Progress(quiet=True), resume_command="again")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("cards") / "out"
    run(tutorials() | {"license": "mit"}, folder)
    yield folder
    torch.set_num_threads(before)


def card(place: Path) -> str:
    return (place / "final" / "README.md").read_text(encoding="utf-8")


def front_matter(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---\n")[1])


def section(text: str, title: str) -> str:
    return text.partition(f"\n## {title}\n")[2].partition("\n## ")[0].strip()


def rows(text: str) -> dict[str, list[str]]:
    """The rows of the tables, by their first cell."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {one[0]: one[1:] for one in cells}


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


# What hubs read


@pytest.mark.parametrize(
    ("stage", "task", "tag"),
    [
        ("sft", "text-generation", "sft"),
        ("reward", "text-classification", "reward-model"),
        ("dpo", "text-generation", "dpo"),
        ("ppo", "text-generation", "ppo"),
    ],
)
def test_the_front_matter_says_what_a_hub_wants_to_know(finished: Path, stage: str, task: str, tag: str) -> None:
    facts = front_matter(card(finished / stage))
    assert (facts["license"], facts["library_name"], facts["pipeline_tag"]) == ("mit", "transformers", task)
    assert {"prefloop", tag} <= set(facts["tags"])
    # Made from random weights on data of this machine: a hub knows neither.
    assert not {"base_model", "datasets"} & facts.keys()


def test_names_of_the_hub_and_paths_are_told_apart() -> None:
    recipe = pipeline_of(
        {
            "name": "toy",
            "model": "owner/model",
            "data": "owner/data",
            "stages": {
                "data": {"kind": "prepare", "records": "demonstrations"},
                "sft": {"kind": "sft", "train": ["data/train.jsonl"]},
            },
        }
    )
    from prefloop.runs.model_card import _front_matter
    from prefloop.runs.plan import references

    data = tuple(Input(one, None, None) for one in references(recipe.stages["data"], recipe))
    model = tuple(Input(one, None, None) for one in references(recipe.stages["sft"], recipe) if one.is_model)
    known = tuple(Input(one.reference, None, "ab" * 32) for one in model)
    made = Made(Path("data"), "data", "prepare", 0, recipe.stages["data"], data)
    trained = Made(Path("sft"), "sft", "sft", 0, recipe.stages["sft"], model)
    facts = _front_matter([made, trained], None)
    assert (facts["base_model"], facts["datasets"], facts["license"]) == ("owner/model", ["owner/data"], "unknown")
    trained = Made(Path("sft"), "sft", "sft", 0, recipe.stages["sft"], known)
    assert "base_model" not in _front_matter([made, trained], None)


# What people read


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo"])
def test_the_rows_are_those_of_the_account(finished: Path, stage: str) -> None:
    parts = read_json(finished / stage / "audit.json")["parts"]
    shown = rows(section(card(finished / stage), "Data"))
    for name, part in parts.items():
        assert shown[name][:2] == [f"{part['rows_read']:,}", f"{part['used']:,}"]
        assert shown[name][2].startswith(f"{sum(part['dropped'].values()):,}")


def test_the_lineage_goes_back_to_the_choices(finished: Path) -> None:
    text = section(card(finished / "ppo"), "Where it comes from")
    assert re.findall(r"^\d+\. \*\*(\w+)\*\*", text, flags=re.MULTILINE) == [
        "world",
        "sft",
        "pairs",
        "labels",
        "reward",
        "ppo",
    ]
    figures = read_json(finished / "labels" / "agreement.json")
    assert f"{figures['num_labels']:,} choices on {figures['num_pairs']:,} pairs by 3 annotators" in text
    assert "no person chose" in text
    assert f"agree on {figures['percent_agreement']:.1%}" in text
    assert not any(name in text for name in figures["per_annotator"])
    assert "preferences are a program's" in section(card(finished / "ppo"), "Limits")


def test_a_model_of_demonstrations_alone_claims_no_choices(finished: Path) -> None:
    assert "No run among them collected choices." in card(finished / "sft")
    assert "preferences" not in section(card(finished / "sft"), "Limits")


def test_the_figures_are_those_of_the_evaluation(finished: Path) -> None:
    policies = read_json(finished / "policies" / "summary.json")["policies"]
    shown = rows(section(card(finished / "ppo"), "Figures"))
    assert shown.keys() - {"policy", "---"} - {name for name in shown if set(name) <= set("-:")} == {"sft", "ppo"}
    for name in ("sft", "ppo"):
        row = policies[name]
        low, high = row["ci95"]
        assert shown[name][:3] == [f"{row['success_rate']:.1%}", f"{low:.1%} to {high:.1%}", f"{row['n']:,}"]
        assert shown[name][3] == f"{row['kl_from_reference']:.2f}"
    own = rows(section(card(finished / "sft"), "Figures"))
    assert {"sft_greedy", "best_of_n"} <= own.keys()
    assert own["best_of_n"][3].startswith("≤ ")
    reward = read_json(finished / "reward_report" / "summary.json")["reward_model"]
    low, high = reward["accuracy_ci95"]
    words = f"Orders {reward['accuracy']:.1%} [{low:.1%} to {high:.1%}] of {reward['n']:,} as the gold order."
    assert words in section(card(finished / "reward"), "Figures")


def test_without_an_evaluation_there_are_no_figures(tmp_path: Path) -> None:
    run(world_and_sft(), tmp_path / "out")
    assert section(card(tmp_path / "out" / "sft"), "Figures") == "No evaluation has measured this model."
    assert front_matter(card(tmp_path / "out" / "sft"))["license"] == "unknown"


def test_an_evaluation_of_an_earlier_run_is_not_this_model_s(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "out"))
    facts = read_json(copy / "policies" / "provenance.json")
    facts["parent_runs"]["ppo"] = "another"
    (copy / "policies" / "provenance.json").write_text(json.dumps(facts), encoding="utf-8")
    assert "No evaluation has measured" in model_card(copy / "ppo", copy / "ppo" / "final")
    assert "Judged by" in model_card(copy / "dpo", copy / "dpo" / "final")


def test_the_weights_are_counted(finished: Path) -> None:
    policy, _ = read_policy(str(finished / "ppo" / "final"), precision="float32")
    num = sum(parameter.numel() for parameter in policy.parameters().values())
    assert f"LlamaForCausalLM of {num:,} weights" in card(finished / "ppo")


def test_an_alarm_of_the_training_is_a_limit(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "out"))
    (copy / "ppo" / "alarms.json").write_text(
        json.dumps([{"stage": "ppo", "step": 2, "message": "the judge fell"}]), encoding="utf-8"
    )
    assert "the judge fell" in section(model_card(copy / "ppo", copy / "ppo" / "final"), "Limits")


# Where it comes from


def test_a_model_of_another_pipeline_is_followed_into_it(finished: Path, tmp_path: Path) -> None:
    recipe = {
        "name": "further",
        "model": str(finished / "dpo" / "final"),
        "stage": {
            "kind": "sft",
            "max_length": 128,
            "train": [str(finished / "world" / "demonstrations.jsonl")],
            "training": {"num_epochs": 0.05, "batch_size": 4},
        },
    }
    place = tmp_path / "further"
    checked = validate(Recipe, recipe, origin="the test")
    run_recipe(checked, place, progress=Progress(quiet=True), resume_command="again", resume=False)
    assert [one.name for one in lineage(place)] == ["world", "sft", "pairs", "labels", "dpo", "further"]
    assert "started at random" in card(place)
    assert "choices on" in card(place)


def test_a_model_from_elsewhere_is_named_with_its_fingerprint(tmp_path: Path) -> None:
    model = tiny_gpt2(tmp_path / "model")
    recipe = world_and_sft()
    recipe["stages"]["sft"] |= {
        "from_scratch": None,
        "model": str(model),
        "prompt_format": "plain",
        "too_long": "truncate",
    }
    run(recipe, tmp_path / "out")
    assert f"started from `{model}` (SHA-256 {file_fingerprint(model)[:12]})" in card(tmp_path / "out" / "sft")
    assert "knows no language" not in card(tmp_path / "out" / "sft")


def test_a_run_that_cannot_be_read_is_said_to_be_so(finished: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished, tmp_path / "out"))
    (copy / "sft" / "run.json").write_text('{"schema_version": 99}', encoding="utf-8")
    text = model_card(copy / "dpo", copy / "dpo" / "final")
    assert "nothing more is known of it" in text
    assert "schema version 99" in text
    assert "started at random" not in text
    start = beginning(lineage(copy / "dpo"))
    assert isinstance(start, Made)
    assert start.fault is not None


def test_a_card_is_no_reason_to_train_again(tmp_path: Path) -> None:
    model = tiny_gpt2(tmp_path / "model")
    before = file_fingerprint(model)
    (model / "README.md").write_text("a card", encoding="utf-8")
    assert file_fingerprint(model) == before
    (model / "config.json").write_text("{}", encoding="utf-8")
    assert file_fingerprint(model) != before


# How to load it


def executed(place: Path) -> tuple[dict[str, Any], str]:
    """The names and the output of the card's code."""
    code = re.findall(r"```python\n(.*?)```", card(place), flags=re.DOTALL)
    assert len(code) == 1
    names: dict[str, Any] = {}
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code[0].replace("path/to/final", str(place / "final")), names)
    return names, output.getvalue()


@pytest.mark.parametrize("layout", ["chat", "plain", "raw"])
def test_the_code_for_a_policy_runs_and_lays_the_prompt_out_as_in_training(tmp_path: Path, layout: str) -> None:
    recipe = world_and_sft()
    recipe["stages"]["sft"] |= {"prompt_format": layout}
    run(recipe, tmp_path / "out")
    names, output = executed(tmp_path / "out" / "sft")
    _, text_format = read_policy(str(tmp_path / "out" / "sft" / "final"), precision="float32")
    assert tuple(names["ids"]) == text_format.prompt_ids(loading_example.QUESTION)
    assert output


@pytest.mark.parametrize("layout", ["chat", "plain", "raw"])
@pytest.mark.parametrize("architecture", ["llama", "distilbert"])
def test_the_code_for_a_reward_model_gives_our_score(
    finished: Path, tmp_path: Path, layout: str, architecture: str
) -> None:
    if (architecture, layout) == ("distilbert", "chat"):
        layout = "auto"
    recipe = {
        "name": "scores",
        "seed": 1,
        "stage": {
            "kind": "reward_modelling",
            "from_scratch": {
                "architecture": architecture,
                "hidden_size": 16,
                "num_layers": 1,
                "num_heads": 2,
                "max_length": 160,
            },
            "prompt_format": layout,
            "max_length": 150,
            "too_long": "truncate",
            "train": [str(finished / "labels" / "preferences.jsonl")],
            "training": {"num_epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0},
        },
    }
    place = tmp_path / "scores"
    checked = validate(Recipe, recipe, origin="the test")
    run_recipe(checked, place, progress=Progress(quiet=True), resume_command="again", resume=False)
    _, output = executed(place)
    source = ModelReward(*read_reward_model(str(place / "final"), precision="float32"))
    score = source.score([loading_example.QUESTION], [Completion(loading_example.ANSWER, ended=True)])[0]
    assert score != 0.0
    assert float(output) == pytest.approx(score, abs=1e-5)
