"""What happens when a process dies, hangs or has no memory, or something of ours raises: nothing
else is lost.

``docs/reference/faults.md`` is the table of all faults. ``Server.assert_gone`` says what must hold after each
of them.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
from pathlib import Path

import h11
import pytest

from gunicorn_grace.shared.phase import Origin, Phase
from support.servers import HOLD, QUICK, SHORT, Client, Connect, Serve, booted_in, looks

BREAK = """
import gunicorn_grace.hooks, gunicorn_grace.conf
def broken(*args, **kwargs):
    raise RuntimeError("broken on purpose")
{target} = broken
import gunicorn_grace
gunicorn_grace.install(globals())
"""


def broken(target: str, tmp_path: Path) -> tuple[str, ...]:
    """A configuration in which one function of ours raises."""
    (tmp_path / "broken.py").write_text(BREAK.format(target=target))
    return ("-c", "broken.py")


TARGETS = (
    "gunicorn_grace.arbiter.overrides.attach",
    "gunicorn_grace.arbiter.budget.tell",
    "gunicorn_grace.arbiter.roster.Roster.claim",
    "gunicorn_grace.arbiter.roster.Roster.free",
    "gunicorn_grace.arbiter.roster.Roster.mend",
    "gunicorn_grace.arbiter.observer.Observer.observe",
    "gunicorn_grace.arbiter.shutdown.Shutdown._enter_lame_duck",
    "gunicorn_grace.arbiter.shutdown.Shutdown._enter_draining",
    "gunicorn_grace.arbiter.shutdown.Shutdown.before_stop",
    "gunicorn_grace.arbiter.listeners.Listeners.seal",
    "gunicorn_grace.arbiter.telling.Telling.the_end",
    "gunicorn_grace.worker.process.join",
    "gunicorn_grace.worker.process.WorkerProcess.booted",
    "gunicorn_grace.worker.shedding.Shedding.teach_the_parser",
    "gunicorn_grace.worker.counting._hot_path",
    "gunicorn_grace.worker.counting.Counter._note_longest",
    "gunicorn_grace.worker.draining.Draining.watch",
)
ESSENTIAL = (
    "gunicorn_grace.arbiter.observer.Observer.observe",
    "gunicorn_grace.worker.counting._hot_path",
)
"""A failure of the whole part of the arbiter, and one of the whole part of a worker."""


@pytest.mark.long(but=ESSENTIAL)
@pytest.mark.parametrize(
    ("target", "kind"),
    [
        *((target, "gthread") for target in TARGETS),
        *itertools.product(ESSENTIAL, ("sync", "gevent")),
    ],
)
def test_a_failure_of_ours_leaves_gunicorn_as_it_is(
    target: str, kind: str, serve: Serve, tmp_path: Path
) -> None:
    """Whatever raises in a hook or in the loop: logged with its traceback, requests are served,
    SIGTERM ends it."""
    server = serve(kind=kind, config=broken(target, tmp_path), settings=SHORT, ready=False)
    server.wait_ready()
    assert {server.get("/").status for _ in range(20)} == {200}
    # A worker that is still booting does not notice a SIGTERM (gunicorn 22.0), with or without us.
    booting, served_by = server.output.count("Booting worker"), set[int]()
    while len(served_by) < booting:
        served_by |= {answer["pid"] for answer in looks(server)}
    server.terminate()
    server.assert_gone()
    assert "RuntimeError: broken on purpose" in server.output, "never silent"
    # Not at every request: once for each way it is reached, in each process.
    assert server.output.count("RuntimeError: broken on purpose") <= 9, server.output


def test_after_a_failure_of_ours_nothing_waits_for_us(serve: Serve, tmp_path: Path) -> None:
    """Once the loop has failed, a worker goes at any SIGTERM and is replaced, and a trigger takes
    nothing out of rotation: nobody would take it back."""
    server = serve(
        kind="gthread",
        config=broken("gunicorn_grace.arbiter.observer.Observer.observe", tmp_path),
        ready=False,
    )
    server.wait_ready()
    server.wait_line("leaves the shutdown to gunicorn")
    before = set(server.wait_booted(2))
    os.kill(min(before), signal.SIGTERM)
    server.wait_for(lambda: set(booted_in(server.memory)) - before, "a new worker")
    server.memory.trigger(Origin.PRESTOP)
    assert {server.get("/readyz").status for _ in range(8)} == {200}
    server.terminate()
    server.assert_gone()


@pytest.mark.long
def test_a_worker_that_asked_before_a_failure_of_ours_is_answered(
    serve: Serve, tmp_path: Path
) -> None:
    """A SIGTERM by hand waits for the arbiter's word; a loop that fails meanwhile gives it as its
    last one."""
    flag = tmp_path / "flag"
    (tmp_path / "conf.py").write_text(
        "import os\nfrom gunicorn_grace.arbiter.roster import Roster\nasked = "
        "Roster.asked_to_leave\n"
        "def broken(self, now, patience):\n"
        f"    if os.path.exists({str(flag)!r}):\n        raise RuntimeError('broken on purpose')\n"
        "    return asked(self, now, patience)\n"
        "Roster.asked_to_leave = broken\nfrom gunicorn_grace.conf import *\n"
    )
    server = serve(kind="gthread", config=("-c", "conf.py"), settings=QUICK)
    before = set(server.wait_booted(2))
    server.signal(signal.SIGSTOP)
    os.kill(min(before), signal.SIGTERM)
    server.wait_for(
        lambda: any(record.term_seen for record in server.memory.records()),
        "the worker's request",
    )
    flag.touch()
    server.signal(signal.SIGCONT)
    server.wait_for(lambda: set(booted_in(server.memory)) - before, "a new worker")
    server.terminate()
    flag.unlink()
    server.assert_gone()


@pytest.mark.long
def test_a_dismissed_worker_whose_application_catches_everything_goes_when_it_has_booted(
    serve: Serve, tmp_path: Path
) -> None:
    """SystemExit, by which a worker that is still loading leaves, may be caught by what it
    loads."""
    flag = tmp_path / "flag"
    (tmp_path / "stubborn.py").write_text(
        "import os, signal, sys\nfrom service import app\n"
        f"if os.path.exists({str(flag)!r}):\n"
        "    try:\n        sys.stderr.write('loading\\n')\n        \n"
        "        while True:\n            signal.pause()\n"
        "    except BaseException:\n        sys.stderr.write('caught\\n')\n"
    )
    server = serve("stubborn:app", args=("-k", "sync", "-w", "1"), settings=QUICK)
    server.wait_booted(1)
    flag.touch()
    server.signal(signal.SIGTTIN)
    server.wait_line("loading")
    server.terminate()
    server.wait_line("caught")
    flag.unlink()
    server.assert_gone()
    assert "deadline_reached" not in server.output


@pytest.mark.long
def test_without_memfd_an_anonymous_mapping_serves(serve: Serve, tmp_path: Path) -> None:
    """One warning at boot; readiness flips in every worker all the same."""
    (tmp_path / "conf.py").write_text(
        "import os\ndel os.memfd_create\nfrom gunicorn_grace.conf import *\n"
    )
    server = serve(
        kind="gthread", config=("-c", "conf.py"), settings={**SHORT, "shutdown_delay": 60}
    )
    assert server.output.count("no memfd here") == 1
    server.terminate()
    server.wait_line("shutdown_initiated")
    assert {server.get("/readyz").status for _ in range(8)} == {503}
    server.signal(signal.SIGINT)  # No command can end this delay.
    server.assert_gone()


def test_where_the_seal_is_refused_the_listener_closes_as_ever(
    serve: Serve, tmp_path: Path
) -> None:
    """Neither filter nor hop limit: a warning, and the shutdown of plain gunicorn after the
    delay."""
    (tmp_path / "conf.py").write_text(
        "import gunicorn_grace.shared.listener\n"
        "def refuse(sock):\n    raise PermissionError(1, 'no filter here')\n"
        "gunicorn_grace.shared.listener.seal = refuse\n"
        "from gunicorn_grace.conf import *\n"
    )
    server = serve(kind="sync", config=("-c", "conf.py"), settings=SHORT)
    server.terminate()
    server.wait_line("cannot seal .*no filter here")
    server.assert_gone()


@pytest.mark.long
def test_more_workers_than_slots_are_served_uncounted(serve: Serve, tmp_path: Path) -> None:
    """Running out of slots costs counting, never serving, and the shutdown is as ever."""
    (tmp_path / "conf.py").write_text(
        "import gunicorn_grace.shared.memory as shm\n"
        "create = shm.Memory.create.__func__\n"
        "shm.Memory.create = classmethod(lambda cls, **options: create(cls, 1, **options))\n"
        "from gunicorn_grace.conf import *\n"
    )
    server = serve(args=("-k", "gthread", "-w", "3"), config=("-c", "conf.py"), settings=SHORT)
    server.wait_workers(3)
    server.wait_line("slots are taken")
    assert {server.get("/readyz").status for _ in range(12)} == {200}
    server.terminate()
    server.assert_gone()


@pytest.mark.long
def test_a_worker_class_that_cannot_be_tracked_is_named_at_boot(
    serve: Serve, tmp_path: Path
) -> None:
    """One warning says what does not work for it and what does; the delay and the exit work."""
    (tmp_path / "strange.py").write_text(
        "from gunicorn.workers.base import Worker\n"
        "class Strange(Worker):\n"
        "    def run(self):\n"
        "        import time\n"
        "        while self.alive:\n"
        "            self.notify()\n"
        "            time.sleep(0.05)\n"
    )
    server = serve(args=("-k", "strange.Strange"), settings=SHORT, ready=False)
    server.wait_line("requests of the worker class strange.Strange cannot be counted")
    server.wait_workers(1)
    server.wait_line("Booting worker")
    server.terminate()
    server.assert_gone()


# -- a process dies ----


def lost(client: Client) -> bool:
    """Whether the connection ended without a response."""
    try:
        client.receive()
    except (OSError, h11.RemoteProtocolError):
        return True
    return False


@pytest.mark.long(but="LAME_DUCK")
@pytest.mark.parametrize("phase", [Phase.SERVING, Phase.LAME_DUCK], ids=str)
def test_a_killed_worker_is_replaced_and_costs_its_own_request_only(
    phase: Phase, serve: Serve, connect: Connect
) -> None:
    """SIGKILL of one worker: another is forked, the service goes on; only what it served is lost,
    and is counted."""
    server = serve(args=("-k", "sync", "-w", "2"), settings=HOLD)
    before = set(server.wait_booted(2))
    server.lead_to(phase)
    clients = [connect(server), connect(server)]
    clients[0].send("/slow?s=60")
    victim = server.wait_pid("slow request begins in ")
    clients[1].send("/slow?s=2")
    os.kill(victim, signal.SIGKILL)
    assert lost(clients[0])
    assert clients[1].receive().status == 200
    server.wait_for(lambda: set(server.wait_booted(2)) - before, "a new worker")
    assert {server.get("/").status for _ in range(8)} == {200}
    server.lead_to(Phase.LAME_DUCK)
    server.terminate()
    server.assert_gone()
    # What is lost before T0 is not the shutdown's concern.
    assert f"{int(phase is Phase.LAME_DUCK)} cut off" in server.summary()


@pytest.mark.long
def test_a_worker_killed_after_its_dismissal_is_not_replaced(
    serve: Serve, connect: Connect
) -> None:
    """SIGKILL while draining: its request counts as cut off, that of the other worker completes,
    none is forked."""
    server = serve(args=("-k", "sync", "-w", "2"), settings=QUICK)
    server.wait_booted(2)
    hit, spared = connect(server), connect(server)
    hit.send("/slow?s=60")
    victim = server.wait_pid("slow request begins in ")
    spared.send("/slow?s=2.5")
    server.wait_in_flight(2)
    server.terminate()
    server.wait_dismissed()
    mark = server.mark()
    os.kill(victim, signal.SIGKILL)
    assert lost(hit)
    assert spared.receive().status == 200
    spared.close()
    server.assert_gone()
    assert "1 cut off" in server.summary()
    assert not any("Booting worker" in line for _, line in server.lines[mark:])


@pytest.mark.long
def test_a_worker_killed_while_the_queue_is_served_is_replaced(
    serve: Serve, connect: Connect
) -> None:
    """While connections still wait in the accept queue, a dead worker is replaced, and they are
    served."""
    server = serve(args=("-k", "sync", "-w", "1"), settings=QUICK)
    busy = connect(server)
    busy.send("/slow?s=60")
    victim = server.wait_pid("slow request begins in ")
    waiting = [connect(server) for _ in range(3)]
    for client in waiting:
        client.send("/")
    server.terminate()
    server.wait_line("sealed")
    os.kill(victim, signal.SIGKILL)
    assert lost(busy)
    for client in waiting:
        assert client.receive().status == 200
        client.close()
    server.assert_gone()
    assert "1 cut off" in server.summary()


@pytest.mark.long
@pytest.mark.parametrize("phase", [Phase.SERVING, Phase.LAME_DUCK], ids=str)
def test_all_workers_killed_are_all_replaced(phase: Phase, serve: Serve) -> None:
    """SIGKILL of every worker at once: each is forked anew, in the phase that the instance is
    in."""
    server = serve(args=("-k", "gthread", "-w", "3"), settings=HOLD)
    before = server.wait_booted(3)
    server.lead_to(phase)
    for pid in before:
        os.kill(pid, signal.SIGKILL)

    def replaced() -> bool:
        now = booted_in(server.memory)
        return len(now) == 3 and not set(now) & set(before)

    server.wait_for(replaced, "three new workers")
    assert {server.get("/").status for _ in range(8)} == {200}
    assert server.get("/readyz").status == (503 if phase is Phase.LAME_DUCK else 200)
    server.lead_to(Phase.LAME_DUCK)
    server.terminate()
    server.assert_gone()


@pytest.mark.long
def test_all_workers_killed_while_draining_end_it(serve: Serve, connect: Connect) -> None:
    """With no worker left after the dismissal nothing is waited for; every request that was lost is
    counted."""
    server = serve(args=("-k", "sync", "-w", "2"), settings={**HOLD, "termination_period": 60})
    workers = server.wait_booted(2)
    clients = [connect(server), connect(server)]
    for client in clients:
        client.send("/slow?s=50")
    server.wait_in_flight(2)
    server.lead_to(Phase.DRAINING)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    for client in clients:
        assert lost(client)
    server.assert_gone()
    assert "2 cut off" in server.summary()
    server.wait_line("drained in")


@pytest.mark.long(but="gthread-LAME_DUCK")
@pytest.mark.parametrize("phase", [Phase.SERVING, Phase.LAME_DUCK, Phase.DRAINING], ids=str)
def test_workers_do_not_outlive_their_arbiter(
    phase: Phase, kind: str, serve: Serve, connect: Connect
) -> None:
    """SIGKILL of the arbiter: each worker notices that its parent is another, and goes, in every
    phase."""
    # A worker looks at least every half `timeout`: an idle sync worker sleeps as long.
    server = serve(kind=kind, args=("--timeout", "2", "--graceful-timeout", "3"), settings=HOLD)
    client = connect(server)
    client.send("/slow?s=1.5")
    server.wait_line("slow request begins")
    server.lead_to(phase)
    server.signal(signal.SIGKILL)
    server.assert_gone(-signal.SIGKILL, patience=20)


# -- a worker hangs, or has no memory left ----


@pytest.mark.long
def test_a_worker_hung_in_c_code_is_replaced_in_lame_duck(serve: Serve, connect: Connect) -> None:
    """No Python runs in it any more, not even a signal handler: `timeout` ends it all the same, and
    it is replaced."""
    server = serve(args=("-k", "gthread", "-w", "2", "--timeout", "2"), settings=HOLD)
    server.wait_booted(2)
    server.lead_to(Phase.LAME_DUCK)
    client = connect(server)
    client.send("/hang")
    victim = server.wait_pid("hangs in ")
    server.wait_line(f"WORKER TIMEOUT .pid:{victim}")
    assert lost(client)
    server.wait_for(lambda: victim not in server.wait_booted(2), "its successor")
    assert {server.get("/").status for _ in range(8)} == {200}
    server.terminate()
    server.assert_gone()
    assert "1 cut off" in server.summary()


@pytest.mark.long(but="gthread")
def test_a_worker_hung_in_c_code_does_not_pass_the_deadline(
    kind: str, serve: Serve, connect: Connect
) -> None:
    """Dismissed, it does not even see its SIGTERM; it is ended at the deadline, and its request is
    counted."""
    server = serve(kind=kind, settings=QUICK)
    client = connect(server)
    client.send("/hang")
    server.wait_line("hangs in ")
    server.terminate()
    server.assert_gone()
    server.wait_line("deadline_reached")
    assert "1 cut off" in server.summary()


@pytest.mark.long
def test_a_stopped_worker_does_not_pass_the_deadline(serve: Serve, connect: Connect) -> None:
    """SIGSTOP of a worker: no signal reaches it but SIGKILL, which comes at the deadline; the other
    one finishes."""
    server = serve(args=("-k", "sync", "-w", "2"), settings=QUICK)
    server.wait_booted(2)
    hit, spared = connect(server), connect(server)
    hit.send("/slow?s=60")
    victim = server.wait_pid("slow request begins in ")
    os.kill(victim, signal.SIGSTOP)
    spared.send("/slow?s=1")
    server.terminate()
    assert spared.receive().status == 200
    spared.close()
    server.assert_gone()
    assert lost(hit)
    assert "1 cut off" in server.summary()


@pytest.mark.long
def test_a_worker_out_of_memory_serves_on(kind: str, serve: Serve) -> None:
    """MemoryError costs the request that asked for too much, with 500; the others are served, and
    it ends in time."""
    server = serve(kind=kind, settings=HOLD)
    server.lead_to(Phase.LAME_DUCK)
    # A thread takes up to 136 MiB of addresses (glibc); where one of the pool's cannot start,
    # CPython waits for it.
    assert server.get("/hog?spare=700").status == 500
    assert {server.get("/").status for _ in range(12)} == {200}
    server.terminate()
    server.assert_gone()
    assert "0 cut off" in server.summary()


@pytest.mark.long
def test_a_worker_that_dies_for_want_of_memory_is_replaced(serve: Serve, connect: Connect) -> None:
    """Code that aborts where it gets no memory takes its worker along: replaced in LAME_DUCK, its
    request counted."""
    server = serve(args=("-k", "gthread", "-w", "2"), settings=HOLD)
    before = set(server.wait_booted(2))
    server.lead_to(Phase.LAME_DUCK)
    client = connect(server)
    client.send("/hog?spare=8&abort")
    assert lost(client)
    server.wait_for(lambda: set(server.wait_booted(2)) - before, "a new worker")
    assert {server.get("/").status for _ in range(8)} == {200}
    server.terminate()
    server.assert_gone()
    # The worker looks ten times a second at what waits in it: so shortly after it has begun, a
    # request may still be in that number too.
    assert re.search(r" 1 cut off|1 in flight, 1 not begun", server.summary())


@pytest.mark.long
def test_a_worker_without_memory_for_a_thread_still_goes(kind: str, serve: Serve) -> None:
    """Where not even the thread can start that watches the drain, the worker leaves as gunicorn's
    own."""
    server = serve(args=("-k", kind, "-w", "1"), settings=QUICK)
    server.get("/hog?spare=1")
    server.terminate()
    server.assert_gone()
