"""Real gunicorn processes for the tests, and clients of theirs; whoever starts one stops it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import h11
import pytest

from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable
from gunicorn_grace.rehearsal.load.load import Load
from gunicorn_grace.rehearsal.load.tally import Tally
from gunicorn_grace.rehearsal.load.wire import Response, fetch
from gunicorn_grace.rehearsal.plan import Plan
from gunicorn_grace.rehearsal.processes import procfs
from gunicorn_grace.rehearsal.processes.instance import Instance
from gunicorn_grace.rehearsal.processes.process import MARK
from gunicorn_grace.rehearsal.result import Result
from gunicorn_grace.shared import memory as shm
from gunicorn_grace.shared.phase import Phase
from support.paths import APPS

WORKERS: dict[str, tuple[str, ...]] = {
    "sync": ("-k", "sync", "-w", "4"),
    "gthread": ("-k", "gthread", "-w", "2", "--threads", "4"),
    "gevent": ("-k", "gevent", "-w", "2"),
}
"""What is tested of everything: each worker class with the arguments that give it some
concurrency."""

SHORT = {"shutdown_delay": 0.3, "min_delay": 0, "extend_delay": "false"}
"""A delay that is soon over."""

HOLD = {"shutdown_delay": 60, "min_delay": 0, "termination_period": 90}
"""A lame duck phase that stays open until :meth:`Server.end_delay`."""

QUICK = {
    "shutdown_delay": 0.5,
    "min_delay": 0,
    "extend_delay": "false",
    "termination_period": 6,
    "exit_margin": 3,
    "drain_reserve": 1,
}
"""A whole shutdown that is over 3 s after T0 at the latest, and must be over within 6."""

LOADED_BY_ROOT = """\
import encodings.idna, random
random.seed(b"")
import gunicorn_grace.wsgi
from gunicorn_grace.conf import *
"""
"""A config file for workers of another user. The interpreter may be root's own, where nobody else can
import from: so root loads what a worker would load late. gunicorn seeds `random` in each worker, and
Python 3.13 loads the hash for that when it is called."""

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")

GRACE = ("-c", "python:gunicorn_grace.conf")
GRACE_COMMAND = (sys.executable, "-m", "gunicorn_grace.cli")


def memory_of(pid: int) -> shm.Memory:
    """The shared memory of the instance that this process belongs to, mapped into ours."""
    folder = f"/proc/{pid}/fd"
    for fd in os.listdir(folder):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"{folder}/{fd}").startswith(shm.LINK):
                return shm.Memory.open(f"{folder}/{fd}")
    raise LookupError(f"process {pid} has no memory of ours")


def end_delay_of(pid: int) -> None:
    """Do what ``gunicorn-grace end-delay`` does, to the instance that this process belongs to."""
    with contextlib.closing(memory_of(pid)) as memory:
        memory.header.end_delay = time.monotonic_ns()


def booted_in(memory: shm.Memory) -> list[int]:
    """The pids of the workers that have loaded the application."""
    return [record.pid for record in memory.records() if record.booted]


class Server(Instance):
    """An instance with the plugin, and the test's view of its shared memory."""

    def __init__(
        self, app: str = "service:app", *, kind: str | None = None, **options: Any
    ) -> None:
        settings = options.pop("settings", {})
        self._script = options.pop("script", False)
        self._program = options.pop("program", ())
        args = (
            *options.pop("config", GRACE),
            *(WORKERS[kind] if kind else ()),
            *options.pop("args", ()),
        )
        env = {
            "PYTHONPATH": os.pathsep.join(
                [str(APPS), *filter(None, [os.environ.get("PYTHONPATH")])]
            ),
            **{f"GRACE_{name.upper()}": str(value) for name, value in settings.items()},
            **options.pop("env", {}),
        }
        super().__init__(app, args=args, env=env, **options)
        self.env["TMPDIR"] = str(self.runtime_dir)  # Where gunicorn puts the files of its workers.
        self.period = float(settings.get("termination_period", 30))
        self.sent: float | None = None
        """When :meth:`terminate` first sent SIGTERM, on this process's monotonic clock."""
        self._files = self._all_files()

    @property
    def command(self) -> list[str]:
        """With ``program`` one of the programs that start gunicorn in Python; it gets the address
        as its last argument. With ``script`` the console script: SIGUSR2 executes ``sys.argv`` anew,
        and the path of a ``__main__.py`` in it would put gunicorn's own folder, which holds an
        ``http``, in front of the standard library. An empty ``bind`` is left to the configuration.
        """
        command = super().command
        if not self.bind:
            del command[(at := command.index("-b")) : at + 2]
        if self._program:
            name, *words = self._program
            return [*self._prefix, self.python, str(APPS / name), *words, self.bind]
        if self._script:
            at = command.index("-m")
            command[at - 1 : at + 2] = [str(Path(self.python).with_name("gunicorn"))]
        return command

    def launch(self) -> None:
        """Start it without waiting until it listens: with ``preload_app`` it loads first, a daemon
        never tells."""
        self._launch()

    def processes(self) -> list[int]:
        """Every living process of it, wherever it has gone."""
        return procfs.marked(MARK, str(self.runtime_dir))

    @property
    def memory(self) -> shm.Memory:
        """Its shared memory, mapped into this process."""
        if "_memory" not in self.__dict__:
            self._memory = memory_of(self.arbiter_pid)
        return self._memory

    def wait_phase(self, phase: Phase, timeout: float = 20.0) -> None:
        """Wait until the shared memory says so, or something later."""
        self.wait_for(lambda: self.memory.header.phase >= phase, f"phase {phase}", timeout)

    def wait_booted(self, count: int) -> list[int]:
        """Wait until so many workers have loaded the application; their pids."""
        self.wait_for(lambda: len(booted_in(self.memory)) == count, f"{count} booted workers")
        return booted_in(self.memory)

    def wait_for(self, condition: Callable[[], Any], what: str, timeout: float = 20.0) -> Any:
        """Poll a condition on the processes or the memory of this instance."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            if time.monotonic() > deadline:
                pytest.fail(f"{what} did not come within {timeout:g} s\n{self.output}")
            time.sleep(0.01)
        return value

    def get(self, path: str, **options: Any) -> Response:
        """One request on a connection of its own."""
        return fetch(self.address, path, **options)

    def terminate(self) -> None:
        """Let it shut down: send SIGTERM, or end the delay if it has got one from here."""
        if self.sent is None:
            self.sent = time.monotonic()
            self.signal(signal.SIGTERM)
        else:
            self.end_delay()

    def lead_to(self, phase: Phase) -> None:
        """Bring it into a phase by a SIGTERM; DRAINING: until its workers have been dismissed."""
        if self.memory.header.phase < Phase.LAME_DUCK <= phase:
            self.terminate()
            self.wait_phase(Phase.LAME_DUCK)
        if phase is Phase.DRAINING:
            self.end_delay()
            self.wait_phase(Phase.DRAINING)
            self.wait_dismissed()

    def operate(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command on this instance, as an operator or a hook does."""
        run = [*GRACE_COMMAND, *command, "--pid", str(self.arbiter_pid)]
        return subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)

    def end_delay(self) -> None:
        """Do what ``gunicorn-grace end-delay`` does."""
        end_delay_of(self.arbiter_pid)

    def wait_dismissed(self) -> None:
        """Wait until the workers have been told to go."""
        self.wait_for(
            lambda: all(record.dismissed for record in self.memory.records()), "the dismissal"
        )

    def wait_in_flight(self, count: int) -> None:
        """Wait until so many requests are being served."""
        self.wait_for(
            lambda: sum(record.in_flight for record in self.memory.records()) == count,
            f"{count} in flight",
        )

    def wait_pid(self, pattern: str, after: int = 0) -> int:
        """The number that follows in the line which this expression finds: a pid."""
        expression = re.compile(pattern + r"(\d+)$")
        found = expression.search(self.wait_line(expression, after=after))
        assert found is not None
        return int(found[1])

    def assert_gone(self, code: int | None = 0, patience: float = 0.0) -> None:
        """It has ended with this exit code, within its period, and left nothing: no process, no
        file.

        Nor any memory: it has no name, so the kernel takes it back with the last process that maps
        it.

        :param code: ``None`` for any.
        :param patience: seconds that workers may outlive their arbiter.
        """
        ended = self.wait(20)
        assert code is None or ended == code, self.output
        if self.sent is not None:
            assert self.exit_time is not None
            assert self.exit_time - self.sent < self.period, self.output
        self.wait_for(lambda: not self.processes(), "the end of every process", patience)
        # What an arbiter cannot tidy up that gets SIGKILL: its own control socket (gunicorn 25.1
        # and later).
        left = {
            path for path in self._all_files() - self._files if ended == 0 or path.suffix != ".ctl"
        }
        assert left == set(), self.output

    def _all_files(self) -> set[Path]:
        folders = (Path(self.cwd or "."), self.runtime_dir)
        files = {path for folder in folders for path in folder.rglob("*") if not path.is_dir()}
        return {path for path in files if path.suffix != ".pyc"}

    def summary(self) -> str:
        """The last line, after the end."""
        return self.wait_line("gunicorn-grace: stopped", timeout=5)

    def stop(self) -> None:
        memory = self.__dict__.pop("_memory", None)
        if memory is not None:
            memory.close()
        if "COVERAGE_FILE" in os.environ and self._process and self.exit_time is None:
            # `tox -e coverage`: a process that ends with SIGKILL does not write what it has reached.
            self.signal(signal.SIGQUIT)
            self.wait_exit(3)
        super().stop()


