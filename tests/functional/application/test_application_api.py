"""What an application does about the shutdown, in real workers: callbacks, holds, streams that
end."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gunicorn
import pytest

from gunicorn_grace.shared.phase import Origin, Phase
from support.servers import HOLD, WORKERS, Connect, Serve, Server, booted_in, memory_of

pytestmark = pytest.mark.ends

PATIENCE = 60.0

LONG = {"shutdown_delay": 0.3, "min_delay": 0, "extend_delay": "false", "termination_period": 90}
"""A delay that is soon over, and then more time than any test takes."""

CUT = {**LONG, "termination_period": 4, "exit_margin": 1, "drain_reserve": 1}
"""A whole shutdown that is over 3 s after T0, and must be over within 4."""

PATIENT = ("--graceful-timeout", "80")


def workers_of(kind: str) -> int:
    return int(WORKERS[kind][WORKERS[kind].index("-w") + 1])


@pytest.fixture
def switches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a test lets go what waits in the application."""
    return tmp_path_factory.mktemp("switches")


@pytest.fixture
def start(serve: Serve, switches: Path) -> Iterator[Serve]:
    """Start the application of these tests, with the callbacks that it is to have."""

    def started(*callbacks: str, **options: Any) -> Server:
        env = {
            "CALLBACKS": " ".join(callbacks),
            "SWITCHES": str(switches),
            **options.pop("env", {}),
        }
        return serve("application_service:app", env=env, **options)

    yield started
    for name in ("work", "last", "first"):  # Whatever still waits ends with its test.
        (switches / name).touch()


def said(server: Server, pid: int) -> list[str]:
    """What the callbacks have said in this worker, in that order: name and phase."""
    return re.findall(rf"^(\w+ in [A-Z_]+) in {pid}$", server.output, re.M)


def wait_said(server: Server, pids: list[int], count: int) -> None:
    server.wait_for(
        lambda: all(len(said(server, pid)) >= count for pid in pids), f"{count} callbacks", PATIENCE
    )


def wait_alone(server: Server, pid: int) -> None:
    """Wait until this worker is the last one."""
    server.wait_for(lambda: server.worker_pids() == [pid], "the end of the other workers", PATIENCE)


def holds(server: Server) -> int:
    return sum(record.holds for record in server.memory.records())


# -- callbacks ----


@pytest.mark.long(but="gthread")
def test_callbacks_run_once_in_every_worker_in_their_order(kind: str, start: Serve) -> None:
    """on_lame_duck when LAME_DUCK begins, while requests are served; on_drain when DRAINING does;
    each in the order in which it was registered, once."""
    server = start(
        "drain:third:say",
        "lame_duck:first:say",
        "drain:last:say",
        "lame_duck:second:say",
        kind=kind,
        settings=HOLD,
    )
    pids = server.wait_booted(workers_of(kind))
    server.lead_to(Phase.LAME_DUCK)
    wait_said(server, pids, 2)
    assert server.get("/").status == 200
    server.lead_to(Phase.DRAINING)
    assert server.wait(PATIENCE) == 0, server.output
    for pid in pids:
        *lame_duck, third, last = said(server, pid)
        assert lame_duck == ["first in LAME_DUCK", "second in LAME_DUCK"]
        assert [third.split()[0], last.split()[0]] == ["third", "last"]
    assert "0 cut off" in server.summary()


@pytest.mark.long(but="gthread")
def test_the_worker_stays_until_its_last_callback_has_ended(
    kind: str, start: Serve, switches: Path
) -> None:
    """A worker with nothing in flight, dismissed, goes only when on_drain has ended, and by
    itself."""
    server = start("drain:last:wait", args=(*WORKERS[kind], "-w", "1", *PATIENT), settings=LONG)
    (pid,) = server.wait_booted(1)
    server.terminate()
    server.wait_line(f"last in DRAINING in {pid}", PATIENCE)
    server.wait_dismissed()
    assert server.worker_pids() == [pid]
    (switches / "last").touch()
    server.assert_gone()
    assert f"last ended in {pid}" in server.output
    assert "drained" in server.output


