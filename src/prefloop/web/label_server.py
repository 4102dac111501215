"""Serves a label project to browsers and programs: on this machine only, unless told otherwise.

`serve` is what a person runs and stops with Ctrl-C; `running_server` serves in the background of a program.
"""

import ipaddress
import socket
import threading
import time
import webbrowser
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import uvicorn

from prefloop.collection.store import LabelStore
from prefloop.errors import RunError, SettingsError
from prefloop.web.label_app import label_app
from prefloop.web.label_security import origin_of

DEFAULT_PORT = 8765
START_SECONDS = 10.0
STOP_SECONDS = 5


def first_link(store: LabelStore, name: str) -> dict[str, str]:
    """The person's name with a fresh link token: a new admin where nobody has an account yet, else a known person.

    An earlier link and the sessions of a known person end. Raises DataError for a name that is unknown or not usable.
    """
    if not store.accounts():
        return {name.strip(): store.add_account(name, role="admin")}
    return {name: store.new_link(name)}


def serve(
    store: LabelStore,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    links: Mapping[str, str] | None = None,
    allowed_hosts: Collection[str] = (),
    public_url: str | None = None,
    open_browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serves until Ctrl-C, and then returns; every label that was acknowledged is stored.

    `links` are names with the tokens of their personal links, which are printed; the browser opens the first of them.
    An address that others can reach needs accounts, and `0.0.0.0` needs to be told under which names people come: in
    `allowed_hosts`, or by the `public_url` of a proxy. Port 0 takes a free one. Raises SettingsError when that is
    missing, and RunError when the port is taken.
    """
    _check_address(store, host, allowed_hosts, public_url)
    links = links or {}
    with _bound_socket(host, port) as bound:
        base_url = public_url.rstrip("/") if public_url else _base_url(host, bound.getsockname()[1], allowed_hosts)
        server = _server(store, bound, host=host, allowed_hosts=allowed_hosts, public_url=public_url)
        for line in _greeting(base_url, links, host=host):
            say(line)
        if open_browser:
            address = f"{base_url}/join/{next(iter(links.values()))}" if links else base_url
            threading.Thread(target=_open_when_started, args=(server, address, say), daemon=True).start()
        # The server stops in order, and only then passes the signal on.
        with suppress(KeyboardInterrupt):
            server.run(sockets=[bound])
    progress = store.progress()
    say(f"Stopped. {progress.num_labels:,} of {progress.num_labels_wanted:,} labels are stored.")


@contextmanager
def running_server(
    store: LabelStore, *, host: str = "127.0.0.1", port: int = 0, public_url: str | None = None, csp: bool = True
) -> Iterator[str]:
    """Serves in a thread while the block runs, and gives the address, as `http://127.0.0.1:40123`.

    Raises RunError when the port is taken or the server does not start, and SettingsError as `serve` does.
    """
    _check_address(store, host, (), public_url)
    with _bound_socket(host, port) as bound:
        server = _server(store, bound, host=host, allowed_hosts=(), public_url=public_url, csp=csp)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
        thread.start()
        try:
            _wait_until_started(server, thread)
            yield _base_url(host, bound.getsockname()[1], ())
        finally:
            server.should_exit = True
            thread.join(STOP_SECONDS + 5)


def _server(
    store: LabelStore,
    bound: socket.socket,
    *,
    host: str,
    allowed_hosts: Collection[str],
    public_url: str | None,
    csp: bool = True,
) -> uvicorn.Server:
    port = bound.getsockname()[1]
    names = {*allowed_hosts, *_own_names(host, port)}
    if public_url is not None:
        names.add(urlsplit(origin_of(public_url)).netloc)
    app = label_app(store, allowed_hosts=names, public_url=public_url, csp=csp)
    # Paths of personal links must not be written down, so there is no access log.
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        log_level="warning",
        server_header=False,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    return uvicorn.Server(config)


def _check_address(store: LabelStore, host: str, allowed_hosts: Collection[str], public_url: str | None) -> None:
    if is_loopback(host):
        return
    if not any(account.active for account in store.accounts()):
        raise SettingsError(
            f"{host} can be reached from other machines, and the project has no accounts. "
            "Add the people first, or serve on 127.0.0.1."
        )
    if _is_unspecified(host) and not allowed_hosts and public_url is None:
        raise SettingsError(
            f"{host} is every address of this machine. Say under which name people come, as allowed host or public "
            f"URL: for example {socket.gethostname()}."
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def _own_names(host: str, port: int) -> set[str]:
    """What the Host header may say: the address with its port, and on loopback each of its names."""
    if is_loopback(host):
        return {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]", _in_url(host))}
    return set() if _is_unspecified(host) else {f"{_in_url(host)}:{port}"}


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _base_url(host: str, port: int, allowed_hosts: Collection[str]) -> str:
    if not _is_unspecified(host):
        return f"http://{_in_url(host)}:{port}"
    name = next(iter(allowed_hosts))
    has_port = name.rpartition(":")[2].isdigit()
    return f"http://{name}" if has_port else f"http://{name}:{port}"


@contextmanager
def _bound_socket(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that is bound but does not listen yet. Raises RunError when the address cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
    except OSError as problem:
        raise RunError(f"There is no address {host!r} to serve on: {problem}.") from problem
    with bound:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError as problem:
            raise RunError(
                f"Port {port} of {host} cannot be used ({problem.strerror or problem}). "
                "Stop what listens there, or choose another port; 0 takes a free one."
            ) from problem
        yield bound


def _greeting(base_url: str, links: Mapping[str, str], *, host: str) -> Iterator[str]:
    yield f"The label page is at {base_url}"
    for name, token in links.items():
        # A name is somebody's text: control characters must not reach the terminal.
        shown = "".join(character if character.isprintable() else "\ufffd" for character in name)
        yield f"  {shown} signs in at {base_url}/join/{token}"
    if not is_loopback(host) and base_url.startswith("http:"):
        yield "Names, passwords and links travel in the clear: put a proxy with https in front for other networks."
    yield "Ctrl-C stops it."


def _open_when_started(server: uvicorn.Server, address: str, say: Callable[[str], None]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    if server.started and not webbrowser.open(address):
        say("No browser could be opened here: open the address in one.")


def _wait_until_started(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise RunError(f"The label server did not start within {START_SECONDS:.0f} s.")
        time.sleep(0.005)
