"""Requests with a body that the application does not read."""

from __future__ import annotations

import contextlib
import socket
import ssl
import time

SIZE = 600_000
"""More than gunicorn 26 and 27 read on their own (64 kB), and more than fits into the buffers of
one read."""

PIECES = 20

STYLES = {
    "length": f"Content-Length: {SIZE}",
    "chunked": "Transfer-Encoding: chunked",
    "expect": f"Content-Length: {SIZE}\r\nExpect: 100-continue",
}


def body(style: str) -> list[bytes]:
    """The body, in pieces."""
    piece = b"x" * (SIZE // PIECES)
    if style != "chunked":
        return [piece] * PIECES
    return [*[f"{len(piece):x}\r\n".encode() + piece + b"\r\n"] * PIECES, b"0\r\n\r\n"]


class Upload:
    """A request with a body that the application does not read; it is sent bit by bit."""

    def __init__(self, sock: socket.socket, style: str = "length") -> None:
        self.sock = sock
        self.pieces = body(style)
        self.sock.sendall(f"POST / HTTP/1.1\r\nHost: test\r\n{STYLES[style]}\r\n\r\n".encode())
        self.received = b""

    def begin(self) -> None:
        """Send a part of the body, and wait until the response is there."""
        self.sock.sendall(self.pieces.pop(0))
        self.wait_for_the_response()

    def wait_for_the_response(self) -> None:
        while b"hello\n" not in self.received:
            data = self.sock.recv(65536)
            assert data, "the end came before the response"
            self.received += data

    def send(self, pause: float = 0.0) -> None:
        """Send the rest, without a look at the response."""
        for piece in self.pieces:
            self.sock.sendall(piece)
            time.sleep(pause)

    def end(self, pause: float = 0.0) -> None:
        """Send the rest, as a client does that looks at the response only then."""
        self.send(pause)
        with contextlib.suppress(ssl.SSLEOFError):  # Only the response of HTTP/1.0 needs an end.
            while data := self.sock.recv(65536):
                self.received += data
        head, _, content = self.received.rpartition(b"\r\n\r\n")
        assert b"HTTP/1.1 200 OK" in head
        assert b"connection: close" in head.lower()
        assert content == b"hello\n"
