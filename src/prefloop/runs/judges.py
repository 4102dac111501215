"""Judges: who says that a completion is a success. Only evaluation asks them; no training step reads what they say."""

from collections.abc import Sequence
from typing import Any, cast

from prefloop.contracts import RewardSource
from prefloop.evaluation.text_judge import TextJudge
from prefloop.evaluation.text_statistics import rate_with_interval
from prefloop.records import Completion, LabelledText, PreferencePair, Prompt, prompt_text
from prefloop.rollouts.rewards import ModelReward, RuleReward
from prefloop.runs.stage_context import StageContext, read_reward_model
from prefloop.runs.stage_settings import Judge
from prefloop.worlds import tutorials


def make_judge(settings: Judge, context: StageContext) -> tuple[RewardSource, dict[str, Any]]:
    """The judge (1.0 for a success, 0.0 otherwise) and what is known about it: its name and its own accuracy.

    A reward model judges by comparison: see `make_comparing_judge`.
    """
    assert settings.kind != "reward_model", "the plan is checked before a stage runs"
    if settings.kind == "rubric":
        source = RuleReward(lambda prompt, answer: float(tutorials.gold_score(prompt, answer) == 0.0))
        return source, {"name": "the gold rubric", "exact": True}
    known = cast("list[LabelledText]", context.read_all(settings.train, "labelled").records)
    fitted = TextJudge.fit([record.text for record in known], [record.label for record in known])
    test = context.read_all(settings.test_files, "labelled").records
    rate = fitted.accuracy([record.text for record in test], [record.label for record in test])
    facts = {"name": settings.name, "accuracy": rate["rate"], "ci95": rate["ci95"], "n": rate["n"]}
    facts |= {"trained_on": list(settings.train), "num_training_texts": len(known)}
    facts["tested_on"] = ", ".join(settings.test_files)
    return _Classifier(fitted, answers_only=any(record.prompt for record in known)), facts


class _Classifier:
    """A text is a success when the classifier finds it more likely positive than not.

    It reads what it was fitted on: whole texts, or with `answers_only` the answers without their prompts.
    """

    def __init__(self, fitted: TextJudge, *, answers_only: bool) -> None:
        self.fitted = fitted
        self.answers_only = answers_only

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        texts = [
            completion.text if self.answers_only else prompt_text(prompt) + completion.text
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        return [float(probability > 0.5) for probability in self.fitted.probability_positive(texts)]


def make_comparing_judge(
    settings: Judge,
    context: StageContext,
    *,
    prompts: Sequence[Prompt],
    opponents: Sequence[Completion],
    reference: str,
) -> tuple[RewardSource, dict[str, Any]]:
    """A reward model as the judge of these prompts: an answer counts by the share of opponents it outscores.

    Its own accuracy is the share of held-out pairs that it orders as people did. Its success rate is a win rate against
    the reference, for which the reference itself gets about one half.
    """
    assert settings.reward_model is not None, "the plan is checked before a stage runs"
    source = ModelReward(*read_reward_model(context.resolve(settings.reward_model), precision=context.precision))
    pairs = cast("list[PreferencePair]", context.read_all(settings.test_files, "pairs").records)
    asked = [pair.prompt for pair in pairs]
    chosen = source.score(asked, [Completion(pair.chosen, ended=pair.chosen_ended) for pair in pairs])
    rejected = source.score(asked, [Completion(pair.rejected, ended=pair.rejected_ended) for pair in pairs])
    context.tell_of_cut_texts(source)
    rate = rate_with_interval([_win(*both) for both in zip(chosen, rejected, strict=True)])
    facts = {
        "name": f"{settings.name}, wins against other answers of {reference}",
        "accuracy": rate["rate"],
        "ci95": rate["ci95"],
        "n": rate["n"],
        "reward_model": settings.reward_model,
        "tested_on": ", ".join(settings.test_files),
    }
    return ComparingJudge(source, prompts, opponents), facts


class ComparingJudge:
    """The share of the opponent's answers to the same prompt that an answer outscores; equal scores count one half.

    `opponents` holds equally many answers to each prompt, prompt by prompt: with one alone, a lucky or unlucky draw of
    it would count for or against every policy. It knows the answers to these prompts in this order, and asserts that it
    is asked about no others.
    """

    def __init__(self, source: RewardSource, prompts: Sequence[Prompt], opponents: Sequence[Completion]) -> None:
        self.source = source
        self.prompts = list(prompts)
        assert len(opponents) % len(prompts) == 0
        self.num_opponents = len(opponents) // len(prompts)
        repeated = [prompt for prompt in prompts for _ in range(self.num_opponents)]
        self.to_beat = source.score(repeated, opponents)

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        assert list(prompts) == self.prompts, "the opponent answered other prompts"
        num = self.num_opponents
        return [
            sum(_win(score, other) for other in self.to_beat[place * num : (place + 1) * num]) / num
            for place, score in enumerate(self.source.score(prompts, completions))
        ]


def _win(score: float, other: float) -> float:
    return 0.5 if score == other else float(score > other)
