"""The event table: every signal, every way a server is run, upgraded and handed its sockets, against real gunicorn.

What test_shutdown.py, test_load.py, test_prestop.py and test_configuration.py prove is not proved here again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gunicorn
import pytest
from conftest import (
    HOLD,
    SHORT,
    WORKERS,
    Client,
    Connect,
    Serve,
    Server,
    all_answered,
    booted_in,
    look,
    looks,
    memory_of,
    plan,
    told,
)

from gunicorn_grace import state as st
from gunicorn_grace.phase import Phase
from gunicorn_grace.rehearsal import procfs
from gunicorn_grace.rehearsal.load import Load
from gunicorn_grace.rehearsal.platform import EndpointTable
from gunicorn_grace.rehearsal.scene import GRACE, play
from gunicorn_grace.rehearsal.tally import Tally
from gunicorn_grace.rehearsal.wire import Address, fetch, parse_address

LONG_DRAIN = ("--graceful-timeout", "50")
"""An instance that is gone sooner did not wait for its workers in vain."""


def workers_of(kind: str) -> int:
    return int(WORKERS[kind][WORKERS[kind].index("-w") + 1])


def begin_a_request(server: Server, client: Client, path: str) -> None:
    """Send a slow request, and wait until it is being served."""
    seen = server.mark()
    client.send(path)
    server.wait_line("slow request begins", after=seen)


def hold_a_request(server: Server, client: Client) -> Callable[[], None]:
    """Send a request that is being served until the function is called that this returns."""
    release = Path(server.cwd or ".", "release")
    begin_a_request(server, client, f"/wait?for={release}")
    return release.touch


def load_on(server: Server, **options: object) -> Load:
    """A load on new and kept-alive connections that asks for readiness as well: a 503 counts as lost."""
    table = EndpointTable()
    table.add(server.address)
    return Load(table, **{"rate": 60.0, "timeout": 15.0, "paths": ("/", "/readyz"), **options})  # type: ignore[arg-type]


def nothing_lost(tally: Tally, server: Server) -> None:
    lost = "\n".join(map(str, tally.lost_records[:10]))
    assert tally.lost == 0, f"{tally.summary()}\n{lost}\n{server.output}"


# -- SIGHUP ------------------------------------------------------------------------------------------------------------


def test_a_reload_under_load_loses_nothing_and_reads_the_settings_again(
    kind: str, serve: Serve, tmp_path: Path
) -> None:
    """SIGHUP while requests come on new and kept-alive connections: none is lost, and the new delay is in the log."""
    config = tmp_path / "conf.py"
    config.write_text("from gunicorn_grace.conf import *\ngrace_shutdown_delay = 11\n")
    # gthread workers of gunicorn 24 to 26 stay that long for an idle connection.
    server = serve(kind=kind, config=("-c", "conf.py"), args=("--graceful-timeout", "6"))
    server.wait_line("lame duck 11 s")
    before = set(server.wait_booted(workers_of(kind)))
    # Of another size: Python takes a file of the same second and size for the one that it has compiled.
    config.write_text("from gunicorn_grace.conf import *\ngrace_shutdown_delay = 12.0\n")
    with load_on(server) as load:
        load.wait_completed(40)
        server.signal(signal.SIGHUP)
        server.wait_line("lame duck 12 s")
        server.wait_for(lambda: not before & set(server.worker_pids()), "the end of the old workers")
        load.wait_completed(60)
        tally = load.stop()
    nothing_lost(tally, server)


def test_a_reload_in_lame_duck_is_refused(serve: Serve, tmp_path: Path) -> None:
    """SIGHUP after SIGTERM is one log line: no worker is replaced, no file is read, the clock is not touched."""
    config = tmp_path / "conf.py"
    config.write_text("from gunicorn_grace.conf import *\n")
    server = serve(kind="gthread", config=("-c", "conf.py"), settings=HOLD)
    before = set(server.wait_booted(2))
    server.lead_to(Phase.LAME_DUCK)
    t0 = server.memory.cells[st.T0]
    config.write_text("this is no python\n")
    server.signal(signal.SIGHUP)
    assert "WARNING" in server.wait_line("SIGHUP is refused: the shutdown has begun")
    assert {answer["pid"] for answer in looks(server)} <= before
    assert (server.memory.cells[st.PHASE], server.memory.cells[st.T0]) == (Phase.LAME_DUCK, t0)
    assert "Hang up" not in server.output


def test_sigterm_in_the_middle_of_a_reload(serve: Serve, connect: Connect) -> None:
    """While a reload waits for an old worker's slow request, SIGTERM turns readiness red at once, T0 is the signal's
    time, the lame duck phase does not wait for the reload to end, and the slow request is answered."""
    server = serve(args=("-k", "sync", "-w", "1"), settings=HOLD)
    (old,) = server.wait_booted(1)
    client = connect(server)
    release = hold_a_request(server, client)
    server.signal(signal.SIGHUP)
    server.wait_for(lambda: set(booted_in(server.memory)) - {old}, "a new worker that has booted")
    server.signal(signal.SIGTERM)
    server.wait_for(lambda: server.memory.cells[st.SIGTERM], "the store in the signal handler")
    assert server.get("/readyz").status == 503
    server.wait_line("shutdown_initiated")
    assert old in server.worker_pids(), "the slow request is still being served"
    assert server.memory.cells[st.T0] == server.memory.cells[st.SIGTERM]
    release()
    assert client.receive().status == 200
    client.close()
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.output
    assert "0 cut off" in server.summary()


# -- SIGTERM before anything is ready ----------------------------------------------------------------------------------


@pytest.fixture
def container() -> tuple[str, ...]:
    """What makes gunicorn PID 1 of a PID namespace, as in a container without an init."""
    command = ("unshare", "--fork", "--pid", "--mount-proc")
    try:
        refused = subprocess.run([*command, "true"], capture_output=True, timeout=20).returncode
    except FileNotFoundError:
        pytest.skip("there is no unshare(1) here")
    if refused:
        pytest.skip("a PID namespace is not to be had here")
    return command


def test_sigterm_during_a_preload_ends_it_at_once(serve: Serve) -> None:
    """With preload_app the import runs in the arbiter: SIGTERM ends it without a delay, by the signal or with 0."""
    server = serve("slow_import:app", args=("--preload",), settings=HOLD, listens=False)
    server.wait_line("import begins")
    server.signal(signal.SIGTERM)
    assert server.wait_exit(15), server.output
    assert server.wait() in (0, 128 + signal.SIGTERM, -signal.SIGTERM)
    assert "shutdown_initiated" not in server.output


@pytest.mark.parametrize("extra", [(), ("--preload",)], ids=["workers load", "preload"])
def test_sigterm_during_boot_as_pid_1(extra: tuple[str, ...], serve: Serve, container: tuple[str, ...]) -> None:
    """The kernel ignores a signal without a handler for PID 1: it ends at once all the same, nothing is left."""
    args = ("-k", "sync", *LONG_DRAIN, *extra)
    server = serve("slow_import:app", args=args, settings=HOLD, executable_prefix=container, listens=False)
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


@pytest.mark.parametrize("where", [BEFORE_OUR_HOOK, AFTER_OUR_HOOK], ids=["before our hook", "after our hook"])
def test_sigterm_between_a_fork_and_the_workers_signals(where: str, serve: Serve, tmp_path: Path) -> None:
    """A worker that is dismissed before gunicorn has set its signals leaves as soon as it runs; gunicorn alone would
    lose the signal and wait for it as long as graceful_timeout."""
    (tmp_path / "conf.py").write_text(GATE.format(where=where))
    server = serve(args=("-k", "sync", "-w", "1", *LONG_DRAIN), config=("-c", "conf.py"), settings=SHORT)
    (first,) = server.wait_booted(1)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    server.signal(signal.SIGTTIN)
    (young,) = server.wait_for(lambda: set(procfs.children(server.pid)) - {first}, "a second worker")
    memory = server.memory
    meter = server.wait_for(
        lambda: [meter for _, slot, meter in memory.slots() if memory.cells[slot + st.AGE] == 2], "its slot"
    )[0]
    server.signal(signal.SIGTERM)
    server.wait_for(lambda: memory.cells[meter + st.DISMISSED], "its dismissal")
    with contextlib.suppress(OSError):  # ENXIO: it is gone already, nobody reads.
        os.close(os.open(gate, os.O_WRONLY | os.O_NONBLOCK))
    assert server.wait_exit(10), f"{young} holds the exit\n{server.output}"
    assert server.wait() == 0, server.output
    assert server.processes() == []


# -- SIGTTIN, SIGTTOU, SIGUSR1 -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "kind"), [(Phase.SERVING, "gthread"), *((Phase.LAME_DUCK, kind) for kind in sorted(WORKERS))], ids=str
)
def test_the_number_of_workers_can_be_changed(phase: Phase, kind: str, serve: Serve) -> None:
    """SIGTTIN forks a worker that knows the phase from its first request on; SIGTTOU lets one go, and nothing else."""
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
    assert server.memory.cells[st.PHASE] == phase


def test_log_files_are_reopened_in_lame_duck(serve: Serve, tmp_path: Path) -> None:
    """SIGUSR1 during the delay: the rotated file is left, the new one written, no worker goes, the clock runs on."""
    log = tmp_path / "access.log"
    server = serve(kind="gthread", args=("--access-logfile", str(log)), settings=HOLD)
    before = sorted(server.wait_booted(2))
    server.lead_to(Phase.LAME_DUCK)
    t0 = server.memory.cells[st.T0]
    log.rename(tmp_path / "access.log.1")
    server.signal(signal.SIGUSR1)
    server.wait_for(log.exists, "the new log file")

    def written_by_both() -> bool:
        pids = {answer["pid"] for answer in looks(server)}
        return len(pids) == 2 and "GET /look" in log.read_text()

    server.wait_for(written_by_both, "requests in the new log file")
    assert sorted(server.wait_booted(2)) == before
    assert server.get("/readyz").status == 503
    assert (server.memory.cells[st.PHASE], server.memory.cells[st.T0]) == (Phase.LAME_DUCK, t0)


# -- ends --------------------------------------------------------------------------------------------------------------


def test_a_third_sigterm_changes_nothing(kind: str, serve: Serve, connect: Connect) -> None:
    """The second SIGTERM drains; a third one cuts off nothing of what is in flight."""
    server = serve(kind=kind, settings=HOLD)
    client = connect(server)
    release = hold_a_request(server, client)
    server.lead_to(Phase.DRAINING)
    seen = server.mark()
    server.signal(signal.SIGTERM)
    server.wait_line("Handling signal: term", after=seen)
    release()
    assert client.receive().status == 200
    client.close()
    assert server.wait(20) == 0, server.output
    assert "0 cut off" in server.summary()


@pytest.mark.parametrize(
    ("name", "kind"), [("SIGINT", "sync"), ("SIGQUIT", "gthread"), ("SIGINT", "gthread"), ("SIGQUIT", "gevent")]
)
def test_ctrl_c_names_what_it_cuts_off(name: str, kind: str, serve: Serve, connect: Connect) -> None:
    """SIGINT and SIGQUIT in SERVING end the instance promptly, and the log names each request that was cut off."""
    server = serve(kind=kind, settings=HOLD, args=LONG_DRAIN)
    begin_a_request(server, connect(server), "/slow?s=50")
    server.signal(signal.Signals[name])
    server.wait_line("in flight when the worker was interrupted, and cut off: GET /slow for")
    assert server.wait_exit(10), server.output
    assert "shutdown_initiated" not in server.output


@pytest.mark.parametrize("where", ["before", "behind"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["SIGINT", "SIGQUIT"])
def test_ctrl_c_ends_a_gthread_worker_that_is_submitting_a_request(
    number: signal.Signals, where: str, serve: Serve, connect: Connect
) -> None:
    """The main thread holds the lock of its pool, for which gunicorn's own handler would wait until SIGKILL; or a
    thread of the pool has just been started, and is not among those that the interpreter wakes."""
    args = ("-k", "gthread", "--threads", "4", "-w", "1")
    server = serve("submitting:app", args=args, env={"WHERE": where}, ready=False)
    server.wait_booted(1)
    connect(server).send("/")
    server.wait_line("submitting")
    server.signal(number)
    assert server.wait(20) == 0, server.output
    assert "SIGKILL" not in server.output


# -- SIGUSR2 -----------------------------------------------------------------------------------------------------------


def test_a_successor_that_cannot_be_executed_changes_nothing(serve: Serve, tmp_path: Path) -> None:
    """gunicorn's child ends in the loop that it has inherited, and stops none of the workers: the instance is ready as
    before, and a SIGTERM has a delay and an end."""
    config = tmp_path / "gunicorn.conf.py"
    config.write_text(
        "from gunicorn_grace.conf import *\ndef pre_exec(server):\n    raise RuntimeError('no such thing')\n"
    )
    server = serve(kind="gthread", config=("-c", str(config)), settings=SHORT)
    before = set(server.wait_booted(workers_of("gthread")))
    server.signal(signal.SIGUSR2)
    server.wait_line("no such thing")
    server.wait_for(lambda: set(procfs.children(server.arbiter_pid)) == before, "the end of the child")
    assert server.memory.cells[st.PHASE] == Phase.SERVING
    assert server.get("/readyz").status == 200
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.output
    assert "lame_duck_ended" in server.output


def test_a_binary_upgrade_under_load_loses_nothing(kind: str, serve: Serve, tmp_path: Path) -> None:
    """SIGUSR2, then SIGTERM to the old arbiter: no request is lost, none refused, readiness is never 503, the shared
    listener is never sealed, the old one goes without a lame duck phase, and the new one has one of its own."""
    pidfile = tmp_path / "pid"
    server = serve(kind=kind, args=("--pid", str(pidfile), *LONG_DRAIN), settings=HOLD, script=True)
    count = workers_of(kind)
    server.wait_booted(count)
    with load_on(server) as load:
        load.wait_completed(30)
        server.signal(signal.SIGUSR2)
        second = tmp_path / "pid.2"
        new = int(server.wait_for(lambda: second.exists() and second.read_text().strip(), "the second pid file"))
        server.wait_for(lambda: len(procfs.children(new)) == count, "the new workers")
        with contextlib.closing(memory_of(new)) as memory:
            server.wait_for(lambda: len(booted_in(memory)) == count, "new workers that have booted")
        load.wait_completed(30)
        server.signal(signal.SIGTERM)
        assert server.wait(20) == 0, server.output
        server.wait_line("Master has been promoted")
        load.wait_completed(60)
        tally = load.stop()
    nothing_lost(tally, server)
    for word in ("shutdown_initiated", "lame_duck_ended", "sealed"):
        assert word not in server.output, server.output
    assert int(pidfile.read_text()) == new
    os.kill(new, signal.SIGTERM)
    server.wait_line("shutdown_initiated")
    assert fetch(server.address, "/readyz").status == 503
    os.kill(new, signal.SIGTERM)
    server.wait_line("sealed")
    server.wait_for(lambda: not server.processes(), "the end of the new one")
    server.wait_line("gunicorn-grace: stopped")


def test_sigterm_to_the_new_one_as_soon_as_the_old_one_is_gone(serve: Serve) -> None:
    """The new arbiter notices only at its next look that it is alone: the signal is not lost for that, and the delay
    runs from it."""
    server = serve(kind="sync", settings=HOLD, script=True)
    server.wait_booted(workers_of("sync"))
    server.signal(signal.SIGUSR2)
    new = int(server.wait_for(lambda: re.findall(r"Listening at: .*\((\d+)\)", server.output)[1:], "its successor")[0])
    with contextlib.closing(memory_of(new)) as memory:
        server.wait_for(lambda: len(booted_in(memory)) == workers_of("sync"), "new workers that have booted")
        server.signal(signal.SIGKILL)
        server.wait(20)
        os.kill(new, signal.SIGTERM)
        server.wait_for(lambda: memory.cells[st.PHASE] == Phase.LAME_DUCK, "the lame duck phase of the new one")
    os.kill(new, signal.SIGTERM)
    server.wait_for(lambda: not server.processes(), "the end of the new one")


def test_an_upgrade_is_refused_once_the_shutdown_has_begun(serve: Serve) -> None:
    """SIGUSR2 after SIGTERM: a new server on listeners that are about to be sealed would serve nobody."""
    server = serve(kind="sync", settings=HOLD)
    server.lead_to(Phase.LAME_DUCK)
    server.signal(signal.SIGUSR2)
    server.wait_line("SIGUSR2 is refused")
    server.terminate()
    server.assert_gone()
    assert server.output.count("Starting gunicorn") == 1


# -- sockets -----------------------------------------------------------------------------------------------------------

# What systemd does for a socket unit with a service that is started again when it ends.
SYSTEMD = """
import os, socket, sys

