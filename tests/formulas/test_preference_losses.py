"""Pairwise and direct preference losses: numbers, identities, extremes and closed-form gradients."""

import math

import pytest
import torch

from prefloop.errors import DataError, SettingsError
from prefloop.formulas.preference_losses import (
    binary_cross_entropy,
    bradley_terry_loss,
    dpo_hinge_loss,
    dpo_ipo_loss,
    dpo_sigmoid_loss,
    implicit_reward,
)


def random_pairs(*, seed: int = 0, num_pairs: int = 60) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    chosen, rejected = 3 * torch.randn(2, num_pairs, generator=generator, dtype=torch.float64)
    return chosen, rejected


def random_targets(*, num_pairs: int = 60) -> torch.Tensor:
    return torch.rand(num_pairs, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def naive_cross_entropy(margin: float, target: float) -> float:
    probability = 1 / (1 + math.exp(-margin))
    return -target * math.log(probability) - (1 - target) * math.log(1 - probability)


def test_bradley_terry_by_hand():
    chosen, rejected = torch.tensor([math.log(3.0)]), torch.tensor([0.0])
    assert bradley_terry_loss(chosen, rejected).item() == pytest.approx(-math.log(0.75))
    soft = bradley_terry_loss(chosen, rejected, target=torch.tensor([0.6])).item()
    assert soft == pytest.approx(-0.6 * math.log(0.75) - 0.4 * math.log(0.25))


def test_logistic_losses_equal_a_naive_loop():
    chosen, rejected = random_pairs()
    targets = random_targets()
    certain = bradley_terry_loss(chosen, rejected).tolist()
    soft = bradley_terry_loss(chosen, rejected, target=targets).tolist()
    single = binary_cross_entropy(chosen, targets).tolist()
    direct = dpo_sigmoid_loss(chosen, rejected, beta=0.3, label_smoothing=0.1, target=targets).tolist()
    smoothed = dpo_sigmoid_loss(chosen, rejected, beta=0.3, label_smoothing=0.1).tolist()
    for row, (a, b, target) in enumerate(zip(chosen.tolist(), rejected.tolist(), targets.tolist(), strict=True)):
        assert certain[row] == pytest.approx(naive_cross_entropy(a - b, 1.0), abs=1e-10)
        assert soft[row] == pytest.approx(naive_cross_entropy(a - b, target), abs=1e-10)
        assert single[row] == pytest.approx(naive_cross_entropy(a, target), abs=1e-10)
        flipped = 0.9 * target + 0.1 * (1 - target)
        assert direct[row] == pytest.approx(naive_cross_entropy(0.3 * (a - b), flipped), abs=1e-10)
        assert smoothed[row] == pytest.approx(naive_cross_entropy(0.3 * (a - b), 0.9), abs=1e-10)


def test_equal_rewards_cost_ln_2():
    same = torch.tensor([7.5])
    assert bradley_terry_loss(same, same).item() == pytest.approx(math.log(2))
    assert bradley_terry_loss(same, same, target=torch.tensor([0.2])).item() == pytest.approx(math.log(2))
    assert dpo_sigmoid_loss(same, same, beta=0.1).item() == pytest.approx(math.log(2))
    assert binary_cross_entropy(torch.zeros(1), torch.ones(1)).item() == pytest.approx(math.log(2))
    assert dpo_hinge_loss(same, same, beta=0.1).item() == 1.0
    assert dpo_ipo_loss(same, same, beta=0.1).item() == pytest.approx(25.0)


def test_odd_part_is_linear():
    chosen, rejected = random_pairs()
    difference = bradley_terry_loss(chosen, rejected) - bradley_terry_loss(rejected, chosen)
    assert torch.allclose(difference, -(chosen - rejected), atol=1e-12)
    difference = dpo_sigmoid_loss(chosen, rejected, beta=0.3) - dpo_sigmoid_loss(rejected, chosen, beta=0.3)
    assert torch.allclose(difference, -0.3 * (chosen - rejected), atol=1e-12)


def test_swapping_a_pair_and_its_target_changes_nothing():
    chosen, rejected = random_pairs()
    targets = random_targets()
    assert torch.allclose(
        bradley_terry_loss(chosen, rejected, target=targets), bradley_terry_loss(rejected, chosen, target=1 - targets)
    )
    assert torch.allclose(
        dpo_sigmoid_loss(chosen, rejected, beta=0.3, label_smoothing=0.2, target=targets),
        dpo_sigmoid_loss(rejected, chosen, beta=0.3, label_smoothing=0.2, target=1 - targets),
    )


def test_a_target_of_one_is_the_certain_label_and_texts_are_pairs_against_zero():
    chosen, rejected = random_pairs()
    ones = torch.ones_like(chosen)
    assert torch.equal(bradley_terry_loss(chosen, rejected, target=ones), bradley_terry_loss(chosen, rejected))
    assert torch.equal(binary_cross_entropy(chosen, ones), bradley_terry_loss(chosen, torch.zeros_like(chosen)))


def test_dpo_is_bradley_terry_on_implicit_rewards():
    policy, reference = random_pairs()
    rewards = implicit_reward(policy, reference, beta=0.3)
    chosen, rejected = rewards[:30], rewards[30:]
    log_ratio = policy - reference
    direct = dpo_sigmoid_loss(log_ratio[:30], log_ratio[30:], beta=0.3)
    assert torch.allclose(direct, bradley_terry_loss(chosen, rejected), atol=1e-12)
    assert implicit_reward(torch.tensor([-2.0]), torch.tensor([-5.0]), beta=0.5).item() == 1.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_margins_of_ten_thousand_stay_exact(dtype: torch.dtype):
    margin = torch.tensor([1e4, -1e4, 1e4, -1e4, 30.0, -30.0], dtype=dtype, requires_grad=True)
    target = torch.tensor([1.0, 1.0, 0.0, 0.25, 1.0, 0.0], dtype=dtype)
    loss = bradley_terry_loss(margin, torch.zeros_like(margin), target=target)
    tiny = math.exp(-30.0)
    assert loss.tolist() == pytest.approx([0.0, 1e4, 1e4, 2500.0, tiny, tiny], rel=1e-5, abs=0.0)
    (gradient,) = torch.autograd.grad(loss.sum(), margin)
    assert gradient.tolist() == pytest.approx([0.0, -1.0, 1.0, -0.25, -tiny, tiny], rel=1e-5, abs=0.0)


def test_gradients_equal_their_closed_forms():
    chosen, rejected = (ratio.requires_grad_() for ratio in random_pairs())
    targets, beta = random_targets(), 0.3
    margin = chosen.detach() - rejected.detach()
    cases = [
        (bradley_terry_loss(chosen, rejected, target=targets), margin.sigmoid() - targets),
        (dpo_sigmoid_loss(chosen, rejected, beta=beta), -beta * (-beta * margin).sigmoid()),
        (dpo_ipo_loss(chosen, rejected, beta=beta), 2 * (margin - 1 / (2 * beta))),
        (dpo_hinge_loss(chosen, rejected, beta=beta), -beta * (beta * margin < 1).double()),
    ]
    for loss, expected in cases:
        for_chosen, for_rejected = torch.autograd.grad(loss.sum(), (chosen, rejected))
        assert torch.allclose(for_chosen, expected, atol=1e-12)
        assert torch.allclose(for_rejected, -expected, atol=1e-12)


def test_ipo_and_hinge_by_hand_and_at_their_targets():
    chosen, rejected = torch.tensor([3.0]), torch.tensor([1.0])
    assert dpo_ipo_loss(chosen, rejected, beta=0.5).item() == pytest.approx(1.0)
    assert dpo_ipo_loss(chosen, rejected, beta=0.25).item() == 0.0
    assert dpo_hinge_loss(chosen, rejected, beta=0.25).item() == 0.5
    assert dpo_hinge_loss(chosen, rejected, beta=0.5).item() == 0.0
    assert dpo_hinge_loss(chosen, rejected, beta=5.0).item() == 0.0


def test_ipo_and_hinge_equal_a_naive_loop():
    chosen, rejected = random_pairs()
    ipo, hinge = dpo_ipo_loss(chosen, rejected, beta=0.2), dpo_hinge_loss(chosen, rejected, beta=0.2)
    for row, (a, b) in enumerate(zip(chosen.tolist(), rejected.tolist(), strict=True)):
        assert ipo[row].item() == pytest.approx((a - b - 2.5) ** 2)
        assert hinge[row].item() == pytest.approx(max(0.0, 1 - 0.2 * (a - b)))


def test_the_best_margin_reproduces_the_target():
    # A soft label of 0.8 is fitted when sigmoid(beta * margin) = 0.8.
    best = torch.tensor([math.log(4.0) / 0.1], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0.8], dtype=torch.float64)
    loss = dpo_sigmoid_loss(best, torch.zeros_like(best), beta=0.1, target=target)
    (gradient,) = torch.autograd.grad(loss.sum(), best)
    assert gradient.item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("poison", [1e9, math.nan])
