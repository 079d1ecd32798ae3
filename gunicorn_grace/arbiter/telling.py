"""The messages about a shutdown: the summary line, the report, the service manager, StatsD.

Everything here runs in the arbiter's main thread, and nothing in the shutdown depends on it. A
message that cannot be sent is logged once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ..shared.agreed import POKE, TELL_BEFORE
from ..shared.budget import exit_margin
from ..shared.cells import NS, Record
from ..shared.memory import Memory, unix_time
from ..shared.phase import Phase
from ..shared.settings import Settings
from ..shared.version import __version__
from . import notify
from . import report as reporting
from .lifecycle import CUT_SHORT
from .progress import Progress
from .report import Report, told_lost, verdict
from .roster import Roster
from .upgrade import Counterpart


class Telling:
    """Sends the messages about the shutdown of one instance.

    :ivar settings: the settings in use.
    :ivar interrupted: the name of the signal that ends the instance at once: SIGINT or SIGQUIT.
    :ivar halted: gunicorn's own words for the reason why it halts.
    :ivar is_exiting: whether the process ends without gunicorn's ``on_exit``.
    :ivar has_finished: whether :meth:`the_end` has run.

    :param arbiter: gunicorn's arbiter.
    :param memory: the shared memory.
    :param progress: the progress of the shutdown.
    :param roster: the workers.
    :param counterpart: the other arbiter, after SIGUSR2.
    :param settings: the settings in use.
    """

    def __init__(
        self,
        arbiter: Any,
        memory: Memory,
        progress: Progress,
        roster: Roster,
        counterpart: Counterpart,
        settings: Settings,
    ) -> None:
        self._arbiter = arbiter
        self._memory = memory
        self._progress = progress
        self._roster = roster
        self._counterpart = counterpart
        self.settings = settings
        self.interrupted = ""
        self.halted = ""
        self.is_exiting: bool = False
        self.has_finished: bool = False
        self._since_before = 0
        self._told_of_forking = self._have_told = False
        self._untold: list[BaseException] = []
        self._service_manager = notify.ServiceManager()
        self._gauges = notify.Gauges()
        self._untellable: set[str] = set()

    @property
    def _log(self) -> Any:
        return self._arbiter.log

    # -- in every pass ----

    def later(self, error: Exception) -> None:
        """Keep an error, and log it in the next pass. In gunicorn 22 and 23 the error comes in a
        signal handler, where nothing may be logged."""
        self._untold.append(error)

    def catch_up(self) -> None:
        """Log the errors that could not be logged when they happened."""
        while self._untold:
            error = self._untold.pop(0)
            self._log.error(
                "gunicorn-grace: a hook failed for a worker; the shutdown goes on", exc_info=error
            )
        why = self._roster.gave_up_forking
        if why and not self._told_of_forking:
            self._log.error("gunicorn-grace: no more workers are forked in this shutdown: %s", why)
        self._told_of_forking = bool(why)

    def start_anew(self) -> None:
        """Begin new counts, because the instance serves again. The requests counted until now
        belong to a shutdown that is over."""
        self._told_of_forking = False
        self._since_before = self._memory.total_ever(Record.since_t0)
        for record in self._memory.records():
            record.since_t0_before = record.since_t0

    def others(self) -> None:
        """Send the service manager and StatsD what has changed, and poke stuck workers before the
        drain limit. Runs in every pass."""
        self._attempt("NOTIFY_SOCKET cannot be told", self._tell_service_manager)
        self._attempt("StatsD cannot be told", self._send_gauges, time.monotonic())
        self._have_the_stuck_tell()

    def _have_the_stuck_tell(self) -> None:
        """Poke the workers of gevent and eventlet a second before the drain limit. A worker may be
        stuck in a greenlet that does not yield, and can then log that only in a signal handler."""
        limit, now = self._progress.drain_limit, time.monotonic_ns()
        if self._have_told or not limit or now < limit - TELL_BEFORE * NS:
            return
        self._have_told = True
        names = {cls.__name__ for cls in self._arbiter.cfg.worker_class.__mro__}
        if "AsyncWorker" in names:
            self._arbiter.kill_workers(POKE)

    def _tell_service_manager(self) -> None:
        if self._progress.upgraded or self._counterpart.serves():
            return  # The service goes on in another process.
        progress, now = self._progress, time.monotonic_ns()
        needed = 0.0
        if progress.deadline:
            needed = (progress.deadline - now) / NS + exit_margin(self.settings)
        elif progress.phase is Phase.STOPPED:
            # gunicorn's stop() comes next, and this code does not run in it.
            needed = self._arbiter.cfg.graceful_timeout + notify.STRETCH
        self._service_manager.look(
            now / NS,
            progress.phase,
            self._roster.in_flight(),
            stopping=progress.terms > 0 or progress.phase is Phase.STOPPED,
            needed=needed,
        )

    def _send_gauges(self, now: float | None = None) -> None:
        if self._arbiter.reexec_pid:
            # The new arbiter sends its own numbers, and the two would overwrite each other's.
            return
        if now is None:
            self._gauges.send(self._log, self._memory)
        else:
            self._gauges.look(self._log, now, self._memory)

    def _attempt(
        self, failure: str, action: Callable[..., None], *args: Any, **options: Any
    ) -> None:
        """Run an action on which nothing else depends, and log its first failure."""
        try:
            action(*args, **options)
        except Exception as error:
            if failure not in self._untellable:
                self._untellable.add(failure)
                self._log.warning("gunicorn-grace: %s: %s", failure, error)

    # -- at the end ----

    def report(self, *, last: bool = False) -> None:
        """Write the report as far as it is known. It is written more than once, because the process
        may be killed before it can write the last one.

        :param last: whether no other report follows.
        """
        path = self.settings.report
        told = self.summary() if path else None
        if path and told is not None:
            self._attempt(
                f"grace_report {path} cannot be written", reporting.write, path, told, last=last
            )

    def the_end(self) -> None:
        """Log the summary, which is the last line of an instance, and write the last report. Runs
        in ``on_exit``."""
        self._attempt("StatsD cannot be told", self._send_gauges)
        told = self.summary()
        self.has_finished = True
        if told is None:
            return
        lost = self._roster.cut_off()
        log = self._log.warning if lost.total() else self._log.info
        if told.cut_off is None:
            counted = "requests since T0 are not counted"
        else:
            counted = (
                f"{told.requests_since_t0} requests since T0, in flight {told.in_flight_at_t0} "
                f"at T0 and {told.in_flight_at_drain} at the drain"
            )
        log(
            "gunicorn-grace: stopped: lame duck %.1f s (%s), draining %.1f s, %s, %s; %s",
            told.lame_duck_seconds,
            told.lame_duck_ended or "cut short",
            told.draining_seconds,
            counted,
            told_lost(lost, counted=told.cut_off is not None),
            told.verdict,
        )
        self.report(last=True)

    def summary(self) -> Report | None:
        """Return the numbers of the shutdown; ``None`` if the plugin has not run one, or if this
        arbiter drains because another one serves the same sockets."""
        progress = self._progress
        t0, drain = progress.t0, progress.drain
        if not t0 or progress.upgraded:
            return None
        end = time.monotonic_ns()
        last = max(self._roster.last_arrival(), progress.waited_until)
        last_after = (last - t0) / NS if last > t0 else None
        counted, lost = self._roster.are_counted(), self._roster.cut_off()
        report = Report(
            version=__version__,
            origin=progress.origin.name.lower(),
            t0_unix_seconds=unix_time(t0),
            phase=str(progress.phase),
            ended=self._ended(),
            lame_duck_seconds=round(((drain or end) - t0) / NS, 3),
            lame_duck_ended=str(progress.reasons.get(Phase.DRAINING, "")) or None,
            draining_seconds=round((end - drain) / NS, 3) if drain else 0.0,
            requests_since_t0=self._memory.total_ever(Record.since_t0) - self._since_before,
            last_request_after_t0_seconds=None if last_after is None else round(last_after, 3),
            handed_over=progress.handed_over,
            in_flight_at_t0=progress.in_flight.get(Phase.LAME_DUCK, 0),
            in_flight_at_drain=progress.in_flight.get(Phase.DRAINING, 0),
            in_flight_at_stop=progress.in_flight.get(Phase.STOPPED),
            cut_off=lost.total(),
            cut_off_by_kind=lost._asdict(),
            cut_off_by_worker=self._roster.cut_off_by_worker(),
            verdict=(
                "the delay was an operator's drain"
                if progress.held
                else verdict(
                    last_after,
                    self.settings.shutdown_delay,
                    self._cut_short(drain or end),
                    lasted=((drain or end) - t0) / NS,
                    handed_over=progress.handed_over,
                )
            ),
        )
        return report if counted else reporting.uncounted(report)

    def _cut_short(self, ended: int) -> str:
        """Return what ended the delay early although requests may still have come; empty if nothing
        did.

        :param ended: when the delay ended, in monotonic nanoseconds.
        """
        progress = self._progress
        reason = progress.reasons.get(Phase.DRAINING)
        if reason in CUT_SHORT:
            return str(reason)
        is_short = ended - progress.t0 < self.settings.shutdown_delay * NS
        return (self._ended() or "not over") if reason is None and is_short else ""

    def _ended(self) -> str | None:
        progress = self._progress
        if Phase.STOPPED in progress.reasons:
            return str(progress.reasons[Phase.STOPPED])
        if self.interrupted:
            return self.interrupted
        if progress.failed:
            return "failed"
        if progress.phase is Phase.STOPPED:
            return f"halted: {self.halted}" if self.halted else "halted"
        return "exited" if self.is_exiting else None
