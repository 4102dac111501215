"""What each of PPO's settings promises, and the two controls from which nothing can be learned."""

import math
from pathlib import Path
from typing import Any

import oracle
import pytest
import torch

from prefloop.algorithms.ppo import PPO, Config
from prefloop.contracts import RewardSource
from prefloop.data.packing import pack
from prefloop.errors import TrainingError
from prefloop.models.backbone import Backbone
from prefloop.models.policy import Policy
from prefloop.records import Completion
from prefloop.rollouts.rewards import ConstantReward, RuleReward, ShuffledReward

CONFIG = Config(
    num_steps=4,
    rollouts_per_step=256,
    minibatch_size=64,
    max_new_tokens=oracle.HORIZON,
    learning_rate=3e-3,
    critic_learning_rate=3e-3,
    score_normalisation="none",
    missing_end_score=None,
)


def _ppo(*, reward: RewardSource | None = None, policy: Policy | None = None, **changes: Any) -> PPO:
    policy = oracle.new_policy(1) if policy is None else policy
    return PPO(
        policy,
        policy.reference(),
        oracle.new_critic(),
        reward if reward is not None else oracle.reward_source(oracle.rewards(1)),
        oracle.generator(policy),
        [""],
        [oracle.PROMPT],
        config=CONFIG.model_copy(update=changes),
        seed=3,
        evaluation_prompts=["", "", ""],
        evaluation_prompt_ids=[oracle.PROMPT] * 3,
        judge=ConstantReward(),
    )


def _step(algorithm: PPO, step: int = 0) -> dict[str, float]:
    report = algorithm.step(algorithm.batch(step))
    return {name: measure.mean for name, measure in report.measures.items()}


def _completions() -> list[Completion]:
    """One of two tokens that ended, one of one token that ended, one that was cut."""
    tokens = ((1, oracle.END), (oracle.END,), (1, 2, 3))
    return [Completion("", ended=row[-1] == oracle.END, token_ids=row, logprobs=(0.0,) * len(row)) for row in tokens]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [1.0, -2.0, 5.0]),
        ({"missing_end_score": -3.0}, [1.0, -2.0, -3.0]),
        ({"score_clip": 1.5}, [1.0, -1.5, 1.5]),
        ({"min_response_tokens": 2, "short_response_penalty": 0.5}, [1.0, -2.5, 5.0]),
        ({"score_transform": "sigmoid"}, [2 / (1 + math.exp(-1)), 2 / (1 + math.exp(2)), 2 / (1 + math.exp(-5))]),
        # A cut answer's score is replaced after everything else.
        ({"missing_end_score": -3.0, "score_clip": 1.0, "min_response_tokens": 9}, [1.0, -1.0, -3.0]),
    ],
)
def test_scores_are_shaped_as_the_settings_say(changes: dict[str, Any], expected: list[float]) -> None:
    shaped = _ppo(**changes).shaped_scores(torch.tensor([1.0, -2.0, 5.0]), _completions())
    assert shaped.tolist() == pytest.approx(expected, abs=1e-6)


def test_scores_are_normalised_by_those_of_the_starting_policy() -> None:
    algorithm = _ppo(score_normalisation="reference", rollouts_per_step=4096)
    reference, reward = oracle.distribution(algorithm.reference), oracle.rewards(1)
    mean = float((reference * reward).sum())
    deviation = float((reference * (reward - mean).square()).sum().sqrt())
    assert algorithm.score_mean == pytest.approx(mean, abs=4 * deviation / 64)
    assert algorithm.score_deviation == pytest.approx(deviation, rel=0.1)
    shaped = algorithm.shaped_scores(torch.tensor([1.0, -2.0, 5.0]), _completions())
    expected = (torch.tensor([1.0, -2.0, 5.0]) - algorithm.score_mean) / algorithm.score_deviation
    assert torch.allclose(shaped, expected)


@pytest.mark.parametrize("flat", [0.25, 0.1, 1000 / 7])
def test_a_flat_reward_is_not_blown_up_by_normalisation(flat: float) -> None:
    """256 times 0.1 has a deviation of 1e-8 in float32, and a mean that is not quite 0.1."""
    algorithm = _ppo(reward=RuleReward(lambda prompt, completion: flat), score_normalisation="reference")
    assert algorithm.score_deviation == 1.0
    assert algorithm.shaped_scores(torch.full((3,), flat), _completions()).tolist() == pytest.approx([0] * 3, abs=1e-4)


