"""Encoders through the stages: trained, reported, put before PPO, asked by name, and refused where they must be."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from prefloop.algorithms.ppo import PPO
from prefloop.cli.main import app
from prefloop.errors import ModelError, SettingsError
from prefloop.models.encoder_rewards import EncoderRewardModel
from prefloop.models.scalar_heads import ScalarModel
from prefloop.records import Completion
from prefloop.rollouts.rewards import ModelReward
from prefloop.runs import stages_train
from prefloop.runs.pipeline import run_pipeline
from prefloop.runs.plan import plan
from prefloop.runs.progress import Progress
from prefloop.runs.stage_context import read_policy, read_reward_model
from tiny_encoders import save_encoder
from toy_recipes import pipeline_of, tutorials

SCRATCH = {"hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_length": 320, "vocabulary_size": 300}


def recipe_with(reward: dict[str, Any], *stages: str, **changes: dict[str, Any]) -> dict[str, Any]:
    """The toy pipeline up to its reward model, and the stages named."""
    recipe = tutorials()
    kept = ("world", "sft", "pairs", "labels", "reward", *stages)
    recipe["stages"] = {name: recipe["stages"][name] | changes.get(name, {}) for name in kept}
    start = {"model": None} if "from_scratch" in reward else {}
    recipe["stages"]["reward"] |= start | reward
    return recipe


def run(recipe: dict[str, Any], folder: Path) -> dict[str, Any]:
    return run_pipeline(pipeline_of(recipe), folder, progress=Progress(), resume_command="again")


class WatchedPPO(PPO):
    """Keeps what the stage made."""

    made: list["WatchedPPO"] = []

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.made[:] = [self]


@pytest.mark.parametrize("architecture", ["distilbert", "bert", "roberta", "modernbert"])
def test_a_pipeline_with_an_encoder_from_scratch_runs_end_to_end(
    architecture: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages_train, "PPO", WatchedPPO)
    reward = {"from_scratch": SCRATCH | {"architecture": architecture}, "evaluate": "labels/preferences.jsonl"}
    summary = run(
        recipe_with(reward, "ppo", "reward_report", "policies", policies={"policies": {"sft": "sft", "ppo": "ppo"}}),
        tmp_path,
    )
    shown = capsys.readouterr().err
    assert f"a new {architecture} of " in shown
    assert "the critic starts from the policy, because the reward model is an encoder" in shown
    assert summary["reward_model"]["n"] > 0
    assert summary["reward_model"]["num_truncated"] == 0
    assert {"sft", "ppo", "best_of_n"} <= set(summary["policies"])
    (algorithm,) = WatchedPPO.made
    assert isinstance(algorithm.reward, ModelReward)
    assert isinstance(algorithm.reward.model, EncoderRewardModel)
    assert isinstance(algorithm.critic, ScalarModel)
    assert not any(weight.requires_grad for weight in algorithm.reward.model.parameters().values())
    assert all(weight.requires_grad for weight in algorithm.critic.parameters().values())
    _assert_plain_transformers_agree(tmp_path / "reward" / "final")


def _assert_plain_transformers_agree(folder: Path) -> None:
    source = ModelReward(*read_reward_model(str(folder), precision="float32"))
    (score,) = source.score(["How do I make tea?"], [Completion("Boil water.")])
    model, tokenizer = (one.from_pretrained(folder) for one in (AutoModelForSequenceClassification, AutoTokenizer))
    asked = json.loads((folder / "prefloop.json").read_text())["prompt_format"]
    assert asked == "auto"
    with torch.no_grad():
        logits = model(**tokenizer("How do I make tea?", "Boil water.", return_tensors="pt")).logits
    assert float(logits[0, 0]) == pytest.approx(score, abs=1e-5)
    assert score != 0


def test_labelled_texts_train_an_encoder_from_a_checkpoint(tmp_path: Path) -> None:
    rows = [
        {"text": f"a {mood} film {number}", "label": int(mood == "good")}
        for number in range(20)
        for mood in ("good", "bad")
    ]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = save_encoder(tmp_path / "distilbert", "distilbert")
    stages = {
        "reward": {
            "kind": "reward_modelling", "model": str(encoder), "records": "labelled", "max_length": 64,
            "train": [str(tmp_path / "texts.jsonl")],
            "training": {"num_epochs": 5, "batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 0},
        },
        "report": {"kind": "evaluate_reward", "reward_model": "reward", "pairs": str(tmp_path / "texts.jsonl")},
    }  # fmt: skip
    summary = run({"name": "toy", "stages": stages}, tmp_path / "out")
    assert summary["reward_model"]["accuracy"] > 0.9
    audit = json.loads((tmp_path / "out" / "reward" / "audit.json").read_text())
    assert audit["parts"]["training data"]["used"] == 40


def test_long_rows_are_cut_from_the_left_of_the_prompt_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "x " * 80 + f"ask {letter}", "chosen": "good", "rejected": "bad"} for letter in "abc"]
    rows.append({"prompt": "ask", "chosen": "good", "rejected": "bad"})
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    encoder = save_encoder(tmp_path / "bert", "bert")
    stage = {
        "kind": "reward_modelling", "model": str(encoder), "max_length": 32, "too_long": "truncate",
        "train": [str(tmp_path / "pairs.jsonl")], "training": {"num_epochs": 1, "batch_size": 4},
    }  # fmt: skip
    report = {"kind": "evaluate_reward", "reward_model": "reward", "pairs": str(tmp_path / "pairs.jsonl")}
    summary = run({"name": "toy", "stages": {"reward": stage, "report": report}}, tmp_path / "out")
    audit = json.loads((tmp_path / "out" / "reward" / "audit.json").read_text())["parts"]["training data"]
    assert (audit["rows_read"], audit["used"], audit["num_truncated"]) == (4, 4, 3)
    assert audit["prompt_length_tokens"]["100"] + audit["response_length_tokens"]["100"] == 32
    assert summary["reward_model"]["num_truncated"] == 6, "two answers to each long prompt, in 64 positions"


@pytest.mark.parametrize(
    ("reward", "words"),
    [
        ({"max_length": 512}, "max_length is 512, but the new distilbert has 320 positions: set max_length=320"),
        ({"lora": {"rank": 2}}, "the new distilbert is an encoder, and lora adapts decoders only: leave lora out"),
        ({"training": {"language_weight": 0.5}}, "language_weight is 0.5: .* set it to 0 for an encoder"),
        ({"prompt_format": "chat"}, "for an encoder it is auto, plain or raw"),
        ({"model": "sft"}, "both model and from_scratch are set; keep one"),
    ],
)
def test_settings_that_an_encoder_cannot_have_are_refused(reward: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=words):
        run(recipe_with({"from_scratch": SCRATCH, **reward}), tmp_path)


def test_an_encoder_is_no_architecture_for_a_policy() -> None:
    recipe = tutorials()
    recipe["stages"]["sft"]["from_scratch"] = SCRATCH | {"architecture": "distilbert"}
    with pytest.raises(SettingsError, match="architecture"):
        pipeline_of(recipe)


def test_the_recipes_model_is_not_taken_where_a_new_one_is_made() -> None:
    recipe = recipe_with({"from_scratch": SCRATCH}) | {"model": "somewhere/else"}
    parents = {one.name: one.parents for one in plan(pipeline_of(recipe), Path("nowhere"))}
    assert parents["reward"] == ("labels",)


def test_a_critic_that_must_start_from_an_encoder_is_refused(tmp_path: Path) -> None:
    recipe = recipe_with({"from_scratch": SCRATCH}, "ppo", ppo={"critic_from": "reward_model"})
    with pytest.raises(SettingsError, match="because the reward model is an encoder: set critic_from=policy"):
        run(recipe, tmp_path)


def test_a_new_decoder_is_a_reward_model_of_its_own_tokens(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages_train, "PPO", WatchedPPO)
    run(recipe_with({"from_scratch": SCRATCH | {"architecture": "gpt2"}}, "ppo"), tmp_path)
    assert "because the reward model has another vocabulary than the policy" in capsys.readouterr().err
    (algorithm,) = WatchedPPO.made
    assert isinstance(algorithm.reward, ModelReward)
    assert not algorithm.reward.shares_tokens
    assert algorithm.critic.tokenizer is algorithm.policy.tokenizer


def test_by_default_the_critic_starts_from_a_reward_model_with_the_policys_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages_train, "PPO", WatchedPPO)

    class Made(Exception):
        pass

    def stop(*_: object) -> None:
        raise Made

    monkeypatch.setattr(WatchedPPO, "batch", stop)
    recipe = recipe_with({}, "ppo")
    bodies = {}
    for choice in (None, "reward_model", "policy"):
        recipe["stages"]["ppo"]["critic_from"] = choice
        with pytest.raises(Made):
            run(recipe, tmp_path)
        (algorithm,) = WatchedPPO.made
        bodies[choice] = torch.cat([p.detach().flatten() for p in algorithm.critic.backbone.parameters().values()])
    assert torch.equal(bodies[None], bodies["reward_model"])
    assert not torch.equal(bodies[None], bodies["policy"])


def test_lora_keeps_its_own_base_beside_an_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(recipe_with({"from_scratch": SCRATCH}, "ppo", ppo={"lora": {"rank": 2, "alpha": 4}}), tmp_path)
    shown = capsys.readouterr().err
    assert "policy, critic and reference share one base; the reward model has another and stands alone" in shown
    assert "the critic starts from the policy, because the reward model is an encoder" in shown


def test_collected_pairs_have_an_encoders_margins(tmp_path: Path) -> None:
    recipe = recipe_with({"from_scratch": SCRATCH})
    recipe["stages"]["more"] = recipe["stages"]["pairs"] | {"reward_models": ["reward"]}
    run(recipe, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "more" / "comparisons.jsonl").read_text().splitlines()]
    assert all(row["details"]["margin"] != 0 for row in rows)


def test_prefloop_score_ranks_with_an_encoder_and_says_what_it_cut(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path / "roberta", "roberta", masked=False)
    found = CliRunner().invoke(
        app, ["score", str(folder), "--prompt", "long " * 30, "--response", "good", "--response", "bad", "--json"]
    )
    assert found.exit_code == 0, found.output
    rows = [json.loads(line) for line in found.stdout.splitlines()]
    assert sorted(row["completion"] for row in rows) == ["bad", "good"]
    assert rows[0]["score"] > rows[1]["score"]
    assert "warning: 2 of 2 texts were longer than the reward model's 64 positions" in found.stderr


def test_an_encoder_is_refused_as_a_policy(tmp_path: Path) -> None:
    for family in ("distilbert", "bert"):
        folder = str(save_encoder(tmp_path / family, family))
        with pytest.raises(ModelError, match="is an encoder, which cannot write text: it can be a reward model only"):
            read_policy(folder, precision="float32")
