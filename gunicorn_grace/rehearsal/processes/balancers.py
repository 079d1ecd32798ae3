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

import csv
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import ClassVar

from ..errors import InstanceFailed, PlanFailed, RehearsalError
from ..kubernetes.platform import EndpointTable
from ..load.wire import Address, fetch, show_address
from .fleet import Instance

#: How often the endpoint table is looked at, seconds: what a control plane adds to the lag.
FOLLOW_INTERVAL = 0.05


@dataclass(frozen=True)
class Setup:
    """How a balancer is set up. Times are seconds.

    Attributes:
        path: what active health checks ask for; only 200 passes.
        interval: from one health check of an instance to the next; one 503 takes it out, one 200 back in.
        check_timeout: for the answer to a health check, which waits for a free worker like any request. Too short, and
            an instance that is merely busy is taken out, which makes the others busier.
        connect_timeout: for a connection to an instance. It counts while an instance drains: its listener drops
            SYNs then, so that this is what a request waits before it is tried elsewhere.
        timeout: for the response.
        idle: how long an unused connection to an instance is kept. It must be shorter than gunicorn's ``keepalive``
            (2 s unless set), or a request is sent at the moment at which gunicorn closes the connection.
        retries: how often a request is tried elsewhere when no connection to an instance could be made; 0: never.
            nginx takes no number: all the others, or none.
        retries_at_once: Envoy's circuit breaker; of more retries under way at one time the rest fails. Its default of 3
            is soon reached when an instance goes.
        forwarded: say ``X-Forwarded-For`` and the like, as a balancer should, or no such header at all.
        panic: Envoy's ``healthy_panic_threshold``: with less than so many percent of the instances ready, its default
            of 50 sends to all of them, those that are shutting down included.
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


class Balancer(Instance, ABC):
    """One balancer process and whatever it starts, supervised as an instance is: marked, read,
    ended, reaped.

    Args:
        endpoints: the instances; ``route`` replaces them.
        setup: see ``Setup``.
        bind: ``(host, 0)``, or the path of a UNIX socket.
        executable_prefix: see ``Instance``.

    Raises:
        PlanFailed: the product is not installed.
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
        super().__init__("", name=self.product, executable_prefix=executable_prefix)
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

        Raises:
            PlanFailed: there is none; the message says where it comes from.
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

        Raises: InstanceFailed: it ended, or was not so far within ``timeout`` seconds; it is
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

        Raises:
            InstanceFailed: it could not be told, or ended, meanwhile.
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


