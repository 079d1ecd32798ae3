"""One instance and its shutdown, phase by phase. Phases are held open and looked into, never
timed."""

from __future__ import annotations

import os
import re
import signal
import time

import pytest

from gunicorn_grace.shared import cells
from gunicorn_grace.shared.phase import Origin, Phase
from support.servers import (
    HOLD,
    SHORT,
    WORKERS,
    Client,
    Connect,
    Serve,
    Server,
    all_answered,
    booted_in,
    hold_a_request,
    look,
    look_at_each,
    stopped,
    workers_of,
)


def sigterm(server: Server) -> None:
    """Send SIGTERM, and wait until its handler has run."""
    server.signal(signal.SIGTERM)
    server.wait_for(lambda: server.memory.header.sigterm, "the store in the signal handler")


def test_readiness_is_red_in_every_worker_at_once(serve: Serve, connect: Connect) -> None:
    """Of 8 workers, asked one by one after SIGTERM, each answers 503 to readiness, 200 to liveness,
    and serves."""
    server = serve(
        args=("-k", "gthread", "-w", "8", "--threads", "2", "--keep-alive", "60"), settings=HOLD
    )
    server.wait_booted(8)
    clients: dict[int, Client] = {}
    with stopped() as stop:  # Those that have a connection, so that the next one is another's.
        while len(clients) < 8:
            client = connect(server)
            pid = look(client.get("/look"))["pid"]
            assert pid not in clients
            clients[pid] = client
            stop(pid)
    for client in clients.values():
        assert client.get("/readyz").status == 200
    sigterm(server)
    answers = {}
    for pid, client in clients.items():
        client.send("/readyz")
        answers[pid] = client.receive()
    assert {answer.status for answer in answers.values()} == {503}
    assert {answer.headers["connection"] for answer in answers.values()} == {"close"}
    for path in ("/livez", "/healthz", "/startupz", "/"):
        assert {server.get(path).status for _ in range(8)} == {200}, path


def test_every_worker_of_each_class_sees_the_shutdown_and_serves_on(
    kind: str, serve: Serve
) -> None:
    """After SIGTERM the application sees LAME_DUCK in every worker, and no worker ever answers
    ready again."""
    server = serve(kind=kind, settings=HOLD)
    pids = server.wait_booted(workers_of(kind))
    sigterm(server)
    for answer in look_at_each(server, pids):
        assert (answer["phase"], answer["terminating"]) == ("LAME_DUCK", True)
        assert server.get("/readyz").status == 503
    assert {server.get("/readyz").status for _ in range(8)} == {503}


def test_a_request_in_flight_completes(kind: str, serve: Serve, connect: Connect) -> None:
    """A 3 s request that is in flight at SIGTERM gets its whole response, which says Connection:
    close."""
    server = serve(kind=kind, settings=SHORT)
    client = connect(server)
    client.send("/slow?s=3")
    server.wait_line("slow request begins")
    server.signal(signal.SIGTERM)
    answer = client.receive()
    assert (answer.status, answer.body) == (200, b"slept 3 s\n")
    assert answer.headers["connection"] == "close"
    client.close()
    assert server.wait(20) == 0, server.output
    assert "0 cut off" in server.summary()


def test_requests_that_no_thread_has_begun_are_seen_to_wait(serve: Serve, connect: Connect) -> None:
    """The only thread is busy: what the worker has accepted beside it shows in its record while the
    shutdown is under way, on new and on kept-alive connections, and no longer when it is served."""
    server = serve(
        args=("-k", "gthread", "-w", "1", "--threads", "1", "--keep-alive", "60"), settings=HOLD
    )
    (worker,) = server.memory.records()
    kept = connect(server)
    kept.get("/")
    release = hold_a_request(server, connect(server))
    clients = [connect(server) for _ in range(5)]
    for client in (kept, *clients):
        client.send("/")
    silent = connect(server)  # The last one: gunicorn 24 gives it a thread, which then waits.
    assert worker.waiting == 0
    sigterm(server)
    server.wait_for(lambda: worker.waiting == 6, "6 requests that wait")
    assert worker.in_flight == 1
    release()
    all_answered(kept, *clients)
    server.wait_for(lambda: worker.waiting == 0, "the end of the waiting")
    silent.close()


@pytest.mark.long(but="gevent")
def test_a_stream_in_flight_completes(kind: str, serve: Serve, connect: Connect) -> None:
    """A response that is being streamed at SIGTERM is sent to its end."""
    server = serve(kind=kind, settings=SHORT)
    client = connect(server)
    client.send("/stream?n=8&pause=0.3")
    server.wait_line("stream line 1")
    server.signal(signal.SIGTERM)
    answer = client.receive()
    assert answer.body.splitlines()[-1] == b"line 7"
    client.close()
    assert server.wait(20) == 0, server.output


