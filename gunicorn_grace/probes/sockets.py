"""What the kernel says about sockets: the other end of a connection, and what else a process holds.

The kernel is asked about one socket at a time where it allows that (sock_diag(7), 0.1 ms). The
tables in /proc list all sockets of the network namespace, which takes 100 ms with 18,000 of them,
so they are read only where there is no other way. Runs in workers and in the probe responder.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import socket
import struct
import sys
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
End = tuple[Address, int]

# SYN_SENT, SYN_RECV, LISTEN, NEW_SYN_RECV (include/net/tcp_states.h). The peer of an accepted
# connection is never in one of these states.
_NOT_CONNECTED = frozenset({2, 3, 10, 12})

# A connection in SYN_SENT is harmless: curl tries IPv6 and IPv4 at the same time (RFC 8305).
_ESTABLISHED, _SYN_SENT, _LISTEN = 1, 2, 10

_ACCEPTS = 0x10000  # __SO_ACCEPTCON (include/uapi/linux/net.h), as /proc/net/unix shows it
_DGRAM = 2
_DNS = 53

STANDARD_STREAMS = frozenset({0, 1, 2})

SLICE = 0.001
"""Seconds for which a look-up runs before it lets the other requests of its worker go on."""


class Breath:
    """Lets other threads and greenlets run from time to time while a look-up takes long."""

    def __init__(self) -> None:
        self._began = time.thread_time()
        self._since = time.perf_counter()

    @property
    def spent(self) -> float:
        """Seconds of this thread's CPU since the look-up began."""
        return time.thread_time() - self._began

    def take(self) -> None:
        """Let the others run for as long as the look-up has just run, if that was longer than
        :data:`SLICE`. In a gevent worker ``time.sleep`` is gevent's. ``sleep(0)`` would not be
        enough there, because gevent would handle no event of a socket."""
        ran = time.perf_counter() - self._since
        if ran > SLICE:
            time.sleep(ran)
            self._since = time.perf_counter()


def endpoint(name: tuple[Any, ...]) -> End:
    """Return the real address and port. A dual-stack listener sees an IPv4 client as
    ::ffff:127.0.0.1."""
    address = ipaddress.ip_address(name[0])
    return getattr(address, "ipv4_mapped", None) or address, name[1]


# -- one socket: sock_diag(7) ----

_SOCK_DIAG = 4  # NETLINK_SOCK_DIAG
_BY_FAMILY = 20  # SOCK_DIAG_BY_FAMILY
_ERROR = 2  # NLMSG_ERROR
_ANY = 0xFFFFFFFF
_SHOW_NAME, _SHOW_PEER = 1, 4  # UDIAG_SHOW_NAME, UDIAG_SHOW_PEER
_NAME, _PEER = 0, 2  # UNIX_DIAG_NAME, UNIX_DIAG_PEER
_HEAD = struct.Struct("=IHHII")  # struct nlmsghdr


def _diagnosed(request: bytes) -> bytes | None:
    """Ask about one socket.

    :returns: the answer without its head; ``None`` if there is no such socket.
    :raises OSError: the kernel does not answer such questions here.
    """
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as kernel:
        kernel.settimeout(1.0)
        kernel.send(_HEAD.pack(_HEAD.size + len(request), _BY_FAMILY, 1, 1, 0) + request)
        answer = kernel.recv(65536)
    _, kind, *_ = _HEAD.unpack_from(answer)
    body = answer[_HEAD.size :]
    if kind == _ERROR:
        error = -struct.unpack_from("=i", body)[0]
        if error == 2:  # ENOENT
            return None
        raise OSError(error, os.strerror(error))
    return body


def _tcp_inode(local: End, remote: End) -> int | None:
    """Return the inode of the connected TCP socket with these ends; 0 if no process holds the
    socket any more, ``None`` if there is no such socket.

    :raises OSError: the kernel does not answer such questions here.
    """
    family = socket.AF_INET6 if local[0].version == 6 else socket.AF_INET
    ends = [end.packed.ljust(16, b"\0") for end, _ in (local, remote)]
    # struct inet_diag_req_v2 (include/uapi/linux/inet_diag.h)
    request = struct.pack("=BBBBI", family, socket.IPPROTO_TCP, 0, 0, _ANY)
    request += struct.pack("!HH", local[1], remote[1]) + b"".join(ends)
    request += struct.pack("=III", 0, _ANY, _ANY)
    answer = _diagnosed(request)
    if answer is None:
        return None
    # struct inet_diag_msg: four bytes, the ends (48 bytes), five words of which the last is the
    # inode. If there is no such connection, the kernel may return a listener instead.
    state, ports = answer[1], struct.unpack_from("!HH", answer, 4)
    if state in _NOT_CONNECTED or ports != (local[1], remote[1]):
        return None
    return int(struct.unpack_from("=I", answer, 68)[0])


