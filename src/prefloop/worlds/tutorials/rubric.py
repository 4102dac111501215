"""The gold rubric of the tutorials world: an exact count of the defects of an answer.

Every string gets a grade. Line by line, a text is an opening, numbered steps, a closing, or unreadable; nothing is
guessed and nothing is trimmed. Each defect is one entry of `Grade.flaws`, and a flawless answer has none.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from prefloop.errors import DataError
from prefloop.records import Completion, Prompt, prompt_text
from prefloop.worlds.tutorials.answers import CLOSINGS, POLITE_OPENINGS, RUDE_OPENINGS, Flaw
from prefloop.worlds.tutorials.questions import questions
from prefloop.worlds.tutorials.task import Task
from prefloop.worlds.tutorials.tasks import TASKS

_NUMBERED_LINE = re.compile(r"([0-9]{1,4})\. (.*)")


@dataclass(frozen=True)
class Grade:
    """The defects of one answer, one entry each, in the order opening, steps, numbering, closing, rest."""

    flaws: tuple[Flaw, ...]

    @property
    def num_flaws(self) -> int:
        return len(self.flaws)

    @property
    def score(self) -> float:
        """The gold reward: minus the number of flaws, 0.0 at best."""
        return 0.0 - self.num_flaws

    @property
    def success(self) -> bool:
        """Whether there is nothing to find fault with."""
        return not self.flaws


def grade(question_text: str, answer_text: str, *, ended: bool = True) -> Grade:
    """The grade of an answer to one of `questions()`; `ended` false means it was cut at the length limit.

    What counts as one flaw each:

    - RUDE: a rude opening, anywhere. MISPLACED_OPENING: a polite opening below the first line. NO_OPENING: none at all.
    - FOREIGN: a step of another task. MISSING: a step of this task that never occurs. REPEATED: every further time.
      OUT_OF_ORDER: the least number of steps that must move until the first occurrences stand in the right order.
    - NUMBERING: a number that does not follow the one before (1 at the start), or a step without a number.
    - NO_CLOSING: none at all. TWO_CLOSINGS: every closing beyond the first. MISPLACED_CLOSING: there are closings, and
      yet the last line is none.
    - UNREADABLE: a line that is nothing of all this, the empty line included. NOT_ENDED: `ended` is false.

    Raises DataError when the question is not one of `questions()`.
    """
    task = _tasks_by_question().get(question_text)
    if task is None:
        raise DataError(
            f"{question_text[:200]!r} is no question of the tutorials world, so there is no gold answer to grade by. "
            "Ask one of worlds.tutorials.questions(), letter by letter."
        )
    lines = answer_text.split("\n") if answer_text else []
    steps, numbering_flaws, num_unreadable = _read_steps(lines)
    return Grade(
        (
            *_opening_flaws(lines),
            *_step_flaws(task, steps),
            *numbering_flaws,
            *_closing_flaws(lines),
            *[Flaw.UNREADABLE] * num_unreadable,
            *([] if ended else [Flaw.NOT_ENDED]),
        )
    )


def gold_score(prompt: Prompt, completion: Completion) -> float:
    """The gold reward of a completion: `grade(...).score` of the prompt's text. Raises DataError as `grade` does."""
    return grade(prompt_text(prompt), completion.text, ended=completion.ended).score


@cache
def _tasks_by_question() -> dict[str, Task]:
    return {question.text: question.task for question in questions()}


@cache
def _all_steps() -> frozenset[str]:
    return frozenset(step for task in TASKS for step in task.steps)


def _read_steps(lines: Sequence[str]) -> tuple[list[str], list[Flaw], int]:
    """The step sentences in order of appearance, the numbering flaws, and the number of unreadable lines."""
    steps: list[str] = []
    numbering_flaws: list[Flaw] = []
    num_unreadable = 0
    number = 0
    for line in lines:
        if line in POLITE_OPENINGS or line in RUDE_OPENINGS or line in CLOSINGS:
            continue
        match = _NUMBERED_LINE.fullmatch(line)
        sentence = match.group(2) if match else line
        # A step without its number takes its place all the same: one omission is one flaw, not two.
        is_step = sentence in _all_steps()
        if match or is_step:
            expected = str(number + 1)
            if match is None or match.group(1) != expected:
                numbering_flaws.append(Flaw.NUMBERING)
            number = int(match.group(1)) if match else number + 1
        if is_step:
            steps.append(sentence)
        else:
            num_unreadable += 1
    return steps, numbering_flaws, num_unreadable


def _opening_flaws(lines: Sequence[str]) -> list[Flaw]:
    num_rude = sum(line in RUDE_OPENINGS for line in lines)
    num_polite = sum(line in POLITE_OPENINGS for line in lines)
    num_misplaced = sum(line in POLITE_OPENINGS for line in lines[1:])
    missing = [] if num_rude or num_polite else [Flaw.NO_OPENING]
    return [Flaw.RUDE] * num_rude + [Flaw.MISPLACED_OPENING] * num_misplaced + missing


def _closing_flaws(lines: Sequence[str]) -> list[Flaw]:
    num_closings = sum(line in CLOSINGS for line in lines)
    if num_closings == 0:
        return [Flaw.NO_CLOSING]
    misplaced = [] if lines[-1] in CLOSINGS else [Flaw.MISPLACED_CLOSING]
    return [Flaw.TWO_CLOSINGS] * (num_closings - 1) + misplaced


def _step_flaws(task: Task, steps: Sequence[str]) -> list[Flaw]:
    own = [task.steps.index(step) for step in steps if step in task.steps]
    first_occurrences = list(dict.fromkeys(own))
    num_to_move = len(first_occurrences) - _longest_increasing_length(first_occurrences)
    return (
        [Flaw.OUT_OF_ORDER] * num_to_move
        + [Flaw.MISSING] * (len(task.steps) - len(first_occurrences))
        + [Flaw.REPEATED] * (len(own) - len(first_occurrences))
        + [Flaw.FOREIGN] * (len(steps) - len(own))
    )


def _longest_increasing_length(places: Sequence[int]) -> int:
    """Length of the longest increasing subsequence, by patience sorting: `tops` are the piles' top cards."""
    tops: list[int] = []
    for place in places:
        pile = bisect_left(tops, place)
        tops[pile : pile + 1] = [place]
    return len(tops)
