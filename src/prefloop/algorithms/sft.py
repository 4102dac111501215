"""Supervised fine-tuning (SFT): imitate demonstrations.

What is learned from what: a policy from prompts with the answer to imitate, or from whole texts, by maximum likelihood
of the supervised tokens, the end-of-sequence token included.

Source: Ouyang et al. 2022, arXiv:2203.02155, section 3.5 (step 1).

Departures from the paper:
1. The loss is averaged over the supervised tokens of the whole step, so long answers weigh more than short ones.
2. Examples are packed in one row without padding and without seeing one another.
3. The default learning rate suits small models trained in full; take about 1e-5 for a pretrained model of 100 million
   parameters and more, and about 2e-4 with LoRA.
"""

from collections.abc import Sequence
from typing import ClassVar

import torch
from pydantic import Field

from prefloop.batches import TokenGroup
from prefloop.contracts import Measure, Measures, Sample, StepReport, TrainerState
from prefloop.data.packing import micro_batches, pack
from prefloop.models.policy import Policy
from prefloop.models.update import (
    OptimizerSettings,
    Schedule,
    Update,
    load_parameter_state,
    parameter_state,
    require_finite,
)
from prefloop.randomness import batch_indices


class Config(OptimizerSettings):
    """The settings of SFT; the defaults are the vetted ones for small models."""

    num_epochs: float = Field(default=2.0, gt=0)
    """Passes over the data."""
    batch_size: int = Field(default=32, gt=0)
    """Examples per step."""
    learning_rate: float = Field(default=2e-3, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Schedule = "cosine"
    """How the learning rate falls after warm-up: constant, linear or cosine."""
    final_learning_rate_share: float = Field(default=0.05, ge=0, le=1)
    """Where the learning rate ends, as a share of its peak."""
    warmup_steps: int = Field(default=50, ge=0)
    """Steps over which the learning rate climbs to its peak."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay on matrices; vectors are not decayed."""


class SFT:
    """See the module's docstring. `groups` are tokenised examples, `evaluation_groups` are held out."""

    name: ClassVar[str] = "sft"
    headline: ClassVar[tuple[str, ...]] = ("loss", "evaluate/loss", "entropy", "gradient_norm", "learning_rate")

    def __init__(
        self,
        policy: Policy,
        groups: Sequence[TokenGroup],
        *,
        config: Config,
        seed: int,
        evaluation_groups: Sequence[TokenGroup] = (),
    ) -> None:
        self.policy = policy
        self.groups = groups
        self.evaluation_groups = evaluation_groups
        self.config = config
        self.seed = seed
        self.num_steps = max(1, round(config.num_epochs * len(groups) / config.batch_size))
        self.update = Update(policy.parameters(), config, self.num_steps)

    def batch(self, step: int) -> list[TokenGroup]:
        rows = batch_indices(self.seed, "data", step, length=len(self.groups), batch_size=self.config.batch_size)
        return [self.groups[row] for row in rows]

    def step(self, batch: Sequence[TokenGroup]) -> StepReport:
        num_targets = sum(group.num_targets for group in batch)
        learning_rate = self.update.learning_rate()
        loss_sum, entropy_sum = 0.0, 0.0
        for part in micro_batches(batch, max_tokens=self.config.max_tokens_per_micro_batch):
            scored = self.policy.logprobs(pack([batch[number] for number in part]))
            loss = -scored.logprobs.sum()
            self.update.backward(loss / num_targets)
            loss_sum += float(loss.detach())
            entropy_sum += float(scored.entropy.sum())
        require_finite(loss_sum, "the SFT loss")
        gradient_norm = self.update.step()
        measures = {
            "loss": Measure(loss_sum, num_targets),
            "entropy": Measure(entropy_sum, num_targets),
            "gradient_norm": Measure(gradient_norm),
            "learning_rate": Measure(learning_rate),
            "skipped_steps": Measure(self.update.num_skipped),
        }
        return StepReport(measures, num_tokens=sum(group.num_tokens for group in batch))

    @torch.no_grad()
    def evaluate(self) -> tuple[Measures, tuple[Sample, ...]]:
        loss_sum, entropy_sum, count = 0.0, 0.0, 0
        for part in micro_batches(self.evaluation_groups, max_tokens=self.config.max_tokens_per_micro_batch):
            scored = self.policy.logprobs(pack([self.evaluation_groups[number] for number in part]))
            loss_sum -= float(scored.logprobs.sum())
            entropy_sum += float(scored.entropy.sum())
            count += len(scored.logprobs)
        if not count:
            return {}, ()
        return {"loss": Measure(loss_sum, count), "entropy": Measure(entropy_sum, count)}, ()

    def state(self) -> TrainerState:
        return {"policy": parameter_state(self.policy.parameters()), "update": self.update.state()}

    def load_state(self, state: TrainerState) -> None:
        load_parameter_state(self.policy.parameters(), state["policy"])
        self.update.load_state(state["update"])

    def trained(self) -> Policy:
        return self.policy
