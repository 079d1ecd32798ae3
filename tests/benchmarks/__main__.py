"""The project's figures, measured: ``python tests/benchmarks`` (or ``tox -e bench``).

Prints medians; what is compared is measured in interleaved runs, so that a slow minute of the machine slows both. No
number here decides over a test.
"""

from __future__ import annotations

import os
import signal
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parents[1] / "functional"))

import quiet
from conftest import WORKERS, Client, Server

from gunicorn_grace import state as st
from gunicorn_grace.rehearsal.generator import Generator
from gunicorn_grace.rehearsal.platform import EndpointTable

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


def cpu_a_request(requests: int, runs: int) -> None:
    """CPU of the worker for each request, gthread, smallest WSGI app, kept-alive connection, plugin over plain."""
    args = ("-k", "gthread", "-w", "1", "--threads", "2", "--keep-alive", "60")
    request = b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"
    with serve("tiny:app", args=args) as grace, serve("tiny:app", args=args, config=()) as plain:
        found: dict[str, list[float]] = {"plain": [], "grace": []}
        for number in range(runs + 1):
            pair = {"plain": plain, "grace": grace}
            for name in sorted(pair, reverse=number % 2 == 0):
                server = pair[name]
                server.wait_ready()
                pids = server.wait_workers(1)
                with socket.create_connection(server.address) as sock:
                    began = cpu_ns(pids)
                    for _ in range(requests):
                        sock.sendall(request)
                        while not sock.recv(4096).endswith(b"hi\n"):
                            pass
                    if number:  # The first run warms up.
                        found[name].append((cpu_ns(pids) - began) / requests / 1000)
    plain_us, grace_us = (statistics.median(found[name]) for name in ("plain", "grace"))
    ratio = statistics.median(g / p for g, p in zip(found["grace"], found["plain"], strict=True))
    print(f"CPU a request, gthread: plain {plain_us:.1f} us, grace {grace_us:.1f} us, median ratio {ratio:.3f}")


def flip(runs: int) -> None:
    """From SIGTERM until the last of 16 workers has seen the phase."""
    found = []
    for _ in range(runs):
        args = ("-k", "gthread", "-w", "16", "--threads", "2")
        with serve("tiny:app", args=args, settings={"shutdown_delay": 60, "termination_period": 90}) as server:
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
                lambda: sum(server.memory.cells[slot + st.IN_FLIGHT] for _, slot, _ in server.memory.slots()) == 16,
                "16 watching workers",
            )
            began = time.monotonic_ns()
            server.signal(signal.SIGTERM)
            seen = max(int(client.receive().body) for client in clients.values())
            found.append((seen - began) / MS)
            for client in clients.values():
                client.close()
    print(f"readiness flip, last of 16 workers: median {statistics.median(found):.1f} ms, worst {max(found):.1f} ms")


def exit_time(runs: int) -> None:
    """From the end of the delay, or of the longest request in flight if that is later, to the end of the process."""
    for kind in WORKERS:
        found = []
        for number in range(runs):
            delay, request = (0.5, 1.5) if number % 2 else (1.5, 0.5)
            settings = {"shutdown_delay": delay, "min_delay": 0, "extend_delay": "false"}
            with serve("tiny:app", kind=kind, settings=settings) as server:
                server.wait_ready()
                client = Client(server.address)
                client.send(f"/sleep?{request}")
                server.wait_for(
                    lambda: any(server.memory.cells[slot + st.IN_FLIGHT] for _, slot, _ in server.memory.slots()),
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
    """From the begin of the drain until the last idle or silent connection is closed, with graceful_timeout 30."""
    settings = {"shutdown_delay": 0.3, "min_delay": 0, "extend_delay": "false", "termination_period": 60}
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
                found.append((closed - memory.cells[st.DRAIN]) / st.NS)
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
    """How well the load generator of the rehearsal keeps its schedule, against one gunicorn, half on kept connections.

    The limit is 20 ms at 1,000 requests a second, with one core for the generator and another for gunicorn.
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
        f"load of {rate:g} requests/s for {seconds} s: {found['rate_achieved']:.1f}/s achieved with {used:.0%} of a "
        f"core, late by {1000 * found['lag_p99']:.1f} ms at 99 %, {1000 * found['lag_max']:.1f} ms at the most, "
        f"{tally.skipped} not started, {tally.lost} lost; {tally.fell_behind() or 'the run can be trusted'}"
    )


def quiet_test() -> None:
    """How often the quiet test is wrong, simulated: about two minutes."""
    if not quiet.show(1_000_000, seed=1):
        sys.exit(1)


BENCHMARKS: dict[str, Callable[[], None]] = {
    "cpu": lambda: cpu_a_request(20_000, 7),
    "flip": lambda: flip(5),
    "exit": lambda: exit_time(6),
    "idle": lambda: idle(3),
    "load": lambda: load(1000, 20),
    "quiet": quiet_test,
}


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(sorted(BENCHMARKS)))
def main(names: Sequence[str]) -> None:
    """Measure all, or what is named."""
    for name in names or BENCHMARKS:
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
