"""The examples do what they say."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"


def loaded(name: str) -> ModuleType:
    specification = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_an_outside_library_learns_the_best_answers(capsys: pytest.CaptureFixture[str]) -> None:
    example = loaded("token_environment_with_sb3")
    untrained = [score for _, _, score in example.answers(example.train(1))]
    assert sum(untrained) / len(untrained) < 0.6
    example.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[-1] for line in lines[:-1]] == ["1.00"] * len(example.PROMPTS)
    assert "star rain snow   -> snow rain star       1.00" in lines
