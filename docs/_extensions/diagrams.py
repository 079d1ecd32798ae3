"""The state diagram, drawn as SVG when the site is built.

In the repository a ``mermaid`` block is drawn by whoever shows it. Mermaid is a script, which the
site would have to load from elsewhere, and the phases of an instance are a simple picture: one
after the other, with arcs for the steps that leave some out.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any

WIDTH, HEIGHT, GAP, LEVEL = 104, 34, 40, 26
STEP = re.compile(r"^\s*(\S+) --> (\S+)$", re.M)


def svg(text: str) -> str:
    """Return the picture of a ``stateDiagram-v2``, whose states are in the order of their first
    mention, and last what nothing leaves."""
    steps = [(a, b) for a, b in STEP.findall(text) if a != "[*]"]
    states = list(dict.fromkeys(state for step in steps for state in step))
    states.sort(key=lambda state: state not in {a for a, _ in steps})
    at = {state: n for n, state in enumerate(states)}
    arcs = sorted(
        (step for step in steps if abs(at[step[1]] - at[step[0]]) > 1 or at[step[1]] < at[step[0]]),
        key=lambda step: abs(at[step[1]] - at[step[0]]),
    )
    above = [step for step in arcs if at[step[0]] < at[step[1]]]
    below = [step for step in arcs if at[step[0]] > at[step[1]]]
    top = LEVEL * len(above) + 12
    full = (len(states) - 1) * (WIDTH + GAP) + WIDTH + 4
    tall = top + HEIGHT + LEVEL * len(below) + 12
    drawn = []
    for state, n in at.items():
        x = 2 + n * (WIDTH + GAP)
        drawn.append(
            f'<rect x="{x}" y="{top}" width="{WIDTH}" height="{HEIGHT}" rx="6"/>'
            f'<text x="{x + WIDTH / 2}" y="{top + HEIGHT / 2 + 4}">{escape(state)}</text>'
        )
    for a, b in steps:
        if at[b] == at[a] + 1:
            x = 2 + at[a] * (WIDTH + GAP) + WIDTH
            drawn.append(f'<path d="M{x} {top + HEIGHT / 2}h{GAP - 2}"/>')
    for side, group in ((-1, above), (1, below)):
        for level, (a, b) in enumerate(group, 1):
            # Ends that meet at one state are set side by side.
            shift = 7 * level * (1 if at[a] < at[b] else -1)
            start = 2 + at[a] * (WIDTH + GAP) + WIDTH / 2 + shift
            end = 2 + at[b] * (WIDTH + GAP) + WIDTH / 2 - shift
            edge = top if side < 0 else top + HEIGHT
            drawn.append(
                f'<path d="M{start} {edge}V{edge + side * LEVEL * level}H{end}V{edge + side * 2}"/>'
            )
    label = escape("; ".join(f"{a} to {b}" for a, b in steps))
    return (
        f'<div class="diagram"><svg viewBox="0 0 {full} {tall}" width="{full}" height="{tall}" '
        f'role="img" aria-label="{label}">'
        '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>'
        f"{''.join(drawn)}</svg></div>"
    )


def draw(app: Any, doctree: Any) -> None:
    """Put the picture in the place of the block."""
    from docutils import nodes  # The tests draw without it.

    for block in list(doctree.findall(nodes.literal_block)):
        if block.get("language") == "mermaid":
            block.replace_self(nodes.raw("", svg(block.astext()), format="html"))


def setup(app: Any) -> dict[str, Any]:
    from sphinx.highlighting import lexer_classes

    # Log lines are text; the name says to the tests that they are those of the code.
    app.add_lexer("log", lexer_classes["none"])
    app.connect("doctree-read", draw)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
