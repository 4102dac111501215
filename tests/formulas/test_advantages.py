"""Advantages of ragged responses against the recursion written out by hand."""

import math
import time

import pytest
import torch

from prefloop.errors import DataError, SettingsError
from prefloop.formulas.advantages import generalised_advantages, score_on_last_token, whiten

LENGTHS = [4, 1, 7, 2]


def ragged(*, seed: int = 0, lengths: list[int] | None = None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    lengths = lengths or LENGTHS
    generator = torch.Generator().manual_seed(seed)
    rewards, values = torch.randn(2, sum(lengths), generator=generator, dtype=torch.float64)
    segment = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    return rewards, values, segment


def naive_advantages(rewards, values, lengths, *, discount: float, gae_lambda: float, bootstrap) -> list[float]:
    advantages: list[float] = []
    for part_rewards, part_values, value_after_end in zip(
        rewards.split(lengths), values.split(lengths), bootstrap, strict=True
    ):
        running, value_after, reversed_advantages = 0.0, value_after_end, []
        for reward, value in zip(reversed(part_rewards.tolist()), reversed(part_values.tolist()), strict=True):
            running = reward + discount * value_after - value + discount * gae_lambda * running
            value_after = value
            reversed_advantages.append(running)
        advantages += reversed(reversed_advantages)
    return advantages


def test_by_hand():
    advantages, returns = generalised_advantages(
        torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.25]), torch.tensor([0, 0]), discount=0.5, gae_lambda=0.5
    )
    # Errors: 0 + 0.5 * 0.25 - 0.5 = -0.375 and 1 - 0.25 = 0.75; the first advantage is -0.375 + 0.25 * 0.75.
    assert advantages.tolist() == [-0.1875, 0.75]
    assert returns.tolist() == [0.3125, 1.0]


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("gae_lambda", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("bootstrap", [None, [0.0, 2.0, 0.0, -3.0]])
def test_equals_the_naive_recursion(discount: float, gae_lambda: float, bootstrap: list[float] | None):
    rewards, values, segment = ragged()
    advantages, returns = generalised_advantages(
        rewards,
        values,
        segment,
        discount=discount,
        gae_lambda=gae_lambda,
        bootstrap_values=None if bootstrap is None else torch.tensor(bootstrap, dtype=torch.float64),
    )
    naive = naive_advantages(
        rewards, values, LENGTHS, discount=discount, gae_lambda=gae_lambda, bootstrap=bootstrap or [0.0] * 4
    )
    assert advantages.tolist() == pytest.approx(naive, abs=1e-12)
    assert torch.equal(returns, advantages + values)


def test_lambda_one_is_the_discounted_return_and_lambda_zero_one_error():
    rewards, values, segment = ragged(lengths=[5])
    _, returns = generalised_advantages(rewards, values, segment, discount=0.9, gae_lambda=1.0)
    assert returns[0].item() == pytest.approx(sum(0.9**step * reward for step, reward in enumerate(rewards.tolist())))
    advantages, _ = generalised_advantages(rewards, values, segment, discount=0.9, gae_lambda=0.0)
    expected = rewards - values
    expected[:-1] += 0.9 * values[1:]
    assert torch.allclose(advantages, expected, atol=1e-14)


def test_the_value_of_a_perfect_critic_leaves_no_advantage():
    # One reward of 3 at the end: with discount 1 every value before it is 3.
    segment = torch.tensor([0, 0, 0, 1, 1])
    rewards, values = torch.tensor([0.0, 0.0, 3.0, 0.0, -1.0]), torch.tensor([3.0, 3.0, 3.0, -1.0, -1.0])
    advantages, returns = generalised_advantages(rewards, values, segment, discount=1.0, gae_lambda=0.95)
    assert torch.equal(advantages, torch.zeros(5))
    assert torch.equal(returns, values)


def test_a_truncated_response_with_the_critics_estimate_is_as_if_it_went_on():
    rewards, values, segment = ragged(lengths=[6])
    rewards[3:] = 0.0
    rewards[3], values[4:] = 0.7, 0.0
    whole, _ = generalised_advantages(rewards, values, segment, discount=1.0, gae_lambda=0.0)
    cut, _ = generalised_advantages(
        rewards[:3], values[:3], segment[:3], discount=1.0, gae_lambda=0.0, bootstrap_values=values[3:4]
    )
    assert torch.allclose(cut, whole[:3], atol=1e-14)


@pytest.mark.parametrize("poison", [1e9, math.nan])
def test_poison_in_one_response_stays_there(poison: float):
    rewards, values, segment = ragged()
    bootstrap = torch.ones(4, dtype=torch.float64)
    clean, _ = generalised_advantages(
        rewards, values, segment, discount=1.0, gae_lambda=0.95, bootstrap_values=bootstrap
    )
    in_second = segment == 1
    for tensor in (rewards, values):
        tensor[in_second] = poison
    bootstrap[1] = poison
    poisoned, _ = generalised_advantages(
        rewards, values, segment, discount=1.0, gae_lambda=0.95, bootstrap_values=bootstrap
    )
    assert torch.equal(poisoned[~in_second], clean[~in_second])
    assert not torch.equal(poisoned[in_second], clean[in_second])


def test_later_rewards_raise_earlier_advantages_only():
    rewards, values, segment = ragged()
    before, _ = generalised_advantages(rewards, values, segment, discount=0.9, gae_lambda=0.9)
    rewards[8] += 1.0  # the fourth token of the third response, which starts at 5
    after, _ = generalised_advantages(rewards, values, segment, discount=0.9, gae_lambda=0.9)
    change = (after - before).tolist()
    assert change == pytest.approx([0.0] * 5 + [0.81**3, 0.81**2, 0.81, 1.0] + [0.0] * 5, abs=1e-12)


def test_no_gradient_flows():
    rewards, values, segment = ragged()
    results = generalised_advantages(rewards, values.requires_grad_(), segment, discount=1.0, gae_lambda=0.9)
    assert not any(result.requires_grad for result in results)


def test_an_empty_batch_and_a_response_without_tokens():
    empty = torch.zeros(0)
    advantages, returns = generalised_advantages(empty, empty, empty.long(), discount=1.0, gae_lambda=1.0)
    assert len(advantages) == len(returns) == 0
    gap = torch.tensor([0, 2])
    advantages, _ = generalised_advantages(torch.ones(2), torch.zeros(2), gap, discount=1.0, gae_lambda=1.0)
    assert advantages.tolist() == [1.0, 1.0]


def test_what_is_refused():
    rewards, values, segment = ragged()
    for discount, gae_lambda in ((1.1, 0.9), (1.0, -0.1)):
        with pytest.raises(SettingsError, match="between 0 and 1"):
            generalised_advantages(rewards, values, segment, discount=discount, gae_lambda=gae_lambda)
    with pytest.raises(DataError, match="stand together"):
        generalised_advantages(rewards, values, segment.flip(0), discount=1.0, gae_lambda=1.0)
    with pytest.raises(DataError, match="response 3, but only 3"):
        generalised_advantages(
            rewards, values, segment, discount=1.0, gae_lambda=1.0, bootstrap_values=torch.zeros(3).double()
        )


def test_a_rollout_batch_takes_milliseconds():
    rewards, values, segment = ragged(lengths=[100] * 256)
    started = time.perf_counter()
    generalised_advantages(rewards, values, segment, discount=1.0, gae_lambda=0.95)
    assert time.perf_counter() - started < 0.5


def test_whiten_by_hand():
    assert whiten(torch.tensor([1.0, 3.0])).tolist() == pytest.approx([-1.0, 1.0])
    assert whiten(torch.tensor([1.0, 3.0]), shift_mean=False).tolist() == pytest.approx([1.0, 3.0])
    assert whiten(torch.tensor([0.0, 4.0]), shift_mean=False).tolist() == pytest.approx([1.0, 3.0])


def test_whiten_equals_a_naive_loop():
    values = 5 + 3 * torch.randn(50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean = sum(values.tolist()) / 50
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values.tolist()) / 50)
    assert whiten(values).tolist() == pytest.approx([(value - mean) / deviation for value in values.tolist()])
    kept = whiten(values, shift_mean=False)
    assert kept.mean().item() == pytest.approx(mean)
    assert kept.var(correction=0).item() == pytest.approx(1)


