"""Addresses, sockets and one HTTP exchange, for every module that talks to an instance."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import h11

#: ``(host, port)``, or the path of a UNIX socket.
Address: TypeAlias = tuple[str, int] | str

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}


class IncompleteResponse(ConnectionError):
    """The peer ended the connection before its response was complete."""


@dataclass(frozen=True, slots=True)
class Response:
    """A complete HTTP response. Header names are in lower case. If several headers have the same
    name, only the last one is kept."""

    status: int
    headers: dict[str, str]
    body: bytes


def parse_address(text: str) -> Address:
    """Read an address as gunicorn writes it: ``http://127.0.0.1:80``, ``http://[::1]:80`` or
    ``unix:/run/app``.

    A wildcard address becomes the loopback address of its family, so that a client can connect.

    :raises ValueError: the text has no port.
    """
    text = text.strip()
    if text.startswith("unix:"):
        return text.removeprefix("unix:").removeprefix("//")
    host, _, port = text.rpartition("://")[2].rpartition(":")
    host = host.strip("[]")
    return (_ANY.get(host, host), int(port))


def show_address(address: Address) -> str:
    """Return the address as text, as in a URL or a log line."""
    if isinstance(address, str):
        return f"unix:{address}"
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def family_of(address: Address) -> socket.AddressFamily:
    """Return the socket family for ``address``."""
    if isinstance(address, str):
        return socket.AF_UNIX
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


def fetch(
    address: Address,
    path: str = "/",
    *,
    method: str = "GET",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    timeout: float = 10.0,
) -> Response:
    """Send one request on a new connection, read the response, and close the connection.

    :param address: the address to connect to.
    :param path: request target.
    :param method: request method.
    :param headers: headers that are sent in addition to ``Host`` and ``Connection: close``. A
        ``Host`` among them replaces the default.
    :param body: the body. If it is not empty, its length is sent too.
    :param timeout: time limit for the whole exchange, including connecting, in seconds.

    :raises IncompleteResponse: the peer closed first, or did not send HTTP.
    :raises OSError: connecting, sending or receiving failed, or the time was over
        (``TimeoutError``).
    """
    deadline = time.monotonic() + timeout
    http = h11.Connection(h11.CLIENT)
    with socket.socket(family_of(address), socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout)
        sock.connect(address)
        length = len(body) if body else None
        head = head_bytes(
            http, address, path, method=method, headers=headers, close=True, length=length
        )
        sent = (http.send(h11.Data(data=body)) or b"") if body else b""
        sock.sendall(head + sent + (http.send(h11.EndOfMessage()) or b""))
        status, received, content = 0, {}, bytearray()
        try:
            while True:
                event = http.next_event()
                if event is h11.NEED_DATA:
                    remaining = deadline - time.monotonic()
                    if remaining <= 0:
                        raise TimeoutError(f"no complete response in {timeout:g} s")
                    sock.settimeout(remaining)
                    http.receive_data(sock.recv(65536))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                    received = {
                        name.decode("latin-1"): value.decode("latin-1")
                        for name, value in event.headers
                    }
                elif isinstance(event, h11.Data):
                    content += event.data
                elif isinstance(event, h11.EndOfMessage):
                    return Response(status, received, bytes(content))
        except h11.RemoteProtocolError as error:
            raise IncompleteResponse(str(error)) from error


def request_bytes(
    http: h11.Connection,
    address: Address,
    path: str,
    *,
    method: str = "GET",
    headers: Iterable[tuple[str, str]] = (),
    close: bool,
) -> bytes:
    """Return the bytes of a request without a body. ``http`` then waits for the response. The
    parameters are those of :func:`head_bytes`."""
    head = head_bytes(http, address, path, method=method, headers=headers, close=close)
    return head + (http.send(h11.EndOfMessage()) or b"")


def head_bytes(
    http: h11.Connection,
    address: Address,
    path: str,
    *,
    method: str = "GET",
    headers: Iterable[tuple[str, str]] = (),
    close: bool,
    length: int | None = None,
) -> bytes:
    """Return the bytes of a request's head. ``http`` then expects the body to be sent.

    :param http: the client's side of the connection.
    :param address: the value of the ``Host`` header, unless ``headers`` has one.
    :param path: request target.
    :param method: request method.
    :param headers: the other headers.
    :param close: whether to send ``Connection: close``.
    :param length: the length of the body in bytes; None for no ``Content-Length``.
    """
    fields = list(headers)
    if not any(name.lower() == "host" for name, _ in fields):
        fields.insert(
            0, ("Host", "localhost" if isinstance(address, str) else show_address(address))
        )
    if length is not None:
        fields.append(("Content-Length", str(length)))
    if close:
        fields.append(("Connection", "close"))
    return http.send(h11.Request(method=method, target=path, headers=fields)) or b""
