"""The probe responder: a small process that answers the probes while every worker is busy.

A sync worker answers one request at a time, so a readiness probe waits behind slow requests just
when the instance is loaded, and a load balancer takes it out for being slow. This process has
nothing else to do. It is started anew, not forked (:mod:`gunicorn_grace.arbiter.probe_port` says
how), so it holds no module of the application, no lock and no descriptor but these: 0 what it has
to know, 1 and 2 a pipe into the arbiter's log, 3 the listener, 4 the shared memory.

It answers from that memory alone, and writes to it only a trigger. What the application's checks
say comes from the workers, which show it there
(:class:`gunicorn_grace.arbiter.probe_port.Publisher`); of each check the newest result counts.

One thread, one loop, no blocking call; a connection gets one answer and is closed. Reading stops at
the blank line after the headers, and what came is parsed by ``http.server``. Whoever sends slowly,
or nothing, is dropped after
:data:`PATIENCE`, and earlier when there are more than :data:`CONNECTIONS` of them: the oldest goes
first, so that a new one, which sends at once, is always heard.

All signals are blocked but RETIRE, so that a SIGTERM to the whole process group does not end it
before the others. When its arbiter is gone it goes as well: the kernel sees to it
(PR_SET_PDEATHSIG), or its own look once a second.
"""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import re
import resource
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from ..arbiter.lifecycle import Origin
from ..probes.answers import (
    FORBIDDEN,
    NOT_ALLOWED,
    TRIGGERED,
    Answer,
    Kind,
    Probes,
    Query,
    Situation,
)
from ..probes.checks import Outcome
from ..probes.trigger import Trigger
from ..shared import memory as st
from ..shared.phase import Phase
from ..shared.settings import Secret, Settings

LISTENER, MEMORY = 3, 4
"""Descriptors that the arbiter gives it; it closes all others."""

RETIRE = signal.SIGUSR2
"""Told by the arbiter: answer what has come, take no more, and end."""

PATIENCE = 5.0
"""Seconds in which a request has to be complete. The kubelet gives up after 1 by default."""

LINGER = 1.0
"""Seconds that a connection is kept after its answer, so that what the client still sends does not
reset it."""

CONNECTIONS = 256
HEAD = 8192
"""Bytes of a request line and its headers; gunicorn takes 4094 for the line alone, and a probe
sends a tenth."""

KINDS = tuple(Kind)
"""By the number that a board has for each."""

LOOK_EVERY = 1.0

_BLANK_LINE = re.compile(rb"\n\r?\n")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


class Request(NamedTuple):
    """What a probe asks.

    :ivar environ: its headers and its socket, as WSGI names them.
    """

    method: str
    path: str
    query: str
    environ: Mapping[str, Any]


class _Head(BaseHTTPRequestHandler):
    """The standard library's parser of a request, without its server: no socket, no response."""

    def __init__(self, head: bytes) -> None:
        self.rfile = io.BytesIO(head)
        self.raw_requestline = self.rfile.readline()
        self.refusal: int | None = None

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.refusal = code

    def handle_expect_100(self) -> bool:
        return True  # There is no body that we would wait for.


def parse(head: bytes, sock: Any = None) -> Request | int:
    """A request line with its headers, or the status that refuses it."""
    parsed = _Head(head.lstrip(b"\r\n"))  # RFC 9112, section 2.2
    if not parsed.parse_request() or parsed.request_version == "HTTP/0.9":
        return parsed.refusal or HTTPStatus.BAD_REQUEST
    if parsed.headers.defects or not all(map(_TOKEN.fullmatch, parsed.headers.keys())):
        return HTTPStatus.BAD_REQUEST  # A forwarding header may hide behind what is none.
    environ: dict[str, Any] = {"gunicorn.socket": sock, "REQUEST_METHOD": parsed.command}
    for name, value in parsed.headers.items():
        key = "HTTP_" + name.upper().replace("-", "_")
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    try:
        url = urlsplit(parsed.path)
    except ValueError:
        return HTTPStatus.BAD_REQUEST
    return Request(parsed.command, unquote(url.path, "latin-1"), url.query, environ)


