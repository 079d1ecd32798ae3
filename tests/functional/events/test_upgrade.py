"""SIGUSR2: another arbiter serves the same sockets."""

from __future__ import annotations

import contextlib
import os
import re
import signal
from pathlib import Path

import pytest

from gunicorn_grace.rehearsal.load.wire import fetch
from gunicorn_grace.rehearsal.processes import procfs
from gunicorn_grace.shared.phase import Phase
from support.servers import (
    HOLD,
    LONG_DRAIN,
    SHORT,
    Serve,
    Server,
    booted_in,
    end_delay_of,
    load_on,
    memory_of,
    nothing_lost,
    workers_of,
)


@pytest.mark.long
def test_a_successor_that_cannot_be_executed_changes_nothing(serve: Serve, tmp_path: Path) -> None:
    """gunicorn's child ends in the loop that it has inherited, and stops none of the workers: the
    instance is ready as before, and a SIGTERM has a delay and an end."""
    config = tmp_path / "gunicorn.conf.py"
    config.write_text(
        "from gunicorn_grace.conf import *\ndef pre_exec(server):\n    raise RuntimeError('no "
        "such thing')\n"
    )
    server = serve(kind="gthread", config=("-c", str(config)), settings=SHORT)
    before = set(server.wait_booted(workers_of("gthread")))
    server.signal(signal.SIGUSR2)
    server.wait_line("no such thing")
    server.wait_for(
        lambda: set(procfs.children(server.arbiter_pid)) == before, "the end of the child"
    )
    assert server.memory.header.phase == Phase.SERVING
    assert server.get("/readyz").status == 200
    server.signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.output
    assert "lame_duck_ended" in server.output


@pytest.mark.long(but="gthread")
def test_a_binary_upgrade_under_load_loses_nothing(kind: str, serve: Serve, tmp_path: Path) -> None:
    """SIGUSR2, then SIGTERM to the old arbiter: no request is lost, none refused, readiness is
    never 503, the shared listener is never sealed, the old one goes without a lame duck phase, and
    the new one has one of its own."""
    pidfile = tmp_path / "pid"
    server = serve(kind=kind, args=("--pid", str(pidfile), *LONG_DRAIN), settings=HOLD, script=True)
    count = workers_of(kind)
    server.wait_booted(count)
    with load_on(server) as load:
        load.wait_completed(30)
        server.signal(signal.SIGUSR2)
        second = tmp_path / "pid.2"
        new = int(
            server.wait_for(
                lambda: second.exists() and second.read_text().strip(), "the second pid file"
            )
        )
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
    end_delay_of(new)
    server.wait_line("sealed")
    server.wait_for(lambda: not server.processes(), "the end of the new one")
    server.wait_line("gunicorn-grace: stopped")


def upgrade(server: Server) -> int:
    """Send SIGUSR2, and wait until the successor serves too, with as many workers. Its pid."""
    count = len(booted_in(server.memory))
    server.signal(signal.SIGUSR2)
    (new,) = server.wait_for(
        lambda: set(procfs.children(server.pid)) - set(booted_in(server.memory)), "the successor"
    )
    server.wait_for(lambda: len(re.findall("Listening at", server.output)) == 2, "its listeners")
    with contextlib.closing(memory_of(new)) as memory:
        server.wait_for(lambda: len(booted_in(memory)) == count, "new workers that have booted")
    return new


def test_sigterm_to_both_arbiters_has_a_delay(serve: Serve) -> None:
    """Whoever was told to stop is nobody's successor. Both serve through their delay, although each
    of them knows another arbiter; then both end, and the last one seals the sockets."""
    server = serve(kind="gthread", settings=HOLD, script=True)
    server.wait_booted(2)
    new = upgrade(server)
    with contextlib.closing(memory_of(new)) as memory:
        with load_on(server, paths=("/",)) as load:
            load.wait_completed(20)
            os.kill(new, signal.SIGTERM)
            server.signal(signal.SIGTERM)
            server.wait_phase(Phase.LAME_DUCK)
            server.wait_for(lambda: memory.header.phase >= Phase.LAME_DUCK, "the new one's delay")
            assert fetch(server.address, "/readyz").status == 503
            load.wait_completed(40)
            tally = load.stop()
        nothing_lost(tally, server)
        assert (memory.header.phase, server.memory.header.phase) == (Phase.LAME_DUCK,) * 2
    server.end_delay()
    server.wait_dismissed()
    assert "sealed" not in server.output, "the new one still serves"
    end_delay_of(new)
    server.wait_line("gunicorn-grace: sealed")
    server.wait_for(lambda: not server.processes(), "the end of both")
    assert server.output.count("gunicorn-grace: stopped") == 2


FAILING = """
from gunicorn_grace.conf import *
def post_fork(server, worker):
    if server.master_pid:
        raise RuntimeError("this version does not boot")
"""


