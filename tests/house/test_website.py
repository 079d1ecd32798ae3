"""The site of the docs: ``tox -e docs`` builds it; here is what it rests on."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from long import website
from support.paths import DOCS, ROOT

pytestmark = pytest.mark.once


def extension(name: str) -> ModuleType:
    """One of the site's own extensions."""
    path = DOCS / "_extensions" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(f"docs_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_page_is_in_the_table_of_contents_once() -> None:
    """The table of contents is the list of the first page."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    listed = [page for pages in extension("contents").sections(index).values() for page in pages]
    pages = {path.relative_to(DOCS).with_suffix("").as_posix() for path in DOCS.rglob("*.md")}
    assert sorted(listed) == sorted(pages - {"index"})


def test_a_page_stands_in_the_section_of_its_folder() -> None:
    """Who looks for a page in the repository finds it where the table of contents has it."""
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    for title, pages in extension("contents").sections(index).items():
        folders = {page.partition("/")[0] for page in pages if "/" in page}
        assert folders in (set(), {title.lower()}), title


def test_links_leave_the_docs_for_files_alone() -> None:
    """The site shows linked files of the repository as pages. It cannot show a folder."""
    for path in DOCS.rglob("*.md"):
        for target in re.findall(r"\]\(((?:\.\./)+[^)#]+)", path.read_text(encoding="utf-8")):
            assert (path.parent / target).resolve().is_file(), (path, target)


def test_broken_links_are_found(tmp_path: Path) -> None:
    """A file that is not there, a place that is not there, and a file of another site's that the
    page loads. A link to another site is none of these."""
    (tmp_path / "a.html").write_text(
        '<link href="style.css"><h1 id="here">A</h1><a href="#here"></a><a href="#there"></a>'
        '<a href="b.html"></a><a href="https://example.org/x"></a><a href="sub/"></a>'
        '<script src="https://example.org/x.js"></script><img src="data:image/png;base64,AA==">'
    )
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "index.html").write_text('<a href="../a.html#here"></a>')
    assert sorted(website.broken(tmp_path)) == [
        "a.html loads https://example.org/x.js",
        "a.html: no file for b.html",
        "a.html: no file for style.css",
        "a.html: no such place: #there",
    ]


def test_the_diagram_is_drawn_in_the_order_of_the_phases() -> None:
    """Each state stands once, what nothing leaves is last, and the picture has a text for those
    who cannot see it."""
    page = (DOCS / "explanation" / "how-it-works.md").read_text(encoding="utf-8")
    (diagram,) = re.findall(r"^```mermaid\n(.*?)^```", page, re.M | re.S)
    drawn = extension("diagrams").svg(diagram)
    states = ["STARTING", "SERVING", "LAME_DUCK", "DRAINING", "STOPPED"]
    assert re.findall(r"<text[^>]*>(\w+)<", drawn) == states
    assert drawn.count('<path d="M') == diagram.count("-->")  # One is [*], one the arrow's head.
    assert "SERVING to LAME_DUCK" in drawn


def test_ci_builds_the_site() -> None:
    """It is one of tox's environments, which CI runs all."""
    tox = (ROOT / "tox.ini").read_text(encoding="utf-8")
    listed = re.search(r"^env_list =\n((?:    .*\n)+)", tox, re.M)
    assert listed is not None
    assert "docs" in listed[1].split()
    assert "[testenv:docs]" in tox
