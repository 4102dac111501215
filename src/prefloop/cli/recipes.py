"""Finding recipes: a path, or the name of one that is shipped with the package."""

import difflib
from importlib import resources
from pathlib import Path

from prefloop.errors import SettingsError


def recipe_path(name: str) -> Path:
    """The file of a recipe. Raises SettingsError when there is none, naming those that are shipped."""
    if Path(name).is_file():
        return Path(name)
    shipped = shipped_recipes()
    stem = Path(name).stem
    if stem in shipped and Path(name).parent.name in ("", "recipes"):
        return shipped[stem]
    near = "tutorials" if stem == "quickstart" else next(iter(difflib.get_close_matches(stem, shipped, n=1)), None)
    hint = f"did you mean {near}? Give" if near else "give"
    raise SettingsError(f"there is no recipe {name}: {hint} a YAML file, or one of {', '.join(sorted(shipped))}")


def shipped_recipes() -> dict[str, Path]:
    """The recipes that come with the package, by name."""
    folder = Path(str(resources.files("prefloop"))) / "recipes"
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}
