"""prefloop evaluate: how good policies are, by a judge that trained none of them."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    models: Annotated[list[str], typer.Argument(help="Policies: run folders, model folders or Hub names.")],
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL with prompts; without it, texts from the start token.")
    ] = None,
    judge_train: Annotated[
        list[str] | None, typer.Option(help="Labelled texts a classifier judge is fitted on; without it, the rubric.")
    ] = None,
    judge_test: Annotated[str | None, typer.Option(help="Labelled texts its accuracy is stated on.")] = None,
    reward_model: Annotated[str | None, typer.Option(help="Also score by this reward model.")] = None,
    best_of_n: Annotated[
        int | None, typer.Option(help="Also the first policy's best of n by the reward model.")
    ] = None,
    num_samples: Annotated[int, typer.Option(min=2, help="Completions per policy.")] = 500,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Where a completion is cut.")] = 64,
    seed: Annotated[int, typer.Option(help="Of the sampling.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Folder of the run; runs/<time>_evaluate unless given.")] = None,
) -> None:
    """Success rates of policies, by a judge that trained none.

    Each with its interval, KL from the first policy, length and diversity.
    """
    from datetime import datetime

    from prefloop.cli.model_folders import model_folder
    from prefloop.cli.quiet_libraries import hush

    hush()
    from prefloop.cli.run import run_again
    from prefloop.cli.shown import pipeline_result
    from prefloop.runs.pipeline import run_pipeline
    from prefloop.runs.progress import Progress
    from prefloop.runs.settings import validate
    from prefloop.runs.stage_settings import Pipeline
    from prefloop.web.report import render_report

    names = [f"{number}_{_short_name(model)}" for number, model in enumerate(models, start=1)]
    judge: dict[str, object] = {"kind": "rubric"}
    if judge_train:
        judge = {"kind": "text_classifier", "train": judge_train, "test": judge_test, "name": "a TF-IDF classifier"}
    stage = {
        "kind": "evaluate_policies",
        "policies": {name: model_folder(model) for name, model in zip(names, models, strict=True)},
        "reference": names[0],
        "prompts": str(prompts) if prompts is not None else None,
        "judge": judge,
        "reward_model": model_folder(reward_model) if reward_model else None,
        "best_of_n": best_of_n,
        "num_samples": num_samples,
        "max_new_tokens": max_new_tokens,
    }
    recipe = {"name": "evaluate", "seed": seed, "stages": {"policies": stage}}
    settings = validate(Pipeline, recipe, origin="the command line")
    folder = output or Path("runs") / f"{datetime.now().strftime('%Y-%m-%d_%H-%M-%S')}_evaluate"
    summary = run_pipeline(settings, folder, progress=Progress(), resume_command=run_again(folder))
    pipeline_result(summary, folder)
    print(f"The report: {render_report(folder)}")


def _short_name(model: str) -> str:
    """What a model is called in the table: its folder, or that of its run."""
    path = Path(model)
    return path.parent.name if path.name == "final" and path.parent.name else path.name
