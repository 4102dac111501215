"""Addresses to serve on: who can reach them, under which names they answer, and a socket that is bound before use."""

import ipaddress
import socket
import threading
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from prefloop.errors import RunError

START_SECONDS = 10.0
STOP_SECONDS = 5
"""How long open requests may go on after the server was told to stop."""


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_unspecified(host: str) -> bool:
    """Whether it stands for every address of this machine, as 0.0.0.0 does."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def own_names(host: str, port: int) -> set[str]:
    """What the Host header may say: the address with its port, and on loopback each of its names."""
    if is_loopback(host):
        return {f"{name}:{port}" for name in ("127.0.0.1", "localhost", "[::1]", _in_url(host))}
    return set() if is_unspecified(host) else {f"{_in_url(host)}:{port}"}


def base_url(host: str, port: int, allowed_hosts: Collection[str]) -> str:
    """The address that people are told; for every address of the machine, the first name under which they come."""
    if not is_unspecified(host):
        return f"http://{_in_url(host)}:{port}"
    name = next(iter(allowed_hosts))
    has_port = name.rpartition(":")[2].isdigit()
    return f"http://{name}" if has_port else f"http://{name}:{port}"


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextmanager
def bound_socket(host: str, port: int) -> Iterator[socket.socket]:
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


def quiet_server(app: ASGIApp) -> uvicorn.Server:
    """A server that writes no access log, since paths and headers may hold secrets, and trusts no proxy's headers.

    h11 refuses headers of more than 64 KiB; httptools, which would be taken where it is installed, reads without end.
    """
    return uvicorn.Server(
        uvicorn.Config(
            app,
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            lifespan="off",
            ws="none",
            http="h11",
            proxy_headers=False,
            timeout_graceful_shutdown=STOP_SECONDS,
        )
    )


@contextmanager
def in_background(server: uvicorn.Server, bound: socket.socket) -> Iterator[None]:
    """The server answers from a thread while the block runs. Raises RunError when it does not start."""
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    deadline = time.monotonic() + START_SECONDS
    try:
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise RunError(f"The server did not start within {START_SECONDS:.0f} s.")
            time.sleep(0.005)
        yield
    finally:
        server.should_exit = True
        thread.join(STOP_SECONDS + 5)
