"""The rules for beginning a shutdown with `GET /readyz?down=true`. Runs in workers and in the probe
responder.

The request is meant for the `curl` in a preStop hook, which Kubernetes runs inside the container
before it sends SIGTERM (https://kubernetes.io/docs/concepts/containers/container-lifecycle-hooks/).
If a loopback address were enough, any remote client could take the instance out of rotation. Behind
an nginx, Envoy or mesh sidecar on the same host or in the same pod, all clients come from
127.0.0.1, often without a forwarding header. So does a request that an attacker makes the
application itself send (SSRF). A hook differs from those by the process at the other end of the
connection: it is in this container, it does not belong to this instance, it was started a moment
ago, and it relays nothing. Its age is not enough: a proxy is young when it was started with the
container, and its workers are young after each reload.

That process is found from the socket, because a header can be forged. A UNIX socket names it
(`SO_PEERCRED`, unix(7)). For TCP, the kernel tells the inode of the peer's socket (sock_diag(7), or
the tables `/proc/net/tcp` and `tcp6`), and `/proc/<pid>/fd` shows which process holds that socket
(proc(5)). A request whose origin cannot be proved is refused. A refused hook loses only its head
start, because the SIGTERM that follows begins the same shutdown.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from ..shared.memory import Memory
from ..shared.phase import Origin
from ..shared.settings import OFF, Settings
from ..shared.text import printable
from .answers import FORBIDDEN, SWITCHED_OFF, TRIGGERED, Answer
from .asker import Asker, peer_pid
from .processes import WAY_OUT, Refused, process
from .sockets import endpoint

LOOKUP_INTERVAL = 1.0
"""Seconds between look-ups. A look-up may read the descriptors of all processes, and any client
behind a proxy can cause one."""

REFUSAL_LOG_INTERVAL = 60.0
"""Seconds between two log lines about refused triggers, so that forged triggers cannot fill the
disk."""

# gunicorn sets PROXY_PROTOCOL when the connection began with a PROXY line.
_FORWARDING = frozenset({"HTTP_FORWARDED", "HTTP_X_REAL_IP", "HTTP_VIA", "PROXY_PROTOCOL"})


@dataclass(frozen=True)
class Verdict:
    """The decision on a trigger.

    :ivar allowed: whether the trigger is obeyed.
    :ivar reason: the reason, for the log only. Neither it nor the source contains the token, or a
        raw control character from a header or a process name.
    :ivar source: where the trigger came from, for the log only.
    """

    allowed: bool
    reason: str
    source: str


class SwitchedOff:
    """Handles `?down=true` in an instance that is switched off. The trigger has no effect, and the
    hook must not fail for that. So the origin of the request does not matter.

    :param settings: the settings in use.
    :param say: writes a line to the log.
    """

    def __init__(self, settings: Settings, say: Callable[[str], object]) -> None:
        self._is_wanted = settings.trigger != OFF
        self._say: Callable[[str], object] | None = say

    def is_pulled(self, query: str | None) -> bool:
        """Whether a query to readiness is a trigger."""
        return self._is_wanted and query is not None and _says_down(query)

    def answer(self, environ: Mapping[str, Any]) -> Answer:
        """Return the answer to a trigger, and log once in this process that it did nothing."""
        say, self._say = self._say, None
        if say is not None:
            say("?down=true does nothing: gunicorn-grace is switched off (grace_enabled)")
        return SWITCHED_OFF


def _says_down(query: str) -> bool:
    return parse_qs(query).get("down", [""])[-1].lower() == "true"


class Trigger:
    """Handles `?down=true` in one process: it begins the shutdown, or refuses and logs the reason.

    :param memory: the shared memory.
    :param settings: the settings in use.
    :param say: writes a line to the log.
    :param clock: returns seconds. It only sets the interval between log lines.
    :param arbiter: the arbiter's pid; by default the parent. It is not taken from the memory, which
        any worker may overwrite.
    """

    def __init__(
        self,
        memory: Memory,
        settings: Settings,
        say: Callable[[str], object],
        *,
        clock: Callable[[], float] = time.monotonic,
        arbiter: int | None = None,
    ) -> None:
        self._memory = memory
        self._say = say
        self._clock = clock
        self._refusal_said = -REFUSAL_LOG_INTERVAL
        self._policy: TriggerPolicy | None = None
        if settings.trigger != OFF:
            token = settings.trigger_token
            secret = token.reveal().decode("utf-8", "surrogateescape") if token else None
            self._policy = TriggerPolicy(settings.trigger, secret, arbiter or os.getppid())

    def is_pulled(self, query: str | None) -> bool:
        """Whether a query to readiness is a trigger. With `grace_trigger = "off"` this is always
        false."""
        if not query or self._policy is None:
            return False
        return _says_down(query)

    def answer(self, environ: Mapping[str, Any]) -> Answer:
        """Begin the shutdown if this request is allowed to, and return the answer to it."""
        return TRIGGERED if self.pull(environ) else FORBIDDEN

    def pull(self, environ: Mapping[str, Any]) -> bool:
        """Begin the shutdown if this request is allowed to.

        :param environ: the request's headers and socket, as WSGI names them.
        :returns: whether the trigger was obeyed.
        """
        assert self._policy is not None
        verdict = self._policy.admit(environ)
        reason = verdict.reason
        if verdict.allowed:
            if not self._memory.header.http_shut:
                if self._memory.trigger(Origin.HTTP):
                    self._say(f"trigger obeyed, from {verdict.source}: {reason}")
                return True
            reason = (
                "?down=true is disabled until restart, because an earlier trigger was not followed "
                "by SIGTERM; use gunicorn-grace prestop"
            )
        now = self._clock()
        if now - self._refusal_said >= REFUSAL_LOG_INTERVAL:
            self._refusal_said = now
            self._say(f"trigger refused, from {verdict.source}: {reason}")
        return False


class TriggerPolicy:
    """Decides on each trigger that one process receives. Its threads and greenlets may share it.

    :param mode: the value of `grace_trigger`.
    :param token: the value of `grace_trigger_token`.
    :param arbiter_pid: the process id of the arbiter.
    :param proc: the mount point of the proc file system.
    :param clock: returns seconds. It only sets the interval between look-ups.
    """

    def __init__(
        self,
        mode: str,
        token: str | None,
        arbiter_pid: int,
        *,
        proc: str = "/proc",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._mode = mode
        self._token = token
        if token is not None:
            # Its import loads OpenSSL, 4 MiB that no other mode needs.
            from hmac import compare_digest

            self._are_same = compare_digest
        self._proc = proc
        self._asker = Asker(arbiter_pid, proc)
        self._clock = clock
        self._next_lookup = float("-inf")
        # No I/O happens while the lock is held. So no thread waits for another's look-up, and no
        # greenlet switches inside, with or without gevent's patched lock.
        self._lock = threading.Lock()

    def admit(self, environ: Mapping[str, Any]) -> Verdict:
        """Return the decision on one request. It never raises: an error is a refusal."""
        source = "unknown"
        try:
            source = self._source(environ)
            if self._mode == "token":
                return Verdict(True, self._token_matches(environ), source)
            if self._mode == "local":
                return Verdict(True, self._is_hook(environ), source)
            raise Refused(f'grace_trigger is {self._mode!a}, neither "local" nor "token"')
        except Refused as refusal:
            return Verdict(False, str(refusal), source)
        except Exception as error:
            reason = (
                f"the trigger could not be checked, {type(error).__name__}: {printable(error)}; "
                f"{WAY_OUT}"
            )
            return Verdict(False, reason, source)

    def _source(self, environ: Mapping[str, Any]) -> str:
        sock = environ.get("gunicorn.socket")
        if sock is None:
            return f"REMOTE_ADDR {printable(environ.get('REMOTE_ADDR'))}"
        if sock.family != socket.AF_UNIX:
            try:
                host, port = sock.getpeername()[:2]
            except OSError as error:  # The peer hung up. Its token still counts.
                return f"a peer that is gone ({error.strerror})"
            return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        pid = peer_pid(sock)
        try:
            return f"unix socket, {process(self._proc, pid)}"
        except Refused:
            return f"unix socket, pid {pid}"

    def _token_matches(self, environ: Mapping[str, Any]) -> str:
        given = environ.get("HTTP_X_GRACE_TOKEN")
        # Two empty tokens would compare equal.
        if not self._token:
            raise Refused("grace_trigger_token is not set, so no token can match")
        if not given:
            raise Refused("no X-Grace-Token header")
        try:
            # A header holds the bytes of the wire decoded as latin-1 (PEP 3333). A token from the
            # environment may hold bytes that are not UTF-8 (PEP 383).
            same = self._are_same(
                given.encode("latin-1"), self._token.encode("utf-8", "surrogateescape")
            )
        except UnicodeError:
            same = False  # The exception quotes its input, which must not reach the log.
        if not same:
            raise Refused("X-Grace-Token does not match grace_trigger_token")
        return "X-Grace-Token matched"

    def _is_hook(self, environ: Mapping[str, Any]) -> str:
        for name in environ:
            if name.startswith("HTTP_X_FORWARDED") or name in _FORWARDING:
                shown = name.removeprefix("HTTP_").replace("_", "-").title()
                raise Refused(
                    f"forwarded by a proxy ({printable(shown)}: {printable(environ[name])}); "
                    f"{WAY_OUT}"
                )

        sock = environ.get("gunicorn.socket")
        if sock is None:
            raise Refused(
                "this worker class does not pass the socket on (no gunicorn.socket in environ); "
                f"{WAY_OUT}"
            )
        if sock.family == socket.AF_UNIX:
            self._wait_its_turn()
            self._asker.check_proc()
            told = self._asker.judge_unix(sock)
        elif sock.family in (socket.AF_INET, socket.AF_INET6):
            # REMOTE_ADDR would not do, because a PROXY line or a trusted header may have set it.
            peer, ours = endpoint(sock.getpeername()), endpoint(sock.getsockname())
            if not peer[0].is_loopback:
                raise Refused(f"the peer's address {peer[0]} is not a loopback address; {WAY_OUT}")
            self._wait_its_turn()
            self._asker.check_proc()
            told = self._asker.judge_holders(self._asker.inodes(peer, ours))
        else:
            raise Refused(
                f"the peer is on neither TCP nor a UNIX socket ({sock.family!r}); {WAY_OUT}"
            )
        return "asked by " + ", ".join(told)

    def _wait_its_turn(self) -> None:
        with self._lock:
            now = self._clock()
            left = self._next_lookup - now
            if left <= 0:
                self._next_lookup = now + LOOKUP_INTERVAL
        if left > 0:
            raise Refused(
                f"another trigger was looked up {LOOKUP_INTERVAL - left:.2f} s ago, and there is "
                f"one look-up per {LOOKUP_INTERVAL:g} s: try again, or {WAY_OUT}"
            )
