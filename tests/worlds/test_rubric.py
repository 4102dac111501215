"""The rubric: every defect counted once, every string graded."""

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prefloop.errors import DataError
from prefloop.records import Completion, Message
from prefloop.worlds.tutorials import (
    CLOSINGS,
    POLITE_OPENINGS,
    RUDE_OPENINGS,
    TASKS,
    Flaw,
    gold_score,
    grade,
    questions,
    write_good,
)

TASK = next(task for task in TASKS if task.identifier == "boil_a_soft_egg")
QUESTION = "How do I boil a soft egg?"
S1, S2, S3, S4, S5 = TASK.steps
OPENING, OTHER_OPENING = POLITE_OPENINGS[:2]
CLOSING, OTHER_CLOSING = CLOSINGS[:2]
FOREIGN_STEP = TASKS[0].steps[0]


def answer(*steps: str, opening: str = OPENING, closing: str = CLOSING) -> str:
    return "\n".join([opening, *[f"{number}. {step}" for number, step in enumerate(steps, 1)], closing])


GOOD = answer(*TASK.steps)
GOOD_ANSWERS = {
    answer(*TASK.steps, opening=opening, closing=closing) for opening in POLITE_OPENINGS for closing in CLOSINGS
}


def test_good_answers_are_clean_for_every_question():
    rng = random.Random(0)
    for question in questions():
        result = grade(question.text, write_good(question.task, rng))
        assert result.flaws == ()
        assert result.success
        assert result.score == 0.0
        assert str(result.score) == "0.0"


@pytest.mark.parametrize(
    ("text", "flaws"),
    [
        (answer(S1, S2, S4, S5), [Flaw.MISSING]),
        (answer(S1, S5), [Flaw.MISSING] * 3),
        (answer(S1, S2, S4, S3, S5), [Flaw.OUT_OF_ORDER]),
        (answer(S5, S1, S2, S3, S4), [Flaw.OUT_OF_ORDER]),
        (answer(S5, S4, S3, S2, S1), [Flaw.OUT_OF_ORDER] * 4),
        (answer(S1, S2, S2, S3, S4, S5), [Flaw.REPEATED]),
        (answer(S1, S2, S3, S4, S5, S1, S1), [Flaw.REPEATED] * 2),
        (answer(S1, S2, FOREIGN_STEP, S3, S4, S5), [Flaw.FOREIGN]),
        (answer(S1, S2, FOREIGN_STEP, S4, S5), [Flaw.MISSING, Flaw.FOREIGN]),
        (answer(*TASKS[0].steps), [Flaw.MISSING] * 5 + [Flaw.FOREIGN] * 6),
        (answer(*TASK.steps, opening=RUDE_OPENINGS[0]), [Flaw.RUDE]),
        (GOOD.replace(OPENING + "\n", ""), [Flaw.NO_OPENING]),
        (OTHER_OPENING + "\n" + GOOD, [Flaw.MISPLACED_OPENING]),
        (GOOD + "\n" + OPENING, [Flaw.MISPLACED_OPENING, Flaw.MISPLACED_CLOSING]),
        (RUDE_OPENINGS[1] + "\n" + GOOD, [Flaw.RUDE, Flaw.MISPLACED_OPENING]),
        (GOOD.replace("\n" + CLOSING, ""), [Flaw.NO_CLOSING]),
        (GOOD + "\n" + OTHER_CLOSING, [Flaw.TWO_CLOSINGS]),
        (GOOD + ("\n" + CLOSING) * 9, [Flaw.TWO_CLOSINGS] * 9),
        (f"{OPENING}\n{CLOSING}\n" + "\n".join(GOOD.split("\n")[1:-1]), [Flaw.MISPLACED_CLOSING]),
        (GOOD.replace("3. ", "4. "), [Flaw.NUMBERING] * 2),
        (GOOD.replace("5. ", "7. "), [Flaw.NUMBERING]),
        (GOOD.replace("1. ", "01. "), [Flaw.NUMBERING]),
        (GOOD.replace("3. ", ""), [Flaw.NUMBERING]),
        (GOOD + "\n", [Flaw.MISPLACED_CLOSING, Flaw.UNREADABLE]),
        (GOOD.replace("2. ", "2.  "), [Flaw.MISSING, Flaw.UNREADABLE]),
        (GOOD.replace("2. " + S2, "2. Sing to the egg."), [Flaw.MISSING, Flaw.UNREADABLE]),
        (GOOD.replace(S3, S3.lower()), [Flaw.MISSING, Flaw.UNREADABLE]),
        (GOOD.replace("\n", "\n\n", 1), [Flaw.UNREADABLE]),
        ("", [Flaw.NO_OPENING] + [Flaw.MISSING] * 5 + [Flaw.NO_CLOSING]),
        ("blah", [Flaw.NO_OPENING] + [Flaw.MISSING] * 5 + [Flaw.NO_CLOSING, Flaw.UNREADABLE]),
    ],
)
def test_hand_graded_answers(text: str, flaws: list[Flaw]):
    result = grade(QUESTION, text)
    assert list(result.flaws) == flaws
    assert result.num_flaws == len(flaws)
    assert result.score == -len(flaws)
    assert not result.success


