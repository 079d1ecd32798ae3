"""The table of contents is the list in ``index.md``.

A ``toctree`` is a directive, which a reader of the repository would see as a block of code. So
``index.md`` is plain Markdown, and each of its sections with a list of pages becomes a part of the
table of contents, in that order. Sphinx warns about a page that is in no part, and a warning is an
error: no page can be forgotten.
"""

from __future__ import annotations

import re
from typing import Any

SECTION = re.compile(r"^## (?P<title>.+)\n(?P<body>(?:(?!^## ).*\n?)*)", re.M)
ENTRY = re.compile(r"^- \[(?P<title>[^]]+)\]\((?P<page>[\w/-]+)\.md\)", re.M)


def sections(text: str) -> dict[str, list[str]]:
    """Return the pages of each section."""
    return {
        section["title"]: [entry["page"] for entry in ENTRY.finditer(section["body"])]
        for section in SECTION.finditer(text)
    }


def add(app: Any, docname: str, source: list[str]) -> None:
    """Give the first page the parts of the table of contents."""
    if docname == "index":
        for title, pages in sections(source[0]).items():
            if pages:
                listed = "\n".join(pages)
                source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{listed}\n```\n"


def setup(app: Any) -> dict[str, Any]:
    app.connect("source-read", add)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
