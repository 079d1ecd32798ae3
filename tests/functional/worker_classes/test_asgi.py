"""ASGI applications, unchanged, under each worker class that serves them.

docs/reference/worker-classes.md is the table of what is proved here.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gunicorn.config
import pytest

from gunicorn_grace.shared.cells import Cell, Record
from gunicorn_grace.shared.phase import Phase
from support.servers import HOLD, LONG_DRAIN, QUICK, SHORT, Connect, Serve, Server, needs_curl

UVICORN = "uvicorn_worker.UvicornWorker"
NEEDS = {
    "asgi": "gunicorn.workers.gasgi",
    UVICORN: "uvicorn_worker",
    "uvicorn_worker.UvicornH11Worker": "uvicorn_worker",
    "uvicorn.workers.UvicornWorker": "uvicorn.workers",
}
WITHHELD = b"[-]shutdown failed: reason withheld\n"


def is_there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # The package around it.
        return False


def skip_unless_there(*modules: str) -> None:
    for module in modules:
        if not is_there(module):
            pytest.skip(f"no {module} here")


@pytest.fixture(params=["asgi", UVICORN])
def asgi(request: pytest.FixtureRequest) -> str:
    """gunicorn's own worker, and uvicorn's."""
    skip_unless_there(NEEDS[request.param])
    return str(request.param)


def start(serve: Serve, worker_class: str, app: str, *args: str, **options: Any) -> Server:
    options.setdefault("settings", HOLD)
    return serve(app, args=("-k", worker_class, *args), **options)


def total(server: Server, cell: Cell) -> int:
    return server.memory.total(cell)


@pytest.mark.long(but="asgi")
@pytest.mark.parametrize("worker_class", NEEDS)
def test_fastapi_needs_no_line_of_code(worker_class: str, serve: Serve, connect: Connect) -> None:
    """Probes are answered, readiness flips, responses say close, and requests are counted, under
    every worker class and without a warning that it is not so."""
    skip_unless_there("fastapi", NEEDS[worker_class])
    # uvicorn.workers warns that it is deprecated.
    server = start(serve, worker_class, "asgi_frameworks:fast", env={"PYTHONWARNINGS": "ignore"})
    client = connect(server)
    for path in ("/readyz", "/livez", "/startupz", "/healthz", "/readyz/shutdown"):
        assert client.get(path).body == b"ok\n", path
    assert client.get("/readyz/none").status == 404
    assert client.get("/").body == b'"hello"'
    assert total(server, Record.requests) == 1
    server.lead_to(Phase.LAME_DUCK)
    answer = server.get("/readyz")
    assert (answer.status, answer.body) == (503, WITHHELD)
    assert server.get("/livez").status == 200
    last = client.get("/")
    assert (last.body, last.headers["connection"]) == (b'"hello"', "close")
    client.close()
    server.wait_for(lambda: total(server, Record.in_flight) == 0, "the end of the request")
    server.end_delay()
    assert server.wait(20) == 0, server.output
    assert "1 requests since T0" in server.summary()
    assert [line for line in server.output.splitlines() if "[WARNING] gunicorn-grace" in line] == []


@pytest.mark.long(but="asgi")
def test_an_existing_readiness_keeps_its_meaning_and_gains_the_flip(
    asgi: str, serve: Serve, tmp_path: Path
) -> None:
    """Status, body and headers are the application's own while it serves, 503 too; from T0 on
    readiness is 503 by us. What it lacks is ours."""
    skip_unless_there("starlette")
    not_ready = tmp_path / "not-ready"
    server = start(serve, asgi, "asgi_frameworks:own", env={"NOT_READY": str(not_ready)})
    ready = server.get("/readyz")
    assert (ready.status, ready.body, ready.headers["x-mine"]) == (200, b"theirs", "1")
    assert server.get("/startupz").body == b"ok\n"
    not_ready.touch()
    for method in ("POST", "DELETE", "OPTIONS", "HEAD"):
        server.get("/readyz", method=method)
        refused = server.get("/readyz")
        assert (refused.status, refused.body) == (503, b"theirs"), method
    not_ready.unlink()
    server.lead_to(Phase.LAME_DUCK)
    assert (server.get("/readyz").status, server.get("/readyz").body) == (503, WITHHELD)
    assert server.get("/livez").body == b"ok\n"
    # One that is mounted has the same path only below its own prefix.
    assert server.get("/sub/readyz").body == b"/sub /sub/readyz"


@pytest.mark.long(but="asgi")
def test_an_application_that_trusts_its_own_host_is_probed_by_any_other(
    asgi: str, serve: Serve
) -> None:
    """It refuses with 400, and the plugin answers."""
    skip_unless_there("starlette")
    server = start(serve, asgi, "asgi_frameworks:strict")
    for _ in range(2):
        assert server.get("/readyz").body == b"ok\n"
        assert server.get("/", headers=(("Host", "10.1.2.3"),)).status == 400
    server.lead_to(Phase.LAME_DUCK)
    assert server.get("/readyz").body == WITHHELD


@pytest.mark.long
def test_an_author_who_wraps_it_too_changes_nothing(
    asgi: str, serve: Serve, connect: Connect
) -> None:
    """Each request is counted once, and the probes are the plugin's."""
    server = start(serve, asgi, "asgi_wrapped:app")
    client = connect(server)
    assert client.get("/readyz").body == b"ok\n"
    assert client.get("/").body == b"hello\n"
    assert total(server, Record.requests) == 1
    client.send("/slow?s=1")
    server.wait_in_flight(1)
    assert client.receive().status == 200
    server.lead_to(Phase.LAME_DUCK)
    assert (server.get("/readyz").status, server.get("/livez").status) == (503, 200)
    assert client.get("/").headers["connection"] == "close"
    assert total(server, Record.since_t0) == 1