class Envoy(Balancer):
    """Envoy: active checks; endpoints from a watched file (EDS)."""

    product = "envoy"
    install = "pip install 'gunicorn-grace[envoy]', or put an envoy on the PATH"
    main_file = "envoy.yaml"

    @classmethod
    def config(
        cls, front: Address, folder: str, endpoints: Sequence[Address], setup: Setup
    ) -> dict[str, str]:
        """Bootstrap and endpoints."""
        # x-forwarded-proto and x-request-id are said in any case, so that they have to be taken
        # away again.
        headers = (
            "          use_remote_address: true\n          route_config:\n"
            if setup.forwarded
            else (
                "          generate_request_id: false\n          route_config:\n"
                "            request_headers_to_remove: [x-forwarded-proto, x-envoy-expected-rq-timeout-ms]\n"
            )
        )
        retry = (
            f"""\
                  retry_policy:
                    retry_on: connect-failure    # nothing was sent: safe for every method
                    num_retries: {setup.retries}
                    host_selection_retry_max_attempts: 5
                    retry_host_predicate:
                    - name: envoy.retry_host_predicates.previous_hosts
                      typed_config:
                        "@type": {_TYPE}.retry.host.previous_hosts.v3.PreviousHostsPredicate
"""
            if setup.retries
            else ""
        )
        text = f"""\
admin:
  address: {{ pipe: {{ path: {folder}/admin.sock }} }}
node: {{ id: envoy, cluster: rehearsal }}
static_resources:
  listeners:
  - name: front
    address: {_envoy_address(front)}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": {_TYPE}.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: front
{headers}\
            virtual_hosts:
            - name: instances
              domains: ["*"]
              routes:
              - match: {{ prefix: / }}
                route:
                  cluster: instances
                  timeout: {setup.timeout:g}s
{retry}\
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": {_TYPE}.filters.http.router.v3.Router }}
  clusters:
  - name: instances
    type: EDS
    eds_cluster_config:
      eds_config:
        path_config_source:
          path: {folder}/endpoints.json
          watched_directory: {{ path: {folder} }}
    connect_timeout: {setup.connect_timeout:g}s
    circuit_breakers: {{ thresholds: [ {{ max_retries: {setup.retries_at_once} }} ] }}    # 3 unless set
    ignore_health_on_host_removal: true    # or what was removed is sent to for as long as it is ready
    common_lb_config:
      healthy_panic_threshold: {{ value: {setup.panic:g} }}    # 50 unless set: few ready, all are sent to
    health_checks:
    - timeout: {setup.check_timeout:g}s
      interval: {setup.interval:g}s
      no_traffic_interval: {setup.interval:g}s    # 60s unless set
      unhealthy_threshold: 3    # unanswered checks; one 503 is enough
      healthy_threshold: 1
      reuse_connection: false
      http_health_check: {{ path: {setup.path} }}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": {_TYPE}.upstreams.http.v3.HttpProtocolOptions
        common_http_protocol_options: {{ idle_timeout: {setup.idle:g}s }}    # 1h unless set
        explicit_http_config: {{ http_protocol_options: {{}} }}
"""
        hosts = ",\n    ".join(
            json.dumps({"endpoint": {"address": _envoy_endpoint(e)}}) for e in endpoints
        )
        assignment = f"""\
{{"resources": [{{
  "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
  "cluster_name": "instances",
  "endpoints": [{{"lb_endpoints": [
    {hosts}
  ]}}]
}}]}}
"""
        return {cls.main_file: text, "endpoints.json": assignment}

    @property
    def command(self) -> list[str]:
        """Without hot restart, whose shared memory two Envoys on one machine would take from each
        other."""
        config = str(self.runtime_dir / self.main_file)
        quiet = ("--concurrency", "1", "--disable-hot-restart", "--log-level", "warning")
        return [*self._prefix, self.executable, "-c", config, *quiet]

    def _prepare(self) -> None:
        """Nothing: Envoy takes port 0, and its admin interface tells the one that it got."""

    def _ask(self, path: str) -> dict[str, object]:
        answer: dict[str, object] = json.loads(
            fetch(str(self.runtime_dir / "admin.sock"), path, timeout=2.0).body
        )
        return answer

    def _listens(self) -> Address | None:
        try:
            statuses = self._ask("/listeners?format=json").get("listener_statuses", [])
        except (OSError, ValueError):
            return None
        assert isinstance(statuses, list)
        for status in statuses:
            address = status["local_address"]
            if "pipe" in address:
                return str(address["pipe"]["path"])
            return (address["socket_address"]["address"], address["socket_address"]["port_value"])
        return None

    def unrouted(self) -> list[str]:
        """By its own account of the cluster: hosts that are missing, or that failed their check."""
        statuses = self._ask("/clusters?format=json").get("cluster_statuses", [])
        assert isinstance(statuses, list)
        ready = set()
        for host in (host for cluster in statuses for host in cluster.get("host_statuses", [])):
            if set(host["health_status"]) <= {"eds_health_status"}:
                address = host["address"]
                inner = address.get("socket_address") or {}
                ready.add(
                    address["pipe"]["path"]
                    if "pipe" in address
                    else (inner["address"], inner["port_value"])
                )
        return [show_address(endpoint) for endpoint in self.endpoints if endpoint not in ready]

    def tell(self, endpoints: Sequence[Address]) -> None:
        """A new file in place of the old one; Envoy watches the folder for that."""
        self._write(endpoints)


_TYPE = "type.googleapis.com/envoy.extensions"


def _envoy_address(address: Address) -> str:
    if isinstance(address, str):
        return f"{{ pipe: {{ path: {address} }} }}"
    return f'{{ socket_address: {{ address: "{address[0]}", port_value: {address[1]} }} }}'


