"""Labelling in a terminal, for instance over ssh: the same store and the same keys as the page.

What models and people wrote is shown as plain text. A control character would command the terminal, so it is shown as
a sign of its own.
"""

import os
import select
import termios
import time
import tty
import unicodedata
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self, TextIO

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from prefloop import __version__
from prefloop.collection.label_records import OwnProgress, Submission, Task
from prefloop.collection.store import LabelStore
from prefloop.errors import LabelRefusedError
from prefloop.records import Choice, Message

CHOICES: dict[str, Choice] = {
    "1": "left",
    "left": "left",
    "2": "right",
    "right": "right",
    "3": "tie",
    "t": "tie",
    "0": "tie",
    "4": "both_bad",
    "b": "both_bad",
    "s": "skip",
}
STRENGTHS = {"!": 1, "@": 2, "#": 3, "$": 4}
"""What Shift with 1 to 4 types on a US keyboard; `+` goes through them on any."""
STRENGTH_NAMES = {None: "not said", 1: "hardly", 2: "slightly", 3: "better", 4: "clearly"}
CHOICE_NAMES: dict[Choice, str] = {
    "left": "A is better",
    "right": "B is better",
    "tie": "a tie",
    "both_bad": "both bad",
    "skip": "skipped",
}
HELP = """1 or ←        answer A is better
2 or →        answer B is better
3, t or 0     a tie
4 or b        both are bad
s             skip: you cannot say, and do not get the pair again
+             how much better: hardly, slightly, better, clearly (also Shift 1 to 4)
r             say why
u or ⌫        take back your last choice
?             this list
q             leave; everything is stored"""
KEY_LINE = "1 A   2 B   3 tie   4 both bad   s skip   u undo   + how much   r why   ? keys   q leave"
SIDE_BY_SIDE_COLUMNS = 90
ESCAPE_SECONDS = 0.05
"""The rest of an arrow key's sequence comes at once; an Escape by itself has no rest."""

ESCAPE_SEQUENCES = {"[D": "left", "OD": "left", "[C": "right", "OC": "right"}
JOINERS = "\u200c\u200d"
"""Invisible and harmless: Persian, Indic scripts and emoji are written with them."""


class Keys(Protocol):
    """Where keys come from. Both raise EOFError when there is nothing more to come."""

    def read_key(self) -> str:
        """One key: a character in small letters, or left, right, backspace."""
        ...

    def read_line(self) -> str:
        """A line of text, without its end."""
        ...


class TerminalKeys:
    """Single keys of a terminal, without Enter. A context manager: the terminal is as before afterwards."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.before: list[Any] = termios.tcgetattr(descriptor)

    def __enter__(self) -> Self:
        tty.setcbreak(self.descriptor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, problem: BaseException | None, trace: TracebackType | None
    ) -> None:
        termios.tcsetattr(self.descriptor, termios.TCSADRAIN, self.before)

    def read_key(self) -> str:
        first = self._byte()
        if first == b"\x04":
            raise EOFError
        if first in (b"\x7f", b"\x08"):
            return "backspace"
        if first == b"\x1b":
            rest = ""
            while len(rest) < 8 and select.select([self.descriptor], [], [], ESCAPE_SECONDS)[0]:
                rest += self._byte().decode("latin-1")
                if rest in ESCAPE_SEQUENCES or (len(rest) > 1 and rest[-1].isalpha()) or rest[-1] == "~":
                    break
            return ESCAPE_SEQUENCES.get(rest, "escape")
        # A character beyond ASCII says in its first byte how many follow.
        num_more = (first >= b"\xc0") + (first >= b"\xe0") + (first >= b"\xf0")
        return (first + b"".join(self._byte() for _ in range(num_more))).decode("utf-8", "replace").lower()

    def read_line(self) -> str:
        termios.tcsetattr(self.descriptor, termios.TCSADRAIN, self.before)
        try:
            line = os.read(self.descriptor, 4096)
        finally:
            tty.setcbreak(self.descriptor)
        return line.decode("utf-8", "replace").rstrip("\r\n")

    def _byte(self) -> bytes:
        found = os.read(self.descriptor, 1)
        if not found:
            raise EOFError
        return found


class LineKeys:
    """Keys from lines of text, where there is no terminal: the first character of a line, or the word left or right."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def read_key(self) -> str:
        word = self.read_line().strip().lower()
        return word if word in ("left", "right", "backspace") else word[:1]

    def read_line(self) -> str:
        line = self.stream.readline()
        if not line:
            raise EOFError
        return line.rstrip("\r\n")


