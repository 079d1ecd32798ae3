"""SIGTTIN, SIGTTOU and SIGUSR1: the number of workers and their log files can be changed in every
phase."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from pathlib import Path

import pytest

from gunicorn_grace.shared.phase import Phase
from support.servers import HOLD, WORKERS, Serve, look, look_at_each, workers_of


@pytest.mark.long(but="LAME_DUCK-gthread")
@pytest.mark.parametrize(
    ("phase", "kind"),
    [(Phase.SERVING, "gthread"), *((Phase.LAME_DUCK, kind) for kind in sorted(WORKERS))],
    ids=str,
)
def test_the_number_of_workers_can_be_changed(phase: Phase, kind: str, serve: Serve) -> None:
    """SIGTTIN forks a worker that knows the phase from its first request on; SIGTTOU lets one go,
    and nothing else."""
    server = serve(kind=kind, settings=HOLD)
    count = workers_of(kind)
    old = server.wait_booted(count)
    if phase is Phase.LAME_DUCK:
        server.lead_to(Phase.LAME_DUCK)
    server.signal(signal.SIGTTIN)
    (new,) = set(server.wait_booted(count + 1)) - set(old)
    for pid in old:
        os.kill(pid, signal.SIGSTOP)  # Now the new one answers, and no other.
    try:
        answer = look(server.get("/look"))
        assert (answer["pid"], answer["phase"]) == (new, str(phase))
        assert server.get("/readyz").status == (200 if phase is Phase.SERVING else 503)
    finally:
        for pid in old:
            os.kill(pid, signal.SIGCONT)
    server.signal(signal.SIGTTOU)
    server.wait_workers(count)
    assert new in server.worker_pids(), "the oldest goes"
    assert server.get("/").status == 200
    assert server.memory.header.phase == phase


def test_log_files_are_reopened_in_lame_duck(serve: Serve, tmp_path: Path) -> None:
    """SIGUSR1 during the delay: the rotated file is left, the new one written, no worker goes, the
    clock runs on."""
    log = tmp_path / "access.log"
    server = serve(kind="gthread", args=("--access-logfile", str(log)), settings=HOLD)
    before = sorted(server.wait_booted(2))
    server.lead_to(Phase.LAME_DUCK)
    t0 = server.memory.header.t0
    log.rename(tmp_path / "access.log.1")
    server.signal(signal.SIGUSR1)
    server.wait_for(
        lambda: all(str(log) in open_files(pid) for pid in before), "the new file in each worker"
    )
    for number, _ in enumerate(look_at_each(server, before), 1):
        server.wait_for(
            lambda n=number: log.read_text().count("GET /look") == n, "its line in the new log file"
        )
    assert sorted(server.wait_booted(2)) == before
    assert server.get("/readyz").status == 503
    assert (server.memory.header.phase, server.memory.header.t0) == (Phase.LAME_DUCK, t0)


def open_files(pid: int) -> set[str]:
    """The names of the files that a process has open."""
    names = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            names.add(str(link.readlink()))
    return names


COUNTED = """
import gunicorn.arbiter
from gunicorn_grace.conf import *

def counted(name):
    theirs = getattr(gunicorn.arbiter.Arbiter, name)
    def method(self):
        self.log.info("pass of %s", name)
        theirs(self)
    setattr(gunicorn.arbiter.Arbiter, name, method)

counted("manage_workers")
counted("murder_workers")
"""


@pytest.mark.ends
def test_the_loop_keeps_its_pace_in_lame_duck(serve: Serve, tmp_path: Path) -> None:
    """What gunicorn does in each pass of its loop it does once a second, as while SERVING: an
    Arbiter of the user's may be paced by it. A worker that dies is replaced at once."""
    (tmp_path / "counted.py").write_text(COUNTED)
    server = serve(config=("-c", "counted.py"), args=("-w", "2"), settings=HOLD)
    old = set(server.wait_booted(2))
    server.lead_to(Phase.LAME_DUCK)
    begin = server.mark()
    seen = begin
    for name in ("manage", "murder") * 3:
        server.wait_line(f"pass of {name}_workers", after=seen)
        seen = server.mark()
    for name in ("manage", "murder"):
        times = [at for at, line in list(server.lines)[begin:] if f"pass of {name}_workers" in line]
        assert len(times) >= 3
        # The first may follow the signal; a line can be read late.
        gaps = [later - earlier for earlier, later in itertools.pairwise(times[1:])]
        assert min(gaps) > 0.8, gaps
    died = time.monotonic()
    os.kill(min(old), signal.SIGKILL)
    server.wait_for(lambda: set(server.wait_booted(2)) - old, "the new worker")
    server.wait_line("Booting worker", after=seen)
    booting = [at for at, line in list(server.lines)[seen:] if "Booting worker" in line]
    assert booting[0] - died < 0.6, server.output
