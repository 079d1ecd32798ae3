"""The probes in front of an application, one that has its own and one that has not."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
from werkzeug.middleware.lint import LintMiddleware
from werkzeug.test import EnvironBuilder

import gunicorn_grace
from gunicorn_grace.probes.ownership import LEARNED, LONGEST
from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.phase import Phase
from gunicorn_grace.shared.settings import Settings
from gunicorn_grace.worker import process
from gunicorn_grace.worker.answering import WorkerAnswers
from gunicorn_grace.worker.counting import CountedCall, Counting
from gunicorn_grace.worker.overlay import Overlay
from gunicorn_grace.worker.process import WorkerProcess
from gunicorn_grace.wsgi import Probes

Start = Callable[..., Callable[[bytes], object]]
PLAIN = ("Content-Type", "text/plain")
WITHHELD = "[-]shutdown failed: reason withheld\n"


class App:
    """An application that answers everything with one status, and counts what it is asked."""

    def __init__(self, status: str = "200 OK", body: bytes = b"theirs") -> None:
        self.status, self.body = status, body
        self.asked: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        self.asked.append(environ["PATH_INFO"])
        start_response(
            self.status, [PLAIN, ("Content-Length", str(len(self.body))), ("X-Theirs", "1")]
        )
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [self.body]


@pytest.fixture
def ours(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> WorkerProcess:
    """This process as a worker of an instance that serves."""
    memory.header.phase = Phase.SERVING
    memory.claim(0, age=1)
    made = WorkerProcess(memory, 0, Settings(), logging.getLogger("gunicorn.error"))
    monkeypatch.setattr(process, "this_worker", made)
    return made


def overlay(app: Any, ours: WorkerProcess) -> Overlay:
    return Overlay(app, WorkerAnswers(ours))


def ask(
    app: Any, path: str = "/readyz", method: str = "GET", **more: Any
) -> tuple[int, str, dict[str, str]]:
    """One request, served as PEP 3333 says: werkzeug's ``run_wsgi_app`` loses what is written, and
    raises ``exc_info``.

    Its lint turns every breach of the standard, ours or the application's, into an error. It knows
    neither HEAD nor an application that sends 204 without a length.
    """
    lint = method != "HEAD" and more.pop("lint", True)
    environ = EnvironBuilder(path, method=method, **more).get_environ()
    started: list[Any] = []
    sent: list[bytes] = []

    def start_response(
        status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], object]:
        assert not started or exc_info
        started[:] = [int(status[:3]), dict(headers)]
        return sent.append

    result = (LintMiddleware(app) if lint else app)(environ, start_response)
    try:
        sent.extend(result)
    finally:
        if hasattr(result, "close"):
            result.close()
    status, headers = started
    return status, b"".join(sent).decode(), headers


def begin_shutdown(ours: WorkerProcess) -> None:
    ours.memory.header.sigterm = 1


# -- who answers ----


@pytest.mark.parametrize(
    "status", ["200 OK", "204 No Content", "503 Service Unavailable", "500 Oh"]
)
@pytest.mark.parametrize("path", ["/readyz", "/livez", "/startupz", "/healthz"])
def test_an_answer_of_the_application_is_kept(ours: WorkerProcess, path: str, status: str) -> None:
    """While nothing shuts down, its own probe means what it meant: status, body and headers."""
    body = b"" if status.startswith("204") else b"theirs"

    def app(environ: Any, start_response: Start) -> list[bytes]:
        length = [("Content-Length", "6")] if body else []
        start_response(status, [PLAIN, ("X-Theirs", "1"), *length] if body else [("X-Theirs", "1")])
        return [body] if body else []

    got = ask(overlay(app, ours), path, lint=bool(body))
    assert got[:2] == (int(status[:3]), body.decode())
    assert got[2]["X-Theirs"] == "1"


@pytest.mark.parametrize(
    "status", ["404 Not Found", "401 Unauthorized", "302 Found", "400 Bad Request", "405 No"]
)
def test_no_answer_of_the_application_is_ours_to_give(ours: WorkerProcess, status: str) -> None:
    """No such route, a login, a redirect, a host that it does not trust: none of them is about
    readiness."""
    code, body, headers = ask(overlay(App(status), ours))
    assert (code, body) == (200, "ok\n")
    assert "X-Theirs" not in headers
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("cell", ["sigterm", "trigger"])
def test_while_terminating_readiness_is_ours(ours: WorkerProcess, cell: int) -> None:
    """From the store on, and the application is not even asked."""
    app = App()
    setattr(ours.memory.header, cell, 8)
    assert ask(overlay(app, ours))[:2] == (503, WITHHELD)
    assert app.asked == []


@pytest.mark.parametrize(("path", "theirs"), [("/livez", 200), ("/startupz", 200), ("/livez", 503)])
def test_while_terminating_the_other_probes_stay_theirs(
    ours: WorkerProcess, path: str, theirs: int
) -> None:
    """Liveness says what it says: a shutdown is not a reason to be killed, and none to be
    spared."""
    begin_shutdown(ours)
    assert ask(overlay(App(f"{theirs} X"), ours), path)[0] == theirs
    assert ask(overlay(App("404 X"), ours), path)[:2] == (200, "ok\n")


@pytest.mark.parametrize("path", ["/", "/readyz/", "/readyzz", "/static/x"])
def test_everything_else_goes_straight_through(ours: WorkerProcess, path: str) -> None:
    """The very iterable of the application, unbuffered."""
    result = [b"x"]

    def app(environ: Any, start_response: Start) -> list[bytes]:
        start_response("404 Not Found", [PLAIN])
        return result

    environ = EnvironBuilder(path).get_environ()
    assert overlay(app, ours)(environ, lambda *a: lambda b: None) is result


@pytest.mark.parametrize("status", ["404", "405", "400", "401", "403", "421", "302"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_probe_that_the_application_refuses_is_not_asked_again(
    ours: WorkerProcess, status: str, method: str
) -> None:
    """After the first refusal the plugin answers the same request by itself."""
    app = App(f"{status} X")
    wrapped = overlay(app, ours)
    for _ in range(3):
        assert ask(wrapped, method=method)[0] == 200
    assert app.asked == ["/readyz"]


class Own:
    """An application that has its own ``/readyz``, for some requests alone."""

    def __init__(self, has: Callable[[dict[str, Any]], bool], else_: str = "404 Not Found") -> None:
        self.has, self.else_, self.asked = has, else_, 0

    def __call__(self, environ: dict[str, Any], start_response: Start) -> Iterable[bytes]:
        self.asked += 1
        status = "503 No database" if self.has(environ) else self.else_
        start_response(status, [PLAIN, ("Content-Length", "6")])
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [b"theirs"]


KUBELET: dict[str, Any] = {
    "headers": {"Host": "10.1.2.3", "X-Probe": "kubelet"},
    "environ_overrides": {"REMOTE_ADDR": "10.1.0.1"},
}


@pytest.mark.parametrize("first", ["kubelet", "stranger"])
@pytest.mark.parametrize("else_", ["404", "405", "400", "401", "302"])
@pytest.mark.parametrize(
    ("has", "stranger"),
    [
        (lambda e: e["REQUEST_METHOD"] == "GET", {"method": "POST"}),
        (lambda e: e["REQUEST_METHOD"] == "GET", {"method": "HEAD"}),
        (lambda e: "HTTP_X_PROBE" in e, {"headers": {"Host": "10.1.2.3"}}),
        (lambda e: e["HTTP_HOST"] == "10.1.2.3", {"headers": {"Host": "shop"}}),
        (lambda e: e.get("REMOTE_ADDR") == "10.1.0.1", {"environ_overrides": {}}),
        (lambda e: not e["QUERY_STRING"], {"path": "/readyz?x"}),
    ],
    ids=["POST", "HEAD", "header", "host", "address", "query"],
)
def test_no_request_changes_what_another_ones_probe_gets(
    ours: WorkerProcess, has: Any, stranger: dict[str, Any], else_: str, first: str
) -> None:
    """An application may have its readiness for some requests alone. Whatever a stranger asks
    before or after the platform, the platform gets the application's own answer."""
    wrapped = overlay(Own(has, f"{else_} X"), ours)
    if first == "kubelet":
        assert ask(wrapped, **KUBELET)[0] == 503
    for _ in range(3):
        assert ask(wrapped, **{**KUBELET, **stranger})[0] in (200, 405)
        assert ask(wrapped, **KUBELET)[:2] == (503, "theirs")


