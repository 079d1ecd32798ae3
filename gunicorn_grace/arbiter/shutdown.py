"""The shutdown as the arbiter runs it: look, decide, act, once in each pass of gunicorn's loop.

The timeline::

    T0            SIGTERM, or a trigger before it: whichever comes first starts the clock, once
    |  LAME_DUCK  readiness is 503 in every worker, and every worker goes on serving
    T0+delay      or earlier, or later: lifecycle.decide has the rules
    |  DRAINING   listeners are sealed, the accept queue is served to its end, then the workers
    |             finish what is in flight, until the drain limit
    T0+x          all have finished, or the limit has come: what is cut off is logged
       STOPPED    the summary line, the report, exit 0

A walk from SIGTERM to the exit. The signal handler stores the time (:meth:`Shutdown.on_sigterm`).
From that store on every worker answers "not ready" (with ``grace_readiness_delay``, that much
later). gunicorn's loop wakes up and makes a pass (:meth:`Shutdown.step`): it observes,
:func:`~gunicorn_grace.arbiter.lifecycle.decide` returns LAME_DUCK, and
:meth:`Shutdown._enter_lame_duck` publishes T0 and the deadline and starts the timer.
Each pass asks ``decide`` again, ten times a second, until it says DRAINING. Then
:meth:`Shutdown._enter_draining` seals the listeners and wakes the workers, which begin to close
idle connections. When nothing waits in the accept queues, the workers get SIGTERM
(:class:`~gunicorn_grace.arbiter.draining.Draining`), and the listeners are shut for all processes.
When the last worker has gone, or the drain limit has come, :meth:`Shutdown._enter_stopped` ends
gunicorn's loop. gunicorn's own ``stop()`` follows, and kills the workers that are left. ``on_exit``
logs the summary.

The drain also runs inside gunicorn's loop, and ``stop()`` comes only after it. So in every phase
and version gunicorn reaps dead workers, and SIGINT ends the instance at once. In ``stop()``
gunicorn would block (22.0 to 24.1 ignore SIGINT there).
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Callable
from typing import Any

from ..shared.agreed import POKE
from ..shared.budget import longest_delay
from ..shared.cells import HIGHEST, NS
from ..shared.memory import Memory
from ..shared.phase import Origin, Phase, check_transition
from ..shared.settings import Settings
from . import events
from .draining import Draining
from .lifecycle import (
    Observation,
    Reason,
    deadline,
    decide,
    drain_limit,
    has_expired,
    is_delay_over,
)
from .listeners import Listeners
from .observer import GROUP_NS, Observer
from .progress import Progress
from .roster import Roster
from .telling import Telling
from .timer import DRAINING_TICK, LAME_DUCK_TICK, Timer
from .upgrade import Counterpart

DELAY = "grace_shutdown_delay"

QUICK_STOP = 2.0
"""Seconds that workers have after SIGINT or SIGQUIT. gunicorn 25.1 to 27.0 allow the same time when
such a signal comes during their own drain. Without this limit a gthread worker would take up to
graceful_timeout, because it joins its threads at its exit."""


class Shutdown:
    """The shutdown of one instance. Everything here runs in the arbiter's main thread.

    :ivar as_set: the settings as the user has set them.
    :ivar settings: the settings in use, which differ if the listening sockets were handed over.

    :param arbiter: gunicorn's arbiter.
    :param memory: the shared memory.
    :param settings: the settings at the start.
    """

    def __init__(self, arbiter: Any, memory: Memory, settings: Settings) -> None:
        self.arbiter = arbiter
        self.memory = memory
        self.progress: Progress = Progress()
        self.roster: Roster = Roster(arbiter, memory)
        self.counterpart: Counterpart = Counterpart(arbiter, memory)
        self.listeners: Listeners = Listeners(arbiter, self.roster, self.counterpart)
        self.observer: Observer = Observer(
            arbiter, memory, self.progress, self.roster, self.listeners, self.counterpart
        )
        self.draining: Draining = Draining(
            arbiter,
            self.progress,
            self.roster,
            self.listeners,
            self.counterpart,
            self._publish,
            self.observer.is_awaited,
        )
        self.timer: Timer = Timer(arbiter, self.roster)
        self.telling: Telling = Telling(
            arbiter, memory, self.progress, self.roster, self.counterpart, settings
        )
        self._enter: dict[Phase, Callable[[Observation, Reason], None]] = {
            Phase.SERVING: self._enter_serving,
            Phase.LAME_DUCK: self._enter_lame_duck,
            Phase.DRAINING: self._enter_draining,
            Phase.STOPPED: self._enter_stopped,
        }
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Use these settings, and publish those that the commands need. If another process keeps
        the listening sockets, no client is refused, so there is no delay by default."""
        self.as_set = settings
        self.listeners.note_paths()
        self.progress.handed_over = self.listeners.are_handed_to_us()
        if self.progress.handed_over and not self.arbiter.cfg.settings[DELAY].given:
            settings = dataclasses.replace(settings, shutdown_delay=0.0, extend_delay=False)
            self._log.info(
                "gunicorn-grace: no delay, because the listening sockets were handed over, and "
                "whoever keeps them turns nobody away; set %s for one",
                DELAY,
            )
        self.settings = self.telling.settings = settings
        self.progress.delay = round(longest_delay(settings) * NS)
        self._publish()

    def _publish(self) -> None:
        self.progress.publish(self.memory.header)

    @property
    def _log(self) -> Any:
        return self.arbiter.log

    # -- signals ----

    def on_sigterm(self) -> None:
        """Note a SIGTERM. Runs in the real signal handler, so it neither logs nor locks. Every
        worker then sees that the shutdown has begun, unless another arbiter is there (SIGUSR2)."""
        progress = self.progress
        if not progress.told:
            progress.told = self.memory.header.told = time.monotonic_ns()
        progress.terms += 1
        if not progress.sigterm and not self.counterpart.is_there():
            self._note_sigterm()

    def _note_sigterm(self) -> None:
        self.progress.sigterm = self.memory.header.sigterm = self.progress.told

    def let_go(self) -> None:
        """Leave the instance as it would be without the plugin: triggers have no effect any more,
        and workers that wait for their dismissal get it."""
        progress = self.progress
        progress.failed = True
        if not progress.terms:
            progress.consumed = HIGHEST
            progress.t0 = progress.deadline = 0
            progress.phase = min(progress.phase, Phase.SERVING)
        self._publish()
        # A worker first stores that it has got a SIGTERM and then reads `failed`. Here the order is
        # the opposite, so at least one of the two sees the other.
        for pid in self.roster.waiting_for_an_answer():
            self.arbiter.kill_worker(pid, signal.SIGTERM)

    # -- acting ----

    def step(self) -> None:
        """Observe, decide and act. Runs once in each pass of gunicorn's loop.

        :raises StopIteration: gunicorn's loop must end.
        """
        now = time.monotonic_ns()
        progress = self.progress
        if progress.told and not progress.sigterm and progress.phase < Phase.DRAINING:
            if self.counterpart.serves():
                self.timer.set(LAME_DUCK_TICK)  # The decision must not wait for a whole second.
            else:
                # The other arbiter was told to stop too, or gunicorn notices only now that it left.
                self._note_sigterm()
        if progress.phase is Phase.STARTING:
            self.listeners.note_paths()
        if not self.observer.has_begun():
            self.observer.before_a_shutdown(now)
            # These workers may leave. A SIGTERM to the whole group would have come here as well.
            for pid in self.roster.asked_to_leave(now, GROUP_NS):
                self.arbiter.kill_worker(pid, signal.SIGTERM)
        self.telling.catch_up()
        while True:
            seen = self.observer.observe(now)
            phase, reason = decide(seen, self.settings)
            if phase is seen.phase:
                break
            assert reason is not None
            check_transition(seen.phase, phase)
            progress.reasons[phase] = reason
            progress.stamps[phase] = now
            progress.in_flight[phase] = self.roster.in_flight()
            self._enter[phase](seen, reason)
        if seen.phase is Phase.LAME_DUCK:
            if seen.held and has_expired(seen, self.settings):
                seen = self._expire_under_a_drain(seen)
            self._set_deadline(seen)  # A hook or a SIGTERM may have started the platform's clock.
            if not progress.delay_over and is_delay_over(seen, self.settings):
                progress.delay_over = now
        elif seen.phase is Phase.DRAINING:
            self.draining.step(now)
        self._publish()
        self.roster.mend()
        self.telling.others()

    def _enter_serving(self, seen: Observation, reason: Reason) -> None:
        progress = self.progress
        progress.phase = Phase.SERVING
        if seen.phase is Phase.STARTING:
            self._publish()
            return
        self.timer.set(0)
        self.roster.gave_up_forking = ""
        self.telling.start_anew()
        expired = progress.platform_origin if reason is Reason.EXPIRED else Origin.NONE
        progress.http_shut |= expired is Origin.HTTP
        progress.consumed = self.observer.looked_at = time.monotonic_ns()
        progress.origin = progress.platform_origin = Origin.NONE
        progress.t0 = progress.deadline = progress.delay_over = progress.platform = 0
        progress.held = False
        header = self.memory.header
        header.late = 0
        # The phase is stored first and `consumed` last. In between, the old trigger still counts,
        # so no process takes the end of one shutdown for the beginning of another.
        header.phase = Phase.SERVING
        self._publish()
        # In gunicorn 22 and 23 a signal handler may have set this again meanwhile.
        self.roster.gave_up_forking = ""
        if expired:
            events.trigger_expired(self._log, expired, seen, "serving again")
        else:
            self._log.info("gunicorn-grace: undrained: serving again")

    def _expire_under_a_drain(self, seen: Observation) -> Observation:
        """End the platform's trigger and its clock, because no SIGTERM followed. The operator's
        drain goes on. Return a new observation."""
        progress = self.progress
        expired, progress.platform_origin = progress.platform_origin, Origin.NONE
        progress.http_shut |= expired is Origin.HTTP
        progress.platform, progress.platform_over = 0, time.monotonic_ns()
        events.trigger_expired(self._log, expired, seen, "the operator's drain goes on")
        return self.observer.observe(progress.platform_over)

    def _enter_lame_duck(self, seen: Observation, reason: Reason) -> None:
        assert seen.t0 is not None
        progress = self.progress
        # The observation is used, because another process may have overwritten the trigger by now.
        progress.origin, progress.t0 = seen.origin, round(seen.t0 * NS)
        progress.stamps[Phase.LAME_DUCK] = progress.t0
        progress.phase = Phase.LAME_DUCK
        self._set_deadline(seen)
        self._publish()
        self.roster.begin_counting()
        self.timer.set(LAME_DUCK_TICK)
        in_flight = progress.in_flight[Phase.LAME_DUCK]
        events.shutdown_initiated(self._log, progress, seen, in_flight)

    def _set_deadline(self, seen: Observation) -> None:
        gone_by = deadline(seen.clock, self.settings)
        self.progress.deadline = 0 if gone_by == float("inf") else round(gone_by * NS)

    def _enter_draining(self, seen: Observation, reason: Reason) -> None:
        progress = self.progress
        now = progress.stamps[Phase.DRAINING]
        self._set_deadline(seen)
        gone_by = deadline(seen.clock, self.settings)
        progress.upgraded = seen.upgraded
        progress.drain_limit = round(drain_limit(now / NS, gone_by, self.settings) * NS)
        progress.drain = now
        if not seen.upgraded:
            events.lame_duck_ended(self._log, seen, reason)
            self.listeners.seal()
        progress.phase = Phase.DRAINING
        self._publish()
        self.timer.set(DRAINING_TICK)
        self.arbiter.kill_workers(POKE)
        self.telling.report()

    def _enter_stopped(self, seen: Observation, reason: Reason) -> None:
        events.draining_ended(self._log, seen, reason, self.roster.known_cut_off())
        # Otherwise stop() could wait for the whole graceful_timeout: for a worker that hangs while
        # it boots, and after a drain once more for the dirty arbiter (25.1 to 27.0).
        gone_by = deadline(seen.clock, self.settings)
        ends = self.progress.drain_limit / NS or gone_by
        allowed = self.arbiter.cfg.settings["graceful_timeout"]
        allowed.value = max(0, min(allowed.value, ends - time.monotonic()))
        self.progress.phase = Phase.STOPPED
        self._publish()
        raise StopIteration

    # -- the end ----

    def before_stop(self, graceful: bool) -> None:
        """Prepare for gunicorn's ``stop()``, which ends the workers, and write the report.

        :param graceful: whether gunicorn gives the workers ``graceful_timeout``.
        """
        self.roster.are_dismissed = True
        allowed = self.arbiter.cfg.settings["graceful_timeout"]
        if not graceful:
            allowed.value = min(allowed.value, QUICK_STOP)
        self.timer.keep_the_limit_of_stop(allowed.value)
        progress = self.progress
        if progress.phase is not Phase.STOPPED:
            # SIGINT, SIGQUIT, or gunicorn's own halt (a worker that cannot boot).
            progress.stamps.setdefault(Phase.STOPPED, time.monotonic_ns())
            progress.in_flight.setdefault(Phase.STOPPED, self.roster.in_flight())
            progress.phase = Phase.STOPPED
            self._publish()
        self.roster.publish()
        self.telling.others()
        self.telling.report()
