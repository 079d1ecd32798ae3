"""The probe port from the arbiter's side: the listener, and the process that answers there.

The arbiter binds the listener before it forks the first worker, and keeps it. When the responder
(:mod:`gunicorn_grace.responder.process`) dies, connections wait in the accept queue for the next
one. The responder is a new interpreter (``posix_spawn``), not a fork of the arbiter: with
``preload_app`` the arbiter holds the whole application, its threads and locks, and gunicorn's
listeners.

gunicorn does not know of the responder, but its ``waitpid(-1)`` would reap it and log its end as a
worker's (22.0 to 25.3; exit code 3 or 4 would halt the server, so the responder never ends with
those). So :meth:`ProbePort.reap` runs first. If it comes too late, ``waitpid`` finds no such child.

A failure in here costs the probe port and nothing else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from ..shared.agreed import RETIRE
from ..shared.memory import Memory
from ..shared.phase import Phase
from ..shared.settings import Settings
from .probe_listener import ProbeListener

START_EVERY = 1.0
"""The least number of seconds between two starts of a responder. One that lived longer is replaced
at once."""

LAST_ANSWERS = 0.5
"""Seconds that the responder has at the end of the instance for its last answers."""

_STARTS = (
    "import sys; sys.modules.update(ssl=None, _hashlib=None); sys.path.append(sys.argv[1]); "
    "from gunicorn_grace.responder.process import main; main()"
)
"""Isolated and without ``site`` (-I -S), so that no file in the working directory or in
site-packages takes the place of the standard library's. Without OpenSSL too: ``http.client`` and
``hmac`` would import it, 4 of 18 MiB (3.11)."""

_CHILD_FDS = 16
"""Descriptors are first copied to numbers from here on, and then to the child's numbers: none may
overwrite another."""


class ProbePort:
    """The listener of the probe port and its responder. Everything here runs in the arbiter's main
    thread.

    :param arbiter: gunicorn's arbiter.
    :param memory: the shared memory.
    :param settings: with ``probe_bind``.
    :raises SystemExit: the address cannot be bound; the log says why in one line.
    """

    def __init__(self, arbiter: Any, memory: Memory, settings: Settings) -> None:
        assert settings.probe_bind is not None
        self.arbiter = arbiter
        self.memory = memory
        self.bind = settings.probe_bind
        self.pid = 0
        self._owner = os.getpid()
        self._retired: list[int] = []
        self._ended = ""
        self._log_pipe = -1
        self._unread = b""
        self._began = self._next = 0.0
        self._failed = False
        self._orders = self._orders_of(settings)
        self.listener = ProbeListener(arbiter, self.bind)

    @property
    def log(self) -> Any:
        return self.arbiter.log

    def leave(self) -> None:
        """Close what a worker has inherited. Otherwise the port would stay taken after the
        arbiter's end."""
        with contextlib.suppress(OSError):
            self.listener.close()
            self._close_log()

    def start(self) -> None:
        """Log where the port is, and start the responder. If another arbiter serves the same
        listener, the responder waits until a worker has booted: it would answer "not ready" for a
        service that is ready."""
        self.log.info("gunicorn-grace: probe port at %s", self.listener.address)
        self.look()

    def look(self) -> None:
        """Read what the responder says, and replace it when it died. Runs once in each pass of
        gunicorn's loop. Never raises."""
        try:
            self._read()
            self.reap()
            if self._ended:
                self.log.warning(
                    "gunicorn-grace: the probe responder %s; another one is started", self._ended
                )
                self._ended = ""
            waits = self.listener.is_inherited and self.memory.phase() is Phase.STARTING
            if not self.pid and not waits and time.monotonic() >= self._next:
                self._spawn()
        except Exception:
            self._next = time.monotonic() + START_EVERY
            if not self._failed:
                self._failed = True
                self.log.exception(
                    "gunicorn-grace: the probe responder cannot be started; the arbiter tries again"
                )

    def reap(self) -> None:
        """Notice the end of the responder. Runs before gunicorn reaps, in 22 and 23 in a signal
        handler, so it logs nothing."""
        for pid in list(self._retired):
            if _status(pid) is not None:
                with contextlib.suppress(ValueError):
                    self._retired.remove(pid)
        pid = self.pid
        status = _status(pid) if pid else None
        if status is None or self.pid != pid:
            return
        self.pid = 0
        self._next = self._began + START_EVERY
        self._ended = f"(pid {pid}) {status}"

    def reload(self, settings: Settings) -> None:
        """Take new settings, after SIGHUP. A responder with the old ones finishes its answers and
        ends."""
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
        self.reap()
        old, self.pid, self._next = self.pid, 0, 0.0
        if old:
            self._retired.append(old)
            _tell(old, RETIRE)
        self.look()

    def end(self) -> None:
        """End the responder and close the port, at the very end of the arbiter. Doing it twice
        changes nothing."""
        if os.getpid() != self._owner or self.listener.fileno() < 0:
            return
        with contextlib.suppress(Exception):
            self._read()
        self.reap()
        self.listener.unlink()
        self.listener.close()
        pids = [pid for pid in (self.pid, *self._retired) if pid]
        for pid in pids:
            _tell(pid, RETIRE)
        until = time.monotonic() + LAST_ANSWERS
        while (pids := [pid for pid in pids if _status(pid) is None]) and time.monotonic() < until:
            time.sleep(0.005)
        for pid in pids:
            _tell(pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, 0)
        self.pid = 0
        self._close_log()

    def _close_log(self) -> None:
        if self._log_pipe >= 0:
            os.close(self._log_pipe)
            self._log_pipe = -1

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

    def _spawn(self) -> None:
        with contextlib.ExitStack() as stack:

            def pipe() -> tuple[int, int]:
                ends = os.pipe()
                for end in ends:
                    stack.callback(os.close, end)
                return ends

            orders, give_orders = pipe()
            os.set_blocking(give_orders, False)
            if os.write(give_orders, self._orders) < len(self._orders):
                raise ValueError(
                    f"the settings are longer than a pipe holds: {len(self._orders)} bytes"
                )
            log, write_log = pipe()
            os.set_blocking(log, False)
            os.set_blocking(write_log, False)
            given = (orders, write_log, write_log, self.listener.fileno(), self.memory.fd)
            actions = []
            for number, fd in enumerate(given):
                copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _CHILD_FDS)
                stack.callback(os.close, copy)
                actions.append((os.POSIX_SPAWN_DUP2, copy, number))
            pid = os.posix_spawn(
                sys.executable,
                [sys.executable, "-I", "-S", "-c", _STARTS, str(Path(__file__).parents[2])],
                os.environ,
                file_actions=actions,
                # SIGTERM may come to the whole group before the responder can ignore it.
                setsigmask=sorted(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}),
            )
            self.pid, self._began, self._failed = pid, time.monotonic(), False
            self._close_log()
            self._log_pipe = os.dup(log)
            self._unread = b""
        self.log.debug("gunicorn-grace: probe responder with pid %d", pid)

    def _read(self) -> None:
        """Pass on what the responder says: it has no log of its own."""
        if self._log_pipe < 0:
            return
        with contextlib.suppress(BlockingIOError):
            self._unread += os.read(self._log_pipe, 65536)
        *lines, self._unread = self._unread.split(b"\n")
        for line in lines:
            self.log.warning(
                "gunicorn-grace: probe port: %s", line.decode("utf-8", "backslashreplace")
            )


def _status(pid: int) -> str | None:
    """How a child has ended; ``None`` while it lives."""
    try:
        found, status = os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        return "ended"  # gunicorn's waitpid(-1) was faster.
    if not found:
        return None
    code = os.waitstatus_to_exitcode(status)
    return f"ended with exit code {code}" if code >= 0 else f"was ended by signal {-code}"


def _tell(pid: int, sig: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sig)
