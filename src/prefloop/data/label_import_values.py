"""Values in files of labels: texts, choices, times, names; and which columns hold the two answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from prefloop.collection.label_records import StoredPair
from prefloop.data.record_forms import EMPTY_COMPLETION, EMPTY_PROMPT, FORMS, RowDropped, RowProblem
from prefloop.data.row_files import Row, json_type
from prefloop.records import Choice, Message, Prompt

OtherColumns = Literal["refuse", "keep", "drop"]

MALFORMED = "malformed row"
ONE_SIDED = "one-sided pair"
EQUAL_ANSWERS = "equal answers"
NOT_TEXT = "answer is no text"
NUL = "NUL character"
UNKNOWN_CHOICE = "unknown choice"

# How published files say it; letters in upper or lower case.
CHOICE_VALUES: Mapping[str, Choice] = {
    "left": "left", "right": "right", "tie": "tie", "both_bad": "both_bad", "skip": "skip",
    "a": "left", "b": "right", "1": "left", "2": "right", "0": "tie",
}  # fmt: skip

# The names that published files give to the two answers.
SIDE_NAMES: tuple[tuple[str, str], ...] = (
    ("left", "right"),
    *((f"{name}_a", f"{name}_b") for name in ("response", "answer", "completion", "output")),
    *((f"{name}_{one}", f"{name}_{one + 1}") for name in ("response", "answer", "completion", "output", "text")
      for one in (0, 1)),
    *((f"{name}1", f"{name}2") for name in ("response", "answer", "completion", "output", "text")),
)  # fmt: skip

PROMPT_COLUMNS = ("prompt", "messages", "instruction", "input")
ID_COLUMNS = ("pair_id", "id", "idx")


class BadRow(Exception):  # noqa: N818 - collected and raised as one DataError, or counted
    """A row that cannot be used: `reason` in a few words for counting, the message for whoever mends the file."""

    def __init__(self, reason: str, what: str = "") -> None:
        super().__init__(what or reason)
        self.reason = reason


class UnknownColumn(Exception):  # noqa: N818 - collected and raised as one DataError
    """A column that the form does not have; never dropped unasked."""


@dataclass(frozen=True)
class ImportOptions:
    """What the caller said about the file; see `read_label_file`."""

    annotator: str
    choices: Mapping[str, Choice]
    annotator_columns: Sequence[str] | None
    question: str | None
    other_columns: OtherColumns
    as_given: bool


@dataclass(frozen=True)
class GivenLabel:
    """One annotator's choice as a file has it; times that the file does not have are 0."""

    annotator: str
    choice: Choice
    strength: int | None = None
    rationale: str = ""
    opened_at: float = 0.0
    submitted_at: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GivenRow:
    """What one row of a file says: a pair, labels on it, and how many labels were left out, by reason."""

    pair: StoredPair
    labels: list[GivenLabel] = field(default_factory=list)
    dropped_labels: Mapping[str, int] = field(default_factory=dict)


