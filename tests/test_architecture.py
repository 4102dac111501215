"""What holds for the house as a whole: floors, names, sizes, and no setting that nothing reads."""

import ast
import re
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from prefloop.cli.main import VERBS
from prefloop.runs.stage_settings import Pipeline, Recipe

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "prefloop"
FILES = sorted(SOURCE.rglob("*.py"))
DRAWERS = {"utils", "helpers", "common", "misc", "core", "base", "manager"}
MAX_LINES = 450


def test_no_file_or_folder_is_a_drawer() -> None:
    assert not [path for path in SOURCE.rglob("*") if path.stem.strip("_").lower() in DRAWERS]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(SOURCE).as_posix())
def test_a_file_is_small_and_done(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_LINES
    assert not re.search(r"\bTODO\b|\bFIXME\b|\bXXX\b|NotImplementedError", text)


def groups_below(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """A group of settings and every group that it holds, by name."""
    found = {model.__name__: model}
    for one in model.model_fields.values():
        for inner in groups_in(one.annotation):
            found |= groups_below(inner)
    return found


def groups_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [group for inner in typing.get_args(annotation) for group in groups_in(inner)]


GROUPS = groups_below(Pipeline) | groups_below(Recipe)
FIELDS = sorted({name for group in GROUPS.values() for name in group.model_fields})


def attributes_read() -> set[str]:
    """Every name that some line of the package reads as an attribute."""
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in FILES]
    return {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def test_every_setting_is_read_somewhere() -> None:
    assert len(FIELDS) > 80
    assert not set(FIELDS) - attributes_read()


def test_every_setting_is_explained() -> None:
    bare = [f"{name}.{key}" for name, group in GROUPS.items() for key, one in group.model_fields.items()
            if not one.description and key != "kind"]  # fmt: skip
    assert not bare


def test_every_verb_is_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [verb.__name__ for verb in VERBS if f"prefloop {verb.__name__.rpartition('.')[2]}" not in text]


def test_imports_only_go_down() -> None:
    linter = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
