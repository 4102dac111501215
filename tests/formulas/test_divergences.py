"""Divergence estimators against exact enumeration of every outcome."""

import math

import pytest
import torch

from prefloop.errors import SettingsError
from prefloop.formulas.divergences import (
    best_of_n_kl_bound,
    kl_exact,
    kl_policy_from_reference_k1,
    kl_policy_from_reference_k2,
    kl_policy_from_reference_k3,
)

ESTIMATORS = [kl_policy_from_reference_k1, kl_policy_from_reference_k2, kl_policy_from_reference_k3]


def two_distributions(*, seed: int = 0, vocabulary: int = 9) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    policy, reference = torch.randn(2, vocabulary, generator=generator, dtype=torch.float64)
    return policy, reference


def expected_gradient(estimator, policy_logits: torch.Tensor, reference_logits: torch.Tensor) -> torch.Tensor:
    """E_{y ~ policy}[gradient of estimator(y)]: every outcome, weighted by a probability that carries no gradient."""
    policy_logits = policy_logits.clone().requires_grad_()
    logprobs = policy_logits.log_softmax(-1)
    values = estimator(logprobs, reference_logits.log_softmax(-1))
    (gradient,) = torch.autograd.grad((logprobs.exp().detach() * values).sum(), policy_logits)
    return gradient


def gradient_of_kl(policy_logits: torch.Tensor, reference_logits: torch.Tensor, *, reverse: bool = False):
    policy_logits = policy_logits.clone().requires_grad_()
    pair = (reference_logits[None], policy_logits[None]) if reverse else (policy_logits[None], reference_logits[None])
    (gradient,) = torch.autograd.grad(kl_exact(*pair).sum(), policy_logits)
    return gradient


def test_by_hand():
    policy, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert kl_policy_from_reference_k1(policy, reference).item() == pytest.approx(math.log(2))
    assert kl_policy_from_reference_k2(policy, reference).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert kl_policy_from_reference_k3(policy, reference).item() == pytest.approx(0.5 - 1 + math.log(2))
    exact = kl_exact(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
    assert exact.item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75))


@pytest.mark.parametrize("seed", range(5))
def test_k1_and_k3_are_unbiased_and_k2_is_not(seed: int):
    policy, reference = two_distributions(seed=seed)
    logprobs, reference_logprobs = policy.log_softmax(-1), reference.log_softmax(-1)
    divergence = kl_exact(policy[None], reference[None]).item()
    k1, k2, k3 = ((logprobs.exp() * estimator(logprobs, reference_logprobs)).sum().item() for estimator in ESTIMATORS)
    assert k1 == pytest.approx(divergence, abs=1e-12)
    assert k3 == pytest.approx(divergence, abs=1e-12)
    assert abs(k2 - divergence) > 1e-3


def test_the_bias_of_k2_is_of_third_order():
    policy, direction = two_distributions()
    biases = []
    for step in (0.02, 0.01):
        reference = policy + step * direction
        logprobs = policy.log_softmax(-1)
        k2 = (logprobs.exp() * kl_policy_from_reference_k2(logprobs, reference.log_softmax(-1))).sum()
        biases.append((k2 - kl_exact(policy[None], reference[None])).item())
    assert biases[0] / biases[1] == pytest.approx(8, rel=0.05)


def test_exact_divergence_equals_a_naive_loop():
    generator = torch.Generator().manual_seed(3)
    policy, reference = torch.randn(2, 6, 4, generator=generator, dtype=torch.float64)
    for row, (p, q) in enumerate(zip(policy.softmax(-1).tolist(), reference.softmax(-1).tolist(), strict=True)):
        naive = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        assert kl_exact(policy, reference)[row].item() == pytest.approx(naive, abs=1e-12)


