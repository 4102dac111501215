"""Checkpoints that are all or nothing: staged beside their place, checked, renamed, and only then the old ones go.

    checkpoints/step-000200/
      ...                         what the model writer leaves (Hugging Face layout)
      trainer_state.json          the tree of the state; floats are written so that they read back exactly
      trainer_state.safetensors   its tensors
      manifest.json               run, step, and size and SHA-256 of every file above
      COMPLETE                    the SHA-256 of manifest.json, written last

A folder without COMPLETE, or with one byte changed, is not a checkpoint. No pickle is written or read.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefloop.contracts import TrainerState
from prefloop.errors import RunError
from prefloop.runs.folder import RunFolder, json_text, sync_file, sync_folder, write_durably

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA_VERSION = 1
STAGING_PREFIX = ".staging-"
TREE_FILE, TENSOR_FILE = "trainer_state.json", "trainer_state.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: how many steps were done, and where it is."""

    step: int
    path: Path


@dataclass(frozen=True)
class CheckpointSearch:
    """The newest checkpoint that verifies (None if there is none), and the newer ones that do not, with the reason."""

    newest: Checkpoint | None
    skipped: dict[str, str]


def save_checkpoint(
    folder: RunFolder,
    step: int,
    *,
    state: TrainerState,
    model_writer: Callable[[Path], None] | None = None,
    keep_last: int = 2,
) -> Path:
    """Saves the state after `step` steps, verifies it on the disk, and keeps the newest `keep_last` checkpoints.

    `model_writer` writes the model into the folder that it is given. A crash at any point leaves the earlier
    checkpoints untouched. Raises RunError if the step is already saved, the state holds something that cannot be saved
    exactly, or the disk refuses.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last is {keep_last}; at least 1 checkpoint is kept")
    final = folder.checkpoints / f"step-{step:06d}"
    if final.exists() and _fault(final, None) is None:
        raise RunError(f"{final} already is a complete checkpoint, and none is ever overwritten; move it away.")
    folder.checkpoints.mkdir(exist_ok=True)
    sweep_staging(folder)
    try:
        staging = _stage(folder, step, state, model_writer)
        if final.exists():  # It does not verify, so nothing is lost; the sweep removes it.
            os.rename(final, folder.checkpoints / f"{STAGING_PREFIX}damaged-{final.name}")
        os.rename(staging, final)
        sync_folder(folder.checkpoints)
    except RunError:
        sweep_staging(folder)
        raise
    except OSError as error:
        sweep_staging(folder)
        raise RunError(
            f"the checkpoint of step {step} cannot be written to {folder.checkpoints}: {error}. "
            "Earlier checkpoints are untouched; make room and resume."
        ) from error
    fault = _fault(final, folder.run_id)
    if fault is not None:
        raise RunError(f"{final} does not read back as it was written: {fault}. Earlier checkpoints are kept.")
    _rotate(folder, keep_last)
    return final


def _stage(folder: RunFolder, step: int, state: TrainerState, model_writer: Callable[[Path], None] | None) -> Path:
    """Writes everything into a sibling of the final place, the marker last."""
    staging = folder.checkpoints / f"{STAGING_PREFIX}step-{step:06d}"
    staging.mkdir()
    if model_writer is not None:
        model_writer(staging)
    _write_state(staging, state)
    files = _files(staging)
    for file in files:
        sync_file(file)
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "run_id": folder.run_id,
        "step": step,
        "files": {
            file.relative_to(staging).as_posix(): {"size": file.stat().st_size, "sha256": _sha256(file)}
            for file in files
        },
    }
    text = json_text(manifest, indent=2).encode("utf-8")
    write_durably(staging / "manifest.json", text)
    for below in [*(path for path in staging.rglob("*") if path.is_dir()), staging]:
        sync_folder(below)
    write_durably(staging / "COMPLETE", hashlib.sha256(text).hexdigest().encode("ascii"))
    sync_folder(staging)
    return staging


def sweep_staging(folder: RunFolder) -> None:
    """Removes what interrupted saves left behind, before it fills the disk."""
    for abandoned in folder.checkpoints.glob(f"{STAGING_PREFIX}*"):
        shutil.rmtree(abandoned)


def _rotate(folder: RunFolder, keep_last: int) -> None:
    """Removes this run's checkpoints below the newest `keep_last` that verify. Others' and newer ones stay."""
    num_kept = 0
    for step, path in _newest_first(folder):
        if num_kept < keep_last:
            num_kept += _fault(path, folder.run_id) is None
        elif _manifest_run_id(path) == folder.run_id:
            # Renamed first, so that a crash in the middle leaves rubbish to sweep and no half of a checkpoint.
            doomed = folder.checkpoints / f"{STAGING_PREFIX}rotated-{step:06d}"
            os.rename(path, doomed)
            shutil.rmtree(doomed)


def latest_checkpoint(folder: RunFolder) -> CheckpointSearch:
    """The newest checkpoint of this run that verifies, and the newer ones that were skipped: name and reason."""
    skipped: dict[str, str] = {}
    for step, path in _newest_first(folder):
        fault = _fault(path, folder.run_id)
        if fault is None:
            return CheckpointSearch(Checkpoint(step, path), skipped)
        skipped[path.name] = fault
    return CheckpointSearch(None, skipped)


def load_checkpoint(path: Path) -> TrainerState:
    """The state in a checkpoint, tensors on the CPU. Raises RunError if any file differs from the manifest."""
    fault = _fault(path, None)
    if fault is not None:
        raise RunError(f"{path} cannot be loaded: {fault}. Resume from an earlier checkpoint.")
    from safetensors.torch import load_file

    tree = json.loads((path / TREE_FILE).read_text(encoding="utf-8"))
    state = _unpacked(tree, load_file(path / TENSOR_FILE))
    assert isinstance(state, dict)
    return state


def _newest_first(folder: RunFolder) -> list[tuple[int, Path]]:
    named = ((re.fullmatch(r"step-(\d+)", path.name), path) for path in folder.checkpoints.glob("step-*"))
    return sorted(((int(match[1]), path) for match, path in named if match), reverse=True)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _manifest_run_id(path: Path) -> str | None:
    """Whose checkpoint a folder says it is; None if it says nothing."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes())
    except (OSError, ValueError):
        return None
    return manifest.get("run_id") if isinstance(manifest, dict) else None


