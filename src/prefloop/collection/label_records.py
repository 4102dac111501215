"""What a label project is made of: its settings, its pairs, the tasks people get, what they say, what is remembered.

Sides come in two codings, and every name here says which one it means. `displayed` is by the side on the screen, which
is drawn anew for each annotator and pair; without the word, left and right are the pair's own, the same two texts for
everybody. `swapped` turns one into the other.

All times are seconds since 1970 (UTC).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from prefloop.contracts import Settings
from prefloop.records import Choice, Comparison, Message, Prompt

PairOrder = Literal["random", "margin", "disagreement"]
ChosenBy = Literal["random", "margin", "disagreement"]
TaskKind = Literal["regular", "gold", "repeat"]
AccountRole = Literal["admin", "annotator"]


class ProjectSettings(Settings):
    """How a project is labelled. Kept in the store, so that every server and terminal follows the same rules."""

    name: str = Field(default="labels", min_length=1, max_length=200)
    """Shown at the top of the page."""
    guidelines: str = ""
    """Plain text that stays in view while people choose."""
    annotators_per_pair: int = Field(default=3, ge=1, le=100)
    """How many different people choose between the answers of a pair; never exceeded."""
    gold_share: float = Field(default=0.05, ge=0.0, le=0.5)
    """Share of tasks that are pairs with a known answer, as long as there are any."""
    repeat_share: float = Field(default=0.05, ge=0.0, le=0.5)
    """Share of tasks that show an earlier pair to the same person again, with its sides exchanged."""
    order: PairOrder = "random"
    """Which pairs come first: at random, by the smallest margin of a reward model, or by the largest disagreement."""
    random_share: float = Field(default=0.25, ge=0.25, le=1.0)
    """Share of pairs that keep a random place whatever the order, so that evaluation has an unbiased part."""
    lease_seconds: float = Field(default=900.0, gt=0.0)
    """How long a pair is kept for the person it was given to. Who goes on has it kept at least three quarters of it."""
    seed: int = 0
    """Sides, order, gold pairs and repeats are drawn from it."""


@dataclass(frozen=True)
class StoredPair:
    """A comparison in a project. `comparison.left.source` and `details` say where the answers come from.

    `gold_choice` is the known right choice, by the pair's own sides; `margin` (a reward model's score of left minus
    right) and `disagreement` (of an ensemble, >= 0) order the queue; `chosen_by` says which order gave it its place.
    """

    comparison: Comparison
    gold_choice: Choice | None = None
    margin: float | None = None
    disagreement: float | None = None
    chosen_by: ChosenBy = "random"


@dataclass(frozen=True)
class Task:
    """One pair as one person sees it. `left` and `right` are as displayed; nothing says which model wrote them."""

    task_id: str
    kind: TaskKind
    pair_id: str
    prompt: Prompt
    displayed_left: str
    displayed_right: str
    displayed_left_ended: bool
    displayed_right_ended: bool
    swapped: bool
    expires_at: float

    def for_page(self) -> dict[str, Any]:
        """What may leave the server: no kind, no pair id, no order."""
        messages = self.prompt if isinstance(self.prompt, tuple) else (Message("user", self.prompt),)
        return {
            "task_id": self.task_id,
            "prompt": [{"role": message.role, "content": message.content} for message in messages],
            "left": {"text": self.displayed_left, "ended": self.displayed_left_ended},
            "right": {"text": self.displayed_right, "ended": self.displayed_right_ended},
            "expires_at": self.expires_at,
        }


Strength = Annotated[int, Field(ge=1, le=4)]


class Submission(Settings):
    """What a person says about a task. The client makes `submission_id`, so that sending it twice is harmless."""

    submission_id: str = Field(min_length=8, max_length=100)
    task_id: str = Field(min_length=1, max_length=100)
    choice: Choice
    """By side as displayed."""
    strength: Strength | None = None
    """How much better, from 1 (hardly) to 4 (clearly); only with left or right."""
    rationale: str = Field(default="", max_length=10_000)
    opened_at: float = Field(ge=0.0, allow_inf_nan=False)
    submitted_at: float = Field(ge=0.0, allow_inf_nan=False)
    client_version: str = Field(default="", max_length=100)


@dataclass(frozen=True)
class Receipt:
    """The store has the label for good. `replayed`: it had it already, under the same submission id."""

    event_id: int
    submission_id: str
    revision: int
    replayed: bool


@dataclass(frozen=True)
class Undone:
    """A label taken back: its task, open again, and what had been said."""

    receipt: Receipt
    task: Task
    choice: Choice
    strength: int | None
    rationale: str


@dataclass(frozen=True)
class Progress:
    """How far a project is. Gold pairs and repeats do not count."""

    num_pairs: int
    num_pairs_complete: int
    num_labels: int
    num_labels_wanted: int


@dataclass(frozen=True)
class OwnProgress:
    """How far one person is, in tasks: gold pairs, repeats and skipped pairs count like any other.

    `num_left` is what would come if nobody else answered, 0 when nothing is left. Where gold pairs or repeats are mixed
    in, it holds those to be expected, is rounded up to a multiple of 5, and `is_exact` is false: that the number stands
    still tells no pair with a known answer from others.
    """

    num_done: int
    num_left: int
    is_exact: bool


@dataclass(frozen=True)
class LabelEvent:
    """One line of the append-only record. `choice` is by the pair's own sides, `displayed_choice` by the screen's.

    An "undo" event takes back the annotator's label of the pair and has no choice. `received_at` is the server's clock,
    the other two are the client's.
    """

    event_id: int
    submission_id: str
    event: Literal["label", "undo"]
    pair_id: str
    kind: TaskKind
    annotator: str
    choice: Choice | None
    displayed_choice: Choice | None
    swapped: bool
    strength: int | None
    rationale: str
    opened_at: float
    submitted_at: float
    received_at: float
    revision: int
    client_version: str
    chosen_by: ChosenBy
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Account:
    """Somebody who may sign in."""

    name: str
    role: AccountRole
    active: bool
    created_at: float


@dataclass(frozen=True)
class Session:
    """A browser that is signed in. `token` is in its cookie, `csrf_token` in the header of each of its writes."""

    token: str
    csrf_token: str
    account: Account
    expires_at: float
