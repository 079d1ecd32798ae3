"""The command, against the memory of real processes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gunicorn_grace import __version__, cli
from gunicorn_grace.operate import drain
from gunicorn_grace.operate import instance as instance_module
from gunicorn_grace.shared import cells as layout
from gunicorn_grace.shared import instances
from gunicorn_grace.shared import memory as shm
from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.phase import Origin, Phase

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the command needs memfd and /proc")

ROOT = Path(shm.__file__).parents[1]
PATIENCE = 20
everybody = instances.search

# An arbiter without workers: its memory, in the phase and with the cells that it is told, until its
# stdin ends.
ARBITER = """
import sys
from gunicorn_grace.shared import instances
from gunicorn_grace.shared import memory as shm
memory = shm.Memory.create(slots=1)
for cell, value in eval(sys.argv[1]).items(): setattr(memory.header, cell, value)
print(memory.fd, flush=True)
if "child" in sys.stdin.readline():
    import subprocess
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        print(child.pid, flush=True)
        sys.stdin.read()
"""

# The command of a user who may not even read this Python's packages: it is imported before.
AS_NOBODY = """
import os, pwd, sys
from gunicorn_grace import cli
os.setresuid(*[pwd.getpwnam("nobody").pw_uid] * 3)
sys.exit(cli.main(sys.argv[1:]))
"""


class Instance:
    """A process with a memory of its own, and that memory opened here."""

    def __init__(self, cells: dict[str, int]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", ARBITER, repr(cells)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.pid = self.process.pid
        self.path = f"/proc/{self.pid}/fd/{int(self.process.stdout.readline())}"
        self.memory = Memory.open(self.path)

    def child(self) -> int:
        """Have it start a process, as an arbiter does; its pid."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("child\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        if self.memory.fd >= 0 and self.process.poll() is None:
            self.process.communicate(timeout=PATIENCE)
        self.memory.close()


