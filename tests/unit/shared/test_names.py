"""Which names in the environment nobody reads."""

from __future__ import annotations

import pytest

from gunicorn_grace.shared.names import told_of, told_of_late
from gunicorn_grace.shared.settings import NAMES

IGNORED = "environment variables that are no settings are ignored: "


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("GRACE_SHUTDOWN_DELY", "GRACE_SHUTDOWN_DELY (did you mean GRACE_SHUTDOWN_DELAY?)"),
        ("grace_shutdown_delay", "grace_shutdown_delay (did you mean GRACE_SHUTDOWN_DELAY?)"),
        (
            "GUNICORN_GRACE_SHUTDOWN_DELAY",
            "GUNICORN_GRACE_SHUTDOWN_DELAY (did you mean GRACE_SHUTDOWN_DELAY?)",
        ),
        ("GRACE_\x1b", r"GRACE_\x1b"),
        ("GRACE_HOPPER_URL", "GRACE_HOPPER_URL"),
        ("GRACE_PERIOD_DAYS", "GRACE_PERIOD_DAYS"),
        ("GRACE_SHUTDOWN_DELAY", None),
        ("GRACEFUL", None),
        ("GUNICORN_CMD_ARGS", None),
        ("GUNICORN_GRACE_WORKER", None),
        ("GUNICORN_GRACE_PROBE_FD", None),
        ("_GUNICORN_GRACE_COMPLETE", None),
        ("GRACE_SERVICE_HOST", None),
        ("GRACE_API_SERVICE_PORT_HTTP", None),
        ("GRACE_PORT", None),
        ("GRACE_API_PORT_80_TCP_ADDR", None),
    ],
)
def test_a_variable_that_is_no_setting_is_told(name: str, told: str | None) -> None:
    """With the nearest name, if there is one. What Kubernetes says about a Service called "grace",
    and what the plugin itself sets, is none of them."""
    assert told_of({name: "1", "PATH": "/bin"}) == (told and IGNORED + told)


def test_no_setting_is_told() -> None:
    """Whatever of them is set."""
    assert told_of({name.upper(): "1" for name in NAMES}) is None


def test_all_of_them_are_one_line() -> None:
    """In the order of their names."""
    assert told_of({"GRACE_Z": "", "GRACE_A": ""}) == f"{IGNORED}GRACE_A, GRACE_Z"


def test_settings_that_gunicorn_itself_sets_come_too_late() -> None:
    """They are told with the way out, unless the environment says the same."""
    line = told_of_late({"GRACE_MIN_DELAY": "3", "OTHER": "1"}, {})
    assert line is not None
    assert line.startswith("raw_env (--env) comes too late for GRACE_MIN_DELAY, ")
    assert line.endswith("set grace_min_delay in the configuration file")
    assert told_of_late({"GRACE_MIN_DELAY": "3"}, {"GRACE_MIN_DELAY": "3"}) is None
    assert told_of_late({"OTHER": "1"}, {}) is None