def test_a_request_longer_than_the_budget_is_cut_off_and_counted(
    kind: str, serve: Serve, connect: Connect
) -> None:
    """At the deadline the process ends all the same; the log names the request, and the summary
    counts it."""
    settings = {**SHORT, "termination_period": 4, "exit_margin": 1, "drain_reserve": 1}
    server = serve(kind=kind, settings=settings)
    client = connect(server)
    client.send("/slow?s=60&secret=42")
    server.wait_line("slow request begins")
    sent = time.monotonic()
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.output
    assert server.exit_time is not None
    assert server.exit_time - sent < 4, "gone within the period"
    assert "1 cut off" in server.summary()
    dump = server.wait_line("in flight 1 s before the end of the drain")
    assert "GET /slow for" in dump
    assert re.search(r"at \S+/service\.py:\d+ in slow$", dump), dump
    assert "secret" not in dump
    server.wait_line("deadline_reached")


def test_a_command_ends_the_delay(kind: str, serve: Serve, connect: Connect) -> None:
    """``end-delay`` goes straight to draining, which still waits for what is in flight. The summary
    does not judge a delay that was cut short."""
    server = serve(kind=kind, settings=HOLD)
    client = connect(server)
    client.send("/slow?s=1")
    server.wait_line("slow request begins")
    sigterm(server)
    server.wait_line("shutdown_initiated")
    ended = server.operate("end-delay")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.endswith(": draining\n")
    assert client.receive().status == 200
    client.close()
    assert server.wait(20) == 0, server.output
    server.wait_line("lame_duck_ended .*: ended by command")
    assert "cut short (ended by command): nothing is known" in server.summary()


@pytest.mark.long(but="SIGINT")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["SIGINT", "SIGQUIT"])
@pytest.mark.parametrize("phase", [Phase.SERVING, Phase.LAME_DUCK, Phase.DRAINING], ids=str)
def test_ctrl_c_ends_it_at_once_in_every_phase(
    number: signal.Signals, phase: Phase, serve: Serve, connect: Connect
) -> None:
    """SIGINT and SIGQUIT end the instance without any delay, also while it is draining; what was
    cut off is counted."""
    server = serve(
        kind="gthread",
        settings={**HOLD, "termination_period": 120},
        args=("--graceful-timeout", "60"),
    )
    memory = server.memory
    client = connect(server)
    client.send("/slow?s=50")
    server.wait_line("slow request begins")
    if phase >= Phase.LAME_DUCK:
        sigterm(server)
        server.wait_phase(Phase.LAME_DUCK)
    if phase >= Phase.DRAINING:
        server.end_delay()
        server.wait_phase(Phase.DRAINING)
    server.signal(number)
    assert server.wait_exit(10), server.output
    assert memory.header.phase == Phase.STOPPED
    if phase >= Phase.LAME_DUCK:
        assert "1 cut off" in server.summary()


@pytest.mark.long(but="gthread-SIGINT")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGQUIT], ids=["SIGINT", "SIGQUIT"])
def test_ctrl_c_while_it_boots_ends_it_at_once(
    number: signal.Signals, kind: str, serve: Serve
) -> None:
    """In STARTING nothing was ever served: it ends with 0, without the delay and without
    graceful_timeout."""
    server = serve(
        "slow_import:app", kind=kind, settings=HOLD, args=("--graceful-timeout", "50"), ready=False
    )
    server.wait_line("import begins")
    server.signal(number)
    server.assert_gone()
    assert "shutdown_initiated" not in server.output


@pytest.mark.long(but="gthread")
def test_a_crashed_worker_is_replaced_in_lame_duck(kind: str, serve: Serve) -> None:
    """A worker that dies during the delay is forked again, and the new one knows the phase from the
    start."""
    server = serve(kind=kind, settings=HOLD)
    before = server.wait_booted(workers_of(kind))
    sigterm(server)
    server.wait_phase(Phase.LAME_DUCK)
    os.kill(before[0], signal.SIGKILL)
    server.wait_for(lambda: before[0] not in booted_in(server.memory), "the end of the worker")
    after = server.wait_booted(workers_of(kind))
    for answer in look_at_each(server, after):
        assert answer["phase"] == "LAME_DUCK"
        assert server.get("/readyz").status == 503


def test_a_hung_worker_is_killed_in_lame_duck(serve: Serve, connect: Connect) -> None:
    """gunicorn's `timeout` works during the delay as on any other day."""
    server = serve(args=("-k", "sync", "-w", "2", "--timeout", "2"), settings=HOLD)
    sigterm(server)
    server.wait_phase(Phase.LAME_DUCK)
    client = connect(server)
    client.send("/slow?s=100")
    server.wait_line("WORKER TIMEOUT", 20)
    server.wait_line("in flight when the worker was aborted, and cut off: GET /slow")
    assert server.get("/").status == 200


