"""Build the site, and follow its links.

    tox -e docs
    python tests/long/website.py FOLDER

Sphinx's warnings are errors. Then each link of each page has to lead to a file of the site, and to
a place in it that exists; and no page may load anything from elsewhere, because the site is read
offline too. Links to other sites are not followed: a build needs no network.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

DOCS = Path(__file__).parents[2] / "docs"
LOADED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "object": "data"}


class Page(HTMLParser):
    """What a page links to, what it loads, and the places in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.places: set[str] = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if given.get("id"):
            self.places.add(given["id"] or "")
        if tag == "a" and given.get("href"):
            self.links.add(given["href"] or "")
        if tag == "link" and given.get("href") and given.get("rel") != "canonical":
            self.loads.add(given["href"] or "")
        if given.get(LOADED.get(tag, "-")):
            self.loads.add(given[LOADED[tag]] or "")


def broken(folder: Path) -> Iterator[str]:
    """Yield a line for each link that leads nowhere, and for each file that is loaded from
    elsewhere."""
    pages = {
        path.resolve(): Page(path.read_text(encoding="utf-8")) for path in folder.rglob("*.html")
    }
    for path, page in sorted(pages.items()):
        name = path.relative_to(folder.resolve())
        for target in sorted(page.links | page.loads):
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loads and parts.scheme != "data":
                    yield f"{name} loads {target}"
                continue
            file = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if file.is_dir():
                file /= "index.html"
            if not file.is_file():
                yield f"{name}: no file for {target}"
            elif file in pages and unquote(parts.fragment) not in pages[file].places:
                yield f"{name}: no such place: {target}"


def main(folder: str) -> int:
    """Return the exit code."""
    sphinx = [sys.executable, "-m", "sphinx", "-q", "-E", "-n", "-W", "--keep-going"]
    built = subprocess.run([*sphinx, "-b", "html", str(DOCS), folder])
    if built.returncode:
        return built.returncode
    found = list(broken(Path(folder)))
    print("\n".join(found) or f"the site is in {folder}, and each of its links leads somewhere")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
