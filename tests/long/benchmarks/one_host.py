"""What a restart costs on one host behind nginx: ``tox -e bench -- one-host``, about 4 minutes.

Each row is one restart (SIGTERM, wait, start) or reload of the example application, which takes a
second to load, under 30 requests a second through a real nginx. The units and nginx's configuration
are those of ``examples/one-host``.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable
from gunicorn_grace.rehearsal.load.generator import Generator
from support.paths import EXAMPLES
from support.systemd import HERE, Host, Service, nginx

RATE = 30.0
LOADING = "import time\ntime.sleep(1)\n"
"""Django with a few applications takes as long."""

SOCKET = "socket/gunicorn.service", "socket/gunicorn.socket", "socket/nginx.conf"
OWN = "socket/gunicorn.service", "", "socket/nginx.conf"
TWO = "two/gunicorn@.service", "", "two/nginx.conf"
AT_ONCE = {"GRACE_SHUTDOWN_DELAY": "0", "GRACE_EXTEND_DELAY": "false"}

Act = Callable[[Sequence[Service]], list[float]]


def _restart(services: Sequence[Service]) -> list[float]:
    return [service.restart()[1] for service in services]


def _reload(services: Sequence[Service]) -> list[float]:
    seen = services[0].log.stat().st_size
    services[0].reload()
    while services[0].log.read_text()[seen:].count("Booting worker") < 2:
        time.sleep(0.1)
    return [0.0]


ROWS: Mapping[str, tuple[tuple[str, str, str], Act, Mapping[str, str], bool]] = {
    "plain gunicorn, restart": (OWN, _restart, {}, True),
    "plugin, restart": (OWN, _restart, {}, False),
    "plugin, no delay and no extension, restart": (OWN, _restart, AT_ONCE, False),
    "plugin, reload (SIGHUP)": (OWN, _reload, {}, False),
    "plain gunicorn, systemd's socket, restart": (SOCKET, _restart, {}, True),
    "plugin, systemd's socket, restart": (SOCKET, _restart, {}, False),
    "plugin, systemd's socket, reload": (SOCKET, _reload, {}, False),
    "plain gunicorn, two instances, one after the other": (TWO, _restart, {}, True),
    "plugin, two instances, one after the other": (TWO, _restart, {}, False),
}


def _measure(row: str) -> tuple[int, int, float]:
    """How many requests were lost, of how many, and how long the slowest stop took."""
    (unit, activation, conf), act, env, is_plain = ROWS[row]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        application = folder / "srv"
        shutil.copytree(EXAMPLES, application)
        app = application / "app.py"
        # The module begins with its docstring, and the future import has to come first.
        app.write_text(app.read_text().replace("import time\n", LOADING, 1))
        host = Host(folder, application)
        services = []
        for instance in ("1", "2") if "%i" in unit or "@" in unit else ("",):
            text = host.read(unit, instance)
            (line,) = [x for x in text.splitlines() if x.startswith("ExecStart=")]
            command = line.partition("=")[2].split()
            if is_plain:
                del command[1:3]
            if not activation and "--bind" not in command:
                command[1:1] = ["--bind", f"unix:{folder}/gunicorn.sock"]
            if is_plain:  # The example's blueprint imports the plugin, and installs nothing.
                command[0] = f"{HERE}/gunicorn"
            service = Service(
                host, unit, instance=instance, activation=activation, env=env, command=command
            )
            services.append(stack.enter_context(service))
        front = stack.enter_context(nginx(host, conf))
        table = EndpointTable()
        table.add(front)
        with Generator(table, rate=RATE, timeout=60.0) as load:
            load.wait_completed(round(2 * RATE), 60)
            took = act(services)
            load.wait_completed(load.completed + round(3 * RATE), 60)
            tally = load.stop()
    return tally.lost, tally.total, max(took)


def show(runs: int = 3) -> None:
    """Print the table: medians of interleaved runs."""
    if not shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/bin"):
        sys.exit("nginx is not installed: apt-get install nginx-light")
    found: dict[str, list[tuple[int, int, float]]] = {row: [] for row in ROWS}
    for _ in range(runs):
        for row in ROWS:
            found[row].append(_measure(row))
    print("| | lost, each run | of | slowest stop |\n|---|---|---|---|")
    for row, measured in found.items():
        lost, total, took = zip(*measured, strict=True)
        print(
            f"| {row} | {', '.join(map(str, lost))} | {statistics.median(total):.0f} | "
            f"{statistics.median(took):.1f} s |"
        )
