"""Labels from elsewhere, taken into a project with their times, ids and people."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, func, insert, select, text

from prefloop.collection import label_schema as schema
from prefloop.collection.accounts import name_key, new_account_columns
from prefloop.collection.label_records import LabelEvent, ProjectSettings
from prefloop.collection.stored_rows import CHOICES, check_name, check_text, details_text, event_from_row, other_side
from prefloop.errors import DataError

_EVENTS = (
    select(schema.events, schema.accounts.c.name, schema.pairs.c.pair_id)
    .join(schema.accounts, schema.accounts.c.id == schema.events.c.account_ref)
    .join(schema.pairs, schema.pairs.c.id == schema.events.c.pair_ref)
)
_SUBMISSION_IDS_AT_ONCE = 500

_FOLLOW_TASKS = text(
    "UPDATE tasks SET revision = (SELECT max(revision) FROM events WHERE task_ref = tasks.id), "
    "label_event = (SELECT id FROM current_labels WHERE task_ref = tasks.id), "
    "label_choice = (SELECT choice FROM current_labels WHERE task_ref = tasks.id) "
    "WHERE id IN (SELECT task_ref FROM events WHERE id > :after)"
)
_FOLLOW_PAIRS = text(
    "UPDATE pairs SET num_labels = (SELECT count(*) FROM tasks WHERE tasks.pair_ref = pairs.id "
    "AND kind = 'regular' AND label_choice <> 'skip') "
    "WHERE id IN (SELECT pair_ref FROM events WHERE id > :after)"
)
_FOLLOW_OPEN = text(
    "UPDATE pairs SET open_position = CASE WHEN gold_choice IS NULL AND num_labels < :k THEN position END "
    "WHERE id IN (SELECT pair_ref FROM events WHERE id > :after)"
)
_FOLLOW_PROJECT = text(
    "UPDATE project SET num_open_pairs = (SELECT count(*) FROM pairs WHERE open_position IS NOT NULL)"
)
_OVERFULL = text("SELECT pair_id, num_labels FROM pairs WHERE num_labels > :k ORDER BY position LIMIT 1")

_TaskKey = tuple[int, int, bool]
"""Account, pair, and whether it is a repeat."""


@dataclass(frozen=True)
class _Known:
    """What the project has: pairs by id (number, gold or not, what gave it its place), people by name, tasks."""

    pairs: dict[str, tuple[int, bool, str]]
    accounts: dict[str, int]
    tasks: dict[_TaskKey, tuple[int, int]]


def import_labels(connection: Connection, labels: Sequence[LabelEvent], settings: ProjectSettings) -> int:
    """Adds the events in the order given and returns how many were new. Raises as `LabelStore.import_labels`.

    The caller keeps everybody else from writing.
    """
    new = _not_yet_there(connection, [_checked(label) for label in labels])
    _add_people(connection, new)
    known = _known(connection)
    for label in new:
        _check_against_pair(label, known)
    _add_tasks(connection, new, known)
    known = _known(connection)
    before = connection.execute(select(func.coalesce(func.max(schema.events.c.id), 0))).scalar_one()
    revisions = dict(known.tasks.values())
    rows = []
    for label in new:
        row = _event_columns(label, known)
        if label.revision <= revisions[row["task_ref"]]:
            raise DataError(
                f"Label {label.submission_id!r} of pair {label.pair_id!r} by {label.annotator!r} has revision "
                f"{label.revision}, and there is a revision {revisions[row['task_ref']]} already. "
                "Give each person one label per pair, or revisions that go up."
            )
        revisions[row["task_ref"]] = label.revision
        rows.append(row)
    if rows:
        connection.execute(insert(schema.events), rows)
    k = settings.annotators_per_pair
    for statement in (_FOLLOW_TASKS, _FOLLOW_PAIRS):
        connection.execute(statement, {"after": before})
    connection.execute(_FOLLOW_OPEN, {"after": before, "k": k})
    connection.execute(_FOLLOW_PROJECT)
    overfull = connection.execute(_OVERFULL, {"k": k}).one_or_none()
    if overfull is not None:
        raise DataError(
            f"Pair {overfull.pair_id!r} would have {overfull.num_labels} labels, and the project has {k} per pair. "
            "Nothing was imported. Import into a project with more annotators_per_pair."
        )
    return len(rows)


def _checked(label: LabelEvent) -> LabelEvent:
    """The label with its name trimmed. Raises DataError, naming it, for what no label can say."""
    what = f"Label {label.submission_id!r}"
    for name in ("submission_id", "rationale", "client_version", "pair_id"):
        check_text(getattr(label, name), f"The {name} of {what}")
    if label.event not in ("label", "undo") or label.kind not in ("regular", "gold", "repeat"):
        raise DataError(f"{what} is a {label.kind!r} {label.event!r}, which does not exist.")
    if label.event == "label" and label.choice not in CHOICES:
        raise DataError(f"{what} has the choice {label.choice!r}; allowed are {', '.join(CHOICES)}.")
    if label.event == "undo" and (label.choice, label.displayed_choice, label.strength) != (None, None, None):
        raise DataError(f"{what} is an undo and has a choice or strength. An undo has none.")
    if label.choice is not None:
        displayed = other_side(label.choice) if label.swapped else label.choice
        if label.displayed_choice != displayed:
            raise DataError(
                f"{what} says {label.choice!r}, sides swapped: {label.swapped}, and displayed "
                f"{label.displayed_choice!r}; that would be {displayed!r}."
            )
    if label.strength is not None and (label.choice not in ("left", "right") or label.strength not in (1, 2, 3, 4)):
        raise DataError(f"{what} has strength {label.strength}. Left and right have one of 1 to 4, or none.")
    if label.revision < 1 or not label.submission_id:
        raise DataError(f"{what} has revision {label.revision}. An id is not empty, and revisions begin with 1.")
    return replace(label, annotator=check_name(label.annotator), details=dict(label.details))


def _not_yet_there(connection: Connection, labels: Sequence[LabelEvent]) -> list[LabelEvent]:
    """The labels whose ids are new. Raises DataError when an id is known, or comes twice, with other content."""
    known: dict[str, LabelEvent] = {}
    ids = [label.submission_id for label in labels]
    for start in range(0, len(ids), _SUBMISSION_IDS_AT_ONCE):
        some = _EVENTS.where(schema.events.c.submission_id.in_(ids[start : start + _SUBMISSION_IDS_AT_ONCE]))
        known |= {row.submission_id: event_from_row(row) for row in connection.execute(some)}
    new: list[LabelEvent] = []
    for label in labels:
        earlier = known.setdefault(label.submission_id, label)
        if earlier is label:
            new.append(label)
        elif replace(earlier, event_id=label.event_id, annotator=label.annotator) != label or (
            name_key(earlier.annotator) != name_key(label.annotator)
        ):
            raise DataError(
                f"The submission id {label.submission_id!r} is there already, with other content. "
                "Nothing was imported. Give each label an id of its own."
            )
    return new


def _add_people(connection: Connection, labels: Sequence[LabelEvent]) -> None:
    names = {name_key(label.annotator): label.annotator for label in reversed(labels)}
    there = set(connection.execute(select(schema.accounts.c.name_key)).scalars())
    new = [
        new_account_columns(name, role="annotator", active=False)
        for key, name in reversed(names.items())
        if key not in there
    ]
    if new:
        connection.execute(insert(schema.accounts), new)


def _known(connection: Connection) -> _Known:
    pairs, accounts, tasks = schema.pairs.c, schema.accounts.c, schema.tasks.c
    return _Known(
        pairs={
            row.pair_id: (row.id, row.gold_choice is not None, row.chosen_by)
            for row in connection.execute(select(pairs.id, pairs.pair_id, pairs.gold_choice, pairs.chosen_by))
        },
        accounts={row.name_key: row.id for row in connection.execute(select(accounts.name_key, accounts.id))},
        tasks={
            (row.account_ref, row.pair_ref, row.is_repeat): (row.id, row.revision)
            for row in connection.execute(
                select(tasks.id, tasks.account_ref, tasks.pair_ref, tasks.is_repeat, tasks.revision)
            )
        },
    )


def _check_against_pair(label: LabelEvent, known: _Known) -> None:
    if label.pair_id not in known.pairs:
        raise DataError(
            f"Label {label.submission_id!r} is about pair {label.pair_id!r}, which is not in the project. "
            "Nothing was imported. Add the pairs first."
        )
    _, is_gold, _ = known.pairs[label.pair_id]
    if is_gold != (label.kind == "gold"):
        raise DataError(
            f"Label {label.submission_id!r} is of kind {label.kind!r}, and pair {label.pair_id!r} has "
            f"{'a' if is_gold else 'no'} known answer. Nothing was imported. Gold labels belong to gold pairs alone."
        )


def _task_key(label: LabelEvent, known: _Known) -> _TaskKey:
    return known.accounts[name_key(label.annotator)], known.pairs[label.pair_id][0], label.kind == "repeat"


def _add_tasks(connection: Connection, labels: Sequence[LabelEvent], known: _Known) -> None:
    """A task, its lease long over, for everybody and pair that have none."""
    numbers: dict[int, int] = {}
    new: dict[_TaskKey, dict[str, Any]] = {}
    for label in labels:
        key = _task_key(label, known)
        if key in known.tasks or key in new:
            continue
        number = numbers.get(key[0])
        if number is None:
            number = connection.execute(
                select(schema.accounts.c.num_tasks).where(schema.accounts.c.id == key[0])
            ).scalar_one()
        numbers[key[0]] = number + 1
        new[key] = {
            "task_id": f"imported-{label.submission_id}",
            "pair_ref": key[1],
            "account_ref": key[0],
            "kind": label.kind,
            "is_repeat": key[2],
            "swapped": label.swapped,
            "sequence": number,
            "expires_at": 0.0,
        }
    if new:
        connection.execute(insert(schema.tasks), list(new.values()))
    for account, number in numbers.items():
        connection.execute(schema.accounts.update().where(schema.accounts.c.id == account).values(num_tasks=number))


def _event_columns(label: LabelEvent, known: _Known) -> dict[str, Any]:
    account, pair, _ = key = _task_key(label, known)
    return {
        "submission_id": label.submission_id,
        "event": label.event,
        "task_ref": known.tasks[key][0],
        "pair_ref": pair,
        "account_ref": account,
        "kind": label.kind,
        "choice": label.choice,
        "displayed_choice": label.displayed_choice,
        "swapped": label.swapped,
        "strength": label.strength,
        "rationale": label.rationale,
        "opened_at": label.opened_at,
        "submitted_at": label.submitted_at,
        "received_at": label.received_at,
        "revision": label.revision,
        "client_version": label.client_version,
        "chosen_by": label.chosen_by,
        "details": details_text(label.details, f"Label {label.submission_id!r}"),
    }
