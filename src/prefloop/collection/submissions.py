"""Taking a label, changing it, taking it back. Each is one more event; nothing that was said is ever rewritten."""

import json
from typing import Any

from sqlalchemy import Connection, Row, bindparam, func, insert, select, update

from prefloop.collection import label_schema as schema
from prefloop.collection.label_records import Receipt, Submission, Undone
from prefloop.collection.queue import Person
from prefloop.collection.stored_rows import check_submission, check_text, other_side, task_from_row
from prefloop.errors import LabelRefusedError
from prefloop.records import Choice

_tasks = schema.tasks.c
_pairs = schema.pairs.c
_events = schema.events.c
_Row = Row[*tuple[Any, ...]]

_EVENT_OF_SUBMISSION = (
    select(
        _events.id,
        _events.event,
        _events.account_ref,
        _events.task_ref,
        _events.displayed_choice,
        _events.strength,
        _events.rationale,
        _events.revision,
        _tasks.task_id,
    )
    .join(schema.tasks, _tasks.id == _events.task_ref)
    .where(_events.submission_id == bindparam("submission_id"))
)
_TASK = (
    select(
        _tasks.id,
        _tasks.task_id,
        _tasks.pair_ref,
        _tasks.kind,
        _tasks.swapped,
        _tasks.revision,
        _tasks.label_event,
        _tasks.label_choice,
        _pairs.position,
        _pairs.num_labels,
        _pairs.chosen_by,
    )
    .join(schema.pairs, _pairs.id == _tasks.pair_ref)
    .where(_tasks.account_ref == bindparam("me"))
    .with_for_update(of=schema.pairs, key_share=True)
)
_TASK_OF_ID = (
    _TASK.outerjoin(schema.events, _events.submission_id == bindparam("submission_id"))
    .add_columns(_events.id.label("earlier"))
    .where(_tasks.task_id == bindparam("task_id"))
)
"""The task, and whether the submission's id was used before."""
_TASK_OF_EVENT = _TASK.where(_tasks.label_event == bindparam("label_event"))
_LATEST_STANDING = select(func.max(_tasks.label_event)).where(_tasks.account_ref == bindparam("me"))
_TASK_TO_SHOW = (
    select(_tasks.task_id, _tasks.kind, _tasks.swapped, _tasks.expires_at, _pairs.content)
    .join(schema.pairs, _pairs.id == _tasks.pair_ref)
    .where(_tasks.id == bindparam("task_ref"))
)
_WHAT_WAS_SAID = select(_events.displayed_choice, _events.strength, _events.rationale).where(
    _events.task_ref == bindparam("task_ref"), _events.revision == bindparam("revision")
)
_ADD_EVENT = insert(schema.events).returning(_events.id)
_SET_LABEL = (
    update(schema.tasks)
    .where(_tasks.id == bindparam("task_ref"))
    .values(revision=bindparam("to"), label_event=bindparam("label"), label_choice=bindparam("said"))
)
_REOPEN = _SET_LABEL.values(expires_at=bindparam("until"))
_COUNT_FOR_PAIR = (
    update(schema.pairs)
    .where(_pairs.id == bindparam("pair_ref"))
    .values(num_labels=bindparam("num"), open_position=bindparam("open_at"))
)
_COUNT_OPEN = update(schema.project).values(num_open_pairs=schema.project.c.num_open_pairs + bindparam("change"))


def submit(connection: Connection, person: Person, submission: Submission, *, now: float) -> Receipt:
    """Takes the label, or says that it is there already. Raises as `LabelStore.submit`."""
    check_submission(submission)
    ids = {"me": person.ref, "task_id": submission.task_id, "submission_id": submission.submission_id}
    task = connection.execute(_TASK_OF_ID, ids).one_or_none()
    if task is None or task.earlier is not None:
        earlier = connection.execute(_EVENT_OF_SUBMISSION, {"submission_id": submission.submission_id}).one_or_none()
        if earlier is not None:
            return _replayed_label(earlier, person, submission)
    if task is None:
        raise LabelRefusedError(
            f"There is no task {submission.task_id!r} for {person.name!r}. Ask for the next pair and answer that one.",
            "unknown_task",
        )
    choice = other_side(submission.choice) if task.swapped else submission.choice
    change = _counts(task.kind, choice) - _counts(task.kind, task.label_choice)
    if change > 0 and task.num_labels >= person.settings.annotators_per_pair:
        raise LabelRefusedError(
            "Other people have answered this pair meanwhile, and it needs no further label. Go on with the next pair.",
            "pair_complete",
        )
    receipt = _add_event(connection, person, task, now=now, said=submission, choice=choice)
    connection.execute(
        _SET_LABEL,
        {"task_ref": task.id, "to": receipt.revision, "label": receipt.event_id, "said": choice},
    )
    _count(connection, person, task, change=change)
    return receipt


