"""Reads a workload from a Kubernetes manifest: pods, probes, hook, period, roll-out.

Each object has the line that it came from, so that a message can name the line. A missing value
gets the default of Kubernetes, or None if there is none. This module does not judge the values. It
needs PyYAML (``gunicorn-grace[manifest]``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .manifest_yaml import (
    ManifestError,
    Table,
    find_objects,
    get_number,
    get_tables,
    get_value,
    get_words,
    parse_documents,
)

KINDS = ("Deployment", "StatefulSet")
"""The kinds of workloads that a rehearsal can play."""

PROBES = ("readiness", "liveness", "startup")


#: The actions of a probe or a hook, as Kubernetes spells them.
ACTIONS = ("httpGet", "exec", "tcpSocket", "grpc", "sleep")


@dataclass(frozen=True)
class Action:
    """The action of a probe or a hook.

    :ivar kind: one of ``ACTIONS``.
    :ivar line: its line in the manifest.
    :ivar path: path of ``httpGet``.
    :ivar port: number of the port of ``httpGet`` and ``tcpSocket``; None if no port is given, or if
        its name is not that of a port of the container.
    :ivar port_name: the name of the port; empty if it is given as a number.
    :ivar host: host of ``httpGet``; empty for the pod's address.
    :ivar headers: headers of ``httpGet``.
    :ivar https: whether ``httpGet`` speaks TLS.
    :ivar command: command of ``exec``.
    :ivar seconds: seconds of ``sleep``.
    :ivar table: the mapping that it was read from, with the line of each key.
    """

    kind: str
    line: int
    path: str = "/"
    port: int | None = None
    port_name: str = ""
    host: str = ""
    headers: tuple[tuple[str, str], ...] = ()
    https: bool = False
    command: tuple[str, ...] = ()
    seconds: float = 0.0
    table: Table = field(default_factory=Table)


@dataclass(frozen=True)
class ContainerProbe:
    """A probe, with the defaults of pkg/apis/core/v1/defaults.go (SetDefaults_Probe). Times are
    seconds."""

    action: Action
    line: int
    period: int = 10
    timeout: int = 1
    failure_threshold: int = 3
    success_threshold: int = 1
    initial_delay: int = 0
    grace: int | None = None
    """The probe's own terminationGracePeriodSeconds; None without one."""
    table: Table = field(default_factory=Table)


@dataclass(frozen=True)
class Container:
    """One container of a pod.

    :ivar name: its name.
    :ivar line: the line where it begins.
    :ivar ports: its ports by their names; a port without a name by its number.
    :ivar command: ``command`` and ``args`` together.
    :ivar env: the variables whose value is written in the manifest.
    :ivar probes: the probes by ``readiness``, ``liveness`` and ``startup``.
    :ivar pre_stop: the preStop hook; None without one.
    :ivar image: its image.
    :ivar entry: how many parts of ``command`` come from the manifest's ``command``; the rest come
        from its ``args``.
    :ivar env_lines: the line of each variable, including those whose value is not in the manifest.
    :ivar stop_signal: ``lifecycle.stopSignal``.
    :ivar table: the mapping that it was read from, with the line of each key.
    """

    name: str
    line: int
    ports: Mapping[str, int] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    probes: Mapping[str, ContainerProbe] = field(default_factory=dict)
    pre_stop: Action | None = None
    image: str = ""
    entry: int = 0
    env_lines: Mapping[str, int] = field(default_factory=dict)
    stop_signal: str = ""
    table: Table = field(default_factory=Table)

    @property
    def runs_gunicorn(self) -> bool:
        """Whether its command names gunicorn. The image may run gunicorn even if this is false."""
        return any("gunicorn" in part for part in self.command)


