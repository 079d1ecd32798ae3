"""The phases of a deleted instance's shutdown, as they are drawn and explained."""

from __future__ import annotations

from dataclasses import dataclass

from ..result import Gone, Life


@dataclass(frozen=True)
class Span:
    """A phase of an instance, in seconds since the deletions began. ``kind`` is also its CSS
    class."""

    kind: str
    label: str
    start: float
    end: float


KINDS = {
    "prestop": "preStop hook: serving",
    "lame-duck": "lame duck: not ready, serving",
    "draining": "draining",
    "stopping": "stopping, closed to new connections",
}
"""The phases of an instance that is deleted, as the legend explains them."""


def phases(gone: Gone, life: Life | None) -> tuple[Span, ...]:
    """Return the phases of a deleted instance. They come from the plugin's log; without the plugin,
    from the hook and SIGTERM.

    An instance that has not ended is drawn up to its last known event.
    """
    deleted = life.deleted if life is not None and life.deleted is not None else 0.0
    said = {text.split(maxsplit=1)[0]: at for at, text in reversed(gone.events)}
    known = [gone.exited, gone.sigterm, gone.pre_stop_done, deleted, *said.values()]
    end = gone.exited if gone.exited is not None else max(at for at in known if at is not None)
    began = said.get("shutdown_initiated")
    if began is not None:
        over = min(said.get("lame_duck_ended", end), end)
        steps = [("lame-duck", "lame duck", began, over), ("draining", "draining", over, end)]
        before = began
    else:
        sigterm = gone.sigterm if gone.sigterm is not None else end
        steps = [("stopping", "stopping", sigterm, end)]
        before = sigterm
    steps.insert(
        0,
        ("prestop", "preStop hook", deleted, before if gone.pre_stop_done is not None else deleted),
    )
    return tuple(Span(*step) for step in steps if step[3] - step[2] > 0.001)
