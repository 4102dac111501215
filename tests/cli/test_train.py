"""prefloop train: one stage from one recipe, stopped and taken up again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from command_line import Prefloop

from toy_recipes import SCRATCH, write_recipe


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A small model on forty demonstrations, 300 steps."""
    rows = [{"prompt": f"How is {number}?", "completion": f"It is {number % 7}."} for number in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    stage = {
        "kind": "sft",
        "from_scratch": SCRATCH | {"sentence_min_count": None, "vocabulary_size": 300},
        "train": [str(tmp_path / "rows.jsonl")],
        "max_length": 64,
        "training": {"num_epochs": 30, "batch_size": 4},
    }
    return write_recipe(tmp_path / "recipe.yaml", {"name": "toy", "seed": 2, "stage": stage})


def test_a_model_is_trained_and_what_comes_next_is_said(prefloop: Prefloop, recipe: Path) -> None:
    done = prefloop("train", recipe, "stage.training.num_epochs=0.2", "--output", "model")
    assert done.code == 0, done.err
    assert done.out == "The model: model/final\nThe report: model/report.html\nNext:\n  prefloop chat model\n"
    assert prefloop("chat", "model", "--max-new-tokens", "3", typed="How?\n").code == 0
    done = prefloop("train", recipe, "--output", "model")
    assert done.code == 1
    assert "model already holds a run" in done.err
    done = prefloop("train", "model/config.yaml", "--resume", "model")
    assert done.code == 1
    assert "model is finished: there is nothing to resume" in done.err


def test_without_output_the_folder_is_named_after_time_and_recipe(prefloop: Prefloop, recipe: Path) -> None:
    assert prefloop("train", recipe, "stage.training.num_epochs=0.1", "--quiet").code == 0
    (folder,) = Path("runs").iterdir()
    assert folder.name.endswith("_toy")


def test_a_dry_run_shows_the_settings_and_writes_nothing(prefloop: Prefloop, recipe: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    done = prefloop("train", recipe, "seed=8", "--dry-run")
    assert done.code == 0
    assert "seed: 8" in done.out
    done = prefloop("train", recipe, "stage.train=[nowhere.jsonl]", "--dry-run")
    assert done.code == 2
    assert "stage.train: there is no file or folder nowhere.jsonl" in done.err
    assert sorted(tmp_path.iterdir()) == before


def test_ctrl_c_saves_and_resume_ends_with_the_same_model(prefloop: Prefloop, recipe: Path, tmp_path: Path) -> None:
    assert prefloop("train", recipe, "--output", "straight", "--quiet").code == 0
    arguments = [sys.executable, "-m", "prefloop.cli.main", "train", str(recipe), "--output", "stopped", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(arguments, env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    metrics = Path("stopped/metrics.jsonl")
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < 5:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "SIGINT stopped the run after step" in words
    assert "To go on: prefloop train stopped/config.yaml --resume stopped" in words
    assert json.loads(Path("stopped/run.json").read_text())["state"] == "interrupted"
    done = prefloop("train", recipe, "seed=5", "--resume", "stopped")
    assert done.code == 1
    assert "stopped was made with other settings or other data: resume it with its own config.yaml" in done.err
    assert prefloop("train", "stopped/config.yaml", "--resume", "stopped").code == 0
    weights = [Path(name, "final", "model.safetensors").read_bytes() for name in ("straight", "stopped")]
    assert weights[0] == weights[1]


def test_a_folder_that_holds_no_run_cannot_be_resumed(prefloop: Prefloop, recipe: Path, tmp_path: Path) -> None:
    done = prefloop("train", recipe, "--resume", tmp_path)
    assert done.code == 1
    assert "is not a run: it has no run.json" in done.err
