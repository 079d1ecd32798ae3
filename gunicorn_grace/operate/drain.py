"""``gunicorn-grace drain``, ``undrain`` and ``end-delay``: out of rotation, back, and on."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import StateError
from ..shared import metrics
from ..shared.memory import Memory
from ..shared.phase import Origin, Phase
from .instance import LOOK, OFF, find, is_switched_off, lives, naming

PATIENCE = 10.0
"""Seconds until a command gives up on an arbiter that does not look. One that serves looks once a
second, and one that shuts down ten times as often."""

TOO_LATE = "a SIGTERM has come: the shutdown cannot be taken back; start another instance"


def drain(pid: int | None, say: Callable[[str], object], *, wait: bool = False) -> None:
    """Take an instance out of rotation: not ready, and served as ever.

    :param pid: the arbiter, where there is more than one instance.
    :param say: takes a line for the one who asked.
    :param wait: return only when no request is in flight.
    :raises StateError: there is no such instance, or more than one; or it is switched off.
    """
    memory = find(pid)
    with naming(memory, say) as say:
        if is_switched_off(memory):
            raise StateError(f"{OFF}, so it stays ready: take it out of rotation at the balancer")
        cut_off = metrics.read(memory).cut_off
        if memory.trigger(Origin.DRAIN):
            say("not ready until undrain")
        elif _hold(memory):
            say("it was not ready before; now it stays so until undrain")
        else:
            say("a SIGTERM has come: it is shutting down, and nothing holds that")
        if wait:
            _wait_for_the_last(memory, cut_off or 0)
            say("no request is in flight")


def _wait_for_the_last(memory: Memory, cut_off: int) -> None:
    """Wait until no request is in flight.

    :param cut_off: how many had been cut off before.
    :raises StateError: one of them was cut off, or nothing says when the last one ends.
    """
    while (seen := metrics.read(memory)).in_flight:
        if not lives(memory.holder):
            raise StateError(f"it is gone, with {seen.in_flight} in flight")
        if not memory.is_terminating():
            raise StateError("it serves again: the drain was taken back")
        time.sleep(LOOK)
    if seen.in_flight is None:
        raise StateError("its requests are not counted, so nothing says when the last one ends")
    # An arbiter frees the record of a dead worker, and then counts what was in it.
    time.sleep(LOOK)
    lost = (metrics.read(memory).cut_off or 0) - cut_off
    if lost > 0:
        raise StateError(f"no request is in flight, but {lost} did not end: cut off; see its log")


def _hold(memory: Memory) -> bool:
    """Make a shutdown that has begun an operator's. The platform's trigger expires, perhaps in this
    moment, so this waits for the arbiter's word.

    :returns: whether it is held; false after a SIGTERM.
    """
    header, look = memory.header, _Look(memory)
    while not header.held:
        if header.sigterm or header.phase > Phase.LAME_DUCK:
            return False
        if not memory.is_terminating():
            memory.trigger(Origin.DRAIN)
        look.again()
    return True


def undrain(pid: int | None, say: Callable[[str], object], *, wait: bool = False) -> None:
    """Take an instance back into rotation, whatever took it out.

    :param pid: the arbiter, where there is more than one instance.
    :param say: takes a line for the one who asked.
    :param wait: return only when a request has come since, so that the routers have noticed.
    :raises StateError: there is no such instance, or more than one; or a SIGTERM has come.
    """
    memory = find(pid)
    with naming(memory, say) as say:
        _undrain(memory, say, wait=wait)


def _undrain(memory: Memory, say: Callable[[str], object], *, wait: bool) -> None:
    header = memory.header
    if is_switched_off(memory):
        say(f"{OFF}: it was never taken out of rotation, nothing to do")
        return
    before = _arrived(memory)
    if not memory.is_terminating():
        say("it is serving: nothing to do")
        return
    if header.sigterm or header.phase > Phase.LAME_DUCK:
        raise StateError(TOO_LATE)
    header.undrain = time.monotonic_ns()
    look = _Look(memory)
    while memory.is_terminating() and not header.sigterm:
        look.again()
    if memory.is_terminating():
        raise StateError(TOO_LATE)
    say("serving")
    if not wait:
        return
    if before is None:
        raise StateError("its requests are not counted, so nothing says when the next one comes")
    while _arrived(memory) == before:
        if not lives(memory.holder):
            raise StateError("it is gone")
        if memory.is_terminating():
            raise StateError("it is out of rotation again")
        time.sleep(LOOK)
    say("a request has come")


def _arrived(memory: Memory) -> int | None:
    """How many requests have come, ever; ``None`` if they cannot be counted."""
    return metrics.read(memory).requests


def end_delay(pid: int | None, say: Callable[[str], object]) -> None:
    """End the delay of an instance that is shutting down: it drains at once, or as soon as its
    SIGTERM comes.

    :param pid: the arbiter, where there is more than one instance.
    :param say: takes a line for the one who asked.
    :raises StateError: there is no such instance, or more than one; or it is not shutting down.
    """
    memory = find(pid)
    with naming(memory, say) as say:
        _end_delay(memory, say)


def _end_delay(memory: Memory, say: Callable[[str], object]) -> None:
    header = memory.header
    if is_switched_off(memory):
        say(f"{OFF}: it has no delay, nothing to do")
        return
    if not memory.is_terminating():
        raise StateError("it is serving, and has no delay to end: SIGTERM begins a shutdown")
    if header.phase > Phase.LAME_DUCK:
        say("the delay was over before: nothing to do")
        return
    header.end_delay = time.monotonic_ns()
    look = _Look(memory)
    while header.phase <= Phase.LAME_DUCK and (header.sigterm or not header.delay_over):
        if not memory.is_terminating():
            raise StateError("it serves again: the shutdown was taken back, or its trigger expired")
        look.again()
    is_draining = header.phase > Phase.LAME_DUCK
    say("draining" if is_draining else "the delay is over: a SIGTERM drains at once")


class _Look:
    """A wait for the arbiter to take up a wish.

    :param memory: the memory of the instance.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._until = time.monotonic() + PATIENCE

    def again(self) -> None:
        """Wait until the next look.

        :raises StateError: the arbiter is gone, or does not look.
        """
        if not lives(self._memory.holder):
            raise StateError("it is gone")
        if time.monotonic() > self._until:
            if self._memory.header.phase == Phase.STARTING:
                raise StateError("no worker has booted yet: it takes that up when one has")
            raise StateError(
                f"it has not taken that up within {PATIENCE:g} s: is it stopped (SIGSTOP)? It "
                "does when it goes on"
            )
        time.sleep(LOOK)
