"""SIGHUP: in SERVING a reload, from T0 on refused; and SIGTERM in the middle of one."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from gunicorn_grace.shared.phase import Phase
from support.servers import (
    HOLD,
    Connect,
    Serve,
    booted_in,
    hold_a_request,
    load_on,
    looks,
    nothing_lost,
    workers_of,
)


@pytest.mark.long(but="gthread")
def test_a_reload_under_load_loses_nothing_and_reads_the_settings_again(
    kind: str, serve: Serve, tmp_path: Path
) -> None:
    """SIGHUP while requests come on new and kept-alive connections: none is lost, and the new delay
    is in the log."""
    config = tmp_path / "conf.py"
    config.write_text("from gunicorn_grace.conf import *\ngrace_shutdown_delay = 11\n")
    # gthread workers of gunicorn 24 to 26 stay that long for an idle connection.
    server = serve(kind=kind, config=("-c", "conf.py"), args=("--graceful-timeout", "6"))
    server.wait_line("lame duck 11 s")
    before = set(server.wait_booted(workers_of(kind)))
    # Of another size: Python takes a file of the same second and size for the one that it has
    # compiled.
    config.write_text("from gunicorn_grace.conf import *\ngrace_shutdown_delay = 12.0\n")
    with load_on(server) as load:
        load.wait_completed(40)
        server.signal(signal.SIGHUP)
        server.wait_line("lame duck 12 s")
        server.wait_for(
            lambda: not before & set(server.worker_pids()), "the end of the old workers"
        )
        load.wait_completed(60)
        tally = load.stop()
    nothing_lost(tally, server)


def test_a_reload_in_lame_duck_is_refused(serve: Serve, tmp_path: Path) -> None:
    """SIGHUP after SIGTERM is one log line: no worker is replaced, no file is read, the clock is
    not touched."""
    config = tmp_path / "conf.py"
    config.write_text("from gunicorn_grace.conf import *\n")
    server = serve(kind="gthread", config=("-c", "conf.py"), settings=HOLD)
    before = set(server.wait_booted(2))
    server.lead_to(Phase.LAME_DUCK)
    t0 = server.memory.header.t0
    config.write_text("this is no python\n")
    server.signal(signal.SIGHUP)
    assert "WARNING" in server.wait_line("SIGHUP is refused: the shutdown has begun")
    assert {answer["pid"] for answer in looks(server)} <= before
    assert (server.memory.header.phase, server.memory.header.t0) == (Phase.LAME_DUCK, t0)
    assert "Hang up" not in server.output


def test_sigterm_in_the_middle_of_a_reload(serve: Serve, connect: Connect) -> None:
    """While a reload waits for an old worker's slow request, SIGTERM turns readiness red at once,
    T0 is the signal's time, the lame duck phase does not wait for the reload to end, and the slow
    request is answered."""
    server = serve(args=("-k", "sync", "-w", "1"), settings=HOLD)
    (old,) = server.wait_booted(1)
    client = connect(server)
    release = hold_a_request(server, client)
    server.signal(signal.SIGHUP)
    server.wait_for(lambda: set(booted_in(server.memory)) - {old}, "a new worker that has booted")
    server.signal(signal.SIGTERM)
    server.wait_for(lambda: server.memory.header.sigterm, "the store in the signal handler")
    assert server.get("/readyz").status == 503
    server.wait_line("shutdown_initiated")
    assert old in server.worker_pids(), "the slow request is still being served"
    assert server.memory.header.t0 == server.memory.header.sigterm
    release()
    assert client.receive().status == 200
    client.close()
    server.end_delay()
    assert server.wait(20) == 0, server.output
    assert "0 cut off" in server.summary()
