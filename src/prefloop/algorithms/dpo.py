"""Direct preference optimisation (DPO): a policy from pairs of answers, without a reward model.

What is learned from what: from pairs (prompt, chosen, rejected), a policy whose log-probabilities, measured against a
frozen reference, explain the choices: beta * (log pi - log ref) is the reward it implies.

Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7. `loss` "ipo" is Azar et al. 2023, arXiv:2310.12036, equation
17; "hinge" is the calibration loss of Zhao et al. 2023, arXiv:2305.10425, on the same margin; `label_smoothing` is
conservative DPO.

Departures from the paper:
1. AdamW instead of RMSprop.
2. `soft_labels` (sigmoid loss) asks for the share of annotators who preferred the chosen side instead of certainty: the
   cross-entropy against that share, of which equation 7 is the case 1.
3. `chosen_nll_weight` adds the negative log-likelihood per token of the chosen answer (Pang et al. 2024,
   arXiv:2404.19733, equation 2); it is 0, off, by default.
4. The reference's log-probabilities are computed once, before the first step, and kept.

Symbols: margin = log ratio of the chosen minus log ratio of the rejected answer, summed over tokens, in nats.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field

from prefloop.batches import TokenGroup
from prefloop.contracts import Measure, Measures, Sample, StepReport, TrainerState
from prefloop.data.packing import micro_batches, pack
from prefloop.formulas.logprobs import sum_per_segment
from prefloop.formulas.preference_losses import dpo_hinge_loss, dpo_ipo_loss, dpo_sigmoid_loss
from prefloop.models.policy import Policy
from prefloop.models.update import (
    OptimizerSettings,
    Update,
    load_parameter_state,
    parameter_state,
    require_finite,
)
from prefloop.randomness import batch_indices


class Config(OptimizerSettings):
    """The settings of DPO; the defaults are the vetted ones for small models."""

    num_epochs: float = Field(default=1.0, gt=0)
    """Passes over the pairs."""
    batch_size: int = Field(default=32, gt=0)
    """Pairs per step."""
    learning_rate: float = Field(default=1e-4, gt=0)
    """Peak learning rate of AdamW; about 1e-6 for a pretrained model of 100 million parameters and more."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps over which the learning rate climbs to its peak."""
    loss: Literal["sigmoid", "ipo", "hinge"] = "sigmoid"
    """Which loss on the margin."""
    beta: float = Field(default=0.1, gt=0)
    """How strongly the policy is held to the reference: the coefficient of the KL term that DPO solves for."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of choices thought to be recorded backwards (sigmoid loss only)."""
    soft_labels: bool = False
    """Ask for the share of annotators who preferred the chosen side (sigmoid loss only)."""
    chosen_nll_weight: float = Field(default=0.0, ge=0)
    """Weight of the chosen answer's negative log-likelihood per token."""