@pytest.mark.long(but="gthread")
def test_a_callback_that_fails_is_logged_and_the_next_one_runs(kind: str, start: Serve) -> None:
    """An error, SystemExit and KeyboardInterrupt end the callback alone, and are logged with their
    traceback; one that overran is named with file and line; what comes after them runs, and nothing
    else is harmed."""
    plan = ("raises:raise", "exits:exit", "interrupted:interrupt", "hangs:hang", "last:say")
    server = start(
        *(f"lame_duck:{word}" for word in plan), args=(*WORKERS[kind], "-w", "1"), settings=HOLD
    )
    (pid,) = server.wait_booted(1)
    server.lead_to(Phase.LAME_DUCK)
    server.wait_line(f"last in LAME_DUCK in {pid}", PATIENCE)
    assert [line.split()[0] for line in said(server, pid)] == [
        "raises",
        "exits",
        "interrupted",
        "hangs",
        "last",
    ]
    output = server.output
    for name, error in (
        ("raises", "ZeroDivisionError: raised by a callback"),
        ("exits", "SystemExit: called by a callback"),
        ("interrupted", "KeyboardInterrupt"),
    ):
        failed = rf"on_lame_duck callback {name} \(\S*application_service\.py:\d+\) failed$"
        assert [len(re.findall(line, output, re.M)) for line in (failed, f"^{error}$")] == [1, 1], (
            output
        )
    assert output.count("Traceback") == 3
    overran = (
        r"callback hangs \(\S*application_service\.py:\d+\) overran its timeout of 0\.2 s; "
        r"the worker no longer waits for it"
    )
    assert len(re.findall(overran, output)) == 1, output
    assert server.get("/").status == 200
    assert server.worker_pids() == [pid]
    server.terminate()
    server.wait_phase(Phase.DRAINING)
    server.signal(signal.SIGTERM)
    assert server.wait(PATIENCE) == 0, server.output


@pytest.mark.long(but="gthread")
def test_a_callback_does_not_hold_the_exit_beyond_the_deadline(kind: str, start: Serve) -> None:
    """One that never ends: the log names it a second before the drain limit, and the process is
    gone by then."""
    server = start("drain:never:wait", kind=kind, settings=CUT)
    server.terminate()
    server.wait_line(
        r"left 1 s before the end of the drain: 0 holds and 1 callbacks: on_drain callback never "
        r"\(",
        PATIENCE,
    )
    server.assert_gone()
    assert "0 cut off" in server.summary()


@pytest.mark.long(but="gthread")
def test_a_worker_that_boots_in_lame_duck_runs_them_as_well(kind: str, start: Serve) -> None:
    """A respawned worker runs on_lame_duck once it has booted."""
    server = start("lame_duck:first:say", kind=kind, settings=HOLD)
    before = server.wait_booted(workers_of(kind))
    server.lead_to(Phase.LAME_DUCK)
    wait_said(server, before, 1)
    os.kill(before[0], signal.SIGKILL)
    server.wait_for(lambda: set(booted_in(server.memory)) - set(before), "a new worker", PATIENCE)
    (new,) = set(server.wait_booted(workers_of(kind))) - set(before)
    wait_said(server, [new], 1)
    assert [said(server, pid) for pid in (*before[1:], new)] == [["first in LAME_DUCK"]] * len(
        before
    )


@pytest.mark.long
def test_they_run_again_in_the_next_shutdown(kind: str, start: Serve) -> None:
    """Taken back by undrain, LAME_DUCK comes a second time: so do the callbacks."""
    server = start("lame_duck:first:say", "drain:last:say", kind=kind, settings=HOLD)
    pids = server.wait_booted(workers_of(kind))
    memory = server.memory
    assert memory.trigger(Origin.DRAIN)
    wait_said(server, pids, 1)
    server.wait_phase(Phase.LAME_DUCK)
    memory.header.undrain = time.monotonic_ns()
    server.wait_for(lambda: memory.header.phase == Phase.SERVING, "the way back")
    server.lead_to(Phase.LAME_DUCK)
    wait_said(server, pids, 2)
    server.lead_to(Phase.DRAINING)
    assert server.wait(PATIENCE) == 0, server.output
    for pid in pids:
        assert [line.split()[0] for line in said(server, pid)] == ["first", "first", "last"]