def test_a_path_that_the_application_once_answered_stays_its_own(ours: WorkerProcess) -> None:
    """Its 404 of a moment is no lasting one, even when it came before its own answer."""
    is_there = False
    app = Own(lambda environ: is_there or "HTTP_EARLY" in environ)
    wrapped = overlay(app, ours)
    assert ask(wrapped)[0] == 200
    assert ask(wrapped, headers={"Early": "1"})[0] == 503
    for is_there in (True, False, True):
        assert ask(wrapped)[0] == (503 if is_there else 200)


def test_a_host_that_the_application_refuses_is_not_asked_again(ours: WorkerProcess) -> None:
    """Django logs a traceback for a host that it does not trust. An own answer at another host
    does not make it log one for each probe by the pod's address."""
    app = Own(lambda environ: environ["HTTP_HOST"] == "shop", "400 Bad Request")
    wrapped = overlay(app, ours)
    for _ in range(3):
        assert ask(wrapped, **KUBELET)[0] == 200
        assert ask(wrapped, headers={"Host": "shop"})[0] == 503
    assert app.asked == 3 + 2, "the host is asked again once, after the first answer of its own"


def test_what_is_learned_is_bounded(ours: WorkerProcess) -> None:
    """Made-up headers and hosts take no memory, and do not keep a probe from being learned. Nothing
    is learned from a request that is longer than any probe."""
    app = App("404 Not Found")
    wrapped = overlay(app, ours)
    learned = wrapped._ownership
    for number in range(2 * LEARNED + 10):
        assert ask(wrapped, headers={"X": f"h{number}"})[1] == "ok\n"
        assert len(learned._refused) <= LEARNED
    app.asked.clear()
    for _ in range(3):
        ask(wrapped, headers={"X": "x" * LONGEST})
        ask(wrapped)
    assert len(app.asked) == 3 + 1
    app.status = "200 OK"
    for number in range(2 * LEARNED):
        ask(wrapped, headers={"Host": f"h{number}"})
    assert len(learned._theirs) <= LEARNED + 1


