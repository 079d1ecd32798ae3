"""A link to a file of the repository works in the repository and on the site.

Pages link to examples and schemas by relative paths, as the repository shows them. On the site
such a link leads to a page that shows the file, or to the published repository, once
``repository_address`` in ``conf.py`` names one.
"""

from __future__ import annotations

import html
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.util.osutil import relative_uri

LANGUAGES = {
    "nginx.conf": "nginx",
    ".conf": "python",
    ".json": "json",
    ".py": "python",
    ".service": "ini",
    ".socket": "ini",
    ".yaml": "yaml",
}
"""How a file is coloured, by its name or the end of it. Every other file is plain text."""

PAGES = "repository/"


def link(app: Any, doctree: nodes.document) -> None:
    """Turn what MyST takes for downloads, or for pages that do not exist, into links to pages."""
    here = Path(app.env.doc2path(app.env.docname)).parent
    for node in list(doctree.findall(addnodes.download_reference)):
        _lead(app, node, (here / node["reftarget"]).resolve())
    for node in list(doctree.findall(addnodes.pending_xref)):
        file = Path(f"{node.get('reftarget', '')}.md")
        if node.get("refdomain") == "doc" and file.is_absolute() and file.exists():
            _lead(app, node, file.resolve())


def _lead(app: Any, node: nodes.Element, file: Path) -> None:
    path = file.relative_to(Path(app.config.repository_root).resolve()).as_posix()
    if app.config.repository_address:
        uri = app.config.repository_address + path
    else:
        app.env.__dict__.setdefault("repository_files", {})[path] = file
        uri = relative_uri(
            app.builder.get_target_uri(app.env.docname),
            app.builder.get_target_uri(PAGES + path),
        )
    node.replace_self(nodes.reference("", "", *node.children, refuri=uri, internal=True))


def pages(app: Any) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yield a page for each linked file."""
    for path, file in sorted(getattr(app.env, "repository_files", {}).items()):
        text = file.read_text(encoding="utf-8")
        language = LANGUAGES.get(file.name) or LANGUAGES.get(file.suffix, "text")
        shown = app.builder.highlighter.highlight_block(text, language)
        body = f"<section><h1><code>{html.escape(path)}</code></h1>\n{shown}</section>"
        yield PAGES + path, {"title": path, "body": body, "parents": []}, "page.html"


def setup(app: Any) -> dict[str, Any]:
    app.add_config_value("repository_root", "", "env")
    app.add_config_value("repository_address", "", "env")
    # Before the collector that copies downloads.
    app.connect("doctree-read", link, priority=100)
    app.connect("html-collect-pages", pages)
    return {"version": "1", "parallel_read_safe": False, "parallel_write_safe": True}