@pytest.mark.long
def test_a_background_task_is_in_flight_until_it_ends(
    asgi: str, serve: Serve, connect: Connect
) -> None:
    """The response has long been read, and on the same connection the next one is served
    meanwhile, as without the plugin."""
    skip_unless_there("starlette")
    server = start(serve, asgi, "asgi_frameworks:background", "--keep-alive", "30")
    client = connect(server)
    assert client.get("/?s=2").body == b"answered"
    server.wait_line("background begins")
    assert total(server, Record.in_flight) == 1
    if asgi == UVICORN or has_finishing_calls():
        assert client.get("/").status == 200
        assert "background ends" not in server.output
    server.wait_line("background ends")
    server.wait_in_flight(0)


def has_finishing_calls() -> bool:
    """gunicorn's own worker serves the next request meanwhile (27.0)."""
    from gunicorn.asgi import protocol

    return hasattr(protocol.ASGIProtocol, "_finish_app_calls")


@pytest.mark.long
def test_without_the_overlay_the_application_answers_its_probes_and_the_rest_stays(
    asgi: str, serve: Serve, connect: Connect
) -> None:
    """With grace_overlay off nothing answers a probe that the application lacks. Requests are
    counted, and say close."""
    server = start(
        serve, asgi, "asgi_service:bare", settings={**HOLD, "overlay": "false"}, ready=False
    )
    client = connect(server)
    assert client.get("/readyz").body == b"no such route\n"
    assert client.get("/").status == 200
    assert total(server, Record.requests) == 1
    server.lead_to(Phase.LAME_DUCK)
    assert client.get("/").headers["connection"] == "close"
    assert total(server, Record.since_t0) == 1


# -- what the counting is for ----


@pytest.mark.long(but="uvicorn")
def test_a_late_request_extends_the_delay_and_is_named(asgi: str, serve: Serve) -> None:
    """Its source is in the log, as of any other worker class, and the delay goes on until two
    seconds without a request."""
    settings = {"shutdown_delay": 1, "min_delay": 0}
    server = start(serve, asgi, "asgi_service:bare", settings=settings)
    server.signal(signal.SIGTERM)
    headers = (("User-Agent", "router/1"),)

    def is_late() -> bool:
        assert server.get("/", headers=headers).status == 200
        return "late_request" in server.output

    server.wait_for(is_late, "a late request")
    server.wait_line(r"late_request .*: GET / from 127\.0\.0\.1 port \d+ \(USER-AGENT 'router/1'\)")
    server.wait_line("lame_duck_ended after .* extended until quiet")
    assert server.wait(20) == 0, server.output