sock = socket.create_server(("127.0.0.1", 0), backlog=64)
held = sock.detach()
if held != 3:
    os.dup2(held, 3)
    os.close(held)
os.set_inheritable(3, True)
while True:
    pid = os.fork()
    if not pid:
        if sys.argv[1] == "activate":
            os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
        os.execv(sys.argv[2], sys.argv[2:])
    os.waitpid(pid, 0)
"""


@pytest.mark.parametrize(
    ("kind", "how", "bind"),
    [*((kind, "activate", "127.0.0.1:0") for kind in sorted(WORKERS)), ("gthread", "inherit", "fd://3")],
)
def test_a_socket_that_was_handed_to_us_is_never_sealed(
    kind: str, how: str, bind: str, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """Socket activation and fd:// sockets: connections made while we drain wait in the queue, and the next process
    serves them."""
    (tmp_path / "systemd.py").write_text(SYSTEMD)
    prefix = (sys.executable, str(tmp_path / "systemd.py"), how)
    server = serve(kind=kind, executable_prefix=prefix, bind=bind, settings=SHORT, args=("-w", "1"))
    first = server.arbiter_pid
    (worker,) = server.wait_booted(1)
    client = connect(server)
    release = hold_a_request(server, client)
    seen = server.mark()
    os.kill(first, signal.SIGTERM)
    server.wait_phase(Phase.DRAINING)
    waiting = [connect(server) for _ in range(4)]
    for late in waiting:
        late.send("/look", headers=(("Connection", "close"),))
    release()
    assert client.receive().status == 200
    client.close()
    answers = [look(late.receive()) for late in waiting]
    server.wait_line("Listening at", after=seen)
    if kind == "sync":
        assert {answer["pid"] for answer in answers}.isdisjoint({worker}), "its only worker was busy to the end"
    server.wait_line("gunicorn-grace: stopped.* 0 cut off", after=seen)
    assert "sealed" not in server.output


@pytest.mark.parametrize("kinds", [("unix",), ("tcp", "tcp", "unix")], ids="+".join)
def test_every_listener_is_emptied(
    kinds: tuple[str, ...], serve: Serve, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With the only worker busy, connections wait in the queue of each address; when the drain begins no new one gets
    in anywhere, a UNIX socket's path is gone first, and all that wait are answered."""
    path = tmp_path / "socket"
    binds = ["127.0.0.1:0" if name == "tcp" else f"unix:{path}" for name in kinds]
    more = [part for bind in binds[1:] for part in ("-b", bind)]
    server = serve(args=("-k", "sync", "-w", "1", *more), bind=binds[0], settings=SHORT)
    assert len(set(server.addresses)) == len(kinds)

    def connected(address: Address, **options: float) -> Client:
        client = Client(address, **options)
        request.addfinalizer(client.close)
        return client

    busy = connected(server.address)
    release = hold_a_request(server, busy)
    waiting = [connected(address) for address in server.addresses for _ in range(4)]
    for client in waiting:
        client.send("/")
    server.signal(signal.SIGTERM)
    server.wait_phase(Phase.DRAINING)
    assert not path.exists()
    for address in server.addresses:
        with pytest.raises(OSError):
            connected(address, timeout=0.3)
    release()
    all_answered(busy, *waiting)
    assert server.wait(20) == 0, server.output
    sealed = server.wait_line("gunicorn-grace: sealed")
    for address in server.addresses:
        assert (address if isinstance(address, str) else f":{address[1]}") in sealed


