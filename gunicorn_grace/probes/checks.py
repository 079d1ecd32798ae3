"""Named conditions of the application that decide over liveness, readiness and start-up.

A check is a function of the user's, which may hang, raise, or take its time just when a probe asks.
Run in the request itself, one that hangs would take a worker with it; in a thread for each probe, a
thousand probes a thousand threads. So each runs in a thread of its own, one at a time; whoever asks
waits at most until its deadline, and the result is kept for a while. No SIGALRM: it interrupts the
main thread alone, and gunicorn's arbiter and many libraries use it.

Checks are registered where the application is imported: in each worker, or with ``preload_app`` in
the arbiter, whose children inherit the registrations and nothing else (no result, no thread, no
lock that was held at the fork). They run in workers only. Under gevent the threads are greenlets,
as everything that is patched.

Why a check failed goes to the log, once for each change, and never into a response.
"""

from __future__ import annotations

import inspect
import logging
import math
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import CheckError
from ..shared.phase import Kind

RESERVED = frozenset({"booted", "heartbeat", "shutdown"})
"""The plugin's own checks."""

LONGEST_TIMEOUT = 3600.0
"""Seconds; beyond it a deadline is none."""

REASON_INTERVAL = 60.0
"""Seconds between two log lines about a check that goes on failing, for other reasons each time: a
reason may hold a port or a time, and is then never the same twice."""

LONGEST_REASON = 300

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

Function = Callable[[], object]


@dataclass(frozen=True)
class Outcome:
    """How a check came out.

    :param reason: why it failed, in one line: for the log, never for the wire.
    """

    name: str
    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class Check:
    """A registered check.

    :param function: passes by returning, fails by raising or by returning ``False``.
    :param timeout: seconds that a probe waits for it at the most.
    :param ttl: seconds that its result is kept.
    """

    name: str
    function: Function
    kind: Kind
    timeout: float
    ttl: float


class Run:
    """One execution of a check's function, in a thread of its own."""

    def __init__(self, runner: Runner, deadline: float) -> None:
        self._runner = runner
        self.deadline = deadline
        self.done = threading.Event()
        self.result: Outcome | None = None
        """Once there is one it stays: whatever the function returns after its deadline is no result
        any more."""

    def is_known(self) -> bool:
        """Whether :meth:`outcome` returns without waiting."""
        return self.result is not None or self._runner.clock() >= self.deadline

    def outcome(self) -> Outcome:
        """How it came out. Waits for that, until the deadline."""
        self.done.wait(max(0.0, self.deadline - self._runner.clock()))
        return self._runner.result_of(self)