def test_a_successor_that_does_not_boot_leaves_the_sockets_open(
    serve: Serve, tmp_path: Path
) -> None:
    """gunicorn halts the new arbiter. Its sockets are those of the old one, which serves: they are
    neither sealed nor shut."""
    (tmp_path / "conf.py").write_text(FAILING)
    server = serve(kind="gthread", config=("-c", "conf.py"), settings=HOLD, script=True)
    before = set(server.wait_booted(2))
    server.signal(signal.SIGUSR2)
    server.wait_line("this version does not boot")
    server.wait_for(lambda: set(procfs.children(server.pid)) == before, "the end of the new one")
    assert server.get("/readyz").status == 200
    assert "sealed" not in server.output


@pytest.mark.parametrize("which", ["old", "new"])
def test_sigquit_to_one_of_two_arbiters_leaves_the_sockets_to_the_other(
    which: str, serve: Serve
) -> None:
    """A roll-back, or an upgrade in a hurry: the one that is left serves new connections."""
    server = serve(kind="gthread", settings=HOLD, script=True)
    server.wait_booted(2)
    new = upgrade(server)
    address = server.address
    ended = server.pid if which == "old" else new
    os.kill(ended, signal.SIGQUIT)
    server.wait_for(lambda: ended not in server.processes(), "the end of the one that was told")
    assert fetch(address, "/readyz").status == 200
    assert "sealed" not in server.output


def test_a_drained_instance_is_not_upgraded(serve: Serve) -> None:
    """Its successor would be ready, against the operator's word: SIGUSR2 is refused with a line
    that says what to do."""
    server = serve(kind="sync", settings=HOLD)
    assert server.operate("drain").returncode == 0
    server.wait_phase(Phase.LAME_DUCK)
    server.signal(signal.SIGUSR2)
    server.wait_line("SIGUSR2 is refused: .*undrain it first")
    assert set(procfs.children(server.pid)) == set(booted_in(server.memory))


def test_a_successor_finds_the_standard_library_under_python_m_gunicorn(serve: Serve) -> None:
    """``python -m gunicorn`` executes its successor as a file: gunicorn's own folder is then first
    in ``sys.path``, where ``http`` is gunicorn's. The plugin must not need that name."""
    server = serve(kind="sync", settings=SHORT)
    server.wait_booted(workers_of("sync"))
    server.signal(signal.SIGUSR2)
    new = int(
        server.wait_for(
            lambda: re.findall(r"Listening at: .*\((\d+)\)", server.output)[1:], "its successor"
        )[0]
    )
    with contextlib.closing(memory_of(new)) as memory:
        server.wait_for(lambda: len(booted_in(memory)) == workers_of("sync"), "its workers")
        server.signal(signal.SIGTERM)
        assert server.wait(20) == 0, server.output
        assert fetch(server.address, "/readyz").status == 200
        os.kill(new, signal.SIGTERM)
    server.wait_for(lambda: not server.processes(), "the end of the new one")
    server.wait_line("gunicorn-grace: stopped")
    assert "Traceback" not in server.output


@pytest.mark.long
def test_sigterm_to_the_new_one_as_soon_as_the_old_one_is_gone(serve: Serve) -> None:
    """The new arbiter notices only at its next look that it is alone: the signal is not lost for
    that, and the delay runs from it."""
    # A sync worker of the old one looks every half of its timeout whether its arbiter is there.
    server = serve(kind="sync", args=("--timeout", "4"), settings=HOLD, script=True)
    server.wait_booted(workers_of("sync"))
    server.signal(signal.SIGUSR2)
    new = int(
        server.wait_for(
            lambda: re.findall(r"Listening at: .*\((\d+)\)", server.output)[1:], "its successor"
        )[0]
    )
    with contextlib.closing(memory_of(new)) as memory:
        server.wait_for(
            lambda: len(booted_in(memory)) == workers_of("sync"), "new workers that have booted"
        )
        server.signal(signal.SIGKILL)
        server.wait(20)
        os.kill(new, signal.SIGTERM)
        server.wait_for(
            lambda: memory.header.phase == Phase.LAME_DUCK, "the lame duck phase of the new one"
        )
    end_delay_of(new)
    server.wait_for(lambda: not server.processes(), "the end of the new one")


def test_an_upgrade_is_refused_once_the_shutdown_has_begun(serve: Serve) -> None:
    """SIGUSR2 after SIGTERM: a new server on listeners that are about to be sealed would serve
    nobody."""
    server = serve(kind="sync", settings=HOLD)
    server.lead_to(Phase.LAME_DUCK)
    server.signal(signal.SIGUSR2)
    server.wait_line("SIGUSR2 is refused")
    server.terminate()
    server.assert_gone()
    assert server.output.count("Starting gunicorn") == 1