@pytest.mark.parametrize("how", ["SIGINT", "SIGQUIT", "no time to drain"])
def test_a_unix_socket_whose_queue_is_not_served_to_its_end(
    how: str, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """Ctrl-C in the middle of it, or a graceful_timeout of 0: gunicorn, which would unlink the path once more, ends
    with 0 and leaves nothing behind."""
    args = ("-k", "sync", "-w", "1", *(("--graceful-timeout", "0") if how.startswith("no") else ()))
    server = serve(args=args, bind=f"unix:{tmp_path / 'socket'}", settings=SHORT)
    busy = connect(server)
    hold_a_request(server, busy)
    connect(server).send("/")
    server.terminate()
    if how.startswith("SIG"):
        server.wait_line("gunicorn-grace: sealed")
        server.signal(getattr(signal, how))
    server.assert_gone()
    assert server.summary()


# -- ways to run -------------------------------------------------------------------------------------------------------


def test_a_daemon_drains_as_ever(serve: Serve, tmp_path: Path) -> None:
    """Detached, with its pid from the pidfile and its words in a file: the flip, the delay, the drain, no leftover."""
    log, pidfile = tmp_path / "log", tmp_path / "pid"
    args = ("--daemon", "--pid", str(pidfile), "--error-logfile", str(log))
    server = serve(kind="gthread", args=args, settings=HOLD, listens=False)
    assert server.wait(20) == 0, "the process that was started returns at once"

    def said(words: str) -> str:
        lines = log.read_text().splitlines() if log.exists() else []
        return next((line for line in lines if words in line), "")

    listening = server.wait_for(lambda: said("Listening at: "), "the daemon")
    server.addresses = (parse_address(listening.partition("Listening at: ")[2].split()[0]),)
    pid = int(pidfile.read_text())
    with contextlib.closing(memory_of(pid)) as memory:
        server.wait_for(lambda: len(booted_in(memory)) == 2, "2 booted workers")
        client = Client(server.address)
        client.send("/slow?s=1")
        os.kill(pid, signal.SIGTERM)
        server.wait_for(lambda: memory.cells[st.PHASE] == Phase.LAME_DUCK, "LAME_DUCK")
    assert server.get("/readyz").status == 503
    assert client.receive().status == 200
    client.close()
    os.kill(pid, signal.SIGTERM)
    server.wait_for(lambda: not server.processes(), "the end of every process")
    assert "0 cut off" in said("gunicorn-grace: stopped")
    assert not pidfile.exists()


NOBODY = 65534

WAYS: dict[str, tuple[str, tuple[str, ...]]] = {
    "preload": ("gevent", ("--preload",)),
    "user": ("gthread", ("--preload", "--user", f"{NOBODY}", "--group", f"{NOBODY}")),
    "worker_tmp_dir": ("sync", ("--worker-tmp-dir", "{folder}")),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_works_however_it_is_run(way: str, serve: Serve, connect: Connect, tmp_path: Path) -> None:
    """Preloaded, with its workers' privileges dropped, with another folder for their heartbeats: the flip is seen in
    every worker, what is in flight completes, and nothing is left behind."""
    folder = tmp_path / "heartbeats"
    folder.mkdir()
    kind, args = WAYS[way]
    if way == "user" and os.getuid():
        pytest.skip("only root can become somebody else")
    # The interpreter may be root's own, where nobody else can import from: so what is needed later is loaded by root.
    (tmp_path / "conf.py").write_text(
        "import encodings.idna\nimport gunicorn_grace.wsgi\nfrom gunicorn_grace.conf import *\n"
    )
    args = tuple(part.format(folder=folder) for part in args)
    server = serve(kind=kind, config=("-c", "conf.py"), args=args, settings=HOLD)
    workers = server.wait_booted(workers_of(kind))
    if way == "user":
        for pid in workers:
            assert f"Uid:\t{NOBODY}\t{NOBODY}" in Path(f"/proc/{pid}/status").read_text()
    client = connect(server)
    begin_a_request(server, client, "/slow?s=1")
    server.lead_to(Phase.LAME_DUCK)
    assert {server.get("/readyz").status for _ in range(8)} == {503}
    assert {answer["phase"] for answer in looks(server)} == {"LAME_DUCK"}
    server.signal(signal.SIGTERM)
    assert client.receive().status == 200
    client.close()
    assert server.wait(20) == 0, server.output
    assert "0 cut off" in server.summary()
    assert server.processes() == []
    assert list(folder.iterdir()) == []


def test_workers_that_are_recycled_under_load(kind: str, tmp_path: Path) -> None:
    """With max_requests and jitter workers come and go in every phase: a deletion loses nothing."""
    # No kept-alive connections, because of gunicorn itself. A gthread worker that has reached max_requests closes those
    # on which it has just said keep-alive (finish_request in 24.1 and 25.3): 25.3 alone lost 30 of 2300 requests on
    # them, and none on new ones. A gevent worker accepts none while idle ones hold it, up to graceful_timeout (22.0 to
    # 27.0): when two leave at once, new connections wait.
    scene = plan(kind, tmp_path, lag=1.0, keepalive_share=0.0, settings={"shutdown_delay": 2, "min_delay": 0})
    recycling = ("--max-requests", "40", "--max-requests-jitter", "20")
    result = play(dataclasses.replace(scene, args=(*scene.args, *recycling)), GRACE)
    assert "Autorestarting worker" in "\n".join(result.outputs.values()), told(result)
    assert result.tally.lost == 0, told(result)
    assert result.gone[0].exit_code == 0, told(result)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost and its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    extension = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(path), "-out", f"{path}.crt"]
    try:
        subprocess.run([*command, *extension], check=True, capture_output=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("there is no openssl(1) here")
    with path.open("a") as both:
        both.write(Path(f"{path}.crt").read_text())
    return path


def test_tls(kind: str, serve: Serve, certificate: Path, request: pytest.FixtureRequest) -> None:
    """Over TLS: readiness flips, a request in flight completes and says close, and connections that waited in the
    accept queue when the drain began, before their handshake, are served."""
    context = ssl.create_default_context(cafile=str(certificate))
    args = ("-w", "1", "--certfile", str(certificate), "--keyfile", str(certificate))
    server = serve(kind=kind, args=args, settings=HOLD, ready=False)
    server.wait_booted(1)

    def connected() -> Client:
        client = Client(server.address, context=context)
        request.addfinalizer(client.close)
        return client

    assert connected().get("/readyz", headers=(("Connection", "close"),)).status == 200
    server.lead_to(Phase.LAME_DUCK)
    assert connected().get("/readyz").status == 503
    busy = connected()
    release = hold_a_request(server, busy)
    waiting = [connected() for _ in range(3)]
    server.signal(signal.SIGTERM)
    server.wait_phase(Phase.DRAINING)
    # The only thread of a sync worker is busy: there they are answered after it, elsewhere meanwhile.
    answers = [client.get("/") for client in waiting] if kind != "sync" else []
    release()
    answer = busy.receive()
    assert (answer.status, answer.body, answer.headers["connection"]) == (200, b"waited\n", "close")
    for client in [] if answers else waiting:
        answers.append(client.get("/"))
        client.close()
    assert {answer.status for answer in answers} == {200}
    for client in (busy, *waiting):
        client.close()
    assert server.wait(20) == 0, server.output
    assert "0 cut off" in server.summary()


# -- the control socket ------------------------------------------------------------------------------------------------


def gunicornc(server: Server, command: str) -> str:
    """What gunicorn's own command says."""
    done = subprocess.run(
        [sys.executable, "-m", "gunicorn.ctl.cli", "-c", command],
        env=server.env,
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}\n{server.output}"
    return done.stdout


@pytest.mark.skipif(gunicorn.version_info < (25, 1), reason="gunicorn has a control socket from 25.1 on")
def test_the_control_socket_in_lame_duck(serve: Serve) -> None:
    """`gunicornc -c shutdown` begins a lame duck phase like any SIGTERM, in which the socket still answers, and
    changes the number of workers; a second shutdown drains."""
    server = serve(kind="gthread", settings=HOLD)
    server.wait_booted(2)
    gunicornc(server, "shutdown")
    server.wait_phase(Phase.LAME_DUCK)
    assert server.get("/readyz").status == 503
    server.wait_line("shutdown_initiated by SIGTERM")
    assert "2 workers" in gunicornc(server, "show workers")
    gunicornc(server, "worker add 1")
    server.wait_booted(3)
    assert {server.get("/readyz").status for _ in range(8)} == {503}
    gunicornc(server, "shutdown")
    assert server.wait(20) == 0, server.output
    server.wait_line("lame_duck_ended .*: second signal")
