"""The optimizer step: micro-batches, clipping, schedule, and what happens to a step that is not finite."""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field

from prefloop.contracts import Settings
from prefloop.errors import TrainingError

Schedule = Literal["constant", "linear", "cosine"]

MAX_BAD_STEPS = 3
"""Non-finite steps in a row after which training stops."""


def seed_torch(seed: int) -> None:
    """`torch.manual_seed`, cheap enough for every step.

    On a machine without an accelerator that function still queues a call for each kind of device, with the text of the
    whole stack: some per cent of a small model's step, and memory that is never given back.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


class OptimizerSettings(Settings):
    """AdamW with warm-up and decay; every algorithm's settings build on these."""

    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""
    learning_rate_width: int | None = Field(default=None, gt=0)
    """The model width that the learning rates are meant for: they are multiplied by it over the model's own width, as
    Adam's rates should be (Yang et al. 2022, arXiv:2203.03466, table 3); none takes them as they are."""
    schedule: Schedule = "linear"
    """How the learning rate falls after warm-up: constant, linear or cosine."""
    final_learning_rate_share: float = Field(default=0.0, ge=0, le=1)
    """Where the learning rate ends, as a share of its peak."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps over which the learning rate climbs to its peak."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled weight decay on matrices; vectors are not decayed."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's averaging rates of the gradient and of its square."""
    adam_epsilon: float = Field(default=1e-8, gt=0)
    """AdamW's guard against division by zero."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    max_tokens_per_micro_batch: int = Field(default=8192, gt=0)
    """Tokens that go through the model at once; fewer saves memory and changes nothing else."""


class Update:
    """One optimizer over the named parameters of a role.

    Call `backward` for every micro-batch, then `step` once. A step whose gradient is not finite leaves the weights
    alone and is counted; the third in a row raises TrainingError.
    """

    def __init__(
        self, parameters: Mapping[str, torch.nn.Parameter], settings: OptimizerSettings, num_steps: int
    ) -> None:
        self.settings = settings
        self.num_steps = num_steps
        self.num_done = 0
        self.num_skipped = 0
        self.num_bad_in_a_row = 0
        self.names = list(parameters)
        self.parameters = list(parameters.values())
        decayed = [p for p in self.parameters if p.ndim >= 2]
        plain = [p for p in self.parameters if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
            lr=settings.learning_rate,
            betas=settings.adam_betas,
            eps=settings.adam_epsilon,
            fused=True,
        )

    def learning_rate(self) -> float:
        """The rate of the next step."""
        settings = self.settings
        if self.num_done < settings.warmup_steps:
            return settings.learning_rate * (self.num_done + 1) / settings.warmup_steps
        span = max(1, self.num_steps - settings.warmup_steps)
        progress = min(1.0, (self.num_done - settings.warmup_steps) / span)
        if settings.schedule == "constant":
            share = 1.0
        elif settings.schedule == "linear":
            share = 1.0 - progress
        else:
            share = 0.5 * (1.0 + math.cos(math.pi * progress))
        return settings.learning_rate * (
            settings.final_learning_rate_share + (1.0 - settings.final_learning_rate_share) * share
        )

    def backward(self, loss: torch.Tensor) -> None:
        """Adds the gradient of `loss`, which is already divided by the counts of the whole step."""
        loss.backward()

    def step(self) -> float:
        """Clips, steps, clears. Returns the gradient norm before clipping; where it is not finite, no step is taken."""
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.max_gradient_norm)

        if bool(torch.isfinite(norm)):
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate()
            self.optimizer.step()
            self.num_bad_in_a_row = 0
        else:
            self.num_skipped += 1
            self.num_bad_in_a_row += 1
        self.optimizer.zero_grad(set_to_none=True)
        self.num_done += 1
        if self.num_bad_in_a_row >= MAX_BAD_STEPS:
            raise TrainingError(
                f"the gradient was not finite {MAX_BAD_STEPS} steps in a row (the last at step {self.num_done}); the "
                "weights are as before the first of them: lower learning_rate, or look for broken rows in the data"
            )
        return float(norm)

    def state(self) -> dict[str, Any]:
        moments = {}
        for name, parameter in zip(self.names, self.parameters, strict=True):
            held = self.optimizer.state.get(parameter)
            if held:
                moments[name] = {key: held[key] for key in ("step", "exp_avg", "exp_avg_sq")}
        return {
            "moments": moments,
            "num_done": self.num_done,
            "num_skipped": self.num_skipped,
            "num_bad_in_a_row": self.num_bad_in_a_row,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        for name, parameter in zip(self.names, self.parameters, strict=True):
            held = state["moments"].get(name)
            if held:
                # A checkpoint is read into main memory; the fused optimizer wants its state beside the weights.
                self.optimizer.state[parameter] = {
                    key: value.to(parameter.device, copy=True) for key, value in held.items()
                }
        self.num_done = int(state["num_done"])
        self.num_skipped = int(state["num_skipped"])
        self.num_bad_in_a_row = int(state["num_bad_in_a_row"])


def require_finite(value: float, what: str) -> float:
    """The value, or a TrainingError that names it."""
    if not math.isfinite(value):
        raise TrainingError(f"{what} is {value}: lower learning_rate, or look for broken rows in the data")
    return value


def parameter_state(parameters: Mapping[str, torch.nn.Parameter]) -> dict[str, torch.Tensor]:
    """The values of named parameters, for a checkpoint."""
    return {name: parameter.detach().clone() for name, parameter in parameters.items()}


def load_parameter_state(parameters: Mapping[str, torch.nn.Parameter], state: Mapping[str, torch.Tensor]) -> None:
    """Puts the values back; every name must be there."""
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
