"""Log-probabilities and entropies of sampled tokens, and their sums per response."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefloop.errors import SettingsError


def token_logprobs(
    logits: Float[Tensor, "token vocabulary"], targets: Int[Tensor, " token"], *, temperature: float = 1.0
) -> Float[Tensor, " token"]:
    """Log-probability (nats, <= 0) of each target under softmax(logits / temperature).

    Half-precision logits are raised to float32 first. `logits[i]` is the prediction *for* `targets[i]`: the shift by
    one position is the caller's. Raises SettingsError for a temperature that is not positive, and torch's own error for
    a target outside the vocabulary.

    Source: Bridle (1990), softmax; Hinton, Vinyals and Dean (arXiv 1503.02531), equation 1, temperature.
    """
    logprobs = _scaled(logits, temperature).log_softmax(dim=-1)
    return logprobs.gather(-1, targets.long().unsqueeze(-1)).squeeze(-1)


def token_entropy(logits: Float[Tensor, "token vocabulary"], *, temperature: float = 1.0) -> Float[Tensor, " token"]:
    """Entropy (nats, between 0 and ln vocabulary) of softmax(logits / temperature) at each token.

    An entry of minus infinity is a forbidden token and adds nothing, to the value or to the gradient.
    Raises SettingsError for a temperature that is not positive.

    Source: Shannon (1948), section 6.
    """
    logprobs = _scaled(logits, temperature).log_softmax(dim=-1)
    probabilities = logprobs.exp()
    # 0 * log 0 counts as 0; filling before the product keeps the gradient finite too.
    return -(probabilities * logprobs.masked_fill(probabilities == 0, 0.0)).sum(dim=-1)


def sum_per_segment(
    values: Float[Tensor, " token"], segment: Int[Tensor, " token"], *, num_segments: int
) -> Float[Tensor, " segment"]:
    """Sum of the values of each segment, in the unit of the values; 0 for a segment without tokens.

    With token log-probabilities this is log p(response | prompt), the chain rule of probability.
    Raises torch's own error for a segment number outside 0 to num_segments - 1.
    """
    return values.new_zeros(num_segments).index_add(0, segment, values)


def mean_per_segment(
    values: Float[Tensor, " token"], segment: Int[Tensor, " token"], *, num_segments: int
) -> Float[Tensor, " segment"]:
    """Mean of the values of each segment, in the unit of the values; NaN for a segment without tokens.

    With token log-probabilities this is minus the logarithm of the response's perplexity. Raises torch's own error for
    a segment number outside 0 to num_segments - 1.
    """
    counts = sum_per_segment(torch.ones_like(values), segment, num_segments=num_segments)
    return sum_per_segment(values, segment, num_segments=num_segments) / counts


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    if not (math.isfinite(temperature) and temperature > 0):
        raise SettingsError(f"temperature is {temperature}; it must be positive and finite. For greedy use argmax.")
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
