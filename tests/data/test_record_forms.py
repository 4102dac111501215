import pytest

from prefloop.data.record_forms import FORMS, RowDropped, RowProblem, dialogue, form_of, with_our_names
from prefloop.data.row_files import Row
from prefloop.errors import DataError
from prefloop.records import Demonstration, LabelledText, Message, PreferencePair, TextExample

HELLO = (Message("user", "hello"),)
HELLO_VALUE = [{"role": "user", "content": "hello"}]


def said(content):
    return [{"role": "assistant", "content": content}]


def record(kind, values, *, columns=None, typed=True):
    columns = columns or {}
    row = Row("a.jsonl:1", values, typed)
    return form_of(kind, list(values), columns, source="a.jsonl").make(with_our_names(row, columns))


TWO = {"prompt": "p", "completion_0": "a", "completion_1": "b"}


@pytest.mark.parametrize(
    ("kind", "values", "expected"),
    [
        ("text", {"text": "a"}, TextExample("a")),
        ("text", {"sentence": "a", "label": 1}, TextExample("a")),
        ("demonstrations", {"prompt": "p", "completion": " c"}, Demonstration("p", " c")),
        ("demonstrations", {"prompt": HELLO_VALUE, "completion": said("c")}, Demonstration(HELLO, "c")),
        ("demonstrations", {"messages": [*HELLO_VALUE, *said("c")]}, Demonstration(HELLO, "c")),
        ("demonstrations", {"instruction": "hello", "input": "", "output": "c"}, Demonstration(HELLO, "c")),
        ("demonstrations", {"instruction": "hello", "output": "c"}, Demonstration(HELLO, "c")),
        ("demonstrations", {"prompt": "p", "chosen": "c", "rejected": "r"}, Demonstration("p", "c")),
        (
            "demonstrations",
            {"chosen": "\n\nHuman: hello\n\nAssistant: c", "rejected": "\n\nHuman: hello\n\nAssistant: r"},
            Demonstration(HELLO, "c"),
        ),
        (
            "demonstrations",
            {"instruction": "add", "input": "1 2", "output": "3"},
            Demonstration((Message("user", "add\n\n1 2"),), "3"),
        ),
        ("pairs", {"prompt": "p", "chosen": "a", "rejected": "b"}, PreferencePair("p", "a", "b")),
        (
            "pairs",
            {"prompt": HELLO_VALUE, "chosen": said("a"), "rejected": said("b"), "agreement": 0.75, "num_annotators": 4},
            PreferencePair(HELLO, "a", "b", agreement=0.75, num_annotators=4),
        ),
        (
            "pairs",
            {"chosen": HELLO_VALUE + said("a"), "rejected": HELLO_VALUE + said("b")},
            PreferencePair(HELLO, "a", "b"),
        ),
        (
            "pairs",
            {"prompt": "hello", "chosen": HELLO_VALUE + said("a"), "rejected": HELLO_VALUE + said("b")},
            PreferencePair(HELLO, "a", "b"),
        ),
        (
            "pairs",
            {"chosen": "\n\nHuman: hello\n\nAssistant: a", "rejected": "\n\nHuman: hello\n\nAssistant: b"},
            PreferencePair(HELLO, "a", "b"),
        ),
        (
            "pairs",
            {"chosen": "The sky is blue.", "rejected": "The sky is black."},
            PreferencePair("The sky is", " blue.", " black."),
        ),
        ("pairs", {**TWO, "label": 0}, PreferencePair("p", "a", "b")),
        ("pairs", {**TWO, "label": 1}, PreferencePair("p", "b", "a")),
        ("pairs", {**TWO, "label": True, "agreement": 0.75}, PreferencePair("p", "b", "a", agreement=0.75)),
        ("demonstrations", {**TWO, "label": 1}, Demonstration("p", "b")),
        ("prompts", {**TWO, "label": 1}, "p"),
        ("labelled", {"text": "a", "label": 1}, LabelledText("a", 1)),
        ("labelled", {"sentence": "a", "label": 0}, LabelledText("a", 0)),
        ("labelled", {"text": "a", "label": True, "prompt": "p"}, LabelledText("a", 1, "p")),
        ("labelled", {"prompt": "p", "completion": "a", "label": False}, LabelledText("a", 0, "p")),
        ("prompts", {"prompt": "p"}, "p"),
        ("prompts", {"prompt": HELLO_VALUE, "chosen": 1, "rejected": 2}, HELLO),
        ("prompts", {"messages": HELLO_VALUE + said("a")}, HELLO),
        ("prompts", {"messages": HELLO_VALUE}, HELLO),
        ("prompts", {"instruction": "hello", "output": "x"}, HELLO),
        (
            "prompts",
            {"chosen": "\n\nHuman: hello\n\nAssistant: a", "rejected": "\n\nHuman: hello\n\nAssistant: b"},
            HELLO,
        ),
    ],
)
def test_the_names_of_published_data_are_known(kind, values, expected):
    assert record(kind, values) == expected


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        ("text", {"text": " \n"}, "empty text"),
        ("demonstrations", {"prompt": "", "completion": "c"}, "empty prompt"),
        ("demonstrations", {"prompt": "p", "completion": "\t"}, "empty completion"),
        ("demonstrations", {"instruction": "p", "output": ""}, "empty completion"),
        (
            "demonstrations",
            {"prompt": "p", "chosen": "c", "rejected": "r", "chosen_ended": False},
            "chosen answer was cut",
        ),
        ("demonstrations", {"messages": said("c")}, "empty prompt"),
        ("demonstrations", {"messages": HELLO_VALUE}, "does not end with the assistant"),
        ("demonstrations", {"messages": HELLO_VALUE + said(" ")}, "empty completion"),
        ("pairs", {"prompt": "p", "chosen": "a  b", "rejected": " a\nb"}, "chosen equals rejected"),
        ("pairs", {"prompt": [], "chosen": "a", "rejected": "b"}, "empty prompt"),
        ("pairs", {"prompt": "p", "chosen": said(""), "rejected": "b"}, "empty completion"),
        (
            "pairs",
            {"chosen": "\n\nHuman: hello\n\nAssistant: a", "rejected": "\n\nHuman: hey\n\nAssistant: b"},
            "no shared prompt",
        ),
        (
            "pairs",
            {"chosen": "\n\nHuman: hello\n\nAssistant: a", "rejected": "\n\nHuman: hello\n\nAssistant:"},
            "empty completion",
        ),
        ("pairs", {"chosen": "blue sky", "rejected": "black sky"}, "no shared prompt"),
        ("pairs", {"chosen": "the sky", "rejected": "the sky is black"}, "empty completion"),
        ("pairs", {**TWO, "label": 2}, "label is neither 0 nor 1"),
        ("pairs", {**TWO, "completion_1": " ", "label": 0}, "empty completion"),
        ("labelled", {"sentence": "a", "label": -1}, "label is neither 0 nor 1"),
        ("labelled", {"text": "a", "label": 0.5}, "label is neither 0 nor 1"),
        ("prompts", {"prompt": " "}, "empty prompt"),
    ],
)
def test_useless_rows_are_dropped_with_their_reason(kind, values, reason):
    with pytest.raises(RowDropped, match=f"^{reason}$"):
        record(kind, values)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        ("text", {"text": None}, "text is null; it must be a string"),
        ("text", {"text": 7}, "text is a number"),
        ("text", {"text": ["a"]}, "text is a list"),
        ("text", {"text": "a\x00b"}, "text holds a NUL character at position 1"),
        ("text", {"text": "ab\ud800"}, "text holds half a surrogate pair at position 2"),
        ("demonstrations", {"prompt": {"a": 1}, "completion": "c"}, "prompt is an object"),
        ("demonstrations", {"instruction": "i", "input": None, "output": "c"}, "input is null"),
        ("demonstrations", {"messages": "hi"}, "messages is a string; it must be a list"),
        ("demonstrations", {"messages": [{"from": "human"}]}, r"messages\[0\] must be an object with role and content"),
        ("demonstrations", {"messages": [{"role": "tool", "content": "x"}]}, r"the role 'tool'; allowed: system, user"),
        ("demonstrations", {"messages": [{"role": "user", "content": None}]}, r"messages\[0\]\.content is null"),
        ("demonstrations", {"prompt": HELLO_VALUE + said("a"), "completion": "c"}, "ends with an assistant message"),
        ("demonstrations", {"prompt": "p", "completion": HELLO_VALUE}, "a string or one assistant message"),
        ("pairs", {"prompt": "p", "chosen": "a", "rejected": None}, "rejected is null"),
        ("pairs", {"prompt": "p", "chosen": "a", "rejected": "b", "agreement": 0.4}, "between 0.5 and 1"),
        ("pairs", {"prompt": "p", "chosen": "a", "rejected": "b", "agreement": float("nan")}, "finite number"),
        ("pairs", {"prompt": "p", "chosen": "a", "rejected": "b", "num_annotators": 1.5}, "whole number"),
        ("pairs", {"prompt": "p", "chosen": "a", "rejected": "b", "chosen_ended": 1}, "must be true or false"),
        (
            "pairs",
            {"prompt": "other", "chosen": HELLO_VALUE + said("a"), "rejected": HELLO_VALUE + said("b")},
            "prompt is not the beginning",
        ),
        ("labelled", {"text": "a", "label": "1"}, "label is a string; it must be a number"),
        ("labelled", {"text": "a", "label": None}, "label is null"),
    ],
)
def test_malformed_rows_are_problems(kind, values, message):
    with pytest.raises(RowProblem, match=message):
        record(kind, values)