class UnixSocket(NamedTuple):
    """A UNIX socket as the kernel knows it.

    :ivar peer: the inode of the other end; 0 without one.
    :ivar name: the path or the abstract name to which the socket is bound; empty if it is not
        bound.
    """

    peer: int
    name: bytes


def unix_socket(inode: int) -> UnixSocket | None:
    """Ask the kernel about a UNIX socket.

    :param inode: the inode of the socket.
    :returns: the socket; ``None`` if there is no such socket.
    :raises OSError: the kernel does not answer such questions here.
    """
    show = _SHOW_NAME | _SHOW_PEER
    # struct unix_diag_req (include/uapi/linux/unix_diag.h)
    answer = _diagnosed(
        struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, _ANY, inode, show, _ANY, _ANY)
    )
    if answer is None:
        return None
    values = {_NAME: b"", _PEER: b"\0\0\0\0"}
    at = 16  # struct unix_diag_msg, then attributes
    while at + 4 <= len(answer):
        size, kind = struct.unpack_from("=HH", answer, at)
        if size < 4:
            break
        values[kind] = answer[at + 4 : at + size]
        at += (size + 3) & ~3
    return UnixSocket(int.from_bytes(values[_PEER], sys.byteorder), values[_NAME])


# -- the tables in /proc ----


def inodes(proc: str, peer: End, ours: End) -> set[str]:
    """Return the inodes of the sockets that may be the peer's end of a TCP connection. The set is
    empty if there is no such socket, and has "0" in it if no process holds the socket any more.

    :param proc: the mount point of the proc file system.
    :param peer: the peer's end.
    :param ours: this end.
    """
    if proc == "/proc":
        with contextlib.suppress(OSError):
            inode = _tcp_inode(peer, ours)
            return set() if inode is None else {str(inode)}
    local, remote = _spellings(*peer), _spellings(*ours)
    found = set()
    for table in ("tcp", "tcp6"):
        for columns in _rows(f"{proc}/net/{table}"):
            is_theirs = columns[1] in local and columns[2] in remote
            if is_theirs and int(columns[3], 16) not in _NOT_CONNECTED:
                found.add(columns[9])
    return found


def _rows(path: str) -> Iterator[list[str]]:
    breath = Breath()
    # tcp6 is missing where IPv6 is disabled.
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as rows:
        next(rows, None)
        for row in rows:
            breath.take()
            yield row.decode("ascii", "replace").split(maxsplit=10)


def _spellings(address: Address, port: int) -> set[str]:
    """Return the forms in which the tables in /proc may write one end of a connection: 32-bit words
    in the machine's byte order, in hexadecimal. An end of an IPv4 connection is in `tcp`, or as a
    mapped address in `tcp6`, depending on the family of its socket."""
    forms = [address.packed]
    if address.version == 4:
        forms.append(b"\0" * 10 + b"\xff\xff" + address.packed)
    return {
        "".join(
            f"{int.from_bytes(form[at : at + 4], sys.byteorder):08X}"
            for at in range(0, len(form), 4)
        )
        + f":{port:04X}"
        for form in forms
    }


def links(proc: str, pid: int, breath: Breath) -> Iterator[tuple[int, str]]:
    """Yield the descriptors of a process with their link targets; nothing once it has ended.

    :raises PermissionError: this user may not inspect it.
    """
    folder = f"{proc}/{pid}/fd"
    try:
        with os.scandir(folder) as descriptors:
            for descriptor in descriptors:
                breath.take()
                # A descriptor that is closed meanwhile must not hide the others.
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    yield int(descriptor.name), os.readlink(descriptor.path)
    except (FileNotFoundError, ProcessLookupError):
        return


