"""What every algorithm of the table must hold: its settings, its sources, its contract, and an exact resume."""

import importlib
import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch
from peft import LoraConfig

import prefloop
from prefloop.algorithms import ALGORITHMS, dpo, ppo, reward_modelling, sft
from prefloop.algorithms.dpo import DPO
from prefloop.algorithms.ppo import PPO
from prefloop.algorithms.reward_modelling import RewardModelling
from prefloop.algorithms.sft import SFT
from prefloop.batches import TokenGroup
from prefloop.contracts import Settings
from prefloop.models.backbone import Backbone
from prefloop.models.encoder_rewards import EncoderRewardModel
from prefloop.models.from_scratch import new_encoder, train_encoder_tokenizer
from prefloop.models.policy import Policy
from prefloop.models.scalar_heads import ScalarModel
from prefloop.rollouts.rewards import ModelReward, ShuffledReward
from prefloop.runs.drive import WALL_CLOCK_FIELDS
from prefloop.runs.folder import RunFolder
from prefloop.runs.settings import load_yaml, to_yaml, validate

SOURCES = "\n".join(path.read_text() for path in Path(inspect.getfile(prefloop)).parent.rglob("*.py"))
TABLE = pytest.mark.parametrize("name", list(ALGORITHMS))


@TABLE
def test_the_docstring_says_what_is_learned_and_names_its_source(name: str) -> None:
    text = importlib.import_module(ALGORITHMS[name][0].__module__).__doc__ or ""
    for part in ("What is learned from what:", "Source:", "Departures from the paper:"):
        assert part in text
    assert re.search(r"arXiv:\d{4}\.\d{5}", text)
    assert re.search(r"equation|section", text)


@TABLE
def test_the_class_has_the_contracts_name_and_headline(name: str) -> None:
    algorithm, config = ALGORITHMS[name]
    assert algorithm.name == name
    assert 4 <= len(algorithm.headline) <= 6
    assert issubclass(config, Settings)
    for method in ("batch", "step", "evaluate", "state", "load_state", "trained"):
        assert callable(getattr(algorithm, method))


@TABLE
def test_the_defaults_go_through_yaml_unchanged(name: str, tmp_path: Path) -> None:
    config = ALGORITHMS[name][1]
    (tmp_path / "config.yaml").write_text(to_yaml(config()))
    again = validate(config, load_yaml(tmp_path / "config.yaml"), origin="config.yaml")
    assert again == config()
    assert type(again) is config


@TABLE
def test_every_setting_is_explained_and_read(name: str) -> None:
    """A setting that nothing reads is a promise that nobody keeps."""
    for field, info in ALGORITHMS[name][1].model_fields.items():
        assert info.description, f"{field} has no help text"
        assert re.search(rf"(config|settings|training)\.{field}\b", SOURCES), f"nothing reads {field}"


def _sft(seed: int, folder: Path) -> SFT:
    groups = [TokenGroup(oracle.PROMPT, (answer,)) for answer in oracle.ANSWERS[:40]]
    config = sft.Config(batch_size=8, num_epochs=1.6, warmup_steps=2)
    return SFT(oracle.new_policy(seed), groups, config=config, seed=seed, evaluation_groups=groups[:5])


def _dpo(seed: int, folder: Path) -> DPO:
    groups, shares = oracle.pairs(oracle.rewards(1), torch.ones(400), count=64, seed=1)
    config = dpo.Config(batch_size=8, soft_labels=True, warmup_steps=2)
    policy = oracle.new_policy(seed)
    return DPO(policy, policy.reference(), groups, shares, config=config, seed=seed)


def _reward_modelling(seed: int, folder: Path) -> RewardModelling:
    groups, shares = oracle.pairs(oracle.rewards(1), torch.ones(400), count=64, seed=1)
    config = reward_modelling.Config(batch_size=8, num_epochs=1.0, head_dropout=0.3)
    return RewardModelling(oracle.new_critic(seed), groups, shares, config=config, seed=seed)


def _encoder_reward_modelling(seed: int, folder: Path) -> RewardModelling:
    tokenizer = train_encoder_tokenizer(["one two"], "bert", vocabulary_size=270, max_length=32)
    model = new_encoder("bert", tokenizer, hidden_size=16, num_layers=1, num_heads=2, max_length=32, seed=seed)
    groups, shares = oracle.pairs(oracle.rewards(1), torch.ones(400), count=64, seed=1)
    config = reward_modelling.Config(batch_size=8, num_epochs=1.0, head_dropout=0.3)
    return RewardModelling(EncoderRewardModel(model, tokenizer), groups, shares, config=config, seed=seed)


PPO_SETTINGS: dict[str, Any] = {
    "num_steps": 8,
    "rollouts_per_step": 32,
    "epochs_per_rollout": 2,
    "minibatch_size": 16,
    "max_new_tokens": oracle.HORIZON,
    "kl_control": "adaptive",
    "kl_target": 0.05,
    "kl_horizon": 100.0,
    "value_clip_range": 0.3,
    "critic_warmup_steps": 1,
}