@dataclass(frozen=True)
class Workload:
    """An object that has pods, or is one.

    :ivar source: name of the file.
    :ivar kind: its kind, such as ``Deployment``.
    :ivar name: its name.
    :ivar line: the line where it begins.
    :ivar replicas: the number of pods.
    :ivar period: terminationGracePeriodSeconds.
    :ivar containers: the containers of a pod.
    :ivar strategy: ``RollingUpdate``, ``Recreate`` or ``OnDelete``.
    :ivar max_surge: maxSurge as written, a number or a percentage. StatefulSets do not use it.
    :ivar max_unavailable: maxUnavailable in the same form.
    :ivar min_ready: minReadySeconds.
    :ivar main: the container that the annotation ``kubectl.kubernetes.io/default-container`` names;
        empty without it.
    :ivar namespace: its namespace; empty if it is not given.
    :ivar document: the whole object, with the line of each key.
    :ivar pod: the spec of its pods, a part of ``document``.
    """

    source: str
    kind: str
    name: str
    line: int
    replicas: int = 1
    period: int = 30
    containers: tuple[Container, ...] = ()
    strategy: str = "RollingUpdate"
    max_surge: str = "25%"
    max_unavailable: str = "25%"
    min_ready: int = 0
    main: str = ""
    namespace: str = ""
    document: Table = field(default_factory=Table)
    pod: Table = field(default_factory=Table)

    def serving(self) -> Container:
        """Return the container of gunicorn: the one whose command names gunicorn, the annotated
        one, or the first."""
        gunicorn = [container for container in self.containers if container.runs_gunicorn]
        named = [container for container in self.containers if container.name == self.main]
        return [*gunicorn, *named, *self.containers][0]


def read(text: str, source: str) -> list[Workload]:
    """Read the workloads of :data:`KINDS` in a manifest, in their order. Objects in a ``List`` are
    read too.

    :param text: the manifest.
    :param source: its name, for messages.

    :raises ManifestError: it is not YAML, or a value does not have the type that Kubernetes
        expects.
    """
    return [
        read_workload(document, source)
        for document in find_objects(parse_documents(text, source), source)
        if document.get("kind") in KINDS
    ]


def choose(workloads: list[Workload], source: str, name: str | None = None) -> Workload:
    """Choose the workload with this name. Without a name, choose the only one, or the only one
    whose command names gunicorn.

    :param workloads: the workloads.
    :param source: the name of the manifest, for messages.
    :param name: the name; None to choose without one.
    :raises ManifestError: there is no such workload, or more than one.
    """
    if name is not None:
        named = [workload for workload in workloads if workload.name == name]
        if len(named) != 1:
            there = ", ".join(workload.name for workload in workloads) or "none"
            raise ManifestError(
                source, 0, f"{len(named)} workloads are called {name!r}; there are: {there}"
            )
        return named[0]
    if not workloads:
        raise ManifestError(source, 0, f"it contains no {' or '.join(KINDS)}")
    gunicorn = [w for w in workloads if any(container.runs_gunicorn for container in w.containers)]
    for some in (workloads, gunicorn):
        if len(some) == 1:
            return some[0]
    names = ", ".join(workload.name for workload in workloads)
    raise ManifestError(source, 0, f"it contains {len(workloads)} workloads: choose one ({names})")


def read_workload(document: Table, source: str) -> Workload:
    """Read one object that has a pod template, or is a pod.

    :param document: the object.
    :param source: the name of the manifest, for messages.
    :raises ManifestError: a value does not have the type that Kubernetes expects, or there are no
        containers.
    """
    metadata = get_value(document, "metadata", Table, source)
    spec = get_value(document, "spec", Table, source)
    kind = str(document["kind"])
    template = document if kind == "Pod" else get_value(spec, "template", Table, source)
    pod = get_value(template, "spec", Table, source)
    name = str(get_value(metadata, "name", str, source, "(no name)"))
    containers = tuple(
        _read_container(item, source) for item in get_tables(pod, "containers", source)
    )
    if not containers:
        raise ManifestError(source, document.line, f"{kind} {name} has no containers")
    update = get_value(
        spec, "strategy" if kind in ("Deployment", "Rollout") else "updateStrategy", Table, source
    )
    rolling = get_value(update, "rollingUpdate", Table, source)
    annotations = get_value(
        get_value(template, "metadata", Table, source), "annotations", Table, source
    )
    return Workload(
        source,
        kind,
        name,
        document.line,
        replicas=get_number(spec, "replicas", source, 1),
        period=get_number(pod, "terminationGracePeriodSeconds", source, 30),
        containers=containers,
        strategy=str(get_value(update, "type", str, source, "RollingUpdate")),
        max_surge=_read_amount(rolling, "maxSurge", source, "25%"),
        max_unavailable=_read_amount(
            rolling,
            "maxUnavailable",
            source,
            "1" if kind in ("StatefulSet", "DaemonSet") else "25%",
        ),
        min_ready=get_number(spec, "minReadySeconds", source, 0),
        main=str(annotations.get("kubectl.kubernetes.io/default-container", "")),
        namespace=str(get_value(metadata, "namespace", str, source, "")),
        document=document,
        pod=pod,
    )