@pytest.mark.long
def test_one_that_was_registered_while_serving_runs(kind: str, start: Serve) -> None:
    """By a request, say, that imported a module."""
    server = start(args=(*WORKERS[kind], "-w", "1"), settings=HOLD)
    (pid,) = server.wait_booted(1)
    assert server.get("/register").status == 200
    server.lead_to(Phase.LAME_DUCK)
    wait_said(server, [pid], 1)
    assert said(server, pid) == ["late in LAME_DUCK"]


@pytest.mark.long
def test_ones_that_were_registered_before_the_fork_run_in_the_workers(
    kind: str, start: Serve
) -> None:
    """With preload_app the arbiter imports the application; it runs none of its callbacks
    itself."""
    server = start(
        "lame_duck:first:say", "drain:last:say", kind=kind, args=("--preload",), settings=LONG
    )
    pids = server.wait_booted(workers_of(kind))
    server.terminate()
    assert server.wait(PATIENCE) == 0, server.output
    assert server.output.count("first in ") == server.output.count("last in ") == len(pids)
    assert [[line.split()[0] for line in said(server, pid)] for pid in pids] == [
        ["first", "last"]
    ] * len(pids)


@pytest.mark.long(but="gthread")
def test_a_delay_that_is_ended_skips_no_callback(kind: str, start: Serve) -> None:
    """Draining at once: on_lame_duck still comes first, and on_drain after it."""
    server = start("lame_duck:first:say", "drain:last:say", kind=kind, settings=HOLD)
    pids = server.wait_booted(workers_of(kind))
    server.lead_to(Phase.DRAINING)
    assert server.wait(PATIENCE) == 0, server.output
    assert [[line.split()[0] for line in said(server, pid)] for pid in pids] == [
        ["first", "last"]
    ] * len(pids)


@pytest.mark.long(but="gthread-SIGINT")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["SIGINT", "SIGQUIT"])
def test_ctrl_c_waits_for_nothing(number: signal.Signals, kind: str, start: Serve) -> None:
    """No callback runs, and what is held is named and cut off."""
    server = start(
        "lame_duck:first:say",
        "drain:last:say",
        args=(*WORKERS[kind], "-w", "1", *PATIENT),
        settings=LONG,
    )
    assert server.get("/hold?name=work").status == 200
    server.signal(number)
    assert server.wait_exit(20), server.output
    assert "first in" not in server.output
    assert "last in" not in server.output
    assert "work is done" not in server.output
    assert (
        "left when the worker was interrupted, and cut off: 1 holds and 0 callbacks: hold 'work' "
        "for" in server.output
    )


@pytest.mark.long
def test_an_arbiter_that_was_replaced_drains_without_a_lame_duck(
    start: Serve, tmp_path: Path
) -> None:
    """SIGUSR2, then SIGTERM to the old one: on_drain runs in its workers, on_lame_duck in none,
    because the address goes on being served."""
    server = start("lame_duck:first:say", "drain:last:say", kind="sync", settings=HOLD, script=True)
    old = server.wait_booted(workers_of("sync"))
    server.signal(signal.SIGUSR2)
    new = int(
        server.wait_for(
            lambda: re.findall(r"Listening at: .*\((\d+)\)", server.output)[1:], "its successor"
        )[0]
    )
    with contextlib.closing(memory_of(new)) as memory:
        server.wait_for(lambda: len(booted_in(memory)) == len(old), "new workers that have booted")
        server.signal(signal.SIGTERM)
        assert server.wait(PATIENCE) == 0, server.output
        assert [said(server, pid) for pid in old] == [["last in DRAINING"]] * len(old)
        assert "first in" not in server.output
    os.kill(new, signal.SIGINT)
    server.wait_for(lambda: not server.processes(), "the end of the new one", PATIENCE)


