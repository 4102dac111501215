"""Serves a model to clients of the OpenAI API: on this machine only, unless told otherwise and given a key."""

import socket
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress

import uvicorn

from prefloop.errors import SettingsError
from prefloop.web.completion_app import completion_app
from prefloop.web.completion_engine import CompletionEngine
from prefloop.web.listening import (
    base_url,
    bound_socket,
    in_background,
    is_loopback,
    is_unspecified,
    own_names,
    quiet_server,
)

DEFAULT_PORT = 8766


def serve(
    engine: CompletionEngine,
    *,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    api_key: str | None = None,
    allowed_hosts: Collection[str] = (),
    say: Callable[[str], None] = print,
) -> None:
    """Serves until Ctrl-C, and then returns.

    An address that others can reach needs an `api_key`, and `0.0.0.0` needs to be told under which names they come.
    Port 0 takes a free one. Raises SettingsError when that is missing or the key cannot be sent in a header, and
    RunError when the port is taken.
    """
    check_address(host, api_key=api_key, allowed_hosts=allowed_hosts)
    with bound_socket(host, port) as bound:
        address = base_url(host, bound.getsockname()[1], allowed_hosts)
        server = _server(engine, bound, host=host, api_key=api_key, allowed_hosts=allowed_hosts)
        say(f"{engine.name} answers at {address}/v1 with the OpenAI API.")
        if api_key is not None and not is_loopback(host):
            say("The key and all texts travel in the clear: put a proxy with https in front for other networks.")
        say("Ctrl-C stops it.")
        # The server stops in order, and only then passes the signal on.
        with suppress(KeyboardInterrupt):
            server.run(sockets=[bound])
    say("Stopped.")


@contextmanager
def running_completion_server(engine: CompletionEngine, *, api_key: str | None = None) -> Iterator[str]:
    """Serves on a free port of this machine while the block runs, and gives the address with its /v1."""
    with bound_socket("127.0.0.1", 0) as bound:
        server = _server(engine, bound, host="127.0.0.1", api_key=api_key, allowed_hosts=())
        with in_background(server, bound):
            yield f"{base_url('127.0.0.1', bound.getsockname()[1], ())}/v1"


def check_address(host: str, *, api_key: str | None, allowed_hosts: Collection[str]) -> None:
    """Raises SettingsError as `serve`. Cheap, so that it can be asked before a model is loaded."""
    if api_key is not None and not (api_key and api_key.isascii() and api_key.isprintable() and " " not in api_key):
        raise SettingsError("The API key must be ASCII without spaces, and not empty: it travels in a header.")
    if is_loopback(host):
        return
    if api_key is None:
        raise SettingsError(
            f"{host} can be reached from other machines: give --api-key (or PREFLOOP_API_KEY), or serve on 127.0.0.1."
        )
    if is_unspecified(host) and not allowed_hosts:
        raise SettingsError(
            f"{host} is every address of this machine. Say under which name others come with --allowed-host, for "
            f"example {socket.gethostname()}."
        )


def _server(
    engine: CompletionEngine,
    bound: socket.socket,
    *,
    host: str,
    api_key: str | None,
    allowed_hosts: Collection[str],
) -> uvicorn.Server:
    names = {*allowed_hosts, *own_names(host, bound.getsockname()[1])}
    return quiet_server(completion_app(engine, allowed_hosts=names, api_key=api_key))
