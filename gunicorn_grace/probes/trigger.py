"""Who may begin a shutdown with `GET /readyz?down=true`. Runs in a worker, and in the probe
responder.

The request is meant for the `curl` in a preStop hook, which Kubernetes runs inside the container
before it sends SIGTERM (https://kubernetes.io/docs/concepts/containers/container-lifecycle-hooks/).
Were a loopback address enough to be believed, every client on earth could take the instance out of
rotation: behind an nginx, Envoy or mesh sidecar on the same host or in the same pod all of them
come from 127.0.0.1, often without a forwarding header, and so does a request that somebody made the
application itself send (SSRF). What tells a hook from those is the process at the other end of the
connection: it is in our container, it is not one of ours, it was started a moment ago, and it
relays nothing. Age alone would not do: a proxy is young when it was started with the container, and
its workers are young after each reload.

That process is found from the socket alone, as no header can be believed: a UNIX socket names it
(`SO_PEERCRED`, unix(7)); for TCP the peer's row in `/proc/net/tcp` or `tcp6` has the inode of its
socket, and `/proc/<pid>/fd` says who holds that (proc(5)). What cannot be proved is refused: a
refused hook loses only its head start, as the SIGTERM that follows begins the same shutdown.
"""

from __future__ import annotations

import hmac
import ipaddress
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from ..shared import memory as st
from ..shared.settings import OFF, Settings

MAX_AGE = 10.0
"""Seconds since the fork. A hook asks within its first second, and a proxy outlives ten. exec()
does not make a process younger, so a shell that sleeps first and then becomes curl counts from the
start of the shell."""

LOOKUP_INTERVAL = 1.0
"""Seconds between look-ups: each reads every socket and every descriptor there is, and anyone
behind a proxy can ask for one."""

REFUSAL_LOG_INTERVAL = 60.0
"""Seconds between two log lines about refused triggers: whoever forges them must not be able to
fill the disk."""

WAY_OUT = 'use `gunicorn-grace prestop`, or grace_trigger = "token"'

# gunicorn sets PROXY_PROTOCOL when the connection began with a PROXY line.
_FORWARDING = frozenset({"HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_VIA", "PROXY_PROTOCOL"})

# SYN_SENT, SYN_RECV, LISTEN, NEW_SYN_RECV (include/net/tcp_states.h): no peer of an accepted
# connection.
_NOT_CONNECTED = frozenset({"02", "03", "0A", "0C"})

# A connection that is not there yet: curl tries IPv6 and IPv4 at once (RFC 8305).
_SYN_SENT = "02"

_ACCEPTS = 0x10000  # __SO_ACCEPTCON (include/uapi/linux/net.h), as /proc/net/unix shows it

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True)
class Verdict:
    """Whether a trigger is obeyed. `reason` and `source` are for the log, never for the wire:
    neither holds the token, nor a raw control character from a header or a process name."""

    allowed: bool
    reason: str
    source: str


class _Refused(Exception):
    """The reason, on its way from whichever step found it to the verdict."""


class _Process(NamedTuple):
    pid: int
    name: str
    parent: int
    started: float  # seconds since boot

    def __str__(self) -> str:
        return f"pid {self.pid} ({self.name})"


