"""``gunicorn-grace drain``, ``undrain`` and ``end-delay``: take an instance out of rotation, put it
back, and end its delay. Runs in a command."""

from __future__ import annotations

import time
from collections.abc import Callable

from ..errors import StateError
from ..shared import metrics
from ..shared.memory import Memory
from ..shared.phase import Origin, Phase
from .instance import LOOK, OFF, find, is_switched_off, lives, naming

PATIENCE = 10.0
"""Seconds after which a command gives up on an arbiter that does not react. A serving arbiter looks
into the shared memory once a second, and an arbiter that shuts down looks ten times as often."""

TOO_LATE = "a SIGTERM has come: the shutdown cannot be taken back; start another instance"


def drain(pid: int | None, say: Callable[[str], object], *, wait: bool = False) -> None:
    """Take an instance out of rotation: it is not ready, but goes on serving.

    :param pid: the arbiter; ``None`` for the only instance.
    :param say: takes a line for the user.
    :param wait: whether to return only when no request is in flight.
    :raises StateError: there is no such instance, or more than one; it is switched off; or, with
        ``wait``, the last request did not end in the usual way.
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

    :param cut_off: how many requests had been cut off before.
    :raises StateError: a request was cut off, the arbiter has exited or serves again, or the
        requests are not counted.
    """
    while (seen := metrics.read(memory)).in_flight:
        if not lives(memory.holder):
            raise StateError(f"it is gone, with {seen.in_flight} in flight")
        if not memory.is_terminating():
            raise StateError("it serves again: the drain was taken back")
        time.sleep(LOOK)
    if seen.in_flight is None:
        raise StateError("its requests are not counted, so nothing says when the last one ends")
    # When a worker has died, the arbiter first frees its record and then counts the requests that
    # were lost with it.
    time.sleep(LOOK)
    lost = (metrics.read(memory).cut_off or 0) - cut_off
    if lost > 0:
        raise StateError(f"no request is in flight, but {lost} did not end: cut off; see its log")


def _hold(memory: Memory) -> bool:
    """Hold a shutdown that has begun until ``undrain``. Without this, a trigger of the platform
    would expire. It may expire at this very moment, so this waits for the arbiter to confirm.

    :returns: whether the shutdown is held; false after a SIGTERM.
    :raises StateError: the arbiter has exited or does not react.
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
    """Put an instance back into rotation, whatever took it out.

    :param pid: the arbiter; ``None`` for the only instance.
    :param say: takes a line for the user.
    :param wait: whether to return only when a new request has come, which shows that the routers
        have noticed.
    :raises StateError: there is no such instance, or more than one; a SIGTERM has come; or the
        arbiter has exited or does not react.
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
    """Return how many requests the instance has had so far; ``None`` if they cannot be counted."""
    return metrics.read(memory).requests


def end_delay(pid: int | None, say: Callable[[str], object]) -> None:
    """End the delay of an instance that is shutting down. It then drains at once, or, if no SIGTERM
    has come yet, as soon as one comes.

    :param pid: the arbiter; ``None`` for the only instance.
    :param say: takes a line for the user.
    :raises StateError: there is no such instance, or more than one; it is not shutting down; or the
        arbiter has exited or does not react.
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
    """A wait for the arbiter to act on a request in the shared memory.

    :param memory: the memory of the instance.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._until = time.monotonic() + PATIENCE

    def again(self) -> None:
        """Wait until the next look.

        :raises StateError: the arbiter has exited, or has not reacted within :data:`PATIENCE`.
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
