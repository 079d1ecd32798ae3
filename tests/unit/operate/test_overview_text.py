"""The table of `gunicorn-grace status`."""

from __future__ import annotations

import time

import pytest

from gunicorn_grace.operate.overview import Status
from gunicorn_grace.operate.overview_text import table
from gunicorn_grace.shared.phase import Phase


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (3, "3.0 s"),
        (-5, "0.0 s"),
        (90, "90 s"),
        (600, "10 min"),
        (3 * 3600, "3 h"),
        (40 * 3600, "40 h"),
        (5 * 86400, "5 d"),
    ],
)
def test_a_duration_has_the_unit_that_a_person_would_use(seconds: float, shown: str) -> None:
    """Of an arbiter that started so long ago; a clock that was set back does not show."""
    one = Status(7, "/srv", ("gunicorn", "a:a"), time.time() - seconds, None, phase=Phase.SERVING)
    assert table([one]).splitlines()[1].endswith(f"up {shown}")


def test_a_memory_that_cannot_be_read_says_why() -> None:
    """Only the process is known then."""
    assert table([Status(7, None, ("gunicorn", "a:a"), None, "not gunicorn-grace")]) == (
        "arbiter 7: gunicorn a:a in -\n  cannot be read: not gunicorn-grace"
    )


def test_an_instance_that_the_plugin_left_says_so() -> None:
    """And one whose requests are not counted."""
    one = Status(7, "/srv", ("gunicorn",), None, None, phase=Phase.SERVING, has_given_up=True)
    lines = table([one]).splitlines()
    assert lines[3:] == [
        "  its requests are not counted",
        "  the plugin has given up: gunicorn shuts down by itself",
    ]
