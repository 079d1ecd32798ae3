"""Clients whose handshake is not complete when a listener is sealed.

The kernel has answered such a client's SYN and waits for the last segment of the handshake. Until
then the connection is not in the accept queue, and no poll shows it. But the client may already see
the connection as established: if the accept queue was full, the kernel dropped the last segment and
the client's request. The client then sends the request again, at intervals that double. Each
attempt completes the handshake if the queue has room. If the listener were closed before that,
these clients would get a reset (measured with a full queue: 15 of 20 clients).

There are two signs of such clients. First, the kernel lists the handshakes over netlink
(sock_diag(7)), with the number of times that it has sent the SYN-ACK again: 1, 3 and 7 s after the
first one, and so on. A client that still exists answers within a round trip. A client that does not
answer is given up, because otherwise the remains of a port scan would hold up the shutdown. Second,
an accept queue was full. Then more clients come than the list shows, because the kernel keeps no
state for clients that got a SYN cookie. The arbiter waits for them twice as long as they may have
been trying. Runs in the arbiter, and in workers that have their own listeners.
"""

from __future__ import annotations

import _socket
import contextlib
import operator
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from .cells import NS

ROUND_TRIP = 1.5
"""Seconds within which a client answers a SYN-ACK."""

MOST_ASKED = 2
"""How many times the kernel may have sent a SYN-ACK again when a handshake is first seen. A client
that has left more of them unanswered is gone, so the next SYN-ACK is not waited for."""

NEW_FOR = 0.25
"""Seconds after the seal during which new handshakes are added. If another process listens at the
same port (``reuse_port``), its handshakes never end, so later ones must not count."""

# <linux/sock_diag.h>, <linux/inet_diag.h>, <linux/netlink.h>, <net/tcp_states.h>
_AF_NETLINK = 16
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_REQUEST, _DUMP = 0x1, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SYN_RECEIVED = 3
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, pid
_QUERY = struct.Struct("=BBBxI")  # family, protocol, extensions, states
_ANSWER = struct.Struct("=BBBB")  # family, state, timer, retransmissions
_IDENTITY, _KEY = 48, 36
"""Bytes of struct inet_diag_sockid, and of its ports and addresses, with which it begins."""

# struct tcp_info, <linux/tcp.h>. For a listener the kernel stores the length of the accept queue
# and its limit there.
_QUEUE, _BACKLOG = 24, 28

_SO_MEMINFO, _DROPS = 55, 32
"""<asm-generic/socket.h>, and the offset of SK_MEMINFO_DROPS (<linux/sock_diag.h>) in bytes."""

Handshake = bytes
"""The ports and addresses of a handshake, as the kernel gives them."""


class Handshakes:
    """The incomplete handshakes at the listeners of one process."""

    def __init__(self) -> None:
        self._sealed = 0
        self._is_blind = False
        self._known: set[Handshake] = set()
        """The handshakes that count: those seen within :data:`NEW_FOR` after the seal."""
        self._seen: dict[Handshake, tuple[int, int, float]] = {}
        """For each handshake: how many times its SYN-ACK was sent again, when that number was first
        seen (ns), and how long to wait from then on (seconds)."""
        self._turned_away = (0, 0)
        self._full_since = self._full_until = 0

    def look_whether_full(self, socks: Iterable[Any], now: int) -> None:
        """Note whether an accept queue of these listeners is full. Called in each pass from T0 on.

        :param socks: the listeners.
        :param now: the monotonic clock, in nanoseconds.
        """
        listeners = list(filter(_is_tcp, socks))
        if self._full_since and not self._are_turned_away_expected(now):
            self._full_since = 0
        before = self._turned_away
        if any(map(_is_full, listeners)):
            self._full_since = self._full_since or now
            self._full_until = now
        elif not self._full_since:
            return
        # Clients that come again may fill a queue only for a moment, so a look can miss it. Two
        # counters help. One counts the clients that found a queue full, but for all listeners of
        # the container. The other counts the segments dropped at one socket, but a seal drops
        # segments too. If both have grown, one of our queues was full.
        self._turned_away = _overflows(), _drops(listeners)
        if any(before) and all(map(operator.ne, before, self._turned_away)):
            self._full_until = now

    def _are_turned_away_expected(self, now: int) -> bool:
        """Whether a client that found the accept queue full may still come again.

        The client sends its request again after an interval that doubles each time (RFC 6298,
        section 5.5). So its next attempt comes after about as long as it has been trying. Linux was
        seen to take 1.6 times as long, because its tail loss probe comes first.
        """
        trying = self._full_until - self._full_since
        return bool(self._full_since and now - self._full_until < 2 * trying + ROUND_TRIP * NS)

    def are_under_way(self, socks: Iterable[Any], now: int) -> bool:
        """Whether a client may still complete its handshake at one of these sealed listeners.

        :param socks: the listeners.
        :param now: the monotonic clock, in nanoseconds.
        """
        self.look_whether_full(socks, now)
        listeners = list(filter(_is_tcp, socks))
        return self._are_turned_away_expected(now) or self._are_listed(listeners, now)

    def _are_listed(self, listeners: list[Any], now: int) -> bool:
        if self._is_blind:
            return False
        self._sealed = self._sealed or now
        try:
            current = dict(_under_way(listeners))
        except (OSError, struct.error):
            self._is_blind = True
            return False
        if now - self._sealed <= NEW_FOR * NS:
            self._known.update(current)
        # The kernel may leave out a handshake that is just changing, and list it again later.
        current = {key: count for key, count in current.items() if key in self._known}
        before, self._seen = self._seen, {}
        for key, count in current.items():
            old, since, patience = before.get(key, (count, now, _until_asked(count) + ROUND_TRIP))
            if count != old:
                since, patience = now, ROUND_TRIP
            self._seen[key] = count, since, patience
        return any(now - since < patience * NS for _, since, patience in self._seen.values())


