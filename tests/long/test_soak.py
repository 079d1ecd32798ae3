"""The soak in its short form; the long one is ``python tests/long/soak.py``."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

SOAK = Path(__file__).with_name("soak.py")


def soak(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SOAK), "--limit", "60", *args],
        capture_output=True,
        text=True,
        timeout=170,
    )


def test_six_deletions_in_a_row_lose_nothing(tmp_path: Path) -> None:
    """Two for each worker class, one after the other under load: exit code 0, and the tally says
    so."""
    run = soak("--deletions", "6", "--requests", "600", "--seed", "3", "--logs", str(tmp_path))
    assert run.returncode == 0, run.stdout + run.stderr
    assert "soak: seed 3, 6 deletions, 600 requests" in run.stdout
    tally = re.search(r"lost: 0 of (\d+) in 6 deletions", run.stdout)
    assert tally, run.stdout
    assert int(tally[1]) >= 600
    assert "exit code 0: 6" in run.stdout
    awkward = re.search(
        r"awkward clients: .*; without a complete response: (\d+)$", run.stdout, re.MULTILINE
    )
    assert awkward, run.stdout
    assert awkward[1] == "0"
    assert re.search(r"unread bodies \d+", awkward[0])
    assert re.search(r"lazy clients \d+", awkward[0])
    came = re.search(r"(\d+) of them came to an instance that was being deleted", run.stdout)
    assert came, run.stdout
    assert int(came[1]) > 0


def test_the_soak_sees_what_plain_gunicorn_loses(tmp_path: Path) -> None:
    """The same without the plugin: exit code 1, and each loss is told with its moment."""
    run = soak(
        "--deletions", "3", "--requests", "300", "--seed", "3", "--plain", "--logs", str(tmp_path)
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert re.search(r"lost: \w+ .* (reset|refused) .* s from deletion", run.stdout), run.stdout
    assert list(tmp_path.glob("*.log")), "the logs of the instances that lost something are kept"
