"""The label store: pairs, people, tasks and everything that was ever said, in SQLite or PostgreSQL.

One store is one project. What people say is an append-only record of events; which labels stand now is a view of it.
A method that writes returns when its transaction is committed, never before.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from sqlalchemy import Connection, func, insert, inspect, select, text, update
from sqlalchemy.exc import IntegrityError

from prefloop.collection import label_schema as schema
from prefloop.collection import past_labels, queue, store_check, submissions
from prefloop.collection.accounts import Accounts
from prefloop.collection.label_database import Database, SqliteDatabase, open_database
from prefloop.collection.label_records import (
    LabelEvent,
    OwnProgress,
    Progress,
    ProjectSettings,
    Receipt,
    StoredPair,
    Submission,
    Task,
    Undone,
)
from prefloop.collection.queue import Person, person_at_work
from prefloop.collection.queue_order import queue_order
from prefloop.collection.stored_rows import (
    event_from_row,
    pair_from_row,
    pair_to_columns,
    settings_from_text,
    settings_to_text,
)
from prefloop.errors import DataError, SettingsError

_CREATE_LOCK = 0x7072656600
"""The number of PostgreSQL's advisory lock for making the tables."""

_T = TypeVar("_T")
_PAIR_IDS_AT_ONCE = 500
_SETTINGS = select(schema.project.c.settings)


def _with_names(events: Any) -> Any:
    return (
        select(events, schema.accounts.c.name, schema.pairs.c.pair_id)
        .join(schema.accounts, schema.accounts.c.id == events.c.account_ref)
        .join(schema.pairs, schema.pairs.c.id == events.c.pair_ref)
        .order_by(events.c.id)
    )


_EVENTS = _with_names(schema.events)
_CURRENT_LABELS = _with_names(schema.current_labels)


@dataclass(frozen=True)
class AddedPairs:
    """How many pairs were new, and how many the project had already, word for word."""

    num_added: int
    num_known: int


def open_store(
    location: str | Path, *, settings: ProjectSettings | None = None, must_exist: bool = False
) -> "LabelStore":
    """The project at the path of a SQLite file or at a postgresql:// address; made there when there is none yet.

    A new project gets `settings` or the defaults; one that exists keeps its own. Raises SettingsError when `settings`
    differ from those, and DataError when `must_exist` and there is none, when the file or database is something else,
    or when it was made by a newer version.
    """
    database = open_database(location, must_exist=must_exist)
    try:
        store = LabelStore(database)
        store._make_or_check(settings, must_exist=must_exist)
    except BaseException:
        database.close()
        raise
    return store


