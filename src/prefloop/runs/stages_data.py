"""The stages that make data: the embedded world, reading a data set, collecting pairs."""

import json
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prefloop.collection.pairs import (
    comparison_from_row,
    comparison_to_row,
    most_different,
)
from prefloop.contracts import RewardModel, Sampling
from prefloop.data.chat_format import ChatFormat
from prefloop.data.record_forms import Record
from prefloop.data.sources import ReadResult, read_records, record_to_row
from prefloop.data.splits import leakage, split_by_prompt
from prefloop.errors import DataError, NothingUsableError
from prefloop.randomness import batch_indices, derived_seed, python_random
from prefloop.records import (
    Comparison,
    Completion,
    Demonstration,
    LabelledText,
    PreferencePair,
    Prompt,
    TextExample,
    prompt_text,
)
from prefloop.rollouts.generate import PolicyGenerator
from prefloop.rollouts.rewards import ModelReward
from prefloop.runs.folder import RunFolder
from prefloop.runs.stage_context import StageContext, read_policy, read_reward_model
from prefloop.runs.stage_settings import Collect, Prepare, World
from prefloop.worlds import tutorials


def run_world(settings: World, context: StageContext) -> None:
    """Writes demonstrations.jsonl, prompts.jsonl and held_out.jsonl (the questions that training never sees)."""
    asked, held_out = tutorials.split_questions(
        python_random(context.seed, "world split"), held_out_share=settings.held_out_share
    )
    shown = tutorials.demonstrations(
        asked, num=settings.num_demonstrations, rng=python_random(context.seed, "demonstrations")
    )
    order = python_random(context.seed, "held-out order")
    held_out = order.sample(list(held_out), len(held_out))
    context.write_rows("demonstrations.jsonl", map(record_to_row, shown))
    for name, questions in (("prompts.jsonl", asked), ("held_out.jsonl", held_out)):
        context.write_rows(name, ({"prompt": question.text} for question in questions))
    clean = sum(tutorials.grade(str(one.prompt), one.completion).success for one in shown) / len(shown)
    context.progress.note(
        f"  {len(tutorials.TASKS)} tasks; {len(asked):,} questions to learn from, {len(held_out):,} held out; "
        f"{len(shown):,} demonstrations, {clean:.0%} of them without a flaw"
    )


def run_prepare(settings: Prepare, context: StageContext) -> None:
    """Writes one JSONL file for each share, split by prompt."""
    source = settings.source or context.default_data
    assert source is not None, "the plan is checked before a stage runs"
    try:
        found = _read(settings, context.resolve(source), settings.split)
    except NothingUsableError as problem:
        if settings.split_if_unlabelled is None:
            raise
        context.progress.warn(f"{problem} The split {settings.split_if_unlabelled} is read instead.")
        found = _read(settings, context.resolve(source), settings.split_if_unlabelled)
    records = _short_enough(found.records, settings.max_words)
    parts = split_by_prompt(records, shares=settings.shares, seed=context.seed)
    for name, part in parts.items():
        if not part:
            raise DataError(f"the part {name} of {source} is empty: give it a larger share or more rows")
        context.write_rows(f"{name}.jsonl", map(record_to_row, part))
    too_long = {f"more than {settings.max_words} words": len(found.records) - len(records)}
    dropped = found.dropped | {reason: count for reason, count in too_long.items() if count}
    lines = [f"{found.rows_read:,} rows read from {source}, {len(records):,} used"]
    lines += [f"  dropped {count:,}: {reason}" for reason, count in dropped.items()]
    lines += [f"{name}: {len(part):,}" for name, part in parts.items()]
    lines += [
        f"prompts that {first} and {second} share: {leakage(parts[first], parts[second])}"
        for first, second in combinations(parts, 2)
    ]
    files = [dict(file) for file in found.files]
    context.write_json("audit.json", {"lines": lines, "files": files})
    for line in lines:
        context.progress.note(f"  {line.strip()}")


def _short_enough(records: list[Any], max_words: int | None) -> list[Any]:
    """The records of at most so many words, in prompt and longest answer together."""
    if max_words is None:
        return records
    return [record for record in records if _num_words(record) <= max_words]


def _num_words(record: Record) -> int:
    match record:
        case Demonstration():
            texts = [record.completion]
        case PreferencePair():
            texts = [record.chosen, record.rejected]
        case TextExample() | LabelledText():
            texts = [record.text]
        case _:
            return len(prompt_text(record).split())
    prompt = "" if isinstance(record, TextExample) else prompt_text(record.prompt)
    return len(prompt.split()) + max(len(text.split()) for text in texts)


def _read(settings: Prepare, source: str, split: str | None) -> ReadResult:
    return read_records(source, kind=settings.records, columns=settings.columns, split=split, limit=settings.limit)


@dataclass(frozen=True)
class _Writer:
    """Who answers: a model at its settings. `facts` are kept with every pair, under the writer's name."""

    name: str
    generator: PolicyGenerator
    sampling: Sampling
    num_candidates: int
    facts: dict[str, Any]

    def answers(self, prompts: list[Prompt], *, seed: int, start: int, side: int) -> list[list[Completion]]:
        """For each prompt its candidates. The draws depend on the seed, the place of the first prompt and the side."""
        num = self.num_candidates
        ids = [self.generator.chat_format.prompt_ids(prompt) for prompt in prompts for _ in range(num)]
        random = torch.Generator().manual_seed(derived_seed(seed, "collect" if side == 0 else "collect other", start))
        found = self.generator.generate(ids, sampling=self.sampling, random=random)
        # No data file may hold a NUL character, which a model of bytes can write.
        named = [replace(one, source=self.name) for one in found]
        return [[one for one in named[at : at + num] if "\0" not in one.text] for at in range(0, len(named), num)]