# -- checks ----


class Checked:
    """A readiness check that a test turns, and that counts how often it ran."""

    def __init__(self, name: str = "database", **options: Any) -> None:
        self.passes, self.ran = True, 0
        gunicorn_grace.check(name, **{"ttl": 0, "timeout": 60, **options})(self)

    def __call__(self) -> bool:
        self.ran += 1
        return self.passes


WRAPS = pytest.mark.parametrize(
    "wrap", [overlay, lambda app, ours: Probes(app)], ids=["overlay", "middleware"]
)
DOWN = "[-]database failed: reason withheld\n"


@WRAPS
def test_a_check_decides_over_readiness(ours: WorkerProcess, wrap: Any) -> None:
    """And over nothing else; once it passes again the instance is ready again."""
    database, app = Checked(), wrap(App("404 Not Found"), ours)
    assert ask(app)[:2] == (200, "ok\n")
    database.passes = False
    assert ask(app)[:2] == (503, DOWN)
    assert ask(app, "/livez")[0] == ask(app, "/startupz")[0] == 200
    database.passes = True
    assert ask(app)[0] == 200
    assert database.ran == 3


@WRAPS
def test_from_t0_on_no_check_is_run(ours: WorkerProcess, wrap: Any) -> None:
    """Readiness is 503 for the shutdown, liveness 200 whatever its check would say."""
    database, loop = Checked(), Checked("loop", kind="liveness")
    loop.passes = False
    app = wrap(App("404 Not Found"), ours)
    assert ask(app, "/livez")[:2] == (503, "[-]loop failed: reason withheld\n")
    begin_shutdown(ours)
    assert ask(app, "/readyz?verbose")[1] == f"[+]booted ok\n{WITHHELD}"
    assert ask(app, "/readyz/database")[:2] == (503, WITHHELD)
    assert ask(app, "/livez")[:2] == ask(app, "/livez/loop")[:2] == (200, "ok\n")
    assert (database.ran, loop.ran) == (0, 1)


