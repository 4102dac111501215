"""The command line: one verb per file, and nothing heavy is imported before a verb runs.

Exit codes: 0 it worked, 1 it failed, 2 a wrong command or setting, 130 interrupted (and saved).
"""

import functools
import os
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from prefloop import __version__
from prefloop.cli import chat, collect, data, doctor, evaluate, label, quickstart, report, run, score, serve, train
from prefloop.errors import PrefloopError

VERBS = (quickstart, doctor, data, collect, train, run, evaluate, score, chat, serve, report)

app = typer.Typer(
    name="prefloop",
    help="The whole loop of learning from human preferences: "
    "data, fine-tuning, choices, reward model, PPO and DPO, proof.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"prefloop {__version__}")
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the full traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and stop.")
    ] = False,
) -> None:
    """Both are read before any verb: `entry` takes --debug off the line, wherever it stands; `_version` stops."""
    del debug, version


def entry() -> None:
    """What the installed command runs."""
    arguments = sys.argv[1:]
    _debug.on = "--debug" in arguments
    app([argument for argument in arguments if argument != "--debug"], prog_name="prefloop")


class _Debug:
    """Whether --debug stands on the line."""

    on = False


_debug = _Debug()


def reporting_errors(command: Callable[..., None]) -> Callable[..., None]:
    """The command, with every error turned into its message and exit code; --debug adds the traceback."""

    @functools.wraps(command)
    def reported(*arguments: Any, **settings: Any) -> None:
        try:
            command(*arguments, **settings)
            sys.stdout.flush()
        except PrefloopError as problem:
            _stop(str(problem), problem.exit_code)
        except KeyboardInterrupt:
            _stop("stopped at once; what was saved before is complete", 130)
        except BrokenPipeError:
            # Whoever read our output has seen enough. What is still buffered must not be written at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except Exception as problem:
            _stop(
                f"an error that should not happen: {type(problem).__name__}: {problem}\n"
                "Run it again with --debug to see where.",
                1,
            )

    return reported


def _stop(message: str, exit_code: int) -> NoReturn:
    if _debug.on:
        traceback.print_exc()
    print(f"prefloop: {message}", file=sys.stderr)
    sys.exit(exit_code)


for verb in VERBS:
    app.command(name=verb.__name__.rpartition(".")[2])(reporting_errors(verb.command))
for name, subverb in label.SUBVERBS.items():
    label.app.command(name=name)(reporting_errors(subverb))
app.add_typer(label.app, name="label")


if __name__ == "__main__":
    entry()
