"""Waiting for an old instance that shuts down at the same addresses. Runs in the arbiter of the new
instance, before it binds.

A deploy script ends the old gunicorn, waits for two seconds, and starts the new one. A plain
gunicorn has closed its listeners by then. An instance with a delay still serves, so the new one
would try to bind for five seconds and give up. Then the old instance would end too, and nobody
would serve. So the new arbiter asks the old one to end its delay, and binds when the old one has
emptied and shut its listeners. It does not wait for the requests that the old one has in flight.

It asks only an instance of its own user that was told to stop. Any other process keeps the address,
and gunicorn reports that as ever.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
import time
from typing import Any

from ..shared.cells import NS
from ..shared.instances import Instance, lives, search
from ..shared.settings import Settings, address_of

LOOK = 0.02
"""Seconds between two attempts to bind."""

UNKNOWN_DEADLINE = 60.0
"""Seconds to wait for an old instance without a known deadline."""

_LISTEN = "0A"
"""``TCP_LISTEN`` in /proc/net/tcp (<net/tcp_states.h>)."""

_INHERITED = ("GUNICORN_FD", "LISTEN_FDS")
"""Environment variables that hand sockets to gunicorn (22.0 to 27.0)."""


def wait(arbiter: Any) -> None:
    """Wait until the addresses and the pid file are free, if an instance that shuts down has them.
    The wait ends at that instance's deadline, or after :data:`UNKNOWN_DEADLINE`.

    :param arbiter: gunicorn's arbiter, which has loaded its configuration.
    """
    cfg = arbiter.cfg
    if sys.platform != "linux" or any(map(os.environ.get, _INHERITED)):
        return
    wanted = [] if cfg.reuse_port else list(cfg.address)
    if (probe_port := Settings.of(cfg).probe_bind) is not None:
        wanted.append(address_of(probe_port))
    places = [address for address in wanted if isinstance(address, tuple) and address[1]]
    asked: dict[int, float] = {}
    while taken := [place for place in places if not _is_free(place)] or _owner_of(cfg.pidfile):
        found = search()
        try:
            leaving = [
                instance
                for instance in found.instances
                if instance.pid not in asked and _leaves(instance, taken)
            ]
            for instance in leaving:
                asked[instance.pid] = _ask(instance, taken, arbiter.log)
        finally:
            found.close()
        until = max((asked[pid] for pid in asked if lives(pid)), default=0.0)
        if time.monotonic() >= until:
            return  # Another process has them. gunicorn reports that.
        again = time.monotonic() + 25 * LOOK
        while time.monotonic() < again and any(not _is_free(place) for place in places):
            time.sleep(LOOK)
        time.sleep(LOOK)


def _is_free(place: tuple[str, int]) -> bool:
    host, port = place
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), port))
    except OSError as error:
        return error.errno != errno.EADDRINUSE  # gunicorn reports any other error.
    return True


def _owner_of(pidfile: str | None) -> int:
    """Return the pid in a pid file, if another process with that pid is alive; otherwise 0."""
    with contextlib.suppress(OSError, ValueError, TypeError):
        with open(pidfile or "", encoding="ascii") as lines:
            pid = int(lines.read())
        return pid if pid != os.getpid() and lives(pid) else 0
    return 0


def _leaves(instance: Instance, taken: list[tuple[str, int]] | int) -> bool:
    """Whether an instance was told to stop and has the addresses, or the pid file, that we need."""
    memory = instance.memory
    if memory is None or not memory.header.sigterm or instance.pid == os.getpid():
        return False
    if isinstance(taken, int):
        return instance.pid == taken
    return bool(_listening({port for _, port in taken}) & _sockets(instance.pid))


def _ask(instance: Instance, taken: list[tuple[str, int]] | int, log: Any) -> float:
    """Ask an instance to end its delay.

    :returns: until when to wait for it, in seconds on the monotonic clock.
    """
    assert instance.memory is not None
    header = instance.memory.header
    header.successor = time.monotonic_ns()
    what = (
        "the pid file"
        if isinstance(taken, int)
        else ", ".join(f"{host}:{port}" for host, port in taken)
    )
    log.info(
        "gunicorn-grace: arbiter %d, which is shutting down, has %s: its delay ends now, and this "
        "instance listens as soon as nothing waits there any more",
        instance.pid,
        what,
    )
    deadline = header.deadline / NS
    return deadline if deadline else time.monotonic() + UNKNOWN_DEADLINE


def _listening(ports: set[int]) -> set[str]:
    """Return the inodes of the TCP sockets that listen on these ports."""
    found = set()
    for name in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open(f"/proc/net/{name}", encoding="ascii") as lines:
            for line in list(lines)[1:]:
                cells = line.split()
                if cells[3] == _LISTEN and int(cells[1].rpartition(":")[2], 16) in ports:
                    found.add(cells[9])
    return found


def _sockets(pid: int) -> set[str]:
    """Return the inodes of the sockets that a process has open."""
    found = set()
    folder = f"/proc/{pid}/fd"
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            with contextlib.suppress(OSError):
                link = os.readlink(f"{folder}/{name}")
                if link.startswith("socket:["):
                    found.add(link[len("socket:[") : -1])
    return found
