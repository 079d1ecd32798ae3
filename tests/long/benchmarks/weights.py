"""What the processes weigh."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from serving import KINDS, SERVERS, in_turns

from gunicorn_grace.rehearsal.load.wire import fetch
from support.figures import GRACE, Row
from support.servers import Server

RESPONDER = b"gunicorn_grace.responder.process"


def memory(boots: int = 7, kinds: Collection[str] = KINDS) -> list[Row]:
    """Memory of the arbiter and of each of two workers after 50 requests: what is its own, and its
    share of what it shares."""
    rows = []
    for kind in kinds:
        app, args = KINDS[kind]
        parts = ("arbiter", "worker")
        found: dict[str, dict[str, list[float | None]]] = {
            part: {who: [] for who in SERVERS} for part in parts
        }
        for boot in range(boots):
            for who in in_turns(boot):
                with SERVERS[who](app, args=(*args, "-w", "2")) as server:
                    workers = used(server)
                    found["arbiter"][who].append(weight(server.arbiter_pid))
                    found["worker"][who].append(sum(map(weight, workers)) / len(workers))
        rows += [Row(f"{kind}: {part}", "MiB", found[part]) for part in parts]
    return [*rows, Row("the process behind the probe port", "MiB", {GRACE: responders(boots)})]


def responders(boots: int) -> list[float | None]:
    """The memory of the process behind the probe port."""
    found: list[float | None] = []
    app, args = KINDS["sync"]
    for _ in range(boots):
        settings = {"probe_bind": "127.0.0.1:0"}
        with SERVERS[GRACE](app, args=(*args, "-w", "2"), settings=settings) as server:
            port = int(server.wait_line("probe port at ").rpartition(":")[2])
            used(server)
            fetch(("127.0.0.1", port), "/readyz")  # It listens before its process has started.
            (pid,) = [pid for pid in server.processes() if RESPONDER in command(pid)]
            found.append(weight(pid))
    return found


def used(server: Server) -> list[int]:
    """The workers, once they have served."""
    server.wait_ready()
    workers = server.wait_workers(2)
    for _ in range(50):
        server.get("/")
    return workers


def command(pid: int) -> bytes:
    return Path(f"/proc/{pid}/cmdline").read_bytes()


def weight(pid: int) -> float:
    """The proportional set size in MiB: a page that three processes share counts a third in each."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {name: int(rest.split()[0]) for name, rest in (line.split(":", 1) for line in lines)}
    return kib["Pss"] / 1024
