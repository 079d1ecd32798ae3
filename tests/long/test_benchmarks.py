"""The benchmarks work: nobody would notice for months if one did not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.figures import BENCHMARKS, read
from support.paths import TESTS

pytestmark = [pytest.mark.long, pytest.mark.once]


@pytest.mark.parametrize("name", sorted(BENCHMARKS.keys() - {"instructions"}))
def test_a_benchmark_measures_what_the_page_shows(name: str, tmp_path: Path) -> None:
    """One round of one case gives rows of the columns that the whole benchmark gave; all but the
    counting of instructions, which needs valgrind."""
    file = tmp_path / "found.json"
    command = (sys.executable, TESTS / "long" / "benchmarks", "--brief", "--to", file, name)
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read(file)[name].rows
    shown = {row.case: row for row in read()[name].rows}
    for row in rows:
        assert all(row.values.values()), row
        if row.case in shown:
            assert row.values.keys() == shown[row.case].values.keys()
    assert f"| {rows[0].case} |" in done.stdout
