"""The documents say what is there: commands parse, recipes can run, links lead somewhere, no table is stale."""

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import typer

from documented_commands import FENCE, PAGE_NAMES, PAGES, ROOT, Command, commands, text_of
from prefloop.algorithms import ALGORITHMS
from prefloop.batches import TokenGroup
from prefloop.cli.main import app
from prefloop.cli.recipes import recipe_path, shipped_recipes
from prefloop.data.packing import ROW_MULTIPLE, pack
from prefloop.runs.pipeline import RUNNERS
from prefloop.runs.plan import check, references
from prefloop.runs.settings import load_yaml, merge, parse_overrides, validate
from prefloop.runs.stage_settings import Pipeline, Recipe

PACKAGE = ROOT / "src" / "prefloop"
SET_UP_FILES = [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / "constraints.txt"]

# Commands


ROOT_COMMAND: Any = typer.main.get_command(app)


def fault_of(words: tuple[str, ...]) -> str | None:
    """Why the command line refuses these words; None when it takes them."""
    options = {name for option in ROOT_COMMAND.params for name in option.opts}
    if words[0] in {*options, "--help"}:
        return None
    verb = ROOT_COMMAND.commands.get(words[0])
    if verb is None:
        return f"there is no verb {words[0]}"
    if words[1:] in ((), ("--help",)):
        return None
    try:
        verb.make_context(words[0], list(words[1:]))
    except Exception as problem:
        return str(problem)
    return None


@pytest.mark.parametrize("command", commands("prefloop"), ids=str)
def test_every_command_parses(command: Command) -> None:
    assert fault_of(command.words) is None


@pytest.mark.parametrize(
    "words", [("quikstart",), ("run", "tutorials", "--outputs", "x"), ("score", "model", "file", "stray")]
)
def test_a_wrong_command_does_not_parse(words: tuple[str, ...]) -> None:
    assert fault_of(words) is not None


def test_every_verb_is_in_the_readme() -> None:
    table = text_of("README.md").partition("## The verbs")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| `prefloop (\w+)` \|", table, flags=re.MULTILINE)
    assert sorted(listed) == sorted(ROOT_COMMAND.commands)


@pytest.mark.parametrize("command", commands("make"), ids=str)
def test_every_target_of_make_exists(command: Command) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert command.words[0] in targets


# Recipes


def recipe_commands() -> list[Command]:
    """Commands that name a shipped recipe, with their overrides."""
    found = []
    for command in commands("prefloop"):
        verb, *rest = command.words
        if verb == "quickstart":
            found.append(command._replace(words=(verb, "tutorials", *rest)))
        elif verb == "run" and rest and not (rest[0].startswith("-") or rest[0].startswith("runs/")):
            found.append(command)
    return found


@pytest.mark.parametrize("command", recipe_commands(), ids=str)
def test_every_recipe_named_exists_and_takes_its_overrides(command: Command) -> None:
    name, *rest = command.words[1:]
    overrides = [word for word in rest if re.match(r"[\w.]+=", word)]
    data = merge(load_yaml(recipe_path(name)), parse_overrides(overrides))
    validate(Pipeline, data, origin=name)


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_every_recipe_file_mentioned_is_shipped(page: str) -> None:
    for name in re.findall(r"\brecipes/([\w-]+)\.yaml", text_of(page)):
        assert name in shipped_recipes(), f"{page} names recipes/{name}.yaml"


