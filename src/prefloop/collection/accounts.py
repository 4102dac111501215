"""Who may sign in, and how: by a personal link, or by name and password; and the browsers that are signed in.

Of links and sessions the store keeps SHA-256 hashes only (they are 256 random bits, so nothing slower is needed), of
passwords scrypt hashes (Percival 2009, "Stronger key derivation via sequential memory-hard functions") with OWASP's
parameters. Reading the store lets nobody in.
"""

import hashlib
import hmac
import secrets
import threading
import time
import unicodedata
from typing import Any

from sqlalchemy import Connection, Row, bindparam, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from prefloop.collection import label_schema as schema
from prefloop.collection.label_database import Database
from prefloop.collection.label_records import Account, AccountRole, Session
from prefloop.collection.stored_rows import check_name, check_text
from prefloop.errors import DataError

SCRYPT = {"n": 2**17, "r": 8, "p": 1}
SCRYPT_MEMORY_BYTES = 2 * 128 * SCRYPT["n"] * SCRYPT["r"]
MIN_PASSWORD_LENGTH = 8
MAX_PASSWORD_LENGTH = 1000

SESSION_IDLE_SECONDS = 12 * 3600.0
SESSION_SECONDS = 7 * 24 * 3600.0
SESSION_NOTED_EVERY_SECONDS = 300.0
"""A session's last use is noted no more often than this: a write for every request would slow the labels down."""

# Each hash fills 128 MiB: many people who sign in at once must not fill the machine.
_hashing = threading.BoundedSemaphore(2)

_ACCOUNT = select(schema.accounts)
_ACCOUNT_OF_NAME = _ACCOUNT.where(schema.accounts.c.name_key == bindparam("key"))
_ACCOUNT_OF_LINK = _ACCOUNT.where(schema.accounts.c.link_hash == bindparam("hash"), schema.accounts.c.active)
_SESSION = (
    select(schema.sessions, schema.accounts)
    .join(schema.accounts, schema.accounts.c.id == schema.sessions.c.account_ref)
    .where(schema.sessions.c.token_hash == bindparam("hash"), schema.accounts.c.active)
    .with_only_columns(
        schema.sessions.c.created_at.label("began_at"),
        schema.sessions.c.last_seen_at,
        schema.accounts.c.name,
        schema.accounts.c.role,
        schema.accounts.c.active,
        schema.accounts.c.created_at,
    )
)


_Row = Row[*tuple[Any, ...]]


def name_key(name: str) -> str:
    """What makes two names the same: look-alike forms, case and spaces around do not count."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold()).strip()


class Accounts:
    """The people of one project. Every method is a transaction of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add_account(self, name: str, *, role: AccountRole = "annotator", password: str | None = None) -> str:
        """Makes an account and returns the token of its personal link, which is shown this once.

        Raises DataError for a name that is taken or not usable, or a password that is too short.
        """
        trimmed = check_name(name)
        if role not in ("admin", "annotator"):
            raise DataError(f"The role {role!r} does not exist. An account is an admin or an annotator.")
        token = secrets.token_urlsafe(32)
        row = new_account_columns(trimmed, role=role, active=True) | {
            "password_hash": None if password is None else _password_hash(password),
            "link_hash": _token_hash(token),
        }
        try:
            with self._database.writing() as connection:
                connection.execute(insert(schema.accounts), row)
        except IntegrityError as problem:
            raise DataError(
                f"There is an account called {trimmed!r} already (capital and small letters are alike). "
                "Choose another name, or make a new link for that one (--new-link)."
            ) from problem
        return token

    def new_link(self, name: str) -> str:
        """A new personal link; the earlier one and all sessions end. An account that was not active is active again.

        Raises DataError when there is no such account.
        """
        token = secrets.token_urlsafe(32)
        self._change(name, link_hash=_token_hash(token), active=True)
        return token

    def set_password(self, name: str, password: str) -> None:
        """Replaces the password and ends all sessions. Raises DataError for an unknown name or a short password."""
        self._change(name, password_hash=_password_hash(password))

    def deactivate(self, name: str) -> None:
        """Lets the person in no more, by link, password or session; what they said stays."""
        self._change(name, active=False, link_hash=None)

    def accounts(self) -> list[Account]:
        """All accounts, in the order they were made."""
        with self._database.reading() as connection:
            return [_account(row) for row in connection.execute(_ACCOUNT.order_by(schema.accounts.c.id))]

    def check_password(self, name: str, password: str) -> Account | None:
        """The account, if it is active and this is its password. Takes as long whether or not it exists."""
        with self._database.reading() as connection:
            row = connection.execute(_ACCOUNT_OF_NAME, {"key": name_key(_lookable(name))}).one_or_none()
        stored = row.password_hash if row is not None and row.password_hash is not None else _NOBODYS_HASH
        right = _is_password(_lookable(password[:MAX_PASSWORD_LENGTH]), stored)
        right = right and stored != _NOBODYS_HASH and len(password) <= MAX_PASSWORD_LENGTH
        return _account(row) if row is not None and right and row.active else None

    def account_of_link(self, token: str) -> Account | None:
        """The account whose personal link this is, unless it is no longer active."""
        with self._database.reading() as connection:
            row = connection.execute(_ACCOUNT_OF_LINK, {"hash": _token_hash(token)}).one_or_none()
        return None if row is None else _account(row)

    def start_session(self, name: str, *, now: float | None = None) -> Session:
        """Signs a browser in. Raises DataError when there is no active account of this name."""
        now = time.time() if now is None else now
        token = secrets.token_urlsafe(32)
        sessions = schema.sessions.c
        with self._database.writing() as connection:
            row = account_row(connection, name)
            if not row.active:
                raise DataError(f"The account {row.name!r} is not active. An admin can make a new link for it.")
            connection.execute(
                delete(schema.sessions).where(
                    (sessions.last_seen_at < now - SESSION_IDLE_SECONDS) | (sessions.created_at < now - SESSION_SECONDS)
                )
            )
            new = {"token_hash": _token_hash(token), "account_ref": row.id, "created_at": now, "last_seen_at": now}
            connection.execute(insert(schema.sessions), new)
        return _session(token, row, began_at=now, last_seen_at=now)

    def session(self, token: str, *, now: float | None = None) -> Session | None:
        """The session of this token, unless it ended: by hand, 12 hours after its last use, 7 days after its start."""
        now = time.time() if now is None else now
        key = {"hash": _token_hash(token)}
        with self._database.reading() as connection:
            row = connection.execute(_SESSION, key).one_or_none()
        if row is None or now >= min(row.last_seen_at + SESSION_IDLE_SECONDS, row.began_at + SESSION_SECONDS):
            return None
        last_seen_at = row.last_seen_at
        if now - last_seen_at >= SESSION_NOTED_EVERY_SECONDS:
            last_seen_at = now
            noted = update(schema.sessions).where(schema.sessions.c.token_hash == key["hash"]).values(last_seen_at=now)
            with self._database.writing() as connection:
                connection.execute(noted)
        return _session(token, row, began_at=row.began_at, last_seen_at=last_seen_at)

    def end_session(self, token: str) -> None:
        """Signs the browser out; nothing happens when it was not signed in."""
        with self._database.writing() as connection:
            connection.execute(delete(schema.sessions).where(schema.sessions.c.token_hash == _token_hash(token)))

    def _change(self, name: str, **columns: Any) -> None:
        with self._database.writing() as connection:
            row = account_row(connection, name)
            connection.execute(update(schema.accounts).where(schema.accounts.c.id == row.id).values(**columns))
            connection.execute(delete(schema.sessions).where(schema.sessions.c.account_ref == row.id))


