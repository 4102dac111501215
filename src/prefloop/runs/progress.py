"""What a person sees while a run runs: one live line per stage on a terminal, plain lines every few seconds elsewhere.

    sft  120/400  30 %  0:42 left  1,234 tokens/s  512 MB  train/loss 2.31

Everything goes to standard error, so that a command's results on standard output stay clean.
"""

import math
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

PLAIN_INTERVAL_SECONDS = 5.0


def resident_memory_mb() -> float:
    """Memory (MB of 2**20 bytes) that this process holds now; where the system does not say, the most it ever held."""
    try:
        num_pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except FileNotFoundError:
        return peak_memory_mb()
    return num_pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def peak_memory_mb() -> float:
    """The most memory (MB of 2**20 bytes) that this process ever held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


@dataclass
class _Stage:
    """A stage under way. The time left is reckoned from the steps done since `start_step`."""

    name: str
    total: int
    headline: tuple[str, ...]
    start_step: int
    start_seconds: float
    task: TaskID | None
    step: int
    printed_step: int | None = None
    printed_seconds: float = -math.inf
    shown: dict[str, float] = field(default_factory=dict)


class Progress:
    """Shows stages and notes. `quiet` shows warnings only; `console` and `clock` replace the real ones in tests."""

    def __init__(
        self,
        *,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._quiet = quiet
        self._clock = clock
        self._stages: list[_Stage] = []
        self._live: RichProgress | None = None
        self._is_live = not quiet and self._console.is_terminal and not os.environ.get("CI")

    @contextmanager
    def stage(self, name: str, total: int, *, headline: Sequence[str] = (), start_step: int = 0) -> Iterator[None]:
        """Shows a stage of `total` steps until the block ends; `update` speaks of the innermost one.

        `headline` names the metrics to show, `start_step` the steps that an earlier run did.
        """
        stage = _Stage(name, total, tuple(headline), start_step, self._clock(), None, start_step)
        if self._is_live:
            if self._live is None:
                self._live = self._started_live()
            stage.task = self._live.add_task(name, total=total, completed=start_step, figures="")
        self._stages.append(stage)
        try:
            yield
        finally:
            self._stages.remove(stage)
            self._close(stage)

    def _started_live(self) -> RichProgress:
        live = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            # On a narrow terminal the figures are cut, and neither the stage's name nor its steps.
            TextColumn("{task.fields[figures]}", markup=False, table_column=Column(ratio=1, no_wrap=True)),
            console=self._console,
            expand=True,
        )
        live.start()
        return live

    def _close(self, stage: _Stage) -> None:
        if self._live is not None and not self._stages:
            self._live.stop()
            self._live = None
        elif not self._is_live and not self._quiet and stage.printed_step != stage.step:
            self._print_plain(stage)

    def update(self, step: int, metrics: Mapping[str, Any]) -> None:
        """`step` steps are done; a headline metric that is missing here keeps its last value on show."""
        stage = self._stages[-1]
        stage.step = step
        for name in (*stage.headline, "tokens_per_second"):
            if isinstance(metrics.get(name), int | float):
                stage.shown[name] = metrics[name]
        if self._live is not None and stage.task is not None:
            self._live.update(stage.task, completed=step, figures=self._figures(stage))
        elif not self._quiet and self._clock() - stage.printed_seconds >= PLAIN_INTERVAL_SECONDS:
            self._print_plain(stage)

    def _print_plain(self, stage: _Stage) -> None:
        stage.printed_step, stage.printed_seconds = stage.step, self._clock()
        percent = f"{stage.step / stage.total:.0%}".replace("%", " %") if stage.total else "100 %"
        self._print(f"{stage.name}  {stage.step}/{stage.total}  {percent}  {self._figures(stage)}")

    def _figures(self, stage: _Stage) -> str:
        parts = [f"{_clock_text(self._seconds_left(stage))} left"]
        if "tokens_per_second" in stage.shown:
            parts.append(f"{stage.shown['tokens_per_second']:,.0f} tokens/s")
        parts.append(f"{resident_memory_mb():,.0f} MB")
        parts += [f"{name} {stage.shown[name]:.4g}" for name in stage.headline if name in stage.shown]
        return "  ".join(parts)

    def _seconds_left(self, stage: _Stage) -> float | None:
        num_done = stage.step - stage.start_step
        if num_done <= 0:
            return None
        return (self._clock() - stage.start_seconds) / num_done * (stage.total - stage.step)

    def note(self, text: str) -> None:
        """Says something worth knowing; `quiet` leaves it out."""
        if not self._quiet:
            self._print(text)

    def warn(self, text: str) -> None:
        """Says something that needs attention, even when quiet."""
        self._print(f"warning: {text}", style="yellow")

    def _print(self, text: str, style: str | None = None) -> None:
        # Names of metrics and texts from data may hold square brackets, and a line of a log is not to be folded.
        self._console.print(text, style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)


def _clock_text(seconds: float | None) -> str:
    if seconds is None:
        return "-:--"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