def check_texts(value: object, name: str = "") -> None:
    """Raises BadRow for a NUL character or half a surrogate pair in any string of the value."""
    if isinstance(value, str):
        if "\x00" in value:
            raise BadRow(NUL, f"{name or 'a value'} holds a NUL character at position {value.index(chr(0))}")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            what = f"{name or 'a value'} holds half a surrogate pair at position {error.start}"
            raise BadRow(MALFORMED, what) from error
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            check_texts(key, "a column name")
            check_texts(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            check_texts(inner, f"{name}[{number}]")


def side_columns(values: Mapping[str, Any]) -> tuple[str, str]:
    """The two columns that hold the answers. Raises BadRow where there are none, one of two, or more than two."""
    whole = [names for names in SIDE_NAMES if all(name in values for name in names)]
    if len(whole) == 1 or ("left", "right") in whole:  # Our own names, which a mapping may have given, come first.
        return whole[0]
    if len(whole) > 1:
        said = "; ".join(" and ".join(names) for names in whole)
        raise BadRow(MALFORMED, f"the answers could be in {said}; map them: left=COLUMN, right=COLUMN")
    for names in SIDE_NAMES:
        for one, other in (names, names[::-1]):
            if one in values:
                raise BadRow(ONE_SIDED, f"there is an answer in {one!r} and no column {other!r}")
    raise BadRow(
        MALFORMED,
        f"no columns hold the answers (found: {', '.join(values)}); map two: left=COLUMN, right=COLUMN",
    )


def answers_of(values: Mapping[str, Any], columns: tuple[str, str], options: ImportOptions) -> tuple[str, str]:
    """The two answers. Raises BadRow where one is missing, empty or no text, and where they are equal but for "
    "spaces."""
    texts: list[str] = []
    for column in columns:
        value = values.get(column)
        if isinstance(value, bool | int | float) and options.as_given:
            value = str(value)
        if value is None:
            raise BadRow(ONE_SIDED, f"there is no answer in {column!r}")
        if not isinstance(value, str):
            raise BadRow(NOT_TEXT, f"{column} is {json_type(value)}; it must be a string")
        if not value.strip() and not options.as_given:
            raise BadRow(EMPTY_COMPLETION, f"{column} is empty")
        texts.append(value)
    check_differ(*texts)
    return texts[0], texts[1]


def check_differ(one: str, other: str) -> None:
    """Raises BadRow where two answers are equal but for spaces."""
    if one.split() == other.split():
        raise BadRow(EQUAL_ANSWERS, "both answers are equal (but for spaces)")


def prompt_of(row: Row, options: ImportOptions) -> Prompt:
    """The prompt, in any form that prompts have. Raises BadRow where there is none."""
    for form in FORMS["prompts"]:
        if set(form.columns) <= row.values.keys() & set(PROMPT_COLUMNS):
            try:
                prompt = form.make(row)
            except RowDropped:
                if not options.as_given:
                    raise BadRow(EMPTY_PROMPT) from None
                # A blank instruction may still stand before an input.
                return "" if "prompt" in row.values else (Message("user", str(row.values.get("input", ""))),)
            except RowProblem as problem:
                raise BadRow(MALFORMED, str(problem)) from None
            assert isinstance(prompt, str | tuple)
            return prompt
    raise BadRow(MALFORMED, f"there is no prompt (found: {', '.join(row.values)}); map one: prompt=COLUMN")


def id_of(values: Mapping[str, Any]) -> str | None:
    """The pair's id where the file has one. Raises BadRow for one that is empty or neither text nor number."""
    found = [name for name in ID_COLUMNS if values.get(name) is not None]
    if not found:
        return None
    return name_of(values[found[0]], found[0])


def name_of(value: object, column: str) -> str:
    """A name or an id as text: 1 to 100 characters, no spaces around. Raises BadRow for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRow(MALFORMED, f"{column} is {json_type(value)}; it must be a string or a whole number")
    name = str(value).strip()
    if not 1 <= len(name) <= 100:
        raise BadRow(MALFORMED, f"{column} has {len(name)} characters; it must have 1 to 100")
    return name


def choice_of(value: object, column: str, choices: Mapping[str, Choice]) -> Choice:
    """The choice that a value stands for; `choices` has its keys in lower case. Raises BadRow for an unknown value."""
    whole = isinstance(value, float) and value.is_integer()
    text = str(int(value) if whole else value).strip().lower()  # pyright: ignore[reportArgumentType]
    if isinstance(value, bool) or not isinstance(value, str | int | float) or text not in choices:
        allowed = ", ".join(f"{key} ({choice})" if key != choice else key for key, choice in choices.items())
        what = (
            f"{column} is {value!r}; allowed: {allowed}. Other values can be mapped with choices={{VALUE: 'left', ...}}"
        )
        raise BadRow(UNKNOWN_CHOICE, what)
    return choices[text]


def strength_of(value: object) -> int | None:
    """A strength from 1 to 4; None for none. Raises BadRow for anything else."""
    if value in (None, ""):
        return None
    if not isinstance(value, bool) and str(value).strip() in ("1", "2", "3", "4", "1.0", "2.0", "3.0", "4.0"):
        return int(float(str(value)))
    raise BadRow(MALFORMED, f"strength is {value!r}; it must be 1 (hardly better) to 4 (clearly better), or nothing")


def number_of(value: object, column: str) -> float | None:
    """A number, or text that is one; None for none. Raises BadRow for anything else."""
    if value in (None, ""):
        return None
    try:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError
        number = float(value)
    except ValueError:
        raise BadRow(MALFORMED, f"{column} is {value!r}; it must be a number") from None
    if number - number != 0:
        raise BadRow(MALFORMED, f"{column} is {value!r}; it must be a finite number")
    return number


def time_of(value: object, column: str) -> float:
    """Seconds since 1970 (UTC), from a number or an ISO 8601 time; 0 for none. Raises BadRow for anything else."""
    if isinstance(value, str) and value.strip():
        try:
            moment = datetime.fromisoformat(value.strip())
        except ValueError:
            pass
        else:
            return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return number_of(value, column) or 0.0


def truth_of(value: object, column: str) -> bool:
    """True or false, or text that says so. Raises BadRow for anything else."""
    text = str(value).lower()
    if not isinstance(value, bool | str) or text not in ("true", "false"):
        raise BadRow(MALFORMED, f"{column} is {value!r}; it must be true or false")
    return text == "true"


def text_of(value: object, column: str) -> str:
    """A string; empty for none. Raises BadRow for anything else."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise BadRow(MALFORMED, f"{column} is {json_type(value)}; it must be a string")
    return value


def others(values: Mapping[str, Any], known: Sequence[str], options: ImportOptions) -> dict[str, Any]:
    """The columns that the form does not have, as far as the caller keeps them. Raises UnknownColumn if refused."""
    found = {name: value for name, value in values.items() if name not in known}
    if found and options.other_columns == "refuse":
        raise UnknownColumn(
            f"unknown columns {', '.join(map(repr, found))}; known here: {', '.join(known)}. Map a column "
            "(OURS=THEIRS), or let other columns be kept with the pairs (other columns: keep) or dropped (drop)"
        )
    return {name: json_value(value) for name, value in found.items()} if options.other_columns == "keep" else {}


def json_value(value: Any) -> Any:
    """The value as JSON can hold it: dates and other things of tables become their text."""
    if isinstance(value, Mapping):
        return {str(key): json_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(inner) for inner in value]
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)
