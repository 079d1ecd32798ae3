"""Deletion after deletion under load: ``python tests/long/soak.py`` (or ``tox -e soak``).

One scale-down shows what happens at the moments that it happens to hit. Here many follow each
other, in one lane for each worker class, and everything that a loss may hang on is drawn by lot:
when in the spacing of the requests the deletion comes, how long the routing lags and how long the
delay is, SIGTERM alone or a preStop hook before it, one instance or two at once, how long requests
take, fresh and kept-alive connections. Half of the instances extend their delay, and may be routed
to for longer than it lasts; the others must not, and get requests until shortly before its end, so
that some are in flight, or in the accept queue, when draining begins. Awkward clients come in
between: some send bodies that nobody reads, some keep their end open when they are told to close,
and a crowd may keep every worker of an instance busy when its deletion begins. Some SIGTERMs are
repeated, to the arbiter or to its whole process group.
Before each deletion a new instance is up and routed to, as in a roll-out. The load is the
rehearsal's: open loop, no retries.

``--seed`` draws the same again. The machine's own timing is not part of that, so a loss that hangs
on it may need several runs.

Exit code: 0 nothing was lost and every instance ended with 0 by itself; 1 otherwise; 2 it could not
be carried out; 130 interrupted. However it ends, no process of it is left.
"""

from __future__ import annotations

import os
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import click
from awkward import AwkwardClients

from gunicorn_grace.rehearsal.errors import RehearsalError
from gunicorn_grace.rehearsal.kubernetes.deletion import Deletion
from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable
from gunicorn_grace.rehearsal.load.load import Load
from gunicorn_grace.rehearsal.load.tally import (
    ConnectionKind,
    RequestOutcome,
    RequestRecord,
    Tally,
    percentile,
)
from gunicorn_grace.rehearsal.load.wire import show_address
from gunicorn_grace.rehearsal.plan import GRACE, PLAIN, Contender
from gunicorn_grace.rehearsal.processes.instance import Instance

APPS = Path(__file__).parents[1] / "apps"

LANES: dict[str, tuple[str, ...]] = {
    "sync": ("-k", "sync", "-w", "4"),
    "gthread": ("-k", "gthread", "-w", "2", "--threads", "4"),
    "gevent": ("-k", "gevent", "-w", "2"),
}
ARGS = ("--keep-alive", "75", "--graceful-timeout", "30", "--log-level", "info")
"""Kept-alive connections outlast the pauses of the clients, as they should behind a load balancer;
otherwise gunicorn now and then closes one in the very millisecond in which a client uses it,
deletion or not."""

CROWD = 8
"""Slow requests at once. No instance of any lane but gevent's can serve more at the same time."""

PERIOD = 60.0
STAYING = 2
"""Instances in a lane, apart from those that come and go."""
RATE = 45.0
"""Requests per second in a lane."""
MOST_BEYOND = 1.5
"""Seconds by which the lag exceeds the delay at the most. An extension ends after 2 s of silence,
and three endpoints at this rate are silent for so long by chance once in a million."""
LEAST_BELOW = 0.2
"""Seconds by which it is shorter than the delay at the least where that is not extended: what a
busy machine may take from the choice of an endpoint to the connection, and a little more."""


@dataclass(frozen=True)
class Turn:
    """What is drawn for one deletion. Times are seconds."""

    requests: int
    phase: float
    lags: tuple[float, ...]
    hook: bool
    crowd: bool
    repeats: tuple[tuple[float, bool], ...]
    """SIGTERM again: seconds after the one before, and whether the whole group gets it."""


@dataclass
class Life:
    """One instance from its start to its end."""

    instance: Instance
    delay: float
    extends: bool
    endpoint: str = ""
    born: float = 0.0
    deletion: Deletion | None = None

    def has(self, record: RequestRecord) -> bool:
        """Whether that request was this one's: ports are used again."""
        ended = self.instance.exit_time
        return (
            record.endpoint == self.endpoint
            and self.born <= record.started < (ended or record.started) + 5
        )

    def when(self, moment: float) -> str:
        """A moment, as seen from this deletion."""
        if self.deletion is None or self.deletion.started is None:
            return "never deleted"
        stamps = {
            "deletion": self.deletion.started,
            "SIGTERM": self.deletion.sigterm,
            "exit": self.instance.exit_time,
        }
        return ", ".join(
            f"{moment - stamp:+.3f} s from {name}" for name, stamp in stamps.items() if stamp
        )


