"""Who gets which pair: k people per pair and never more, nobody a pair twice, some known and some repeated.

A pair given out is leased: for a while it counts as if it were labelled, so that no more people work on it than are
needed. A lease that runs out frees the place. A person's tasks are numbered; the draw of (seed, person, number) says
whether a task is a pair with a known answer ("gold"), an earlier pair with its sides exchanged ("repeat"), or the next
pair of the queue.

On SQLite one writer at a time decides. On PostgreSQL `next_tasks` waits for a lock of its own, so that two people never
count the same free place, and the person's row is locked first by everything the person does.
"""

import math
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, and_, bindparam, func, insert, or_, select, text, update

from prefloop.collection import label_schema as schema
from prefloop.collection.accounts import name_key
from prefloop.collection.annotators import shows_swapped
from prefloop.collection.label_records import OwnProgress, Progress, ProjectSettings, Task, TaskKind
from prefloop.collection.stored_rows import check_name, settings_from_text, task_from_row
from prefloop.errors import DataError
from prefloop.randomness import derived_seed, python_random

MAX_TASKS_AT_ONCE = 100
REPEAT_AFTER_TASKS = 5
"""A pair comes back no sooner than this many tasks after the person labelled it."""

RENEW_AFTER_SHARE = 0.25
"""Of a lease's time; renewing with every label would write three rows more for each."""

LEFT_STEP = 5
"""What is left is said in steps of so many where gold pairs or repeats are mixed in."""

GIVE_OUT_LOCK = 0x7072656601
"""The number of PostgreSQL's advisory lock for giving out pairs."""
_WAIT_FOR_TURN = text("SELECT pg_advisory_xact_lock(:number)")

_PERSON = (
    select(schema.accounts.c.id, schema.accounts.c.name, schema.accounts.c.active, schema.accounts.c.num_tasks)
    .add_columns(schema.project.c.settings)
    .join(schema.project, schema.project.c.id == 1)
    .where(schema.accounts.c.name_key == bindparam("key"))
    .with_for_update(of=schema.accounts, key_share=True)
)

_tasks = schema.tasks.c
_pairs = schema.pairs.c
_TASK_COLUMNS = (
    _tasks.id.label("task_ref"),
    _tasks.task_id,
    _tasks.pair_ref,
    _tasks.kind,
    _tasks.swapped,
    _tasks.sequence,
    _tasks.expires_at,
    _pairs.content,
)
_OWN_LEASES = (
    select(*_TASK_COLUMNS)
    .join(schema.pairs, _pairs.id == _tasks.pair_ref)
    .where(
        _tasks.account_ref == bindparam("me"),
        _tasks.label_event.is_(None),
        _tasks.expires_at > bindparam("now"),
    )
    .order_by(_tasks.sequence)
)
_RENEW = (
    update(schema.tasks)
    .where(_tasks.account_ref == bindparam("me"), _tasks.label_event.is_(None), _tasks.expires_at > bindparam("now"))
    .values(expires_at=bindparam("until"))
)

_mine = schema.tasks.alias("mine")
_theirs = schema.tasks.alias("theirs")
_num_leased_to_others = (
    select(func.count())
    .select_from(_theirs)
    .where(
        _theirs.c.pair_ref == _pairs.id,
        _theirs.c.kind == "regular",
        _theirs.c.account_ref != bindparam("me"),
        _theirs.c.label_event.is_(None),
        _theirs.c.expires_at > bindparam("now"),
    )
    .scalar_subquery()
)
_not_given = and_(
    _mine.c.label_event.is_(None), or_(_mine.c.expires_at.is_(None), _mine.c.expires_at <= bindparam("now"))
)
"""No task of mine for this pair, or one whose lease ran out: that one is then given again."""

