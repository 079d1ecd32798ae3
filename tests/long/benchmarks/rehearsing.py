"""Rehearsals of 2 to 100 instances, and how well the load behind them keeps its schedule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from serving import MS, cpu_ns, plain

from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable
from gunicorn_grace.rehearsal.load.generator import Generator
from gunicorn_grace.rehearsal.plan import GRACE as WITH
from gunicorn_grace.rehearsal.plan import PLAIN as WITHOUT
from gunicorn_grace.rehearsal.plan import Plan
from gunicorn_grace.rehearsal.result import Result
from gunicorn_grace.rehearsal.run import play
from support.figures import GRACE, PLAIN, Row
from support.paths import EXAMPLES

PLAN = Plan(
    "app:app",
    to=1,
    rate=100,
    cool_down=300,
    lag=3,
    period=90,
    args=("-k", "gthread", "-w", "1", "--threads", "8"),
    slow_path="/slow",
    slow_share=0.01,
    cwd=str(EXAMPLES),
    env={"GRACE_SHUTDOWN_DELAY": "5", "GRACE_TERMINATION_PERIOD": "90"},
    timeout=30,
    start_timeout=120,
)
"""The example application, all instances but one deleted at once. The one that stays has threads for
the whole load, and the clients have patience with it while the others keep the processors busy."""

CASES = {
    2: PLAN,
    10: PLAN,
    30: PLAN,
    100: replace(PLAN, rate=30, cool_down=90, args=(*PLAN.args, "--keep-alive", "75")),
}
"""The plans, by the number of instances. When 99 instances end at the same moment they keep two
cores busy for ten seconds. The one that stays has its small share of them, and so gunicorn's
keepalive of 2 s would end a connection now and then in the moment of its next use."""

CONTENDERS = {PLAIN: WITHOUT, GRACE: WITH}


def rehearsals(runs: int = 3) -> list[Row]:
    """What scaling down from 2, 10, 30 and 100 instances to one costs."""
    return [row for instances in CASES for row in scaled_down(instances, runs)]


def scaled_down(instances: int, runs: int) -> Iterator[Row]:
    """The rows of one number of instances."""
    plan = replace(CASES[instances], instances=instances)
    found: dict[str, list[Result]] = {who: [] for who in CONTENDERS}
    for _ in range(runs):
        for who, contender in CONTENDERS.items():
            found[who].append(play(plan, contender))
    for what, unit, value in (
        ("lost at deleted ones", "", lambda result: result.tally.lost - result.lost_elsewhere),
        ("lost at the one that stays", "", lambda result: result.lost_elsewhere),
        ("requests of all", "", lambda result: result.tally.total),
        ("the last one gone after", "s", lambda result: result.gone_after),
        ("memory of all at the peak", "MiB", lambda result: result.memory.peak / 1024**2),
        (
            "99 of 100 requests late by at most",
            "ms",
            lambda result: 1000 * result.tally.summary()["lag_p99"],
        ),
    ):
        values = {who: [*map(value, results)] for who, results in found.items()}
        yield Row(f"{instances} to 1: {what}", unit, values)


def load(runs: int = 5, rate: float = 1000, seconds: int = 20) -> list[Row]:
    """How well the load generator keeps its schedule at 1,000 requests a second against one plain
    gunicorn, half of them on kept-alive connections. The limit is 20 ms at 99 %."""
    found: dict[str, list[float | None]] = {"late": [], "core": [], "lost": []}
    args = ("-k", "gthread", "-w", "1", "--threads", "8")
    for _ in range(runs):
        with plain("tiny:app", args=args) as server:
            server.wait_ready()
            table = EndpointTable()
            table.add(server.address)
            with Generator(table, rate=rate) as generator:
                began = cpu_ns([generator.pid])
                generator.wait_completed(round(rate * seconds))
                used = (cpu_ns([generator.pid]) - began) / MS / 1000 / seconds
                tally = generator.stop()
        found["late"].append(1000 * tally.summary()["lag_p99"])
        found["core"].append(100 * used)
        found["lost"].append(tally.lost + tally.skipped)
    return [
        Row("99 of 100 requests late by at most", "ms", {PLAIN: found["late"]}),
        Row("a core that the generator uses", "%", {PLAIN: found["core"]}),
        Row("requests lost or not started", "", {PLAIN: found["lost"]}),
    ]
