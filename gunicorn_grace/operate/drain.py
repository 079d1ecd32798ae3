"""``gunicorn-grace drain`` and ``undrain``: out of rotation, and back."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import StateError
from ..shared.phase import Origin, Phase
from .instance import LOOK, find, lives


def drain(pid: int | None, say: Callable[[str], object]) -> None:
    """Take an instance out of rotation: not ready, and served as ever.

    :param pid: the arbiter, where there is more than one instance.
    :param say: takes a line for the one who asked.
    :raises StateError: there is no such instance, or more than one.
    """
    began = find(pid).trigger(Origin.DRAIN)
    say("not ready until undrain" if began else "the shutdown had begun before: nothing to do")


def undrain(pid: int | None, say: Callable[[str], object]) -> None:
    """Take an instance back into rotation, whatever took it out.

    :param pid: the arbiter, where there is more than one instance.
    :param say: takes a line for the one who asked.
    :raises StateError: there is no such instance, or more than one; or a SIGTERM has come.
    """
    memory = find(pid)
    header = memory.header
    if not memory.is_terminating():
        say("it is serving: nothing to do")
        return
    if header.sigterm or header.phase > Phase.LAME_DUCK:
        raise StateError("a SIGTERM has come: the shutdown cannot be taken back")
    header.undrain = time.monotonic_ns()
    while memory.is_terminating() and not header.sigterm:
        if not lives(header.arbiter):
            raise StateError(f"arbiter {header.arbiter} is gone")
        time.sleep(LOOK)
    if memory.is_terminating():
        raise StateError("a SIGTERM has come: the shutdown cannot be taken back")
    say("serving")
