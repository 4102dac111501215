"""What a file or address must be to hold a project, and what is promised of the file."""

import fcntl
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from small_projects import project, settings, submission
from sqlalchemy import text

from prefloop.collection.label_database import Database, open_database
from prefloop.collection.store import LabelStore, open_store
from prefloop.errors import DataError, SettingsError


def test_the_promises_of_the_file_are_kept_on_every_connection(tmp_path: Path) -> None:
    open_store(tmp_path / "labels.sqlite").close()
    database = open_database(tmp_path / "labels.sqlite", must_exist=True)
    for connect in (database.writing, database.reading):
        with connect() as connection:
            asked = ("journal_mode", "synchronous", "foreign_keys")
            found = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in asked]
            assert found == ["wal", 2, 1]
    database.close()


def test_readers_cannot_write(tmp_path: Path) -> None:
    open_store(tmp_path / "labels.sqlite").close()
    database = open_database(tmp_path / "labels.sqlite", must_exist=True)
    readonly = pytest.raises(DataError, match="cannot be read: attempt to write a readonly database")
    with readonly, database.reading() as connection:
        connection.execute(text("DELETE FROM project"))
    database.close()


def test_who_reads_need_not_wait_for_who_writes(store_location: str) -> None:
    with project(store_location) as store:
        database = open_database(store_location, must_exist=True)
        with database.writing() as connection:
            connection.execute(text("UPDATE accounts SET num_tasks = 5"))
            assert len(store.pairs()) == 10
            assert store.progress().num_labels == 0
        database.close()


