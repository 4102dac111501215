"""The command line as a person uses it, in this process: what it prints and the exit code."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from command_line import Outcome, Prefloop, Whole, called

from toy_recipes import tutorials, write_recipe


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def prefloop(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Prefloop:
    """Runs a command line in an empty folder; `typed` is what the person types."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str | Path, typed: str = "") -> Outcome:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        capsys.readouterr()
        code = called(*map(str, arguments))
        shown = capsys.readouterr()
        return Outcome(code, shown.out, shown.err)

    return run


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub does not answer, and says so at once."""
    import datasets.config
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """Run once for all tests, which only read it."""
    place = tmp_path_factory.mktemp("whole")
    recipe, folder = write_recipe(place / "toy.yaml", tutorials()), place / "out"
    before, streams = torch.get_num_threads(), (sys.stdout, sys.stderr)
    torch.set_num_threads(1)
    sys.stdout, sys.stderr = out, err = io.StringIO(), io.StringIO()
    try:
        code = called("run", str(recipe), "--output", str(folder))
    finally:
        sys.stdout, sys.stderr = streams
        torch.set_num_threads(before)
    return Whole(folder, recipe, code, out.getvalue(), err.getvalue())
