"""The command line as a whole: help, exit codes, messages instead of tracebacks, and how fast it starts."""

import os
import resource
import subprocess
import sys

import pytest
from command_line import Prefloop

from prefloop import __version__
from prefloop.cli import main, report
from prefloop.cli.main import VERBS

HELP_WITHOUT_TORCH = """
import sys
sys.argv = ["prefloop", "--help"]
from prefloop.cli.main import entry
try:
    entry()
finally:
    heavy = {"torch", "transformers", "peft", "datasets", "numpy", "sklearn", "pydantic"} & set(sys.modules)
    assert not heavy, heavy
"""


def test_help_names_every_verb_and_starts_light_and_fast() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([sys.executable, "-c", HELP_WITHOUT_TORCH], capture_output=True, text=True, check=False)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        assert all(f"\n  {verb.__name__.rpartition('.')[2]} " in done.stdout for verb in VERBS)
        assert "..." not in done.stdout.partition("Commands:")[2], "a verb's line is cut"
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.3


@pytest.mark.parametrize("verb", [verb.__name__.rpartition(".")[2] for verb in VERBS])
def test_every_verb_explains_itself(prefloop: Prefloop, verb: str) -> None:
    done = prefloop(verb, "--help")
    assert done.code == 0
    assert done.out.startswith(f"Usage: prefloop {verb} ")


def test_version(prefloop: Prefloop) -> None:
    done = prefloop("--version")
    assert (done.code, done.out) == (0, f"prefloop {__version__}\n")


def test_no_arguments_show_the_help(prefloop: Prefloop) -> None:
    done = prefloop()
    assert done.code == 2
    assert "quickstart" in done.out + done.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["quikstart"], "Did you mean 'quickstart'?"),
        (["run"], "Missing argument 'pipeline'"),
        (["run", "tutorials", "--sped"], "No such option: --sped"),
        (["chat", "somewhere", "--temperature", "-1"], "--temperature"),
        (["run", "nonsense"], "there is no recipe nonsense: give a YAML file, or one of "),
        (["run", "tutorials", "seed"], "`seed` is not an override; write `key=value`"),
        (["score", "somewhere"], "give either a JSONL file, or --prompt"),
        (["score", "somewhere", "file.jsonl", "--prompt", "x"], "give either a JSONL file, or --prompt"),
        (["score", "somewhere", "file.jsonl", "--response", "x"], "give either a JSONL file, or --prompt"),
        (["data", "x.jsonl", "--kind", "stories"], "kind is stories; it must be one of text, demonstrations"),
        (["data", "x.jsonl", "--prompt-format", "odd"], "prompt_format is odd; it must be one of auto, chat"),
        (["data", "x.jsonl", "--column", "prompt"], "--column prompt is no renaming; write ours=theirs"),
    ],
)
def test_a_wrong_command_or_setting_is_exit_code_2(prefloop: Prefloop, arguments: list[str], words: str) -> None:
    done = prefloop(*arguments)
    assert done.code == 2
    assert words in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


def test_debug_shows_the_traceback_wherever_it_stands_and_keeps_the_code(prefloop: Prefloop) -> None:
    for arguments in (["--debug", "run", "nonsense"], ["run", "nonsense", "--debug"]):
        done = prefloop(*arguments)
        assert done.code == 2
        assert "Traceback" in done.err
        assert done.err.endswith("sst2-positive, tutorials, tutorials-label\n")
    assert "Traceback" not in prefloop("run", "nonsense").err


def test_an_error_of_ours_that_should_not_happen_points_to_debug(
    prefloop: Prefloop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise ZeroDivisionError("nought")

    monkeypatch.setattr(main, "app", main.typer.Typer(pretty_exceptions_enable=False, add_completion=False))
    main.app.command()(main.reporting_errors(broken))
    done = prefloop()
    assert done.code == 1
    assert "an error that should not happen: ZeroDivisionError: nought" in done.err
    assert "--debug" in done.err
    assert "Traceback" not in done.err


def test_ctrl_c_is_130(prefloop: Prefloop, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main, "app", main.typer.Typer(pretty_exceptions_enable=False, add_completion=False))
    main.app.command()(main.reporting_errors(stopped))
    done = prefloop()
    assert done.code == 130
    assert "Traceback" not in done.err


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    program = (
        "import sys\nfrom prefloop.cli import main\n"
        "def much() -> None:\n    for _ in range(100000): print('a line of text')\n"
        "app = main.app = main.typer.Typer(add_completion=False)\n"
        "app.command()(main.reporting_errors(much))\nsys.argv = ['prefloop']\nmain.entry()\n"
    )
    reader, writer = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    os.read(reader, 10)
    os.close(reader)
    _, words = process.communicate(timeout=30)
    assert (process.returncode, words) == (0, "")


def test_reporting_errors_keeps_a_verbs_signature_for_its_help() -> None:
    assert main.reporting_errors(report.command).__doc__ == report.command.__doc__
