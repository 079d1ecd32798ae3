"""What a probe is answered while every worker is busy."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from serving import MS, plain, serve, wait_until_read

from support.figures import BARE, GRACE, PLAIN, Row
from support.servers import Client, Server

SILENT = """
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

PROBE_TIMEOUT = 1.0
"""The kubelet's default."""


def probe_port(runs: int = 5, probes: int = 500) -> list[Row]:
    """Readiness at gunicorn's own port, and at the probe port, while every sync worker is busy: a
    connection for each. In between, as many exchanges with a process that does nothing: on a busy
    machine most of the time is the machine's."""
    own: dict[str, list[float | None]] = {PLAIN: [], GRACE: []}
    middle: dict[str, list[float | None]] = {GRACE: [], BARE: []}
    slowest: dict[str, list[float | None]] = {GRACE: [], BARE: []}
    for _ in range(runs):
        with busy(plain("tiny:app", args=ARGS)) as server:
            own[PLAIN].append(asked(server.address))
        ours = serve("tiny:app", args=ARGS, settings={"probe_bind": "127.0.0.1:0"})
        with busy(ours) as server, silent() as port:
            own[GRACE].append(asked(server.address))
            probe = int(server.wait_line("probe port at ").rpartition(":")[2])
            asked(("127.0.0.1", probe))  # It may still be starting.
            found: dict[str, list[float]] = {GRACE: [], BARE: []}
            for _ in range(probes):
                # Fifty times what ten probers ask; one after the other would be a load of its own.
                time.sleep(0.01)
                for who, at in ((GRACE, probe), (BARE, port)):
                    took = asked(("127.0.0.1", at))
                    found[who].append(float("inf") if took is None else took)
            for who, times in found.items():
                times.sort()
                middle[who].append(times[len(times) // 2])
                slowest[who].append(times[len(times) * 99 // 100])
    return [
        Row("gunicorn's own port", "ms", own),
        Row("the probe port, median", "ms", middle),
        Row("the probe port, 99 of 100 answers within", "ms", slowest),
    ]


ARGS = ("-k", "sync", "-w", "2", "--timeout", "600")


@contextlib.contextmanager
def busy(server: Server) -> Iterator[Server]:
    """A server whose two workers each serve a request that takes longer than we look."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(server)
        server.wait_ready()
        server.wait_workers(2)
        for _ in range(2):
            client = Client(server.address)
            stack.callback(client.close)
            client.send("/sleep?600")
        wait_until_read(server)
        yield server


@contextlib.contextmanager
def silent() -> Iterator[int]:
    """The port of a process that does nothing but answer."""
    command = [sys.executable, "-c", SILENT]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def asked(address: tuple[str, int]) -> float | None:
    """Milliseconds from connecting to the end of the response; None after the kubelet's patience."""
    began = time.monotonic_ns()
    try:
        with socket.create_connection(address, timeout=PROBE_TIMEOUT) as sock:
            sock.sendall(b"GET /readyz HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
            data = b""
            while received := sock.recv(4096):
                data += received
    except TimeoutError:
        return None
    assert data.startswith(b"HTTP/1.1 200 "), data
    return (time.monotonic_ns() - began) / MS
