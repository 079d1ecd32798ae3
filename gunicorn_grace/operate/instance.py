"""The instance that a command acts on: found by its shared memory, without configuration.

A command runs in the container of the instance. It needs no HTTP and no free worker.
"""

from __future__ import annotations

import sys

from ..errors import StateError
from ..shared.memory import Memory, instances

LOOK = 0.05
"""Seconds between two looks into the shared memory."""


def find(pid: int | None) -> Memory:
    """The memory of one instance.

    :param pid: its arbiter; ``None`` for the only instance there is.
    :raises StateError: there is none, or more than one, or it is not readable.
    """
    if not sys.platform.startswith("linux"):
        raise StateError(
            f"this command needs Linux (memfd), and this is {sys.platform}: "
            "use ?down=true or SIGTERM"
        )
    found: dict[int, Memory] = {}
    broken: list[str] = []
    for path in instances():
        try:
            memory = Memory.open(path)
        except (StateError, OSError) as error:
            broken.append(str(error))
        else:
            found[memory.header.arbiter] = memory
    if pid is not None:
        chosen = found.pop(pid, None)
        for other in found.values():
            other.close()
        if chosen is None:
            known = ", ".join(map(str, sorted(found))) or "none"
            raise StateError(
                f"no instance with arbiter {pid} that this user may open; found: {known}"
            )
        return chosen
    if len(found) > 1:
        arbiters = ", ".join(map(str, sorted(found)))
        raise StateError(f"{len(found)} instances, arbiters {arbiters}: choose with --pid")
    if not found:
        why = f" ({broken[0]})" if broken else ""
        raise StateError(
            f"no gunicorn with gunicorn-grace that this user may open{why}: "
            "run it as the arbiter's user"
        )
    return next(iter(found.values()))


def lives(pid: int) -> bool:
    """Whether a process runs, and is not a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="latin-1") as stream:
            return stream.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
