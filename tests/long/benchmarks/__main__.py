"""The project's figures, measured: ``python tests/long/benchmarks`` (or ``tox -e bench``).

Prints medians; what is compared is measured in interleaved runs, so that a slow minute of the
machine slows both. No number here decides over a test.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parents[2]))

import balancers
import one_host
import quiet

from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable
from gunicorn_grace.rehearsal.load.generator import Generator
from gunicorn_grace.rehearsal.processes import procfs
from gunicorn_grace.shared import cells
from gunicorn_grace.shared import memory as shm
from support.servers import WORKERS, Client, Server

HERE = str(Path(__file__).parent)
MS = 1e6


def serve(app: str, **options: object) -> Server:
    return Server(app, env={"PYTHONPATH": HERE}, cwd=HERE, **options)


def cpu_ns(pids: Sequence[int]) -> int:
    """CPU time that these processes have used, all threads, from the scheduler's own count."""
    total = 0
    for pid in pids:
        for task in os.listdir(f"/proc/{pid}/task"):
            total += int(Path(f"/proc/{pid}/task/{task}/schedstat").read_text().split()[0])
    return total


HOT = ("-k", "gthread", "-w", "1", "--threads", "2", "--keep-alive", "600")

ASGI = {
    "asgi": ("-k", "asgi", "-w", "1", "--keep-alive", "600"),
    "uvicorn": ("-k", "uvicorn_worker.UvicornWorker", "-w", "1", "--keep-alive", "600"),
}
"""Worker classes that serve FastAPI: gunicorn's own is there from 24.1 on."""

EVERYTHING: dict[str, object] = {"dockerflow": "true", "ignore_paths": "/metrics,/debug"}


def compared() -> Iterator[tuple[str, tuple[str, tuple[str, ...], dict[str, object]]]]:
    """The smallest WSGI app in gthread: with the defaults, and with everything that has a part in a
    request."""
    for log in ((), ("--access-logfile", "/dev/null")):
        for what, app, settings in (
            ("defaults", "tiny:app", {}),
            ("checks, Dockerflow", "checked:app", EVERYTHING),
        ):
            yield f"{what}, {'an' if log else 'no'} access log", (app, (*HOT, *log), settings)


def cpu_a_request(boots: int, rounds: int, requests: int) -> None:
    """CPU time of the worker for each request on a kept-alive connection, plugin over plain
    gunicorn."""
    for what, server in compared():
        compare(f"CPU a request, {what}", boots, rounds, requests, server)


def cpu_of_asgi(boots: int, rounds: int, requests: int) -> None:
    """The same for the smallest FastAPI application, under both worker classes that serve it."""
    for kind, args in ASGI.items():
        compare(
            f"CPU a request, FastAPI, {kind}", boots, rounds, requests, ("smallest:app", args, {})
        )


def compare(
    what: str,
    boots: int,
    rounds: int,
    requests: int,
    server: tuple[str, tuple[str, ...], dict[str, object]],
) -> None:
    """The same requests to the same application, with the plugin and without, in turns, to servers
    that are started anew again and again: one boot of the very same server differs from the next by
    more than what is looked for, by where its memory happens to be. The servers have a core of
    their own, the client another: threads that wake each other across cores cost up to half as much
    again, and now more, now less."""
    app, args, settings = server
    first, *others = os.sched_getaffinity(0)
    request = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
    found: dict[str, list[float]] = {"plain": [], "grace": []}
    for boot in range(boots):
        os.sched_setaffinity(0, {first})  # Inherited by the servers.
        with (
            serve(app, args=args, settings=settings) as grace,
            serve(app, args=args, config=()) as plain,
        ):
            os.sched_setaffinity(0, others or {first})
            pair = {"plain": plain, "grace": grace}
            used: dict[str, list[float]] = {name: [] for name in pair}
            for number in range(rounds + 1):
                for name in sorted(pair, reverse=(boot + number) % 2 == 0):
                    pair[name].wait_ready()
                    cost = cpu_of(pair[name], request, requests)
                    if number:  # The first round warms up.
                        used[name].append(cost)
            for name, costs in used.items():
                found[name].append(statistics.median(costs))
    os.sched_setaffinity(0, {first, *others})
    ratios = [g / p for g, p in zip(found["grace"], found["plain"], strict=True)]
    plain_us, grace_us = (statistics.median(found[name]) for name in ("plain", "grace"))
    error = statistics.stdev(ratios) / boots**0.5
    print(
        f"{what}: medians of {boots} boots plain {plain_us:.1f} us, grace {grace_us:.1f} us; "
        f"ratio: median "
        f"{statistics.median(ratios):.3f}, mean {statistics.mean(ratios):.3f} with a standard "
        f"error of {error:.3f}",
        flush=True,
    )


