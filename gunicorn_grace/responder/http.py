"""HTTP for the probe responder: one thread, one loop, no blocking call.

Each connection gets one answer and is closed. Reading stops at the blank line after the headers,
and ``http.server`` parses the request. A client that sends slowly or nothing is dropped after
:data:`PATIENCE`. When there are more than :data:`CONNECTIONS` connections, the oldest is dropped at
once, so a new client that sends at once always gets its answer. Runs in the probe responder.
"""

from __future__ import annotations

import contextlib
import io
import re
import resource
import selectors
import socket
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

from ..probes.answers import Answer
from ..shared.text import printable

PATIENCE = 5.0
"""Seconds within which a request has to be complete. The kubelet gives up after 1 s by default."""

KEPT_FOR = 1.0
"""Seconds that a connection stays open after its answer, so that further bytes from the client do
not reset it."""

CONNECTIONS = 256
HEAD = 8192
"""The maximum size of a request line with its headers, in bytes. gunicorn accepts 4094 bytes for
the line alone, and a probe sends a tenth of that."""

LOOK_EVERY = 1.0
"""Seconds between two checks of whether the arbiter is gone."""

_BLANK_LINE = re.compile(rb"\n\r?\n")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # RFC 9110, section 5.6.2


class ProbeRequest(NamedTuple):
    """A parsed request.

    :ivar method: the HTTP method.
    :ivar path: the decoded path.
    :ivar query: the query string.
    :ivar environ: the headers and the socket, as WSGI names them.
    """

    method: str
    path: str
    query: str
    environ: Mapping[str, Any]


class _Head(BaseHTTPRequestHandler):
    """The standard library's request parser, without its server: no socket, no response."""

    def __init__(self, head: bytes) -> None:
        self.rfile = io.BytesIO(head)
        self.raw_requestline = self.rfile.readline()
        self.refusal: int | None = None

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        self.refusal = code

    def handle_expect_100(self) -> bool:
        return True  # The server reads no body.


def parse(head: bytes, sock: Any = None) -> ProbeRequest | int:
    """Parse a request line with its headers.

    :param head: the bytes up to the blank line.
    :param sock: the connection, for the request's ``environ``.
    :returns: the request, or the HTTP status with which it is refused.
    """
    parsed = _Head(head.lstrip(b"\r\n"))  # RFC 9112, section 2.2
    if not parsed.parse_request() or parsed.request_version == "HTTP/0.9":
        return parsed.refusal or HTTPStatus.BAD_REQUEST
    if parsed.headers.defects or not all(map(_TOKEN.fullmatch, parsed.headers.keys())):
        return HTTPStatus.BAD_REQUEST  # A defect could hide a forwarding header.
    environ: dict[str, Any] = {"gunicorn.socket": sock, "REQUEST_METHOD": parsed.command}
    for name, value in parsed.headers.items():
        key = "HTTP_" + name.upper().replace("-", "_")
        environ[key] = f"{environ[key]},{value}" if key in environ else value
    try:
        url = urlsplit(parsed.path)
    except ValueError:
        return HTTPStatus.BAD_REQUEST
    return ProbeRequest(parsed.command, unquote(url.path, "latin-1"), url.query, environ)


class _Connection:
    __slots__ = ("answered", "data", "ends", "sock")

    def __init__(self, sock: socket.socket, ends: float) -> None:
        self.sock = sock
        self.ends = ends
        self.data = b""
        self.answered = False


