"""The stages that measure: reward models against held-out choices, policies against a judge that trained nobody."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from prefloop.batches import TokenGroup
from prefloop.contracts import RewardModel, RewardSource, Sample, Sampling
from prefloop.data.chat_format import ChatFormat
from prefloop.data.packing import micro_batches, pack
from prefloop.data.row_files import Problems, read_file
from prefloop.errors import DataError
from prefloop.evaluation.policy_report import best_of, policy_figures
from prefloop.evaluation.reward_report import classifier_report, reward_report
from prefloop.evaluation.surface_baselines import bag_of_words_accuracy, length_only_accuracy
from prefloop.formulas.divergences import best_of_n_kl_bound
from prefloop.models.policy import Policy
from prefloop.randomness import derived_seed
from prefloop.records import Completion, LabelledText, PreferencePair, Prompt, prompt_text
from prefloop.rollouts.generate import PolicyGenerator
from prefloop.rollouts.rewards import ModelReward
from prefloop.runs.judges import ComparingJudge, make_comparing_judge, make_judge
from prefloop.runs.stage_context import StageContext, read_policy, read_reward_model
from prefloop.runs.stage_settings import EvaluatePolicies, EvaluateReward, Judge
from prefloop.runs.stages_data import read_comparisons
from prefloop.worlds import tutorials

NUM_TURNED_SHOWN = 2
TOKENS_PER_PART = 16384
"""Tokens scored at once."""
NUM_OPPONENTS = 4
"""Answers of the reference that an answer is compared with, where a reward model judges."""


def run_evaluate_reward(settings: EvaluateReward, context: StageContext) -> None:
    """Writes summary.json with the key `reward_model`."""
    model, chat_format = read_reward_model(context.resolve(settings.reward_model), precision=context.precision)
    source = ModelReward(model, chat_format)
    if settings.comparisons is not None:
        pairs, against, left_out = _gold_ordered(context.resolve(settings.comparisons))
    else:
        assert settings.pairs is not None, "the plan is checked before a stage runs"
        if _holds_labels(context.resolve(settings.pairs)):
            _evaluate_on_texts(source, context, settings.pairs)
            return
        found = context.read(settings.pairs, "pairs")
        pairs, against, left_out = cast("list[PreferencePair]", found.records), "held-out choices", 0
    prompts = [pair.prompt for pair in pairs]
    chosen = source.score(prompts, [Completion(pair.chosen, ended=pair.chosen_ended) for pair in pairs])
    rejected = source.score(prompts, [Completion(pair.rejected, ended=pair.rejected_ended) for pair in pairs])
    report = reward_report(
        chosen,
        rejected,
        clusters=[prompt_text(prompt) for prompt in prompts],
        seed=context.seed,
        agreement=_label_agreement(settings, context),
    )
    figures = {**report.to_json(), "against": against, "num_gold_ties_left_out": left_out}
    figures |= {"num_truncated": source.num_truncated, **_baselines(settings, context, pairs)}
    context.tell_of_cut_texts(source)
    context.write_json("summary.json", {"reward_model": figures})
    low, high = figures["accuracy_ci95"]
    by_length = figures.get("length_only_accuracy")
    context.progress.note(
        f"  orders {figures['accuracy']:.1%} [{low:.1%}, {high:.1%}] of {figures['n']:,} held-out pairs "
        f"as {against} does" + (f"; by length alone {by_length:.1%}" if by_length is not None else "")
    )
    fault = no_better_than_length(figures)
    if fault is not None:
        context.alarm(fault)


def no_better_than_length(figures: Mapping[str, Any]) -> str | None:
    """What to say of a reward model whose interval reaches down to what length alone achieves; None of a better one."""
    (low, high), by_length = figures["accuracy_ci95"], figures.get("length_only_accuracy")
    if by_length is None or low > by_length:
        return None
    return (
        f"the reward model orders {figures['accuracy']:.1%} [{low:.1%}, {high:.1%}] of {figures['n']:,} held-out pairs "
        f"right, and length alone {by_length:.1%}: nothing shows that it hears more than length. Compare the lengths "
        "of the policies' answers, and let people or another kind of judge decide between them"
    )


def _label_agreement(settings: EvaluateReward, context: StageContext) -> float | None:
    """How often two annotators agree: as it is set, as a label stage found it, or unknown."""
    if settings.agreement_of is None:
        return settings.label_agreement
    return json.loads(Path(context.resolve(settings.agreement_of)).read_text(encoding="utf-8"))["percent_agreement"]


def _holds_labels(source: str) -> bool:
    """Whether a file holds labelled texts instead of pairs: its first row has a label and no chosen answer."""
    path = Path(source)
    if not path.is_file():
        return False
    rows, _ = read_file(path, Problems())
    return bool(rows) and "label" in rows[0].values and "chosen" not in rows[0].values


def _gold_ordered(path: str) -> tuple[list[PreferencePair], str, int]:
    """Held-out comparisons as pairs in the gold order, and how many gold ties were left out."""
    comparisons = read_comparisons(path)
    pairs = []
    for one in comparisons:
        left, right = (tutorials.gold_score(one.prompt, side) for side in (one.left, one.right))
        if left != right:
            best, worst = (one.left, one.right) if left > right else (one.right, one.left)
            pairs.append(
                PreferencePair(one.prompt, best.text, worst.text, chosen_ended=best.ended, rejected_ended=worst.ended)
            )
    if not pairs:
        raise DataError(f"{path} holds no pair that the gold score can order")
    return pairs, "the gold order", len(comparisons) - len(pairs)


def _evaluate_on_texts(source: ModelReward[RewardModel], context: StageContext, reference: str) -> None:
    """The same summary.json for labelled texts."""
    records = cast("list[LabelledText]", context.read(reference, "labelled").records)
    scores = source.score([one.prompt for one in records], [Completion(one.text) for one in records])
    figures = classifier_report(scores, [one.label for one in records]).to_json()
    figures |= {"num_truncated": source.num_truncated, "against": "held-out labels"}
    context.tell_of_cut_texts(source)
    context.write_json("summary.json", {"reward_model": figures})
    context.progress.note(f"  classifies {figures['accuracy']:.1%} of {figures['n']:,} held-out texts")


def _baselines(settings: EvaluateReward, context: StageContext, pairs: Sequence[PreferencePair]) -> dict[str, Any]:
    """What length alone and words alone achieve, fitted on the training pairs."""
    if not settings.train_pairs:
        return {}
    known = cast("list[PreferencePair]", context.read_all(settings.train_pairs, "pairs").records)
    training = [(pair.chosen, pair.rejected) for pair in known]
    held_out = [(pair.chosen, pair.rejected) for pair in pairs]
    return {
        "length_only_accuracy": length_only_accuracy(training, held_out).accuracy,
        "bag_of_words_accuracy": bag_of_words_accuracy(training, held_out).accuracy,
    }


@dataclass(frozen=True)
class _Evaluation:
    """What all policies of one evaluation share."""

    prompts: list[Prompt]
    judge: RewardSource
    judged_by: str
    second_judge: RewardSource | None
    reward: RewardSource | None
    reference: Policy
    sampling: Sampling
    seed: int


@dataclass(frozen=True)
class Answers:
    """What one policy answered, which answers were successes, and the figures of both."""

    completions: list[Completion]
    successes: list[float]
    figures: dict[str, Any]


def run_evaluate_policies(settings: EvaluatePolicies, context: StageContext) -> None:
    """Writes summary.json with `policies`, `judge` and `samples`.

    Every policy gets the same prompts and random numbers.
    """
    reference, reference_format = _load(settings.policies[settings.reference], context)
    prompts = _repeated(settings, PolicyGenerator(reference, reference_format), context)

    def judge_of(one: Judge) -> tuple[RewardSource, dict[str, Any]]:
        if one.kind != "reward_model":
            return make_judge(one, context)
        opponents = _opponents(settings, prompts, reference, reference_format, seed=context.seed)
        return make_comparing_judge(one, context, prompts=prompts, opponents=opponents, reference=settings.reference)

    judge, facts = judge_of(settings.judge)
    second, second_facts = judge_of(settings.second_judge) if settings.second_judge else (None, None)
    reward = None
    if settings.reward_model is not None:
        reward = ModelReward(*read_reward_model(context.resolve(settings.reward_model), precision=context.precision))
    sampling = Sampling(settings.max_new_tokens)
    shared = _Evaluation(prompts, judge, facts["name"], second, reward, reference, sampling, context.seed)
    answers: dict[str, Answers] = {}
    total = len(settings.policies) + len(settings.greedy) + (settings.best_of_n is not None)
    with context.progress.stage(context.name, total, headline=("success_rate",)):
        for name, found in _all_answers(settings, shared, context):
            answers[name] = found
            context.progress.update(len(answers), {"success_rate": found.figures["success_rate"]})
    if reward is not None:
        context.tell_of_cut_texts(reward)
    for name, found in answers.items():
        context.folder.append_samples(0, _samples(prompts, found, settings.num_shown), kind=name)
    summary = {
        "policies": {name: found.figures for name, found in answers.items()},
        "judge": facts,
        "second_judge": second_facts,
        "samples": [_side_by_side(prompts, answers, place) for place in range(min(settings.num_shown, len(prompts)))],
        "turned": turned(settings, prompts, answers),
    }
    context.write_json("summary.json", summary)


def _all_answers(
    settings: EvaluatePolicies, shared: _Evaluation, context: StageContext
) -> Iterator[tuple[str, Answers]]:
    """Every policy by name; greedy decoding and the best of n follow the policy that they are taken from."""
    for name, place in settings.policies.items():
        policy, chat_format = _load(place, context)
        yield name, _sampled(shared, policy, chat_format)
        if name in settings.greedy:
            yield f"{name}_greedy", _greedy(shared, policy, chat_format)
        if name == settings.reference and settings.best_of_n is not None:
            yield "best_of_n", _best_of_n(shared, policy, chat_format, settings.best_of_n)


def _load(place: str, context: StageContext) -> tuple[Policy, ChatFormat]:
    # Success rates and KL are stated for float32, whatever the training computed in.
    return read_policy(context.resolve(place), precision="float32")


def _repeated(settings: EvaluatePolicies, generator: PolicyGenerator, context: StageContext) -> list[Prompt]:
    prompts: list[Prompt] = [""]
    if settings.prompts is not None:
        prompts = cast("list[Prompt]", context.read(settings.prompts, "prompts").records)
        prompts = context.with_room(prompts, generator, max_new_tokens=settings.max_new_tokens, what="prompts")
        if len(prompts) < settings.num_samples:
            context.progress.warn(
                f"{context.name}: {settings.num_samples:,} answers to {len(prompts):,} prompts, which repeat; "
                "intervals are over prompts"
            )
    return [prompts[number % len(prompts)] for number in range(settings.num_samples)]


def _opponents(
    settings: EvaluatePolicies, prompts: Sequence[Prompt], reference: Policy, chat_format: ChatFormat, *, seed: int
) -> list[Completion]:
    """Answers of the reference, several to each prompt, by random numbers that no policy is measured with."""
    ids = [chat_format.prompt_ids(prompt) for prompt in prompts for _ in range(NUM_OPPONENTS)]
    random = torch.Generator().manual_seed(derived_seed(seed, "opponents"))
    return PolicyGenerator(reference, chat_format).generate(
        ids, sampling=Sampling(settings.max_new_tokens), random=random
    )


def _generate(
    shared: _Evaluation, policy: Policy, chat_format: ChatFormat, n: int, sampling: Sampling
) -> list[Completion]:
    ids = [chat_format.prompt_ids(prompt) for prompt in shared.prompts for _ in range(n)]
    random = torch.Generator().manual_seed(derived_seed(shared.seed, f"evaluation of {n}"))
    return PolicyGenerator(policy, chat_format).generate(ids, sampling=sampling, random=random)


def _sampled(shared: _Evaluation, policy: Policy, chat_format: ChatFormat) -> Answers:
    completions = _generate(shared, policy, chat_format, 1, shared.sampling)
    kl = kl_per_sequence(policy, shared.reference, chat_format, shared.prompts, completions)
    return _measured(shared, completions, kl)


def _greedy(shared: _Evaluation, policy: Policy, chat_format: ChatFormat) -> Answers:
    sampling = Sampling(shared.sampling.max_new_tokens, temperature=0.0)
    return _measured(shared, _generate(shared, policy, chat_format, 1, sampling), None)


def _best_of_n(shared: _Evaluation, policy: Policy, chat_format: ChatFormat, n: int) -> Answers:
    assert shared.reward is not None, "the plan is checked before a stage runs"
    completions = _generate(shared, policy, chat_format, n, shared.sampling)
    scores = shared.reward.score([prompt for prompt in shared.prompts for _ in range(n)], completions)
    found = _measured(shared, [completions[place] for place in best_of(scores, n)], None)
    # The bound of Beirami et al.: the sampled KL of a best-of-n policy has no cheap estimate.
    found.figures.update(n_candidates=n, kl_from_reference=best_of_n_kl_bound(n), kl_is_bound=True)
    return found


def _measured(shared: _Evaluation, completions: list[Completion], kl: list[float] | None) -> Answers:
    successes = shared.judge.score(shared.prompts, completions)
    scores = shared.reward.score(shared.prompts, completions) if shared.reward is not None else None
    figures = policy_figures(
        completions,
        successes,
        kl_per_sequence=kl,
        scores=scores,
        judged_by=shared.judged_by,
        prompts=[prompt_text(prompt) for prompt in shared.prompts],
    )
    if isinstance(shared.judge, ComparingJudge):
        figures["is_win_rate"] = True
    if shared.second_judge is not None:
        second = shared.second_judge.score(shared.prompts, completions)
        figures["second_judge_rate"] = sum(second) / len(second)
    if shared.judged_by == "the gold rubric":
        figures["flaws"] = _flaw_shares(shared.prompts, completions)
    return Answers(completions, successes, figures)


def _flaw_shares(prompts: Sequence[Prompt], completions: Sequence[Completion]) -> dict[str, float]:
    """Share of the answers with each kind of flaw."""
    counts: Counter[str] = Counter()
    for prompt, completion in zip(prompts, completions, strict=True):
        grade = tutorials.grade(prompt_text(prompt), completion.text, ended=completion.ended)
        counts.update({flaw.value for flaw in grade.flaws})
    return {flaw: count / len(completions) for flaw, count in counts.most_common()}


@torch.no_grad()
def kl_per_sequence(
    policy: Policy,
    reference: Policy,
    chat_format: ChatFormat,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
) -> list[float]:
    """Sampled KL(policy || reference) of each completion, in nats: the sum of log ratios over its tokens."""
    groups = [
        TokenGroup(chat_format.prompt_ids(prompt), (completion.token_ids or (),))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    found: list[float] = []
    for part in micro_batches(groups, max_tokens=TOKENS_PER_PART):
        packed = pack([groups[number] for number in part])
        log_ratio = policy.logprobs(packed).logprobs - reference.logprobs(packed).logprobs
        sums = torch.zeros(len(part), device=log_ratio.device)
        found += sums.index_add_(0, packed.segment.to(log_ratio.device), log_ratio).tolist()
    return found


def _samples(prompts: Sequence[Prompt], found: Answers, num: int) -> list[Sample]:
    rows = zip(prompts[:num], found.completions, found.successes, strict=False)
    return [Sample(prompt, answer.text, {"success": success}) for prompt, answer, success in rows]


def _side_by_side(prompts: Sequence[Prompt], answers: dict[str, Answers], place: int) -> dict[str, Any]:
    """What every policy answered to one prompt."""
    return {
        "prompt": prompt_text(prompts[place]),
        "answers": {
            name: {"text": found.completions[place].text, "success": found.successes[place] > 0.5}
            for name, found in answers.items()
        },
    }


def turned(settings: EvaluatePolicies, prompts: Sequence[Prompt], answers: dict[str, Answers]) -> dict[str, Any] | None:
    """How often the last policy is right where the reference is wrong, and the other way round, with examples.

    The examples are picked to show the difference, which the counts put into proportion. None with one policy only.
    """
    others = [name for name in settings.policies if name != settings.reference]
    if not others:
        return None
    after = "ppo" if "ppo" in others else others[-1]
    both = list(zip(answers[settings.reference].successes, answers[after].successes, strict=True))
    gained = [place for place, (first, last) in enumerate(both) if first <= 0.5 < last]
    return {
        "before": settings.reference,
        "after": after,
        "num_gained": len(gained),
        "num_lost": sum(last <= 0.5 < first for first, last in both),
        "n": len(both),
        "samples": [_side_by_side(prompts, answers, place) for place in gained[:NUM_TURNED_SHOWN]],
    }
