"""The quiet test against simulated traffic: the small, seeded form of ``python
tests/long/benchmarks quiet``."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest

from gunicorn_grace.arbiter.lifecycle import quiet_after
from long.benchmarks import quiet

pytestmark = pytest.mark.once


SLOW_NODE = quiet.Poisson("slow node", 400, others=1.0, until=20.0)
TRIALS = 20_000


@pytest.mark.parametrize(
    "traffic", [quiet.Poisson("Poisson", 400), SLOW_NODE], ids=lambda traffic: traffic.name
)
def test_the_modelled_share_is_never_missed(traffic: object) -> None:
    """In 20,000 shutdowns no request of the smallest share is still to come when LAME_DUCK ends as
    quiet."""
    assert quiet.simulate(traffic, TRIALS, seed=7).misses == 0


def test_a_tenth_of_the_silence_is_seen_to_miss() -> None:
    """With the share taken for ten times what it is, the silence asked for is a tenth: nearly every
    shutdown misses."""
    wrong = dataclasses.replace(quiet.SETTINGS, quiet_share=10 * quiet.SETTINGS.quiet_share)
    assert quiet_after(wrong, 400, 0) < quiet_after(quiet.SETTINGS, 400, 0) / 7
    assert quiet.simulate(SLOW_NODE, 300, seed=7, settings=wrong).misses > 250


def test_a_single_silence_at_one_in_a_million_would_not_do() -> None:
    """Each silence of LAME_DUCK is a chance to be wrong: with ln(10^6) / (share * rate) the limit
    is not kept."""
    traffic = quiet.Poisson("Poisson", 4000)
    once = math.log(1e6) / (traffic.share * traffic.rate)
    settings = dataclasses.replace(quiet.SETTINGS, quiet_period=once)
    found = quiet.simulate(traffic, 50_000, seed=7, settings=settings)
    assert found.misses > 50_000 * quiet.LIMIT


def test_pauses_of_all_clients_are_covered_by_the_longest_silence() -> None:
    """The rate alone takes a common pause for the end of the traffic; twice the longest pause seen
    hardly ever does."""
    found = quiet.simulate(quiet.OnOff("bursts", 4000, others=1.0, until=20.0), 200, seed=7)
    assert found.by_rate_alone > 100
    assert found.misses <= 2


def test_the_silences_drawn_are_those_of_poisson_arrivals() -> None:
    """Drawn by blocks, there are as many long silences, and as long ones, as when each arrival is
    drawn."""
    chance = random.Random(7)
    traffic = quiet.Poisson("Poisson", 400, until=2000.0)
    drawn = [b - a for a, b in traffic.silences(chance, 1.0) if b - a >= 1.0]
    gaps, at = [], 0.0
    while at < traffic.until:
        gap = chance.expovariate(traffic.share * traffic.rate)
        at += gap
        gaps.append(gap)
    counted = [gap for gap in gaps if gap >= 1.0]
    # 8,000 gaps, e^-4 of them that long: 147, and 12 is the standard deviation of each.
    assert len(drawn) == pytest.approx(len(counted), abs=70)
    # Memoryless: beyond the first second they are exponential again, with a mean of 1/4 s.
    assert sum(drawn) / len(drawn) == pytest.approx(1.25, abs=0.1)


@pytest.mark.parametrize(("misses", "mean"), [(0, 2.996), (1, 4.744), (10, 16.962), (400, 434.8)])
def test_the_upper_bound_is_that_of_a_poisson_count(misses: int, mean: float) -> None:
    """Without a miss it is the rule of three; with some, half of chi-squared's quantile with 2 (n +
    1) degrees."""
    assert quiet.upper_bound(misses, 1000) == pytest.approx(mean / 1000, rel=2e-3)
