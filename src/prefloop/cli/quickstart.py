"""prefloop quickstart: the whole loop on the embedded world, with no download."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    overrides: Annotated[list[str] | None, typer.Argument(help="Settings to change, as key=value.")] = None,
    seed: Annotated[int, typer.Option(help="Every random draw comes from it.")] = 0,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the run; runs/quickstart, or runs/quickstart-label.")
    ] = None,
    label: Annotated[
        bool, typer.Option("--label", help="You choose between the answers, in the browser; about 20 pairs.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan and the settings, and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """The whole loop from nothing, in a few minutes on a laptop.

    A small model learns to answer everyday questions from flawed demonstrations. Simulated annotators choose between
    its answers; a reward model, DPO and PPO learn from their choices; a rubric that none of them saw judges the
    result. With --label it is you who chooses.
    """
    from prefloop.cli.recipes import recipe_path
    from prefloop.cli.run import run_recipe_file
    from prefloop.errors import SettingsError

    if any(one.partition("=")[0] == "seed" for one in overrides or []):
        raise SettingsError("give the seed of the quickstart as --seed N")
    settings = [f"seed={seed}", *(overrides or [])]
    recipe = recipe_path("tutorials-label" if label else "tutorials")
    run_recipe_file(recipe, settings, output=output, dry_run=dry_run, quiet=quiet)