class DPO:
    """See the module's docstring. Each group holds two responses, the chosen first.

    `agreement` is the share of annotators who chose it.
    """

    name: ClassVar[str] = "dpo"
    headline: ClassVar[tuple[str, ...]] = (
        "loss",
        "accuracy",
        "margin",
        "chosen_log_ratio",
        "rejected_log_ratio",
        "evaluate/accuracy",
    )

    def __init__(
        self,
        policy: Policy,
        reference: Policy,
        groups: Sequence[TokenGroup],
        agreement: Sequence[float],
        *,
        config: Config,
        seed: int,
        evaluation_groups: Sequence[TokenGroup] = (),
        evaluation_agreement: Sequence[float] = (),
    ) -> None:
        self.policy = policy
        self.groups = groups
        self.agreement = torch.tensor(agreement, dtype=torch.float32)
        self.evaluation_groups = evaluation_groups
        self.evaluation_agreement = torch.tensor(evaluation_agreement, dtype=torch.float32)
        self.config = config
        self.seed = seed
        self.num_steps = max(1, round(config.num_epochs * len(groups) / config.batch_size))
        self.update = Update(policy.parameters(), config, self.num_steps)
        self.reference_logprobs = self._summed_logprobs(reference, groups)
        self.evaluation_reference_logprobs = self._summed_logprobs(reference, evaluation_groups)

    def batch(self, step: int) -> list[int]:
        return batch_indices(self.seed, "data", step, length=len(self.groups), batch_size=self.config.batch_size)

    def step(self, batch: Sequence[int]) -> StepReport:
        groups = [self.groups[row] for row in batch]
        reference, agreement = self.reference_logprobs[list(batch)], self.agreement[list(batch)]
        learning_rate = self.update.learning_rate()
        measured = _Measured()
        for part in micro_batches(groups, max_tokens=self.config.max_tokens_per_micro_batch):
            packed = pack([groups[number] for number in part])
            scored = self.policy.logprobs(packed)
            segment = packed.segment.to(scored.logprobs.device)
            summed = sum_per_segment(scored.logprobs, segment, num_segments=2 * len(part)).view(-1, 2)
            log_ratios = summed - reference[part].to(summed)
            losses = self.losses(log_ratios[:, 0], log_ratios[:, 1], agreement[part].to(summed))
            objective = losses.sum()
            if self.config.chosen_nll_weight:
                lengths = torch.tensor([len(groups[number].responses[0]) for number in part], device=summed.device)
                objective = objective - self.config.chosen_nll_weight * (summed[:, 0] / lengths).sum()
            self.update.backward(objective / len(groups))
            measured.add(log_ratios.detach(), losses.detach())
        require_finite(measured.loss_sum, "the DPO loss")
        gradient_norm = self.update.step()
        measures = {
            **measured.measures(self.config.beta),
            "gradient_norm": Measure(gradient_norm),
            "learning_rate": Measure(learning_rate),
            "skipped_steps": Measure(self.update.num_skipped),
        }
        return StepReport(measures, num_tokens=sum(group.num_tokens for group in groups))

    def losses(self, chosen: torch.Tensor, rejected: torch.Tensor, agreement: torch.Tensor) -> torch.Tensor:
        """One loss per pair from the summed log ratios (nats) of both sides."""
        config = self.config
        if config.loss == "ipo":
            return dpo_ipo_loss(chosen, rejected, beta=config.beta)
        if config.loss == "hinge":
            return dpo_hinge_loss(chosen, rejected, beta=config.beta)
        target = agreement if config.soft_labels else None
        return dpo_sigmoid_loss(
            chosen, rejected, beta=config.beta, label_smoothing=config.label_smoothing, target=target
        )

    @torch.no_grad()
    def evaluate(self) -> tuple[Measures, tuple[Sample, ...]]:
        if not self.evaluation_groups:
            return {}, ()
        log_ratios = self._summed_logprobs(self.policy, self.evaluation_groups) - self.evaluation_reference_logprobs
        measured = _Measured()
        measured.add(log_ratios, self.losses(log_ratios[:, 0], log_ratios[:, 1], self.evaluation_agreement))
        return measured.measures(self.config.beta), ()

    @torch.no_grad()
    def _summed_logprobs(self, policy: Policy, groups: Sequence[TokenGroup]) -> torch.Tensor:
        """[pair, 2] log-probabilities (nats) of the chosen and the rejected answer."""
        parts = []
        for part in micro_batches(groups, max_tokens=self.config.max_tokens_per_micro_batch):
            packed = pack([groups[number] for number in part])
            logprobs = policy.logprobs(packed).logprobs.cpu()
            parts.append(sum_per_segment(logprobs, packed.segment, num_segments=2 * len(part)).view(-1, 2))
        return torch.cat(parts) if parts else torch.zeros(0, 2)

    def state(self) -> TrainerState:
        return {"policy": parameter_state(self.policy.parameters()), "update": self.update.state()}

    def load_state(self, state: TrainerState) -> None:
        load_parameter_state(self.policy.parameters(), state["policy"])
        self.update.load_state(state["update"])

    def trained(self) -> Policy:
        return self.policy


class _Measured:
    """Sums over the parts of a step; the accuracy counts an undecided pair as one half."""

    def __init__(self) -> None:
        self.loss_sum = 0.0
        self.right = 0.0
        self.chosen = 0.0
        self.rejected = 0.0
        self.num = 0

    def add(self, log_ratios: torch.Tensor, losses: torch.Tensor) -> None:
        margin = log_ratios[:, 0] - log_ratios[:, 1]
        self.loss_sum += float(losses.sum())
        self.right += float((margin > 0).sum()) + 0.5 * float((margin == 0).sum())
        self.chosen += float(log_ratios[:, 0].sum())
        self.rejected += float(log_ratios[:, 1].sum())
        self.num += len(losses)

    def measures(self, beta: float) -> dict[str, Measure]:
        return {
            "loss": Measure(self.loss_sum, self.num),
            "accuracy": Measure(self.right, self.num),
            "margin": Measure(beta * (self.chosen - self.rejected), self.num),
            "chosen_log_ratio": Measure(self.chosen, self.num),
            "rejected_log_ratio": Measure(self.rejected, self.num),
        }
