"""The loop: what it records, how it stops, and that a resumed run is the run that was never interrupted.

Run as a program, this file is the victim of the kill -9 test.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from io import StringIO
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console

from prefloop.contracts import Measure, Sample, StepReport, TrainerState
from prefloop.errors import Interrupted, RunError, TrainingError
from prefloop.randomness import python_random
from prefloop.runs.checkpoint import latest_checkpoint, load_checkpoint
from prefloop.runs.drive import WALL_CLOCK_FIELDS, DriveResult, DriveSettings, drive
from prefloop.runs.folder import RunFolder
from prefloop.runs.progress import Progress


class Toy:
    """A small regression with what resuming can get wrong: momentum, dropout, a moving average."""

    name: ClassVar[str] = "toy"
    headline: ClassVar[tuple[str, ...]] = ("train/loss",)

    def __init__(self, num_steps: int = 12, seconds_per_step: float = 0.0) -> None:
        self.num_steps = num_steps
        self.seconds_per_step = seconds_per_step
        self.model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1))
        with torch.no_grad():
            for index, parameter in enumerate(self.model.parameters()):
                parameter.copy_(torch.linspace(-1, 1 + index, parameter.numel()).reshape(parameter.shape))
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.05)
        self.loss_average = 1.0 / 3.0
        self.steps_seen: list[int] = []
        self.num_evaluations = 0

    def batch(self, step: int) -> tuple[int, torch.Tensor]:
        rng = python_random(0, "data", step)
        return step, torch.tensor([[rng.random() for _ in range(3)] for _ in range(5)])

    def step(self, batch: tuple[int, torch.Tensor]) -> StepReport:
        step, inputs = batch
        self.steps_seen.append(step)
        time.sleep(self.seconds_per_step)
        self.model.train()
        loss = (self.model(inputs).squeeze(1) - inputs.sum(1)).square().mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        value = loss.item()
        self.loss_average = 0.9 * self.loss_average + 0.1 * value
        measures = {"train/loss": Measure(value * 5, 5), "train/average": Measure(self.loss_average)}
        return StepReport(measures, num_tokens=15, samples=(Sample("p", f"{value}"),))

    def evaluate(self) -> tuple[dict[str, Measure], tuple[Sample, ...]]:
        self.num_evaluations += 1
        self.model.eval()
        noise = float(torch.rand(()))  # Evaluation may draw too, and must not shift training.
        return {"loss": Measure(self.model(torch.ones(1, 3)).item() + noise)}, (Sample("q", "a"),)

    def state(self) -> TrainerState:
        return {
            "model": dict(self.model.state_dict()),
            "optimizer": self.optimizer.state_dict(),
            "loss_average": self.loss_average,
        }

    def load_state(self, state: TrainerState) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.loss_average = state["loss_average"]

    def trained(self) -> "Toy":
        return self

    def save(self, folder: Path) -> None:
        (folder / "config.json").write_text("{}")


class Signalling(Toy):
    """Sends itself signals in the middle of one step."""

    def __init__(self, at_step: int, *signals: signal.Signals) -> None:
        super().__init__()
        self.at_step, self.signals = at_step, signals

    def step(self, batch: tuple[int, torch.Tensor]) -> StepReport:
        if batch[0] == self.at_step:
            for number in self.signals:
                os.kill(os.getpid(), number)
        return super().step(batch)


class Failing(Toy):
    def step(self, batch: tuple[int, torch.Tensor]) -> StepReport:
        if batch[0] == 3:
            raise TrainingError("the loss of step 4 is nan; lower the learning rate.")
        return super().step(batch)


class Stopping(Toy):
    def step(self, batch: tuple[int, torch.Tensor]) -> StepReport:
        report = super().step(batch)
        return StepReport(report.measures, 15, stop_reason="the KL limit is reached" if batch[0] == 4 else None)


SETTINGS = DriveSettings(checkpoint_every_steps=3, evaluate_every_steps=5)


def new_folder(path: Path) -> RunFolder:
    return RunFolder.create(path, name="toy", algorithm="toy", seed=11)


def run_toy(
    algorithm: Toy, folder: RunFolder, settings: DriveSettings = SETTINGS, *, resume: bool = False
) -> DriveResult:
    quiet = Progress(quiet=True, console=Console(file=StringIO()))
    return drive(
        algorithm, folder, settings=settings, progress=quiet, resume_command="prefloop resume here", resume=resume
    )


def without_clock(folder: RunFolder) -> list[dict[str, Any]]:
    return [{name: row[name] for name in row if name not in WALL_CLOCK_FIELDS} for row in folder.read_metrics()]


def assert_same_state(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same_state(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for below, other_below in zip(one, other, strict=True):
            assert_same_state(below, other_below)
    else:
        assert one == other


def newest_step(folder: RunFolder) -> int | None:
    newest = latest_checkpoint(folder).newest
    return newest.step if newest else None


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Toy, RunFolder]:
    """The run that was never interrupted."""
    toy, folder = Toy(), new_folder(tmp_path_factory.mktemp("straight") / "run")
    result = run_toy(toy, folder)
    assert (result.steps, result.stopped_by, result.num_tokens) == (12, None, 180)
    assert 0 < result.seconds < 20
    return toy, folder


def assert_like_straight(toy: Toy, folder: RunFolder, straight: tuple[Toy, RunFolder]) -> None:
    assert_same_state(toy.state(), straight[0].state())
    assert without_clock(folder) == without_clock(straight[1])
    assert folder.read_samples() == straight[1].read_samples()


def test_metrics_are_one_object_per_step_with_means_and_clock(straight: tuple[Toy, RunFolder]) -> None:
    rows = straight[1].read_metrics()
    assert [row["step"] for row in rows] == list(range(13))
    assert rows[0].keys() == {"step", "evaluate/loss", "evaluate/seconds"}
    assert rows[1].keys() == {
        "step", "train/loss", "train/average", "num_tokens", "seconds", "tokens_per_second", "peak_memory_mb",
    }  # fmt: skip
    assert rows[1]["num_tokens"] == 15
    assert rows[1]["tokens_per_second"] == pytest.approx(15 / rows[1]["seconds"])
    assert rows[1]["peak_memory_mb"] > 20
    # The mean of the measure (a sum of five and a count of five), not its sum.
    assert float(straight[1].read_samples()[1]["completion"]) == pytest.approx(rows[1]["train/loss"])


def test_evaluation_comes_first_last_and_every_so_often(straight: tuple[Toy, RunFolder]) -> None:
    toy, folder = straight
    assert [row["step"] for row in folder.read_metrics() if "evaluate/loss" in row] == [0, 5, 10, 12]
    assert toy.num_evaluations == 4
    kinds = [(row["step"], row["kind"]) for row in folder.read_samples()]
    assert kinds[:3] == [(0, "evaluate"), (1, "train"), (2, "train")]
    assert (12, "evaluate") in kinds
    assert toy.steps_seen == list(range(12))


def test_how_often_it_evaluates_does_not_change_training(tmp_path: Path, straight: tuple[Toy, RunFolder]) -> None:
    toy, folder = Toy(), new_folder(tmp_path / "run")
    run_toy(toy, folder, DriveSettings(evaluate_every_steps=1))
    assert_same_state(toy.state(), straight[0].state())
    assert not folder.checkpoints.exists()


def test_the_seed_of_the_run_reaches_dropout(tmp_path: Path, straight: tuple[Toy, RunFolder]) -> None:
    toy = Toy()
    run_toy(toy, RunFolder.create(tmp_path / "run", name="toy", algorithm="toy", seed=12))
    assert toy.loss_average != straight[0].loss_average


def test_checkpoints_come_every_so_often_and_at_the_end(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    run_toy(Toy(num_steps=8), folder, DriveSettings(checkpoint_every_steps=3, keep_checkpoints=9, save_first_step=True))
    assert sorted(path.name for path in folder.checkpoints.iterdir()) == [f"step-{step:06d}" for step in (1, 3, 6, 8)]
    assert (folder.checkpoints / "step-000008" / "config.json").exists()
    assert folder.state == "running"  # Whoever saves the trained model says when the run is finished.


def test_models_may_be_left_out_of_checkpoints(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    run_toy(Toy(), folder, DriveSettings(checkpoint_every_steps=12, save_models=False))
    assert not (folder.checkpoints / "step-000012" / "config.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("at_step", [0, 2, 4, 11])
def test_a_signal_finishes_the_step_saves_and_resumes_exactly(
    tmp_path: Path, straight: tuple[Toy, RunFolder], number: signal.Signals, at_step: int
) -> None:
    before = signal.getsignal(number)
    folder = new_folder(tmp_path / "run")
    with pytest.raises(Interrupted, match=f"{number.name} stopped the run after step {at_step + 1} of 12") as caught:
        run_toy(Signalling(at_step, number), folder)
    assert str(folder.checkpoints / f"step-{at_step + 1:06d}") in str(caught.value)
    assert str(caught.value).endswith("To go on: prefloop resume here")
    assert signal.getsignal(number) is before
    assert RunFolder(folder.path).state == "interrupted"
    assert newest_step(folder) == at_step + 1
    toy = Toy()
    result = run_toy(toy, RunFolder(folder.path), resume=True)
    assert (result.steps, result.num_tokens) == (12, 180)
    assert toy.steps_seen == list(range(at_step + 1, 12))
    assert_like_straight(toy, folder, straight)


def test_a_second_signal_stops_now(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    folder = new_folder(tmp_path / "run")
    toy = Signalling(4, signal.SIGTERM, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        run_toy(toy, folder)
    assert toy.steps_seen == [0, 1, 2, 3]
    assert signal.getsignal(signal.SIGINT) is before
    assert (folder.state, newest_step(folder)) == ("interrupted", 3)
    assert folder.reason == "stopped at once in step 5; resume from the last checkpoint"


def test_a_failure_is_on_record_and_can_be_resumed(tmp_path: Path, straight: tuple[Toy, RunFolder]) -> None:
    folder = new_folder(tmp_path / "run")
    with pytest.raises(TrainingError, match="is nan"):
        run_toy(Failing(), folder)
    again = RunFolder(folder.path)
    assert again.state == "failed"
    assert again.reason == "TrainingError: the loss of step 4 is nan; lower the learning rate."
    toy = Toy()
    run_toy(toy, again, resume=True)
    assert_like_straight(toy, again, straight)


def test_an_early_stop_is_final_even_when_resumed(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    result = run_toy(Stopping(), folder)
    assert (result.steps, result.stopped_by, result.num_tokens) == (5, "the KL limit is reached", 75)
    assert [row["step"] for row in folder.read_metrics()][-1] == 5
    assert "evaluate/loss" in folder.read_metrics()[-1]
    toy = Stopping()
    again = run_toy(toy, folder, resume=True)
    assert (again.steps, again.stopped_by, again.num_tokens) == (5, "the KL limit is reached", 75)
    assert toy.steps_seen == []
    assert toy.num_evaluations == 0


def test_resuming_without_a_checkpoint_begins_anew(tmp_path: Path, straight: tuple[Toy, RunFolder]) -> None:
    folder = new_folder(tmp_path / "run")
    folder.append_metrics(0, {"evaluate/loss": 9.0})
    folder.append_metrics(1, {"train/loss": 9.0})
    toy = Toy()
    run_toy(toy, folder, resume=True)
    assert_like_straight(toy, folder, straight)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, straight: tuple[Toy, RunFolder]
) -> None:
    folder = new_folder(tmp_path / "run")
    with pytest.raises(Interrupted):
        run_toy(Signalling(6, signal.SIGINT), folder)
    (folder.checkpoints / "step-000007" / "trainer_state.json").write_text("{}")
    output = StringIO()
    toy = Toy()
    progress = Progress(quiet=True, console=Console(file=output))
    drive(toy, folder, settings=SETTINGS, progress=progress, resume_command="", resume=True)
    assert "resuming from step-000006" in output.getvalue()
    assert "step-000007: trainer_state.json is damaged" in output.getvalue()
    assert_like_straight(toy, folder, straight)


def test_what_cannot_be_resumed_or_begun_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    folder = new_folder(tmp_path / "run")
    run_toy(Toy(), folder)
    folder.mark("finished")
    with pytest.raises(RunError, match="already has steps on record"):
        run_toy(Toy(), folder)
    with pytest.raises(RunError, match="is finished"):
        run_toy(Toy(), folder, resume=True)
    assert RunFolder(folder.path).is_finished
    folder.mark("interrupted")
    for path in folder.checkpoints.iterdir():
        (path / "COMPLETE").unlink()
    with pytest.raises(RunError, match=r"no checkpoint in .* can be loaded"):
        run_toy(Toy(), folder, resume=True)
    assert len(folder.read_metrics()) == 13


def test_a_measure_may_not_take_the_loops_own_name(tmp_path: Path) -> None:
    class Naming(Toy):
        def step(self, batch: tuple[int, torch.Tensor]) -> StepReport:
            return StepReport({"seconds": Measure(1.0)}, 1)

    with pytest.raises(RunError, match="measures seconds"):
        run_toy(Naming(), new_folder(tmp_path / "run"))


def test_device_memory_is_measured_where_a_device_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    folder = new_folder(tmp_path / "run")
    run_toy(Toy(num_steps=1), folder)
    assert folder.read_metrics()[1]["peak_device_memory_mb"] == 3.0


def test_it_runs_outside_the_main_thread(tmp_path: Path) -> None:
    results: list[DriveResult] = []
    folder = new_folder(tmp_path / "run")
    thread = threading.Thread(target=lambda: results.append(run_toy(Toy(num_steps=2), folder)))
    thread.start()
    thread.join()
    assert results[0].steps == 2


NUM_KILLS = 12
KILLED_STEPS = 40


def test_kill_9_at_random_moments_leaves_no_trace(tmp_path: Path) -> None:
    toy, folder = Toy(KILLED_STEPS), new_folder(tmp_path / "straight")
    run_toy(toy, folder, DriveSettings(checkpoint_every_steps=1, evaluate_every_steps=5))
    victim = subprocess.run(
        [sys.executable, __file__, str(tmp_path / "killed")], check=True, capture_output=True, text=True, timeout=120
    )
    assert int(victim.stdout.split()[-1]) >= NUM_KILLS // 2
    killed = RunFolder(tmp_path / "killed")
    assert without_clock(killed) == without_clock(folder)
    assert killed.read_samples() == folder.read_samples()
    newest = latest_checkpoint(killed).newest
    assert newest is not None
    assert newest.step == KILLED_STEPS
    assert_same_state(load_checkpoint(newest.path)["algorithm"], toy.state())


def be_killed_again_and_again(path: Path) -> None:
    """Starts the run, kills it at a random moment, resumes, and so on; prints how many kills hit a running run."""
    torch.set_num_threads(1)
    rng = random.Random(time.time_ns())
    new_folder(path)
    settings = DriveSettings(checkpoint_every_steps=1, evaluate_every_steps=5)
    num_kills = 0
    for attempt in range(NUM_KILLS + 1):
        child = os.fork()
        if child == 0:
            run_toy(Toy(KILLED_STEPS, seconds_per_step=0.002), RunFolder(path), settings, resume=True)
            os._exit(0)
        if attempt < NUM_KILLS:
            time.sleep(rng.uniform(0.005, 0.12))
            os.kill(child, signal.SIGKILL)
        num_kills += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    print(num_kills)


if __name__ == "__main__":
    be_killed_again_and_again(Path(sys.argv[1]))