@WRAPS
def test_a_shutdown_that_begins_while_a_check_runs_is_in_the_answer(
    ours: WorkerProcess, wrap: Any
) -> None:
    """The phase is read when the check is through: a slow one delays no flip."""
    gunicorn_grace.check("slow", timeout=60)(lambda: begin_shutdown(ours))
    assert ask(wrap(App("404 Not Found"), ours))[:2] == (503, WITHHELD)


@WRAPS
def test_formats_reach_the_core(ours: WorkerProcess, wrap: Any) -> None:
    """Query, ``Accept`` and path mean the same whichever way a probe comes in; HEAD has the length
    of the same body."""
    database, app = Checked(), wrap(App("404 Not Found"), ours)
    database.passes = False
    assert ask(app, "/readyz?verbose")[:2] == (503, f"[+]booted ok\n[+]shutdown ok\n{DOWN}")
    assert ask(app, "/readyz?exclude=database")[:2] == (200, "ok\n")
    assert ask(app, "/readyz/database")[:2] == (503, DOWN)
    assert ask(app, "/readyz/shutdown")[:2] == (200, "ok\n")
    assert ask(app, "/readyz/nothing")[:2] == (404, "no such check\n")
    status, body, headers = ask(app, headers={"Accept": "application/json"})
    assert (status, json.loads(body)["checks"]["database"]) == (503, "failed")
    assert headers["Content-Type"] == "application/json"
    head = ask(app, method="HEAD", headers={"Accept": "application/json"})
    assert head == (503, "", headers)
    assert ask(app, "/readyz/database", "POST")[0] == 405
    assert ask(app, "/readyz/database?down=true")[0] == 503
    assert not ours.memory.is_terminating()


def test_a_check_counts_beside_the_applications_own_probe(ours: WorkerProcess) -> None:
    """Also behind a catch-all route, which answers 200 to everything: registered, a check decides.
    A failure of the application's own stays its own, and other methods are its business."""
    database, app = Checked(), App()
    wrapped = overlay(app, ours)
    assert ask(wrapped)[:2] == (200, "theirs")
    database.passes = False
    assert ask(wrapped)[:2] == (503, DOWN)
    assert ask(wrapped, method="POST")[:2] == (200, "theirs")
    assert ask(wrapped, "/livez")[:2] == (200, "theirs")
    app.status = "503 Service Unavailable"
    assert ask(wrapped)[:2] == (503, "theirs")


def test_without_checks_the_overlay_adds_nothing_to_an_application_with_its_own(
    ours: WorkerProcess,
) -> None:
    """No query, header or path of ours changes what it answers while it serves."""
    app = App()
    wrapped = overlay(app, ours)
    for path in ("/readyz?verbose", "/readyz?exclude=x", "/readyz/x", "/healthz/x"):
        assert ask(wrapped, path, headers={"Accept": "application/json"})[:2] == (200, "theirs")
    begin_shutdown(ours)
    assert ask(wrapped, "/readyz/x")[:2] == (200, "theirs"), "a path that is not a check of ours"
    assert ask(wrapped, "/readyz?verbose")[0] == 503


