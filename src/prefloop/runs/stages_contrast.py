"""The stage that makes preferences out of demonstrations: the data set's answers against a policy's own."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from prefloop.collection.pairs import comparison_to_row
from prefloop.contracts import Sampling
from prefloop.data.chat_format import ChatFormat
from prefloop.data.sources import record_to_row
from prefloop.errors import NothingUsableError
from prefloop.randomness import derived_seed, python_random
from prefloop.records import Comparison, Completion, Demonstration, LabelledText, PreferencePair
from prefloop.rollouts.generate import PolicyGenerator
from prefloop.rollouts.rewards import ModelReward
from prefloop.runs.stage_context import StageContext, read_policy, read_reward_model
from prefloop.runs.stage_settings import Contrast

KEPT = "kept"
TOO_LONG = "left out: longer than max_length"
UNREADABLE = "left out: the sampled answer holds a NUL character"
EMPTY = "left out: the sampled answer is empty"
EQUAL = "left out: the sampled answer equals the data set's"
CUT = "left out: the sampled answer was cut"
TIED = "left out: the reward model scores both the same"
DATA_SET = "data set"


@dataclass(frozen=True)
class _Both:
    """One prompt's two answers, the accepted one first."""

    demonstration: Demonstration
    accepted: Completion
    rejected: Completion


def run_contrast(settings: Contrast, context: StageContext) -> None:
    """Writes accepted.jsonl and rejected.jsonl (labelled texts), preferences.jsonl (pairs), and comparisons.jsonl.

    The last holds the same pairs with their sides drawn, for a label stage in which people choose instead.
    """
    policy, chat_format = read_policy(context.resolve(settings.policy), precision=context.precision)
    asked = context.read(settings.demonstrations, "demonstrations").records[: settings.num_prompts]
    short = [one for one in asked if _num_tokens(chat_format, one) <= settings.max_length]
    counts = Counter({TOO_LONG: len(asked) - len(short)})
    generator = PolicyGenerator(policy, chat_format, batch_size=settings.batch_size)
    kept: list[_Both] = []
    with context.progress.stage(context.name, len(short), headline=("kept",)):
        for start in range(0, len(short), 4 * settings.batch_size):
            part = short[start : start + 4 * settings.batch_size]
            answers = _sampled(settings, generator, chat_format, part, seed=derived_seed(context.seed, "reject", start))
            for demonstration, answer in zip(part, answers, strict=True):
                reason = _reason(settings, demonstration, answer)
                counts[reason] += 1
                if reason == KEPT:
                    kept.append(_Both(demonstration, Completion(demonstration.completion, source=DATA_SET), answer))
            context.progress.update(start + len(part), {"kept": len(kept)})
    if settings.reward_model is not None:
        kept = list(_chosen_by_model(settings.reward_model, kept, chat_format, context, counts))
    _account(counts, num_asked=len(asked), kept=kept, context=context)
    if not kept:
        raise NothingUsableError(f"no pair is left of {len(asked):,} prompts: audit.json says why, prompt by prompt")
    _write(kept, context)


def _num_tokens(chat_format: ChatFormat, demonstration: Demonstration) -> int:
    return len(chat_format.prompt_ids(demonstration.prompt)) + len(chat_format.completion_ids(demonstration.completion))


def _sampled(
    settings: Contrast,
    generator: PolicyGenerator,
    chat_format: ChatFormat,
    demonstrations: Sequence[Demonstration],
    *,
    seed: int,
) -> list[Completion]:
    ids = [chat_format.prompt_ids(one.prompt) for one in demonstrations]
    found = generator.generate(
        ids,
        sampling=Sampling(settings.max_new_tokens, temperature=settings.temperature),
        random=torch.Generator().manual_seed(seed),
    )
    return [replace(one, source=settings.policy) for one in found]


def _reason(settings: Contrast, demonstration: Demonstration, answer: Completion) -> str:
    """Why a sampled answer makes no pair, or that it does."""
    if "\0" in answer.text:
        return UNREADABLE
    if not answer.text.strip():
        return EMPTY
    if answer.text.split() == demonstration.completion.split():
        return EQUAL
    return CUT if not answer.ended and settings.cut_answers == "drop" else KEPT


def _chosen_by_model(
    name: str, pairs: Sequence[_Both], chat_format: ChatFormat, context: StageContext, counts: Counter[str]
) -> Iterator[_Both]:
    """The pairs with the better scored answer accepted; pairs of equal scores are counted and left out."""
    judge = ModelReward(
        *read_reward_model(context.resolve(name), precision=context.precision), policy_format=chat_format
    )
    prompts = [one.demonstration.prompt for one in pairs]
    accepted = judge.score(prompts, [one.accepted for one in pairs])
    rejected = judge.score(prompts, [one.rejected for one in pairs])
    context.tell_of_cut_texts(judge)
    for one, first, second in zip(pairs, accepted, rejected, strict=True):
        if first == second:
            counts[KEPT] -= 1
            counts[TIED] += 1
        else:
            yield one if first > second else replace(one, accepted=one.rejected, rejected=one.accepted)


def _account(counts: Counter[str], *, num_asked: int, kept: Sequence[_Both], context: StageContext) -> None:
    """audit.json: every prompt under one reason, and how the lengths of both sides compare."""
    assert sum(counts.values()) == num_asked, "a prompt vanished"
    lines = [f"{num_asked:,} prompts asked, {counts[KEPT]:,} kept"]
    lines += [f"  {count:,} {reason}" for reason, count in counts.items() if count and reason != KEPT]
    by_data_set = sum(one.accepted.source == DATA_SET for one in kept)
    if kept:
        words = [
            sum(len(text.split()) for text in texts) / len(kept)
            for texts in ([one.accepted.text for one in kept], [one.rejected.text for one in kept])
        ]
        lines.append(f"accepted answers have {words[0]:.1f} words on average, rejected ones {words[1]:.1f}")
        lines.append(f"the data set's answer is accepted in {by_data_set:,} of {len(kept):,} pairs")
    figures = {reason.removeprefix("left out: "): count for reason, count in counts.items()}
    context.write_json("audit.json", {"lines": lines, "counts": {"asked": num_asked, **figures}})
    for line in lines:
        context.progress.note(f"  {line.strip()}")


def _write(kept: Sequence[_Both], context: StageContext) -> None:
    prompts = [one.demonstration.prompt for one in kept]
    for file, label in (("accepted.jsonl", 1), ("rejected.jsonl", 0)):
        texts = [(one.accepted if label else one.rejected).text for one in kept]
        rows = (LabelledText(text, label, prompt) for text, prompt in zip(texts, prompts, strict=True))
        context.write_rows(file, map(record_to_row, rows))
    pairs = (
        PreferencePair(
            one.demonstration.prompt,
            one.accepted.text,
            one.rejected.text,
            chosen_ended=one.accepted.ended,
            rejected_ended=one.rejected.ended,
        )
        for one in kept
    )
    context.write_rows("preferences.jsonl", map(record_to_row, pairs))
    comparisons = (_comparison(f"{context.name}-{number:06d}", one, context) for number, one in enumerate(kept))
    context.write_rows("comparisons.jsonl", map(comparison_to_row, comparisons))


def _comparison(pair_id: str, both: _Both, context: StageContext) -> Comparison:
    """Which answer is called left is drawn, so that no side gives the data set's answer away."""
    comparison = Comparison(pair_id, both.demonstration.prompt, both.accepted, both.rejected)
    swaps = python_random(context.seed, f"sides of {pair_id}").random() < 0.5
    return comparison.swap() if swaps else comparison
