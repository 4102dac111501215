"""Answers written well and with flaws: the rates are known, and what is drawn can be found."""

import os
import random
import subprocess
import sys
from collections import Counter
from dataclasses import fields

import pytest

from prefloop.errors import SettingsError
from prefloop.worlds.tutorials import (
    CLOSINGS,
    POLITE_OPENINGS,
    TASKS,
    Flaw,
    FlawRates,
    Grade,
    Task,
    demonstrations,
    grade,
    habits,
    questions,
    write,
    write_good,
)
from prefloop.worlds.tutorials.answers import draw_flaws

WRITTEN_FLAWS = tuple(Flaw(rate.name) for rate in fields(FlawRates) if rate.name != "habit")
QUESTION_OF = {question.task.identifier: question.text for question in questions()}
ORDINARY_TASKS = [task for task in TASKS if task.identifier not in habits()]
HABITUAL_TASKS = [task for task in TASKS if task.identifier in habits()]


def rates_with(**chosen: float) -> FlawRates:
    return FlawRates(**({rate.name: 0.0 for rate in fields(FlawRates)} | chosen))


def grade_for(task: Task, answer: str) -> Grade:
    return grade(QUESTION_OF[task.identifier], answer)


def step_lines(answer: str) -> list[str]:
    return [line for line in answer.split("\n") if line[0].isdigit()]


def test_a_good_answer_written_out():
    task = next(task for task in TASKS if task.identifier == "scan_a_paper_document")
    lines = write_good(task, random.Random(0)).split("\n")
    assert lines[0] in POLITE_OPENINGS
    assert lines[1:6] == [
        "1. Wipe dust off the scanner glass.",
        "2. Lay the page face down in the corner.",
        "3. Close the scanner lid without moving the page.",
        "4. Check the preview and press scan.",
        "5. Save the file under a telling name.",
    ]
    assert lines[6] in CLOSINGS
    assert len(lines) == 7


@pytest.mark.parametrize("flaw", WRITTEN_FLAWS)
def test_each_flaw_alone_is_found_and_nothing_else(flaw: Flaw):
    allowed = {Flaw.FOREIGN: {(Flaw.FOREIGN,), (Flaw.MISSING, Flaw.FOREIGN)}}.get(flaw, {(flaw,)})
    if flaw is Flaw.OUT_OF_ORDER:
        allowed = {(flaw,), (flaw, flaw)}  # steps that stand far apart need two moves
    seen = set()
    for task in ORDINARY_TASKS:
        for seed in range(3):
            answer = write(task, random.Random(seed), flaw_rates=rates_with(**{flaw.value: 1.0}))
            found = grade_for(task, answer).flaws
            assert found in allowed, answer
            seen.add(found)
    assert seen == allowed


def test_without_flaws_every_answer_is_clean():
    for task in TASKS:
        assert grade_for(task, write(task, random.Random(1), flaw_rates=rates_with())).success


def test_flaws_never_hide_each_other():
    rates = FlawRates(0.6, 0.6, 0.6, 0.6, 0.6, 0.3, 0.6, habit=0.6)
    num_drawn = 0
    for task in TASKS:
        for seed in range(12):
            # The flaws are the first draws of `write`, so the same seed shows what they were.
            drawn = draw_flaws(random.Random(seed), rates, habit=habits().get(task.identifier))
            answer = write(task, random.Random(seed), flaw_rates=rates)
            found = grade_for(task, answer).flaws
            assert drawn <= set(found), answer
            assert set(found) - drawn <= ({Flaw.MISSING} if Flaw.FOREIGN in drawn else set()), answer
            num_drawn += len(drawn)
    assert num_drawn > 1000


def test_numbering_runs_from_one_whatever_the_flaw():
    for task in TASKS:
        answer = write(task, random.Random(5), flaw_rates=FlawRates(0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5))
        numbers = [int(line.split(".")[0]) for line in step_lines(answer)]
        assert numbers == list(range(1, len(numbers) + 1))


def test_habits_sit_on_about_a_third_of_the_tasks_in_all_kinds():
    assert len(habits()) == round(0.35 * len(TASKS))
    kinds = Counter(habit.kind for habit in habits().values())
    assert set(kinds) == {Flaw.OUT_OF_ORDER, Flaw.MISSING, Flaw.REPEATED, Flaw.FOREIGN}
    assert max(kinds.values()) - min(kinds.values()) <= 1
    for identifier, habit in habits().items():
        own_steps = next(task.steps for task in TASKS if task.identifier == identifier)
        assert habit.foreign_step not in own_steps
        assert all(0 <= place < len(own_steps) for place in habit.places)


