"""A pipeline's folder and a single run's folder as training leaves them; a browser for the label pages."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from report_examples import ALARMS, SUMMARY, ppo_rows, write_stage

from prefloop.contracts import Sample
from prefloop.records import Message
from prefloop.runs.folder import Parent

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    """A browser without a window."""
    from playwright.sync_api import sync_playwright

    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("Chromium is not installed; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


@pytest.fixture
def pipeline_folder(tmp_path: Path) -> Path:
    """Seven stages, the last without a folder yet."""
    path = tmp_path / "tutorials-demo"
    write_stage(path / "sft", "sft", parents=(Parent("demonstrations", "data/demonstrations.jsonl", "0" * 64),))
    write_stage(path / "collection", "collection", rows=[])
    write_stage(path / "reward_model", "reward_modelling", parents=(Parent("base", "../sft/final", "1" * 64),))
    write_stage(path / "dpo", "dpo", parents=(Parent("policy", "../sft/final", "2" * 64),))
    parents = (Parent("policy", "../sft/final", "3" * 64), Parent("reward", "../reward_model/final", "4" * 64))
    write_stage(path / "ppo", "ppo", parents=parents, rows=ppo_rows(turns_at=24))
    write_stage(path / "ppo_unguarded", "ppo", parents=parents, rows=ppo_rows(turns_at=10), alarms=ALARMS)
    kinds = ("sft", "collection", "reward_modelling", "dpo", "ppo", "ppo")
    stages = [
        {"name": name, "kind": kind, "folder": name, "state": "finished", "seconds": 12.5 * number}
        for number, (name, kind) in enumerate(
            zip(("sft", "collection", "reward_model", "dpo", "ppo", "ppo_unguarded"), kinds, strict=True), start=1
        )
    ]
    stages.append(
        {"name": "evaluation", "kind": "evaluation", "folder": "evaluation", "state": "running", "seconds": None}
    )
    pipeline = {
        "schema_version": 1,
        "name": "tutorials-demo",
        "recipe": "tutorials",
        "seed": 7,
        "state": "finished",
        "stages": stages,
    }
    (path / "pipeline.json").write_text(json.dumps(pipeline), encoding="utf-8")
    (path / "summary.json").write_text(json.dumps(SUMMARY), encoding="utf-8")
    return path


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """One PPO run with samples over time."""
    alarms = [{"stage": "ppo", "step": None, "message": "Most answers were cut."}]
    run = write_stage(tmp_path / "ppo", "ppo", rows=ppo_rows(turns_at=10), alarms=alarms)
    prompts = ("How do I mend a tyre?", (Message("system", "Be brief."), Message("user", "Why is the sky blue?")))
    for step in (0, 12, 24):
        samples = [
            Sample(prompt, f"answer {number} of step {step}", {"score": 0.5 * step})
            for number, prompt in enumerate(prompts)
        ]
        run.append_samples(step, samples, kind="evaluate")
        run.append_samples(step, [Sample("not shown", "a rollout", {})], kind="train")
    run.write_summary({"score": 2.88, "steps": 24, "best_checkpoint": None, "nested": {"left": "out"}})
    return run.path