def test_every_shipped_recipe_is_explained() -> None:
    rows = re.findall(r"^\| \[([\w-]+)\]\(\.\./src/prefloop/recipes/", text_of("docs/recipes.md"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(shipped_recipes())


def yaml_blocks() -> list[tuple[str, str]]:
    return [
        (page, body) for page in PAGE_NAMES for language, body in FENCE.findall(text_of(page)) if language == "yaml"
    ]


@pytest.mark.parametrize(("page", "body"), yaml_blocks())
def test_every_recipe_written_out_can_run(
    page: str, body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(body, encoding="utf-8")
    data = load_yaml(file)
    recipe = validate(Pipeline if "stages" in data else Recipe, data, origin=page)
    monkeypatch.chdir(tmp_path)
    stages = recipe.stages if isinstance(recipe, Pipeline) else {"stage": recipe.stage}
    for stage in stages.values():
        for one in references(stage, recipe):
            if one.stage not in stages:
                one.outside.parent.mkdir(parents=True, exist_ok=True)
                one.outside.touch()
    check(recipe)


def test_every_kind_of_stage_has_its_row() -> None:
    rows = re.findall(r"^\| \[`(\w+)`\]\(settings\.md#\w+\)", text_of("docs/recipes.md"), flags=re.MULTILINE)
    assert sorted(rows) == sorted(RUNNERS)


# Links


def anchors(page: Path) -> set[str]:
    """The anchors that headings get where the pages are shown: small letters, hyphens for spaces, no punctuation."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def links(page: str) -> Iterator[str]:
    yield from re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page)))


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_every_link_leads_somewhere(page: str) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (ROOT / page).parent / path if path else ROOT / page
        assert target.exists(), f"{page} links to {link}"
        if anchor:
            assert anchor in anchors(target), f"{page} links to {link}, and {target.name} has no such heading"


@pytest.mark.parametrize("page", PAGE_NAMES)
def test_every_page_is_linked_from_the_readme_or_from_a_page_that_is(page: str) -> None:
    reached, found = set[Path](), [ROOT / "README.md", ROOT / "CHANGELOG.md"]
    while found:
        here = found.pop().resolve()
        if here not in reached and here.suffix == ".md":
            reached.add(here)
            found += [here.parent / link.partition("#")[0] for link in links(str(here.relative_to(ROOT)))]
    assert (ROOT / page).resolve() in reached


@pytest.mark.parametrize("file", [*PAGES, *SET_UP_FILES], ids=lambda file: file.name)
def test_no_host_is_named(file: Path) -> None:
    text = file.read_text(encoding="utf-8")
    own = re.sub(r"http://127\.0\.0\.1:\d+", "", text)
    hosts = re.findall(r"\w+://\S*|\b[\w-]+\.(?:com|org|net|io|dev|ai)\b", own)
    assert hosts == []


# What is generated


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    """docs/make_settings.py as a module."""
    specification = importlib.util.spec_from_file_location("make_settings", ROOT / "docs" / "make_settings.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_settings_page_is_what_the_models_say(generator: ModuleType) -> None:
    assert text_of("docs/settings.md") == generator.settings_page(), "run: python docs/make_settings.py"


def test_the_tables_of_defaults_are_what_the_models_say(generator: ModuleType) -> None:
    text = text_of("docs/algorithms.md")
    assert text == generator.with_default_tables(text), "run: python docs/make_settings.py"
    assert sorted(generator.DEFAULTS_TABLE.findall(text)) == sorted(
        (f"<!-- defaults {name} -->\n", name, "<!-- /defaults -->") for name in [*ALGORITHMS, "optimizer"]
    )


def test_a_stale_table_is_noticed(generator: ModuleType) -> None:
    text = text_of("docs/algorithms.md").replace("| `beta` | float (> 0) | `0.1` |", "| `beta` | float (> 0) | `0.2` |")
    assert text != generator.with_default_tables(text)


def test_every_setting_has_its_explanation(generator: ModuleType) -> None:
    rows = re.findall(r"^\| `([^`]+)` \|.*\| (.*) \|$", generator.settings_page(), flags=re.MULTILINE)
    assert len(rows) > 100
    assert [name for name, meaning in rows if not meaning] == []


def test_every_algorithm_has_its_section_and_its_row() -> None:
    text = text_of("docs/algorithms.md")
    assert re.findall(r"^## (\w+)$", text, flags=re.MULTILINE) == list(ALGORITHMS)
    assert re.findall(r"^\| `(\w+)` \|.*arXiv.*\.py\) \|$", text, flags=re.MULTILINE) == list(ALGORITHMS)


# The tree and the picture


def paths_in_tree(lines: list[str]) -> Iterator[str]:
    """The paths of an indented tree, two spaces a floor; folders end in a slash."""
    above: list[str] = []
    for line in lines:
        depth = (len(line) - len(line.lstrip())) // 2
        name = line.split()[0]
        above = [*above[:depth], name.rstrip("/")]
        yield "/".join(above) + ("/" if name.endswith("/") else "")


def test_the_tree_names_every_module_and_nothing_else() -> None:
    block = text_of("docs/architecture.md").partition("<!-- tree -->\n```\n")[2].partition("```\n<!-- /tree -->")[0]
    named = list(paths_in_tree(block.splitlines()))
    files = [
        file
        for file in PACKAGE.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and file.name not in ("__init__.py", "py.typed")
    ]
    folders = {folder for file in files for folder in file.parents if folder.is_relative_to(PACKAGE)}
    there = [file.relative_to(ROOT).as_posix() for file in files]
    there += [f"{folder.relative_to(ROOT).as_posix()}/" for folder in folders]
    assert sorted(f"src/{path.removeprefix('src/')}" for path in named) == sorted(there)


def test_every_line_of_the_tree_says_what_the_module_is() -> None:
    block = text_of("docs/architecture.md").partition("<!-- tree -->\n```\n")[2].partition("```\n<!-- /tree -->")[0]
    assert [line for line in block.splitlines() if not line.endswith("/") and len(line.split()) < 3] == []


def test_the_picture_of_the_packed_batch_is_what_packing_does() -> None:
    packed = pack([TokenGroup((1, 1, 1), ((2, 2), (3, 3, 3))), TokenGroup((4, 4), ((5, 5),))])
    picture = text_of("docs/architecture.md").partition("place        0")[2].partition("```")[0]
    rows = {line[:13].strip(): re.findall(r"\d+", line[13:]) for line in picture.splitlines()[1:]}
    assert [int(one) for one in rows["position"]] == packed.positions[:13].tolist()
    assert [int(one) for one in rows["segment"]] == packed.segment.tolist()
    assert [int(one) for one in rows["predicted at"]] == packed.predictor_index.tolist()
    stars = next(line for line in picture.splitlines() if line.startswith("target")).count("*")
    assert stars == packed.num_targets
    assert torch.equal(packed.last_index, torch.tensor([4, 7, 11]))
    assert f"a multiple of {ROW_MULTIPLE} tokens" in text_of("docs/architecture.md")
