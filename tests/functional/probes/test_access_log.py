"""The access log of real servers: probes that succeed stay out of it, those that fail are in it,
and all else is the user's."""

from __future__ import annotations

import importlib.util
import signal
from pathlib import Path

import pytest

from support.servers import HOLD, SHORT, Connect, Serve, Server

pytestmark = pytest.mark.ends

FORMAT = "%(m)s %(U)s%(q)s -> %(s)s"
LOGGERS = {
    "gunicorn's": ((), "GET {} -> {}"),
    "renamed": (
        (
            "--logger-class",
            "access_loggers.Renamed",
            "--access-logformat",
            "%(what)s -> %(how)s, %(s)s",
        ),
        "GET {} -> {}, -",
    ),
    "sentence": (("--logger-class", "access_loggers.Sentence"), "GET {} -> {} {}"),
    "elsewhere": (("--logger-class", "access_loggers.Elsewhere"), "GET {} -> {} {}"),
}
REASONS = {200: "OK", 404: "NOT FOUND", 503: "Service Unavailable"}

QUIET = (
    "/readyz",
    "/livez?verbose",
    "/healthz",
    "/startupz",
    "/readyz/database",
    "/readyz/shutdown",
)
LOUD = (("/", 200), ("/nothing", 404), ("/readyz/nothing", 404))


def server_with(
    serve: Serve, kind: str, log: Path, switches: Path, logger: tuple[str, ...], **settings: object
) -> Server:
    return serve(
        "probe_service:app",
        kind=kind,
        args=("-w", "1", "--access-logfile", str(log), "--access-logformat", FORMAT, *logger),
        env={"SWITCHES": str(switches), "ELSEWHERE": str(log)},
        settings={**HOLD, **settings},
        ready=False,
    )


