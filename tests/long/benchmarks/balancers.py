"""What a deletion costs behind a real balancer, and what each part of its setup is worth.

``tox -e bench -- balancers``, about ten minutes.

Each row is one rehearsal: three instances, one deleted, open-loop load through the balancer, no
retries by the client. Rows differ from "as shown" (what ``--show-config`` prints) in one thing,
named in the second column. Behind a balancer that is not installed there are no rows.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gunicorn_grace.rehearsal.errors import RehearsalError
from gunicorn_grace.rehearsal.load.tally import RequestOutcome
from gunicorn_grace.rehearsal.plan import GRACE, PLAIN, Contender, Plan
from gunicorn_grace.rehearsal.processes.balancer import Setup
from gunicorn_grace.rehearsal.processes.balancers import PRODUCTS
from gunicorn_grace.rehearsal.result import Result
from gunicorn_grace.rehearsal.run import play

APP = Path(__file__).parents[2] / "apps"

PLAN = Plan(
    "service:app",
    instances=3,
    rate=80,
    lag=6,
    period=30,
    args=("-k", "gthread", "-w", "2", "--threads", "8"),
    slow_path="/nap?s=0.5",
    slow_share=0.1,
    cwd=str(APP),
    env={"PYTHONPATH": str(APP), "GRACE_SHUTDOWN_DELAY": "8", "GRACE_MIN_DELAY": "0"},
    cool_down=40,
)
"""What all rows share. The platform tells the balancer after 6 s; 10 % of the requests take half a
second."""

FIXED = {"GRACE_SHUTDOWN_DELAY": "2", "GRACE_EXTEND_DELAY": "false"}
"""A delay of 2 s, whatever still comes."""

SYNC = ("-k", "sync", "-w", "2")
"""Two workers with one request each: what waits does so in the accept queue."""


@dataclass(frozen=True)
class Row:
    """One rehearsal."""

    product: str
    what: str
    contender: Contender
    setup: Setup = field(default_factory=Setup)
    plan: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)


def rows() -> Iterator[Row]:
    """All of them, in the order of the table."""
    for product in PRODUCTS:
        for contender in (PLAIN, GRACE):
            yield Row(product, "as shown", contender)
        busy = {"args": SYNC, "rate": 12, "slow_share": 0.5, "cool_down": 10, "lag": 4}
        for contender in (PLAIN, GRACE):
            yield Row(
                product,
                "2 sync workers each, three quarters of the rest busy",
                contender,
                plan=busy,
            )
        for contender in (PLAIN, GRACE):
            yield Row(product, "no retries", contender, Setup(retries=0))
    for product in ("envoy", "haproxy"):
        rare = Setup(interval=5)
        yield Row(
            product,
            "checks every 5 s, fixed delay 2 s, no retries",
            GRACE,
            replace(rare, retries=0),
            env=FIXED,
        )
        yield Row(product, "checks every 5 s, fixed delay 2 s", GRACE, rare, env=FIXED)
        if product == "envoy":
            what = "checks every 5 s, fixed delay 2 s, max_retries 3"
            yield Row(product, what, GRACE, replace(rare, retries_at_once=3), env=FIXED)
        yield Row(
            product,
            "checks every 5 s, delay 2 s, extended",
            GRACE,
            rare,
            env={"GRACE_SHUTDOWN_DELAY": "2"},
        )
    overloaded = {"args": SYNC, "rate": 20, "slow_share": 0.5, "cool_down": 10, "lag": 4}
    for seconds in (5.0, 1.0):
        what = f"2 sync workers each, more to do than the rest can, checks may take {seconds:g} s"
        yield Row("haproxy", what, GRACE, Setup(check_timeout=seconds), plan=overloaded)
    scale = {"instances": 4, "to": 1}
    for panic in (50.0, 0.0):
        for contender in (PLAIN, GRACE):
            yield Row(
                "envoy", f"4 to 1, panic threshold {panic:g}", contender, Setup(panic=panic), scale
            )
    late = {"lag": 14, "period": 12, "slow_path": "/nap?s=4", "slow_share": 0.05}
    short = {"GRACE_SHUTDOWN_DELAY": "2", "GRACE_TERMINATION_PERIOD": "12"}
    for seconds in (1, 60):
        what = f"told after the end of the period, some requests take 4 s, {seconds} s to connect"
        yield Row("nginx", what, GRACE, Setup(connect_timeout=seconds), late, short)
    for product in PRODUCTS:
        sparse = {"rate": 25, "slow_share": 0.0, "warm_up": 500, "lag": 1}
        what = "unused connections kept 60 s, no retries, 25 requests/s"
        yield Row(product, what, GRACE, Setup(idle=60, retries=0), sparse)


def last_request(result: Result) -> str:
    """What the summary of the deleted instances says of their last request."""
    said = [text for gone in result.gone for _, text in gone.events if text.startswith("stopped")]
    found = [
        re.search(r"last request came ([\d.]+ s)|still arrived at (\d+ %)|(no request)", text)
        for text in said
    ]
    return ", ".join(next(filter(None, match.groups())) for match in found if match) or "-"


def show() -> None:
    """Play every row and print the table."""
    print("| balancer | set up | contender | requests | lost | last request | slowest quick one |")
    print("|---|---|---|---|---|---|---|")
    for row in rows():
        if PRODUCTS[row.product].find() is None:
            continue
        plan = replace(PLAN, through=row.product, setup=row.setup, **row.plan)
        plan = replace(plan, env={**plan.env, **row.env})
        try:
            result = play(plan, row.contender)
        except RehearsalError as error:
            cells = ("-", error.line, "-", "-")
        else:
            tally = result.tally
            ways = {
                outcome.value: tally.count(outcome)
                for outcome in RequestOutcome
                if outcome is not RequestOutcome.OK
            }
            how = ", ".join(f"{count} {name}" for name, count in ways.items() if count)
            slowest = max(record.latency for record in tally.records if not record.slow)
            cells = (
                str(tally.total),
                f"{tally.lost}{f' ({how})' if how else ''}",
                last_request(result),
                f"{slowest:.2f} s",
            )
        print("|", " | ".join((row.product, row.what, row.contender.name, *cells)), "|", flush=True)


if __name__ == "__main__":
    sys.path.insert(0, os.fspath(APP))
    show()
