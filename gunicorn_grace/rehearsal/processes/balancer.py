"""A real balancer between the load and the instances: Envoy, HAProxy or nginx.

``platform.EndpointTable`` plays kube-proxy, which sends a connection somewhere and knows nothing of
HTTP. A balancer keeps connections of its own to the instances, asks them for their readiness, and
tries a request elsewhere when it could not connect; each of that decides what a shutdown costs, and
without the product itself it would be guesswork.

What a balancer learns, it learns in two ways. By itself: Envoy and HAProxy ask each instance every
``Setup.interval`` seconds; open-source nginx has no active checks, and learns from requests that
fail. And from the platform: when the endpoint table forgets an instance, after its lag, the
balancer is told, by the means that each product has for that (a file of endpoints, the runtime API,
a reload).
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import threading
import time
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import ClassVar

from ..errors import InstanceFailed, PlanFailed
from ..kubernetes.routing import EndpointTable
from ..load.wire import Address, fetch
from .process import SupervisedProcess

#: How often the endpoint table is looked at, seconds: what a control plane adds to the lag.
FOLLOW_INTERVAL = 0.05


@dataclass(frozen=True)
class Setup:
    """How a balancer is set up. Times are seconds.

    :ivar path: what active health checks ask for; only 200 passes.
    :ivar interval: from one health check of an instance to the next; one 503 takes it out, one 200
        back in.
    :ivar check_timeout: for the answer to a health check, which waits for a free worker like any
        request. Too short, and an instance that is merely busy is taken out, which makes the others
        busier.
    :ivar connect_timeout: for a connection to an instance. It counts while an instance drains: its
        listener drops SYNs then, so that this is what a request waits before it is tried elsewhere.
    :ivar timeout: for the response.
    :ivar idle: how long an unused connection to an instance is kept. It must be shorter than
        gunicorn's ``keepalive`` (2 s unless set), or a request is sent at the moment at which
        gunicorn closes the connection.
    :ivar retries: how often a request is tried elsewhere when no connection to an instance could be
        made; 0: never. nginx takes no number: all the others, or none.
    :ivar retries_at_once: Envoy's circuit breaker; of more retries under way at one time the rest
        fails. Its default of 3 is soon reached when an instance goes.
    :ivar forwarded: say ``X-Forwarded-For`` and the like, as a balancer should, or no such header
        at all.
    :ivar panic: Envoy's ``healthy_panic_threshold``: with less than so many percent of the
        instances ready, its default of 50 sends to all of them, those that are shutting down
        included.
    """

    path: str = "/readyz"
    interval: float = 1.0
    check_timeout: float = 5.0
    connect_timeout: float = 1.0
    timeout: float = 10.0
    idle: float = 1.0
    retries: int = 3
    retries_at_once: int = 1000
    forwarded: bool = True
    panic: float = 0.0


class Balancer(SupervisedProcess):
    """One balancer process and whatever it starts, supervised as an instance is: marked, read,
    ended, reaped.

    :param endpoints: the instances; ``route`` replaces them.
    :param setup: see ``Setup``.
    :param bind: ``(host, 0)``, or the path of a UNIX socket.
    :param executable_prefix: see ``SupervisedProcess``.

    :raises PlanFailed: the product is not installed.
    """

    product: ClassVar[str]
    #: What to do when it is missing.
    install: ClassVar[str]
    #: How it learns that an instance is not ready, for the report.
    learns: ClassVar[str] = "by active health checks, one a second"
    #: The main file of ``config``.
    main_file: ClassVar[str]

    def __init__(
        self,
        endpoints: Sequence[Address],
        setup: Setup | None = None,
        *,
        bind: Address = ("127.0.0.1", 0),
        executable_prefix: Sequence[str] = (),
    ) -> None:
        self.executable = self.require()
        super().__init__(self.product, executable_prefix=executable_prefix)
        self.setup = setup or Setup()
        self.endpoints = list(endpoints)
        self.front: Address = bind
        self._listener: socket.socket | None = None

    # -- of the product ----

    @classmethod
    def find(cls) -> str | None:
        """The executable, None where there is none. What this Python's environment holds comes
        first."""
        path = os.pathsep.join(
            [os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath), "/usr/sbin"]
        )
        return shutil.which(cls.product, path=path)

    @classmethod
    def require(cls) -> str:
        """The executable.

        :raises PlanFailed: there is none; the message says where it comes from.
        """
        if (executable := cls.find()) is None:
            raise PlanFailed(f"--through {cls.product}: it is not installed: {cls.install}")
        return executable

    @classmethod
    @abstractmethod
    def config(
        cls, front: Address, folder: str, endpoints: Sequence[Address], setup: Setup
    ) -> dict[str, str]:
        """The files that it runs with, by name, all of them in ``folder``. No process is started
        for it."""

    @abstractmethod
    def tell(self, endpoints: Sequence[Address]) -> None:
        """Make the running process use ``endpoints`` from now on; ``self.endpoints`` are those of
        before."""

    def unrouted(self) -> list[str]:
        """Which of the endpoints it does not send to yet, or no more; none where it cannot tell."""
        return []

    # -- life ----

    def start(self, timeout: float = 20.0) -> Balancer:
        """Start it, and wait until it answers and sends to every endpoint.

        :raises InstanceFailed: it ended, or was not so far within ``timeout`` seconds; it is
            stopped then.
        """
        deadline = time.monotonic() + timeout
        try:
            self._prepare()
            self._write(self.endpoints)
            self._launch()
            if self._listener is not None:
                self._listener.close()  # or connections to a balancer that has ended would wait for ever
            while not (address := self._listens()):
                self._pause(deadline, "listen", timeout)
            self.addresses = (address,)
            while missing := self._missing():
                self._pause(deadline, f"send to {', '.join(missing)}", timeout)
        except BaseException:
            self.stop()
            raise
        return self

    def _prepare(self) -> None:
        """Open the listening socket here and pass it on: whoever chose a free port first and bound
        it later could find it taken."""
        path = isinstance(self.front, str)
        self._listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        if not path:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(self.front)
        self._listener.listen(1024)
        self.front = self._listener.getsockname()
        self.pass_fds = (self._listener.fileno(),)

    def _listens(self) -> Address | None:
        """Its address as soon as it answers there, with whatever status."""
        try:
            fetch(self.front, self.setup.path, timeout=1.0)
        except OSError:
            return None
        return self.front

    def _missing(self) -> list[str]:
        try:
            return self.unrouted()
        except OSError:
            return [self.product]

    def _pause(self, deadline: float, what: str, timeout: float) -> None:
        if self.exit_time is not None:
            self._join_output()
            raise InstanceFailed(
                f"{self.name} ended with exit code {self.exit_code} before it could {what}",
                self.output,
            )
        if time.monotonic() > deadline:
            raise InstanceFailed(f"{self.name} did not {what} within {timeout:g} s", self.output)
        with self._changed:
            self._changed.wait_for(lambda: self.exit_time is not None, 0.05)

    def _write(self, endpoints: Sequence[Address]) -> None:
        """Write the files, each replaced as a whole: Envoy and nginx may read at any moment."""
        for name, text in self.config(
            self.front, str(self.runtime_dir), endpoints, self.setup
        ).items():
            new = self.runtime_dir / f"{name}.new"
            new.write_text(text, encoding="utf-8")
            new.replace(self.runtime_dir / name)

    def route(self, endpoints: Sequence[Address]) -> None:
        """Send to these instances from now on, and to no other."""
        self.tell(endpoints)
        self.endpoints = list(endpoints)

    @contextmanager
    def following(self, table: EndpointTable) -> Iterator[None]:
        """While the block runs, the balancer is told of what ``table`` says, as a control plane
        does it.

        :raises InstanceFailed: it could not be told, or ended, meanwhile.
        """
        over = threading.Event()
        problems: list[BaseException] = []

        def follow() -> None:
            try:
                while not over.wait(FOLLOW_INTERVAL):
                    if (now := table.endpoints()) != self.endpoints:
                        self.route(now)
            except BaseException as problem:
                problems.append(problem)

        thread = threading.Thread(target=follow, name=f"{self.name} follows", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
        if self.exit_time is not None:
            self._join_output()
            raise InstanceFailed(
                f"{self.name} ended with exit code {self.exit_code} under load", self.output
            )
        if problems:
            raise InstanceFailed(
                f"{self.name} could not be told its endpoints: {problems[0]}", self.output
            )

    def stop(self) -> None:
        """Ask it to end, then end every process of it, and reap."""
        if self._listener is not None:
            self._listener.close()
        if self._process is not None and self.exit_time is None and not self._prefix:
            self.signal(signal.SIGTERM)
            self.wait_exit(2.0)
        super().stop()

    def kill(self) -> None:
        """As for every instance; its process group too, as nginx writes its title over the mark."""
        with self._life:
            process = self._process
            if process is not None and process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        super().kill()


def milliseconds(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
