"""What stages refuse before they begin, what they record and share: references, audits, LoRA on one base, SST-2."""

import json
import typing
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefloop.algorithms.ppo import PPO
from prefloop.errors import DataError, ModelError, SettingsError
from prefloop.models.scalar_heads import ScalarModel
from prefloop.records import Completion
from prefloop.runs import stages_train
from prefloop.runs.model_card import complete_cards
from prefloop.runs.pipeline import run_pipeline
from prefloop.runs.plan import FILES, MODELS, check, plan, references
from prefloop.runs.progress import Progress
from prefloop.runs.settings import load_yaml, merge, parse_overrides, validate
from prefloop.runs.stage_context import read_policy, read_reward_model
from prefloop.runs.stage_settings import AnyStage, EvaluatePolicies, Judge, Pipeline
from prefloop.runs.stages_evaluate import Answers, no_better_than_length, turned
from toy_recipes import pipeline_of, sst2_folder, tiny_llama, tutorials, world_and_sft

STAGES: tuple[Any, ...] = typing.get_args(typing.get_args(AnyStage)[0])
NAMES_OF_THEIR_OWN = {
    "split",
    "split_if_unlabelled",
    "name",
    "greedy",
    "columns",
    "shares",
    "reported_as",
    "guidelines",
}
"""Texts in settings that name neither a stage nor a file."""


def holds_free_text(annotation: Any) -> bool:
    if annotation is str:
        return True
    return any(holds_free_text(inner) for inner in typing.get_args(annotation))


