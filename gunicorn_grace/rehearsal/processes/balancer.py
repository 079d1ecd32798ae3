"""A real balancer between the load and the instances: Envoy, HAProxy or nginx.

``EndpointTable`` does the work of kube-proxy, which only chooses an instance for each connection
and knows nothing of HTTP. A balancer keeps its own connections to the instances, asks them for
their readiness, and tries a request elsewhere when it could not connect. Each of these things
affects how many requests a shutdown loses, so the product itself has to run.

A balancer learns of a shutdown in two ways. First, it finds out by itself. Envoy and HAProxy ask
each instance every ``Setup.interval`` seconds. Open-source nginx has no active checks, so it learns
from requests that fail. Second, it is told. When the endpoint table forgets an instance, the
balancer gets new endpoints by the product's own means (a file of endpoints, the runtime API, a
reload).
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

#: Seconds between two looks at the endpoint table. A control plane adds a delay of its own to the
#: lag.
FOLLOW_INTERVAL = 0.05


@dataclass(frozen=True)
class Setup:
    """The settings of a balancer. Times are seconds.

    :ivar path: path of active health checks. Only status 200 passes.
    :ivar interval: time from one health check of an instance to the next. One 503 takes the
        instance out, and one 200 puts it back in.
    :ivar check_timeout: limit for the answer to a health check, which waits for a free worker like
        any request. If it is too short, an instance that is merely busy is taken out, which makes
        the others busier.
    :ivar connect_timeout: limit for a connection to an instance. The listener of an instance that
        drains drops SYNs, so a request waits this long before it is tried elsewhere.
    :ivar timeout: limit for the response.
    :ivar idle: how long an unused connection to an instance is kept. It must be shorter than
        gunicorn's ``keepalive`` (2 s unless set), or a request may be sent while gunicorn closes
        the connection.
    :ivar retries: how often a request is tried elsewhere when no connection to an instance could be
        made. nginx has no such number: with 0 it tries no other instance, otherwise all of them.
    :ivar retries_at_once: the limit of Envoy's circuit breaker: more retries than this at the same
        time fail. Envoy's default of 3 is soon reached when an instance stops.
    :ivar forwarded: whether to send ``X-Forwarded-For`` and similar headers, as a balancer should.
    :ivar panic: Envoy's ``healthy_panic_threshold``. If a lower percentage of instances is ready,
        Envoy sends to all of them, including those that are shutting down. Its default is 50.
    :ivar stream_path: path of a response without an end, which ``timeout`` must not cut off; None
        without one.
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
    stream_path: str | None = None


class Balancer(SupervisedProcess):
    """One balancer and the processes that it starts.

    :param endpoints: the instances; ``route`` replaces them.
    :param setup: see ``Setup``.
    :param bind: ``(host, 0)``, or the path of a UNIX socket.
    :param executable_prefix: see ``SupervisedProcess``.

    :raises PlanFailed: the product is not installed.
    """

    product: ClassVar[str]
    #: The way to install it, for a message.
    install: ClassVar[str]
    #: The way in which it learns that an instance is not ready, for a line of progress.
    learns: ClassVar[str] = "from active health checks, one per second"
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
        self.executable: str = self.require()
        super().__init__(self.product, executable_prefix=executable_prefix)
        self.setup: Setup = setup or Setup()
        self.endpoints: list[Address] = list(endpoints)
        self.front: Address = bind
        self._listener: socket.socket | None = None

    # -- of the product ----

    @classmethod
    def find(cls) -> str | None:
        """Return the path of the executable; None if there is none. The environment of this Python
        is searched first."""
        path = os.pathsep.join(
            [os.path.dirname(sys.executable), os.environ.get("PATH", os.defpath), "/usr/sbin"]
        )
        return shutil.which(cls.product, path=path)

    @classmethod
    def require(cls) -> str:
        """Return the path of the executable.

        :raises PlanFailed: there is none. The message says how to install it.
        """
        if (executable := cls.find()) is None:
            raise PlanFailed(f"--through {cls.product}: it is not installed: {cls.install}")
        return executable

    @classmethod
    @abstractmethod
    def config(
        cls, front: Address, folder: str, endpoints: Sequence[Address], setup: Setup
    ) -> dict[str, str]:
        """Return its configuration files by name. No process is started for this.

        :param front: the address at which it listens.
        :param folder: the folder for the files.
        :param endpoints: the instances.
        :param setup: its settings.
        """

    @abstractmethod
    def tell(self, endpoints: Sequence[Address]) -> None:
        """Make the running process use ``endpoints``. ``self.endpoints`` still has the previous
        ones."""

    def unrouted(self) -> list[str]:
        """Return the endpoints to which it does not send; an empty list if it does not report
        them."""
        return []

    # -- life ----

    def start(self, timeout: float = 20.0) -> Balancer:
        """Start the balancer, and wait until it answers and sends to every endpoint.

        :raises InstanceFailed: it ended, or was not ready within ``timeout`` seconds. It is then
            stopped.
        """
        deadline = time.monotonic() + timeout
        try:
            self._prepare()
            self._write(self.endpoints)
            self._launch()
            if self._listener is not None:
                # Otherwise connections to an ended balancer would wait for ever.
                self._listener.close()
            while not (address := self._listens()):
                self._pause(deadline, "listen", timeout)
            self.addresses: tuple[Address, ...] = (address,)
            while missing := self._missing():
                self._pause(deadline, f"send to {', '.join(missing)}", timeout)
        except BaseException:
            self.stop()
            raise
        return self

    def _prepare(self) -> None:
        """Open the listening socket and pass it on. If a free port were only chosen now and bound
        later, another process could take it in between."""
        path = isinstance(self.front, str)
        self._listener = socket.socket(socket.AF_UNIX if path else socket.AF_INET)
        if not path:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind(self.front)
        self._listener.listen(1024)
        self.front = self._listener.getsockname()
        self.pass_fds: tuple[int, ...] = (self._listener.fileno(),)

    def _listens(self) -> Address | None:
        """Return its address if it answers there, with any status; otherwise None."""
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
        """Write the configuration files. Each is replaced as a whole, because Envoy and nginx may
        read it at any moment."""
        for name, text in self.config(
            self.front, str(self.runtime_dir), endpoints, self.setup
        ).items():
            new = self.runtime_dir / f"{name}.new"
            new.write_text(text, encoding="utf-8")
            new.replace(self.runtime_dir / name)

    def route(self, endpoints: Sequence[Address]) -> None:
        """Send only to these instances from now on."""
        self.tell(endpoints)
        self.endpoints = list(endpoints)

    @contextmanager
    def following(self, table: EndpointTable) -> Iterator[None]:
        """While the block runs, tell the balancer the endpoints of ``table``, as a control plane
        does.

        :raises InstanceFailed: the balancer ended in the meantime, or did not take its endpoints.
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
                f"{self.name} could not be given its endpoints: {problems[0]}", self.output
            )

    def stop(self) -> None:
        """Send it SIGTERM, then end all its processes."""
        if self._listener is not None:
            self._listener.close()
        if self._process is not None and self.exit_time is None and not self._prefix:
            self.signal(signal.SIGTERM)
            self.wait_exit(2.0)
        super().stop()

    def kill(self) -> None:
        """Send SIGKILL to all its processes. This includes its process group, because nginx
        overwrites the mark with its title."""
        with self._life:
            process = self._process
            if process is not None and process.returncode is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        super().kill()


def milliseconds(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"