class Client:
    """One kept-alive connection, blocking, with h11. With a TLS context the handshake comes with
    the first request."""

    def __init__(
        self, address: Any, timeout: float = 20.0, context: ssl.SSLContext | None = None
    ) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_STREAM)
        self.sock.settimeout(timeout)
        try:
            self.sock.connect(address)
        except OSError:
            self.sock.close()
            raise
        if context is not None:
            self.sock = context.wrap_socket(
                self.sock, server_hostname="localhost", do_handshake_on_connect=False
            )
        self.http = h11.Connection(h11.CLIENT)

    def send(
        self, path: str, method: str = "GET", headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """Send a request without a body."""
        data = self.http.send(
            h11.Request(method=method, target=path, headers=[("Host", "test"), *headers])
        )
        self.sock.sendall((data or b"") + (self.http.send(h11.EndOfMessage()) or b""))

    def receive(self) -> Response:
        """The complete response to the request before."""
        status, headers, body = 0, {}, b""
        while True:
            event = self.http.next_event()
            if event is h11.NEED_DATA:
                self.http.receive_data(self.sock.recv(65536))
            elif isinstance(event, h11.Response):
                status = event.status_code
                headers = {name.decode(): value.decode() for name, value in event.headers}
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                if self.http.our_state is h11.DONE and self.http.their_state is h11.DONE:
                    self.http.start_next_cycle()
                return Response(status, headers, body)

    def get(self, path: str, **options: Any) -> Response:
        """Send, and receive."""
        self.send(path, **options)
        return self.receive()

    def at_end(self) -> bool:
        """Whether the server has closed; blocks until it has, or sends something."""
        return self.sock.recv(1) == b""

    def close(self) -> None:
        self.sock.close()


Serve = Callable[..., Server]
Connect = Callable[..., Client]
"""What the fixtures of these names in ``functional/conftest.py`` give."""


def all_answered(*clients: Client) -> None:
    """Each gets its response, in this order; a client closes its end before the next one is looked
    at."""
    for client in clients:
        assert client.receive().status == 200
        client.close()


def looks(server: Server, burst: int = 8) -> list[dict[str, Any]]:
    """The answers of ``/look`` on so many connections opened at once: one by one, the same worker
    may take them all."""
    clients = [Client(server.address) for _ in range(burst)]
    try:
        for client in clients:
            client.send("/look", headers=(("Connection", "close"),))
        return [look(client.receive()) for client in clients]
    finally:
        for client in clients:
            client.close()


def look_at_each(server: Server, pids: Collection[int]) -> Iterator[dict[str, Any]]:
    """The answer of ``/look`` in each of these workers, one after the other. One that has answered
    is stopped until all have, so what is asked next is answered by another, or by the one that has
    answered last."""
    with stopped() as stop:
        left = set(pids)
        while left:
            answer = look(server.get("/look", headers=(("Connection", "close"),)))
            left.remove(answer["pid"])
            yield answer
            stop(answer["pid"])


@contextlib.contextmanager
def stopped() -> Iterator[Callable[[int], None]]:
    """Stop processes by SIGSTOP; they go on when this ends."""
    pids: list[int] = []

    def stop(pid: int) -> None:
        pids.append(pid)
        os.kill(pid, signal.SIGSTOP)

    try:
        yield stop
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def look(response: Response) -> dict[str, Any]:
    """The answer of ``/look``."""
    answer: dict[str, Any] = json.loads(response.body)
    return answer


def plan(kind: str, tmp_path: Path, *, lag: float, **options: Any) -> Plan:
    """A scale-down from two instances of the application under test to one."""
    settings = options.pop("settings", {})
    env = {
        "PYTHONPATH": os.pathsep.join([str(APPS), *filter(None, [os.environ.get("PYTHONPATH")])]),
        **{f"GRACE_{name.upper()}": str(value) for name, value in settings.items()},
    }
    values = {"instances": 2, "rate": 80.0, "timeout": 15.0, "keepalive_share": 0.5, **options}
    # gunicorn's 2 s of keep-alive end, now and then, in the very millisecond in which a client uses
    # the connection.
    args = (*WORKERS[kind], "--keep-alive", "75")
    return Plan("service:app", args=args, env=env, lag=lag, cwd=str(tmp_path), **values)


def told(result: Result) -> str:
    """All that is known of a run, for a failure."""
    lost = "\n".join(map(str, result.tally.lost_records[:10]))
    return f"{result.tally.summary()}\n{lost}\n{result.gone}\n" + "\n".join(result.outputs.values())


LONG_DRAIN = ("--graceful-timeout", "50")
"""An instance that is gone sooner did not wait for its workers in vain."""


def workers_of(kind: str) -> int:
    return int(WORKERS[kind][WORKERS[kind].index("-w") + 1])


def begin_a_request(server: Server, client: Client, path: str) -> None:
    """Send a slow request, and wait until it is being served."""
    seen = server.mark()
    client.send(path)
    server.wait_line("slow request begins", after=seen)


def hold_a_request(server: Server, client: Client) -> Callable[[], None]:
    """Send a request that is being served until the function is called that this returns."""
    release = Path(server.cwd or ".", "release")
    begin_a_request(server, client, f"/wait?for={release}")
    return release.touch


def load_on(server: Server, **options: object) -> Load:
    """A load on new and kept-alive connections that asks for readiness as well: a 503 counts as
    lost."""
    table = EndpointTable()
    table.add(server.address)
    return Load(table, **{"rate": 60.0, "timeout": 15.0, "paths": ("/", "/readyz"), **options})  # type: ignore[arg-type]


def nothing_lost(tally: Tally, server: Server) -> None:
    lost = "\n".join(map(str, tally.lost_records[:10]))
    assert tally.lost == 0, f"{tally.summary()}\n{lost}\n{server.output}"