class Server:
    """The loop: it accepts, reads up to the blank line, answers once, and closes.

    :param listener: the listening socket.
    :param answer: returns the answer to a request.
    :param say: sends a line to the arbiter's log.
    :param is_orphan: returns whether the arbiter is gone. It is called once a second.
    :param ends_with: a descriptor that becomes readable when the arbiter is gone; ``None`` if there
        is no such descriptor.
    """

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[ProbeRequest], Answer],
        say: Callable[[str], None],
        is_orphan: Callable[[], bool] = lambda: False,
        ends_with: int | None = None,
    ) -> None:
        self.listener = listener
        self.answer = answer
        self._say = say
        self._is_orphan = is_orphan
        self._open: dict[int, _Connection] = {}
        """The open connections by descriptor, the oldest first."""
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
        self._ends_with = ends_with
        if ends_with is not None:
            self._selector.register(ends_with, selectors.EVENT_READ)

    def retire(self, *_: Any) -> None:
        """Answer the requests that have arrived, accept no more, and end. It is also a signal
        handler."""
        self._retiring = True
        with contextlib.suppress(OSError):
            self._waker.send(b"x")

    def run(self) -> None:
        """Serve until :meth:`retire` is called or the arbiter is gone."""
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
                elif key.fd == self._ends_with:
                    return
                elif key.fd in self._open:  # It may have been dropped for a newer one.
                    self._read(self._open[key.fd], now)
            self._expire(now)

    def close(self) -> None:
        """Close everything that the loop holds except the listener."""
        for connection in list(self._open.values()):
            self._drop(connection)
        self._selector.close()
        self._wake.close()
        self._waker.close()

    def _accept(self, now: float) -> None:
        for _ in range(CONNECTIONS):  # The limit lets the accepted connections be served too.
            try:
                sock, _address = self.listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:
                continue
            except OSError:
                # No descriptor or memory is left. Drop the oldest; the next pass tries again.
                self._drop_oldest()
                return
            sock.setblocking(False)
            while len(self._open) >= self._limit:
                self._drop_oldest()
            connection = self._open[sock.fileno()] = _Connection(sock, now + PATIENCE)
            self._selector.register(sock, selectors.EVENT_READ)
            self._read(connection, now)  # A probe has usually sent its request by now.

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
            # Blank lines before the request line do not end the headers.
            head = connection.data.lstrip(b"\r\n")
            if _BLANK_LINE.search(head):
                self._reply(connection, *self._judged(head, connection.sock), now)
            elif len(connection.data) > HEAD:
                status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                self._reply(connection, Answer(status, "request too large\n"), False, now)

    def _judged(self, head: bytes, sock: socket.socket) -> tuple[Answer, bool]:
        """Return the answer, and whether to leave out its body."""
        try:
            request = parse(head, sock)
            if isinstance(request, int):
                return Answer(request, HTTPStatus(request).phrase.lower() + "\n"), False
            return self.answer(request), request.method == "HEAD"
        except Exception as error:
            if not self._failed:
                self._failed = True
                self._say(
                    "failed to answer a request and goes on: "
                    f"{type(error).__name__}: {printable(error)}"
                )
            return Answer(HTTPStatus.SERVICE_UNAVAILABLE, "unknown\n"), False

    def _reply(self, connection: _Connection, answer: Answer, head_only: bool, now: float) -> None:
        connection.answered, connection.data = True, b""
        try:
            # One send() is enough: the answer fits into the empty buffer of a new connection.
            connection.sock.send(encode(answer, head_only=head_only))
            connection.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop(connection)
            return
        connection.ends = now + KEPT_FOR

    def _expire(self, now: float) -> None:
        for connection in [c for c in self._open.values() if c.ends <= now]:
            self._drop(connection)

    def _drop_oldest(self) -> None:
        if self._open:
            self._drop(next(iter(self._open.values())))
        else:
            time.sleep(0.05)  # There is no connection to drop: do not spin.

    def _drop(self, connection: _Connection) -> None:
        self._open.pop(connection.sock.fileno(), None)
        self._selector.unregister(connection.sock)
        connection.sock.close()


def encode(answer: Answer, *, head_only: bool = False) -> bytes:
    """Encode an answer as an HTTP/1.1 response."""
    body = answer.body.encode()
    headers = (*answer.headers, ("Content-Length", str(len(body))), ("Connection", "close"))
    lines = [
        f"HTTP/1.1 {int(answer.status)} {HTTPStatus(answer.status).phrase}",
        f"Date: {formatdate(usegmt=True)}",
    ]
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (b"" if head_only else body)