class Probe:
    """Answers the probes of an instance from its shared memory.

    :param timeout: gunicorn's, seconds: without a heartbeat for so long a worker counts as hung; 0
        never.
    :param say: where it tells what its log has to know.
    """

    def __init__(
        self,
        state: st.State,
        settings: Settings,
        timeout: float,
        say: Callable[[str], None],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.state = state
        self.settings = settings
        self.probes = Probes(settings, {"booted": self._is_booted, "heartbeat": self._is_alive})
        self._workers: list[int] = []
        self._said: set[str] = set()
        self._timeout = round(timeout * st.NS)
        self._say = say
        self._clock = clock
        self._trigger = Trigger(
            state,
            settings,
            lambda: state.trigger(Origin.HTTP),
            say,
            clock=lambda: self._clock() / st.NS,
        )

    def answer(self, request: Request) -> Answer:
        """The complete answer to a request."""
        target = self.probes.target(request.path)
        if target is None:
            return Answer(HTTPStatus.NOT_FOUND, "not found\n")
        if request.method not in ("GET", "HEAD"):
            return NOT_ALLOWED
        kind, check = target
        if kind is Kind.READINESS and check is None and self._trigger.is_pulled(request.query):
            return TRIGGERED if self._trigger.pull(request.environ) else FORBIDDEN
        cells = self.state.cells
        self._workers = [
            number for number, slot, _ in self.state.slots() if cells[slot + st.BOOTED]
        ]
        outcomes, known = self._outcomes(kind)
        try:
            query = Query.of(request.query, request.environ.get("HTTP_ACCEPT", ""))
        except (
            ImportError
        ):  # What reads Accept, where only root may import: then it is answered as text.
            query = Query.of(request.query)
        return self.probes.answer(kind, self.situation(), outcomes, query, check=check, known=known)

    def _is_booted(self, situation: Situation) -> bool:
        """A worker serves now: unlike one of them, who would say so of itself, this process sees
        that none is left."""
        return situation.upgraded or (situation.phase is not Phase.STARTING and bool(self._workers))

    def _is_alive(self, situation: Situation) -> bool:
        """One of the workers has told gunicorn within its ``timeout`` that it lives. With none of
        them there is nothing to say; and when another arbiter serves the same sockets, this one's
        workers are on their way out."""
        if not self._timeout or not self._workers or situation.upgraded:
            return True
        boards = [self.state.board(number) or 0 for number in self._workers]
        silent = self._clock() - max(self.state.cells[board + st.HEARTBEAT] for board in boards)
        self._tell(
            "heartbeat",
            silent > self._timeout,
            f"no worker gave a sign of life for {silent / st.NS:.0f} s",
        )
        return silent <= self._timeout

    def _outcomes(self, kind: Kind) -> tuple[list[Outcome], list[str]]:
        """How the application's checks of a kind came out, and the names of all of them.

        A result that nobody has brought up to date for too long, or that was never there, fails
        readiness. For liveness it does not: a restart is no answer to not knowing, and gunicorn's
        ``timeout`` ends workers that hang. Start-up happens once: a result stays, none is none.
        """
        newest: dict[str, st.Shown] = {}
        for shown in [shown for number in self._workers for shown in self.state.shown(number)]:
            if KINDS[shown.kind] is kind and (
                shown.name not in newest or shown.known > newest[shown.name].known
            ):
                newest[shown.name] = shown
        now, outcomes = self._clock(), []
        for name, shown in newest.items():
            is_stale = now - shown.known > shown.good_for
            if kind is Kind.READINESS and shown.known:
                age = (now - shown.known) / st.NS
                self._tell(
                    f"check {name}",
                    is_stale,
                    f"no worker brought its result up to date for {age:.0f} s",
                )
            if kind is Kind.READINESS and is_stale:
                outcomes.append(Outcome(name, False))
            elif shown.known:
                outcomes.append(Outcome(name, shown.passed))
            elif kind is Kind.LIVENESS:
                outcomes.append(Outcome(name, True))
        return outcomes, list(newest)

    def _tell(self, what: str, is_bad: bool, why: str) -> None:
        """Say it once for each change."""
        if is_bad and what not in self._said:
            self._said.add(what)
            self._say(f"not ready, {what}: {why}")
        elif not is_bad and what in self._said:
            self._said.discard(what)
            self._say(f"{what} is good again")

    def situation(self) -> Situation:
        """What the answers are given from, now."""
        t0 = self.state.t0()
        since_t0 = (self._clock() - t0) / st.NS if t0 else 0.0
        upgraded = bool(self.state.cells[st.UPGRADED])
        return Situation(self.state.phase(), since_t0, upgraded, self.state.seconds_left())


class _Connection:
    __slots__ = ("answered", "data", "ends", "sock")

    def __init__(self, sock: socket.socket, ends: float) -> None:
        self.sock = sock
        self.ends = ends
        self.data = b""
        self.answered = False


class Server:
    """The loop: accepts, reads up to the blank line, answers once, closes.

    :param is_orphan: asked once a second: whether the arbiter is gone.
    """

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[Request], Answer],
        say: Callable[[str], None],
        is_orphan: Callable[[], bool] = lambda: False,
    ) -> None:
        self.listener = listener
        self.answer = answer
        self._say = say
        self._is_orphan = is_orphan
        self._open: dict[int, _Connection] = {}
        """By descriptor, the oldest first."""
        self._limit = min(CONNECTIONS, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 16))
        self._retiring = False
        self._failed = False
        self._selector = selectors.DefaultSelector()
        listener.setblocking(False)
        self._selector.register(listener, selectors.EVENT_READ)
        self._wake, self._waker = socket.socketpair()
        self._wake.setblocking(False)
        self._waker.setblocking(False)
        self._selector.register(self._wake, selectors.EVENT_READ)

    def retire(self, *_: Any) -> None:
        """Answer what has come, take no more, and end. Also a signal handler."""
        self._retiring = True
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    def run(self) -> None:
        """Serve until told to retire, or until the arbiter is gone."""
        looks_at = time.monotonic() + LOOK_EVERY
        listening = True
        while listening or self._open:
            if listening and self._retiring:
                self._accept(time.monotonic())
                self._selector.unregister(self.listener)
                listening = False
            now = time.monotonic()
            if now >= looks_at:
                if self._is_orphan():
                    return
                looks_at = now + LOOK_EVERY
            until = min([looks_at, *(connection.ends for connection in self._open.values())])
            events = self._selector.select(max(0.0, until - now)) if listening or self._open else []
            now = time.monotonic()
            for key, _ in events:
                if key.fileobj is self.listener:
                    self._accept(now)
                elif key.fileobj is self._wake:
                    self._wake.recv(64)
                elif (
                    key.fd in self._open
                ):  # Otherwise it was dropped for one that was just accepted.
                    self._read(self._open[key.fd], now)
            self._expire(now)

    def close(self) -> None:
        """Give back what the loop holds, the listener excepted."""
        for connection in list(self._open.values()):
            self._drop(connection)
        self._selector.close()
        self._wake.close()
        self._waker.close()

    def _accept(self, now: float) -> None:
        for _ in range(CONNECTIONS):  # Then look at those that have sent something.
            try:
                sock, _address = self.listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue
            except OSError:  # No descriptor or no memory left: the oldest gives way, and the next pass tries again.
                self._drop_oldest()
                return
            sock.setblocking(False)
            while len(self._open) >= self._limit:
                self._drop_oldest()
            connection = self._open[sock.fileno()] = _Connection(sock, now + PATIENCE)
            self._selector.register(sock, selectors.EVENT_READ)
            self._read(connection, now)  # What connects to ask has mostly sent it.

    def _read(self, connection: _Connection, now: float) -> None:
        try:
            data = connection.sock.recv(HEAD)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
        elif not connection.answered:
            connection.data += data
            # What the blank line before a request line may be is none after it.
            head = connection.data.lstrip(b"\r\n")
            if _BLANK_LINE.search(head):
                self._reply(connection, *self._judged(head, connection.sock), now)
            elif len(connection.data) > HEAD:
                status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                self._reply(connection, Answer(status, "request too large\n"), False, now)

    def _judged(self, head: bytes, sock: socket.socket) -> tuple[Answer, bool]:
        """The answer, and whether its body is to be left out."""
        try:
            request = parse(head, sock)
            if isinstance(request, int):
                return Answer(request, HTTPStatus(request).phrase.lower() + "\n"), False
            return self.answer(request), request.method == "HEAD"
        except Exception as error:
            if not self._failed:
                self._failed = True
                self._say(
                    f"failed to answer a request, and goes on: {type(error).__name__}: {error}"
                )
            return Answer(HTTPStatus.SERVICE_UNAVAILABLE, "unknown\n"), False

    def _reply(self, connection: _Connection, answer: Answer, head_only: bool, now: float) -> None:
        connection.answered, connection.data = True, b""
        try:
            # One send: it fits the buffer of a connection on which nothing was sent before.
            connection.sock.send(encode(answer, head_only=head_only))
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(connection)
            return
        connection.ends = now + LINGER

    def _expire(self, now: float) -> None:
        for connection in [c for c in self._open.values() if c.ends <= now]:
            self._drop(connection)

    def _drop_oldest(self) -> None:
        if self._open:
            self._drop(next(iter(self._open.values())))
        else:
            time.sleep(0.05)  # Nothing of ours to give back: do not spin.

    def _drop(self, connection: _Connection) -> None:
        self._open.pop(connection.sock.fileno(), None)
        self._selector.unregister(connection.sock)
        connection.sock.close()


