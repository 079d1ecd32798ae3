"""The rehearsal engine with real gunicorn: losses are counted, and nothing that it started is
left."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gunicorn_grace.rehearsal.errors import InstanceFailed, LineMissing, PlanFailed
from gunicorn_grace.rehearsal.kubernetes.deletion import Deletion
from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable
from gunicorn_grace.rehearsal.load.tally import ConnectionKind, RequestOutcome
from gunicorn_grace.rehearsal.load.wire import fetch
from gunicorn_grace.rehearsal.plan import PLAIN, Contender, Plan
from gunicorn_grace.rehearsal.processes import procfs
from gunicorn_grace.rehearsal.processes.fleet import Fleet
from gunicorn_grace.rehearsal.processes.instance import Instance
from gunicorn_grace.rehearsal.processes.process import MARK
from gunicorn_grace.rehearsal.report.text import WIDTH, render
from gunicorn_grace.rehearsal.result import Result
from gunicorn_grace.rehearsal.run import play

pytestmark = pytest.mark.once

APP = """
import os, time, traceback

class Late:
    def __iter__(self):
        return iter([b"ok"])

    def close(self):  # gunicorn calls this when the client has the whole response.
        time.sleep(0.3)
        try:
            raise LookupError("late")
        except LookupError:
            traceback.print_exc()

def half():
    yield b"o"
    raise LookupError("half")

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/hang":
        print("hanging", flush=True)
        time.sleep(60)
    if path == "/broken":
        raise LookupError("no row")
    failures = {"/gone": "404 Gone", "/picky": "400 Picky", "/late": "500 Late", "/down": "503 Down"}
    start_response(failures.get(path, "200 OK"), [("Content-Length", "2")])
    return {"/late": Late(), "/half": half()}.get(path, [b"ok"])
"""


@pytest.fixture
def plain(folder: Path) -> Iterator[Instance]:
    """One plain gunicorn that answers."""
    with Instance("app:app", cwd=folder) as instance:
        instance.wait_ready()
        yield instance


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie has."""
    return procfs._state(pid) in ("", "Z", "X")


def descendants(pid: int) -> list[int]:
    found = procfs.children(pid)
    return found + [grandchild for child in found for grandchild in descendants(child)]


def routed(*instances: Instance) -> EndpointTable:
    table = EndpointTable()
    for instance in instances:
        table.add(instance.address)
    return table


# -- the run ----


def test_plain_gunicorn_loses_what_is_routed_to_it_late(folder: Path) -> None:
    """One of two instances deleted, routed to for 1 s more at 100 per second: about 50 requests are
    refused, or reset if they come while it closes.

    All of them at that instance and within that second; both kinds of connection lose; the report
    tells it.
    """
    plan = Plan(
        "app:app", instances=2, rate=100, lag=1.0, cwd=str(folder), warm_up=40, cool_down=40
    )
    result = play(plan, PLAIN)
    tally, (deleted,) = result.tally, result.gone
    assert 25 <= tally.lost <= 75
    assert tally.count(RequestOutcome.REFUSED) > tally.lost / 2
    assert tally.count(RequestOutcome.REFUSED, ConnectionKind.FRESH)
    assert tally.count(RequestOutcome.REFUSED, ConnectionKind.KEPT)
    assert {record.endpoint for record in tally.lost_records} == {deleted.endpoint}
    assert all(-0.1 < record.started - result.origin < 1.1 for record in tally.lost_records)
    assert (deleted.exit_code, deleted.killed) == (0, False)
    assert deleted.exit_after is not None
    assert 0 < deleted.exit_after < 5
    assert not result.flawless
    assert result.lost_elsewhere == 0
    assert json.loads(json.dumps(result.as_dict()))["lost"] == tally.lost
    text = render([result])
    assert f"plain gunicorn LOST {tally.lost} of {tally.total} requests." in text
    assert max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.long
def test_without_a_lag_an_idle_fleet_loses_next_to_nothing(folder: Path) -> None:
    """The losses come from the lag: with routing that forgets at once, hardly a request is lost.

    Not none, because a connection may be made between the routing's decision and SIGTERM.
    """
    plan = Plan("app:app", instances=2, rate=50, lag=0.0, cwd=str(folder), warm_up=20, cool_down=20)
    assert play(plan, PLAIN).tally.lost <= 2


