"""A checkpoint is all or nothing, comes back exactly, and is never lost to a newer one that failed."""

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from prefloop.errors import RunError
from prefloop.runs import checkpoint as checkpoint_module
from prefloop.runs.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint, sweep_staging
from prefloop.runs.folder import RunFolder


class Crash(BaseException):
    """Stands in for the end of the process: nothing in the product catches it."""


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "run", name="first", algorithm="sft", seed=3)


def write_model(folder: Path) -> None:
    (folder / "part").mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "part" / "weights.bin").write_bytes(bytes(range(256)))


def save(run: RunFolder, step: int, keep_last: int = 2) -> Path:
    state = {"weights": torch.full((5,), float(step)), "step": step}
    return save_checkpoint(run, step, state=state, model_writer=write_model, keep_last=keep_last)


def names(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


def assert_same(one: Any, other: Any) -> None:
    """Equal in value and type, tensors bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert one.contiguous().flatten().view(torch.uint8).equal(other.contiguous().flatten().view(torch.uint8))
    elif isinstance(one, dict):
        assert list(one) == list(other)
        assert [type(key) for key in one] == [type(key) for key in other]
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for below, other_below in zip(one, other, strict=True):
            assert_same(below, other_below)
    elif isinstance(one, float):
        assert one.hex() == other.hex()
    else:
        assert one == other


def test_every_kind_of_leaf_comes_back_exactly(run: RunFolder) -> None:
    shared = torch.arange(12.0).reshape(3, 4)
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool)
    state = {
        "tensors": {index: torch.ones(2, 3).to(dtype) for index, dtype in enumerate(dtypes)},
        "scalar": torch.tensor(1.5),
        "empty": torch.zeros(0, 4),
        "nan": torch.tensor([float("nan"), -0.0, float("inf")]),
        "shared": [shared, shared.t(), shared[1], torch.ones(1).expand(3)],
        "grad": torch.nn.Parameter(torch.ones(1)).detach(),
        "numbers": [0.1, 1 / 3, 1e-308, 5e-324, -0.0, 1.0, 1, 2**70, math.inf, -math.inf, True, False, None],
        "texts": ["", "é\n\u2028", "null"],
        "tuple": (1, (2.0,), []),
        "keys": {0: "integer", "0": "text", "dict": {}, "tensor": "t", -1: {}},
        "tensor": {"tensor": "000000"},
    }
    path = save_checkpoint(run, 1, state=state)
    loaded = load_checkpoint(path)
    assert_same(loaded, state)
    assert math.isnan(load_checkpoint(save_checkpoint(run, 2, state={"x": math.nan}))["x"])


def test_an_optimizer_comes_back_exactly(run: RunFolder) -> None:
    weights = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.AdamW([weights], lr=1e-3)
    weights.grad = torch.tensor([1.0, 2.0, 3.0, 4.0])
    optimizer.step()
    path = save_checkpoint(run, 1, state={"optimizer": optimizer.state_dict()})
    assert_same(load_checkpoint(path)["optimizer"], optimizer.state_dict())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"a": {"b": [1, {2}]}}, r"state\['a'\]\['b'\]\[1\] is a builtins.set"),
        ({"a": {1.5: 1}}, r"state\['a'\] has the key 1.5"),
        ({"a": {True: 1}}, r"has the key True"),
        ({"a": torch.float32}, r"is a torch.dtype"),
    ],
)
def test_what_cannot_be_saved_exactly_is_refused_by_place(run: RunFolder, state: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=message):
        save_checkpoint(run, 1, state=state)
    assert names(run) == []


def test_numpy_numbers_are_refused(run: RunFolder) -> None:
    numpy = pytest.importorskip("numpy")
    with pytest.raises(RunError, match=r"numpy\.float64"):
        save_checkpoint(run, 1, state={"a": numpy.float64(1.0)})


def test_a_checkpoint_holds_the_model_the_state_and_the_marker_and_no_pickle(run: RunFolder) -> None:
    path = save(run, 200)
    assert path == run.checkpoints / "step-000200"
    files = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    assert files == {
        "COMPLETE", "config.json", "manifest.json", "part/weights.bin", "trainer_state.json",
        "trainer_state.safetensors",
    }  # fmt: skip
    assert load_checkpoint(path)["step"] == 200


def test_rotation_keeps_the_newest_by_step(run: RunFolder) -> None:
    for step in (5, 10, 999_999, 1_000_000):
        save(run, step)
    assert names(run) == ["step-1000000", "step-999999"]
    save(run, 1_000_001, keep_last=1)
    assert names(run) == ["step-1000001"]
    with pytest.raises(ValueError, match="at least 1"):
        save(run, 1_000_002, keep_last=0)


def test_rotation_counts_only_what_verifies(run: RunFolder) -> None:
    save(run, 1)
    damaged = save(run, 2)
    (damaged / "trainer_state.json").write_text("[]")
    save(run, 3)
    assert names(run) == ["step-000001", "step-000002", "step-000003"]
    save(run, 4)
    assert names(run) == ["step-000003", "step-000004"]


def test_the_step_of_a_damaged_newer_checkpoint_can_be_saved_again(run: RunFolder) -> None:
    save(run, 1)
    (save(run, 2) / "COMPLETE").unlink()
    assert latest_checkpoint(run).newest == checkpoint_module.Checkpoint(1, run.checkpoints / "step-000001")
    save(run, 2)
    assert latest_checkpoint(run).newest == checkpoint_module.Checkpoint(2, run.checkpoints / "step-000002")


def test_a_complete_checkpoint_is_never_overwritten(run: RunFolder) -> None:
    save(run, 1)
    with pytest.raises(RunError, match="none is ever overwritten"):
        save(run, 1)
    assert latest_checkpoint(run).newest is not None


def test_another_runs_checkpoint_is_skipped_by_name_and_stays(run: RunFolder, tmp_path: Path) -> None:
    other = RunFolder.create(tmp_path / "other", name="second", algorithm="sft", seed=3)
    foreign = save(other, 50)
    save(run, 1)
    shutil.copytree(foreign, run.checkpoints / "step-000050")
    search = latest_checkpoint(run)
    assert search.newest is not None
    assert search.newest.step == 1
    assert search.skipped == {"step-000050": f"it belongs to run {other.run_id}"}
    shutil.copytree(foreign, run.checkpoints / "step-000000")
    save(run, 2)
    save(run, 3)
    assert names(run) == ["step-000000", "step-000002", "step-000003", "step-000050"]


def test_a_renamed_checkpoint_is_found_out(run: RunFolder) -> None:
    save(run, 1).rename(run.checkpoints / "step-000009")
    assert latest_checkpoint(run).skipped == {"step-000009": "it holds step 1"}


def test_one_flipped_bit_in_any_file_is_found(run: RunFolder) -> None:
    save(run, 1)
    path = save(run, 2)
    files = [file for file in path.rglob("*") if file.is_file()]
    assert len(files) == 6
    for file in files:
        original = file.read_bytes()
        for place in (0, len(original) // 2, len(original) - 1):
            flipped = bytearray(original)
            flipped[place] ^= 1
            file.write_bytes(flipped)
            search = latest_checkpoint(run)
            assert search.newest is not None
            assert search.newest.step == 1
            assert list(search.skipped) == ["step-000002"]
            with pytest.raises(RunError, match="cannot be loaded"):
                load_checkpoint(path)
        file.write_bytes(original)
    newest = latest_checkpoint(run).newest
    assert newest is not None
    assert newest.step == 2


def test_a_missing_or_extra_file_is_named(run: RunFolder) -> None:
    path = save(run, 1)
    (path / "extra").write_text("")
    assert latest_checkpoint(run).skipped == {"step-000001": "extra is not in the manifest"}
    (path / "extra").unlink()
    (path / "config.json").unlink()
    assert latest_checkpoint(run).skipped == {"step-000001": "config.json is missing"}


def test_staging_left_behind_is_swept(run: RunFolder) -> None:
    (run.checkpoints / ".staging-step-000007").mkdir(parents=True)
    (run.checkpoints / ".staging-step-000007" / "half").write_text("x")
    sweep_staging(run)
    assert names(run) == []


def test_a_save_that_was_cut_short_does_not_stand_in_the_way_of_the_next(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", crash_at(1, os.rename, Crash))
        with pytest.raises(Crash):
            save(run, 1)
    assert names(run) == [".staging-step-000001"]
    save(run, 1)
    assert names(run) == ["step-000001"]


def test_no_checkpoints_is_no_error(run: RunFolder) -> None:
    search = latest_checkpoint(run)
    assert (search.newest, search.skipped) == (None, {})


CRASH_POINTS: list[tuple[Any, str, int]] = [
    (os, "write", 3),
    (os, "fsync", 11),
    (os, "rename", 2),
    (os, "mkdir", 2),
    (os, "rmdir", 2),
    (os, "unlink", 6),
    (safetensors.torch, "save_file", 1),
]
"""What is called, and how often at least while one checkpoint is saved and one rotated."""


def crash_at(
    number: int, real: Callable[..., Any], failure: type[BaseException], *, after: bool = False
) -> Callable[..., Any]:
    """`real`, but call `number` raises: before it does anything, or when it is done."""
    num_calls = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal num_calls
        num_calls += 1
        if num_calls == number and not after:
            raise failure
        try:
            return real(*arguments, **named)
        finally:
            if num_calls == number and after:
                raise failure

    return wrapped


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(("module", "name", "least"), CRASH_POINTS, ids=[point[1] for point in CRASH_POINTS])
def test_a_crash_at_any_call_keeps_the_previous_checkpoint(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, least: int, after: bool
) -> None:
    save(run, 1)
    num_crashes, is_over = 0, False
    for number in range(1, 200):
        # Two are there already, so that rotation is among the crash points.
        step = 2 * number
        save(run, step)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, crash_at(number, getattr(module, name), Crash, after=after))
            try:
                save(run, step + 1)
            except Crash:
                num_crashes += 1
            else:
                is_over = True
        search = latest_checkpoint(run)
        assert search.newest is not None
        assert search.skipped == {}
        assert search.newest.step in (step, step + 1)
        assert load_checkpoint(search.newest.path)["weights"].tolist() == [float(search.newest.step)] * 5
        if is_over:
            assert search.newest.step == step + 1
            break
        if search.newest.step == step + 1:
            shutil.rmtree(search.newest.path)
    assert is_over
    assert num_crashes >= least


@pytest.mark.parametrize("name", ["write", "fsync", "rename"])
def test_a_full_disk_is_an_error_with_advice_and_leaves_no_rubbish(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    save(run, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, name, crash_at(1, getattr(os, name), OSError))
        with pytest.raises(RunError, match="Earlier checkpoints are untouched"):
            save(run, 2)
    assert names(run) == ["step-000001"]
    save(run, 2)


def test_a_checkpoint_that_reads_back_wrong_rotates_nothing(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 1)
    real = os.rename

    def damaging(source: Path, target: Path) -> None:
        real(source, target)
        (Path(target) / "config.json").write_text("[]")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", damaging)
        with pytest.raises(RunError, match=r"config.json is damaged. Earlier checkpoints are kept"):
            save(run, 2, keep_last=1)
    newest = latest_checkpoint(run).newest
    assert newest is not None
    assert newest.step == 1


def test_the_models_files_may_not_be_the_trainers(run: RunFolder) -> None:
    def writer(folder: Path) -> None:
        (folder / "trainer_state.json").write_text("mine")

    with pytest.raises(RunError, match="the trainer's own file"):
        save_checkpoint(run, 1, state={}, model_writer=writer)
