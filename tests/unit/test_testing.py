"""What users' own tests use: a process that pretends to be in a phase."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from importlib.metadata import entry_points
from pathlib import Path
from queue import SimpleQueue
from types import SimpleNamespace
from typing import Any

import pytest
from flask import Flask, current_app, has_app_context
from werkzeug.test import Client

import gunicorn_grace
from gunicorn_grace import hold, on_drain, on_lame_duck, until_terminating
from gunicorn_grace.errors import UsageError
from gunicorn_grace.flask import init_app
from gunicorn_grace.shared import memory as shm
from gunicorn_grace.shared.instances import search
from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.phase import Phase
from gunicorn_grace.testing import Instance, in_phase
from gunicorn_grace.worker import duties, process
from gunicorn_grace.wsgi import Probes
from support.paths import DOCS


@pytest.fixture
def app() -> Flask:
    """An application with the blueprint."""
    made = Flask(__name__)
    init_app(made)
    return made


TABLE = {
    Phase.STARTING: (200, 503, 503),
    Phase.SERVING: (200, 200, 200),
    Phase.LAME_DUCK: (200, 503, 200),
    Phase.DRAINING: (200, 503, 200),
}
"""Liveness, readiness and start-up of each phase: section "Probes" of the documentation."""

PATHS = ("/livez", "/readyz", "/startupz")


@pytest.mark.parametrize("phase", Phase)
def test_everything_answers_as_in_the_phase(app: Flask, phase: Phase) -> None:
    """The functions of the package, the blueprint and the middleware; before and after it, as in
    SERVING."""
    clients: list[Any] = [app.test_client(), Client(Probes(Flask("bare")))]
    before = [[client.get(path).status_code for path in PATHS] for client in clients]
    with in_phase(phase):
        assert gunicorn_grace.phase() is phase
        assert gunicorn_grace.is_terminating() is (phase >= Phase.LAME_DUCK)
        if phase in TABLE:
            for client in clients:
                assert tuple(client.get(path).status_code for path in PATHS) == TABLE[phase]
    assert (
        [[client.get(path).status_code for path in PATHS] for client in clients]
        == before
        == [[200] * 3] * 2
    )
    assert gunicorn_grace.phase() is Phase.SERVING
    assert shm.attached is process.this_worker is duties.this_workers is None


def test_the_seconds_left_are_those_that_were_given() -> None:
    """They do not count down, so a test can compare them; ``None`` where none are given, and while
    serving."""
    with in_phase(Phase.LAME_DUCK, seconds_left=8) as instance:
        assert gunicorn_grace.seconds_left() == 8.0
        instance.enter(Phase.DRAINING, seconds_left=0)
        assert gunicorn_grace.seconds_left() == 0.0
        instance.enter(Phase.DRAINING)
        assert gunicorn_grace.seconds_left() is None
        instance.enter(Phase.SERVING)
        assert gunicorn_grace.seconds_left() is None


@pytest.mark.parametrize(
    ("phase", "left"), [(Phase.SERVING, 5), (Phase.STARTING, 0), (Phase.LAME_DUCK, -1)]
)
def test_seconds_that_cannot_be_left_are_refused(phase: Phase, left: float) -> None:
    """No shutdown, no deadline; and what was before stays as it is."""
    with (
        pytest.raises(UsageError, match=rf"seconds_left={left} in {phase} must be"),
        in_phase(phase, seconds_left=left),
    ):
        pytest.fail("it was entered")
    assert shm.attached is None


def test_one_within_another_hides_it(app: Flask) -> None:
    """The inner one's phase, then the outer one's again; an error passes through both."""
    client = app.test_client()

    @in_phase(Phase.LAME_DUCK)
    def fails() -> None:
        with in_phase(Phase.SERVING):
            assert client.get("/readyz").status_code == 200
        assert client.get("/readyz").status_code == 503
        raise KeyError

    with pytest.raises(KeyError):
        fails()
    assert client.get("/readyz").status_code == 200


@in_phase(Phase.DRAINING)
def test_it_decorates_a_test() -> None:
    """Every call of the function is in the phase."""
    assert gunicorn_grace.phase() is Phase.DRAINING


def test_every_thread_sees_it() -> None:
    """It is the process that pretends."""
    seen: list[Phase] = []
    with in_phase(Phase.LAME_DUCK):
        thread = threading.Thread(target=lambda: seen.append(gunicorn_grace.phase()))
        thread.start()
        thread.join()
    assert seen == [Phase.LAME_DUCK]


def test_a_stream_ends_when_the_test_says_so() -> None:
    """The stream of a response, led through a shutdown without a process."""
    with in_phase(Phase.SERVING) as instance:
        stream = until_terminating(iter(range(9)))
        assert [next(stream), next(stream)] == [0, 1]
        instance.enter(Phase.LAME_DUCK)
        assert list(stream) == []


def test_holds_are_seen_by_name() -> None:
    """While they are held, the oldest first; a hold of outside is none of this instance's."""
    with hold("before"), in_phase(Phase.LAME_DUCK) as instance:
        assert instance.holds == []
        with hold("upload 1"), hold("upload 2"):
            assert instance.holds == ["upload 1", "upload 2"]
        assert instance.holds == []


def test_a_hold_may_outlive_the_pretence() -> None:
    """A thread of the application gives it back when it is done: nothing breaks."""
    held = hold("work")
    with in_phase(Phase.SERVING):
        held.__enter__()
    held.__exit__(None, None, None)