@dataclass
class Lane:
    """A load on instances of one worker class, of which one after the other is deleted."""

    kind: str
    contender: Contender
    seed: str
    deletions: int
    requests: int
    folder: Path
    python: str = sys.executable
    lives: list[Life] = field(default_factory=list)
    done: int = 0
    problem: BaseException | None = None
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.chance = random.Random(f"{self.seed} {self.kind}")
        self.table = EndpointTable()
        self.load = Load(
            self.table,
            rate=RATE,
            paths=[self._path() for _ in range(211)],
            keepalive_share=0.5,
            timeout=20.0,
            seed=self.chance.getrandbits(32),
        )
        self.awkward = AwkwardClients(
            self.table, self.kind, random.Random(f"{self.seed} {self.kind} awkward")
        )
        self.thread = threading.Thread(target=self._guarded, name=f"lane {self.kind}", daemon=True)

    def _path(self) -> str:
        chance = self.chance.random()
        if chance < 0.8:
            return "/"
        if chance < 0.92:
            long = self.chance.random() < 0.1
            return f"/slow?s={self.chance.uniform(2, 5) if long else self.chance.expovariate(1 / 0.3):.3f}"
        if self.chance.random() < 0.05:
            return f"/stream?n={self.chance.randint(30, 80)}&pause=0.1"
        return f"/stream?n={self.chance.randint(2, 6)}&pause={self.chance.uniform(0.01, 0.15):.3f}"

    def _turn(self, lives: Sequence[Life]) -> Turn:
        return Turn(
            self.chance.randint(1, round(RATE)),
            self.chance.uniform(0, 1 / RATE),
            tuple(self._lag(life) for life in lives),
            self.chance.random() < 0.25,
            self.chance.random() < 0.15,
            tuple(
                (self.chance.expovariate(2), self.chance.random() < 0.5)
                for _ in range(self.chance.choice((0, 0, 1, 3)))
            ),
        )

    def _insist(self, life: Life, repeats: Sequence[tuple[float, bool]]) -> None:
        """Repeat SIGTERM as process managers do, while the instance is there."""
        deletion = life.deletion
        assert deletion is not None
        while deletion.sigterm is None and life.instance.exit_time is None:
            time.sleep(0.01)
        for pause, to_group in repeats:
            time.sleep(pause)
            if life.instance.exit_time is None:
                send = life.instance.signal_group if to_group else life.instance.signal
                with suppress(RehearsalError, ProcessLookupError):
                    send(signal.SIGTERM)

    def _lag(self, life: Life) -> float:
        if life.extends:
            return self.chance.uniform(0, life.delay + MOST_BEYOND)
        return max(0.0, life.delay - LEAST_BELOW - self.chance.expovariate(1 / 0.3))

    # -- in its thread ----

    def _guarded(self) -> None:
        try:
            self._run()
        except BaseException as error:
            self.problem = error
        finally:
            for life in self.lives:
                if life.deletion is not None:
                    life.deletion.cancel()
                life.instance.stop()

    def _run(self) -> None:
        going = [self._start() for _ in range(STAYING)]
        with self.load, self.awkward:
            while self.done < self.deletions and not self.stopping.is_set():
                count = min(self.deletions - self.done, 2 if self.chance.random() < 0.2 else 1)
                going += [self._start() for _ in range(count)]
                # The oldest go: each has served beside others for a while.
                goes, going = going[:count], going[count:]
                turn = self._turn(goes)
                due = self.requests * self.done // self.deletions - self.load.completed
                self._wait(max(turn.requests, due))
                time.sleep(turn.phase)
                hook = (
                    ("gunicorn-grace", "prestop", "--pid", "{pid}")
                    if turn.hook and self.contender is GRACE
                    else ()
                )
                for life, lag in zip(goes, turn.lags, strict=True):
                    life.deletion = Deletion(
                        life.instance, self.table, lag=lag, period=PERIOD, pre_stop=hook
                    )
                for life in goes:
                    assert life.deletion is not None
                    if turn.crowd:
                        self.awkward.crowd(life.instance.address, CROWD)
                    life.deletion.start()
                    if turn.repeats:
                        threading.Thread(
                            target=self._insist, args=(life, turn.repeats), daemon=True
                        ).start()
                for life in goes:
                    assert life.deletion is not None
                    life.deletion.join(PERIOD + 30)
                    self._keep_output(life)
                    life.instance.stop()
                self.done += 0 if self.stopping.is_set() else count
            while (
                missing := self.requests - self.load.completed
            ) > 0 and not self.stopping.is_set():
                self._wait(min(missing, round(RATE)))
        for life in going:
            if life.instance.exit_time is not None:
                raise RehearsalError(
                    f"{life.instance.name} ended by itself\n{life.instance.output}"
                )
            self._keep_output(life)

    def _wait(self, count: int) -> None:
        # Twice as long and a minute more than it should take: the machine may be busy.
        self.load.wait_completed(count, 2 * count / RATE + 60)

    def _start(self) -> Life:
        delay, extends = self.chance.uniform(0.8, 2.5), self.chance.random() < 0.5
        instance = Instance(
            "service:app",
            args=(*self.contender.args, *LANES[self.kind], *ARGS),
            env={
                "PYTHONPATH": os.pathsep.join(
                    [str(APPS), *filter(None, [os.environ.get("PYTHONPATH")])]
                ),
                "GRACE_SHUTDOWN_DELAY": f"{delay:.3f}",
                "GRACE_MIN_DELAY": "0",
                "GRACE_EXTEND_DELAY": str(extends).lower(),
                "GRACE_TERMINATION_PERIOD": f"{PERIOD:g}",
                **self.contender.env,
            },
            cwd=self.folder,
            python=self.python,
            name=f"{self.kind}-{len(self.lives) + 1}",
        )
        life = Life(instance, delay, extends)
        self.lives.append(life)
        instance.start(60)
        instance.wait_ready(60, "/")
        life.endpoint, life.born = show_address(instance.address), time.monotonic()
        self.table.add(instance.address)
        return life

    def _keep_output(self, life: Life) -> None:
        """What an instance said is kept when it lost something, or did not end as it should."""
        lost = [record for record in self.load.snapshot().lost_records if life.has(record)]
        if lost or life.instance.exit_code not in (None, 0):
            told = "".join(f"{at:.3f} {text}\n" for at, text in life.instance.lines)
            (self.folder / f"{life.instance.name}.log").write_text(told)

    # -- from outside ----

    def abandon(self) -> None:
        """End it now, whatever it is doing."""
        self.stopping.set()
        with suppress(RehearsalError):
            self.load.stop(abandon=True)
        for life in list(self.lives):
            if life.deletion is not None:
                life.deletion.cancel()


