"""The arbiter's listening sockets: they are sealed, emptied and closed.

:mod:`gunicorn_grace.shared.listener` knows how a socket is sealed; this module knows which of the
arbiter's sockets are. Everything here runs in the arbiter's main thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import Any

from ..shared import listener
from ..shared.cells import NS
from ..shared.handshakes import Handshakes
from .roster import Roster
from .upgrade import Counterpart

EMPTY_FOR = 0.25
"""Seconds without a connection in the accept queue, and without a handshake under way, after which
it counts as served."""


class Listeners:
    """The listening sockets of an instance.

    :ivar are_sealed: whether they have been sealed.
    :ivar are_shut: whether nothing is left to shut, after the drain has emptied them.

    :param arbiter: gunicorn's arbiter.
    :param roster: the workers, which may have listeners of their own (``reuse_port``).
    :param counterpart: the other arbiter, after SIGUSR2, which has the same sockets.
    """

    def __init__(self, arbiter: Any, roster: Roster, counterpart: Counterpart) -> None:
        self._arbiter = arbiter
        self._roster = roster
        self._counterpart = counterpart
        self._waiting: list[Any] = []
        """Those whose queues are served to their end before the workers are dismissed."""
        self.are_sealed: bool = False
        self.are_shut: bool = False
        self._to_shut: list[Any] = []
        self._files: dict[str | bytes, tuple[int, ...]] = {}
        self._empty_since = 0
        self._handshakes = Handshakes()

    def are_the_workers_own(self) -> bool:
        """Whether each worker binds its own listeners, and no other process has them (gunicorn 24.1
        to 27.0)."""
        arbiter = self._arbiter
        return bool(
            arbiter.cfg.reuse_port and not arbiter.LISTENERS and not self.are_handed_to_us()
        )

    def are_handed_to_us(self) -> bool:
        """Whether somebody else made the listening sockets and may keep them: systemd, or whoever
        is behind ``bind = "fd://3"``."""
        arbiter = self._arbiter
        # gunicorn takes systemd's variables only after on_starting (22.0 to 27.0).
        is_activated = os.environ.get("LISTEN_PID") == str(os.getpid())
        return bool(
            arbiter.systemd
            or is_activated
            or any(isinstance(address, int) for address in arbiter.cfg.address)
        )

    def seal(self) -> None:
        """Let no new connection in, unless somebody else still takes connections from the sockets.
        A listener that cannot be sealed is closed when the workers are dismissed, as in plain
        gunicorn."""
        # After SIGUSR2 both arbiters may have been told to stop: the last one that drains seals.
        if self.are_sealed or self.are_handed_to_us() or self._counterpart.has_the_sockets():
            return
        self.are_sealed = True
        log = self._arbiter.log
        if self.are_the_workers_own():
            log.info(
                "gunicorn-grace: sealed by each worker, which has its own listeners (reuse_port)"
            )
        for sock in self._arbiter.LISTENERS:
            if isinstance(sock.getsockname(), (str, bytes)):
                self._unlink(sock)
                self._waiting.append(sock)
            elif listener.can_seal(sock):
                try:
                    listener.seal(sock)
                except OSError as error:
                    log.warning(
                        "gunicorn-grace: cannot seal %s (%s): closing it resets the connections "
                        "in its accept queue, as in plain gunicorn",
                        sock,
                        error,
                    )
                else:
                    self._waiting.append(sock)
        if self._waiting:
            log.info("gunicorn-grace: sealed %s", ", ".join(map(str, self._waiting)))

    def note_paths(self) -> None:
        """Remember which files the paths of the UNIX sockets are. An instance that is started while
        this one shuts down puts its own there."""
        self._files.clear()  # A reload that changes `bind` makes all of them anew.
        for sock in self._arbiter.LISTENERS:
            path = sock.getsockname()
            if isinstance(path, (str, bytes)):
                with contextlib.suppress(OSError, ValueError):
                    self._files[path] = _file(path)

    def _unlink(self, sock: Any) -> None:
        # The rule of gunicorn's own stop(); abstract addresses have no path.
        path = sock.getsockname()
        if path and path[:1] not in ("\0", b"\0") and not self._arbiter.cfg.reuse_port:
            with contextlib.suppress(FileNotFoundError):
                if self._files.get(path, _file(path)) == _file(path):
                    os.unlink(path)

    def have_waiting(self, now: int) -> bool:
        """Whether a connection waits in an accept queue of the arbiter's. Where each worker has its
        own listeners, it looks there.

        :param now: the monotonic clock, in nanoseconds.
        """
        # A socket may just be replaced by a reload.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._handshakes.look_whether_full(self._arbiter.LISTENERS, now)
            return listener.are_waiting(self._arbiter.LISTENERS)
        return False

    def are_served(self, now: int) -> bool:
        """Whether nothing has waited in any accept queue for :data:`EMPTY_FOR` seconds.

        :param now: the monotonic clock, in nanoseconds.
        """
        return all(
            since and now - since >= EMPTY_FOR * NS for since in self._empty_queues_since(now)
        )

    def _empty_queues_since(self, now: int) -> list[int]:
        """For each place where connections may wait: since when none does, in nanoseconds; 0 while
        some do."""
        found = []
        if self._waiting:
            under_way = self._handshakes.are_under_way(self._waiting, now)
            if under_way or listener.are_waiting(self._waiting):
                self._empty_since = 0
            elif not self._empty_since:
                self._empty_since = now
            found.append(self._empty_since)
        if self.are_the_workers_own():
            found += self._roster.own_queues_empty_since()
        return found

    def close_what_was_sealed(self, *, has_begun: bool = False) -> None:
        """Close the listeners if the drain that sealed them did not come so far. gunicorn would
        unlink the path of a UNIX socket again, and fail.

        :param has_begun: whether a shutdown has begun. If it is cut short, the listeners are sealed
            now, so that what is lost in the accept queues can be counted.
        """
        if has_begun and not self._waiting:
            self.seal()
        if self._waiting and self._arbiter.LISTENERS:
            self.close()

    def release(self, *, emptied: bool) -> None:
        """Take the listeners from gunicorn when the workers are dismissed: they are to be shut, or
        closed at once.

        :param emptied: whether they were sealed, and their queues served to the end.
        """
        if emptied:
            self._to_shut, self._arbiter.LISTENERS = self._arbiter.LISTENERS, []
        else:
            self.close()

    def shut(self) -> None:
        """Shut the listening sockets for all processes once every worker copes with that: the
        kernel then refuses connections at once, and the address is free. Closing the arbiter's
        descriptors would not do, because a busy worker and whatever it forked have them too."""
        if not self._roster.may_shut():
            return
        self.are_shut = True
        if not self._to_shut:
            return  # Each worker shuts its own (``reuse_port``).
        listeners, self._to_shut = self._to_shut, []
        names = ", ".join(map(str, listeners))
        for sock in listeners:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RD)
            sock.close()
        self._arbiter.log.info("gunicorn-grace: shut %s: connections are refused", names)

    def close(self) -> None:
        """Close the listeners. Not in gunicorn's ``stop()``, which would unlink the path of a UNIX
        socket a second time and fail."""
        from gunicorn import sock

        keep_path = {id(waiting) for waiting in self._waiting}
        arbiter = self._arbiter
        unlink = (
            arbiter.reexec_pid == arbiter.master_pid == 0
            and not arbiter.systemd
            and not arbiter.cfg.reuse_port
        )
        self._roster.queues.keep(self._waiting)
        listeners, arbiter.LISTENERS = arbiter.LISTENERS, []
        sock.close_sockets([s for s in listeners if id(s) in keep_path], False)
        sock.close_sockets([s for s in listeners if id(s) not in keep_path], unlink)


def _file(path: str | bytes) -> tuple[int, ...]:
    """What tells a file from another one at the same path. Its number alone may be used again."""
    there = os.stat(path)
    return there.st_dev, there.st_ino, there.st_mtime_ns
