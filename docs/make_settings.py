"""Writes docs/settings.md, and the tables of defaults in docs/algorithms.md, from the settings' own definitions.

    python docs/make_settings.py

Nothing in these tables is typed by hand: keys, types, limits, defaults and texts are read from the models that validate
a recipe. tests/test_docs.py fails when what is on the disk is not what this file would write.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import get_args

from pydantic import BaseModel

from prefloop.algorithms import ALGORITHMS
from prefloop.contracts import Settings
from prefloop.models.update import OptimizerSettings
from prefloop.runs.settings import SettingDescription, describe
from prefloop.runs.stage_settings import AnyStage, Pipeline, Recipe

DOCS = Path(__file__).parent
SETTINGS_PAGE = DOCS / "settings.md"
ALGORITHMS_PAGE = DOCS / "algorithms.md"

INTRODUCTION = """# Settings

Every key that a recipe may hold, written by `docs/make_settings.py` from the models that check it. How a recipe is put
together is on the page [Recipes](recipes.md); what the algorithms do with them on [Algorithms](algorithms.md).

- A key with a dot stands inside a group: `training.learning_rate` is `learning_rate` below `training`.
- A `group` holds the keys that are listed below it.
- "required" means that there is no default. `null` means none, and can be written so.
- Types are exact: `true` is no integer and `"3"` is no number. A key that is not listed is an error that names the
  nearest key that is.
"""

DEFAULTS_TABLE = re.compile(r"(<!-- defaults (\w+) -->\n).*?(<!-- /defaults -->)", re.DOTALL)


def settings_page() -> str:
    """The text of docs/settings.md."""
    parts = [
        INTRODUCTION,
        "## The recipe of a pipeline\n\nFor `prefloop run`.\n",
        _table(one for one in describe(Pipeline) if one.key in Pipeline.model_fields),
        "## The recipe of one stage\n\nFor `prefloop train`.\n",
        _table(one for one in describe(Recipe) if one.key in Recipe.model_fields),
    ]
    for kind, stage in stage_kinds().items():
        parts += [f"## {kind}\n\n{_sentence(stage)}\n", _table(one for one in describe(stage) if one.key != "kind")]
    return "\n".join(parts)


def stage_kinds() -> dict[str, type[BaseModel]]:
    """The stages that a recipe may hold, by `kind`, in the order of their definition."""
    stages = get_args(get_args(AnyStage)[0])
    return {get_args(stage.model_fields["kind"].annotation)[0]: stage for stage in stages}


def with_default_tables(text: str) -> str:
    """The text of docs/algorithms.md with every table of defaults written anew.

    A table stands between the lines `<!-- defaults NAME -->` and `<!-- /defaults -->`; NAME is an algorithm, or
    `optimizer` for what all of them share.
    """
    classes: dict[str, type[Settings]] = {name: config for name, (_, config) in ALGORITHMS.items()}
    classes["optimizer"] = OptimizerSettings
    return DEFAULTS_TABLE.sub(lambda found: found[1] + _defaults(classes[found[2]]) + found[3], text)


def _defaults(config: type[Settings]) -> str:
    """The settings that the class itself defines, or gives another default than the class above it."""
    return _table(one for one in describe(config) if one.key.split(".")[0] in config.__annotations__)


def _table(settings: Iterable[SettingDescription]) -> str:
    rows = list(settings)
    groups = {one.key for one in rows if any(other.key.startswith(f"{one.key}.") for other in rows)}
    lines = ["| Setting | Type | Default | Meaning |", "|---|---|---|---|"]
    for one in rows:
        meaning = _cell(" ".join(one.description.split()))
        lines.append(f"| `{one.key}` | {_type(one)} | {_default(one, is_group=one.key in groups)} | {meaning} |")
    return "\n".join(lines) + "\n"


def _default(one: SettingDescription, *, is_group: bool) -> str:
    if is_group and one.default.startswith("{"):
        return "as below"
    return "required" if one.default == "required" else f"`{one.default}`"


def _type(one: SettingDescription) -> str:
    """A type as a person reads it: a group by what it is, the stages by where they are listed."""
    if one.key in ("stage", "stages"):
        return "the stages below, by name" if one.key == "stages" else "one training stage"
    readable = re.sub(r"\b(FromScratch|RewardFromScratch|Lora|Judge|PostFilters|PairRules|Config)\b", "group", one.type)
    readable = re.sub(r"tuple\[(\w+), \.\.\.\]", r"list of \1", readable)
    readable = re.sub(r"dict\[str, (\w+)\]", r"names to \1", readable)
    return _cell(readable.replace("tuple[float, float]", "two floats"))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _sentence(stage: type[BaseModel]) -> str:
    """What the stage does: its docstring."""
    return " ".join((stage.__doc__ or "").split())


def main() -> None:
    SETTINGS_PAGE.write_text(settings_page(), encoding="utf-8")
    ALGORITHMS_PAGE.write_text(with_default_tables(ALGORITHMS_PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    print(f"written: {SETTINGS_PAGE} and the tables in {ALGORITHMS_PAGE}")


if __name__ == "__main__":
    main()
