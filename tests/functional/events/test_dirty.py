"""The dirty arbiter and its workers (gunicorn 25 and later) stay as long as the web workers."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from support.servers import QUICK, SHORT, Connect, Serve, Server, look

pytest.importorskip("gunicorn.dirty")

CONF = "from gunicorn_grace.conf import *\ndirty_apps = ['dirty_service:Task']\ndirty_workers = 1\n"


def start(serve: Serve, tmp_path: Path, settings: dict[str, object]) -> tuple[Server, int, int]:
    """An instance, and the pids of its dirty arbiter and dirty worker."""
    (tmp_path / "conf.py").write_text(CONF)
    server = serve("dirty_service:app", kind="gthread", config=("-c", "conf.py"), settings=settings)
    server.wait_line("Dirty worker .* listening")
    worker: int = look(server.get("/task?s=0"))["pid"]
    arbiter = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
    return server, arbiter, worker


def test_sigterm_to_the_whole_group_leaves_them_until_the_workers_are_gone(
    serve: Serve, tmp_path: Path, connect: Connect
) -> None:
    """A task that is under way at SIGTERM completes, a request of the delay gets its task done, and
    all of them are gone at the end."""
    server, _, worker = start(serve, tmp_path, QUICK | {"shutdown_delay": 1.5})
    client = connect(server)
    client.send("/task?s=1")
    server.wait_in_flight(1)
    server.signal_group(signal.SIGTERM)
    server.wait_line("shutdown_initiated")
    assert look(client.receive())["pid"] == worker
    client.close()
    assert look(server.get("/task?s=0.2"))["pid"] == worker
    assert not server.memory.header.drain, "still in the delay"
    # Not more than this: with Python 3.12 and later gunicorn's dirty arbiter waits for connections
    # of its own until it is killed, and leaves its files, without the plugin too (27.0.1).
    assert server.wait(20) == 0, server.output
    server.wait_for(lambda: not server.processes(), "the end of every process", 2)
    assert "0 cut off" in server.summary()


@pytest.mark.long
@pytest.mark.parametrize("which", ["arbiter", "worker"])
def test_sigterm_to_one_of_them_by_hand_replaces_it(
    which: str, serve: Serve, tmp_path: Path
) -> None:
    """As under plain gunicorn, half a second later."""
    server, arbiter, worker = start(serve, tmp_path, SHORT)
    os.kill(arbiter if which == "arbiter" else worker, signal.SIGTERM)
    seen = server.mark()
    server.wait_line("Spawned dirty worker", after=seen)
    server.wait_line("Dirty worker .* listening", after=seen)
    if which == "worker":  # Web workers do not learn the address of a new dirty arbiter.
        assert look(server.get("/task?s=0"))["pid"] != worker
    server.terminate()
    server.assert_gone()
