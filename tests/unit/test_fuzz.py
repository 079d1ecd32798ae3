"""Whatever a stranger sends to the probes: an answer from the table, no shutdown, and nothing of it
in return.

In process, so that there are thousands of requests; ``functional/test_security.py`` sends some to
real gunicorn.
"""

from __future__ import annotations

import hmac
import json
import logging
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import flask
import pytest
from hypothesis import example, given
from hypothesis import strategies as some
from werkzeug.test import EnvironBuilder

import gunicorn_grace
from gunicorn_grace.flask import blueprint
from gunicorn_grace.probes import checks, trigger
from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.phase import Phase
from gunicorn_grace.shared.settings import Secret, Settings
from gunicorn_grace.worker import process
from gunicorn_grace.worker.answering import WorkerAnswers
from gunicorn_grace.worker.overlay import Overlay
from gunicorn_grace.worker.process import WorkerProcess
from gunicorn_grace.wsgi import Probes
from support.trials import trials

pytestmark = pytest.mark.once

CANARY = "cAn4ry"
"""What a request may hold anywhere, and no answer may."""
TOKEN = "7h3-t0ken-n0body-guesses"
REASON = "s3cret-reason"
"""Why a check fails: for the log alone."""
PATHS = ("/readyz", "/livez", "/startupz", "/healthz", "/__lbheartbeat__", "/__heartbeat__")
ANSWERS = {200, 403, 404, 405, 503}
"""Ours, and the 404 of the application that has none of these paths."""

EXAMPLES = trials(200)


def not_found(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """An application without a single route."""
    start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "4")])
    return [b"none"]


def a_flask() -> Any:
    """An application with the blueprint."""
    app = flask.Flask("fuzzed")
    app.register_blueprint(blueprint)
    return app.wsgi_app


def database() -> None:
    """A check that passes."""


def cache() -> None:
    """A check that does not."""
    raise RuntimeError(REASON)


def register() -> None:
    """A passing and a failing check of readiness, and a failing one of liveness, each of them run
    once."""
    if not checks.registry.names(checks.Kind.READINESS):
        gunicorn_grace.check("database", ttl=3600)(database)
        gunicorn_grace.check("cache", ttl=3600)(cache)
        gunicorn_grace.check("threads", kind="liveness", ttl=3600)(cache)


def ways(ours: WorkerProcess) -> dict[str, Any]:
    """Each way in."""
    return {
        "overlay": Overlay(not_found, WorkerAnswers(ours)),
        "middleware": Probes(not_found),
        "blueprint": a_flask(),
    }


