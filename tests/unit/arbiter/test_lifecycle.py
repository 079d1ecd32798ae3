"""The shutdown as a pure function: by example for each rule, and against every interleaving
Hypothesis can think of."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_grace.arbiter.lifecycle import (
    Observation,
    Origin,
    Reason,
    deadline,
    decide,
    drain_limit,
    has_expired,
    is_delay_over,
    quiet_after,
)
from gunicorn_grace.shared.phase import Phase, check_transition
from gunicorn_grace.shared.settings import AUTO, Settings
from support.trials import trials

pytestmark = pytest.mark.once

STARTING, SERVING, LAME_DUCK, DRAINING, STOPPED = Phase
INF = math.inf

# SIGTERM came at 100, nothing has arrived since 50.
TERM = Observation(
    now=100,
    phase=LAME_DUCK,
    origin=Origin.SIGTERM,
    t0=100,
    clock=100,
    sigterm=100,
    last_arrival=50,
    rate=10,
)
TRIGGERED = replace(TERM, origin=Origin.PRESTOP, sigterm=None)
HELD = replace(TRIGGERED, origin=Origin.DRAIN, clock=None, held=True)
DRAIN = replace(TERM, phase=DRAINING, drain_started=110)
QUIET = Settings(quiet_period=3)
# At 400 requests per second ln((1 + 0.01 * 400 * 30) * 10^6) / (0.01 * 400) = 4.65 s
QUIET_AUTO = Settings(quiet_period=AUTO)


def case(
    what: str,
    seen: Observation,
    wanted: tuple[Phase, Reason | None],
    settings: Settings | None = None,
) -> Any:
    return pytest.param(seen, settings or Settings(), wanted, id=what.replace(" ", "-"))


def at(now: float, seen: Observation = TERM, **changes: Any) -> Observation:
    return replace(seen, now=now, **changes)


def stays(seen: Observation) -> tuple[Phase, None]:
    return seen.phase, None


@pytest.mark.parametrize(
    ("seen", "settings", "wanted"),
    [
        # -- 2: coming up ----
        case("no worker yet", Observation(0, STARTING, booted=False), (STARTING, None)),
        case("first worker", Observation(0, STARTING), (SERVING, Reason.BOOTED)),
        case(
            "SIGTERM, never ready",
            Observation(0, STARTING, booted=False, sigterm=0),
            (STOPPED, Reason.NEVER_READY),
        ),
        case(
            "trigger, never ready",
            Observation(5, STARTING, booted=False, t0=1, origin=Origin.PRESTOP),
            (STARTING, None),
        ),
        case("serving", Observation(0), (SERVING, None)),
        # -- 2: T0 ----
        case("SIGTERM", at(100, phase=SERVING), (LAME_DUCK, Reason.SIGNAL)),
        case("trigger", at(100, TRIGGERED, phase=SERVING), (LAME_DUCK, Reason.TRIGGER)),
        case(
            "SIGTERM after a trigger, seen at once",
            at(100, phase=SERVING, origin=Origin.HTTP),
            (LAME_DUCK, Reason.TRIGGER),
        ),
        # -- 2: the delay ----
        case("delay running", at(109.9), (LAME_DUCK, None)),
        case("delay elapsed", at(110), (DRAINING, Reason.DELAY_ELAPSED)),
        case("no delay", at(100), (DRAINING, Reason.DELAY_ELAPSED), Settings(shutdown_delay=0)),
        case(
            "the clock goes on from the trigger",
            at(110, origin=Origin.PRESTOP, sigterm=109.9),
            (DRAINING, Reason.DELAY_ELAPSED),
        ),
        case("a trigger alone never drains", at(120, TRIGGERED), (LAME_DUCK, None)),
        # -- 6: extended ----
        case("requests still arrive", at(110, last_arrival=108.1), (LAME_DUCK, None)),
        case("they stopped in time", at(110, last_arrival=108), (DRAINING, Reason.DELAY_ELAPSED)),
        case("extended, until 2 s of silence", at(113.9, last_arrival=112), (LAME_DUCK, None)),
        case("2 s of silence", at(114, last_arrival=112), (DRAINING, Reason.EXTENDED)),
        case(
            "extension is off",
            at(110, last_arrival=110),
            (DRAINING, Reason.DELAY_ELAPSED),
            Settings(extend_delay=False),
        ),
        case("extended into the reserve", at(123, last_arrival=123), (DRAINING, Reason.BUDGET)),
        case("not yet into it", at(122.9, last_arrival=122.9), (LAME_DUCK, None)),
        case(
            "longest request wants more",
            at(118, last_arrival=118, longest_request=10),
            (DRAINING, Reason.BUDGET),
        ),
        case(
            "a request that the budget cannot save",
            at(122.9, last_arrival=122.9, longest_request=18.1),
            (LAME_DUCK, None),
        ),
        case(
            "it leaves the reserve",
            at(123, last_arrival=123, longest_request=18.1),
            (DRAINING, Reason.BUDGET),
        ),
        case(
            "a request that it could just save",
            at(110, last_arrival=110, longest_request=18),
            (DRAINING, Reason.BUDGET),
        ),
        case("but not yet", at(117.9, last_arrival=117.9, longest_request=10), (LAME_DUCK, None)),
        # -- 2: budget nearly spent ----
        case(
            "a delay that overruns is cut to the reserve",
            at(123),
            (DRAINING, Reason.BUDGET),
            Settings(shutdown_delay=60),
        ),
        case("and no sooner", at(122.9), (LAME_DUCK, None), Settings(shutdown_delay=60)),
        case(
            "the delay is not cut for one long request",
            at(109.9, longest_request=25),
            (LAME_DUCK, None),
        ),
        case(
            "preStop counts against the budget",
            at(123, origin=Origin.PRESTOP, sigterm=122),
            (DRAINING, Reason.BUDGET),
            Settings(shutdown_delay=60),
        ),
        case(
            "period 0 has no budget",
            at(1000),
            (LAME_DUCK, None),
            Settings(shutdown_delay=2000, termination_period=0),
        ),
        case(
            "period 0, extension ends at twice the delay",
            at(120, last_arrival=120),
            (DRAINING, Reason.BUDGET),
            Settings(termination_period=0),
        ),
        case(
            "period 0, extension until then",
            at(119.9, last_arrival=119.9),
            (LAME_DUCK, None),
            Settings(termination_period=0),
        ),
        # -- 8: signals ----
        case("ended by command", at(100.1, ended=True), (DRAINING, Reason.ENDED)),
        case("ended before its SIGTERM", at(100.1, TRIGGERED, ended=True), (LAME_DUCK, None)),
        case(
            "upgraded",
            at(100, phase=SERVING, t0=None, clock=None, origin=Origin.NONE, upgraded=True),
            (DRAINING, Reason.UPGRADED),
        ),
        case("upgraded, no SIGTERM", Observation(100, upgraded=True), (SERVING, None)),
        case(
            "upgraded while triggered",
            at(101, TRIGGERED, sigterm=101, upgraded=True),
            (DRAINING, Reason.UPGRADED),
        ),
        # -- 7: quiet ----
        case("quiet by seconds", at(105), (DRAINING, Reason.QUIET), QUIET),
        case("quiet, but under the least delay", at(104.9), (LAME_DUCK, None), QUIET),
        case(
            "quiet since the last arrival",
            at(106, last_arrival=103),
            (DRAINING, Reason.QUIET),
            QUIET,
        ),
        case("not quiet since", at(105.9, last_arrival=103), (LAME_DUCK, None), QUIET),
        case(
            "silence before T0 does not count", at(105), (LAME_DUCK, None), Settings(quiet_period=6)
        ),
        case("nothing ever arrived", at(105, last_arrival=None), (DRAINING, Reason.QUIET), QUIET),
        case("auto", at(105, rate=400), (DRAINING, Reason.QUIET), QUIET_AUTO),
        case("auto, too little traffic for it", at(109.9, rate=10), (LAME_DUCK, None), QUIET_AUTO),
        case(
            "auto, a gap like it was seen",
            at(105, rate=400, longest_silence=2.6),
            (LAME_DUCK, None),
            QUIET_AUTO,
        ),
        case("auto, no traffic is no evidence", at(109.9, rate=0), (LAME_DUCK, None), QUIET_AUTO),
        case("quiet is off", at(109.9, rate=1e9), (LAME_DUCK, None)),
        # -- 2: back to SERVING
        case("trigger not yet expired", at(129.9, TRIGGERED), (LAME_DUCK, None)),
        case("trigger expired", at(130, TRIGGERED), (SERVING, Reason.EXPIRED)),
        case(
            "HTTP trigger expired",
            at(130, TRIGGERED, origin=Origin.HTTP),
            (SERVING, Reason.EXPIRED),
        ),
        case(
            "never before the delay is over",
            at(139.9, TRIGGERED),
            (LAME_DUCK, None),
            Settings(shutdown_delay=40),
        ),
        case(
            "period 0 expires all the same",
            at(130, TRIGGERED),
            (SERVING, Reason.EXPIRED),
            Settings(termination_period=0),
        ),
        case("an operator's drain waits", at(1e6, HELD), (LAME_DUCK, None)),
        case("a trigger that an operator holds", at(1e6, TRIGGERED, held=True), (LAME_DUCK, None)),
        case(
            "a hook over a drain",
            at(1e6, HELD, clock=1e6 - 23, sigterm=1e6 - 1, last_arrival=1e6),
            (DRAINING, Reason.BUDGET),
        ),
        case(
            "a hook over a drain, with time left",
            at(1e6, HELD, clock=1e6 - 22.9, sigterm=1e6 - 1, last_arrival=1e6),
            (LAME_DUCK, None),
        ),
        case(
            "undrained",
            at(101, HELD, undrain=True),
            (SERVING, Reason.UNDRAINED),
        ),
        case("undrain comes too late", at(101, undrain=True), (LAME_DUCK, None)),
        case(
            "SIGTERM long after an operator's drain",
            at(1000, HELD, clock=1000, sigterm=1000),
            (DRAINING, Reason.DELAY_ELAPSED),
        ),
        case(
            "its budget begins with the SIGTERM",
            at(1001, HELD, clock=1000, sigterm=1000, last_arrival=1000.5),
            (LAME_DUCK, None),
        ),
        case(
            "what arrived before the SIGTERM extended nothing",
            at(1000, HELD, clock=1000, sigterm=1000, last_arrival=113),
            (DRAINING, Reason.DELAY_ELAPSED),
        ),
        case(
            "period 0: its extension begins with the SIGTERM",
            at(1001, HELD, clock=1000, sigterm=1000, last_arrival=1000.5),
            (LAME_DUCK, None),
            Settings(termination_period=0),
        ),
        # -- 8: draining ----
        case("workers finish", at(110, DRAIN), (DRAINING, None)),
        case("all finished", at(110, DRAIN, workers=0), (STOPPED, Reason.DRAINED)),
        case("the deadline", at(128, DRAIN), (STOPPED, Reason.DEADLINE)),
        case("not yet the deadline", at(127.9, DRAIN), (DRAINING, None)),
        case(
            "graceful_timeout is sooner",
            at(115, DRAIN),
            (STOPPED, Reason.DEADLINE),
            Settings(graceful_timeout=5),
        ),
        case(
            "period 0: graceful_timeout alone",
            at(139.9, DRAIN),
            (DRAINING, None),
            Settings(termination_period=0),
        ),
        case(
            "and it ends",
            at(140, DRAIN),
            (STOPPED, Reason.DEADLINE),
            Settings(termination_period=0),
        ),
        case("nothing follows the end", at(999, phase=STOPPED), (STOPPED, None)),
    ],
)
def test_decide(seen: Observation, settings: Settings, wanted: tuple[Phase, Reason | None]) -> None:
    """Each row of DESIGN 2, 6, 7 and 8 comes out as it says, at the very second and not before."""
    assert decide(seen, settings) == wanted


@pytest.mark.parametrize(
    ("clock", "settings", "wanted"),
    [
        (100.0, Settings(), 128),
        (None, Settings(), INF),
        (100.0, Settings(termination_period=0), INF),
        (100.0, Settings(exit_margin=40), 124),
    ],
)
def test_the_deadline_counts_from_where_the_platform_counts(
    clock: float | None, settings: Settings, wanted: float
) -> None:
    """There is none while the period has not begun or is not known; a margin takes a fifth of the
    period at most."""
    assert deadline(clock, settings) == wanted


def test_the_drain_limit_is_the_smaller_of_the_two() -> None:
    """``graceful_timeout`` after the drain began, or the deadline."""
    assert drain_limit(110, 128, Settings(graceful_timeout=5)) == 115
    assert drain_limit(110, 128, Settings(graceful_timeout=60)) == 128


def test_a_trigger_expires_after_the_period_but_never_within_the_delay() -> None:
    """30 s where the period is not known."""
    for settings, then in (
        (Settings(termination_period=20), 120),
        (Settings(termination_period=0), 130),
        (Settings(termination_period=20, shutdown_delay=50), 150),
    ):
        assert not has_expired(at(then - 0.1, TRIGGERED), settings)
        assert has_expired(at(then, TRIGGERED), settings)
        assert not has_expired(at(then, HELD), settings)
        assert not has_expired(at(then), settings), "a SIGTERM has come"


@given(
    rate=st.floats(0.001, 1e5),
    share=st.floats(1e-4, 1),
    longest=st.floats(0, 300),
)
def test_auto_is_quiet_once_a_silence_by_chance_is_one_in_a_million(
    rate: float, share: float, longest: float
) -> None:
    """Of all silences of LAME_DUCK, Poisson arrivals of ``share * rate`` have one so long at odds
    of 10^-6 or less."""
    for settings, longest_lame_duck in (
        (Settings(quiet_period=AUTO, quiet_share=share, termination_period=60), 60),
        (
            Settings(quiet_period=AUTO, quiet_share=share, termination_period=0, shutdown_delay=20),
            40,
        ),
    ):
        after = quiet_after(settings, rate, longest)
        silences = 1 + share * rate * longest_lame_duck
        assert silences * math.exp(-share * rate * after) <= 1e-6 * (1 + 1e-6)
        assert after >= 2 * longest
        by_chance, by_gap = math.log(1e6 * silences) / (share * rate), 2 * longest
        assert after == pytest.approx(max(by_chance, by_gap))


def test_quiet_after_needs_a_setting_and_evidence() -> None:
    """0 is off, seconds are taken as they are, and no traffic is no evidence."""
    assert quiet_after(Settings(), 1000, 0) == INF
    assert quiet_after(Settings(quiet_period=4), 0, 0) == 4
    assert quiet_after(Settings(quiet_period=AUTO), 0, 0) == INF


# -- every interleaving ----


TICK = 0.25


@dataclass
class World:
    """The arbiter's memory and loop around ``decide``, and nothing of its judgement.

    The conditions of DESIGN are stated here a second time, in :meth:`reasons`, from the events
    themselves.
    """

    settings: Settings
    booted: bool
    rate: float
    longest_silence: float
    longest_request: float
    now: float = 1000.0
    phase: Phase = STARTING
    terms: list[float] = field(default_factory=list)
    trigger: tuple[float, Origin] | None = None
    hook: float | None = None
    held: bool = False
    ended: bool = False
    undrained: bool = False
    upgraded: bool = False
    arrivals: list[float] = field(default_factory=list)
    drain: float | None = None
    workers: int = 1

    @property
    def began(self) -> list[tuple[float, Origin]]:
        signal = [(self.terms[0], Origin.SIGTERM)] if self.terms and not self.upgraded else []
        return sorted([*signal, *([self.trigger] if self.trigger else [])])

    @property
    def clock(self) -> float | None:
        """When the platform's period began: by its hook, or by the first SIGTERM."""
        known = [*self.terms[:1], *([] if self.hook is None else [self.hook])]
        return min(known, default=None)

    def observe(self) -> Observation:
        t0, origin = self.began[0] if self.began else (None, Origin.NONE)
        return Observation(
            now=self.now,
            phase=self.phase,
            booted=self.booted,
            origin=origin,
            t0=t0,
            clock=self.clock,
            sigterm=self.terms[0] if self.terms else None,
            held=self.held,
            ended=self.ended,
            undrain=self.undrained,
            upgraded=self.upgraded,
            last_arrival=self.arrivals[-1] if self.arrivals else None,
            rate=self.rate,
            longest_silence=self.longest_silence,
            longest_request=self.longest_request,
            drain_started=self.drain,
            workers=self.workers,
        )

    # -- what can happen ----

    def happen(self, event: str) -> None:
        if event == "boot":
            self.booted = True
        elif event == "term":
            self.terms.append(self.now)
        elif event == "arrival":
            self.arrivals.append(self.now)
        elif event == "upgrade":
            # The memory holds no SIGTERM of an upgraded arbiter, so this has to be before one.
            self.upgraded = self.upgraded or not self.terms
        elif event == "finished":
            if self.phase is DRAINING:
                self.workers = 0
        elif event == "undrain":
            self.undrained = self.trigger is not None
        elif event == "end_delay":
            self.ended = bool(self.began)
        else:
            self.pull(Origin[event.upper()])
        self.loop()

    def pull(self, origin: Origin) -> None:
        """A trigger comes: the first one counts, and each one says who wants the shutdown."""
        if not self.began and not self.terms:
            self.trigger = (self.now, origin)
        if not self.began or (self.phase is SERVING and not self.trigger):
            return
        if origin is Origin.DRAIN:
            self.held = True
        elif self.hook is None:
            self.hook = self.now

    def loop(self) -> None:
        """One pass of the arbiter: as many steps as there are, each one allowed and each one for
        its reason."""
        for _ in Phase:
            seen = self.observe()
            phase, reason = decide(seen, self.settings)
            if phase is self.phase:
                assert reason is None
                break
            assert reason is not None
            check_transition(self.phase, phase)
            assert reason in self.reasons(phase), (reason, seen)
            if phase is DRAINING:
                self.drain = self.now
            if phase is SERVING:
                self.trigger, self.hook = None, None
                self.held = self.undrained = self.ended = False
            self.phase = phase
        assert decide(self.observe(), self.settings) == (self.phase, None), "no fixpoint"
        self.check_invariants()

    def wait(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + TICK)
            self.loop()

    # -- what has to hold ----

    def gone_by(self) -> float:
        s = self.settings
        if not s.termination_period:
            return INF
        margin = min(s.exit_margin, s.termination_period / 5)
        return INF if self.clock is None else self.clock + s.termination_period - margin

    def check_invariants(self) -> None:
        if not self.terms:
            assert self.phase <= LAME_DUCK, "drained without a SIGTERM"
        if self.phase is SERVING:
            assert not self.terms
            assert not self.began
        if self.terms and self.phase in (LAME_DUCK, DRAINING):
            assert self.now < self.gone_by(), "past the deadline"
        if self.phase is DRAINING:
            assert self.drain is not None
            assert self.now < self.drain + self.settings.graceful_timeout

    def reasons(self, phase: Phase) -> set[Reason]:
        """Why this step may be taken now; empty when it may not."""
        s, now = self.settings, self.now
        if self.phase is STARTING:
            if phase is SERVING:
                return {Reason.BOOTED} if self.booted else set()
            return {Reason.NEVER_READY} if self.terms and not self.booted else set()
        if self.phase is DRAINING:
            assert self.drain is not None
            late = now >= min(self.gone_by(), self.drain + s.graceful_timeout)
            return {Reason.DRAINED} if not self.workers else {Reason.DEADLINE} if late else set()
        if phase is LAME_DUCK:
            t0, origin = self.began[0]
            return {Reason.SIGNAL if origin is Origin.SIGTERM else Reason.TRIGGER}
        if phase is DRAINING and self.upgraded:
            return {Reason.UPGRADED} if self.terms else set()
        (t0, origin) = self.began[0]
        if phase is SERVING:
            if self.terms:
                return set()
            if self.undrained:
                return {Reason.UNDRAINED}
            hook = INF if self.hook is None or self.held else self.hook
            expired = now >= hook + max(s.termination_period or 30, s.shutdown_delay)
            return {Reason.EXPIRED} if expired else set()
        return self.reasons_to_drain(t0)

    def reasons_to_drain(self, t0: float) -> set[Reason]:
        s, now = self.settings, self.now
        if not self.terms:
            return set()
        if self.ended:
            return {Reason.ENDED}
        assert self.clock is not None
        found = set()
        over = now >= t0 + s.shutdown_delay
        last = self.arrivals[-1] if self.arrivals else -INF
        late = last + 2 > now
        if over and not (s.extend_delay and late):
            # It was extended if, with the delay over and the SIGTERM there, a request had come
            # within 2 s.
            waited = s.extend_delay and last + 2 > max(t0 + s.shutdown_delay, self.terms[0])
            found.add(Reason.EXTENDED if waited else Reason.DELAY_ELAPSED)
        if s.termination_period:
            reserve = min(s.drain_reserve, s.termination_period / 2)
            begins = max(t0 + s.shutdown_delay, self.clock)
            if over and begins + self.longest_request <= self.gone_by():
                reserve = max(reserve, self.longest_request)
            if now >= self.gone_by() - reserve:
                found.add(Reason.BUDGET)
        elif over and now >= self.clock + 2 * s.shutdown_delay:
            found.add(Reason.BUDGET)
        if now >= t0 + s.min_delay:
            silence = now - max(t0, last)
            enough = s.quiet_period
            if enough == AUTO:
                arrivals = s.quiet_share * self.rate
                silences = 1 + arrivals * (s.termination_period or 2 * s.shutdown_delay)
                enough = (
                    max(math.log(1e6 * silences) / arrivals, 2 * self.longest_silence)
                    if arrivals
                    else INF
                )
            assert isinstance(enough, (int, float))
            if enough and silence >= enough:
                found.add(Reason.QUIET)
        return found