@pytest.mark.parametrize("max_tokens", [1, 8192])
def test_the_first_gradients_are_those_of_the_mean_losses(max_tokens: int) -> None:
    """Written out: at ratio 1 the policy loss has the gradient of -advantage * log-probability, a mean over tokens."""
    changes = {"whiten_advantages": False, "rollouts_per_step": 48, "minibatch_size": 48}
    algorithm = _ppo(max_tokens_per_micro_batch=max_tokens, **changes)
    with torch.no_grad():
        algorithm.critic.head.weight.fill_(0.1)
    measures = _step(algorithm)
    again = _ppo(**changes)
    with torch.no_grad():
        again.critic.head.weight.fill_(0.1)
    rollout = again.credit(*again.collect(0, [0] * 48))
    batch = pack(rollout.groups)
    (-rollout.advantages * again.policy.logprobs(batch).logprobs).mean().backward()
    (0.5 * (again.critic.before_targets(batch) - rollout.returns).square()).mean().backward()
    for role, name in ((again.policy, "policy_gradient_norm"), (again.critic, "critic_gradient_norm")):
        gradients = [value.grad.flatten() for value in role.parameters().values() if value.grad is not None]
        assert measures[name] == pytest.approx(float(torch.cat(gradients).norm()), rel=1e-4)


@pytest.mark.parametrize(("target", "direction"), [(1e-4, 1), (50.0, -1)])
def test_the_adaptive_coefficient_steers_towards_its_target(target: float, direction: int) -> None:
    algorithm = _ppo(kl_control="adaptive", kl_target=target, kl_horizon=1000.0)
    paid = [_step(algorithm, step)["kl_coefficient"] for step in range(3)]
    assert paid[0] == CONFIG.kl_coefficient, "the first rollout pays what the settings say"
    assert direction * (paid[2] - paid[1]) > 0
    assert abs(paid[2] / paid[1] - 1) <= 0.2 * CONFIG.rollouts_per_step / 1000 + 1e-9


def test_a_fixed_coefficient_stays() -> None:
    algorithm = _ppo()
    assert [_step(algorithm, step)["kl_coefficient"] for step in range(3)] == [CONFIG.kl_coefficient] * 3


def test_the_kl_budget_ends_the_run(tmp_path: Path) -> None:
    algorithm = _ppo(kl_budget=0.3, kl_coefficient=0.0, num_steps=40, learning_rate=3e-4)
    rows = oracle.train(algorithm, tmp_path / "run").read_metrics()
    spent = [row["kl_policy_from_reference"] for row in rows[1:]]
    assert 2 < len(spent) < 40
    assert 0.3 < spent[-1] < 0.55, "the first rollout past the budget is the last"
    assert all(nats <= 0.3 for nats in spent[:-1])


def test_the_update_limit_ends_the_updates_of_a_rollout() -> None:
    free, held = (_ppo(update_kl_limit=limit, epochs_per_rollout=4) for limit in (None, 1e-7))
    assert _step(free)["stopped_early"] == 0.0
    assert _step(held)["stopped_early"] == 1.0
    assert free.policy_update.num_done == 16
    # The first minibatch still sees the policy that sampled; the second is past the limit.
    assert held.policy_update.num_done == held.critic_update.num_done == 2


def test_only_the_critic_learns_while_it_warms_up() -> None:
    algorithm = _ppo(critic_warmup_steps=1)
    before = oracle.distribution(algorithm.policy)
    critic = algorithm.critic.head.weight.detach().clone()
    measures = _step(algorithm, 0)
    assert torch.equal(oracle.distribution(algorithm.policy), before)
    assert not torch.equal(algorithm.critic.head.weight, critic)
    assert "policy_loss" not in measures
    assert "policy_loss" in _step(algorithm, 1)
    assert not torch.equal(oracle.distribution(algorithm.policy), before)


