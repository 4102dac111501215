"""docs/metrics.md explains every name that a run writes, and none that it does not.

The names come from real runs: each algorithm drives one step of a tiny model, and its metrics.jsonl is read.
"""

import dataclasses
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from prefloop.algorithms import ALGORITHMS, dpo, ppo, reward_modelling, sft
from prefloop.batches import TokenGroup
from prefloop.evaluation.overoptimisation import Alarm
from prefloop.evaluation.reward_report import RewardReport
from prefloop.models.backbone import Backbone
from prefloop.models.from_scratch import new_model, train_tokenizer
from prefloop.models.policy import Policy
from prefloop.models.scalar_heads import ScalarModel
from prefloop.records import Completion
from prefloop.rollouts.rewards import ConstantReward
from prefloop.runs.drive import WALL_CLOCK_FIELDS, DriveSettings, drive
from prefloop.runs.folder import RunFolder
from prefloop.runs.progress import Progress

DOCUMENT = Path(__file__).parents[2] / "docs" / "metrics.md"
LOOP_NAMES = WALL_CLOCK_FIELDS | {"step", "num_tokens"}

PROMPT, CHOSEN, REJECTED = (5, 6, 7), (8, 9), (10, 11, 12)
PAIRS = [TokenGroup(PROMPT, (CHOSEN, REJECTED))] * 2
TEXTS = [TokenGroup(PROMPT, (CHOSEN,))] * 2


def documented(section: str) -> dict[str, list[str]]:
    """Name to the other cells of its row, of the tables below the heading `section`."""
    text = DOCUMENT.read_text("utf-8")
    body = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    (own,) = [part for part in body if part.startswith(f"{section}\n")]
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", own, flags=re.MULTILINE)
    names = [name for name, _ in rows]
    assert len(names) == len(set(names)), f"{section} explains a name twice"
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in rows}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(["one two three"], vocabulary_size=300)


@pytest.fixture
def policy(tokenizer: Any) -> Callable[[], Policy]:
    def new() -> Policy:
        model = new_model(
            "llama", tokenizer, hidden_size=8, num_layers=1, num_heads=1, max_length=32, seed=0, intermediate_size=8
        )
        return Policy(Backbone(model), tokenizer)

    return new


def scalar(policy: Policy) -> ScalarModel:
    return ScalarModel(policy.backbone, policy.tokenizer)


class OneAnswer:
    """A generator that always says the same, with log-probabilities of its own."""

    def generate(self, prompts: Any, *, sampling: Any, random: torch.Generator) -> list[Completion]:
        return [Completion("two", token_ids=CHOSEN, logprobs=(-1.0, -1.0)) for _ in prompts]


def algorithm(name: str, policy: Callable[[], Policy]) -> Any:
    """A small instance with everything switched on that writes a metric of its own."""
    one_epoch: dict[str, Any] = {"num_epochs": 1.0, "batch_size": 2}
    if name == "sft":
        return sft.SFT(policy(), TEXTS, config=sft.Config(**one_epoch), seed=0, evaluation_groups=TEXTS)
    if name == "reward_modelling":
        config = reward_modelling.Config(**one_epoch)
        return reward_modelling.RewardModelling(
            scalar(policy()), PAIRS, [1.0, 0.5], config=config, seed=0,
            evaluation_groups=PAIRS, evaluation_targets=[1.0, 1.0],
        )  # fmt: skip
    if name == "dpo":
        return dpo.DPO(
            policy(), policy(), PAIRS, [1.0, 0.5], config=dpo.Config(**one_epoch), seed=0,
            evaluation_groups=PAIRS, evaluation_agreement=[1.0, 1.0],
        )  # fmt: skip
    assert name == "ppo", f"{name} is a new algorithm: build a small instance of it here"
    settings: dict[str, Any] = {"num_steps": 1, "rollouts_per_step": 2, "minibatch_size": 2, "max_new_tokens": 2}
    return ppo.PPO(
        policy(), policy(), scalar(policy()), ConstantReward(), OneAnswer(), ["a", "b"], [PROMPT, PROMPT],
        config=ppo.Config(**settings), seed=0,
        evaluation_prompts=["a", "b"], evaluation_prompt_ids=[PROMPT, PROMPT], judge=ConstantReward(),
    )  # fmt: skip


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_metric_of_an_algorithm_is_explained(name: str, policy: Callable[[], Policy], tmp_path: Path):
    folder = RunFolder.create(tmp_path, name=name, algorithm=name, seed=0)
    drive(
        algorithm(name, policy),
        folder,
        settings=DriveSettings(),
        progress=Progress(quiet=True, console=Console(file=io.StringIO())),
        resume_command="",
    )
    written = {key for row in folder.read_metrics() for key in row}
    assert {"step", "num_tokens", "seconds", "evaluate/seconds"} <= written
    assert written - LOOP_NAMES == documented(name).keys()
    assert set(ALGORITHMS[name][0].headline) <= documented(name).keys() | LOOP_NAMES


def test_every_metric_of_the_loop_is_explained():
    assert documented("Every stage").keys() == LOOP_NAMES


@pytest.mark.parametrize(
    ("section", "record"), [("The reward report", RewardReport), ("Over-optimisation alarms", Alarm)]
)
def test_every_field_of_an_evaluation_is_explained(section: str, record: type):
    assert documented(section).keys() == {field.name for field in dataclasses.fields(record)}


@pytest.mark.parametrize("section", ["Every stage", *ALGORITHMS, "The reward report", "Over-optimisation alarms"])
def test_every_explanation_has_meaning_unit_and_direction(section: str):
    for name, cells in documented(section).items():
        assert len(cells) == 3, f"{name}: a row has meaning, unit and good direction"
        assert all(cells), f"{name}: a cell is empty"
