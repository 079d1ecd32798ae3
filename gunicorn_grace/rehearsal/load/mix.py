"""The mix of requests that a load sends. A seed decides the choices."""

from __future__ import annotations

import random
from collections.abc import Sequence

from .requests import PlannedRequest, in_turn
from .tally import ConnectionKind


class RequestMix:
    """Chooses which request is sent next, on which kind of connection, and by which client.

    Two mixes with the same seed make the same choices in the same order.

    :param requests: the requests to send, each as often as its weight.
    :param slow_path: request target of slow requests.
    :param slow_share: share of the requests that are slow ones, 0 to 1.
    :param keepalive_share: share of the requests that use kept-alive connections, 0 to 1.
    :param clients: the number of clients that share the requests.
    :param slow_node_share: share of the requests that an additional client sends, the last one,
        from the slow node of a ``Lag``.
    :param host: the ``Host`` header, for the check of the requests.
    :param seed: seed of the random choices.

    :raises ValueError: a number is out of its range, or a request cannot be sent.
    """

    def __init__(
        self,
        requests: Sequence[PlannedRequest],
        *,
        slow_path: str | None,
        slow_share: float,
        keepalive_share: float,
        clients: int,
        slow_node_share: float,
        host: str | None,
        seed: int,
    ) -> None:
        shares = (
            ("keepalive_share", keepalive_share),
            ("slow_share", slow_share),
            ("slow node's", slow_node_share),
        )
        for name, share in shares:
            if not 0 <= share <= 1:
                raise ValueError(f"{name} {share:g} is not between 0 and 1")
        if slow_share and slow_path is None:
            raise ValueError(
                f"slow_share is {slow_share:g} but there is no slow_path: "
                "name the path of a slow request"
            )
        if not requests or clients < 1:
            raise ValueError("at least one path and one client are needed")
        self.requests: tuple[PlannedRequest, ...] = tuple(requests)
        self.slow: PlannedRequest | None = (
            None if slow_path is None else PlannedRequest(slow_path, slow=True)
        )
        for request in self.all_requests():
            request.check(host)
        self.slow_share = slow_share
        self.keepalive_share = keepalive_share
        self.slow_node_share = slow_node_share
        self._clients = clients
        self._turn = in_turn(self.requests)
        self._random = random.Random(seed)

    def all_requests(self) -> tuple[PlannedRequest, ...]:
        """Return every request that the load may send. The slow one comes last."""
        return self.requests if self.slow is None else (*self.requests, self.slow)

    def choose(self, number: int) -> tuple[PlannedRequest, ConnectionKind, int]:
        """Choose the request with this number, its kind of connection and the client that sends
        it."""
        slow = self.slow is not None and self._random.random() < self.slow_share
        kind = (
            ConnectionKind.KEPT
            if self._random.random() < self.keepalive_share
            else ConnectionKind.FRESH
        )
        client = self._random.randrange(self._clients)
        if self.slow_node_share and self._random.random() < self.slow_node_share:
            client = self._clients
        request = (
            self.slow if slow and self.slow is not None else self._turn[number % len(self._turn)]
        )
        return request, kind, client
