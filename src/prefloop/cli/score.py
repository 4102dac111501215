"""prefloop score: what a reward model thinks of responses."""

from pathlib import Path
from typing import Annotated

import typer


def command(
    reward_model: Annotated[str, typer.Argument(help="A reward model: a run folder, a model folder or a Hub name.")],
    source: Annotated[Path | None, typer.Argument(help="JSONL with prompt and completion.")] = None,
    prompt: Annotated[str | None, typer.Option(help="One prompt, with --response.")] = None,
    response: Annotated[list[str] | None, typer.Option(help="A response to it; give several to rank them.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
) -> None:
    """Score responses and rank them, the best first."""
    import json
    import sys

    from prefloop.cli.model_folders import model_folder
    from prefloop.cli.quiet_libraries import hush
    from prefloop.errors import SettingsError

    by_hand = (prompt is not None, bool(response))
    if (source is None and not all(by_hand)) or (source is not None and any(by_hand)):
        raise SettingsError("give either a JSONL file, or --prompt with one or more --response")
    hush()
    from prefloop.data.sources import read_records
    from prefloop.records import Completion, Prompt, prompt_text
    from prefloop.rollouts.rewards import ModelReward
    from prefloop.runs.stage_context import read_reward_model

    scorer = ModelReward(*read_reward_model(model_folder(reward_model), precision="float32"))
    prompts: list[Prompt]
    if source is not None:
        records = read_records(source, kind="demonstrations").records
        prompts = [record.prompt for record in records]
        texts = [record.completion for record in records]
    else:
        texts = list(response or [])
        prompts = [prompt or ""] * len(texts)
    scores = scorer.score(prompts, [Completion(text) for text in texts])
    if scorer.truncation:
        print(f"warning: {scorer.truncation}", file=sys.stderr)
    ranked = sorted(zip(scores, prompts, texts, strict=True), key=lambda row: -row[0])
    for score, asked, text in ranked:
        if as_json:
            print(json.dumps({"score": score, "prompt": prompt_text(asked), "completion": text}, ensure_ascii=False))
        else:
            shown = text if len(text) <= 200 else text[:199] + "…"
            print(f"{score:8.3f}  {shown!r}")