def test_a_path_that_fails_anyway_is_told_before_the_load(folder: Path) -> None:
    """A path with 404 would count as lost all the time; the plan is refused instead."""
    with pytest.raises(PlanFailed, match="GET /gone answers 404"):
        play(Plan("app:app", instances=2, paths=["/", "/gone"], cwd=str(folder)), PLAIN)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"paths": ["/picky"]},
            "GET /picky answers 400, .*ALLOWED_HOSTS.*, name one .* with --host",
        ),
        ({"paths": ["/broken"]}, "GET /broken answers 500, .*app.py:25: LookupError: no row"),
        ({"paths": ["/late"]}, "GET /late answers 500, .*app.py:11: LookupError: late"),
        (
            {"stream_path": "/broken"},
            "stream /broken .*status 500: .*app.py:25: LookupError: no row",
        ),
        ({"stream_path": "/picky"}, "stream /picky .*status 400: .*, name one .* with --host"),
        ({"stream_path": "/gone"}, "stream /gone .*: name a path that succeeds with --stream-path"),
    ],
)
def test_a_path_that_fails_is_told_with_its_remedy(
    folder: Path, options: dict[str, Any], said: str
) -> None:
    """An application that refuses the host needs --host, and one that raises needs a place in its
    code, even if its traceback comes after the response. It is the same for a stream."""
    with pytest.raises(PlanFailed) as caught:
        play(Plan("app:app", instances=2, cwd=str(folder), **options), PLAIN)
    assert re.search(said, caught.value.line), caught.value.line


def test_a_traceback_from_the_boot_is_not_the_cause(folder: Path) -> None:
    """What the application printed before the request does not explain the response."""
    (folder / "noisy.py").write_text(
        "import traceback\n"
        "try:\n    raise LookupError('no cache')\n"
        "except LookupError:\n    traceback.print_exc()\n"
        "from app import app\n"
    )
    with pytest.raises(PlanFailed, match=r"GET /down answers 503, .*: name a path that succeeds"):
        play(Plan("noisy:app", instances=2, paths=["/down"], cwd=str(folder)), PLAIN)


@pytest.mark.long
def test_losses_before_the_deletion_are_no_result(folder: Path) -> None:
    """A service that loses requests without any deletion is not one to rehearse with: said, not
    counted."""
    (folder / "crash.py").write_text(
        "import os\ndef pre_request(worker, req):\n    if worker.nr > 5:\n        os._exit(0)\n"
    )
    plan = Plan("app:app", instances=2, rate=40, cwd=str(folder))
    with pytest.raises(
        PlanFailed, match=r"were lost before anything was deleted \(the first: reset"
    ):
        play(plan, Contender("crash", ("-c", "crash.py")))


@pytest.mark.long
def test_of_the_users_file_all_but_the_plugin_stays(folder: Path) -> None:
    """The plain contender runs with the user's file; the plugin in it is silent, whichever way it
    is used."""
    file = folder / "gunicorn.conf.py"
    for lines in (
        "import gunicorn_grace\nworkers = 3\nproc_name = 'mine'\n"
        "gunicorn_grace.install(globals())\n",
        "from gunicorn_grace.conf import *\nworkers = 3\ngrace_shutdown_delay = 4\n",
        "from gunicorn_grace import install\nworkers = 3\ninstall(globals())\n",
    ):
        file.write_text(lines)
        with Instance("app:app", args=PLAIN.args, cwd=folder) as instance:
            instance.wait_ready()
            instance.wait_workers(3)
            assert "grace" not in instance.output
            instance.signal(signal.SIGTERM)
            assert instance.wait(10) == 0
            assert "shutdown_initiated" not in instance.output


# -- nothing is left ----


