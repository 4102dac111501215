"""The documentation as a site: every link leads somewhere, and nothing is fetched from elsewhere."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

from documented_commands import ROOT

PAGES = sorted(page.name for page in (ROOT / "docs").glob("*.md"))
MKDOCS_IS_MISSING = importlib.util.find_spec("mkdocs") is None


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` builds it; a broken link or a page without a place is an error."""
    if MKDOCS_IS_MISSING:
        pytest.skip('mkdocs is not installed: pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_make_builds_it_the_same_way() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(r"^docs: .*\n\t\$\(BIN\)/mkdocs build --quiet$", makefile, flags=re.MULTILINE)
    assert re.search(r"^strict: true$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert "/site/" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()


def test_every_page_is_built(site: Path) -> None:
    assert {f"{Path(name).stem}.html" for name in PAGES} <= {page.name for page in site.glob("*.html")}
    assert not list(site.rglob("*.py")), "a source file was copied instead of shown"


def test_the_tutorials_are_numbered_in_reading_order_and_the_start_page_lists_the_same(site: Path) -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    numbered = re.findall(r"- (\d+)\. (.+): (\w+\.md)$", navigation, flags=re.MULTILINE)
    assert [int(number) for number, _, _ in numbered] == list(range(1, len(numbered) + 1))
    assert len(numbered) >= 5
    start = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"^(\d+)\. \[(.+)\]\((\w+\.md)\)", start, flags=re.MULTILINE) == numbered


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    fetched = re.compile(
        r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^>]*>"""
        r"""|<link\b[^>]*\bhref=["']?(?:https?:)?//[^>]*>"""
        r"""|url\(\s*["']?(?:https?:)?//[^)]*\)|@import[^;]*//[^;]*;"""
    )
    for file in [*site.rglob("*.html"), *site.rglob("*.css")]:
        found = fetched.findall(file.read_text(encoding="utf-8"))
        assert found == [], f"{file.relative_to(site)} loads {found[0]}"
    for file in site.rglob("*.js"):
        text = file.read_text(encoding="utf-8")
        calls = re.findall(
            r"""(?:fetch|importScripts|import|open)\(\s*["'](?:[A-Z]+["'],\s*["'])?(?:https?:)?//""", text
        )
        assert calls == [], f"{file.relative_to(site)} calls {calls[0]}"


def test_a_source_file_that_a_page_links_to_is_a_page_with_its_text(site: Path) -> None:
    page = (site / "source/src/prefloop/algorithms/dpo.py.html").read_text(encoding="utf-8")
    assert "Direct preference optimisation (DPO)" in page
    linked = (site / "algorithms.html").read_text(encoding="utf-8")
    assert 'href="source/src/prefloop/algorithms/dpo.py.html"' in linked


def test_the_notebooks_can_be_downloaded(site: Path) -> None:
    for name in ("1_sft", "2_reward_model", "3_ppo", "4_dpo"):
        copy = site / "source" / "notebooks" / f"{name}.ipynb"
        assert copy.read_bytes() == (ROOT / "notebooks" / f"{name}.ipynb").read_bytes()
    assert 'href="source/notebooks/1_sft.ipynb"' in (site / "notebooks.html").read_text(encoding="utf-8")


def test_links_leave_no_page_of_the_site(site: Path) -> None:
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue
        text = re.sub(r"<footer>.*?</footer>", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r'<a [^>]*href="([^"#]+)', text):
            assert (page.parent / link).exists(), f"{page.relative_to(site)} links to {link}"
