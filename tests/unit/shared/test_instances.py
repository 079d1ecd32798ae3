"""Which memories count as instances: tried with real processes of several users and namespaces."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gunicorn_grace.shared import memory as shm
from gunicorn_grace.shared.instances import Search, lives, search

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memfd here"),
    pytest.mark.once,
]

ROOT = Path(shm.__file__).parents[1]
PATIENCE = 20

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")


def _may_unshare() -> bool:
    if shutil.which("unshare") is None:
        return False
    command = ["unshare", "-p", "-f", "true"]
    return subprocess.run(command, capture_output=True, timeout=20, check=False).returncode == 0


PRELUDE = """
import os, sys, time
from gunicorn_grace.shared.memory import Memory
NOBODY = 65534
def become_nobody():
    os.setresgid(NOBODY, NOBODY, NOBODY); os.setresuid(NOBODY, NOBODY, NOBODY)
def made(arbiter=None):
    memory = Memory.create(slots=1)
    memory.header.phase = 1
    if arbiter is not None:
        memory.header.arbiter = arbiter
    return memory
"""


class Process:
    """A Python process that runs some code, prints the pids that matter, and waits."""

    def __init__(self, code: str, *prefix: str) -> None:
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", f"{PRELUDE}{code}\nsys.stdin.read()"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.told = [int(word) for word in self.process.stdout.readline().split()]
        self.pid = self.told[0]

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.communicate(timeout=PATIENCE)


Start = Callable[..., Process]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes, and ends them."""
    with contextlib.ExitStack() as stack:

        def begin(code: str, *prefix: str) -> Process:
            process = Process(code, *prefix)
            stack.callback(process.close)
            return process

        yield begin


def pids(found: Search) -> set[int]:
    found.close()
    return {instance.pid for instance in found.instances}


ARBITER = "memory = made(); print(os.getpid(), flush=True)"


def test_an_arbiter_that_holds_its_memory_is_an_instance(start: Start) -> None:
    """It is found by its process, and its memory is the one that it has made."""
    arbiter = start(ARBITER)
    found = search(arbiter.pid)
    assert [(one.pid, one.problem) for one in found.instances] == [(arbiter.pid, None)]
    assert found.instances[0].memory is not None
    assert found.instances[0].memory.header.arbiter == arbiter.pid
    assert arbiter.pid in pids(found) & pids(search())


def test_a_worker_that_has_outlived_its_arbiter_is_no_instance(start: Start) -> None:
    """It still holds the memory, and the arbiter that the memory names is gone."""
    arbiter = start(
        "memory = made()\n"
        "if not (pid := os.fork()):\n"
        "    time.sleep(60); os._exit(0)\n"
        "print(os.getpid(), pid, flush=True)"
    )
    orphan = arbiter.told[1]
    try:
        assert pids(search(arbiter.pid)) == {arbiter.pid}
        assert not {arbiter.pid, orphan} & (pids(search()) - {arbiter.pid})
        arbiter.process.kill()
        arbiter.process.wait(PATIENCE)
        found = search(orphan)
        assert found.instances == []
        assert f"its arbiter, {arbiter.pid}, does not hold it" in found.passed_over[0]
        assert not {arbiter.pid, orphan} & pids(search())
        assert not lives(arbiter.pid)
    finally:
        os.kill(orphan, signal.SIGKILL)


@needs_root
@pytest.mark.parametrize(
    "decoy",
    [
        "become_nobody(); memory = made({arbiter})",
        "become_nobody(); memory = made()",
        "become_nobody(); memory = made(os.getppid())",
        "os.seteuid(NOBODY); memory = made(); os.seteuid(0)",
        "memory = made(); os.setresuid(NOBODY, 0, 0)",
    ],
    ids=[
        "names our arbiter",
        "names itself",
        "names a process of root",
        "its memory in a process of root",
        "a set-uid program of its own",
    ],
)
def test_another_users_memory_is_no_instance(start: Start, decoy: str) -> None:
    """Whatever number it names, and wherever it lies. The real one is found beside it."""
    arbiter = start(ARBITER)
    other = start(decoy.format(arbiter=arbiter.pid) + "; print(os.getpid(), flush=True)")
    found = search()
    everybody = pids(found)
    assert other.pid not in everybody
    assert arbiter.pid in everybody
    assert [one.pid for one in found.instances].count(arbiter.pid) == 1
    found = search(arbiter.pid)
    assert [one.pid for one in found.instances] == [arbiter.pid]
    found.close()


@needs_root
def test_root_may_name_the_arbiter_of_another_user(start: Start) -> None:
    """What it names by its number is no decoy."""
    other = start("become_nobody(); memory = made(); print(os.getpid(), flush=True)")
    assert pids(search(other.pid)) == {other.pid}


@needs_root
@pytest.mark.parametrize("number", ["1", "2**40", "-1", "os.getpid()"])
def test_a_worker_of_another_user_cannot_hide_its_arbiter(start: Start, number: str) -> None:
    """It overwrites the number of the arbiter, all the time. The arbiter is found as the parent of
    workers that have dropped their privileges."""
    arbiter = start(
        "memory = made()\n"
        "if not (pid := os.fork()):\n"
        f"    become_nobody(); memory.header.arbiter = {number}; print(os.getppid(), flush=True)\n"
        "    time.sleep(60); os._exit(0)\n"
    )
    try:
        assert pids(search(arbiter.pid)) == {arbiter.pid}
        assert arbiter.pid in pids(search())
    finally:
        for child in Path(f"/proc/{arbiter.pid}/task/{arbiter.pid}/children").read_text().split():
            os.kill(int(child), signal.SIGKILL)


@pytest.mark.skipif(not _may_unshare(), reason="no PID namespace may be made here (unshare -p)")
def test_arbiters_with_the_same_number_are_two_instances(start: Start) -> None:
    """Both are PID 1 of their containers. Seen from the host they have numbers of their own."""
    made = [start(ARBITER, "unshare", "-p", "-f", "--kill-child") for _ in range(2)]
    assert [process.pid for process in made] == [1, 1]
    arbiters = set()
    for process in made:
        children = Path(f"/proc/{process.process.pid}/task/{process.process.pid}/children")
        arbiters.add(int(children.read_text()))
    assert len(arbiters) == 2
    assert arbiters <= pids(search())
