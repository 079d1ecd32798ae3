"""``gunicorn-grace run``: programs that nobody can edit get the plugin, and nobody else does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import pytest

from support.paths import APPS
from support.servers import Serve

RUN = (str(Path(sys.executable).with_name("gunicorn-grace")), "run", "--")

FILE = """
grace_shutdown_delay = {delay}
grace_min_delay = 0
grace_extend_delay = False
def on_exit(server):
    server.log.info("user: on_exit")
"""

STARTS: dict[str, dict[str, Any]] = {
    "gunicorn": {"script": True, "config": ("-c", "user.py")},
    "python -m gunicorn": {"config": ("-c", "user.py")},
    "gunicorn.conf.py": {"config": ()},
}


@pytest.mark.ends
@pytest.mark.parametrize("start", STARTS)
def test_gunicorn_gets_it_and_keeps_the_users_file(
    start: str, serve: Serve, tmp_path: Path
) -> None:
    """However gunicorn is started and finds its file: the file's settings and hooks count, SIGHUP
    reads it again, and the process is the one that was started."""
    file = tmp_path / ("user.py" if "-c" in STARTS[start]["config"] else "gunicorn.conf.py")
    file.write_text(FILE.format(delay=0.75))
    server = serve(kind="gthread", executable_prefix=RUN, **STARTS[start])
    server.wait_line("lame duck 0.75 s")
    assert server.get("/readyz").status == 200
    assert server.arbiter_pid == server.pid
    file.write_text(FILE.format(delay=0.5))
    server.signal(signal.SIGHUP)
    server.wait_line("lame duck 0.5 s")
    server.wait_ready()
    server.terminate()
    assert server.wait(20) == 0, server.output
    server.wait_line("shutdown_initiated by SIGTERM: not ready for 0.5 s")
    server.wait_line("user: on_exit")


@pytest.mark.ends
def test_a_program_that_nobody_can_edit_gets_it(serve: Serve) -> None:
    """One that derives from BaseApplication and has never heard of the plugin: readiness is red for
    the delay, also after a SIGHUP."""
    server = serve(
        program=("launcher.py",),
        config=(),
        executable_prefix=RUN,
        settings={"shutdown_delay": 0.5, "extend_delay": "false"},
    )
    assert server.get("/readyz").status == 200
    seen = server.mark()
    server.signal(signal.SIGHUP)
    server.wait_line("lame duck 0.5 s", after=seen)
    server.wait_ready()
    server.terminate()
    assert server.wait(20) == 0, server.output
    server.wait_line("shutdown_initiated by SIGTERM: not ready for 0.5 s")


@pytest.mark.once
def test_the_module_as_configuration_still_loads_the_users_file(
    serve: Serve, tmp_path: Path
) -> None:
    """Both ways at once: `-c python:gunicorn_grace.conf` finds the gunicorn.conf.py as ever."""
    (tmp_path / "gunicorn.conf.py").write_text(FILE.format(delay=0.5))
    server = serve(kind="gthread", executable_prefix=RUN)
    server.wait_line("lame duck 0.5 s")


def run(*command: str, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command below it, to its end."""
    return subprocess.run(
        [*RUN, *command],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.once
def test_a_python_without_gunicorn_has_nothing_of_it() -> None:
    """No module of ours, no finder that is left once gunicorn is there; arguments, standard streams
    and exit code are the command's."""
    code = (
        "import sys; assert not [name for name in sys.modules if 'gunicorn' in name];"
        "print(sys.argv[1:]); sys.exit(7)"
    )
    done = run(sys.executable, "-c", code, "--", "-x")
    assert (done.returncode, done.stdout, done.stderr) == (7, "['--', '-x']\n", "")


NEXT = "print('next'); import sys; assert sys.modules['sitecustomize'].__file__ == __file__"

AGAIN = """
import os, sys
print("again")
here = os.path.dirname(os.path.abspath(__file__))
place = sys.path.index(here)
del sys.path[place], sys.modules["sitecustomize"]
import sitecustomize
sys.path.insert(place, here)
"""


@pytest.mark.once
@pytest.mark.parametrize(
    "others",
    [(NEXT,), (AGAIN, NEXT), (AGAIN, AGAIN, NEXT)],
    ids=["one", "that-looks-for-the-next", "two-that-do"],
)
def test_another_sitecustomize_is_executed_once(others: tuple[str, ...], tmp_path: Path) -> None:
    """ddtrace-run and others come in by the same door, and look for the next one themselves: each
    is executed, once, whatever order they are in, and gunicorn gets the plugin."""
    folders = []
    for number, text in enumerate(others):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(text)
        folders.append(str(folder))
    code = "import sys, gunicorn.app.base; print('gunicorn_grace.conf' in sys.modules)"
    done = run(sys.executable, "-c", code, PYTHONPATH=os.pathsep.join(folders))
    said = ["again"] * (len(others) - 1) + ["next"]
    # The Python of the command gunicorn-grace is the first, without us in its path.
    assert done.stdout.splitlines()[-len(said) - 1 :] == [*said, "True"]
    assert len(done.stdout.splitlines()) == 2 * len(said) + 1
    assert done.stderr == ""


@pytest.mark.once
def test_one_that_takes_itself_out_of_the_path_stays_in_it(tmp_path: Path) -> None:
    """opentelemetry-instrument is found by the first Python alone, and that is ours; the command
    finds it all the same."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os; print('other'); os.environ['PYTHONPATH'] = ''"
    )
    done = run(sys.executable, "-c", "pass", PYTHONPATH=str(tmp_path))
    assert done.stdout.splitlines() == ["other", "other"]


@pytest.mark.once
def test_a_python_that_has_not_got_the_package_is_told(tmp_path: Path) -> None:
    """Its gunicorn runs without it, and one line says so."""
    venv.create(tmp_path, with_pip=False)
    (site,) = tmp_path.glob("lib/python*/site-packages")
    app = site / "gunicorn" / "app"
    app.mkdir(parents=True)
    for file in (app.parent / "__init__.py", app / "__init__.py", app / "base.py"):
        file.write_text("")
    code = "import gunicorn.app.base; print('runs')"
    done = run(str(tmp_path / "bin" / "python"), "-c", code, cwd=tmp_path)
    assert done.stdout == "runs\n"
    (line,) = done.stderr.splitlines()
    assert "the package is not installed for" in line


@pytest.mark.once
@pytest.mark.parametrize(
    ("command", "code", "words"),
    [
        (("no-such-command",), 127, "'no-such-command' cannot be run: No such file"),
        ((str(APPS / "launcher.py"),), 126, "cannot be run: Permission denied"),
        ((), 2, "Missing argument 'COMMAND...'"),
    ],
    ids=["not-found", "not-executable", "none"],
)
def test_a_command_that_cannot_be_run(command: tuple[str, ...], code: int, words: str) -> None:
    """One line, and the exit code of a shell."""
    done = run(*command)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr
