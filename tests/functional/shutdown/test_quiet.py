"""The quiet end of the delay against real traffic: not while requests come, soon after they have
stopped."""

from __future__ import annotations

import signal
import socket
import time

import pytest

from gunicorn_grace.arbiter.lifecycle import quiet_after
from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable
from gunicorn_grace.rehearsal.load.load import Load
from gunicorn_grace.shared import cells
from gunicorn_grace.shared.phase import Phase
from gunicorn_grace.shared.settings import AUTO, Settings
from support.servers import Connect, Serve, Server, hold_a_request, stopped

pytestmark = pytest.mark.once

# With a delay of 60 s, whatever ends LAME_DUCK in these tests is not the delay.
SETTINGS = {"shutdown_delay": 60, "min_delay": 1, "termination_period": 90}


def load(server: Server, rate: float, **options: object) -> Load:
    """Requests to this instance alone."""
    table = EndpointTable()
    table.add(server.address)
    return Load(table, rate=rate, **options)  # type: ignore[arg-type]


@pytest.mark.long(but="gthread-auto")
@pytest.mark.parametrize(
    ("kind", "period"), [("sync", "2"), ("gthread", "auto"), ("gevent", "auto")]
)
def test_when_the_traffic_stops_the_delay_ends_as_quiet(
    kind: str, period: str, serve: Serve
) -> None:
    """LAME_DUCK goes on while requests come, and ends as quiet once they have stopped, long before
    the delay is over.

    Not before the traffic has stopped, although ``grace_min_delay`` is over by then; and no request
    is lost by it.
    """
    # A third of 60 requests per second, and that diluted by the idle time of the boot: about 2 s of
    # silence.
    server = serve(kind=kind, settings={**SETTINGS, "quiet_period": period, "quiet_share": 0.3})
    memory = server.memory
    with load(server, 60) as traffic:
        traffic.wait_completed(120)
        # The arbiter measures the rate once a second.
        server.wait_for(lambda: memory.header.rate, "a rate")
        server.signal(signal.SIGTERM)
        server.wait_phase(Phase.LAME_DUCK)
        # Whatever the machine is doing, the least delay is over when the traffic stops.
        server.wait_for(
            lambda: time.monotonic() > memory.header.t0 / cells.NS + 1.5, "the least delay"
        )
        traffic.wait_completed(60)
        assert memory.header.phase == Phase.LAME_DUCK, server.output
        tally = traffic.stop()
    assert server.wait(45) == 0, server.output
    server.wait_line(r"lame_duck_ended after .*: quiet$")
    assert memory.header.drain / cells.NS > max(record.started for record in tally.records) + 0.5
    assert tally.lost == 0, tally.lost_records


@pytest.mark.long
def test_the_least_delay_is_kept_without_any_request(serve: Serve) -> None:
    """No request comes after T0: the end is quiet all the same, but not before
    ``grace_min_delay``."""
    server = serve(kind="gthread", settings={**SETTINGS, "quiet_period": 0.5, "min_delay": 3})
    memory = server.memory
    server.signal(signal.SIGTERM)
    assert server.wait(45) == 0, server.output
    server.wait_line(r"lame_duck_ended after .*: quiet$")
    assert memory.header.drain - memory.header.t0 >= 3 * cells.NS


@pytest.mark.long
def test_a_trickle_at_the_smallest_share_keeps_the_delay_running(serve: Serve) -> None:
    """A twentieth of the traffic still comes: LAME_DUCK does not end as quiet; when that stops as
    well, it does."""
    share, rate = 0.05, 120.0
    server = serve(
        kind="gthread", settings={**SETTINGS, "quiet_period": "auto", "quiet_share": share}
    )
    memory = server.memory
    with load(server, rate) as traffic:
        traffic.wait_completed(round(3 * rate))
        server.wait_for(lambda: memory.header.rate, "a rate")
        server.signal(signal.SIGTERM)
        server.wait_phase(Phase.LAME_DUCK)
    settings = Settings(quiet_period=AUTO, quiet_share=share, **SETTINGS)  # type: ignore[arg-type]
    enough = quiet_after(settings, memory.header.rate / 1000, 0)
    assert enough < 20, "or this test proves nothing in its time"
    with load(server, share * rate) as trickle:
        # Without the trickle it would have ended twice over.
        trickle.wait_completed(round(2 * max(enough, SETTINGS["min_delay"]) * share * rate))
        assert memory.header.phase == Phase.LAME_DUCK, server.output
        tally = trickle.stop()
    assert server.wait(45) == 0, server.output
    server.wait_line(r"lame_duck_ended after .*: quiet$")
    assert (
        memory.header.drain / cells.NS >= max(record.started for record in tally.records) + enough
    )
    assert tally.lost == 0, tally.lost_records


BUSY = {
    "sync": ("-k", "sync", "-w", "1"),
    "gthread": ("-k", "gthread", "-w", "1", "--threads", "1"),
    "reuse_port": ("-k", "sync", "-w", "1", "--reuse-port"),
}


@pytest.mark.parametrize("kind", sorted(BUSY))
def test_requests_that_wait_for_a_busy_worker_still_arrive(
    kind: str, serve: Serve, connect: Connect
) -> None:
    """Every worker is busy, and a request waits in the accept queue or in gthread's. No worker can
    tell of it, and yet it is not silence: the delay goes on until it is served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        bind = f"127.0.0.1:{free.getsockname()[1]}"
    server = serve(
        args=BUSY[kind], bind=bind, settings={**SETTINGS, "min_delay": 0, "quiet_period": 0.6}
    )
    release = hold_a_request(server, connect(server))
    waiting = connect(server)
    waiting.send("/")
    server.terminate()
    server.wait_phase(Phase.LAME_DUCK)
    # The silence that would end the delay is what is waited for, so here time itself is.
    time.sleep(1.5)
    assert server.memory.header.phase == Phase.LAME_DUCK, server.output
    release()
    assert waiting.receive().status == 200
    waiting.close()
    server.wait_line("lame_duck_ended after .*: quiet")
    assert server.wait(20) == 0, server.output


def test_time_in_which_the_arbiter_could_not_look_is_not_silence(serve: Serve) -> None:
    """A machine that was frozen wakes up long after the last request: the silence is counted from
    there, because nobody knows what came meanwhile."""
    server = serve(kind="sync", settings={**SETTINGS, "min_delay": 0, "quiet_period": 1.3})
    server.terminate()
    server.wait_phase(Phase.LAME_DUCK)
    with stopped() as stop:
        stop(server.arbiter_pid)
        time.sleep(1.5)
        woken = time.monotonic()
    server.wait_phase(Phase.DRAINING)
    assert server.memory.header.drain / cells.NS - woken >= 1.3
