"""Judges: what they read, when an answer succeeds, and what is said about them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from prefloop.errors import SettingsError
from prefloop.records import Completion, Prompt
from prefloop.rollouts.rewards import RuleReward
from prefloop.runs.folder import RunFolder
from prefloop.runs.judges import ComparingJudge, make_judge
from prefloop.runs.plan import check
from prefloop.runs.progress import Progress
from prefloop.runs.stage_context import StageContext
from prefloop.runs.stage_settings import Judge
from toy_recipes import pipeline_of, tutorials

LENGTH = RuleReward(lambda prompt, completion: float(len(completion.text)))


def completions(*texts: str) -> list[Completion]:
    return [Completion(text) for text in texts]


def test_an_answer_wins_by_outscoring_the_opponents_answer_to_the_same_prompt() -> None:
    judge = ComparingJudge(LENGTH, ["a", "b", "c"], completions("four", "four", "four"))
    assert judge.score(["a", "b", "c"], completions("longer", "same", "no")) == [1.0, 0.5, 0.0]


def test_several_opponents_answer_each_prompt_in_turn() -> None:
    opponents = completions("1", "22", "333", "4444", "1", "1", "1", "1")
    judge = ComparingJudge(LENGTH, ["a", "b"], opponents)
    assert judge.score(["a", "b"], completions("333", "22")) == [0.625, 1.0]


def test_the_opponent_is_asked_once_and_for_its_own_prompts_only() -> None:
    asked: list[Sequence[Prompt]] = []

    class Watched:
        def score(self, prompts: Sequence[Prompt], completions: Sequence[Completion]) -> list[float]:
            asked.append(list(prompts))
            return LENGTH.score(prompts, completions)

    judge = ComparingJudge(Watched(), ["a"], completions("four"))
    judge.score(["a"], completions("x"))
    judge.score(["a"], completions("y"))
    assert len(asked) == 3
    with pytest.raises(AssertionError, match="other prompts"):
        judge.score(["b"], completions("x"))


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    folder = RunFolder.create(tmp_path / "run", name="toy", algorithm="evaluate_policies", seed=0)
    return StageContext(
        name="toy", folder=folder, seed=0, progress=Progress(quiet=True), precision="float32", resume_command="again"
    )


def labelled(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize("prompt", ["", "is it dull?"])
def test_a_classifier_reads_what_it_was_fitted_on(prompt: str, context: StageContext, tmp_path: Path) -> None:
    """Fitted on answers it reads the answer only; fitted on whole texts, the prompt is their beginning."""
    rows = [{"text": text, "label": label} for text, label in (("warm clever fine", 1), ("dull cold clumsy", 0))]
    rows = [row | ({"prompt": prompt} if prompt else {}) for row in rows]
    file = labelled(tmp_path / "texts.jsonl", rows)
    judge, facts = make_judge(Judge(kind="text_classifier", train=(file,), test=(file, file)), context)
    assert judge.score(["dull cold dull cold "], completions("warm")) == [1.0 if prompt else 0.0]
    assert facts["n"] == 4
    assert facts["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("stage", "judge", "words"),
    [
        ("policies", {"kind": "reward_model", "test": "labels/preferences.jsonl"}, "it needs reward_model, and pairs"),
        ("policies", {"kind": "reward_model", "reward_model": "reward"}, "it needs reward_model, and pairs"),
        (
            "ppo",
            {"kind": "reward_model", "reward_model": "reward", "test": "labels/preferences.jsonl"},
            "evaluate_policies alone has",
        ),
        (
            "policies",
            {"kind": "reward_model", "reward_model": "sft", "test": "labels/preferences.jsonl"},
            "trains a language model, and no reward model",
        ),
    ],
)
def test_a_comparing_judge_that_lacks_something_is_refused(stage: str, judge: dict[str, Any], words: str) -> None:
    recipe = tutorials()
    recipe["stages"][stage]["judge"] = judge
    with pytest.raises(SettingsError, match=words):
        check(pipeline_of(recipe))


def test_two_sources_of_agreement_are_refused() -> None:
    recipe = tutorials()
    recipe["stages"]["reward_report"] |= {"label_agreement": 0.7, "agreement_of": "labels/agreement.json"}
    with pytest.raises(SettingsError, match="both label_agreement and agreement_of are set"):
        check(pipeline_of(recipe))
