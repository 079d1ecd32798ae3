"""What ``grace_report`` leaves behind, however the instance ends."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import gunicorn_grace
from gunicorn_grace.arbiter.report import LIMIT, Report
from gunicorn_grace.shared.phase import Phase
from support.paths import APPS
from support.servers import HOLD, QUICK, SHORT, Connect, Serve, booted_in

pytestmark = pytest.mark.ends

KEYS = [field.name for field in dataclasses.fields(Report)]


@pytest.fixture
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the report goes: a file that is there, as the termination message of a container is."""
    path = tmp_path_factory.mktemp("report") / "report.json"
    path.touch()
    return path


def told(path: Path) -> dict[str, Any]:
    """The report, which is whole, has every key and fits."""
    data = path.read_bytes()
    found: dict[str, Any] = json.loads(data)
    assert list(found) == KEYS
    assert len(data) <= LIMIT
    assert found["version"] == gunicorn_grace.__version__
    return found


@pytest.mark.long(but="sync")
def test_a_shutdown_that_cuts_nothing_off(
    kind: str, serve: Serve, connect: Connect, report: Path, tmp_path: Path
) -> None:
    """Who began it and when, how long each phase was and why it ended, and what was served."""
    server = serve(kind=kind, settings={**HOLD, "report": report})
    client = connect(server)
    client.send("/slow?s=1")
    server.wait_line("slow request begins")
    before = time.time()
    server.lead_to(Phase.LAME_DUCK)
    assert server.get("/").status == 200
    assert server.get("/readyz").status == 503
    server.terminate()
    assert client.receive().status == 200
    client.close()
    server.assert_gone()
    found = told(report)
    assert before - 1 <= found["t0_unix_seconds"] <= time.time()
    for key, value in {
        "origin": "sigterm",
        "phase": "STOPPED",
        "ended": "drained",
        "lame_duck_ended": "ended by command",
        "requests_since_t0": 1,
        "in_flight_at_t0": 1,
        "in_flight_at_stop": 0,
        "cut_off": 0,
        "cut_off_by_worker": [],
    }.items():
        assert found[key] == value, key
    assert 0 < found["last_request_after_t0_seconds"] <= found["lame_duck_seconds"]
    assert found["draining_seconds"] > 0
    assert found["verdict"] in server.summary()


@pytest.mark.long(but="gevent")
def test_the_deadline_cuts(kind: str, serve: Serve, connect: Connect, report: Path) -> None:
    """What was cut off is counted, and the report says in which workers it was."""
    settings = {**QUICK, "termination_period": 5, "exit_margin": 2, "report": report}
    server = serve(kind=kind, settings=settings)
    client = connect(server)
    client.send("/slow?s=60")
    busy = server.wait_pid("slow request begins in ")
    server.terminate()
    server.assert_gone()
    found = told(report)
    assert (found["ended"], found["cut_off"], found["in_flight_at_stop"]) == ("deadline", 1, 1)
    assert found["cut_off_by_worker"] == [{"pid": busy, "requests": 1}]


@pytest.mark.long
def test_a_worker_that_dies_in_the_delay_is_named(
    serve: Serve, connect: Connect, report: Path
) -> None:
    """The one that was lost before T0 is not: it is not the shutdown's concern."""
    server = serve(kind="sync", settings={**HOLD, "report": report})
    for phase in (Phase.SERVING, Phase.LAME_DUCK):
        server.wait_booted(4)
        if phase is Phase.LAME_DUCK:
            server.lead_to(phase)
        line = len(server.lines)
        client = connect(server)
        client.send("/slow?s=60")
        victim = server.wait_pid("slow request begins in ", after=line)
        os.kill(victim, signal.SIGKILL)
        server.wait_for(
            lambda victim=victim: victim not in booted_in(server.memory), "the end of the worker"
        )
    server.terminate()
    server.assert_gone()
    found = told(report)
    assert (found["ended"], found["cut_off"]) == ("drained", 1)
    assert found["cut_off_by_worker"] == [{"pid": victim, "requests": 1}]


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["SIGINT", "SIGQUIT"])
@pytest.mark.parametrize("phase", [Phase.LAME_DUCK, Phase.DRAINING], ids=str)
def test_ctrl_c_in_the_middle(
    number: signal.Signals, phase: Phase, serve: Serve, connect: Connect, report: Path
) -> None:
    """It ends at once, and the report says by which signal, and what that cut off."""
    server = serve(kind="gthread", settings={**HOLD, "termination_period": 120, "report": report})
    client = connect(server)
    client.send("/slow?s=60")
    busy = server.wait_pid("slow request begins in ")
    server.lead_to(phase)
    server.signal(number)
    server.assert_gone()
    found = told(report)
    assert (found["ended"], found["phase"], found["cut_off"]) == (number.name, "STOPPED", 1)
    assert found["cut_off_by_worker"] == [{"pid": busy, "requests": 1}]
    assert (found["lame_duck_ended"] is None) == (phase is Phase.LAME_DUCK)


