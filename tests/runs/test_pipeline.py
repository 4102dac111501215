"""The chain of stages: what is done, skipped, done again or taken up again, and what its summary holds."""

import copy
import fcntl
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from prefloop.errors import Interrupted, ModelError, RunError
from prefloop.runs import pipeline as pipeline_module
from prefloop.runs.pipeline import run_pipeline
from prefloop.runs.plan import fingerprint, plan
from prefloop.runs.progress import Progress
from prefloop.runs.stage_context import StageContext
from toy_recipes import pipeline_of, tutorials, world_and_sft, write_recipe

AGAIN = "prefloop run somewhere"


def run(recipe: dict[str, Any], folder: Path, *, quiet: bool = True) -> dict[str, Any]:
    return run_pipeline(pipeline_of(recipe), folder, progress=Progress(quiet=quiet), resume_command=AGAIN)


def actions(recipe: dict[str, Any], folder: Path) -> dict[str, str]:
    return {one.name: one.action for one in plan(pipeline_of(recipe), folder)}


def run_ids(folder: Path) -> dict[str, str]:
    return {file.parent.name: json.loads(file.read_text())["run_id"] for file in folder.glob("*/run.json")}


def without_seconds(summary: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in summary.items() if key not in ("wall_seconds", "next_commands")}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The whole loop, run once; tests that change it work on a copy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("whole") / "out"
    run(tutorials(), folder)
    yield folder
    torch.set_num_threads(before)


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


# What the summary holds