Start = Callable[..., Instance]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts instances whose delay is over; the command sees those alone. Others may be running on
    this machine."""
    started: list[Instance] = []

    def make(phase: Phase = Phase.SERVING, **cells: int) -> Instance:
        started.append(
            Instance({"phase": int(phase), "delay": 10 * layout.NS, "delay_over": 1, **cells})
        )
        return started[-1]

    def ours(pid: int | None = None) -> instances.Search:
        found = everybody(pid)
        wanted = {instance.pid for instance in started}
        theirs = instances.Search([one for one in found.instances if one.pid not in wanted], [])
        theirs.close()
        return instances.Search([one for one in found.instances if one.pid in wanted], [])

    monkeypatch.setattr(instance_module, "search", ours)
    monkeypatch.setattr(instance_module, "_gunicorn_of_another_user", lambda: None)
    yield make
    for instance in started:
        instance.close()


def error(capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a failure says."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def said(instance: Instance, text: str) -> list[str]:
    """What a command said, line by line, without the instance that each of them names."""
    name = f"arbiter {instance.pid} in {ROOT}: "
    lines = text.splitlines()
    assert all(line.startswith(name) for line in lines), text
    return [line.removeprefix(name) for line in lines]


@pytest.mark.parametrize("command", [None, *sorted(cli.cli.commands)])
def test_every_command_takes_the_short_flag_for_help(
    command: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    """``-h`` says what ``--help`` says."""
    words = [] if command is None else [command]
    assert cli.main([*words, "-h"]) == 0
    short = capsys.readouterr().out
    assert cli.main([*words, "--help"]) == 0
    assert capsys.readouterr().out == short
    assert "-h, --help" in short


@pytest.mark.parametrize("command", ["status", "prestop", "drain", "undrain", "end-delay"])
def test_without_an_instance_a_command_is_one_line(
    command: str, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, and what to do."""
    assert cli.main([command]) == 1
    assert error(capsys).startswith(
        "Error: no gunicorn with gunicorn-grace runs here: start it with"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
def test_another_users_gunicorn_is_named() -> None:
    """Not permitted is told from not there: with the owner, and what to do about it."""
    with subprocess.Popen(
        ["gunicorn: master [main:app]"],
        executable="/bin/cat",
        user="nobody",
        cwd="/",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as theirs:
        assert theirs.stdin is not None
        assert theirs.stdout is not None
        theirs.stdin.write(b"begun\n")
        theirs.stdin.flush()
        assert theirs.stdout.readline()
        found = instance_module._gunicorn_of_another_user()
        theirs.communicate(timeout=PATIENCE)
    assert found is not None
    assert found[0] <= theirs.pid, "or another one that runs on this machine"


def test_prestop_with_two_instances_asks_which(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both are named; neither is touched."""
    pids = sorted([start().pid, start().pid])
    assert cli.main(["prestop"]) == 1
    assert error(capsys) == (
        f"Error: 2 instances, arbiters {pids[0]}, {pids[1]}: choose with --pid; "
        "`gunicorn-grace status` shows them\n"
    )


def test_a_wrong_pid_is_told_from_those_there_are(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """A number that nobody has, a process that is something else, and a worker: each has a line,
    with the arbiters there are."""
    of_us = os.getpid()
    assert cli.main(["prestop", "--pid", str(of_us)]) == 1
    assert error(capsys) == (
        f"Error: process {of_us} is no arbiter of a gunicorn with gunicorn-grace; "
        "the arbiters here: none\n"
    )
    instance = start()
    gone = 2**22 + 1  # Above the largest number that Linux gives (proc(5), pid_max).
    assert cli.main(["prestop", "--pid", str(gone)]) == 1
    assert error(capsys) == (
        f"Error: there is no process {gone}; the arbiters here: {instance.pid}\n"
    )
    worker = instance.child()
    assert cli.main(["status", "--pid", str(worker)]) == 1
    assert error(capsys) == (
        f"Error: process {worker} is a child of arbiter {instance.pid}: "
        f"choose it with --pid {instance.pid}\n"
    )
    assert not instance.memory.is_terminating()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be two users")
@pytest.mark.parametrize("chosen", [False, True], ids=["any", "chosen"])
def test_roots_gunicorn_is_not_permitted_to_another_user(chosen: bool) -> None:
    """It is there, and the line says who may: "none runs here" would send somebody away."""
    with subprocess.Popen(
        ["gunicorn: master [main:app]"],
        executable="/bin/cat",
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
    ) as theirs:
        words = ["status", "--pid", str(theirs.pid)] if chosen else ["status"]
        done = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, *words],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
        )
        theirs.communicate(timeout=PATIENCE)
    assert done.returncode == 1
    if chosen:
        wanted = f"not permitted: process {theirs.pid} belongs to user root: run this as root"
        assert done.stderr == f"Error: {wanted}\n"
    else:
        # Another one may run on this machine.
        assert re.fullmatch(
            r"Error: not permitted: gunicorn \d+ belongs to user \w+: run this as \w+\n",
            done.stderr,
        )


def test_prestop_begins_the_shutdown_of_the_one_chosen(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other one serves on; the memory says that it was preStop."""
    chosen, other = start(), start()
    assert cli.main(["prestop", "--pid", str(chosen.pid)]) == 0
    assert chosen.memory.header.trigger & layout.ORIGIN_MASK == Origin.PRESTOP
    assert chosen.memory.phase() is Phase.LAME_DUCK
    assert not other.memory.is_terminating()
    assert said(chosen, capsys.readouterr().out) == [
        "not ready for 10 s, longer while requests still come"
    ]


def test_a_second_prestop_changes_nothing(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """The clock goes on from the first."""
    instance = start()
    assert cli.main(["prestop"]) == 0
    began = instance.memory.header.trigger
    assert cli.main(["prestop"]) == 0
    assert instance.memory.header.trigger == began
    assert capsys.readouterr().out.endswith("(it had begun before)\n")


def test_prestop_before_the_first_worker_booted_does_not_wait(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing was ever ready, so nobody has to be told; it is not an error."""
    instance = start(Phase.STARTING, delay_over=0)
    assert cli.main(["prestop"]) == 0
    assert said(instance, capsys.readouterr().out) == ["nothing was ever ready: no delay"]
    assert not instance.memory.is_terminating()


@pytest.mark.parametrize("ends", ["delay over", "no time left", "drains", "dies", "undrained"])
def test_prestop_waits_and_returns_when_there_is_nothing_to_wait_for(
    start: Start, ends: str
) -> None:
    """It returns when the arbiter says that the delay is over, and all the same when the deadline
    has come, when draining began, when the trigger was taken back, and when the arbiter is gone.
    Until then it waits."""
    instance = start(delay_over=0)
    command = subprocess.Popen(
        [sys.executable, "-m", "gunicorn_grace.cli", "prestop", "--pid", str(instance.pid)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    with command:
        assert command.stdout is not None
        assert ": not ready for 10 s" in command.stdout.readline()
        assert instance.memory.is_triggered()
        assert command.poll() is None
        header = instance.memory.header
        if ends == "delay over":
            header.delay_over = 1
        elif ends == "no time left":
            header.deadline = 1
        elif ends == "drains":
            header.phase = Phase.DRAINING
        elif ends == "undrained":
            header.consumed = header.trigger + 1
        else:
            instance.process.kill()
            instance.process.communicate(timeout=PATIENCE)
        assert command.wait(PATIENCE) == 0


def test_drain_takes_an_instance_out_once(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """An operator's drain, which never expires; a second one changes nothing."""
    instance = start()
    assert cli.main(["drain"]) == 0
    began = instance.memory.header.trigger
    assert began & layout.ORIGIN_MASK == Origin.DRAIN
    instance.memory.header.held = 1  # The arbiter has taken it up.
    assert cli.main(["drain"]) == 0
    assert instance.memory.header.trigger == began
    assert said(instance, capsys.readouterr().out) == [
        "not ready until undrain",
        "it was not ready before; now it stays so until undrain",
    ]


def test_an_arbiter_that_does_not_look_is_an_error(
    start: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A drain over a trigger waits for the arbiter's word, because the trigger may just expire; a
    stopped arbiter gives none."""
    monkeypatch.setattr("gunicorn_grace.operate.drain.PATIENCE", 0.2)
    instance = start()
    assert instance.memory.trigger(Origin.PRESTOP)
    assert cli.main(["drain"]) == 1
    assert error(capsys) == (
        f"Error: arbiter {instance.pid} in {ROOT}: it has not taken that up within 0.2 s: "
        "is it stopped (SIGSTOP)? It does when it goes on\n"
    )


def test_a_drain_before_a_worker_has_booted_waits_for_that(
    start: Start, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``status`` shows what is to come, and ``undrain`` does not take a long boot for an arbiter
    that is stopped."""
    monkeypatch.setattr("gunicorn_grace.operate.drain.PATIENCE", 0.2)
    instance = start(phase=Phase.STARTING)
    assert cli.main(["drain"]) == 0
    assert cli.main(["status"]) == 0
    assert "  STARTING, then LAME_DUCK until undrain\n" in capsys.readouterr().out
    assert cli.main(["undrain"]) == 1
    told = "no worker has booted yet: it takes that up when one has"
    assert error(capsys) == f"Error: arbiter {instance.pid} in {ROOT}: {told}\n"


def test_ctrl_c_says_that_nothing_was_taken_back(start: Start) -> None:
    """Whoever gives up waiting has to know that the instance stays out."""
    instance = start(delay_over=0)
    words = [sys.executable, "-m", "gunicorn_grace.cli", "prestop", "--pid", str(instance.pid)]
    with subprocess.Popen(
        words,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as waiting:
        assert waiting.stdout is not None
        assert "not ready" in waiting.stdout.readline()
        waiting.send_signal(signal.SIGINT)
        _, err = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 130
    assert "not waited for any longer; what has begun goes on" in err
    assert instance.memory.is_terminating()


@pytest.mark.parametrize("cell", ["sigterm", "phase"])
def test_a_drain_after_a_sigterm_says_that_it_holds_nothing(
    start: Start, capsys: pytest.CaptureFixture[str], cell: str
) -> None:
    """The instance is out of rotation, as was wished, and will end."""
    instance = start(**{cell: int(Phase.DRAINING)})
    assert cli.main(["drain"]) == 0
    assert said(instance, capsys.readouterr().out) == [
        "a SIGTERM has come: it is shutting down, and nothing holds that"
    ]


def test_a_delay_that_does_not_run_has_no_end(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """An instance that serves is an error, one that drains is not."""
    instance = start()
    assert cli.main(["end-delay"]) == 1
    assert "it is serving, and has no delay to end" in error(capsys)
    instance.memory.header.phase = Phase.DRAINING
    assert cli.main(["end-delay"]) == 0
    assert said(instance, capsys.readouterr().out) == ["the delay was over before: nothing to do"]
    assert not instance.memory.header.end_delay


def test_undrain_of_an_instance_that_serves_is_nothing(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does it leave a word that a later drain would stumble over."""
    instance = start()
    assert cli.main(["undrain"]) == 0
    assert said(instance, capsys.readouterr().out) == ["it is serving: nothing to do"]
    assert not instance.memory.header.undrain


@pytest.mark.parametrize(("cell", "value"), [("sigterm", 1), ("phase", int(Phase.DRAINING))])
def test_a_shutdown_with_a_sigterm_is_not_taken_back(
    start: Start, capsys: pytest.CaptureFixture[str], cell: str, value: int
) -> None:
    """One line, exit code 1, and nothing is asked of the arbiter."""
    instance = start(**{cell: value})
    assert cli.main(["undrain"]) == 1
    assert error(capsys) == (
        f"Error: arbiter {instance.pid} in {ROOT}: a SIGTERM has come: the shutdown cannot be "
        "taken back; start another instance\n"
    )
    assert not instance.memory.header.undrain


@pytest.mark.parametrize("answer", ["serving", "SIGTERM", "gone"])
def test_undrain_returns_with_the_arbiters_answer(start: Start, answer: str) -> None:
    """It asks, and says what became of it: serving again, a SIGTERM that was faster, or nobody
    there to do it."""
    instance = start()
    assert cli.main(["drain"]) == 0
    header = instance.memory.header
    command = subprocess.Popen(
        [sys.executable, "-m", "gunicorn_grace.cli", "undrain", "--pid", str(instance.pid)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with command:
        bound = time.monotonic() + PATIENCE
        while not header.undrain:
            assert time.monotonic() < bound
            assert command.poll() is None
        if answer == "serving":
            header.consumed = header.undrain
        elif answer == "SIGTERM":
            header.sigterm = 1
        else:
            instance.process.kill()
            instance.process.communicate(timeout=PATIENCE)
        out, err = command.communicate(timeout=PATIENCE)
    name = f"Error: arbiter {instance.pid} in {ROOT}: "
    assert (command.returncode, said(instance, out), err) == {
        "serving": (0, ["serving"], ""),
        "SIGTERM": (1, [], f"{name}{drain.TOO_LATE}\n"),
        "gone": (1, [], f"{name}it is gone\n"),
    }[answer]


@pytest.mark.parametrize(
    "cells",
    [{"magic": 1}, {"layout": 99}, {"slot_count": 1 << 40}, {"phase": 17}],
    ids=lambda cells: next(iter(cells)),
)
def test_a_memory_that_cannot_be_read_is_one_line(
    start: Start, capsys: pytest.CaptureFixture[str], cells: dict[str, int]
) -> None:
    """Damaged, or of another version: exit code 1 and the reason."""
    instance = start()
    for name, value in cells.items():
        setattr(instance.memory.header, name, value)
    assert cli.main(["prestop"]) == 1
    assert re.search(r"cannot be used: /proc/\d+/fd/\d+: .*(layout 99|damaged)", error(capsys))


def test_it_is_found_without_configuration(start: Start) -> None:
    """The installed module, as a hook runs it, with only ``/proc`` to go by."""
    instance = start()
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn_grace.cli", "prestop", "--pid", str(instance.pid)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert said(instance, done.stdout) == ["not ready for 10 s, longer while requests still come"]


@pytest.mark.parametrize(
    ("arguments", "code"), [(["nothing"], 2), (["prestop", "--pid", "x"], 2), (["--version"], 0)]
)
def test_exit_codes_of_the_command_line(
    arguments: list[str], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """2 for a wrong usage, 0 for the version."""
    assert cli.main(arguments) == code
    if not code:
        assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [["check", "x.yaml"], ["manifest", "--for", "deployment"]],
    ids=lambda words: words[0],
)
def test_without_pyyaml_the_extra_is_named(words: list[str]) -> None:
    """A production image does not have it. One line, no traceback."""
    code = "import sys\nsys.modules['yaml'] = None\nfrom gunicorn_grace import cli\nsys.exit(cli.main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode not in (0, -1)
    (line,) = done.stderr.splitlines()
    assert line.endswith("PyYAML is missing: pip install 'gunicorn-grace[manifest]'")
