"""The probes of real servers: the table of DESIGN 9, the formats, and checks that fail and hang."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gunicorn_grace.rehearsal.load.wire import Response
from gunicorn_grace.shared.phase import Phase
from support.servers import HOLD, WORKERS, Client, Connect, Serve, Server, booted_in

pytestmark = pytest.mark.ends

APP = "probe_service:app"
ENDPOINTS = {
    "liveness": ("/livez", "/healthz", "/__lbheartbeat__", "/livez/loop"),
    "readiness": ("/readyz", "/__heartbeat__", "/readyz/database"),
    "startup": ("/startupz", "/startupz/migrations"),
}
CHECKS = {"liveness": "loop", "readiness": "database", "startup": "migrations"}

TABLE = {
    Phase.SERVING: {"liveness": 200, "readiness": 200, "startup": 200},
    Phase.LAME_DUCK: {"liveness": 200, "readiness": 503, "startup": 200},
    Phase.DRAINING: {"liveness": 200, "readiness": 503, "startup": 200},
}
"""DESIGN 9. In STARTING no worker answers anything: that row is in tests/unit/test_probes.py."""

WITHHELD = "[-]{} failed: reason withheld\n"


class Switches:
    """The files that turn the checks of ``probe_service``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()

    def set(self, *names: str) -> None:
        """Exactly these are on."""
        for path in self.folder.iterdir():
            path.unlink()
        for name in names:
            (self.folder / name).touch()


@pytest.fixture
def switches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Switches]:
    """All checks pass; a check that hangs is let go with the test."""
    made = Switches(tmp_path_factory.mktemp("switches") / "on")
    yield made
    made.set()


def start(serve: Serve, switches: Switches, kind: str, *args: str, **options: Any) -> Server:
    env = {"SWITCHES": str(switches.folder), **options.pop("env", {})}
    settings = {**HOLD, "dockerflow": "true", **options.pop("settings", {})}
    return serve(APP, kind=kind, args=args, env=env, settings=settings)


@contextlib.contextmanager
def held_in(server: Server, phase: Phase) -> Iterator[None]:
    """What the workers see while the arbiter, which would go on to the next phase, stands still."""
    header = server.memory.header
    server.signal(signal.SIGSTOP)
    server.wait_for(lambda: _state_of(server.arbiter_pid) == "T", "the arbiter's halt")
    header.phase = phase
    try:
        yield
    finally:
        header.phase = Phase.SERVING
        server.signal(signal.SIGCONT)


def _state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def ask(server: Server, way: str, path: str, **options: Any) -> Response:
    headers = (("Host", way), *options.pop("headers", ()))
    return server.get(path, headers=headers, timeout=40.0, **options)


@pytest.mark.long(but="overlay")
@pytest.mark.parametrize(
    "ways", [("overlay",), ("blueprint", "init_app", "middleware")], ids=["overlay", "others"]
)
def test_the_table(kind: str, ways: tuple[str, ...], serve: Serve, switches: Switches) -> None:
    """Every phase, endpoint and alias, by every way in, with all checks passing and with all
    failing: a check decides while serving, and over its own kind alone; from T0 on the phase
    does."""
    server = start(serve, switches, kind, settings={"overlay": str(ways == ("overlay",))})
    for phase, row in TABLE.items():
        with held_in(server, phase):
            for failing in ((), *((what,) for what in CHECKS), tuple(CHECKS)):
                if phase is not Phase.SERVING and len(failing) == 1:
                    continue
                switches.set(*(f"{CHECKS[what]}-down" for what in failing))
                for way in ways:
                    for what, paths in ENDPOINTS.items():
                        status = 503 if phase is Phase.SERVING and what in failing else row[what]
                        found = {path: ask(server, way, path).status for path in paths}
                        assert found == dict.fromkeys(paths, status), (
                            phase,
                            way,
                            failing,
                            server.output,
                        )