def delete_everybody_and_fail(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(text("DELETE FROM accounts"))
        raise ZeroDivisionError


def test_after_an_error_nothing_has_happened(store_location: str) -> None:
    with project(store_location) as store:
        database = open_database(store_location, must_exist=True)
        with pytest.raises(ZeroDivisionError):
            delete_everybody_and_fail(database)
        database.close()
        assert len(store.accounts()) == 3
        assert len(store.next_tasks("Ada")) == 1


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    open_store(tmp_path / "labels.sqlite").close()
    database = open_database(tmp_path / "labels.sqlite", must_exist=True)
    with (tmp_path / "labels.sqlite-lock").open() as other:
        with database.writing(), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    database.close()


def test_a_label_waits_for_another_program_that_writes(tmp_path: Path) -> None:
    """A transaction that read first and asked for the right to write later would be turned away at once."""
    with project(str(tmp_path / "labels.sqlite")) as store:
        (task,) = store.next_tasks("Ada")
        other = sqlite3.connect(tmp_path / "labels.sqlite", isolation_level=None, check_same_thread=False)
        other.execute("BEGIN IMMEDIATE")
        other.execute("UPDATE project SET created_at = 5")
        soon = threading.Timer(0.3, lambda: other.execute("COMMIT"))
        soon.start()
        assert store.submit("Ada", submission(task)).revision == 1
        soon.join()
        other.close()


def test_a_closed_file_is_one_file_that_only_its_owner_reads(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "labels.sqlite"
    with project(str(file)) as store:
        store.submit("Ada", submission(store.next_tasks("Ada")[0]))
        store.backup(tmp_path / "copy.sqlite")
    assert sorted(path.name for path in file.parent.iterdir()) == ["labels.sqlite", "labels.sqlite-lock"]
    for path in (file, tmp_path / "copy.sqlite"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_path_with_unusual_characters(tmp_path: Path) -> None:
    file = tmp_path / "100% of #1 labels?mode=memory é.sqlite"
    open_store(file, settings=settings(name="odd")).close()
    with open_store(file, must_exist=True) as store:
        assert (store.settings.name, store.location) == ("odd", str(file))
    assert file.exists()


def test_a_missing_file_is_not_made_when_it_must_exist(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no label store at .*none.sqlite. Check the path, or make a project"):
        open_store(tmp_path / "none.sqlite", must_exist=True)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_becomes_a_store_but_not_when_one_must_exist(tmp_path: Path) -> None:
    file = tmp_path / "labels.sqlite"
    file.touch()
    with pytest.raises(DataError, match="There is no label project in"):
        open_store(file, must_exist=True)
    open_store(file).close()
    open_store(file, must_exist=True).close()


@pytest.mark.parametrize(
    "content", [b"pair_id,choice\n1,left\n", b"\x00" * 200, b"SQLite format 3\x00" + b"\xff" * 300]
)
def test_a_file_that_is_no_database_is_left_alone(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "labels.csv"
    file.write_bytes(content)
    with pytest.raises(DataError, match="is no label store"):
        open_store(file)
    assert file.read_bytes() == content


def test_the_database_of_another_program_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "places.sqlite"
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE project (name TEXT)")
    connection.close()
    before = file.read_bytes()
    with pytest.raises(DataError, match="SQLite file of another program"):
        open_store(file)
    assert file.read_bytes() == before
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        open_store(tmp_path)


@pytest.mark.parametrize("address", ["mysql://somebody@host/labels", "sqlite:///labels.sqlite", "http://host/labels"])
def test_addresses_of_another_kind(address: str) -> None:
    with pytest.raises(SettingsError, match="A label store is a SQLite file or a PostgreSQL database, not"):
        open_store(address)


def test_an_address_that_cannot_be_read() -> None:
    with pytest.raises(SettingsError, match="not readable") as problem:
        open_store("postgresql://me:geheim@host:port/labels")
    assert "geheim" not in str(problem.value)


def test_a_server_that_does_not_answer_is_named_without_the_password(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be opened: .*Check that it runs and lets you in") as problem:
        open_store(f"postgresql://me:geheim@/labels?host={tmp_path}")
    assert "geheim" not in str(problem.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
def test_the_ways_to_write_an_address(postgresql_server, scheme: str) -> None:
    with postgresql_server.empty_database() as url, open_store(url.replace("postgresql+psycopg", scheme)) as store:
        assert store.location.startswith("postgresql+psycopg://postgres@/")


def test_a_database_with_other_tables_is_left_alone(postgresql_server) -> None:
    with postgresql_server.empty_database() as url:
        database = open_database(url, must_exist=True)
        with database.writing() as connection:
            connection.execute(text("CREATE TABLE places (name TEXT)"))
        database.close()
        with pytest.raises(DataError, match="holds tables of something else"):
            open_store(url)
        with pytest.raises(DataError, match="holds tables of something else"):
            open_store(url, must_exist=True)


def test_an_empty_database_when_a_project_must_exist(postgresql_server) -> None:
    with postgresql_server.empty_database() as url, pytest.raises(DataError, match="There is no label project in"):
        open_store(url, must_exist=True)


def test_connections_that_died_while_idle_are_replaced(postgresql_server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prefloop.collection.label_database.IDLE_SECONDS_BEFORE_ASKING", 0.0)
    with postgresql_server.empty_database() as url, project(url) as store:
        other = open_database(url, must_exist=True)
        with other.writing() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        other.close()
        assert len(store.next_tasks("Ada")) == 1


LABEL_EVERYTHING = """
import sys
from prefloop.collection.label_records import Submission
from prefloop.collection.store import open_store

location, name = sys.argv[1:]
with open_store(location, must_exist=True) as store:
    while tasks := store.next_tasks(name, num=2):
        first = tasks[0].task_id
        said = Submission(submission_id=name + first, task_id=first, choice="left", opened_at=1, submitted_at=2)
        store.submit(name, said)
"""


def test_several_processes_on_one_project(store_location: str) -> None:
    names = ("Ada", "Ben", "Cy")
    project(store_location, num_pairs=15, annotators_per_pair=2).close()
    workers = [subprocess.Popen([sys.executable, "-c", LABEL_EVERYTHING, store_location, name]) for name in names]
    assert [worker.wait(timeout=120.0) for worker in workers] == [0, 0, 0]
    with open_store(store_location) as store:
        assert store.progress().num_pairs_complete == 15
        assert len(store.current_labels()) == 30
        assert store.check() == []


def test_many_who_make_the_same_project_at_once(store_location: str) -> None:
    stores: list[LabelStore] = []
    threads = [threading.Thread(target=lambda: stores.append(open_store(store_location))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60.0)
    stores[0].add_account("Ada")
    assert [[account.name for account in store.accounts()] for store in stores] == [["Ada"]] * 6
    for store in stores:
        store.close()
