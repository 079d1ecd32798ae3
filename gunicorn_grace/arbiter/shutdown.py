"""The shutdown as the arbiter runs it: the only module that touches gunicorn's Arbiter and knows
its versions.

:func:`attach` mixes :class:`GraceArbiter` over the class of the running arbiter, in
``on_starting``, which is before its signal handlers are installed. The mixed-in methods are thin;
what they mean is in :class:`Lifetime`, which owns the shared memory, asks
:func:`~gunicorn_grace.arbiter.lifecycle.decide` once a pass of gunicorn's own main loop, and acts.

The drain runs inside that loop as well, and ``stop`` comes only after it. So in every phase crashed
workers are reaped, hung ones are noticed, and SIGINT ends it at once, on every version; gunicorn's
own ``stop`` would block (22.0 to 24.1 ignore SIGINT there), and measures its limit with the wall
clock, for which our timer keeps it as well.

When anything in here fails, the error is logged with its traceback, and the arbiter behaves as
plain gunicorn from then on: a SIGTERM that had come is carried out at once.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gunicorn.errors import HaltServer

from .. import __version__
from ..errors import GraceError
from ..shared import listener
from ..shared import memory as st
from ..shared.phase import Phase, check_transition
from ..shared.settings import Settings, budget_line, longest_delay
from ..worker.classes import LINGER, POKE
from . import notify
from . import report as reporting
from .lifecycle import Observation, Origin, Reason, deadline, decide, drain_limit, is_delay_over
from .probe_port import ProbePort
from .report import Report, verdict

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter

    _Base = Arbiter
else:
    _Base = object

EMPTY_FOR = 0.25
"""Seconds without a connection in the accept queue after which it counts as served: longer than the
round trip of a handshake that was under way when the listener was sealed."""

LAME_DUCK_TICK = 0.1
DRAINING_TICK = 0.05
"""Seconds between two looks, by a timer that wakes gunicorn's loop; that loop alone looks once a
second."""

STOPPING_TICK = 0.1
"""Seconds between two looks of that timer at the limit of gunicorn's ``stop()``, as long as its own
looks."""

REMIND_EVERY = 1.0
"""Seconds after which a worker that loads the application and has not handled its SIGTERM gets it
again."""

EMPTYING_MARGIN = 1.0
"""Seconds before the drain limit at which the workers are dismissed even though connections still
wait."""

QUICK_STOP = 2.0
"""Seconds that workers have after SIGINT or SIGQUIT. gunicorn 25.1 to 27.0 allow as much when one
comes while they drain; otherwise a gthread worker, whose threads are joined at its exit, would take
up to graceful_timeout."""

TERM_GRACE_NS = st.NS // 2
"""A worker that got a SIGTERM not from us waits this long for the arbiter's own: the group gets
them all at once."""

RATE_WINDOW = 60.0
SILENCE_WINDOW = 300.0
SAMPLE_EVERY = 1.0

CONF_MODULE = "gunicorn_grace.conf"


class Lifetime:
    """The life of one instance, from the arbiter's side. Everything here runs in the arbiter's main
    thread."""

    def __init__(self, arbiter: Any, state: st.State, settings: Settings) -> None:
        self.arbiter = arbiter
        self.state = state
        self.cells = state.cells
        self.failed = False
        self.terms = 0
        self.reason: dict[Phase, Reason] = {}
        self.stamps: dict[Phase, int] = {}
        self.in_flight_at: dict[Phase, int] = {}
        self.dismissed = False
        self.reloading = False
        self.gave_up_forking = ""
        self._told_of_forking = False
        self._untold: list[BaseException] = []
        self.adopt: Callable[[Any], None] | None = None
        self.probe_port: ProbePort | None = None
        self._claimed: dict[int, Any] = {}
        self._sealed: list[Any] = []
        self._waiting: list[Any] = []
        self._empty_since = 0
        self._samples: deque[tuple[float, int]] = deque()
        self._silences: deque[tuple[float, float]] = deque()
        self._last_arrival = 0
        self._cut_off_before = self._since_before = 0
        self._timer: float = 0.0
        self._kill_at = float("inf")
        self._remind_at = 0.0
        self.interrupted = ""
        """The name of the signal that ends it at once: SIGINT or SIGQUIT."""
        self.halted = ""
        """Why gunicorn halts, in its own words."""
        self._is_exiting = self._has_finished = False
        self._lost: list[tuple[int, int]] = []
        """Workers that ended with requests in flight since T0: pid, how many."""
        self._service_manager = notify.ServiceManager()
        self._gauges = notify.Gauges()
        self._untellable: set[str] = set()
        self.use(settings)

    def use(self, settings: Settings) -> None:
        """Take these settings from now on, and publish those that the CLI needs."""
        self.settings = settings
        self.cells[st.DELAY] = round(longest_delay(settings) * st.NS)

    @property
    def log(self) -> Any:
        return self.arbiter.log

    @property
    def phase(self) -> Phase:
        return Phase(self.cells[st.PHASE])

    # -- signals ----

    def on_sigterm(self) -> None:
        """In the real signal handler: no log, no lock. Readiness is 503 from the store on, in every
        worker."""
        self.terms += 1
        if not self.cells[st.SIGTERM] and not self.is_upgraded():
            self.cells[st.SIGTERM] = time.monotonic_ns()

    def let_go(self) -> None:
        """Leave the instance as it would be without us: nobody takes up triggers any more, nor
        answers a worker that asks for its dismissal."""
        cells = self.cells
        cells[st.FAILED] = 1
        if not self.terms:
            cells[st.CONSUMED] = 2**63 - 1
            cells[st.T0] = cells[st.DEADLINE] = 0
            cells[st.PHASE] = min(cells[st.PHASE], Phase.SERVING)
        # A worker asks first and looks at FAILED then, so that one of the two sees the other.
        for number, worker in list(self._claimed.items()):
            if (
                cells[self.state.meter(number) + st.TERM_SEEN]
                and worker.pid in self.arbiter.WORKERS
            ):
                self.arbiter.kill_worker(worker.pid, signal.SIGTERM)

    def is_upgraded(self) -> bool:
        """Whether another arbiter serves the same sockets, after SIGUSR2: then nobody has to be
        turned away."""
        return bool(self.arbiter.reexec_pid or self.arbiter.master_pid)

    # -- slots ----

    def claim(self, worker: Any) -> None:
        """Give a worker that is about to be forked its slot. With none left it is served by, but
        not counted."""
        number = self._free_slot()
        worker.grace_slot = number
        if number is None:
            self.log.warning(
                "gunicorn-grace: all %d slots are taken: worker of age %d is not counted",
                st.SLOTS,
                worker.age,
            )
            return
        self._claimed[number] = worker
        self.state.claim(number, worker.age)

    def _free_slot(self) -> int | None:
        for number in range(self.cells[st.SLOT_COUNT]):
            if number not in self._claimed:
                return number
        # A fork that failed, and a worker that gunicorn forgot in kill_worker (ESRCH), never reach
        # child_exit.
        alive = set(map(id, self.arbiter.WORKERS.values()))
        for number, worker in list(self._claimed.items()):
            if id(worker) not in alive:
                self._free(number)
                return number
        return None

    def free(self, worker: Any) -> None:
        """Take the slot of a worker back that is dead. In gunicorn 22 and 23 this runs in a signal
        handler: no log."""
        number = getattr(worker, "grace_slot", None)
        if number is not None and self._claimed.get(number) is worker:
            self._free(number)

    def _free(self, number: int) -> None:
        pid = self.cells[self.state.slot(number) + st.PID]
        if lost := self.state.free(number):
            self._lost.append((pid, lost))
        self._claimed.pop(number, None)

    def dismiss(self, worker: Any) -> None:
        """Mark a worker as told to go, before its SIGTERM."""
        number = getattr(worker, "grace_slot", None)
        if number is not None and not self.cells[cell := self.state.meter(number) + st.DISMISSED]:
            self.cells[cell] = time.monotonic_ns()

    def total(self, cell: int) -> int:
        """The sum of a slot's cell over all workers."""
        return sum(self.cells[self.state.slot(number) + cell] for number in list(self._claimed))

    def last_arrival(self) -> int:
        """When the last request that is no probe came, in nanoseconds; 0 when none ever did."""
        slots = [self.state.slot(number) for number in list(self._claimed)]
        return max(
            [self.cells[slot + st.LAST_ARRIVAL] for slot in slots]
            + [self.cells[st.GONE_LAST_ARRIVAL]]
        )

    def _cut_off(self) -> int:
        # In gunicorn 22 and 23 a signal handler frees slots: what it moves meanwhile would be
        # counted twice.
        while True:
            gone = self.cells[st.GONE_CUT_OFF]
            alive = sum(map(self.state.cut_off, list(self._claimed)))
            if self.cells[st.GONE_CUT_OFF] == gone:
                return gone + alive - self._cut_off_before

    def _cut_off_by_worker(self) -> list[dict[str, int]]:
        # The living first: whoever is freed in between is in both, and counts once.
        found = {
            self.cells[self.state.slot(number) + st.PID]: self.state.cut_off(number)
            for number in [*self._claimed]
        }
        found.update(self._lost)
        most_first = sorted(found.items(), key=lambda entry: -entry[1])
        return [{"pid": pid, "requests": count} for pid, count in most_first if count]

    def workers_own_listeners(self) -> bool:
        """Whether each worker binds its own listeners, and nobody else has them (gunicorn 24.1 to
        27.0)."""
        arbiter = self.arbiter
        return bool(
            arbiter.cfg.reuse_port and not arbiter.LISTENERS and not self._are_handed_to_us()
        )

    def _are_handed_to_us(self) -> bool:
        return bool(
            self.arbiter.systemd
            or any(isinstance(address, int) for address in self.arbiter.cfg.address)
        )

    def give_up_forking(self, why: object) -> None:
        """Serve with the workers that are left: what cannot be replaced now is no reason to lose
        the others' work.

        In gunicorn 22 and 23 this runs in a signal handler, so the next pass logs it."""
        self.gave_up_forking = self.gave_up_forking or str(why) or "the fork failed"

    def tell_later(self, error: Exception) -> None:
        """Log an error at the next pass: where it came, in a signal handler of gunicorn 22 and 23,
        nothing may be."""
        self._untold.append(error)

    def _tell(self) -> None:
        while self._untold:
            error = self._untold.pop(0)
            self.log.error(
                "gunicorn-grace: a hook failed for a worker; the shutdown goes on", exc_info=error
            )
        if self.gave_up_forking and not self._told_of_forking:
            self._told_of_forking = True
            self.log.error(
                "gunicorn-grace: no more workers are forked in this shutdown: %s",
                self.gave_up_forking,
            )

    # -- looking ----

    def observe(self, now: int) -> Observation:
        """What :func:`~gunicorn_grace.arbiter.lifecycle.decide` needs to know."""
        cells, phase = self.cells, self.phase
        origin, t0 = self._origin_and_t0()
        sigterm = cells[st.SIGTERM]
        if (
            self.terms and not sigterm
        ):  # Upgraded: no store in the handler, so that readiness stays as it is.
            sigterm = cells[st.DRAIN] or now
        last = self.last_arrival()
        return Observation(
            now=now / st.NS,
            phase=phase,
            booted=self.total(st.BOOTED) > 0,
            origin=origin,
            t0=t0 / st.NS if t0 else None,
            sigterm=sigterm / st.NS if sigterm else None,
            terms=self.terms,
            undrain=cells[st.UNDRAIN] > max(cells[st.CONSUMED], t0),
            upgraded=self.is_upgraded(),
            last_arrival=last / st.NS if last else None,
            rate=cells[st.RATE] / 1000,
            longest_silence=max((gap for _, gap in self._silences), default=0.0),
            longest_request=self._longest_request(now) / st.NS,
            drain_started=cells[st.DRAIN] / st.NS if cells[st.DRAIN] else None,
            # Until they are dismissed, workers that died are replaced: none left is then a moment,
            # not the end.
            workers=len(self.arbiter.WORKERS) or int(not self.dismissed),
        )

    def _origin_and_t0(self) -> tuple[Origin, int]:
        cells = self.cells
        began = []
        if cells[st.SIGTERM]:
            began.append((cells[st.SIGTERM], Origin.SIGTERM))
        if self.state.is_triggered():
            trigger = cells[st.TRIGGER]
            began.append((trigger & ~st.ORIGIN_MASK, Origin(trigger & st.ORIGIN_MASK)))
        if not began:
            return Origin.NONE, 0
        t0, origin = min(began)
        return origin, cells[st.T0] or t0

    def _longest_request(self, now: int) -> int:
        longest = 0
        for number in list(self._claimed):
            meter = self.state.meter(number)
            age = now - self.cells[meter + st.WINDOW]
            if age <= 2 * st.LONGEST_WINDOW:
                longest = max(longest, self.cells[meter + st.LONGEST])
            if age <= st.LONGEST_WINDOW:
                longest = max(longest, self.cells[meter + st.LONGEST_BEFORE])
        return longest

    def _sample(self, now: int) -> None:
        """Keep the rate and the silences of the time before T0. Between two samples the true gap is
        not known; what is kept is its upper bound, which makes the quiet test wait rather
        longer."""
        seconds = now / st.NS
        if self._samples and seconds - self._samples[-1][0] < SAMPLE_EVERY:
            return
        requests = self.state.total_ever(st.REQUESTS)
        last = self.last_arrival()
        if last > self._last_arrival:
            if self._last_arrival:
                self._silences.append((seconds, (last - self._last_arrival) / st.NS))
            self._last_arrival = last
        self._samples.append((seconds, requests))
        while len(self._samples) > 1 and seconds - self._samples[0][0] > RATE_WINDOW:
            self._samples.popleft()
        while self._silences and seconds - self._silences[0][0] > SILENCE_WINDOW:
            self._silences.popleft()
        (then, before), (_, after) = self._samples[0], self._samples[-1]
        self.cells[st.RATE] = (
            round(1000 * (after - before) / (seconds - then)) if seconds > then else 0
        )

    # -- acting ----

    def step(self) -> None:
        """One pass: look, decide, act. Raises ``StopIteration`` when gunicorn's loop is to end."""
        now = time.monotonic_ns()
        if (
            self.terms
            and not self.cells[st.SIGTERM]
            and self.phase < Phase.DRAINING
            and not self.is_upgraded()
        ):
            # The other arbiter was gone when the signal came, and gunicorn notices only now.
            self.cells[st.SIGTERM] = now
        if not self.state.is_terminating():
            self._sample(now)
            self._answer_asked(now)
        self._tell()
        while True:
            seen = self.observe(now)
            phase, reason = decide(seen, self.settings)
            if phase is seen.phase:
                break
            assert reason is not None
            check_transition(seen.phase, phase)
            self.reason[phase] = reason
            self.stamps[phase] = now
            self.in_flight_at[phase] = self.total(st.IN_FLIGHT)
            getattr(self, f"_enter_{phase.name.lower()}")(seen, reason)
        if seen.phase is Phase.LAME_DUCK:
            self._publish_deadline(seen)  # An operator's drain has none before its SIGTERM.
            if not self.cells[st.DELAY_OVER] and is_delay_over(seen, self.settings):
                self.cells[st.DELAY_OVER] = now
        elif seen.phase is Phase.DRAINING and not self.dismissed:
            self._empty_queue(now)
        self._tell_others()

    def _answer_asked(self, now: int) -> None:
        # A SIGTERM to one worker by hand: gunicorn lets it go and forks another. Had the group got
        # it, we had as well.
        for number, worker in list(self._claimed.items()):
            meter = self.state.meter(number)
            asked = self.cells[meter + st.TERM_SEEN]
            lives = worker.pid in self.arbiter.WORKERS
            if (
                lives
                and asked
                and now - asked > TERM_GRACE_NS
                and not self.cells[meter + st.DISMISSED]
            ):
                self.arbiter.kill_worker(worker.pid, signal.SIGTERM)

    def _enter_serving(self, seen: Observation, reason: Reason) -> None:
        cells = self.cells
        if seen.phase is Phase.STARTING:
            cells[st.PHASE] = Phase.SERVING
            return
        self._set_timer(0)
        self.gave_up_forking, self._told_of_forking = "", False
        if reason is Reason.EXPIRED and seen.origin is Origin.HTTP:
            cells[st.HTTP_SHUT] = 1
        self._since_before = self.state.total_ever(st.SINCE_T0)
        cells[st.CONSUMED] = time.monotonic_ns()
        cells[st.T0] = cells[st.DEADLINE] = cells[st.DELAY_OVER] = cells[st.LATE] = 0
        cells[st.PHASE] = Phase.SERVING
        if reason is Reason.EXPIRED:
            self.log.error(
                "gunicorn-grace: trigger_expired: %s was not followed by SIGTERM within %.0f s; serving again%s",
                seen.origin.name.lower(),
                seen.now - (seen.t0 or seen.now),
                ", and ?down=true is shut from now on" if seen.origin is Origin.HTTP else "",
            )
        else:
            self.log.info("gunicorn-grace: undrained: serving again")

    def _enter_lame_duck(self, seen: Observation, reason: Reason) -> None:
        assert seen.t0 is not None
        cells = self.cells
        cells[st.T0] = self.stamps[Phase.LAME_DUCK] = round(seen.t0 * st.NS)
        self._publish_deadline(seen)
        cells[st.PHASE] = Phase.LAME_DUCK
        self._cut_off_before = cells[st.GONE_CUT_OFF]
        self._lost.clear()
        self._set_timer(LAME_DUCK_TICK)
        self.log.info(
            "gunicorn-grace: shutdown_initiated by %s: not ready for %g s, %d in flight, %.1f requests/s before",
            "SIGTERM" if reason is Reason.SIGNAL else f"trigger ({seen.origin.name.lower()})",
            self.cells[st.DELAY] / st.NS,
            self.in_flight_at[Phase.LAME_DUCK],
            seen.rate,
        )

    def _publish_deadline(self, seen: Observation) -> None:
        gone_by = deadline(seen.origin, seen.t0, seen.sigterm, self.settings)
        self.cells[st.DEADLINE] = 0 if gone_by == float("inf") else round(gone_by * st.NS)

    def _enter_draining(self, seen: Observation, reason: Reason) -> None:
        cells, now = self.cells, self.stamps[Phase.DRAINING]
        self._publish_deadline(seen)
        gone_by = deadline(seen.origin, seen.t0, seen.sigterm, self.settings)
        cells[st.UPGRADED] = int(seen.upgraded)
        cells[st.DRAIN_LIMIT] = round(drain_limit(now / st.NS, gone_by, self.settings) * st.NS)
        cells[st.DRAIN] = now
        if not seen.upgraded:
            self.log.info(
                "gunicorn-grace: lame_duck_ended after %.1f s: %s",
                seen.now - (seen.t0 or seen.now),
                reason,
            )
            self._seal()
        cells[st.PHASE] = Phase.DRAINING
        self._set_timer(DRAINING_TICK)
        self.arbiter.kill_workers(POKE)
        self._report()

    def _seal(self) -> None:
        """Let no new connection in. What cannot be sealed is closed when the workers are dismissed,
        as ever."""
        if self._are_handed_to_us():
            return  # By systemd, or bind = "fd://3"; so they are not ours alone, and what waits stays there.
        if self.workers_own_listeners():
            self.log.info(
                "gunicorn-grace: sealed by each worker, which has its own listeners (reuse_port)"
            )
        for sock in self.arbiter.LISTENERS:
            if isinstance(sock.getsockname(), (str, bytes)):
                self._unlink(sock)
                self._waiting.append(sock)
            elif listener.can_seal(sock):
                try:
                    listener.seal(sock)
                except OSError as error:
                    self.log.warning(
                        "gunicorn-grace: %s cannot be sealed (%s): it closes with its queue, as without us",
                        sock,
                        error,
                    )
                else:
                    self._sealed.append(sock)
        self._waiting += self._sealed
        if self._waiting:
            self.log.info("gunicorn-grace: sealed %s", ", ".join(map(str, self._waiting)))

    def _unlink(self, sock: Any) -> None:
        # The rule of gunicorn's own stop(); abstract addresses have no path.
        path = sock.getsockname()
        if path and path[:1] not in ("\0", b"\0") and not self.arbiter.cfg.reuse_port:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _empty_queue(self, now: int) -> None:
        """Dismiss the workers once nothing waits in the accept queues, or when the time to wait is
        over."""
        if now < self.cells[st.DRAIN_LIMIT] - EMPTYING_MARGIN * st.NS:
            if self.cells[st.UPGRADED]:
                # There was no delay in which kept-alive connections were told to close. They are
                # now.
                ready = now - self.cells[st.DRAIN] >= LINGER * st.NS
            else:
                ready = all(
                    began and now - began >= EMPTY_FOR * st.NS
                    for began in self._empty_queues_since(now)
                )
            if not ready:
                return
        self.dismissed = True
        self._close_listeners()
        self.arbiter.kill_workers(signal.SIGTERM)

    def _empty_queues_since(self, now: int) -> list[int]:
        """For each place where connections may wait: since when none does, in nanoseconds; 0 while
        some do."""
        found = []
        if self._waiting:
            if listener.are_waiting(self._waiting):
                self._empty_since = 0
            elif not self._empty_since:
                self._empty_since = now
            found.append(self._empty_since)
        if self.workers_own_listeners():
            alive = set(map(id, self.arbiter.WORKERS.values()))
            found += [
                self.cells[self.state.meter(number) + st.EMPTY_SINCE]
                for number, worker in list(self._claimed.items())
                if id(worker) in alive
            ]
        return found

    def close_sealed(self) -> None:
        """Close what the drain has sealed, if it came no further: of a UNIX socket gunicorn would
        unlink the path, which is gone, and fail."""
        if self._waiting and self.arbiter.LISTENERS:
            self._close_listeners()

    def _close_listeners(self) -> None:
        # Here, and not in stop(), which would unlink the path of a UNIX socket a second time and
        # fail.
        from gunicorn import sock

        keep_path = {id(s) for s in self._waiting}
        arbiter = self.arbiter
        unlink = (
            arbiter.reexec_pid == arbiter.master_pid == 0
            and not arbiter.systemd
            and not arbiter.cfg.reuse_port
        )
        listeners, arbiter.LISTENERS = arbiter.LISTENERS, []
        sock.close_sockets([s for s in listeners if id(s) in keep_path], False)
        sock.close_sockets([s for s in listeners if id(s) not in keep_path], unlink)

    def _enter_stopped(self, seen: Observation, reason: Reason) -> None:
        if reason is Reason.DRAINED:
            self.log.info(
                "gunicorn-grace: drained in %.1f s", seen.now - (seen.drain_started or seen.now)
            )
        elif reason is Reason.DEADLINE:
            self.log.error(
                "gunicorn-grace: deadline_reached after %.1f s of draining: requests cut off: %d, workers left: %d",
                seen.now - (seen.drain_started or seen.now),
                self.in_flight_at[Phase.STOPPED],
                seen.workers,
            )
        # stop() would wait for all of graceful_timeout: for a worker that hangs while it boots; and
        # once more, after a drain, for the dirty arbiter (25.1 to 27.0).
        gone_by = deadline(seen.origin, seen.t0, seen.sigterm, self.settings)
        ends = self.cells[st.DRAIN_LIMIT] / st.NS or gone_by
        allowed = self.arbiter.cfg.settings["graceful_timeout"]
        allowed.value = max(0, min(allowed.value, ends - time.monotonic()))
        self.cells[st.PHASE] = Phase.STOPPED
        raise StopIteration

    def _set_timer(self, interval: float) -> None:
        if interval == self._timer:
            return
        ours = self.arbiter.grace_wake
        if signal.getsignal(signal.SIGALRM) not in (signal.SIG_DFL, signal.SIG_IGN, ours):
            return  # Somebody else's alarm: then gunicorn's loop looks once a second.
        self._timer = interval
        signal.signal(signal.SIGALRM, ours)
        signal.setitimer(signal.ITIMER_REAL, interval, interval)

    def tick(self) -> None:
        """The timer: let gunicorn's loop come round, or in ``stop()`` keep its limit. Runs in the
        signal handler."""
        now = time.monotonic()
        if self.dismissed:
            self._remind_the_loading(now)
        # stop() of 22.0 to 27.0 measures its limit with the wall clock: set back meanwhile, it
        # would wait for a worker that hangs by as much longer.
        if self._kill_at == float("inf"):
            self.arbiter.wakeup()
        elif now >= self._kill_at:
            for pid in [*self.arbiter.WORKERS, getattr(self.arbiter, "dirty_arbiter_pid", 0)]:
                if pid:
                    with contextlib.suppress(OSError):
                        os.kill(pid, signal.SIGKILL)

    def _remind_the_loading(self, now: float) -> None:
        """Send SIGTERM again to workers that load the application and have not noticed it.

        A signal that comes between the last look for signals and the system call that waits is
        handled when that call returns: gevent 26.9, and Python's own ``sleep``. Once booted, no
        worker waits long without a look.
        """
        if not self._remind_at:
            self._remind_at = now + REMIND_EVERY
        elif now >= self._remind_at:
            self._remind_at = now + REMIND_EVERY
            cells = self.cells
            for number, worker in list(self._claimed.items()):
                meter, loads = (
                    self.state.meter(number),
                    not cells[self.state.slot(number) + st.BOOTED],
                )
                has_missed = cells[meter + st.TERM_SEEN] < cells[meter + st.DISMISSED]
                if loads and has_missed and worker.pid in self.arbiter.WORKERS:
                    with contextlib.suppress(OSError):
                        os.kill(worker.pid, signal.SIGTERM)

    def stop_timer_at_exit(self, pid: int) -> None:
        """Let no alarm come any more; workers, which are forked with this, are left alone."""
        if os.getpid() == pid:
            self._set_timer(0)
            if not self._has_finished:  # A SystemExit: no on_exit has run.
                self._is_exiting = True
                self._report(last=True)

    def before_stop(self, graceful: bool) -> None:
        """gunicorn is about to stop its workers, for whatever reason."""
        self.dismissed = True
        allowed = self.arbiter.cfg.settings["graceful_timeout"]
        if not graceful:
            allowed.value = min(allowed.value, QUICK_STOP)
        self._kill_at = time.monotonic() + allowed.value
        self._set_timer(STOPPING_TICK)
        if self.phase is not Phase.STOPPED:
            # SIGINT, SIGQUIT, or gunicorn's own halt (a worker that cannot boot).
            self.stamps.setdefault(Phase.STOPPED, time.monotonic_ns())
            self.in_flight_at.setdefault(Phase.STOPPED, self.total(st.IN_FLIGHT))
            self.cells[st.PHASE] = Phase.STOPPED
        self._tell_others()
        self._report()

    # -- the end ----

    def summary(self) -> Report | None:
        """What happened, for the last line and the report; ``None`` when no shutdown of ours took
        place."""
        cells = self.cells
        t0 = cells[st.T0]
        if not t0 or self.is_upgraded():
            return None
        end = time.monotonic_ns()
        last = self.last_arrival()
        drain = cells[st.DRAIN]
        lame_duck = ((drain or end) - t0) / st.NS
        last_after = (last - t0) / st.NS if last > t0 else None
        origin = self._origin_and_t0()[0]
        return Report(
            version=__version__,
            origin=origin.name.lower(),
            t0_unix_seconds=self.state.t0_unix() or 0,
            phase=str(self.phase),
            ended=self._ended(),
            lame_duck_seconds=round(lame_duck, 3),
            lame_duck_ended=str(self.reason.get(Phase.DRAINING, "")) or None,
            draining_seconds=round((end - drain) / st.NS, 3) if drain else 0.0,
            requests_since_t0=self.state.total_ever(st.SINCE_T0) - self._since_before,
            last_request_after_t0_seconds=None if last_after is None else round(last_after, 3),
            in_flight_at_t0=self.in_flight_at.get(Phase.LAME_DUCK, 0),
            in_flight_at_drain=self.in_flight_at.get(Phase.DRAINING, 0),
            in_flight_at_stop=self.in_flight_at.get(Phase.STOPPED),
            cut_off=self._cut_off(),
            cut_off_by_worker=self._cut_off_by_worker(),
            verdict=(
                "the delay was an operator's drain"
                if origin is Origin.DRAIN
                else verdict(last_after, self.settings.shutdown_delay)
            ),
        )

    def _ended(self) -> str | None:
        if Phase.STOPPED in self.reason:
            return str(self.reason[Phase.STOPPED])
        if self.interrupted:
            return self.interrupted
        if self.failed:
            return "failed"
        if self.phase is Phase.STOPPED:
            return f"halted: {self.halted}" if self.halted else "halted"
        return "exited" if self._is_exiting else None

    def finish(self) -> None:
        """Write the summary, the last thing that an instance says, and close the probe port. Runs
        in ``on_exit``."""
        self._attempt("StatsD cannot be told", self._send_gauges)
        try:
            self._tell_the_end()
        finally:
            if self.probe_port is not None:
                self.probe_port.end()

    def _tell_the_end(self) -> None:
        told = self.summary()
        self._has_finished = True
        if told is None:
            return
        log = self.log.warning if told.cut_off else self.log.info
        log(
            "gunicorn-grace: stopped: lame duck %.1f s (%s), draining %.1f s, %d requests since T0, "
            "in flight %d at T0 and %d at the drain, %d cut off; %s",
            told.lame_duck_seconds,
            told.lame_duck_ended or "cut short",
            told.draining_seconds,
            told.requests_since_t0,
            told.in_flight_at_t0,
            told.in_flight_at_drain,
            told.cut_off,
            told.verdict,
        )
        self._report(last=True)

    # -- telling others ----

    def _report(self, *, last: bool = False) -> None:
        """Write the report as far as it is known. More than once: the process may be ended before
        its last word."""
        path = self.settings.report
        told = self.summary() if path else None
        if path and told is not None:
            self._attempt(
                f"grace_report {path} cannot be written", reporting.write, path, told, last=last
            )

    def _tell_others(self) -> None:
        """Tell the service manager and StatsD what they do not know yet."""
        self._attempt("NOTIFY_SOCKET cannot be told", self._tell_service_manager)
        self._attempt("StatsD cannot be told", self._send_gauges, time.monotonic())

    def _tell_service_manager(self) -> None:
        if self.is_upgraded():
            return  # The service goes on in another process.
        cells, now, phase = self.cells, time.monotonic_ns(), self.phase
        needed = 0.0
        if cells[st.DEADLINE]:
            needed = (cells[st.DEADLINE] - now) / st.NS + self.settings.exit_margin
        elif phase is Phase.STOPPED:  # gunicorn's stop() is next, in which nothing of ours runs.
            needed = self.arbiter.cfg.graceful_timeout + notify.STRETCH
        self._service_manager.look(
            now / st.NS,
            phase,
            self.total(st.IN_FLIGHT),
            stopping=self.terms > 0 or phase is Phase.STOPPED,
            needed=needed,
        )

    def _send_gauges(self, now: float | None = None) -> None:
        if self.arbiter.reexec_pid:
            return  # The new arbiter's workers serve as well: two would overwrite each other's numbers.
        if now is None:
            self._gauges.send(self.log, self.state)
        else:
            self._gauges.look(self.log, now, self.state)

    def _attempt(
        self, failure: str, action: Callable[..., None], *args: Any, **options: Any
    ) -> None:
        """Do something that nothing else depends on; that it failed is logged once."""
        try:
            action(*args, **options)
        except Exception as error:
            if failure not in self._untellable:
                self._untellable.add(failure)
                self.log.warning("gunicorn-grace: %s: %s", failure, error)


