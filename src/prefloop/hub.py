"""The model Hub: can it be asked at all? Only whoever names a model or a data set of the Hub comes here."""

import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies


@contextmanager
def no_vain_waiting() -> Iterator[None]:
    """Where the Hub's name cannot be resolved, the block finds what is in the Hub's cache and asks nobody.

    The libraries would ask six times over, for half a minute for each file, before they look there. With a proxy, which
    resolves names itself, and in the libraries' own offline mode nothing changes.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE or {"http", "https", "all"} & getproxies().keys() or _resolves(constants.ENDPOINT):
        yield
        return
    # Both read the flag whenever they are about to ask.
    switches: list[Any] = [constants]
    if "datasets.config" in sys.modules:
        switches.append(sys.modules["datasets.config"])
    before = [switch.HF_HUB_OFFLINE for switch in switches]
    for switch in switches:
        switch.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for switch, value in zip(switches, before, strict=True):
            switch.HF_HUB_OFFLINE = value


def _resolves(address: str) -> bool:
    try:
        socket.getaddrinfo(urlsplit(address).hostname, None)
    except OSError:
        return False
    return True
