"""Preferences out of demonstrations: every prompt accounted for, and the files that later stages read."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from prefloop.collection.pairs import comparison_from_row
from prefloop.contracts import Sampling
from prefloop.data.sources import read_records
from prefloop.errors import DataError
from prefloop.records import Completion, LabelledText, PreferencePair
from prefloop.rollouts.generate import PolicyGenerator
from prefloop.runs import stages_contrast
from prefloop.runs.pipeline import run_pipeline
from prefloop.runs.progress import Progress
from toy_recipes import pipeline_of, tiny_gpt2

ANSWERS = ("good", "fine", "  ", "nul\0", "cut", "own", "other")
"""What the policy answers to the seven prompts, in turn."""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    rows = [{"prompt": f"ask {number}", "completion": "good"} for number in range(len(ANSWERS))]
    rows.append({"prompt": "ask " + "very long " * 40, "completion": "good"})
    path = tmp_path / "demonstrations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy answers by the book."""

    def generate(
        self: PolicyGenerator, prompts: Sequence[Sequence[int]], *, sampling: Sampling, random: torch.Generator
    ) -> list[Completion]:
        return [
            Completion(text, ended=text != "cut", token_ids=self.chat_format.completion_ids(text.replace("\0", "")))
            for text in ANSWERS[: len(prompts)]
        ]

    monkeypatch.setattr(stages_contrast.PolicyGenerator, "generate", generate)


def contrasted(tmp_path: Path, source: Path, **settings: Any) -> Path:
    stage = {
        "kind": "contrast",
        "policy": str(tiny_gpt2(tmp_path / "gpt2")),
        "demonstrations": str(source),
        "max_length": 60,
        **settings,
    }
    recipe = pipeline_of({"name": "toy", "seed": 1, "stages": {"pairs": stage}})
    run_pipeline(recipe, tmp_path / "out", progress=Progress(quiet=True), resume_command="again")
    return tmp_path / "out" / "pairs"


def counts(folder: Path) -> dict[str, int]:
    found = json.loads((folder / "audit.json").read_text())["counts"]
    return {name: count for name, count in found.items() if count}


def test_every_prompt_is_counted_once(tmp_path: Path, source: Path) -> None:
    assert counts(contrasted(tmp_path, source)) == {
        "asked": 8,
        "longer than max_length": 1,
        "the sampled answer equals the data set's": 1,
        "kept": 3,
        "the sampled answer is empty": 1,
        "the sampled answer holds a NUL character": 1,
        "the sampled answer was cut": 1,
    }


def test_accepted_is_the_data_sets_answer_and_rejected_the_policys(tmp_path: Path, source: Path) -> None:
    folder = contrasted(tmp_path, source)
    pairs = read_records(folder / "preferences.jsonl", kind="pairs").records
    assert pairs == [PreferencePair(f"ask {number}", "good", ANSWERS[number]) for number in (1, 5, 6)]
    accepted = read_records(folder / "accepted.jsonl", kind="labelled").records
    rejected = read_records(folder / "rejected.jsonl", kind="labelled").records
    assert accepted == [LabelledText("good", 1, f"ask {number}") for number in (1, 5, 6)]
    assert rejected == [LabelledText(ANSWERS[number], 0, f"ask {number}") for number in (1, 5, 6)]


def test_people_are_shown_the_same_pairs_with_their_sides_drawn(tmp_path: Path, source: Path) -> None:
    folder = contrasted(tmp_path, source)
    shown = [comparison_from_row(json.loads(line)) for line in (folder / "comparisons.jsonl").read_text().splitlines()]
    assert [{one.left.text, one.right.text} for one in shown] == [{"good", ANSWERS[number]} for number in (1, 5, 6)]
    assert {one.left.text == "good" for one in shown} == {True, False}


def test_cut_answers_can_be_kept_and_are_marked(tmp_path: Path, source: Path) -> None:
    folder = contrasted(tmp_path, source, cut_answers="keep")
    assert counts(folder)["kept"] == 4
    pairs = read_records(folder / "preferences.jsonl", kind="pairs").records
    assert [pair.rejected for pair in pairs if not pair.rejected_ended] == ["cut"]


def test_a_reward_model_may_choose_instead_of_the_data(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its scores here: longer is better, so "other" is accepted over "good", and "fine" ties with it."""

    class Longer:
        truncation = None

        def score(self, prompts: Sequence[Any], completions: Sequence[Completion]) -> list[float]:
            return [float(len(completion.text)) for completion in completions]

    monkeypatch.setattr(stages_contrast, "read_reward_model", lambda *_, **__: (None, None))
    monkeypatch.setattr(stages_contrast, "ModelReward", lambda *_, **__: Longer())
    folder = contrasted(tmp_path, source, reward_model=str(tmp_path / "gpt2"))
    pairs = read_records(folder / "preferences.jsonl", kind="pairs").records
    assert [(pair.chosen, pair.rejected) for pair in pairs] == [("good", "own"), ("other", "good")]
    assert counts(folder)["the reward model scores both the same"] == 1
    assert counts(folder)["kept"] == 2


def test_nothing_left_is_an_error_and_the_account_is_written(tmp_path: Path, source: Path) -> None:
    with pytest.raises(DataError, match="stage pairs: no pair is left of 1 prompts"):
        contrasted(tmp_path, source, num_prompts=1)
    assert counts(tmp_path / "out" / "pairs")["the sampled answer equals the data set's"] == 1
