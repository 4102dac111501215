"""Kullback-Leibler divergences between a policy and its reference, in nats.

Every function here measures KL(policy || reference) = E_{y ~ policy}[log policy(y) - log reference(y)].
The estimators k1, k2 and k3 take one sample per token, and it is the *policy* that is sampled: on samples of anything
else (an older policy, a dataset) their averages are not this divergence.

An estimator that is right as a number can be wrong as a loss (arXiv 2506.09477): differentiated through the
log-probability of a fixed sample, k1 has expected gradient zero, k2 has the gradient of KL(policy || reference), and
k3 has the gradient of the opposite direction, KL(reference || policy).
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from prefloop.errors import SettingsError


def kl_policy_from_reference_k1(
    policy_logprob: Float[Tensor, " token"], reference_logprob: Float[Tensor, " token"]
) -> Float[Tensor, " token"]:
    """log policy - log reference of tokens sampled from the policy, in nats; unbiased, of either sign.

    As a penalty inside the reward it is exact in expectation. As a loss it teaches nothing: its expected gradient is 0.

    Source: Schulman (2020), "Approximating KL Divergence", k1; gradients: arXiv 2506.09477.
    """
    return policy_logprob - reference_logprob


def kl_policy_from_reference_k2(
    policy_logprob: Float[Tensor, " token"], reference_logprob: Float[Tensor, " token"]
) -> Float[Tensor, " token"]:
    """Half the squared log ratio of tokens sampled from the policy, in nats; biased, never negative.

    The bias is of third order in the log ratio: small while the policy is near its reference. As a loss its expected
    gradient is exactly that of KL(policy || reference).

    Source: Schulman (2020), "Approximating KL Divergence", k2; gradients: arXiv 2506.09477.
    """
    return 0.5 * (policy_logprob - reference_logprob).square()


def kl_policy_from_reference_k3(
    policy_logprob: Float[Tensor, " token"], reference_logprob: Float[Tensor, " token"]
) -> Float[Tensor, " token"]:
    """exp(-d) - 1 + d with d = log policy - log reference, of tokens sampled from the policy; in nats.

    Unbiased and never negative. Its variance is lower than that of k1 near the reference, and unbounded far from it (a
    token that the reference likes far better than the policy does). As a loss its expected gradient is that of
    KL(reference || policy).

    Source: Schulman (2020), "Approximating KL Divergence", k3; gradients: arXiv 2506.09477.
    """
    log_ratio = policy_logprob - reference_logprob
    # expm1 keeps the second-order term that exp(-d) - 1 loses to rounding when d is small.
    return (-log_ratio).expm1() + log_ratio


def kl_exact(
    policy_logits: Float[Tensor, "token vocabulary"], reference_logits: Float[Tensor, "token vocabulary"]
) -> Float[Tensor, " token"]:
    """KL(policy || reference) of the next-token distributions at each position, in nats; never negative up to rounding.

    Summed over the positions of a response that the policy sampled, it is an unbiased estimate of the divergence per
    sequence. Tokens that the policy forbids (logit of minus infinity) add nothing; a token that only the reference
    forbids makes the divergence infinite. Nothing is sampled, so there is no bias; the gradient is exact.
    Half-precision logits are raised to float32 first.

    Source: Kullback and Leibler (1951), equation 2.4.
    """
    dtype = torch.promote_types(policy_logits.dtype, torch.float32)
    policy_logprobs = policy_logits.log_softmax(dim=-1, dtype=dtype)
    reference_logprobs = reference_logits.log_softmax(dim=-1, dtype=dtype)
    probabilities = policy_logprobs.exp()
    # Filling both terms, not their difference, keeps (-inf) - (-inf) out of the value and out of the gradient.
    forbidden = probabilities == 0
    log_ratio = policy_logprobs.masked_fill(forbidden, 0.0) - reference_logprobs.masked_fill(forbidden, 0.0)
    return (probabilities * log_ratio).sum(dim=-1)


def best_of_n_kl_bound(n: int) -> float:
    """Upper bound (nats, per sequence) on KL(best-of-n policy || reference): log n - (n - 1) / n.

    The bound is reached when the reward has no ties and every single response is improbable; with few likely responses
    the true divergence is smaller. Raises SettingsError for n below 1.

    Source: Beirami et al. (arXiv 2401.01879), section 3.
    """
    if n < 1:
        raise SettingsError(f"best-of-n was asked for n = {n}; n must be at least 1.")
    return math.log(n) - (n - 1) / n
