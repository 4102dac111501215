"""The one training loop: next batch, step, write metrics, perhaps evaluate, perhaps save, stop cleanly, resume.

A step in metrics.jsonl, samples.jsonl and checkpoints counts the steps done: 0 is the state before training. A line is
written after its step's evaluation, and before the checkpoint of its step, so what a checkpoint follows is on record.
"""

import os
import signal
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from pydantic import Field

from prefloop.contracts import Algorithm, Measures, Sample, Settings, TrainerState
from prefloop.errors import Interrupted, RunError
from prefloop.runs.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint, sweep_staging
from prefloop.runs.folder import RunFolder
from prefloop.runs.progress import Progress, peak_memory_mb
from prefloop.runs.randomness import seed_global_generators

WALL_CLOCK_FIELDS = frozenset(
    {"seconds", "tokens_per_second", "peak_memory_mb", "peak_device_memory_mb", "evaluate/seconds"}
)
"""What may differ between an uninterrupted run and a resumed one. Everything else in metrics.jsonl is the same."""


STANDARD_ERROR = 2
"""The file descriptor."""


class DriveSettings(Settings):
    """How often the loop looks up from training."""

    checkpoint_every_steps: int | None = Field(default=None, gt=0)
    """Steps between checkpoints, with one more at the end; null for none."""
    evaluate_every_steps: int | None = Field(default=None, gt=0)
    """Steps between evaluations; there is always one before the first step and one after the last."""
    keep_checkpoints: int = Field(default=2, gt=0)
    """How many checkpoints stay on the disk."""
    save_models: bool = True
    """Whether each checkpoint also holds the model in the Hugging Face layout."""
    save_first_step: bool = False
    """Whether to save after the first step too, which tries the disk early."""


@dataclass(frozen=True)
class DriveResult:
    """What the loop did, resumptions included. `stopped_by` says why it ended early; None for the full run."""

    steps: int
    stopped_by: str | None
    seconds: float
    num_tokens: int


@dataclass
class _Position:
    """Where the loop stands. It is saved beside the algorithm's state."""

    step: int = 0
    num_tokens: int = 0
    seconds: float = 0.0
    stopped_by: str | None = None
    saved_at: tuple[int, Path] | None = None

    def state(self) -> TrainerState:
        return {
            "step": self.step,
            "num_tokens": self.num_tokens,
            "seconds": self.seconds,
            "stopped_by": self.stopped_by,
        }


def drive(
    algorithm: Algorithm,
    folder: RunFolder,
    *,
    settings: DriveSettings,
    progress: Progress,
    resume_command: str,
    resume: bool = False,
) -> DriveResult:
    """Runs the algorithm to its last step or its own stop, with every record in `folder`.

    The folder is marked failed or interrupted here; the caller marks it finished when the trained model is saved. With
    `resume` the newest checkpoint that verifies is loaded and the run goes on as if it had never stopped: the same
    tensors and, but for `WALL_CLOCK_FIELDS`, the same metrics. Without a checkpoint it begins anew.

    Raises Interrupted after SIGINT or SIGTERM, once the step is done and saved (a second signal stops at once with
    KeyboardInterrupt); RunError if the folder cannot be resumed or already has metrics; and what the algorithm raises.
    """
    position = _Position()
    with _StopRequest() as stop:
        # What the folder forbids is the caller's mistake and leaves the run's state as it was.
        is_begun = resume and _load_newest(algorithm, folder, position, progress)
        if not is_begun:
            _begin(folder, resume=resume)
        folder.mark("running")
        try:
            with progress.stage(
                algorithm.name, algorithm.num_steps, headline=algorithm.headline, start_step=position.step
            ):
                if not is_begun:
                    _write_records(folder, 0, _evaluated(algorithm, folder, 0), progress)
                while not stop.requested_by and not _is_done(algorithm, position):
                    _advance(algorithm, folder, settings, position, progress)
            if stop.requested_by:
                place = _save(algorithm, folder, settings, position)
                raise Interrupted(
                    f"{stop.requested_by} stopped the run after step {position.step} of {algorithm.num_steps}; "
                    f"everything is saved in {place}. To go on: {resume_command}"
                )
        except Interrupted as interruption:
            folder.mark("interrupted", str(interruption))
            raise
        except KeyboardInterrupt:
            folder.mark("interrupted", f"stopped at once in step {position.step + 1}; resume from the last checkpoint")
            raise
        except Exception as error:
            folder.mark("failed", f"{type(error).__name__}: {error}")
            raise
    return DriveResult(position.step, position.stopped_by, position.seconds, position.num_tokens)


def _is_done(algorithm: Algorithm, position: _Position) -> bool:
    return position.stopped_by is not None or position.step >= algorithm.num_steps


@dataclass(frozen=True)
class _Records:
    """What one step leaves: its metrics, and its samples by kind."""

    metrics: dict[str, Any]
    samples: dict[str, tuple[Sample, ...]]