def test_every_process_is_gone_after_an_exception(folder: Path) -> None:
    """An error in the block: no arbiter, no worker, no folder of theirs is left when it comes
    out."""
    pids: list[int] = []
    fleet = Fleet([Instance("app:app", cwd=folder, args=["-w", "2"]) for _ in "12"])

    def fail() -> None:
        with fleet:
            for instance in fleet:
                pids.extend([instance.pid, *instance.wait_workers(2)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert len(pids) == 6
    assert all(map(gone, pids))
    assert not any(instance.runtime_dir.exists() for instance in fleet)


@pytest.mark.long
def test_one_that_fails_to_start_takes_the_others_along(folder: Path) -> None:
    """The second one's application does not exist: the error says why in a line, and all are
    ended."""
    fleet = Fleet(
        [Instance("app:app", cwd=folder), Instance("nowhere:app", cwd=folder, name="second")]
    )
    with pytest.raises(InstanceFailed) as caught:
        fleet.start(ready=20)
    assert re.match(
        "second ended with exit code 3 before it (was ready|listened): ModuleNotFoundError",
        caught.value.line,
    )
    assert "Traceback" in caught.value.output
    for instance in fleet:
        assert procfs.marked(MARK, str(instance.runtime_dir)) == []


@pytest.mark.long
def test_a_daemon_does_not_escape(folder: Path) -> None:
    """``--daemon`` forks into another session and the first process ends: told, and found by its
    mark."""
    instance = Instance("app:app", cwd=folder, args=["--daemon"])
    with pytest.raises(
        InstanceFailed, match=r"exit code 0 .daemon must be off. before it listened"
    ):
        instance.start()
    assert procfs.marked(MARK, str(instance.runtime_dir)) == []


@pytest.mark.long
def test_a_prefix_that_changes_the_session_does_not_escape(folder: Path) -> None:
    """Behind a command such as dumb-init, the arbiter is found by its log line and ended with the
    rest."""
    init = (
        "import os, signal, subprocess, sys; sys.exit(subprocess.call(sys.argv[1:], "
        "start_new_session=True))"
    )
    with Instance(
        "app:app", cwd=folder, executable_prefix=[sys.executable, "-c", init]
    ) as instance:
        instance.wait_ready()
        (worker,) = instance.wait_workers(1)
        arbiter = instance.arbiter_pid
        assert procfs.children(instance.pid) == [arbiter]
        assert os.getsid(arbiter) != os.getsid(instance.pid)
    assert all(map(gone, [instance.pid, arbiter, worker]))


@pytest.mark.long
@pytest.mark.parametrize("after", ["starting", "to warm up", "deleting"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_command_leaves_nothing(folder: Path, after: str, number: int) -> None:
    """Ctrl-C or SIGTERM at any stage: exit code 130, one line and no process."""
    command = subprocess.Popen(
        [*REHEARSE, "app:app", "--instances", "2", "--only", "plain"],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
    )
    with command:
        assert command.stderr is not None
        try:
            while after not in (line := command.stderr.readline()):
                assert line, "the command ended early"
            family = descendants(command.pid)
            command.send_signal(number)
            said = command.stderr.read()
            assert command.wait(20) == 130, said
            assert "Traceback" not in said
            assert all(map(gone, family))
        finally:
            command.kill()


# -- an instance ----


@pytest.mark.long
def test_a_line_that_does_not_come_shows_the_whole_output(plain: Instance) -> None:
    """The error carries what gunicorn said; lines before the mark are not looked at."""
    assert "Booting worker" in plain.wait_line(r"Booting worker with pid: \d+")
    with pytest.raises(LineMissing, match="Listening at"):
        plain.wait_line("no such line", timeout=0.05)
    with pytest.raises(AssertionError):
        plain.wait_line("Booting worker", timeout=0.05, after=plain.mark())


@pytest.mark.long
def test_a_wait_ends_with_the_output(plain: Instance) -> None:
    """After the end nothing more can come, so that a wait for it fails at once, and the exit is
    stamped."""
    before = time.monotonic()
    plain.signal(signal.SIGTERM)
    assert plain.wait(10) == 0
    assert plain.exit_time is not None
    assert before < plain.exit_time <= time.monotonic()
    with pytest.raises(LineMissing, match="its output ended"):
        plain.wait_line("no such line", timeout=60)


@pytest.mark.long
@pytest.mark.parametrize("bind", ["[::1]:0", "unix:{folder}/socket", "0.0.0.0:0"])
def test_it_is_found_wherever_it_listens(folder: Path, bind: str) -> None:
    """IPv6, a UNIX socket and the wildcard address are read from the log."""
    with Instance("app:app", cwd=folder, bind=bind.format(folder=folder)) as instance:
        instance.wait_ready()
        assert fetch(instance.address).body == b"ok"


@pytest.mark.long
def test_it_is_found_when_its_log_goes_elsewhere(folder: Path) -> None:
    """Nothing on the terminal: the listening socket is read from /proc."""
    with Instance("app:app", cwd=folder, args=["--error-logfile", "log"]) as instance:
        instance.wait_ready()
        assert instance.lines == []
        assert len(instance.wait_workers(1)) == 1


@pytest.mark.long
def test_instances_do_not_share_a_control_socket(folder: Path) -> None:
    """gunicorn 25.1+ has one in XDG_RUNTIME_DIR: each instance has a folder of its own for it."""
    with Fleet([Instance("app:app", cwd=folder), Instance("app:app", cwd=folder)]) as fleet:
        one, two = fleet
        assert one.runtime_dir != two.runtime_dir
        assert one.env["XDG_RUNTIME_DIR"] == str(one.runtime_dir)


@pytest.mark.long
def test_the_group_can_be_signalled(plain: Instance) -> None:
    """SIGTERM to the process group reaches arbiter and worker, and not us."""
    workers = plain.wait_workers(1)
    plain.signal_group(signal.SIGTERM)
    assert plain.wait(10) == 0
    assert all(map(gone, workers))


# -- a deletion ----


@pytest.mark.long
def test_the_hook_runs_before_sigterm_and_counts_in_the_period(
    plain: Instance, folder: Path
) -> None:
    """A preStop hook gets the port and the pid, and SIGTERM comes when it has ended, not before."""
    script = "import sys, time; open('hook', 'w').write(' '.join(sys.argv[1:])); time.sleep(0.3)"
    hook = ["python", "-c", script, "{host}", "{port}", "{pid}", '{"json": 1}']
    deletion = Deletion(plain, routed(plain), lag=0.1, period=10, pre_stop=hook).start().join(20)
    assert (folder / "hook").read_text() == f'127.0.0.1 {plain.port} {plain.pid} {{"json": 1}}'
    assert deletion.pre_stop_problem == ""
    assert deletion.started is not None
    assert deletion.pre_stop_done is not None
    assert deletion.sigterm is not None
    assert deletion.exited is not None
    assert deletion.started + 0.3 <= deletion.pre_stop_done <= deletion.sigterm < deletion.exited
    assert (deletion.exit_code, deletion.killed) == (0, False)


@pytest.mark.long
@pytest.mark.parametrize(
    ("hook", "period", "problem"),
    [
        (["sh", "-c", "echo oh dear; exit 3"], 30, "ended with exit code 3: oh dear"),
        (["/no/such/hook"], 30, "could not be run: No such file or directory"),
        (["sleep", "60"], 0.5, "took longer than the period of 0.5 s"),
    ],
)
def test_a_hook_that_fails_does_not_hold_up_sigterm(
    plain: Instance, hook: list[str], period: float, problem: str
) -> None:
    """As with the kubelet: the failure is recorded, SIGTERM follows, at the latest at the period's
    end."""
    deletion = Deletion(plain, routed(plain), lag=0, period=period, pre_stop=hook).start().join(20)
    assert problem in deletion.pre_stop_problem
    assert "Handling signal: term" in plain.output
    # The sleeping hook went with its container.
    assert procfs.marked(MARK, str(plain.runtime_dir)) == []


@pytest.mark.long
@pytest.mark.parametrize("hook", [[], ["sleep", "60"]], ids=["no hook", "hook takes it all"])
def test_what_overruns_the_period_is_killed(plain: Instance, hook: list[str]) -> None:
    """A request that hangs holds plain gunicorn for 30 s; SIGKILL comes at the period's end or 2 s
    after.

    Arbiter and workers are gone then, as all is that is in a container.
    """
    (worker,) = plain.wait_workers(1)
    with contextlib.closing(hanging_request(plain)):
        plain.wait_line("hanging")
        deletion = (
            Deletion(plain, routed(plain), lag=0, period=1.0 if hook else 2.5, pre_stop=hook)
            .start()
            .join(20)
        )
    assert deletion.killed
    assert deletion.exit_code == -signal.SIGKILL
    assert deletion.exit_after is not None
    assert (2.0 if hook else 2.5) <= deletion.exit_after < 4.0
    assert gone(worker)


def hanging_request(instance: Instance) -> Any:
    """A connection with a request that the application does not answer."""
    import socket

    connection = socket.create_connection(("127.0.0.1", instance.port))
    connection.sendall(b"GET /hang HTTP/1.1\r\nHost: x\r\n\r\n")
    return connection


@pytest.mark.long
def test_a_deletion_waits_for_the_routing_too(plain: Instance) -> None:
    """The process is gone at once, but the deletion is over only when the routing has learned of
    it."""
    table = routed(plain)
    deletion = Deletion(plain, table, lag=3.0).start()
    assert plain.wait_exit(10)
    assert table.endpoints() == [plain.address] or time.monotonic() >= (deletion.started or 0) + 3.0
    deletion.join(20)
    assert table.endpoints() == []
    assert deletion.started is not None
    assert deletion.unrouted == deletion.started + 3.0


# -- the command ----


REHEARSE = (
    sys.executable,
    "-c",
    "from gunicorn_grace.rehearsal.command.command import rehearse; rehearse()",
)


def rehearse(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*REHEARSE, *args], cwd=folder, capture_output=True, text=True, timeout=120
    )


@pytest.mark.long
def test_the_command_exits_1_when_requests_were_lost(folder: Path) -> None:
    """Plain gunicorn alone, judged: a table on stdout, exit code 1; the JSON file holds the same
    numbers."""
    run = rehearse(
        folder, "app:app", "--only", "plain", "--instances", "2", "--lag", "1", "--json", "out.json"
    )
    assert run.returncode == 1, run.stderr
    assert "plain gunicorn LOST" in run.stdout
    (result,) = json.loads((folder / "out.json").read_text())["results"]
    assert f"LOST {result['lost']} of {result['requests']}" in run.stdout
    assert len(result["lost_requests"]) == result["lost"] > 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["nowhere:app"], "ModuleNotFoundError: No module named 'nowhere'"),
        (["app:nothing"], "Failed to find attribute 'nothing' in 'app'."),
        (["app:app", "--", "--bogus"], "unrecognized arguments: --bogus"),
        (["app:app", "--workers", "-1"], "Value must be positive: -1"),
        (["app:app", "--", "--daemon"], "daemon must be off"),
        (["app:app", "--path", "/gone"], "GET /gone answers 404"),
        (["app:app", "--to", "3"], "3 instances cannot be scaled down to 3"),
        (["app:app", "--config", "nowhere.py"], "there is no such file"),
        (["app:app", "--prestop", "'"], "No closing quotation"),
        (["app:app", "--rate", "0"], "rate 0 is not above 0"),
    ],
)
def test_the_command_exits_2_with_one_line_when_it_cannot_be_run(
    folder: Path, args: list[str], said: str
) -> None:
    """A mistake of the user is told in one line, without a traceback, and exit code 2."""
    run = rehearse(folder, "--only", "plain", *args)
    *_, last = run.stderr.splitlines()
    assert run.returncode == 2
    assert last.startswith("rehearse: ")
    assert said in last
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