@pytest.mark.long
def test_quiet_ends_the_delay(asgi: str, serve: Serve) -> None:
    """One second without a request, while probes go on."""
    settings = {**HOLD, "quiet_period": 1}
    server = start(serve, asgi, "asgi_service:bare", settings=settings)
    assert server.get("/").status == 200
    server.signal(signal.SIGTERM)
    server.wait_phase(Phase.LAME_DUCK)

    def has_ended() -> bool:
        with contextlib.suppress(OSError):  # It no longer listens.
            assert server.get("/readyz").status == 503
        return "lame_duck_ended" in server.output

    server.wait_for(has_ended, "the end of the delay")
    server.wait_line("lame_duck_ended after .*: quiet")
    assert server.wait(20) == 0, server.output


# -- the trigger ----


def curl(*options: str) -> int:
    """The status that a real, one-shot curl gets, as a preStop hook would run it."""
    command = ["curl", "-s", "-o", os.devnull, "-w", "%{http_code}", *options]
    return int(subprocess.run(command, capture_output=True, text=True, timeout=20).stdout)


DOWN = "/readyz?down=true"


@needs_curl
@pytest.mark.long(but="uvicorn")
@pytest.mark.parametrize("options", [(), ("--http2-prior-knowledge",)], ids=["h1", "h2"])
def test_a_hook_triggers_and_nobody_else(asgi: str, options: tuple[str, ...], serve: Serve) -> None:
    """A one-shot curl is found behind its connection, and obeyed. This process is not, which has
    lived too long, nor is a request with the header of a proxy, whose address uvicorn would
    believe."""
    args: tuple[str, ...] = ()
    if options:
        args = ("--http-protocols", "h2,h1", "--http2-cleartext", "both")
        if asgi != "asgi" or not is_there("gunicorn.http2.negotiation"):
            pytest.skip("no HTTP/2 in cleartext here")
    server = start(serve, asgi, "asgi_service:bare", *args)
    url = "http://{}:{}".format(*server.address) + DOWN
    assert curl(*options, url, "-H", "X-Forwarded-For: 127.0.0.1") == 403
    server.wait_line("trigger refused, from 127.0.0.1:.*forwarded by a proxy")
    assert server.get(DOWN).status == 403
    assert server.get(DOWN, method="POST").status == 405
    assert not server.memory.is_terminating()
    server.wait_for(lambda: curl(*options, url) == 503, "its turn, a second later")
    server.wait_line(r"trigger obeyed, from 127\.0\.0\.1:\d+: asked by pid \d+ \(curl\)")
    assert server.get("/readyz").status == 503
    assert server.get("/").status == 200


@needs_curl
@pytest.mark.long
def test_a_hook_triggers_through_a_unix_socket(asgi: str, serve: Serve, tmp_path: Path) -> None:
    """The kernel says who has connected."""
    path = str(tmp_path / "sock")
    server = start(serve, asgi, "asgi_service:bare", bind=f"unix:{path}")
    assert curl("--unix-socket", path, f"http://test{DOWN}") == 503
    server.wait_line(r"trigger obeyed, from unix socket, pid \d+ \(curl\)")


