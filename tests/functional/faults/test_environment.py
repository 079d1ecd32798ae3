"""What happens when what a process stands on gives way: its output, /proc, its files, its memory,
the clock.

``docs/reference/faults.md`` is the table of all faults. ``Server.assert_gone`` says what must hold after each
of them.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gunicorn_grace.shared import cells
from gunicorn_grace.shared import memory as shm
from gunicorn_grace.shared.phase import Phase
from support.paths import TESTS
from support.servers import QUICK, Client, Connect, Serve, Server

CLOCK = TESTS / "support" / "shifted_clock.c"
SLOWER = {**QUICK, "shutdown_delay": 1}


def interpreter(path: Path, lines: str) -> str:
    """A stand-in for the Python interpreter: it changes what a process stands on, then becomes the
    real one."""
    path.write_text(
        f"#!{sys.executable} -S\nimport os, sys\npython = {sys.executable!r}\n{lines}\n"
    )
    path.chmod(0o755)
    return str(path)


BECOME = "os.execv(python, [python, *sys.argv[1:]])"


def assert_shuts_down_as_ever(server: Server, client: Client) -> None:
    """Readiness flips, what is in flight is finished, nothing is cut off."""
    client.send("/slow?s=2")
    server.wait_line("slow request begins")
    server.terminate()
    server.wait_phase(Phase.LAME_DUCK)
    assert server.get("/readyz").status == 503
    assert client.receive().status == 200
    client.close()
    server.assert_gone()
    assert "0 cut off" in server.summary()


# -- output ----


OUTPUT = {
    "reader is gone": "end, pipe = os.pipe(); os.close(end); os.dup2(pipe, 1); os.dup2(pipe, 2); "
    "os.close(pipe)",
    "full": "full = os.open('/dev/full', os.O_WRONLY); os.dup2(full, 1); os.dup2(full, 2); "
    "os.close(full)",
    "closed": "os.close(1); os.close(2)",
}


@pytest.mark.long(but="closed-gthread")
@pytest.mark.parametrize(
    ("output", "kind"),
    [
        *((output, "gthread") for output in OUTPUT),
        ("closed", "sync"),
        ("closed", "gevent"),
        ("full", "gevent"),
    ],
)
def test_nothing_hangs_on_the_output(
    output: str,
    kind: str,
    serve: Serve,
    connect: Connect,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Where not a line can be written, readiness flips, requests are served, and it exits with 0 in
    time."""
    mute = interpreter(tmp_path_factory.mktemp("bin") / "python", f"{OUTPUT[output]}\n{BECOME}")
    report = tmp_path / "report.json"
    report.touch()
    server = serve(kind=kind, python=mute, settings={**SLOWER, "report": report})
    client = connect(server)
    client.send("/nap?s=2")
    server.wait_in_flight(1)
    server.terminate()
    server.wait_phase(Phase.LAME_DUCK)
    assert server.get("/readyz").status == 503
    assert server.get("/").status == 200
    assert client.receive().status == 200
    client.close()
    server.assert_gone()
    assert server.output == ""
    told = json.loads(report.read_text())
    assert (told["origin"], told["cut_off"]) == ("sigterm", 0)


