"""What the pages tell a reader to type."""

import re
import shlex
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGE_NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`([^`\n]+)`")


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


class Command(NamedTuple):
    """A command as a page writes it."""

    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def commands(program: str) -> list[Command]:
    """What the pages tell a reader to type: lines of code blocks, and code spans."""
    found: dict[Command, None] = {}
    for page in PAGE_NAMES:
        text = text_of(page)
        blocks = [line.strip() for _, body in FENCE.findall(text) for line in body.splitlines()]
        spans = SPAN.findall(FENCE.sub("", text))
        for line in [*blocks, *spans]:
            if line == program or line.startswith(f"{program} "):
                words = tuple(shlex.split(line, comments=True)[1:])
                # By itself the word is the program's name.
                if words:
                    found[Command(page, words)] = None
    return list(found)


def shell_lines() -> list[str]:
    """Every line of the blocks that show a shell."""
    blocks = [body for page in PAGE_NAMES for language, body in FENCE.findall(text_of(page)) if language == "console"]
    return list(dict.fromkeys(line.strip() for body in blocks for line in body.splitlines() if line.strip()))
