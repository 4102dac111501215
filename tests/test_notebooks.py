"""The notebooks run from a fresh kernel in their order, at toy size; on the disk they hold no outputs."""

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
NAMES = ["1_sft", "2_reward_model", "3_ppo", "4_dpo"]


def sources(notebook: Any, kind: str) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def test_the_notebooks_are_those_of_the_docs() -> None:
    assert [one.stem for one in NOTEBOOKS] == NAMES
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert re.findall(r"\.\./notebooks/(\w+)\.ipynb", page) == NAMES


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_is_valid_and_holds_no_outputs(file: Path) -> None:
    notebook = nbformat.read(file, as_version=4)
    nbformat.validate(notebook)
    assert json.loads(file.read_text(encoding="utf-8"))["nbformat"] == 4
    for cell in notebook.cells:
        assert cell.cell_type in ("markdown", "code")
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None), "clear the outputs before you save"


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_calls_the_package_and_has_no_algorithm_of_its_own(file: Path) -> None:
    code = "\n".join(sources(nbformat.read(file, as_version=4), "code"))
    assert "from prefloop.algorithms." in code
    assert not re.search(r"^\s*class |\.backward\(\)|torch\.optim|loss\.mean\(\)", code, flags=re.MULTILINE)


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_explains_and_ends_with_exercises(file: Path) -> None:
    texts = sources(nbformat.read(file, as_version=4), "markdown")
    assert texts[0].startswith(f"# {file.stem[0]}. ")
    assert texts[-1].startswith("## To try\n\n1. ")
    assert any("$$" in text and "arXiv" in text for text in texts)


def executed(file: Path) -> list[Any]:
    """The outputs of all cells, in order, from a kernel of its own."""
    notebook = nbformat.read(file, as_version=4)
    # Files instead of ports: nobody else on the machine can listen in. Their names are absolute, since the kernel works
    # in the notebook's folder, and short, since the system takes some hundred characters.
    with tempfile.TemporaryDirectory(prefix="kernel") as sockets:
        config = Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/socket"}})
        place = {"metadata": {"path": str(file.parent)}}
        NotebookClient(notebook, kernel_name="python3", timeout=120, resources=place, config=config).execute()
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the notebooks save; each starts from what the ones before left there."""
    return tmp_path_factory.mktemp("notebooks")


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs_and_shows_something(file: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFLOOP_NOTEBOOK_SIZE", "toy")
    monkeypatch.setenv("PREFLOOP_NOTEBOOK_FOLDER", str(folder))
    monkeypatch.setenv("IPYTHONDIR", str(folder / "ipython"))
    outputs = executed(file)
    said = [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert said == [], "a reader would see a warning"
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert shown.count("image/png") >= 2
    assert "text/html" in shown, "no table"
    made = {"1_sft": "sft", "2_reward_model": "reward", "3_ppo": "ppo", "4_dpo": "dpo"}[file.stem]
    assert (folder / made / "model.safetensors").is_file()
    assert not (file.parent / "runs").exists()
