"""The command line: one verb per file, and nothing heavy is imported before a verb runs.

Exit codes: 0 it worked, 1 it failed, 2 a wrong command or setting, 130 interrupted (and saved).
"""

import sys
from typing import Annotated

import click
import typer

from prefloop import __version__
from prefloop.cli import chat, data, doctor, evaluate, quickstart, report, run, score, train
from prefloop.errors import PrefloopError

app = typer.Typer(
    name="prefloop",
    help="The whole loop of learning from human preferences: data, fine-tuning, choices, reward model, PPO and DPO, proof.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

for verb in (quickstart, doctor, data, train, run, evaluate, score, chat, report):
    app.command(name=verb.__name__.rpartition(".")[2])(verb.command)


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
    """Read before any verb."""
    click.get_current_context().obj = {"debug": debug}


def entry() -> None:
    """What the installed command runs."""
    debug = "--debug" in sys.argv
    # --debug is accepted wherever it stands on the line.
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        sys.exit(app(arguments, standalone_mode=False) or 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as problem:
        problem.show()
        sys.exit(problem.exit_code)
    except (KeyboardInterrupt, click.Abort):
        if debug:
            raise
        _say("stopped at once; what was saved before is complete")
        sys.exit(130)
    except PrefloopError as problem:
        if debug:
            raise
        _say(str(problem))
        sys.exit(problem.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    except Exception as problem:
        if debug:
            raise
        _say(
            f"an error that should not happen: {type(problem).__name__}: {problem}\nRun it again with --debug to see where."
        )
        sys.exit(1)


def _say(text: str) -> None:
    print(f"prefloop: {text}", file=sys.stderr)


if __name__ == "__main__":
    entry()
