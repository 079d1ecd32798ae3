"""HTTP/2, over TLS and in cleartext: what is in flight completes, and connections move elsewhere
during LAME_DUCK.

gunicorn 27.0. Its HTTP/2 of 25 and 26 has no way to end a connection after the streams that are
open.
"""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gunicorn_grace.shared.phase import Phase
from support.servers import HOLD, SHORT, Connect, Serve, Server

h2_connection = pytest.importorskip("h2.connection")
from h2.config import H2Configuration  # noqa: E402
from h2.events import (  # noqa: E402
    ConnectionTerminated,
    DataReceived,
    Event,
    PingAckReceived,
    ResponseReceived,
    StreamEnded,
)

pytestmark = pytest.mark.long

if (
    importlib.util.find_spec("gunicorn.http2") is None
    or importlib.util.find_spec("gunicorn.http2.h2conn") is None
):
    pytest.skip("this gunicorn has no HTTP/2 that can end gracefully", allow_module_level=True)


KINDS = {
    "gthread": ("service:app", ("-k", "gthread", "--threads", "4")),
    "gevent": ("service:app", ("-k", "gevent")),
    "asgi": ("asgi_wrapped:app", ("-k", "asgi")),
}
CLEARTEXT = ("--http-protocols", "h2,h1", "--http2-cleartext", "both", "--keep-alive", "30")
UPGRADE = (
    b"GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: %s\r\n\r\n"
)


class Client:
    """One HTTP/2 connection, blocking."""

    def __init__(self, server: Server, *, tls: bool = False, upgrade: str | None = None) -> None:
        self.sock: socket.socket = socket.create_connection(server.address, timeout=20)
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            context.set_alpn_protocols(["h2", "http/1.1"])
            sock = context.wrap_socket(self.sock, server_hostname="localhost")
            assert sock.selected_alpn_protocol() == "h2"
            self.sock = sock
        self.http = h2_connection.H2Connection(
            H2Configuration(client_side=True, header_encoding="utf-8")
        )
        self.answers: dict[int, dict[str, Any]] = {}
        self.goaway: int | None = None
        """The last stream that the server has taken up, once it said so."""
        self.closed = self.settled = False
        early = b""
        if upgrade is None:
            self.http.initiate_connection()
        else:
            settings = self.http.initiate_upgrade_connection()
            self.answers[1] = {"status": 0, "body": b"", "ended": False}
            self.sock.sendall(UPGRADE % (upgrade.encode(), settings))
            while b"\r\n\r\n" not in early:
                early += self.sock.recv(65536)
            head, _, early = early.partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 101 "), head
        self._flush()
        if early:
            self._feed(early)

    def _flush(self) -> None:
        self.sock.sendall(self.http.data_to_send())

    def send(self, path: str) -> int:
        """Begin a request; the number of its stream."""
        stream = int(self.http.get_next_available_stream_id())
        self.answers[stream] = {"status": 0, "body": b"", "ended": False}
        headers = [
            (":method", "GET"),
            (":path", path),
            (":scheme", "http"),
            (":authority", "localhost"),
        ]
        self.http.send_headers(stream, headers, end_stream=True)
        self._flush()
        return stream

    def wait(self, done: Callable[[], Any]) -> None:
        """Read until this is so."""
        while not done():
            data = self.sock.recv(65536)
            if not data:
                self.closed = True
                assert done(), f"closed after {self.answers}, GOAWAY {self.goaway}"
                return
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        for event in self.http.receive_data(data):
            self._take(event)
        with contextlib.suppress(OSError):  # The acknowledgement of what came with a GOAWAY.
            self._flush()

    def _take(self, event: Event) -> None:
        if isinstance(event, ResponseReceived):
            self.answers[event.stream_id]["status"] = int(dict(event.headers)[":status"])
        elif isinstance(event, DataReceived):
            self.answers[event.stream_id]["body"] += event.data
            self.http.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            self.answers[event.stream_id]["ended"] = True
        elif isinstance(event, PingAckReceived):
            self.settled = True
        elif isinstance(event, ConnectionTerminated):
            assert event.error_code == 0
            self.goaway = event.last_stream_id

    def receive(self, stream: int) -> tuple[int, bytes]:
        """The complete response on this stream."""
        self.wait(lambda: self.answers[stream]["ended"])
        return self.answers[stream]["status"], self.answers[stream]["body"]

    def settle(self) -> None:
        """Wait until the server is done with what it has answered, and reads again: it acknowledges
        a PING."""
        self.settled = False
        self.http.ping(b"settled?")
        self._flush()
        self.wait(lambda: self.settled)

    def get(self, path: str) -> tuple[int, bytes]:
        """Send, and receive."""
        return self.receive(self.send(path))

    def wait_closed(self) -> None:
        """Read until the server has closed."""
        self.wait(lambda: self.closed)

    def close(self) -> None:
        self.sock.close()


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    """Open HTTP/2 connections; they are closed with the test."""
    with contextlib.ExitStack() as stack:

        def start(server: Server, **options: Any) -> Client:
            client = Client(server, **options)
            stack.callback(client.close)
            return client

        yield start


