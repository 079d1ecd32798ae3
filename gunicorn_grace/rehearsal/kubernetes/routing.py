"""The routing of Kubernetes, which learns late of a change of the endpoints."""

from __future__ import annotations

import enum
import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ..load.wire import Address


@dataclass(frozen=True)
class Lag:
    """The time from a change of the endpoints until a node routes by it, in seconds.

    The change travels from the pod's status through the EndpointSlice controller and the API
    server's watch to the kube-proxy of every node. Each kube-proxy rewrites its rules at most once
    per ``minSyncPeriod`` (pkg/proxy/iptables/proxier.go, ``syncRunner``). No node waits for
    another, so each has its own lag. A node that is overloaded or cut off from the API server can
    be far behind the others.

    :ivar low: the lag of the quickest node.
    :ivar high: the lag of the slowest node. Each node draws its own lag evenly between the two.
    :ivar slow: the lag of one additional node; None if there is no such node.
    :ivar slow_share: the share of the traffic of that node, above 0 and below 1.

    :raises ValueError: a number is out of its range.
    """

    low: float = 3.0
    high: float = 3.0
    slow: float | None = None
    slow_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high < math.inf:
            raise ValueError(
                f"lag {self.low:g}..{self.high:g} s: use 0 s or more, the smaller number first"
            )
        if self.slow is not None and not 0 <= self.slow < math.inf:
            raise ValueError(f"slow node's lag {self.slow:g} s is not 0 s or more")
        if self.slow is not None and not 0 < self.slow_share < 1:
            raise ValueError(
                f"slow node's share {self.slow_share:g} is not between 0 and 1: "
                "0.05 is one request in twenty"
            )

    @classmethod
    def parse(cls, lag: str, slow_node: str | None = None) -> Lag:
        """Read a lag from the command line.

        :param lag: seconds, such as ``3``, or a range, such as ``1..8``.
        :param slow_node: ``SHARE:SECONDS`` of the slow node; None without one.
        :raises ValueError: a text has another form, or a number is out of its range.
        """
        low, dots, high = lag.partition("..")
        try:
            first = float(low)
            numbers = (first, float(high) if dots else first)
        except ValueError:
            raise ValueError(
                f"lag {lag!r} is neither seconds (3) nor a range of seconds (1..8)"
            ) from None
        if slow_node is None:
            return cls(*numbers)
        share, _, seconds = slow_node.partition(":")
        try:
            slow = (float(seconds), float(share))
        except ValueError:
            raise ValueError(
                f"slow node {slow_node!r} is not SHARE:SECONDS, as in 0.05:20"
            ) from None
        return cls(*numbers, *slow)

    @property
    def longest(self) -> float:
        """The lag of the slowest node, in seconds."""
        return max(self.high, self.slow or 0.0)

    def draw(self, nodes: int, rng: random.Random) -> tuple[float, ...]:
        """Draw the lag of each node; the slow node comes last, as an additional one."""
        lags = tuple(rng.uniform(self.low, self.high) for _ in range(nodes))
        return lags if self.slow is None else (*lags, self.slow)

    def __str__(self) -> str:
        text = f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"
        return f"{text} s" + (
            "" if self.slow is None else f" ({self.slow_share:.0%} of the traffic {self.slow:g} s)"
        )


class NoEndpoint(LookupError):
    """The node knows no endpoint. kube-proxy rejects the connection then."""


class EndpointState(enum.Enum):
    """The state of an endpoint in its EndpointSlice (staging/src/k8s.io/endpointslice/utils.go,
    podToEndpoint)."""

    READY = "ready"
    """It passes its readiness probe and is not being deleted."""
    TERMINATING = "terminating"
    """It is being deleted, and still passes its readiness probe. The EndpointSlice then has
    "serving" but never "ready"."""
    GONE = "gone"
    """It does not pass its readiness probe, or does not exist any more."""


#: The time of a change (``time.monotonic()``), its endpoint, the new state and the lag.
EndpointChange: TypeAlias = tuple[float, Address, EndpointState, "float | Sequence[float]"]


