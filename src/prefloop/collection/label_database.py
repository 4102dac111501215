"""Connections to the database of a label project: one writer at a time on SQLite, many on PostgreSQL.

SQLite. Commits are written through to the disk before they return (`synchronous=FULL`), because a person's work must
outlive a power cut. Write transactions begin as writers (`BEGIN IMMEDIATE`): one that first reads and then writes would
be turned away without waiting. Releases before 3.51.3 can damage the write-ahead log when two connections write or
checkpoint at the same instant (sqlite.org/wal.html, "The WAL-Reset Bug"), so a lock on a file beside the database lets
one process in at a time, and within a process one connection does all the writing; the connections that read cannot
checkpoint.

PostgreSQL. Several processes may write at once; the statements that decide something lock the rows they decide on.
"""

import fcntl
import math
import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, DBAPIError, DisconnectionError, IntegrityError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool, QueuePool

from prefloop.collection.label_schema import APPLICATION_ID
from prefloop.errors import DataError, SettingsError

WAIT_SECONDS = 10
"""How long SQLite waits for a program that is not ours and holds the file."""

IDLE_SECONDS_BEFORE_ASKING = 5.0
"""A connection to PostgreSQL that was idle for longer is asked for a sign of life before it is used."""


class Database(Protocol):
    """Where a project lives. `location` may be shown: it holds no password."""

    location: str
    is_postgresql: bool

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """One transaction; on leaving it is committed and safe, after an exception it is as if nothing had been."""
        ...

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A connection for one statement that reads, beside whoever writes."""
        ...

    @contextmanager
    def reading_one_state(self) -> Iterator[Connection]:
        """As `reading`; all statements see the state at the first one."""
        ...

    def close(self) -> None: ...


def open_database(location: str | Path, *, must_exist: bool) -> Database:
    """Connects to a SQLite file, which is made when it is missing, or to a PostgreSQL database.

    Raises SettingsError for an address of another kind, and DataError for a file that is no label store, a file that
    is missing though `must_exist`, or a server that does not answer.
    """
    if isinstance(location, str) and "://" in location:
        return PostgresqlDatabase(location)
    return SqliteDatabase(Path(location), must_exist=must_exist)


class SqliteDatabase:
    """A project in one file (and, while it is open, the write-ahead log and the writers' lock beside it)."""

    is_postgresql = False

    def __init__(self, path: Path, *, must_exist: bool) -> None:
        self.location = str(path)
        self._path = path
        _check_file(path, must_exist=must_exist)
        self._turn = threading.Lock()
        self._lock_file = os.open(f"{path}-lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._write_engine = self._engine("rw", begin="BEGIN IMMEDIATE", pool={"poolclass": NullPool})
        self._read_engine = self._engine(
            "ro", begin="BEGIN", pool={"poolclass": QueuePool, "pool_size": 8, "max_overflow": 56}
        )
        try:
            with _said_plainly(self.location, "opened"), self._my_turn():
                self._writer = self._write_engine.connect()
        except BaseException:
            os.close(self._lock_file)
            raise

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        with _said_plainly(self.location, "written"), self._my_turn(), self._writer.begin():
            yield self._writer

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with _said_plainly(self.location, "read"), self._read_engine.connect() as connection:
            yield connection

    # In write-ahead mode a transaction sees the state of its first statement.
    reading_one_state = reading

    def backup(self, path: Path) -> None:
        """A copy of the project as it is now, made while others go on writing, and checked.

        Raises DataError when `path` exists, or when the copy is not sound.
        """
        if path.exists():
            raise DataError(f"{path} exists already. Name a file that does not exist yet for the backup.")
        unfinished = path.with_name(path.name + ".unfinished")
        unfinished.unlink(missing_ok=True)
        os.close(os.open(unfinished, os.O_CREAT | os.O_EXCL, 0o600))
        source = sqlite3.connect(f"file:{quote(str(self._path.absolute()))}?mode=ro", uri=True)
        copy = sqlite3.connect(unfinished)
        try:
            source.backup(copy)
            copy.execute("PRAGMA journal_mode = DELETE")
            problems = [line for (line,) in copy.execute("PRAGMA integrity_check")]
        finally:
            copy.close()
            source.close()
        if problems != ["ok"]:
            raise DataError(f"The backup {unfinished} of {self.location} is not sound: {'; '.join(problems[:5])}.")
        unfinished.rename(path)

    def close(self) -> None:
        self._read_engine.dispose()
        with self._my_turn():
            self._writer.close()
        self._write_engine.dispose()
        os.close(self._lock_file)

    @contextmanager
    def _my_turn(self) -> Iterator[None]:
        """Among this process's threads, then among processes; the system lets go of the lock of one that was killed."""
        with self._turn:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock_file, fcntl.LOCK_UN)

    def _engine(self, mode: str, *, begin: str, pool: dict[str, Any]) -> Engine:
        address = f"file:{quote(str(self._path.absolute()))}?mode={mode}"

        def connect() -> sqlite3.Connection:
            # Without an isolation level Python opens no transaction of its own: `begin` says how.
            connection = sqlite3.connect(
                address, uri=True, timeout=WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            _prepare(connection, self.location)
            return connection

        engine = create_engine("sqlite+pysqlite://", creator=connect, hide_parameters=True, **pool)
        event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
        return engine


class PostgresqlDatabase:
    """A project in a PostgreSQL database of its own."""

    is_postgresql = True

    def __init__(self, address: str) -> None:
        url = _postgresql_url(address)
        self.location = url.render_as_string(hide_password=True)
        try:
            self._engine = create_engine(url, pool_size=5, max_overflow=5, hide_parameters=True)
        except ModuleNotFoundError as problem:
            raise SettingsError(
                f"PostgreSQL needs the package psycopg, which is missing ({problem}). "
                'Install it: pip install "prefloop[postgresql]".'
            ) from problem
        event.listen(self._engine, "checkout", self._refuse_dead_connection)
        event.listen(self._engine, "checkin", _note_last_use)
        # One statement needs no transaction around it: that is two messages fewer.
        self._statements = self._engine.execution_options(isolation_level="AUTOCOMMIT")
        self._states = self._engine.execution_options(isolation_level="REPEATABLE READ")
        with _said_plainly(self.location, "opened"), self._engine.connect() as connection:
            encoding = connection.execute(text("SHOW server_encoding")).scalar_one()
        if encoding != "UTF8":
            raise DataError(
                f"The database {self.location} keeps text as {encoding}, which cannot hold all of Unicode. "
                "Make one with ENCODING 'UTF8'."
            )

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        with _said_plainly(self.location, "written"), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        with _said_plainly(self.location, "read"), self._statements.connect() as connection:
            yield connection

    @contextmanager
    def reading_one_state(self) -> Iterator[Connection]:
        with _said_plainly(self.location, "read"), self._states.connect() as connection:
            yield connection

    def close(self) -> None:
        self._engine.dispose()

    def _refuse_dead_connection(self, connection: Any, record: ConnectionPoolEntry, _proxy: object) -> None:
        """Asks a connection that has been idle for a while for a sign of life; the pool replaces one that is dead."""
        if time.monotonic() - record.info.get("last_use", math.inf) > IDLE_SECONDS_BEFORE_ASKING:
            try:
                connection.execute("SELECT 1")
                connection.rollback()
            except self._engine.dialect.loaded_dbapi.Error as problem:
                raise DisconnectionError(f"{self.location} closed an idle connection") from problem


def _note_last_use(_connection: object, record: ConnectionPoolEntry) -> None:
    record.info["last_use"] = time.monotonic()


def _postgresql_url(address: str) -> URL:
    try:
        url = make_url(address)
    except (ArgumentError, ValueError) as problem:
        raise SettingsError(
            "The address of the label store is not readable. Write postgresql://USER@HOST/DATABASE, or a file's path."
        ) from problem
    if url.drivername not in ("postgres", "postgresql", "postgresql+psycopg"):
        raise SettingsError(
            f"A label store is a SQLite file or a PostgreSQL database, not {url.drivername!r}. "
            "Write postgresql://USER@HOST/DATABASE, or the path of a file."
        )
    return url.set(drivername="postgresql+psycopg")


def _check_file(path: Path, *, must_exist: bool) -> None:
    """Refuses what is no store before SQLite touches it, and makes a new file that only its owner may read."""
    if path.is_dir():
        raise DataError(f"{path} is a folder. Name the file of the label store, for example {path / 'labels.sqlite'}.")
    if not path.exists():
        if must_exist:
            raise DataError(
                f"There is no label store at {path}. Check the path, or make a project with `prefloop collect` or "
                "`prefloop label import`."
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT, 0o600))
    with path.open("rb") as file:
        header = file.read(100)
    if header and not header.startswith(b"SQLite format 3\x00"):
        raise DataError(f"{path} is no label store: it is not a SQLite file. Name another file.")
    # An empty file becomes a store; bytes 68 to 71 of the header are the application's id.
    if header and int.from_bytes(header[68:72], "big") != APPLICATION_ID and not _is_unwritten(path):
        raise DataError(f"{path} is no label store: it is a SQLite file of another program. Name another file.")


def _is_unwritten(path: Path) -> bool:
    """Whether the file holds no table: its header may lag behind a write-ahead log that another process fills."""
    connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro", uri=True, timeout=WAIT_SECONDS)
    try:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as problem:
        raise DataError(f"{path} is no label store, or it is damaged: {problem}.") from problem
    finally:
        connection.close()
    return application == APPLICATION_ID or tables == 0


def _prepare(connection: sqlite3.Connection, location: str) -> None:
    """Sets the promises of the file and reads them back: builds of SQLite differ in what they allow."""
    wanted = {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    for name, value in wanted.items():
        connection.execute(f"PRAGMA {name} = {value}")
        (found,) = connection.execute(f"PRAGMA {name}").fetchone()
        if found != value:
            raise DataError(
                f"SQLite has {name} = {found} for {location}, and labels need {value}. "
                "Put the file on a local disk: network folders cannot keep it safe."
            )


@contextmanager
def _said_plainly(location: str, action: str) -> Iterator[None]:
    """Turns what a database driver says into an error of the house; broken constraints are left to the caller."""
    try:
        yield
    except IntegrityError:
        raise
    except (DBAPIError, sqlite3.Error) as problem:
        cause = problem.orig if isinstance(problem, DBAPIError) else problem
        advice = "Check that it runs and lets you in" if "://" in location else "Check the disk and who may write there"
        said = " ".join(str(cause).split()).rstrip(".?")
        raise DataError(f"The label store {location} cannot be {action}: {said}. {advice}.") from problem