def run(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    return run_pipeline(pipeline_of(recipe), folder, progress=Progress(quiet=True), resume_command="again")


@pytest.mark.parametrize("owner", [*STAGES, Judge])
def test_every_setting_that_holds_free_text_is_known_as_a_reference_or_as_a_name(owner: Any) -> None:
    texts = {
        name
        for name, one in owner.model_fields.items()
        if holds_free_text(one.annotation) and typing.get_origin(one.annotation) is not typing.Literal
    }
    assert texts <= MODELS | FILES | NAMES_OF_THEIR_OWN


def test_words_among_settings_are_no_references() -> None:
    """critic_from=policy, reward=model and a policy called like a stage are no inputs."""
    recipe = tutorials()
    recipe["stages"] = {"policy" if name == "dpo" else name: stage for name, stage in recipe["stages"].items()}
    recipe["stages"]["policies"] |= {"policies": {"ppo": "sft", "labels": "ppo"}, "reference": "ppo", "greedy": []}
    pipeline = pipeline_of(recipe)
    assert [one.text for one in references(pipeline.stages["ppo"], pipeline)] == [
        "sft",
        "reward",
        "world/prompts.jsonl",
        "world/held_out.jsonl",
    ]
    parents = {one.name: one.parents for one in plan(pipeline, Path("nowhere"))}
    assert parents["ppo"] == ("sft", "reward", "world")
    assert parents["policies"] == ("sft", "ppo", "world", "reward")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sft": {"train": ["pairs/comparisons.jsonl"]}}, "sft.train: the stage pairs does not come before it"),
        (
            {"sft": {"train": ["wrld/demonstrations.jsonl"]}},
            "no file or folder wrld/demonstrations.jsonl; did you mean",
        ),
        (
            {"sft": {"train": ["world/demos.jsonl"]}},
            "the stage world does not write demos.jsonl; it writes world/demon",
        ),
        ({"sft": {"model": "sft"}}, "both model and from_scratch are set"),
        ({"reward": {"model": "world"}}, "reward.model: the stage world trains no model"),
        ({"ppo": {"reward_model": "sft"}}, "the stage sft trains a language model, and no reward model"),
        ({"ppo": {"policy": "reward"}}, "the stage reward trains a reward model"),
        ({"policies": {"reference": "base"}}, "base is not among its policies, which are sft, dpo, ppo"),
        ({"policies": {"greedy": ["pop"]}}, "pop is not among its policies"),
        ({"policies": {"reward_model": None}}, "best_of_n needs a reward_model"),
        ({"reward_report": {"comparisons": None}}, "it needs either comparisons or pairs"),
        ({"ppo": {"judge": {"kind": "text_classifier"}}}, "it needs train and test files"),
        ({"sft": {"model": "../nowhere/at/all", "from_scratch": None}}, "no file or folder ../nowhere/at/all"),
        ({"sft": {"from_scratch": None}}, "it names no model and the recipe has none; set model=PATH_OR_NAME"),
    ],
)
def test_a_pipeline_that_cannot_run_says_so_before_anything_is_written(
    changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    recipe = tutorials()
    for name, change in changes.items():
        recipe["stages"][name] |= change
    with pytest.raises(SettingsError) as caught:
        run(recipe, tmp_path / "out")
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_every_fault_of_a_pipeline_is_named_at_once() -> None:
    recipe = tutorials()
    recipe["stages"]["sft"] |= {"train": ["nowhere.jsonl"], "evaluate": "elsewhere.jsonl"}
    recipe["stages"]["policies"] |= {"greedy": ["pop"]}
    recipe["stages"]["../up"] = recipe["stages"]["world"]
    with pytest.raises(SettingsError) as caught:
        check(pipeline_of(recipe))
    words = str(caught.value)
    assert all(one in words for one in ("nowhere.jsonl", "elsewhere.jsonl", "pop", "'../up' cannot name a folder"))


def test_prepare_without_any_source_is_refused() -> None:
    stages = {"data": {"kind": "prepare", "records": "text"}}
    with pytest.raises(SettingsError, match="data: it names no source and the recipe has no data"):
        check(pipeline_of({"name": "toy", "stages": stages}))


class WatchedPPO(PPO):
    """Remembers the reward model's adapter as it was before the first step."""

    made: ClassVar[list["WatchedPPO"]] = []

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.reward_adapter = {name: value.detach().clone() for name, value in self.now().items()}
        self.made.append(self)

    def now(self) -> dict[str, torch.nn.Parameter]:
        return self.policy.backbone.adapter_parameters(stages_train.REWARD)


def test_lora_shares_one_base_and_leaves_the_reward_adapter_as_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages_train, "PPO", WatchedPPO)
    recipe = tutorials()
    lora = {"rank": 2, "alpha": 4}
    kept = ("world", "sft", "pairs", "labels", "reward", "ppo")
    recipe["stages"] = {name: recipe["stages"][name] for name in kept}
    recipe["stages"]["reward"] |= {"lora": lora}
    recipe["stages"]["ppo"] |= {"lora": lora}
    run_pipeline(pipeline_of(recipe), tmp_path / "out", progress=Progress(), resume_command="again")
    shown = capsys.readouterr().err
    assert "policy, critic, reference and reward model share one base" in shown
    (algorithm,) = WatchedPPO.made
    assert algorithm.reward_adapter
    assert all(torch.equal(value, algorithm.now()[name]) for name, value in algorithm.reward_adapter.items())
    on_disk = load_file(tmp_path / "out" / "reward" / "final" / "adapter" / "adapter_model.safetensors")
    assert sorted(value.norm().item() for value in on_disk.values()) == sorted(
        value.norm().item() for value in algorithm.reward_adapter.values()
    )
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "ppo" / "final")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "sft" / "final")
    assert plain.state_dict().keys() == base.state_dict().keys()
    moved = [name for name, value in plain.state_dict().items() if not torch.equal(value, base.state_dict()[name])]
    assert moved
    assert all("proj" in name for name in moved)


def test_a_reward_model_reads_back_with_its_head_and_is_refused_as_a_policy(tmp_path: Path) -> None:
    """final/ holds the merged weights and the trained head, and is no language model."""
    recipe = tutorials()
    recipe["stages"] = {name: recipe["stages"][name] for name in ("world", "sft", "pairs", "labels", "reward")}
    recipe["stages"]["reward"] |= {"lora": {"rank": 2, "alpha": 4}, "training": {"num_epochs": 2, "batch_size": 4}}
    run(recipe, tmp_path / "out")
    model, _ = read_reward_model(str(tmp_path / "out" / "reward" / "final"), precision="float32")
    assert isinstance(model, ScalarModel)
    assert model.head.weight.abs().sum() > 0
    with pytest.raises(ModelError, match="is a reward model: give a language model"):
        read_policy(str(tmp_path / "out" / "reward" / "final"), precision="float32")


