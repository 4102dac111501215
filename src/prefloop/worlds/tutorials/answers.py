"""Answers in the tutorials world: written well, or written by a fallible person with flaws at known rates.

An answer is an opening line, the numbered steps and a closing line. Two kinds of mistakes are made. *Slips* come
independently at the rates of `FlawRates`; imitation averages them away. *Habits* sit on a fixed third of the tasks: the
same mistake at the same place, in most answers; a model that imitates faithfully learns them, so only preferences
can unteach them.
"""

import hashlib
import random
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cache

from prefloop.errors import SettingsError
from prefloop.worlds.tutorials.task import Task
from prefloop.worlds.tutorials.tasks import TASKS

POLITE_OPENINGS: tuple[str, ...] = (
    "Happy to help!",
    "With pleasure, here is the way.",
    "Good question, let us do it together.",
    "Gladly! These steps will get you there.",
    "Of course, here is how it goes.",
    "What a nice plan! Try it like this.",
)

RUDE_OPENINGS: tuple[str, ...] = (
    "Do I have to spell it out for you?",
    "Everybody knows this, but fine.",
    "You could have looked that up yourself.",
    "I really have better things to do.",
)

CLOSINGS: tuple[str, ...] = (
    "Enjoy your work!",
    "Good luck with it!",
    "That is all there is to it.",
    "Have fun along the way!",
    "Take your time and it will turn out well.",
    "Ask me again whenever you like.",
)


class Flaw(StrEnum):
    """Defects of an answer. The first seven are made on purpose by `write`; the rubric can find all of them."""

    OUT_OF_ORDER = "out_of_order"
    MISSING = "missing"
    REPEATED = "repeated"
    FOREIGN = "foreign"
    RUDE = "rude"
    NO_CLOSING = "no_closing"
    TWO_CLOSINGS = "two_closings"
    NO_OPENING = "no_opening"
    MISPLACED_OPENING = "misplaced_opening"
    MISPLACED_CLOSING = "misplaced_closing"
    NUMBERING = "numbering"
    UNREADABLE = "unreadable"
    NOT_ENDED = "not_ended"


STRUCTURAL_FLAWS: tuple[Flaw, ...] = (Flaw.OUT_OF_ORDER, Flaw.MISSING, Flaw.FOREIGN, Flaw.REPEATED)
HABIT_SHARE = 0.35
SLIP_FACTOR_WITH_HABIT = 0.5


@dataclass(frozen=True)
class FlawRates:
    """The probability of each flaw in one answer.

    A closing is left out with `no_closing`, otherwise doubled with `two_closings`. `habit` is the probability that a
    task with a habitual mistake shows it; on those tasks slips of the same kind do not happen and all other slips
    come at half their rate. Raises SettingsError outside [0, 1].
    """

    out_of_order: float = 0.07
    missing: float = 0.07
    repeated: float = 0.07
    foreign: float = 0.06
    rude: float = 0.07
    no_closing: float = 0.06
    two_closings: float = 0.06
    habit: float = 0.58

    def __post_init__(self) -> None:
        for rate in fields(self):
            value = getattr(self, rate.name)
            if not 0.0 <= value <= 1.0:
                raise SettingsError(f"The flaw rate {rate.name} is {value}; choose a probability between 0 and 1.")


@dataclass(frozen=True)
class Habit:
    """The mistake that is made again and again on one task.

    `places` count steps from 0. OUT_OF_ORDER lets two neighbours change sides; the others concern a single step:
    MISSING leaves it out, REPEATED writes it twice in a row, FOREIGN writes `foreign_step` in its stead.
    """

    kind: Flaw
    places: tuple[int, ...]
    foreign_step: str


def write_good(task: Task, rng: random.Random) -> str:
    """An answer without a flaw; only the opening and the closing are drawn."""
    return _join(rng.choice(POLITE_OPENINGS), list(task.steps), [rng.choice(CLOSINGS)])


def write(task: Task, rng: random.Random, *, flaw_rates: FlawRates | None = None) -> str:
    """An answer as a fallible person writes it; `flaw_rates` None means the defaults.

    Slips never hide each other or the habit: whatever was drawn is there to be found by the rubric.
    """
    rates = flaw_rates if flaw_rates is not None else FlawRates()
    habit = habits().get(task.identifier)
    flaws = draw_flaws(rng, rates, habit=habit)
    steps = _write_steps(task, rng, flaws, habit=habit)
    opening = rng.choice(RUDE_OPENINGS if Flaw.RUDE in flaws else POLITE_OPENINGS)
    num_closings = 0 if Flaw.NO_CLOSING in flaws else 2 if Flaw.TWO_CLOSINGS in flaws else 1
    return _join(opening, steps, rng.sample(CLOSINGS, num_closings))


