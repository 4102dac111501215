"""The clipped surrogate, the value loss and the KL controller."""

import math
from typing import Any

import pytest
import torch

from prefloop.errors import SettingsError, TrainingError
from prefloop.formulas.policy_losses import adapted_kl_coefficient, clip_fraction, clipped_surrogate, value_loss


def random_pair(*, seed: int = 0, num_tokens: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_ratio, advantages = torch.randn(2, num_tokens, generator=generator, dtype=torch.float64)
    return 0.5 * log_ratio, advantages


def test_surrogate_by_hand():
    ratios = torch.tensor([1.5, 1.5, 0.5, 0.5, 1.1, 1.0])
    advantages = torch.tensor([2.0, -2.0, 2.0, -2.0, 3.0, -1.0])
    loss = clipped_surrogate(ratios.log(), advantages, clip_range=0.2)
    assert loss.tolist() == pytest.approx([-2.4, 3.0, -1.0, 1.6, -3.3, 1.0])
    assert clip_fraction(ratios.log(), advantages, clip_range=0.2).tolist() == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("clip_range", [0.05, 0.2, 0.9])
def test_surrogate_equals_a_naive_loop(clip_range: float):
    log_ratio, advantages = random_pair()
    losses = clipped_surrogate(log_ratio, advantages, clip_range=clip_range).tolist()
    clipped = clip_fraction(log_ratio, advantages, clip_range=clip_range).tolist()
    for loss, is_clipped, x, advantage in zip(losses, clipped, log_ratio.tolist(), advantages.tolist(), strict=True):
        ratio = math.exp(x)
        held = max(1 - clip_range, min(1 + clip_range, ratio))
        assert loss == pytest.approx(-min(ratio * advantage, held * advantage), abs=1e-12)
        assert is_clipped == float(held * advantage < ratio * advantage)
    assert 0 < sum(clipped) < len(clipped)


def test_the_gradient_pushes_with_the_advantage_and_stops_where_clipped():
    log_ratio, advantages = random_pair()
    log_ratio.requires_grad_()
    (gradient,) = torch.autograd.grad(clipped_surrogate(log_ratio, advantages, clip_range=0.2).sum(), log_ratio)
    stopped = clip_fraction(log_ratio, advantages, clip_range=0.2).bool()
    assert torch.equal(gradient[stopped], torch.zeros_like(gradient[stopped]))
    # A descent step follows minus the gradient: up for a good token, down for a bad one.
    assert torch.equal(-gradient[~stopped].sign(), advantages[~stopped].sign())


def test_at_the_old_policy_it_is_the_policy_gradient():
    _, advantages = random_pair()
    log_ratio = torch.zeros_like(advantages).requires_grad_()
    loss = clipped_surrogate(log_ratio, advantages, clip_range=0.2)
    assert torch.equal(loss, -advantages)
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
    assert torch.equal(gradient, -advantages)
    assert clip_fraction(log_ratio, advantages, clip_range=0.2).sum() == 0


def test_a_ratio_that_overflows_is_clipped_without_nan():
    log_ratio = torch.tensor([1e4, -1e4, 1e4], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0, 0.0])
    loss = clipped_surrogate(log_ratio, advantages, clip_range=0.2)
    assert loss.tolist() == pytest.approx([-1.2, 0.8, 0.0])
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
    assert gradient.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("clip_range", [0.0, -0.2, 1.0, math.nan])
def test_a_policy_clip_range_outside_its_bounds_is_refused(clip_range: float):
    for function in (clipped_surrogate, clip_fraction):
        with pytest.raises(SettingsError, match="clip_range"):
            function(torch.zeros(1), torch.zeros(1), clip_range=clip_range)


def test_value_loss_by_hand():
    values, old_values, returns = torch.tensor([2.0, 2.0]), torch.tensor([1.0, 1.0]), torch.tensor([3.0, 0.0])
    assert value_loss(values, old_values, returns, clip_range=None).tolist() == [0.5, 2.0]
    # Held within 0.5 of 1: 1.5. Errors 1.5 and 1.5 against 1 and 2; the larger one counts.
    assert value_loss(values, old_values, returns, clip_range=0.5).tolist() == [1.125, 2.0]