def test_names_that_are_made_up_are_not_learned(ours: WorkerProcess) -> None:
    """``/readyz/<anything>`` is asked of the application each time, and takes no memory."""
    app = App("404 Not Found")
    wrapped = overlay(app, ours)
    for number in range(LEARNED + 5):
        assert ask(wrapped, f"/readyz/x{number}")[0] == 404
    assert not wrapped._ownership._refused
    assert not wrapped._ownership._theirs


def test_dockerflow_paths(ours: WorkerProcess) -> None:
    """With ``grace_dockerflow`` both are probes; without, they are the application's."""
    assert ask(overlay(App(), ours), "/__heartbeat__")[1] == "theirs"
    wanted = WorkerProcess(ours.memory, 0, Settings(dockerflow=True), ours.log)
    wrapped = overlay(App("404 Not Found"), wanted)
    assert ask(wrapped, "/__heartbeat__")[0] == ask(wrapped, "/__lbheartbeat__")[0] == 200
    begin_shutdown(ours)
    assert ask(wrapped, "/__heartbeat__")[0] == 503
    assert ask(wrapped, "/__lbheartbeat__")[0] == 200


def test_probes_of_single_checks_are_no_traffic(ours: WorkerProcess) -> None:
    """Once the application is loaded their paths are known: they are not counted, and made-up ones
    are."""
    Checked()
    ours.counter.note_probe_paths()
    for path in ("/readyz/database", "/readyz/shutdown", "/healthz", "/readyz/other"):
        request = CountedCall("GET", path)
        ours.begin(request)
        ours.end(request)
    assert ours.record.requests == 1


# -- kinds of applications ----


def writes(environ: Any, start_response: Start) -> list[bytes]:
    write = start_response("200 OK", [PLAIN, ("Content-Length", "6")])
    write(b"the")
    return [b"irs"]


def generates(environ: Any, start_response: Start) -> Iterator[bytes]:
    start_response("200 OK", [PLAIN, ("Content-Length", "6")])
    yield b"the"
    yield b"irs"


def excuses(environ: Any, start_response: Start) -> list[bytes]:
    """Replaces its answer, as PEP 3333 lets an error handler do."""
    import sys

    start_response("200 OK", [PLAIN])
    try:
        raise ValueError("database")
    except ValueError:
        start_response("503 Sorry", [PLAIN, ("Content-Length", "6")], sys.exc_info())
    return [b"theirs"]


@pytest.mark.parametrize(("app", "status"), [(writes, 200), (generates, 200), (excuses, 503)])
def test_an_application_may_answer_in_any_way_of_wsgi(
    ours: WorkerProcess, app: Any, status: int
) -> None:
    """``write()``, a generator, ``exc_info``: what a probe gets is what it would get without us."""
    wrapped = overlay(app, ours)
    assert ask(wrapped, "/readyz")[:2] == ask(wrapped, "/elsewhere")[:2] == (status, "theirs")


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found"])
@pytest.mark.parametrize("fails", [False, True])
def test_close_is_called_once(ours: WorkerProcess, status: str, fails: bool) -> None:
    """Whether the answer is kept or not, and when it breaks in the middle: then so does the
    response that was kept."""
    closed = []

    class Result:
        def __iter__(self) -> Iterator[bytes]:
            yield b"the"
            if fails:
                raise ZeroDivisionError
            yield b"irs"

        def close(self) -> None:
            closed.append(1)

    def app(environ: Any, start_response: Start) -> Result:
        start_response(status, [PLAIN])
        return Result()

    with (
        pytest.raises(ZeroDivisionError)
        if fails and status == "200 OK"
        else contextlib.nullcontext()
    ):
        ask(overlay(app, ours))
    assert closed == [1]


def test_the_applications_changes_to_the_environment_stay_its_own(ours: WorkerProcess) -> None:
    """What it popped or rewrote before its 404 does not change our answer."""

    def app(environ: Any, start_response: Start) -> list[bytes]:
        environ["REQUEST_METHOD"] = "PUT"
        environ["PATH_INFO"] = "/gone"
        start_response("404 Not Found", [PLAIN])
        return [b""]

    assert ask(overlay(app, ours))[:2] == (200, "ok\n")