def account_row(connection: Connection, name: str) -> _Row:
    """The account's row. Raises DataError when there is none of this name."""
    row = connection.execute(_ACCOUNT_OF_NAME, {"key": name_key(check_name(name))}).one_or_none()
    if row is None:
        raise DataError(f"There is no account called {name!r}. Add it to the project first.")
    return row


def new_account_columns(name: str, *, role: AccountRole, active: bool) -> dict[str, Any]:
    return {"name": name, "name_key": name_key(name), "role": role, "active": active, "created_at": time.time()}


def _account(row: _Row) -> Account:
    return Account(row.name, row.role, row.active, row.created_at)


def _session(token: str, row: _Row, *, began_at: float, last_seen_at: float) -> Session:
    # Who has the session's token can work this one out; who has only seen it in a page cannot go the other way.
    csrf_token = hmac.new(token.encode(), b"csrf", hashlib.sha256).hexdigest()
    expires_at = min(last_seen_at + SESSION_IDLE_SECONDS, began_at + SESSION_SECONDS)
    return Session(token, csrf_token, _account(row), expires_at)


def _token_hash(token: str) -> str:
    return hashlib.sha256(_lookable(token).encode()).hexdigest()


def _lookable(text: str) -> str:
    """What somebody typed, made fit for a look-up: what no text in the store can hold matches nothing."""
    return text.encode(errors="backslashreplace").decode().replace("\x00", "\\x00")


def _password_hash(password: str) -> str:
    """Salt and hash, with the parameters. Raises DataError for a password of the wrong length."""
    check_text(password, "The password")
    if not MIN_PASSWORD_LENGTH <= len(password) <= MAX_PASSWORD_LENGTH:
        raise DataError(
            f"The password has {len(password)} characters; {MIN_PASSWORD_LENGTH} to {MAX_PASSWORD_LENGTH} are allowed."
        )
    salt = secrets.token_bytes(16)
    parameters = "$".join(str(SCRYPT[name]) for name in ("n", "r", "p"))
    return f"scrypt${parameters}${salt.hex()}${_scrypt(password, salt, **SCRYPT).hex()}"


def _is_password(password: str, stored: str) -> bool:
    _, n, r, p, salt, expected = stored.split("$")
    found = _scrypt(password, bytes.fromhex(salt), n=int(n), r=int(r), p=int(p))
    return hmac.compare_digest(found, bytes.fromhex(expected))


def _scrypt(password: str, salt: bytes, *, n: int, r: int, p: int) -> bytes:
    # The same password typed on another keyboard may come composed otherwise.
    secret = unicodedata.normalize("NFKC", password).encode()
    with _hashing:
        return hashlib.scrypt(secret, salt=salt, n=n, r=r, p=p, maxmem=SCRYPT_MEMORY_BYTES, dklen=32)


_NOBODYS_HASH = "scrypt$131072$8$1$" + "00" * 16 + "$" + "00" * 32
"""Checked when an account has no password or does not exist, so that the answer takes as long."""