def encode(answer: Answer, *, head_only: bool = False) -> bytes:
    """An answer as HTTP/1.1 has it."""
    body = answer.body.encode()
    headers = (*answer.headers, ("Content-Length", str(len(body))), ("Connection", "close"))
    lines = [
        f"HTTP/1.1 {int(answer.status)} {HTTPStatus(answer.status).phrase}",
        f"Date: {formatdate(usegmt=True)}",
    ]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if head_only else body)


def say(line: str) -> None:
    """Tell the arbiter a line for its log. What it does not read in time is lost: nothing waits
    here."""
    with contextlib.suppress(OSError):
        os.write(2, line.replace("\n", " ").encode("utf-8", "backslashreplace") + b"\n")


def main() -> None:
    """The process. Its parent is the arbiter."""
    orders = json.load(sys.stdin)
    _leave_all_else()
    die_with_the_arbiter = _death_signal()
    _become(orders["uid"], orders["gid"])
    die_with_the_arbiter()
    arbiter: int = orders["arbiter"]

    def is_orphan() -> bool:
        return os.getppid() != arbiter

    token = orders["settings"].pop("trigger_token")
    settings = Settings(
        **orders["settings"], trigger_token=None if token is None else Secret(token)
    )
    probe = Probe(st.State.mapped(MEMORY, "the shared memory"), settings, orders["timeout"], say)
    server = Server(socket.socket(fileno=LISTENER), probe.answer, say, is_orphan)
    signal.signal(RETIRE, server.retire)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {RETIRE})
    if not is_orphan():
        server.run()


def _leave_all_else() -> None:
    """Close what came along: gunicorn's listeners are inheritable (``gunicorn/sock.py``, 22.0 to
    27.0), and held here they would go on taking connections after the arbiter has closed them."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            for fd in [int(name) for name in os.listdir(folder)]:
                if fd > MEMORY:
                    with contextlib.suppress(OSError):  # The listing's own.
                        os.close(fd)
            return
    os.closerange(MEMORY + 1, os.sysconf("SC_OPEN_MAX"))


def _become(uid: int, gid: int) -> None:
    """Give up what the arbiter may and a worker may not. Unlike a worker it keeps no other group
    either."""
    if (uid, gid) == (os.geteuid(), os.getegid()):
        return
    with contextlib.suppress(PermissionError):
        os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def _death_signal() -> Callable[[], object]:
    """What asks the kernel to end this process with its parent: to be called after the change of
    user, which would take it back (prctl(2)), and loaded before it, since the interpreter may be
    root's alone."""
    with contextlib.suppress(ImportError, OSError, AttributeError):
        if sys.platform == "linux":
            import ctypes

            return functools.partial(
                ctypes.CDLL(None).prctl, _PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0
            )
    return bool
