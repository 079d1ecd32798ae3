"""Counting the connections that are lost in the accept queues at the end.

A worker that cannot leave, because a request takes too long, keeps the listening sockets open. So
the arbiter keeps its own descriptor of each socket until the workers are gone, and then counts the
connections that are left. Everything here runs in the arbiter's main thread.
"""

from __future__ import annotations

import _socket
import contextlib
import os
from collections.abc import Iterable
from typing import Any

from ..shared import listener


class AcceptQueues:
    """The accept queues of the arbiter's listening sockets.

    :ivar lost: how many requests were lost in the queues.

    :param arbiter: gunicorn's arbiter.
    """

    def __init__(self, arbiter: Any) -> None:
        self._arbiter = arbiter
        self._kept: list[Any] = []
        self.lost: int = 0

    def _are_ours_alone(self) -> bool:
        """Whether connections in the queues are lost when this instance ends. They are not lost if
        systemd or another arbiter has the sockets too."""
        arbiter = self._arbiter
        return not (
            arbiter.reexec_pid
            or arbiter.master_pid
            or arbiter.systemd
            or any(isinstance(address, int) for address in arbiter.cfg.address)
        )

    def keep(self, listeners: Iterable[Any]) -> None:
        """Keep a descriptor of each of these sockets, which are about to be closed. They must be
        sealed, because nobody accepts further connections."""
        if self._are_ours_alone():
            for sock in listeners:
                with contextlib.suppress(OSError, AttributeError):
                    self._kept.append(_socket.socket(fileno=os.dup(sock.fileno())))

    def length(self) -> int:
        """Return how many connections were lost, or would be lost if the instance ended now. This
        changes nothing."""
        length = self.lost
        if self._are_ours_alone():
            for sock in (*self._kept, *self._arbiter.LISTENERS):
                with contextlib.suppress(OSError, AttributeError, ValueError):
                    length += listener.queue_length(sock)
        return length

    def end(self) -> None:
        """Close the queues, and count the requests that this loses. The workers must be gone."""
        kept, self._kept = self._kept, []
        for sock in kept:
            with contextlib.suppress(OSError):
                self.lost += _refuse_all(sock)
            sock.close()


def _refuse_all(sock: Any) -> int:
    """Close each connection in an accept queue.

    :returns: how many requests this loses. A peer that has sent nothing loses none.
    """
    # With this seal the kernel drops a client's data before the connection is admitted, so every
    # connection counts: see gunicorn_grace.shared.listener.
    may_be_held_up = listener.is_sealed_by_hop_limit(sock)
    sock.setblocking(False)  # Workers shared this flag of the open socket, but they are gone.
    lost = 0
    while True:
        try:
            fd, _ = sock._accept()
        except BlockingIOError:
            return lost
        conn = _socket.socket(fileno=fd)
        lost += may_be_held_up or _has_sent(conn)
        conn.close()


def _has_sent(conn: _socket.socket) -> bool:
    try:
        return bool(conn.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT))
    except OSError:
        return False