def _fault(path: Path, run_id: str | None) -> str | None:
    """Why `path` is not a complete checkpoint (of run `run_id`, if given); None if every byte is as it was written."""
    try:
        marker = (path / "COMPLETE").read_bytes()
        text = (path / "manifest.json").read_bytes()
    except OSError as error:
        return f"{Path(error.filename).name} cannot be read ({error.strerror})"
    if hashlib.sha256(text).hexdigest().encode("ascii") != marker:
        return "manifest.json and COMPLETE do not fit together"
    manifest = json.loads(text)
    if manifest["schema_version"] != SCHEMA_VERSION:
        return f"it has schema version {manifest['schema_version']}, and this prefloop reads version {SCHEMA_VERSION}"
    if run_id is not None and manifest["run_id"] != run_id:
        return f"it belongs to run {manifest['run_id']}"
    if path.name != f"step-{manifest['step']:06d}" and not path.name.startswith(STAGING_PREFIX):
        return f"it holds step {manifest['step']}"
    present = {file.relative_to(path).as_posix() for file in _files(path)} - {"manifest.json", "COMPLETE"}
    for name in sorted(present ^ manifest["files"].keys()):
        return f"{name} is {'not in the manifest' if name in present else 'missing'}"
    for name, expected in manifest["files"].items():
        if (path / name).stat().st_size != expected["size"] or _sha256(path / name) != expected["sha256"]:
            return f"{name} is damaged"
    return None


def _write_state(folder: Path, state: TrainerState) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    tree = _packed(state, "state", tensors)
    for name in (TREE_FILE, TENSOR_FILE):
        if (folder / name).exists():
            raise RunError(f"the model writer wrote {name}, which is the trainer's own file.")
    write_durably(folder / TREE_FILE, json.dumps(tree, allow_nan=False).encode("utf-8"))
    try:
        save_file(tensors, folder / TENSOR_FILE)
    except SafetensorError as error:
        raise OSError(f"{TENSOR_FILE}: {error}") from error


def _packed(value: Any, place: str, tensors: "dict[str, Tensor]") -> Any:
    """`value` as JSON that tells types apart; tensors go into `tensors` and leave their name.

    Every object in the JSON has one key, its type: dict (as pairs, because keys may be integers), tuple, tensor, float
    (for those that JSON has no number for). Everything else stands for itself; Python writes a float so that it reads
    back exactly.
    """
    import torch

    if isinstance(value, torch.Tensor):
        name = f"{len(tensors):06d}"
        # A copy of its own: safetensors refuses tensors that share memory, and views drag their whole storage along.
        tensors[name] = value.detach().to("cpu", copy=True).contiguous()
        return {"tensor": name}
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, dict):
        return {"dict": list(_packed_pairs(value, place, tensors))}
    if type(value) is tuple:
        return {"tuple": [_packed(below, f"{place}[{index}]", tensors) for index, below in enumerate(value)]}
    if type(value) is list:
        return [_packed(below, f"{place}[{index}]", tensors) for index, below in enumerate(value)]
    raise RunError(
        f"{place} is a {type(value).__module__}.{type(value).__qualname__}; a state holds tensors, numbers, texts, "
        "booleans, None, and dictionaries, lists and tuples of these."
    )


def _packed_pairs(value: dict[Any, Any], place: str, tensors: "dict[str, Tensor]") -> Iterator[list[Any]]:
    for key, below in value.items():
        if type(key) not in (str, int):
            raise RunError(f"{place} has the key {key!r}; a key in a state is a text or an integer.")
        yield [key, _packed(below, f"{place}[{key!r}]", tensors)]


def _unpacked(tree: Any, tensors: "dict[str, Tensor]") -> Any:
    if isinstance(tree, list):
        return [_unpacked(below, tensors) for below in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "float":
        return float(content)
    if kind == "tuple":
        return tuple(_unpacked(below, tensors) for below in content)
    assert kind == "dict"
    return {key: _unpacked(below, tensors) for key, below in content}