def test_the_whole_loop_leaves_the_documented_figures(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    dataset, reward, policies = summary["dataset"], summary["reward_model"], summary["policies"]
    assert {"pairs", "annotators_per_pair", "agreement_rate", "krippendorff_alpha"} <= dataset.keys()
    assert (dataset["pairs"], dataset["annotators_per_pair"]) == (12, 3.0)
    assert {"accuracy", "auc_concordance", "auc_oriented", "auc_pooled", "n"} <= reward.keys()
    assert all(0 <= reward[name] <= 1 for name in ("accuracy", "auc_concordance", "auc_oriented", "auc_pooled"))
    assert list(policies) == ["sft", "sft_greedy", "best_of_n", "dpo", "ppo"]
    for figures in policies.values():
        assert {
            "success_rate",
            "ci95",
            "n",
            "kl_from_reference",
            "mean_response_tokens",
            "distinct_2",
        } <= figures.keys()
        low, high = figures["ci95"]
        assert 0 <= low <= figures["success_rate"] <= high <= 1
        assert figures["n"] == 6
        assert 0 < figures["mean_response_tokens"] <= 16
    assert summary["wall_seconds"].keys() == tutorials()["stages"].keys()
    assert all(seconds > 0 for seconds in summary["wall_seconds"].values())
    assert summary["next_commands"] == [f"prefloop chat {finished}/ppo"]


def test_kl_is_measured_from_the_reference(finished: Path) -> None:
    policies = json.loads((finished / "summary.json").read_text())["policies"]
    assert policies["sft"]["kl_from_reference"] == 0.0
    assert policies["ppo"]["kl_from_reference"] != 0.0
    assert policies["sft_greedy"]["kl_from_reference"] is None
    assert policies["best_of_n"]["kl_is_bound"] is True
    assert policies["best_of_n"]["kl_from_reference"] == pytest.approx(math.log(2) - 1 / 2)


def test_turned_counts_the_same_prompts(finished: Path) -> None:
    turned = json.loads((finished / "summary.json").read_text())["turned"]
    assert (turned["before"], turned["after"], turned["n"]) == ("sft", "ppo", 6)
    assert len(turned["samples"]) == min(2, turned["num_gained"])


def test_every_stage_is_finished_and_knows_where_its_inputs_came_from(finished: Path) -> None:
    record = json.loads((finished / "pipeline.json").read_text())
    assert record["state"] == "finished"
    assert {stage["state"] for stage in record["stages"]} == {"finished"}
    parents = json.loads((finished / "ppo" / "run.json").read_text())["parents"]
    assert {(one["role"], one["path"]) for one in parents} == {
        ("policy", "../sft"),
        ("reward_model", "../reward"),
        ("prompts", "../world"),
        ("evaluation_prompts", "../world"),
    }


# What is done again


def test_a_second_run_changes_nothing_but_says_the_same(copied: Path) -> None:
    before = {file: file.stat().st_mtime_ns for file in copied.glob("*/*") if file.is_file()}
    ids = run_ids(copied)
    known = json.loads((copied / "summary.json").read_text())
    summary = run(tutorials(), copied)
    assert run_ids(copied) == ids
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert without_seconds(json.loads(json.dumps(summary))) == without_seconds(known)


@pytest.mark.parametrize(
    ("stage", "change", "reason", "redone"),
    [
        ("policies", {"num_samples": 7}, "num_samples was 6 and is 7", {"policies"}),
        (
            "dpo",
            {"training": {"num_epochs": 1, "batch_size": 3}},
            "training.batch_size was 4 and is 3",
            {"dpo", "policies"},
        ),
        ("reward", {"seed": 11}, "seed was None and is 11", {"reward", "ppo", "reward_report", "policies"}),
        (
            "labels",
            {"slope": 1.0},
            "slope was 3.0 and is 1.0",
            {"labels", "reward", "dpo", "ppo", "reward_report", "policies"},
        ),
    ],
)
def test_a_changed_setting_redoes_its_stage_and_what_depends_on_it(
    finished: Path, stage: str, change: dict[str, Any], reason: str, redone: set[str]
) -> None:
    recipe = tutorials()
    recipe["stages"][stage] |= change
    found = actions(recipe, finished)
    assert {name for name, action in found.items() if action != "done already"} == redone
    assert found[stage] == f"to do again, because {reason}"


def test_a_setting_that_is_new_and_says_nothing_makes_no_stage_again(copied: Path) -> None:
    """A folder of an older version: its records lack a setting, and so did what its fingerprint was made of."""
    recipe = tutorials()
    older = pipeline_of(recipe)
    place = copied / "policies"
    stage = older.stages["policies"]
    known = {name: json.loads((copied / name / "provenance.json").read_text())["fingerprint"] for name in older.stages}
    settings = stage.model_dump(mode="json")
    assert settings.pop("num_shown") == type(stage).model_fields["num_shown"].default
    settings["judge"].pop("reward_model")
    (place / "config.yaml").write_text(yaml.safe_dump(settings))
    facts = json.loads((place / "provenance.json").read_text())
    facts["fingerprint"] = fingerprint(older, stage, known, own=settings)
    (place / "provenance.json").write_text(json.dumps(facts))
    assert actions(recipe, copied)["policies"] == "done already"
    recipe["stages"]["policies"]["num_shown"] = 3
    assert actions(recipe, copied)["policies"] == "to do again, because num_shown is set to 3"
    recipe["stages"]["policies"] |= {"num_shown": 6, "num_samples": 7}
    assert actions(recipe, copied)["policies"] == "to do again, because num_samples was 6 and is 7"


def test_a_stage_is_made_anew_and_the_others_stay(copied: Path) -> None:
    ids = run_ids(copied)
    recipe = tutorials()
    recipe["stages"]["policies"] |= {"num_samples": 4}
    summary = run(recipe, copied)
    assert {name for name, known in run_ids(copied).items() if known != ids[name]} == {"policies"}
    assert summary["policies"]["ppo"]["n"] == 4


def test_a_default_model_matters_to_those_that_use_it_only(tmp_path: Path) -> None:
    recipe = world_and_sft()
    run(recipe, tmp_path)
    assert set(actions(recipe | {"model": "some/other"}, tmp_path).values()) == {"done already"}
    anew = actions(recipe | {"seed": 4}, tmp_path)
    assert anew["world"] == "to do again, because the seed, the precision or a file that it reads changed"
    assert anew["sft"] == "to do again, because world is made again"


def test_a_changed_file_from_outside_is_noticed(tmp_path: Path) -> None:
    recipe = world_and_sft()
    run(recipe, tmp_path / "out")
    outside = tmp_path / "demonstrations.jsonl"
    shutil.copy(tmp_path / "out" / "world" / "demonstrations.jsonl", outside)
    recipe["stages"]["sft"]["train"] = [str(outside)]
    run(recipe, tmp_path / "out")
    assert actions(recipe, tmp_path / "out")["sft"] == "done already"
    outside.write_text(outside.read_text(encoding="utf-8").replace(".", "!", 1), encoding="utf-8")
    assert actions(recipe, tmp_path / "out")["sft"].startswith("to do again")


# Damage


def test_a_missing_model_is_made_again_with_what_was_made_from_it(copied: Path) -> None:
    shutil.rmtree(copied / "reward" / "final")
    found = actions(tutorials(), copied)
    assert found["reward"] == "to do again, because its final is missing"
    assert found["ppo"] == "to do again, because reward is made again"
    assert found["policies"].startswith("to do again, because")
    assert found["dpo"] == found["sft"] == "done already"


def test_what_was_made_from_an_earlier_run_of_its_parent_is_made_again(copied: Path) -> None:
    """The parent was made anew and the process ended before its child was."""
    record = copied / "reward" / "run.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"run_id": "another"}))
    found = actions(tutorials(), copied)
    assert found["reward"] == "done already"
    assert found["ppo"] == "to do again, because reward is made again"


@pytest.mark.parametrize("name", ["run.json", "provenance.json"])
def test_a_damaged_record_is_an_error_that_says_what_to_delete(copied: Path, name: str) -> None:
    (copied / "sft" / name).write_text('{"schema_ver')
    with pytest.raises(RunError, match=rf"{name} cannot be read.*elete .*sft to make it anew"):
        run(tutorials(), copied)


@pytest.mark.parametrize("state", ["running", "failed", "interrupted"])
def test_a_stage_that_did_not_finish_is_not_mistaken_for_finished(copied: Path, state: str) -> None:
    for name in ("labels", "sft"):
        record = copied / name / "run.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"state": state}))
    found = actions(tutorials(), copied)
    assert found["labels"] == "to do again, because pairs is made again"
    assert found["sft"] == "to do again, because it was not finished"
    (copied / "sft" / "checkpoints").mkdir()
    assert actions(tutorials(), copied)["sft"] == "goes on from its last checkpoint"


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    precious = tmp_path / "world" / "thesis.txt"
    precious.write_text("years of work")
    with pytest.raises(RunError, match="holds files that are no run of ours"):
        run(world_and_sft(), tmp_path)
    shutil.rmtree(tmp_path / "world")
    (tmp_path / "config.yaml").write_text("mine: true\n")
    with pytest.raises(RunError, match=r"holds a config\.yaml that is not of a pipeline"):
        run(world_and_sft(), tmp_path)
    assert (tmp_path / "config.yaml").read_text() == "mine: true\n"


def test_two_processes_do_not_work_in_one_folder(tmp_path: Path) -> None:
    recipe = world_and_sft()
    with (tmp_path / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RunError, match="another prefloop is at work"):
            run(recipe, tmp_path)
    assert not (tmp_path / "world").exists()
    run(recipe, tmp_path)


def test_planning_writes_nothing(tmp_path: Path) -> None:
    assert set(actions(tutorials(), tmp_path / "out").values()) == {"to do"}
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_cannot_be_had_fails_before_the_first_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(name: str) -> None:
        raise ModelError(f"could not load {name}")

    monkeypatch.setattr(pipeline_module, "require_model", refuse)
    recipe = tutorials()
    recipe["stages"]["dpo"] |= {"reference": "no-such/model"}
    with pytest.raises(ModelError, match="no-such/model"):
        run(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Stopping


def test_ctrl_c_outside_training_is_an_interruption_that_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(settings: Any, context: StageContext) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setitem(pipeline_module.RUNNERS, "world", stopped)
        with pytest.raises(Interrupted, match=rf"stopped at once in world.*To go on: {AGAIN}"):
            run(world_and_sft(), tmp_path)
    assert json.loads((tmp_path / "pipeline.json").read_text())["state"] == "interrupted"
    assert json.loads((tmp_path / "world" / "run.json").read_text())["state"] == "interrupted"
    run(world_and_sft(), tmp_path)
    assert json.loads((tmp_path / "pipeline.json").read_text())["state"] == "finished"


def test_an_error_names_its_stage_and_is_on_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(settings: Any, context: StageContext) -> None:
        raise ModelError("the weights are gone")

    monkeypatch.setitem(pipeline_module.RUNNERS, "sft", failing)
    with pytest.raises(ModelError, match=r"^stage sft: the weights are gone$"):
        run(world_and_sft(), tmp_path)
    record = json.loads((tmp_path / "pipeline.json").read_text())
    assert [record["state"], *(stage["state"] for stage in record["stages"])] == ["failed", "finished", "failed"]


def command(recipe: Path, folder: Path) -> list[str]:
    return [sys.executable, "-m", "prefloop.cli.main", "run", str(recipe), "--output", str(folder), "--quiet"]


def started(arguments: list[str]) -> "subprocess.Popen[str]":
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_step(metrics: Path, process: "subprocess.Popen[str]", step: int) -> None:
    """Until the stage has that many lines on record."""
    deadline = time.monotonic() + 120
    while not metrics.exists() or metrics.read_bytes().count(b"\n") < step:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def evaluated_after(num_steps: int) -> dict[str, Any]:
    """Enough steps to stop in the middle, and an evaluation of what came out."""
    recipe = world_and_sft(num_steps)
    recipe["stages"]["sft"] |= {"checkpoint_every_steps": 20}
    recipe["stages"]["policies"] = tutorials()["stages"]["policies"] | {
        "policies": {"sft": "sft"},
        "reward_model": None,
        "best_of_n": None,
    }
    return recipe


NUM_STEPS = 250


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("uninterrupted") / "out"
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    run(evaluated_after(NUM_STEPS), folder)
    torch.set_num_threads(before)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "sft" / "final" / "model.safetensors")


def assert_same_outcome(folder: Path, other: Path) -> None:
    mine, theirs = weights(folder), weights(other)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    summaries = [json.loads((one / "summary.json").read_text()) for one in (folder, other)]
    assert without_seconds(summaries[0]) == without_seconds(summaries[1])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_run_stopped_in_training_ends_as_an_uninterrupted_one(
    number: signal.Signals, uninterrupted: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", evaluated_after(NUM_STEPS))
    folder = tmp_path / "out"
    process = started(command(recipe, folder))
    wait_for_step(folder / "sft" / "metrics.jsonl", process, 30)
    process.send_signal(number)
    _, words = process.communicate(timeout=60)
    known = run_ids(folder)
    record = json.loads((folder / "sft" / "run.json").read_text())
    assert record["state"] != "finished"
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert record["state"] == "interrupted"
        assert json.loads((folder / "pipeline.json").read_text())["state"] == "interrupted"
        assert f"To go on: prefloop run {folder}/config.yaml --output {folder}" in words
        assert "Traceback" not in words
    run(copy.deepcopy(evaluated_after(NUM_STEPS)), folder)
    assert known.items() <= run_ids(folder).items(), "a stage was begun anew"
    assert_same_outcome(folder, uninterrupted)