def _envoy_endpoint(address: Address) -> Mapping[str, object]:
    if isinstance(address, str):
        return {"pipe": {"path": address}}
    return {"socket_address": {"address": address[0], "port_value": address[1]}}


class HAProxy(Balancer):
    """HAProxy: active checks; servers through the runtime API. Version 2.6 or later (``add
    server``)."""

    product = "haproxy"
    install = "apt-get install haproxy, or your system's own package"
    main_file = "haproxy.cfg"

    @classmethod
    def config(
        cls, front: Address, folder: str, endpoints: Sequence[Address], setup: Setup
    ) -> dict[str, str]:
        """One file."""
        servers = "\n".join(f"    server {_server_name(e)} {_server_address(e)}" for e in endpoints)
        text = f"""\
global
    nbthread 1
    log stderr format raw local0 notice
    stats socket {folder}/admin.sock mode 600 level admin

defaults
    log global
    mode http
    timeout connect {_ms(setup.connect_timeout)}
    timeout server {_ms(setup.timeout)}
    timeout client 60s
    timeout check {_ms(setup.check_timeout)}
    retries {setup.retries}
    option redispatch 1    # a retry goes to another server, and not only the last one
    retry-on conn-failure    # nothing was sent: safe for every method
{"    option forwardfor" + chr(10) if setup.forwarded else ""}\

frontend front
    bind {_server_address(front)}
    default_backend instances

backend instances
    balance roundrobin
    option httpchk
    http-check send meth GET uri {setup.path} ver HTTP/1.1 hdr Host localhost
    http-check expect status 200
    default-server {_check(setup)}
{servers}
"""
        return {cls.main_file: text}

    @property
    def command(self) -> list[str]:
        """In the foreground, without a master."""
        return [*self._prefix, self.executable, "-db", "-f", str(self.runtime_dir / self.main_file)]

    def _write(self, endpoints: Sequence[Address]) -> None:
        assert self._listener is not None
        text = self.config(self.front, str(self.runtime_dir), endpoints, self.setup)[self.main_file]
        inherited = f"bind fd@{self._listener.fileno()}"
        (self.runtime_dir / self.main_file).write_text(
            text.replace(f"bind {_server_address(self.front)}", inherited)
        )

    def _ask(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(2.0)
            sock.connect(str(self.runtime_dir / "admin.sock"))
            sock.sendall(command.encode() + b"\n")
            answer = b""
            while part := sock.recv(65536):
                answer += part
        return answer.decode()

    def unrouted(self) -> list[str]:
        """By its own account: servers whose last check did not pass, and those that were never
        checked."""
        rows = csv.DictReader(self._ask("show stat").lstrip("# ").splitlines())
        passed = {
            row["svname"]
            for row in rows
            if row["pxname"] == "instances" and row["check_status"] == "L7OK"
        }
        return [
            show_address(endpoint)
            for endpoint in self.endpoints
            if _server_name(endpoint) not in passed
        ]

    def tell(self, endpoints: Sequence[Address]) -> None:
        """By the runtime API. What is removed goes into maintenance: connections that it has are
        left alone."""
        for endpoint in endpoints:
            if endpoint not in self.endpoints:
                name = f"instances/{_server_name(endpoint)}"
                address = _server_address(endpoint)
                self._do(
                    f"add server {name} {address} {_check(self.setup)}", "New server registered."
                )
                self._do(f"enable health {name}; enable server {name}")
        for endpoint in self.endpoints:
            if endpoint not in endpoints:
                self._do(f"set server instances/{_server_name(endpoint)} state maint")

    def _do(self, command: str, expected: str = "") -> None:
        answer = self._ask(command).strip()
        if answer != expected:
            raise RehearsalError(f"haproxy answers {answer!r} to {command!r}")


def _check(setup: Setup) -> str:
    """Parameters of a server. ``pool-purge-delay`` is how long an unused connection is kept."""
    return f"check inter {_ms(setup.interval)} fall 1 rise 1 pool-purge-delay {_ms(setup.idle)}"


def _server_name(address: Address) -> str:
    """The address, as far as a name may hold it."""
    return "".join(
        c if c.isalnum() or c in "._:-" else f"_{ord(c):x}_" for c in show_address(address)
    )


def _server_address(address: Address) -> str:
    return f"unix@{address}" if isinstance(address, str) else show_address(address)


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1000)}ms"