@pytest.mark.parametrize("bootstrap", [False, True])
def test_a_cut_answer_may_count_what_it_might_still_have_earned(bootstrap: bool) -> None:
    algorithm = _ppo(bootstrap_truncated=bootstrap, gae_lambda=1.0, whiten_advantages=False)
    with torch.no_grad():
        algorithm.critic.head.weight.fill_(0.2)
    rollout, rewards = algorithm.collect(0, [0] * 256)
    credited = algorithm.credit(rollout, rewards)
    is_last = torch.cat([rollout.segment[1:] != rollout.segment[:-1], torch.tensor([True])])
    cut = torch.tensor([not completion.ended for completion in rollout.completions])
    assert 0 < int(cut.sum()) < 256
    extra = credited.returns[is_last] - rewards[is_last]
    expected = torch.where(cut, rollout.end_values, 0.0) if bootstrap else torch.zeros(256)
    assert torch.allclose(extra, expected, atol=1e-5)


def test_each_reward_token_is_its_kl_and_the_last_also_its_score() -> None:
    algorithm = _ppo()
    with torch.no_grad():
        for parameter in algorithm.policy.parameters().values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    rollout, rewards = algorithm.collect(0, [0] * 64)
    at = 0
    for group, score in zip(rollout.groups, rollout.scores.tolist(), strict=True):
        length = len(group.responses[0])
        for place in range(at, at + length):
            expected = -CONFIG.kl_coefficient * float(rollout.logprobs[place] - rollout.reference_logprobs[place])
            expected += score if place == at + length - 1 else 0.0
            assert float(rewards[place]) == pytest.approx(expected, abs=1e-5)
        at += length
    assert at == len(rewards)


def test_advantages_are_whitened_over_the_rollout() -> None:
    algorithm = _ppo(whiten_advantages=True)
    advantages = algorithm.credit(*algorithm.collect(0, [0] * 256)).advantages
    assert float(advantages.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(advantages.square().mean()) == pytest.approx(1.0, abs=1e-3)


def test_a_reward_that_is_not_finite_is_an_error() -> None:
    algorithm = _ppo(reward=RuleReward(lambda prompt, completion: float("nan")))
    with pytest.raises(TrainingError, match="reward source's scores is nan"):
        _step(algorithm)


def test_under_bfloat16_the_first_ratio_is_one_because_both_sides_are_computed_alike() -> None:
    policy = Policy(Backbone(oracle.network(1), precision="bfloat16"), oracle.TOKENIZER)
    algorithm = _ppo(policy=policy, minibatch_size=256)
    assert _step(algorithm)["first_log_ratio_gap"] < 1e-3


def test_evaluation_uses_the_same_random_numbers_every_time() -> None:
    algorithm = _ppo()
    one, other = (algorithm.evaluate() for _ in range(2))
    assert one == other
    measures, samples = one
    assert measures["score"].count == measures["judge"].count == len(samples) == 3
    assert measures["judge"].mean == 0.0
    assert measures["kl_policy_from_reference"].mean == pytest.approx(0.0, abs=1e-4)
    assert measures["score"].total == pytest.approx(sum(float(sample.details["score"]) for sample in samples))


def test_a_constant_reward_leaves_the_policy_at_the_reference(tmp_path: Path) -> None:
    """Over four seeds it drifts by 0.007 to 0.023 in total variation; a real reward moves the policy by 0.76 and up."""
    algorithm = _ppo(reward=ConstantReward(), num_steps=20, kl_coefficient=0.1, learning_rate=3e-4)
    before = oracle.distribution(algorithm.policy)
    oracle.train(algorithm, tmp_path / "run")
    assert oracle.total_variation(oracle.distribution(algorithm.policy), before) <= 0.05


def test_a_shuffled_reward_teaches_nothing(tmp_path: Path) -> None:
    """The real reward gains more than 0.2 in the same steps."""
    reward = oracle.rewards(1)
    gains = {}
    for name, source in (
        ("real", oracle.reward_source(reward)),
        ("shuffled", ShuffledReward(oracle.reward_source(reward), seed=1)),
    ):
        algorithm = _ppo(reward=source, num_steps=20, kl_coefficient=0.1)
        before = float((oracle.distribution(algorithm.policy) * reward).sum())
        oracle.train(algorithm, tmp_path / name)
        gains[name] = float((oracle.distribution(algorithm.policy) * reward).sum()) - before
    assert gains["real"] > 0.2
    assert abs(gains["shuffled"]) < 0.1