_FREE = select(
    _mine.c.id.label("task_ref"),
    _mine.c.task_id,
    _pairs.id.label("pair_ref"),
    _pairs.pair_id,
    _mine.c.swapped,
    _pairs.content,
).outerjoin(
    _mine,
    and_(_mine.c.pair_ref == _pairs.id, _mine.c.account_ref == bindparam("me"), _mine.c.is_repeat.is_(False)),
)
_FREE_REGULAR = (
    _FREE.where(
        _pairs.open_position.is_not(None), _not_given, _pairs.num_labels + _num_leased_to_others < bindparam("k")
    )
    .order_by(_pairs.open_position)
    .limit(bindparam("num"))
)
_FREE_GOLD = _FREE.where(_pairs.gold_choice.is_not(None), _not_given).order_by(_pairs.position).limit(bindparam("num"))

_first = schema.tasks.alias("first_time")
_again = schema.tasks.alias("again")
_REPEATABLE = (
    select(_first.c.id)
    .outerjoin(
        _again,
        and_(_again.c.account_ref == _first.c.account_ref, _again.c.pair_ref == _first.c.pair_ref, _again.c.is_repeat),
    )
    .where(
        _first.c.account_ref == bindparam("me"),
        _first.c.kind == "regular",
        _first.c.label_choice.in_(("left", "right")),
        _first.c.sequence <= bindparam("latest"),
        _again.c.label_event.is_(None),
        or_(_again.c.expires_at.is_(None), _again.c.expires_at <= bindparam("now")),
    )
    .order_by(_first.c.id)
)
_REPEATED = (
    select(
        _again.c.id.label("task_ref"),
        _again.c.task_id,
        _first.c.pair_ref,
        _first.c.swapped.label("swapped_before"),
        _pairs.content,
    )
    .join(schema.pairs, _pairs.id == _first.c.pair_ref)
    .outerjoin(
        _again,
        and_(_again.c.account_ref == _first.c.account_ref, _again.c.pair_ref == _first.c.pair_ref, _again.c.is_repeat),
    )
    .where(_first.c.id == bindparam("first_ref"))
)
_GIVE_AGAIN = (
    update(schema.tasks)
    .where(_tasks.id == bindparam("task_ref"))
    .values(sequence=bindparam("number"), expires_at=bindparam("until"))
)
_COUNT_TASKS = (
    update(schema.accounts)
    .where(schema.accounts.c.id == bindparam("me"))
    .values(num_tasks=schema.accounts.c.num_tasks + bindparam("num"))
)

_PROGRESS = select(
    schema.project.c.settings,
    schema.project.c.num_regular_pairs,
    schema.project.c.num_open_pairs,
    select(func.coalesce(func.sum(_pairs.num_labels), 0)).scalar_subquery().label("num_labels"),
)
_is_answered = _tasks.label_event.is_not(None)
_OWN_PROGRESS = (
    select(
        schema.project.c.settings,
        schema.project.c.num_open_pairs,
        schema.accounts.c.id,
        select(func.count()).where(_pairs.gold_choice.is_not(None)).scalar_subquery().label("num_gold"),
        func.count().filter(_is_answered).label("num_done"),
        func.count().filter(_is_answered, _tasks.kind == "gold").label("num_gold_done"),
        func.count()
        .filter(_is_answered, _tasks.kind == "regular", _pairs.open_position.is_not(None))
        .label("num_open_done"),
        func.count().filter(_tasks.label_event.is_(None), _tasks.expires_at > bindparam("now")).label("num_held"),
    )
    .select_from(schema.project)
    .join(schema.accounts, schema.accounts.c.name_key == bindparam("key"))
    .outerjoin(schema.tasks, _tasks.account_ref == schema.accounts.c.id)
    .outerjoin(schema.pairs, _pairs.id == _tasks.pair_ref)
    .group_by(schema.project.c.settings, schema.project.c.num_open_pairs, schema.accounts.c.id)
)

_Row = Row[*tuple[Any, ...]]