class _ReloadCutShort(GraceError):
    """A SIGTERM came while gunicorn waited for the old workers of a reload."""


class GraceArbiter(_Base):
    """Mixed over the class of the running arbiter. Every method works as gunicorn's once
    ``grace.failed`` is set."""

    grace: Lifetime
    log: Any

    def _guarded(self, action: Callable[..., Any], *args: Any) -> Any:
        """Do something of ours. Whatever fails in it ends our part of the work, and nothing
        else."""
        if self.grace.failed:
            return None
        try:
            return action(*args)
        except StopIteration:
            raise
        except Exception:
            self.grace.failed = True
            self.log.exception("gunicorn-grace: failed, and leaves the shutdown to gunicorn")
            with contextlib.suppress(Exception):
                self.grace.let_go()
            with contextlib.suppress(Exception):
                self.grace._set_timer(0)
            if self.grace.terms:
                raise StopIteration from None
            return None

    def grace_wake(self, sig: int, frame: Any) -> None:
        """SIGALRM of our timer."""
        with contextlib.suppress(
            Exception
        ):  # It would come up in the loop, and gunicorn would cut off what is served.
            self.grace.tick()

    def signal(self, sig: int, frame: Any) -> None:
        # A child that was just forked still has this handler: its SIGTERM is not the instance's.
        if os.getpid() == self.pid:
            if sig == signal.SIGTERM:
                self.grace.on_sigterm()
            elif sig in (signal.SIGINT, signal.SIGQUIT):
                self.grace.interrupted = signal.Signals(sig).name
        super().signal(sig, frame)

    def maybe_promote_master(self) -> None:
        # The one method that gunicorn 22.0 to 27.0 call at the top of every pass of the loop.
        super().maybe_promote_master()
        if self.grace.probe_port is not None:
            self.grace.probe_port.look()
        self._guarded(self.grace.step)

    def handle_term(self) -> None:
        if self.grace.failed:
            super().handle_term()
        elif not self.grace.terms:
            self.grace.on_sigterm()
        # Otherwise the signal handler has noted it, and the next pass acts on it.

    def handle_hup(self) -> None:
        if not self.grace.failed and self.grace.state.is_terminating():
            self.log.warning("gunicorn-grace: SIGHUP is refused: the shutdown has begun")
            return
        super().handle_hup()

    def handle_usr2(self) -> None:
        if not self.grace.failed and self.grace.terms:
            self.log.warning("gunicorn-grace: SIGUSR2 is refused: the shutdown has begun")
            return
        with (
            self.grace.probe_port.handing_over()
            if self.grace.probe_port is not None
            else contextlib.nullcontext()
        ):
            super().handle_usr2()

    def setup(self, app: Any) -> None:
        if self.grace.adopt is not None:
            # A configuration module that gunicorn has cached (python:my.conf) did not run again on
            # SIGHUP.
            self._guarded(self.grace.adopt, app.cfg)
        super().setup(app)

    def reload(self) -> None:
        # Python would hand gunicorn the module of the first load, and the user's file would not be
        # read again.
        sys.modules.pop(CONF_MODULE, None)
        self.grace.reloading = True
        try:
            super().reload()
        except _ReloadCutShort:
            self.log.info(
                "gunicorn-grace: the reload no longer waits for the old workers: the shutdown has begun"
            )
        except SystemExit:
            # A configuration that cannot be loaded: gunicorn 22.0 to 27.0 would end here and orphan
            # its workers.
            if self.app.cfg is self.cfg:
                raise
            self.app.cfg = self.cfg
            os.environ.update(self.cfg.env)
            self.log.error(
                "gunicorn-grace: SIGHUP: the configuration cannot be loaded, and stays as it was"
            )
        finally:
            self.grace.reloading = False

    def reap_workers(self) -> None:
        if self.grace.probe_port is not None:
            self.grace.probe_port.reap()
        while True:
            try:
                super().reap_workers()
                break
            except HaltServer as halt:
                # A worker that was replaced during the shutdown does not boot; gunicorn would halt,
                # and cut off what the others serve.
                if (
                    self.grace.failed
                    or not self.grace.state.is_terminating()
                    or not self._forget_the_dead()
                ):
                    raise
                self.grace.give_up_forking(halt.reason)
            except Exception as error:
                # A user's child_exit. In the loop it would make gunicorn cut off what the other
                # workers serve; the dead one has left WORKERS by then (22.0 to 27.0).
                if self.grace.failed or not self.grace.state.is_terminating():
                    raise
                self.grace.tell_later(error)
        # From 24.1 on reload() waits here, up to graceful_timeout. 22 and 23 reap inside the signal
        # handler, where nothing may be raised, and do not wait.
        waits = self.grace.reloading and not self.grace.failed and hasattr(self, "signal_chld")
        if waits and self.grace.state.is_terminating():
            raise _ReloadCutShort("SIGTERM during reload")

    def _forget_the_dead(self) -> bool:
        """Finish what gunicorn 22.0 to 25.3 left undone for a worker that did not boot; whether any
        lives on."""
        for pid, worker in list(self.WORKERS.items()):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                self.WORKERS.pop(pid)
                worker.tmp.close()
                try:
                    self.cfg.child_exit(self, worker)
                except Exception as error:
                    self.grace.tell_later(error)
        return bool(self.WORKERS)

    def spawn_worker(self) -> Any:
        try:
            return super().spawn_worker()
        except Exception as error:
            # A fork that failed, or a user's pre_fork. In the loop it would make gunicorn cut off
            # what the other workers serve.
            ours = (
                os.getpid() == self.pid
                and not self.grace.failed
                and self.grace.state.is_terminating()
            )
            if not ours or not self.WORKERS:
                raise
            self.grace.give_up_forking(f"{type(error).__name__}: {error}")
            return None

    def murder_workers(self) -> None:
        # Workers that finish their last requests send no heartbeat (gthread 22.0 to 26.2).
        if self.grace.failed or not self.grace.dismissed:
            super().murder_workers()

    def manage_workers(self) -> None:
        if self.grace.failed or not (
            self.grace.dismissed or (self.grace.gave_up_forking and self.WORKERS)
        ):
            super().manage_workers()

    def kill_worker(self, pid: int, sig: int) -> None:
        if sig == signal.SIGTERM and pid in self.WORKERS:
            with contextlib.suppress(Exception):
                self.grace.dismiss(self.WORKERS[pid])
        super().kill_worker(pid, sig)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        self.grace.halted = reason or ""
        super().halt(reason, exit_status)

    def stop(self, graceful: bool = True) -> None:
        if os.getpid() != self.pid:
            # The child that SIGUSR2 forks, when it cannot execute its successor: it ends in the
            # loop that it inherited (22.0 to 27.0), and workers, sockets, pid file and memory are
            # those of the arbiter, which goes on.
            os._exit(1)
        with contextlib.suppress(StopIteration):
            self._guarded(self.grace.before_stop, graceful)
        with contextlib.suppress(Exception):
            self.grace.close_sealed()
        super().stop(graceful)
        with contextlib.suppress(Exception):
            self.grace._set_timer(0)


