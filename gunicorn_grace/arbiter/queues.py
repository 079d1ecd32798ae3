"""The accept queues at the end: connections that the kernel accepted and no worker took.

A worker that cannot go, because a request takes too long, keeps the listening sockets open. So the
arbiter keeps its own descriptor of each until the workers are gone, and counts then what is left.
Everything here runs in the arbiter's main thread.
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

    :ivar lost: how many requests were lost in them.

    :param arbiter: gunicorn's arbiter.
    """

    def __init__(self, arbiter: Any) -> None:
        self._arbiter = arbiter
        self._kept: list[Any] = []
        self.lost: int = 0

    def _are_ours_alone(self) -> bool:
        """Whether what waits in them is lost when this instance ends. It is not where systemd or
        another arbiter has the sockets as well."""
        arbiter = self._arbiter
        return not (
            arbiter.reexec_pid
            or arbiter.master_pid
            or arbiter.systemd
            or any(isinstance(address, int) for address in arbiter.cfg.address)
        )

    def keep(self, listeners: Iterable[Any]) -> None:
        """Keep a descriptor of each of these sockets, which are about to be closed. They have to be
        sealed, because nobody takes what comes from now on."""
        if self._are_ours_alone():
            for sock in listeners:
                with contextlib.suppress(OSError, AttributeError):
                    self._kept.append(_socket.socket(fileno=os.dup(sock.fileno())))

    def length(self) -> int:
        """Return how many connections would be lost now, or were lost. Nothing is changed."""
        length = self.lost
        if self._are_ours_alone():
            for sock in (*self._kept, *self._arbiter.LISTENERS):
                with contextlib.suppress(OSError, AttributeError, ValueError):
                    length += listener.queue_length(sock)
        return length

    def end(self) -> None:
        """Close the queues, because the workers are gone, and count what that loses."""
        kept, self._kept = self._kept, []
        for sock in kept:
            with contextlib.suppress(OSError):
                self.lost += _refuse_all(sock)
            sock.close()


def _refuse_all(sock: Any) -> int:
    """Close each connection in an accept queue.

    :returns: how many requests that loses. A peer that has sent nothing loses none.
    """
    # What such a seal has dropped cannot be seen here: see gunicorn_grace.shared.listener.
    may_be_held_up = listener.is_sealed_by_hop_limit(sock)
    sock.setblocking(False)  # The processes that share this property are gone.
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
