"""The probe port from the arbiter's side: the listener, and the process that answers there.

The arbiter binds the listener before it forks the first worker, and keeps it. When the responder
(:mod:`gunicorn_grace.responder.process`) dies, connections wait in the accept queue for the next
one. The responder is a new interpreter (``posix_spawn``) and not a fork of the arbiter, because
with ``preload_app`` the arbiter holds the whole application, its threads and locks, and gunicorn's
listeners. :mod:`gunicorn_grace.arbiter.probe_process` describes how the two processes notice each
other's end.

gunicorn does not know of the responder. If the responder is a child of the arbiter, gunicorn's
``waitpid(-1)`` would reap it and log its end as a worker's (22.0 to 25.3). Exit code 3 or 4 would
even halt the server, so the responder never ends with those. So :meth:`ProbePort.reap` runs first.

A failure in this module affects only the probe port.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import time
from typing import Any

from ..shared.memory import Memory
from ..shared.phase import Phase
from ..shared.settings import Settings
from .probe_listener import ProbeListener
from .probe_process import Responder, start

START_EVERY = 1.0
"""The least number of seconds between two starts of a responder. A responder that lived longer is
replaced at once."""

LAST_ANSWERS = 0.5
"""Seconds that the responder has for its last answers when the probe port ends."""


class ProbePort:
    """The listener of the probe port and its responder. Everything here runs in the arbiter's main
    thread.

    :param arbiter: gunicorn's arbiter.
    :param memory: the shared memory.
    :param settings: the settings, with ``probe_bind`` set.
    :raises SystemExit: the address cannot be bound. The log says why in one line.
    """

    def __init__(self, arbiter: Any, memory: Memory, settings: Settings) -> None:
        assert settings.probe_bind is not None
        self.arbiter = arbiter
        self.memory = memory
        self.bind: str = settings.probe_bind
        self._responder: Responder | None = None
        self._retired: list[Responder] = []
        self._owner = os.getpid()
        self._began = self._next = 0.0
        self._failed = False
        self._orders = self._orders_of(settings)
        self.listener: ProbeListener = ProbeListener(arbiter, self.bind)

    @property
    def log(self) -> Any:
        return self.arbiter.log

    def leave(self) -> None:
        """Close the inherited descriptors. Otherwise the port would stay taken after the arbiter's
        end. Runs in a worker, after the fork."""
        with contextlib.suppress(OSError):
            self.listener.close()
        for responder in self._all():
            responder.close()

    def _all(self) -> list[Responder]:
        return [*self._retired, *filter(None, [self._responder])]

    def start(self) -> None:
        """Log where the port is, and start the responder. If another arbiter serves the same
        listener, the responder starts only when a worker has booted. Before that it would answer
        "not ready" for a service that is ready."""
        self.log.info("gunicorn-grace: probe port at %s", self.listener.address)
        self.look()

    def look(self) -> None:
        """Log the lines of the responder, and start another one if it has ended. Runs once in each
        pass of gunicorn's loop. Never raises."""
        try:
            self._read()
            self.reap()
            for responder in self._all():
                if responder.has_ended():
                    self._read()  # Its last words.
                    self._forget(responder)
            waits = self.listener.is_inherited and self.memory.phase() is Phase.STARTING
            if self._responder is None and not waits and time.monotonic() >= self._next:
                self._responder = start(self._orders, self.listener.fileno(), self.memory.fd)
                self._began, self._failed = time.monotonic(), False
        except Exception:
            self._next = time.monotonic() + START_EVERY
            if not self._failed:
                self._failed = True
                self.log.exception(
                    "gunicorn-grace: the probe responder cannot be started; the arbiter tries again"
                )

    def _forget(self, responder: Responder) -> None:
        responder.close()
        if responder is not self._responder:
            self._retired.remove(responder)
            return
        self._responder = None
        self._next = self._began + START_EVERY
        self.log.warning(
            "gunicorn-grace: the probe responder %s; another one is started", responder
        )

    def reap(self) -> None:
        """Reap the responders that have ended. Runs before gunicorn reaps. In gunicorn 22 and 23
        that is in a signal handler, so this logs nothing."""
        for responder in self._all():
            responder.reap()

    def reload(self, settings: Settings) -> None:
        """Take new settings, after SIGHUP. A responder with the old settings finishes its answers
        and ends."""
        if settings.probe_bind != self.bind:
            self.log.warning(
                "gunicorn-grace: grace_probe_bind stays %r: %r needs a restart",
                self.bind,
                settings.probe_bind,
            )
        orders = self._orders_of(settings)
        if orders == self._orders:
            return
        self._orders = orders
        if self._responder is not None:
            self._retired.append(self._responder)
            self._responder.retire()
        self._responder, self._next = None, 0.0
        self.look()

    def end(self) -> None:
        """End the responder and close the port, when the arbiter ends or a successor needs the
        address. This takes up to :data:`LAST_ANSWERS`. A second call changes nothing, and so does a
        call in a forked child."""
        if os.getpid() != self._owner or self.listener.fileno() < 0:
            return
        self.listener.unlink()
        self.listener.close()
        for responder in self._all():
            responder.retire()
        until = time.monotonic() + LAST_ANSWERS
        while True:
            with contextlib.suppress(Exception):
                self._read()
            self.reap()
            left = [responder for responder in self._all() if not responder.has_ended()]
            if not left or time.monotonic() >= until:
                break
            time.sleep(0.005)
        for responder in left:
            responder.kill()
        for responder in self._all():
            responder.close()
        self._responder, self._retired = None, []

    def _orders_of(self, settings: Settings) -> bytes:
        cfg = self.arbiter.cfg
        orders = {
            "arbiter": os.getpid(),
            "settings": dataclasses.asdict(settings),
            "timeout": cfg.timeout,
            "uid": cfg.uid,
            "gid": cfg.gid,
            "slots": self.memory.slot_count,
            "boards": self.memory.boards,
        }
        return json.dumps(orders).encode()

    def _read(self) -> None:
        """Log the lines of the responders, which have no log of their own."""
        for responder in self._all():
            for line in responder.read():
                self.log.warning("gunicorn-grace: probe port: %s", line)
