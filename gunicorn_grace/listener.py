"""The listening sockets: no new connection in, none of the accepted ones lost.

A listener that is closed resets every connection in its accept queue, and the client, whose connection was
established, cannot know whether its request was executed. So a listener is *sealed* first: a classic BPF filter on
the socket drops each segment that has SYN and not ACK. Handshakes under way complete, and no new one begins; a peer
that gets no SYN-ACK tries again or elsewhere, which is safe for every method. Then the queue is served to its end.

A filter needs no privilege (socket(7), SO_ATTACH_FILTER). For TCP the kernel runs it with the packet beginning at the
TCP header (``tcp_filter``, net/ipv4/tcp_ipv4.c), for IPv4 and IPv6 alike, so offset 13 holds the flags (RFC 9293,
section 3.1). Accepted sockets inherit it (``sk_clone``), where it has nothing to do.
"""

from __future__ import annotations

import ctypes
import select
import socket
import struct
import sys
from collections.abc import Iterable, Sequence
from typing import Any

# <asm-generic/socket.h>; mips, parisc and sparc have other numbers, and the socket module names neither.
_SO_ATTACH_FILTER = 26
_SO_DETACH_FILTER = 27

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
    """Whether ``sock`` (a socket, or gunicorn's wrapper of one) is of a kind that can be sealed: TCP, on Linux."""
    return sys.platform == "linux" and sock.family in (socket.AF_INET, socket.AF_INET6)


def seal(sock: Any) -> None:
    """Let no new connection begin on a listening TCP socket. Doing it twice changes nothing.

    The filter belongs to the socket, which all processes share: one call in the arbiter seals it for every worker.

    :raises OSError: the kernel refuses (no BPF, a seccomp profile).
    """
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in _PROGRAM))
    fprog = struct.pack("HL", len(_PROGRAM), ctypes.addressof(program))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, fprog)


def unseal(sock: Any) -> None:
    """Take the seal off again.

    :raises OSError: there was none.
    """
    sock.setsockopt(socket.SOL_SOCKET, _SO_DETACH_FILTER, 0)


def are_waiting(socks: Iterable[Any]) -> bool:
    """Whether a connection waits in the accept queue of any of these listening sockets. Does not block."""
    poller = select.poll()
    count = 0
    for sock in socks:
        poller.register(sock.fileno(), select.POLLIN)
        count += 1
    return bool(count and any(event & select.POLLIN for _, event in poller.poll(0)))


def names(socks: Sequence[Any]) -> list[Any]:
    """The addresses of these sockets, as ``getsockname`` gives them."""
    return [sock.getsockname() for sock in socks]
