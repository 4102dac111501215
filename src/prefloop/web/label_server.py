"""Serves a label project to browsers and programs: on this machine only, unless told otherwise.

`serve` is what a person runs and stops with Ctrl-C; `running_server` serves in the background of a program.
"""

import socket
import threading
import time
import webbrowser
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import uvicorn

from prefloop.collection.store import LabelStore
from prefloop.errors import SettingsError
from prefloop.web.label_app import label_app
from prefloop.web.label_security import origin_of
from prefloop.web.listening import (
    START_SECONDS,
    base_url,
    bound_socket,
    in_background,
    is_loopback,
    is_unspecified,
    own_names,
    quiet_server,
)

DEFAULT_PORT = 8765


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
    with bound_socket(host, port) as bound:
        address = public_url.rstrip("/") if public_url else base_url(host, bound.getsockname()[1], allowed_hosts)
        server = _server(store, bound, host=host, allowed_hosts=allowed_hosts, public_url=public_url)
        for line in _greeting(address, links, host=host):
            say(line)
        if open_browser:
            page = f"{address}/join/{next(iter(links.values()))}" if links else address
            threading.Thread(target=_open_when_started, args=(server, page, say), daemon=True).start()
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
    with bound_socket(host, port) as bound:
        server = _server(store, bound, host=host, allowed_hosts=(), public_url=public_url, csp=csp)
        with in_background(server, bound):
            yield base_url(host, bound.getsockname()[1], ())


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
    names = {*allowed_hosts, *own_names(host, port)}
    if public_url is not None:
        names.add(urlsplit(origin_of(public_url)).netloc)
    app = label_app(store, allowed_hosts=names, public_url=public_url, csp=csp)
    return quiet_server(app)


def _check_address(store: LabelStore, host: str, allowed_hosts: Collection[str], public_url: str | None) -> None:
    if is_loopback(host):
        return
    if not any(account.active for account in store.accounts()):
        raise SettingsError(
            f"{host} can be reached from other machines, and the project has no accounts. "
            "Add the people first, or serve on 127.0.0.1."
        )
    if is_unspecified(host) and not allowed_hosts and public_url is None:
        raise SettingsError(
            f"{host} is every address of this machine. Say under which name people come, as allowed host or public "
            f"URL: for example {socket.gethostname()}."
        )


def _greeting(address: str, links: Mapping[str, str], *, host: str) -> Iterator[str]:
    yield f"The label page is at {address}"
    for name, token in links.items():
        # A name is somebody's text: control characters must not reach the terminal.
        shown = "".join(character if character.isprintable() else "\ufffd" for character in name)
        yield f"  {shown} signs in at {address}/join/{token}"
    if not is_loopback(host) and address.startswith("http:"):
        yield "Names, passwords and links travel in the clear: put a proxy with https in front for other networks."
    yield "Ctrl-C stops it."


def _open_when_started(server: uvicorn.Server, address: str, say: Callable[[str], None]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    if server.started and not webbrowser.open(address):
        say("No browser could be opened here: open the address in one.")
