"""The connections that this process has accepted, for every worker class.

Each worker class lists its connections differently, and some do not list them at all. So they are
looked up among the descriptors of the process, in ``/proc``. This works on Linux. On other systems
no connection is found, and gunicorn closes the idle ones itself. Runs in workers.
"""

from __future__ import annotations

import _socket
import contextlib
import fcntl
import os
import socket
import stat
import struct
import termios
from collections.abc import Callable, Iterator
from typing import Any


def accepted_at(
    addresses: frozenset[Any], only: Callable[[int], bool] | None = None
) -> Iterator[tuple[_socket.socket, tuple[int, int]]]:
    """Yield each connection that was accepted at one of these addresses, as a duplicate, with the
    identity of its socket.

    It is a duplicate because the worker may close its own descriptor at any moment, and the number
    may belong to another connection an instant later.

    :param addresses: the listeners' addresses, as :func:`bare` returns them.
    :param only: returns whether a descriptor is of interest. It is asked before the descriptor is
        duplicated.
    :returns: the duplicate, which is closed when the loop goes on, and the device and the inode.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc/self/fd"):
            with contextlib.suppress(OSError):
                if only is not None and not only(int(name)):
                    continue
                if not stat.S_ISSOCK(os.stat(int(name)).st_mode):
                    continue
                conn = duplicate_of(int(name))
                try:
                    if conn.type != socket.SOCK_STREAM or conn.getsockopt(
                        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
                    ):
                        continue
                    if bare(conn.getsockname()) in addresses:
                        info = os.fstat(conn.fileno())
                        yield conn, (info.st_dev, info.st_ino)
                finally:
                    conn.close()


def duplicate_of(fd: int) -> _socket.socket:
    """Return a socket object on a duplicate of ``fd``, without a change to the original.

    It uses ``_socket``, because gevent's patched ``socket`` would make the duplicate non-blocking.
    Both descriptors share that property, and the original may be the application's connection to
    its database.

    :raises OSError: ``fd`` is closed or is not a socket.
    """
    blocking = os.get_blocking(fd)
    duplicate = os.dup(fd)
    try:
        conn = _socket.socket(fileno=duplicate)
    except BaseException:
        os.close(duplicate)
        raise
    if blocking and not os.get_blocking(fd):  # socket.setdefaulttimeout() was called.
        os.set_blocking(fd, True)
    return conn


def bare(name: Any) -> Any:
    """Return the part of a socket's name that a listener and its accepted connections have in
    common: the port, or the path of a UNIX socket."""
    # Not the host: that of a listener may be a wildcard, and that of a connection never is.
    return name[1] if isinstance(name, tuple) else name


def unread(conn: _socket.socket) -> int:
    """Return how many bytes wait to be read.

    :raises OSError: the connection is closed.
    """
    buffer = fcntl.ioctl(conn.fileno(), termios.FIONREAD, b"\0\0\0\0")
    return int(struct.unpack("i", buffer)[0])


_MOST_SENT_AGAIN = 5
"""The maximum number of times that a SYN-ACK is sent again (net.ipv4.tcp_synack_retries)."""

SENDING_FOR = 10.0
"""Seconds without a byte after which the rest of a request is no longer expected."""

# struct tcp_info, <linux/tcp.h>. The first two are ages in milliseconds, the third is in
# microseconds, and the fourth is a number of segments. tcpi_bytes_received exists since Linux 4.1,
# tcpi_data_segs_out since 4.6.
_LAST_DATA_SENT, _LAST_DATA_RECEIVED, _ROUND_TRIP, _SENT_AGAIN = 44, 52, 68, 100
_BYTES_RECEIVED, _DATA_SEGMENTS_SENT = 128, 156


def never_sent(conn: _socket.socket) -> bool:
    """Whether the peer has not sent a single byte. False if this is unknown (a UNIX socket, an old
    kernel)."""
    if conn.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    info = conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + 8)
    if len(info) < _BYTES_RECEIVED + 8:
        return False
    return bool(struct.unpack_from("Q", info, _BYTES_RECEIVED)[0] == 0)


def was_in_use(conn: _socket.socket, seconds: float) -> bool:
    """Whether either side has sent data, or the connection was established, within the last
    ``seconds`` or the last three round trips. False if this is unknown (a UNIX socket, an old
    kernel).

    If the kernel had to send segments again, the peer may also be waiting to send again. Its
    intervals double each time (RFC 6298, section 5.5), so it gets twice the time for which it has
    been trying.

    :param seconds: the shortest time to look back.
    """
    if conn.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    info = conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SENT_AGAIN + 4)
    if len(info) < _SENT_AGAIN + 4:
        return False
    # The handshake's SYN-ACK counts too, after 1, 3 and 7 s (tcp_create_openreq_child).
    again = min(struct.unpack_from("I", info, _SENT_AGAIN)[0], _MOST_SENT_AGAIN)
    seconds += 2 * (2**again - 1)
    # Before the first data both are the age of the connection (tcp_create_openreq_child).
    age = min(struct.unpack_from("I", info, at)[0] for at in (_LAST_DATA_SENT, _LAST_DATA_RECEIVED))
    round_trip = struct.unpack_from("I", info, _ROUND_TRIP)[0] / 1e6
    return bool(age / 1e3 < max(seconds, 3 * round_trip))


def is_sending(conn: _socket.socket) -> bool:
    """Whether the peer is in the middle of a request: it has sent data since this side last did,
    and not long ago.

    This holds for HTTP/1, where the server sends last. It is false if the answer is unknown (a UNIX
    socket, an old kernel). It is also false for data that came within the same kernel tick, some
    milliseconds, as the last data of this side.
    """
    if conn.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    info = conn.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _DATA_SEGMENTS_SENT + 4)
    if len(info) < _DATA_SEGMENTS_SENT + 4:
        return False
    sent, received, segments = (
        struct.unpack_from("I", info, at)[0]
        for at in (_LAST_DATA_SENT, _LAST_DATA_RECEIVED, _DATA_SEGMENTS_SENT)
    )
    return bool((not segments or received < sent) and received < 1000 * SENDING_FOR)
