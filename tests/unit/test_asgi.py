"""The probes in front of an ASGI application, and the counting around it."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from typing import Any

import pytest

import gunicorn_grace
from gunicorn_grace.asgi import Probes
from gunicorn_grace.shared.cells import Cell, Record
from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.phase import Phase
from gunicorn_grace.shared.settings import Secret, Settings
from gunicorn_grace.worker import classes as worker_classes
from gunicorn_grace.worker import process
from gunicorn_grace.worker.counting import _hot_path
from gunicorn_grace.worker.process import WorkerProcess

Messages = list[dict[str, Any]]
PLAIN = (b"content-type", b"text/plain")


class App:
    """An application that answers everything, and looks at the slot while it does."""

    def __init__(
        self, ours: WorkerProcess | None = None, headers: tuple[tuple[bytes, bytes], ...] = (PLAIN,)
    ) -> None:
        self.ours = ours
        self.headers = headers
        self.asked: list[str] = []
        self.in_flight: list[int] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope.get("path", scope["type"]))
        if self.ours is not None:
            self.in_flight.append(self.ours.record.in_flight)
        await send({"type": "http.response.start", "status": 200, "headers": list(self.headers)})
        await send({"type": "http.response.body", "body": b"theirs"})


@pytest.fixture
def ours(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> WorkerProcess:
    """This process as a worker of uvicorn's, in an instance that serves."""
    memory.header.phase = Phase.SERVING
    memory.claim(0, age=1)
    made = WorkerProcess(memory, 0, Settings(), logging.getLogger("gunicorn.error"))
    made.tracking, made.sees_all = worker_classes.ASGI, False
    monkeypatch.setattr(process, "this_worker", made)
    return made


def http(path: str = "/", **more: Any) -> dict[str, Any]:
    """A scope as servers make it."""
    return {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"test")],
        "client": ("127.0.0.1", 50000),
        **more,
    }


def call(app: Any, scope: dict[str, Any]) -> Messages:
    """Run one scope to its end; what was sent."""
    sent: Messages = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    asyncio.run(app(scope, receive, send))
    return sent


def ask(app: Any, path: str = "/readyz", **more: Any) -> tuple[int, str, dict[str, str]]:
    start, body = call(app, http(path, **more))
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert all(name == name.lower() for name in headers), "as the ASGI specification wants it"
    return start["status"], body["body"].decode(), headers


def begin_shutdown(ours: WorkerProcess) -> None:
    ours.memory.header.sigterm = 1


def cell(ours: WorkerProcess, cell: Cell) -> int:
    return ours.record.cells[ours.record.begin + cell.offset]


@pytest.mark.parametrize("path", ["/readyz", "/livez", "/healthz", "/startupz"])
def test_a_serving_worker_answers_every_probe(ours: WorkerProcess, path: str) -> None:
    """200, uncached, with its length, and the application is not asked."""
    app = App()
    status, body, headers = ask(Probes(app), path)
    assert (status, body, headers["content-length"], headers["cache-control"]) == (
        200,
        "ok\n",
        "3",
        "no-store",
    )
    assert app.asked == []
    assert cell(ours, Record.requests) == 0


def test_readiness_flips_at_t0(ours: WorkerProcess) -> None:
    """From the store in the signal handler on readiness is 503, liveness stays 200, and both say
    close."""
    app = Probes(App())
    begin_shutdown(ours)
    assert ask(app)[:2] == (503, "[-]shutdown failed: reason withheld\n")
    assert ask(app, "/livez")[0] == 200
    assert ask(app)[2]["connection"] == ask(app, "/livez")[2]["connection"] == "close"


def test_formats_and_checks(ours: WorkerProcess) -> None:
    """As in front of a WSGI application; from T0 on no check is run."""
    passes = []

    @gunicorn_grace.check("database", ttl=0, timeout=60)
    def database() -> bool:
        return bool(passes)

    app = Probes(App())
    down = "[-]database failed: reason withheld\n"
    assert ask(app)[:2] == (503, down)
    assert ask(app, "/readyz/database")[:2] == (503, down)
    assert ask(app, "/readyz/nothing")[0] == 404
    assert ask(app, query_string=b"exclude=database&verbose")[:2] == (
        200,
        "[+]booted ok\n[+]shutdown ok\n[ ]database excluded\n",
    )
    status, body, headers = ask(app, headers=[(b"accept", b"application/json")])
    assert (status, json.loads(body)["checks"]["database"]) == (503, "failed")
    assert headers["content-type"] == "application/json"
    passes.append(1)
    assert ask(app)[:2] == (200, "ok\n")
    passes.clear()
    begin_shutdown(ours)
    assert ask(app)[1] == "[-]shutdown failed: reason withheld\n"


