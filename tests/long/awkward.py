"""Awkward clients beside the soak's load: some send bodies that nobody reads, some keep their end
of a connection open when they are told to close it, and crowds keep every worker busy."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections import Counter
from typing import Any

from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable, NoEndpoint

RATE = 4.0
"""Awkward clients a second in a lane."""

LONGEST_BODY = 600_000
PIECE = 30_000
LAZY_FOR = 6.0
"""Seconds for which a lazy client keeps its end open at the most."""

TIMEOUT = 20.0

UNREAD, LAZY, CROWD = "unread bodies", "lazy clients", "in a crowd"


class AwkwardClients:
    """They come one after the other, in threads of their own, until :meth:`stop`.

    :ivar counts: how many there were, by kind.
    :ivar losses: a line for each that got no complete response.

    :param table: the routing.
    :param name: the lane, for the lines.
    :param chance: what is drawn.
    """

    def __init__(self, table: EndpointTable, name: str, chance: random.Random) -> None:
        self.counts: Counter[str] = Counter()
        self.losses: list[str] = []
        self._table = table
        self._name = name
        self._chance = chance
        self._over = threading.Event()
        self._clients: list[threading.Thread] = []
        self._thread = threading.Thread(target=self._run, name=f"awkward {name}", daemon=True)

    def __enter__(self) -> AwkwardClients:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Let no further ones come, and wait for those that are there."""
        self._over.set()
        self._thread.join()
        for client in self._clients:
            client.join(TIMEOUT)

    def _run(self) -> None:
        while not self._over.wait(self._chance.expovariate(RATE)):
            kind = self._chance.choice((UNREAD, LAZY))
            drawn = random.Random(self._chance.getrandbits(32))
            self._send(kind, drawn)

    def crowd(self, address: Any, count: int) -> None:
        """Let so many slow requests come to one instance at once.

        :param address: the instance.
        :param count: at least as many as it can serve at the same time.
        """
        for _ in range(count):
            self._send(CROWD, random.Random(count), address)

    def _send(self, kind: str, drawn: random.Random, address: Any = None) -> None:
        client = threading.Thread(target=self._come, args=(kind, drawn, address), daemon=True)
        client.start()
        self._clients.append(client)

    def _come(self, kind: str, drawn: random.Random, address: Any) -> None:
        try:
            address = address or self._table.pick(drawn)
        except NoEndpoint:
            return
        self.counts[kind] += 1
        began, picked = time.monotonic(), f"{address}"
        try:
            with socket.socket(
                socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
            ) as sock:
                sock.settimeout(TIMEOUT)
                sock.connect(address)
                {UNREAD: self._upload, LAZY: self._be_lazy, CROWD: self._take_time}[kind](
                    sock, drawn
                )
        except (OSError, ValueError) as error:
            took = time.monotonic() - began
            self.losses.append(f"lost: {self._name} {kind} {picked} {error!r} after {took:.3f} s")

    def _upload(self, sock: socket.socket, drawn: random.Random) -> None:
        left = drawn.randint(1, LONGEST_BODY)
        sock.sendall(f"POST / HTTP/1.1\r\nHost: soak\r\nContent-Length: {left}\r\n\r\n".encode())
        pause = drawn.uniform(0, 0.03)
        while left:
            piece = min(left, PIECE)
            sock.sendall(b"x" * piece)
            left -= piece
            time.sleep(pause)
        _read_response(sock)

    def _be_lazy(self, sock: socket.socket, drawn: random.Random) -> None:
        sock.sendall(b"GET / HTTP/1.1\r\nHost: soak\r\n\r\n")
        _read_response(sock)
        self._over.wait(drawn.uniform(0, LAZY_FOR))

    def _take_time(self, sock: socket.socket, drawn: random.Random) -> None:
        sock.sendall(b"GET /slow?s=2 HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n\r\n")
        _read_response(sock, b"slept 2 s\n")


def _read_response(sock: socket.socket, body: bytes = b"hello\n") -> None:
    """Read a complete response.

    :raises ValueError: it is another one.
    """
    received = b""
    while not received.endswith(b"\r\n\r\n" + body):
        data = sock.recv(65536)
        if not data:
            raise ValueError(f"an incomplete response: {received!r}")
        received += data
    if not received.startswith(b"HTTP/1.1 200 "):
        raise ValueError(f"another response: {received!r}")