# -- methods ----


@pytest.mark.parametrize("terminating", [False, True])
def test_head_is_get_without_a_body(ours: WorkerProcess, terminating: bool) -> None:
    """The same status and the same length."""
    if terminating:
        begin_shutdown(ours)
    wrapped = overlay(App("404 Not Found"), ours)
    status, body, headers = ask(wrapped)
    assert ask(wrapped, method="HEAD") == (status, "", headers)
    assert headers["Content-Length"] == str(len(body))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_other_methods_are_not_allowed_unless_the_application_allows_them(
    ours: WorkerProcess, method: str
) -> None:
    """405 with Allow; while terminating as well."""
    for status in ("404 Not Found", "405 Method Not Allowed"):
        code, _, headers = ask(overlay(App(status), ours), method=method)
        assert (code, headers["Allow"]) == (405, "GET, HEAD")
    assert ask(overlay(App(), ours), method=method)[:2] == (200, "theirs")
    begin_shutdown(ours)
    assert ask(overlay(App(), ours), method=method)[0] == 405


# -- the trigger ----


@pytest.mark.parametrize(
    "wrap", [overlay, lambda app, ours: Probes(app)], ids=["overlay", "middleware"]
)
def test_a_forged_trigger_is_refused_and_told_once(
    ours: WorkerProcess, caplog: pytest.LogCaptureFixture, wrap: Any
) -> None:
    """403, no phase changes, and one log line a minute with the source."""
    app = App()
    wrapped = wrap(app, ours)
    environ = {"REMOTE_ADDR": "192.0.2.7"}
    for _ in range(3):
        code, body, _ = ask(wrapped, "/readyz?down=true", environ_base=environ)
        assert (code, body) == (403, "forbidden\n")
    assert not ours.memory.is_terminating()
    assert app.asked == []
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 1
    assert "192.0.2.7" in told[0]


def with_token(ours: WorkerProcess) -> WorkerProcess:
    from gunicorn_grace.shared.settings import Secret

    settings = Settings(trigger="token", trigger_token=Secret("s3cret"), readiness_delay=5)
    return WorkerProcess(ours.memory, 0, settings, ours.log)


def test_an_admitted_trigger_begins_the_shutdown(ours: WorkerProcess) -> None:
    """503 at once, also where readiness stays 200 for a while; a second one changes nothing."""
    wrapped = overlay(App(), with_token(ours))
    for _ in range(2):
        code, body, _ = ask(wrapped, "/readyz?down=true", headers={"X-Grace-Token": "s3cret"})
        assert (code, body) == (503, WITHHELD)
        began = ours.memory.header.trigger
    assert ours.memory.phase() is Phase.LAME_DUCK
    assert ours.memory.header.trigger == began
    assert ask(wrapped)[0] == 200


