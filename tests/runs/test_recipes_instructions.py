"""The two recipes that begin with instructions, from end to end on toy data and a toy GPT-2."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefloop.cli.recipes import shipped_recipes
from prefloop.errors import DataError, ModelError, SettingsError
from prefloop.runs.pipeline import run_pipeline
from prefloop.runs.progress import Progress
from prefloop.runs.settings import load_yaml, merge, parse_overrides, validate
from prefloop.runs.stage_settings import Pipeline
from toy_recipes import QUESTIONS, dialogues_file, instructions_file, tiny_gpt2

LORA_STAGES = ("sft", "reward", "judge", "ppo")


def recipe_of(name: str, *overrides: str) -> Pipeline:
    path = shipped_recipes()[name]
    return validate(Pipeline, merge(load_yaml(path), parse_overrides(list(overrides))), origin=str(path))


def run(pipeline: Pipeline, folder: Path) -> dict[str, Any]:
    return run_pipeline(pipeline, folder, progress=Progress(), resume_command="again")


def with_defaults(given: tuple[str, ...], defaults: dict[str, str]) -> list[str]:
    """The overrides given, and the defaults of keys that they leave alone."""
    keys = {one.partition("=")[0] for one in given}
    return [*given, *(f"{key}={value}" for key, value in defaults.items() if key not in keys)]


def alpaca(tmp_path: Path, *more: str) -> Pipeline:
    data = instructions_file(tmp_path / "instructions.jsonl", num_rows=120)
    small = [
        "stages.data.shares.sft=0.4",
        "stages.data.shares.judge=0.2",
        "stages.data.shares.test=0.1",
        "stages.sft.training.num_epochs=1",
        "stages.sft.training.batch_size=16",
        *(
            f"stages.{stage}.{setting}"
            for stage in ("reward", "judge")
            for setting in (
                "model=null",
                "from_scratch.architecture=distilbert",
                "from_scratch.hidden_size=16",
                "from_scratch.num_layers=1",
                "from_scratch.num_heads=2",
                "from_scratch.vocabulary_size=400",
                "training.num_epochs=0.5",
                "training.batch_size=8",
            )
        ),
        "stages.dpo.training.num_epochs=0.5",
        "stages.dpo.training.batch_size=8",
        "stages.policies.num_samples=8",
        "stages.policies.max_new_tokens=12",
        *(
            f"stages.{stage}.max_length=160"
            for stage in ("sft", "preferences", "judge_pairs", "test_pairs", "judge", "dpo")
        ),
    ]
    for stage in ("preferences", "judge_pairs", "test_pairs"):
        # A model that has learned nothing rarely ends an answer.
        small += [f"stages.{stage}.cut_answers=keep", f"stages.{stage}.max_new_tokens=12"]
    more = tuple(with_defaults(more, {"model": str(tiny_gpt2(tmp_path / "gpt2")), "data": str(data)}))
    return recipe_of("alpaca-dpo", *small, *more)


def test_alpaca_dpo_runs_end_to_end(tmp_path: Path) -> None:
    summary = run(alpaca(tmp_path), tmp_path / "out")
    assert set(summary["policies"]) == {"sft", "dpo", "best_of_n"}
    assert summary["policies"]["dpo"]["kl_from_reference"] is not None
    assert summary["judge"]["name"] == "a reward model of other prompts, wins against other answers of sft"
    assert summary["second_judge"]["num_training_texts"] > 0
    assert {"accuracy", "length_only_accuracy", "bag_of_words_accuracy"} <= summary["reward_model"].keys()
    config = json.loads((tmp_path / "out" / "reward" / "final" / "config.json").read_text())
    assert config["architectures"] == ["DistilBertForSequenceClassification"]
    audits = [json.loads((tmp_path / "out" / name / "audit.json").read_text()) for name in ("data", "preferences")]
    assert audits[0]["lines"][0].startswith("120 rows read")
    counts = audits[1]["counts"]
    assert counts["asked"] == sum(count for name, count in counts.items() if name != "asked")
    prompts = [
        {json.dumps(json.loads(line)["prompt"]) for line in (tmp_path / "out" / file).read_text().splitlines()}
        for file in ("data/sft.jsonl", "preferences/accepted.jsonl", "judge_pairs/accepted.jsonl", "data/test.jsonl")
    ]
    assert sum(map(len, prompts)) == len(set.union(*prompts))


def test_alpaca_dpo_makes_its_own_gpt2_where_there_is_none_to_load(tmp_path: Path) -> None:
    small = {"architecture": "gpt2", "hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_length": 160}
    overrides = [f"stages.sft.from_scratch.{name}={value}" for name, value in small.items()]
    pipeline = alpaca(tmp_path, *overrides, "model=null")
    kept = {name: pipeline.stages[name] for name in ("data", "sft")}
    run(pipeline.model_copy(update={"stages": kept, "next_commands": ()}), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "sft" / "final" / "config.json").read_text())
    assert (config["model_type"], config["n_embd"]) == ("gpt2", 16)


def instruct(tmp_path: Path, *more: str) -> Pipeline:
    data = dialogues_file(tmp_path / "dialogues.jsonl", num_rows=60)
    small = [
        "stages.reward_report.label_agreement=0.9",
        "stages.ppo.training.num_steps=2",
        "stages.ppo.training.rollouts_per_step=8",
        "stages.ppo.training.minibatch_size=4",
        "stages.ppo.training.max_new_tokens=12",
        "stages.ppo.training.num_evaluation_samples=4",
        "stages.policies.num_samples=8",
        "stages.policies.max_new_tokens=12",
        *(f"stages.{stage}.max_length=160" for stage in LORA_STAGES),
    ]
    more = tuple(with_defaults(more, {"model": str(tiny_gpt2(tmp_path / "gpt2")), "data": str(data)}))
    return recipe_of("instruct-lora", *small, *more)


def test_instruct_lora_runs_end_to_end_on_one_shared_base(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = run(instruct(tmp_path), tmp_path / "out")
    assert "policy, critic, reference and reward model share one base" in capsys.readouterr().err
    assert summary["reward_model"]["accuracy_ceiling"] == pytest.approx(0.5 * (1 + 0.8**0.5))
    assert {"length_only_accuracy", "bag_of_words_accuracy"} <= summary["reward_model"].keys()
    assert summary["judge"]["name"] == "a reward model of other pairs, wins against other answers of sft"
    assert summary["judge"]["n"] == summary["reward_model"]["n"]
    assert summary["policies"]["ppo"]["n"] == 8
    report = json.loads((tmp_path / "out" / "sft" / "audit.json").read_text())["lines"]
    assert any("Human: Hello, I am number" in line and "Assistant:«" in line for line in report)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2").state_dict()
    tuned = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "sft" / "final").state_dict()
    moved = {name.rpartition(".h.0.")[2] for name in base if not bool((base[name] == tuned[name]).all())}
    assert moved == {"attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_proj.weight"}
    adapter = load_file(tmp_path / "out" / "reward" / "final" / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in adapter} == {"c_attn", "c_proj"}


def test_layers_that_the_model_does_not_have_are_named_beside_those_it_has(tmp_path: Path) -> None:
    pipeline = instruct(tmp_path, "stages.sft.lora.target_modules=[q_proj, c_attn]")
    with pytest.raises(
        SettingsError, match=r"names q_proj, which GPT2LMHeadModel does not have: choose .*c_attn, c_fc"
    ):
        run(pipeline, tmp_path / "out")


@pytest.mark.parametrize("name", ["alpaca-dpo", "instruct-lora"])
def test_data_that_cannot_be_loaded_says_what_to_set(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    made = {"alpaca-dpo": alpaca, "instruct-lora": instruct}[name]
    given = load_yaml(shipped_recipes()[name])["data"]
    with pytest.raises(DataError, match=rf"'{given}' .* could not be loaded: no route\. A local file .* data=PATH"):
        run(made(tmp_path, f"data={given}"), tmp_path / "out")


def test_a_model_that_cannot_be_loaded_is_named_with_its_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    pipeline = recipe_of(
        *("alpaca-dpo", "data=x/y", "model=" + str(tmp_path / "gpt2")),
        *("stages.reward.model=owner/nowhere", "stages.judge.model=owner/nowhere"),
    )
    tiny_gpt2(tmp_path / "gpt2")
    with pytest.raises(ModelError, match=r"could not load .* 'owner/nowhere'") as told:
        run(pipeline, tmp_path / "out")
    assert str(told.value).endswith("(here: stages.reward.model=path/to/folder stages.judge.model=path/to/folder)")
    assert not (tmp_path / "out").exists()


def test_pairs_of_ones_own_run_end_to_end_with_a_new_model(tmp_path: Path) -> None:
    """Prompts with two completions and the number of the better one."""
    questions = list(QUESTIONS.items())
    with (tmp_path / "pairs.jsonl").open("w", encoding="utf-8") as file:
        for number in range(60):
            question, answer = questions[number % len(questions)]
            both = (answer, "I do not know.")[:: 1 if number % 2 else -1]
            row = {"prompt": f"{question} ({number})", "completion_0": both[0], "completion_1": both[1]}
            file.write(json.dumps(row | {"label": 1 - number % 2}) + "\n")
    sizes = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_length": 128, "vocabulary_size": 400}
    small = {
        **{f"sft.from_scratch.{name}": str(size) for name, size in sizes.items()},
        **{f"{stage}.max_length": "128" for stage in ("sft", "reward", "judge", "dpo", "ppo")},
        **{f"{stage}.training.batch_size": "8" for stage in ("sft", "reward", "judge", "dpo")},
        **{f"{stage}.training.num_epochs": "1" for stage in ("sft", "reward", "judge", "dpo")},
        "ppo.training.num_steps": "1",
        "ppo.training.rollouts_per_step": "8",
        "ppo.training.minibatch_size": "4",
        "ppo.training.max_new_tokens": "12",
        "ppo.training.num_evaluation_samples": "4",
        "policies.num_samples": "8",
        "policies.max_new_tokens": "12",
    }
    overrides = [f"stages.{name}={value}" for name, value in small.items()]
    pipeline = recipe_of("pairs", "model=null", f"data={tmp_path / 'pairs.jsonl'}", *overrides)
    summary = run(pipeline, tmp_path / "out")
    assert set(summary["policies"]) == {"sft", "best_of_n", "dpo", "ppo"}
    kept = [json.loads(line) for line in (tmp_path / "out" / "data" / "train.jsonl").read_text().splitlines()]
    assert {row["rejected"] for row in kept} == {"I do not know."}
