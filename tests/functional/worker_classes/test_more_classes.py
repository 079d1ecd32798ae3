"""aiohttp's worker, whose requests nobody can count: no number of it is zero. And eventlet's, which
gunicorn has up to 25."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import signal
import socket
from pathlib import Path

import pytest

from gunicorn_grace.shared import metrics
from gunicorn_grace.shared.phase import Phase
from support.servers import HOLD, QUICK, SHORT, Connect, Serve, Server, look_at_each

pytestmark = pytest.mark.ends

AIOHTTP = ("-k", "aiohttp.GunicornWebWorker")
EVENTLET = ("-k", "eventlet")
if importlib.metadata.version("gunicorn") >= "25.1":
    # Under eventlet gunicorn takes 2 s to end its control socket, with the plugin and without.
    EVENTLET = (*EVENTLET, "--no-control-socket")

needs_aiohttp = pytest.mark.skipif(
    importlib.util.find_spec("aiohttp") is None, reason="aiohttp is not installed"
)
needs_eventlet = pytest.mark.skipif(
    importlib.util.find_spec("eventlet") is None
    or importlib.util.find_spec("gunicorn.workers.geventlet") is None,
    reason="eventlet is not installed, or gunicorn has no worker for it",
)


@pytest.fixture
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the report goes."""
    path = tmp_path_factory.mktemp("report") / "report.json"
    path.touch()
    return path


def sigterm(server: Server) -> None:
    server.terminate()
    server.wait_phase(Phase.LAME_DUCK)


@needs_aiohttp
def test_what_cannot_be_counted_is_said_not_to_be_counted(
    serve: Serve, connect: Connect, report: Path
) -> None:
    """Log, report, metrics and verdict: a zero would say that nothing was lost, and that no request
    came. What is in flight completes, and the accept queue is the kernel's to count."""
    server = serve(
        "aiohttp_service:app",
        args=(*AIOHTTP, "-w", "1"),
        settings={**SHORT, "report": report},
        ready=False,
    )
    server.wait_booted(1)
    server.wait_line("requests of the worker class aiohttp.GunicornWebWorker cannot be counted")
    assert server.get("/").status == 200
    client = connect(server)
    client.send("/slow?s=2")
    server.wait_line("slow request begins")
    sigterm(server)
    server.wait_line("not ready for 0.3 s, requests are not counted")
    seen = metrics.read(server.memory)
    assert (seen.in_flight, seen.requests, seen.during_shutdown, seen.cut_off) == (None,) * 4
    absent = {metric.name for metric in metrics.METRICS if not metric.samples(seen)}
    assert absent == {
        "requests_in_flight",
        "requests",
        "requests_during_shutdown",
        "requests_cut_off",
    }
    assert client.receive().body == b"slept\n"
    client.close()
    server.assert_gone()
    summary = server.summary()
    assert "requests since T0 are not counted, what was cut off is not counted; " in summary
    assert summary.endswith("requests are not counted with this worker class: " + UNKNOWN)
    told = json.loads(report.read_text())
    assert {key for key, value in told.items() if value is None} == {
        "requests_since_t0",
        "last_request_after_t0_seconds",
        "in_flight_at_t0",
        "in_flight_at_drain",
        "in_flight_at_stop",
        "cut_off",
        "cut_off_by_worker",
    }
    assert told["cut_off_by_kind"].pop("accept_queue") == 0
    assert set(told["cut_off_by_kind"].values()) == {None}


UNKNOWN = "nothing is known about the delay"


@needs_aiohttp
@pytest.mark.long
def test_aiohttps_worker_stays_and_is_cut_at_the_deadline(serve: Serve, connect: Connect) -> None:
    """SIGTERM to the whole group dismisses none; they serve in the delay; a request longer than the
    budget ends at the deadline, and the log does not claim to have counted it."""
    server = serve(
        "aiohttp_service:app",
        args=(*AIOHTTP, "-w", "2"),
        settings={**QUICK, "shutdown_delay": 1.5},
        ready=False,
    )
    pids = server.wait_booted(2)
    client = connect(server)
    client.send("/slow?s=60")
    server.wait_line("slow request begins")
    server.signal_group(signal.SIGTERM)
    server.wait_phase(Phase.LAME_DUCK)
    server.wait_for(
        lambda: all(record.term_seen for record in server.memory.records()),
        "each worker's question",
    )
    assert {server.get("/").status for _ in range(8)} == {200}
    assert server.wait_booted(2) == pids
    server.wait_line("deadline_reached after .*: requests cut off: not counted, workers left: 1")
    assert server.wait(20) == 0
    assert "Booting worker" not in server.output.partition("shutdown_initiated")[2]


@needs_eventlet
def test_eventlets_worker_has_what_gevents_has(serve: Serve, connect: Connect) -> None:
    """The delay, the flip, the counts, Connection: close, and what is in flight completes. eventlet
    patches gunicorn 25's arbiter as well."""
    server = serve(args=(*EVENTLET, "-w", "2", "--keep-alive", "60"), settings=HOLD)
    pids = server.wait_booted(2)
    assert server.get("/readyz").status == 200
    idle, kept = connect(server), connect(server)
    assert idle.get("/").status == kept.get("/").status == 200
    slow = connect(server)
    slow.send("/slow?s=2")
    server.wait_line("slow request begins")
    sigterm(server)
    assert {server.get("/readyz").status for _ in range(8)} == {503}
    assert [answer["phase"] for answer in look_at_each(server, pids)] == ["LAME_DUCK"] * 2
    assert kept.get("/").headers["connection"] == "close"
    server.lead_to(Phase.DRAINING)
    assert slow.receive().status == 200
    slow.close()
    assert idle.at_end()
    server.assert_gone()
    assert " 0 cut off" in server.summary()
    assert "Traceback" not in server.output


@needs_eventlet
@pytest.mark.long
def test_what_eventlets_worker_cuts_off_is_counted_and_named(
    serve: Serve, connect: Connect
) -> None:
    """A request longer than the budget, and one behind it on the same connection."""
    server = serve(args=(*EVENTLET, "-w", "1", "--keep-alive", "60"), settings=QUICK)
    with socket.create_connection(server.address) as sock:
        sock.sendall(b"GET /slow?s=60 HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n")
        server.wait_line("slow request begins")
        server.terminate()
        server.assert_gone()
    assert " 2 cut off (1 in flight, 1 behind another)" in server.summary()
    server.wait_line(r"in flight 1 s before the end of the drain: GET .*service\.py:\d+ in slow$")
