"""The signals of a process and its classes by name. It imports nothing of the plugin's."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any


def name_of(value: Any) -> str:
    """Where a function or a class is from."""
    inner = getattr(value, "__func__", value)
    return f"{getattr(inner, '__module__', '')}.{getattr(inner, '__qualname__', inner)}"


def signals() -> dict[str, str]:
    """The handlers of this process, and what the kernel knows of them."""
    found = {
        number.name: name_of(signal.getsignal(number))
        for number in signal.valid_signals()
        if isinstance(number, signal.Signals)
    }
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(("SigBlk", "SigIgn", "SigCgt")):
            found[line.partition(":")[0]] = line.split()[1]
    return found


def classes(thing: Any) -> list[str]:
    """The class of a thing, and what that is derived from."""
    return [name_of(cls) for cls in type(thing).__mro__]