@pytest.mark.parametrize("constant", [0.0, 0.1, 1000.1, -3e5])
@pytest.mark.parametrize("num_tokens", [1, 1001])
def test_whitening_a_constant_stays_finite(constant: float, num_tokens: int):
    values = torch.full((num_tokens,), constant)
    assert whiten(values).abs().max() < 1e-3
    assert torch.allclose(whiten(values, shift_mean=False), values)


def test_score_on_last_token():
    segment = torch.tensor([0, 0, 0, 1, 2, 2])
    scores = torch.tensor([5.0, -1.0, 2.0])
    assert score_on_last_token(scores, segment, token_count=6).tolist() == [0.0, 0.0, 5.0, -1.0, 0.0, 2.0]
    scores[1] = math.nan
    assert score_on_last_token(scores, segment, token_count=6)[[0, 1, 2, 4, 5]].tolist() == [0.0, 0.0, 5.0, 0.0, 2.0]


def test_score_on_last_token_equals_a_naive_loop():
    _, _, segment = ragged()
    scores = torch.randn(4, generator=torch.Generator().manual_seed(2))
    naive = []
    for length, score in zip(LENGTHS, scores.tolist(), strict=True):
        naive += [0.0] * (length - 1) + [score]
    assert score_on_last_token(scores, segment, token_count=14).tolist() == naive


def test_a_score_without_a_place_is_refused():
    with pytest.raises(DataError, match="Response 1 has no tokens"):
        score_on_last_token(torch.ones(3), torch.tensor([0, 2]), token_count=2)
    with pytest.raises(DataError, match="only 1 responses"):
        score_on_last_token(torch.ones(1), torch.tensor([0, 1]), token_count=2)
    with pytest.raises(DataError, match="2 segment numbers were given for 3 tokens"):
        score_on_last_token(torch.ones(2), torch.tensor([0, 1]), token_count=3)