@dataclass(frozen=True)
class Person:
    """Who is at work, with the settings in force."""

    ref: int
    name: str
    num_tasks: int
    settings: ProjectSettings


@dataclass(frozen=True)
class _Given:
    """A task about to be given out: columns of a new row, or of the one that is given again (`task_ref`)."""

    task_ref: int | None
    task_id: str
    pair_ref: int
    kind: TaskKind
    swapped: bool
    sequence: int
    content: str


def person_at_work(connection: Connection, annotator: str) -> Person:
    """The person's row, locked on PostgreSQL until the transaction ends. Raises DataError unless it may work."""
    row = connection.execute(_PERSON, {"key": name_key(check_name(annotator))}).one_or_none()
    if row is None:
        raise DataError(f"There is no account called {annotator!r}. Add it to the project first.")
    if not row.active:
        raise DataError(f"The account {row.name!r} is not active. An admin can make a new link for it.")
    return Person(row.id, row.name, row.num_tasks, settings_from_text(row.settings))


def next_tasks(connection: Connection, person: Person, *, num: int, now: float) -> list[Task]:
    """The person's live leases and then new tasks, up to `num` in all; fewer when the queue has no more.

    Leases are renewed together once a quarter of the oldest one's time is over: each then has three quarters left.

    Raises DataError for `num` outside 0 to 100.
    """
    if not 0 <= num <= MAX_TASKS_AT_ONCE:
        raise DataError(f"{num} tasks at once were asked for; 0 to {MAX_TASKS_AT_ONCE} are allowed.")
    if num == 0:
        return []
    until = now + person.settings.lease_seconds
    me = {"me": person.ref, "now": now}
    leased = connection.execute(_OWN_LEASES, me).all()
    oldest = min((row.expires_at for row in leased), default=until)
    is_renewed = until - oldest > RENEW_AFTER_SHARE * person.settings.lease_seconds
    if is_renewed:
        connection.execute(_RENEW, {**me, "until": until})
    new: list[_Given] = []
    if len(leased) < num:
        if connection.dialect.name == "postgresql":
            connection.execute(_WAIT_FOR_TURN, {"number": GIVE_OUT_LOCK})
        new = _new_tasks(connection, person, num=num - len(leased), now=now)
        _give(connection, person, new, until=until)
    kept = [task_from_row(row, expires_at=until if is_renewed else row.expires_at) for row in leased[:num]]
    return kept + [task_from_row(one, expires_at=until) for one in new]


def _new_tasks(connection: Connection, person: Person, *, num: int, now: float) -> list[_Given]:
    """The kinds are drawn by number of task; where no gold pair or repeat is at hand, the queue's next pair comes."""
    numbers = range(person.num_tasks, person.num_tasks + num)
    kinds: list[TaskKind] = [_drawn_kind(person, number) for number in numbers]
    me = {"me": person.ref, "now": now}
    golds: Sequence[_Row] = ()
    repeats: list[_Row] = []
    if "gold" in kinds:
        golds = connection.execute(_FREE_GOLD, {**me, "num": kinds.count("gold")}).all()
    if "repeat" in kinds:
        repeats = _repeats(connection, person, num=kinds.count("repeat"), now=now)
    num_regular = num - len(golds) - len(repeats)
    regular: Sequence[_Row] = ()
    if num_regular > 0:
        asked = {**me, "num": num_regular, "k": person.settings.annotators_per_pair}
        regular = connection.execute(_FREE_REGULAR, asked).all()
    waiting: dict[TaskKind, Iterator[_Row]] = {"gold": iter(golds), "repeat": iter(repeats), "regular": iter(regular)}
    new: list[_Given] = []
    for number, drawn in zip(numbers, kinds, strict=True):
        kind: TaskKind = drawn
        row = next(waiting[kind], None)
        if row is None:
            kind = "regular"
            row = next(waiting[kind], None)
        if row is None:
            break
        new.append(_given(row, person, kind=kind, number=number))
    return new


