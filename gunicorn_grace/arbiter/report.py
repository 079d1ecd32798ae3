"""The report of a shutdown: the numbers of the summary, and the file ``grace_report``.

In Kubernetes that file is the container's termination message. It can still be read when the
container's log is gone. So the report fits the size that the kubelet reads. A first version is
written when draining begins, because a SIGKILL may prevent the last one. Runs in the arbiter.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..shared.cells import Lost
from ..shared.settings import TERMINATION_LOG
from .lifecycle import Reason
from .safe_open import safe_open

LIMIT = 4096
"""Bytes of a termination message that the kubelet reads (``terminationMessagePath``,
Kubernetes' "Determine the Reason for Pod Failure")."""

LONGEST_REASON = 200
"""The maximum length, in characters, of the reason that gunicorn gives. The rest of a report
without its list is less than 1 KiB."""


def _key(meaning: str) -> Any:
    return dataclasses.field(metadata={"meaning": meaning})


@dataclass(frozen=True)
class Report:
    """The numbers of a shutdown. The fields are the keys of the JSON object, in this order."""

    version: str = _key("version of gunicorn-grace")
    origin: str = _key("who began it: `sigterm`, `http` (`?down=true`), `prestop`, `drain`")
    t0_unix_seconds: float = _key("when it began (T0), as a Unix time")
    phase: str = _key(
        "the phase in which this was written: `DRAINING` if nothing could be written after it began"
    )
    ended: str | None = _key(
        "why the instance ended: `drained`, `deadline`, `SIGINT`, `SIGQUIT`, "
        "`halted` (by gunicorn, with its reason), `exited` (by a hook), "
        "`failed` (the plugin); `null` while it had not"
    )
    lame_duck_seconds: float = _key("how long the delay really was")
    lame_duck_ended: str | None = _key(
        "why it ended, in the words of the log; `null` when it was cut short"
    )
    draining_seconds: float = _key("how long draining was")
    requests_since_t0: int | None = _key(
        "requests that came after T0; `null` here and below where the worker class does not let "
        "them be counted"
    )
    last_request_after_t0_seconds: float | None = _key(
        "when the last of them came; `null` when none did"
    )
    handed_over: bool = _key(
        "whether somebody else made the listening sockets and keeps them (systemd), so that nobody "
        "is turned away"
    )
    in_flight_at_t0: int | None = _key("requests in flight when the shutdown began")
    in_flight_at_drain: int | None = _key("the same when draining began")
    in_flight_at_stop: int | None = _key(
        "the same when draining, or all, was over; `null` while it was not"
    )
    cut_off: int | None = _key(
        "requests that got no complete response; in an unfinished report, with those that would "
        "be lost if it ended there"
    )
    cut_off_by_kind: Mapping[str, int | None] = _key(
        "the same by how far they had come: `in_flight` (in the application), `pipelined` (behind "
        "one in flight, on the same connection), `half_read` (a part of it was read), `not_begun` "
        "(the connection was accepted, and nothing more), `accept_queue` (no worker had it)"
    )
    cut_off_by_worker: Sequence[dict[str, int]] | None = _key(
        "`pid` and `requests` of each worker that they were in, the most first; "
        "left out from the end where the report would be too long"
    )
    verdict: str = _key("what the last request says about the delay")

    def to_json(self) -> bytes:
        """Return the report as one line of JSON: ASCII, and at most :data:`LIMIT` bytes."""
        told = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        told["ended"] = self.ended and self.ended[:LONGEST_REASON]
        if self.cut_off_by_worker is None:
            return _dumped(told)
        told["cut_off_by_worker"] = kept = []
        room = LIMIT - len(_dumped(told))
        for worker in self.cut_off_by_worker:
            room -= len(json.dumps(worker)) + len(", ")
            if room < 0:
                break
            kept.append(worker)
        return _dumped(told)


def _dumped(told: dict[str, Any]) -> bytes:
    return json.dumps(told).encode() + b"\n"


NOT_COUNTED = "requests are not counted with this worker class: nothing is known about the delay"
"""The verdict if requests cannot be counted, so that :func:`verdict` has no data."""

KINDS = {
    "in_flight": "in flight",
    "pipelined": "behind another",
    "half_read": "read in part",
    "not_begun": "not begun",
    "accept_queue": "in the accept queue",
}
"""The words of the summary for each kind of lost requests."""


def told_lost(lost: Lost, *, counted: bool = True) -> str:
    """Return the words of the summary about lost requests. The kinds are listed if not all of the
    requests were in flight.

    :param lost: the lost requests.
    :param counted: whether the requests in the workers could be counted.
    """
    if not counted:
        queued = f", {lost.accept_queue} lost in the accept queue" if lost.accept_queue else ""
        return f"what was cut off is not counted{queued}"
    kinds = [f"{count} {KINDS[kind]}" for kind, count in lost._asdict().items() if count]
    others = lost.total() > lost.in_flight
    return f"{lost.total()} cut off" + (f" ({', '.join(kinds)})" if others else "")


def uncounted(report: Report) -> Report:
    """Return a report without the numbers that could not be counted. A zero would wrongly mean that
    no request was lost."""
    known = report.cut_off_by_kind["accept_queue"]
    return dataclasses.replace(
        report,
        requests_since_t0=None,
        last_request_after_t0_seconds=None,
        in_flight_at_t0=None,
        in_flight_at_drain=None,
        in_flight_at_stop=None,
        cut_off=None,
        cut_off_by_kind={**dict.fromkeys(KINDS), "accept_queue": known},
        cut_off_by_worker=None,
        verdict=NOT_COUNTED,
    )


def verdict(
    last_after: float | None,
    delay: float,
    cut_short: str = "",
    *,
    lasted: float = 0.0,
    handed_over: bool = False,
) -> str:
    """Return the advice about the delay that follows from the last request.

    :param last_after: seconds after T0 at which the last request came; ``None`` if none came.
    :param delay: ``grace_shutdown_delay``, in seconds.
    :param cut_short: the reason that ended the delay although requests may still have come; empty
        if there was none. In that case the time of the last request says nothing about the delay.
    :param lasted: how long the delay really was, in seconds.
    :param handed_over: whether another process made the listening sockets and keeps them. Then
        requests come all the time, and wait for the next process when this one accepts no more.
    """
    if handed_over:
        return "no delay is needed: the listening sockets were handed over, and stay open"
    if cut_short == Reason.BUDGET and last_after is not None and lasted >= delay:
        return (
            f"requests came until the budget ended the delay after {lasted:.1f} s (last one: "
            f"{last_after:.1f} s): whoever sends them has nowhere else to go, or does not see the "
            "readiness; a longer delay would not help: see docs/how-to/one-host.md"
        )
    if cut_short:
        return f"the delay was cut short ({cut_short}): nothing is known about its length"
    if last_after is None:
        return "no request came after T0"
    if not delay:
        return f"last request came {last_after:.1f} s after T0, and there is no delay"
    if last_after > 0.8 * delay:
        share = 100 * last_after / delay
        return f"requests still arrived at {share:.0f} % of the delay: make it longer"
    enough = max(1, round(2 * last_after))  # Twice the time that the routers took.
    if enough >= delay:
        return f"last request came {last_after:.1f} s after T0; the delay of {delay:g} s fits"
    return f"last request came {last_after:.1f} s after T0; a delay of {enough} s would do"


def why_unwritable(path: str) -> str | None:
    """Return why a report cannot be written to this file; ``None`` if it can. This creates and
    changes nothing. Runs in ``gunicorn --check-config``.

    The termination message is a mount of the pod. If it is missing outside Kubernetes, that is not
    a problem.

    :param path: the file, FIFO or terminal.
    """
    try:
        os.close(
            safe_open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK),
        )
    except FileNotFoundError as error:
        is_pods = path == TERMINATION_LOG and "KUBERNETES_SERVICE_HOST" not in os.environ
        folder = os.path.dirname(path) or "."
        if is_pods or os.access(folder, os.W_OK | os.X_OK):
            return None
        return f"{folder} may not be written to" if os.path.isdir(folder) else error.strerror
    except OSError as error:
        # ENXIO means only that no process reads the FIFO at this moment.
        return None if error.errno == errno.ENXIO else error.strerror
    except ValueError as error:  # The path contains a null byte.
        return str(error)
    return None


def write(path: str, report: Report, *, last: bool) -> None:
    """Write a report over the one that was written before. Runs in the arbiter, and never waits for
    a reader.

    Whenever the process is killed, the file contains a complete report: the old one or the new one,
    perhaps with white space after it. To rename a new file over the old one would do that too, but
    not for a termination message, because that file is a mount of its own.

    :param path: the file, FIFO or terminal.
    :param report: the report.
    :param last: whether no other report follows. A FIFO or a terminal gets only the last one.
    :raises OSError: the file cannot be written.
    """
    data = report.to_json()
    fd = safe_open(
        path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK, 0o666
    )
    try:
        there = os.fstat(fd)
        if stat.S_ISREG(there.st_mode):
            whole = data.ljust(min(there.st_size, LIMIT))
            if os.write(fd, whole) < len(whole):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
            os.ftruncate(fd, len(data))
        elif last:
            os.write(fd, data)
    finally:
        os.close(fd)
