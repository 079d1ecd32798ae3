"""The plan of a rehearsal, and the contenders that play it."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .errors import PlanFailed
from .kubernetes.deletion import Hook
from .kubernetes.probing import KubeletProbe, ProbeKind
from .kubernetes.rollout import Rollout
from .kubernetes.routing import EndpointTable, Lag
from .load.load import Load
from .load.requests import PlannedRequest
from .processes.balancer import Setup
from .processes.balancers import PRODUCTS


@dataclass(frozen=True)
class Contender:
    """A way to run gunicorn that takes part in a rehearsal.

    :ivar name: its name in reports.
    :ivar args: arguments for gunicorn in addition to the plan's.
    :ivar env: environment in addition to the plan's.
    :ivar pre_stop: a preStop hook that replaces the plan's; None to use the plan's.
    """

    name: str
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    pre_stop: Sequence[str] | Hook | None = None


#: gunicorn as it is.
PLAIN = Contender("plain gunicorn", ("-c", "python:gunicorn_grace.rehearsal.command.plain"))


#: gunicorn with the plugin.
GRACE = Contender("gunicorn-grace", ("-c", "python:gunicorn_grace.conf"))


@dataclass(frozen=True)
class Plan:
    """The plan of a rehearsal. Times are seconds.

    It has more attributes than a class should, because each is one independent setting of a
    rehearsal, and pytest's fixture takes them by name.

    :ivar app: the application, as gunicorn takes it.
    :ivar instances: the number of instances at the beginning.
    :ivar to: the number of instances that remain; None for one fewer. The others are deleted at the
        same moment, as in a scale-down.
    :ivar rate: requests per second, all instances together.
    :ivar lag: how long the routing goes on sending to a deleted instance. With ``routing`` it is
        the longest lag.
    :ivar routing: the lags of the nodes if they differ.
    :ivar period: terminationGracePeriodSeconds.
    :ivar args: arguments for gunicorn, for every contender.
    :ivar env: environment for every contender.
    :ivar pre_stop: the preStop hook or its command, see ``Deletion``. Empty means no hook.
    :ivar probes: the probes of each instance. With None, readiness is only recorded, if the
        instance answers the probe ``WATCHED``.
    :ivar rollout: how to replace every instance; None for a scale-down.
    :ivar paths: see ``Load``, also for ``requests``, ``think``, ``keepalive_share``, ``slow_path``,
        ``slow_share``, ``timeout``, ``clients``, ``host``, ``seed``, ``stream_path``,
        ``websocket_path`` and ``held``.
    :ivar warm_up: requests that must have ended before the deletion. The default is a second's
        worth, at least 20.
    :ivar cool_down: requests that must have ended after the deletion, with the same default.
    :ivar through: the balancer between load and instances, a key of ``balancers.PRODUCTS``; None
        for none.
    :ivar setup: the settings of the balancer. Its ``path``, ``timeout`` and ``stream_path`` follow
        from the rest of the plan.
    :ivar cwd: see ``Instance``, also for ``python``.
    :ivar start_timeout: time limit for an instance to listen, and then again to answer.
    """

    app: str
    instances: int = 3
    to: int | None = None
    rate: float = 100.0
    lag: float = 3.0
    period: float = 30.0
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    pre_stop: Sequence[str] | Hook = ()
    probes: Mapping[ProbeKind, KubeletProbe] | None = None
    rollout: Rollout | None = None
    routing: Lag | None = None
    requests: Sequence[PlannedRequest] = ()
    think: float = 0.0
    paths: Sequence[str] = ("/",)
    keepalive_share: float = 0.5
    slow_path: str | None = None
    slow_share: float = 0.0
    stream_path: str | None = None
    websocket_path: str | None = None
    held: int = 10
    timeout: float = 10.0
    clients: int = 10
    host: str | None = None
    seed: int = 0
    warm_up: int | None = None
    cool_down: int | None = None
    through: str | None = None
    setup: Setup = Setup()
    cwd: str | None = None
    python: str = sys.executable
    start_timeout: float = 30.0

    @property
    def remaining(self) -> int:
        """The number of instances at the end."""
        if self.rollout is not None:
            return self.instances
        return self.instances - 1 if self.to is None else self.to

    def check(self) -> None:
        """Check that the plan can be played.

        :raises PlanFailed: it cannot; the message says why.
        """
        if self.rollout is not None and (self.instances < 1 or self.to is not None):
            raise PlanFailed(
                f"a roll-out replaces every instance: {self.instances} are too few"
                if self.instances < 1
                else f"a roll-out replaces every instance: it cannot scale to {self.to} as well; "
                "leave out --to"
            )
        if self.rollout is None and not 1 <= self.remaining < self.instances:
            raise PlanFailed(
                f"{self.instances} instances cannot be scaled down to {self.remaining}: at least "
                "one must remain and at least one must go; see --instances (2 or more) and --to"
            )
        for name, seconds in (("lag", self.lag), ("period", self.period)):
            if seconds < 0:
                raise PlanFailed(f"{name} {seconds:g} s is negative: use 0 s or more")
        if self.through is not None:
            if self.through not in PRODUCTS:
                raise PlanFailed(f"through {self.through!r}: choose one of {', '.join(PRODUCTS)}")
            PRODUCTS[self.through].require()
        if self.websocket_path and importlib.util.find_spec("websockets") is None:
            raise PlanFailed(
                "--websocket-path needs websockets: pip install 'gunicorn-grace[rehearse]'"
            )
        try:
            Load(EndpointTable(), **self.load_options())
        except ValueError as error:
            raise PlanFailed(str(error)) from error

    def load_options(self) -> dict[str, Any]:
        """The arguments of ``Load``."""
        return {
            "rate": self.rate,
            "paths": self.paths,
            "keepalive_share": self.keepalive_share,
            "slow_path": self.slow_path,
            "slow_share": self.slow_share,
            "timeout": self.timeout,
            "clients": self.clients,
            "host": self.host,
            "seed": self.seed,
            "requests": self.requests,
            "think": self.think,
            "slow_node_share": self.routing.slow_share if self.routing else 0.0,
            **self.held_options(),
        }

    def held_options(self) -> dict[str, Any]:
        """The arguments of ``Load`` that are about streams and WebSockets."""
        return {
            "stream_path": self.stream_path,
            "websocket_path": self.websocket_path,
            "held": self.held,
        }

    def lags(self) -> float | tuple[float, ...]:
        """The lag of all nodes, or one for each client of the load. The same seed draws the same
        lags."""
        return (
            self.routing.draw(self.clients, random.Random(self.seed)) if self.routing else self.lag
        )

    def sent(self) -> tuple[PlannedRequest, ...]:
        """Every request that the load may send."""
        return Load(EndpointTable(), **self.load_options()).mix.all_requests()
