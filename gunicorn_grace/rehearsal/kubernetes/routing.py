"""The routing of Kubernetes, which learns of a change late: what each node takes for an endpoint."""

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
    """How long a change of the endpoints takes until a node routes by it, seconds.

    The change travels from the pod's status over the EndpointSlice controller and the API server's
    watch to the kube-proxy of every node, which rewrites its rules at most once in
    ``minSyncPeriod`` (pkg/proxy/iptables/proxier.go, ``syncRunner``). No node waits for another, so
    each has a lag of its own, and one that is overloaded or cut off from the API server routes by
    what it knew long after the others.

    :ivar low: the quickest node's.
    :ivar high: the slowest node's; each node between draws its own, evenly.
    :ivar slow: the lag of one more node; None: there is no such node.
    :ivar slow_share: its share of the traffic, above 0, below 1.
    """

    low: float = 3.0
    high: float = 3.0
    slow: float | None = None
    slow_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high < math.inf:
            raise ValueError(
                f"lag {self.low:g}..{self.high:g} s: from 0 s on is needed, the smaller number first"
            )
        if self.slow is not None and not 0 <= self.slow < math.inf:
            raise ValueError(f"slow node's lag {self.slow:g} s: a time from 0 s on is needed")
        if self.slow is not None and not 0 < self.slow_share < 1:
            raise ValueError(
                f"slow node's share {self.slow_share:g} is not between 0 and 1: 0.05 is one of twenty"
            )

    @classmethod
    def parse(cls, lag: str, slow_node: str | None = None) -> Lag:
        """Read ``3`` or ``1..8``, and ``SHARE:SECONDS`` of the slow node.

        :raises ValueError: neither, or a number out of its range.
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
        """Until the last node has learned of a change."""
        return max(self.high, self.slow or 0.0)

    def draw(self, nodes: int, rng: random.Random) -> tuple[float, ...]:
        """The lag of each of so many nodes; the slow node comes last, as one more."""
        lags = tuple(rng.uniform(self.low, self.high) for _ in range(nodes))
        return lags if self.slow is None else (*lags, self.slow)

    def __str__(self) -> str:
        text = f"{self.low:g}" if self.low == self.high else f"{self.low:g} to {self.high:g}"
        return f"{text} s" + (
            "" if self.slow is None else f" ({self.slow_share:.0%} of the traffic {self.slow:g} s)"
        )


class NoEndpoint(LookupError):
    """The table is empty: kube-proxy rejects the connection."""


class EndpointState(enum.Enum):
    """What an endpoint is in the EndpointSlice (staging/src/k8s.io/endpointslice/utils.go,
    podToEndpoint)."""

    READY = "ready"
    """Passes its readiness probe and is not being deleted."""
    TERMINATING = "terminating"
    """Being deleted, and still passing its readiness probe: "serving". Never "ready", whatever its
    probe says."""
    GONE = "gone"
    """Does not pass its readiness probe, or is no more."""


#: When a change was made (``time.monotonic()``), of which endpoint, what it became, and the lag.
EndpointChange: TypeAlias = tuple[float, Address, EndpointState, "float | Sequence[float]"]


class EndpointTable:
    """Where a new connection goes, as kube-proxy's iptables mode decides it: any ready endpoint, at
    random.

    Decided once for a connection; an open one stays where it is. Where no endpoint is ready, those
    that are terminating and serve are picked (pkg/proxy/topology.go, CategorizeEndpoints). What has
    changed is routed by only when the change has travelled from the API server through the
    EndpointSlice to the node: the ``lag``, one for all nodes or one for each. Safe to use from
    several threads.

    :param clock: seconds, ``time.monotonic`` unless a test brings its own.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._listeners: list[Callable[[EndpointChange], None]] = []
        self._changes: dict[
            Address, list[tuple[float, float | Sequence[float], EndpointState]]
        ] = {}
        self._known: dict[
            int, tuple[float, list[Address], list[Address]]
        ] = {}  # node: until when, ready, others

    def add(self, address: Address, lag: float | Sequence[float] = 0.0) -> None:
        """Route to ``address`` in ``lag`` seconds, whatever was said of it before."""
        self.change(address, EndpointState.READY, lag, new=True)

    def remove(self, address: Address, lag: float | Sequence[float] = 0.0) -> None:
        """Stop routing to ``address`` in ``lag`` seconds. A second removal moves the first one
        neither way.

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
        """Make an endpoint what ``state`` says, as each node sees it ``lag`` seconds from now.

        A change that reaches a node before an older one makes the older one void.

        :param address: of the endpoint.
        :param state: what it is from then on.
        :param lag: seconds; a sequence has one for each node.
        :param new: it may be one that was never added.

        :raises KeyError: it was never added.
        """
        with self._lock:
            if not new and address not in self._changes:
                raise KeyError(address)
            self._take((self._clock(), address, state, lag))
            for listener in self._listeners:
                listener((self._changes[address][-1][0], address, state, lag))

    def follow(self, listener: Callable[[EndpointChange], None]) -> None:
        """Tell ``listener`` every change: those so far at once, later ones as they are made, in
        their order.

        It is called by whoever makes the change, and must neither block nor ask the table.
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
        """Take over a change of another table, which counts from when it was made there."""
        with self._lock:
            self._take(change)

    def _take(self, change: EndpointChange) -> None:
        made, address, state, lag = change
        self._changes.setdefault(address, []).append((made, lag, state))
        self._known.clear()

    def endpoints(self, node: int = 0) -> list[Address]:
        """The ready endpoints, as ``node`` knows them at this moment."""
        with self._lock:
            return list(self._look(node)[0])

    def pick(self, rng: random.Random, node: int = 0) -> Address:
        """The endpoint of one new connection from ``node``.

        :raises NoEndpoint: there is none.
        """
        with self._lock:
            ready, terminating = self._look(node)
            endpoints = ready or terminating
            if not endpoints:
                raise NoEndpoint("no endpoint is routed to")
            return rng.choice(endpoints)

    def _look(self, node: int) -> tuple[list[Address], list[Address]]:
        """What a node knows, kept until it learns of something: each of a thousand requests a
        second asks."""
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
