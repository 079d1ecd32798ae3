"""Sends probes as the kubelet does: each on a new connection, counted against thresholds.

Without probes, a rehearsal would consider every running instance ready. So they are real requests
to the same port as the load, and each one occupies a worker. Their verdicts take an endpoint out of
the routing or restart a container, as on a node.

The kubelet's sources: pkg/kubelet/prober/worker.go (times, thresholds, the probes that stop at a
deletion) and pkg/probe/http/http.go (one request on a connection of its own, 200 to 399 is
success).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum

import h11

from ..load.wire import Address, request_bytes

#: The headers that the kubelet sends (pkg/probe/http/request.go).
HEADERS = (("User-Agent", "kube-probe/1.33"), ("Accept", "*/*"))


class ProbeKind(str, Enum):
    """The kinds of probe."""

    READINESS = "readiness"
    LIVENESS = "liveness"
    STARTUP = "startup"


@dataclass(frozen=True)
class KubeletProbe:
    """One HTTP probe, with the defaults of Kubernetes (pkg/apis/core/v1/defaults.go,
    SetDefaults_Probe).

    :ivar path: request target.
    :ivar period: seconds from one request to the next.
    :ivar timeout: time limit for the whole exchange, in seconds.
    :ivar failure_threshold: failures in a row after which the probe has failed.
    :ivar success_threshold: successes in a row after which the probe passes again.
    :ivar initial_delay: seconds after the container's start before the first request.
    :ivar headers: headers of the request. A ``Host`` among them replaces the address.
    :ivar grace: the probe's own terminationGracePeriodSeconds, which is the period of a restart
        that it causes; None for the pod's.

    :raises ValueError: a number is out of its range, or the request cannot be sent.
    """

    path: str
    period: float = 10.0
    timeout: float = 1.0
    failure_threshold: int = 3
    success_threshold: int = 1
    initial_delay: float = 0.0
    headers: tuple[tuple[str, str], ...] = ()
    grace: float | None = None

    def __post_init__(self) -> None:
        for name, seconds in (("period", self.period), ("timeout", self.timeout)):
            if not 0 < seconds < float("inf"):
                raise ValueError(f"probe of {self.path}: {name} {seconds:g} s is not above 0")
        for name, count in (
            ("failure", self.failure_threshold),
            ("success", self.success_threshold),
        ):
            if count < 1:
                raise ValueError(f"probe of {self.path}: {name} threshold {count} is not 1 or more")
        if not 0 <= self.initial_delay < float("inf"):
            raise ValueError(f"probe of {self.path}: delay {self.initial_delay:g} s is negative")
        try:
            request_bytes(
                h11.Connection(h11.CLIENT), "", self.path, headers=self.headers, close=True
            )
        except h11.LocalProtocolError as error:
            raise ValueError(f"probe of {self.path!r} cannot be sent: {error}") from error

    @classmethod
    def parse(cls, text: str) -> KubeletProbe:
        """Read ``/readyz``, or ``/readyz period=5 timeout=1 failure=1 success=1 delay=0``, in any
        order.

        :raises ValueError: the text is not a probe; the message says why.
        """
        path, *options = text.split()
        if not path.startswith("/"):
            raise ValueError(f"probe {text!r}: the path {path!r} does not begin with a slash")
        probe = cls(path)
        for option in options:
            name, equals, value = option.partition("=")
            field = _OPTIONS.get(name)
            if field is None or not equals:
                raise ValueError(
                    f"probe {text!r}: {option!r} is not one of "
                    + ", ".join(f"{name}=" for name in _OPTIONS)
                )
            number: Callable[[str], float] = int if field.endswith("threshold") else float
            try:
                given = number(value)
            except ValueError:
                raise ValueError(f"probe {text!r}: {value!r} is not a number") from None
            probe = replace(probe, **{field: given})  # type: ignore[arg-type]
        return probe

    def __str__(self) -> str:
        return (
            f"the probe GET {self.path} "
            f"(every {self.period:g} s, answered within {self.timeout:g} s)"
        )


_OPTIONS = {
    "period": "period",
    "timeout": "timeout",
    "failure": "failure_threshold",
    "success": "success_threshold",
    "delay": "initial_delay",
}


class Thresholds:
    """Counts the answers to a probe against its thresholds."""

    def __init__(self, probe: KubeletProbe) -> None:
        self._needed = {True: probe.success_threshold, False: probe.failure_threshold}
        self._last: bool | None = None
        self._run = 0

    def count(self, success: bool) -> bool | None:
        """Count one answer.

        :returns: the verdict, or None while too few equal answers have come in a row.
        """
        self._run = self._run + 1 if success is self._last else 1
        self._last = success
        return success if self._run >= self._needed[success] else None


class Prober:
    """The kubelet's probe workers of all instances, on one event loop in a thread of its own.

    The kubelet has a goroutine for each probe. Here, a hundred instances would need two hundred
    threads. One loop sends thirty probes a second with 2 % of a core.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="prober", daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._problem: BaseException | None = None

    def start(self) -> Prober:
        """Start the thread."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """End every probe under way, and the thread."""
        if self._thread.is_alive():
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def __enter__(self) -> Prober:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def check(self) -> None:
        """Raise the error that ended a probe, if there was one. Readiness would otherwise seem
        steady, because it is no longer probed."""
        if self._problem is not None:
            raise self._problem

    def watch(
        self,
        address: Address,
        probes: Mapping[ProbeKind, KubeletProbe],
        tell: Callable[[ProbeKind, bool], None],
        *,
        deleting: Callable[[], bool] = lambda: False,
        gone: Callable[[], bool] = lambda: False,
        started: float | None = None,
    ) -> Callable[[], None]:
        """Probe one container from now on.

        Each probe is sent at once and then once in its period. Readiness and liveness wait until
        the start-up probe, if there is one, has passed. A start-up probe ends with its first
        verdict. A liveness probe ends when it fails, because the container is restarted then. Both
        end when the pod is being deleted, so that a hung worker does not restart its container in
        the middle of a shutdown. Readiness is asked to the end.

        :param address: address of the container.
        :param probes: the probes to send.
        :param tell: called in the prober's thread with every verdict that differs from the one
            before. A container begins as not ready, not started and alive.
        :param deleting: returns whether the pod is being deleted.
        :param gone: returns whether the container has ended for good. It is not ready then, and is
            not asked any more.
        :param started: ``time.monotonic()`` of the container's start, for the initial delay.

        :returns: a function that ends the probing.
        """
        started = time.monotonic() if started is None else started
        container = _Container(address, probes, tell, deleting, gone, started)

        def begin() -> None:
            for kind in probes:
                task = self._loop.create_task(container.ask(kind))
                container.tasks.add(task)
                self._tasks.add(task)
                task.add_done_callback(self._done)

        def end() -> None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(container.cancel)

        self._loop.call_soon_threadsafe(begin)
        return end

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
            self._loop.close()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (problem := task.exception()) is not None:
            self._problem = self._problem or problem


class _Container:
    """The probes of one container. Everything but ``__init__`` runs on the prober's loop."""

    def __init__(
        self,
        address: Address,
        probes: Mapping[ProbeKind, KubeletProbe],
        tell: Callable[[ProbeKind, bool], None],
        deleting: Callable[[], bool],
        gone: Callable[[], bool],
        started: float,
    ) -> None:
        self.address = address
        self.probes = probes
        self.tell = tell
        self.deleting = deleting
        self.gone = gone
        self.started = started
        self.begun = ProbeKind.STARTUP not in probes
        self.tasks: set[asyncio.Task[None]] = set()

    def cancel(self) -> None:
        for task in self.tasks:
            task.cancel()

    async def ask(self, kind: ProbeKind) -> None:
        """Send the probe of one kind again and again, until its verdict is final or the container
        ends."""
        probe = self.probes[kind]
        thresholds = Thresholds(probe)
        ready = False
        loop = asyncio.get_running_loop()
        due = loop.time()
        while not (self.gone() if kind is ProbeKind.READINESS else self.deleting()):
            early = time.monotonic() - self.started < probe.initial_delay
            if not early and (self.begun or kind is ProbeKind.STARTUP):
                verdict = thresholds.count(await self._answers(probe))
                if kind is ProbeKind.READINESS:
                    if verdict is not None and verdict is not ready:
                        ready = verdict
                        self.tell(kind, ready)
                elif verdict is False or (verdict and kind is ProbeKind.STARTUP):
                    # A failed liveness probe ends only itself, not the readiness probe.
                    self.begun |= verdict
                    self.tell(kind, verdict)
                    return
            # As with a ticker, a slow answer does not delay the next probe, and a missed probe is
            # not repeated.
            due = max(due + probe.period, loop.time())
            await asyncio.sleep(due - loop.time())
        if ready:
            self.tell(ProbeKind.READINESS, False)

    async def _answers(self, probe: KubeletProbe) -> bool:
        try:
            return (
                200
                <= await asyncio.wait_for(_probe_status(self.address, probe), probe.timeout)
                < 400
            )
        except (OSError, asyncio.TimeoutError, h11.RemoteProtocolError, EOFError):
            return False


async def _probe_status(address: Address, probe: KubeletProbe) -> int:
    """Send one probe, and return the status of its complete response.

    :raises OSError: connecting, sending or receiving failed.
    :raises EOFError: the connection ended before the response was complete.
    """
    if isinstance(address, str):
        reader, writer = await asyncio.open_unix_connection(address)
    else:
        reader, writer = await asyncio.open_connection(*address)
    try:
        http = h11.Connection(h11.CLIENT)
        writer.write(
            request_bytes(http, address, probe.path, headers=(*probe.headers, *HEADERS), close=True)
        )
        status = 0
        while True:
            event = http.next_event()
            if event is h11.NEED_DATA:
                http.receive_data(await reader.read(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.EndOfMessage):
                return status
            elif isinstance(event, h11.ConnectionClosed):
                raise EOFError
    finally:
        writer.close()
