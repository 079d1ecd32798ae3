"""Ways to run: as a daemon, preloaded, as another user, with workers that are recycled."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from pathlib import Path

import pytest

from gunicorn_grace.rehearsal.load.wire import parse_address
from gunicorn_grace.rehearsal.plan import GRACE
from gunicorn_grace.rehearsal.run import play
from gunicorn_grace.shared.phase import Phase
from support.servers import (
    HOLD,
    LOADED_BY_ROOT,
    Client,
    Connect,
    Serve,
    begin_a_request,
    booted_in,
    end_delay_of,
    looks,
    memory_of,
    plan,
    told,
    workers_of,
)


def test_a_daemon_drains_as_ever(serve: Serve, tmp_path: Path) -> None:
    """Detached, with its pid from the pidfile and its words in a file: the flip, the delay, the
    drain, no leftover."""
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
        server.wait_for(lambda: memory.header.phase == Phase.LAME_DUCK, "LAME_DUCK")
    assert server.get("/readyz").status == 503
    assert client.receive().status == 200
    client.close()
    end_delay_of(pid)
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
def test_it_works_however_it_is_run(
    way: str, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """Preloaded, with its workers' privileges dropped, with another folder for their heartbeats:
    the flip is seen in every worker, what is in flight completes, and nothing is left behind."""
    folder = tmp_path / "heartbeats"
    folder.mkdir()
    kind, args = WAYS[way]
    if way == "user" and os.getuid():
        pytest.skip("only root can become somebody else")
    (tmp_path / "conf.py").write_text(LOADED_BY_ROOT)
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
    server.end_delay()
    assert client.receive().status == 200
    client.close()
    assert server.wait(20) == 0, server.output
    assert "0 cut off" in server.summary()
    assert server.processes() == []
    assert list(folder.iterdir()) == []


@pytest.mark.long(but="gthread")
def test_workers_that_are_recycled_under_load(kind: str, tmp_path: Path) -> None:
    """With max_requests and jitter workers come and go in every phase: a deletion loses nothing."""
    # No kept-alive connections, because of gunicorn itself. A gthread worker that has reached
    # max_requests closes those on which it has just said keep-alive (finish_request in 24.1 and
    # 25.3): 25.3 alone lost 30 of 2300 requests on them, and none on new ones. A gevent worker
    # accepts none while idle ones hold it, up to graceful_timeout (22.0 to 27.0): when two leave at
    # once, new connections wait.
    planned = plan(
        kind, tmp_path, lag=1.0, keepalive_share=0.0, settings={"shutdown_delay": 2, "min_delay": 0}
    )
    recycling = ("--max-requests", "40", "--max-requests-jitter", "20")
    result = play(dataclasses.replace(planned, args=(*planned.args, *recycling)), GRACE)
    assert "Autorestarting worker" in "\n".join(result.outputs.values()), told(result)
    assert result.tally.lost == 0, told(result)
    assert result.gone[0].exit_code == 0, told(result)