def test_a_trigger_that_expired_once_stays_shut(
    ours: WorkerProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """Even with the right token; the log says what to use."""
    ours.memory.header.http_shut = 1
    wrapped = overlay(App(), with_token(ours))
    assert ask(wrapped, "/readyz?down=true", headers={"X-Grace-Token": "s3cret"})[0] == 403
    assert not ours.memory.is_terminating()
    assert "gunicorn-grace prestop" in caplog.text


@pytest.mark.parametrize(
    "path",
    ["/livez?down=true", "/readyz?down=false", "/readyz?down", "/readyz?up=true", "/?down=true"],
)
def test_only_readiness_with_down_true_is_a_trigger(ours: WorkerProcess, path: str) -> None:
    """Everything else goes to the application as ever."""
    assert ask(overlay(App(), ours), path)[1] == "theirs"


def test_a_trigger_that_is_off_is_the_applications(ours: WorkerProcess) -> None:
    """With ``grace_trigger = "off"``, ``down=true`` is a query like any other."""
    quiet = WorkerProcess(ours.memory, 0, Settings(trigger="off"), ours.log)
    assert ask(overlay(App(), quiet), "/readyz?down=true")[1] == "theirs"


# -- the middleware ----


def test_the_middleware_answers_the_probes_and_nothing_else(ours: WorkerProcess) -> None:
    """Unlike the overlay it does not ask: who writes it into the code means it."""
    app = App()
    wrapped = Probes(app)
    assert ask(wrapped, "/readyz")[:2] == (200, "ok\n")
    assert ask(wrapped, "/other")[1] == "theirs"
    assert ask(wrapped, "/readyz", "POST")[0] == 405
    begin_shutdown(ours)
    assert ask(wrapped, "/readyz")[:2] == (503, WITHHELD)
    assert ask(wrapped, "/livez")[0] == 200
    assert app.asked == ["/other"]


def test_the_middleware_finds_its_worker_after_the_fork(
    ours: WorkerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built and even asked where there was no worker, it answers for the worker that it later is
    in."""
    wrapped = Probes(App())
    with monkeypatch.context() as patch:
        patch.setattr(process, "this_worker", None)
        assert ask(wrapped)[0] == 200
    begin_shutdown(ours)
    assert ask(wrapped)[0] == 503


@pytest.mark.parametrize("path", ["/readyz", "/livez", "/startupz", "/healthz"])
def test_outside_gunicorn_the_instance_serves(path: str) -> None:
    """In a test or a development server every probe is 200, and there is nothing to trigger."""
    assert ask(Probes(App()), path)[:2] == (200, "ok\n")
    assert ask(Probes(App()), path + "?down=true")[:2] == (200, "ok\n")


# -- counting ----


def counting(app: Any, ours: WorkerProcess) -> Counting:
    return Counting(app, ours.counter, ours.memory.is_terminating)


def in_flight(ours: WorkerProcess) -> int:
    return int(ours.record.in_flight)


def test_a_request_is_counted_until_its_iterable_is_closed(ours: WorkerProcess) -> None:
    """For worker classes without request hooks (PEP 3333: the server must call ``close``)."""
    result = counting(App(), ours)(EnvironBuilder("/").get_environ(), lambda *a: lambda b: None)
    assert in_flight(ours) == 1
    assert b"".join(result) == b"theirs"
    assert in_flight(ours) == 1
    result.close()  # type: ignore[attr-defined]
    assert in_flight(ours) == 0
    assert ours.record.requests == 1


def test_a_request_that_fails_is_counted_out(ours: WorkerProcess) -> None:
    """An application that raises leaves nothing in flight."""

    def broken(environ: Any, start_response: Start) -> Iterable[bytes]:
        assert in_flight(ours) == 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        counting(broken, ours)(EnvironBuilder("/").get_environ(), lambda *a: lambda b: None)
    assert in_flight(ours) == 0


def test_a_request_whose_close_fails_is_counted_out(ours: WorkerProcess) -> None:
    """The iterable's own ``close`` may raise: the server gets to know, and nothing stays in
    flight."""

    class Body(list[bytes]):
        def close(self) -> None:
            raise ZeroDivisionError

    def app(environ: Any, start_response: Start) -> Iterable[bytes]:
        start_response("200 OK", [PLAIN])
        return Body([b"theirs"])

    body: Any = counting(app, ours)(EnvironBuilder("/").get_environ(), lambda *a: lambda b: None)
    assert in_flight(ours) == 1
    with pytest.raises(ZeroDivisionError):
        body.close()
    assert in_flight(ours) == 0


def test_counting_keeps_to_wsgi_and_leaves_probes_out(ours: WorkerProcess) -> None:
    """Lint finds nothing, and what is not counted in is not counted out."""
    app = counting(App(), ours)
    assert ask(app, "/x")[1] == "theirs"
    assert ask(app, "/readyz")[1] == "theirs"
    assert (in_flight(ours), ours.record.requests) == (0, 1)
