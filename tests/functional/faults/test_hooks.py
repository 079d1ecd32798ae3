"""What happens when a user's own hook raises, hangs or calls ``sys.exit`` during the shutdown.

The outcome is that of plain gunicorn, with one exception: a hook of the arbiter that fails then
does not cost the requests that other workers are serving. In all cases it is over before the
deadline.
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import h11
import pytest

from gunicorn_grace.shared.phase import Phase
from support.servers import HOLD, QUICK, Client, Connect, Serve, Server

PARAMETERS = {
    "pre_request": "worker, req",
    "post_request": "worker, req, environ, resp",
    "worker_exit": "server, worker",
    "child_exit": "server, worker",
    "on_exit": "server",
    "post_worker_init": "worker",
}

DEEDS = {
    "raises": 'raise RuntimeError("raised by a hook")',
    "exits": "sys.exit(7)",
    "is slow": "time.sleep(0.8)",
    "hangs": "time.sleep(60)",
}

CONF = """
import sys, time
import gunicorn_grace
def {hook}({parameters}):
    if "req" not in locals() or req.path == "/trip":
        sys.stderr.write("the {hook} hook runs\\n")
        {deed}
gunicorn_grace.install(globals())
"""


def start(hook: str, deed: str, serve: Serve, tmp_path: Path, **options: object) -> Server:
    """An instance with two workers and one hook that misbehaves; ``pre_request`` and its like do so
    for ``/trip``."""
    text = CONF.format(hook=hook, parameters=PARAMETERS[hook], deed=DEEDS[deed])
    (tmp_path / "conf.py").write_text(text)
    server = serve(config=("-c", "conf.py"), **{"args": ("-w", "2"), "settings": QUICK, **options})
    if hook != "post_worker_init":
        server.wait_booted(2)
    return server


def answer(client: Client, path: str) -> int:
    """The status of a request, 0 when the connection ended without one."""
    try:
        return client.get(path).status
    except (OSError, h11.RemoteProtocolError):
        return 0


@pytest.mark.long(but="gthread-post_request-raises-status1")
@pytest.mark.parametrize(
    ("hook", "deed", "status"),
    [
        ("pre_request", "raises", {500}),
        ("post_request", "raises", {404}),
        # 0: where sys.exit ends the worker, and not just the thread or greenlet.
        ("pre_request", "exits", {0, 500}),
        ("post_request", "exits", {0, 404}),
    ],
)
def test_a_request_hook_that_fails_costs_that_request_at_most(
    hook: str,
    deed: str,
    status: set[int],
    kind: str,
    serve: Serve,
    connect: Connect,
    tmp_path: Path,
) -> None:
    """A failing pre_request or post_request leaves nothing in flight that would hold the exit; the
    service goes on."""
    # Four threads: sys.exit costs gthread 22.0 and 23.0 the one that it runs in, and its connection
    # is never closed.
    args = ("-k", kind, "-w", "2", *(("--threads", "4") if kind == "gthread" else ()))
    server = start(hook, deed, serve, tmp_path, args=args, settings=HOLD)
    server.lead_to(Phase.LAME_DUCK)
    client = connect(server, timeout=2 if deed == "exits" else 20)
    assert answer(client, "/trip") in status
    client.close()
    server.wait_booted(2)
    assert {server.get("/").status for _ in range(8)} == {200}
    server.wait_in_flight(0)
    server.terminate()
    server.assert_gone()


@pytest.mark.long
@pytest.mark.parametrize(
    ("hook", "lost", "kind"),
    [("pre_request", 1, "sync"), ("pre_request", 1, "gthread"), ("post_request", 0, "gthread")],
)
def test_a_request_hook_that_hangs_does_not_pass_the_deadline(
    hook: str, lost: int, kind: str, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """Its worker is ended at the deadline; the request counts as cut off if its response had not
    been sent."""
    server = start(hook, "hangs", serve, tmp_path, args=("-k", kind, "-w", "2"))
    client = connect(server)
    client.send("/trip")
    server.wait_line(f"the {hook} hook runs")
    server.terminate()
    server.assert_gone()
    server.wait_line("deadline_reached")
    assert f"{lost} cut off" in server.summary()


@pytest.mark.long
@pytest.mark.parametrize("deed", ["raises", "exits", "is slow", "hangs"])
def test_a_worker_exit_hook_that_fails_does_not_hold_the_exit(
    deed: str, serve: Serve, tmp_path: Path
) -> None:
    """The worker has finished its work by then; one that hangs in it is ended at the deadline."""
    server = start("worker_exit", deed, serve, tmp_path)
    server.terminate()
    server.assert_gone()
    server.wait_line("the worker_exit hook runs")
    assert "0 cut off" in server.summary()


@pytest.mark.long
@pytest.mark.parametrize("deed", ["raises", "is slow"])
def test_a_child_exit_hook_that_fails_costs_no_other_worker_its_request(
    deed: str, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """It runs in the arbiter when the first worker has gone; the request of the other one
    completes."""
    server = start("child_exit", deed, serve, tmp_path)
    client = connect(server)
    client.send("/slow?s=2")
    server.wait_line("slow request begins")
    server.terminate()
    server.wait_line("the child_exit hook runs")
    assert client.receive().status == 200
    client.close()
    server.assert_gone(None, patience=10)


@pytest.mark.long
def test_a_child_exit_hook_that_exits_leaves_no_orphan(
    serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """sys.exit ends the arbiter at once, as in plain gunicorn; its workers, already dismissed,
    finish and go."""
    server = start("child_exit", "exits", serve, tmp_path)
    client = connect(server)
    client.send("/slow?s=2")
    server.wait_line("slow request begins")
    server.terminate()
    assert client.receive().status == 200
    client.close()
    server.assert_gone(7, patience=10)


@pytest.mark.long
def test_a_child_exit_hook_that_raises_in_lame_duck_cuts_nothing_off(
    serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """A worker crashes during the delay, and the hook with it: the others serve on, and the dead
    one is replaced."""
    server = start("child_exit", "raises", serve, tmp_path, settings=HOLD)
    client = connect(server)
    client.send("/slow?s=2")
    busy = server.wait_pid("slow request begins in ")
    server.lead_to(Phase.LAME_DUCK)
    (victim,) = set(server.wait_booted(2)) - {busy}
    os.kill(victim, signal.SIGKILL)
    server.wait_line("the child_exit hook runs")
    assert client.receive().status == 200
    client.close()
    assert server.get("/readyz").status == 503
    server.wait_for(lambda: set(server.wait_booted(2)) - {busy, victim}, "a new worker")
    server.terminate()
    server.assert_gone(None)


@pytest.mark.long
@pytest.mark.parametrize(("deed", "code"), [("raises", 1), ("exits", 7), ("is slow", 0)])
def test_an_on_exit_hook_that_fails_comes_too_late_to_harm(
    deed: str, code: int, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """Ours has written the summary and the report before it; the exit code is the one that plain
    gunicorn has."""
    report = tmp_path / "report.json"
    report.touch()
    server = start("on_exit", deed, serve, tmp_path, settings={**QUICK, "report": report})
    client = connect(server)
    client.send("/slow?s=1")
    server.wait_line("slow request begins")
    server.terminate()
    assert client.receive().status == 200
    client.close()
    server.assert_gone(code)
    assert "0 cut off" in server.summary()
    assert json.loads(report.read_text())["cut_off"] == 0


@pytest.mark.long
def test_a_worker_that_hangs_while_it_boots_does_not_hold_the_exit(
    serve: Serve, tmp_path: Path
) -> None:
    """SIGTERM reaches a worker in its post_worker_init too: that one goes at once, and nothing
    waits for it."""
    server = start("post_worker_init", "hangs", serve, tmp_path, ready=False)
    server.wait_line("the post_worker_init hook runs")
    server.terminate()
    server.assert_gone()