def test_callbacks_run_when_the_test_says_so(app: Flask) -> None:
    """Those of the phase, in their order, once per shutdown, and where no application context is;
    nothing runs by itself, and none while it serves."""
    calls: list[str] = []
    on_drain(lambda: calls.append(f"drain {has_app_context()}"))
    on_lame_duck(lambda: calls.append(f"lame duck {has_app_context()}"))
    threads = threading.active_count()
    with app.app_context(), in_phase(Phase.SERVING) as instance:
        assert current_app.name == app.name
        instance.run_callbacks()
        assert calls == []
        instance.enter(Phase.LAME_DUCK)
        assert calls == []
        instance.run_callbacks()
        instance.run_callbacks()
        assert calls == ["lame duck False"]
        instance.enter(Phase.DRAINING)
        instance.run_callbacks()
        assert calls == ["lame duck False", "drain False"]
        instance.enter(Phase.SERVING)
        instance.enter(Phase.DRAINING)
        instance.run_callbacks()
        assert calls == ["lame duck False", "drain False"] * 2
    assert threading.active_count() <= threads + 1  # A callback's that is just ending.


def test_the_error_of_a_callback_is_the_tests() -> None:
    """What it raises is raised; the next call goes on with the one after it."""
    calls: list[str] = []

    @on_lame_duck
    def fails() -> None:
        raise ZeroDivisionError

    on_lame_duck(lambda: calls.append("after it"))
    with in_phase(Phase.LAME_DUCK) as instance:
        with pytest.raises(ZeroDivisionError):
            instance.run_callbacks()
        assert calls == []
        instance.run_callbacks()
        assert calls == ["after it"]


def test_a_callback_that_overruns_is_an_error_that_names_it() -> None:
    """As in a worker, it has its deadline; and its thread goes on."""
    let_go = threading.Event()

    @on_drain(timeout=0.01)
    def slow() -> None:
        let_go.wait(20)

    with (
        in_phase(Phase.DRAINING) as instance,
        pytest.raises(TimeoutError, match=r"on_drain callback .*slow \("),
    ):
        instance.run_callbacks()
    let_go.set()


def test_a_real_gunicorn_is_left_alone(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a process of one it is refused, and nothing is changed."""
    monkeypatch.setattr(shm, "attached", memory)
    with pytest.raises(
        UsageError, match=r"in_phase\(LAME_DUCK\) in process \d+, which belongs to a real gunicorn"
    ):
        in_phase().__enter__()
    assert shm.attached is memory
    assert process.this_worker is None


def test_no_command_finds_it() -> None:
    """It is an instance to this process alone: no memfd, no descriptor."""
    # Other tests of this process may hold memories of other instances.
    before = search(os.getpid()).passed_over if sys.platform == "linux" else []
    with in_phase(Phase.LAME_DUCK):
        assert shm.attached is not None
        assert not shm.attached.shared_by_name
        if sys.platform == "linux":
            assert search(os.getpid()) == ([], before)


# -- the documentation ----


def test_the_code_in_the_documentation_works(app: Flask, grace_instance: Instance) -> None:
    """Every block of docs/how-to/application.md is executed, its tests are run, and its callbacks and
    holds do as it says."""
    page = DOCS / "how-to/application.md"
    left: list[str] = []
    sent: SimpleQueue[str] = SimpleQueue()
    sent.put("hello")
    names: dict[str, Any] = {
        "app": app,
        "ADDRESS": "192.0.2.7",
        "directory": SimpleNamespace(deregister=left.append),
        "metrics": SimpleNamespace(flush=lambda: left.append("flushed")),
        "queue": sent,
    }
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 7
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)
    names["test_not_ready_in_lame_duck"](app.test_client())
    names["test_the_stream_ends"](app.test_client(), grace_instance)
    begun, let_go = threading.Event(), threading.Event()
    names["export_in_background"](lambda: (begun.set(), let_go.wait(20)))
    assert grace_instance.holds == ["export"]
    assert begun.wait(20)
    grace_instance.enter(Phase.DRAINING)
    grace_instance.run_callbacks()
    assert left == ["192.0.2.7", "flushed"]
    assert grace_instance.holds == ["export"]
    let_go.set()
    names["export"]()


# -- pytest ----


USERS_TEST = """
import sys
assert not {"gunicorn", "flask", "werkzeug"} & set(sys.modules), "what finds the fixtures is dear"
import gunicorn_grace
from gunicorn_grace import Phase

def test_with_the_fixture(grace_instance):
    assert gunicorn_grace.phase() is Phase.SERVING
    grace_instance.enter(Phase.LAME_DUCK, seconds_left=8)
    assert gunicorn_grace.seconds_left() == 8

def test_without_it():
    assert not gunicorn_grace.is_terminating()
    assert gunicorn_grace.phase() is Phase.SERVING
"""


def test_pytest_finds_the_fixture(tmp_path: Path) -> None:
    """In a project of a user's, with nothing in its conftest; and loading the plugin imports no
    framework."""
    (found,) = [point for point in entry_points(group="pytest11") if point.name == "gunicorn_grace"]
    assert found.value == "gunicorn_grace.pytest_plugin"
    (tmp_path / "test_mine.py").write_text(USERS_TEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-W",
        "error",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 passed" in done.stdout
