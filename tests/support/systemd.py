"""Plays systemd and nginx on one host, from the very files of ``examples/one-host``.

A machine under test has no systemd that could be asked. So the units are read here: the socket is
made and kept, the service gets it as descriptor 3, says READY=1, and is stopped by SIGTERM to its
main process alone. The commands are those of the files.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .paths import EXAMPLES

UNITS = EXAMPLES / "one-host"
HERE = str(Path(sys.executable).parent)
_ACTIVATE = """
import os, sys
fd = int(sys.argv[1])
if fd != 3:
    os.dup2(fd, 3)
    os.close(fd)
os.set_inheritable(3, True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.argv[2], sys.argv[2:])
"""
BOOT = 60.0
"""Seconds that a service may take to say READY=1."""


class Host:
    """What the units name, as it is in a folder of this host.

    :param folder: what is below ``/run`` is below this one.
    :param application: the folder with ``app.py``.
    """

    def __init__(self, folder: Path, application: Path) -> None:
        self.folder = folder
        self.application = application

    def read(self, unit: str, instance: str = "") -> str:
        """The text of a file, with the paths of this host."""
        text = (UNITS / unit).read_text()
        for there, here in (
            ("/srv/app/.venv/bin/", f"{HERE}/"),
            ("/srv/app", str(self.application)),
            ("/run/", f"{self.folder}/"),
            ("%i", instance),
        ):
            text = text.replace(there, here)
        return text


def keys(text: str) -> dict[str, list[str]]:
    """The settings of a unit; a key may be there more than once."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(key, []).append(value)
    return found


class Service:
    """A service, as systemd runs it.

    :param host: where it runs.
    :param unit: the file of the service, below :data:`UNITS`.
    :param instance: what ``%i`` stands for.
    :param activation: the file of the socket that it gets.
    :param env: variables besides those of the unit.
    :param command: a command in place of the unit's.
    """

    def __init__(
        self,
        host: Host,
        unit: str,
        *,
        instance: str = "",
        activation: str = "",
        env: Mapping[str, str] | None = None,
        command: Sequence[str] = (),
    ) -> None:
        self.unit = keys(host.read(unit, instance))
        self.log = host.folder / f"service{instance}.log"
        (self._command,) = [command] if command else map(shlex.split, self.unit["ExecStart"])
        for name in self.unit.get("RuntimeDirectory", ()):
            (host.folder / name).mkdir(exist_ok=True)
        self._environ = {**os.environ, **(env or {})}
        for line in self.unit.get("Environment", ()):
            self._environ.update(pair.split("=", 1) for pair in line.split())
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._notify.bind(str(host.folder / f"notify{instance}"))
        self._environ["NOTIFY_SOCKET"] = self._notify.getsockname()
        self._socket: socket.socket | None = None
        if activation:
            (path,) = keys(host.read(activation))["ListenStream"]
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.bind(path)
            self._socket.listen(4096)
        self.process: subprocess.Popen[bytes] | None = None
        self._hearing: threading.Thread | None = None

    def start(self) -> None:
        """``systemctl start``: returns when the service has said READY=1, and what is to follow
        that has succeeded."""
        command = list(self._command)
        descriptors: tuple[int, ...] = ()
        if self._socket is not None:
            fd = self._socket.fileno()
            command, descriptors = [sys.executable, "-c", _ACTIVATE, str(fd), *command], (fd,)
        (folder,) = self.unit["WorkingDirectory"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=folder, env=self._environ, pass_fds=descriptors, stdout=log, stderr=log
            )
        self._wait_ready()
        self._hearing = threading.Thread(target=self._hear, daemon=True)
        self._hearing.start()
        for post in self.unit.get("ExecStartPost", ()):
            subprocess.run(shlex.split(post), check=True, capture_output=True, timeout=BOOT)

    def _wait_ready(self) -> None:
        assert self.process is not None
        self._notify.settimeout(0.2)
        until = time.monotonic() + BOOT
        while time.monotonic() < until and self.process.poll() is None:
            try:
                if b"READY=1" in self._notify.recv(4096):
                    return
            except TimeoutError:
                continue
        raise AssertionError(f"not ready: {self.log.read_text()}")

    def _hear(self) -> None:
        """Read what else it says, or the socket would be full."""
        process = self.process
        assert process is not None
        while process.poll() is None:
            try:
                self._notify.recv(4096)
            except OSError:
                continue

    def reload(self) -> None:
        """``systemctl reload``."""
        assert self.process is not None
        (command,) = self.unit["ExecReload"]
        subprocess.run(
            shlex.split(command.replace("$MAINPID", str(self.process.pid))), check=True, timeout=10
        )

    def stop(self) -> tuple[int, float]:
        """``systemctl stop``: the exit code, and how many seconds it took."""
        assert self.process is not None
        assert self.unit["KillMode"] == ["mixed"]
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(90)
        took = time.monotonic() - begun
        if self._hearing is not None:
            self._hearing.join()  # Or it would hear the READY=1 of the next process.
        return code, took

    def restart(self) -> tuple[int, float]:
        """``systemctl restart``: stop, then start."""
        ended = self.stop()
        self.start()
        return ended

    def __enter__(self) -> Service:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process, whatever it does, and give the sockets back."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._notify.close()
        if self._socket is not None:
            self._socket.close()


@contextmanager
def nginx(host: Host, conf: str) -> Iterator[tuple[str, int]]:
    """A real nginx with this file; gives the address that it listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()[:2]
        text = host.read(conf).replace("listen 80;", f"listen {address[0]}:{address[1]};")
        user = "user root root;\n" if os.geteuid() == 0 else ""
        folder = host.folder
        temporary = "".join(
            f"    {name}_temp_path {folder}/{name};\n"
            for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        main = folder / "nginx.conf"
        main.write_text(
            f"daemon off;\n{user}worker_processes 1;\npid {folder}/nginx.pid;\n"
            f"error_log stderr warn;\nevents {{}}\nhttp {{\n    access_log off;\n{temporary}"
            f"{text}\n}}\n"
        )
        program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program, "nginx is not installed"
        # It takes the listener that is there (ngx_add_inherited_sockets), so nobody else can have
        # the port in between.
        with (folder / "nginx.log").open("wb") as log:
            process = subprocess.Popen(
                [program, "-p", str(folder), "-e", "stderr", "-c", str(main)],
                env={**os.environ, "NGINX": f"{listener.fileno()};"},
                pass_fds=(listener.fileno(),),
                stdout=log,
                stderr=log,
            )
    try:
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise
