"""The forms in which files hold pairs and labels, one function each: a row in, a pair and its labels out."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

from prefloop.collection.label_records import StoredPair
from prefloop.data.label_import_values import (
    ID_COLUMNS,
    MALFORMED,
    PROMPT_COLUMNS,
    UNKNOWN_CHOICE,
    BadRow,
    GivenLabel,
    GivenRow,
    ImportOptions,
    answers_of,
    check_differ,
    choice_of,
    id_of,
    name_of,
    number_of,
    others,
    prompt_of,
    side_columns,
    strength_of,
    text_of,
    time_of,
    truth_of,
)
from prefloop.data.record_forms import NUMBERED, RowDropped, RowProblem, dialogue, form_of
from prefloop.data.row_files import Row
from prefloop.data.splits import prompt_key
from prefloop.records import Choice, Comparison, Completion, PreferencePair, Prompt

TableForm = Literal["pairs", "preference", "hh", "annotators", "long"]

_PAIR_COLUMNS = ("left_source", "right_source", "left_ended", "right_ended")
_ORDER_COLUMNS = ("gold_choice", "margin", "disagreement")
_LABEL_COLUMNS = ("annotator", "choice", "strength", "rationale", "opened_at", "submitted_at")
_PREFERENCE_COLUMNS = (
    "chosen", "rejected", "annotator", "strength", "rationale", "chosen_source", "rejected_source", "chosen_ended",
    "rejected_ended", "score_chosen", "score_rejected", "agreement", "num_annotators", "prompt_id", "chosen_by",
)  # fmt: skip
# Said about a preference as a whole; they go with the pair.
_PREFERENCE_DETAILS = ("score_chosen", "score_rejected", "agreement", "num_annotators", "prompt_id", "chosen_by")
_ANNOTATOR_COLUMN = re.compile(r"annotator[ _-]?\d+", re.IGNORECASE)


def table_form_of(values: Mapping[str, Any]) -> TableForm:
    """The form of a table, from its columns. Raises BadRow where they fit none."""
    if "chosen" in values and "rejected" in values:
        is_dialogue = "prompt" not in values and isinstance(values["chosen"], str) and dialogue(values["chosen"])
        return "hh" if is_dialogue else "preference"
    side_columns(values)
    if "annotator" in values and "choice" in values:
        return "long"
    return "annotators" if annotator_columns(values) else "pairs"


def annotator_columns(values: Mapping[str, Any]) -> list[str]:
    """The columns that hold one annotator's choices each: annotator1, annotator_2, ..."""
    return [name for name in values if _ANNOTATOR_COLUMN.fullmatch(name)]


def content_id(prompt: Prompt, texts: Sequence[str]) -> str:
    """An id for a pair that has none, from its prompt and its answers in any order."""
    digest = hashlib.sha256(json.dumps([prompt_key(prompt), *sorted(texts)]).encode()).hexdigest()
    return f"pair-{digest[:16]}"


def pair_of(row: Row, options: ImportOptions, *, details: Mapping[str, Any]) -> StoredPair:
    """The pair of a row that has a prompt and two answers side by side."""
    values = row.values
    columns = side_columns(values)
    texts = answers_of(values, columns, options)
    prompt = prompt_of(row, options)
    left, right = (
        Completion(
            text,
            ended=truth_of(values[f"{side}_ended"], f"{side}_ended") if f"{side}_ended" in values else True,
            source=text_of(values.get(f"{side}_source"), f"{side}_source"),
        )
        for side, text in zip(("left", "right"), texts, strict=True)
    )
    comparison = Comparison(id_of(values) or content_id(prompt, texts), prompt, left, right, dict(details))
    gold = values.get("gold_choice")
    return StoredPair(
        comparison,
        gold_choice=None if gold in (None, "") else choice_of(gold, "gold_choice", options.choices),
        margin=number_of(values.get("margin"), "margin"),
        disagreement=number_of(values.get("disagreement"), "disagreement"),
    )


def _pair_columns(row: Row) -> tuple[str, ...]:
    return (*ID_COLUMNS, *PROMPT_COLUMNS, *side_columns(row.values), *_PAIR_COLUMNS)


def _spread(row: Row) -> Row:
    """A row of our comparisons.jsonl, whose sides are objects, with their parts as columns."""
    values = dict(row.values)
    for side in ("left", "right"):
        given = values.get(side)
        if isinstance(given, Mapping):
            if not {"text"} <= given.keys() <= {"text", "ended", "source"}:
                raise BadRow(MALFORMED, f"{side} is an object of {', '.join(given)}; it must hold text, ended, source")
            values |= {side if name == "text" else f"{side}_{name}": value for name, value in given.items()}
    return Row(row.place, values, row.typed)


