"""What one round of sampling leaves behind: the completions, and everything that is measured on their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from prefloop.batches import TokenGroup
from prefloop.records import Completion, Prompt


@dataclass(frozen=True)
class Rollout:
    """Completions of one step with what was measured on them, per token end to end (see `prefloop.batches`)."""

    prompts: list[Prompt]
    groups: list[TokenGroup]
    completions: list[Completion]
    scores: Tensor
    logprobs: Tensor
    reference_logprobs: Tensor
    values: Tensor
    end_values: Tensor
    segment: Tensor
    advantages: Tensor
    returns: Tensor

    def places(self, members: Sequence[int]) -> Tensor:
        """Where the tokens of these completions stand, in their order."""
        ends = torch.bincount(self.segment, minlength=len(self.groups)).cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        return torch.cat([torch.arange(starts[member], ends[member]) for member in members])
