"""Judges: who says that a completion is a success. Only evaluation asks them; no training step reads what they say."""

from collections.abc import Sequence
from typing import Any

from prefloop.contracts import RewardSource
from prefloop.evaluation.text_judge import TextJudge
from prefloop.records import Completion, Prompt, prompt_text
from prefloop.rollouts.rewards import RuleReward
from prefloop.runs.stage_context import StageContext
from prefloop.runs.stage_settings import Judge
from prefloop.worlds import tutorials


def make_judge(settings: Judge, context: StageContext) -> tuple[RewardSource, dict[str, Any]]:
    """The judge (1.0 for a success, 0.0 otherwise) and what is known about it: its name and its own accuracy."""
    if settings.kind == "rubric":
        source = RuleReward(lambda prompt, answer: float(tutorials.gold_score(prompt, answer) == 0.0))
        return source, {"name": "the gold rubric", "exact": True}
    assert settings.test is not None, "the plan is checked before a stage runs"
    known = context.read_all(settings.train, "labelled").records
    fitted = TextJudge.fit([record.text for record in known], [record.label for record in known])
    test = context.read(settings.test, "labelled").records
    rate = fitted.accuracy([record.text for record in test], [record.label for record in test])
    facts = {"name": settings.name, "accuracy": rate["rate"], "ci95": rate["ci95"], "n": rate["n"]}
    facts |= {"trained_on": list(settings.train), "num_training_texts": len(known), "tested_on": settings.test}
    return _Classifier(fitted), facts


class _Classifier:
    """A text is a success when the classifier finds it more likely positive than not."""

    def __init__(self, fitted: TextJudge) -> None:
        self.fitted = fitted

    def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
        texts = [prompt_text(prompt) + completion.text for prompt, completion in zip(prompts, completions, strict=True)]
        return [float(probability > 0.5) for probability in self.fitted.probability_positive(texts)]