def holders(
    proc: str, pids: Iterable[int], inodes: set[str], *, limit: float = float("inf")
) -> tuple[list[int], int]:
    """Return which of these processes hold one of these sockets, and how many may not be inspected.

    :param proc: the mount point of the proc file system.
    :param pids: the processes, in the order in which they are searched.
    :param inodes: the sockets.
    :param limit: seconds of this thread's CPU after which the search ends.
    """
    wanted = {f"socket:[{inode}]" for inode in inodes}
    found, closed, breath = [], 0, Breath()
    for pid in pids:
        try:
            for _, link in links(proc, pid, breath):
                if link in wanted:
                    found.append(pid)
                    break
                if breath.spent > limit:
                    return found, closed
        except PermissionError:
            closed += 1
    return found, closed


def held(proc: str, pid: int, breath: Breath) -> dict[str, set[int]]:
    """Return the inodes of the sockets that a process holds, each with its descriptors."""
    found: dict[str, set[int]] = {}
    for descriptor, link in links(proc, pid, breath):
        if link.startswith("socket:["):
            found.setdefault(link[8:-1], set()).add(descriptor)
    return found


def carrying(proc: str, pid: int, asking: set[str]) -> str | None:
    """Return the kind of another socket through which a process may receive the requests of others;
    ``None`` if it has no such socket.

    A relay may be asked through a socket of any family: TCP, UDP, UNIX, VSOCK, MPTCP. So every
    socket counts, except those that are known to carry no requests, and the socket with which the
    process asks. A connection as a standard stream does not count either, because ssh and CI
    runners give sockets to a person's ``curl`` too.

    :param proc: the mount point of the proc file system.
    :param pid: the process.
    :param asking: the inodes of the socket with which the process asks.
    :raises OSError: the process cannot be inspected.
    """
    breath = Breath()
    others = {
        inode: descriptors
        for inode, descriptors in held(proc, pid, breath).items()
        if inode not in asking
    }
    if not others:
        return None
    told = {inode: (table, carries) for table, inode, carries in _told(proc, pid, set(others))}
    still_held = held(proc, pid, breath)
    for inode, descriptors in others.items():
        table, carries = told.get(inode, ("of another family", None))
        is_stream = not descriptors.isdisjoint(STANDARD_STREAMS)
        # A socket that the process has closed meanwhile is in no table, and does not count.
        if inode in still_held and (carries == "listens" or (carries != "no" and not is_stream)):
            return table
    return None


def _told(proc: str, pid: int, wanted: set[str]) -> Iterator[tuple[str, str, str | None]]:
    """Yield what the tables of the process's network namespace say about these sockets: the table,
    the inode, and "listens", "no" if the socket carries no requests of others, or ``None`` if it
    may carry some."""
    folder = f"{proc}/{pid}/net"
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for columns in _rows(f"{folder}/{table}"):
            if columns[9] in wanted:
                state = int(columns[3], 16)
                is_dns = state == _ESTABLISHED and int(columns[2].rpartition(":")[2], 16) == _DNS
                if table.startswith("tcp"):
                    carries = {_LISTEN: "listens", _SYN_SENT: "no"}.get(state)
                else:
                    carries = "no" if is_dns else None
                yield table, columns[9], carries
    for columns in _rows(f"{folder}/unix"):  # Num RefCount Protocol Flags Type St Inode Path
        if columns[6] in wanted:
            yield "unix", columns[6], _unix_carries(columns)
    for columns in _rows(f"{folder}/netlink"):  # The kernel is at the other end.
        if columns[9] in wanted:
            yield "netlink", columns[9], "no"


def _unix_carries(columns: list[str]) -> str | None:
    if int(columns[3], 16) & _ACCEPTS:
        return "listens"
    if len(columns) > 7:
        return None  # It has a name, or a listener with that name accepted it.
    if int(columns[4], 16) == _DGRAM:
        return "no"  # Others can only answer on it, as with syslog.
    # A socketpair is harmless. A client of a named socket may get requests through it.
    with contextlib.suppress(OSError):
        this = unix_socket(int(columns[6]))
        peer = unix_socket(this.peer) if this and this.peer else None
        if peer is not None and peer.name:
            return None
    return "no"
