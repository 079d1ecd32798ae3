"""Programs that start gunicorn in Python: each way to switch the plugin on works, or a line says
what to write instead."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from gunicorn_grace.rehearsal.errors import InstanceFailed
from support.servers import Serve, Server

WORKING = (
    "first",
    "before",
    "after",
    "import",
    "import-in-first",
    "import-in-before",
    "config",
    "late",
)


def embedded(serve: Serve, way: str, **options: Any) -> Server:
    """The program, started."""
    return serve(program=("embedded.py", way), config=(), **options)


@pytest.mark.ends
@pytest.mark.parametrize("way", WORKING)
def test_a_program_switches_it_on_and_sets_it(way: str, serve: Serve) -> None:
    """Wherever the program asks for it and sets its settings, before or after: both count, and
    readiness is red for the delay. After SIGHUP they still do."""
    server = embedded(serve, way)
    assert server.get("/readyz").status == 200
    server.wait_line("lame duck 0.25 s")
    seen = server.mark()
    server.signal(signal.SIGHUP)
    server.wait_line("Booting worker", after=seen)
    server.wait_ready()
    server.terminate()
    assert server.wait(20) == 0, server.output
    server.wait_line("shutdown_initiated by SIGTERM: not ready for 0.25 s")
    assert "it is imported and not switched on" not in server.output
    assert "failed" not in server.output


@pytest.mark.once
@pytest.mark.parametrize("way", ["first", "before", "import"])
def test_a_program_is_asked_again_at_sighup(way: str, serve: Serve, tmp_path: Path) -> None:
    """What the program sets while its configuration is loaded may be another value after SIGHUP."""
    server = embedded(serve, way)
    server.wait_line("lame duck 0.25 s")
    (tmp_path / "delay").write_text("0.75")
    server.signal(signal.SIGHUP)
    server.wait_line("lame duck 0.75 s")


HOOKS = (
    "on_starting",
    "pre_fork",
    "post_fork",
    "post_worker_init",
    "pre_request",
    "post_request",
    "on_reload",
    "child_exit",
    "worker_int",
    "on_exit",
)


@pytest.mark.ends
@pytest.mark.parametrize("way", ["first", "before", "import", "import-in-before"])
def test_every_hook_of_a_program_is_called_beside_ours(way: str, serve: Serve) -> None:
    """Set before or after the plugin is switched on: each is called, and ours do their part."""
    server = embedded(serve, way, env={"HOOKS": " ".join(HOOKS)})
    assert server.get("/").status == 200
    server.wait_line("hook post_request")
    seen = server.mark()
    server.signal(signal.SIGHUP)
    server.wait_line("hook on_reload", after=seen)
    server.wait_line("hook post_worker_init", after=seen)
    server.wait_for(lambda: server.get("/readyz").status == 200, "readiness")
    server.signal(signal.SIGINT)
    assert server.wait(20) == 0, server.output
    for hook in HOOKS:
        assert f"hook {hook}" in server.output, server.output


@pytest.mark.once
def test_the_environment_of_a_program_may_ask_for_it(serve: Serve) -> None:
    """gunicorn reads GUNICORN_CMD_ARGS in its own command alone; here it is taken at its word, and
    a line says what it does not do."""
    server = embedded(
        serve,
        "nothing",
        env={
            "GUNICORN_CMD_ARGS": "-c python:gunicorn_grace.conf",
            "GRACE_SHUTDOWN_DELAY": "0.25",
            "GRACE_EXTEND_DELAY": "false",
        },
    )
    server.wait_line("switched on, because GUNICORN_CMD_ARGS names it.*no gunicorn.conf.py counts")
    server.terminate()
    assert server.wait(20) == 0, server.output
    server.wait_line("shutdown_initiated")


@pytest.mark.ends
@pytest.mark.parametrize(
    ("way", "env", "words"),
    [
        ("nothing", {}, "it is imported and not switched on, so a shutdown loses requests"),
        ("too-late", {}, "it was to be switched on when gunicorn had already started"),
        ("nothing", {"IMPORT_IN_WORKER": "1"}, "it was to be switched on when gunicorn had"),
    ],
    ids=["nothing", "when-ready", "worker"],
)
def test_a_program_that_does_not_switch_it_on_is_told(
    way: str, env: dict[str, str], words: str, serve: Serve
) -> None:
    """One line in the log says so, and what to write instead; the program serves and ends as it
    would without the package."""
    server = embedded(serve, way, env=env)
    line = server.wait_line(words)
    assert "WARNING" in line
    assert "gunicorn_grace.install(self.cfg)" in line
    assert "-c python:gunicorn_grace.conf" in line
    assert server.get("/readyz").body == b"ok"
    server.terminate()
    assert server.wait(20) == 0, server.output
    assert "shutdown_initiated" not in server.output


@pytest.mark.once
def test_a_wrong_name_in_a_program_is_refused(serve: Serve) -> None:
    """Also where the program leaves out what no setting has, as gunicorn's documentation does, and
    before it has switched the plugin on."""
    with pytest.raises(InstanceFailed) as failed:
        embedded(serve, "wrong")
    output = str(failed.value.output)
    assert re.search("grace_shutdown_dely.*did you mean grace_shutdown_delay", output), output
    assert "Traceback" not in output


PLAIN = "python:gunicorn_grace.rehearsal.command.plain"


@pytest.mark.once
def test_a_file_that_gunicorn_reads_is_not_asked_twice(serve: Serve, tmp_path: Path) -> None:
    """gunicorn's own command reads its arguments, and they win over GUNICORN_CMD_ARGS: whoever
    names another file there does not get the plugin. The plain gunicorn of a rehearsal is silent
    about it; any other says so in a line."""
    env = {"GUNICORN_CMD_ARGS": "-c python:gunicorn_grace.conf"}
    server = serve(config=("-c", PLAIN), env=env)
    assert "gunicorn-grace" not in server.output
    (tmp_path / "mine.py").write_text("import gunicorn_grace\n")
    server = serve(config=("-c", "mine.py"), env=env)
    server.wait_line("it is imported and not switched on")
    assert "gunicorn-grace: lame duck" not in server.output
