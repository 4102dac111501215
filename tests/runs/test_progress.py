"""What a person sees: plain lines at intervals, one live line on a terminal, warnings always."""

from io import StringIO

import pytest
from rich.console import Console

from prefloop.runs import progress as progress_module
from prefloop.runs.progress import Progress, peak_memory_mb, resident_memory_mb


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture(autouse=True)
def _no_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(progress_module, "resident_memory_mb", lambda: 512.4)


def test_plain_lines_come_every_five_seconds_and_at_the_end() -> None:
    output, clock = StringIO(), Clock()
    progress = Progress(console=Console(file=output, width=20), clock=clock)
    with progress.stage("sft", 400, headline=("train/loss", "missing")):
        for step in range(1, 121):
            clock.seconds = step * 0.1
            progress.update(step, {"train/loss": step / 7, "tokens_per_second": 1234.4, "other": 1.0})
    assert output.getvalue().splitlines() == [
        "sft  1/400  0 %  0:40 left  1,234 tokens/s  512 MB  train/loss 0.1429",
        "sft  51/400  13 %  0:35 left  1,234 tokens/s  512 MB  train/loss 7.286",
        "sft  101/400  25 %  0:30 left  1,234 tokens/s  512 MB  train/loss 14.43",
        "sft  120/400  30 %  0:28 left  1,234 tokens/s  512 MB  train/loss 17.14",
    ]


def test_a_resumed_stage_reckons_with_its_own_steps_only() -> None:
    output, clock = StringIO(), Clock()
    progress = Progress(console=Console(file=output), clock=clock)
    with progress.stage("ppo", 10_000, start_step=100):
        progress.update(100, {})
        clock.seconds = 10.0
        progress.update(101, {"tokens_per_second": None})
    assert [line.split("  ")[3] for line in output.getvalue().splitlines()] == ["-:-- left", "27:29:50 left"]


def test_a_metric_that_is_missing_keeps_its_last_value() -> None:
    output, clock = StringIO(), Clock()
    progress = Progress(console=Console(file=output), clock=clock)
    with progress.stage("sft", 2, headline=("evaluate/loss",)):
        progress.update(0, {"evaluate/loss": 0.5})
        clock.seconds = 6.0
        progress.update(1, {"evaluate/loss": None})
    assert output.getvalue().count("evaluate/loss 0.5") == 2


def test_stages_nest_and_update_speaks_of_the_innermost() -> None:
    output = StringIO()
    progress = Progress(console=Console(file=output), clock=Clock())
    with progress.stage("loop", 2):
        with progress.stage("sft", 3):
            progress.update(3, {})
        progress.update(1, {})
    assert [line.split("  ")[:2] for line in output.getvalue().splitlines()] == [["sft", "3/3"], ["loop", "1/2"]]


def test_quiet_says_nothing_but_warnings() -> None:
    output = StringIO()
    progress = Progress(quiet=True, console=Console(file=output))
    with progress.stage("sft", 1):
        progress.update(1, {})
        progress.note("hidden")
        progress.warn("a [bold]row[/bold] was dropped")
    assert output.getvalue() == "warning: a [bold]row[/bold] was dropped\n"


def test_notes_are_shown_as_they_stand() -> None:
    output = StringIO()
    Progress(console=Console(file=output, width=20)).note("a [red]long[/red] line :smile: that is not to be folded")
    assert output.getvalue() == "a [red]long[/red] line :smile: that is not to be folded\n"


def test_a_terminal_gets_a_live_line_and_ci_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def shown() -> str:
        output = StringIO()
        console = Console(file=output, force_terminal=True, width=120, color_system=None)
        progress = Progress(console=console, clock=Clock())
        with progress.stage("sft", 4, headline=("train/loss",)):
            progress.update(2, {"train/loss": 0.25, "tokens_per_second": 10.0})
            progress.note("half way")
        return output.getvalue()

    live = shown()
    assert "\x1b[" in live
    assert "━" in live
    assert "2/4" in live
    assert "10 tokens/s  512 MB  train/loss 0.25" in live
    assert "half way" in live
    monkeypatch.setenv("CI", "true")
    assert shown() == "sft  2/4  50 %  0:00 left  10 tokens/s  512 MB  train/loss 0.25\nhalf way\n"


def test_a_narrow_terminal_cuts_the_figures_and_keeps_name_and_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CI", raising=False)
    output = StringIO()
    progress = Progress(console=Console(file=output, force_terminal=True, width=60, color_system=None), clock=Clock())
    names = tuple(f"a_long_name_of_a_figure_{number}" for number in range(5))
    with progress.stage("reward_modelling", 400, headline=names):
        progress.update(120, dict.fromkeys(names, 0.25))
    last = [line for line in output.getvalue().splitlines() if "reward_modelling" in line][-1]
    assert "120/400" in last
    assert "…" in last
    assert "a_long_name_of_a_figure_4" not in last


def test_the_live_display_ends_when_a_stage_fails() -> None:
    console = Console(file=StringIO(), force_terminal=True)
    progress = Progress(console=console)
    with pytest.raises(ZeroDivisionError), progress.stage("outer", 1), progress.stage("inner", 1):
        raise ZeroDivisionError
    with progress.stage("again", 1):
        progress.update(1, {})


def test_memory_is_that_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    before = resident_memory_mb()
    held = bytearray(64 * 2**20)
    assert 40 < resident_memory_mb() - before < 90
    assert peak_memory_mb() >= before + 40
    assert len(held) == 64 * 2**20

    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(progress_module.Path, "read_text", missing)
    assert resident_memory_mb() == peak_memory_mb()
