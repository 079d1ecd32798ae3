"""The worker classes beside sync, gthread and gevent: what works for each, and what is said to work
not.

docs/reference/worker-classes.md is the table of what is proved here.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import signal
import socket
from typing import Any

import pytest

from gunicorn_grace.shared.cells import Cell, Record
from gunicorn_grace.shared.phase import Phase
from support.servers import (
    HOLD,
    LONG_DRAIN,
    SHORT,
    WORKERS,
    Client,
    Connect,
    Serve,
    Server,
    all_answered,
    begin_a_request,
    look_at_each,
    looks,
)
from support.uploads import STYLES, Upload

UVICORN = "uvicorn_worker.UvicornWorker"
WSGI, ASGI = ("gevent_pywsgi", "tornado"), ("asgi", UVICORN)
NEEDS = {
    "gevent_pywsgi": "gevent",
    "tornado": "tornado",
    "asgi": "gunicorn.workers.gasgi",
    UVICORN: "uvicorn_worker",
}

CLOSES_ITSELF = importlib.metadata.version("gunicorn") >= "27"
"""gunicorn 27.0: its ASGI worker announces and closes; before, it leaves the closing to the
client."""


def application(worker_class: str) -> str:
    return "asgi_service:bare" if worker_class in ASGI else "service:app"


def skip_unless_there(worker_class: str) -> None:
    if importlib.util.find_spec(NEEDS[worker_class]) is None:
        pytest.skip(f"no {NEEDS[worker_class]} here")


@pytest.fixture(params=[*WSGI, *ASGI])
def other(request: pytest.FixtureRequest) -> str:
    """A worker class, each in turn."""
    skip_unless_there(request.param)
    return str(request.param)


@pytest.fixture(params=ASGI)
def asgi(request: pytest.FixtureRequest) -> str:
    """A worker class for ASGI applications, each in turn."""
    skip_unless_there(request.param)
    return str(request.param)


def start(
    serve: Serve, worker_class: str, *args: str, app: str | None = None, **settings: Any
) -> Server:
    """An instance with one worker of this class, or as many as ``-w`` says."""
    return serve(
        app or application(worker_class),
        args=("-k", worker_class, *args),
        settings=settings or SHORT,
    )


def sigterm(server: Server) -> None:
    """Send SIGTERM, and wait until its handler has run."""
    server.signal(signal.SIGTERM)
    server.wait_for(lambda: server.memory.header.sigterm, "the store in the signal handler")


def wait_serving(server: Server, count: int) -> set[int]:
    """Wait until so many workers have answered: uvicorn takes SIGTERM for itself only once it
    serves. Their pids."""
    return {answer["pid"] for answer in look_at_each(server, server.wait_booted(count))}


def test_the_delay_and_the_flip(other: str, serve: Serve) -> None:
    """From SIGTERM on both workers answer not ready, serve, and see LAME_DUCK; the memory counts
    what they serve."""
    server = start(serve, other, "-w", "2", **HOLD)
    pids = server.wait_booted(2)
    assert server.get("/readyz").status == 200
    sigterm(server)
    server.wait_phase(Phase.LAME_DUCK)
    before = requests(server, Record.since_t0)
    for answer in look_at_each(server, pids):
        assert answer["phase"] == "LAME_DUCK"
        assert server.get("/readyz").status == 503
        assert server.get("/livez").status == server.get("/startupz").status == 200
    assert requests(server, Record.since_t0) - before == 2
    server.wait_for(lambda: requests(server, Record.in_flight) == 0, "the end of all requests")


def requests(server: Server, cell: Cell) -> int:
    return server.memory.total(cell)


@pytest.mark.long
def test_sigterm_to_the_whole_group_dismisses_no_worker(other: str, serve: Serve) -> None:
    """With dumb-init or tini -g: the workers that got SIGTERM serve on, and leave when the arbiter
    says so."""
    server = start(serve, other, "-w", "2", **HOLD)
    before = wait_serving(server, 2)
    server.signal_group(signal.SIGTERM)
    server.wait_phase(Phase.LAME_DUCK)

    def has_each_asked() -> bool:
        return all(record.term_seen for record in server.memory.records())

    server.wait_for(has_each_asked, "the question of each worker")
    answers = looks(server)
    assert {answer["phase"] for answer in answers} == {"LAME_DUCK"}
    assert {answer["pid"] for answer in answers} <= before
    assert set(server.worker_pids()) == before
    server.end_delay()
    assert server.wait(20) == 0, server.output
    assert "0 cut off" in server.summary()


@pytest.mark.long
def test_what_is_in_flight_completes(other: str, serve: Serve, connect: Connect) -> None:
    """A stream that is being sent at SIGTERM, and goes on for longer than a worker with nothing to
    do would stay, is sent to its end, and so is a slow response, which says Connection: close."""
    server = start(serve, other, "-w", "2")
    server.wait_booted(2)
    stream, slow = connect(server), connect(server)
    stream.send("/stream?n=10&pause=0.3")
    server.wait_line("stream line 1")
    # On tornado a WSGI application has the worker for itself: this one may wait until the stream is
    # sent.
    slow.send("/slow?s=2")
    if other != "tornado":
        server.wait_line("slow request begins")
    server.signal(signal.SIGTERM)
    assert stream.receive().body.splitlines()[-1] == b"line 9"
    answer = slow.receive()
    assert (answer.status, answer.body) == (200, b"slept 2 s\n")
    assert answer.headers["connection"] == "close"
    stream.close()
    slow.close()
    assert server.wait(20) == 0, server.output
    server.wait_line("drained in")
    assert "0 cut off" in server.summary()
    assert "was sent SIGTERM" not in server.output, (
        "a worker that leaves by itself runs worker_exit"
    )
    if other in ASGI:
        server.wait_line("lifespan ends")


@pytest.mark.long
def test_connections_in_the_accept_queue_are_served(
    other: str, serve: Serve, connect: Connect
) -> None:
    """With the only worker busy, connections that wait in the accept queue at the drain are
    answered, none is reset, and no new one is established."""
    server = start(serve, other, app=None if other in ASGI else "blocking_service:app")
    busy = connect(server)
    busy.send("/block?s=2")
    server.wait_line("slow request begins")
    waiting = [connect(server) for _ in range(10)]
    for client in waiting:
        client.send("/")
    server.signal(signal.SIGTERM)
    server.wait_line("sealed")
    with pytest.raises(OSError):
        connect(server, timeout=0.3)
    all_answered(busy, *waiting)
    assert server.wait(20) == 0, server.output
    assert "0 cut off" in server.summary()


@pytest.mark.long
def test_a_kept_alive_connection_is_told_to_close(
    other: str, serve: Serve, connect: Connect
) -> None:
    """Before SIGTERM it stays; the first response after it says close, that to a probe too, and the
    server closes."""
    server = start(serve, other, "--keep-alive", "30", **HOLD)
    client, prober = connect(server), connect(server)
    for _ in range(2):
        assert client.get("/").headers.get("connection", "keep-alive").lower() == "keep-alive"
        assert prober.get("/readyz").status == 200
    sigterm(server)
    assert client.get("/").headers["connection"] == "close"
    answer = prober.get("/readyz")
    assert (answer.status, answer.headers["connection"]) == (503, "close")
    if other != "tornado" and (other != "asgi" or CLOSES_ITSELF):
        assert client.at_end()
        assert prober.at_end()


@pytest.mark.long
def test_idle_and_silent_connections_do_not_hold_the_exit(
    other: str, serve: Serve, connect: Connect
) -> None:
    """With graceful_timeout 30, idle kept-alive connections and ones that never sent a byte are
    closed by the drain."""
    server = serve(
        application(other),
        args=("-k", other, "--graceful-timeout", "30", "--keep-alive", "30"),
        settings={**SHORT, "termination_period": 60},
    )
    clients = [connect(server) for _ in range(6)]
    for client in clients[:3]:
        assert client.get("/").status == 200
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.output
    server.wait_line("drained in")
    for client in clients:
        assert client.at_end()


@pytest.mark.long
def test_a_request_longer_than_the_budget_is_cut_off_and_counted(
    other: str, serve: Serve, connect: Connect
) -> None:
    """At the deadline the process ends all the same; the log names the request and the place, the
    summary counts."""
    server = start(serve, other, **SHORT, termination_period=4, exit_margin=1, drain_reserve=1)
    client = connect(server)
    client.send("/slow?s=60&secret=42")
    server.wait_line("slow request begins")
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.output
    assert "1 cut off" in server.summary()
    server.wait_line("deadline_reached")
    dump = server.wait_line("in flight 1 s before the end of the drain: GET /slow for")
    assert "secret" not in dump
    assert re.search(r"at \S+_?service\.py:\d+ in (slow|bare)$", dump), dump


@pytest.mark.long
def test_sigterm_to_one_worker_by_hand_replaces_it(other: str, serve: Serve) -> None:
    """`kill <worker>` lets that worker go and forks another, while the instance stays ready."""
    server = start(serve, other, "-w", "2")
    before = wait_serving(server, 2)
    os.kill(min(before), signal.SIGTERM)
    server.wait_for(lambda: min(before) not in server.worker_pids(), "the end of the worker")
    server.wait_for(lambda: set(server.worker_pids()) - before, "a new worker")
    assert server.get("/readyz").status == 200


@pytest.mark.long
def test_sigterm_while_the_application_is_imported_exits_at_once(other: str, serve: Serve) -> None:
    """Neither the delay nor graceful_timeout is waited for, nor the import."""
    server = serve(
        "slow_import:app",
        args=("-k", other, "--graceful-timeout", "50"),
        settings=HOLD,
        ready=False,
    )
    server.wait_line("import begins")
    server.signal(signal.SIGTERM)
    assert server.wait_exit(15), server.output
    assert "shutdown_initiated" not in server.output


# -- what does not work is said ----


def grace_warnings(server: Server) -> list[str]:
    return [text for _, text in server.lines if "[WARNING] gunicorn-grace" in text]


@pytest.mark.long
def test_nothing_is_said_where_all_works(other: str, serve: Serve) -> None:
    """Both workers of each class boot without a warning of ours."""
    server = start(serve, other, "-w", "2")
    server.wait_booted(2)
    assert grace_warnings(server) == []


@pytest.mark.long
def test_an_application_of_tornados_own(serve: Serve, connect: Connect) -> None:
    """It is served as it is, a warning says what does not work, and its coroutines in flight
    complete."""
    pytest.importorskip("tornado")
    server = serve("tornado_service:app", args=("-k", "tornado", "-w", "2"), settings=SHORT)
    server.wait_booted(2)
    server.wait_line(
        "requests of an application of tornado's own cannot be counted: the delay, .* work; "
        "probes, .* do"
    )
    assert len(grace_warnings(server)) == 1
    assert server.get("/").body == b"hello\n"
    client, idle = connect(server), connect(server)
    assert idle.get("/").status == 200
    client.send("/slow?s=4")
    server.wait_line("slow request begins")
    server.signal(signal.SIGTERM)
    assert client.receive().body == b"slept 4 s\n"
    client.close()
    assert server.wait(20) == 0, server.output
    assert idle.at_end()
    assert ", what was cut off is not counted; " in server.summary()


@pytest.mark.long
@pytest.mark.parametrize("wsgi", WSGI)
def test_a_local_trigger_is_refused(wsgi: str, serve: Serve) -> None:
    """None of these classes shows the socket, so nothing proves who asks: 403, and the log tells
    the way out."""
    skip_unless_there(wsgi)
    server = start(serve, wsgi, **HOLD)
    assert server.get("/readyz?down=true").status == 403
    server.wait_line("trigger refused, from REMOTE_ADDR 127.0.0.1: .*use `gunicorn-grace prestop`")
    assert server.get("/readyz").status == 200


@pytest.mark.long
def test_a_token_triggers(other: str, serve: Serve) -> None:
    """`token` works without the socket: 503 at once, and LAME_DUCK."""
    server = start(serve, other, **HOLD, trigger="token", trigger_token="swordfish")
    assert server.get("/readyz?down=true", headers=[("X-Grace-Token", "perch")]).status == 403
    assert server.get("/readyz?down=true", headers=[("X-Grace-Token", "swordfish")]).status == 503
    server.wait_phase(Phase.LAME_DUCK)
    assert server.get("/readyz").status == 503
    assert server.get("/").status == 200


# -- bodies ----


@pytest.mark.ends
@pytest.mark.long(but="length")
@pytest.mark.parametrize("style", STYLES)
def test_a_body_that_is_not_read_costs_no_response(
    other: str, style: str, serve: Serve, connect: Connect
) -> None:
    """In the delay, a client that is still sending when it is answered may finish: its connection
    is not reset. tornado reads the whole body before it calls the application."""
    if other == "asgi" and not CLOSES_ITSELF:
        pytest.skip("there the client closes")
    server = start(serve, other, **HOLD)
    server.lead_to(Phase.LAME_DUCK)
    upload = Upload(connect(server).sock, style)
    if other == "tornado":
        upload.send(pause=0.01)
        upload.wait_for_the_response()
    else:
        upload.begin()
        upload.end(pause=0.01)


EVERY = {**{kind: WORKERS[kind] for kind in WORKERS}, **{kind: ("-k", kind) for kind in NEEDS}}


@pytest.mark.parametrize("worker_class", sorted(EVERY))
def test_a_new_connection_is_refused_once_nothing_waits(
    worker_class: str, serve: Serve, connect: Connect
) -> None:
    """Beside a long request, of which the drain waits for the end, a client hears at once that
    nobody takes its connection. The address is free, and the long request gets its response."""
    if worker_class in NEEDS:
        skip_unless_there(worker_class)
    server = serve(
        application(worker_class), args=(*EVERY[worker_class], *LONG_DRAIN), settings=SHORT
    )
    client = connect(server)
    begin_a_request(server, client, "/slow?s=4")
    server.terminate()
    server.wait_line("gunicorn-grace: shut ")
    assert is_refused(server)
    with socket.create_server(server.address):
        pass
    assert server.worker_pids(), "the long request is still being served"
    assert client.receive().body == b"slept 4 s\n"
    client.close()
    assert server.wait(20) == 0, server.output
    assert "Traceback" not in server.output


def is_refused(server: Server) -> bool:
    try:
        Client(server.address, timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False
