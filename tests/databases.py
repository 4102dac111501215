"""A PostgreSQL server of the tests' own: Debian's binaries, a folder that goes away, a private socket, no port."""

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest

DEBIAN = Path("/usr/lib/postgresql")
SERVER_SETTINGS = {
    "listen_addresses": "",
    # A test's database need not survive the machine.
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "shared_buffers": "32MB",
    "max_connections": "40",
}


class PostgresqlServer:
    """A running server with its databases."""

    def __init__(self, folder: Path, *, start: Callable[[], None]) -> None:
        self.folder = folder
        self._start = start
        self._names = (f"project_{number}" for number in itertools.count())
        self._empty: list[str] = []

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://postgres@/{database}?host={self.folder}"

    @contextmanager
    def empty_database(self) -> Iterator[str]:
        """The address of a database without tables; afterwards it is emptied, whoever is still connected."""
        # Emptying a database takes a millisecond, making one a quarter of a second.
        name = self._empty.pop() if self._empty else self._new()
        try:
            yield self.url(name)
        finally:
            self._do(
                name,
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()",
                "DROP SCHEMA public CASCADE",
                "CREATE SCHEMA public",
            )
            self._empty.append(name)

    def _new(self) -> str:
        name = next(self._names)
        self._do("postgres", f"CREATE DATABASE {name}")
        return name

    def _do(self, database: str, *statements: str) -> None:
        with psycopg.connect(f"user=postgres dbname={database} host={self.folder}", autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement.encode())

    def kill_and_restart(self) -> None:
        """SIGKILL to the server and all its processes at once; on return it has recovered and answers again."""
        server = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        victims = [server, *_children(server)]
        for process in victims:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        # Whoever is still there holds the shared memory, and the new server would refuse to start.
        while any(Path(f"/proc/{process}").exists() and not _is_zombie(process) for process in victims):
            time.sleep(0.005)
        # Until its parent has noticed, the dead server counts as running: both files that name it have to go.
        (self.folder / "data" / "postmaster.pid").unlink()
        (self.folder / ".s.PGSQL.5432.lock").unlink()
        self._start()


def _children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def _is_zombie(process: int) -> bool:
    """Whether the process has ended and merely waits for its parent to notice."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return True


def postgresql_binaries() -> Path | None:
    """The folder of initdb and pg_ctl: from the path, or the newest of Debian's."""
    found = shutil.which("pg_ctl")
    if found is not None:
        return Path(found).resolve().parent
    folders = sorted(DEBIAN.glob("*/bin"), key=lambda folder: int(folder.parent.name))
    return folders[-1] if folders else None


@contextmanager
def running_postgresql(binaries: Path, **settings: str) -> Iterator[PostgresqlServer]:
    """A new server with these settings besides the tests' own, stopped and removed at the end."""
    # A socket's path has at most 107 bytes, so the folder stands where temporary folders usually do.
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    user: dict[str, object] = {}
    if os.geteuid() == 0:
        # The server refuses to be root.
        somebody = _unprivileged_user()
        os.chown(folder, somebody.pw_uid, somebody.pw_gid)
        user = {"user": somebody.pw_uid, "group": somebody.pw_gid, "extra_groups": []}
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "LC_ALL": "C.UTF-8"}

    def call(program: str, *arguments: str) -> None:
        done = subprocess.run(  # its output goes to files: the server keeps a pipe open, which would never end
            [binaries / program, "-D", folder / "data", *arguments],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
            **user,  # pyright: ignore[reportArgumentType, reportCallIssue]
        )
        log = folder / "log"
        assert done.returncode == 0, (program, arguments, log.read_text() if log.exists() else "no log")

    options = {**SERVER_SETTINGS, "unix_socket_directories": str(folder), **settings}
    given = " ".join(f"-c {name}={value}" for name, value in options.items())

    def start() -> None:
        call("pg_ctl", "-w", "-t", "30", "-l", str(folder / "log"), "-o", given, "start")

    try:
        call("initdb", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync", "--locale=C.UTF-8")
        start()
        try:
            yield PostgresqlServer(folder, start=start)
        finally:
            call("pg_ctl", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[PostgresqlServer]:
    binaries = postgresql_binaries()
    if binaries is None:
        pytest.skip(f"PostgreSQL's pg_ctl is neither on the path nor in {DEBIAN}: apt-get install postgresql")
    with running_postgresql(binaries) as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def store_location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where a test may make its label project: one run of the test on SQLite, one on PostgreSQL."""
    if request.param == "sqlite":
        yield str(tmp_path / "labels.sqlite")
    else:
        server: PostgresqlServer = request.getfixturevalue("postgresql_server")
        with server.empty_database() as url:
            yield url


def _unprivileged_user() -> pwd.struct_passwd:
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")
