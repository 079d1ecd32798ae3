"""What is read of other processes, from the kernel's own tables."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from gunicorn_grace.rehearsal.processes import procfs

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not os.path.exists("/proc/self"), reason="there is no /proc"),
]
WAIT = "import sys; print(flush=True); sys.stdin.read()"


@pytest.fixture
def marked() -> Iterator[list[subprocess.Popen[str]]]:
    """Three processes, two of which carry the same mark."""
    processes = []
    for value in ("one", "one", "two"):
        env = {**os.environ, "PROCFS_TEST": f"{value} {os.getpid()}"}
        process = subprocess.Popen(
            [sys.executable, "-c", WAIT],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        process.stdout.readline()
        processes.append(process)
    yield processes
    for process in processes:
        process.kill()
        process.communicate()


def test_marked_processes_are_found_by_their_value(marked: list[subprocess.Popen[str]]) -> None:
    """Each under its value, one that has ended under none."""
    one, two = (f"{value} {os.getpid()}" for value in ("one", "two"))
    pids = [process.pid for process in marked]
    found = procfs.marked_by_value("PROCFS_TEST")
    assert (sorted(found[one]), found[two]) == (sorted(pids[:2]), pids[2:])
    assert procfs.end_marked("PROCFS_TEST", one)
    assert procfs.marked("PROCFS_TEST", one) == []
    assert procfs.marked("PROCFS_TEST", two) == pids[2:]


def test_no_thread_gets_what_a_look_found_that_began_before_it_asked(
    marked: list[subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who ask while one is under way share later ones: what has come since may have been
    passed by."""
    looks: list[threading.Event] = []
    real = procfs.marked_by_value
    under_way = threading.Event()

    def look(variable: str) -> dict[str, list[int]]:
        looks.append(threading.Event())
        if len(looks) == 1:
            under_way.set()
            assert looks[0].wait(20)
            return {}
        return real(variable)

    monkeypatch.setattr(procfs, "marked_by_value", look)
    two = f"two {os.getpid()}"
    scan = procfs._Scan("PROCFS_TEST")
    monkeypatch.setitem(procfs._Scan._all, "PROCFS_TEST", scan)
    first = threading.Thread(target=procfs.marked, args=("PROCFS_TEST", two))
    first.start()
    assert under_way.wait(20)
    found: list[list[int]] = []
    begun = threading.Barrier(9)

    def ask() -> None:
        begun.wait()
        found.append(procfs.marked("PROCFS_TEST", two))

    others = [threading.Thread(target=ask) for _ in range(8)]
    for thread in others:
        thread.start()
    begun.wait()
    looks[0].set()
    for thread in (first, *others):
        thread.join()
    assert found == [[marked[2].pid]] * 8


def test_memory_is_told_in_bytes(marked: list[subprocess.Popen[str]]) -> None:
    """An interpreter holds more than a MiB and less than a GiB; a process that is gone holds
    nothing."""
    pid = marked[0].pid
    assert 1 << 20 < procfs.memory(pid) < 1 << 30
    procfs.end_marked("PROCFS_TEST", f"one {os.getpid()}")
    marked[0].communicate()
    assert procfs.memory(pid) == 0
