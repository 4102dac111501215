"""prefloop collect: prompts to pairs, ready to be labelled."""

import shlex
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer


def command(
    prompts: Annotated[str, typer.Argument(help="Prompts: a JSONL file with a column prompt, or a Hub data set.")],
    model: Annotated[str, typer.Option(help="Who answers: a run folder, a model folder or a Hub name.")],
    other_model: Annotated[str | None, typer.Option(help="A second model: each pair has one answer of either.")] = None,
    store: Annotated[str, typer.Option(help="The label project: a SQLite file or a postgresql:// URL.")] = "labels.db",
    num_pairs: Annotated[int, typer.Option(help="Prompts asked.")] = 200,
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 1.0,
    other_temperature: Annotated[
        float | None, typer.Option(help="Of the second answer, where it differs: one model at two settings.")
    ] = None,
    candidates: Annotated[
        int, typer.Option(help="Answers drawn per prompt; the two most different make the pair.")
    ] = 2,
    max_new_tokens: Annotated[int, typer.Option(help="Where an answer is cut.")] = 256,
    reward_model: Annotated[
        list[str] | None,
        typer.Option(help="Scores the pairs, to order the queue by margin; several: by disagreement."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Every random draw comes from it.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder of the run; runs/<time>_collect unless given.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Two answers per prompt, put into a project to be labelled.

    With reward models a new project gives out the pairs they are least sure of first; a quarter keeps a random place.
    """
    from prefloop.cli.quiet_libraries import hush

    hush()
    from prefloop.cli.model_folders import model_folder
    from prefloop.collection.label_records import PairOrder
    from prefloop.collection.store import open_store
    from prefloop.runs.pipeline import run_pipeline
    from prefloop.runs.progress import Progress
    from prefloop.runs.settings import validate
    from prefloop.runs.stage_settings import Pipeline
    from prefloop.runs.stored_pairs import stored_pairs

    reward_models = [model_folder(one) for one in reward_model or []]
    stage = {
        "kind": "collect",
        "policy": model_folder(model),
        "other_policy": model_folder(other_model) if other_model is not None else None,
        "prompts": prompts,
        "num_pairs": num_pairs,
        "candidates_per_prompt": candidates,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "other_temperature": other_temperature,
        "reward_models": reward_models,
    }
    recipe = {"name": "collect", "description": "Pairs to label", "seed": seed, "stages": {"pairs": stage}}
    settings = validate(Pipeline, recipe, origin="prefloop collect")
    folder = output or Path("runs") / f"{datetime.now():%Y-%m-%d_%H-%M-%S}_collect"
    again = shlex.join(["prefloop", "run", str(folder / "config.yaml"), "--output", str(folder)])
    run_pipeline(settings, folder, progress=Progress(quiet=quiet), resume_command=again)
    order: PairOrder = "random" if not reward_models else "margin" if len(reward_models) == 1 else "disagreement"
    with open_store(store) as project:
        if order != "random" and not project.pairs():
            project.update_settings(project.settings.model_copy(update={"order": order}))
        added = project.add_pairs(stored_pairs(folder / "pairs"))
        print(f"{added.num_added:,} pairs added to {project.location}, {added.num_known:,} were there; run: {folder}")
    print(f"Next:\n  {shlex.join(['prefloop', 'label', 'serve', store])}")
