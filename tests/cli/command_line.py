"""Command lines run in this process: what they print and their exit code."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from prefloop.cli.main import entry


@dataclass(frozen=True)
class Outcome:
    """What a command left on the screen."""

    code: int
    out: str
    err: str


class Prefloop(Protocol):
    """Runs a command line; `typed` is what the person types."""

    def __call__(self, *arguments: str | Path, typed: str = "") -> Outcome: ...


@dataclass(frozen=True)
class Whole:
    """The toy loop, run by `prefloop run`: its folder, its recipe, and what was printed."""

    folder: Path
    recipe: Path
    code: int
    out: str
    err: str


def called(*arguments: str) -> int:
    """The exit code of a command line."""
    before = sys.argv
    sys.argv = ["prefloop", *arguments]
    try:
        entry()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0
    finally:
        sys.argv = before
    raise AssertionError("entry always exits")