def test_kept_alive_connections_are_told_to_close(serve: Serve, connect: Connect) -> None:
    """A kept-alive connection works before SIGTERM; the first response after it says close, and the
    server closes."""
    for kind in ("gthread", "gevent"):
        server = serve(kind=kind, settings=HOLD, args=("--keep-alive", "30"))
        client = connect(server)
        assert client.get("/").headers["connection"] == "keep-alive"
        assert client.get("/").headers["connection"] == "keep-alive"
        sigterm(server)
        assert client.get("/").headers["connection"] == "close"
        assert client.at_end()


def test_a_response_promised_to_stay_keeps_its_word(serve: Serve, connect: Connect) -> None:
    """A response whose headers were written before T0 keeps its connection: the next request on it
    is answered."""
    for kind in ("gthread", "gevent"):
        server = serve(kind=kind, settings=HOLD, args=("--keep-alive", "30"))
        client = connect(server)
        client.send("/stream?n=3&pause=0.5")
        server.wait_line("stream line 1")  # The headers went out with line 0.
        sigterm(server)
        assert client.receive().headers["connection"] == "keep-alive"
        assert client.get("/").headers["connection"] == "close"


@pytest.mark.long
def test_idle_and_silent_connections_do_not_hold_the_exit(
    kind: str, serve: Serve, connect: Connect
) -> None:
    """With graceful_timeout 30, idle kept-alive connections and ones that never sent a byte are
    closed by the drain."""
    settings = {**SHORT, "termination_period": 60}
    server = serve(
        kind=kind, settings=settings, args=("--graceful-timeout", "30", "--keep-alive", "30")
    )
    clients = [connect(server) for _ in range(6)]
    if kind != "sync":
        for client in clients[:3]:
            assert client.get("/").status == 200
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.output
    server.wait_line("drained in")
    for client in clients:
        assert client.at_end()


def test_connections_in_the_accept_queue_are_served(serve: Serve, connect: Connect) -> None:
    """With the only worker busy, connections that wait in the accept queue when the drain begins
    all get answers."""
    server = serve(args=("-k", "sync", "-w", "1"), settings=SHORT)
    busy = connect(server)
    busy.send("/slow?s=2")
    server.wait_line("slow request begins")
    waiting = [connect(server) for _ in range(10)]
    for client in waiting:
        client.send("/")
    server.signal(signal.SIGTERM)
    server.wait_phase(Phase.DRAINING)
    all_answered(busy, *waiting)
    assert server.wait(20) == 0, server.output


def test_no_new_connection_is_taken_while_draining(serve: Serve, connect: Connect) -> None:
    """Once sealed, a connection is not established: the client may try it elsewhere, whatever its
    method."""
    server = serve(kind="gthread", settings=SHORT)
    client = connect(server)
    client.send("/slow?s=2")
    server.wait_line("slow request begins")
    server.signal(signal.SIGTERM)
    server.wait_line("sealed")
    with pytest.raises(OSError):
        connect(server, timeout=0.3)
    assert client.receive().status == 200


@pytest.mark.long(but="gthread")
def test_sigterm_to_one_worker_by_hand_replaces_it(kind: str, serve: Serve) -> None:
    """`kill <worker>` still lets that worker go and forks another, as in plain gunicorn."""
    server = serve(kind=kind)
    before = set(server.wait_booted(int(WORKERS[kind][WORKERS[kind].index("-w") + 1])))
    victim = min(before)
    os.kill(victim, signal.SIGTERM)
    server.wait_for(lambda: victim not in server.worker_pids(), "the end of the worker")
    server.wait_for(lambda: set(server.worker_pids()) - before, "a new worker")
    assert server.get("/readyz").status == 200


def test_sigterm_before_any_worker_has_booted_exits_at_once(serve: Serve) -> None:
    """While the application is still being imported nothing is waited for, neither delay nor
    graceful_timeout."""
    server = serve(
        "slow_import:app",
        kind="sync",
        settings=HOLD,
        args=("--graceful-timeout", "50"),
        ready=False,
    )
    server.wait_line("import begins")
    server.signal(signal.SIGTERM)
    assert server.wait_exit(15), server.output
    assert "shutdown_initiated" not in server.output


@pytest.mark.long
def test_a_sigterm_that_goes_unnoticed_in_an_import_is_sent_again(serve: Serve) -> None:
    """One that comes just before a system call that waits is not handled until that returns: here
    it is taken away."""
    args = ("--graceful-timeout", "50")
    server = serve("inattentive_import:app", kind="sync", settings=HOLD, args=args, ready=False)
    server.wait_line("import begins")
    server.signal(signal.SIGTERM)
    server.wait_line("the signal is lost")
    assert server.wait_exit(15), server.output
    server.assert_gone()
    assert "was sent SIG" not in server.output