def test_the_ceiling_comes_from_the_agreement_of_a_label_stage(tmp_path: Path) -> None:
    """(1 + sqrt(2 agreement - 1)) / 2, and none where nothing is known of the labels."""
    recipe = tutorials()
    report = {"kind": "evaluate_reward", "reward_model": "reward", "pairs": "labels/preferences.jsonl"}
    recipe["stages"] = {name: recipe["stages"][name] for name in ("world", "sft", "pairs", "labels", "reward")} | {
        "known": {**report, "agreement_of": "labels/agreement.json", "reported_as": "known"},
        "unknown": {**report, "reported_as": "unknown"},
    }
    found = run(recipe | {"next_commands": []}, tmp_path / "out")["reward_models"]
    agreement = json.loads((tmp_path / "out" / "labels" / "agreement.json").read_text())["percent_agreement"]
    assert 0.5 < agreement < 1.0
    assert found["known"]["agreement"] == agreement
    assert found["known"]["accuracy_ceiling"] == pytest.approx(0.5 * (1 + (2 * agreement - 1) ** 0.5))
    assert found["unknown"]["accuracy_ceiling"] is None


def test_the_audit_of_a_stage_that_is_taken_up_again_holds_each_part_once(tmp_path: Path) -> None:
    recipe = world_and_sft(2)
    recipe["stages"]["sft"] |= {"checkpoint_every_steps": 1, "evaluate": "world/demonstrations.jsonl"}
    run(recipe, tmp_path / "out")
    record = tmp_path / "out" / "sft" / "run.json"
    unfinished = json.loads(record.read_text()) | {"state": "running"}
    record.write_text(json.dumps(unfinished))
    run(recipe, tmp_path / "out")
    audit = json.loads((tmp_path / "out" / "sft" / "audit.json").read_text())
    assert [line for line in audit["lines"] if line.endswith("data:")] == ["training data:", "held-out data:"]
    assert json.loads(record.read_text())["state"] == "finished"


@pytest.fixture
def sst2_recipe(tmp_path: Path) -> typing.Callable[..., Pipeline]:
    """The shipped recipe on a toy data set and a tiny model, a few steps a stage."""
    small = [
        f"model={tiny_llama(tmp_path / 'llama')}",
        f"data={sst2_folder(tmp_path / 'sst2')}",
        "stages.sft.max_length=48",
        "stages.sft.training.num_epochs=0.2",
        "stages.sft.training.batch_size=8",
        "stages.reward.max_length=48",
        "stages.reward.training.num_epochs=0.2",
        "stages.reward.training.batch_size=8",
        "stages.ppo.max_length=48",
        "stages.ppo.training.num_steps=2",
        "stages.ppo.training.critic_warmup_steps=1",
        "stages.ppo.training.rollouts_per_step=8",
        "stages.ppo.training.minibatch_size=4",
        "stages.ppo.training.max_new_tokens=12",
        "stages.ppo.training.num_evaluation_samples=4",
        "stages.policies.num_samples=8",
        "stages.policies.max_new_tokens=12",
    ]

    def made(*more: str) -> Pipeline:
        path = Path(__file__).parents[2] / "src" / "prefloop" / "recipes" / "sst2-positive.yaml"
        return validate(Pipeline, merge(load_yaml(path), parse_overrides([*small, *more])), origin=str(path))

    return made


