"""The losses of proximal policy optimisation, per token, and the update of its KL coefficient."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from prefloop.errors import SettingsError, TrainingError

# Ziegler et al. bound the relative error of the KL, so that one odd batch cannot swing the coefficient.
_MAX_RELATIVE_KL_ERROR = 0.2


def clipped_surrogate(
    log_ratio_new_over_old: Float[Tensor, " token"], advantages: Float[Tensor, " token"], *, clip_range: float
) -> Float[Tensor, " token"]:
    """Loss per token, to be minimised: -min(ratio * advantage, clip(ratio, 1 - c, 1 + c) * advantage), c = clip_range.

    `log_ratio_new_over_old` is log pi_new - log pi_old (nats) of the sampled token; the gradient flows through it.
    The loss is in the unit of the advantage. Raises SettingsError when clip_range is outside (0, 1).

    Source: Schulman et al. (arXiv 1707.06347), equation 7, negated.
    """
    lower, upper = _log_ratio_bounds(clip_range)
    # The minimum only ever binds on one side: above for a good token, below for a bad one. Clipping that side in log
    # space gives the same number, and a clipped ratio that overflows leaves gradient 0 instead of 0 * inf.
    log_ratio = torch.where(
        advantages >= 0, log_ratio_new_over_old.clamp(max=upper), log_ratio_new_over_old.clamp(min=lower)
    )
    return -advantages * log_ratio.exp()


def clip_fraction(
    log_ratio_new_over_old: Float[Tensor, " token"], advantages: Float[Tensor, " token"], *, clip_range: float
) -> Float[Tensor, " token"]:
    """1 for a token whose gradient the clipping removes, 0 for another; the caller's mean is the clip fraction.

    A token counts when its ratio is past the bound *in the direction its advantage pushes*; past the other bound the
    gradient still flows. Raises SettingsError when clip_range is outside (0, 1).

    Source: Schulman et al. (arXiv 1707.06347), figure 1.
    """
    lower, upper = _log_ratio_bounds(clip_range)
    good_and_above = (advantages > 0) & (log_ratio_new_over_old > upper)
    bad_and_below = (advantages < 0) & (log_ratio_new_over_old < lower)
    return (good_and_above | bad_and_below).to(advantages.dtype)


def value_loss(
    values: Float[Tensor, " token"],
    old_values: Float[Tensor, " token"],
    returns: Float[Tensor, " token"],
    *,
    clip_range: float | None,
) -> Float[Tensor, " token"]:
    """Half the squared error of the value per token, in squared units of the reward.

    With a clip_range (in units of the value) it is the larger of the error and the error of the value held within
    clip_range of `old_values`, so that the critic cannot profit from moving further in one batch. None means no
    clipping. Raises SettingsError when clip_range is not positive.

    Source: Schulman et al. (arXiv 1707.06347), equation 9, its squared-error term; clipping: Andrychowicz et al.
    (arXiv 2006.05990), "PPO-style value clipping".
    """
    squared_error = (values - returns).square()
    if clip_range is None:
        return 0.5 * squared_error
    if not clip_range > 0:
        raise SettingsError(f"The value clip_range is {clip_range}; it must be positive, or None for no clipping.")
    clipped = old_values + (values - old_values).clamp(-clip_range, clip_range)
    return 0.5 * torch.maximum(squared_error, (clipped - returns).square())


def adapted_kl_coefficient(
    coefficient: float, observed_kl: float, *, target_kl: float, horizon: float, num_samples: int
) -> float:
    """The KL coefficient for the next batch: coefficient * (1 + error * num_samples / horizon).

    The error is observed_kl / target_kl - 1, held within -0.2 and 0.2. Both are KL(policy || reference) in nats per
    sequence; `num_samples` counts the responses since the last update. A KL far above its target raises the coefficient
    by about 20 % every `horizon` responses.

    Raises SettingsError when the target, the horizon, the coefficient or num_samples is not positive, or when
    num_samples is so large against the horizon that the coefficient could turn negative; TrainingError when the
    observed KL is not finite.

    Source: Ziegler et al. (arXiv 1909.08593), section 2.2, with num_samples / horizon for the gain K_beta.
    """
    for name, number in (
        ("coefficient", coefficient),
        ("target_kl", target_kl),
        ("horizon", horizon),
        ("num_samples", num_samples),
    ):
        if not (math.isfinite(number) and number > 0):
            raise SettingsError(f"The KL controller's {name} is {number}; it must be positive and finite.")
    gain = num_samples / horizon
    if gain * _MAX_RELATIVE_KL_ERROR >= 1:
        raise SettingsError(
            f"The KL controller's horizon is {horizon} for {num_samples} samples an update, which could turn the "
            f"coefficient negative; give a horizon above {num_samples * _MAX_RELATIVE_KL_ERROR:g}."
        )
    if not math.isfinite(observed_kl):
        raise TrainingError(f"The observed KL is {observed_kl}; the policy or its reference has diverged.")
    relative_error = observed_kl / target_kl - 1
    return coefficient * (1 + max(-_MAX_RELATIVE_KL_ERROR, min(_MAX_RELATIVE_KL_ERROR, relative_error)) * gain)


def _log_ratio_bounds(clip_range: float) -> tuple[float, float]:
    if not 0 < clip_range < 1:
        raise SettingsError(f"The policy clip_range is {clip_range}; it must lie between 0 and 1, both excluded.")
    return math.log1p(-clip_range), math.log1p(clip_range)