def _pairs(row: Row, options: ImportOptions) -> GivenRow:
    row = _spread(row)
    values = row.values
    is_numbered = "label" in values and side_columns(values) == NUMBERED
    known = (*_pair_columns(row), *_ORDER_COLUMNS, "details", *(("label",) if is_numbered else ()))
    kept = others(values, known, options)
    # A comparisons.jsonl of ours says there what else is known of a pair.
    details = values.get("details") or {}
    if not isinstance(details, Mapping):
        raise BadRow(MALFORMED, "details must be an object")
    labels = []
    if is_numbered:
        label = str(values["label"]).removesuffix(".0")
        if label not in ("0", "1"):
            raise BadRow(
                UNKNOWN_CHOICE, f"label is {values['label']!r}; it must be 0 or 1, the better completion's number"
            )
        labels = [GivenLabel(options.annotator, "right" if label == "1" else "left")]
    return GivenRow(pair_of(row, options, details={**details, **kept}), labels)


def _long(row: Row, options: ImportOptions) -> GivenRow:
    # What else a row says may differ from annotator to annotator, so it goes with the label.
    kept = others(row.values, (*_pair_columns(row), *_LABEL_COLUMNS), options)
    values = row.values
    label = GivenLabel(
        name_of(values.get("annotator"), "annotator"),
        choice_of(values.get("choice"), "choice", options.choices),
        strength=strength_of(values.get("strength")),
        rationale=text_of(values.get("rationale"), "rationale"),
        opened_at=time_of(values.get("opened_at"), "opened_at"),
        submitted_at=time_of(values.get("submitted_at"), "submitted_at"),
        details=kept,
    )
    return GivenRow(pair_of(row, options, details={}), [label])


def _annotators(row: Row, options: ImportOptions) -> GivenRow:
    columns = list(options.annotator_columns or annotator_columns(row.values))
    if missing := [column for column in columns if column not in row.values]:
        raise BadRow(MALFORMED, f"there is no column {missing[0]!r} (found: {', '.join(row.values)})")
    kept = others(row.values, (*_pair_columns(row), *_ORDER_COLUMNS, *columns), options)
    labels = [
        GivenLabel(column, choice_of(row.values[column], column, options.choices))
        for column in columns
        if row.values[column] not in (None, "")
    ]
    return GivenRow(pair_of(row, options, details=kept), labels)


def _preference(row: Row, options: ImportOptions) -> GivenRow:
    values = row.values
    kept = others(values, (*ID_COLUMNS, *PROMPT_COLUMNS, *_PREFERENCE_COLUMNS), options)
    known = ("prompt", "chosen", "rejected", "chosen_ended", "rejected_ended")
    record = _record(Row(row.place, {name: values[name] for name in known if name in values}, row.typed))
    # The reader of records takes a pair for useless where this one wants to say so.
    check_differ(record.chosen, record.rejected)
    pair_id = id_of(values) or content_id(record.prompt, (record.chosen, record.rejected))
    chosen = Completion(
        record.chosen, record.chosen_ended, source=text_of(values.get("chosen_source"), "chosen_source")
    )
    rejected = Completion(
        record.rejected, record.rejected_ended, source=text_of(values.get("rejected_source"), "rejected_source")
    )
    left, right = _sides(pair_id, chosen, rejected)
    details = {name: values[name] for name in _PREFERENCE_DETAILS if values.get(name) is not None} | kept
    choice: Choice = "left" if left is chosen else "right"
    who = values.get("annotator")
    label = GivenLabel(
        options.annotator if who in (None, "") else name_of(who, "annotator"),
        choice,
        strength=strength_of(values.get("strength")) if "agreement" not in values else None,
        rationale=text_of(values.get("rationale"), "rationale"),
    )
    if "agreement" in values and values.get("strength") not in (None, ""):
        details["strength"] = values["strength"]  # A mean over annotators, no single label's.
    return GivenRow(StoredPair(Comparison(pair_id, record.prompt, left, right, details)), [label])


def _record(row: Row) -> PreferencePair:
    try:
        record = form_of("pairs", list(row.values), {}, source=row.place).make(row)
    except RowDropped as reason:
        raise BadRow(str(reason)) from None
    except RowProblem as problem:
        raise BadRow(MALFORMED, str(problem)) from None
    assert isinstance(record, PreferencePair)
    return record


def _sides(pair_id: str, chosen: Completion, rejected: Completion) -> tuple[Completion, Completion]:
    """Left and right by a hash of the id: neither side is always the chosen one, and both orders give the same pair."""
    first, second = sorted((chosen, rejected), key=lambda answer: answer.text)
    swapped = hashlib.sha256(f"sides/{pair_id}".encode()).digest()[0] % 2 == 1
    return (second, first) if swapped else (first, second)


def _hh(row: Row, options: ImportOptions) -> GivenRow:
    for name in ("chosen", "rejected"):
        text = row.values.get(name)
        if not isinstance(text, str) or dialogue(text) is None:
            raise BadRow(
                MALFORMED, f"{name} is no dialogue of turns that begin with a blank line and Human: or Assistant:"
            )
    return _preference(row, options)


TABLE_FORMS: Mapping[TableForm, Callable[[Row, ImportOptions], GivenRow]] = {
    "pairs": _pairs,
    "preference": _preference,
    "hh": _hh,
    "annotators": _annotators,
    "long": _long,
}
assert set(TABLE_FORMS) == set(get_args(TableForm))
