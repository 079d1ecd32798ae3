"""The checks of an application: how they run, how long anybody waits, what is told."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import gunicorn_grace
from gunicorn_grace.errors import CheckError
from gunicorn_grace.probes import checks
from gunicorn_grace.probes.checks import Check, Kind, Outcome, Registry, Run

pytestmark = pytest.mark.once

READINESS = Kind.READINESS
FAR = 3600.0
"""A deadline that no test waits for."""


class Clock:
    """Seconds that only a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Gate:
    """A check that a test holds open, and that counts how often it runs and how often at once."""

    def __init__(self, result: object = None) -> None:
        self.result = result
        self.open = threading.Event()
        self.began = threading.Event()
        self.ran = self.running = self.most = 0
        self._lock = threading.Lock()

    def __call__(self) -> object:
        with self._lock:
            self.ran += 1
            self.running += 1
            self.most = max(self.most, self.running)
        self.began.set()
        self.open.wait(60)
        with self._lock:
            self.running -= 1
        return self.result


@pytest.fixture
def gate() -> Iterator[Gate]:
    """A check that hangs until it is let go, at the latest when the test ends."""
    made = Gate()
    yield made
    made.open.set()


def registry_with(
    function: Callable[[], object], *, clock: Clock | None = None, **options: Any
) -> Registry:
    made = Registry(clock or time.monotonic)
    made.register(
        "database", function, **{"kind": READINESS, "timeout": FAR, "ttl": FAR, **options}
    )
    return made


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "check database"]


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def raises(error: BaseException) -> Callable[[], object]:
    def function() -> object:
        raise error

    return function


# -- how they come out ----


@pytest.mark.parametrize("result", [None, True, 0, "", [], "down"])
def test_a_check_passes_by_returning(result: object) -> None:
    """Whatever it returns, an empty result of a query too; only ``False`` itself is a failure."""
    assert registry_with(lambda: result).run(READINESS) == [Outcome("database", True)]


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda: False, "it returned False"),
        (raises(ConnectionError("refused")), "ConnectionError: refused"),
        (raises(ValueError()), "ValueError"),
        (raises(SystemExit(3)), "SystemExit: 3"),
        (raises(KeyboardInterrupt()), "KeyboardInterrupt"),
        (raises(OSError("two\nlines\x1b[31m\tof it")), r"OSError: two lines\x1b[31m of it"),
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
)
def test_a_check_fails_by_raising_or_returning_false(
    function: Callable[[], object], reason: str
) -> None:
    """Also by what ends other threads; the reason is one printable line."""
    assert registry_with(function).run(READINESS) == [Outcome("database", False, reason)]


def test_a_reason_is_bounded_and_an_exception_that_cannot_be_shown_is_one_too() -> None:
    """The log gets at most a few hundred characters, and no second exception."""

    class Silent(Exception):
        def __str__(self) -> str:
            raise ZeroDivisionError

    (long,) = registry_with(raises(ValueError("x" * 10_000))).run(READINESS)
    assert len(long.reason) < 400
    (silent,) = registry_with(raises(Silent())).run(READINESS)
    assert silent.reason == "Silent: (it cannot be shown)"


def test_it_runs_in_a_thread_of_its_own_that_holds_no_exit() -> None:
    """Not in the one that asks, where gunicorn's signals arrive; a daemon."""
    seen: list[threading.Thread] = []
    registry_with(lambda: seen.append(threading.current_thread())).run(READINESS)
    assert seen[0] is not threading.current_thread()
    assert seen[0].daemon