@pytest.mark.ends
@pytest.mark.long
def test_a_proxy_line_hides_nobody(serve: Serve) -> None:
    """gunicorn puts its address into the scope. It is not the connection's, so somebody else
    asks."""
    skip_unless_there("gunicorn.workers.gasgi")
    args = ("--proxy-protocol", "--proxy-allow-from", "*")
    server = start(serve, "asgi", "asgi_service:bare", *args, ready=False)
    with socket.create_connection(server.address, timeout=20) as sock:
        sock.sendall(b"PROXY TCP4 127.0.0.2 127.0.0.1 1 2\r\n")
        sock.sendall(f"GET {DOWN} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
        assert sock.recv(4096).startswith(b"HTTP/1.1 403 ")
    server.wait_line(
        "trigger refused, from 127.0.0.1:.*forwarded by a proxy .Proxy-Protocol: .*127"
    )


# -- WebSockets ----


HANDSHAKE = (
    b"GET /ws HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


@contextlib.contextmanager
def open_websocket(server: Server) -> Iterator[socket.socket]:
    """A WebSocket, on which the handshake is over."""
    seen = server.mark()
    with socket.create_connection(server.address, timeout=20) as sock:
        sock.sendall(HANDSHAKE)
        assert sock.recv(4096).startswith(b"HTTP/1.1 101 ")
        server.wait_line("websocket opens", after=seen)
        yield sock


def masked(opcode: int, payload: bytes) -> bytes:
    """A client's frame, RFC 6455 section 5.2, masked with zeros."""
    return bytes([0x80 | opcode, 0x80 | len(payload)]) + bytes(4) + payload


TEXT, CLOSE = 1, 8
SERVICE_RESTART = (1012).to_bytes(2, "big")


@pytest.fixture
def websockets(asgi: str) -> str:
    """The worker classes that serve WebSockets here."""
    if asgi == UVICORN:
        skip_unless_there("websockets")
    return asgi


@pytest.mark.long
def test_a_websocket_is_in_flight_while_it_is_open(
    websockets: str, serve: Serve, connect: Connect
) -> None:
    """It counts, and with grace_websocket_close 0 it is left alone during the delay and the drain
    although nothing comes, until the client closes."""
    settings = {**HOLD, "websocket_close": 0}
    server = start(serve, websockets, "asgi_service:bare", settings=settings)
    silent = connect(server)
    with open_websocket(server) as sock:
        assert total(server, Record.in_flight) == 1
        server.lead_to(Phase.DRAINING)
        # From here on, half a second with nothing to do would end a connection.
        assert silent.at_end()
        sock.settimeout(1)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        sock.sendall(masked(TEXT, b"still there?"))
        assert sock.recv(4096) == b"\x81\x0cstill there?"
    assert server.wait(20) == 0, server.output


@pytest.mark.long(but="uvicorn")
def test_websockets_are_told_to_reconnect_when_draining_begins(
    websockets: str, serve: Serve
) -> None:
    """During the delay one serves, and a new one opens. When it is over, each gets a close frame
    with 1012. The application learns of it, and the worker waits neither for it nor for a client
    that does not answer."""
    server = start(serve, websockets, "asgi_service:bare", *LONG_DRAIN)
    with open_websocket(server) as old:
        server.lead_to(Phase.LAME_DUCK)
        old.sendall(masked(TEXT, b"here?"))
        assert old.recv(4096) == b"\x81\x05here?"
        with open_websocket(server) as new:
            assert total(server, Record.in_flight) == 2
            server.end_delay()
            for sock in (old, new):
                frame = sock.recv(4096)
                assert (frame[0], frame[2:4]) == (0x80 | CLOSE, SERVICE_RESTART), frame
                assert frame.endswith(b": connect again"), "uvicorn's own has no reason"
            old.sendall(masked(CLOSE, SERVICE_RESTART))
            assert old.recv(4096) == b""
            assert server.wait(20) == 0, server.output
    assert "0 cut off" in server.summary()
    assert "Traceback" not in server.output


# -- the end ----


@pytest.mark.long(but="uvicorn")
def test_an_asyncio_task_that_holds_the_worker_is_finished(asgi: str, serve: Serve) -> None:
    """It is no request. The loop runs on for it, and the lifespan ends after it."""
    server = start(serve, asgi, "asgi_service:bare", *LONG_DRAIN, settings=SHORT)
    assert server.get("/work?s=4").status == 202
    server.wait_line("work begins")
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.output
    assert server.output.index("work ends") < server.output.index("lifespan ends")
    assert "0 cut off" in server.summary()


@pytest.mark.long
def test_a_hold_that_outlasts_the_drain_is_named(asgi: str, serve: Serve) -> None:
    """At the deadline the worker goes all the same."""
    server = start(serve, asgi, "asgi_service:bare", settings=QUICK)
    assert server.get("/work?s=60").status == 202
    server.wait_line("work begins")
    server.terminate()
    server.wait_line("left 1 s before the end of the drain: 1 holds and 0 callbacks: hold 'work'")
    server.assert_gone()


@pytest.mark.long(but="uvicorn")
def test_coroutines_of_the_phases_and_an_endless_stream(
    asgi: str, serve: Serve, connect: Connect
) -> None:
    """Both run in the loop of the requests. The stream of events ends at T0 with a complete
    response, and the worker stays for the coroutine of the drain."""
    skip_unless_there("starlette")
    server = start(serve, asgi, "asgi_frameworks:duties", *LONG_DRAIN, settings=SHORT)
    client = connect(server)
    client.send("/events")
    server.wait_line("event 2$")
    assert total(server, Record.in_flight) == 1
    server.signal(signal.SIGTERM)
    events = client.receive().body.decode().split("\n\n")
    assert events[:3] == ["data: 0", "data: 1", "data: 2"]
    assert events[-1] == ""
    client.close()
    assert server.wait(20) == 0, server.output
    server.wait_line("first in LAME_DUCK, True", timeout=1)
    server.wait_line("last in DRAINING, True", timeout=1)
    assert "0 cut off" in server.summary()


@pytest.mark.long(but="asgi")
def test_a_background_task_is_finished_in_the_drain(
    asgi: str, serve: Serve, connect: Connect
) -> None:
    """Its client has its response, and is gone."""
    skip_unless_there("starlette")
    if asgi == "asgi" and "asgi_disconnect_grace_period" not in {
        one.name for one in gunicorn.config.KNOWN_SETTINGS
    }:
        pytest.skip("gunicorn 24 cancels it at once")
    server = start(serve, asgi, "asgi_frameworks:background", *LONG_DRAIN, settings=SHORT)
    server.signal(signal.SIGTERM)
    server.wait_phase(Phase.LAME_DUCK)
    assert server.get("/?s=2").headers["connection"] == "close"
    assert server.wait(20) == 0, server.output
    server.wait_line("background ends", timeout=1)
    assert "0 cut off" in server.summary()


@pytest.mark.long(but="uvicorn")
def test_a_request_that_is_on_its_way_at_the_dismissal_is_served(
    asgi: str, serve: Serve, connect: Connect
) -> None:
    """A client has not been told that its idle connection closes. It gets its response when the
    worker has been dismissed already, and so does one that has sent the half of its request."""
    server = start(serve, asgi, "asgi_service:bare", "--keep-alive", "30", *LONG_DRAIN)
    idle, half, gone = [connect(server) for _ in range(3)]
    for client in (idle, half, gone):
        assert client.get("/").status == 200
    server.lead_to(Phase.DRAINING)
    half.sock.sendall(b"GET / HTTP/1.1\r\nHost: te")
    assert idle.get("/").headers["connection"] == "close"
    idle.close()
    assert gone.at_end(), "what stays idle is closed"
    half.sock.sendall(b"st\r\n\r\n")
    answer = half.sock.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200 "), server.output
    assert b"connection: close" in answer.lower()
    half.close()
    assert server.wait(20) == 0, server.output


# -- applications of other kinds, and broken ones ----


@pytest.mark.ends
@pytest.mark.long
def test_uvicorn_finds_out_itself_what_an_application_is(serve: Serve) -> None:
    """ASGI 2 and a factory are served as without the plugin; both have its probes."""
    skip_unless_there("uvicorn_worker", "starlette")
    for app, answer in (("Asgi2", b"nothing here"), ("starlette_own", b"Not Found")):
        server = start(serve, UVICORN, f"asgi_frameworks:{app}")
        assert server.get("/readyz").body == {"Asgi2": b"ok\n"}.get(app, b"theirs")
        assert server.get("/none").body == answer
        server.lead_to(Phase.LAME_DUCK)
        assert server.get("/readyz").body == WITHHELD


@pytest.mark.ends
@pytest.mark.long
def test_a_wsgi_application_gets_the_servers_own_error(asgi: str, serve: Serve) -> None:
    """Each request is answered with 500, and the server's own words are in the log. The plugin adds
    nothing of its own, and the instance ends as ever."""
    server = start(serve, asgi, "asgi_frameworks:wsgi", ready=False, settings=SHORT)
    assert server.get("/").status == server.get("/readyz").status == 500
    server.wait_line("Exception in ASGI application|Error in ASGI application")
    assert re.search("takes 2 positional arguments|missing 1 required", server.output)
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.output


@pytest.mark.ends
@pytest.mark.long
def test_a_lifespan_that_fails_ends_the_server_as_it_does_alone(asgi: str, serve: Serve) -> None:
    """The exit code and the message are those of a server without the plugin."""
    ends = []
    for config in ({}, {"config": ()}):
        server = serve(
            "asgi_frameworks:failing_lifespan", args=("-k", asgi), listens=False, **config
        )
        if asgi == "asgi" and not stops_at_a_failed_lifespan():
            pytest.skip("gunicorn's own worker serves all the same (before 26)")
        code = server.wait(20)
        told = [line for line in server.output.splitlines() if "startup failed" in line]
        ends.append((code, [line.rpartition("] ")[2] for line in told]))
    assert ends[0] == ends[1]
    assert ends[0][0] == 3
    assert ends[0][1]


def stops_at_a_failed_lifespan() -> bool:
    from gunicorn.asgi import lifespan

    return hasattr(lifespan, "LifespanStartupFailed")
