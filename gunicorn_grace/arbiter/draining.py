"""DRAINING in the arbiter: it seals, empties and shuts the listeners, and dismisses the workers.

Everything here runs in the arbiter's main thread, in the passes of gunicorn's loop.
"""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

from ..shared.agreed import LINGER
from ..shared.cells import NS
from .listeners import Listeners
from .progress import Progress
from .roster import Roster
from .upgrade import Counterpart

EMPTYING_MARGIN = 1.0
"""Seconds before the drain limit at which the workers are dismissed even if connections still wait
in the accept queues."""


class Draining:
    """The arbiter's work from the end of LAME_DUCK on.

    :param arbiter: gunicorn's arbiter.
    :param progress: the progress of the shutdown.
    :param roster: the workers.
    :param listeners: the listening sockets.
    :param counterpart: the other arbiter, after SIGUSR2.
    :param publish: shows the progress to the other processes.
    :param is_awaited: takes T0 in nanoseconds, and returns whether another instance waits for the
        addresses of this one.
    """

    def __init__(
        self,
        arbiter: Any,
        progress: Progress,
        roster: Roster,
        listeners: Listeners,
        counterpart: Counterpart,
        publish: Callable[[], None],
        is_awaited: Callable[[int], bool],
    ) -> None:
        self._arbiter = arbiter
        self._progress = progress
        self._roster = roster
        self._listeners = listeners
        self._counterpart = counterpart
        self._publish = publish
        self._is_awaited = is_awaited

    def step(self, now: int) -> None:
        """Do what is due: dismiss the workers, then shut the listeners, then make room for a
        successor. Runs once in each pass.

        :param now: the monotonic clock, in nanoseconds.
        """
        if not self._roster.are_dismissed:
            self._dismiss_when_served(now)
        elif self._progress.emptied and not self._counterpart.is_there():
            if not self._listeners.are_shut:
                self._listeners.shut()
            if self._listeners.are_shut and self._is_awaited(self._progress.t0):
                self._make_room()

    def _none_is_kept_alive(self) -> bool:
        """Whether the workers close each connection after its response. gunicorn's sync worker does
        (22.0 to 27.0), and so do the classes derived from it."""
        from gunicorn.workers.sync import SyncWorker

        worker_class = self._arbiter.worker_class
        return isinstance(worker_class, type) and issubclass(worker_class, SyncWorker)

    def _make_room(self) -> None:
        """Give up the pid file and the probe port, which a successor needs besides the addresses.
        The successor may ask at any time, so each pass looks."""
        if self._arbiter.pidfile is not None:
            self._arbiter.pidfile.unlink()
        if self._arbiter.grace_probe_port is not None:
            self._arbiter.grace_probe_port.end()
            self._arbiter.grace_probe_port = None

    def _dismiss_when_served(self, now: int) -> None:
        """Dismiss the workers once nothing waits in the accept queues, or when the time to wait is
        over."""
        progress = self._progress
        if now < progress.drain_limit - EMPTYING_MARGIN * NS:
            if not progress.upgraded:
                self._listeners.seal()
            if self._listeners.are_sealed:
                is_served = self._listeners.are_served(now)
            else:
                # Another process keeps the sockets, so they are not sealed. If there was a delay,
                # kept-alive connections were told to close in it. Otherwise they are told now, and
                # need a moment.
                was_told = bool(progress.delay) and not progress.upgraded
                lingered = now - progress.drain >= LINGER * NS
                is_served = was_told or lingered or self._none_is_kept_alive()
            if not is_served:
                return
            progress.emptied = self._listeners.are_sealed
        self._roster.are_dismissed = True
        self._publish()
        self._listeners.release(emptied=progress.emptied)
        self._arbiter.kill_workers(signal.SIGTERM)