def test_the_loop_goes_on_while_a_check_runs(ours: WorkerProcess) -> None:
    """A check that waits for something that the loop has yet to do passes."""
    done = threading.Event()
    gunicorn_grace.check("slow", timeout=60)(lambda: done.wait(60))
    app = Probes(App())

    async def both() -> int:
        sent: Messages = []

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        probe = asyncio.ensure_future(app(http("/readyz"), None, send))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert not probe.done()
        done.set()
        await probe
        return int(sent[0]["status"])

    assert asyncio.run(both()) == 200


def test_head_gets_no_body_and_other_methods_no_answer(ours: WorkerProcess) -> None:
    """HEAD: the length of the body without it. POST: 405."""
    status, body, headers = ask(Probes(App()), method="HEAD")
    assert (status, body, headers["content-length"]) == (200, "", "3")
    assert ask(Probes(App()), method="POST")[0] == 405


def test_a_path_behind_a_prefix_is_found(ours: WorkerProcess) -> None:
    """Servers and mounts put root_path in front of the path; a path that only begins alike is
    another's."""
    app = App()
    assert ask(Probes(app), "/api/readyz", root_path="/api")[1] == "ok\n"
    assert ask(Probes(app), "/apireadyz", root_path="/api")[1] == "theirs"
    assert ask(Probes(app), "/api", root_path="/api")[1] == "theirs"


def test_a_request_is_in_flight_while_the_application_runs(ours: WorkerProcess) -> None:
    """Counted in before, out after, with its arrival; since T0 only after it."""
    app = App(ours)
    ask(Probes(app), "/")
    begin_shutdown(ours)
    ask(Probes(app), "/")
    assert app.in_flight == [1, 1]
    assert [
        cell(ours, number) for number in (Record.in_flight, Record.requests, Record.since_t0)
    ] == [
        0,
        2,
        1,
    ]
    assert cell(ours, Record.last_arrival) > 0
    assert ours.counter.in_flight == {}


def test_an_application_that_fails_is_counted_out(ours: WorkerProcess) -> None:
    """An exception and a cancelled task go on to the server."""

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise scope["error"]

    for error in (ValueError("theirs"), asyncio.CancelledError()):
        with pytest.raises(type(error)):
            call(Probes(broken), http("/", error=error))
    assert cell(ours, Record.requests) == 2
    assert cell(ours, Record.in_flight) == 0


def test_a_websocket_is_in_flight_while_it_is_open(ours: WorkerProcess) -> None:
    """It counts, also where hooks count HTTP requests; a path of ours is theirs on it, and nothing
    is added."""
    for tracking in (worker_classes.ASGI, worker_classes.ASGI_HOOKS):
        ours.tracking = tracking
        begin_shutdown(ours)
        app = App(ours)
        sent = call(Probes(app), {"type": "websocket", "path": "/chat", "headers": []})
        call(Probes(app), {"type": "websocket", "path": "/readyz", "headers": []})
        assert app.asked == ["/chat", "/readyz"]
        assert app.in_flight == [1, 0]
        assert sent[0]["headers"] == [PLAIN]
    assert cell(ours, Record.requests) == 2


def test_what_hooks_count_is_not_counted_twice(ours: WorkerProcess) -> None:
    """gunicorn's own ASGI worker calls pre_request and post_request."""
    ours.tracking = worker_classes.ASGI_HOOKS
    app = App(ours)
    ask(Probes(app), "/")
    assert app.in_flight == [0]
    assert cell(ours, Record.requests) == 0


def test_the_lifespan_is_the_applications(ours: WorkerProcess) -> None:
    """It is passed on, not counted, and from then on the worker knows of every request."""
    app = App(ours)
    call(Probes(app), {"type": "lifespan"})
    assert app.asked == ["lifespan"]
    assert app.in_flight == [0]
    assert ours.draining.sees_all