def cpu_of(server: Server, request: bytes, count: int) -> float:
    """CPU of the only worker for each of so many requests on one connection, in microseconds."""
    pids = server.wait_workers(1)
    with socket.create_connection(server.address) as sock:
        began = cpu_ns(pids)
        for _ in range(count):
            sock.sendall(request)
            received = b""
            while not received.endswith((b"hi\n", b"ok\n")):
                received += sock.recv(4096)
        return (cpu_ns(pids) - began) / count / 1000


def instructions_a_request(few: int, many: int) -> None:
    """What no other work on the machine changes: how many instructions the worker executes in user
    space for each request more, plugin over plain gunicorn, counted by valgrind, under which a
    request takes 20 ms."""
    if shutil.which("valgrind") is None:
        sys.exit(
            "instructions: there is no valgrind to count them with: install it, or measure `cpu`"
        )
    for what, (app, args, settings) in compared():
        found = []
        for options in ({"config": ()}, {"settings": settings}):
            counts = [
                instructions_of(app, requests, args=args, **options) for requests in (few, many)
            ]
            found.append((counts[1] - counts[0]) / (many - few))
        plain, grace = found
        print(
            f"instructions a request, {what}: plain {plain:.0f}, grace {grace:.0f}, ratio "
            f"{grace / plain:.4f}",
            flush=True,
        )


def instructions_of(app: str, requests: int, **options: Any) -> int:
    """All that the only worker has executed from its fork to its end, with so many requests in
    between."""
    with tempfile.TemporaryDirectory() as folder:
        options["args"] = (*options["args"], "--timeout", "600")
        valgrind = ("valgrind", "--quiet", "--tool=callgrind", "--trace-children=yes")
        prefix = (*valgrind, f"--callgrind-out-file={folder}/%p")
        env = {"PYTHONPATH": HERE, "PYTHONHASHSEED": "0"}
        server = Server(app, env=env, cwd=HERE, executable_prefix=prefix, **options)
        with contextlib.ExitStack() as stack:
            stack.callback(server.stop)
            server.start(120)  # Under valgrind a boot takes half a minute.
            server.wait_ready(120)
            with socket.create_connection(server.address) as sock:
                for number in range(requests):
                    sock.sendall(
                        b"GET /%s HTTP/1.1\r\nHost: test\r\n\r\n" % (b"" if number else b"pid")
                    )
                    received = b""
                    while b"\r\n\r\n" not in received or received.endswith(b"\r\n\r\n"):
                        received += sock.recv(4096)
                    if not number:
                        pid = int(received.rpartition(b"\r\n\r\n")[2])
                sock.sendall(b"GET /exit HTTP/1.1\r\nHost: test\r\n\r\n")
                while sock.recv(4096):  # The worker ends at once; valgrind writes its file first.
                    pass
            (line,) = re.findall(r"^totals: (\d+)$", (Path(folder) / str(pid)).read_text(), re.M)
            return int(line)


