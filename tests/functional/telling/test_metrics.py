"""What Prometheus, StatsD and systemd are told by real processes."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gunicorn_grace.rehearsal.load.wire import Response
from gunicorn_grace.shared.phase import Origin, Phase
from support.paths import DOCS
from support.servers import (
    HOLD,
    SHORT,
    WORKERS,
    Connect,
    Serve,
    Server,
    booted_in,
    end_delay_of,
    memory_of,
)

pytestmark = pytest.mark.ends


# -- Prometheus ----


def numbers(page: Response) -> dict[str, float]:
    """A page of metrics: each sample by its name, or by its name and label value."""
    assert page.status == 200
    families = text_string_to_metric_families(page.body.decode())
    return {
        " ".join([s.name.removeprefix("gunicorn_grace_"), *s.labels.values()]): s.value
        for family in families
        for s in family.samples
    }


def pages(server: Server, workers: set[int]) -> list[dict[str, float]]:
    """A page from each of these workers, at the least."""
    found: list[dict[str, float]] = []
    missing = set(workers)

    def has_met_all() -> bool:
        page = server.get("/metrics")
        missing.discard(int(page.headers["x-pid"]))
        found.append(numbers(page))
        return not missing

    server.wait_for(has_met_all, "a page of each worker", 60)
    return found


@pytest.mark.long(but="gthread-plain")
@pytest.mark.parametrize("multiprocess", [False, True], ids=["plain", "multiprocess"])
def test_every_worker_tells_of_all_of_them(
    multiprocess: bool, kind: str, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """Asked for themselves, all workers say the same: what all of them did, the dead and their
    successors included. In prometheus_client's multiprocess mode the application's own numbers are
    there as well; no file is of ours."""
    files = tmp_path / "files"
    files.mkdir()
    server = serve(
        "metrics_service:app",
        kind=kind,
        env={"PROMETHEUS_MULTIPROC_DIR": str(files)} if multiprocess else {},
    )
    count = int(WORKERS[kind][WORKERS[kind].index("-w") + 1])
    workers = set(server.wait_booted(count))
    for _ in range(20):
        assert server.get("/own").status == 200
    server.wait_in_flight(0)
    for page in pages(server, workers):
        assert page["requests_total"] == 20
        assert page["requests_in_flight"] == page["requests_cut_off_total"] == 0
        assert [page[f"workers {state}"] for state in ("booting", "serving", "leaving")] == [
            0,
            count,
            0,
        ]
        assert not multiprocess or page["own_total"] == 20

    client = connect(server)
    client.send(f"/wait?for={tmp_path / 'never'}")
    victim = server.wait_pid("slow request begins in ")
    assert {page["requests_in_flight"] for page in pages(server, workers - {victim})} == {1}
    os.kill(victim, signal.SIGKILL)
    server.wait_for(lambda: victim not in booted_in(server.memory), "the end of the worker")
    successors = set(server.wait_booted(count))
    assert successors != workers
    for page in pages(server, successors):
        assert (
            page["requests_total"],
            page["requests_cut_off_total"],
            page["requests_in_flight"],
        ) == (21, 1, 0)
    for _ in range(10):
        assert server.get("/own").status == 200
    server.wait_in_flight(0)
    for page in pages(server, successors):
        assert page["requests_total"] == 31
        assert page["workers serving"] == count
        assert not multiprocess or page["own_total"] == 30
    assert {path.suffix for path in files.iterdir()} == ({".db"} if multiprocess else set())


@pytest.mark.long
def test_no_counter_goes_back_while_workers_die(serve: Serve) -> None:
    """Scraped all the time under load while one worker after the other gets SIGKILL: no total ever
    shrinks, and at the end it is the number of requests that were begun."""
    server = serve("metrics_service:app", kind="gthread", args=("-w", "3"))
    server.wait_booted(3)
    stop, done = threading.Event(), [0, 0, 0]

    def load(number: int) -> None:
        while not stop.is_set():
            with contextlib.suppress(Exception):  # Its worker was just killed.
                server.get("/")
                done[number] += 1

    threads = [threading.Thread(target=load, args=(number,)) for number in range(len(done))]
    for thread in threads:
        thread.start()
    seen: list[float] = []
    try:
        for _ in range(4):
            victim = server.wait_booted(3)[0]
            os.kill(victim, signal.SIGKILL)
            until = sum(done) + 60

            def has_gone_on(victim: int = victim, until: int = until) -> bool:
                with contextlib.suppress(OSError):
                    seen.append(numbers(server.get("/metrics"))["requests_total"])
                return sum(done) >= until and victim not in booted_in(server.memory)

            server.wait_for(has_gone_on, "more requests, and the end of the worker", 60)
    finally:
        stop.set()
        for thread in threads:
            thread.join(30)
    assert seen == sorted(seen)
    assert len(seen) > 8
    server.wait_for(
        lambda: numbers(server.get("/metrics"))["requests_in_flight"] == 0, "the last request"
    )
    told = numbers(server.get("/metrics"))["requests_total"]
    assert sum(done) <= told <= sum(done) + 4 * len(done), (
        "but for those that died with their worker"
    )


@pytest.mark.once
def test_a_shutdown_shows_in_the_metrics(serve: Serve) -> None:
    """Phase, start and the requests that came since; taken back, the counter keeps its value and
    the start is gone."""
    server = serve("metrics_service:app", kind="gthread", settings=HOLD)
    before = time.time()
    assert "shutdown_start_time_seconds" not in numbers(server.get("/metrics"))
    assert server.memory.trigger(Origin.DRAIN)
    page = numbers(server.get("/metrics"))
    assert [name for name, value in page.items() if name.startswith("phase") and value] == [
        "phase LAME_DUCK"
    ]
    assert before <= page["shutdown_start_time_seconds"] + 0.01
    assert page["shutdown_start_time_seconds"] <= time.time() + 0.01
    for _ in range(5):
        assert server.get("/").status == 200
    server.wait_phase(Phase.LAME_DUCK)
    assert numbers(server.get("/metrics"))["requests_during_shutdown_total"] == 5
    server.memory.header.undrain = time.monotonic_ns()
    server.wait_line("undrained")
    page = numbers(server.get("/metrics"))
    assert page["phase SERVING"] == 1
    assert page["requests_during_shutdown_total"] == 5
    assert "shutdown_start_time_seconds" not in page


@pytest.mark.long
@pytest.mark.once
def test_the_example_of_the_docs(serve: Serve, tmp_path: Path) -> None:
    """What docs/reference/metrics.md shows is a page of metrics, also with preload_app."""
    page = (DOCS / "reference/metrics.md").read_text(encoding="utf-8")
    code = re.findall(r"```python\n(.*?)```", page, re.S)[0]
    (tmp_path / "documented.py").write_text(code)
    server = serve("documented:app", kind="sync", args=("--preload",))
    assert numbers(server.get("/metrics"))["phase SERVING"] == 1


# -- StatsD


class Agent:
    """Who listens to StatsD: keeps every datagram."""

    def __init__(self, server: Callable[[], Server]) -> None:
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.sock.bind(("127.0.0.1", 0))
        self.sock.setblocking(False)
        self.address = "{}:{}".format(*self.sock.getsockname())
        self.heard: list[str] = []
        self._server = server

    def has(self, line: str, after: int = 0) -> bool:
        with contextlib.suppress(BlockingIOError):
            while True:
                self.heard.append(self.sock.recv(4096).decode())
        return line in self.heard[after:]

    def wait(self, line: str, after: int = 0) -> None:
        """Wait until it has come, among those after the first so many."""
        self._server().wait_for(lambda: self.has(line, after), line)


@pytest.fixture
def agent() -> Iterator[Callable[[Server | None], Agent]]:
    with contextlib.ExitStack() as stack:
        servers: list[Server] = []

        def start(server: Server | None = None) -> Agent:
            if server is not None:
                servers.append(server)
                return agent
            stack.callback(agent.sock.close)
            return agent

        agent = Agent(lambda: servers[-1])
        yield start


@pytest.mark.long(but="gthread")
def test_statsd_gets_the_gauges(
    kind: str, serve: Serve, connect: Connect, agent: Callable[..., Agent], tmp_path: Path
) -> None:
    """Over UDP, with gunicorn's prefix: each phase, what is in flight, also a 0 (which gunicorn 22
    to 25 leave out of what they are told by a log call); again and again in LAME_DUCK; and the last
    word is what was cut off."""
    listening = agent()
    args = ("--statsd-host", listening.address, "--statsd-prefix", "svc")
    server = serve(kind=kind, args=args, settings=HOLD)
    agent(server)
    listening.wait("svc.gunicorn.grace.phase:1|g")
    assert listening.has("svc.gunicorn.grace.requests_in_flight:0|g")
    client = connect(server)
    client.send(f"/wait?for={tmp_path / 'go'}")
    server.wait_line("slow request begins")
    server.terminate()
    for _ in range(2):
        after = len(listening.heard)
        listening.wait("svc.gunicorn.grace.phase:2|g", after)
        listening.wait("svc.gunicorn.grace.requests_in_flight:1|g", after)
    server.terminate()
    listening.wait("svc.gunicorn.grace.phase:3|g")
    (tmp_path / "go").touch()
    assert client.receive().status == 200
    client.close()
    (tmp_path / "go").unlink()
    server.assert_gone()
    listening.wait("svc.gunicorn.grace.phase:4|g")
    assert listening.heard[-1] == "svc.gunicorn.grace.requests_cut_off:0|g"
    assert "Error sending" not in server.output


@pytest.mark.long
def test_without_statsd_no_gauge_is_logged(serve: Serve) -> None:
    """Not even at level debug: a gauge is not a line of the log."""
    server = serve(kind="sync", args=("--log-level", "debug"), settings=SHORT)
    server.terminate()
    server.assert_gone()
    server.summary()
    assert "requests_in_flight" not in server.output
    assert "gunicorn.grace" not in server.output
    assert not re.search(r"\[DEBUG\] *$", server.output, re.M)


@pytest.mark.long
def test_a_statsd_agent_that_hangs_does_not_hold_the_shutdown(serve: Serve, tmp_path: Path) -> None:
    """It has a UNIX socket and reads no more from it: a blocking sender waits for ever, and the
    arbiter does not."""
    path = str(tmp_path / "statsd")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as hanging,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filling,
    ):
        hanging.bind(path)
        server = serve(
            kind="sync", args=("--statsd-host", f"unix://{path}"), settings=SHORT, ready=False
        )
        server.wait_booted(4)
        hanging.settimeout(20)
        # gunicorn's own, by a blocking sender.
        while b"gunicorn.workers:4" not in hanging.recv(4096):
            pass
        filling.connect(path)
        filling.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                filling.send(b"x")
        server.terminate()
        server.assert_gone()
        os.unlink(path)


# -- systemd ----


class Manager:
    """What systemd listens on, in a thread: each message with the process that sent it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.heard: list[tuple[int, list[str]]] = []
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._sock.bind(address.replace("@", "\0", 1))
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            message, ancillary, _, _ = self._sock.recvmsg(
                4096, socket.CMSG_SPACE(struct.calcsize("3i"))
            )
            pid = struct.unpack("3i", ancillary[0][2])[0]
            if message == b"":
                return
            self.heard.append((pid, message.decode().split("\n")))

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"", self.address.replace("@", "\0", 1))
        self._thread.join(30)
        self._sock.close()

    def statuses(self) -> list[str]:
        return [
            word.removeprefix("STATUS=")
            for _, message in self.heard
            for word in message
            if "STATUS=" in word
        ]

    def phases(self) -> list[str]:
        """The phase of each status, in order, each once."""
        return [
            phase
            for phase, _ in itertools.groupby(
                status.partition(":")[0] for status in self.statuses()
            )
        ]

    def count(self, word: str) -> int:
        return sum(word in message for _, message in self.heard)

    def extensions(self, phase: Phase) -> list[float]:
        """How many seconds were asked for in a phase, message by message."""
        found = []
        for _, message in self.heard:
            status, *rest = [word for word in message if not word.startswith("STOPPING")]
            if status.startswith(f"STATUS={phase}") and rest:
                found.append(int(rest[0].removeprefix("EXTEND_TIMEOUT_USEC=")) / 1e6)
        return found


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    path = str(tmp_path / "notify")
    listening = Manager(path if request.param == "path" else f"@{path}")
    yield listening
    listening.close()


