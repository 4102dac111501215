"""From rewards and values to advantages, for responses of different lengths standing end to end."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prefloop.errors import DataError, SettingsError

# The variance floor that PPO implementations share: a constant batch whitens to zeros instead of NaN.
_VARIANCE_FLOOR = 1e-8


@torch.no_grad()
def generalised_advantages(
    rewards: Float[Tensor, " token"],
    values: Float[Tensor, " token"],
    segment: Int[Tensor, " token"],
    *,
    discount: float,
    gae_lambda: float,
    bootstrap_values: Float[Tensor, " response"] | None = None,
) -> tuple[Float[Tensor, " token"], Float[Tensor, " token"]]:
    """(advantages, returns) of every token, in the unit of the reward; returns = advantages + values.

    `values[i]` is the critic's value *before* token i is written, `rewards[i]` what the token earns. The value after
    the last token of a response is `bootstrap_values[response]`, which is 0 for a response that ended by itself and
    the critic's estimate for one that was cut; without `bootstrap_values` every response counts as ended.
    Both results are constants: no gradient flows through them.

    Raises SettingsError when discount or gae_lambda is outside [0, 1], and DataError when `segment` is not
    non-decreasing from 0 or names a response that `bootstrap_values` does not have.

    Source: Schulman et al. (arXiv 1506.02438), equation 16, in the truncated form of Schulman et al.
    (arXiv 1707.06347), equations 11 and 12.
    """
    for name, number in (("discount", discount), ("gae_lambda", gae_lambda)):
        if not 0.0 <= number <= 1.0:
            raise SettingsError(f"{name} is {number}; it must lie between 0 and 1.")
    if len(segment) == 0:
        return torch.zeros_like(values), torch.zeros_like(values)
    lengths = _response_lengths(segment, num_responses=None if bootstrap_values is None else len(bootstrap_values))
    is_last = _is_last_token(segment)
    value_after = torch.cat([values[1:], values[:1]])
    value_at_end = torch.zeros_like(values) if bootstrap_values is None else bootstrap_values[segment].to(values)
    errors = rewards + discount * torch.where(is_last, value_at_end, value_after) - values

    # Time runs down the rows of a scratch table with one column per response, so that the loop is as long as the
    # longest response instead of the whole batch. Cells below a short response stay 0 and so does their running sum.
    first_token = lengths.cumsum(0) - lengths
    position = torch.arange(len(segment), device=segment.device) - first_token[segment]
    table = errors.new_zeros(int(lengths.max()), len(lengths))
    table[position, segment] = errors
    for time in range(len(table) - 2, -1, -1):
        table[time] += discount * gae_lambda * table[time + 1]
    advantages = table[position, segment]
    return advantages, advantages + values


def whiten(values: Float[Tensor, " token"], *, shift_mean: bool = True) -> Float[Tensor, " token"]:
    """The values scaled to unit population variance, and to mean 0 unless `shift_mean` is false; no unit.

    A single token or a constant has no variance: with `shift_mean` it becomes 0, without it stays as it is.

    Source: advantage normalisation, Andrychowicz et al. (arXiv 2006.05990), with the variance divided by the number of
    tokens. Keeping the mean is for rewards, whose sign is their meaning.
    """
    mean = values.mean()
    centred = values - mean
    # Centring twice: what rounding leaves of a large constant would otherwise be blown up by 1 / sqrt(floor).
    centred = centred - centred.mean()
    scaled = centred * torch.rsqrt(centred.square().mean() + _VARIANCE_FLOOR)
    return scaled if shift_mean else scaled + mean


def score_on_last_token(
    scores: Float[Tensor, " response"], segment: Int[Tensor, " token"], *, token_count: int
) -> Float[Tensor, " token"]:
    """Rewards per token: each response's score on its last token, 0 everywhere else; in the unit of the score.

    Raises DataError when `segment` has another length than `token_count`, is not non-decreasing from 0, or leaves a
    response without a token (its score would be lost).

    Source: Ziegler et al. (arXiv 1909.08593), equation 2: the reward is given once, for the whole response.
    """
    if len(segment) != token_count:
        raise DataError(f"{len(segment)} segment numbers were given for {token_count} tokens; give one per token.")
    lengths = _response_lengths(segment, num_responses=len(scores))
    if bool((lengths == 0).any()):
        empty = int((lengths == 0).nonzero()[0])
        raise DataError(f"Response {empty} has no tokens, so its score has no place; drop it before scoring.")
    return torch.where(_is_last_token(segment), scores[segment], scores.new_zeros(()))


def _is_last_token(segment: Tensor) -> Tensor:
    """True where the next token belongs to another response, and at the very end."""
    is_last = torch.ones_like(segment, dtype=torch.bool)
    is_last[:-1] = segment[1:] != segment[:-1]
    return is_last


def _response_lengths(segment: Tensor, *, num_responses: int | None) -> Tensor:
    """Tokens of each response; refuses an order that would mix responses up without a sound."""
    if len(segment) and (int(segment[0]) < 0 or bool((segment[1:] < segment[:-1]).any())):
        raise DataError(
            "The segment numbers go down or below 0; tokens of one response must stand together, from 0 up."
        )
    lengths = torch.bincount(segment, minlength=num_responses or 0)
    if num_responses is not None and len(lengths) > num_responses:
        raise DataError(
            f"The segments name response {len(lengths) - 1}, but only {num_responses} responses were given."
        )
    return lengths