class Trigger:
    """`?down=true` as one process receives it: it begins the shutdown, or is refused, and the log
    says so.

    `begin` begins the shutdown, `say` takes a line for the log.
    """

    def __init__(
        self,
        state: st.State,
        settings: Settings,
        begin: Callable[[], object],
        say: Callable[[str], object],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cells = state.cells
        self._begin = begin
        self._say = say
        self._clock = clock
        self._refusal_said = -REFUSAL_LOG_INTERVAL
        self._gate: Gate | None = None
        if settings.trigger != OFF:
            token = settings.trigger_token
            secret = token.reveal().decode("utf-8", "surrogateescape") if token else None
            self._gate = Gate(settings.trigger, secret, state.cells[st.ARBITER])

    def is_pulled(self, query: str | None) -> bool:
        """Whether a query to readiness means it. With `grace_trigger = "off"` none does."""
        if not query or self._gate is None:
            return False
        return parse_qs(query).get("down", [""])[-1].lower() == "true"

    def pull(self, environ: Mapping[str, Any]) -> bool:
        """Begin the shutdown, if this request may. Returns whether it did."""
        assert self._gate is not None
        verdict = self._gate.admit(environ)
        reason = verdict.reason
        if verdict.allowed:
            if not self._cells[st.HTTP_SHUT]:
                self._begin()
                return True
            reason = "an earlier trigger was not followed by SIGTERM, so it is shut; use gunicorn-grace prestop"
        now = self._clock()
        if now - self._refusal_said >= REFUSAL_LOG_INTERVAL:
            self._refusal_said = now
            self._say(f"trigger refused, from {verdict.source}: {reason}")
        return False


class Gate:
    """Judges each trigger that one worker receives; safe to share between its threads and
    greenlets.

    `mode` and `token` are `grace_trigger` and `grace_trigger_token`. `clock` counts seconds and
    only spaces the look-ups.
    """

    def __init__(
        self,
        mode: str,
        token: str | None,
        arbiter_pid: int,
        *,
        proc: str = "/proc",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mode = mode
        self._token = token
        self._arbiter_pid = arbiter_pid
        self._proc = proc
        self._clock = clock
        self._next_lookup = float("-inf")
        # No I/O while it is held: no thread waits for another's look-up, and no greenlet switches
        # inside, whether gevent has patched the lock or not.
        self._lock = threading.Lock()

    def admit(self, environ: Mapping[str, Any]) -> Verdict:
        """The verdict on one request. Never raises: an error in here is a refusal."""
        source = "unknown"
        try:
            source = self._source(environ)
            if self._mode == "token":
                return Verdict(True, self._token_matches(environ), source)
            if self._mode == "local":
                return Verdict(True, self._is_hook(environ), source)
            raise _Refused(f'grace_trigger is {self._mode!a}, neither "local" nor "token"')
        except _Refused as refusal:
            return Verdict(False, str(refusal), source)
        except Exception as error:
            reason = f"the trigger could not be judged, {type(error).__name__}: {_printable(error)}; {WAY_OUT}"
            return Verdict(False, reason, source)

    def _source(self, environ: Mapping[str, Any]) -> str:
        sock = environ.get("gunicorn.socket")
        if sock is None:
            return f"REMOTE_ADDR {_printable(environ.get('REMOTE_ADDR'))}"
        if sock.family != socket.AF_UNIX:
            try:
                host, port = sock.getpeername()[:2]
            except OSError as error:  # it hung up; a token that it sent is as good as before
                return f"a peer that is gone ({error.strerror})"
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        pid = _peer_pid(sock)
        try:
            return f"unix socket, {self._process(pid)}"
        except _Refused:
            return f"unix socket, pid {pid}"

    def _token_matches(self, environ: Mapping[str, Any]) -> str:
        given = environ.get("HTTP_X_GRACE_TOKEN")
        # Two empty tokens would compare equal.
        if not self._token:
            raise _Refused("grace_trigger_token is not set, so no token can match")
        if not given:
            raise _Refused("no X-Grace-Token header")
        try:
            # A header is the bytes of the wire read as latin-1 (PEP 3333); a token from the
            # environment may hold bytes that are no UTF-8 (PEP 383).
            same = hmac.compare_digest(
                given.encode("latin-1"), self._token.encode("utf-8", "surrogateescape")
            )
        except UnicodeError:
            same = False  # the exception quotes what it could not encode: it must not reach the log
        if not same:
            raise _Refused("X-Grace-Token is not grace_trigger_token")
        return "X-Grace-Token matched"

    def _is_hook(self, environ: Mapping[str, Any]) -> str:
        for name in environ:
            if name.startswith("HTTP_X_FORWARDED") or name in _FORWARDING:
                shown = name.removeprefix("HTTP_").replace("_", "-").title()
                raise _Refused(
                    f"forwarded by a proxy ({_printable(shown)}: {_printable(environ[name])}); {WAY_OUT}"
                )

        sock = environ.get("gunicorn.socket")
        if sock is None:
            raise _Refused(
                f"this worker class does not show the socket (no gunicorn.socket in environ); {WAY_OUT}"
            )
        if sock.family == socket.AF_UNIX:
            self._wait_its_turn()
            self._proc_is_ours()
            pids, asking = [_peer_pid(sock)], set[str]()
            if pids == [0]:
                raise _Refused(
                    f"the peer of the UNIX socket is in another PID namespace; {WAY_OUT}"
                )
        elif sock.family in (socket.AF_INET, socket.AF_INET6):
            # REMOTE_ADDR would not do: a PROXY line or a trusted header may have set it.
            peer, ours = _endpoint(sock.getpeername()), _endpoint(sock.getsockname())
            if not peer[0].is_loopback:
                raise _Refused(f"the peer's address {peer[0]} is not a loopback address; {WAY_OUT}")
            self._wait_its_turn()
            self._proc_is_ours()
            asking = self._inodes(peer, ours)
            pids = self._holders(asking)
        else:
            raise _Refused(
                f"the peer is on neither TCP nor a UNIX socket ({sock.family!r}); {WAY_OUT}"
            )
        # Every one of them: a young process may have its connection from an old proxy, or from one
        # of ours.
        return "asked by " + ", ".join([self._judge(pid, asking) for pid in pids])

    def _wait_its_turn(self) -> None:
        with self._lock:
            now = self._clock()
            left = self._next_lookup - now
            if left <= 0:
                self._next_lookup = now + LOOKUP_INTERVAL
        if left > 0:
            raise _Refused(
                f"another trigger was looked up {LOOKUP_INTERVAL - left:.2f} s ago, and one look-up is made"
                f" in {LOOKUP_INTERVAL:g} s: try again, or {WAY_OUT}"
            )

    def _proc_is_ours(self) -> None:
        """A /proc that is mounted for another PID namespace numbers processes in its own way: the
        arbiter's pid would name a stranger there, and our own processes would pass for
        strangers."""
        try:
            shown = os.readlink(f"{self._proc}/self")
        except OSError as error:
            raise _Refused(
                f"no usable {self._proc} ({error.strerror}): the asking process is unknown; {WAY_OUT}"
            ) from None
        if shown != str(os.getpid()):
            raise _Refused(
                f"{self._proc} is that of another PID namespace (we are pid {os.getpid()}, there {shown}); {WAY_OUT}"
            )

    def _inodes(self, peer: tuple[_Address, int], ours: tuple[_Address, int]) -> set[str]:
        """The peer's own socket, by both ends of the connection: a port alone may be in use with
        several remotes."""
        local, remote = _spellings(*peer), _spellings(*ours)
        inodes = set()
        for table in ("tcp", "tcp6"):
            try:
                with open(f"{self._proc}/net/{table}", encoding="utf-8") as rows:
                    for row in rows:
                        columns = row.split()
                        if (
                            columns[1] in local
                            and columns[2] in remote
                            and columns[3] not in _NOT_CONNECTED
                        ):
                            inodes.add(columns[9])
            except FileNotFoundError:
                continue  # no tcp6 where IPv6 is switched off
        if not inodes:
            raise _Refused(
                f"the peer's end {peer[0]} port {peer[1]} is not in {self._proc}/net/tcp, nor in tcp6"
                f" (a redirected port, or another network namespace); {WAY_OUT}"
            )
        # 0 is a socket that no process holds any more.
        if "0" in inodes:
            raise _Refused(
                "the peer closed the connection before it could be looked up: it must wait for the response"
            )
        return inodes

    def _holders(self, inodes: set[str]) -> list[int]:
        wanted = {f"socket:[{inode}]" for inode in inodes}
        pids, closed = [], 0
        for pid in [int(name) for name in os.listdir(self._proc) if name.isdigit()]:
            try:
                if self._holds(pid, wanted):
                    pids.append(pid)
            # Such a process may hold the socket as well, unseen. Refusing for it would refuse every
            # hook in a container where anything runs with more privileges than the worker.
            except PermissionError:
                closed += 1
        if not pids:
            raise _Refused(
                f"no process that we may look into holds the other end ({closed} are closed to uid"
                f" {os.geteuid()}): it is in another container, or of another uid; {WAY_OUT}"
            )
        return pids

    def _holds(self, pid: int, wanted: set[str]) -> bool:
        return any(link in wanted for link in self._links(pid))

    def _links(self, pid: int) -> Iterator[str]:
        """What the descriptors of a process are; nothing once it has ended."""
        folder = f"{self._proc}/{pid}/fd"
        try:
            descriptors = os.listdir(folder)
        except (FileNotFoundError, ProcessLookupError):
            return
        for descriptor in descriptors:
            # One that is closed between the two calls must not hide the others.
            with suppress(FileNotFoundError, ProcessLookupError):
                yield os.readlink(f"{folder}/{descriptor}")

    def _refuse_relay(self, process: _Process, asking: set[str]) -> None:
        """A process that passes on what others ask has it from a socket: one that listens, or a
        further connection, as the child has that socat or inetd forks for each client. A hook has
        none but the one that it asks with.

        UNIX connections are no sign: the standard streams of a systemd service or an ssh session
        are such."""
        folder = f"{self._proc}/{process.pid}"
        try:
            sockets = {
                link[8:-1] for link in self._links(process.pid) if link.startswith("socket:[")
            } - asking
            for table in ("tcp", "tcp6", "unix"):
                with suppress(FileNotFoundError), open(f"{folder}/net/{table}", "rb") as rows:
                    next(rows)
                    for row in rows:
                        columns = row.decode("ascii", "replace").split(maxsplit=10)
                        if table == "unix":  # Num RefCount Protocol Flags Type St Inode Path
                            found = columns[6] in sockets and int(columns[3], 16) & _ACCEPTS
                        else:
                            found = columns[9] in sockets and columns[3] != _SYN_SENT
                        if found:
                            raise _Refused(
                                f"{process} has another socket ({table}), so it may ask for others, as a proxy does;"
                                f" {WAY_OUT}"
                            )
        except OSError as error:
            raise _Refused(
                f"the sockets of {process} cannot be looked at ({error.strerror}); {WAY_OUT}"
            ) from None

    def _judge(self, pid: int, asking: set[str]) -> str:
        # The pid may by now name another process; that is left unguarded. Pids are given out in a
        # circle, 32768 by default, which would have to be run through within the milliseconds of a
        # look-up. SO_PEERCRED is of connect(), so there it takes a process that left its connection
        # to an heir, ended, and had its pid given to a process younger than MAX_AGE.
        process = self._process(pid)

        theirs, here = (self._namespace(who) for who in (str(pid), "self"))
        if theirs != here:
            raise _Refused(
                f"{process} is in another PID namespace ({theirs}, ours is {here}); {WAY_OUT}"
            )

        # Ours is a worker, or a curl that the application runs. A hook has ppid 0, as its parent is
        # outside of the container, so the rule is right also where the arbiter is PID 1. An orphan
        # that PID 1 adopted is refused there: it cannot be told from a child that the application
        # put into the background. Where the arbiter is not PID 1 such a child passes: who can start
        # one needs no trigger.
        ancestor = process
        while ancestor.pid != self._arbiter_pid and ancestor.parent:
            ancestor = self._process(ancestor.parent)
        if ancestor.pid == self._arbiter_pid:
            raise _Refused(
                f"{process} is one of our own: the arbiter, pid {ancestor.pid}, or a descendant; {WAY_OUT}"
            )

        # Both count the time that the machine was suspended, and both are shifted alike in a time
        # namespace.
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - process.started
        if age >= MAX_AGE:
            raise _Refused(
                f"{process} started {age:.2f} s ago >= {MAX_AGE:g} s, so it is no one-shot hook; {WAY_OUT}"
            )
        self._refuse_relay(process, asking)
        return f"{process}, started {max(age, 0):.2f} s ago"

    def _namespace(self, who: str) -> str:
        try:
            return os.readlink(f"{self._proc}/{who}/ns/pid")
        except OSError as error:
            raise _Refused(
                f"the PID namespace of {who} is closed to uid {os.geteuid()} ({error.strerror}); {WAY_OUT}"
            ) from None

    def _process(self, pid: int) -> _Process:
        try:
            with open(f"{self._proc}/{pid}/stat", "rb") as file:
                stat = file.read()
        except OSError as error:
            raise _Refused(
                f"pid {pid} cannot be looked at ({error.strerror}): it ended or is hidden; {WAY_OUT}"
            ) from None
        # "42 (name) S 1 ...": a name may hold spaces and parentheses, nothing after it does.
        head, _, tail = stat.rpartition(b")")
        name = head.partition(b"(")[2].decode("utf-8", "replace")
        columns = tail.split()  # the state, which is field 3 of proc_pid_stat(5), comes first
        return _Process(
            pid, _printable(name), int(columns[1]), int(columns[19]) / os.sysconf("SC_CLK_TCK")
        )


def _peer_pid(sock: Any) -> int:
    """The process that called connect(), first of struct ucred's three ints; 0: not in our PID
    namespace."""
    return int.from_bytes(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder
    )


def _endpoint(name: tuple[Any, ...]) -> tuple[_Address, int]:
    """The address as it is meant: a dual-stack listener sees an IPv4 client as ::ffff:127.0.0.1."""
    address = ipaddress.ip_address(name[0])
    return getattr(address, "ipv4_mapped", None) or address, name[1]


def _spellings(address: _Address, port: int) -> set[str]:
    """How the tables write an end: words of 32 bits, each as this machine reads it, in hexadecimal.
    An end of an IPv4 connection is in `tcp` or, mapped, in `tcp6`, by the kind of socket that it
    is."""
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


def _printable(value: object) -> str:
    """What others wrote, safe for a line of the log."""
    return ascii(str(value))[1:-1][:80]
