"""prefloop train: one training stage from one recipe."""

import shlex
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer


def command(
    recipe: Annotated[str, typer.Argument(help="A recipe of one stage: a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.")] = None,
    output: Annotated[Path | None, typer.Option(help="Folder of the run; runs/<time>_<name> unless given.")] = None,
    resume: Annotated[Path | None, typer.Option(help="Take up the interrupted run in this folder.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the settings and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Train one model: sft, reward_modelling, dpo or ppo.

    Ctrl-C saves; --resume goes on as if nothing had happened.
    """
    from prefloop.cli.quiet_libraries import hush
    from prefloop.cli.recipes import recipe_path

    hush()
    from prefloop.runs.pipeline import run_recipe
    from prefloop.runs.plan import check
    from prefloop.runs.progress import Progress
    from prefloop.runs.settings import load_yaml, merge, parse_overrides, to_yaml, validate
    from prefloop.runs.stage_settings import Recipe
    from prefloop.web.report import render_report

    path = recipe_path(recipe)
    settings = validate(Recipe, merge(load_yaml(path), parse_overrides(overrides or [])), origin=str(path))
    check(settings)
    if dry_run:
        print(to_yaml(settings))
        return
    time = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    folder = resume or output or Path("runs") / f"{time}_{settings.name}"
    again = shlex.join(["prefloop", "train", str(folder / "config.yaml"), "--resume", str(folder)])
    run_recipe(settings, folder, progress=Progress(quiet=quiet), resume_command=again, resume=resume is not None)
    print(f"The model: {folder / 'final'}\nThe report: {render_report(folder)}")
    if settings.stage.kind != "reward_modelling":
        print(f"Next:\n  {shlex.join(['prefloop', 'chat', str(folder)])}")