def test_connection_close_replaces_what_the_application_says(ours: WorkerProcess) -> None:
    """After T0 in HTTP/1 responses, once; before it, and in HTTP/2, which forbids it (RFC 9113),
    never."""
    app = Probes(App(headers=(PLAIN, (b"Connection", b"keep-alive"))))
    assert call(app, http("/"))[0]["headers"] == [PLAIN, (b"Connection", b"keep-alive")]
    begin_shutdown(ours)
    assert call(app, http("/"))[0]["headers"] == [PLAIN, (b"connection", b"close")]
    assert call(app, http("/", http_version="1.0"))[0]["headers"] == [
        PLAIN,
        (b"connection", b"close"),
    ]
    assert (b"connection", b"close") not in call(app, http("/", http_version="2"))[0]["headers"]
    assert "connection" not in ask(app, http_version="2")[2]


def test_a_response_that_began_before_t0_keeps_its_word(ours: WorkerProcess) -> None:
    """Its headers are out; what follows is passed on as it is."""

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        begin_shutdown(ours)
        await send({"type": "http.response.body", "body": b"theirs"})

    assert call(Probes(slow), http("/")) == [
        {"type": "http.response.start", "status": 200},
        {"type": "http.response.body", "body": b"theirs"},
    ]


def test_a_local_trigger_is_refused(ours: WorkerProcess, caplog: pytest.LogCaptureFixture) -> None:
    """There is no socket to prove who asks. The log names the way out; a proxy's header is seen
    first."""
    app = Probes(App())
    assert ask(app, query_string=b"down=true")[:2] == (403, "forbidden\n")
    assert "no gunicorn.socket in environ); use `gunicorn-grace prestop`" in caplog.text
    assert not ours.memory.is_terminating()
    caplog.clear()
    assert (
        ask(Probes(App()), query_string=b"down=true", headers=[(b"x-forwarded-for", b"192.0.2.7")])[
            0
        ]
        == 403
    )
    assert "forwarded by a proxy (X-Forwarded-For: 192.0.2.7)" in caplog.text


def test_a_token_triggers(
    memory: Memory, ours: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The right X-Grace-Token begins the shutdown, any other is refused; a UNIX socket has no
    client."""
    made = WorkerProcess(
        memory, 0, Settings(trigger="token", trigger_token=Secret("swordfish")), ours.log
    )
    monkeypatch.setattr(process, "this_worker", made)
    app = Probes(App())
    assert ask(app, query_string=b"down=true", headers=[(b"x-grace-token", b"perch")])[0] == 403
    assert not memory.is_terminating()
    right = {
        "query_string": b"down=true",
        "headers": [(b"x-grace-token", b"swordfish")],
        "client": None,
    }
    assert ask(app, **right)[:2] == (503, "[-]shutdown failed: reason withheld\n")
    assert memory.is_terminating()


def test_outside_gunicorn_it_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a test client, or under another server: ready, nothing counted, nothing changed."""
    monkeypatch.setattr(process, "this_worker", None)
    app = App()
    assert ask(Probes(app))[:2] == (200, "ok\n")
    assert ask(Probes(app), "/")[1] == "theirs"


def test_with_preload_app_it_is_the_workers(
    ours: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made and used in the arbiter, it looks at the worker's memory after the fork."""
    monkeypatch.setattr(process, "this_worker", None)
    app = Probes(App())
    assert ask(app)[0] == 200
    monkeypatch.setattr(process, "this_worker", ours)
    begin_shutdown(ours)
    assert ask(app)[0] == 503


def test_the_dump_shows_where_a_coroutine_waits(
    ours: WorkerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """For a request in an asyncio task: the innermost coroutine, not the loop that all of them
    share."""

    async def innermost() -> None:
        await asyncio.sleep(60)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await innermost()

    async def look() -> None:
        ours.begin, ours.end, _ = _hot_path(
            ours.counter, ours.memory, ours.record, ours.shedding, asyncio.current_task, True
        )
        task = asyncio.ensure_future(Probes(app)(http("/report"), None, None))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        ours.unfinished.tell("now")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(look())
    assert "in flight now: GET /report for" in caplog.text
    assert "test_asgi.py" in caplog.text
    assert "in innermost" in caplog.text
