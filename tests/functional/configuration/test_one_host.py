"""One host behind nginx, from the files of examples/one-host: a restart and a reload lose nothing."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable
from gunicorn_grace.rehearsal.load.load import Load
from gunicorn_grace.rehearsal.load.requests import PlannedRequest
from support.paths import EXAMPLES
from support.systemd import UNITS, Host, Service, nginx

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(
        not shutil.which("nginx", path="/usr/sbin:/usr/bin:/bin:/usr/local/bin"),
        reason="nginx is not installed",
    ),
]

REQUESTS = (PlannedRequest("/", weight=3), PlannedRequest("/", method="HEAD"))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with the example application."""
    return Host(tmp_path, EXAMPLES)


@contextmanager
def load(front: tuple[str, int]) -> Iterator[Load]:
    """30 requests a second, half of them over connections that are kept alive."""
    table = EndpointTable()
    table.add(front)
    running = Load(table, rate=30, requests=REQUESTS, keepalive_share=0.5, timeout=30)
    running.start()
    try:
        running.wait_completed(20, 30)
        yield running
        running.wait_completed(running.completed + 30, 30)
    finally:
        tally = running.stop()
    assert tally.lost == 0, tally.lost_records
    assert tally.total > 40


@pytest.mark.parametrize("how", ["restart", "reload"])
def test_a_socket_of_systemds_loses_nothing(how: str, host: Host) -> None:
    """There is no delay, because the socket stays open: what comes meanwhile is served by the next
    process."""
    service = Service(host, "socket/gunicorn.service", activation="socket/gunicorn.socket")
    with service, nginx(host, "socket/nginx.conf") as front:
        with load(front):
            if how == "restart":
                code, _ = service.restart()
                assert code == 0, service.log.read_text()
            else:
                service.reload()
        service.stop()
    said = service.log.read_text()
    assert "no delay is needed: the listening sockets were handed over" in said
    assert "sealed" not in said
    assert "make it longer" not in said


def test_two_instances_restart_one_after_the_other(host: Host) -> None:
    """nginx sends what it cannot send to one of them to the other, at once."""
    with ExitStack() as stack:
        services = [Service(host, "two/gunicorn@.service", instance=n) for n in "12"]
        for service in services:
            stack.enter_context(service)
        front = stack.enter_context(nginx(host, "two/nginx.conf"))
        with load(front):
            for service in services:
                code, _ = service.restart()
                assert code == 0, service.log.read_text()


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
@pytest.mark.parametrize(
    "unit", ["socket/gunicorn.service", "socket/gunicorn.socket", "two/gunicorn@.service"]
)
def test_systemd_takes_the_units(unit: str, tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say, once the program is there."""
    for file in sorted((UNITS / unit).parent.iterdir()):
        text = file.read_text().replace("/srv/app/.venv/bin/gunicorn", "/bin/true")
        (tmp_path / file.name).write_text(text)
    said = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / Path(unit).name)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (said.returncode, said.stderr) == (0, "")
