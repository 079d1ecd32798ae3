"""What happens when a worker has died and no other can take its place: gunicorn halts, but not in a
shutdown.

``docs/reference/faults.md`` is the table of all faults. ``Server.assert_gone`` says what must hold after each
of them.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from gunicorn_grace.shared.phase import Phase
from support.servers import HOLD, SHORT, Connect, Serve, Server, booted_in

NO_FORK = """
import os, sys
from gunicorn_grace.conf import *
real_fork = os.fork
def fork():
    if os.path.exists({flag!r}):
        sys.stderr.write("there is no fork\\n")
        raise BlockingIOError(11, "Resource temporarily unavailable")
    return real_fork()
os.fork = fork
"""

HOOK = """
import os, sys
import gunicorn_grace
def {hook}(server, worker):
    if os.path.exists({flag!r}):
        sys.stderr.write("the hook raises\\n")
        raise RuntimeError("raised by a hook")
gunicorn_grace.install(globals())
"""

IRREPLACEABLE = {
    "application raises": ("", "raises", "RuntimeError: broken on purpose", 3),
    "application is gone": ("", "nothing", "Failed to find attribute 'app'", 4),
    "post_fork raises": (HOOK.replace("{hook}", "post_fork"), "", "the hook raises", 3),
    "pre_fork raises": (HOOK.replace("{hook}", "pre_fork"), "", "the hook raises", 255),
    "fork fails": (NO_FORK, "", "there is no fork", 255),
}
"""What a configuration file holds and what the flag file says; the line that shows it, and how
gunicorn then halts."""


def start_irreplaceable(
    how: str, serve: Serve, tmp_path: Path, **settings: object
) -> tuple[Server, Path]:
    """An instance with two workers of which none can be replaced once the flag file exists."""
    config, _, _, _ = IRREPLACEABLE[how]
    flag = tmp_path / "flag"
    (tmp_path / "conf.py").write_text(
        config.format(flag=str(flag)) or "from gunicorn_grace.conf import *\n"
    )
    server = serve(
        "broken_import:app",
        args=("-k", "sync", "-w", "2"),
        config=("-c", "conf.py"),
        env={"BROKEN_FLAG": str(flag)},
        settings={**HOLD, **settings},
    )
    server.wait_booted(2)
    return server, flag


@pytest.mark.long(but="application raises")
@pytest.mark.parametrize("how", IRREPLACEABLE)
def test_a_worker_that_cannot_be_replaced_in_lame_duck_halts_nothing(
    how: str, serve: Serve, connect: Connect, tmp_path: Path
) -> None:
    """gunicorn would halt, and cut off what the others serve; here they serve to the end of the
    delay."""
    _, content, line, _ = IRREPLACEABLE[how]
    server, flag = start_irreplaceable(how, serve, tmp_path)
    busy = connect(server)
    busy.send("/slow?s=2")
    spared = server.wait_pid("slow request begins in ")
    server.lead_to(Phase.LAME_DUCK)
    flag.write_text(content)
    (victim,) = set(booted_in(server.memory)) - {spared}
    os.kill(victim, signal.SIGKILL)
    server.wait_line(line, 20)
    assert busy.receive().status == 200
    busy.close()
    assert server.memory.header.phase == Phase.LAME_DUCK
    assert {server.get("/").status for _ in range(8)} == {200}
    server.terminate()
    flag.unlink()
    server.assert_gone()
    assert "0 cut off" in server.summary()


@pytest.mark.long
@pytest.mark.parametrize("how", IRREPLACEABLE)
def test_a_worker_that_cannot_be_replaced_while_serving_halts_gunicorn_as_ever(
    how: str, serve: Serve, tmp_path: Path
) -> None:
    """Outside a shutdown it is gunicorn's own decision: it halts, with its own exit code, and
    nothing stays behind."""
    _, content, line, code = IRREPLACEABLE[how]
    server, flag = start_irreplaceable(how, serve, tmp_path)
    flag.write_text(content)
    os.kill(booted_in(server.memory)[0], signal.SIGKILL)
    server.wait_line(line, 20)
    assert server.wait_exit(20)
    flag.unlink()
    server.assert_gone(code)


@pytest.mark.long
def test_workers_are_replaced_again_after_an_undrain(serve: Serve, tmp_path: Path) -> None:
    """A fork that failed during an operator's drain is not a reason to fork none once the instance
    serves again."""
    server, flag = start_irreplaceable("fork fails", serve, tmp_path)
    memory = server.memory
    assert memory.trigger(4)
    server.wait_phase(Phase.LAME_DUCK)
    flag.touch()
    os.kill(booted_in(memory)[0], signal.SIGKILL)
    server.wait_line("there is no fork")
    flag.unlink()
    memory.header.undrain = time.monotonic_ns()
    server.wait_line("undrained")
    server.wait_booted(2)
    server.lead_to(Phase.LAME_DUCK)
    server.terminate()
    server.assert_gone()


@pytest.mark.long
def test_with_no_worker_left_and_none_to_be_had_it_ends(serve: Serve, tmp_path: Path) -> None:
    """Nobody could serve to the end of the delay: gunicorn halts, as it does outside a shutdown."""
    server, flag = start_irreplaceable("fork fails", serve, tmp_path)
    server.lead_to(Phase.LAME_DUCK)
    flag.touch()
    for pid in booted_in(server.memory):
        os.kill(pid, signal.SIGKILL)
    assert server.wait_exit(20), server.output
    flag.unlink()
    server.assert_gone(255)


def test_an_arbiter_that_gevent_has_patched_notices_that_workers_end(
    serve: Serve, tmp_path: Path
) -> None:
    """With preload_app and monkey.patch_all() in the application, gevent takes SIGCHLD: a killed
    worker is replaced all the same, before T0 and after it, and the exit does not wait for the
    drain limit."""
    pytest.importorskip("gevent")
    server = serve(
        "patched:app",
        args=("-k", "gevent", "-w", "2", "--preload"),
        settings=SHORT | {"shutdown_delay": 3, "termination_period": 60},
    )
    for phase in (Phase.SERVING, Phase.LAME_DUCK):
        before = set(server.wait_booted(2))
        if phase is Phase.LAME_DUCK:
            server.terminate()
            server.wait_phase(phase)
        os.kill(min(before), signal.SIGKILL)
        server.wait_for(lambda old=before: set(booted_in(server.memory)) - old, "a new worker")
        assert server.memory.header.phase == phase
        assert server.get("/").status == 200
    server.assert_gone()
    assert server.sent is not None
    assert server.exit_time is not None
    assert server.exit_time - server.sent < 15, "and not after 58 s"
    assert "drained" in server.output
