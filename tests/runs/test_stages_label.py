"""Labelling as a stage: simulated annotators in this process and over HTTP, and people through their store."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from prefloop.collection.annotators import cast
from prefloop.collection.label_records import Submission
from prefloop.collection.store import open_store
from prefloop.errors import DataError, RunError
from prefloop.runs import stages_label
from prefloop.runs.pipeline import run_pipeline
from prefloop.runs.progress import Progress
from prefloop.runs.stages_data import read_comparisons
from prefloop.runs.stages_label import label_server
from prefloop.runs.stored_pairs import stored_pairs
from prefloop.worlds import tutorials as world
from toy_recipes import pipeline_of, tutorials


def labelled(folder: Path, **label: Any) -> dict[str, Any]:
    recipe = tutorials()
    kept = {name: recipe["stages"][name] for name in ("world", "sft", "pairs", "labels")}
    kept["labels"] = kept["labels"] | label
    whole = recipe | {"stages": kept, "next_commands": []}
    return run_pipeline(pipeline_of(whole), folder, progress=Progress(quiet=True), resume_command="again")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").strip().split("\n")]


def test_over_http_every_annotator_labels_every_pair_and_the_run_goes_on(tmp_path: Path) -> None:
    summary = labelled(tmp_path, by="simulated_over_http")
    num_pairs = len(rows(tmp_path / "pairs" / "comparisons.jsonl"))
    labels = rows(tmp_path / "labels" / "labels.jsonl")
    names = {one.name for one in cast(world.gold_score)}
    assert {(one["pair_id"], one["annotator"]) for one in labels} == {
        (one["pair_id"], name) for one in rows(tmp_path / "pairs" / "comparisons.jsonl") for name in names
    }
    assert len(labels) == 3 * num_pairs == summary["dataset"]["labels"]
    with open_store(tmp_path / "labels" / "labels.db", must_exist=True) as store:
        assert store.check() == []
        stored = {(one.pair_id, one.annotator): one.choice for one in store.current_labels()}
    assert stored == {(one["pair_id"], one["annotator"]): one["choice"] for one in labels}
    assert rows(tmp_path / "labels" / "preferences.jsonl")


def test_annotators_over_http_choose_by_the_same_judgement(tmp_path: Path) -> None:
    """A slope so steep that chance has no say: both ways must give the same choices wherever the gold scores differ."""
    labelled(tmp_path / "here", slope=1e6)
    labelled(tmp_path / "there", slope=1e6, by="simulated_over_http")
    pairs = {one.pair_id: one for one in read_comparisons(str(tmp_path / "here" / "pairs" / "comparisons.jsonl"))}
    clear = {
        name
        for name, one in pairs.items()
        if world.gold_score(one.prompt, one.left) != world.gold_score(one.prompt, one.right)
    }
    assert clear
    careful = [
        {
            one["pair_id"]: one["choice"]
            for one in rows(place / "labels" / "labels.jsonl")
            if one["annotator"] == "Clara"
        }
        for place in (tmp_path / "here", tmp_path / "there")
    ]
    # Clara lapses once in a hundred, and then tosses a coin.
    differing = {name for name in clear if careful[0][name] != careful[1][name]}
    assert len(differing) <= 1


class PeopleAtTheStore:
    """Stands in for the server and for the people at it: once the page would be up, somebody labels."""

    def __init__(self, num: int) -> None:
        self.num = num

    def __call__(self, place: Path, *, opens_browser: bool = False) -> "PeopleAtTheStore":
        assert opens_browser
        self.place = place
        return self

    def __enter__(self) -> str:
        self.thread = threading.Thread(target=self.label)
        self.thread.start()
        return "http://127.0.0.1:1"

    def __exit__(self, *reason: object) -> None:
        self.thread.join()

    def label(self) -> None:
        with open_store(self.place) as store:
            store.add_account("me", role="admin")
            for number in range(self.num):
                (task,) = store.next_tasks("me")
                choice = "tie" if number == 0 else "left"
                store.submit(
                    "me",
                    Submission(
                        submission_id=f"submission-{number}",
                        task_id=task.task_id,
                        choice=choice,
                        opened_at=time.time(),
                        submitted_at=time.time(),
                    ),
                )


def test_people_label_until_there_is_enough_and_their_labels_outlive_the_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages_label, "label_server", PeopleAtTheStore(5))
    monkeypatch.setattr(stages_label, "POLL_SECONDS", 0.01)
    labelled(tmp_path, by="people", enough_pairs=4, guidelines="Be fair.")
    labels = rows(tmp_path / "labels" / "labels.jsonl")
    # A tie is a label, and no preference can come from it alone.
    assert [one["choice"] for one in labels].count("tie") == 1
    assert len(rows(tmp_path / "labels" / "preferences.jsonl")) == 4
    with open_store(tmp_path / "labels_labels.db", must_exist=True) as store:
        assert store.settings.guidelines == "Be fair."

    def nobody(*arguments: object, **settings: object) -> None:
        raise AssertionError("there are enough labels, so nobody is asked")

    monkeypatch.setattr(stages_label, "label_server", nobody)
    for file in (tmp_path / "labels").iterdir():
        file.unlink()
    (tmp_path / "labels").rmdir()
    labelled(tmp_path, by="people", enough_pairs=4, guidelines="Be fair.")
    assert rows(tmp_path / "labels" / "labels.jsonl") == labels


def test_a_server_that_ends_at_once_is_an_error_and_no_endless_wait(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="ended at once with status 1"), label_server(tmp_path / "missing.db"):
        pass


def test_two_writers_answer_each_pair_and_no_side_is_always_the_same(tmp_path: Path) -> None:
    recipe = tutorials()
    kept = {name: recipe["stages"][name] for name in ("world", "sft", "pairs")}
    kept["pairs"] |= {"other_temperature": 0.5, "num_pairs": 40, "candidates_per_prompt": 2}
    whole = recipe | {"stages": kept, "next_commands": []}
    run_pipeline(pipeline_of(whole), tmp_path, progress=Progress(quiet=True), resume_command="again")
    pairs = read_comparisons(str(tmp_path / "pairs" / "comparisons.jsonl"))
    writers = {"sft at temperature 1", "sft at temperature 0.5"}
    assert all({one.left.source, one.right.source} == writers for one in pairs)
    assert {one.left.source for one in pairs} == writers
    assert all(set(one.details["sources"]) == writers for one in pairs)
    facts = pairs[0].details["sources"]["sft at temperature 0.5"]
    assert (facts["temperature"], facts["policy"]) == (0.5, "sft")
    assert facts["run"] == json.loads((tmp_path / "sft" / "run.json").read_text())["run_id"]


def test_reward_models_give_margins_and_disagreement(tmp_path: Path) -> None:
    recipe = tutorials()
    kept = {name: recipe["stages"][name] for name in ("world", "sft", "pairs", "labels", "reward")}
    kept["other_reward"] = kept["reward"] | {"seed": 9, "training": {"num_epochs": 2, "batch_size": 4}}
    asked = kept["pairs"] | {"num_pairs": 6}
    kept["one"] = asked | {"reward_models": ["reward"]}
    kept["other"] = asked | {"reward_models": ["other_reward"]}
    kept["both"] = asked | {"reward_models": ["reward", "other_reward"]}
    whole = recipe | {"stages": kept, "next_commands": []}
    run_pipeline(pipeline_of(whole), tmp_path, progress=Progress(quiet=True), resume_command="again")
    one, other, both = (stored_pairs(tmp_path / name) for name in ("one", "other", "both"))
    assert all(pair.disagreement is None for pair in one)
    for first, second, joined in zip(one, other, both, strict=True):
        assert first.margin is not None
        assert second.margin is not None
        assert joined.margin == pytest.approx((first.margin + second.margin) / 2, abs=1e-5)
        # The spread of two numbers is half their distance.
        assert joined.disagreement == pytest.approx(abs(first.margin - second.margin) / 2, abs=1e-5)
    assert len({pair.margin for pair in one}) > 1


def test_pairs_of_two_runs_meet_in_one_project(tmp_path: Path) -> None:
    recipe = tutorials()
    kept = {name: recipe["stages"][name] for name in ("world", "sft", "pairs")}
    whole = recipe | {"stages": kept, "next_commands": []}
    for name in ("first", "second"):
        run_pipeline(pipeline_of(whole), tmp_path / name, progress=Progress(quiet=True), resume_command="again")
    first, second = (stored_pairs(tmp_path / name / "pairs") for name in ("first", "second"))
    with open_store(tmp_path / "labels.db") as store:
        assert store.add_pairs(first).num_added == len(first)
        assert store.add_pairs(second).num_added == len(second)
        assert store.add_pairs(first).num_known == len(first)


def test_pairs_with_an_empty_answer_are_not_shown_and_said_to_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = tutorials()
    kept = {name: recipe["stages"][name] for name in ("world", "sft", "pairs")}
    whole = recipe | {"stages": kept, "next_commands": []}
    run_pipeline(pipeline_of(whole), tmp_path / "pairs", progress=Progress(quiet=True), resume_command="again")
    found = rows(tmp_path / "pairs" / "pairs" / "comparisons.jsonl")
    found[0]["left"]["text"] = " "
    file = tmp_path / "pairs" / "pairs" / "comparisons.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in found), encoding="utf-8")
    assert len(stored_pairs(tmp_path / "pairs" / "pairs")) == len(found) - 1
    labels = {"kind": "label", "comparisons": str(file), "by": "simulated_over_http"}
    only = {"name": "only", "stages": {"labels": labels}}
    run_pipeline(pipeline_of(only), tmp_path / "labels", progress=Progress(), resume_command="again")
    assert "1 pairs with an empty answer are not shown" in capsys.readouterr().err
    assert len(rows(tmp_path / "labels" / "labels" / "labels.jsonl")) == 3 * (len(found) - 1)


def test_a_store_with_other_pairs_under_the_same_names_is_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages_label, "label_server", PeopleAtTheStore(5))
    monkeypatch.setattr(stages_label, "POLL_SECONDS", 0.01)
    labelled(tmp_path, by="people", enough_pairs=4)
    file = tmp_path / "pairs" / "comparisons.jsonl"
    changed = file.read_text(encoding="utf-8").replace('"prompt": "', '"prompt": "Please: ')
    file.write_text(changed, encoding="utf-8")
    (tmp_path / "labels" / "run.json").unlink()
    for one in (tmp_path / "labels").iterdir():
        one.unlink()
    (tmp_path / "labels").rmdir()
    with pytest.raises(DataError, match="labels"):
        labelled(tmp_path, by="people", enough_pairs=4)
