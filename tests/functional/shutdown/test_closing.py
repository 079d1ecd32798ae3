"""How connections are closed: nobody loses a response because of a body that nobody read, and
nobody waits for a client that keeps its end open."""

from __future__ import annotations

import contextlib
import importlib.metadata
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gunicorn_grace.shared.phase import Phase
from gunicorn_grace.worker.lingering import PATIENCE
from support.servers import (
    HOLD,
    SHORT,
    Client,
    Connect,
    Serve,
    Server,
    all_answered,
    hold_a_request,
)
from support.uploads import STYLES, Upload, body


@contextlib.contextmanager
def connected(server: Server, certificate: Path | None = None) -> Iterator[socket.socket]:
    context = ssl.create_default_context(cafile=str(certificate)) if certificate else None
    client = Client(server.address, context=context)
    try:
        yield client.sock
    finally:
        client.close()


@pytest.mark.long(but="length-gthread")
@pytest.mark.parametrize("style", STYLES)
def test_a_body_that_is_not_read_loses_no_response(kind: str, style: str, serve: Serve) -> None:
    """In the delay, a client that is still sending when it is answered may finish: its connection
    is not reset."""
    server = serve(kind=kind, settings=HOLD, args=("--keep-alive", "75"))
    server.lead_to(Phase.LAME_DUCK)
    for _ in range(3):
        with connected(server) as sock:
            upload = Upload(sock, style)
            upload.begin()
            upload.end(pause=0.01)
    assert "Traceback" not in server.output


@pytest.mark.long(but="gthread")
def test_over_tls_and_unix_sockets(
    kind: str, serve: Serve, certificate: Path, tmp_path: Path
) -> None:
    """It is the same for TLS, where the kernel cannot tell how much of the body is left, and for a
    UNIX socket, as behind nginx."""
    tls = ("--certfile", str(certificate), "--keyfile", str(certificate))
    unix = ("--bind", f"unix:{tmp_path}/server")
    for args, ca in ((tls, certificate), (unix, None)):
        server = serve(kind=kind, settings=HOLD, args=("-w", "1", *args), ready=False)
        server.wait_booted(1)
        server.lead_to(Phase.LAME_DUCK)
        for style in STYLES:
            with connected(server, ca) as sock:
                upload = Upload(sock, style)
                upload.begin()
                upload.end()


def test_a_worker_waits_for_the_rest_of_a_body(kind: str, serve: Serve) -> None:
    """A client that is still sending when the workers are dismissed gets its response, and then
    the instance ends without delay."""
    settings = {**SHORT, "termination_period": 20}
    server = serve(kind=kind, settings=settings, args=("-w", "1"))
    with connected(server) as sock:
        server.terminate()
        server.wait_phase(Phase.LAME_DUCK)
        upload = Upload(sock)
        upload.begin()
        server.wait_dismissed()
        upload.end(pause=0.05)
        ended = time.monotonic()
    server.assert_gone()
    assert server.exit_time is not None
    assert server.exit_time - ended < 3, server.output


@pytest.mark.long(but="gevent")
def test_gunicorns_own_refusal_is_not_lost(kind: str, serve: Serve) -> None:
    """gunicorn answers 400 itself while the client is still sending: the client gets that
    answer."""
    server = serve(kind=kind, settings=HOLD)
    with connected(server) as sock:
        sock.sendall(b"POST / HTTP/1.1\r\nHost: test\r\nContent-Length: many\r\n\r\n")
        answer = sock.recv(65536)
        for piece in body("length"):
            sock.sendall(piece)
        while data := sock.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize("kind", ["gthread"])
@pytest.mark.ends
def test_a_body_that_is_not_read_before_a_shutdown(kind: str, serve: Serve) -> None:
    """gunicorn 26.0 to 27.0 read 64 kB of it and reset the connection, without a shutdown too. With
    the plugin they do not."""
    server = serve(kind=kind)
    with connected(server) as sock:
        upload = Upload(sock)
        upload.begin()
        upload.send(pause=0.01)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


LAZY = 6


def test_nobody_waits_for_lazy_clients(kind: str, serve: Serve, connect: Connect) -> None:
    """Clients that are told to close and keep their end open delay nobody. gunicorn 26.0 to 27.0
    would wait up to 2 s for each of them, in the only thread of a sync worker and in the main
    thread of gthread."""
    server = serve(kind=kind, settings=HOLD, args=("-w", "1", "--keep-alive", "75"))
    server.lead_to(Phase.LAME_DUCK)
    lazy = [connect(server) for _ in range(LAZY)]
    began = time.monotonic()
    for client in lazy:
        assert client.get("/").headers["connection"] == "close"
    assert server.get("/readyz").status == 503
    assert server.get("/").status == 200
    took = time.monotonic() - began
    for client in lazy:
        assert client.at_end(), "the server has shut its writing side all the same"
    assert took < PATIENCE, server.output


def test_lazy_clients_do_not_hold_the_exit(kind: str, serve: Serve, connect: Connect) -> None:
    """Nothing is expected from such a client any more, so a worker that leaves does not wait for
    it."""
    server = serve(kind=kind, settings={**SHORT, "termination_period": 20}, args=("-w", "1"))
    lazy = [connect(server) for _ in range(LAZY)]
    server.terminate()
    server.wait_phase(Phase.LAME_DUCK)
    for client in lazy:
        assert client.get("/").status == 200
    server.assert_gone()


CLOSES_ITSELF = importlib.metadata.version("gunicorn") >= "27"
"""Whether gunicorn's ASGI worker closes a connection itself."""


@pytest.mark.ends
def test_gunicorns_asgi_worker_before_a_shutdown(serve: Serve) -> None:
    """gunicorn 27.0 resets the connection of an ASGI application, too, that does not read a body.
    With the plugin it does not."""
    if not CLOSES_ITSELF:
        pytest.skip("there it reads on")
    server = serve("asgi_wrapped:app", args=("-k", "asgi"))
    with connected(server) as sock:
        upload = Upload(sock)
        upload.begin()
        upload.send(pause=0.01)
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65536):
            pass


@pytest.mark.ends
def test_a_server_of_the_applications_own_goes_on(serve: Serve, connect: Connect) -> None:
    """While a gevent worker that was dismissed finishes a request, it no longer accepts at
    gunicorn's listeners. A server that the application has started accepts as before."""
    pytest.importorskip("gevent")
    settings = {"shutdown_delay": 60, "termination_period": 90}
    server = serve("second_server:app", args=("-k", "gevent"), settings=settings)
    port = int(server.get("/second").body)
    busy = connect(server)
    release = hold_a_request(server, busy)
    server.lead_to(Phase.DRAINING)
    server.wait_line("gunicorn-grace: shut ")
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
            assert sock.recv(7) == b"second\n"
    release()
    all_answered(busy)
    assert server.wait(20) == 0, server.output
