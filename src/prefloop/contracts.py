"""Every joint of the system on one page.

A run drives an `Algorithm`; an algorithm asks a `Generator` for completions and a `RewardSource` for scores; an
`Annotator` chooses between two completions. A new algorithm, engine, reward or annotator fits in by having these
methods.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict

from prefloop.records import Comparison, Completion, Label, Prompt

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from prefloop.batches import BatchLayout


class Settings(BaseModel):
    """A frozen group of settings. An unknown key is an error, and the docstring below a field is its help text."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


@dataclass(frozen=True)
class Measure:
    """A metric as a sum and a count, so that measures of parts add up to the measure of the whole."""

    total: float
    count: float = 1.0

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else float("nan")

    def plus(self, other: "Measure") -> "Measure":
        return Measure(self.total + other.total, self.count + other.count)


Measures = Mapping[str, Measure]


def add_measures(into: dict[str, Measure], more: Measures) -> None:
    """Adds `more` to `into`, name by name."""
    for name, measure in more.items():
        into[name] = into[name].plus(measure) if name in into else measure


@dataclass(frozen=True)
class Sample:
    """A completion worth showing, with whatever was measured about it."""

    prompt: Prompt
    completion: str
    details: Mapping[str, float | str | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class StepReport:
    """What one step did. `stop_reason` ends the run before its last step, with the reason on record."""

    measures: Measures
    num_tokens: int
    samples: tuple[Sample, ...] = ()
    stop_reason: str | None = None


TrainerState = dict[str, Any]
"""Nested dictionaries and lists whose leaves are tensors, numbers, strings, booleans or None."""


class TrainedModel(Protocol):
    """A model that can be written in the Hugging Face layout."""

    def save(self, folder: "Path") -> None: ...


class RewardModel(TrainedModel, Protocol):
    """A network with one output per response. It reads batches in the layout that it names.

    `max_length` is the most tokens of a prompt with its response that it has positions for, where it says so.
    """

    layout: ClassVar["BatchLayout"]

    @property
    def device(self) -> "torch.device": ...
    @property
    def width(self) -> int: ...
    @property
    def max_length(self) -> int | None: ...
    def parameters(self) -> "dict[str, torch.nn.Parameter]": ...
    def hidden(self, batch: Any) -> "torch.Tensor": ...
    def at_ends(
        self, batch: Any, *, head_dropout: float = 0.0, hidden: "torch.Tensor | None" = None
    ) -> "torch.Tensor": ...
    def freeze(self) -> None: ...


class Algorithm(Protocol):
    """What is learned, step by step. It holds model state, and no path, logger, clock or print.

    `batch(step)` depends on nothing but the settings, the data and the step number, so a resumed run sees the same
    batches. `state` and `load_state` carry everything else that a step reads.
    """

    name: ClassVar[str]
    headline: ClassVar[tuple[str, ...]]
    """The four to six metrics that matter, in the order in which they are shown."""
    num_steps: int

    def batch(self, step: int) -> Any: ...
    def step(self, batch: Any) -> StepReport: ...
    def evaluate(self) -> tuple[Measures, tuple[Sample, ...]]: ...
    def state(self) -> TrainerState: ...
    def load_state(self, state: TrainerState) -> None: ...
    def trained(self) -> TrainedModel: ...


@dataclass(frozen=True)
class Sampling:
    """How completions are drawn. Temperature 0 is greedy; top_k 0 and top_p 1 switch those filters off."""

    max_new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0


class Generator(Protocol):
    """Prompts in tokens to completions, with the log-probability of each sampled token."""

    def generate(
        self, prompts: Sequence[Sequence[int]], *, sampling: Sampling, random: "torch.Generator"
    ) -> list[Completion]: ...


class RewardSource(Protocol):
    """Scores completions: a reward model, a rule or a judge. It may read the text, the tokens, or both."""

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]: ...


class Annotator(Protocol):
    """A person, or somebody who stands in for one, choosing between two completions."""

    @property
    def name(self) -> str: ...

    def choose(self, comparison: Comparison, rng: random.Random) -> Label: ...
