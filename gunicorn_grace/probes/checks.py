"""Checks: named conditions of the application that decide on liveness, readiness and start-up.

A check is a function written by the user. It may hang, raise, or be slow just when a probe asks. If
it ran in the request itself, a hanging check would block a worker; with a new thread for each
probe, a thousand probes would leave a thousand threads. So each check runs in its own thread, one
run at a time. The probe waits at most until the check's deadline, and the result is kept for a
while. SIGALRM is not used, because it interrupts only the main thread, and because gunicorn's
arbiter and many libraries use it.

Checks are registered where the application is imported: in each worker, or with ``preload_app`` in
the arbiter. Its children inherit the registrations and nothing else (no result, no thread, no lock
that was held at the fork). Checks run in workers only. Under gevent their threads are greenlets,
because gevent patches them.

The reason of a failure goes to the log, once for each change, and never into a response.
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
from ..shared.text import printable

RESERVED = frozenset({"booted", "heartbeat", "shutdown"})
"""The names of the plugin's own checks."""

LONGEST_TIMEOUT = 3600.0
"""The longest ``timeout`` that a check may have, in seconds."""

REASON_INTERVAL = 60.0
"""Seconds between two log lines about a check that keeps failing with changing reasons. A reason
that contains a port or a time never repeats."""

LONGEST_REASON = 300

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")

Function = Callable[[], object]


def is_name(name: str) -> bool:
    """Whether a check may have this name."""
    return _NAME.fullmatch(name) is not None


@dataclass(frozen=True)
class Outcome:
    """The result of a check.

    :ivar name: the check's name.
    :ivar passed: whether the check passed.
    :ivar reason: why it failed, in one line, for the log only.
    """

    name: str
    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class Check:
    """A registered check.

    :ivar name: its name in paths, answers and the log.
    :ivar function: the function. It passes by returning, and fails by raising or by returning
        ``False``.
    :ivar kind: the kind of probe that it belongs to.
    :ivar timeout: how many seconds a probe waits for it at most.
    :ivar ttl: how many seconds its result is kept.
    """

    name: str
    function: Function
    kind: Kind
    timeout: float
    ttl: float


class Run:
    """One run of a check's function, in its own thread."""

    def __init__(self, runner: Runner, deadline: float) -> None:
        self._runner = runner
        self.deadline = deadline
        self.done: threading.Event = threading.Event()
        self.result: Outcome | None = None
        """The first result stays. A value that the function returns after the deadline is
        ignored."""

    def is_known(self) -> bool:
        """Whether :meth:`outcome` returns without waiting."""
        return self.result is not None or self._runner.clock() >= self.deadline

    def outcome(self) -> Outcome:
        """Return the result. Waits for it until the deadline."""
        self.done.wait(max(0.0, self.deadline - self._runner.clock()))
        return self._runner.result_of(self)


