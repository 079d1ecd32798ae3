"""Finds the reports of many shutdowns in the data that a cluster or a log keeps. Runs in a command.

There are three sources. In the JSON of ``kubectl get pods``, a report is a container's termination
message. A report file holds a report. In a log, a report is a line or a part of one. The data may
be anything, and everything that is not a report is ignored.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

UNKNOWN = "-"
"""Stands for the service of a report whose origin is unknown."""

_LABELS = ("app.kubernetes.io/name", "app", "k8s-app")
_KEYS = ('"t0_unix_seconds"', '\\"t0_unix_seconds\\"')
_TEXTS = ("log", "message", "msg", "MESSAGE")
"""The keys under which log collectors store a line of a program: Docker and Fluent Bit, Elastic and
Google, zap, and journald."""

_PREFIX = re.compile(r"\[pod/([^/\]\s]+)/[^\]\s]+\] ")
"""The beginning of a line of ``kubectl logs --prefix``."""

_SUFFIX = re.compile(r"(-[a-z0-9]{5,10}-[a-z0-9]{5}|-\d+)$")
"""The suffix that a Deployment or a StatefulSet adds to its name in the names of its pods."""

_LATE = re.compile(
    r"gunicorn-grace: late_request (\d{1,9}(?:\.\d)?) s after T0, .*? "
    r"from (.{1,300}?) \((.{1,600})\);"
)


class Found(NamedTuple):
    """A report.

    :ivar service: the service that it belongs to.
    :ivar report: the report, as it was parsed.
    """

    service: str
    report: Mapping[str, Any]


class Late(NamedTuple):
    """A ``late_request`` line of the log.

    :ivar service: the service that it belongs to.
    :ivar after: seconds after T0.
    :ivar router: the sender of the request: its address and the headers that identify it.
    """

    service: str
    after: float
    router: str


def in_document(document: Any, service: str) -> Iterator[Found]:
    """Yield the reports in a JSON document: a report, a list of them, or pods.

    :param document: the document.
    :param service: the service of a report that does not come from a pod.
    """
    if isinstance(document, list):
        for item in document:
            yield from in_document(item, service)
    elif is_report(document):
        yield Found(service, document)
    elif isinstance(document, dict):
        if isinstance(document.get("items"), list):
            yield from in_document(document["items"], service)
        elif document.get("kind") == "Pod":
            yield from _in_pod(document)


def in_lines(lines: Iterable[str], service: str) -> Iterator[Found | Late]:
    """Yield the reports and the late requests in the lines of a log.

    :param lines: the lines.
    :param service: the service of a line that does not name its pod.
    """
    for line in lines:
        if any(key in line for key in _KEYS):
            yield from _in_line(line, service)
        elif "late_request" in line and (late := _LATE.search(line)):
            yield Late(_service_of_line(line, service), float(late[1]), _router(*late.groups()[1:]))


def is_report(value: Any) -> bool:
    """Whether a JSON value is a report."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("t0_unix_seconds"), (int, float))
        and "lame_duck_seconds" in value
        and "origin" in value
    )


def service_of_file(name: str) -> str:
    """Return the service of a report file: the name of its folder."""
    return PurePath(name).parent.name or UNKNOWN


def _in_pod(pod: dict[str, Any]) -> Iterator[Found]:
    metadata, status = _mapping(pod.get("metadata")), _mapping(pod.get("status"))
    statuses = status.get("containerStatuses")
    for container in statuses if isinstance(statuses, list) else ():
        for state in ("lastState", "state"):
            ended = _mapping(_mapping(_mapping(container).get(state)).get("terminated"))
            report = _parsed(ended.get("message"))
            if report is not None:
                yield Found(_service_of_pod(metadata), report)


def _service_of_pod(metadata: Mapping[str, Any]) -> str:
    labels = _mapping(metadata.get("labels"))
    names = [labels[label] for label in _LABELS if isinstance(labels.get(label), str)]
    name = names[0] if names else _SUFFIX.sub("", str(metadata.get("name", UNKNOWN)))
    space = metadata.get("namespace")
    return f"{space}/{name}" if isinstance(space, str) else name


def _in_line(line: str, service: str) -> Iterator[Found]:
    begin = line.find("{")
    outer = _parsed(line[begin:])
    if is_report(outer):
        yield Found(_service_of_line(line[:begin], service), _mapping(outer))
    elif outer is not None:
        metadata = _mapping(outer.get("kubernetes"))
        inside = [outer[key] for key in _TEXTS if isinstance(outer.get(key), str)]
        pod = {
            "labels": metadata.get("labels"),
            "name": metadata.get("pod_name", UNKNOWN),
            "namespace": metadata.get("namespace_name"),
        }
        for text in inside:
            report = _parsed(text[text.find("{") :])
            if is_report(report):
                yield Found(_service_of_pod(pod) if metadata else service, _mapping(report))


def _service_of_line(line: str, service: str) -> str:
    pod = _PREFIX.match(line)
    return _SUFFIX.sub("", pod[1]) if pod else service


def _router(peer: str, headers: str) -> str:
    agent = re.search(r"USER-AGENT '([^']*)'", headers)
    forwarded = re.search(r"X-FORWARDED-FOR '([^']*)'", headers)
    named = f" ({agent[1]})" if agent else ""
    through = f" for {forwarded[1]}" if forwarded else ""
    return f"{peer.partition(' port ')[0]}{named}{through}"


def _parsed(text: Any) -> dict[str, Any] | None:
    """Return the JSON object at the beginning of a text; ``None`` if there is none. Other text may
    follow the object."""
    if not isinstance(text, str) or not text.startswith("{"):
        return None
    try:
        value, _ = _DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


_DECODER = json.JSONDecoder()


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
