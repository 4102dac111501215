"""Losses that learn from a choice: reward models on pairs and single texts, direct methods on log-probabilities.

A log ratio is log policy - log reference of a whole response, in nats, summed over its tokens. Every logistic loss goes
through log sigmoid, so margins of 1e4 stay finite and exact on both sides.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from prefloop.errors import DataError, SettingsError


def bradley_terry_loss(
    chosen_reward: Float[Tensor, " pair"],
    rejected_reward: Float[Tensor, " pair"],
    *,
    target: Float[Tensor, " pair"] | None = None,
) -> Float[Tensor, " pair"]:
    """Cross-entropy (nats, >= 0) of each choice when P(chosen wins) = sigmoid(chosen_reward - rejected_reward).

    `target` is the probability, in [0, 1], that `chosen` is the better one: the share of annotators who said so.
    Without it the label is certain. A target of one half asks for equal rewards. Raises DataError for a target outside
    [0, 1].

    Source: Bradley and Terry (1952); as a reward model's loss: Ouyang et al. (arXiv 2203.02155), equation 1; soft
    targets: Christiano et al. (arXiv 1706.03741), section 2.2.3.
    """
    return _logistic_loss(chosen_reward - rejected_reward, target=target)


def binary_cross_entropy(logit: Float[Tensor, " text"], label: Float[Tensor, " text"]) -> Float[Tensor, " text"]:
    """Cross-entropy (nats, >= 0) of each text's label when P(label = 1) = sigmoid(logit).

    A label is 1 (good), 0 (not), or a probability between. Raises DataError for a label outside [0, 1].

    Source: Cox (1958), "The Regression Analysis of Binary Sequences"; the log-likelihood of one observation, negated.
    """
    return _logistic_loss(logit, target=label)


def implicit_reward(
    policy_logprob: Float[Tensor, " response"], reference_logprob: Float[Tensor, " response"], *, beta: float
) -> Float[Tensor, " response"]:
    """beta * (log policy - log reference) of each response: the reward for which this policy is optimal.

    It is known up to a term that depends on the prompt alone, so compare it within one prompt only. Log-probabilities
    are sums over the response, in nats; beta is in units of reward per nat. Raises SettingsError when beta is not
    positive.

    Source: Rafailov et al. (arXiv 2305.18290), equation 5 without beta log Z(x).
    """
    _check_beta(beta)
    return beta * (policy_logprob - reference_logprob)


def dpo_sigmoid_loss(
    chosen_log_ratio: Float[Tensor, " pair"],
    rejected_log_ratio: Float[Tensor, " pair"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
    target: Float[Tensor, " pair"] | None = None,
) -> Float[Tensor, " pair"]:
    """Cross-entropy (nats, >= 0) of each choice under the implicit rewards: the loss of direct preference optimisation.

    `target` is the probability, in [0, 1], that `chosen` is the better one (1 without it). `label_smoothing` is the
    share of labels taken to be flipped, in [0, 0.5): a target t becomes t (1 - s) + (1 - t) s.
    Raises SettingsError for a beta that is not positive or a smoothing outside [0, 0.5), DataError for a target outside
    [0, 1].

    Source: Rafailov et al. (arXiv 2305.18290), equation 7; smoothing: Mitchell (2023), "A note on DPO with noisy
    preferences and relationship to IPO", conservative DPO.
    """
    _check_beta(beta)
    if not 0.0 <= label_smoothing < 0.5:
        raise SettingsError(f"label_smoothing is {label_smoothing}; it must be at least 0 and below 0.5.")
    margin = beta * (chosen_log_ratio - rejected_log_ratio)
    return _logistic_loss(margin, target=target, label_smoothing=label_smoothing)


def dpo_ipo_loss(
    chosen_log_ratio: Float[Tensor, " pair"], rejected_log_ratio: Float[Tensor, " pair"], *, beta: float
) -> Float[Tensor, " pair"]:
    """Squared distance of the log-ratio margin to 1 / (2 beta), in squared nats: identity preference optimisation.

    The ratios are *sums* over the response, as in the paper; some trainers divide them by the number of tokens, which
    is another loss with another meaning of beta (the paper's tau). Raises SettingsError when beta is not positive.

    Source: Azar et al. (arXiv 2310.12036), equation 17.
    """
    _check_beta(beta)
    return (chosen_log_ratio - rejected_log_ratio - 1 / (2 * beta)).square()


def dpo_hinge_loss(
    chosen_log_ratio: Float[Tensor, " pair"], rejected_log_ratio: Float[Tensor, " pair"], *, beta: float
) -> Float[Tensor, " pair"]:
    """max(0, 1 - beta * (chosen_log_ratio - rejected_log_ratio)): a pair is done once its margin reaches 1 / beta nats.

    Raises SettingsError when beta is not positive.

    Source: Zhao et al. (arXiv 2305.10425), the calibration loss, on ratios to the reference as in the hinge-norm loss
    of Liu et al. (arXiv 2309.06657).
    """
    _check_beta(beta)
    return F.relu(1 - beta * (chosen_log_ratio - rejected_log_ratio))


def _logistic_loss(margin: Tensor, *, target: Tensor | None, label_smoothing: float = 0.0) -> Tensor:
    if target is None:
        target = torch.ones_like(margin)
    else:
        _check_probabilities(target)
    smoothed = target * (1 - label_smoothing) + (1 - target) * label_smoothing
    # Two separate terms: a difference of large numbers would lose the small loss of a confident, right answer.
    return -(smoothed * F.logsigmoid(margin) + (1 - smoothed) * F.logsigmoid(-margin))


def _check_probabilities(target: Tensor) -> None:
    is_probability = (target >= 0) & (target <= 1)
    if not bool(is_probability.all()):
        wrong = int((~is_probability).nonzero()[0])
        raise DataError(
            f"The label of row {wrong} of the batch is {target[wrong].item()}; it must lie between 0 and 1."
        )


def _check_beta(beta: float) -> None:
    if not (math.isfinite(beta) and beta > 0):
        raise SettingsError(f"beta is {beta}; it must be positive and finite.")
