"""Reward modelling: a score for a response, learned from which of two responses people preferred.

What is learned from what: a model with one scalar output per response. From pairs, by binary cross-entropy on the
difference of the two scores (Bradley-Terry); from single texts with a binary label, by binary cross-entropy on the
score itself. The model is a decoder, read at the last token of the response, or an encoder that reads prompt and
response as a pair of texts; which of the two makes no difference here.

Source: Ouyang et al. 2022, arXiv:2203.02155, equation 1; Bradley and Terry 1952.

Departures from the paper:
1. A pair is one training example; the pairs of one prompt need not share a step.
2. `soft_labels` asks the model for the share of annotators who preferred the chosen side instead of certainty.
3. `head_dropout` drops hidden units before the scalar head while training (off by default).
4. `language_weight` also asks the body to predict the tokens of the responses, as the language model it started from
   does: features that still know what follows what tell good from bad on texts that training never saw (Yang et al.
   2024, arXiv:2406.10216, section 3.2, which keeps the chosen responses only). It is 0, off, by default.
5. `score_penalty` adds the squared scores: a Bradley-Terry score is free up to a constant per prompt, and the penalty
   keeps it near zero. (Eisenstein et al. 2023, arXiv:2312.09244, do so with the squared sum of a pair's scores.)
"""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import torch
from pydantic import Field

from prefloop.batches import TokenGroup
from prefloop.contracts import Measure, Measures, RewardModel, Sample, StepReport, TrainerState
from prefloop.data.layouts import batches_of
from prefloop.errors import SettingsError
from prefloop.formulas.preference_losses import binary_cross_entropy, bradley_terry_loss
from prefloop.models.policy import Policy
from prefloop.models.update import (
    OptimizerSettings,
    Schedule,
    Update,
    load_parameter_state,
    parameter_state,
    require_finite,
    seed_torch,
)
from prefloop.randomness import batch_indices, derived_seed

ModelType = TypeVar("ModelType", bound=RewardModel)


