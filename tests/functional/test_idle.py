"""Idle connections and silent ones do not hold the end of an instance, whichever gunicorn it is."""

from __future__ import annotations

import signal
import threading
import time

from conftest import Client, Connect, Serve

from gunicorn_grace import state as st

SETTINGS = {"shutdown_delay": 0.3, "min_delay": 0, "extend_delay": "false", "termination_period": 60}


def test_idle_and_silent_connections_are_gone_soon_after_the_drain_began(
    kind: str, serve: Serve, connect: Connect
) -> None:
    """With graceful_timeout 30 the server closes them within seconds of the drain's begin, and exits.

    Idle kept-alive connections, and ones that never sent a byte. Plain gthread 24 to 26 holds the former for all of
    graceful_timeout. ``python tests/benchmarks idle`` has the figure, which is below 2.5 s; here a busy machine gets 4.
    """
    server = serve(kind=kind, settings=SETTINGS, args=("--graceful-timeout", "30", "--keep-alive", "30"))
    memory = server.memory
    silent = [connect(server, timeout=40) for _ in range(3)]
    idle = [connect(server, timeout=40) for _ in range(3)] if kind != "sync" else []  # sync keeps none alive.
    for client in idle:
        assert client.get("/").headers["connection"] == "keep-alive"
    closed: list[int] = []

    def watch(client: Client) -> None:
        # Several at a time: gunicorn 26 and 27 wait up to 2 s for each client to close as well, one after the other.
        if client.at_end():
            closed.append(time.monotonic_ns())
        client.close()

    threads = [threading.Thread(target=watch, args=(client,)) for client in (*silent, *idle)]
    for thread in threads:
        thread.start()
    server.signal(signal.SIGTERM)
    for thread in threads:
        thread.join(45)
    assert len(closed) == len(threads), server.output
    drain = memory.cells[st.DRAIN]
    assert drain
    assert (max(closed) - drain) / st.NS < 4, server.output
    assert server.wait(10) == 0, server.output
