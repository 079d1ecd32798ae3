"""HAProxy as a balancer under test: its configuration and its runtime API."""

from __future__ import annotations

import csv
import socket
from collections.abc import Sequence

from ..errors import RehearsalError
from ..load.wire import Address, show_address
from .balancer import Balancer, Setup, milliseconds


class HAProxy(Balancer):
    """HAProxy 2.6 or later, with active checks and with servers from the runtime API (``add
    server``)."""

    product = "haproxy"
    install = "apt-get install haproxy, or your system's own package"
    main_file = "haproxy.cfg"

    @classmethod
    def config(
        cls, front: Address, folder: str, endpoints: Sequence[Address], setup: Setup
    ) -> dict[str, str]:
        """Return its only configuration file."""
        servers = "\n".join(f"    server {_server_name(e)} {_server_address(e)}" for e in endpoints)
        text = f"""\
global
    nbthread 1
    log stderr format raw local0 notice
    stats socket {folder}/admin.sock mode 600 level admin

defaults
    log global
    mode http
    timeout connect {milliseconds(setup.connect_timeout)}
    timeout server {milliseconds(setup.timeout)}
    timeout client 60s
    timeout tunnel 1h    # WebSockets; without it, the two above count
    timeout check {milliseconds(setup.check_timeout)}
    retries {setup.retries}
    option redispatch 1    # every retry goes to another server, not only the last one
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
    default-server {_server_options(setup)}
{servers}
"""
        return {cls.main_file: text}

    @property
    def command(self) -> list[str]:
        """The command line. HAProxy runs in the foreground, as a single process."""
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
        """Return the endpoints whose last check did not pass, and those that were never
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
        """Change the servers by the runtime API. A removed server is put into HAProxy's state
        "maint", which leaves its open connections alone."""
        for endpoint in endpoints:
            if endpoint not in self.endpoints:
                name = f"instances/{_server_name(endpoint)}"
                address = _server_address(endpoint)
                self._do(
                    f"add server {name} {address} {_server_options(self.setup)}",
                    "New server registered.",
                )
                self._do(f"enable health {name}; enable server {name}")
        for endpoint in self.endpoints:
            if endpoint not in endpoints:
                self._do(f"set server instances/{_server_name(endpoint)} state maint")

    def _do(self, command: str, expected: str = "") -> None:
        answer = self._ask(command).strip()
        if answer != expected:
            raise RehearsalError(f"haproxy answers {answer!r} to {command!r}")


def _server_options(setup: Setup) -> str:
    """Return the parameters of a server. Unused connections are kept for ``pool-purge-delay``."""
    return (
        f"check inter {milliseconds(setup.interval)} fall 1 rise 1 "
        f"pool-purge-delay {milliseconds(setup.idle)}"
    )


def _server_name(address: Address) -> str:
    """Return the address as a name that HAProxy accepts."""
    return "".join(
        c if c.isalnum() or c in "._:-" else f"_{ord(c):x}_" for c in show_address(address)
    )


def _server_address(address: Address) -> str:
    return f"unix@{address}" if isinstance(address, str) else show_address(address)