@pytest.mark.long
def test_without_callbacks_there_is_no_thread(start: Serve) -> None:
    """A worker of an application that registers nothing is as it was: one thread; and one more with
    a callback."""
    for callbacks, threads in (((), 1), (("drain:last:say",), 2)):
        server = start(*callbacks, args=("-k", "sync", "-w", "1"), settings=HOLD)
        (pid,) = server.wait_booted(1)
        folder = f"/proc/{pid}/task"
        server.wait_for(lambda f=folder, n=threads: len(os.listdir(f)) == n, f"{threads} threads")


# -- holds ----


@pytest.mark.long(but="gthread")
def test_a_hold_keeps_its_worker_until_it_is_given_back(
    kind: str, start: Serve, switches: Path
) -> None:
    """All workers are dismissed and the others gone; the one with the hold stays, and goes when the
    work is done."""
    server = start(kind=kind, args=PATIENT, settings=LONG)
    server.wait_booted(workers_of(kind))
    pid = int(server.get("/hold?name=work").body)
    assert holds(server) == 1
    server.terminate()
    server.wait_dismissed()
    wait_alone(server, pid)
    assert "work is done" not in server.output
    (switches / "work").touch()
    server.assert_gone()
    assert f"work is done in {pid}" in server.output
    assert "drained" in server.output
    assert "0 cut off" in server.summary()


def test_a_hold_does_not_run_the_notify_of_a_workers_class(start: Serve, switches: Path) -> None:
    """A class of its own may end the process in ``notify`` once its loop has ended. A worker that
    is held touches the file of its heartbeat only."""
    args = ("-k", "strict_workers.StrictWorker", "-w", "1", *PATIENT)
    server = start(args=args, settings=LONG)
    pid = int(server.get("/hold?name=work").body)
    server.terminate()
    server.wait_dismissed()
    at_first = server.wait_for(lambda: heartbeat(pid), "its file")
    server.wait_for(lambda: heartbeat(pid) > at_first, "a heartbeat")
    (switches / "work").touch()
    server.assert_gone()
    assert f"work is done in {pid}" in server.output
    assert "own notify() ends the process" not in server.output


@pytest.mark.long(but="gthread")
def test_a_hold_that_is_left_at_the_deadline_is_named(kind: str, start: Serve) -> None:
    """The process is gone before it; the hold is not a request that was cut off."""
    server = start(kind=kind, settings=CUT)
    server.wait_booted(workers_of(kind))
    assert server.get("/hold?name=work").status == 200
    server.terminate()
    server.wait_line(
        "left 1 s before the end of the drain: 1 holds and 0 callbacks: hold 'work' for [1-9]",
        PATIENCE,
    )
    server.assert_gone()
    assert "work is done" not in server.output
    assert "0 cut off" in server.summary()


@pytest.mark.long
def test_a_killed_worker_takes_its_holds_with_it(kind: str, start: Serve) -> None:
    """Its slot is free again, the count is 0, and nothing waits for it."""
    server = start(kind=kind, settings=LONG)
    server.wait_booted(workers_of(kind))
    os.kill(int(server.get("/hold?name=work").body), signal.SIGKILL)
    server.wait_for(lambda: holds(server) == 0, "a count of 0")
    server.wait_booted(workers_of(kind))
    server.terminate()
    server.assert_gone()


