"""What the README's command runs proves each guarantee and each event, and says what it left
out."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from support.paths import DOCS, ROOT
from support.servers import WORKERS

pytestmark = pytest.mark.once


def collected(*args: str) -> subprocess.CompletedProcess[str]:
    """What pytest would run in a process of its own."""
    command = [
        sys.executable,
        "-I",
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        *args,
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)


@pytest.fixture(scope="module")
def run() -> dict[str, set[str]]:
    """The ids of the variants that run, by test."""
    found: dict[str, set[str]] = {}
    for name, variant in re.findall(
        r"::(test_\w+)(?:\[(.*)\])?$", collected("tests/functional").stdout, re.M
    ):
        found.setdefault(name, set()).add(variant)
    return found


def rows(page: str, head: str) -> dict[str, list[str]]:
    """The tests that prove each row of the table whose first heading this is."""
    text = (DOCS / page).read_text(encoding="utf-8")
    (body,) = re.findall(rf"^\| {head} \|.* proved by \|\n\|[-|]+\n((?:\|.*\n)+)", text, re.M)
    found = (row.strip("|").split("|") for row in body.splitlines())
    return {cells[0].strip(): re.findall(r"`(test_\w+)`", cells[-1]) for cells in found}


def test_every_guarantee_is_proved_with_each_worker_class(run: dict[str, set[str]]) -> None:
    """The four of the README, each by tests that run with sync, gthread and gevent."""
    guarantees = rows("reference/evidence.md", "guarantee")
    assert (
        len(guarantees)
        == len(re.findall(r"^\d\. ", (ROOT / "README.md").read_text(encoding="utf-8"), re.M))
        == 4
    )
    for guarantee, tests in guarantees.items():
        assert tests, guarantee
        for test in tests:
            kinds = {
                kind
                for kind in WORKERS
                for variant in run.get(test, ())
                if kind in variant.split("-")
            }
            assert kinds == set(WORKERS), f"{guarantee}: {test} runs with {sorted(kinds)}"


@pytest.mark.parametrize(
    ("page", "head"), [("reference/events.md", "event"), ("explanation/sealing.md", "listener")]
)
def test_every_event_and_listener_is_proved(page: str, head: str, run: dict[str, set[str]]) -> None:
    """Each row of these tables names its tests, and one variant of each at least is not left
    out."""
    for row, tests in rows(page, head).items():
        assert tests, row
        assert [test for test in tests if test not in run] == [], row


def test_the_last_line_says_what_was_left_out() -> None:
    """Whoever has run the short form knows that it was one, and how the rest is run."""
    last = collected("tests/unit/test_phase.py").stdout.splitlines()[-1]
    assert "long" in last
    assert "tox" in last
    assert "Left out" not in collected("-m", "", "tests/unit/test_phase.py").stdout
