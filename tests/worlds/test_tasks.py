"""The embedded content itself: enough of it, well formed, nothing twice."""

from collections import Counter

import pytest

from prefloop.worlds.tutorials import CLOSINGS, POLITE_OPENINGS, RUDE_OPENINGS, TASKS, Task


def test_there_are_many_tasks_of_every_length():
    assert len(TASKS) >= 64
    lengths = Counter(len(task.steps) for task in TASKS)
    assert set(lengths) == {5, 6, 7}
    assert min(lengths.values()) >= 10


def test_no_sentence_goal_or_identifier_occurs_twice():
    sentences = [step for task in TASKS for step in task.steps]
    sentences += [*POLITE_OPENINGS, *RUDE_OPENINGS, *CLOSINGS]
    assert [sentence for sentence, num in Counter(sentences).items() if num > 1] == []
    assert len({task.goal for task in TASKS}) == len(TASKS)
    assert len({task.identifier for task in TASKS}) == len(TASKS)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.identifier)
def test_every_step_is_one_short_sentence(task: Task):
    assert task.goal[0].islower()
    assert task.goal[-1].isalpha()
    for step in task.steps:
        assert step[0].isupper()
        assert step.endswith(".")
        assert step.count(".") == 1
        assert 4 <= len(step.split()) <= 10
        assert "\n" not in step
