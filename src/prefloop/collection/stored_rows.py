"""Records as rows of the label store and back, and which texts the store can keep."""

import json
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

from pydantic import ValidationError
from sqlalchemy import Row

from prefloop.collection.label_records import LabelEvent, ProjectSettings, StoredPair, Submission, Task, TaskKind
from prefloop.collection.pairs import comparison_from_row, comparison_to_row
from prefloop.errors import DataError
from prefloop.records import Choice, Comparison

CHOICES = ("left", "right", "tie", "both_bad", "skip")
MAX_ID_LENGTH = 200


def check_text(text: str, what: str) -> str:
    """The text itself. Raises DataError when it holds what a database cannot keep on every system.

    That is NUL (PostgreSQL's texts end there) and lone surrogates (halves of a character, which no encoding has).
    """
    if "\x00" in text:
        raise DataError(f"{what} holds a NUL character at place {text.index(chr(0))}. Take it out: no text needs one.")
    try:
        text.encode()
    except UnicodeEncodeError as problem:
        raise DataError(
            f"{what} holds half a character (a lone surrogate) at place {problem.start}. Decode the source anew."
        ) from problem
    return text


def check_name(name: str) -> str:
    """A person's name without spaces around it. Raises DataError unless that has 1 to 100 usable characters."""
    trimmed = check_text(name, "A name").strip()
    if not 1 <= len(trimmed) <= 100:
        raise DataError(f"A name has {len(trimmed)} characters without the spaces around it; 1 to 100 are allowed.")
    return trimmed


def pair_to_columns(pair: StoredPair) -> dict[str, Any]:
    """What the store keeps of a pair, but for its place. Tokens and their log-probabilities are left out.

    Raises DataError, naming the pair, for a text or number that cannot be kept, and for answers that are empty or equal
    but for spaces.
    """
    comparison = pair.comparison
    what = f"Pair {comparison.pair_id!r}"
    if not 1 <= len(check_text(comparison.pair_id, "A pair_id")) <= MAX_ID_LENGTH:
        raise DataError(f"{what[:80]} has a pair_id of {len(comparison.pair_id)} characters; 1 to 200 are allowed.")
    for side, completion in (("left", comparison.left), ("right", comparison.right)):
        if not completion.text.strip():
            raise DataError(f"{what} has an empty {side} answer. Leave the pair out.")
    if comparison.left.text.split() == comparison.right.text.split():
        raise DataError(f"{what} has the same answer twice. Leave the pair out: there is nothing to choose.")
    if pair.gold_choice not in (None, "left", "right", "tie", "both_bad"):
        raise DataError(f"{what} has the known answer {pair.gold_choice!r}; left, right, tie and both_bad are allowed.")
    for name, number in (("margin", pair.margin), ("disagreement", pair.disagreement)):
        if number is not None and (not math.isfinite(number) or (name == "disagreement" and number < 0)):
            raise DataError(f"{what} has {name} {number}. Give a finite number; a disagreement is never below 0.")
    row = comparison_to_row(comparison)
    _check_texts_within(row, what)
    return {
        "pair_id": comparison.pair_id,
        "content": json_text(row, what),
        "gold_choice": pair.gold_choice,
        "margin": None if pair.margin is None else float(pair.margin),
        "disagreement": None if pair.disagreement is None else float(pair.disagreement),
    }


def pair_from_row(row: Row[*tuple[Any, ...]]) -> StoredPair:
    return StoredPair(
        comparison_from_content(row.content), row.gold_choice, row.margin, row.disagreement, row.chosen_by
    )


def comparison_from_content(content: str) -> Comparison:
    return comparison_from_row(json.loads(content))


def task_from_row(row: Any, *, expires_at: float) -> Task:
    """A task from anything with its columns and the content of its pair."""
    comparison = comparison_from_content(row.content)
    displayed = comparison.swap() if row.swapped else comparison
    return Task(
        task_id=row.task_id,
        kind=cast(TaskKind, row.kind),
        pair_id=comparison.pair_id,
        prompt=displayed.prompt,
        displayed_left=displayed.left.text,
        displayed_right=displayed.right.text,
        displayed_left_ended=displayed.left.ended,
        displayed_right_ended=displayed.right.ended,
        swapped=row.swapped,
        expires_at=expires_at,
    )


def event_from_row(row: Row[*tuple[Any, ...]]) -> LabelEvent:
    """From a row of events (or of the view) with the person's `name` and the `pair_id`."""
    return LabelEvent(
        event_id=row.id,
        submission_id=row.submission_id,
        event=row.event,
        pair_id=row.pair_id,
        kind=row.kind,
        annotator=row.name,
        choice=row.choice,
        displayed_choice=row.displayed_choice,
        swapped=row.swapped,
        strength=row.strength,
        rationale=row.rationale,
        opened_at=row.opened_at,
        submitted_at=row.submitted_at,
        received_at=row.received_at,
        revision=row.revision,
        client_version=row.client_version,
        chosen_by=row.chosen_by,
        details=json.loads(row.details),
    )


def check_submission(submission: Submission) -> None:
    """Raises DataError for a text the store cannot keep, and for a strength without a side."""
    for name in ("submission_id", "task_id", "rationale", "client_version"):
        check_text(getattr(submission, name), f"The {name} of a label")
    if submission.strength is not None and submission.choice not in ("left", "right"):
        raise DataError(f"A label with choice {submission.choice!r} has a strength. Only left and right have one.")


def other_side(choice: Choice) -> Choice:
    """Left for right, right for left, anything else as it is."""
    if choice == "left":
        return "right"
    return "left" if choice == "right" else choice


@lru_cache(maxsize=16)
def settings_from_text(text: str) -> ProjectSettings:
    """The settings as the store keeps them. Raises DataError for settings this version does not know."""
    try:
        return ProjectSettings.model_validate_json(text)
    except ValidationError as problem:
        keys = ", ".join(".".join(str(part) for part in error["loc"]) for error in problem.errors())
        raise DataError(
            f"The label store holds settings that this prefloop does not know ({keys}). Open it with a newer one."
        ) from problem


def settings_to_text(settings: ProjectSettings) -> str:
    check_text(settings.name, "The name of the project")
    check_text(settings.guidelines, "The text of the guidelines")
    return settings.model_dump_json()


def json_text(value: Any, what: str) -> str:
    """The value as JSON, its keys in order. Raises DataError, naming `what`, for anything JSON has no form for."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as problem:
        raise DataError(f"{what} holds something that JSON cannot keep ({problem}).") from problem


def _check_texts_within(value: Any, what: str) -> None:
    if isinstance(value, str):
        check_text(value, what)
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _check_texts_within(key, what)
            _check_texts_within(inner, what)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_texts_within(inner, what)


def details_text(details: Mapping[str, Any], what: str) -> str:
    """The details of an event as JSON. Raises DataError, naming `what`, for what cannot be kept."""
    _check_texts_within(details, what)
    return json_text(dict(details), what)
