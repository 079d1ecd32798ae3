"""The state of every instance that this user may see, and of its workers. Runs in a command.

Everything comes from the shared memory and from /proc. The instance itself is not asked, so this
also works while every worker is busy or the arbiter is stopped.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..shared import metrics
from ..shared.cells import NS, ORIGIN_MASK, Record
from ..shared.instances import Instance
from ..shared.memory import Memory, unix_time
from ..shared.phase import Origin, Phase
from ..shared.text import printable
from . import process
from .instance import every

_NAMES = {
    Origin.SIGTERM: "SIGTERM",
    Origin.HTTP: "?down=true",
    Origin.PRESTOP: "prestop",
    Origin.DRAIN: "drain",
}


@dataclass(frozen=True)
class Worker:
    """A worker process.

    :ivar pid: its pid in the PID namespace of the command.
    :ivar age: gunicorn's serial number of the worker: 1 for the first one.
    :ivar state: whether it is booting, serving or leaving.
    :ivar in_flight: how many requests it serves now; ``None`` if they cannot be counted.
    :ivar requests: how many requests it has begun to serve; ``None`` if they cannot be counted.
    :ivar since_t0: how many of its requests came after a shutdown had begun; ``None`` if they
        cannot be counted.
    :ivar last_arrival: how many seconds ago its last request came; ``None`` if none has come, or if
        requests cannot be counted.
    :ivar heartbeat: how many seconds ago its last heartbeat was; ``None`` if this user may not see
        it. gunicorn ends a worker that sends no heartbeat for ``timeout`` seconds.
    """

    pid: int
    age: int
    state: str
    in_flight: int | None
    requests: int | None
    since_t0: int | None
    last_arrival: float | None
    heartbeat: float | None


@dataclass(frozen=True)
class Status:
    """An instance. All attributes except the first five are ``None`` or empty if its memory cannot
    be read.

    :ivar arbiter: the arbiter's pid in the PID namespace of the command.
    :ivar directory: the arbiter's working directory; ``None`` if it cannot be read.
    :ivar command: the arbiter's command line.
    :ivar started: when the arbiter started, as a Unix time; ``None`` if it cannot be read.
    :ivar problem: why the memory cannot be read; ``None`` if it can.
    :ivar application: the application, as gunicorn names it.
    :ivar gunicorn: the version of gunicorn.
    :ivar plugin: the version of gunicorn-grace.
    :ivar phase: the phase of the instance.
    :ivar since: when the phase began, as a Unix time; ``None`` for a phase before T0.
    :ivar begun_by: what began the shutdown: ``SIGTERM``, ``prestop``, ``?down=true`` or ``drain``;
        ``None`` before T0.
    :ivar t0: when the shutdown began, as a Unix time; ``None`` before T0.
    :ivar sigterm: when SIGTERM came, as a Unix time; ``None`` before it.
    :ivar is_held: whether the instance stays out of rotation until ``undrain``.
    :ivar has_given_up: whether the plugin has given up. gunicorn then shuts down by itself.
    :ivar is_switched_off: whether the plugin is switched off (``grace_enabled``). gunicorn then
        shuts down by itself.
    :ivar seconds_left: seconds until the deadline; ``None`` before T0 or without a known deadline.
    :ivar rate: requests a second, averaged over the last minute, or in a shutdown over the minute
        before it; ``None`` if requests cannot be counted.
    :ivar in_flight: how many requests are being served; ``None`` if they cannot be counted.
    :ivar workers: the workers, the oldest first.
    """

    arbiter: int
    directory: str | None
    command: tuple[str, ...]
    started: float | None
    problem: str | None
    application: str | None = None
    gunicorn: str | None = None
    plugin: str | None = None
    phase: Phase | None = None
    since: float | None = None
    begun_by: str | None = None
    t0: float | None = None
    sigterm: float | None = None
    is_held: bool | None = None
    has_given_up: bool | None = None
    is_switched_off: bool | None = None
    seconds_left: float | None = None
    rate: float | None = None
    in_flight: int | None = None
    workers: tuple[Worker, ...] = ()


def look(pid: int | None = None) -> Sequence[Status]:
    """Return every instance that this user may see, ordered by the arbiter's pid.

    :param pid: the arbiter to look for; ``None`` for all.
    :raises StateError: no instance was found.
    """
    found = every(pid)
    try:
        return [_status(instance) for instance in found.instances]
    finally:
        found.close()


def _status(instance: Instance) -> Status:
    pid = instance.pid
    command = tuple(map(printable, process.command(pid)))
    directory = process.directory(pid)
    outside = Status(
        arbiter=pid,
        directory=None if directory is None else printable(directory),
        command=command,
        started=process.started(pid),
        problem=instance.problem,
    )
    return outside if instance.memory is None else _inside(outside, instance.memory)


def _inside(outside: Status, memory: Memory) -> Status:
    header, seen = memory.header, metrics.read(memory)
    began, origin = _beginning(memory)
    is_over = seen.phase > Phase.SERVING
    since = header.drain if seen.phase is Phase.DRAINING else began
    return Status(
        arbiter=outside.arbiter,
        directory=outside.directory,
        command=outside.command,
        started=outside.started,
        problem=None,
        application=printable(header.application) or None,
        gunicorn=printable(header.gunicorn) or None,
        plugin=printable(header.plugin) or None,
        phase=seen.phase,
        since=unix_time(since) if is_over and since else None,
        begun_by=_NAMES.get(origin) if is_over else None,
        t0=unix_time(began) if is_over and began else None,
        sigterm=unix_time(header.sigterm) if is_over and header.sigterm else None,
        # A serving arbiter sets "held" up to a second after the drain command.
        is_held=memory.is_terminating()
        and not header.sigterm
        and (bool(header.held) or origin is Origin.DRAIN),
        has_given_up=bool(header.failed),
        is_switched_off=bool(header.switched_off),
        seconds_left=memory.seconds_left() if is_over else None,
        rate=None if seen.in_flight is None else max(0, header.rate) / 1000,
        in_flight=seen.in_flight,
        workers=tuple(_workers(memory, outside.arbiter)),
    )


def _beginning(memory: Memory) -> tuple[int, Origin]:
    """Return when the shutdown began (monotonic ns), and what began it."""
    header, t0 = memory.header, memory.t0()
    if header.trigger & ~ORIGIN_MASK == t0 & ~ORIGIN_MASK:
        with contextlib.suppress(ValueError):  # Another process has overwritten the cell.
            return t0, Origin(header.trigger & ORIGIN_MASK)
    return t0, Origin.SIGTERM if header.sigterm else Origin.NONE


def _workers(memory: Memory, arbiter: int) -> list[Worker]:
    here, now = process.children(arbiter), time.monotonic_ns()
    workers = [
        _worker(record, here.get(record.pid, record.pid), now)
        for record in memory.records()
        if record.pid > 0
    ]
    return sorted(workers, key=lambda worker: worker.age)


def _worker(record: Record, pid: int, now: int) -> Worker:
    counted, beat = not record.uncounted, process.heartbeat(pid)
    return Worker(
        pid=pid,
        age=record.age,
        state=metrics.state(record),
        in_flight=max(0, record.in_flight) if counted else None,
        requests=max(0, record.requests - record.requests_before) if counted else None,
        since_t0=max(0, record.since_t0 - record.since_t0_before) if counted else None,
        last_arrival=_ago(record.last_arrival / NS, now) if counted else None,
        heartbeat=None if beat is None else _ago(beat, now),
    )


def _ago(moment: float, now: int) -> float | None:
    """Return how many seconds ago a moment was; ``None`` if it is 0, which means never.

    :param moment: the moment on the monotonic clock, in seconds.
    :param now: the monotonic clock, in nanoseconds.
    """
    return round(max(0.0, now / NS - moment), 3) if moment > 0 else None