by_path = pytest.mark.parametrize("manager", ["path"], indirect=True)


@pytest.mark.long(but="path")
def test_systemd_is_told_of_the_shutdown(
    manager: Manager, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """READY=1 is gunicorn's word; then a status for each phase, STOPPING=1 once, with SIGTERM, and
    the time to the deadline and beyond. Nobody but the arbiter speaks."""
    server = serve(kind="gthread", env={"NOTIFY_SOCKET": manager.address}, settings=HOLD)
    client = connect(server)
    client.send(f"/wait?for={tmp_path / 'go'}")
    server.wait_line("slow request begins")
    server.wait_for(lambda: "SERVING" in manager.statuses(), "the status SERVING")
    assert manager.count("READY=1") == 1
    assert manager.count("STOPPING=1") == 0
    server.lead_to(Phase.LAME_DUCK)
    server.wait_for(lambda: manager.phases()[-1] == "LAME_DUCK", "the status LAME_DUCK")
    server.lead_to(Phase.DRAINING)
    server.wait_for(lambda: manager.phases()[-1] == "DRAINING", "the status DRAINING")
    (tmp_path / "go").touch()
    assert client.receive().status == 200
    client.close()
    (tmp_path / "go").unlink()
    server.assert_gone()
    server.wait_for(lambda: "STOPPED: 0 in flight" in manager.statuses(), "the last status")
    assert manager.phases()[-4:] == ["SERVING", "LAME_DUCK", "DRAINING", "STOPPED"]
    assert {"LAME_DUCK: not ready, 1 in flight", "DRAINING: 1 in flight"} <= set(manager.statuses())
    assert manager.count("STOPPING=1") == 1
    assert {pid for pid, _ in manager.heard} == {server.arbiter_pid}
    # 90 s from T0, less what has passed: to the deadline, 88 s after it, and grace_exit_margin
    # beyond.
    assert all(60 < seconds <= 90 for seconds in manager.extensions(Phase.LAME_DUCK))
    assert manager.extensions(Phase.LAME_DUCK)
    assert manager.extensions(Phase.DRAINING)


@pytest.mark.long
@by_path
def test_systemd_is_asked_again_where_no_end_is_known(manager: Manager, serve: Serve) -> None:
    """With grace_termination_period 0 the time is asked for piece by piece, as long as the arbiter
    runs."""
    settings = {**HOLD, "termination_period": 0}
    server = serve(kind="sync", env={"NOTIFY_SOCKET": manager.address}, settings=settings)
    server.lead_to(Phase.LAME_DUCK)
    server.wait_for(
        lambda: len(manager.extensions(Phase.LAME_DUCK)) >= 2, "the second request for time"
    )
    assert set(manager.extensions(Phase.LAME_DUCK)) == {10}
    server.terminate()
    assert server.wait(20) == 0, server.output


@pytest.mark.long
@by_path
def test_systemd_is_told_nothing_final_of_a_trigger(manager: Manager, serve: Serve) -> None:
    """A drain that is taken back: the status says so, and neither STOPPING=1 nor more time was
    asked for."""
    server = serve(kind="sync", env={"NOTIFY_SOCKET": manager.address}, settings=HOLD)
    server.wait_for(lambda: "SERVING" in manager.statuses(), "the status SERVING")
    assert server.memory.trigger(Origin.DRAIN)
    server.wait_for(
        lambda: manager.statuses()[-1] == "LAME_DUCK: not ready, 0 in flight",
        "the status LAME_DUCK",
    )
    server.memory.header.undrain = time.monotonic_ns()
    server.wait_for(lambda: manager.statuses()[-1] == "SERVING", "the status SERVING")
    assert manager.count("STOPPING=1") == 0
    assert manager.extensions(Phase.LAME_DUCK) == []
    server.signal(signal.SIGINT)
    server.assert_gone()
    server.wait_for(lambda: manager.count("STOPPING=1") == 1, "STOPPING=1")


@pytest.mark.long
@by_path
def test_systemd_is_not_told_that_an_upgraded_server_stops(manager: Manager, serve: Serve) -> None:
    """After SIGUSR2 the service goes on in the new arbiter: the old one's end is not an end of the
    service."""
    server = serve(kind="sync", env={"NOTIFY_SOCKET": manager.address}, settings=HOLD, script=True)
    count = int(WORKERS["sync"][-1])
    server.wait_booted(count)
    server.signal(signal.SIGUSR2)
    new = int(
        server.wait_for(
            lambda: re.findall(r"Listening at: .*\((\d+)\)", server.output)[1:], "its successor"
        )[0]
    )
    with contextlib.closing(memory_of(new)) as memory:
        server.wait_for(lambda: len(booted_in(memory)) == count, "new workers that have booted")
        server.terminate()
        assert server.wait(20) == 0, server.output
        assert manager.count("STOPPING=1") == 0
        server.wait_line("Master has been promoted")
        os.kill(new, signal.SIGTERM)
        server.wait_for(lambda: manager.count("STOPPING=1") == 1, "STOPPING=1")
        assert [pid for pid, message in manager.heard if "STOPPING=1" in message] == [new]
        end_delay_of(new)
    server.wait_for(lambda: not server.processes(), "the end of the new one")


@pytest.mark.long
def test_a_service_manager_that_is_gone_costs_one_warning(serve: Serve, tmp_path: Path) -> None:
    """However often there is something to say; the shutdown takes its course."""
    server = serve(kind="sync", env={"NOTIFY_SOCKET": str(tmp_path / "nobody")}, settings=SHORT)
    server.terminate()
    server.assert_gone()
    server.summary()
    assert server.output.count("NOTIFY_SOCKET cannot be told") == 1
