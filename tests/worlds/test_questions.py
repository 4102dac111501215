"""Questions, their split, and demonstrations drawn from them."""

import random
from collections import Counter

import pytest

from prefloop.errors import DataError, SettingsError
from prefloop.worlds.tutorials import TASKS, demonstrations, grade, questions, split_questions


def test_all_combinations_are_there_once_and_in_a_fixed_order():
    texts = [question.text for question in questions()]
    assert len(texts) == len(set(texts)) == len(TASKS) * 8 * 4
    assert texts[0] == "How do I repot a plant?"
    assert texts[1] == "Hello! How do I repot a plant?"
    assert "Please help: how to repot a plant" in texts
    assert [question.task for question in questions()][:: 8 * 4] == list(TASKS)


def test_the_split_covers_everything_and_keeps_every_task_on_both_sides():
    training, held_out = split_questions(random.Random(3))
    assert len(training) + len(held_out) == len(questions())
    assert not {question.text for question in training} & {question.text for question in held_out}
    # 32 questions per task: round(32 / 3) = 11 are held out, 21 remain.
    assert set(Counter(question.task.identifier for question in held_out).values()) == {11}
    assert set(Counter(question.task.identifier for question in training).values()) == {21}
    assert list(training) == [question for question in questions() if question in set(training)]


def test_the_split_depends_on_the_generator_alone():
    assert split_questions(random.Random(3)) == split_questions(random.Random(3))
    assert split_questions(random.Random(3)) != split_questions(random.Random(4))


def test_the_share_is_respected_and_checked():
    _, held_out = split_questions(random.Random(0), 0.25)
    assert len(held_out) == len(TASKS) * 8
    for share in (0.0, 1.0, 0.001, -0.5, 2.0):
        with pytest.raises(SettingsError, match="held_out_share"):
            split_questions(random.Random(0), share)


def test_demonstrations_go_round_evenly_and_answer_their_question():
    asked = questions()[::50]
    examples = demonstrations(asked, 2 * len(asked) + 5, rng=random.Random(1))
    counts = Counter(example.prompt for example in examples)
    assert set(counts) == {question.text for question in asked}
    assert Counter(counts.values()) == {2: len(asked) - 5, 3: 5}
    assert demonstrations(asked, 60, rng=random.Random(1)) == demonstrations(asked, 60, rng=random.Random(1))
    # Far more steps belong to the asked task than not: the answers stand beside the right questions.
    assert sum(grade(str(example.prompt), example.completion).num_flaws for example in examples) < 2 * len(examples)


def test_demonstrations_need_a_question_unless_none_is_wanted():
    assert demonstrations([], 0, rng=random.Random(0)) == []
    with pytest.raises(DataError, match="no question"):
        demonstrations([], 1, rng=random.Random(0))