class Log(logging.Handler):
    """Every line that is logged, at whatever level."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextmanager
def serving(**given: Any) -> Iterator[tuple[WorkerProcess, Log]]:
    """This process as a worker of an instance whose arbiter it is, too: none of its requests may
    trigger."""
    if given.get("trigger_token"):
        given["trigger_token"] = Secret(given["trigger_token"])
    register()
    memory, log = Memory.create(slots=2), Log()
    logger = logging.Logger("fuzz", logging.DEBUG)
    logger.addHandler(log)
    memory.header.phase = Phase.SERVING
    memory.claim(0, age=1)
    before = process.this_worker
    ours = process.this_worker = WorkerProcess(memory, 0, Settings(**given), logger)
    try:
        yield ours, log
    finally:
        process.this_worker = before
        memory.close()


# Latin-1: how WSGI shows the bytes of the wire (PEP 3333).
text = some.text(some.characters(max_codepoint=0xFF), max_size=20)
checked = some.sampled_from(
    ["shutdown", "booted", "database", "cache", "threads", "Database", "database/cache"]
)
bits = some.one_of(
    text, some.sampled_from(["", "/", "//", ".", "..", ";", "\0", "\r\n", "%00", CANARY]), checked
)
paths = some.one_of(
    some.sampled_from(PATHS),
    some.builds("{}/{}".format, some.sampled_from(PATHS), bits),
    some.builds("{}{}".format, some.sampled_from(PATHS), bits),
    some.sampled_from(PATHS).map(str.upper),
    bits.map("/{}".format),
)
names = some.one_of(
    some.sampled_from(["down", "Down", "d%6Fwn", "down[]", "verbose", "exclude", "format", CANARY]),
    text,
)
values = some.one_of(
    some.sampled_from(["true", "TRUE", "tru%65", "true\0", "1", "", CANARY]),
    checked,
    text,
)
queries = some.lists(some.builds("{}={}".format, names, values), max_size=5).map("&".join) | text
NAMES = [
    *(
        "HTTP_ACCEPT",
        "HTTP_HOST",
        "HTTP_X_GRACE_TOKEN",
        "HTTP_X_FORWARDED_FOR",
        "HTTP_X_FORWARDED_HOST",
        "HTTP_VIA",
    ),
    *(
        "HTTP_X_REAL_IP",
        "HTTP_FORWARDED",
        "HTTP_USER_AGENT",
        "HTTP_RANGE",
        "HTTP_COOKIE",
        "HTTP_IF_NONE_MATCH",
    ),
    *("HTTP_TRANSFER_ENCODING", "HTTP_X_HTTP_METHOD_OVERRIDE", "CONTENT_TYPE", "CONTENT_LENGTH"),
]
VALUES = [
    CANARY,
    "127.0.0.1",
    "::1",
    "0",
    "-1",
    "application/json",
    "application/*;q=0.1, text/plain",
    f"*/*;q={CANARY}",
]
VALUES += [
    "application/json;q=",
    "application/json;q=nan",
    f"application/json;{CANARY}={CANARY}",
    "application/,;=,",
]
NEARLY = [
    TOKEN[:-1],
    TOKEN + " ",
    TOKEN.upper(),
    f"{TOKEN},{TOKEN}",
    "\xff" + TOKEN,
    "\0" + TOKEN,
    "",
]
headers = some.dictionaries(
    some.sampled_from(NAMES), some.one_of(text, some.sampled_from(VALUES + NEARLY)), max_size=6
)
methods = some.sampled_from(
    ["GET"] * 5 + ["HEAD", "POST", "PUT", "DELETE", "OPTIONS", "TRACE", "get", CANARY, ""]
)
phases = some.sampled_from([Phase.STARTING, Phase.SERVING])


def ask(
    app: Any, path: str, query: str, method: str, fields: dict[str, str], **more: Any
) -> tuple[int, str]:
    """One request as the server hands it over; status, and all that would go back over the wire."""
    environ = EnvironBuilder().get_environ()
    environ |= {
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "REQUEST_METHOD": method,
        **fields,
        **more,
    }
    started: list[Any] = []

    def start_response(
        status: str, sent: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        started[:] = status, sent
        return lambda data: None

    body = app(environ, start_response)
    try:
        wire = b"".join(body).decode()
    finally:
        if hasattr(body, "close"):
            body.close()
    status, sent = started
    return int(status[:3]), "\n".join(
        [status, *(f"{name}: {value}" for name, value in sent), "", wire]
    )


def holds(ours: WorkerProcess, log: Log, status: int, wire: str, token: str | None) -> None:
    """What must be true after each request. Only a token that counts is a secret: without one, a
    refusal names the forwarding header with whatever the client has put there."""
    assert status in ANSWERS
    assert CANARY not in wire
    assert TOKEN not in wire
    assert REASON not in wire
    head, _, body = wire.partition("\n\n")
    if body and "\nContent-Type: application/json" in head:
        assert set(json.loads(body)) == {"status", "phase", "seconds_left", "checks"}
    assert not ours.memory.is_terminating()
    assert not ours.memory.header.trigger
    for line in log.lines:
        assert token is None or token not in line
        assert line.isprintable(), "no control character of a request reaches the log"


@pytest.fixture(scope="module")
def connection() -> Iterator[socket.socket]:
    """A real one over loopback, from this process to itself: the gate looks up who is at the other
    end."""
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        ours = listener.accept()[0]
        with ours:
            yield ours


@EXAMPLES
@given(
    paths,
    queries,
    methods,
    headers,
    phases,
    some.sampled_from(["local", "token"]),
    some.booleans(),
    some.booleans(),
)
@example(
    "/readyz",
    f"verbose&exclude={CANARY}&exclude=cache",
    "GET",
    {},
    Phase.SERVING,
    "local",
    True,
    False,
)
@example(
    f"/readyz/{CANARY}",
    "",
    "GET",
    {"HTTP_ACCEPT": "application/json"},
    Phase.SERVING,
    "local",
    True,
    False,
)
@example(
    "/readyz/cache",
    "",
    "GET",
    {"HTTP_ACCEPT": "application/json"},
    Phase.SERVING,
    "local",
    True,
    False,
)
@example(
    "/readyz", "", "HEAD", {"HTTP_ACCEPT": "application/json"}, Phase.SERVING, "local", True, False
)
@example("/__heartbeat__", "down=true", "GET", {}, Phase.SERVING, "local", True, True)
@example("/readyz", "down=true", "GET", {}, Phase.SERVING, "local", True, False)
@example(
    "/readyz",
    "down=true",
    "GET",
    {"HTTP_X_GRACE_TOKEN": TOKEN[:-1]},
    Phase.SERVING,
    "token",
    True,
    False,
)
@example(
    "/readyz", "down=true", "GET", {"HTTP_VIA": TOKEN + " "}, Phase.SERVING, "local", True, False
)
@example(
    "/readyz", "down=true", "GET", {"HTTP_VIA": TOKEN + " "}, Phase.SERVING, "token", True, False
)
@example(
    "/readyz",
    f"down=true&exclude={CANARY}",
    "HEAD",
    {"HTTP_VIA": f"\x1b{CANARY}"},
    Phase.SERVING,
    "local",
    False,
    True,
)
def test_no_request_breaks_a_probe_or_triggers(
    connection: socket.socket,
    path: str,
    query: str,
    method: str,
    fields: dict[str, str],
    phase: Phase,
    mode: str,
    shows_socket: bool,
    dockerflow: bool,
) -> None:
    """Any path, query, method and headers, by each way in: an answer from the table, nothing
    reflected, no shutdown, and neither the token nor a control character in the log."""
    more: dict[str, Any] = (
        {"gunicorn.socket": connection} if shows_socket else {"REMOTE_ADDR": "127.0.0.1"}
    )
    token = TOKEN if mode == "token" else None
    with serving(trigger=mode, trigger_token=token, dockerflow=dockerflow) as (ours, log):
        ours.memory.header.phase = phase
        for name, app in ways(ours).items():
            if name == "blueprint" and not method:
                continue  # No server hands over an empty method, and werkzeug does not expect one.
            status, wire = ask(app, path, query, method, fields, **more)
            if name == "blueprint":
                # werkzeug's own answers.
                status = {308: 404, 301: 404, 400: 404}.get(status, status)
                if status == 404:
                    wire = ""
            holds(ours, log, status, wire, token)


@EXAMPLES
@given(text | some.sampled_from(NEARLY))
def test_no_other_token_opens(token: str) -> None:
    """Nothing but the token itself triggers; and that it does is proved by the last request."""
    with serving(trigger="token", trigger_token=TOKEN) as (ours, log):
        app = Overlay(not_found, WorkerAnswers(ours))
        status, wire = ask(app, "/readyz", "down=true", "GET", {"HTTP_X_GRACE_TOKEN": token})
        assert status == 403
        holds(ours, log, status, wire, TOKEN)
        assert any("trigger refused" in line for line in log.lines)
        assert ask(app, "/readyz", "down=true", "GET", {"HTTP_X_GRACE_TOKEN": TOKEN})[0] == 503
        assert ours.memory.is_terminating()
        assert not any(TOKEN in line for line in log.lines)


@pytest.mark.parametrize("same", [True, False])
def test_only_the_comparison_in_constant_time_decides(
    same: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No other comparison looks at the token: with the answer of ``hmac.compare_digest`` turned
    round, so is ours."""
    compared: list[tuple[bytes, bytes]] = []

    def compare_digest(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return not same

    monkeypatch.setattr(hmac, "compare_digest", compare_digest)
    given = TOKEN if same else "wrong"
    verdict = trigger.TriggerPolicy("token", TOKEN, 1).admit({"HTTP_X_GRACE_TOKEN": given})
    assert verdict.allowed is not same
    assert compared == [(given.encode(), TOKEN.encode())]
