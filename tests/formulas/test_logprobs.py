"""Log-probabilities of targets, entropies, and their reduction per response."""

import math

import pytest
import torch
from jaxtyping import TypeCheckError

from prefloop.errors import SettingsError
from prefloop.formulas.advantages import generalised_advantages
from prefloop.formulas.logprobs import mean_per_segment, sum_per_segment, token_entropy, token_logprobs


def random_logits(*, seed: int = 0, num_tokens: int = 7, vocabulary: int = 5) -> torch.Tensor:
    return 3 * torch.randn(num_tokens, vocabulary, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_token_logprobs_by_hand():
    logits = torch.tensor([[1.0, 2.0, 4.0]]).log()
    assert token_logprobs(logits, torch.tensor([2])).item() == pytest.approx(math.log(4 / 7))
    # Temperature 1/2 squares the odds: 1, 4, 16.
    assert token_logprobs(logits, torch.tensor([1]), temperature=0.5).item() == pytest.approx(math.log(4 / 21))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_token_logprobs_and_entropy_equal_a_naive_loop(temperature: float):
    logits, targets = random_logits(), torch.tensor([0, 4, 2, 2, 1, 3, 0])
    logprobs = token_logprobs(logits, targets, temperature=temperature)
    entropies = token_entropy(logits, temperature=temperature)
    for row, target, logprob, entropy in zip(
        logits.tolist(), targets.tolist(), logprobs.tolist(), entropies.tolist(), strict=True
    ):
        weights = [math.exp(logit / temperature) for logit in row]
        probabilities = [weight / sum(weights) for weight in weights]
        assert logprob == pytest.approx(math.log(probabilities[target]), abs=1e-12)
        assert entropy == pytest.approx(-sum(p * math.log(p) for p in probabilities), abs=1e-12)


def test_entropy_limits():
    assert token_entropy(torch.zeros(1, 8)).item() == pytest.approx(math.log(8))
    assert token_entropy(torch.tensor([[1e4, 0.0, 0.0]])).item() == 0.0
    hot = token_entropy(random_logits(), temperature=1e6)
    assert torch.allclose(hot, torch.full_like(hot, math.log(5)), atol=1e-9)


def test_a_forbidden_token_adds_nothing_to_entropy_or_gradient():
    allowed = random_logits(vocabulary=4).requires_grad_()
    forbidden = torch.cat([allowed.detach(), torch.full((7, 1), -math.inf, dtype=torch.float64)], dim=1)
    forbidden.requires_grad_()
    entropy_allowed, entropy_forbidden = token_entropy(allowed), token_entropy(forbidden)
    assert torch.equal(entropy_allowed, entropy_forbidden)
    (gradient_allowed,) = torch.autograd.grad(entropy_allowed.sum(), allowed)
    (gradient_forbidden,) = torch.autograd.grad(entropy_forbidden.sum(), forbidden)
    assert torch.allclose(gradient_forbidden[:, :4], gradient_allowed, atol=1e-14)
    assert torch.equal(gradient_forbidden[:, 4], torch.zeros(7, dtype=torch.float64))


def test_large_logits_keep_their_precision():
    logits = torch.tensor([[1e4, 1e4 - 1.0]])
    assert token_logprobs(logits, torch.tensor([1])).item() == pytest.approx(-1 - math.log1p(math.exp(-1)), abs=1e-6)


def test_half_precision_is_raised_to_float32():
    logits = random_logits().bfloat16()
    expected = token_logprobs(logits.double(), torch.zeros(7, dtype=torch.long))
    actual = token_logprobs(logits, torch.zeros(7, dtype=torch.long))
    assert actual.dtype == torch.float32
    assert torch.allclose(actual.double(), expected, atol=1e-6)
    assert token_entropy(logits).dtype == torch.float32


def test_raising_the_target_logit_raises_its_logprob():
    logits = random_logits().requires_grad_()
    targets = torch.tensor([0, 4, 2, 2, 1, 3, 0])
    (gradient,) = torch.autograd.grad(token_logprobs(logits, targets).sum(), logits)
    is_target = torch.nn.functional.one_hot(targets, 5).bool()
    assert (gradient[is_target] > 0).all()
    assert (gradient[~is_target] < 0).all()


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.inf, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float):
    with pytest.raises(SettingsError, match="temperature"):
        token_logprobs(torch.zeros(1, 2), torch.tensor([0]), temperature=temperature)
    with pytest.raises(SettingsError, match="temperature"):
        token_entropy(torch.zeros(1, 2), temperature=temperature)


@pytest.mark.parametrize("target", [-100, -1, 2])
def test_a_target_outside_the_vocabulary_is_refused(target: int):
    with pytest.raises((RuntimeError, IndexError)):
        token_logprobs(torch.zeros(1, 2), torch.tensor([target]))


def test_sums_and_means_by_hand():
    values = torch.tensor([1.0, 2.0, 4.0, 8.0])
    segment = torch.tensor([0, 0, 2, 2])
    assert sum_per_segment(values, segment, num_segments=3).tolist() == [3.0, 0.0, 12.0]
    means = mean_per_segment(values, segment, num_segments=3)
    assert means[[0, 2]].tolist() == [1.5, 6.0]
    assert means[1].isnan()


def test_sums_and_means_equal_a_naive_loop_and_share_the_gradient():
    generator = torch.Generator().manual_seed(1)
    lengths = [3, 1, 6, 2]
    segment = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths))
    values = torch.randn(12, generator=generator, dtype=torch.float64).requires_grad_()
    sums = sum_per_segment(values, segment, num_segments=4)
    means = mean_per_segment(values, segment, num_segments=4)
    for number, (part, length) in enumerate(zip(values.split(lengths), lengths, strict=True)):
        assert sums[number].item() == pytest.approx(sum(part.tolist()))
        assert means[number].item() == pytest.approx(sum(part.tolist()) / length)
    (gradient,) = torch.autograd.grad(means.sum(), values)
    assert torch.allclose(gradient, torch.tensor([1 / length for length in lengths for _ in range(length)]).double())


@pytest.mark.parametrize("poison", [1e9, math.nan])
def test_poison_in_one_segment_stays_there(poison: float):
    segment = torch.tensor([0, 0, 1, 2, 2])
    clean = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    poisoned = clean.clone()
    poisoned[2] = poison
    for reduce in (sum_per_segment, mean_per_segment):
        kept = [0, 2]
        expected = reduce(clean, segment, num_segments=3)[kept]
        assert torch.equal(reduce(poisoned, segment, num_segments=3)[kept], expected)


def test_a_segment_that_does_not_exist_is_refused():
    with pytest.raises((RuntimeError, IndexError)):
        sum_per_segment(torch.ones(2), torch.tensor([0, 3]), num_segments=3)


def test_shapes_are_checked_in_tests():
    with pytest.raises(TypeCheckError):
        token_logprobs(torch.zeros(3, 2), torch.zeros(4, dtype=torch.long))
    with pytest.raises(TypeCheckError):
        generalised_advantages(torch.zeros(3), torch.zeros(2), torch.zeros(3).long(), discount=1, gae_lambda=1)