@pytest.mark.long
def test_the_memory_is_never_the_standard_output(
    serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """With 1 and 2 closed the next file that is opened gets those numbers, and what C code prints
    would land in it."""
    mute = interpreter(tmp_path_factory.mktemp("bin") / "python", f"{OUTPUT['closed']}\n{BECOME}")
    server = serve(kind="sync", python=mute, settings=SLOWER)
    for fd in (0, 1, 2):
        with contextlib.suppress(FileNotFoundError):
            assert not os.readlink(f"/proc/{server.pid}/fd/{fd}").startswith(shm.LINK), fd
    server.terminate()
    server.assert_gone()


# -- file systems ----


UNSHARE = shutil.which("unshare")
can_mount = pytest.mark.skipif(
    UNSHARE is None
    or subprocess.run([UNSHARE, "--mount", "true"], capture_output=True, check=False).returncode
    != 0,
    reason="mount namespaces are not to be had here",
)


def mounting(path: Path, commands: str) -> str:
    """A stand-in for the Python interpreter that first changes what it sees mounted; it keeps its
    pid."""
    shell = f'{commands} && exec "$0" "$@"'
    return interpreter(
        path,
        f"os.execvp('unshare', ['unshare', '--mount', 'sh', '-c', {shell!r}, python, "
        f"*sys.argv[1:]])",
    )


@pytest.mark.long
@can_mount
def test_without_proc_it_shuts_down(
    kind: str, serve: Serve, connect: Connect, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No /proc: readiness flips, what is in flight completes, a trigger over HTTP is refused, it
    exits in time."""
    server = serve(
        kind=kind,
        python=mounting(tmp_path_factory.mktemp("bin") / "python", "mount -t tmpfs none /proc"),
        settings=SLOWER,
    )
    assert server.get("/readyz?down=true").status == 403
    server.wait_line("trigger refused.*/proc")
    idle = connect(server)
    if kind != "sync":
        assert idle.get("/").status == 200
    assert_shuts_down_as_ever(server, connect(server))


@pytest.mark.long
@can_mount
def test_a_read_only_root_changes_nothing(serve: Serve, connect: Connect, tmp_path: Path) -> None:
    """A container without one writable file system but /dev/shm: it boots and shuts down, and the
    report is missed."""
    # /tmp may be a file system of its own.
    mounted = {Path("/"), next(path for path in tmp_path.resolve().parents if path.is_mount())}
    remounts = " && ".join(
        f"mount -o remount,bind,ro {shlex.quote(str(path))}" for path in sorted(mounted)
    )
    read_only = mounting(tmp_path / "python", remounts)
    server = serve(
        kind="gthread",
        python=read_only,
        args=("--worker-tmp-dir", "/dev/shm"),
        settings={**SLOWER, "report": tmp_path / "report.json"},
        env={"PYTHONDONTWRITEBYTECODE": "1"},
    )
    assert_shuts_down_as_ever(server, connect(server))
    server.wait_line("grace_report .* cannot be written: .*Read-only file system")


# -- the shared memory, seen from outside ----


HOLDER = """
import os, sys
fd = os.memfd_create("gunicorn-grace")
os.write(fd, bytes.fromhex(sys.argv[1]))
print(os.getpid(), flush=True)
sys.stdin.read()
"""

ALONE = """
import os, subprocess, sys
from gunicorn_grace.shared import memory as shm
PIPE = subprocess.PIPE
holder = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdin=PIPE, stdout=PIPE)
holder.stdout.readline()
drain = [sys.executable, "-m", "gunicorn_grace.cli", "drain"]
alone = subprocess.run(drain, stdin=subprocess.DEVNULL).returncode
good = shm.Memory.create()
beside = subprocess.run(drain, stdin=subprocess.DEVNULL).returncode
sys.exit(0 if (alone, beside, good.is_triggered()) == (1, 0, True) else 9)
"""

DAMAGED = {
    "truncated": b"ggrace\0\1\0\0",
    "empty": b"",
    "garbage": bytes(range(1, 256)) * 40,
    "all zero": bytes(8192),
    "too many slots": struct.pack("q" * 64, shm.MAGIC_NUMBER, shm.LAYOUT, 1 << 40, *[1] * 61),
    "no such phase": struct.pack("q" * 64, shm.MAGIC_NUMBER, shm.LAYOUT, 1, 1, 99, *[0] * 59)
    + bytes(128),
}


@contextlib.contextmanager
def holder(content: bytes) -> Iterator[int]:
    """A process with a memory that is called like ours; its pid."""
    command = [sys.executable, "-c", HOLDER, content.hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.kill()


def grace(*args: str) -> subprocess.CompletedProcess[str]:
    """Run the command."""
    command = [sys.executable, "-m", "gunicorn_grace.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)


@pytest.mark.ends
@pytest.mark.long
@pytest.mark.parametrize("content", ["truncated", "garbage"])
def test_a_damaged_memory_is_told_from_the_good_one_beside_it(content: str, serve: Serve) -> None:
    """Asked for the damaged one, the command says so in one line and fails; the instance beside it
    is found."""
    server = serve(kind="gthread", settings={**SLOWER, "termination_period": 30})
    with holder(DAMAGED[content]) as pid:
        for command in ("prestop", "drain", "undrain"):
            done = grace(command, "--pid", str(pid))
            assert (done.returncode, done.stdout) == (1, "")
            assert done.stderr.count("\n") == 1
            assert done.stderr.startswith(f"Error: process {pid} is no arbiter: ")
        assert grace("prestop", "--pid", str(server.pid)).returncode == 0
    assert server.get("/readyz").status == 503
    server.wait_line("shutdown_initiated by trigger .prestop")
    server.terminate()
    server.assert_gone()


@pytest.mark.ends
@pytest.mark.long
@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_memory_is_never_taken_for_the_only_one(content: str) -> None:
    """Without --pid it is not an instance: alone it gives one line and exit code 1, beside a good
    one it is passed over."""
    shell = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if (
        UNSHARE is None
        or subprocess.run([*shell, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("PID namespaces are not to be had here")
    command = [*shell, sys.executable, "-c", ALONE, HOLDER, DAMAGED[content].hex()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("Error: no gunicorn with gunicorn-grace that lives: /proc/")
    assert done.stdout.endswith(": not ready until undrain\n")


# -- the clock ----


DAY = 86400

CLOCK = {**SLOWER, "termination_period": 12, "exit_margin": 3}


@pytest.fixture(scope="module")
def shifted_clock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that shifts the wall clock of the processes it is loaded into."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    library = tmp_path_factory.mktemp("clock") / "shifted_clock.so"
    command = [
        compiler,
        "-shared",
        "-fPIC",
        "-O1",
        "-o",
        str(library),
        str(TESTS / "support" / "shifted_clock.c"),
        "-ldl",
    ]
    subprocess.run(command, check=True, timeout=60)
    return library


class Shift:
    """Sets the wall clock off by so many seconds, from now on, and by more at each look that a
    process takes at it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(bytes(16))

    def __call__(self, seconds: int, at_each_look: int = 0) -> None:
        with self.path.open("r+b") as file:
            file.write(struct.pack("qq", seconds, at_each_look))


@pytest.fixture
def shift(tmp_path_factory: pytest.TempPathFactory) -> Shift:
    """The wall clock of the processes that have the library loaded."""
    return Shift(tmp_path_factory.mktemp("shift") / "seconds")


@pytest.mark.long
def test_a_clock_that_runs_ahead_ends_neither_delay_nor_drain(
    kind: str, serve: Serve, connect: Connect, shifted_clock: Path, shift: Shift
) -> None:
    """Set forth by a day again and again from T0 on: the delay lasts as long, and what is in flight
    completes."""
    server = serve(
        kind=kind,
        settings=CLOCK,
        env={"LD_PRELOAD": str(shifted_clock), "CLOCK_SHIFT": str(shift.path)},
    )
    memory = server.memory
    client = connect(server)
    client.send("/slow?s=5")
    server.wait_line("slow request begins")
    before = float(server.get("/clock").body)
    server.terminate()
    server.wait_phase(Phase.LAME_DUCK)
    shift(DAY)
    assert float(server.get("/clock").body) - before > DAY - 100, (
        "the clock of the workers did step"
    )
    days = itertools.count(2)

    def answered() -> bool:
        shift(next(days) * DAY)
        return bool(select.select([client.sock], [], [], 0)[0])

    server.wait_for(answered, "the response")
    assert client.receive().status == 200
    client.close()
    server.assert_gone()
    assert memory.header.drain - memory.header.t0 >= CLOCK["shutdown_delay"] * cells.NS
    assert "0 cut off" in server.summary()


@pytest.mark.long
@pytest.mark.parametrize("kind", ["gthread", "gevent"])
def test_a_clock_that_runs_back_does_not_postpone_the_deadline(
    kind: str, serve: Serve, connect: Connect, shifted_clock: Path, shift: Shift
) -> None:
    """Set back whenever a process looks at it: what takes too long is cut off at the deadline all
    the same."""
    server = serve(
        kind=kind,
        settings=SLOWER,
        env={"LD_PRELOAD": str(shifted_clock), "CLOCK_SHIFT": str(shift.path)},
    )
    client = connect(server)
    client.send("/slow?s=60")
    server.wait_line("slow request begins")
    shift(0, at_each_look=-60)
    server.terminate()
    server.assert_gone()
    assert "1 cut off" in server.summary()
