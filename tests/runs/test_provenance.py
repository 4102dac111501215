"""Provenance names versions, commit, hardware and data."""

import json
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from prefloop.runs.provenance import provenance


def test_it_names_versions_hardware_and_data(tmp_path: Path) -> None:
    facts = provenance({"train.jsonl": "abc"}, folder=tmp_path)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["python"] == platform.python_version()
    assert facts["packages"]["torch"] == version("torch")
    assert facts["packages"]["prefloop"] == version("prefloop")
    assert "pytest" not in facts["packages"]
    assert facts["data"] == {"train.jsonl": "abc"}
    assert facts["hardware"]["num_torch_threads"] == torch.get_num_threads()
    assert len(facts["hardware"]["cuda_devices"]) == torch.cuda.device_count()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_it_names_the_commit_and_whether_files_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")

    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        return subprocess.run(
            ["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout.strip()

    assert provenance({}, folder=tmp_path)["git"] is None
    git("init")
    assert provenance({}, folder=tmp_path)["git"] is None
    (tmp_path / "file").write_text("a")
    git("add", "file")
    git("commit", "-m", "first")
    commit = git("rev-parse", "HEAD")
    assert provenance({}, folder=tmp_path)["git"] == {"commit": commit, "has_uncommitted_changes": False}
    (tmp_path / "file").write_text("b")
    assert provenance({}, folder=tmp_path)["git"] == {"commit": commit, "has_uncommitted_changes": True}


def test_without_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert provenance({}, folder=tmp_path)["git"] is None