ENDED = re.compile(r"lame_duck_ended after [\d.]+ s: (.*)")
STOPPED = re.compile(r"in flight (\d+) at T0 and (\d+) at the drain, (\d+) cut off")


def report(lanes: Sequence[Lane], seconds: float) -> int:
    """Print the tally. How many things went wrong."""
    wrong = 0
    print(f"\n{'':10}deletions  requests   fresh    kept  reused    late    lost  slowest  skipped")
    total, lost_lines = Tally(), []
    exits: list[float] = []
    codes: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    late_in_all = 0
    in_flight = [0, 0, 0]
    awkward: Counter[str] = Counter()
    for lane in lanes:
        tally = lane.load.snapshot()
        total.records += tally.records
        total.lags += tally.lags
        total.skipped += tally.skipped
        served: dict[str, list[RequestRecord]] = {}
        for record in tally.records:
            served.setdefault(record.endpoint, []).append(record)
        late = 0
        for life in lane.lives:
            deletion = life.deletion
            if deletion is None or deletion.exited is None or deletion.started is None:
                continue
            if (
                lane.stopping.is_set()
                and deletion.exit_code == -signal.SIGKILL
                and not deletion.killed
            ):
                continue  # By us, who gave up.
            late += sum(
                deletion.started < r.started and life.has(r) for r in served.get(life.endpoint, ())
            )
            assert deletion.exit_after is not None
            exits.append(deletion.exit_after)
            codes[
                "killed at the period's end"
                if deletion.killed
                else f"exit code {deletion.exit_code}"
            ] += 1
            reasons.update(m[1] for _, text in life.instance.lines if (m := ENDED.search(text)))
            for counted in (
                m.groups() for _, text in life.instance.lines if (m := STOPPED.search(text))
            ):
                in_flight = [sum(pair) for pair in zip(in_flight, map(int, counted), strict=True)]
            if deletion.pre_stop_problem:
                codes[deletion.pre_stop_problem] += 1
        late_in_all += late
        kept = [record for record in tally.records if record.kind is ConnectionKind.KEPT]
        slowest = max((record.latency for record in tally.records), default=0)
        print(
            f"{lane.kind:10}{lane.done:9}{tally.total:10}{tally.total - len(kept):8}{len(kept):8}"
            f"{sum(r.reused for r in kept):8}{late:8}{tally.lost:8}{slowest:7.2f} "
            f"s{tally.skipped:9}"
        )
        awkward.update(lane.awkward.counts)
        lost_lines += lane.awkward.losses
        wrong += len(lane.awkward.losses)
        for record in tally.lost_records:
            life = next((life for life in lane.lives if life.has(record)), None)
            lost_lines.append(
                f"lost: {lane.kind} {record.kind.value} reused={record.reused} {record.path} "
                f"{record.outcome.value} "
                f"({record.error}) after {record.latency:.3f} s; "
                f"{life.instance.name if life else record.endpoint}: "
                f"sent {life.when(record.started) if life else '?'}; ended "
                f"{life.when(record.ended) if life else '?'}"
            )
    classes = ", ".join(f"{outcome.value} {total.count(outcome)}" for outcome in RequestOutcome)
    print(
        f"\nrequests: {classes}; {late_in_all} of them came to an instance that was being deleted"
    )
    print(
        f"lost: {total.lost} of {total.total} in {sum(lane.done for lane in lanes)} deletions, "
        f"{seconds:.0f} s"
    )
    told = ", ".join(f"{kind} {count}" for kind, count in awkward.items()) or "none"
    print(f"awkward clients: {told}; without a complete response: {wrong}")
    wrong += total.lost + sum(count for code, count in codes.items() if code != "exit code 0")
    if exits:
        print(
            f"from SIGTERM to the exit: median {statistics.median(exits):.2f} s, 99 % "
            f"{percentile(exits, 99):.2f} s, "
            f"longest {max(exits):.2f} s; {', '.join(f'{code}: {n}' for code, n in codes.items())}"
        )
        print(
            "in flight: {} when the delays began, {} when draining did; cut off: {}".format(
                *in_flight
            )
        )
        print(
            f"lame duck ended: "
            f"{', '.join(f'{reason} {count}' for reason, count in reasons.items()) or 'not told'}"
        )
    print(
        f"the generator was late by {1000 * percentile(total.lags, 99):.1f} ms at 99 %, "
        f"{total.skipped} not started"
    )
    for line in lost_lines:
        print(line)
    return wrong