def test_csv_numbers_are_read_from_text():
    assert record("labelled", {"text": "a", "label": "1"}, typed=False) == LabelledText("a", 1)
    row = {
        "prompt": "p",
        "chosen": "a",
        "rejected": "b",
        "agreement": "0.75",
        "num_annotators": "4",
        "chosen_ended": "False",
    }
    assert record("pairs", row, typed=False) == PreferencePair("p", "a", "b", 0.75, 4, chosen_ended=False)
    for label in ("good", "", "nan"):
        with pytest.raises(RowProblem, match=r"must be a (finite )?number"):
            record("labelled", {"text": "a", "label": label}, typed=False)


def test_columns_map_our_names_to_theirs():
    values = {"post": "p", "summary": "c", "prompt": "unused"}
    columns = {"prompt": "post", "completion": "summary"}
    assert record("demonstrations", values, columns=columns) == Demonstration("p", "c")
    assert record("pairs", {"q": "p", "chosen": "a", "rejected": "b"}, columns={"prompt": "q"}) == PreferencePair(
        "p", "a", "b"
    )


def test_columns_that_do_not_fit_are_named_with_the_mapping_to_write():
    with pytest.raises(
        DataError, match=r'has the columns a, b; labelled need text \+ label; or .*columns=\{"text": "NAME"\}'
    ):
        form_of("labelled", ["a", "b"], {}, source="x.csv")
    with pytest.raises(DataError, match=r"no column 'c' .* it has a, b"):
        form_of("text", ["a", "b"], {"text": "c"}, source="x.csv")
    with pytest.raises(DataError, match=r"'txt', which text do not have; they have sentence, text"):
        form_of("text", ["a", "b"], {"txt": "a"}, source="x.csv")


def test_a_column_missing_in_one_row_is_a_problem_of_that_row():
    form = form_of("labelled", ["text", "label"], {}, source="x.jsonl")
    with pytest.raises(RowProblem, match=r"'label' is missing \(found: text\)"):
        form.make(Row("x.jsonl:9", {"text": "a"}))


def test_a_dialogue_is_read_turn_by_turn():
    text = "\n\nHuman: a\n\nb\n\nHuman: c\n\nAssistant: d\n\nAssistant:\n\nHuman: Human: e"
    assert dialogue(text) == (
        Message("user", "a\n\nb\n\nc"),
        Message("assistant", "d"),
        Message("user", "Human: e"),
    )
    assert dialogue("Human: a") is None
    assert dialogue("x\n\nHuman: a") is None


def test_every_kind_reads_its_own_first_form():
    for kind, forms in FORMS.items():
        for form in forms:
            assert form_of(kind, form.columns, {}, source="x").columns == form.columns