@pytest.mark.parametrize(
    "ways", [("overlay",), ("blueprint", "init_app", "middleware")], ids=["overlay", "others"]
)
def test_formats(ways: tuple[str, ...], serve: Serve, switches: Switches) -> None:
    """The same bytes by every way in, on the wire of a real server."""
    server = start(serve, switches, "gthread", settings={"overlay": str(ways == ("overlay",))})
    down = WITHHELD.format("database")
    for way in ways:
        switches.set()
        ready = ask(server, way, "/readyz")
        assert (ready.status, ready.body) == (200, b"ok\n")
        assert ready.headers["content-type"] == "text/plain; charset=utf-8"
        assert ready.headers["cache-control"] == "no-store"
        assert ready.headers["x-content-type-options"] == "nosniff"
        passing = ask(server, way, "/readyz?verbose").body.decode()
        assert passing == "[+]booted ok\n[+]shutdown ok\n[+]database ok\n"
        switches.set("database-down")
        assert ask(server, way, "/readyz").body.decode() == down
        verbose = ask(server, way, "/readyz?verbose&exclude=shutdown&exclude=<b>").body.decode()
        assert verbose.startswith(
            f"[+]booted ok\n[+]shutdown ok\n{down}warn: not excluded: 2 given as exclude"
        )
        assert "<b>" not in verbose
        assert ask(server, way, "/readyz?exclude=database").status == 200
        assert ask(server, way, "/readyz/database").body.decode() == down
        assert ask(server, way, "/readyz/booted").status == 200
        assert ask(server, way, "/readyz/nothing").status == 404
        head = ask(server, way, "/readyz", method="HEAD")
        assert (head.status, head.body, head.headers["content-length"]) == (
            503,
            b"",
            str(len(down)),
        )
        post = ask(server, way, "/readyz", method="POST")
        assert (post.status, post.headers["allow"]) == (405, "GET, HEAD")
        told = ask(server, way, "/readyz", headers=(("Accept", "application/json"),))
        assert told.headers["content-type"] == "application/json"
        assert json.loads(told.body) == {
            "status": "failed",
            "phase": "SERVING",
            "seconds_left": None,
            "checks": {"booted": "ok", "shutdown": "ok", "database": "failed"},
        }
    server.lead_to(Phase.LAME_DUCK)
    for way in ways:
        told = json.loads(
            ask(server, way, "/readyz", headers=(("Accept", "application/json"),)).body
        )
        assert (told["phase"], told["checks"]) == (
            "LAME_DUCK",
            {"booted": "ok", "shutdown": "failed"},
        )
        assert 0 < told["seconds_left"] <= HOLD["termination_period"]


@pytest.mark.long
def test_a_hanging_check_costs_one_timeout_and_one_thread(
    kind: str, serve: Serve, connect: Connect, switches: Switches
) -> None:
    """Over a thousand probes; requests are served meanwhile, and once it no longer hangs the
    instance is ready."""
    args = {"sync": ("-w", "2"), "gthread": ("-w", "1"), "gevent": ("-w", "1")}[kind]
    server = start(serve, switches, kind, *args, env={"CHECK_TIMEOUT": "0.5"})
    (worker, *others) = server.wait_booted(2 if kind == "sync" else 1)
    before = {pid: len(os.listdir(f"/proc/{pid}/task")) for pid in (worker, *others)}
    switches.set("database-hangs")
    waiting = connect(server)
    waiting.send("/readyz")
    server.wait_line("check database hangs")
    assert server.get("/").status == 200
    assert waiting.receive().status == 503
    waiting.close()
    probes(server, connect, kind, 1000)
    # As many threads as before, those of gthread's pool, and at most one more. The one that closes
    # connections ends with the last of them.
    pool = 4 if kind == "gthread" else 0
    for pid, count in before.items():
        server.wait_for(
            lambda pid=pid, count=count: len(os.listdir(f"/proc/{pid}/task")) <= count + pool + 1,
            "the end of other threads",
        )
    assert server.output.count("check database hangs") <= len(before)
    assert server.output.count("database failed: no result within 0.5 s") <= len(before)
    switches.set()
    server.wait_for(lambda: server.get("/readyz").status == 200, "readiness")
    server.wait_line("readiness check database passed again")


def probes(server: Server, connect: Connect, kind: str, count: int) -> None:
    """So many probes, each of them not ready; on one connection where it is kept."""
    client: Client | None = None if kind == "sync" else connect(server)
    for _ in range(count):
        response = server.get("/readyz") if client is None else client.get("/readyz")
        assert (response.status, response.body.decode()) == (503, WITHHELD.format("database"))


@pytest.mark.long(but="gthread")
def test_with_preload_app_checks_work_in_every_worker(
    kind: str, serve: Serve, switches: Switches
) -> None:
    """Registered once, in the arbiter, and after a reload too; the reason is in the log, once a
    worker and change, and not on the wire."""
    server = start(serve, switches, kind, "--preload")
    count = int(WORKERS[kind][3])
    server.wait_booted(count)
    for _ in range(2):
        assert server.get("/readyz").status == 200
        switches.set("database-down")
        response = server.get("/readyz?verbose", headers=(("Accept", "application/json"),))
        assert response.status == 503
        assert b"s3cret" not in response.body
        assert "s3cret" not in str(response.headers)
        switches.set()
        server.wait_for(lambda: server.get("/readyz").status == 200, "readiness")
        reload(server, count)
    reason = (
        "gunicorn-grace: readiness check database failed: ConnectionError: s3cret place of database"
    )
    assert 2 <= server.output.count(reason) <= 2 * count


def reload(server: Server, count: int) -> None:
    """SIGHUP, until only new workers are there."""
    before = set(server.wait_booted(count))
    server.signal(signal.SIGHUP)
    server.wait_for(
        lambda: len(now := booted_in(server.memory)) == count and not before & set(now),
        f"{count} new workers",
    )


def test_a_check_that_cannot_be_registered_is_told(serve: Serve, tmp_path: Path) -> None:
    """The worker does not boot, and the log has the line that says what to do."""
    (tmp_path / "wrong.py").write_text(
        'import gunicorn_grace\ngunicorn_grace.check("shutdown")(print)\n'
    )
    server = serve("wrong:app", kind="sync", listens=False, env={"PYTHONPATH": str(tmp_path)})
    assert server.wait() != 0
    assert "CheckError: check name 'shutdown' is one of the plugin's own" in server.output