def cpu_a_probe(calls: int, runs: int) -> None:
    """CPU of a readiness answer by the overlay: of its call alone, in this process, and of a whole
    request."""
    import checked
    from werkzeug.test import EnvironBuilder

    from gunicorn_grace.shared.phase import Phase
    from gunicorn_grace.shared.settings import Settings
    from gunicorn_grace.worker.answering import WorkerAnswers
    from gunicorn_grace.worker.overlay import Overlay
    from gunicorn_grace.worker.process import WorkerProcess

    def no_such_route(environ: Any, start_response: Any) -> list[bytes]:
        start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "0")])
        return [b""]

    memory = shm.Memory.create(slots=1)
    memory.header.phase = Phase.SERVING
    memory.claim(0, age=1)
    ours = WorkerProcess(memory, 0, Settings(), logging.getLogger())
    cases = {
        "application without one": (no_such_route, "/readyz", {}),
        "application with its own": (checked.app, "/readyz", {}),
        "?verbose": (no_such_route, "/readyz?verbose", {}),
        "JSON": (no_such_route, "/readyz", {"Accept": "application/json"}),
    }
    for name, (app, path, headers) in cases.items():
        overlay = Overlay(app, WorkerAnswers(ours))
        environ = EnvironBuilder(path, headers=headers).get_environ()
        found = []
        for _ in range(runs + 1):
            began = time.process_time_ns()
            for _ in range(calls):
                b"".join(overlay(dict(environ), lambda status, headers: None))
            found.append((time.process_time_ns() - began) / calls / 1000)
        print(
            f"readiness by the overlay, 2 checks, {name}: median "
            f"{statistics.median(found[1:]):.1f} us of CPU"
        )
    memory.close()

    args = ("-k", "gthread", "-w", "1", "--threads", "2", "--keep-alive", "60")
    with serve("checked:app", args=args, settings={"readiness_path": "/ready"}) as server:
        server.wait_ready()
        requests = {
            path: f"GET {path} HTTP/1.1\r\nHost: test\r\n\r\n".encode() for path in ("/", "/ready")
        }
        used: dict[str, list[float]] = {path: [] for path in requests}
        for _ in range(10 * runs):
            for path, request in requests.items():
                used[path].append(cpu_of(server, request, calls // 10))
        plain, probe = (statistics.median(used[path][2:]) for path in requests)
        more = statistics.median(
            b - a for a, b in zip(used["/"][2:], used["/ready"][2:], strict=True)
        )
        print(
            f"a whole request, gthread: median {plain:.1f} us of CPU, readiness {probe:.1f} us, "
            f"median difference {more:.1f} us"
        )


def flip(runs: int) -> None:
    """From SIGTERM until the last of 16 workers has seen the phase."""
    found = []
    for _ in range(runs):
        args = ("-k", "gthread", "-w", "16", "--threads", "2")
        with serve(
            "tiny:app", args=args, settings={"shutdown_delay": 60, "termination_period": 90}
        ) as server:
            server.wait_ready()
            server.wait_workers(16)
            clients: dict[str, Client] = {}
            while len(clients) < 16:
                burst = [Client(server.address) for _ in range(16)]
                for client in burst:
                    client.send("/pid")
                for client in burst:
                    pid = client.receive().body.decode()
                    if pid in clients:
                        client.close()
                    else:
                        clients[pid] = client
            for client in clients.values():
                client.send("/watch")
            server.wait_for(
                lambda: sum(record.in_flight for record in server.memory.records()) == 16,
                "16 watching workers",
            )
            began = time.monotonic_ns()
            server.signal(signal.SIGTERM)
            seen = max(int(client.receive().body) for client in clients.values())
            found.append((seen - began) / MS)
            for client in clients.values():
                client.close()
    print(
        f"readiness flip, last of 16 workers: median {statistics.median(found):.1f} ms, worst "
        f"{max(found):.1f} ms"
    )


def exit_time(runs: int) -> None:
    """From the end of the delay, or of the longest request in flight if that is later, to the end
    of the process."""
    for kind, args in {**WORKERS, **ASGI}.items():
        found = []
        for number in range(runs):
            delay, request = (0.5, 1.5) if number % 2 else (1.5, 0.5)
            settings = {"shutdown_delay": delay, "min_delay": 0, "extend_delay": "false"}
            app = "smallest:app" if kind in ASGI else "tiny:app"
            with serve(app, args=args, settings=settings) as server:
                server.wait_ready()
                client = Client(server.address)
                client.send(f"/sleep?{request}")
                server.wait_for(
                    lambda: any(record.in_flight for record in server.memory.records()),
                    "the request",
                )
                sent = time.monotonic()
                server.signal(signal.SIGTERM)
                client.receive()
                answered = time.monotonic()
                client.close()
                server.wait(30)
                assert server.exit_time is not None
                found.append(server.exit_time - max(answered, sent + delay))
        print(
            f"exit after delay and longest request, {kind}: "
            f"median {statistics.median(found):.2f} s, worst {max(found):.2f} s"
        )


def idle(runs: int) -> None:
    """From the begin of the drain until the last idle or silent connection is closed, with
    graceful_timeout 30."""
    settings = {
        "shutdown_delay": 0.3,
        "min_delay": 0,
        "extend_delay": "false",
        "termination_period": 60,
    }
    for kind in WORKERS:
        found = []
        for _ in range(runs):
            args = ("--graceful-timeout", "30", "--keep-alive", "30")
            with serve("tiny:app", kind=kind, settings=settings, args=args) as server:
                server.wait_ready()
                clients = [Client(server.address) for _ in range(6)]
                for client in clients[:3]:
                    client.get("/")
                memory = server.memory
                server.signal(signal.SIGTERM)
                closed = max(map(closing, clients))
                server.wait(30)
                found.append((closed - memory.header.drain) / cells.NS)
        print(
            f"idle and silent connections closed after the drain's begin, {kind}: "
            f"median {statistics.median(found):.2f} s, worst {max(found):.2f} s"
        )


def closing(client: Client) -> int:
    """When the server closed this connection; our side follows at once."""
    while client.sock.recv(4096):
        pass
    client.close()
    return time.monotonic_ns()


def load(rate: float, seconds: int) -> None:
    """How well the load generator of the rehearsal keeps its schedule, against one gunicorn, half
    on kept connections.

    The limit is 20 ms at 1,000 requests a second, with one core for the generator and another for
    gunicorn.
    """
    args = ("-k", "gthread", "-w", "1", "--threads", "8")
    with serve("tiny:app", args=args, config=()) as server:
        server.wait_ready()
        table = EndpointTable()
        table.add(server.address)
        with Generator(table, rate=rate) as generator:
            began = cpu_ns([generator.pid])
            generator.wait_completed(round(rate * seconds))
            used = (cpu_ns([generator.pid]) - began) / MS / 1000 / seconds
            tally = generator.stop()
    found = tally.summary()
    print(
        f"load of {rate:g} requests/s for {seconds} s: {found['rate_achieved']:.1f}/s achieved "
        f"with {used:.0%} of a "
        f"core, late by {1000 * found['lag_p99']:.1f} ms at 99 %, {1000 * found['lag_max']:.1f} "
        f"ms at the most, "
        f"{tally.skipped} not started, {tally.lost} lost; "
        f"{tally.fell_behind() or 'the run can be trusted'}"
    )


def quiet_test() -> None:
    """How often the quiet test is wrong, simulated: about two minutes."""
    if not quiet.show(1_000_000, seed=1):
        sys.exit(1)


BARE = """
import socket
listener = socket.create_server(("127.0.0.1", 0), backlog=128)
print(listener.getsockname()[1], flush=True)
while True:
    sock, _ = listener.accept()
    sock.recv(4096)
    sock.sendall(b"HTTP/1.1 200 OK\\r\\nContent-Length: 3\\r\\nConnection: close\\r\\n\\r\\nok\\n")
    sock.close()
"""
"""What the machine makes of an exchange in which nothing is done."""


def probe_port(probes: int) -> None:
    """Readiness at the probe port, and at gunicorn's own, while every sync worker is busy: a
    connection for each. In between, as many exchanges with a process that does nothing: on a busy
    machine most of the time is the machine's."""
    settings = {"probe_bind": "127.0.0.1:0"}
    bare = subprocess.Popen([sys.executable, "-c", BARE], stdout=subprocess.PIPE, text=True)
    try:
        with serve(
            "tiny:app", args=("-k", "sync", "-w", "2", "--timeout", "600"), settings=settings
        ) as server:
            server.wait_ready()
            server.wait_booted(2)
            line = server.wait_line("probe port at ")
            assert bare.stdout is not None
            ports = {
                "probe port": int(line.rpartition(":")[2]),
                "bare": int(bare.stdout.readline()),
            }
            busy = [Client(server.address) for _ in range(2)]
            for client in busy:
                client.send("/sleep?600")
            server.wait_in_flight(2)
            pid = responder_of(server)
            asked(("127.0.0.1", ports["probe port"]))  # It may still be starting.
            cpu = cpu_ns([pid])
            found: dict[str, list[float]] = {name: [] for name in ports}
            for _ in range(probes):
                # Fifty times what ten probers ask; one after the other would be a load of its own.
                time.sleep(0.01)
                for name, port in ports.items():
                    found[name].append(asked(("127.0.0.1", port)))
            cpu = cpu_ns([pid]) - cpu
            try:
                plain = f"answered after {asked(server.address):.1f} ms"
            except TimeoutError:
                plain = f"no answer within {PROBE_TIMEOUT:g} s"
            memory = memory_of(pid)
            for client in busy:
                client.close()
    finally:
        bare.kill()
        bare.communicate()
    print(f"readiness with all workers busy: gunicorn's own port: {plain}")
    for name, times in found.items():
        times.sort()
        print(
            f"  {name}, {probes} exchanges: median {statistics.median(times):.2f} ms, "
            f"p99 {times[len(times) * 99 // 100]:.2f} ms, worst {times[-1]:.1f} ms"
        )
    print(f"  the responder: {cpu / probes / 1000:.0f} us of CPU a probe, {memory}")


PROBE_TIMEOUT = 1.0
"""The kubelet's default."""


def asked(address: tuple[str, int]) -> float:
    """Milliseconds from connecting to the end of the response."""
    began = time.monotonic_ns()
    with socket.create_connection(address, timeout=PROBE_TIMEOUT) as sock:
        sock.sendall(b"GET /readyz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
        data = b""
        while got := sock.recv(4096):
            data += got
    assert data.startswith(b"HTTP/1.1 200 "), data
    return (time.monotonic_ns() - began) / MS


def responder_of(server: Server) -> int:
    """The process behind the probe port."""
    for pid in procfs.children(server.arbiter_pid):
        if b"gunicorn_grace.responder.process" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return pid
    raise LookupError("no responder")


def memory_of(pid: int) -> str:
    """What a process takes, and what of that is shared with nobody."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kib = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines[1:])}
    private = kib["Private_Clean"] + kib["Private_Dirty"]
    return f"{kib['Rss'] / 1024:.1f} MiB resident, {private / 1024:.1f} MiB its own"


BENCHMARKS: dict[str, Callable[[], None]] = {
    "cpu": lambda: cpu_a_request(40, 6, 400),
    "cpu-asgi": lambda: cpu_of_asgi(40, 6, 400),
    "instructions": lambda: instructions_a_request(200, 1200),
    "probe": lambda: cpu_a_probe(5_000, 5),
    "flip": lambda: flip(5),
    "exit": lambda: exit_time(6),
    "idle": lambda: idle(3),
    "probe-port": lambda: probe_port(2000),
    "load": lambda: load(1000, 20),
    "quiet": quiet_test,
    "balancers": balancers.show,
    "one-host": one_host.show,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(sorted(BENCHMARKS)))
def main(names: Sequence[str]) -> None:
    """Measure all, or what is named."""
    for name in names or BENCHMARKS:
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