durations = st.sampled_from([0, 1, 2, 3, 5, 10, 30])
any_settings = st.builds(
    Settings,
    shutdown_delay=durations,
    min_delay=durations,
    extend_delay=st.booleans(),
    drain_reserve=durations,
    quiet_period=st.one_of(durations, st.just(AUTO)),
    quiet_share=st.sampled_from([0.01, 0.5, 1]),
    termination_period=durations,
    exit_margin=st.sampled_from([0, 2, 40]),
    graceful_timeout=st.sampled_from([1, 10, 30]),
)
worlds = st.builds(
    World,
    settings=any_settings,
    booted=st.booleans(),
    rate=st.sampled_from([0, 0.5, 10, 1000]),
    longest_silence=st.sampled_from([0, 0.5, 4]),
    longest_request=st.sampled_from([0, 0.125, 8, 60]),
)
events = st.sampled_from(
    [
        "boot",
        "term",
        "http",
        "prestop",
        "drain",
        "undrain",
        "end_delay",
        "upgrade",
        *["arrival"] * 4,
        "finished",
    ]
)
# Eighths, so that every sum of them is exact: the rules are stated with other sums than the code's.
waits = st.sampled_from([0, 0.125, TICK, 1, 1.875, 2, 5, 12, 31])


@trials(400)
@given(world=worlds, history=st.lists(st.tuples(events, waits), max_size=14))
def test_whatever_happens_the_rules_hold(world: World, history: list[tuple[str, float]]) -> None:
    """After every event and tick: only steps of the table, each for a condition that holds; no
    drain without SIGTERM, none past the deadline, and a second look changes nothing."""
    world.loop()
    for event, seconds in history:
        world.happen(event)
        world.wait(seconds)


