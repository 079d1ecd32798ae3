"""How often the quiet test is wrong, simulated: ``python tests/long/benchmarks quiet``.

A miss: LAME_DUCK ends as "quiet", and a request of the share that is still routed would have come
later. The judge is
:func:`gunicorn_grace.arbiter.lifecycle.decide` itself, asked as the arbiter asks it, every 100 ms
from a random moment on, with the rate and the longest silence as they would have been measured
before T0. Only the traffic is made up.

A million trials of thousands of arrivals each are too many for Python, and nearly all of them hold
no silence worth asking about. So only the long silences are drawn, exactly. Time is cut into blocks
of half the threshold, from an arrival on: a silence as long as the threshold covers one of them.
Poisson arrivals make each block empty with the same probability, so the number of blocks until the
next empty one is geometric. The arrival before it lies in a block that is not empty (an
exponential, cut at the block's length), the one after it is memoryless; there the next grid begins.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from gunicorn_grace.arbiter.lifecycle import Observation, Reason, decide, quiet_after
from gunicorn_grace.shared.phase import Origin, Phase
from gunicorn_grace.shared.settings import AUTO, Settings

TICK = 0.1
"""Seconds between two looks of the arbiter in LAME_DUCK."""
MINUTE, FIVE_MINUTES = 60.0, 300.0
"""Seconds over which the arbiter measures the rate and the longest silence."""
T0 = 1000.0

SETTINGS = Settings(
    quiet_period=AUTO, quiet_share=0.01, shutdown_delay=30, min_delay=5, termination_period=90
)

Silence = tuple[float, float]
"""Seconds from T0 to the arrival before it and to the one after it."""


@dataclass(frozen=True)
class Before:
    """What the arbiter knows of the time before T0."""

    rate: float
    longest_silence: float


@dataclass(frozen=True)
class Poisson:
    """Requests that know nothing of each other, before T0 and after it, until the last router has
    learned of it.

    Attributes:
        name: for the table.
        rate: requests per second before T0.
        share: of it, what the slow router sends.
        others: seconds after T0 until which all the other routers send.
        until: seconds after T0 until which the slow one does.
    """

    name: str
    rate: float
    share: float = 0.01
    others: float = 0.0
    until: float = SETTINGS.shutdown_delay

    def before(self, chance: random.Random) -> Before:
        counted = chance.gauss(self.rate * MINUTE, math.sqrt(self.rate * MINUTE))
        # The longest of n exponential gaps, by the inverse of its distribution function.
        gaps = self.rate * FIVE_MINUTES
        longest = -math.log(-math.expm1(math.log(1 - chance.random()) / gaps)) / self.rate
        return Before(max(0.0, counted) / MINUTE, longest)

    def silences(self, chance: random.Random, least: float) -> Iterator[Silence]:
        """Every silence of ``least`` seconds and more after T0, and some that are shorter."""
        rate = self.share * self.rate
        block = least / 2
        empty = math.exp(-rate * block)
        at = self.others
        while at < self.until:
            blocks = int(math.log(1 - chance.random()) / math.log1p(-empty))
            if at + blocks * block >= self.until:
                return
            last = at + blocks * block
            if blocks:
                last += math.log1p(-chance.random() * (1 - empty)) / rate
            following = at + (blocks + 1) * block + chance.expovariate(rate)
            yield last, following
            at = following


@dataclass(frozen=True)
class OnOff(Poisson):
    """All clients pause together: a Markov-modulated Poisson process, silent in its second state.

    Attributes:
        on: mean seconds of its first state.
        off: mean seconds of the second.
    """

    on: float = 2.0
    off: float = 0.5

    def before(self, chance: random.Random) -> Before:
        # Backwards from T0: the process is the same in both directions.
        rate = self.rate * (self.on + self.off) / self.on
        age = on_time = silent = longest = 0.0
        is_on = chance.random() < self.on / (self.on + self.off)
        while age < FIVE_MINUTES:
            lasts = chance.expovariate(1 / (self.on if is_on else self.off))
            if is_on:
                on_time += max(0.0, min(lasts, MINUTE - age))
                first = chance.expovariate(rate)
                if first < lasts:
                    longest = max(longest, silent + first)
                    silent = min(chance.expovariate(rate), lasts - first)
                else:
                    silent += lasts
            else:
                silent += lasts
            age += lasts
            is_on = not is_on
        mean = rate * on_time
        return Before(max(0.0, chance.gauss(mean, math.sqrt(mean))) / MINUTE, longest)

    def silences(self, chance: random.Random, least: float) -> Iterator[Silence]:
        rate = self.share * self.rate * (self.on + self.off) / self.on
        at = last = self.others
        is_on = chance.random() < self.on / (self.on + self.off)
        while last < self.until:
            lasts = chance.expovariate(1 / (self.on if is_on else self.off))
            if is_on:
                following = at + chance.expovariate(rate)
                while following < at + lasts:
                    if following - last >= least:
                        yield last, following
                    last = following
                    following += chance.expovariate(rate)
            at += lasts
            is_on = not is_on


@dataclass(frozen=True)
class Pareto(Poisson):
    """Behind the slow router, gaps with a heavy tail; a hundred such routers together look like
    Poisson.

    Attributes:
        shape: of the Pareto distribution; its variance is infinite up to 2.
    """

    shape: float = 2.5

    def silences(self, chance: random.Random, least: float) -> Iterator[Silence]:
        shortest = (self.shape - 1) / self.shape / (self.share * self.rate)
        last = self.others
        while last < self.until:
            following = last + shortest * chance.paretovariate(self.shape)
            if following - last >= least:
                yield last, following
            last = following


def is_missed(
    traffic: Poisson,
    known: Before,
    silences: list[Silence],
    settings: Settings,
    chance: random.Random,
) -> bool:
    """Whether LAME_DUCK ends as quiet in one of the silences although a request is still to
    come."""
    offset = chance.random() * TICK
    least = quiet_after(settings, known.rate, known.longest_silence)
    for last, following in silences:
        if following > traffic.until:
            continue  # Whatever is decided in it, nothing comes after it.
        # Looks at which the silence is still too short need not be taken.
        tick = math.floor((max(last + 0.9 * least, settings.min_delay - TICK) - offset) / TICK)
        while (now := offset + tick * TICK) < following:
            tick += 1
            seen = Observation(
                now=T0 + now,
                phase=Phase.LAME_DUCK,
                origin=Origin.SIGTERM,
                t0=T0,
                sigterm=T0,
                clock=T0,
                last_arrival=T0 + last,
                rate=known.rate,
                longest_silence=known.longest_silence,
            )
            phase, reason = decide(seen, settings)
            if phase is not Phase.LAME_DUCK:
                return reason is Reason.QUIET
    return False


@dataclass
class Found:
    """What came out.

    Attributes:
        trials: how many.
        misses: in how many of them the quiet test was wrong.
        by_rate_alone: how many it would have been without twice the longest silence.
        waits: mean silence asked for, in seconds.
    """

    trials: int
    misses: int = 0
    by_rate_alone: int = 0
    waits: float = 0.0


def simulate(traffic: Poisson, trials: int, seed: int, settings: Settings = SETTINGS) -> Found:
    """Shut down so many times under that traffic. Pure: the same seed gives the same result."""
    chance = random.Random(seed)
    found = Found(trials)
    for _ in range(trials):
        known = traffic.before(chance)
        least = quiet_after(settings, known.rate, 0)
        found.waits += quiet_after(settings, known.rate, known.longest_silence) / trials
        silences = list(traffic.silences(chance, least))
        if not silences:
            continue
        found.misses += is_missed(traffic, known, silences, settings, chance)
        found.by_rate_alone += is_missed(
            traffic, Before(known.rate, 0.0), silences, settings, chance
        )
    return found


def upper_bound(misses: int, trials: int, confidence: float = 0.95) -> float:
    """The largest rate at which so few misses are not yet less likely than ``1 - confidence``.

    Exact for Poisson counts; without a miss it is the rule of three, ``-ln(0.05) / trials``.
    """

    def so_few(mean: float) -> float:
        return sum(
            math.exp(n * math.log(mean) - mean - math.lgamma(n + 1)) for n in range(misses + 1)
        )

    low, high = 0.0, 10.0 + 3.0 * misses
    for _ in range(50):
        mean = (low + high) / 2
        low, high = (mean, high) if so_few(mean) > 1 - confidence else (low, mean)
    return high / trials


MODELLED = (
    *(Poisson(f"Poisson, {rate:g}/s", rate) for rate in (60, 100, 200, 400, 1000, 4000, 20000)),
    *(
        Poisson(f"one slow node of 100, {rate:g}/s", rate, others=1.0, until=20.0)
        for rate in (100, 400, 4000)
    ),
)
"""What the derivation speaks of: the miss rate has to be :data:`LIMIT` at the most."""
BEYOND = (
    OnOff("bursts: all pause together, 400/s", 400, others=1.0, until=20.0),
    OnOff("bursts: all pause together, 4000/s", 4000, others=1.0, until=20.0),
    Pareto("bursts: Pareto gaps, slow node, 400/s", 400, others=1.0, until=20.0),
    Poisson("half the share, slow node, 400/s", 400, share=0.005, others=1.0, until=20.0),
)
"""What it does not speak of: told, so that one knows what the test is worth there."""
LIMIT = 1e-5


def show(trials: int, seed: int) -> bool:
    """Print a row for each kind of traffic; whether the modelled ones keep the limit.

    :param trials: of each modelled one; the others get a fiftieth, for which single arrivals have
        to be drawn.
    """
    print(
        f"quiet test: share {SETTINGS.quiet_share:g}, delay {SETTINGS.shutdown_delay:g} s, seed "
        f"{seed}; "
        "a request that is still to come is missed in\n\n"
        f"{'traffic':38}{'silence':>9}{'trials':>10}{'misses':>8}{'95 % bound':>12}{'by the rate alone':>19}"
    )
    kept = True
    for traffic in (*MODELLED, *BEYOND):
        modelled = traffic in MODELLED
        found = simulate(traffic, trials if modelled else max(1, trials // 50), seed)
        bound = upper_bound(found.misses, found.trials)
        kept = kept and (not modelled or bound <= LIMIT)
        print(
            f"{traffic.name:38}{found.waits:7.2f} s{found.trials:10}{found.misses:8}{bound:12.1e}"
            f"{found.by_rate_alone:19}{'' if modelled else '   not modelled'}",
            flush=True,
        )
    print(
        f"\nthe modelled ones {'keep' if kept else 'DO NOT KEEP'} the limit of {LIMIT:g}, at 95 % "
        f"confidence"
    )
    return kept