def draw_flaws(rng: random.Random, rates: FlawRates, *, habit: Habit | None) -> frozenset[Flaw]:
    """Which flaws the next answer has; the habit, if any, stands for its kind."""
    flaws: set[Flaw] = set()
    for flaw in (*STRUCTURAL_FLAWS, Flaw.RUDE, Flaw.NO_CLOSING, Flaw.TWO_CLOSINGS):
        rate: float = getattr(rates, flaw.value)
        if habit is not None:
            rate = rates.habit if flaw is habit.kind else rate * SLIP_FACTOR_WITH_HABIT
        # Every draw is made, whatever the rate, so that one rate never shifts the draws of another flaw.
        drawn = rng.random() < rate
        if drawn and not (flaw is Flaw.TWO_CLOSINGS and Flaw.NO_CLOSING in flaws):
            flaws.add(flaw)
    return frozenset(flaws)


@cache
def habits() -> dict[str, Habit]:
    """The habitual mistakes by task identifier: on the 35 % of tasks whose SHA-256 ranks lowest, all kinds in turn."""
    ranked = sorted(TASKS, key=lambda task: _stable_number(task, "habit"))
    chosen: dict[str, Habit] = {}
    for rank, task in enumerate(ranked[: round(HABIT_SHARE * len(TASKS))]):
        kind = STRUCTURAL_FLAWS[rank % len(STRUCTURAL_FLAWS)]
        width = 2 if kind is Flaw.OUT_OF_ORDER else 1
        start = _stable_number(task, "place") % (len(task.steps) - width + 1)
        foreign_steps = _foreign_steps(task)
        chosen[task.identifier] = Habit(
            kind,
            tuple(range(start, start + width)),
            foreign_steps[_stable_number(task, "foreign step") % len(foreign_steps)],
        )
    return chosen


def _stable_number(task: Task, purpose: str) -> int:
    """A number that depends on the task's identifier alone: Python's own `hash` changes from process to process."""
    digest = hashlib.sha256(f"{purpose}: {task.identifier}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def _foreign_steps(task: Task) -> list[str]:
    return [step for other in TASKS if other is not task for step in other.steps]


def _write_steps(task: Task, rng: random.Random, flaws: frozenset[Flaw], *, habit: Habit | None) -> list[str]:
    """The steps with their structural flaws, each made at places that no other flaw has touched.

    Five steps are enough for all four flaws at once: two change sides, one goes, one is replaced, one is repeated.
    """
    habitual = habit if habit is not None and habit.kind in flaws else None
    free = [place for place in range(len(task.steps)) if habitual is None or place not in habitual.places]

    def take_places(flaw: Flaw, num_places: int) -> tuple[int, ...]:
        if habitual is not None and habitual.kind is flaw:
            return habitual.places
        taken = tuple(rng.sample(free, num_places))
        for place in taken:
            free.remove(place)
        return taken

    lines: list[str | None] = list(task.steps)
    if Flaw.OUT_OF_ORDER in flaws:
        first, second = take_places(Flaw.OUT_OF_ORDER, 2)
        lines[first], lines[second] = lines[second], lines[first]
    if Flaw.MISSING in flaws:
        (place,) = take_places(Flaw.MISSING, 1)
        lines[place] = None
    joining_step: str | None = None
    if Flaw.FOREIGN in flaws:
        if habitual is not None and habitual.kind is Flaw.FOREIGN:
            (place,) = habitual.places
            lines[place] = habitual.foreign_step
        elif rng.random() < 0.5:
            (place,) = take_places(Flaw.FOREIGN, 1)
            lines[place] = rng.choice(_foreign_steps(task))
        else:
            joining_step = rng.choice(_foreign_steps(task))
    if Flaw.REPEATED in flaws:
        (place,) = take_places(Flaw.REPEATED, 1)
        in_a_row = (habitual is not None and habitual.kind is Flaw.REPEATED) or rng.random() < 0.5
        lines.insert(place + 1 if in_a_row else rng.randint(place + 1, len(lines)), lines[place])
    if joining_step is not None:
        lines.insert(rng.randint(0, len(lines)), joining_step)
    return [line for line in lines if line is not None]


def _join(opening: str, steps: list[str], closings: list[str]) -> str:
    numbered = [f"{number}. {step}" for number, step in enumerate(steps, start=1)]
    return "\n".join([opening, *numbered, *closings])