@trials(300)
@given(
    world=worlds,
    history=st.lists(st.tuples(events.filter(lambda e: e != "term"), waits), max_size=8),
)
def test_the_delay_is_over_when_a_sigterm_would_drain_at_once(
    world: World, history: list[tuple[str, float]]
) -> None:
    """What ``gunicorn-grace prestop`` waits for is found out here by sending the SIGTERM."""
    world.loop()
    for event, seconds in history:
        world.happen(event)
        world.wait(seconds)
    said = is_delay_over(world.observe(), world.settings)
    if world.phase is LAME_DUCK:
        world.happen("term")
        assert said is (world.phase >= DRAINING)
    else:
        assert said is (world.phase > LAME_DUCK)


@trials(150)
@given(world=worlds, history=st.lists(st.tuples(events, waits), max_size=6))
def test_a_sigterm_always_ends_the_process(world: World, history: list[tuple[str, float]]) -> None:
    """However it began, however long requests go on, and with no worker ever finishing: SIGTERM
    leads to STOPPED."""
    world.loop()
    for event, seconds in history:
        world.happen(event)
        world.wait(seconds)
    world.happen("term")
    for _ in range(150):
        world.happen("arrival")
        world.wait(1)
    assert world.phase is STOPPED


@given(
    world=worlds,
    history=st.lists(st.tuples(events.filter(lambda e: e != "term"), waits), max_size=10),
)
@trials(100)
def test_without_sigterm_the_instance_comes_back(
    world: World, history: list[tuple[str, float]]
) -> None:
    """Whatever was triggered, with an ``undrain`` or after the period it serves again: it is never
    out for good."""
    world.loop()
    for event, seconds in [("boot", 0.0), *history]:
        world.happen(event)
        world.wait(seconds)
    if world.held:
        world.wait(200)
        assert world.phase is LAME_DUCK
        world.happen("undrain")
    world.wait(61)
    assert world.phase is SERVING


def test_the_observation_defaults_to_an_instance_that_serves() -> None:
    """So that an example states only what it is about, and ``decide`` leaves it in peace."""
    seen = Observation(now=0)
    assert dataclasses.is_dataclass(seen)
    assert decide(seen, Settings()) == stays(seen)