def undo(connection: Connection, person: Person, submission_id: str, *, now: float) -> Undone:
    """Takes the person's latest standing label back. Raises as `LabelStore.undo`."""
    check_text(submission_id, "The submission_id of an undo")
    earlier = connection.execute(_EVENT_OF_SUBMISSION, {"submission_id": submission_id}).one_or_none()
    if earlier is not None:
        if earlier.event != "undo" or earlier.account_ref != person.ref:
            raise _id_reused(submission_id)
        receipt = Receipt(earlier.id, submission_id, earlier.revision, replayed=True)
        return _undone(connection, earlier.task_ref, receipt)
    latest = connection.execute(_LATEST_STANDING, {"me": person.ref}).scalar()
    if latest is None:
        raise LabelRefusedError(f"{person.name!r} has no label to take back.", "nothing_to_undo")
    task = connection.execute(_TASK_OF_EVENT, {"me": person.ref, "label_event": latest}).one()
    receipt = _add_event(connection, person, task, now=now, said=submission_id, choice=None)
    until = now + person.settings.lease_seconds
    connection.execute(
        _REOPEN, {"task_ref": task.id, "to": receipt.revision, "label": None, "said": None, "until": until}
    )
    _count(connection, person, task, change=-_counts(task.kind, task.label_choice))
    return _undone(connection, task.id, receipt)


def _add_event(
    connection: Connection, person: Person, task: _Row, *, now: float, said: Submission | str, choice: Choice | None
) -> Receipt:
    """One more event of the task: a label with what was said, or, with a submission id alone, an undo."""
    label = said if isinstance(said, Submission) else None
    submission_id = said if isinstance(said, str) else said.submission_id
    columns = {
        "submission_id": submission_id,
        "event": "undo" if label is None else "label",
        "task_ref": task.id,
        "pair_ref": task.pair_ref,
        "account_ref": person.ref,
        "kind": task.kind,
        "choice": choice,
        "displayed_choice": None if label is None else label.choice,
        "swapped": task.swapped,
        "strength": None if label is None else label.strength,
        "rationale": "" if label is None else label.rationale,
        "opened_at": now if label is None else label.opened_at,
        "submitted_at": now if label is None else label.submitted_at,
        "received_at": now,
        "revision": task.revision + 1,
        "client_version": "" if label is None else label.client_version,
        "chosen_by": task.chosen_by,
        "details": json.dumps({}),
    }
    event_id = connection.execute(_ADD_EVENT, columns).scalar_one()
    return Receipt(event_id, submission_id, task.revision + 1, replayed=False)


def _counts(kind: str, choice: str | None) -> int:
    """How many of the pair's k labels a choice is: a skip is no answer, and gold pairs and repeats do not count."""
    return int(kind == "regular" and choice is not None and choice != "skip")


def _count(connection: Connection, person: Person, task: _Row, *, change: int) -> None:
    if change == 0:
        return
    k = person.settings.annotators_per_pair
    num = task.num_labels + change
    open_at = task.position if num < k else None
    connection.execute(_COUNT_FOR_PAIR, {"pair_ref": task.pair_ref, "num": num, "open_at": open_at})
    opened = int(num < k) - int(task.num_labels < k)
    if opened:
        connection.execute(_COUNT_OPEN, {"change": opened})


def _replayed_label(earlier: _Row, person: Person, submission: Submission) -> Receipt:
    same = (
        earlier.event == "label"
        and earlier.account_ref == person.ref
        and earlier.task_id == submission.task_id
        and earlier.displayed_choice == submission.choice
        and earlier.strength == submission.strength
        and earlier.rationale == submission.rationale
    )
    if not same:
        raise _id_reused(submission.submission_id)
    return Receipt(earlier.id, submission.submission_id, earlier.revision, replayed=True)


def _id_reused(submission_id: str) -> LabelRefusedError:
    return LabelRefusedError(
        f"The submission id {submission_id!r} was used before with other content. Make a new id for each answer.",
        "id_reused",
    )


def _undone(connection: Connection, task_ref: int, receipt: Receipt) -> Undone:
    shown = connection.execute(_TASK_TO_SHOW, {"task_ref": task_ref}).one()
    said = connection.execute(_WHAT_WAS_SAID, {"task_ref": task_ref, "revision": receipt.revision - 1}).one()
    task = task_from_row(shown, expires_at=shown.expires_at)
    return Undone(receipt, task, said.displayed_choice, said.strength, said.rationale)