@pytest.mark.long
def test_gunicorn_halts_in_the_middle(serve: Serve, report: Path, tmp_path: Path) -> None:
    """No worker is left and none boots any more: the report has gunicorn's own reason."""
    flag = tmp_path / "flag"
    server = serve(
        "broken_import:app",
        args=("-k", "sync", "-w", "1"),
        settings={**HOLD, "report": report},
        env={"BROKEN_FLAG": str(flag)},
    )
    (only,) = server.wait_booted(1)
    server.lead_to(Phase.LAME_DUCK)
    flag.write_text("raises")
    os.kill(only, signal.SIGKILL)
    assert server.wait(20) == 3, server.output
    found = told(report)
    assert found["ended"] == "halted: Worker failed to boot."
    assert (found["phase"], found["draining_seconds"]) == ("STOPPED", 0)


EXITS = """
import sys
import gunicorn_grace
def child_exit(server, worker):
    sys.exit(7)
gunicorn_grace.install(globals())
"""


@pytest.mark.long
def test_a_hook_ends_the_arbiter(
    serve: Serve, connect: Connect, report: Path, tmp_path: Path
) -> None:
    """A SystemExit in the arbiter passes every hook of gunicorn's end, and the report is written
    all the same."""
    (tmp_path / "conf.py").write_text(EXITS)
    server = serve(config=("-c", "conf.py"), args=("-w", "2"), settings={**SHORT, "report": report})
    server.wait_booted(2)
    client = connect(server)
    client.send("/slow?s=2")
    server.wait_line("slow request begins")
    server.terminate()
    assert server.wait(20) == 7, server.output
    found = told(report)
    assert (found["ended"], found["phase"]) == ("exited", "DRAINING")
    assert client.receive().status == 200
    client.close()
    server.assert_gone(7, patience=10)


@pytest.mark.long
def test_the_platform_does_not_wait(serve: Serve, connect: Connect, report: Path) -> None:
    """SIGKILL of the arbiter while it drains: there is a report, and it says that this was not the
    end."""
    server = serve(kind="gthread", settings={**HOLD, "report": report})
    client = connect(server)
    client.send("/slow?s=60")
    busy = server.wait_pid("slow request begins in ")
    server.lead_to(Phase.DRAINING)
    server.wait_for(lambda: report.stat().st_size, "the report")
    workers = booted_in(server.memory)
    server.signal(signal.SIGKILL)
    server.wait(20)
    found = told(report)
    assert (found["phase"], found["ended"], found["in_flight_at_stop"]) == ("DRAINING", None, None)
    assert (found["in_flight_at_drain"], found["cut_off"]) == (1, 1)
    assert found["cut_off_by_worker"] == [{"pid": busy, "requests": 1}]
    for pid in set(workers) & set(server.processes()):
        os.kill(pid, signal.SIGKILL)


@pytest.mark.long
def test_a_failure_of_ours(serve: Serve, report: Path, tmp_path: Path) -> None:
    """The plugin's part in the loop has failed, and gunicorn goes on alone: the report says so."""
    (tmp_path / "conf.py").write_text(
        "from gunicorn_grace.arbiter.listeners import Listeners\nimport gunicorn_grace\n"
        "gunicorn_grace.install(globals())\n"
        "def broken(self, *args): raise RuntimeError('broken on purpose')\nListeners.seal = "
        "broken\n"
    )
    server = serve(config=("-c", "conf.py"), args=("-w", "1"), settings={**SHORT, "report": report})
    server.terminate()
    assert server.wait(20) == 0, server.output
    assert "broken on purpose" in server.output
    assert told(report)["ended"] == "failed"