def heartbeat(pid: int) -> float:
    """When the worker last told gunicorn that it lives: the time of its unlinked file."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if "wgunicorn-" in os.readlink(fd):
                return fd.stat().st_mtime
    return 0.0


@pytest.mark.long(but="gthread")
def test_a_reload_waits_for_a_hold_and_its_heart_beats(
    kind: str, start: Serve, switches: Path
) -> None:
    """SIGHUP: new workers serve, the old one with the hold stays, and tells gunicorn that it lives,
    which would abort it otherwise."""
    server = start("drain:last:say", args=(*WORKERS[kind], "-w", "1", *PATIENT), settings=HOLD)
    pid = int(server.get("/hold?name=work").body)
    server.signal(signal.SIGHUP)
    server.wait_for(lambda: len(server.worker_pids()) == 2, "a new worker", PATIENCE)
    at_first = server.wait_for(lambda: heartbeat(pid), "its file")
    later = server.wait_for(lambda: (beat := heartbeat(pid)) > at_first and beat, "a heartbeat")
    server.wait_for(lambda: heartbeat(pid) > later, "another heartbeat")
    assert server.get("/").status == 200
    (switches / "work").touch()
    server.wait_for(lambda: pid not in server.worker_pids(), "the end of the old worker", PATIENCE)
    assert f"work is done in {pid}" in server.output
    assert said(server, pid) == [], "a reload is not a shutdown"
    assert "WORKER TIMEOUT" not in server.output


@pytest.mark.long
def test_a_connection_that_was_kept_alive_does_not_hang(
    start: Serve, connect: Connect, switches: Path
) -> None:
    """gthread 22 and 23 leave it open until the process ends, and 27 closes it; 24 to 26 serve it,
    and stay for it."""
    args = (*WORKERS["gthread"], "-w", "1", "--keep-alive", "70", *PATIENT)
    server = start(args=args, settings=HOLD)
    client = connect(server)
    pid = int(client.get("/hold?name=work").body)
    server.signal(signal.SIGHUP)
    if 24 <= int(gunicorn.__version__.split(".")[0]) < 27:
        server.wait_for(lambda: len(server.worker_pids()) == 2, "a new worker", PATIENCE)
        assert client.get("/").status == 200
    else:
        assert client.at_end()
    client.close()
    assert pid in server.worker_pids()
    (switches / "work").touch()
    server.wait_for(lambda: pid not in server.worker_pids(), "the end of the old worker", PATIENCE)


@pytest.mark.long
def test_a_reload_waits_no_longer_than_graceful_timeout(kind: str, start: Serve) -> None:
    """Then the old worker goes, and names what it leaves."""
    server = start(args=(*WORKERS[kind], "-w", "1", "--graceful-timeout", "2"), settings=HOLD)
    pid = int(server.get("/hold?name=work").body)
    server.signal(signal.SIGHUP)
    server.wait_line(
        "left 1 s before graceful_timeout: 1 holds and 0 callbacks: hold 'work' for", PATIENCE
    )
    server.wait_for(lambda: pid not in server.worker_pids(), "the end of the old worker", PATIENCE)
    assert server.get("/").status == 200


@pytest.mark.long
def test_a_worker_that_has_served_max_requests_waits_for_its_hold(
    kind: str, start: Serve, switches: Path
) -> None:
    """It goes when the work is done; its successor comes then, as after any worker."""
    server = start(
        args=(*WORKERS[kind], "-w", "2", "--max-requests", "1", *PATIENT),
        settings=HOLD,
        ready=False,
    )
    server.wait_booted(2)
    pid = int(server.get("/hold?name=work").body)
    server.wait_line("Autorestarting worker after current request", PATIENCE)
    server.wait_for(lambda: holds(server) == 1, "the hold")
    assert server.get("/").status == 200
    (switches / "work").touch()
    server.wait_for(lambda: pid not in server.worker_pids(), "the end of the worker", PATIENCE)
    assert f"work is done in {pid}" in server.output


def listening(port: int) -> int:
    """How many sockets listen at this port: the fourth column of /proc/net/tcp is 0A for those
    (proc(5))."""
    rows = [row.split() for row in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[3] == "0A" and int(row[1].split(":")[1], 16) == port for row in rows)


@pytest.mark.long
def test_with_reuse_port_no_connection_waits_for_a_worker_that_stays(
    kind: str, start: Serve, switches: Path
) -> None:
    """It closes the listeners that are its own: the kernel would go on giving it connections, which
    nobody accepts."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    args = (*WORKERS[kind], "-w", "1", "--reuse-port", *PATIENT)
    server = start(args=args, bind=f"127.0.0.1:{port}", settings=HOLD)
    old = int(server.get("/hold?name=work").body)
    server.signal(signal.SIGHUP)
    server.wait_for(lambda: set(booted_in(server.memory)) - {old}, "a new worker", PATIENCE)
    server.wait_for(lambda: listening(port) == 1, "the end of the old listener", PATIENCE)
    assert {server.get("/").status for _ in range(12)} == {200}
    assert old in server.worker_pids()
    (switches / "work").touch()
    server.wait_for(lambda: old not in server.worker_pids(), "the end of the old worker", PATIENCE)


