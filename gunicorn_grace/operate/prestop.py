"""``gunicorn-grace prestop``: the preStop hook of Kubernetes."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..shared.cells import NS
from ..shared.memory import Memory
from ..shared.phase import Origin, Phase
from .instance import LOOK, OFF, find, is_switched_off, lives, naming


def prestop(pid: int | None, say: Callable[[str], object]) -> None:
    """Begin the shutdown, and return when the delay is over. A SIGTERM then drains at once. Runs in
    a command.

    :param pid: the arbiter; ``None`` for the only instance.
    :param say: takes a line for the user.
    :raises StateError: there is no such instance, or more than one.
    """
    memory = find(pid)
    with naming(memory, say) as say:
        _prestop(memory, say)


def _prestop(memory: Memory, say: Callable[[str], object]) -> None:
    header = memory.header
    if is_switched_off(memory):
        say(f"{OFF}: no delay")
        return
    if memory.phase() is Phase.STARTING:
        say("nothing was ever ready: no delay")
        return
    began = memory.trigger(Origin.PRESTOP)
    note = "" if began else " (it had begun before)"
    say(f"not ready for {header.delay / NS:g} s, longer while requests still come{note}")
    while memory.is_terminating() and not header.delay_over and header.phase <= Phase.LAME_DUCK:
        # An arbiter that hangs does not react to the trigger. The hook then ends after the delay.
        hangs = not header.t0 and time.monotonic_ns() > memory.t0() + header.delay
        if hangs or not lives(memory.holder) or memory.seconds_left() == 0:
            return
        time.sleep(LOOK)