def test_the_direction_is_policy_from_reference():
    peaked, flat = torch.tensor([[4.0, 0.0, 0.0]]), torch.zeros(1, 3)
    assert kl_exact(peaked, flat).item() == pytest.approx(math.log(3), abs=0.2)
    assert kl_exact(flat, peaked).item() == pytest.approx(-math.log(3) - 4 / 3 + math.log(math.exp(4) + 2), abs=1e-6)
    sampled = torch.tensor([-0.1]), torch.tensor([-2.0])
    assert kl_policy_from_reference_k1(*sampled).item() > 0


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_equal_distributions_have_no_divergence(estimator):
    logprobs = two_distributions()[0].log_softmax(-1)
    assert torch.equal(estimator(logprobs, logprobs), torch.zeros_like(logprobs))
    assert kl_exact(logprobs[None], logprobs[None]).item() == 0.0


def test_k3_is_never_negative_even_for_tiny_ratios():
    log_ratio = torch.cat([torch.logspace(-6, 1, 50), -torch.logspace(-6, 1, 50)])
    assert (kl_policy_from_reference_k3(log_ratio, torch.zeros(100)) >= 0).all()
    tiny = kl_policy_from_reference_k3(torch.tensor([1e-3]), torch.zeros(1)).item()
    assert tiny == pytest.approx(0.5e-6, rel=1e-2)


def test_gradients_of_the_estimators_as_losses():
    policy, reference = two_distributions()
    forward = gradient_of_kl(policy, reference)
    assert forward.abs().max() > 1e-2
    k1, k2, k3 = (expected_gradient(estimator, policy, reference) for estimator in ESTIMATORS)
    assert torch.allclose(k1, torch.zeros_like(k1), atol=1e-12)
    assert torch.allclose(k2, forward, atol=1e-12)
    assert torch.allclose(k3, gradient_of_kl(policy, reference, reverse=True), atol=1e-12)
    assert not torch.allclose(k3, forward, atol=1e-3)


def test_k1_as_a_reward_penalty_has_the_gradient_of_the_divergence():
    policy, reference = two_distributions()
    policy_logits = policy.clone().requires_grad_()
    logprobs = policy_logits.log_softmax(-1)
    penalty = kl_policy_from_reference_k1(logprobs, reference.log_softmax(-1)).detach()
    (gradient,) = torch.autograd.grad((logprobs.exp().detach() * penalty * logprobs).sum(), policy_logits)
    assert torch.allclose(gradient, gradient_of_kl(policy, reference), atol=1e-12)


def test_forbidden_tokens():
    policy = torch.tensor([[0.0, 1.0, -math.inf]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[0.5, 0.0, -math.inf]], dtype=torch.float64)
    both = kl_exact(policy, reference)
    assert both.item() == pytest.approx(kl_exact(policy[:, :2], reference[:, :2]).item(), abs=1e-14)
    (gradient,) = torch.autograd.grad(both.sum(), policy)
    assert gradient.isfinite().all()
    assert kl_exact(policy, torch.zeros(1, 3, dtype=torch.float64)).isfinite().all()
    assert kl_exact(torch.zeros(1, 3, dtype=torch.float64), reference).item() == math.inf


def test_half_precision_logits_give_float32():
    policy, reference = (logits[None].bfloat16() for logits in two_distributions())
    exact = kl_exact(policy, reference)
    assert exact.dtype == torch.float32
    assert exact.item() == pytest.approx(kl_exact(policy.double(), reference.double()).item(), abs=1e-6)


def test_best_of_n_bound():
    assert best_of_n_kl_bound(1) == 0.0
    assert best_of_n_kl_bound(4) == pytest.approx(math.log(4) - 0.75)
    # The exact divergence on many equally likely responses without ties comes close, and never exceeds the bound.
    for n, outcomes in ((2, 1000), (8, 1000), (4, 5)):
        best = [((rank + 1) / outcomes) ** n - (rank / outcomes) ** n for rank in range(outcomes)]
        exact = sum(p * math.log(p * outcomes) for p in best if p > 0)
        assert exact <= best_of_n_kl_bound(n) + 1e-12
        if outcomes == 1000:
            assert exact == pytest.approx(best_of_n_kl_bound(n), abs=1e-3)
        else:
            assert exact < best_of_n_kl_bound(n) - 0.02
    with pytest.raises(SettingsError, match="n must be at least 1"):
        best_of_n_kl_bound(0)