def test_the_command_and_the_signal_are_one_shutdown(serve: Serve, report: Path) -> None:
    """With a preStop hook the report names it; T0 is when the hook began it."""
    server = serve(kind="sync", settings={**SHORT, "report": report})
    command = [
        sys.executable,
        "-m",
        "gunicorn_grace.cli",
        "prestop",
        "--pid",
        str(server.arbiter_pid),
    ]
    subprocess.run(command, cwd=APPS, check=True, timeout=60)
    server.terminate()
    server.assert_gone()
    assert told(report)["origin"] == "prestop"


def nothing(path: Path) -> None:
    """What cannot be written to: it is not there, and cannot be made."""


@pytest.mark.long(but="missing")
@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "error"),
    [
        (nothing, "No such file or directory"),
        (os.mkfifo, "No such device or address"),
        (os.mkdir, "Is a directory"),
    ],
    ids=["missing", "fifo", "folder"],
)
def test_a_report_that_cannot_be_written_is_one_warning(
    make: Callable[[Path], None], error: str, serve: Serve, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """However often it is tried; nothing else changes, and a FIFO that nobody reads does not hold
    the exit."""
    folder = tmp_path_factory.mktemp("report")
    path = folder / "missing" / "report" if make is nothing else folder / "report"
    make(path)
    server = serve(kind="sync", settings={**SHORT, "report": path})
    server.terminate()
    server.assert_gone()
    assert "0 cut off" in server.summary()
    assert len(re.findall(f"grace_report .* cannot be written: .*{error}", server.output)) == 1


@pytest.mark.once
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's link")
def test_a_link_of_another_user_is_one_warning(serve: Serve, report: Path, tmp_path: Path) -> None:
    """Somebody has put a link where root writes its report, in a folder that everybody may write
    to. What it names is not overwritten, and the shutdown goes on. A variable that is no setting is
    told at the start."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    report.write_text("secret")
    (folder / "report").symlink_to(report)
    os.lchown(folder / "report", 65534, 65534)
    server = serve(
        kind="sync",
        settings={**SHORT, "report": folder / "report"},
        env={"GRACE_SHUTDOWN_DELY": "5"},
    )
    server.terminate()
    server.assert_gone()
    (line,) = [line for line in server.output.splitlines() if "cannot be written" in line]
    assert "a link of user 65534 in a folder that everybody may write to" in line
    assert report.read_text() == "secret"
    assert "Traceback" not in server.output
    told_at_start = (
        "are no settings are ignored: GRACE_SHUTDOWN_DELY (did you mean GRACE_SHUTDOWN_DELAY?)"
    )
    assert server.output.count(told_at_start) == 1


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_without_a_shutdown_of_ours_there_is_none(
    number: signal.Signals, serve: Serve, report: Path, tmp_path: Path
) -> None:
    """SIGINT while serving, and SIGTERM before anything was ready: what stood in the file stays."""
    report.write_text("from before")
    boots = number == signal.SIGTERM
    server = serve(
        "slow_import:app" if boots else "service:app",
        kind="sync",
        ready=not boots,
        settings={"report": report},
    )
    if boots:
        server.wait_line("import begins")
    server.signal(number)
    server.assert_gone()
    assert report.read_text() == "from before"


@pytest.mark.long
def test_a_drain_that_was_taken_back_leaves_none(serve: Serve, report: Path) -> None:
    """Nor does it in the report of the shutdown that follows: its requests are not counted in."""
    server = serve(kind="gthread", settings={**HOLD, "report": report})
    assert server.memory.trigger(4)
    server.wait_phase(Phase.LAME_DUCK)
    assert server.get("/").status == 200
    server.memory.header.undrain = time.monotonic_ns()
    server.wait_line("undrained")
    assert report.read_bytes() == b""
    server.lead_to(Phase.LAME_DUCK)
    server.terminate()
    server.assert_gone()
    found = told(report)
    assert (found["origin"], found["requests_since_t0"]) == ("sigterm", 0)


@pytest.mark.long
def test_many_workers_cut_off_still_fit(serve: Serve, connect: Connect, report: Path) -> None:
    """Each of a dozen workers had a request that was cut off: all of them are in the list."""
    settings = {**QUICK, "termination_period": 6, "exit_margin": 3, "report": report}
    server = serve(args=("-k", "sync", "-w", "12"), settings=settings)
    workers = server.wait_booted(12)
    for number in range(12):
        connect(server).send("/slow?s=60")
        server.wait_in_flight(number + 1)
    server.terminate()
    server.assert_gone()
    found = told(report)
    assert found["cut_off"] == 12
    assert sorted(entry["pid"] for entry in found["cut_off_by_worker"]) == sorted(workers)
