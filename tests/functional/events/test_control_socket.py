"""gunicorn's control socket (25.1 and later)."""

from __future__ import annotations

import subprocess
import sys

import gunicorn
import pytest

from gunicorn_grace.shared.phase import Phase
from support.servers import HOLD, Serve, Server


def gunicornc(server: Server, command: str) -> str:
    """What gunicorn's own command says."""
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn.ctl.cli", "-c", command],
        env=server.env,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{server.output}"
    return done.stdout


@pytest.mark.skipif(
    gunicorn.version_info < (25, 1), reason="gunicorn has a control socket from 25.1 on"
)
def test_the_control_socket_in_lame_duck(serve: Serve) -> None:
    """`gunicornc -c shutdown` begins a lame duck phase like any SIGTERM, in which the socket still
    answers, and changes the number of workers; a second shutdown changes nothing."""
    server = serve(kind="gthread", settings=HOLD)
    server.wait_booted(2)
    # A thread of the arbiter's begins to, later than the workers.
    server.wait_line("Control socket listening")
    gunicornc(server, "shutdown")
    server.wait_phase(Phase.LAME_DUCK)
    assert server.get("/readyz").status == 503
    server.wait_line("shutdown_initiated by SIGTERM")
    assert "2 workers" in gunicornc(server, "show workers")
    gunicornc(server, "worker add 1")
    server.wait_booted(3)
    assert {server.get("/readyz").status for _ in range(8)} == {503}
    seen = server.mark()
    gunicornc(server, "shutdown")
    server.wait_line("Handling signal: term", after=seen)
    assert server.memory.header.phase == Phase.LAME_DUCK
    server.end_delay()
    assert server.wait(20) == 0, server.output
