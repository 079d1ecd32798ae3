"""Reads the requests that a load sends: one line of text for each.

    # the user's own routes
    /                                        9
    GET  /items?page=2                       3
    POST /orders '{"item": 42}'
    PUT  /files/report @report.pdf upload=2
    GET  /export read=5 "Accept: text/csv"

A line is ``[METHOD] path [body] [weight]``. Words are split as in a shell, so quotes keep spaces
together. The word behind the path is the body; ``@file`` is the content of a file. A number as the
last word is the weight: how often this request is sent in relation to the others. Options may stand
anywhere behind the path: ``upload=SECONDS`` sends the body in pieces over that time,
``read=SECONDS`` reads the response as slowly, and ``"Name: value"`` is a header. Lines that are
empty or begin with ``#`` are skipped.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import h11

from .wire import head_bytes

#: The number of pieces of a slow body or a slow response.
PIECES = 10

_METHOD = re.compile(r"[A-Z]+\Z")
_HEADER = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+): ?(.*)\Z", re.S)
_OPTION = re.compile(r"(upload|read)=(.*)\Z", re.S)
_MOST = 10_000


@dataclass(frozen=True)
class PlannedRequest:
    """One kind of request.

    :ivar path: request target.
    :ivar method: its method.
    :ivar body: its body. An empty body is sent only if the method expects a body.
    :ivar headers: its headers besides ``Host``, ``Content-Length`` and ``Connection``.
    :ivar weight: how often it is sent in relation to the others.
    :ivar upload: seconds over which the body is sent in ``PIECES`` pieces; 0 to send it at once.
    :ivar read: seconds over which the client reads the response; 0 to read it at once.
    :ivar slow: whether it counts as a slow request.
    """

    path: str
    method: str = "GET"
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()
    weight: int = 1
    upload: float = 0.0
    read: float = 0.0
    slow: bool = False

    def check(self, host: str | None = None) -> None:
        """Check that the request can be sent.

        :param host: the ``Host`` header; None for the endpoint's address.
        :raises ValueError: it cannot be sent, or a number is out of its range.
        """
        if not 1 <= self.weight <= _MOST:
            raise ValueError(f"weight {self.weight} of {self.path} is not between 1 and {_MOST}")
        for name, seconds in (("upload", self.upload), ("read", self.read)):
            if not 0 <= seconds < float("inf"):
                raise ValueError(f"{name} {seconds:g} of {self.path} is not 0 s or more")
        if self.upload and not self.body:
            raise ValueError(
                f"upload {self.upload:g} of {self.path} has no body to send slowly: add one"
            )
        try:
            self.head(h11.Connection(h11.CLIENT), "", close=True, host=host)
        except h11.LocalProtocolError as error:
            raise ValueError(
                f"path {self.path!r} or host {host!r} cannot be sent: {error}"
            ) from error

    def head(
        self, http: h11.Connection, address: tuple[str, int] | str, *, close: bool, host: str | None
    ) -> bytes:
        """Return the bytes of the request's head. ``http`` then expects the body to be sent.

        :param http: the client's side of the connection.
        :param address: the address of the instance.
        :param close: whether to send ``Connection: close``.
        :param host: the ``Host`` header; None for the address.
        """
        headers = [("Host", host), *self.headers] if host else self.headers
        return head_bytes(
            http,
            address,
            self.path,
            method=self.method,
            headers=headers,
            close=close,
            length=self._length,
        )

    @property
    def _length(self) -> int | None:
        # RFC 9110, 8.6: if the method expects a body, the length of an empty one is sent too.
        return len(self.body) if self.body or self.method in ("POST", "PUT", "PATCH") else None

    def pieces(self) -> Iterator[bytes]:
        """Yield the body, as a whole or in pieces."""
        size = -(-len(self.body) // PIECES) if self.upload else len(self.body)
        for begin in range(0, len(self.body), max(1, size)):
            yield self.body[begin : begin + size]


def parse_line(line: str, read: Callable[[str], bytes]) -> PlannedRequest:
    """Read one line; the module's docstring has the format.

    :param line: the text.
    :param read: returns the content of a file that ``@file`` names.

    :raises ValueError: the line is wrong. The message says why.
    """
    words = shlex.split(line)
    method = words.pop(0) if len(words) > 1 and _METHOD.match(words[0]) else "GET"
    if not words or not words[0].startswith("/"):
        raise ValueError(
            f"{words[0] if words else line.strip()!r} is not a path: [METHOD] /path [body] [weight]"
        )
    request = PlannedRequest(words.pop(0), method)
    body: bytes | None = None
    headers: list[tuple[str, str]] = []
    others: list[str] = []
    for word in words:
        if option := _OPTION.match(word):
            try:
                seconds = float(option[2])
            except ValueError:
                raise ValueError(f"{word!r}: {option[2]!r} is not a number of seconds") from None
            request = (
                replace(request, upload=seconds)
                if option[1] == "upload"
                else replace(request, read=seconds)
            )
        elif header := _HEADER.match(word):
            headers.append((header[1], header[2]))
        else:
            others.append(word)
    if others and others[-1].isascii() and others[-1].isdecimal():
        request = replace(request, weight=int(others.pop()))
    if len(others) > 1:
        raise ValueError(f"{others[1]!r} is a second body: quote one that has spaces in it")
    for word in others:
        if word.startswith("@"):
            try:
                body = read(word[1:])
            except OSError as error:
                raise ValueError(f"{word}: {error.strerror or error}") from error
        else:
            body = word.encode()
    if body and not any(name.lower() == "content-type" for name, _ in headers):
        headers.append(("Content-Type", _kind_of(body)))
    request = replace(request, body=body or b"", headers=tuple(headers))
    request.check()
    return request


def _kind_of(body: bytes) -> str:
    if body[:1] in (b"{", b"["):
        return "application/json"
    # curl does the same with --data, which is right for forms.
    return "application/x-www-form-urlencoded"


def parse_lines(text: str, name: str, read: Callable[[str], bytes]) -> list[PlannedRequest]:
    """Read all requests of a file.

    :param text: its content.
    :param name: its name, for messages.
    :param read: returns the content of a file that ``@file`` names.

    :raises ValueError: a line is wrong, or there is no request. The message has the number of the
        wrong line.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                found.append(parse_line(line, read))
            except ValueError as error:
                raise ValueError(f"{name}:{number}: {error}") from error
    if not found:
        raise ValueError(
            f"{name}: it contains no request: write one per line, [METHOD] /path [body] [weight]"
        )
    return found


def in_turn(requests: Sequence[PlannedRequest]) -> list[PlannedRequest]:
    """Return a round in which each request comes as often as its weight, spread evenly.

    The next request is always the one that is most overdue. nginx calls this smooth weighted round
    robin. Requests of the same weight come in turn, and rare ones do not come in a row.

    :raises ValueError: the sum of the weights is too large.
    """
    total = sum(request.weight for request in requests)
    if total > _MOST:
        raise ValueError(f"the weights come to {total}, more than {_MOST}: use smaller ones")
    credit = [0] * len(requests)
    order = []
    for _ in range(total):
        credit = [have + request.weight for have, request in zip(credit, requests, strict=True)]
        best = credit.index(max(credit))
        credit[best] -= total
        order.append(requests[best])
    return order