class Runner:
    """A check in this process, with its last result and the run that may be under way.

    The lock is held for a few assignments and never while anything waits. So no greenlet switches
    inside, with or without gevent's patched lock. A probe that finds a fresh result takes no lock.

    :param check: the check.
    :param registry: the registry that it belongs to.
    """

    def __init__(self, check: Check, registry: Registry) -> None:
        self.check = check
        self.clock: Callable[[], float] = registry.clock
        self._registry = registry
        self._logged_passed, self._logged_reason, self._logged_at = True, "", -math.inf
        self.forget()

    def forget(self) -> None:
        """Drop the state after a fork. The fork copies neither the thread of a run nor the thread
        that would release the lock."""
        self._lock = threading.Lock()
        self._run: Run | None = None
        self._kept: Outcome | None = None
        self._fresh_until = -math.inf

    def begin(self) -> Outcome | Run:
        """Return the last result if it is fresh; otherwise the run under way, or a new one. Does
        not wait for the run."""
        kept = self._kept
        if kept is not None and self.clock() < self._fresh_until:
            return kept
        with self._lock:
            now, kept = self.clock(), self._kept
            if kept is not None and now < self._fresh_until:
                return kept
            if self._run is not None:
                # A run that still hangs after its deadline has failed, and a second run would hang
                # too.
                return self._run.result or self._run
            run = self._run = Run(self, now + self.check.timeout)
        try:
            # A daemon thread, because a check that hangs must not delay the exit of the worker.
            threading.Thread(
                target=self._execute, args=(run,), name=f"check {self.check.name}", daemon=True
            ).start()
        except BaseException as error:  # No thread is available, or a signal ends the worker.
            self._end(run, False, f"it could not be run: {_one_line(error)}")
            if not isinstance(error, Exception):
                raise
        return run

    def result_of(self, run: Run) -> Outcome:
        """Return the result of a run that has ended or passed its deadline."""
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
        """Give a run its result, keep it, and log a change. The first result wins."""
        with self._lock:
            if run.result is not None:
                return
            now = self.clock()
            run.result = Outcome(self.check.name, passed, reason)
            if self._run is not run:
                return  # forget() was called meanwhile.
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

    :param clock: returns seconds, for deadlines and for the age of results.
    :ivar log: gets the changes of results; in a worker it is gunicorn's logger.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock: Callable[[], float] = clock
        self.log: Any = logging.getLogger("gunicorn_grace")
        # The tuples are replaced as a whole, so an iteration sees either the old or the new one.
        self._of: dict[Kind, tuple[Runner, ...]] = dict.fromkeys(Kind, ())

    def register(
        self, name: str, function: Function, *, kind: Kind | str, timeout: float, ttl: float
    ) -> None:
        """Add a check. If the same function is registered again, as when its module is reloaded, it
        replaces the earlier one.

        :param name: the check's name.
        :param function: the function. It passes by returning, and fails by raising or by returning
            ``False``.
        :param kind: the kind of probe, as a ``Kind`` or as a word: ``"readiness"``,
            ``"liveness"``, ``"startup"``.
        :param timeout: how many seconds a probe waits for the check at most.
        :param ttl: how many seconds a result is kept.
        :raises CheckError: the name, a number or the function is invalid, or another function has
            this name.
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
                    f"check {name}: two {check.kind.value} checks have this name, "
                    f"{_shown(runner.check.function)} and {_shown(function)}: "
                    "give each its own name"
                )
        self._of[check.kind] = (*others, Runner(check, self))

    def __iter__(self) -> Iterator[Check]:
        """Iterate over the registered checks, kind by kind, in the order of registration."""
        return (runner.check for kind in Kind for runner in self._of[kind])

    def names(self, kind: Kind) -> tuple[str, ...]:
        """Return the names of the checks of one kind."""
        return tuple(runner.check.name for runner in self._of[kind])

    def begin(
        self, kind: Kind, *, exclude: Collection[str] = frozenset(), only: str | None = None
    ) -> list[Outcome | Run]:
        """Return the fresh results of the checks of one kind, and a run for each of the others.
        Does not wait. All runs go on at the same time, so a probe waits for the slowest check and
        not for the sum.

        :param kind: the kind of probe.
        :param exclude: names to leave out.
        :param only: the single check to run.
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
        """Return the results of the checks of one kind, kept ones while they are fresh and new ones
        otherwise.

        It waits for new results, at most for the longest ``timeout`` among these checks. The
        parameters are those of :meth:`begin`.
        """
        begun = self.begin(kind, exclude=exclude, only=only)
        return [one if isinstance(one, Outcome) else one.outcome() for one in begun]

    def forget(self) -> None:
        """Drop all results and runs. The registrations stay."""
        for checks in self._of.values():
            for runner in checks:
                runner.forget()


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise CheckError(
            f'check name {name!r} is not a string: write @gunicorn_grace.check("database")'
        )
    if not is_name(name):
        raise CheckError(
            f"check name {name!r} is not 1 to 63 letters, digits, dots, underscores and hyphens, "
            "with a letter or digit first: it becomes a part of a path, /readyz/<name>"
        )
    if name in RESERVED:
        raise CheckError(
            f"check name {name!r} is one of the plugin's own ({', '.join(sorted(RESERVED))}): "
            "choose another name"
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
        # A call in a thread would return a coroutine and so always pass.
        raise CheckError(
            f"check {name}: {_shown(function)} is a coroutine function, but checks run in threads: "
            "give a plain function"
        )
    return function


def _kind(name: str, kind: object) -> Kind:
    try:
        return Kind(kind)
    except ValueError:
        words = ", ".join(repr(known.value) for known in Kind)
        raise CheckError(
            f"check {name}: kind {kind!r} is not one of {words}: give one of them"
        ) from None


def _seconds(name: str, timeout: object, ttl: object) -> tuple[float, float]:
    for what, value in (("timeout", timeout), ("ttl", ttl)):
        if (
            isinstance(value, bool)
            or not isinstance(value, (int, float))
            or not math.isfinite(value)
        ):
            raise CheckError(
                f"check {name}: {what} {value!r} is not a number: give seconds, such as 1.0"
            )
    assert isinstance(timeout, (int, float))
    assert isinstance(ttl, (int, float))
    if not 0 < timeout <= LONGEST_TIMEOUT:
        raise CheckError(
            f"check {name}: timeout {timeout:g} s is not more than 0 s and at most "
            f"{LONGEST_TIMEOUT:g} s: give less than the probe's own timeout, 1 s by default in "
            "Kubernetes"
        )
    if ttl < 0:
        raise CheckError(
            f"check {name}: ttl {ttl:g} s is less than 0 s: "
            "give 0 to run the check for each probe, or more"
        )
    return float(timeout), float(ttl)


def _origin(function: object) -> object:
    """Return the identity of a function that survives a reload of its module or a second call of
    its factory."""
    name = getattr(function, "__qualname__", None)
    return function if name is None else (getattr(function, "__module__", None), name)


def _shown(function: object) -> str:
    name = getattr(function, "__qualname__", None)
    return repr(function) if name is None else f"{getattr(function, '__module__', '?')}.{name}"


def _one_line(error: BaseException) -> str:
    """Format any exception for the log, in one line of bounded length."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = "(it cannot be shown)"
    shown = printable(text, LONGEST_REASON)
    return f"{type(error).__name__}: {shown}" if shown else type(error).__name__


registry: Registry = Registry()
"""The checks of this process."""

os.register_at_fork(after_in_child=registry.forget)