@pytest.fixture
def switches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file ``database-down`` in it makes readiness fail."""
    return tmp_path_factory.mktemp("switches")


def lines(server: Server, log: Path, *wanted: str) -> list[str]:
    """The access log, once it has these: a line may be written after the response has come."""
    return server.wait_for(  # type: ignore[no-any-return]
        lambda: (
            log.exists() and set(wanted) <= set(found := log.read_text().splitlines()) and found
        ),
        f"{wanted} in the access log",
    )


@pytest.mark.long(but="gunicorn's")
@pytest.mark.parametrize("logger", LOGGERS)
def test_probes_that_succeed_stay_out_of_any_access_log(
    logger: str, serve: Serve, connect: Connect, tmp_path: Path, switches: Path
) -> None:
    """Whatever class and format the user has: of what is written, not a letter is changed."""
    log = tmp_path / "access.log"
    args, shown = LOGGERS[logger]
    server = server_with(serve, "gthread", log, switches, args)
    client = connect(server)
    for path in QUIET:
        assert client.get(path).status == 200
    for path, status in LOUD:
        assert client.get(path).status == status
    (switches / "database-down").touch()
    assert client.get("/readyz").status == 503
    assert client.get("/").status == 200
    wanted = [
        shown.format(path, status, REASONS[status])
        for path, status in (*LOUD, ("/readyz", 503), ("/", 200))
    ]
    found = server.wait_for(
        lambda: (
            log.exists() and len(lines := log.read_text().splitlines()) >= len(wanted) and lines
        ),
        "every line",
    )
    # 404 comes from Flask and from us, in two spellings.
    assert [line.lower() for line in found] == [line.lower() for line in wanted]


@pytest.mark.long(but="gthread")
@pytest.mark.parametrize("worker", ["sync", "gthread", "gevent", "gevent_pywsgi"])
def test_other_methods_are_no_probes(worker: str, serve: Serve, tmp_path: Path) -> None:
    """What a stranger sends to a probe's path by another method is in the log, also where a
    catch-all route answers it with 200."""
    log = tmp_path / "access.log"
    server = serve(
        "catch_all:app", args=("-k", worker, "-w", "1", "--access-logfile", str(log)), ready=False
    )
    for method in ("GET", "HEAD", "POST", "DELETE", "PUT"):
        path = "/readyz" if method == "DELETE" else "/livez?x"
        assert server.get(path, method=method, timeout=40.0).status == 200
    found = server.wait_for(
        lambda: log.exists() and len(lines := log.read_text().splitlines()) >= 3 and lines,
        "three lines",
    )
    assert [
        method
        for line in found
        for method in ("GET", "HEAD", "POST", "DELETE", "PUT")
        if f'"{method} /' in line
    ] == ["POST", "DELETE", "PUT"]


@pytest.mark.long
def test_probes_stay_out_for_every_worker_class(
    kind: str, serve: Serve, tmp_path: Path, switches: Path
) -> None:
    """With gunicorn's own logger: also those that come after T0, where liveness is 200 and
    readiness 503."""
    log = tmp_path / "access.log"
    server = server_with(serve, kind, log, switches, ())
    assert [server.get(path, timeout=40.0).status for path in QUIET] == [200] * len(QUIET)
    assert server.get("/").status == 200
    assert lines(server, log, "GET / -> 200") == ["GET / -> 200"]
    server.terminate()
    server.wait_for(lambda: server.get("/readyz").status == 503, "the flip")
    assert server.get("/livez").status == 200
    assert server.get("/nothing").status == 404
    wanted = ("GET / -> 200", "GET /readyz -> 503", "GET /nothing -> 404")
    assert set(lines(server, log, *wanted)) == set(wanted)


def test_with_grace_log_probes_all_are_written(
    serve: Serve, tmp_path: Path, switches: Path
) -> None:
    """As gunicorn does without us."""
    log = tmp_path / "access.log"
    server = server_with(serve, "sync", log, switches, (), log_probes="true")
    for path in ("/readyz", "/livez", "/"):
        assert server.get(path, timeout=40.0).status == 200
    wanted = [f"GET {path} -> 200" for path in ("/readyz", "/livez", "/")]
    assert lines(server, log, *wanted) == wanted


@pytest.mark.long
@pytest.mark.parametrize("worker_class", ["asgi", "uvicorn_worker.UvicornWorker"])
def test_probes_stay_out_for_asgi_workers_too(
    worker_class: str, serve: Serve, tmp_path: Path
) -> None:
    """gunicorn's own writes by gunicorn's logger, uvicorn by one of its own; the application is
    wrapped."""
    if (
        importlib.util.find_spec(
            {"asgi": "gunicorn.workers.gasgi"}.get(worker_class, "uvicorn_worker")
        )
        is None
    ):
        pytest.skip(f"no {worker_class} here")
    log = tmp_path / "access.log"
    server = serve(
        "asgi_wrapped:app",
        args=("-k", worker_class, "-w", "1", "--access-logfile", str(log)),
        settings=HOLD,
        ready=False,
    )
    for path in ("/readyz", "/livez?verbose", "/readyz/shutdown"):
        assert server.get(path, timeout=40.0).status == 200
    assert server.get("/readyz/nothing").status == 404
    assert server.get("/").status == 200
    server.wait_for(
        lambda: log.exists() and '"GET / ' in log.read_text(), "the request in the access log"
    )
    server.terminate()
    server.wait_for(lambda: server.get("/readyz").status == 503, "the flip")
    server.wait_for(
        lambda: '"GET /readyz ' in log.read_text(), "the failing probe in the access log"
    )
    text = log.read_text()
    assert '"GET /readyz/nothing ' in text
    assert not any(line for line in text.splitlines() if "/livez" in line or "/shutdown" in line)
    assert not any(
        line for line in text.splitlines() if '"GET /readyz ' in line and " 503 " not in f"{line} "
    )


@pytest.mark.long
def test_a_logger_in_front_of_which_nothing_can_stand_changes_nothing_else(serve: Serve) -> None:
    """What keeps probes out of its access log fails, which is logged; the instance is ready, and
    has its delay."""
    server = serve(
        "service:app",
        args=("-w", "1", "--logger-class", "access_loggers.Delegating"),
        settings=SHORT,
    )
    server.wait_booted(1)
    assert server.get("/readyz").status == 200
    assert "the access log hook failed" in server.output
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.output
    assert "lame_duck_ended" in server.output
