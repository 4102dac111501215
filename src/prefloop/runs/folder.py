"""A run is a folder: what it was, what it measured, what it made. Nothing outside is needed to read it.

    run.json        schema version, identity, state, start and end, parents, outputs
    config.yaml     every setting, resolved
    metrics.jsonl   one object per step
    samples.jsonl   completions over time
    summary.json    headline figures
    alarms.json     what nobody must miss, if there is anything
    heartbeat.json  when the run last moved, and in which process

A JSON file is replaced as a whole or not at all. A number that is not finite is written as null. In a JSONL file a last
line without its newline is a write that was cut short: it does not count.
"""

import json
import math
import os
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

from prefloop.contracts import Sample
from prefloop.errors import RunError

SCHEMA_VERSION = 1
HEARTBEAT_SECONDS = 10.0
ALARMS_FILE = "alarms.json"

RunState = Literal["running", "finished", "interrupted", "failed"]


@dataclass(frozen=True)
class Parent:
    """Where an input came from: its role here, its path, and the fingerprint of what was read."""

    role: str
    path: str
    fingerprint: str


def json_text(value: Any, *, indent: int | None = None) -> str:
    """`value` as JSON, with null for every number that is not finite. Raises TypeError for what JSON cannot hold."""
    return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(below) for key, below in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(below) for below in value]
    return value


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable: a rename outlives a power cut only after this."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Makes the contents of a file durable."""
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes) -> None:
    """Writes a new file and waits until the disk has it."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        _write_all(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def replace_atomically(path: Path, text: str) -> None:
    """The file holds the old text or the new one, never a part: a sibling, fsync, rename, fsync of the folder.

    There is one writer per run, so the sibling has one name and an abandoned one is overwritten.
    """
    temporary = path.with_name(f".{path.name}.staging")
    write_durably(temporary, text.encode("utf-8"))
    os.rename(temporary, path)
    sync_folder(path.parent)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class RunFolder:
    """An existing run folder; `RunFolder.create` makes one.

    Raises RunError if `path` holds no run.json that this version can read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._record = self._read_record()
        self._last_heartbeat_seconds = -math.inf

    @classmethod
    def create(cls, path: Path, *, name: str, algorithm: str, seed: int, parents: Sequence[Parent] = ()) -> "RunFolder":
        """A new run in state `running`. Raises RunError if the folder already holds a run."""
        if (path / "run.json").exists():
            raise RunError(f"{path} already holds a run; resume it, or choose another folder.")
        path.mkdir(parents=True, exist_ok=True)
        record = {
            "schema_version": SCHEMA_VERSION,
            "run_id": uuid.uuid4().hex,
            "name": name,
            "algorithm": algorithm,
            "seed": seed,
            "state": "running",
            "reason": None,
            "started_at": _now(),
            "ended_at": None,
            "parents": [asdict(parent) for parent in parents],
            "outputs": {},
        }
        replace_atomically(path / "run.json", json_text(record, indent=2) + "\n")
        return cls(path)

    def _read_record(self) -> dict[str, Any]:
        file = self.path / "run.json"
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(f"{self.path} is not a run: it has no run.json.") from None
        except (OSError, ValueError) as error:
            raise RunError(f"{file} cannot be read: {error}.") from error
        version = record.get("schema_version") if isinstance(record, dict) else None
        if version != SCHEMA_VERSION:
            raise RunError(f"{file} has schema version {version}; this prefloop reads version {SCHEMA_VERSION}.")
        missing = {"run_id", "name", "algorithm", "seed", "state", "parents", "outputs"} - record.keys()
        if missing:
            raise RunError(f"{file} lacks {', '.join(sorted(missing))}; the file was changed by hand.")
        return record

    def _update(self, **changes: Any) -> None:
        self._record = {**self._record, **changes}
        replace_atomically(self.path / "run.json", json_text(self._record, indent=2) + "\n")

    @property
    def run_id(self) -> str:
        return self._record["run_id"]

    @property
    def name(self) -> str:
        return self._record["name"]

    @property
    def algorithm(self) -> str:
        return self._record["algorithm"]

    @property
    def seed(self) -> int:
        return self._record["seed"]

    @property
    def state(self) -> RunState:
        return self._record["state"]

    @property
    def reason(self) -> str | None:
        """Why the run ended as it did; None while it runs."""
        return self._record["reason"]

    @property
    def is_finished(self) -> bool:
        return self.state == "finished"

    @property
    def started_at(self) -> str:
        """ISO 8601, UTC."""
        return self._record["started_at"]

    @property
    def ended_at(self) -> str | None:
        """ISO 8601, UTC; None while the run runs."""
        return self._record["ended_at"]

    @property
    def parents(self) -> tuple[Parent, ...]:
        return tuple(Parent(**parent) for parent in self._record["parents"])

    @property
    def outputs(self) -> dict[str, Path]:
        """What the run made, by name."""
        return {name: self.path / relative for name, relative in self._record["outputs"].items()}

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def mark(self, state: RunState, reason: str | None = None) -> None:
        """Sets the state. Every state but `running` sets the end, and says why if there is more to say."""
        if state not in get_args(RunState):
            raise ValueError(f"`{state}` is no state of a run; allowed: {', '.join(get_args(RunState))}")
        self._update(state=state, reason=reason, ended_at=None if state == "running" else _now())

    def add_parent(self, parent: Parent) -> None:
        """Records where an input came from; the same role and path again replaces the entry."""
        others = [other for other in self.parents if (other.role, other.path) != (parent.role, parent.path)]
        self._update(parents=[asdict(one) for one in [*others, parent]])

    def add_output(self, name: str, path: Path) -> None:
        """Records what the run made. Raises RunError if `path` is missing or outside the folder."""
        inside = path.resolve()
        if not inside.exists() or not inside.is_relative_to(self.path.resolve()):
            raise RunError(f"the output {name} at {path} must exist inside the run {self.path}.")
        relative = inside.relative_to(self.path.resolve()).as_posix()
        self._update(outputs={**self._record["outputs"], name: relative})

    def write_config(self, text: str) -> None:
        """config.yaml: every setting, resolved."""
        replace_atomically(self.path / "config.yaml", text)

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """summary.json: the headline figures."""
        replace_atomically(self.path / "summary.json", json_text(summary, indent=2) + "\n")

    def write_provenance(self, facts: Mapping[str, Any]) -> None:
        """provenance.json: commit, package versions, hardware, fingerprints of the data."""
        replace_atomically(self.path / "provenance.json", json_text(facts, indent=2) + "\n")

    def append_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl. `step` counts the steps done: 0 is the state before training."""
        self._append("metrics.jsonl", [{"step": step, **metrics}])

    def append_samples(self, step: int, samples: Sequence[Sample], *, kind: str) -> None:
        """One line of samples.jsonl per sample; `kind` is `train` or `evaluate`."""
        self._append("samples.jsonl", [{"step": step, "kind": kind, **asdict(sample)} for sample in samples])

    def _append(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        data = "".join(json_text(row) + "\n" for row in rows).encode("utf-8")
        if not data:
            return
        descriptor = os.open(self.path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            _write_all(descriptor, data)
        finally:
            os.close(descriptor)

    def sync_records(self) -> None:
        """Waits until the disk has metrics.jsonl and samples.jsonl, so that no checkpoint is ahead of its records."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (self.path / name).exists():
                sync_file(self.path / name)

    def truncate_records(self, after_step: int) -> None:
        """Drops from metrics.jsonl and samples.jsonl what lies beyond `after_step`: a resumed run measures it again."""
        for name in ("metrics.jsonl", "samples.jsonl"):
            if (self.path / name).exists():
                kept = [line for line, row in self._rows(name) if row["step"] <= after_step]
                replace_atomically(self.path / name, "".join(line + "\n" for line in kept))

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl in order; an empty list before the first. Raises RunError for a damaged line."""
        return [row for _, row in self._rows("metrics.jsonl")]

    def read_samples(self) -> list[dict[str, Any]]:
        """The rows of samples.jsonl in order; an empty list before the first. Raises RunError for a damaged line."""
        return [row for _, row in self._rows("samples.jsonl")]

    def _rows(self, name: str) -> Iterator[tuple[str, dict[str, Any]]]:
        file = self.path / name
        if not file.exists():
            return
        # Split at newlines alone: a text may hold other characters that count as line ends elsewhere.
        lines = file.read_bytes().split(b"\n")[:-1]
        for number, line in enumerate(lines, start=1):
            try:
                row = json.loads(line)
            except ValueError as error:
                raise RunError(f"{file}:{number}: the line is not JSON ({error}); the file is damaged.") from error
            if not isinstance(row, dict) or not isinstance(row.get("step"), int):
                raise RunError(f"{file}:{number}: the line is not an object with a `step`; the file is damaged.")
            yield line.decode("utf-8"), row

    def heartbeat(self, step: int) -> None:
        """Says that the run is alive, at most every ten seconds; whoever watches compares `at` with the clock."""
        if time.monotonic() - self._last_heartbeat_seconds < HEARTBEAT_SECONDS:
            return
        self._last_heartbeat_seconds = time.monotonic()
        beat = {"step": step, "at": _now(), "process_id": os.getpid()}
        replace_atomically(self.path / "heartbeat.json", json_text(beat) + "\n")


def read_alarms(place: Path) -> list[dict[str, Any]]:
    """What a stage has put on record for nobody to miss: `stage`, `step` (or None) and `message` of each.

    Raises RunError for a record that is damaged.
    """
    file = place / ALARMS_FILE
    try:
        found = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        return [{key: one[key] for key in ("stage", "step", "message")} for one in found]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise RunError(f"{file} cannot be read ({error!r}); it was changed by hand or damaged.") from error
