"""Which two of several answers make the pair, and pairs as rows."""

import random
from itertools import combinations

import pytest

from prefloop.collection.pairs import (
    comparison_from_row,
    comparison_to_row,
    label_rows,
    line_difference,
    most_different,
)
from prefloop.errors import DataError
from prefloop.records import Comparison, Completion, Label, Message


def test_line_difference_by_hand() -> None:
    """a b c and a c share no neighbours but the start's: (start, a) and (c, end) of 4 + 3 - 2 = 5."""
    assert line_difference("a\nb\nc", "a\nc") == pytest.approx(1 - 2 / 5)


def test_line_difference_is_0_for_the_same_lines_and_1_for_others() -> None:
    assert line_difference("a\nb", " a \nb\n") == 0.0
    assert line_difference("a\nb", "c\nd") == 1.0
    assert line_difference("a\nb\nc", "c\nb\na") == 1.0


def test_line_difference_equals_a_naive_count_and_is_symmetric() -> None:
    rng = random.Random(0)
    for _ in range(50):
        one, other = (["", *(rng.choice("abc") for _ in range(rng.randint(1, 6))), ""] for _ in range(2))
        first, second = ({tuple(lines[at : at + 2]) for at in range(len(lines) - 1)} for lines in (one, other))
        shared = sum(pair in second for pair in first)
        expected = 1 - shared / (len(first) + len(second) - shared)
        texts = ["\n".join(lines[1:-1]) for lines in (one, other)]
        assert line_difference(texts[0], texts[1]) == pytest.approx(expected)
        assert line_difference(texts[1], texts[0]) == line_difference(texts[0], texts[1])


def test_the_two_that_differ_most_in_the_order_they_were_drawn() -> None:
    drawn = [Completion("a\nb\nc"), Completion("a\nb\nd"), Completion("x\ny")]
    assert most_different(drawn) == (drawn[0], drawn[2])
    best = max(line_difference(one.text, other.text) for one, other in combinations(drawn, 2))
    assert line_difference(drawn[0].text, drawn[2].text) == best


@pytest.mark.parametrize("texts", [[], ["a"], ["a", "a"], ["a\nb", " a\nb \n", "a\nb"]])
def test_no_pair_where_no_two_differ(texts: list[str]) -> None:
    assert most_different([Completion(text) for text in texts]) is None


@pytest.mark.parametrize("prompt", ["How?", (Message("system", "Be brief."), Message("user", "How?"))])
def test_a_comparison_survives_its_row(prompt: str | tuple[Message, ...]) -> None:
    left = Completion("so", ended=True, source="sft")
    comparison = Comparison("pairs-000001", prompt, left, Completion("thus", ended=False), details={"seed": 3})
    assert comparison_from_row(comparison_to_row(comparison)) == comparison


def test_tokens_and_their_log_probabilities_stay_out_of_the_row() -> None:
    side = Completion("so", token_ids=(1, 2), logprobs=(-0.5, -0.25))
    assert set(comparison_to_row(Comparison("a", "b", side, side))["left"]) == {"text", "ended", "source"}


@pytest.mark.parametrize(
    "row",
    [
        {"pair_id": "a", "prompt": "b", "left": {"text": "c"}},
        {"pair_id": "a", "prompt": "b", "left": {"text": "c"}, "right": {"words": "d"}},
        {"pair_id": "a", "prompt": 7, "left": {"text": "c"}, "right": {"text": "d"}},
    ],
)
def test_a_row_that_is_no_comparison_is_shown(row: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"a row of comparisons is not usable.*pair_id"):
        comparison_from_row(row)


def test_labels_as_rows() -> None:
    assert label_rows([Label("a", "Leo", "tie")]) == [{"pair_id": "a", "annotator": "Leo", "choice": "tie"}]
