"""The listening sockets: how to stop new connections without losing the queued ones.

Closing a listener resets every connection in its accept queue. The client, whose connection was
established, cannot know whether its request was executed. So a listener is *sealed* first: the
kernel drops the packets that begin a connection. Handshakes under way complete, and no new one
begins. A peer that gets no SYN-ACK tries again or elsewhere, which is safe for every method. Then
the accept queue is served to its end.

There are two ways to seal. The first is a classic BPF filter on the socket, which drops packets
with SYN and without ACK. For TCP the kernel runs it with the packet beginning at the TCP header
(``tcp_filter``, net/ipv4/tcp_ipv4.c), for IPv4 and IPv6 alike, so offset 13 holds the flags (RFC
9293, section 3.1). Accepted sockets inherit it (``sk_clone``), but it has no effect there. It took
no privilege until Linux commit 5d39580f68e6 (2026), which requires CAP_NET_ADMIN. Linux 6.18.44 has
that commit, and few containers have the capability.

The second way is to raise the minimum hop limit that the socket accepts (``IP_MINTTL``, ip(7); RFC
5082) to 255. A packet that passed a router has a lower hop limit, and so has a packet from a system
that begins with 64 or 128. This way takes no privilege. The kernel does not check the segment that
completes a handshake against the limit (``tcp_v4_rcv``, label ``process``). It does check the data
that the client sends after that, because accepted sockets inherit the limit too. So the process
that accepts a connection has to :func:`admit` it. The client's next retransmission then gets in.

Runs in the arbiter, and in workers.
"""

from __future__ import annotations

import ctypes
import select
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from typing import Any

# <asm-generic/socket.h>; mips, parisc and sparc use other numbers. The socket module defines
# neither constant.
_SO_ATTACH_FILTER = 26

# Level, option: <linux/in.h>, <linux/in6.h>. An IPv6 socket has both; the first applies to IPv4
# clients.
_HOP_LIMITS = {
    socket.AF_INET: ((socket.IPPROTO_IP, 21),),
    socket.AF_INET6: ((socket.IPPROTO_IP, 21), (socket.IPPROTO_IPV6, 73)),
}
_HIGHEST = 255

_FLAGS_OFFSET = 13
_SYN, _ACK = 0x02, 0x10

# struct sock_filter {code, jt, jf, k}: <linux/bpf_common.h>, <linux/filter.h>
_PROGRAM = (
    (0x30, 0, 0, _FLAGS_OFFSET),  # ldb [13]
    (0x54, 0, 0, _SYN | _ACK),  # and #SYN|ACK
    (0x15, 0, 1, _SYN),  # jeq #SYN
    (0x06, 0, 0, 0),  # ret #0: drop
    (0x06, 0, 0, 0xFFFFFFFF),  # ret #-1: keep all of it
)


def can_seal(sock: Any) -> bool:
    """Whether ``sock`` (a socket, or gunicorn's wrapper of one) can be sealed: TCP, on Linux."""
    return sys.platform == "linux" and sock.family in (socket.AF_INET, socket.AF_INET6)


def seal(sock: Any) -> None:
    """Stop new connections on a listening TCP socket. A second call changes nothing.

    The seal belongs to the socket, which all processes share, so one call in the arbiter seals it
    for every worker. If the socket :func:`is_sealed_by_hop_limit`, workers have to :func:`admit`
    each connection that they accept from then on.

    :raises OSError: the kernel refuses both ways (a seccomp profile).
    """
    try:
        seal_by_filter(sock)
    except OSError:
        seal_by_hop_limit(sock)


def seal_by_filter(sock: Any) -> None:
    """Seal in the first way: a filter drops the packets that begin a connection.

    :raises OSError: the kernel refuses (no CAP_NET_ADMIN, no BPF, a seccomp profile).
    """
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _PROGRAM))
    fprog = struct.pack("HL", len(_PROGRAM), ctypes.addressof(program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


def seal_by_hop_limit(sock: Any) -> None:
    """Seal in the second way: accept only packets with the highest hop limit.

    :raises OSError: the kernel refuses.
    """
    for level, option in _HOP_LIMITS[sock.family]:
        sock.setsockopt(level, option, _HIGHEST)


def is_sealed_by_hop_limit(sock: Any) -> bool:
    """Whether connections accepted from this listener have to be admitted."""
    return any(
        sock.getsockopt(level, option) == _HIGHEST
        for level, option in _HOP_LIMITS.get(sock.family, ())
    )


def admit(sock: Any) -> None:
    """Lift the hop limit from a connection accepted from a listener that is sealed by it.

    :raises OSError: the connection is just being closed.
    """
    for level, option in _HOP_LIMITS.get(sock.family, ()):
        sock.setsockopt(level, option, 0)


def _the_kernels_poll() -> Callable[[], Any]:
    """Return the ``poll`` of the standard library. eventlet removes it from ``select``, and the
    worker class of gunicorn 25 does that in the arbiter when it is loaded. So this module keeps its
    own reference. If ``poll`` had already been removed, eventlet still has the original."""
    if hasattr(select, "poll"):
        return select.poll
    original: Any = sys.modules["eventlet.patcher"]
    poll: Callable[[], Any] = original.original("select").poll
    return poll


poll: Callable[[], Any] = _the_kernels_poll()


def are_waiting(socks: Iterable[Any]) -> bool:
    """Whether a connection waits in the accept queue of any of these sockets. This does not
    block."""
    poller = poll()
    count = 0
    for sock in socks:
        poller.register(sock.fileno(), select.POLLIN)
        count += 1
    return bool(count and any(event & select.POLLIN for _, event in poller.poll(0)))


# struct tcp_info, <linux/tcp.h>. For a listener the kernel stores the length of the accept queue
# there (tcp_get_info, net/ipv4/tcp.c).
_UNACKED = 24


def queue_length(sock: Any) -> int:
    """Return how many connections wait in the accept queue. The kernel does not tell the length for
    a UNIX socket, so the result is 1 there if any connection waits.

    :raises OSError: the socket is closed.
    """
    if can_seal(sock):
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED + 4)
        return int(struct.unpack_from("I", info, _UNACKED)[0])
    return int(are_waiting([sock]))