def test_value_loss_equals_a_naive_loop_and_without_a_reachable_bound_the_plain_error():
    generator = torch.Generator().manual_seed(4)
    values, old_values, returns = torch.randn(3, 100, generator=generator, dtype=torch.float64)
    losses = value_loss(values, old_values, returns, clip_range=0.3).tolist()
    for loss, value, old, target in zip(losses, values.tolist(), old_values.tolist(), returns.tolist(), strict=True):
        held = max(old - 0.3, min(old + 0.3, value))
        assert loss == pytest.approx(0.5 * max((value - target) ** 2, (held - target) ** 2), abs=1e-12)
    plain = value_loss(values, old_values, returns, clip_range=None)
    assert torch.allclose(value_loss(values, old_values, returns, clip_range=1e3), plain, atol=1e-14)


def test_the_value_gradient_points_at_the_return_and_stops_past_the_bound():
    values = torch.tensor([0.0, 2.0, 1.4], requires_grad=True)
    old_values, returns = torch.tensor([0.0, 1.0, 1.0]), torch.tensor([1.0, 3.0, 1.0])
    (gradient,) = torch.autograd.grad(value_loss(values, old_values, returns, clip_range=0.5).sum(), values)
    # Below its return: up. Moved a whole unit towards its return: stop. Above its return: down.
    assert gradient.tolist() == pytest.approx([-1.0, 0.0, 0.4])


@pytest.mark.parametrize("clip_range", [0.0, -1.0, math.nan])
def test_a_value_clip_range_that_is_not_positive_is_refused(clip_range: float):
    with pytest.raises(SettingsError, match="clip_range"):
        value_loss(torch.zeros(1), torch.zeros(1), torch.zeros(1), clip_range=clip_range)


def test_controller_by_hand():
    settings = {"target_kl": 6.0, "horizon": 10_000.0, "num_samples": 500}
    assert adapted_kl_coefficient(0.2, 6.0, **settings) == 0.2
    assert adapted_kl_coefficient(0.2, 6.6, **settings) == pytest.approx(0.2 * (1 + 0.1 * 0.05))
    # Errors beyond 20 % count as 20 %, on both sides; a sampled KL may even be negative.
    assert adapted_kl_coefficient(0.2, 600.0, **settings) == pytest.approx(0.2 * 1.01)
    assert adapted_kl_coefficient(0.2, -3.0, **settings) == pytest.approx(0.2 * 0.99)


def test_controller_settles_where_the_divergence_meets_its_target():
    # A policy whose divergence answers the coefficient at once: KL = 3 / coefficient.
    coefficient = 0.1
    for _ in range(2000):
        coefficient = adapted_kl_coefficient(coefficient, 3 / coefficient, target_kl=6, horizon=1000, num_samples=100)
    assert coefficient == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("target_kl", 0.0), ("target_kl", -1.0), ("horizon", 0.0), ("horizon", math.inf), ("num_samples", 0)],
)
def test_controller_settings_that_are_not_positive_are_refused(setting: str, value: float):
    settings: dict[str, Any] = {"target_kl": 6.0, "horizon": 1000.0, "num_samples": 100} | {setting: value}
    with pytest.raises(SettingsError, match=setting):
        adapted_kl_coefficient(0.2, 6.0, **settings)


def test_controller_refuses_a_negative_coefficient_before_and_after():
    with pytest.raises(SettingsError, match="coefficient is -"):
        adapted_kl_coefficient(-0.1, 6.0, target_kl=6.0, horizon=1000.0, num_samples=100)
    with pytest.raises(SettingsError, match="horizon above 20"):
        adapted_kl_coefficient(0.1, 6.0, target_kl=6.0, horizon=20.0, num_samples=100)
    with pytest.raises(TrainingError, match="observed KL is nan"):
        adapted_kl_coefficient(0.1, math.nan, target_kl=6.0, horizon=1000.0, num_samples=100)
