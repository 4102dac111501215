"""The stages that make data: the embedded world, reading a data set, collecting pairs, labelling them."""

import json
from dataclasses import asdict
from itertools import combinations
from pathlib import Path

import torch

from prefloop.collection.agreement import AgreementReport, agreement_report
from prefloop.collection.annotators import aggregate, cast, label_pairs, left_as_displayed_share
from prefloop.collection.pairs import (
    comparison_from_row,
    comparison_to_row,
    label_rows,
    most_different,
)
from prefloop.contracts import Sampling
from prefloop.data.sources import ReadResult, read_records, record_to_row
from prefloop.data.splits import leakage, split_by_prompt
from prefloop.errors import DataError, NothingUsableError
from prefloop.randomness import batch_indices, derived_seed, python_random
from prefloop.records import Comparison, Completion, Prompt
from prefloop.rollouts.generate import PolicyGenerator
from prefloop.runs.stage_context import StageContext, read_policy
from prefloop.runs.stage_settings import Collect, Label, Prepare, World
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
    parts = split_by_prompt(found.records, shares=settings.shares, seed=context.seed)
    for name, records in parts.items():
        if not records:
            raise DataError(f"the part {name} of {source} is empty: give it a larger share or more rows")
        context.write_rows(f"{name}.jsonl", map(record_to_row, records))
    lines = [f"{found.rows_read:,} rows read from {source}, {len(found.records):,} used"]
    lines += [f"  dropped {count:,}: {reason}" for reason, count in found.dropped.items()]
    lines += [f"{name}: {len(records):,}" for name, records in parts.items()]
    lines += [
        f"prompts that {first} and {second} share: {leakage(parts[first], parts[second])}"
        for first, second in combinations(parts, 2)
    ]
    files = [dict(file) for file in found.files]
    context.write_json("audit.json", {"lines": lines, "files": files})
    for line in lines:
        context.progress.note(f"  {line.strip()}")


def _read(settings: Prepare, source: str, split: str | None) -> ReadResult:
    return read_records(source, kind=settings.records, columns=settings.columns, split=split, limit=settings.limit)


def run_collect(settings: Collect, context: StageContext) -> None:
    """Writes comparisons.jsonl. Prompts are walked through in a new order again and again."""
    policy, chat_format = read_policy(context.resolve(settings.policy), precision=context.precision)
    prompts = context.read(settings.prompts, "prompts").records
    generator = PolicyGenerator(policy, chat_format, batch_size=settings.batch_size)
    sampling = Sampling(settings.max_new_tokens, temperature=settings.temperature)
    rows = batch_indices(context.seed, "collected prompts", 0, length=len(prompts), batch_size=settings.num_pairs)
    chunk = max(1, 4 * settings.batch_size // settings.candidates_per_prompt)
    comparisons: list[Comparison] = []
    with context.progress.stage(context.name, len(rows), headline=("pairs", "left_out")):
        for start in range(0, len(rows), chunk):
            asked = [prompts[row] for row in rows[start : start + chunk]]
            answers = _answers(generator, asked, settings, sampling, context.seed, start)
            for number, (prompt, candidates) in enumerate(zip(asked, answers, strict=True), start=start):
                # No data file may hold a NUL character, which a model of bytes can write.
                pair = most_different([one for one in candidates if "\0" not in one.text])
                if pair is not None:
                    comparisons.append(_comparison(context, settings, number, prompt, pair))
            done = min(start + chunk, len(rows))
            context.progress.update(done, {"pairs": len(comparisons), "left_out": done - len(comparisons)})
    if not comparisons:
        raise DataError(
            "no prompt got two different answers, so there is nothing to choose between: "
            "raise the temperature or candidates_per_prompt"
        )
    context.write_rows("comparisons.jsonl", map(comparison_to_row, comparisons))
    context.progress.note(
        f"  {len(comparisons):,} pairs; {len(rows) - len(comparisons):,} prompts left out: no two answers differed"
    )


def _answers(
    generator: PolicyGenerator,
    prompts: list[Prompt],
    settings: Collect,
    sampling: Sampling,
    seed: int,
    start: int,
) -> list[list[Completion]]:
    """For each prompt its candidates."""
    num = settings.candidates_per_prompt
    ids = [generator.chat_format.prompt_ids(prompt) for prompt in prompts for _ in range(num)]
    random = torch.Generator().manual_seed(derived_seed(seed, "collect", start))
    completions = generator.generate(ids, sampling=sampling, random=random)
    return [completions[at : at + num] for at in range(0, len(completions), num)]


def _comparison(
    context: StageContext, settings: Collect, number: int, prompt: Prompt, pair: tuple[Completion, Completion]
) -> Comparison:
    source = {
        "policy": settings.policy,
        "temperature": settings.temperature,
        "candidates": settings.candidates_per_prompt,
        "seed": context.seed,
    }
    return Comparison(f"{context.name}-{number:06d}", prompt, *pair, details=source)


def read_comparisons(path: str) -> list[Comparison]:
    """The comparisons of a file that `run_collect` wrote."""
    with Path(path).open(encoding="utf-8") as lines:
        return [comparison_from_row(json.loads(line)) for line in lines if line.strip()]


def run_label(settings: Label, context: StageContext) -> None:
    """Writes labels.jsonl, preferences.jsonl and agreement.json."""
    comparisons = read_comparisons(context.resolve(settings.comparisons))
    annotators = cast(tutorials.gold_score, slope=settings.slope)
    labels = label_pairs(comparisons, annotators, seed=context.seed)
    aggregation = aggregate(comparisons, labels)
    report = agreement_report(labels, seed=context.seed)
    context.write_rows("labels.jsonl", label_rows(labels))
    context.write_rows("preferences.jsonl", map(record_to_row, aggregation.pairs))
    figures = {
        **asdict(report),
        "num_tied": aggregation.num_tied,
        "num_preferences": len(aggregation.pairs),
        "left_as_displayed_share": left_as_displayed_share(labels, seed=context.seed),
    }
    context.write_json("agreement.json", figures)
    names = ", ".join(one.name for one in annotators)
    context.progress.note(
        f"  {report.num_labels:,} choices on {report.num_pairs:,} pairs by {names}; {_agreement_text(report)}"
    )


def _agreement_text(report: AgreementReport) -> str:
    """Agreement in words; a figure that does not exist (alpha of choices that are all the same) is left out."""
    parts = [f"they agree {report.percent_agreement:.1%}" if report.percent_agreement is not None else ""]
    if report.percent_agreement_ci95 is not None:
        low, high = report.percent_agreement_ci95
        parts[0] += f" [{low:.1%}, {high:.1%}]"
    if report.krippendorff_alpha is not None:
        parts.append(f"alpha {report.krippendorff_alpha:.2f}")
    return ", ".join(part for part in parts if part)
