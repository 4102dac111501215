"""The tutorials world: everyday questions, step-by-step answers, and a rubric that grades any answer exactly.

It needs no network and no model. Demonstrations hold slips and habits at known rates, so that imitation alone cannot
become perfect while preferences can show the way.
"""

from prefloop.worlds.tutorials.answers import (
    CLOSINGS,
    POLITE_OPENINGS,
    RUDE_OPENINGS,
    Flaw,
    FlawRates,
    Habit,
    habits,
    write,
    write_good,
)
from prefloop.worlds.tutorials.questions import Question, demonstrations, questions, split_questions
from prefloop.worlds.tutorials.rubric import Grade, gold_score, grade
from prefloop.worlds.tutorials.task import Task
from prefloop.worlds.tutorials.tasks import TASKS

__all__ = [
    "CLOSINGS",
    "POLITE_OPENINGS",
    "RUDE_OPENINGS",
    "TASKS",
    "Flaw",
    "FlawRates",
    "Grade",
    "Habit",
    "Question",
    "Task",
    "demonstrations",
    "gold_score",
    "grade",
    "habits",
    "questions",
    "split_questions",
    "write",
    "write_good",
]