@click.command(context_settings={"show_default": True})
@click.option("--deletions", default=200, type=click.IntRange(3), help="In all lanes together.")
@click.option(
    "--requests",
    default=100_000,
    type=click.IntRange(1),
    help="At least so many, in all lanes together.",
)
@click.option("--seed", type=int, help="Draw the same again.  [default: a new one, printed]")
@click.option("--limit", default=2400.0, help="Give up after so many seconds.")
@click.option(
    "--logs",
    type=click.Path(path_type=Path),
    help="Folder for the logs of instances that lost something.",
)
@click.option("--plain", is_flag=True, help="Plain gunicorn, to see that losses are seen.")
def main(
    deletions: int, requests: int, seed: int | None, limit: float, logs: Path | None, plain: bool
) -> None:
    """Delete instance after instance under load, and count what is lost."""
    seed = random.SystemRandom().getrandbits(32) if seed is None else seed
    folder = logs or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    # An inherited configuration would be another soak than the one that the seed draws.
    for name in [name for name in os.environ if name.startswith(("GRACE_", "GUNICORN_"))]:
        del os.environ[name]
    shares = [(deletions + number) // len(LANES) for number in range(len(LANES))]
    lanes = [
        Lane(kind, PLAIN if plain else GRACE, str(seed), share, -(-requests // len(LANES)), folder)
        for kind, share in zip(LANES, shares, strict=True)
    ]
    print(
        f"soak: seed {seed}, {deletions} deletions, {requests} requests; logs of losses in "
        f"{folder}",
        flush=True,
    )
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, frame: sys.exit(130))
    began = told = time.monotonic()
    for lane in lanes:
        lane.thread.start()
    finished = False
    try:
        while any(lane.thread.is_alive() for lane in lanes):
            for lane in lanes:
                lane.thread.join(0.5)
            now = time.monotonic()
            if any(lane.problem for lane in lanes) or now - began > limit:
                break
            if now - told > 30:
                told = now
                counted = " ".join(
                    f"{lane.kind} {lane.done}/{lane.deletions} {lane.load.completed}"
                    for lane in lanes
                )
                lost = sum(lane.load.snapshot().lost for lane in lanes)
                print(f"{now - began:6.0f} s: {counted}, lost {lost}", flush=True)
        finished = not any(lane.thread.is_alive() for lane in lanes)
    finally:
        for lane in lanes:
            if lane.thread.is_alive():
                lane.abandon()
        for lane in lanes:
            lane.thread.join(60)
    problems = [lane.problem for lane in lanes if lane.problem]
    wrong = report(lanes, time.monotonic() - began)
    if not any(folder.iterdir()) and logs is None:
        folder.rmdir()
    if finished and problems:
        finished = False
    if not finished:
        why = problems[0] if problems else f"{limit:g} s were over"
        print(f"soak: not finished: {why}", file=sys.stderr)
    sys.exit(1 if wrong else 0 if finished else 2)


if __name__ == "__main__":
    main()