class EndpointTable:
    """Chooses an endpoint for each new connection as kube-proxy's iptables mode does: at random.

    The choice is made once for a connection, and an open connection stays where it is. Only ready
    endpoints are chosen. If there are none, the endpoints that are terminating and still serving
    are chosen (pkg/proxy/topology.go, CategorizeEndpoints). A node learns of a change after the
    ``lag``, which is the same for all nodes or different for each. The table may be used from
    several threads.

    :param clock: returns seconds; tests replace it.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._listeners: list[Callable[[EndpointChange], None]] = []
        self._changes: dict[
            Address, list[tuple[float, float | Sequence[float], EndpointState]]
        ] = {}
        # For each node: the time until which the rest is valid, the ready and the terminating
        # endpoints.
        self._known: dict[int, tuple[float, list[Address], list[Address]]] = {}

    def add(self, address: Address, lag: float | Sequence[float] = 0.0) -> None:
        """Route to ``address`` in ``lag`` seconds. The endpoint may be new or known."""
        self.change(address, EndpointState.READY, lag, new=True)

    def remove(self, address: Address, lag: float | Sequence[float] = 0.0) -> None:
        """Stop routing to ``address`` in ``lag`` seconds. A second removal does not change the
        first.

        :raises KeyError: it was never added.
        """
        self.change(address, EndpointState.GONE, lag)

    def change(
        self,
        address: Address,
        state: EndpointState,
        lag: float | Sequence[float] = 0.0,
        *,
        new: bool = False,
    ) -> None:
        """Change the state of an endpoint. Each node sees the change ``lag`` seconds from now.

        If a change reaches a node before an older one does, the older one has no effect.

        :param address: address of the endpoint.
        :param state: its new state.
        :param lag: seconds; a sequence has one value for each node.
        :param new: whether the endpoint may be unknown.

        :raises KeyError: it was never added.
        """
        with self._lock:
            if not new and address not in self._changes:
                raise KeyError(address)
            self._take((self._clock(), address, state, lag))
            for listener in self._listeners:
                listener((self._changes[address][-1][0], address, state, lag))

    def follow(self, listener: Callable[[EndpointChange], None]) -> None:
        """Call ``listener`` with every change in its order: with the past ones now, later ones as
        they are made.

        The call comes from the thread that makes the change, so it must neither block nor use the
        table.
        """
        with self._lock:
            told = [
                (made, address, state, lag)
                for address, changes in self._changes.items()
                for made, lag, state in changes
            ]
            for change in sorted(told, key=lambda change: change[0]):
                listener(change)
            self._listeners.append(listener)

    def replay(self, change: EndpointChange) -> None:
        """Take over a change of another table. Its lag counts from the moment when it was made
        there."""
        with self._lock:
            self._take(change)

    def _take(self, change: EndpointChange) -> None:
        made, address, state, lag = change
        self._changes.setdefault(address, []).append((made, lag, state))
        self._known.clear()

    def endpoints(self, node: int = 0) -> list[Address]:
        """Return the ready endpoints, as ``node`` knows them at this moment."""
        with self._lock:
            return list(self._look(node)[0])

    def pick(self, rng: random.Random, node: int = 0) -> Address:
        """Choose the endpoint of one new connection from ``node``.

        :raises NoEndpoint: no endpoint is left.
        """
        with self._lock:
            ready, terminating = self._look(node)
            endpoints = ready or terminating
            if not endpoints:
                raise NoEndpoint("the routing has no endpoint")
            return rng.choice(endpoints)

    def _look(self, node: int) -> tuple[list[Address], list[Address]]:
        """Return the ready and the terminating endpoints that a node knows.

        The result is kept until the node learns of a change, because each of a thousand requests a
        second needs it.
        """
        now = self._clock()
        if node in self._known and now < self._known[node][0]:
            return self._known[node][1:]
        until = math.inf
        found: dict[EndpointState, list[Address]] = {state: [] for state in EndpointState}
        for address, changes in self._changes.items():
            arrivals: list[tuple[float, EndpointState]] = []
            for made, lag, state in changes:
                arrival = made + (lag if isinstance(lag, (int, float)) else lag[node])
                arrivals = [earlier for earlier in arrivals if earlier[0] <= arrival]
                arrivals.append((arrival, state))
            current = [state for arrival, state in arrivals if arrival <= now]
            found[current[-1] if current else EndpointState.GONE].append(address)
            until = min([until, *(arrival for arrival, _ in arrivals if arrival > now)])
        self._known[node] = (until, found[EndpointState.READY], found[EndpointState.TERMINATING])
        return self._known[node][1:]
