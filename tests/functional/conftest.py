"""Servers and clients for a test; every one of them is gone when it ends."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gunicorn_grace.rehearsal.processes.balancer import Balancer
from gunicorn_grace.rehearsal.processes.balancers import PRODUCTS
from gunicorn_grace.rehearsal.processes.instance import Instance
from support.servers import WORKERS, Client, Server


@pytest.fixture(params=sorted(WORKERS))
def kind(request: pytest.FixtureRequest) -> str:
    """A worker class, each in turn."""
    return str(request.param)


@pytest.fixture(params=PRODUCTS)
def product(request: pytest.FixtureRequest) -> type[Balancer]:
    """Each balancer that is installed. Envoy comes with the extra ``test``."""
    made = PRODUCTS[request.param]
    if made.find() is None:
        pytest.skip(f"{made.product} is not installed: {made.install}")
    return made


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Start instances; they end with the test."""
    with contextlib.ExitStack() as stack:

        def start(*args: Any, ready: bool = True, listens: bool = True, **options: Any) -> Server:
            options.setdefault("cwd", tmp_path)
            options.setdefault("python", sys.executable)
            server = Server(*args, **options)
            stack.callback(server.stop)
            if not listens:
                server.launch()
                return server
            server.start()
            if ready:
                server.wait_ready(path="/livez")
            return server

        yield start


@pytest.fixture
def connect() -> Iterator[Callable[..., Client]]:
    """Open kept-alive connections; they are closed with the test."""
    with contextlib.ExitStack() as stack:

        def start(server: Instance, **options: Any) -> Client:
            client = Client(server.address, **options)
            stack.callback(client.close)
            return client

        yield start


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for localhost and its key, in one file."""
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    extension = [
        "-addext",
        "subjectAltName=DNS:localhost",
        "-keyout",
        str(path),
        "-out",
        f"{path}.crt",
    ]
    try:
        subprocess.run([*command, *extension], check=True, capture_output=True, timeout=30)
    except FileNotFoundError:
        pytest.skip("there is no openssl(1) here")
    with path.open("a") as both:
        both.write(Path(f"{path}.crt").read_text())
    return path


@pytest.fixture
def container() -> tuple[str, ...]:
    """What makes gunicorn PID 1 of a PID namespace, as in a container without an init."""
    command = ("unshare", "--fork", "--pid", "--mount-proc")
    try:
        refused = subprocess.run([*command, "true"], capture_output=True, timeout=20).returncode
    except FileNotFoundError:
        pytest.skip("there is no unshare(1) here")
    if refused:
        pytest.skip("a PID namespace is not to be had here")
    return command