class LabelStore(Accounts):
    """A project that is open; many threads may use it at once. `location` holds no password.

    `now` stands for the clock in seconds since 1970, for tests.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.location = database.location

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends all connections."""
        self._database.close()

    @property
    def settings(self) -> ProjectSettings:
        """The rules of the project as they stand now; another process may have changed them."""
        with self._database.reading() as connection:
            return settings_from_text(connection.execute(_SETTINGS).scalar_one())

    def update_settings(self, settings: ProjectSettings) -> None:
        """Puts new rules into force for everybody. The order of pairs that are there already stays as it was drawn.

        Raises SettingsError when annotators_per_pair would change though some pair has a label.
        """
        with self._database.writing() as connection:
            self._keep_others_out(connection)
            old = settings_from_text(connection.execute(_SETTINGS).scalar_one())
            labelled = connection.execute(select(func.max(schema.pairs.c.num_labels))).scalar()
            if labelled and settings.annotators_per_pair != old.annotators_per_pair:
                raise SettingsError(
                    f"annotators_per_pair is {old.annotators_per_pair} and cannot become "
                    f"{settings.annotators_per_pair}: pairs have labels already. Start another project for that."
                )
            connection.execute(update(schema.project).values(settings=settings_to_text(settings)))

    def add_pairs(self, pairs: Sequence[StoredPair]) -> AddedPairs:
        """Adds all pairs to the end of the queue, in an order drawn among them, or none.

        A pair that is there already, with the same content, is counted and left as it is. Of completions the text, the
        source and whether they ended are kept. Raises DataError, naming the pair, for a pair_id that is there with
        other content, answers that are empty or equal but for spaces, and texts that cannot be kept.
        """
        rows = [pair_to_columns(pair) for pair in pairs]
        with self._database.writing() as connection:
            self._keep_others_out(connection)
            settings = settings_from_text(connection.execute(_SETTINGS).scalar_one())
            known = _content_by_id(connection, [row["pair_id"] for row in rows])
            new: list[int] = []
            for index, row in enumerate(rows):
                earlier = known.setdefault(row["pair_id"], row)
                if earlier is row:
                    new.append(index)
                else:
                    _check_same(earlier, row)
            end = connection.execute(select(func.coalesce(func.max(schema.pairs.c.position), -1))).scalar_one() + 1
            order = queue_order([pairs[index] for index in new], settings, batch=end)
            for place, (index, chosen_by) in enumerate(order):
                row = rows[new[index]]
                row |= {"chosen_by": chosen_by, "position": end + place}
                row["open_position"] = end + place if row["gold_choice"] is None else None
            in_order = [rows[new[index]] for index, _ in order]
            if in_order:
                connection.execute(insert(schema.pairs), in_order)
            num_regular = sum(row["gold_choice"] is None for row in in_order)
            counts = (schema.project.c.num_regular_pairs, schema.project.c.num_open_pairs)
            connection.execute(update(schema.project).values({count: count + num_regular for count in counts}))
        return AddedPairs(len(new), len(rows) - len(new))

    def pairs(self) -> list[StoredPair]:
        """All pairs, first in the queue first; those with a known answer stand last among what was added with them."""
        with self._database.reading() as connection:
            return [pair_from_row(row) for row in connection.execute(select(schema.pairs).order_by("position"))]

    def next_tasks(self, annotator: str, *, num: int = 1, now: float | None = None) -> list[Task]:
        """Up to `num` tasks for this person: those it holds already, and then new ones.

        Fewer, or none, come back when the queue has no more for this person just now. Raises DataError for an account
        that does not exist or is not active, and for `num` outside 0 to 100.
        """
        return self._at_work(
            annotator, now, lambda connection, person, at: queue.next_tasks(connection, person, num=num, now=at)
        )

    def submit(self, annotator: str, submission: Submission, *, now: float | None = None) -> Receipt:
        """Takes a label, or a changed one for a task that has one (one revision higher). Returns after the commit.

        The same submission again gives the first receipt, with `replayed`. Raises LabelRefusedError with reason
        "id_reused" (the id came with other content before), "unknown_task" (not this person's) or "pair_complete"
        (others filled the pair), and DataError for texts that cannot be kept and as `next_tasks`.
        """
        return self.submit_and_next(annotator, submission, num_next=0, now=now)[0]

    def submit_and_next(
        self, annotator: str, submission: Submission, *, num_next: int, now: float | None = None
    ) -> tuple[Receipt, list[Task]]:
        """`submit` and then `next_tasks` in one transaction, which waits for the disk once instead of twice.

        Raises as both do; then neither has happened.
        """

        def work(connection: Connection, person: Person, at: float) -> tuple[Receipt, list[Task]]:
            receipt = submissions.submit(connection, person, submission, now=at)
            return receipt, queue.next_tasks(connection, person, num=num_next, now=at)

        return self._at_work(annotator, now, work)

    def undo(self, annotator: str, submission_id: str, *, now: float | None = None) -> Undone:
        """Takes back this person's latest label that stands; its task is open again, leased to the person.

        `submission_id` is the undo's own: the same id again takes nothing more back. Raises LabelRefusedError with
        reason "nothing_to_undo" or "id_reused".
        """
        return self._at_work(
            annotator, now, lambda connection, person, at: submissions.undo(connection, person, submission_id, now=at)
        )

    def progress(self) -> Progress:
        """How far the project is."""
        with self._database.reading() as connection:
            return queue.progress(connection)

    def own_progress(self, annotator: str, *, now: float | None = None) -> OwnProgress:
        """How far that person is. Raises DataError for an unknown name."""
        with self._database.reading() as connection:
            return queue.own_progress(connection, annotator, now=time.time() if now is None else now)

    def events(self, after: int = 0) -> list[LabelEvent]:
        """The record, oldest first: every event with an id above `after`.

        On PostgreSQL two transactions may end in another order than they began: an event can appear a moment after one
        with a higher id.
        """
        with self._database.reading() as connection:
            rows = connection.execute(_EVENTS.where(schema.events.c.id > after))
            return [event_from_row(row) for row in rows]

    def current_labels(self) -> list[LabelEvent]:
        """The labels that stand, oldest first: a person's last event for a pair (repeats apart), if not undone."""
        with self._database.reading() as connection:
            return [event_from_row(row) for row in connection.execute(_CURRENT_LABELS)]

    def import_labels(self, labels: Sequence[LabelEvent]) -> int:
        """Adds labels from elsewhere, in the order given, all or none, and returns how many were new.

        Ids, times and revisions are kept; event ids are given anew. People without an account get one that is not
        active. A submission id that is there with the same content is left as it is. Raises DataError, naming the
        label, for an unknown pair, a second label of one person for a pair without a higher revision, an id with other
        content, and more labels on a pair than annotators_per_pair.
        """
        with self._database.writing() as connection:
            self._keep_others_out(connection)
            settings = settings_from_text(connection.execute(_SETTINGS).scalar_one())
            return past_labels.import_labels(connection, labels, settings)

    def check(self) -> list[str]:
        """What is wrong with the store, one sentence for each kind of fault; empty when it is sound."""
        with self._database.reading_one_state() as connection:
            settings = settings_from_text(connection.execute(_SETTINGS).scalar_one())
            return store_check.problems(connection, annotators_per_pair=settings.annotators_per_pair)

    def backup(self, path: str | Path) -> None:
        """Copies a SQLite project, while others go on working, to a new file, and checks the copy.

        Raises DataError when the file exists, when the copy is not sound, and for PostgreSQL.
        """
        if not isinstance(self._database, SqliteDatabase):
            raise DataError(f"{self.location} is a PostgreSQL database: back it up with pg_dump.")
        self._database.backup(Path(path))

    def _at_work(self, annotator: str, now: float | None, work: Callable[[Connection, Person, float], _T]) -> _T:
        """What the person does, in one transaction."""
        at = time.time() if now is None else now
        try:
            with self._database.writing() as connection:
                return work(connection, person_at_work(connection, annotator), at)
        except IntegrityError:
            # On PostgreSQL somebody else took the same submission id in the same instant: this time it is found.
            with self._database.writing() as connection:
                return work(connection, person_at_work(connection, annotator), at)

    def _keep_others_out(self, connection: Connection) -> None:
        """On PostgreSQL, waits for all who write and holds off the next ones; SQLite's writers are alone anyway."""
        if self._database.is_postgresql:
            connection.execute(text("LOCK TABLE accounts IN EXCLUSIVE MODE"))

    def _make_or_check(self, settings: ProjectSettings | None, *, must_exist: bool) -> None:
        with self._database.writing() as connection:
            if self._database.is_postgresql:
                connection.execute(text("SELECT pg_advisory_xact_lock(:number)"), {"number": _CREATE_LOCK})
            tables = inspect(connection).get_table_names()
            if schema.project.name in tables:
                _check_version(connection, self.location)
                kept = settings_from_text(connection.execute(_SETTINGS).scalar_one())
                if settings is not None and settings != kept:
                    raise _other_settings(self.location, settings, kept)
                return
            if tables:
                raise DataError(
                    f"{self.location} holds tables of something else ({', '.join(sorted(tables)[:5])}). "
                    "A label project needs a database of its own."
                )
            if must_exist:
                raise DataError(
                    f"There is no label project in {self.location}. Make one with `prefloop collect` or "
                    "`prefloop label import`."
                )
            schema.METADATA.create_all(connection, checkfirst=False)
            row = {
                "id": 1,
                "schema_version": schema.SCHEMA_VERSION,
                "settings": settings_to_text(settings or ProjectSettings.model_validate({})),
                "num_regular_pairs": 0,
                "num_open_pairs": 0,
                "created_at": time.time(),
            }
            connection.execute(insert(schema.project), row)


