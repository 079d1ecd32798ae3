"""Which lines of an instance's output are boot warnings."""

from __future__ import annotations

import pytest

from gunicorn_grace.rehearsal.booting import boot_warnings
from gunicorn_grace.rehearsal.plan import PLAIN
from gunicorn_grace.rehearsal.report import text as report_text
from support.rehearsed import result

pytestmark = pytest.mark.once

LINES = [
    "[2026-11-27 18:36:16 +0000] [7] [INFO] Starting gunicorn 27.0.1",
    "[2026-11-27 18:36:16 +0000] [7] [WARNING] gunicorn-grace: grace_shutdown_delay 25 is too long",
    "[2026-11-27 18:36:16 +0000] [8] [ERROR] no such thing",
    "WARNING:  No supported WebSocket library detected.",
    "/app/main.py:3: DeprecationWarning: on_event is deprecated",
    "  @app.on_event('startup')",
    "an application's own words",
]


def test_each_warning_is_found_once() -> None:
    """gunicorn's lines, uvicorn's and Python's, without process ids, however many instances said
    them; what came after the boot is not one."""
    later = (9.0, "[2026-11-27 18:36:25 +0000] [8] [WARNING] too late")
    instance = [*((1.0, line) for line in LINES), later]
    assert boot_warnings([instance, instance], until=5.0) == [
        "WARNING: gunicorn-grace: grace_shutdown_delay 25 is too long",
        "ERROR: no such thing",
        "WARNING: No supported WebSocket library detected.",
        "WARNING: /app/main.py:3: DeprecationWarning: on_event is deprecated",
    ]


def test_boot_warnings_are_notes() -> None:
    """With the contender's name, unless all of them said it; many are cut short."""
    both, ours = "WARNING: of the application's", "ERROR: of the plugin's"
    found = report_text.notes(
        [
            result(PLAIN, boot_warnings=(both,)),
            result(boot_warnings=(both, ours)),
        ]
    )
    assert found == [f"at boot, {both}", f"gunicorn-grace: at boot, {ours}"]
    many = tuple(f"WARNING: {n}" for n in range(9))
    assert report_text.notes([result(boot_warnings=many)])[-1] == (
        "at boot, 4 more warnings and errors; --json has them all."
    )