def plain(text: str) -> str:
    """The text with every character that could command a terminal, or turn its direction, as a visible sign."""
    return "".join(character if _is_harmless(character) else _sign(character) for character in text)


def _is_harmless(character: str) -> bool:
    return (
        character in "\n\t"
        or character in JOINERS
        or unicodedata.category(character) not in ("Cc", "Cf", "Zl", "Zp", "Cs")
    )


def _sign(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"<U+{code:04X}>"


@dataclass
class _Sitting:
    """The task on the screen, and what was said about it so far."""

    task: Task
    opened_at: float
    strength: int | None = None
    rationale: str = ""
    note: str = ""


class LabelTerminal:
    """One person at one terminal. `clock` gives seconds since 1970."""

    def __init__(
        self,
        store: LabelStore,
        annotator: str,
        *,
        keys: Keys,
        console: Console | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.annotator = annotator
        self.keys = keys
        self.console = console or Console(highlight=False, emoji=False, markup=False)
        self.clock = clock
        self.name = store.settings.name
        self.guidelines = store.settings.guidelines.strip()
        self.num_here = 0

    def run(self) -> int:
        """Shows pair after pair until the person leaves, and returns how many labels this sitting added.

        Raises DataError for somebody who has no account or may not work any more.
        """
        sitting = self._next("")
        try:
            while True:
                key = self.keys.read_key() if sitting is not None else self._wait()
                if key == "q":
                    break
                sitting = self._act(sitting, key)
        except (EOFError, KeyboardInterrupt):
            self.console.print()  # Leaving, too: every answer was stored as it was given.
        return self.num_here

    def _act(self, sitting: _Sitting | None, key: str) -> _Sitting | None:
        """What a key does; returns what is on the screen then."""
        if key in ("u", "backspace"):
            return self._undo(sitting)
        if sitting is None:
            return self._next("")
        if key in CHOICES:
            return self._choose(sitting, CHOICES[key])
        if key == "+":
            sitting.strength = (sitting.strength or 0) % 4 + 1
        elif key in STRENGTHS:
            sitting.strength = STRENGTHS[key]
        elif key == "r":
            self._say("Why? (Enter ends it)")
            sitting.rationale = self.keys.read_line().replace("\0", "").strip()[:10_000]
        elif key == "?":
            self._show_help()
            return sitting
        else:
            return sitting
        self._show(sitting)
        return sitting

    def _choose(self, sitting: _Sitting, choice: Choice) -> _Sitting | None:
        submission = Submission(
            submission_id=uuid.uuid4().hex,
            task_id=sitting.task.task_id,
            choice=choice,
            strength=sitting.strength if choice in ("left", "right") else None,
            rationale=sitting.rationale,
            opened_at=sitting.opened_at,
            submitted_at=self.clock(),
            client_version=f"terminal {__version__}",
        )
        try:
            self.store.submit(self.annotator, submission)
        except LabelRefusedError as refusal:
            return self._next(str(refusal))
        self.num_here += 1
        return self._next(f"Stored: {CHOICE_NAMES[choice]}.")

    def _undo(self, sitting: _Sitting | None) -> _Sitting | None:
        try:
            undone = self.store.undo(self.annotator, uuid.uuid4().hex)
        except LabelRefusedError as refusal:
            self._say(plain(str(refusal)))
            return sitting
        self.num_here -= 1
        note = f"Taken back. You had said: {CHOICE_NAMES[undone.choice]}."
        again = _Sitting(undone.task, self.clock(), undone.strength, undone.rationale, note)
        self._show(again)
        return again

    def _next(self, note: str) -> _Sitting | None:
        tasks = self.store.next_tasks(self.annotator, num=1)
        if tasks:
            sitting = _Sitting(tasks[0], self.clock(), note=note)
            self._show(sitting)
            return sitting
        self._say(plain(note))
        if self.store.own_progress(self.annotator).num_left > 0:
            self._say("Nothing for you right now: others are answering the pairs that are left.")
        else:
            self._say("All done: there is no pair left for you. Thank you.")
        return None

    def _wait(self) -> str:
        self._say("Enter looks again, u takes back your last choice, q leaves.")
        return self.keys.read_key()

    def _show(self, sitting: _Sitting) -> None:
        task = sitting.task
        if self.console.is_terminal:
            self.console.clear()
        self.console.rule(Text(plain(self.name), style="bold"), align="left")
        self._say(_progress_line(self.store.own_progress(self.annotator)), style="dim")
        if self.guidelines:
            self.console.print(Panel(Text(plain(self.guidelines)), title="Guidelines", title_align="left", style="dim"))
        self.console.print(_prompt_panel(task))
        answers = [
            _answer_panel("A", task.displayed_left, ended=task.displayed_left_ended),
            _answer_panel("B", task.displayed_right, ended=task.displayed_right_ended),
        ]
        if self.console.width >= SIDE_BY_SIDE_COLUMNS:
            grid = Table.grid(expand=True, padding=(0, 1))
            grid.add_column(ratio=1)
            grid.add_column(ratio=1)
            grid.add_row(*answers)
            self.console.print(grid)
        else:
            self.console.print(Group(*answers))
        if sitting.strength is not None:
            self._say(f"How much better: {STRENGTH_NAMES[sitting.strength]}")
        if sitting.rationale:
            self._say(f"Why: {plain(sitting.rationale)}")
        if sitting.note:
            self._say(plain(sitting.note), style="bold")
        self._say(KEY_LINE, style="dim")

    def _show_help(self) -> None:
        self._say(HELP)

    def _say(self, text: str, style: str = "") -> None:
        if text:
            self.console.print(Text(text, style=style))


def _progress_line(progress: OwnProgress) -> str:
    left = progress.num_left
    about = f"{left}" if left == 0 or (progress.is_exact and left < 10) else f"about {-(-left // 5) * 5}"
    return f"{progress.num_done} done, {about} left"


def _prompt_panel(task: Task) -> Panel:
    messages = task.prompt if isinstance(task.prompt, tuple) else (Message("user", task.prompt),)
    body = Text()
    for number, message in enumerate(messages):
        if len(messages) > 1:
            body.append(f"{'' if number == 0 else chr(10)}{message.role}\n", style="dim")
        body.append(plain(message.content))
    return Panel(body, title="Prompt", title_align="left")


def _answer_panel(letter: str, text: str, *, ended: bool) -> Panel:
    body = Text(plain(text))
    if not ended:
        body.append("\n(cut at the length limit)", style="dim")
    return Panel(body, title=f"Answer {letter}", title_align="left")


def label_in_terminal(store: LabelStore, annotator: str, *, stdin: TextIO) -> int:
    """Lets somebody label at this terminal, or from lines of text where `stdin` is none; returns the labels added.

    Raises DataError for somebody who has no account in the project or may not work any more.
    """
    if not stdin.isatty():
        return LabelTerminal(store, annotator, keys=LineKeys(stdin)).run()
    with TerminalKeys(stdin.fileno()) as keys:
        return LabelTerminal(store, annotator, keys=keys).run()
