"""Whatever a worker stores in the shared memory: the arbiter ends in time, and signals no process
but its own."""

from __future__ import annotations

import contextlib
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from gunicorn_grace.rehearsal.load.wire import fetch
from support.servers import QUICK, WORKERS, Serve, Server

pytestmark = pytest.mark.ends

WATCHED = """
import os
from gunicorn_grace.conf import *

arbiter, kill, posix_spawn = os.getpid(), os.kill, os.posix_spawn

def watched(pid, sig):
    if os.getpid() == arbiter:
        os.write(2, f"signal {int(sig)} to {pid}\\n".encode())
    kill(pid, sig)

def watched_spawn(*args, **options):
    pid = posix_spawn(*args, **options)
    os.write(2, f"started {pid}\\n".encode())
    return pid

os.kill, os.posix_spawn = watched, watched_spawn
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
        settings={**QUICK, "probe_bind": "127.0.0.1:0"},
    )
    server.wait_booted(2)
    path = f"/scribble?cells={cells}&pause={pause:g}&seed={seed}"
    assert server.get(path).body == b"scribbling\n"
    server.wait_line("scribbling in")
    return server


def assert_ended_in_time_and_alone(server: Server) -> None:
    """It is gone before the platform's deadline, and no signal went to a stranger."""
    started = {
        int(pid) for pid in re.findall(r"(?:Booting worker with pid:|started) (\d+)", server.output)
    }
    told = {int(pid) for pid in re.findall(r"signal \d+ to (\d+)", server.output)}
    assert told
    assert told <= started | {server.arbiter_pid}, server.output
    assert "leaves the shutdown to gunicorn" not in server.output, server.output
    assert "Traceback" not in server.output, server.output
    assert server.output.isascii()
    assert server.output.replace("\n", "").isprintable()


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
    responder = int(server.wait_line("probe port at").rpartition(":")[2])
    for path in ("/readyz?verbose", "/livez", "/readyz/database", "/startupz", "/readyz") * 4:
        with contextlib.suppress(OSError):  # It is started anew, if the workers are found hung.
            assert fetch(("127.0.0.1", responder), path).body.isascii()
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


def test_a_responder_that_starts_on_garbage_answers(serve: Serve) -> None:
    """The arbiter tells it how the memory is laid out. It takes that from nobody else, so a damaged
    layout costs one line."""
    server = serve(kind="gthread", settings={**QUICK, "probe_bind": "127.0.0.1:0"})
    server.wait_booted(2)
    responder = int(server.wait_line("probe port at").rpartition(":")[2])
    header = server.memory.header
    header.magic = header.layout = header.slot_count = header.boards = -1
    header.arbiter = 2**40
    server.wait_line("has overwritten the shared memory: its layout is stored again")
    server.signal(signal.SIGHUP)
    server.wait_for(
        lambda: fetch(("127.0.0.1", responder), "/readyz").status == 200, "the answer again"
    )
    server.terminate()
    server.assert_gone()
    assert server.output.count("has overwritten the shared memory") == 1
    assert "Traceback" not in server.output


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