def test_the_sst2_recipe_runs_end_to_end_on_any_data_and_model_of_its_shape(
    sst2_recipe: typing.Callable[..., Pipeline], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run_pipeline(sst2_recipe(), tmp_path / "out", progress=Progress(), resume_command="again")
    shown = capsys.readouterr().err
    assert "warning: No row of" in shown
    assert "The split validation is read instead." in shown
    assert set(summary["policies"]) == {"sft", "ppo"}
    assert summary["policies"]["sft"]["n"] == 8
    assert summary["policies"]["sft"]["second_judge_rate"] is not None
    assert summary["judge"]["num_training_texts"] == 60
    assert summary["reward_model"]["n"] == 20
    assert {"accuracy", "roc_auc"} <= summary["reward_model"].keys()


def test_a_data_set_without_a_single_row_is_an_error_with_its_name(
    sst2_recipe: typing.Callable[..., Pipeline], tmp_path: Path
) -> None:
    pipeline = sst2_recipe()
    (tmp_path / "sst2" / "train.csv").write_text("label,sentence\n")
    with pytest.raises(DataError, match=r"stage train: .*sst2.* holds no rows"):
        run_pipeline(pipeline, tmp_path / "out", progress=Progress(quiet=True), resume_command="again")


def test_max_length_beyond_the_models_positions_names_both(
    sst2_recipe: typing.Callable[..., Pipeline], tmp_path: Path
) -> None:
    pipeline = sst2_recipe("stages.dpo.kind=dpo", "stages.dpo.policy=sft", "stages.dpo.train=[train/train.jsonl]")
    recipe = pipeline.model_copy(
        update={
            "stages": {
                name: stage.model_copy(update={"max_length": 4096}) if name == "sft" else stage
                for name, stage in pipeline.stages.items()
            }
        }
    )
    with pytest.raises(SettingsError, match=r"max_length is 4096, but .*llama has 64 positions: set max_length=64"):
        run_pipeline(recipe, tmp_path / "out", progress=Progress(quiet=True), resume_command="again")


def test_a_prompt_longer_than_the_context_says_what_to_shorten(
    sst2_recipe: typing.Callable[..., Pipeline], tmp_path: Path
) -> None:
    pipeline = sst2_recipe()
    stages = {"policies": pipeline.stages["policies"].model_dump() | {
        "policies": {"llama": str(tmp_path / "llama")}, "reference": "llama", "reward_model": None,
        "judge": {"kind": "rubric"}, "second_judge": None, "max_new_tokens": 64,
    }}  # fmt: skip
    with pytest.raises(ModelError, match="stage policies: the longest prompt and max_new_tokens make 65 tokens"):
        run({"name": "toy", "stages": stages}, tmp_path / "out")


def test_a_prompt_that_leaves_no_room_for_an_answer_is_left_out_and_counted(
    sst2_recipe: typing.Callable[..., Pipeline], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    judge = sst2_recipe().stages["policies"].model_dump()["judge"]
    prompts = tmp_path / "prompts.jsonl"
    texts = ["a fine film", "a moving film " * 30, "a warm film"]
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    judge |= {"train": [str(tmp_path / "sst2")], "test": [str(tmp_path / "sst2")]}
    stage = {
        "kind": "evaluate_policies", "policies": {"llama": str(tmp_path / "llama")}, "reference": "llama",
        "prompts": str(prompts), "num_samples": 2, "max_new_tokens": 8, "judge": judge,
    }  # fmt: skip
    recipe = pipeline_of({"name": "toy", "stages": {"policies": stage}})
    summary = run_pipeline(recipe, tmp_path / "out", progress=Progress(), resume_command="again")
    assert "1 of 3 prompts left out, too long: the model has 64 positions" in capsys.readouterr().err
    assert [one["prompt"] for one in summary["samples"]] == ["a fine film", "a warm film"]
    prompts.write_text(json.dumps({"prompt": texts[1]}) + "\n")
    with pytest.raises(ModelError, match="no prompt of prompts leaves room for an answer: the model has 64 positions"):
        run({"name": "toy", "stages": {"policies": stage}}, tmp_path / "none")


def test_what_turned_is_counted_both_ways_and_shown_where_it_was_gained() -> None:
    successes = {"first": [0, 0, 1, 1, 0, 0], "other": [1, 1, 1, 1, 1, 1], "last": [1, 0, 0, 1, 1, 1]}
    answers = {
        name: Answers([Completion(f"{name} {place}") for place in range(6)], list(map(float, found)), {})
        for name, found in successes.items()
    }
    stage = tutorials()["stages"]["policies"] | {"policies": dict.fromkeys(successes, "sft"), "reference": "first"}
    recipe = tutorials()
    recipe["stages"]["policies"] = stage | {"greedy": []}
    settings = cast(EvaluatePolicies, pipeline_of(recipe).stages["policies"])
    prompts = [f"question {place}" for place in range(6)]
    found = turned(settings, prompts, answers)
    assert found is not None
    assert (found["before"], found["after"]) == ("first", "last")
    assert (found["num_gained"], found["num_lost"], found["n"]) == (3, 1, 6)
    assert [one["prompt"] for one in found["samples"]] == ["question 0", "question 4"]
    alone = settings.model_copy(update={"policies": {"first": "sft"}})
    assert turned(alone, prompts, answers) is None


@pytest.mark.parametrize(
    ("low", "by_length", "is_alarming"),
    [(0.62, 0.6, False), (0.6, 0.6, True), (0.55, 0.7, True), (0.2, None, False)],
)
def test_a_reward_model_must_be_clearly_above_length_alone(
    low: float, by_length: float | None, is_alarming: bool
) -> None:
    figures = {"accuracy": 0.7, "accuracy_ci95": (low, 0.8), "n": 90, "length_only_accuracy": by_length}
    found = no_better_than_length(figures)
    assert (found is not None) == is_alarming
    assert found is None or f"70.0% [{low:.1%}, 80.0%] of 90 held-out pairs right" in found


def test_what_nobody_must_miss_is_said_kept_and_summed_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers that are all cut, and a reward model beside pairs in which the longer answer always wins."""
    cards = []

    def look_first(made: Pipeline, folder: Path) -> None:
        cards.append((folder / "ppo" / "final" / "README.md").read_text())
        complete_cards(made, folder)

    monkeypatch.setattr("prefloop.runs.pipeline.complete_cards", look_first)
    recipe = tutorials()
    held_out = tmp_path / "pairs.jsonl"
    row = {"chosen": "Take a pot and fill it with soil.", "rejected": "Take a pot."}
    rows = [{"prompt": f"How do I repot plant {number}?"} | row for number in range(6)]
    held_out.write_text("".join(json.dumps(one) + "\n" for one in rows))
    stages = {name: recipe["stages"][name] for name in ("world", "sft", "pairs", "labels", "reward", "ppo")}
    stages["ppo"] |= {"training": stages["ppo"]["training"] | {"max_new_tokens": 2, "missing_end_score": -3.0}}
    stages["report"] = {
        "kind": "evaluate_reward", "reward_model": "reward", "pairs": str(held_out), "train_pairs": [str(held_out)],
    }  # fmt: skip
    pipeline = pipeline_of(recipe | {"stages": stages, "next_commands": []})
    summary = run_pipeline(pipeline, tmp_path / "out", progress=Progress(), resume_command="again")
    assert [one["stage"] for one in summary["alarms"]] == ["ppo", "report"]
    cut, length = (one["message"] for one in summary["alarms"])
    assert "0.0% of the sampled answers ended within max_new_tokens=2" in cut
    assert "length alone 100.0%" in length
    said = " ".join(capsys.readouterr().err.split())
    assert f"ALARM in ppo: {cut}" in said
    assert f"ALARM in report: {length}" in said
    assert json.loads((tmp_path / "out" / "report" / "alarms.json").read_text()) == summary["alarms"][1:]
    # The card of a single run is written once, when its training ends; evaluations come later.
    assert f"An alarm of its training: {cut}" in cards[0]
    assert f"An alarm of its training: {cut}" in (tmp_path / "out" / "ppo" / "final" / "README.md").read_text()
    assert f"An alarm of its evaluation: {length}" in (tmp_path / "out" / "reward" / "final" / "README.md").read_text()


def test_while_a_pipeline_is_made_anew_there_is_no_old_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = world_and_sft(2)
    run(recipe, tmp_path / "out")
    run(recipe, tmp_path / "out")
    assert (tmp_path / "out" / "summary.json").exists()

    def fail(*_: object) -> None:
        raise DataError("the disk is full")

    monkeypatch.setattr("prefloop.runs.pipeline._run_stage", fail)
    with pytest.raises(DataError, match="the disk is full"):
        run(recipe | {"seed": 4}, tmp_path / "out")
    assert not (tmp_path / "out" / "summary.json").exists()