@pytest.fixture(params=sorted(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    """Each worker class that speaks HTTP/2."""
    return str(request.param)


def start(serve: Serve, kind: str, *args: str, **settings: Any) -> Server:
    app, own = KINDS[kind]
    return serve(app, args=(*own, *(args or CLEARTEXT)), settings=settings or SHORT)


def in_flight(server: Server) -> int:
    return sum(record.in_flight for record in server.memory.records())


def sigterm(server: Server) -> None:
    """Send SIGTERM, and wait until its handler has run."""
    server.signal(signal.SIGTERM)
    server.wait_for(lambda: server.memory.header.sigterm, "the store in the signal handler")


def complete_both(server: Server, client: Client, *streams: int) -> None:
    """SIGTERM, then the responses on these streams, a GOAWAY that names the last, and the end of
    all."""
    server.signal(signal.SIGTERM)
    for stream in streams:
        assert client.receive(stream) == (200, b"slept 1 s\n")
    client.wait_closed()
    assert client.goaway is not None
    client.close()
    assert server.wait(20) == 0, server.output
    assert "0 cut off" in server.summary()


def test_streams_in_flight_complete(kind: str, serve: Serve, connect: Connect) -> None:
    """Two streams of one cleartext connection, one of them not yet begun where streams are served
    one by one, are counted, and answered in full; then comes a GOAWAY, and the instance is gone."""
    server = start(serve, kind)
    client = connect(server)
    streams = client.send("/slow?s=1"), client.send("/slow?s=1")
    server.wait_line("slow request begins")
    server.wait_for(lambda: in_flight(server) >= 1, "the count")
    complete_both(server, client, *streams)


def test_streams_in_flight_complete_over_tls(
    kind: str, serve: Serve, connect: Connect, certificate: Path
) -> None:
    """The same over TLS, with HTTP/2 agreed on by ALPN."""
    tls = (
        "--certfile",
        str(certificate),
        "--keyfile",
        str(certificate),
        "--http-protocols",
        "h2,h1",
    )
    app, own = KINDS[kind]
    server = serve(app, args=(*own, *tls, "--keep-alive", "30"), settings=SHORT, ready=False)
    client = connect(server, tls=True)
    streams = client.send("/slow?s=1"), client.send("/slow?s=1")
    server.wait_line("slow request begins")
    complete_both(server, client, *streams)


def test_an_upgraded_request_in_flight_completes(kind: str, serve: Serve, connect: Connect) -> None:
    """The request that asked for ``Upgrade: h2c`` is stream 1, and is completed as any other."""
    server = start(serve, kind)
    client = connect(server, upgrade="/slow?s=1")
    server.wait_line("slow request begins")
    complete_both(server, client, 1)


def test_a_connection_moves_elsewhere_after_its_next_response(
    kind: str, serve: Serve, connect: Connect
) -> None:
    """During LAME_DUCK an idle connection still works; after the last stream that is open then it
    gets a GOAWAY, and is closed. A new connection gets one response as well, and readiness is red
    on it."""
    server = start(serve, kind, **HOLD)
    client = connect(server)
    assert client.get("/readyz")[0] == 200
    assert client.get("/") == (200, b"hello\n")
    client.settle()  # Or the shutdown might begin before the end of that stream: it would be the last.
    assert client.goaway is None
    sigterm(server)
    server.wait_phase(Phase.LAME_DUCK)
    long, short = client.send("/slow?s=1"), client.send("/")
    assert client.receive(short) == (200, b"hello\n")
    assert client.receive(long) == (200, b"slept 1 s\n")
    client.wait_closed()
    assert client.goaway in (0, short), "none, or the last that was served"
    new = connect(server)
    assert new.get("/readyz")[0] == 503
    new.wait_closed()
    assert new.goaway is not None


def test_a_stream_of_before_t0_gets_its_connection_a_goaway(
    kind: str, serve: Serve, connect: Connect
) -> None:
    """A connection whose stream was in flight at T0 is closed after it, in LAME_DUCK already."""
    server = start(serve, kind, **HOLD)
    client = connect(server)
    stream = client.send("/slow?s=1")
    server.wait_line("slow request begins")
    sigterm(server)
    assert client.receive(stream) == (200, b"slept 1 s\n")
    client.wait_closed()
    assert client.goaway is not None


def test_idle_connections_do_not_hold_the_exit(kind: str, serve: Serve, connect: Connect) -> None:
    """With graceful_timeout 30, a connection that stays idle through the delay gets its GOAWAY in
    the drain."""
    server = start(
        serve, kind, *CLEARTEXT, "--graceful-timeout", "30", **SHORT, termination_period=60
    )
    client = connect(server)
    assert client.get("/")[0] == 200
    server.signal(signal.SIGTERM)
    client.wait_closed()
    assert client.goaway is not None
    client.close()
    assert server.wait(20) == 0, server.output
    server.wait_line("drained in")