class Runner:
    """A check in this process: its last result, and the run that may be under way.

    The lock is held for a few assignments, never while anything waits. So no greenlet switches
    inside, whether gevent has patched it or not, and probes that find a result only read.
    """

    def __init__(self, check: Check, registry: Registry) -> None:
        self.check = check
        self.clock = registry.clock
        self._registry = registry
        self._logged_passed, self._logged_reason, self._logged_at = True, "", -math.inf
        self.forget()

    def forget(self) -> None:
        """Start anew: after a fork, which copies neither the thread of a run nor whoever would
        release the lock."""
        self._lock = threading.Lock()
        self._run: Run | None = None
        self._kept: Outcome | None = None
        self._fresh_until = -math.inf

    def begin(self) -> Outcome | Run:
        """The last result, if it is fresh; else the run under way, or a new one. Does not wait for
        it."""
        kept = self._kept
        if kept is not None and self.clock() < self._fresh_until:
            return kept
        with self._lock:
            now, kept = self.clock(), self._kept
            if kept is not None and now < self._fresh_until:
                return kept
            if self._run is not None:
                # Still hanging after its deadline: it has failed, and another one would hang beside
                # it.
                return self._run.result or self._run
            run = self._run = Run(self, now + self.check.timeout)
        try:
            # A daemon: one that hangs must not hold the exit of the worker.
            threading.Thread(
                target=self._execute, args=(run,), name=f"check {self.check.name}", daemon=True
            ).start()
        except BaseException as error:  # No more threads; or a signal that ends the worker.
            self._end(run, False, f"it could not be run: {_one_line(error)}")
            if not isinstance(error, Exception):
                raise
        return run

    def result_of(self, run: Run) -> Outcome:
        """The result of a run that has ended, or whose deadline has come."""
        if run.result is None:
            self._settle(run, False, f"no result within {self.check.timeout:g} s")
        assert run.result is not None
        return run.result

    def _execute(self, run: Run) -> None:
        try:
            passed, reason = self.check.function() is not False, "it returned False"
        except BaseException as error:
            passed, reason = False, _one_line(error)
        self._end(run, passed, "" if passed else reason)

    def _end(self, run: Run, passed: bool, reason: str) -> None:
        self._settle(run, passed, reason)
        with self._lock:
            if self._run is run:
                self._run = None
        run.done.set()

    def _settle(self, run: Run, passed: bool, reason: str) -> None:
        """Give a run its result, keep it, and log the change if it is one. The first to come
        decides."""
        with self._lock:
            if run.result is not None:
                return
            now = self.clock()
            run.result = Outcome(self.check.name, passed, reason)
            if self._run is not run:
                return  # Forgotten meanwhile.
            self._kept = run.result
            self._fresh_until = now + self.check.ttl
            again = passed == self._logged_passed
            if again and (reason == self._logged_reason or now - self._logged_at < REASON_INTERVAL):
                return
            self._logged_passed, self._logged_reason, self._logged_at = passed, reason, now
        name, kind, log = self.check.name, self.check.kind.value, self._registry.log
        if passed:
            log.info("gunicorn-grace: %s check %s passed again", kind, name)
        else:
            log.warning("gunicorn-grace: %s check %s failed: %s", kind, name, reason)


class Registry:
    """The checks of a process.

    :param clock: seconds, for deadlines and for how long results are kept.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.log: Any = logging.getLogger("gunicorn_grace")
        """Where changes are told; in a worker gunicorn's own log."""
        # Replaced as a whole, so that whoever iterates sees either state.
        self._of: dict[Kind, tuple[Runner, ...]] = dict.fromkeys(Kind, ())

    def register(
        self, name: str, function: Function, *, kind: Kind | str, timeout: float, ttl: float
    ) -> None:
        """Add a check. The same function again, as when its module is reloaded, replaces the
        former.

        :param kind: also as a word: ``"readiness"``, ``"liveness"``, ``"startup"``.
        :raises CheckError: the name, a number or the function cannot be, or another function has
            the name.
        """
        check = Check(
            _name(name), _function(name, function), _kind(name, kind), *_seconds(name, timeout, ttl)
        )
        others = []
        for runner in self._of[check.kind]:
            if runner.check.name != name:
                others.append(runner)
            elif _origin(runner.check.function) != _origin(function):
                raise CheckError(
                    f"check {name}: two {check.kind.value} checks have this name, {_shown(runner.check.function)} "
                    f"and {_shown(function)}: give each its own"
                )
        self._of[check.kind] = (*others, Runner(check, self))

    def __iter__(self) -> Iterator[Check]:
        """Every registered check, kind by kind, in the order of registration."""
        return (runner.check for kind in Kind for runner in self._of[kind])

    def names(self, kind: Kind) -> tuple[str, ...]:
        """The names of the checks of one kind."""
        return tuple(runner.check.name for runner in self._of[kind])

    def kinds(self) -> frozenset[Kind]:
        """The kinds that have checks."""
        return frozenset(kind for kind, checks in self._of.items() if checks)

    def begin(
        self, kind: Kind, *, exclude: Collection[str] = frozenset(), only: str | None = None
    ) -> list[Outcome | Run]:
        """The results of the checks of one kind that are fresh, and the runs that will give the
        others. They run all at once, so that a probe waits for the slowest and not for the sum.
        Does not wait.

        :param exclude: names to leave out.
        :param only: the one check to run.
        """
        checks = self._of[kind]
        if not checks:
            return []
        if exclude or only is not None:
            checks = tuple(
                runner
                for runner in checks
                if runner.check.name not in exclude and only in (None, runner.check.name)
            )
        return [runner.begin() for runner in checks]

    def run(
        self, kind: Kind, *, exclude: Collection[str] = frozenset(), only: str | None = None
    ) -> list[Outcome]:
        """The results of the checks of one kind: kept ones while they are fresh, else new ones.
        Waits for those, at most for the longest ``timeout`` among them. Parameters are those of
        :meth:`begin`."""
        begun = self.begin(kind, exclude=exclude, only=only)
        return [one if isinstance(one, Outcome) else one.outcome() for one in begun]

    def forget(self) -> None:
        """Drop all results and runs, and keep the registrations."""
        for checks in self._of.values():
            for runner in checks:
                runner.forget()


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise CheckError(
            f'check name {name!r} is no string: write @gunicorn_grace.check("database")'
        )
    if not _NAME.fullmatch(name):
        raise CheckError(
            f"check name {name!r} is not 1 to 63 letters, digits, dots, underscores and hyphens, a letter or digit "
            "first: it becomes a part of a path, /readyz/<name>"
        )
    if name in RESERVED:
        raise CheckError(
            f"check name {name!r} is one of the plugin's own ({', '.join(sorted(RESERVED))}): give another"
        )
    return name