@pytest.mark.long
def test_a_file_without_the_plugin_is_not_taken_for_it(folder: Path) -> None:
    """A configuration that does not load the plugin would be judged in its name: exit code 2 says
    so."""
    (folder / "mine.py").write_text(textwrap.dedent("workers = 1\n"))
    run = rehearse(
        folder, "app:app", "--only", "grace", "--config", "mine.py", "--lag", "0", "--rate", "20"
    )
    assert run.returncode == 2
    assert "the plugin was not at work" in run.stderr


def test_the_plugin_loses_nothing_where_plain_gunicorn_does(folder: Path) -> None:
    """Both, one after the other, with the same seed: exit code 0 and a verdict with both
    numbers."""
    run = rehearse(folder, "app:app", "--instances", "2", "--lag", "2", "--delay", "5")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "gunicorn-grace lost none of" in run.stdout
    assert "plain gunicorn lost" in run.stdout.splitlines()[-1]
    assert "shutdown_initiated" in run.stdout


@pytest.mark.long
def test_a_result_is_judged_by_losses_and_by_the_period() -> None:
    """An instance that had to be killed is a failure even when nothing was lost."""
    from gunicorn_grace.rehearsal.load.tally import Tally
    from gunicorn_grace.rehearsal.report.text import verdict
    from gunicorn_grace.rehearsal.result import Gone

    end = Gone("instance 2", "127.0.0.1:1", 0.0, 30.0, 30.0, -9, True, None, "", ())
    result = Result(PLAIN, Plan("app:app"), Tally(), 0.0, 40.0, (end,), {})
    assert not result.flawless
    assert "1 instance had to be ENDED BY SIGKILL" in verdict([result])
