"""prefloop run: a whole pipeline from one recipe."""

import shlex
from pathlib import Path
from typing import Annotated

import typer


def command(
    pipeline: Annotated[str, typer.Argument(help="A recipe: a YAML file, or the name of a shipped one.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run; runs/<name> unless given.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and the settings, and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Run a recipe's stages; what is finished is skipped.

    A stage is made again when something that it depends on changed. After Ctrl-C the same command goes on where it
    stopped.
    """
    from prefloop.cli.recipes import recipe_path

    run_recipe_file(recipe_path(pipeline), overrides or [], output=output, dry_run=dry_run, quiet=quiet)


def run_again(folder: Path) -> str:
    """The command that goes on with the pipeline in a folder."""
    return shlex.join(["prefloop", "run", str(folder / "config.yaml"), "--output", str(folder)])


def run_recipe_file(path: Path, overrides: list[str], *, output: Path | None, dry_run: bool, quiet: bool) -> None:
    """The work behind `run` and `quickstart`."""
    from prefloop.cli.quiet_libraries import hush

    hush()
    from prefloop.cli.shown import pipeline_result, plan_table
    from prefloop.runs.pipeline import run_pipeline
    from prefloop.runs.plan import plan
    from prefloop.runs.progress import Progress
    from prefloop.runs.settings import load_yaml, merge, parse_overrides, to_yaml, validate
    from prefloop.runs.stage_settings import Pipeline
    from prefloop.web.report import render_report

    settings = validate(Pipeline, merge(load_yaml(path), parse_overrides(overrides)), origin=str(path))
    folder = output or Path("runs") / settings.name
    if dry_run:
        planned = plan(settings, folder)
        print(f"{to_yaml(settings)}\nThe plan, in {folder}:")
        plan_table(planned)
        return
    again = run_again(folder)
    summary = run_pipeline(settings, folder, progress=Progress(quiet=quiet), resume_command=again)
    report = render_report(folder)
    pipeline_result(summary, folder)
    print(f"\nThe report: {report}")
    if summary["next_commands"]:
        print("Next:")
        for line in summary["next_commands"]:
            print(f"  {line}")
