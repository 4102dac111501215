"""Provenance: what a run was made with, so that its figures can be traced and made again."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any


def provenance(data_fingerprints: Mapping[str, str], *, folder: Path | None = None) -> dict[str, Any]:
    """Interpreter, platform, package versions, source commit, hardware, fingerprints of the data, and the time (UTC).

    `folder` is where a git checkout is looked for, the working directory if None; `git` is None where there is none.
    """
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "command": list(sys.argv),
        "packages": _package_versions(),
        "git": _git_state(folder or Path.cwd()),
        "hardware": _hardware(),
        "data": dict(data_fingerprints),
    }


def _package_versions() -> dict[str, str]:
    """prefloop and what it directly depends on, extras left out."""
    names = ["prefloop"]
    for requirement in importlib.metadata.requires("prefloop") or []:
        match = re.match(r"[A-Za-z0-9._-]+", requirement)
        if match and "extra ==" not in requirement:
            names.append(match[0])
    return {name: _version(name) for name in names}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        # Whoever takes a package out of an environment has a reason; the run that goes without it says so.
        return "not installed"


def _git_state(folder: Path) -> dict[str, Any] | None:
    """Commit and whether tracked files differ from it; None without git, outside a checkout or before a commit."""
    git = shutil.which("git")
    if git is None:
        return None
    commit = _git_output(git, folder, "rev-parse", "HEAD")
    changes = _git_output(git, folder, "status", "--porcelain", "--untracked-files=no")
    if commit is None or changes is None:
        return None
    return {"commit": commit, "has_uncommitted_changes": bool(changes)}


def _git_output(git: str, folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(  # noqa: S603 - fixed arguments, no shell
            [git, *arguments], cwd=folder, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _hardware() -> dict[str, Any]:
    import torch

    return {
        "num_cpus": os.cpu_count(),
        "num_torch_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda,
        "cuda_devices": [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())],
    }