def _read_amount(table: Table, key: str, source: str, default: str) -> str:
    """Return a number or a percentage of pods, as text.

    :raises ManifestError: it is neither.
    """
    value = table.get(key)
    text = default if value is None else str(value)
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]+%?", text):
        raise ManifestError(
            source,
            table.lines.get(key, table.line),
            f"{key} {value!r} is neither a number nor a percentage",
        )
    return text


def _read_container(table: Table, source: str) -> Container:
    ports: dict[str, int] = {}
    for item in get_tables(table, "ports", source):
        number = get_number(item, "containerPort", source, 0)
        if not 1 <= number <= 65535:
            raise ManifestError(
                source, item.line, f"containerPort {number} is not between 1 and 65535"
            )
        ports[str(get_value(item, "name", str, source, str(number)))] = number
    env = {}
    env_lines = {}
    for item in get_tables(table, "env", source):
        value = item.get("value")
        env_lines[str(item.get("name", ""))] = item.line
        if "name" in item and value is not None and not isinstance(value, (dict, list)):
            env[str(item["name"])] = str(value).lower() if isinstance(value, bool) else str(value)
    probes = {}
    for name in PROBES:
        key = f"{name}Probe"
        probe = get_value(table, key, Table, source)
        if probe:
            action = _read_action(probe, ports, source)
            if action is None:
                raise ManifestError(
                    source,
                    table.lines[key],
                    f"{key} has no action: it needs one of {', '.join(ACTIONS[:-1])}",
                )
            probes[name] = _read_probe(probe, action, table.lines[key], source)
    lifecycle = get_value(table, "lifecycle", Table, source)
    hook = get_value(lifecycle, "preStop", Table, source)
    entry = get_words(table, "command", source)
    return Container(
        str(get_value(table, "name", str, source, "(no name)")),
        table.line,
        ports,
        (*entry, *get_words(table, "args", source)),
        env,
        probes,
        _read_action(hook, ports, source),
        image=str(get_value(table, "image", str, source, "")),
        entry=len(entry),
        env_lines=env_lines,
        stop_signal=str(get_value(lifecycle, "stopSignal", str, source, "")),
        table=table,
    )


def _read_probe(table: Table, action: Action, line: int, source: str) -> ContainerProbe:
    return ContainerProbe(
        action,
        line,
        period=get_number(table, "periodSeconds", source, 10, 1),
        timeout=get_number(table, "timeoutSeconds", source, 1, 1),
        failure_threshold=get_number(table, "failureThreshold", source, 3, 1),
        success_threshold=get_number(table, "successThreshold", source, 1, 1),
        initial_delay=get_number(table, "initialDelaySeconds", source, 0),
        grace=get_number(table, "terminationGracePeriodSeconds", source, 0)
        if table.get("terminationGracePeriodSeconds") is not None
        else None,
        table=table,
    )


def _read_action(table: Table, ports: Mapping[str, int], source: str) -> Action | None:
    """Return the action of a probe or a hook; None if there is none."""
    kind = next((name for name in ACTIONS if name in table), None)
    if kind is None:
        return None
    what = get_value(table, kind, Table, source)
    line = table.lines[kind]
    if kind == "exec":
        return Action(kind, line, command=get_words(what, "command", source), table=what)
    if kind == "sleep":
        return Action(kind, line, seconds=float(get_number(what, "seconds", source, 0)), table=what)
    port = what.get("port")
    number = ports.get(str(port), int(port) if str(port).isdecimal() else None)
    named = port if isinstance(port, str) and not port.isdecimal() else ""
    if kind != "httpGet":
        return Action(kind, line, port=number, port_name=named, table=what)
    path = str(get_value(what, "path", str, source, "/"))
    headers = tuple(
        (str(h.get("name", "")), str(h.get("value", "")))
        for h in get_tables(what, "httpHeaders", source)
    )
    return Action(
        kind,
        line,
        # Kubernetes adds a missing slash (pkg/probe/http/request.go, formatURL).
        path=path if path.startswith("/") else f"/{path}",
        port=number,
        port_name=named,
        host=str(what.get("host") or ""),
        headers=headers,
        https=str(what.get("scheme", "HTTP")).upper() == "HTTPS",
        table=what,
    )
