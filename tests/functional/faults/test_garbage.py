"""Whatever a worker stores in the shared memory: the arbiter ends in time, and signals no process
but its own."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from support.servers import QUICK, WORKERS, Serve, Server

pytestmark = pytest.mark.ends

WATCHED = """
import os
from gunicorn_grace.conf import *

arbiter, kill = os.getpid(), os.kill

def watched(pid, sig):
    if os.getpid() == arbiter:
        os.write(2, f"signal {int(sig)} to {pid}\\n".encode())
    kill(pid, sig)

os.kill = watched
"""

HEADER, EVERYWHERE = 64, 64 + 16 * 8


def scribbled(
    serve: Serve, tmp_path: Path, cells: int, pause: float, seed: int, kind: str = "gthread"
) -> Server:
    """An instance of two workers, one of which writes all over the memory."""
    (tmp_path / "watched.py").write_text(WATCHED)
    server = serve(
        "scribbling:app",
        args=("-k", kind, "-w", "2", "--graceful-timeout", "2"),
        config=("-c", "watched.py"),
        settings=QUICK,
    )
    server.wait_booted(2)
    path = f"/scribble?cells={cells}&pause={pause:g}&seed={seed}"
    assert server.get(path).body == b"scribbling\n"
    server.wait_line("scribbling in")
    return server


def assert_ended_in_time_and_alone(server: Server) -> None:
    """It is gone before the platform's deadline, and no signal went to a stranger."""
    started = {int(pid) for pid in re.findall(r"Booting worker with pid: (\d+)", server.output)}
    told = {int(pid) for pid in re.findall(r"signal \d+ to (\d+)", server.output)}
    assert told
    assert told <= started | {server.arbiter_pid}, server.output
    assert "leaves the shutdown to gunicorn" not in server.output, server.output


@pytest.mark.parametrize(
    ("cells", "pause", "seed"),
    [(HEADER, 0, 1), (HEADER, 0.05, 2), (EVERYWHERE, 0, 3), (EVERYWHERE, 0.05, 4)],
    ids=["header", "header-slowly", "everywhere", "everywhere-slowly"],
)
@pytest.mark.long(but="gthread")
@pytest.mark.parametrize("kind", WORKERS)
def test_garbage_before_and_during_the_shutdown_does_not_hold_it(
    kind: str, cells: int, pause: float, seed: int, serve: Serve, tmp_path: Path
) -> None:
    """Random 8-byte values everywhere: after SIGTERM the arbiter delays, drains and ends before the
    deadline, each time, and signals no process but its own workers."""
    server = scribbled(serve, tmp_path, cells, pause, seed, kind)
    assert {server.get("/").status for _ in range(20)} == {200}
    server.terminate()
    assert server.wait(float(QUICK["termination_period"])) == 0, server.output
    assert "shutdown_initiated by" in server.output
    assert "gunicorn-grace: stopped" in server.output
    assert_ended_in_time_and_alone(server)


@pytest.mark.parametrize("value", ["phase", "t0", "drain", "sigterm", "consumed", "failed"])
def test_a_single_store_does_not_change_what_sigterm_does(
    value: str, serve: Serve, tmp_path: Path
) -> None:
    """``phase = 4``, ``t0 = 2**62`` or a drain that never was: the delay, the drain and the exit
    come as if no process had written."""
    server = serve(kind="gthread", settings=QUICK)
    server.wait_booted(2)
    setattr(server.memory.header, value, 4 if value == "phase" else 2**62)
    server.terminate()
    server.wait_line("lame_duck_ended after .*: delay elapsed")
    server.assert_gone()
    stopped = re.search(r"stopped: lame duck ([\d.]+) s \(delay elapsed\)", server.output)
    assert stopped, server.output
    assert float(stopped[1]) >= float(QUICK["shutdown_delay"])


@pytest.mark.parametrize("command", ["prestop", "drain", "undrain"])
def test_a_command_on_garbage_says_one_line(command: str, serve: Serve, tmp_path: Path) -> None:
    """Whatever lies in the memory, a command ends with one line."""
    server = scribbled(serve, tmp_path, EVERYWHERE, 0, 5)
    run = [sys.executable, "-m", "gunicorn_grace.cli", command, "--pid", str(server.arbiter_pid)]
    for _ in range(3):
        done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
        said = done.stdout + done.stderr
        assert done.returncode in (0, 1)
        assert said.count("\n") == 1, said
        assert "Traceback" not in said
    server.signal(signal.SIGTERM)
    assert server.wait(10) is not None