def _advance(
    algorithm: Algorithm, folder: RunFolder, settings: DriveSettings, position: _Position, progress: Progress
) -> None:
    """One step with everything that follows it."""
    seed_global_generators(folder.seed, "global/step", position.step)
    start = time.perf_counter()
    report = algorithm.step(algorithm.batch(position.step))
    seconds = time.perf_counter() - start
    position.step += 1
    position.num_tokens += report.num_tokens
    position.stopped_by = report.stop_reason
    metrics = _means(report.measures) | {
        "num_tokens": report.num_tokens,
        "seconds": seconds,
        "tokens_per_second": report.num_tokens / max(seconds, 1e-9),
        "peak_memory_mb": peak_memory_mb(),
        **_device_memory(),
    }
    samples = {"train": report.samples}
    is_last = _is_done(algorithm, position)
    if is_last or _falls_due(position.step, settings.evaluate_every_steps):
        evaluation = _evaluated(algorithm, folder, position.step)
        metrics |= evaluation.metrics
        samples |= evaluation.samples
    position.seconds += time.perf_counter() - start
    _write_records(folder, position.step, _Records(metrics, samples), progress)
    if (
        _falls_due(position.step, settings.checkpoint_every_steps)
        or (is_last and settings.checkpoint_every_steps is not None)
        or (position.step == 1 and settings.save_first_step)
    ):
        _save(algorithm, folder, settings, position)


def _falls_due(step: int, every_steps: int | None) -> bool:
    return every_steps is not None and step % every_steps == 0


def _means(measures: Measures) -> dict[str, float]:
    reserved = (WALL_CLOCK_FIELDS | {"step", "num_tokens"}) & measures.keys()
    if reserved:
        raise RunError(f"the algorithm measures {', '.join(sorted(reserved))}, which the loop itself writes.")
    return {name: measure.mean for name, measure in measures.items()}


def _device_memory() -> dict[str, float]:
    """The most memory that tensors ever took on the current CUDA device; nothing where none is used."""
    import torch

    if not torch.cuda.is_initialized():
        return {}
    return {"peak_device_memory_mb": torch.cuda.max_memory_allocated() / 2**20}


def _evaluated(algorithm: Algorithm, folder: RunFolder, step: int) -> _Records:
    seed_global_generators(folder.seed, "global/evaluate", step)
    start = time.perf_counter()
    measures, samples = algorithm.evaluate()
    metrics = {f"evaluate/{name}": value for name, value in _means(measures).items()}
    return _Records(metrics | {"evaluate/seconds": time.perf_counter() - start}, {"evaluate": samples})


def _write_records(folder: RunFolder, step: int, records: _Records, progress: Progress) -> None:
    folder.append_metrics(step, records.metrics)
    for kind, samples in records.samples.items():
        folder.append_samples(step, samples, kind=kind)
    folder.heartbeat(step)
    progress.update(step, records.metrics)


def _save(algorithm: Algorithm, folder: RunFolder, settings: DriveSettings, position: _Position) -> Path:
    """The checkpoint of the position, which is written unless it is there already."""
    if position.saved_at is None or position.saved_at[0] != position.step:
        folder.sync_records()
        path = save_checkpoint(
            folder,
            position.step,
            state={"algorithm": algorithm.state(), "drive": position.state()},
            model_writer=algorithm.trained().save if settings.save_models else None,
            keep_last=settings.keep_checkpoints,
        )
        position.saved_at = (position.step, path)
    return position.saved_at[1]


def _begin(folder: RunFolder, *, resume: bool) -> None:
    """A clean start: nothing measured and nothing saved yet."""
    if resume:
        folder.truncate_records(after_step=-1)
    elif folder.read_metrics() or latest_checkpoint(folder).newest:
        raise RunError(f"{folder.path} already has steps on record; resume it, or choose another folder.")


def _load_newest(algorithm: Algorithm, folder: RunFolder, position: _Position, progress: Progress) -> bool:
    """Puts algorithm, position and records where the newest checkpoint stands; False if there is no checkpoint."""
    if folder.is_finished:
        raise RunError(f"{folder.path} is finished; there is nothing to resume.")
    sweep_staging(folder)
    search = latest_checkpoint(folder)
    skipped = "; ".join(f"{name}: {reason}" for name, reason in search.skipped.items())
    if search.newest is None:
        if skipped:
            raise RunError(f"no checkpoint in {folder.checkpoints} can be loaded ({skipped}); start a new run.")
        return False
    if skipped:
        progress.warn(f"resuming from {search.newest.path.name}; newer checkpoints are damaged ({skipped})")
    state = load_checkpoint(search.newest.path)
    algorithm.load_state(state["algorithm"])
    for name, value in state["drive"].items():
        setattr(position, name, value)
    position.saved_at = (search.newest.step, search.newest.path)
    folder.truncate_records(after_step=position.step)
    return True


class _StopRequest:
    """Turns the first SIGINT or SIGTERM into a request, the second into KeyboardInterrupt; restores what was before."""

    def __init__(self) -> None:
        self.requested_by: str | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "_StopRequest":
        # Python runs signal handlers in the main thread only and refuses to set them elsewhere.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.requested_by is not None:
            raise KeyboardInterrupt
        self.requested_by = signal.Signals(number).name
        # Not print: the signal may have come in the middle of one, and a stream cannot be entered twice.
        text = f"\n{self.requested_by}: finishing the step and saving; once more stops at once\n"
        os.write(STANDARD_ERROR, text.encode())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
