"""The listening socket of the probe port. Runs in the arbiter's main thread.

It may be a UNIX socket. A balancer on the same host can then probe without a port that others see.
After SIGUSR2 the successor gets the socket from its predecessor. If it had to bind the address
again, the port would be closed in between, and a balancer that acts on one failed check would take
the instance out of rotation.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
import sys
import time
from collections.abc import Iterator
from typing import Any

from ..shared.agreed import HANDED_OVER
from ..shared.settings import address_of

BACKLOG = 128

BIND_FOR = 3.0
"""Seconds during which an address that is taken is tried again. If an arbiter got SIGKILL, its
responder may keep the address for up to a second, until it sees that the arbiter is gone."""


class ProbeListener:
    """The socket, bound or handed over.

    :ivar is_inherited: whether the socket comes from the arbiter that executed this one, and that
        still has it too.

    :param arbiter: gunicorn's arbiter.
    :param bind: ``grace_probe_bind``.
    :raises SystemExit: the address cannot be bound. The log says why in one line.
    """

    def __init__(self, arbiter: Any, bind: str) -> None:
        self._arbiter = arbiter
        self._bind = bind
        self._inode = 0
        self.is_inherited: bool
        self._sock, self.is_inherited = self._listen()

    def fileno(self) -> int:
        """Return the descriptor; -1 once the socket is closed."""
        return self._sock.fileno()

    @property
    def address(self) -> str:
        """The address as the log shows it."""
        return _address_text(self._sock.getsockname())

    def close(self) -> None:
        """Close this process's descriptor."""
        self._sock.close()

    def unlink(self) -> None:
        """Remove the path of a UNIX socket, unless another arbiter still serves it or another
        socket has taken its place."""
        address = address_of(self._bind)
        if isinstance(address, str) and not self._is_served_by_another():
            with contextlib.suppress(OSError):
                if os.stat(address).st_ino == self._inode:
                    os.unlink(address)

    def _is_served_by_another(self) -> bool:
        return bool(self._arbiter.reexec_pid or self._arbiter.master_pid)

    def _listen(self) -> tuple[socket.socket, bool]:
        address = address_of(self._bind)
        handed_over = self._handed_over(address)
        if handed_over is not None:
            return handed_over, True
        until = time.monotonic() + BIND_FOR
        while True:
            try:
                if address in self._arbiter.cfg.address and address[1] != 0:
                    raise OSError(0, "gunicorn itself binds it")
                if isinstance(address, str):
                    return self._listen_unix(address), False
                return _listen_tcp(*address), False
            except OSError as error:
                if error.errno == errno.EADDRINUSE and time.monotonic() < until:
                    time.sleep(0.1)
                    continue
                why = error.strerror or str(error)
                self._arbiter.log.error(
                    "gunicorn-grace: grace_probe_bind = %r cannot be bound: %s: give a free one",
                    self._bind,
                    why,
                )
                sys.exit(1)

    def _listen_unix(self, path: str) -> socket.socket:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.stat(path).st_mode):
                raise OSError(0, "the path is a file that is not a socket")
            with socket.socket(socket.AF_UNIX) as other:
                other.settimeout(1)
                # An arbiter that got SIGKILL leaves its socket file behind, and that one refuses.
                if other.connect_ex(path) == 0:
                    raise OSError(errno.EADDRINUSE, "another process listens there")
            os.unlink(path)
        cfg = self._arbiter.cfg
        made = socket.socket(socket.AF_UNIX)
        umask = os.umask(cfg.umask)
        try:
            made.bind(path)
            if (cfg.uid, cfg.gid) != (os.geteuid(), os.getegid()):
                os.chown(path, cfg.uid, cfg.gid)
            made.listen(BACKLOG)
        except OSError:
            made.close()
            raise
        finally:
            os.umask(umask)
        self._inode = os.stat(path).st_ino
        return made

    def _handed_over(self, address: str | tuple[str, int]) -> socket.socket | None:
        """Return the listener of the arbiter that executed this one; ``None`` if there is none, or
        if it is at another address."""
        given = os.environ.pop(HANDED_OVER, None)
        self._arbiter.cfg.env_orig.pop(HANDED_OVER, None)
        if given is None or not self._arbiter.master_pid:
            return None
        try:
            sock = socket.socket(fileno=int(given))
        except (OSError, ValueError):
            return None
        sock.set_inheritable(False)
        if _is_at(sock, address):
            if isinstance(address, str):
                self._inode = os.stat(address).st_ino
            return sock
        sock.close()
        return None

    @contextlib.contextmanager
    def handing_over(self) -> Iterator[None]:
        """Hand the listener over to the arbiter that gunicorn executes within this context. Both
        arbiters then have it."""
        environ = self._arbiter.cfg.env_orig
        self._sock.set_inheritable(True)
        environ[HANDED_OVER] = str(self._sock.fileno())
        try:
            yield
        finally:
            self._sock.set_inheritable(False)
            environ.pop(HANDED_OVER, None)


def _listen_tcp(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    made = socket.socket(family, kind, protocol)
    try:
        # As in gunicorn, old connections in TIME_WAIT must not block the address.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(BACKLOG)
    except OSError:
        made.close()
        raise
    return made


def _address_text(name: Any) -> str:
    if isinstance(name, str):
        return f"unix:{name}"
    host, port = name[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _is_at(sock: socket.socket, address: str | tuple[str, int]) -> bool:
    name = sock.getsockname()
    if isinstance(address, str) or isinstance(name, str):
        return bool(name == address)
    found = socket.getaddrinfo(*address, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # With port 0 the kernel chose the port, so any port fits.
    return name[:2] in [(meant[4][0], meant[4][1] or name[1]) for meant in found]