# -- streams ----


@pytest.mark.long(but="gthread")
def test_a_stream_ends_when_the_shutdown_begins(kind: str, start: Serve, connect: Connect) -> None:
    """The client gets a complete response, chunked to its end, while the instance goes on serving;
    the application's generator is closed in its request's context."""
    server = start(kind=kind, settings=HOLD)
    client = connect(server)
    client.send("/events")
    server.wait_line("event 2 of /events", PATIENCE)
    server.lead_to(Phase.LAME_DUCK)
    answer = client.receive()
    assert answer.status == 200
    assert answer.headers["transfer-encoding"] == "chunked"
    events = answer.body.decode().split("\n\n")
    assert events[:3] == ["data: 0", "data: 1", "data: 2"]
    assert events[-1] == ""
    server.wait_line("events of /events are closed")
    assert server.get("/events").body == b"", "one that begins later has nothing to say"
    assert server.get("/").status == 200


# -- the other worker classes ----


OTHERS = {
    "gevent_pywsgi": ("gevent", "service:app"),
    "tornado": ("tornado", "service:app"),
    "asgi": ("gunicorn.workers.gasgi", "asgi_wrapped:app"),
    "uvicorn_worker.UvicornWorker": ("uvicorn_worker", "asgi_wrapped:app"),
}

REGISTERS = """
import os, sys, time
import gunicorn_grace

def post_worker_init(worker):
    @gunicorn_grace.on_lame_duck
    def first():
        os.write(2, f"first in {gunicorn_grace.phase()} in {os.getpid()}\\n".encode())

    @gunicorn_grace.on_drain(timeout=60)
    def last():
        with gunicorn_grace.hold("work"):
            os.write(2, f"last in {gunicorn_grace.phase()} in {os.getpid()}\\n".encode())
            while not os.path.exists(os.environ["SWITCHES"] + "/last"):
                time.sleep(0.02)
        os.write(2, b"last ended\\n")

gunicorn_grace.install(globals())
"""


@pytest.mark.long
@pytest.mark.parametrize("worker_class", OTHERS)
def test_callbacks_and_holds_of_threads_work_in_every_worker_class(
    worker_class: str, serve: Serve, tmp_path: Path, switches: Path
) -> None:
    """They run in a thread of their own beside the loop; the worker stays for them when its loop
    has ended."""
    needs, app = OTHERS[worker_class]
    if importlib.util.find_spec(needs) is None:
        pytest.skip(f"no {needs} here")
    (tmp_path / "conf.py").write_text(REGISTERS)
    options = {"config": ("-c", "conf.py"), "settings": LONG, "env": {"SWITCHES": str(switches)}}
    server = serve(app, args=("-k", worker_class, *PATIENT), **options)
    (pid,) = server.wait_booted(1)
    server.terminate()
    server.wait_line(f"last in DRAINING in {pid}", PATIENCE)
    server.wait_dismissed()
    assert holds(server) == 1
    (switches / "last").touch()
    assert server.wait(PATIENCE) == 0, server.output
    assert [line.split()[0] for line in said(server, pid)] == ["first", "last"]
    assert "last ended" in server.output
