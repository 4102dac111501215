"""The questions people ask in the tutorials world: every task, in every phrasing, after every opening."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from prefloop.errors import DataError, SettingsError
from prefloop.records import Demonstration
from prefloop.worlds.tutorials.answers import FlawRates, write
from prefloop.worlds.tutorials.task import Task
from prefloop.worlds.tutorials.tasks import TASKS

QUESTION_OPENINGS: tuple[str, ...] = ("", "Hello! ", "Quick question: ", "Please help: ")

PHRASINGS: tuple[str, ...] = (
    "How do I {goal}?",
    "What is the best way to {goal}?",
    "Can you show me how to {goal}?",
    "I want to {goal}. Where do I start?",
    "What are the steps to {goal}?",
    "I have never tried to {goal}. How does it work?",
    "Could you explain how to {goal}?",
    "how to {goal}",
)


@dataclass(frozen=True)
class Question:
    """One way of asking for one task."""

    task: Task
    text: str


@cache
def questions() -> tuple[Question, ...]:
    """Every question of the world, task by task; the order never changes and no text occurs twice."""
    return tuple(
        Question(task, opening + phrasing.format(goal=task.goal))
        for task in TASKS
        for phrasing in PHRASINGS
        for opening in QUESTION_OPENINGS
    )


def split_questions(
    rng: random.Random, held_out_share: float = 1 / 3
) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """Training and held-out questions, each in the order of `questions()`.

    The split goes by question: a held-out question is a combination of task, phrasing and opening that training
    never shows, while every task occurs on both sides in the same proportion. Raises SettingsError when the share
    leaves one side of a task without a question.
    """
    num_per_task = len(PHRASINGS) * len(QUESTION_OPENINGS)
    num_held_out = round(num_per_task * held_out_share)
    if not 0 < num_held_out < num_per_task:
        raise SettingsError(
            f"held_out_share is {held_out_share}, which holds out {num_held_out} of the {num_per_task} questions of a "
            f"task. Choose a share between {1 / num_per_task:.3f} and {1 - 1 / num_per_task:.3f}."
        )
    held_out_places = {
        task_index * num_per_task + place
        for task_index in range(len(TASKS))
        for place in rng.sample(range(num_per_task), num_held_out)
    }
    training = tuple(question for place, question in enumerate(questions()) if place not in held_out_places)
    held_out = tuple(question for place, question in enumerate(questions()) if place in held_out_places)
    return training, held_out


def demonstrations(
    asked: Sequence[Question], num: int, *, rng: random.Random, flaw_rates: FlawRates | None = None
) -> list[Demonstration]:
    """`num` questions with an answer each, as a fallible person would write them (see `write`).

    The questions are gone through in a fresh random order again and again, so their counts differ by one at most.
    Raises DataError when answers are wanted and there is no question.
    """
    if num > 0 and not asked:
        raise DataError(f"{num} demonstrations are wanted but there is no question to answer. Give at least one.")
    examples: list[Demonstration] = []
    while len(examples) < num:
        for question in rng.sample(asked, min(len(asked), num - len(examples))):
            examples.append(Demonstration(question.text, write(question.task, rng, flaw_rates=flaw_rates)))
    return examples
