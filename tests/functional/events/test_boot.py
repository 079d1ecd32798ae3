"""SIGTERM before anything is ready, also as PID 1 and to a worker that has just been forked."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from gunicorn_grace.rehearsal.processes import procfs
from support.servers import HOLD, LONG_DRAIN, SHORT, Serve


def test_sigterm_during_a_preload_ends_it_at_once(serve: Serve) -> None:
    """With preload_app the import runs in the arbiter: SIGTERM ends it without a delay, by the
    signal or with 0."""
    server = serve("slow_import:app", args=("--preload",), settings=HOLD, listens=False)
    server.wait_line("import begins")
    server.signal(signal.SIGTERM)
    assert server.wait_exit(15), server.output
    assert server.wait() in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
    assert "shutdown_initiated" not in server.output


@pytest.mark.parametrize("extra", [(), ("--preload",)], ids=["workers load", "preload"])
def test_sigterm_during_boot_as_pid_1(
    extra: tuple[str, ...], serve: Serve, container: tuple[str, ...]
) -> None:
    """The kernel ignores a signal without a handler for PID 1: it ends at once all the same,
    nothing is left."""
    args = ("-k", "sync", *LONG_DRAIN, *extra)
    server = serve(
        "slow_import:app", args=args, settings=HOLD, executable_prefix=container, listens=False
    )
    server.wait_line("import begins")
    first = next(pid for pid in server.processes() if procfs.inner_pid(pid) == 1)
    os.kill(first, signal.SIGTERM)
    assert server.wait_exit(15), server.output
    assert server.wait() in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
    assert "shutdown_initiated" not in server.output
    assert server.processes() == []


GATE = """
import os
from gunicorn.glogging import Logger
from gunicorn_grace.conf import *

def wait_at_the_gate():
    if os.path.exists("gate"):
        open("gate").close()
{where}
"""

BEFORE_OUR_HOOK = """
class AtTheGate(Logger):
    def info(self, message, *args, **kwargs):
        if message.startswith("Booting worker"):
            wait_at_the_gate()
        super().info(message, *args, **kwargs)

logger_class = AtTheGate
"""

AFTER_OUR_HOOK = """
def post_fork(server, worker):
    wait_at_the_gate()
"""


@pytest.mark.parametrize(
    "where", [BEFORE_OUR_HOOK, AFTER_OUR_HOOK], ids=["before our hook", "after our hook"]
)
def test_sigterm_between_a_fork_and_the_workers_signals(
    where: str, serve: Serve, tmp_path: Path
) -> None:
    """A worker that is dismissed before gunicorn has set its signals leaves as soon as it runs;
    gunicorn alone would lose the signal and wait for it as long as graceful_timeout."""
    (tmp_path / "conf.py").write_text(GATE.format(where=where))
    server = serve(
        args=("-k", "sync", "-w", "1", *LONG_DRAIN), config=("-c", "conf.py"), settings=SHORT
    )
    (first,) = server.wait_booted(1)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    server.signal(signal.SIGTTIN)
    (young,) = server.wait_for(
        lambda: set(procfs.children(server.pid)) - {first}, "a second worker"
    )
    memory = server.memory
    record = server.wait_for(
        lambda: [record for record in memory.records() if record.age == 2],
        "its slot",
    )[0]
    server.signal(signal.SIGTERM)
    server.wait_for(lambda: record.dismissed, "its dismissal")
    opened = os.open(gate, os.O_RDWR)  # It stays open, for a worker that has yet to come there.
    try:
        assert server.wait_exit(10), f"{young} holds the exit\n{server.output}"
    finally:
        os.close(opened)
    assert server.wait() == 0, server.output
    assert server.processes() == []
