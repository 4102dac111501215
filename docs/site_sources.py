"""For the site: source files that a page links to become pages themselves, so that no link leaves the site.

On a forge, a link such as `../src/prefloop/algorithms/dpo.py` opens the file. The site holds docs/ alone; so every file
outside docs/ that a page links to is added as a page with its text, coloured, and the link is turned to it. Notebooks
are added as they are, to be downloaded. mkdocs calls the functions named `on_...`.
"""

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", "": "make"}
LINK = re.compile(r"\]\((\.\./[^)#\s]+)")
WHOLE = frozenset({".md", ".ipynb", ".png"})
"""Files that are taken as they are."""


def on_files(files: Files, *, config: Any) -> Files:
    """Adds the files that pages link to. Raises FileNotFoundError for a link to nothing."""
    linked = {
        path
        for page in files.documentation_pages()
        for path in LINK.findall(Path(page.abs_src_path or "").read_text(encoding="utf-8"))
    }
    for path in sorted(linked):
        source = (ROOT / "docs" / path).resolve()
        if not source.is_file():
            raise FileNotFoundError(f"a page links to {path}, and there is no file {source}")
        if source.suffix in WHOLE:
            added = File.generated(config, site_path(path), abs_src_path=str(source))
        else:
            added = File.generated(config, site_path(path), content=source_page(source))
        added.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(added)
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turns links that leave docs/ to the pages added above."""
    here = posixpath.dirname(page.file.src_uri)
    return LINK.sub(lambda found: f"]({posixpath.relpath(site_path(found[1]), here or '.')}", markdown)


def site_path(link: str) -> str:
    """Where a file from outside docs/ stands in the site: below source/, by its path from the root."""
    path = Path(os.path.normpath(ROOT / "docs" / link)).relative_to(ROOT).as_posix()
    return f"source/{path}" if Path(path).suffix in WHOLE else f"source/{path}.md"


def source_page(source: Path) -> str:
    """A page with the text of a file."""
    text = source.read_text(encoding="utf-8")
    # More backticks than any run of them inside.
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall(r"`+", text))])
    name = source.relative_to(ROOT).as_posix()
    return f"# {source.name}\n\n`{name}`\n\n{fence}{LANGUAGES.get(source.suffix, 'text')}\n{text}{fence}\n"