def _check_version(connection: Connection, location: str) -> None:
    version = connection.execute(select(schema.project.c.schema_version)).scalar_one()
    if version != schema.SCHEMA_VERSION:
        advice = "Open it with the prefloop that made it, or a newer one."
        if version < schema.SCHEMA_VERSION:
            advice = "Export it with the prefloop that made it, and import the labels into a new store."
        raise DataError(
            f"{location} has version {version} of the label store, and this prefloop reads version "
            f"{schema.SCHEMA_VERSION}. {advice}"
        )


def _other_settings(location: str, given: ProjectSettings, kept: ProjectSettings) -> SettingsError:
    names = [name for name in ProjectSettings.model_fields if getattr(given, name) != getattr(kept, name)]
    differences = "; ".join(
        f"{name} is {_short(getattr(kept, name))}, given was {_short(getattr(given, name))}" for name in names
    )
    return SettingsError(
        f"The project {location} exists with other settings: {differences}. Open it without settings, or change them "
        "in the project."
    )


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _content_by_id(connection: Connection, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
    columns = schema.pairs.c
    wanted = select(columns.pair_id, columns.content, columns.gold_choice, columns.margin, columns.disagreement)
    found: dict[str, dict[str, Any]] = {}
    for start in range(0, len(ids), _PAIR_IDS_AT_ONCE):
        some = wanted.where(columns.pair_id.in_(ids[start : start + _PAIR_IDS_AT_ONCE]))
        found |= {row["pair_id"]: dict(row) for row in connection.execute(some).mappings()}
    return found


def _check_same(earlier: dict[str, Any], row: dict[str, Any]) -> None:
    other = [name for name, value in earlier.items() if value != row[name]]
    if other:
        raise DataError(
            f"Pair {row['pair_id']!r} is there already with other content ({', '.join(other)}). Nothing was added. "
            "Give another pair another pair_id."
        )
