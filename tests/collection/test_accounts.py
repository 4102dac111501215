"""Who may sign in: links, passwords, sessions, and what the store keeps of them."""

import hashlib
import threading
from pathlib import Path
from typing import Any

import pytest
from small_projects import project, settings
from sqlalchemy import inspect, text

from prefloop.collection import accounts
from prefloop.collection.accounts import name_key
from prefloop.collection.label_database import open_database
from prefloop.collection.label_records import Account
from prefloop.collection.store import LabelStore, open_store
from prefloop.errors import DataError

HOUR = 3600.0


@pytest.fixture
def quick_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that cost next to nothing."""
    monkeypatch.setattr(accounts, "SCRYPT", {"n": 16, "r": 8, "p": 1})
    monkeypatch.setattr(accounts, "_NOBODYS_HASH", accounts._NOBODYS_HASH.replace("131072", "16"))


def everything_stored(location: str) -> str:
    """All rows of all tables as one text and, for SQLite, the bytes of the files too."""
    database = open_database(location, must_exist=True)
    with database.reading_one_state() as connection:
        tables = inspect(connection).get_table_names()
        found = repr([connection.execute(text(f"SELECT * FROM {table}")).all() for table in tables])
    database.close()
    if not database.is_postgresql:
        found += "".join(file.read_bytes().decode("latin-1") for file in Path(location).parent.glob("labels.sqlite*"))
    return found


def row_of(location: str, name: str) -> dict[str, Any]:
    database = open_database(location, must_exist=True)
    with database.reading() as connection:
        row = connection.execute(text("SELECT * FROM accounts WHERE name = :name"), {"name": name}).mappings().one()
    database.close()
    return dict(row)


def test_an_account_and_its_link(store_location: str) -> None:
    with open_store(store_location) as store:
        token = store.add_account("  Ada Lovelace ")
        assert len(token) >= 22, "128 bits in base 64"
        account = store.account_of_link(token)
        assert account is not None
        assert account == Account("Ada Lovelace", "annotator", True, account.created_at)
        assert store.accounts() == [account]
        assert [
            store.account_of_link(other) for other in ("", token[:-1], token + "A", token.lower(), "\x00\ud800")
        ] == [None] * 5


@pytest.mark.parametrize("again", ["ada", " ADA ", "\uff21\uff44\uff41", "Ada"])
def test_names_are_unique_whatever_the_case(store_location: str, again: str) -> None:
    with open_store(store_location) as store:
        store.add_account("Ada", role="admin")
        with pytest.raises(DataError, match=r"is an account called .* already"):
            store.add_account(again)
        assert [(account.name, account.role) for account in store.accounts()] == [("Ada", "admin")]


def test_what_makes_two_names_the_same() -> None:
    assert name_key(" Stra\u00dfe ") == name_key("STRASSE") == "strasse"
    assert name_key("e\u0301") == name_key("\u00c9")
    assert name_key("Ada") != name_key("Adam")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("", "0 characters"),
        (" \t\n", "0 characters"),
        ("x" * 101, "101 characters"),
        ("a\x00", "NUL"),
        ("\ud800", "half a"),
    ],
)
def test_names_that_cannot_be(store_location: str, name: str, said: str) -> None:
    with open_store(store_location) as store:
        with pytest.raises(DataError, match=said):
            store.add_account(name)
        assert store.accounts() == []


def test_a_role_that_does_not_exist(store_location: str) -> None:
    with open_store(store_location) as store, pytest.raises(DataError, match="role 'owner' does not exist"):
        store.add_account("Ada", role="owner")  # pyright: ignore[reportArgumentType]


def test_passwords_are_hashed_as_owasp_says(store_location: str) -> None:
    with open_store(store_location) as store:
        store.add_account("Ada", password="correct horse")
        store.add_account("Ben", password="correct horse")
        assert store.check_password("ADA ", "correct horse") == store.accounts()[0]
        assert store.check_password("Ada", "correct Horse") is None
    adas, bens = (row_of(store_location, name)["password_hash"] for name in ("Ada", "Ben"))
    assert adas != bens
    kind, n, r, p, salt, found = adas.split("$")
    assert (kind, n, r, p, len(salt)) == ("scrypt", str(2**17), "8", "1", 32)
    expected = hashlib.scrypt(
        b"correct horse", salt=bytes.fromhex(salt), n=2**17, r=8, p=1, maxmem=2**28, dklen=len(found) // 2
    )
    assert found == expected.hex()
    assert "correct horse" not in everything_stored(store_location)


@pytest.mark.usefixtures("quick_passwords")
def test_who_gets_in_by_password(store_location: str) -> None:
    with open_store(store_location) as store:
        store.add_account("Ada", password="caf\u00e9 au lait")
        store.add_account("Ben")
        assert store.check_password("ada", "cafe\u0301 au lait") is not None
        for name, password in (
            ("Ada", ""),
            ("Ada", "x" * 2000),
            ("Ben", ""),
            ("Eve", "caf\u00e9 au lait"),
            ("\x00", "\ud800"),
        ):
            assert store.check_password(name, password) is None
        store.set_password("Ada", "tea with milk")
        assert store.check_password("Ada", "caf\u00e9 au lait") is None
        assert store.check_password("Ada", "tea with milk") is not None
        store.deactivate("Ada")
        assert store.check_password("Ada", "tea with milk") is None


@pytest.mark.usefixtures("quick_passwords")
@pytest.mark.parametrize("password", ["short", "x" * 1001, "eight\x00long", "eight \ud800 long"])
def test_passwords_that_cannot_be(store_location: str, password: str) -> None:
    with open_store(store_location) as store:
        store.add_account("Ada")
        for act in (lambda: store.set_password("Ada", password), lambda: store.add_account("Ben", password=password)):
            with pytest.raises(DataError, match="password"):
                act()
        assert [account.name for account in store.accounts()] == ["Ada"]


@pytest.mark.usefixtures("quick_passwords")
def test_the_work_is_the_same_for_whoever_it_is(store_location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(store_location) as store:
        for name in ("Ada", "Gone"):
            store.add_account(name, password="long enough")
        store.add_account("Ben")
        store.deactivate("Gone")
        work: list[int] = []
        scrypt = hashlib.scrypt

        def counted(*arguments: Any, **parameters: Any) -> bytes:
            work.append(parameters["n"] * parameters["r"] * parameters["p"])
            return scrypt(*arguments, **parameters)

        monkeypatch.setattr(hashlib, "scrypt", counted)
        for name, password in (("Ada", "long enough"), ("Ada", "wrong"), ("Ben", "wrong"), ("Gone", "x"), ("Eve", "x")):
            store.check_password(name, password)
        assert work == [128] * 5


@pytest.mark.usefixtures("quick_passwords")
def test_the_store_is_free_while_a_password_is_checked(store_location: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_store(store_location) as store:
        store.add_account("Ada", password="long enough")
        written: list[str] = []

        def slow(*_: Any, **__: Any) -> bytes:
            writer = threading.Thread(target=lambda: written.append(store.add_account("Ben")))
            writer.start()
            writer.join(timeout=30.0)
            return bytes(32)

        monkeypatch.setattr(hashlib, "scrypt", slow)
        store.check_password("Ada", "long enough")
        assert len(written) == 1


def test_a_new_link_ends_the_old_one_and_the_sessions(store_location: str) -> None:
    with project(store_location, people=("Ben",)) as store:
        old = store.add_account("Ada")
        sessions = [store.start_session(name) for name in ("Ada", "Ada", "Ben")]
        new = store.new_link("ada")
        assert store.account_of_link(old) is None
        assert store.account_of_link(new) is not None
        assert [store.session(one.token) is not None for one in sessions] == [False, False, True]


@pytest.mark.usefixtures("quick_passwords")
def test_a_new_password_ends_the_sessions_and_leaves_the_link(store_location: str) -> None:
    with open_store(store_location) as store:
        link = store.add_account("Ada")
        session = store.start_session("Ada")
        store.set_password("Ada", "long enough")
        assert store.session(session.token) is None
        assert store.account_of_link(link) is not None


def test_deactivated_is_out_until_there_is_a_new_link(store_location: str) -> None:
    with project(store_location, people=()) as store:
        link = store.add_account("Ada")
        session = store.start_session("Ada")
        store.deactivate("Ada")
        assert store.account_of_link(link) is None
        assert store.session(session.token) is None
        assert [account.active for account in store.accounts()] == [False]
        with pytest.raises(DataError, match="'Ada' is not active"):
            store.start_session("Ada")
        assert store.account_of_link(store.new_link("Ada")) is not None
        assert len(store.next_tasks("Ada")) == 1


@pytest.mark.parametrize("act", [LabelStore.new_link, LabelStore.deactivate, LabelStore.start_session])
def test_an_unknown_name_is_named(store_location: str, act: Any) -> None:
    with open_store(store_location) as store, pytest.raises(DataError, match="no account called 'Eve'"):
        act(store, "Eve")


def test_a_session_outlives_the_server(store_location: str) -> None:
    with project(store_location) as store:
        session = store.start_session("ada", now=100.0)
        assert session.account == store.accounts()[0]
        assert session.csrf_token not in ("", session.token)
    with open_store(store_location) as store:
        assert store.session(session.token, now=101.0) == session
        assert store.session(session.csrf_token, now=101.0) is None
        other = store.start_session("Ada", now=101.0)
        assert len({session.token, other.token, session.csrf_token, other.csrf_token}) == 4
        store.end_session(session.token)
        store.end_session("never was")
        assert store.session(session.token, now=102.0) is None
        assert store.session(other.token, now=102.0) == other


def test_a_session_ends_12_hours_after_its_last_use_and_7_days_after_its_start(store_location: str) -> None:
    with project(store_location) as store:
        idle, busy = (store.start_session("Ada", now=0.0) for _ in range(2))
        assert idle.expires_at == 12 * HOUR
        assert store.session(idle.token, now=12 * HOUR - 1) is not None
        late = store.session(idle.token, now=24 * HOUR - 2)
        assert late is not None
        assert late.expires_at == 36 * HOUR - 2
        assert store.session(idle.token, now=36 * HOUR) is None
        for hour in range(10, 168, 10):
            assert store.session(busy.token, now=hour * HOUR) is not None
        last = store.session(busy.token, now=168 * HOUR - 1)
        assert last is not None
        assert last.expires_at == 168 * HOUR
        assert store.session(busy.token, now=168 * HOUR) is None


def test_sessions_that_are_over_are_swept_away(store_location: str) -> None:
    with project(store_location) as store:
        store.start_session("Ada", now=0.0)
        store.start_session("Ada", now=100 * HOUR)
    database = open_database(store_location, must_exist=True)
    with database.reading() as connection:
        assert connection.execute(text("SELECT created_at FROM sessions")).scalars().all() == [100 * HOUR]
    database.close()


def test_no_token_stands_in_the_store(store_location: str) -> None:
    with open_store(store_location, settings=settings()) as store:
        link = store.add_account("Ada")
        session = store.start_session("Ada")
        found = everything_stored(store_location)
        assert "Ada" in found
        for secret in (link, session.token, session.csrf_token, store.new_link("Ada")):
            assert secret not in found
            assert secret not in everything_stored(store_location)