def _ppo(seed: int, folder: Path) -> PPO:
    policy = oracle.new_policy(seed)
    return PPO(
        policy,
        policy.reference(),
        oracle.new_critic(seed + 1),
        ShuffledReward(oracle.reward_source(oracle.rewards(1)), seed=seed),
        oracle.generator(policy),
        [""],
        [oracle.PROMPT],
        config=ppo.Config(**PPO_SETTINGS),
        seed=seed,
        evaluation_prompts=["", ""],
        evaluation_prompt_ids=[oracle.PROMPT, oracle.PROMPT],
    )


def _lora() -> LoraConfig:
    return LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "up_proj", "down_proj"])


def _shared_ppo(seed: int, folder: Path) -> PPO:
    """Policy, critic, reward model and reference on one backbone."""
    backbone = Backbone(oracle.network(seed))
    backbone.add_adapter("reward", _lora())
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in backbone.adapter_parameters("reward").values():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    backbone.copy_adapter("reward", "critic", _lora())
    backbone.add_adapter("policy", _lora())
    reward = ScalarModel(backbone, oracle.TOKENIZER, adapter="reward")
    with torch.no_grad():
        reward.head.weight.copy_(torch.randn(reward.head.weight.shape, generator=random))
    policy = Policy(backbone, oracle.TOKENIZER, adapter="policy")
    return PPO(
        policy,
        policy.reference(),
        ScalarModel(backbone, oracle.TOKENIZER, adapter="critic"),
        ModelReward(reward, oracle.CHAT_FORMAT, policy_format=oracle.CHAT_FORMAT),
        oracle.generator(policy),
        [""],
        [oracle.PROMPT],
        config=ppo.Config(**{**PPO_SETTINGS, "learning_rate": 1e-2}),
        seed=seed,
    )


MAKERS: dict[str, Callable[[int, Path], Any]] = {
    "sft": _sft,
    "dpo": _dpo,
    "reward_modelling": _reward_modelling,
    "reward_modelling, an encoder": _encoder_reward_modelling,
    "ppo": _ppo,
    "ppo, four roles on one backbone": _shared_ppo,
}


def _assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            _assert_same(one[key], other[key])
    else:
        assert one == other


def _without_clock(run: RunFolder) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row if name not in WALL_CLOCK_FIELDS} for row in run.read_metrics()]


def test_every_algorithm_is_made_here() -> None:
    assert set(ALGORITHMS) <= set(MAKERS)


@pytest.mark.parametrize("name", list(MAKERS))
@pytest.mark.parametrize("stops_after", [1, 5])
def test_a_resumed_run_is_the_run_that_was_never_interrupted(name: str, stops_after: int, tmp_path: Path) -> None:
    every: dict[str, Any] = {"evaluate_every_steps": 1, "checkpoint_every_steps": 100, "save_models": True}
    straight = MAKERS[name](7, tmp_path)
    assert straight.num_steps == 8
    whole = oracle.train(straight, tmp_path / "whole", **every)
    broken = MAKERS[name](7, tmp_path)
    broken.num_steps = stops_after
    run = oracle.train(broken, tmp_path / "broken", **every)
    assert [row["step"] for row in run.read_metrics()] == list(range(stops_after + 1))
    torch.manual_seed(12345)
    resumed = MAKERS[name](7, tmp_path)
    oracle.go_on(resumed, run, resume=True, **every)
    _assert_same(resumed.state(), straight.state())
    assert _without_clock(run) == _without_clock(whole)
    assert run.read_samples() == whole.read_samples()


@pytest.mark.parametrize("name", list(MAKERS))
def test_training_moves_and_every_metric_is_a_number(name: str, tmp_path: Path) -> None:
    algorithm = MAKERS[name](7, tmp_path)
    role = algorithm.trained()
    before = {key: value.detach().clone() for key, value in role.parameters().items()}
    rows = oracle.train(algorithm, tmp_path / "run").read_metrics()
    assert any(not torch.equal(value, before[key]) for key, value in role.parameters().items())
    for row in rows[1:]:
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in row.values())
    shown = [metric for metric in algorithm.headline if not metric.startswith("evaluate/")]
    assert set(shown) <= set(rows[-1]), "what the headline promises is measured"


def test_four_roles_on_one_backbone_leave_the_base_and_the_reward_alone(tmp_path: Path) -> None:
    algorithm = _shared_ppo(7, tmp_path)
    backbone = algorithm.policy.backbone
    assert algorithm.reference.backbone is algorithm.critic.backbone is backbone
    assert isinstance(algorithm.reward, ModelReward)
    before = {name: value.detach().clone() for name, value in backbone.model.named_parameters()}
    head = algorithm.reward.model.head.weight.detach().clone()
    base = oracle.distribution(algorithm.reference)
    oracle.train(algorithm, tmp_path / "run")
    moved = {name for name, value in backbone.model.named_parameters() if not torch.equal(value, before[name])}
    roles = {role for role in ("policy", "critic", "reward") for name in moved if f".{role}." in name}
    assert all("lora_" in name for name in moved)
    assert roles == {"policy", "critic"}
    assert torch.equal(algorithm.reward.model.head.weight, head)
    assert torch.equal(oracle.distribution(algorithm.reference), base)
    assert oracle.total_variation(oracle.distribution(algorithm.policy), base) > 0.01
