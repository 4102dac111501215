"""A run folder: whole files or none, nothing that is not JSON, and records that end where a checkpoint stands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prefloop.contracts import Sample
from prefloop.errors import RunError
from prefloop.records import Message
from prefloop.runs import folder as folder_module
from prefloop.runs.folder import Parent, RunFolder, json_text, replace_atomically


class Crash(BaseException):
    """Stands in for the end of the process: nothing in the product catches it."""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", name="first", algorithm="sft", seed=3)


def test_a_new_run_is_on_record(tmp_path: Path) -> None:
    parent = Parent("model", "runs/sft", "abc")
    made = RunFolder.create(tmp_path / "a" / "b", name="first", algorithm="ppo", seed=7, parents=[parent])
    record = json.loads((tmp_path / "a" / "b" / "run.json").read_text())
    assert record["schema_version"] == 1
    assert (record["name"], record["algorithm"], record["seed"], record["state"]) == ("first", "ppo", 7, "running")
    assert record["parents"] == [{"role": "model", "path": "runs/sft", "fingerprint": "abc"}]
    assert record["ended_at"] is None
    again = RunFolder(made.path)
    assert (again.run_id, again.parents, again.started_at) == (made.run_id, (parent,), made.started_at)


def test_a_run_is_never_created_twice(run: RunFolder) -> None:
    with pytest.raises(RunError, match="already holds a run"):
        RunFolder.create(run.path, name="second", algorithm="sft", seed=0)


def test_two_runs_have_two_ids(tmp_path: Path) -> None:
    made = [RunFolder.create(tmp_path / name, name="x", algorithm="sft", seed=0) for name in "ab"]
    assert made[0].run_id != made[1].run_id


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "it has no run.json"),
        ("{", "cannot be read"),
        ("[]", "schema version None"),
        ('{"schema_version": 99}', "schema version 99; this prefloop reads version 1"),
        ('{"schema_version": 1, "name": "x"}', "lacks algorithm, outputs"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=message):
        RunFolder(tmp_path)


def test_marks_set_state_reason_and_end(run: RunFolder) -> None:
    run.mark("failed", "the disk is full")
    again = RunFolder(run.path)
    assert (again.state, again.reason, again.is_finished) == ("failed", "the disk is full", False)
    assert again.ended_at is not None
    run.mark("running")
    again = RunFolder(run.path)
    assert (again.state, again.reason, again.ended_at) == ("running", None, None)
    run.mark("finished")
    assert RunFolder(run.path).is_finished
    with pytest.raises(ValueError, match="no state of a run"):
        run.mark("done")  # pyright: ignore[reportArgumentType]


def test_parents_and_outputs_are_kept_with_the_run(run: RunFolder, tmp_path: Path) -> None:
    run.add_parent(Parent("data", "a.jsonl", "1"))
    run.add_parent(Parent("data", "a.jsonl", "2"))
    assert RunFolder(run.path).parents == (Parent("data", "a.jsonl", "2"),)
    (run.path / "final").mkdir()
    run.add_output("model", run.path / "final")
    assert json.loads((run.path / "run.json").read_text())["outputs"] == {"model": "final"}
    assert RunFolder(run.path).outputs == {"model": run.path / "final"}
    for wrong in (tmp_path, run.path / "missing"):
        with pytest.raises(RunError, match="must exist inside the run"):
            run.add_output("model", wrong)


def test_json_knows_no_nan() -> None:
    text = json_text({"a": float("nan"), "b": [float("inf"), 1.5], "c": (float("-inf"), None), "d": 0.1})
    assert text == '{"a": null, "b": [null, 1.5], "c": [null, null], "d": 0.1}'
    with pytest.raises(TypeError):
        json_text({"a": object()})


def test_metrics_and_samples_come_back_in_order(run: RunFolder) -> None:
    assert run.read_metrics() == []
    run.append_metrics(0, {"evaluate/loss": 0.5})
    run.append_metrics(1, {"train/loss": float("nan"), "num_tokens": 12})
    sample = Sample((Message("user", "a\u2028b"),), "é\n", {"reward": 0.25})
    run.append_samples(1, [sample, Sample("p", "c")], kind="evaluate")
    assert run.read_metrics() == [
        {"step": 0, "evaluate/loss": 0.5},
        {"step": 1, "train/loss": None, "num_tokens": 12},
    ]
    first, second = run.read_samples()
    assert first["prompt"] == [{"role": "user", "content": "a\u2028b"}]
    assert (first["completion"], first["details"], first["kind"]) == ("é\n", {"reward": 0.25}, "evaluate")
    assert second["prompt"] == "p"


def test_a_line_cut_short_does_not_count_and_goes_on_resume(run: RunFolder) -> None:
    for step in range(4):
        run.append_metrics(step, {"loss": float(step)})
        run.append_samples(step, [Sample("p", str(step))], kind="train")
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 4, "lo')
    assert [row["step"] for row in run.read_metrics()] == [0, 1, 2, 3]
    run.truncate_records(after_step=2)
    run.append_metrics(3, {"loss": 9.0})
    assert [row["step"] for row in run.read_metrics()] == [0, 1, 2, 3]
    assert run.read_metrics()[-1]["loss"] == 9.0
    assert [row["completion"] for row in run.read_samples()] == ["0", "1", "2"]


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"step": "1"}'])
def test_a_damaged_line_is_named(run: RunFolder, line: str) -> None:
    run.append_metrics(0, {})
    with (run.path / "metrics.jsonl").open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl:2: "):
        run.read_metrics()


def test_texts_and_summaries_are_written(run: RunFolder) -> None:
    run.write_config("a: 1\n")
    run.write_summary({"win_rate": float("nan"), "n": 3})
    run.write_provenance({"python": "3"})
    assert (run.path / "config.yaml").read_text() == "a: 1\n"
    assert json.loads((run.path / "summary.json").read_text()) == {"win_rate": None, "n": 3}
    assert json.loads((run.path / "provenance.json").read_text()) == {"python": "3"}


def test_heartbeats_are_ten_seconds_apart(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    beats = []
    for seconds, step in ((100.0, 1), (109.9, 2), (110.0, 3)):
        monkeypatch.setattr(folder_module.time, "monotonic", lambda seconds=seconds: seconds)
        run.heartbeat(step)
        beats.append(json.loads((run.path / "heartbeat.json").read_text())["step"])
    assert beats == [1, 1, 3]


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_crash_at_any_call_leaves_the_old_text_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file.json"
    num_crashes = 0
    for number in range(10):
        replace_atomically(path, "old")
        calls = iter(range(100))
        real = getattr(os, call)

        def crashing(*arguments: object, number: int = number, calls=calls, real=real) -> object:
            if next(calls) == number:
                raise Crash
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, crashing)
            try:
                replace_atomically(path, "new")
            except Crash:
                num_crashes += 1
            else:
                assert path.read_text() == "new"
                break
        assert path.read_text() in ("old", "new")
    assert num_crashes == {"write": 1, "fsync": 2, "rename": 1}[call]


def test_short_writes_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data[:3])))
    replace_atomically(tmp_path / "file", "0123456789")
    assert (tmp_path / "file").read_text() == "0123456789"


def test_the_floor_starts_without_torch() -> None:
    code = (
        "import sys, prefloop.runs.settings, prefloop.runs.folder, prefloop.runs.progress, prefloop.runs.checkpoint, "
        "prefloop.runs.drive, prefloop.runs.provenance; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
