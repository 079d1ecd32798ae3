"""A line at boot names what would keep SIGTERM from gunicorn, and nothing else makes it."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

from support.paths import APPS
from support.servers import GRACE, SHORT, Serve

pytestmark = pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc here")

WAITS = ("sh", "-c", '"$@"; true', "sh")
"""A shell that waits for its command, and does not become it."""

ON_ITS_WAY = ("sh", "-c", "trap 'kill $child' TERM; \"$@\" & child=$!; wait $child; wait", "sh")
"""One that passes SIGTERM on."""

FIRST = "the first process of this container is a shell"
PARENT = "a shell waits for gunicorn"


def _first() -> str:
    try:
        return Path("/proc/1/comm").read_text().strip()
    except OSError:
        return ""


outside_a_shell = pytest.mark.skipif(
    _first() in ("sh", "bash", "dash"), reason="the first process here is a shell, and is named"
)


@outside_a_shell
def test_a_shell_that_is_the_parent_is_named_with_the_cure(serve: Serve) -> None:
    """One line, with exec in it."""
    server = serve(executable_prefix=WAITS, settings=SHORT)
    line = server.wait_line(PARENT)
    assert "WARNING" in line
    assert "(sh, pid " in line
    assert "`exec gunicorn`" in line
    assert FIRST not in server.output


@pytest.mark.long
def test_a_shell_that_is_pid_1_is_named_with_the_cure(
    serve: Serve, container: tuple[str, ...]
) -> None:
    """One line, although it is the parent as well."""
    server = serve(executable_prefix=(*container, *WAITS), settings=SHORT)
    line = server.wait_line(FIRST)
    assert "WARNING" in line
    assert "`exec gunicorn`" in line
    assert PARENT not in server.output


@outside_a_shell
@pytest.mark.long
@pytest.mark.parametrize("how", ["no shell", "trap", "background", "systemd", "pid 1 with a trap"])
def test_there_is_no_false_alarm(how: str, serve: Serve, request: pytest.FixtureRequest) -> None:
    """Not for a shell that catches SIGTERM, nor for one that does not wait, nor under systemd,
    which signals the whole unit."""
    prefix: tuple[str, ...] = {
        "no shell": (),
        "trap": ON_ITS_WAY,
        "background": ("sh", "-c", '"$@" & wait', "sh"),
        "systemd": WAITS,
        "pid 1 with a trap": ON_ITS_WAY,
    }[how]
    if how.startswith("pid 1"):
        prefix = (*request.getfixturevalue("container"), *prefix)
    env = {"INVOCATION_ID": "0123"} if how == "systemd" else {}
    server = serve(executable_prefix=prefix, settings=SHORT, env=env)
    assert FIRST not in server.output
    assert PARENT not in server.output


@outside_a_shell
def test_a_persons_shell_in_a_terminal_is_no_alarm(tmp_path: Path) -> None:
    """An interactive shell ignores SIGTERM, and a script that is run in a terminal is stopped from
    there."""
    main, terminal = pty.openpty()
    gunicorn = [sys.executable, "-m", "gunicorn", *GRACE, "-b", "127.0.0.1:0", "service:app"]
    with subprocess.Popen(
        ["sh", "-c", '"$@"; true', "sh", *gunicorn],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=lambda: _take_terminal(terminal),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(APPS)},
    ) as shell:
        os.close(terminal)
        said = b""
        while b"Booting worker" not in said:
            said += os.read(main, 65536)
        os.write(main, b"\x03")
        shell.wait(20)
    os.close(main)
    assert PARENT.encode() not in said
    assert FIRST.encode() not in said


def _take_terminal(terminal: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)


def test_sigterm_taken_out_of_gunicorns_signals_is_named(serve: Serve, tmp_path: Path) -> None:
    """One line says that there will be no delay."""
    (tmp_path / "conf.py").write_text(
        "import signal\n"
        "from gunicorn.arbiter import Arbiter\n"
        "from gunicorn_grace.conf import *\n"
        "Arbiter.SIGNALS = [sig for sig in Arbiter.SIGNALS if sig != signal.SIGTERM]\n"
    )
    server = serve(config=("-c", "conf.py"), settings=SHORT)
    assert "Arbiter.SIGNALS.append" in server.wait_line("SIGTERM is not in Arbiter.SIGNALS")
