"""Tables that can be read on a phone.

The name of a setting stays in one piece, while the long names of tests may break anywhere. A head
without a word, which Markdown asks for, is not shown.
"""

from __future__ import annotations

from typing import Any

LONGEST = 26
"""Characters of the longest name that stays in one piece."""


def mend(app: Any, doctree: Any) -> None:
    """Mark short names, and take out heads without a word."""
    from docutils import nodes

    for table in doctree.findall(nodes.table):
        for head in list(table.findall(nodes.thead)):
            if not head.astext().strip():
                head.parent.remove(head)
        for literal in table.findall(nodes.literal):
            if len(literal.astext()) <= LONGEST:
                literal["classes"].append("short")


def setup(app: Any) -> dict[str, Any]:
    app.connect("doctree-read", mend)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