def attach(arbiter: Any, settings: Settings, adopt: Callable[[Any], None]) -> Lifetime:
    """Make the running arbiter ours. Runs in ``on_starting``.

    :param adopt: how a new ``Config`` is made to know our settings and hooks, after SIGHUP.
    """
    state = st.State.create(boards=settings.probe_bind is not None)
    st.current = state
    lifetime = Lifetime(arbiter, state, settings)
    lifetime.adopt = adopt
    # A SystemExit, by a user's hook say, passes gunicorn's loop. At its end Python takes signal
    # handlers off (3.10 to 3.13), and an alarm of ours would then be the exit code.
    atexit.register(lifetime.stop_timer_at_exit, os.getpid())
    cls = type(arbiter)
    arbiter.__class__ = type(cls.__name__, (GraceArbiter, cls), {"__module__": cls.__module__})
    arbiter.grace = lifetime  # Last: its being there is what lets workers take their seats.
    if not state.shared_by_name:
        arbiter.log.warning(
            "gunicorn-grace: no memfd here: an anonymous mapping is used; the gunicorn-grace commands need Linux' memfd"
        )
    return lifetime


def open_probe_port(arbiter: Any, settings: Settings) -> None:
    """Bind the probe port and let it be answered. Runs in ``on_starting``.

    :raises SystemExit: it cannot be bound, as gunicorn itself ends for a listener of its own.
    """
    lifetime: Lifetime = arbiter.grace
    if not lifetime.state.shared_by_name or not sys.executable:
        arbiter.log.warning(
            "gunicorn-grace: grace_probe_bind = %r is not served: it takes Linux' memfd and a Python executable",
            settings.probe_bind,
        )
        return
    port = ProbePort(arbiter, lifetime.state, settings)
    atexit.register(port.end)
    lifetime.probe_port = port
    port.start()


def tell_budget(arbiter: Any, settings: Settings) -> None:
    """Log what the timeline comes to. Runs in ``on_starting`` and ``on_reload``."""
    given = getattr(arbiter.cfg.settings["graceful_timeout"], "given", False)
    warn, line = budget_line(settings, graceful_timeout_given=given)
    (arbiter.log.warning if warn else arbiter.log.info)("gunicorn-grace: %s", line)
