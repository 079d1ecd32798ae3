"""The arbiter's listening sockets: they are sealed, emptied and closed.

:mod:`gunicorn_grace.shared.listener` knows how to seal a socket. This module decides which of the
arbiter's sockets to seal, and when to close them. Everything here runs in the arbiter's main
thread.
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
"""Seconds after which an accept queue counts as served to its end. In that time no connection
waited in it, and no handshake was under way."""


class Listeners:
    """The listening sockets of an instance.

    :ivar are_sealed: whether the listeners have been sealed.
    :ivar are_shut: whether the listeners, emptied by the drain, have been shut.

    :param arbiter: gunicorn's arbiter.
    :param roster: the workers, which may have listeners of their own (``reuse_port``).
    :param counterpart: the other arbiter, after SIGUSR2, which has the same sockets.
    """

    def __init__(self, arbiter: Any, roster: Roster, counterpart: Counterpart) -> None:
        self._arbiter = arbiter
        self._roster = roster
        self._counterpart = counterpart
        self._waiting: list[Any] = []
        """The sealed listeners, whose queues are emptied before the workers are dismissed."""
        self.are_sealed: bool = False
        self.are_shut: bool = False
        self._to_shut: list[Any] = []
        self._files: dict[str | bytes, tuple[int, ...]] = {}
        self._empty_since = 0
        self._handshakes = Handshakes()

    def are_the_workers_own(self) -> bool:
        """Whether each worker binds its own listeners, which no other process has (``reuse_port``
        in gunicorn 24.1 to 27.0)."""
        arbiter = self._arbiter
        return bool(
            arbiter.cfg.reuse_port and not arbiter.LISTENERS and not self.are_handed_to_us()
        )

    def are_handed_to_us(self) -> bool:
        """Whether another process made the listening sockets and may keep them: systemd, or the
        parent that passed the descriptor of ``bind = "fd://3"``."""
        arbiter = self._arbiter
        # gunicorn reads systemd's variables only after on_starting (22.0 to 27.0).
        is_activated = os.environ.get("LISTEN_PID") == str(os.getpid())
        return bool(
            arbiter.systemd
            or is_activated
            or any(isinstance(address, int) for address in arbiter.cfg.address)
        )

    def seal(self) -> None:
        """Stop new connections, unless another process still takes connections from the sockets. A
        listener that cannot be sealed is closed when the workers are dismissed, as in plain
        gunicorn. A second call changes nothing."""
        # After SIGUSR2 both arbiters may have been told to stop. The last one that drains seals.
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
        """Remember the files at the paths of the UNIX sockets. An instance that starts while this
        one shuts down puts its own socket at the same path, and that one must not be unlinked."""
        self._files.clear()  # A reload that changes `bind` makes all listeners anew.
        for sock in self._arbiter.LISTENERS:
            path = sock.getsockname()
            if isinstance(path, (str, bytes)):
                with contextlib.suppress(OSError, ValueError):
                    self._files[path] = _file(path)

    def _unlink(self, sock: Any) -> None:
        # This is the rule of gunicorn's own stop(). Abstract addresses have no path.
        path = sock.getsockname()
        if path and path[:1] not in ("\0", b"\0") and not self._arbiter.cfg.reuse_port:
            with contextlib.suppress(FileNotFoundError):
                if self._files.get(path, _file(path)) == _file(path):
                    os.unlink(path)

    def have_waiting(self, now: int) -> bool:
        """Whether a connection waits in an accept queue of the arbiter's listeners. A worker that
        has its own listeners looks at their queues itself.

        :param now: the monotonic clock, in nanoseconds.
        """
        # A reload may be replacing a socket at this moment.
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._handshakes.look_whether_full(self._arbiter.LISTENERS, now)
            return listener.are_waiting(self._arbiter.LISTENERS)
        return False

    def are_served(self, now: int) -> bool:
        """Whether no connection has waited in any accept queue for :data:`EMPTY_FOR` seconds.

        :param now: the monotonic clock, in nanoseconds.
        """
        return all(
            since and now - since >= EMPTY_FOR * NS for since in self._empty_queues_since(now)
        )

    def _empty_queues_since(self, now: int) -> list[int]:
        """Return for each place where connections may wait: since when it has been empty, in
        monotonic nanoseconds; 0 if it is not."""
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
        """Close the sealed listeners if the drain was interrupted before it closed them. Otherwise
        gunicorn would unlink the path of a UNIX socket a second time, and fail.

        :param has_begun: whether a shutdown has begun. Listeners that are not sealed yet are then
            sealed now, so that the requests lost in the accept queues can be counted.
        """
        if has_begun and not self._waiting:
            self.seal()
        if self._waiting and self._arbiter.LISTENERS:
            self.close()

    def release(self, *, emptied: bool) -> None:
        """Take the listeners away from gunicorn when the workers are dismissed. Emptied listeners
        are kept until :meth:`shut`; others are closed at once.

        :param emptied: whether the listeners were sealed, and their queues served to their end.
        """
        if emptied:
            self._to_shut, self._arbiter.LISTENERS = self._arbiter.LISTENERS, []
        else:
            self.close()

    def shut(self) -> None:
        """Shut the listening sockets for all processes, once every worker can cope with that. The
        kernel then refuses connections at once, and the address is free. It is not enough to close
        the arbiter's descriptors, because a busy worker and its child processes have them too."""
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
        """Close the listeners. gunicorn's ``stop()`` must not do it, because it would unlink the
        path of a UNIX socket a second time and fail."""
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
    """Return the identity of the file at a path. The time is part of it, because the inode number
    of a removed file may be used again."""
    there = os.stat(path)
    return there.st_dev, there.st_ino, there.st_mtime_ns