def _function(name: str, function: object) -> Function:
    if not callable(function):
        raise CheckError(
            f"check {name}: {function!r} cannot be called: give a function without parameters"
        )
    if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        type(function).__call__
    ):
        # Called in a thread it would return a coroutine, and so pass for ever.
        raise CheckError(
            f"check {name}: {_shown(function)} is a coroutine function: checks run in threads, give a plain one"
        )
    return function


def _kind(name: str, kind: object) -> Kind:
    try:
        return Kind(kind)
    except ValueError:
        words = ", ".join(repr(known.value) for known in Kind)
        raise CheckError(
            f"check {name}: kind {kind!r} is none of {words}: give one of them"
        ) from None


def _seconds(name: str, timeout: object, ttl: object) -> tuple[float, float]:
    for what, value in (("timeout", timeout), ("ttl", ttl)):
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            raise CheckError(
                f"check {name}: {what} {value!r} is no number: give seconds, such as 1.0"
            )
    assert isinstance(timeout, (int, float))
    assert isinstance(ttl, (int, float))
    if not 0 < timeout <= LONGEST_TIMEOUT:
        raise CheckError(
            f"check {name}: timeout {timeout:g} s is not more than 0 s and at most {LONGEST_TIMEOUT:g} s: "
            "give less than the probe's own, 1 s by default in Kubernetes"
        )
    if ttl < 0:
        raise CheckError(
            f"check {name}: ttl {ttl:g} s is less than 0 s: give 0 to run it for each probe, or more"
        )
    return float(timeout), float(ttl)


def _origin(function: object) -> object:
    """What stays the same when a module is imported anew, or a factory called twice."""
    name = getattr(function, "__qualname__", None)
    return function if name is None else (getattr(function, "__module__", None), name)


def _shown(function: object) -> str:
    name = getattr(function, "__qualname__", None)
    return repr(function) if name is None else f"{getattr(function, '__module__', '?')}.{name}"


def _one_line(error: BaseException) -> str:
    """An exception for the log: whatever it holds, in one line of bounded length."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(it cannot be shown)"
    shown = "".join(c if c.isprintable() else "?" for c in text[:LONGEST_REASON])
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


registry = Registry()
"""The checks of this process."""

os.register_at_fork(after_in_child=registry.forget)
