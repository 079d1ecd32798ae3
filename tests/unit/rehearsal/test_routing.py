"""Routing that learns late, with a clock of our own."""

from __future__ import annotations

import random

import pytest

from gunicorn_grace.rehearsal.errors import PlanFailed, likely_cause
from gunicorn_grace.rehearsal.kubernetes.deletion import Exec, HttpGet, as_hook
from gunicorn_grace.rehearsal.kubernetes.rollout import Rollout
from gunicorn_grace.rehearsal.kubernetes.routing import (
    EndpointState,
    EndpointTable,
    Lag,
    NoEndpoint,
)
from gunicorn_grace.rehearsal.plan import Plan

pytestmark = pytest.mark.once

A, B = ("127.0.0.1", 8001), ("127.0.0.1", 8002)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def table(clock: Clock) -> EndpointTable:
    table = EndpointTable(clock)
    table.add(A)
    table.add(B)
    return table


def test_a_removed_endpoint_is_routed_to_until_the_lag_is_over(
    clock: Clock, table: EndpointTable
) -> None:
    """With a lag of 3 s it is still picked after 2.999 s, and no more after 3 s."""
    table.remove(B, lag=3.0)
    clock.now += 2.999
    assert B in table.endpoints()
    assert B in {table.pick(random.Random(seed)) for seed in range(20)}
    clock.now += 0.001
    assert table.endpoints() == [A]


def test_no_lag_removes_at_once(table: EndpointTable) -> None:
    """Removal without a lag is in force for the next connection."""
    table.remove(B)
    assert table.endpoints() == [A]


def test_a_second_removal_delays_nothing(clock: Clock, table: EndpointTable) -> None:
    """An endpoint that is on its way out is not kept by another removal; it may go sooner."""
    table.remove(B, lag=1.0)
    table.remove(B, lag=5.0)
    clock.now += 1.0
    assert table.endpoints() == [A]
    table.remove(A, lag=5.0)
    table.remove(A, lag=0.0)
    assert table.endpoints() == []


def test_an_endpoint_can_come_back(table: EndpointTable) -> None:
    """Added again, it is routed to, whatever removal was under way."""
    table.remove(B)
    table.add(B)
    assert table.endpoints() == [A, B]


def test_what_was_never_there_cannot_be_removed(table: EndpointTable) -> None:
    """A wrong address is an error: a test that removes nothing would prove nothing."""
    with pytest.raises(KeyError):
        table.remove(("127.0.0.1", 9))


def test_an_empty_table_rejects(table: EndpointTable) -> None:
    """No endpoint, no connection."""
    table.remove(A)
    table.remove(B)
    with pytest.raises(NoEndpoint):
        table.pick(random.Random(0))


def test_every_endpoint_is_picked_as_often(table: EndpointTable) -> None:
    """1,000 connections spread evenly: 500 each, within 5 standard deviations (79)."""
    rng = random.Random(7)
    picked = [table.pick(rng) for _ in range(1000)].count(A)
    assert abs(picked - 500) < 79


def test_each_node_learns_by_itself(clock: Clock, table: EndpointTable) -> None:
    """With lags of 1, 2 and 20 s, the nodes stop routing to it one after the other, and the slow
    one much later."""
    table.remove(B, lag=(1.0, 2.0, 20.0))
    known = []
    for _ in range(4):
        known.append([B in table.endpoints(node) for node in range(3)])
        clock.now += 1.0
    assert known == [
        [True, True, True],
        [False, True, True],
        [False, False, True],
        [False, False, True],
    ]
    clock.now = 120.0
    assert B not in table.endpoints(2)


def test_an_addition_travels_as_a_removal_does(clock: Clock, table: EndpointTable) -> None:
    """A new endpoint, too, is routed to only by those who know it; one that goes before it was
    known never is."""
    new = ("127.0.0.1", 8003)
    table.add(new, lag=2.0)
    assert new not in table.endpoints()
    clock.now += 2.0
    assert new in table.endpoints()
    late = ("127.0.0.1", 8004)
    table.add(late, lag=5.0)
    table.remove(late, lag=1.0)
    clock.now += 6.0
    assert late not in table.endpoints()


def test_terminating_endpoints_are_the_last_resort(clock: Clock, table: EndpointTable) -> None:
    """As long as one is ready no other is picked; when none is, those that are terminating and
    still serve are."""
    rng = random.Random(1)
    table.change(B, EndpointState.TERMINATING)
    assert {table.pick(rng) for _ in range(20)} == {A}
    table.remove(A)
    assert table.endpoints() == []
    assert table.pick(rng) == B
    table.change(B, EndpointState.GONE)
    with pytest.raises(NoEndpoint):
        table.pick(rng)