def _until_asked(count: int) -> float:
    """Return how many seconds it takes at most until the kernel asks a client again."""
    return 2.0**count if count <= MOST_ASKED else 0.0


def _overflows() -> int:
    """Return how often a client found an accept queue full, in this network namespace; 0 if this is
    unknown (proc_pid_net(5))."""
    try:
        with open("/proc/net/netstat", encoding="ascii") as lines:
            for names in lines:
                counts = dict(zip(names.split(), next(lines).split(), strict=True))
                if "ListenOverflows" in counts:
                    return int(counts["ListenOverflows"])
    except (OSError, ValueError, StopIteration):
        pass
    return 0


def _drops(listeners: Iterable[Any]) -> int:
    """Return how many segments the kernel has dropped at these listeners. If it does not tell (a
    sandbox), return the number of clients that found an accept queue full."""
    drops = 0
    for sock in listeners:
        try:
            info = sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _DROPS + 4)
        except OSError:
            return _overflows()
        drops += int.from_bytes(info[_DROPS:], sys.byteorder)
    return drops


def _is_tcp(sock: Any) -> bool:
    return sock.family in (socket.AF_INET, socket.AF_INET6)


def _is_full(sock: Any) -> bool:
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BACKLOG + 4)
    if len(info) < _BACKLOG + 4:
        return False
    queue, backlog = struct.unpack_from("II", info, _QUEUE)
    return bool(queue > backlog)


def _under_way(listeners: Iterable[Any]) -> Iterator[tuple[Handshake, int]]:
    """Yield the handshakes at these listeners, with the number of SYN-ACKs that were sent again."""
    for sock in listeners:
        address, port = sock.getsockname()[:2]
        local = socket.inet_pton(sock.family, address.partition("%")[0])
        for key, count in _dump(sock.family, port):
            # Both ports come first, then the local address.
            if not any(local) or key[4 : 4 + len(local)] == local:
                yield key, count


def _dump(family: int, port: int) -> Iterator[tuple[Handshake, int]]:
    """Yield all handshakes at this port, with the number of SYN-ACKs that were sent again.

    :raises OSError: the kernel does not list them (no Linux, a sandbox).
    """
    query = _QUERY.pack(family, socket.IPPROTO_TCP, 0, 1 << _SYN_RECEIVED)
    query += struct.pack("!H", port).ljust(_IDENTITY, b"\0")
    length = _HEADER.size + len(query)
    header = _HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, 0, 0)
    # Not socket.socket, because gevent's would switch to another greenlet.
    netlink = _socket.socket(_AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG)
    with contextlib.closing(netlink):
        netlink.settimeout(1.0)
        netlink.send(header + query)
        while True:
            data, at = netlink.recv(1 << 16), 0
            while at < len(data):
                length, kind, *_ = _HEADER.unpack_from(data, at)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    raise OSError("the kernel does not list handshakes")
                answer = at + _HEADER.size
                count = _ANSWER.unpack_from(data, answer)[3]
                answer += _ANSWER.size
                yield data[answer : answer + _KEY], count
                at += (length + 3) & ~3
