"""The overlay in front of an ASGI application: who answers a probe, and what it passes on."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

import gunicorn_grace
from gunicorn_grace.asgi import Probes
from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.phase import Phase
from gunicorn_grace.shared.settings import Settings
from gunicorn_grace.worker import process
from gunicorn_grace.worker.asgi_overlay import AsgiOverlay
from gunicorn_grace.worker.process import WorkerProcess

Messages = list[dict[str, Any]]
DOWN = b"[-]shutdown failed: reason withheld\n"


@pytest.fixture
def ours(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> WorkerProcess:
    """This process as a worker, in an instance that serves."""
    memory.header.phase = Phase.SERVING
    memory.claim(0, age=1)
    made = WorkerProcess(memory, 0, Settings(), logging.getLogger("gunicorn.error"))
    monkeypatch.setattr(process, "this_worker", made)
    return made


class App:
    """An application whose answer to each path is set by a test, and that notes what it was
    asked."""

    def __init__(self, status: int | None = 200, *early: str) -> None:
        self.status = status
        self.early = early
        self.asked: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked.append(scope["method"])
        if self.status is None:
            raise ValueError("theirs")
        for kind in self.early:
            await send({"type": kind, "status": 103, "headers": []})
        await send(
            {"type": "http.response.start", "status": self.status, "headers": [(b"x", b"y")]}
        )
        await send({"type": "http.response.body", "body": b"the", "more_body": True})
        await send({"type": "http.response.body", "body": b"irs"})


def overlay(app: Any, ours: WorkerProcess) -> Any:
    return AsgiOverlay(app, ours, reads_rest=False).serve


def ask(serve: Any, path: str = "/readyz", method: str = "GET", **more: Any) -> Messages:
    sent: Messages = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "path": path,
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"test")],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
        **more,
    }
    asyncio.run(serve(scope, receive, send))
    return sent


def said(messages: Messages) -> tuple[int, bytes]:
    """Status and body of exactly one complete response."""
    start, *parts = [m for m in messages if m["type"] != "http.response.informational"]
    assert start["type"] == "http.response.start"
    assert [bool(part.get("more_body")) for part in parts] == [True] * (len(parts) - 1) + [False]
    return start["status"], b"".join(part["body"] for part in parts)


@pytest.mark.parametrize("status", [200, 204, 500, 503])
def test_an_answer_of_the_applications_stands(ours: WorkerProcess, status: int) -> None:
    """With its headers, in as many parts as it sent."""
    sent = ask(overlay(App(status), ours))
    assert said(sent) == (status, b"theirs")
    assert sent[0]["headers"] == [(b"x", b"y")]
    assert len(sent) == 3


@pytest.mark.parametrize("status", [404, 405, 301, 302, 307, 400, 401, 403, 421])
def test_where_it_has_no_probe_the_plugin_answers(ours: WorkerProcess, status: int) -> None:
    """Nothing of its own response goes out, and the same request is not asked again."""
    app = App(status, "http.response.informational")
    serve = overlay(app, ours)
    for _ in range(2):
        sent = ask(serve)
        assert said(sent) == (200, b"ok\n")
        assert len(sent) == 2
    assert app.asked == ["GET"]


def test_a_stranger_does_not_change_what_the_platform_gets(ours: WorkerProcess) -> None:
    """A refusal is remembered for requests that look alike in every header, and for GET and HEAD.
    ``x_a`` is another header than ``x-a``."""
    app = App(404)
    serve = overlay(app, ours)
    for more in (
        {"method": "POST"},
        {"headers": [(b"host", b"test"), (b"x-a", b"1")]},
        {"headers": [(b"host", b"test"), (b"x_a", b"1")]},
        {"headers": [(b"x-a", b"1"), (b"x-a", b"2")]},
        {"headers": [(b"x-a", b"2"), (b"x-a", b"1")]},
        {"query_string": b"verbose"},
        {"client": ("10.0.0.1", 1)},
        {},
    ):
        before = len(app.asked)
        ask(serve, **more)
        assert len(app.asked) == before + 1, more
    ask(serve, client=("127.0.0.1", 50001))
    assert len(app.asked) == 8, "another port is the same client"


@pytest.mark.parametrize(
    ("path", "root_path", "body"),
    [
        ("/api/readyz", "/api", b"ok\n"),
        ("/readyz", "/api", b"ok\n"),
        ("/apireadyz", "/api", b"theirs"),
        ("/api/readyz", "", b"theirs"),
    ],
)
def test_a_probe_is_below_the_servers_root_path(
    ours: WorkerProcess, path: str, root_path: str, body: bytes
) -> None:
    """A server puts its ``root_path`` in front of the path, or leaves it away. Anything else is
    another path."""
    assert said(ask(overlay(App(404), ours), path, root_path=root_path))[1] == body


def test_from_t0_on_readiness_is_the_plugins(ours: WorkerProcess) -> None:
    """The application is not asked for it any more; for liveness it is."""
    app = App()
    serve = overlay(app, ours)
    ours.memory.header.sigterm = 1
    assert said(ask(serve)) == (503, DOWN)
    assert app.asked == []
    assert said(ask(serve, "/livez")) == (200, b"theirs")


def test_a_shutdown_that_begins_while_the_application_is_asked_counts(ours: WorkerProcess) -> None:
    """Its 200 does not go out after T0."""

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        ours.memory.header.sigterm = 1
        await App()(scope, receive, send)

    assert said(ask(overlay(slow, ours))) == (503, DOWN)


def test_registered_checks_count_beside_its_own_answer(ours: WorkerProcess) -> None:
    """A check that fails replaces its 200, and nothing else."""
    passes = [1]
    gunicorn_grace.check("database", ttl=0, timeout=60)(lambda: bool(passes))
    serve = overlay(App(), ours)
    assert said(ask(serve)) == (200, b"theirs")
    passes.clear()
    assert said(ask(serve)) == (503, b"[-]database failed: reason withheld\n")
    assert said(ask(serve, "/livez")) == (200, b"theirs")
    assert said(ask(overlay(App(500), ours))) == (500, b"theirs")


def test_checks_are_not_run_twice_for_an_author_who_wraps_too(ours: WorkerProcess) -> None:
    """What the middleware inside has answered with all checks is passed on."""
    runs = []
    gunicorn_grace.check("database", ttl=0, timeout=60)(lambda: runs.append(1))
    assert said(ask(overlay(Probes(App()), ours))) == (200, b"ok\n")
    assert runs == [1]


def test_early_hints_go_out_with_the_response_they_belong_to(ours: WorkerProcess) -> None:
    """In their order."""
    sent = ask(overlay(App(200, "http.response.informational"), ours))
    assert [message["type"] for message in sent][:2] == [
        "http.response.informational",
        "http.response.start",
    ]


def test_an_application_that_fails_fails_as_without_the_plugin(ours: WorkerProcess) -> None:
    """The exception goes on to the server, for a probe as for a request; it is counted out."""
    serve = overlay(App(None), ours)
    for path in ("/readyz", "/"):
        with pytest.raises(ValueError, match="theirs"):
            ask(serve, path)
    assert (ours.record.in_flight, ours.record.requests) == (0, 1)


def test_a_mark_in_the_scope_is_all_that_the_application_sees(ours: WorkerProcess) -> None:
    """And ``receive`` is the server's own."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)
        await App()(scope, receive, send)

    ask(overlay(app, ours), "/")
    assert [key for key in seen[0] if "grace" in key] == ["gunicorn_grace.counted"]