def test_another_table_can_follow(clock: Clock, table: EndpointTable) -> None:
    """It sees what was, and what comes, as of the moment at which it was made."""
    other = EndpointTable(clock)
    table.remove(A, lag=3.0)
    table.follow(other.replay)
    assert other.endpoints() == table.endpoints() == [A, B]
    table.remove(B, lag=(1.0, 9.0))
    clock.now += 3.0
    assert other.endpoints(0) == table.endpoints(0) == []
    assert other.endpoints(1) == table.endpoints(1) == [B]


@pytest.mark.parametrize(
    ("lag", "slow", "expected"),
    [
        ("3", None, Lag(3.0, 3.0)),
        ("0", None, Lag(0.0, 0.0)),
        ("1..8", None, Lag(1.0, 8.0)),
        ("1.5", "0.05:20", Lag(1.5, 1.5, 20.0, 0.05)),
    ],
)
def test_a_lag_is_a_time_or_a_range_and_a_slow_node(
    lag: str, slow: str | None, expected: Lag
) -> None:
    """As written on the command line."""
    assert Lag.parse(lag, slow) == expected
    assert Lag.parse(lag, slow).longest == max(expected.high, expected.slow or 0.0)


@pytest.mark.parametrize(
    ("lag", "slow", "said"),
    [
        ("soon", None, "lag 'soon' is neither seconds"),
        ("8..1", None, "lag 8..1 s: use 0 s or more"),
        ("-1", None, "lag -1..-1 s"),
        ("nan", None, "lag nan..nan s"),
        ("1", "20", "slow node '20' is not SHARE:SECONDS"),
        ("1", "2:20", "slow node's share 2 is not between 0 and 1"),
        ("1", "0.1:-2", "slow node's lag -2 s"),
    ],
)
def test_what_is_no_lag_is_refused(lag: str, slow: str | None, said: str) -> None:
    """With the value and the form it should have."""
    with pytest.raises(ValueError) as caught:
        Lag.parse(lag, slow)
    assert said in str(caught.value)


def test_each_node_draws_its_own_lag() -> None:
    """All within the range, not all the same, the slow node one more, and again the same from the
    same seed."""
    lag = Lag(1.0, 8.0, 20.0, 0.05)
    drawn = lag.draw(10, random.Random(3))
    assert len(drawn) == 11
    assert drawn[-1] == 20.0
    assert all(1.0 <= one <= 8.0 for one in drawn[:-1])
    assert len(set(drawn)) == 11
    assert drawn == lag.draw(10, random.Random(3))


def test_a_hook_is_a_command_or_a_request() -> None:
    """``GET /path`` is what the kubelet sends itself; anything else is run."""
    assert as_hook(["GET", "/readyz?down=true"]) == HttpGet("/readyz?down=true")
    assert as_hook(["sleep", "15"]) == Exec(("sleep", "15"))
    assert as_hook([]) is None


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"instances": 1}, "1 instances cannot be scaled down to 0"),
        ({"instances": 3, "to": 3}, "3 instances cannot be scaled down to 3"),
        ({"to": 0}, "scaled down to 0"),
        ({"lag": -1.0}, "lag -1 s is negative"),
        ({"period": -0.5}, "period -0.5 s is negative"),
        ({"rate": 0.0}, "rate 0 is not above 0"),
        ({"timeout": 0.0}, "timeout 0 is not above 0"),
        ({"keepalive_share": 1.5}, "keepalive_share 1.5 is not between 0 and 1"),
        ({"think": -1.0}, "think -1 s is not 0 s or more"),
        ({"rollout": Rollout(), "to": 1}, "it cannot scale to 1 as well"),
        ({"rollout": Rollout(), "instances": 0}, "0 are too few"),
        ({"slow_share": 0.5}, "there is no slow_path"),
        ({"paths": ["/ /"]}, "path '/ /' or host None cannot be sent"),
    ],
)
def test_an_impossible_plan_is_told_with_its_number(changes: dict[str, object], said: str) -> None:
    """Each value that cannot be played is refused before anything is started, in one line."""
    with pytest.raises(PlanFailed) as caught:
        Plan("app:app", **changes).check()  # type: ignore[arg-type]
    assert said in caught.value.line


@pytest.mark.parametrize(
    ("output", "cause"),
    [
        (
            "Traceback (most recent call last):\nModuleNotFoundError: No module named 'x'\n[1] Bye",
            "Module",
        ),
        (
            "usage: gunicorn [OPTIONS]\ngunicorn: error: unrecognized arguments: --x\n",
            "gunicorn: error: unrecog",
        ),
        ("\nError: No module named 'gunicorn_grace'\n", "Error: No module"),
        (
            "Failed to find attribute 'x' in 'app'.\n[2026] [ERROR] Reason: App failed to load.\n",
            "Failed to find",
        ),
        ("one\ntwo\n\n", "two"),
        ("", ""),
    ],
)
def test_the_line_that_explains_a_failed_start_is_found(output: str, cause: str) -> None:
    """The line naming an error comes first, then the last line at all."""
    assert likely_cause(output).startswith(cause)
    assert bool(likely_cause(output)) == bool(cause)
