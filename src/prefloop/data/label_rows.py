"""Pairs and labels of a label project as rows of pairs.jsonl and labels.jsonl, and back."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any, get_args

from prefloop.collection.label_records import ChosenBy, LabelEvent, StoredPair, TaskKind
from prefloop.collection.pairs import comparison_from_row, comparison_to_row
from prefloop.errors import DataError
from prefloop.records import Choice

# The client version of labels that were imported.
IMPORTED = "import"

_PAIR_FIELDS = ("gold_choice", "margin", "disagreement", "chosen_by")
_TIMES = ("opened_at", "submitted_at", "received_at")


def stored_pair_to_row(pair: StoredPair) -> dict[str, Any]:
    """The row that `stored_pair_from_row` reads back as the same pair; tokens and log-probabilities stay behind."""
    return comparison_to_row(pair.comparison) | {name: getattr(pair, name) for name in _PAIR_FIELDS}


def stored_pair_from_row(row: Mapping[str, Any]) -> StoredPair:
    """Raises DataError for a row that is no pair."""
    comparison = comparison_from_row(row)
    texts = [comparison.pair_id, comparison.left.text, comparison.right.text]
    if not isinstance(comparison.prompt, str):
        texts += [message.content for message in comparison.prompt]
    if not all(isinstance(text, str) for text in texts):
        raise DataError("pair_id, prompt and both answers must be strings")
    _check_among(row.get("gold_choice"), "gold_choice", (None, *get_args(Choice)))
    _check_among(row.get("chosen_by"), "chosen_by", get_args(ChosenBy))
    for name in ("margin", "disagreement"):
        value = row.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise DataError(f"{name} is {value!r}; it must be a number or null")
    return StoredPair(comparison, **{name: row.get(name) for name in _PAIR_FIELDS})  # pyright: ignore[reportArgumentType]


def label_event_to_row(label: LabelEvent) -> dict[str, Any]:
    """The row that `label_event_from_row` reads back as the same label."""
    return asdict(label)


def label_event_from_row(row: Mapping[str, Any]) -> LabelEvent:
    """Raises DataError for a row that is no label."""
    names = {one.name for one in fields(LabelEvent)}
    if row.keys() != names:
        wrong = ", ".join(sorted(row.keys() ^ names))
        raise DataError(f"a label has exactly the columns of the export; missing or unknown: {wrong}")
    _check_among(row["event"], "event", ("label",))
    _check_among(row["kind"], "kind", get_args(TaskKind))
    _check_among(row["choice"], "choice", get_args(Choice))
    _check_among(row["displayed_choice"], "displayed_choice", get_args(Choice))
    _check_among(row["chosen_by"], "chosen_by", get_args(ChosenBy))
    _check_among(row["strength"], "strength", (None, 1, 2, 3, 4))
    for name in ("submission_id", "pair_id", "annotator", "rationale", "client_version"):
        if not isinstance(row[name], str):
            raise DataError(f"{name} is {row[name]!r}; it must be a string")
    for name in _TIMES:
        if isinstance(row[name], bool) or not isinstance(row[name], int | float):
            raise DataError(f"{name} is {row[name]!r}; it must be a number of seconds")
    return LabelEvent(**row)


def _check_among(value: object, name: str, allowed: tuple[object, ...]) -> None:
    if isinstance(value, bool) or value not in allowed:
        raise DataError(f"{name} is {value!r}; allowed: {', '.join(str(one) for one in allowed)}")