def test_a_thread_that_cannot_be_started_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the limit of threads the check fails, and is tried again when its result is no longer
    fresh."""
    clock = Clock()
    registry = registry_with(lambda: None, clock=clock, ttl=5)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        (outcome,) = registry.run(READINESS)
    assert outcome.reason == "it could not be run: RuntimeError: can't start new thread"
    assert registry.run(READINESS) == [outcome]
    clock.now += 5
    assert registry.run(READINESS) == [Outcome("database", True)]


# -- how long anybody waits ----


def test_a_result_is_kept_for_its_ttl() -> None:
    """A failure too; then it runs again."""
    clock, results = Clock(), iter([False, None, False])
    registry = registry_with(lambda: next(results), clock=clock, ttl=5)
    passed = []
    for step in (0, 4.9, 0.1, 4.9, 0.2):
        clock.now += step
        passed.append(registry.run(READINESS)[0].passed)
    assert passed == [False, False, True, True, False]


def test_with_a_ttl_of_0_it_runs_for_each_probe() -> None:
    """One after the other."""
    gate = Gate()
    gate.open.set()
    registry = registry_with(gate, ttl=0)
    for _ in range(3):
        registry.run(READINESS)
    assert gate.ran == 3


def test_a_hanging_check_costs_a_thousand_probes_one_thread_and_one_timeout(gate: Gate) -> None:
    """The first probe waits for the deadline; those that come after it are told at once, while it
    still hangs."""
    registry = registry_with(gate, timeout=0.05, ttl=0)
    assert registry.run(READINESS) == [Outcome("database", False, "no result within 0.05 s")]
    for _ in range(1000):
        (begun,) = registry.begin(READINESS)
        assert isinstance(begun, Outcome), "the probe would wait"
        assert not begun.passed
    assert gate.ran == 1
    assert len(threads()) == 1


def test_what_comes_after_the_deadline_is_no_result(gate: Gate) -> None:
    """A check that passes too late has failed, and is asked anew once it has ended."""
    clock = Clock()
    registry = registry_with(gate, clock=clock, timeout=0.05, ttl=5)
    (run,) = registry.begin(READINESS)
    assert isinstance(run, Run)
    gate.began.wait(60)
    clock.now += 0.05
    assert run.is_known()
    assert not run.outcome().passed
    gate.open.set()
    wait_until(lambda: not threads())
    assert not run.outcome().passed
    assert [one for one in registry.begin(READINESS) if isinstance(one, Outcome) and not one.passed]
    clock.now += 5
    registry.run(READINESS)
    assert gate.ran == 2


def test_it_never_runs_twice_at_once() -> None:
    """Many probes at the same time wait for one run, and get its result."""
    gate = Gate()
    registry = registry_with(gate, ttl=0)
    found: list[list[Outcome]] = []
    probes = [
        threading.Thread(target=lambda: found.append(registry.run(READINESS))) for _ in range(20)
    ]
    for probe in probes:
        probe.start()
    gate.began.wait(60)
    gate.open.set()
    for probe in probes:
        probe.join(60)
    assert found == [[Outcome("database", True)]] * 20
    assert gate.most == 1


def test_all_run_at_once_so_that_a_probe_waits_for_the_slowest() -> None:
    """Three checks that each wait for the other two pass: they are not run one by one."""
    registry, meeting = Registry(), threading.Barrier(3)
    for name in ("a", "b", "c"):
        registry.register(name, lambda: meeting.wait(60), kind=READINESS, timeout=FAR, ttl=FAR)
    assert [outcome.passed for outcome in registry.run(READINESS)] == [True] * 3


def test_a_run_that_is_begun_can_be_looked_at_without_waiting(gate: Gate) -> None:
    """As an event loop has to: known once it has ended, or its deadline has come."""
    registry = registry_with(gate)
    (run,) = registry.begin(READINESS)
    assert isinstance(run, Run)
    assert not run.is_known()
    assert registry.begin(READINESS) == [run]
    gate.open.set()
    wait_until(run.is_known)
    assert run.outcome() == Outcome("database", True)


def test_only_what_is_asked_for_runs() -> None:
    """Of another kind, excluded, or another than the one: not even begun."""
    registry, ran = Registry(), []
    for name, kind in (("a", "readiness"), ("b", "readiness"), ("a", "liveness"), ("s", "startup")):
        registry.register(
            name, functools.partial(ran.append, (name, kind)), kind=kind, timeout=FAR, ttl=0
        )
    assert registry.run(READINESS, exclude={"a", "nothing"}) == [Outcome("b", True)]
    assert registry.run(READINESS, only="a") == [Outcome("a", True)]
    assert registry.run(Kind.LIVENESS, only="b") == []
    assert registry.run(Kind.STARTUP) == [Outcome("s", True)]
    assert ran == [("b", "readiness"), ("a", "readiness"), ("s", "startup")]


# -- forks ----


def test_a_fork_inherits_registrations_and_nothing_else() -> None:
    """``preload_app``: what was registered in the arbiter works in each worker, although a run was
    under way and a lock was held when it was forked, and a result was kept. The arbiter's own go
    on."""
    code = (
        "import os, threading, gunicorn_grace\n"
        "from gunicorn_grace.probes.checks import Outcome, registry\n"
        "from gunicorn_grace.shared.phase import Kind\n"
        "parent, began, let_go, ran = os.getpid(), threading.Event(), threading.Event(), []\n"
        "@gunicorn_grace.check('kept', ttl=3600)\n"
        "def kept(): ran.append(os.getpid())\n"
        "@gunicorn_grace.check('held', timeout=3600)\n"
        "def held(): return os.getpid() != parent or (began.set(), let_go.wait())[1] is None\n"
        "registry.run(Kind.READINESS, only='kept')\n"
        "registry.begin(Kind.READINESS, only='held')\n"
        "began.wait()\n"
        "with registry._of[Kind.READINESS][0]._lock, registry._of[Kind.READINESS][1]._lock:\n"
        "    child = os.fork()\n"
        "    if not child:\n"
        "        try: passed = registry.run(Kind.READINESS) == [Outcome('kept', True), "
        "Outcome('held', True)]\n"
        "        finally: os._exit(0 if passed and ran == [parent, os.getpid()] else 1)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
        "let_go.set()\n"
        "assert [outcome.passed for outcome in registry.run(Kind.READINESS)] == [True, False]\n"
        "assert ran == [parent]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_under_gevent_the_threads_are_greenlets() -> None:
    """Registered before the patching, as with ``preload_app``: the probe waits, and other greenlets
    go on."""
    pytest.importorskip("gevent")
    code = (
        "import gunicorn_grace\n"
        "from gunicorn_grace.probes.checks import Kind, registry\n"
        "@gunicorn_grace.check('slow', timeout=60)\n"
        "def slow(): went.append('check'); import time; time.sleep(0.05)\n"
        "@gunicorn_grace.check('hangs', timeout=0.1)\n"
        "def hangs(): import time; time.sleep(3600)\n"
        "went = []\n"
        "from gevent import monkey; monkey.patch_all()\n"
        "import gevent, threading\n"
        "other = gevent.spawn(lambda: went.append('other'))\n"
        "found = {o.name: o.passed for o in registry.run(Kind.READINESS)}\n"
        "assert found == {'slow': True, 'hangs': False}, found\n"
        "assert sorted(went) == ['check', 'other'], went\n"
        "import os\n"
        "assert len(os.listdir('/proc/self/task')) == 1\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


# -- what is told ----


def messages(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_reason_is_logged_once_for_each_change(caplog: pytest.LogCaptureFixture) -> None:
    """The first failure, another reason a minute later, and when it passes again; nothing in
    between."""
    caplog.set_level(logging.INFO)
    clock = Clock()
    results: Iterator[BaseException | None] = iter(
        [
            None,
            None,
            OSError(1),
            OSError(1),
            OSError(2),
            OSError(3),
            OSError(3),
            None,
            None,
            OSError(3),
        ]
    )

    def function() -> None:
        error = next(results)
        if error is not None:
            raise error

    registry = registry_with(function, clock=clock, ttl=0)
    for step in (0, 10, 10, 70, 10, 50, 5, 10, 10, 1):
        clock.now += step
        registry.run(READINESS)
    wait_until(lambda: not threads())
    assert messages(caplog) == [
        "gunicorn-grace: readiness check database failed: OSError: 1",
        "gunicorn-grace: readiness check database failed: OSError: 2",
        "gunicorn-grace: readiness check database passed again",
        "gunicorn-grace: readiness check database failed: OSError: 3",
    ]


def test_a_deadline_that_has_come_is_told_once(
    caplog: pytest.LogCaptureFixture, gate: Gate
) -> None:
    """However many probes are refused for it."""
    registry = registry_with(gate, timeout=0.01, ttl=0)
    for _ in range(10):
        registry.run(READINESS)
    assert messages(caplog) == [
        "gunicorn-grace: readiness check database failed: no result within 0.01 s"
    ]


# -- registering ----


async def coroutine() -> None:
    await asyncio.sleep(0)


class AsyncCallable:
    async def __call__(self) -> None:
        await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"name": "a/b"},
            "check name 'a/b' is not 1 to 63 letters, digits, dots, underscores and hyphens",
        ),
        ({"name": ""}, "check name '' is not 1 to 63"),
        ({"name": "a b"}, "it becomes a part of a path, /readyz/<name>"),
        ({"name": "é"}, "is not 1 to 63"),
        ({"name": "-x"}, "with a letter or digit first"),
        ({"name": "a\n"}, "is not 1 to 63"),
        ({"name": "x" * 64}, "is not 1 to 63"),
        ({"name": print}, 'is not a string: write @gunicorn_grace.check("database")'),
        (
            {"name": "shutdown"},
            "'shutdown' is one of the plugin's own (booted, heartbeat, shutdown): choose another "
            "name",
        ),
        ({"name": "booted"}, "is one of the plugin's own"),
        ({"function": None}, "check c: None cannot be called: give a function without parameters"),
        (
            {"function": coroutine},
            "is a coroutine function, but checks run in threads: give a plain function",
        ),
        ({"function": functools.partial(coroutine)}, "is a coroutine function"),
        ({"function": AsyncCallable()}, "is a coroutine function"),
        (
            {"kind": "ready"},
            "check c: kind 'ready' is not one of 'liveness', 'readiness', 'startup': give one of "
            "them",
        ),
        (
            {"timeout": 0},
            "check c: timeout 0 s is not more than 0 s and at most 3600 s: give less than the "
            "probe's own timeout, 1 s by default",
        ),
        ({"timeout": 3601}, "check c: timeout 3601 s is not more than 0 s and at most 3600 s"),
        ({"timeout": "1"}, "check c: timeout '1' is not a number: give seconds, such as 1.0"),
        ({"timeout": True}, "check c: timeout True is not a number"),
        ({"timeout": float("nan")}, "check c: timeout nan is not a number"),
        (
            {"ttl": -1},
            "check c: ttl -1 s is less than 0 s: give 0 to run the check for each probe, or more",
        ),
        ({"ttl": None}, "check c: ttl None is not a number"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    """With the value, the limit and the way out; nothing is registered then."""
    registry = Registry()
    options: Any = {
        "name": "c",
        "function": print,
        "kind": "readiness",
        "timeout": 1.0,
        "ttl": 5.0,
        **given,
    }
    with pytest.raises(CheckError, match=re.escape(message)) as raised:
        registry.register(options.pop("name"), options.pop("function"), **options)
    assert "\n" not in str(raised.value)
    assert list(registry) == []


def factory(result: object) -> Callable[[], object]:
    def check() -> object:
        return result

    return check


def test_the_same_function_again_replaces_the_former() -> None:
    """A module that is imported anew, a factory that is called twice: the newest counts, without
    the old result."""
    registry = registry_with(factory(None))
    assert registry.run(READINESS)[0].passed
    registry.register("database", factory(False), kind=READINESS, timeout=FAR, ttl=FAR)
    assert [outcome.passed for outcome in registry.run(READINESS)] == [False]


def test_two_functions_cannot_have_one_name() -> None:
    """Which of them would be meant? In another kind the name is free."""
    registry = registry_with(factory(None))
    with pytest.raises(
        CheckError,
        match=r"two readiness checks have this name, .*factory.<locals>.check and .*print",
    ):
        registry.register("database", print, kind=READINESS, timeout=FAR, ttl=FAR)
    registry.register("database", print, kind=Kind.LIVENESS, timeout=1, ttl=0)
    assert next(iter(registry)) == Check("database", print, Kind.LIVENESS, 1.0, 0.0)
    assert registry.names(READINESS) == ("database",)


def test_callables_without_a_name_are_told_apart() -> None:
    """The very same one may come again; another one may not."""
    one, other = functools.partial(print), functools.partial(print)
    registry = registry_with(one)
    registry.register("database", one, kind=READINESS, timeout=1, ttl=1)
    with pytest.raises(CheckError, match="two readiness checks"):
        registry.register("database", other, kind=READINESS, timeout=1, ttl=1)


def test_the_decorator_registers_and_leaves_the_function_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Readiness by default, and below what a Kubernetes probe waits by default."""
    registry = Registry()
    monkeypatch.setattr(checks, "registry", registry)

    @gunicorn_grace.check("cache")
    def cache() -> str:
        return "called"

    @gunicorn_grace.check("loop", kind="liveness", timeout=2, ttl=0)
    def loop() -> None:
        """Nothing."""

    assert cache() == "called"
    assert list(registry) == [
        Check("loop", loop, Kind.LIVENESS, 2.0, 0.0),
        Check("cache", cache, READINESS, 0.8, 5.0),
    ]


def test_forgotten_parentheses_are_told() -> None:
    """``@gunicorn_grace.check`` over a function gives it as the name: an error now, not a check
    that never runs."""
    wrong: Any = gunicorn_grace.check

    def database() -> None:
        """Nothing."""

    with pytest.raises(CheckError, match="is not a string: write"):
        wrong(database)(database)