class Nginx(Balancer):
    """nginx, open source: no active checks, so it learns by requests that fail, and by a reload."""

    product = "nginx"
    install = "apt-get install nginx-light, or your system's own package"
    learns = "by requests that fail, as open-source nginx has no active health checks"
    main_file = "nginx.conf"

    @classmethod
    def config(
        cls, front: Address, folder: str, endpoints: Sequence[Address], setup: Setup
    ) -> dict[str, str]:
        """One file."""
        servers = "\n".join(
            f"        server {_nginx_server(e)} max_fails=1 fail_timeout=10s;" for e in endpoints
        )
        forwarded = (
            "            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;\n"
            "            proxy_set_header X-Forwarded-Proto $scheme;\n"
        )
        # Started by root, workers would be those of another user, who cannot open a UNIX socket in
        # our folder.
        user = "user root root;\n" if os.geteuid() == 0 else ""
        text = f"""\
daemon off;
{user}\
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream instances {{
{servers}
        keepalive 16;
        keepalive_timeout {_ms(setup.idle)};    # 60s unless set
    }}
    server {{
        listen {_nginx_server(front)};
        location / {{
            proxy_pass http://instances;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header Host $http_host;
{forwarded if setup.forwarded else ""}\
            proxy_connect_timeout {_ms(setup.connect_timeout)};    # 60s unless set
            proxy_read_timeout {_ms(setup.timeout)};
            proxy_next_upstream {"error timeout" if setup.retries else "off"};    # a POST only if it was not sent
        }}
    }}
}}
"""
        return {cls.main_file: text}

    @property
    def command(self) -> list[str]:
        """With a log of its own from the first moment on, not the one that it was built for."""
        options = (
            "-p",
            str(self.runtime_dir),
            "-e",
            "stderr",
            "-c",
            str(self.runtime_dir / self.main_file),
        )
        return [*self._prefix, self.executable, *options]

    def _prepare(self) -> None:
        super()._prepare()
        assert self._listener is not None
        # What nginx says to its successor in a binary upgrade (ngx_add_inherited_sockets): it takes
        # the descriptor that has the address of a "listen".
        self.env["NGINX"] = f"{self._listener.fileno()};"

    def tell(self, endpoints: Sequence[Address]) -> None:
        """By a reload: new workers for new connections; the old ones finish what they have and
        go."""
        self._write(endpoints)
        pid = int((self.runtime_dir / "nginx.pid").read_text()) if not self._prefix else 0
        if pid == 0:
            raise RehearsalError("nginx behind a prefix command cannot be reloaded")
        os.kill(pid, signal.SIGHUP)


def _nginx_server(address: Address) -> str:
    return f"unix:{address}" if isinstance(address, str) else show_address(address)


PRODUCTS: Mapping[str, type[Balancer]] = {
    product.product: product for product in (Envoy, HAProxy, Nginx)
}


@contextmanager
def in_front(
    balancer: Balancer | None, table: EndpointTable, tell: Callable[[str], None] = lambda line: None
) -> Iterator[EndpointTable]:
    """Run ``balancer`` while the block runs; it follows ``table``. What the block gets is the way
    to it.

    Without one, that is ``table`` itself.

    Raises:
        InstanceFailed: see ``Balancer.start`` and ``Balancer.following``.
    """
    if balancer is None:
        yield table
        return
    with balancer:
        tell(f"through {balancer.product}, which learns {balancer.learns}")
        front = EndpointTable()
        front.add(balancer.address)
        with balancer.following(table):
            yield front


def show_config(product: str, instances: int, setup: Setup | None = None) -> str:
    """The files of a product as they would be for so many instances, with addresses for an
    example."""
    endpoints: list[Address] = [("127.0.0.1", 8001 + number) for number in range(instances)]
    files = PRODUCTS[product].config(
        ("127.0.0.1", 8080), f"/run/{product}", endpoints, setup or Setup()
    )
    return "\n".join(f"# {name}\n{text}" for name, text in files.items())