def test_a_worker_that_hangs_while_it_boots_does_not_outlast_the_deadline(serve: Serve) -> None:
    """No signal reaches it; graceful_timeout is longer than the period, and is cut to what is left
    of that."""
    settings = {"termination_period": 4, "exit_margin": 1, "drain_reserve": 1}
    server = serve(
        "deaf_import:app",
        kind="sync",
        settings=settings,
        args=("--graceful-timeout", "100"),
        ready=False,
    )
    server.wait_line("import begins")
    server.signal(signal.SIGTERM)
    assert server.wait_exit(50), server.output
    assert server.processes() == []


def test_the_phase_is_serving_again_after_an_undrain(serve: Serve) -> None:
    """An operator's undrain takes the instance back into rotation, while no SIGTERM has come."""
    server = serve(kind="gthread", settings=HOLD)
    memory = server.memory
    assert memory.trigger(4)
    assert server.get("/readyz").status == 503
    server.wait_phase(Phase.LAME_DUCK)
    memory.header.undrain = time.monotonic_ns()
    server.wait_line("undrained")
    server.wait_for(lambda: server.get("/readyz").status == 200, "ready again")


@pytest.mark.long(but="gthread")
def test_a_late_request_names_its_source_once(kind: str, serve: Serve, connect: Connect) -> None:
    """Past 80 % of the delay a new request is logged with where it came from, without its query,
    once per instance."""
    server = serve(kind=kind, settings={"shutdown_delay": 1, "min_delay": 0})
    server.signal(signal.SIGTERM)
    server.wait_line("shutdown_initiated")
    late = server.memory.t0() + round(0.85 * cells.NS)
    server.wait_for(lambda: time.monotonic_ns() > late, "the last fifth of the delay")
    client = connect(server)
    headers = (
        ("X-Forwarded-For", "192.0.2.7"),
        ("User-Agent", "slow-router/1"),
        ("Connection", "close"),
    )
    assert client.get("/look?secret=1", headers=headers).status == 200
    line = server.wait_line("late_request")
    assert re.search(
        r"late_request \d+\.\d s after T0, past 80 % of grace_shutdown_delay 1 s: GET /look from "
        r"127\.0\.0\.1 port \d+ "
        r"\(X-FORWARDED-FOR '192\.0\.2\.7', USER-AGENT 'slow-router/1'\)",
        line,
    ), line
    assert server.get("/").status == 200
    assert server.wait(20) == 0, server.output
    assert server.output.count("late_request") == 1


@pytest.mark.once
def test_late_is_measured_by_the_delay_that_the_period_leaves(serve: Serve) -> None:
    """The longest delay is 6 s less a margin of 1.2 s and a reserve of 3 s. The line names the
    setting that has to be raised."""
    settings = {"shutdown_delay": 60, "termination_period": 6, "min_delay": 0, "extend_delay": 0}
    server = serve(kind="gthread", settings=settings)
    server.signal(signal.SIGTERM)
    server.wait_line("shutdown_initiated")
    late = server.memory.t0() + round(0.85 * 1.8 * cells.NS)
    server.wait_for(lambda: time.monotonic_ns() > late, "the last fifth of the delay")
    assert server.get("/").status == 200
    line = server.wait_line("late_request")
    assert "past 80 % of the delay of 1.8 s that grace_termination_period 6 s leaves: GET /" in line
    assert server.wait(20) == 0, server.output


@pytest.mark.long
def test_an_operators_drain_makes_no_request_late(serve: Serve) -> None:
    """What comes during it says nothing of a router; after an undrain the next shutdown names its
    late request."""
    server = serve(kind="gthread", settings={"shutdown_delay": 1, "min_delay": 0})
    memory = server.memory
    assert memory.trigger(Origin.DRAIN)
    server.wait_phase(Phase.LAME_DUCK)
    server.wait_for(lambda: memory.header.delay_over, "the end of what the delay would be")
    assert server.get("/").status == 200
    memory.header.undrain = time.monotonic_ns()
    server.wait_line("undrained")
    assert "late_request" not in server.output
    server.signal(signal.SIGTERM)
    server.wait_line("shutdown_initiated by SIGTERM")
    late = memory.t0() + round(0.85 * cells.NS)
    server.wait_for(lambda: time.monotonic_ns() > late, "the last fifth of the delay")
    assert server.get("/").status == 200
    server.wait_line("late_request")
    assert server.wait(20) == 0, server.output
