"""Routing that learns late, with a clock of our own."""

from __future__ import annotations

import random

import pytest

from gunicorn_grace.rehearsal.errors import PlanFailed, likely_cause
from gunicorn_grace.rehearsal.platform import EndpointTable, NoEndpoint
from gunicorn_grace.rehearsal.scene import Plan

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


def test_a_removed_endpoint_is_routed_to_until_the_lag_is_over(clock: Clock, table: EndpointTable) -> None:
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