def run_collect(settings: Collect, context: StageContext) -> None:
    """Writes comparisons.jsonl. Prompts are walked through in a new order again and again."""
    writers = _writers(settings, context)
    scorers = _scorers(settings, context, writers[0].generator.chat_format)
    prompts = context.read(settings.prompts, "prompts").records
    for writer in writers:
        limit = writer.sampling.max_new_tokens
        prompts = context.with_room(prompts, writer.generator, max_new_tokens=limit, what="prompts")
    rows = batch_indices(context.seed, "collected prompts", 0, length=len(prompts), batch_size=settings.num_pairs)
    chunk = max(1, 4 * settings.batch_size // settings.candidates_per_prompt)
    comparisons: list[Comparison] = []
    with context.progress.stage(context.name, len(rows), headline=("pairs", "left_out")):
        for start in range(0, len(rows), chunk):
            asked = [prompts[row] for row in rows[start : start + chunk]]
            found = [
                writer.answers(asked, seed=context.seed, start=start, side=side) for side, writer in enumerate(writers)
            ]
            made = []
            for number, (prompt, *candidates) in enumerate(zip(asked, *found, strict=True), start=start):
                pair = most_different(*candidates)
                if pair is not None:
                    made.append(_comparison(f"{context.name}-{number:06d}", prompt, pair, writers, context.seed))
            comparisons += _with_margins(made, scorers)
            done = min(start + chunk, len(rows))
            context.progress.update(done, {"pairs": len(comparisons), "left_out": done - len(comparisons)})
    if not comparisons:
        raise DataError(
            "no prompt got two different answers, so there is nothing to choose between: "
            "raise the temperature or candidates_per_prompt"
        )
    for scorer in scorers:
        context.tell_of_cut_texts(scorer)
    context.write_rows("comparisons.jsonl", map(comparison_to_row, comparisons))
    context.progress.note(
        f"  {len(comparisons):,} pairs; {len(rows) - len(comparisons):,} prompts left out: no two answers differed"
    )


def _writers(settings: Collect, context: StageContext) -> list[_Writer]:
    """The one who writes all answers, or the two who write one answer of each pair."""
    policies = [(settings.policy, settings.temperature)]
    if settings.has_two_writers:
        policies.append((settings.other_policy or settings.policy, settings.other_temperature or settings.temperature))
    num_candidates = settings.candidates_per_prompt // len(policies)
    writers: list[_Writer] = []
    for name, temperature in policies:
        folder = context.resolve(name)
        policy, chat_format = read_policy(folder, precision=context.precision)
        generator = PolicyGenerator(policy, chat_format, batch_size=settings.batch_size)
        facts = {
            "policy": name,
            "checkpoint": folder,
            "run": _run_id(Path(folder)),
            "temperature": temperature,
            "max_new_tokens": settings.max_new_tokens,
            "candidates": num_candidates,
            "seed": context.seed,
        }
        same_model = settings.has_two_writers and settings.other_policy in (None, settings.policy)
        shown = f"{name} at temperature {temperature:g}" if same_model else name
        sampling = Sampling(settings.max_new_tokens, temperature=temperature)
        writers.append(_Writer(shown, generator, sampling, num_candidates, facts))
    return writers


def _run_id(checkpoint: Path) -> str | None:
    """The run that a model of ours comes from; None for a model from elsewhere."""
    for folder in (checkpoint, *checkpoint.parents[:2]):
        if (folder / "run.json").is_file():
            return RunFolder(folder).run_id
    return None


def _comparison(
    pair_id: str, prompt: Prompt, pair: tuple[Completion, Completion], writers: list[_Writer], seed: int
) -> Comparison:
    """Which of two writers is called left is drawn: agreement would look worse than it is if it were always one."""
    sources = {writer.name: writer.facts for writer in writers}
    comparison = Comparison(pair_id, prompt, *pair, details={"sources": sources})
    swaps = len(writers) > 1 and python_random(seed, f"sides of {pair_id}").random() < 0.5
    return comparison.swap() if swaps else comparison


def _scorers(settings: Collect, context: StageContext, policy_format: ChatFormat) -> list[ModelReward[RewardModel]]:
    return [
        ModelReward(*read_reward_model(context.resolve(name), precision=context.precision), policy_format=policy_format)
        for name in settings.reward_models
    ]


def _with_margins(comparisons: list[Comparison], scorers: list[ModelReward[RewardModel]]) -> list[Comparison]:
    """The pairs with their margins (score of left minus score of right), and the spread of several models' margins."""
    if not scorers or not comparisons:
        return comparisons
    prompts = [one.prompt for one in comparisons]
    margins = np.array(
        [
            np.subtract(
                model.score(prompts, [one.left for one in comparisons]),
                model.score(prompts, [one.right for one in comparisons]),
            )
            for model in scorers
        ]
    )
    measured = zip(comparisons, margins.mean(axis=0).tolist(), margins.std(axis=0).tolist(), strict=True)
    return [
        replace(one, details={**one.details, "margin": margin, "disagreement": spread if len(scorers) > 1 else None})
        for one, margin, spread in measured
    ]


def read_comparisons(path: str) -> list[Comparison]:
    """The comparisons of a file that `run_collect` wrote."""
    with Path(path).open(encoding="utf-8") as lines:
        return [comparison_from_row(json.loads(line)) for line in lines if line.strip()]
