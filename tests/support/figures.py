"""The figures of ``tox -e bench``: what a run has written down, and the tables that the docs show of them.

The benchmarks write :data:`FILE`; ``tests/house/test_docs.py`` renders it. Nothing else has a figure
of them, so that a page and the run behind it cannot part.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from support.paths import DOCS

FILE = DOCS / "reference" / "benchmarks.json"

PLAIN, GRACE, SLEEP, BARE = "plain gunicorn", "the plugin", "`preStop: sleep`", "a bare socket"
"""Who is measured: the columns of the tables, in this order."""

RATIO, DIFFERENCE = "ratio", "difference"

BENCHMARKS = {
    "cpu": RATIO,
    "instructions": RATIO,
    "probe": "",
    "memory": DIFFERENCE,
    "flip": "",
    "exit": "",
    "idle": "",
    "probe-port": "",
    "rehearsals": "",
    "load": "",
}
"""What is measured, and how the plugin is compared with plain gunicorn: round by round, since the
two are measured in turns."""


@dataclass(frozen=True)
class Row:
    """One line of a table.

    :ivar case: the first column.
    :ivar unit: of every value.
    :ivar values: by contender, one value for each round. None stands for "no answer".
    """

    case: str
    unit: str
    values: Mapping[str, Sequence[float | None]]

    def compared(self, way: str) -> list[float]:
        """The plugin over plain gunicorn, or minus it, round by round."""
        pairs = zip(self.values.get(GRACE, ()), self.values.get(PLAIN, ()), strict=False)
        whole = [(ours, plain) for ours, plain in pairs if ours is not None and plain is not None]
        return [ours / plain if way == RATIO else ours - plain for ours, plain in whole]


@dataclass(frozen=True)
class Figures:
    """What one benchmark found.

    :ivar date: the day, ISO 8601.
    :ivar machine: what it ran on, see :func:`machine`.
    :ivar rows: the lines of its table.
    """

    date: str
    machine: Mapping[str, str]
    rows: Sequence[Row]


def machine() -> dict[str, str]:
    """What this is measured on, and how busy it was before."""
    processor = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    total = re.search(r"^MemTotal:\s*(\d+) kB$", Path("/proc/meminfo").read_text(), re.M)
    return {
        "processors": str(len(os.sched_getaffinity(0))),
        "kind": processor[1] if processor else platform.machine(),
        "memory": f"{int(total[1]) / 1024**2:.0f} GiB" if total else "unknown",
        "kernel": platform.release().partition("-")[0],
        "python": platform.python_version(),
        "gunicorn": version("gunicorn"),
        "load": f"{os.getloadavg()[0]:.1f}",
    }


def record(name: str, rows: Sequence[Row], seen: Mapping[str, str], to: Path) -> None:
    """Write what a benchmark found into the file, in place of what it found before."""
    found = read(to) if to.exists() else {}
    rounded = [
        Row(row.case, row.unit, {who: [*map(_rounded, got)] for who, got in row.values.items()})
        for row in rows
    ]
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    found[name] = Figures(today, dict(seen), rounded)
    text = json.dumps({key: asdict(found[key]) for key in sorted(found)}, indent=1)
    # A list of numbers on one line each: what changed is then seen in a diff.
    text = re.sub(r"\[\s+((?:[-\d.e]+|null)(?:,\s+(?:[-\d.e]+|null))*)\s+\]", _on_one_line, text)
    to.write_text(text + "\n", encoding="utf-8")


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _on_one_line(found: re.Match[str]) -> str:
    return "[" + re.sub(r"\s+", " ", found[1]) + "]"


def read(path: Path = FILE) -> dict[str, Figures]:
    """What was found, by benchmark."""
    found = json.loads(path.read_text(encoding="utf-8"))
    return {
        name: Figures(
            **{**figures, "rows": [Row(**row) for row in figures["rows"]]},
        )
        for name, figures in found.items()
    }


# -- tables ----


def table(name: str, path: Path = FILE) -> str:
    """The table of a benchmark, with the day and the machine below it."""
    found, compared = read(path)[name], BENCHMARKS[name]
    there = [
        who for who in (PLAIN, SLEEP, GRACE, BARE) if any(who in row.values for row in found.rows)
    ]
    last = {RATIO: "plugin over plain", DIFFERENCE: "plugin minus plain"}.get(compared)
    lines = [["", *there, *([last] if last else ())]]
    for row in found.rows:
        cells = [shown(row.values.get(who, ()), row.unit) for who in there]
        if compared == RATIO:
            cells.append(shown(row.compared(RATIO), "", digits=3))
        elif compared:
            cells.append(shown(row.compared(DIFFERENCE), row.unit))
        lines.append([row.case, *cells])
    lines.insert(1, ["---"] * len(lines[0]))
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{body}\n\n{where(found)}"


def where(found: Figures) -> str:
    """The rounds, the day and the machine of a benchmark, in a sentence."""
    rounds = sorted({len(got) for row in found.rows for got in row.values.values()})
    times = f"{rounds[0]}" if len(rounds) == 1 else f"{rounds[0]} to {rounds[-1]}"
    seen = found.machine
    return (
        f"{times} rounds, {found.date}, gunicorn {seen['gunicorn']}, Python {seen['python']}, "
        f"load {seen['load']} before."
    )


def machines() -> str:
    """The machines of all benchmarks, a line each."""
    lines = {
        f"- {seen['processors']} processors ({seen['kind']}), {seen['memory']} of memory, "
        f"Linux {seen['kernel']}"
        for seen in (found.machine for found in read().values())
    }
    return "\n".join(sorted(lines))


def shown(values: Sequence[float | None], unit: str, digits: int | None = None) -> str:
    """The median, and between which values the middle half of the rounds lies."""
    answered = [value for value in values if value is not None]
    if not answered:
        return "no answer" if values else ""
    if digits is None:
        digits = digits_of(statistics.median(answered))
    low, middle, high = (f"{value:,.{digits}f}" for value in quartiles(answered))
    unit = f" {unit}" if unit else ""
    return f"{middle}{unit}" + (f" ({low} to {high})" if low != high else "")


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The lower quartile, the median, and the upper quartile."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def digits_of(size: float) -> int:
    """How many decimals give a value of this size three digits; none for a whole number."""
    if size == int(size):
        return 0
    return min(2, max(0, 2 - math.floor(math.log10(abs(size)))))


def summary() -> str:
    """The table of the README: medians, a line for each benchmark that a newcomer asks about."""
    found = read()
    kinds = ", ".join(row.case for row in found["exit"].rows)
    ratios = [statistics.median(row.compared(RATIO)) for row in found["cpu"].rows]
    (flip,) = [row for row in found["flip"].rows if row.case == "16 workers"]
    (answered,) = [row for row in found["probe-port"].rows if row.case == "the probe port, median"]
    lines = [
        ("figure", "measured"),
        ("---", "---"),
        (
            f"CPU time a request, plugin over plain gunicorn: {kinds}",
            ", ".join(f"{ratio:.3f}" for ratio in ratios[: len(found["exit"].rows)]),
        ),
        ("SIGTERM until the last of 16 workers sees the shutdown", median(flip)),
        (
            f"exit after the delay and the longest request: {kinds}",
            ", ".join(map(median, found["exit"].rows)),
        ),
        (
            "the same, plain gunicorn after a sleep of the same length",
            ", ".join(median(row, SLEEP) for row in found["exit"].rows),
        ),
        (
            "the drain's beginning until idle and silent connections are closed: "
            + ", ".join(row.case for row in found["idle"].rows),
            ", ".join(map(median, found["idle"].rows)),
        ),
        ("a probe at the probe port while all workers are busy", median(answered)),
    ]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def median(row: Row, who: str = GRACE) -> str:
    """The median with its unit."""
    return shown(
        [statistics.median(value for value in row.values[who] if value is not None)], row.unit
    )