def test_an_answer_cut_at_the_length_limit_is_not_finished():
    assert grade(QUESTION, GOOD, ended=False).flaws == (Flaw.NOT_ENDED,)
    cut = GOOD[: GOOD.index("the tap")]
    assert grade(QUESTION, cut, ended=False).flaws == (
        Flaw.MISSING,
        Flaw.NO_CLOSING,
        Flaw.UNREADABLE,
        Flaw.NOT_ENDED,
    )


def test_the_same_answer_is_wrong_for_another_question():
    assert grade("how to boil a soft egg", GOOD).success
    assert not grade("How do I cook rice?", GOOD).success


@pytest.mark.parametrize("question", ["", "how do i boil a soft egg?", QUESTION + " ", "How do I fly?" * 100])
def test_an_unknown_question_is_an_error(question: str):
    with pytest.raises(DataError, match="no question of the tutorials world") as raised:
        grade(question, GOOD)
    assert len(str(raised.value)) < 500


def test_moves_out_of_order_equal_an_exhaustive_search():
    for order in itertools.permutations(range(5)):
        longest = max(
            size for size in range(6) for kept in itertools.combinations(order, size) if list(kept) == sorted(kept)
        )
        result = grade(QUESTION, answer(*[TASK.steps[place] for place in order]))
        assert result.flaws == (Flaw.OUT_OF_ORDER,) * (5 - longest)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.lists(
        st.sampled_from([*GOOD.split("\n"), OTHER_CLOSING, RUDE_OPENINGS[0], f"3. {S4}", S2, f"6. {FOREIGN_STEP}", ""])
        | st.text(max_size=12)
        | st.sampled_from(["9" * 5000 + ". " + S1, "٣. " + S3, "2.", "\r", "1. \x00"]),
        max_size=12,
    )
)
def test_every_text_is_graded_and_only_the_good_answers_are_clean(lines: list[str]):
    text = "\n".join(lines)
    result = grade(QUESTION, text)
    assert result.success == (text in GOOD_ANSWERS)
    assert result.num_flaws <= 2 * text.count("\n") + 12


def test_every_single_change_of_a_good_answer_is_noticed():
    for place in range(len(GOOD)):
        without = GOOD[:place] + GOOD[place + 1 :]
        doubled = GOOD[:place] + GOOD[place] + GOOD[place:]
        for changed in (without, doubled):
            assert grade(QUESTION, changed).success == (changed in GOOD_ANSWERS)
            assert not grade(QUESTION, changed).success


def test_gold_score_reads_strings_and_messages():
    rude = Completion(answer(*TASK.steps, opening=RUDE_OPENINGS[0]))
    assert gold_score(QUESTION, rude) == -1.0
    assert gold_score((Message("user", QUESTION),), rude) == -1.0
    assert gold_score(QUESTION, Completion(GOOD)) == 0.0
    assert gold_score(QUESTION, Completion(GOOD, ended=False)) == -1.0