class Config(OptimizerSettings):
    """The settings of reward modelling; the defaults are the vetted ones for small models."""

    num_epochs: float = Field(default=2.0, gt=0)
    """Passes over the data; more than two overfit small preference sets."""
    batch_size: int = Field(default=32, gt=0)
    """Pairs (or texts) per step."""
    learning_rate: float = Field(default=5e-4, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Schedule = "linear"
    """How the learning rate falls after warm-up: constant, linear or cosine."""
    warmup_steps: int = Field(default=20, ge=0)
    """Steps over which the learning rate climbs to its peak."""
    soft_labels: bool = True
    """Ask for the share of annotators who preferred the chosen side; false asks for certainty."""
    score_penalty: float = Field(default=0.005, ge=0)
    """Weight of the mean squared score, which keeps scores near zero."""
    head_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of hidden units dropped before the scalar head while training."""
    language_weight: float = Field(default=0.0, ge=0)
    """Weight of the responses' negative log-likelihood per token, from the same hidden states; decoders only."""


class RewardModelling(Generic[ModelType]):
    """See the module's docstring. `language_model` shares the backbone; only `language_weight` asks for it.

    With pairs, each group holds two responses, the chosen first, and `targets` are the shares of annotators who chose
    it.
    With single texts, each group holds one response, and `targets` are the labels 0 or 1.
    """

    name: ClassVar[str] = "reward_modelling"
    headline: ClassVar[tuple[str, ...]] = (
        "loss",
        "accuracy",
        "evaluate/accuracy",
        "margin",
        "score_spread",
        "learning_rate",
    )

    def __init__(
        self,
        model: ModelType,
        groups: Sequence[TokenGroup],
        targets: Sequence[float],
        *,
        config: Config,
        seed: int,
        evaluation_groups: Sequence[TokenGroup] = (),
        evaluation_targets: Sequence[float] = (),
        language_model: Policy | None = None,
    ) -> None:
        if config.language_weight and language_model is None:
            raise SettingsError(
                f"language_weight is {config.language_weight:g}: it asks the reward model to predict tokens as well, "
                "which only a decoder can; set it to 0 for an encoder"
            )
        self.model = model
        self.language_model = language_model
        self.groups = groups
        self.targets = targets
        self.evaluation_groups = evaluation_groups
        self.evaluation_targets = evaluation_targets
        self.config = config
        self.seed = seed
        self.num_steps = max(1, round(config.num_epochs * len(groups) / config.batch_size))
        self.update = Update(model.parameters(), config, self.num_steps)

    def batch(self, step: int) -> tuple[int, list[int]]:
        """The step number (dropout is drawn from it) and the rows."""
        return step, batch_indices(self.seed, "data", step, length=len(self.groups), batch_size=self.config.batch_size)

    def step(self, batch: tuple[int, Sequence[int]]) -> StepReport:
        step, rows = batch
        groups = [self.groups[row] for row in rows]
        targets = torch.tensor([self.targets[row] for row in rows], device=self.model.device)
        num_responses = sum(len(group.responses) for group in groups)
        num_targets = sum(group.num_targets for group in groups)
        learning_rate = self.update.learning_rate()
        measured = _Measured()
        with torch.random.fork_rng(devices=[]):
            seed_torch(derived_seed(self.seed, "dropout", step))
            for part, laid_out in self._batches(groups):
                hidden = self.model.hidden(laid_out)
                scores = self.model.at_ends(laid_out, head_dropout=self.config.head_dropout, hidden=hidden)
                losses = self.losses(scores, targets[part])
                objective = losses.sum() / len(groups)
                objective = objective + self.config.score_penalty * scores.square().sum() / num_responses
                if self.config.language_weight and self.language_model is not None:
                    logprobs = self.language_model.logprobs(laid_out, hidden=hidden).logprobs
                    objective = objective - self.config.language_weight * logprobs.sum() / num_targets
                self.update.backward(objective)
                measured.add(scores.detach(), targets[part], losses.detach())
        require_finite(measured.loss_sum, "the reward model's loss")
        gradient_norm = self.update.step()
        measures = {
            **measured.measures(),
            "gradient_norm": Measure(gradient_norm),
            "learning_rate": Measure(learning_rate),
            "skipped_steps": Measure(self.update.num_skipped),
        }
        return StepReport(measures, num_tokens=sum(group.num_tokens for group in groups))

    def _batches(self, groups: Sequence[TokenGroup]) -> Iterator[tuple[list[int], Any]]:
        return batches_of(groups, layout=self.model.layout, max_tokens=self.config.max_tokens_per_micro_batch)

    def losses(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One loss (nats) per pair or text; `scores` holds chosen and rejected in turn when targets are of pairs."""
        if len(scores) == len(targets):
            return binary_cross_entropy(scores, targets)
        chosen, rejected = scores[0::2], scores[1::2]
        return bradley_terry_loss(chosen, rejected, target=targets if self.config.soft_labels else None)

    @torch.no_grad()
    def evaluate(self) -> tuple[Measures, tuple[Sample, ...]]:
        if not self.evaluation_groups:
            return {}, ()
        measured = _Measured()
        targets = torch.tensor(self.evaluation_targets, device=self.model.device)
        for part, laid_out in self._batches(self.evaluation_groups):
            scores = self.model.at_ends(laid_out)
            measured.add(scores, targets[part], self.losses(scores, targets[part]))
        return measured.measures(), ()

    def state(self) -> TrainerState:
        return {"model": parameter_state(self.model.parameters()), "update": self.update.state()}

    def load_state(self, state: TrainerState) -> None:
        load_parameter_state(self.model.parameters(), state["model"])
        self.update.load_state(state["update"])

    def trained(self) -> ModelType:
        return self.model


class _Measured:
    """Sums over the parts of a step: loss, accuracy (ties one half), margin, spread of scores."""

    def __init__(self) -> None:
        self.loss_sum = 0.0
        self.right = 0.0
        self.margin_sum = 0.0
        self.num = 0
        self.scores: list[torch.Tensor] = []

    def add(self, scores: torch.Tensor, targets: torch.Tensor, losses: torch.Tensor) -> None:
        margin = scores * (2.0 * targets - 1.0).sign() if len(scores) == len(targets) else scores[0::2] - scores[1::2]
        self.loss_sum += float(losses.sum())
        self.right += float((margin > 0).sum()) + 0.5 * float((margin == 0).sum())
        self.margin_sum += float(margin.sum())
        self.num += len(targets)
        self.scores.append(scores)

    def measures(self) -> dict[str, Measure]:
        scores = torch.cat(self.scores)
        return {
            "loss": Measure(self.loss_sum, self.num),
            "accuracy": Measure(self.right, self.num),
            "margin": Measure(self.margin_sum, self.num),
            "score": Measure(float(scores.sum()), len(scores)),
            "score_spread": Measure(float(scores.std(correction=0))),
        }