def test_poison_in_one_pair_stays_there(poison: float):
    chosen, rejected = random_pairs()
    poisoned = chosen.clone()
    poisoned[3] = poison
    kept = torch.arange(60) != 3
    for loss in (dpo_sigmoid_loss, dpo_ipo_loss, dpo_hinge_loss):
        expected = loss(chosen, rejected, beta=0.1)[kept]
        assert torch.equal(loss(poisoned, rejected, beta=0.1)[kept], expected)


@pytest.mark.parametrize("wrong", [-0.1, 1.1, math.nan])
def test_a_label_that_is_no_probability_is_refused(wrong: float):
    target = torch.tensor([0.5, wrong])
    for call in (
        lambda: bradley_terry_loss(torch.zeros(2), torch.zeros(2), target=target),
        lambda: binary_cross_entropy(torch.zeros(2), target),
        lambda: dpo_sigmoid_loss(torch.zeros(2), torch.zeros(2), beta=0.1, target=target),
        lambda: dpo_sigmoid_loss(torch.zeros(2), torch.zeros(2), beta=0.1, label_smoothing=0.4, target=target),
    ):
        with pytest.raises(DataError, match="row 1"):
            call()


@pytest.mark.parametrize("beta", [0.0, -0.1, math.inf, math.nan])
def test_a_beta_that_is_not_positive_is_refused(beta: float):
    for function in (dpo_sigmoid_loss, dpo_ipo_loss, dpo_hinge_loss, implicit_reward):
        with pytest.raises(SettingsError, match="beta"):
            function(torch.zeros(1), torch.zeros(1), beta=beta)


@pytest.mark.parametrize("label_smoothing", [-0.1, 0.5, math.nan])
def test_label_smoothing_outside_its_bounds_is_refused(label_smoothing: float):
    with pytest.raises(SettingsError, match="label_smoothing"):
        dpo_sigmoid_loss(torch.zeros(1), torch.zeros(1), beta=0.1, label_smoothing=label_smoothing)