def _drawn_kind(person: Person, number: int) -> TaskKind:
    draw = derived_seed(person.settings.seed, f"task kinds of {person.name}", number) / 2**63
    if draw < person.settings.gold_share:
        return "gold"
    return "repeat" if draw < person.settings.gold_share + person.settings.repeat_share else "regular"


def _repeats(connection: Connection, person: Person, *, num: int, now: float) -> list[_Row]:
    """Pairs this person chose a side of a while ago, drawn from all of those alike."""
    latest = person.num_tasks - REPEAT_AFTER_TASKS
    refs = connection.execute(_REPEATABLE, {"me": person.ref, "now": now, "latest": latest}).scalars().all()
    rng = python_random(person.settings.seed, f"repeats of {person.name}", person.num_tasks)
    drawn = rng.sample(refs, min(num, len(refs)))
    return [connection.execute(_REPEATED, {"first_ref": ref}).one() for ref in drawn]


def _given(row: _Row, person: Person, *, kind: TaskKind, number: int) -> _Given:
    if kind == "repeat":
        swapped = not row.swapped_before
    elif row.task_ref is not None:
        swapped = row.swapped
    else:
        swapped = shows_swapped(row.pair_id, person.name, seed=person.settings.seed)
    task_id = row.task_id if row.task_ref is not None else secrets.token_urlsafe(16)
    return _Given(row.task_ref, task_id, row.pair_ref, kind, swapped, number, row.content)


def _give(connection: Connection, person: Person, given: Sequence[_Given], *, until: float) -> None:
    again = [
        {"task_ref": one.task_ref, "number": one.sequence, "until": until} for one in given if one.task_ref is not None
    ]
    new = [
        {
            "task_id": one.task_id,
            "pair_ref": one.pair_ref,
            "account_ref": person.ref,
            "kind": one.kind,
            "is_repeat": one.kind == "repeat",
            "swapped": one.swapped,
            "sequence": one.sequence,
            "expires_at": until,
        }
        for one in given
        if one.task_ref is None
    ]
    if again:
        connection.execute(_GIVE_AGAIN, again)
    if new:
        connection.execute(insert(schema.tasks), new)
    if given:
        connection.execute(_COUNT_TASKS, {"me": person.ref, "num": len(given)})


def progress(connection: Connection) -> Progress:
    """How far the project is."""
    row = connection.execute(_PROGRESS).one()
    return Progress(
        num_pairs=row.num_regular_pairs,
        num_pairs_complete=row.num_regular_pairs - row.num_open_pairs,
        num_labels=int(row.num_labels),
        num_labels_wanted=row.num_regular_pairs * settings_from_text(row.settings).annotators_per_pair,
    )


def own_progress(connection: Connection, annotator: str, *, now: float) -> OwnProgress:
    """How far a person is. Raises DataError for an unknown name."""
    row = connection.execute(_OWN_PROGRESS, {"key": name_key(check_name(annotator)), "now": now}).one_or_none()
    if row is None:
        raise DataError(f"There is no account called {annotator!r}. Add it to the project first.")
    settings = settings_from_text(row.settings)
    gold_share = settings.gold_share if row.num_gold else 0.0
    num_left = row.num_open_pairs - row.num_open_done
    if gold_share == settings.repeat_share == 0.0:
        return OwnProgress(row.num_done, num_left, is_exact=True)
    # With no share left for ordinary pairs, they come where gold pairs and repeats run out.
    per_pair = 1.0 / max(1.0 - gold_share - settings.repeat_share, 0.1)
    golds = min(row.num_gold - row.num_gold_done, gold_share * per_pair * num_left)
    expected = num_left + golds + settings.repeat_share * per_pair * num_left
    # What is on the screen now may be the last, and not one of the open pairs.
    return OwnProgress(row.num_done, math.ceil(max(expected, row.num_held) / LEFT_STEP) * LEFT_STEP, is_exact=False)