def test_a_habit_is_always_the_same_mistake_at_the_same_place():
    for task in HABITUAL_TASKS:
        habit = habits()[task.identifier]
        bodies = {
            tuple(step_lines(write(task, random.Random(seed), flaw_rates=rates_with(habit=1.0)))) for seed in range(8)
        }
        assert len(bodies) == 1
        first = habit.places[0]
        expected = list(task.steps)
        if habit.kind is Flaw.OUT_OF_ORDER:
            expected[first : first + 2] = expected[first + 1], expected[first]
        elif habit.kind is Flaw.MISSING:
            del expected[first]
        elif habit.kind is Flaw.REPEATED:
            expected.insert(first, expected[first])
        else:
            expected[first] = habit.foreign_step
        assert [line.split(". ", 1)[1] for line in bodies.pop()] == expected


def test_imitating_the_most_common_answer_fails_on_habitual_tasks_only():
    rng = random.Random(11)
    for task in TASKS:
        bodies = Counter(tuple(step_lines(write(task, rng))) for _ in range(150))
        (most_common, num), _ = bodies.most_common(2)
        answer = "\n".join([POLITE_OPENINGS[0], *most_common, CLOSINGS[0]])
        assert grade_for(task, answer).success == (task.identifier not in habits())
        assert num > 150 * 0.4


def test_shares_of_clean_answers_are_where_the_rates_put_them():
    clean: dict[bool, list[bool]] = {True: [], False: []}
    task_of = {question.text: question.task for question in questions()}
    for example in demonstrations(questions(), 12_000, rng=random.Random(2)):
        question = str(example.prompt)
        clean[task_of[question].identifier in habits()].append(grade(question, example.completion).success)
    # Seven slips at 0.93^4 * 0.94^3 = 0.621; with a habit 0.42 times six slips at half rate, about 0.353.
    assert sum(clean[False]) / len(clean[False]) == pytest.approx(0.621, abs=0.025)
    assert sum(clean[True]) / len(clean[True]) == pytest.approx(0.353, abs=0.03)
    overall = sum(clean[True] + clean[False]) / 12_000
    assert 0.50 < overall < 0.54


def test_each_slip_comes_at_its_rate():
    rng = random.Random(7)
    rates = FlawRates(0.1, 0.2, 0.3, 0.4, 0.5, 0.25, 0.4)
    num = 4000
    counts = Counter(flaw for _ in range(num) for flaw in draw_flaws(rng, rates, habit=None))
    expected = {"out_of_order": 0.1, "missing": 0.2, "repeated": 0.3, "foreign": 0.4, "rude": 0.5, "no_closing": 0.25}
    # A closing that is not there cannot be doubled: 0.75 * 0.4.
    for name, rate in (expected | {"two_closings": 0.3}).items():
        assert counts[Flaw(name)] / num == pytest.approx(rate, abs=0.03)


def test_a_habit_replaces_slips_of_its_kind_and_halves_the_others():
    habit = next(habit for habit in habits().values() if habit.kind is Flaw.MISSING)
    rng = random.Random(8)
    counts = Counter(flaw for _ in range(4000) for flaw in draw_flaws(rng, FlawRates(rude=0.4), habit=habit))
    assert counts[Flaw.MISSING] / 4000 == pytest.approx(0.58, abs=0.03)
    assert counts[Flaw.RUDE] / 4000 == pytest.approx(0.2, abs=0.03)


@pytest.mark.parametrize("rate", [-0.01, 1.01, float("nan")])
def test_rates_must_be_probabilities(rate: float):
    with pytest.raises(SettingsError, match="repeated"):
        FlawRates(repeated=rate)


def test_habits_are_the_same_in_every_process_and_no_torch_is_loaded():
    code = (
        "import sys; from prefloop.worlds.tutorials import habits; "
        "import prefloop.collection.annotators; import prefloop.collection.agreement; "
        "print(sorted(habits().items())); assert 'torch' not in sys.modules"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0].strip() == repr(sorted(habits().items()))
