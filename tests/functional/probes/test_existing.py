"""Applications with probes of their own, and those that would refuse ours: real Flask, Django,
Falcon, bare WSGI."""

from __future__ import annotations

from pathlib import Path

import pytest

from apps.frameworks import HOSTS, OWN, STRICT
from gunicorn_grace.rehearsal.load.wire import Response
from gunicorn_grace.shared.phase import Phase
from support.servers import HOLD, Serve, Server

pytestmark = pytest.mark.ends

WITHHELD = b"[-]shutdown failed: reason withheld\n"


@pytest.fixture
def not_ready(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """While this file is there, the applications' own probes say 503."""
    return tmp_path_factory.mktemp("switch") / "not-ready"


@pytest.fixture
def server(serve: Serve, not_ready: Path, kind: str) -> Server:
    """All of them, in front of each worker class."""
    return serve(
        "frameworks:app", kind=kind, settings=HOLD, env={"NOT_READY": str(not_ready)}, ready=False
    )


def ask(server: Server, name: str, path: str, method: str = "GET") -> Response:
    return server.get(path, method=method, headers=(("Host", HOSTS[name]),), timeout=40.0)


def test_existing_probes_keep_their_meaning_and_gain_the_flip(
    server: Server, not_ready: Path
) -> None:
    """Status, body and headers of an application's own ``/readyz`` are its own while it serves, 503
    too; from T0 on readiness is 503 by us, and its ``/livez`` still its own. What it lacks,
    ``/startupz``, is ours."""
    for name in OWN:
        ready = ask(server, name, "/readyz?verbose")
        assert (ready.status, ready.body, ready.headers["x-mine"]) == (
            200,
            b"theirs: ready",
            "1",
        ), name
        assert (ask(server, name, "/startupz").status, ask(server, name, "/healthz").body) == (
            200,
            b"ok\n",
        ), name
    not_ready.touch()
    for name in OWN:
        refused = ask(server, name, "/readyz")
        assert (refused.status, refused.body, refused.headers["x-mine"]) == (
            503,
            b"theirs: no database",
            "1",
        ), name
    not_ready.unlink()
    server.lead_to(Phase.LAME_DUCK)
    for name in OWN:
        flipped = ask(server, name, "/readyz")
        assert (flipped.status, flipped.body) == (503, WITHHELD), name
        alive = ask(server, name, "/livez")
        assert (alive.status, alive.body, alive.headers["x-mine"]) == (
            200,
            b"theirs: alive",
            "1",
        ), name


@pytest.mark.long(but="gthread")
def test_a_stranger_does_not_change_what_the_platform_gets(server: Server, not_ready: Path) -> None:
    """Methods that the application does not know, and made-up headers, come before each probe. The
    probe gets the application's own "not ready" all the same."""
    not_ready.touch()
    for name in OWN:
        for method in ("POST", "DELETE", "HEAD", "OPTIONS"):
            ask(server, name, "/readyz", method=method)
            for _ in range(4):
                assert ask(server, name, "/readyz").body == b"theirs: no database", (name, method)


@pytest.mark.long(but="gthread")
def test_django_logs_no_traceback_for_each_probe(server: Server) -> None:
    """Django refuses a probe by the pod's address, and logs an error with its traceback. Each
    worker asks it once for each probe."""
    for _ in range(20):
        for path in ("/livez", "/startupz"):
            assert ask(server, "ALLOWED_HOSTS", path).status == 200
    workers = len(list(server.memory.records()))
    assert 1 <= server.output.count("DisallowedHost: Invalid HTTP_HOST header") <= 2 * workers


@pytest.mark.long(but="gthread")
def test_applications_that_refuse_strangers_are_probed_by_the_pods_address(server: Server) -> None:
    """A host that is not trusted, a login, a redirect to one, host matching, no such route: none of
    them is in the way of a probe, before T0 and after it."""
    for name in STRICT:
        for path in ("/livez", "/startupz", "/healthz"):
            assert (ask(server, name, path).status, ask(server, name, path).body) == (
                200,
                b"ok\n",
            ), (name, path)
        assert ask(server, name, "/readyz").body == b"ok\n", name
        assert ask(server, name, "/readyz/shutdown").body == b"ok\n", name
    server.lead_to(Phase.LAME_DUCK)
    for name in STRICT:
        assert ask(server, name, "/readyz").body == WITHHELD, name
        assert ask(server, name, "/livez").status == 200, name


@pytest.mark.long(but="gthread")
def test_behind_a_catch_all_route_readiness_flips(server: Server) -> None:
    """Its 200 is an answer, and stays one while it serves; from T0 on readiness is ours."""
    assert ask(server, "catch-all", "/readyz").body == b"theirs: everything"
    server.lead_to(Phase.LAME_DUCK)
    assert ask(server, "catch-all", "/readyz").body == WITHHELD
    assert ask(server, "catch-all", "/livez").status == 200


@pytest.mark.long(but="gthread")
def test_behind_a_prefix_probes_are_below_it(kind: str, serve: Serve, tmp_path: Path) -> None:
    """With SCRIPT_NAME ``/api`` the probe is ``/api/readyz``: answered, flipped, not counted, not
    in the access log."""
    log = tmp_path / "access.log"
    server = serve(
        kind=kind,
        args=("-w", "1", "--access-logfile", str(log)),
        settings=HOLD,
        env={"SCRIPT_NAME": "/api"},
        ready=False,
    )
    headers = (("Host", "10.1.2.3"),)
    for path in (
        "/api/readyz",
        "/api/livez",
        "/api/startupz",
        "/api/healthz",
        "/api/readyz/shutdown",
    ):
        assert server.get(path, headers=headers, timeout=40.0).body == b"ok\n", path
    assert server.get("/api/", headers=headers).status == 200
    server.wait_for(lambda: '"GET /api/ ' in log.read_text(), "the request in the access log")
    assert log.read_text().count("\n") == 1
    assert sum(record.requests for record in server.memory.records()) == 1
    server.lead_to(Phase.LAME_DUCK)
    assert server.get("/api/readyz", headers=headers).body == WITHHELD
