"""Reads what a Kubernetes manifest says of one workload: pods, probes, hook, period, roll-out.

Pure: text in, objects out, each with the line it came from, so that whoever finds fault with one
can say where. Nothing is judged here: what is absent gets the default of Kubernetes where there is
one, and None where there is not. PyYAML is needed (``gunicorn-grace[manifest]``).
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from ..errors import GraceError

KINDS = ("Deployment", "StatefulSet")
PROBES = ("readiness", "liveness", "startup")
#: What a probe or a hook does, as Kubernetes spells it.
ACTIONS = ("httpGet", "exec", "tcpSocket", "grpc", "sleep")


class ManifestError(GraceError):
    """A manifest that cannot be read, or does not hold what was looked for.

    Attributes:
        source: name of the file.
        line: counted from 1; 0: the file as a whole.
    """

    def __init__(self, source: str, line: int, what: str) -> None:
        self.source = source
        self.line = line
        super().__init__(f"{source}:{line}: {what}" if line else f"{source}: {what}")


@dataclass(frozen=True)
class Action:
    """What a probe or a hook does.

    Attributes: kind: one of ``ACTIONS``. line: where it says so. path: of ``httpGet``. port: of
        ``httpGet`` and ``tcpSocket``, a named one looked up; None: not given, or no such name.
        headers: of ``httpGet``. https: whether ``httpGet`` speaks TLS. command: of ``exec``.
        seconds: of ``sleep``.
    """

    kind: str
    line: int
    path: str = "/"
    port: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    https: bool = False
    command: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Probe:
    """A probe, with the defaults of pkg/apis/core/v1/defaults.go (SetDefaults_Probe). Times are
    seconds."""

    action: Action
    line: int
    period: int = 10
    timeout: int = 1
    failure_threshold: int = 3
    success_threshold: int = 1
    initial_delay: int = 0
    termination_period: int | None = None


@dataclass(frozen=True)
class Container:
    """One container of a pod.

    Attributes:
        name: its name.
        line: where it begins.
        ports: its named and unnamed ports, by name or number.
        command: ``command`` and ``args`` together.
        env: variables with a value written in the manifest.
        probes: by ``readiness``, ``liveness``, ``startup``.
        pre_stop: its hook.
    """

    name: str
    line: int
    ports: Mapping[str, int] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    probes: Mapping[str, Probe] = field(default_factory=dict)
    pre_stop: Action | None = None

    @property
    def runs_gunicorn(self) -> bool:
        """Whether its command names gunicorn; an image may run it without saying so here."""
        return any("gunicorn" in part for part in self.command)


@dataclass(frozen=True)
class Workload:
    """A Deployment or a StatefulSet.

    Attributes:
        source: name of the file.
        kind: one of ``KINDS``.
        name: its name.
        line: where it begins.
        replicas: how many pods.
        period: terminationGracePeriodSeconds.
        containers: of the pod.
        strategy: ``RollingUpdate``, ``Recreate`` or ``OnDelete``.
        max_surge: as written, a number or a percentage; StatefulSets have none.
        max_unavailable: the same.
        min_ready: minReadySeconds.
        main: name of the container that serves, where an annotation says it.
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

    def serving(self) -> Container:
        """The container that gunicorn runs in: the one whose command says so, the annotated one, or
        the first."""
        gunicorn = [container for container in self.containers if container.runs_gunicorn]
        named = [container for container in self.containers if container.name == self.main]
        return [*gunicorn, *named, *self.containers][0]


def read(text: str, source: str) -> list[Workload]:
    """The workloads in a manifest of one or more documents, in their order; ``List`` objects are
    looked into.

    Args:
        text: the manifest.
        source: its name, for messages.

    Raises:
        ManifestError: it is no YAML, or a value is not of the kind that Kubernetes wants there.
    """
    return [
        _workload(document, source)
        for document in _objects(_documents(text, source), source)
        if document.get("kind") in KINDS
    ]


def choose(workloads: list[Workload], source: str, name: str | None = None) -> Workload:
    """The workload with this name; without one the only one, or the only one whose command names
    gunicorn.

    Raises:
        ManifestError: there is none, or more than one.
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
        raise ManifestError(source, 0, f"there is no {' or '.join(KINDS)} in it")
    gunicorn = [w for w in workloads if any(container.runs_gunicorn for container in w.containers)]
    for some in (workloads, gunicorn):
        if len(some) == 1:
            return some[0]
    names = ", ".join(workload.name for workload in workloads)
    raise ManifestError(
        source, 0, f"there are {len(workloads)} workloads in it: say which one ({names})"
    )


class _Table(dict[Any, Any]):
    """A mapping that knows the line it begins on, and that of each key."""

    def __init__(self, line: int) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[Any, int] = {}


class _Loader(yaml.SafeLoader):
    """Builds ``_Table`` for every mapping."""


def _construct(loader: _Loader, node: yaml.MappingNode) -> Iterator[_Table]:
    loader.flatten_mapping(node)
    found = _Table(node.start_mark.line + 1)
    yield found
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(
                None, None, "a key is no word", key_node.start_mark
            )
        found[key] = loader.construct_object(value_node, deep=True)
        found.lines[key] = key_node.start_mark.line + 1


_Loader.add_constructor("tag:yaml.org,2002:map", _construct)


def _documents(text: str, source: str) -> list[Any]:
    try:
        return list(yaml.load_all(text, _Loader))  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        hint = (
            "; a Helm template has to be rendered first: helm template"
            if re.search(r"\{\{", text)
            else ""
        )
        raise ManifestError(
            source, line, f"no YAML: {error.problem or error.context}{hint}"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = (
            "it is nested too deeply"
            if isinstance(error, RecursionError)
            else str(error).partition("\n")[0]
        )
        raise ManifestError(source, 0, f"no YAML: {reason}") from error


def _objects(documents: list[Any], source: str) -> Iterator[_Table]:
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, _Table):
            raise ManifestError(
                source, 0, f"a document in it is {_called(document)}, no Kubernetes object"
            )
        if document.get("kind") == "List":
            yield from _objects(_get(document, "items", list, source, []), source)
        else:
            yield document


_NAMES = {
    _Table: "a mapping",
    dict: "a mapping",
    list: "a list",
    str: "a text",
    int: "a number",
    bool: "true or false",
}


def _called(value: object) -> str:
    return "nothing" if value is None else _NAMES.get(type(value), type(value).__name__)


def _get(table: _Table, key: str, kind: type, source: str, default: Any = None) -> Any:
    """``table[key]``, which must be of this kind; ``default`` if it is absent or null.

    Raises:
        ManifestError: it is of another kind.
    """
    value = table.get(key)
    if value is None:
        return _Table(table.line) if kind is _Table and default is None else default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        line = table.lines.get(key, table.line)
        shown = f" ({value!r})" if not isinstance(value, (dict, list)) else ""
        raise ManifestError(source, line, f"{key} is {_called(value)}{shown}, not {_NAMES[kind]}")
    return value


def _number(table: _Table, key: str, source: str, default: int, least: int = 0) -> int:
    value = int(_get(table, key, int, source, default))
    if value < least:
        raise ManifestError(
            source, table.lines.get(key, table.line), f"{key} {value} is less than {least}"
        )
    return value


def _tables(table: _Table, key: str, source: str) -> list[_Table]:
    """A list of mappings."""
    found = _get(table, key, list, source, [])
    for item in found:
        if not isinstance(item, _Table):
            raise ManifestError(
                source, table.lines.get(key, table.line), f"{key} holds {_called(item)}, no mapping"
            )
    return list(found)


def _words(table: _Table, key: str, source: str) -> tuple[str, ...]:
    """A list of texts."""
    found = _get(table, key, list, source, [])
    for item in found:
        if not isinstance(item, str):
            line = table.lines.get(key, table.line)
            raise ManifestError(
                source, line, f"{key} holds {_called(item)} ({item!r}): put it in quotes"
            )
    return tuple(found)


def _workload(document: _Table, source: str) -> Workload:
    metadata = _get(document, "metadata", _Table, source)
    spec = _get(document, "spec", _Table, source)
    template = _get(spec, "template", _Table, source)
    pod = _get(template, "spec", _Table, source)
    kind = str(document["kind"])
    name = str(_get(metadata, "name", str, source, "(no name)"))
    containers = tuple(_container(item, source) for item in _tables(pod, "containers", source))
    if not containers:
        raise ManifestError(source, document.line, f"{kind} {name} has no containers")
    update = _get(spec, "strategy" if kind == "Deployment" else "updateStrategy", _Table, source)
    rolling = _get(update, "rollingUpdate", _Table, source)
    annotations = _get(_get(template, "metadata", _Table, source), "annotations", _Table, source)
    return Workload(
        source,
        kind,
        name,
        document.line,
        replicas=_number(spec, "replicas", source, 1),
        period=_number(pod, "terminationGracePeriodSeconds", source, 30),
        containers=containers,
        strategy=str(_get(update, "type", str, source, "RollingUpdate")),
        max_surge=_amount(rolling, "maxSurge", source, "25%"),
        max_unavailable=_amount(
            rolling, "maxUnavailable", source, "25%" if kind == "Deployment" else "1"
        ),
        min_ready=_number(spec, "minReadySeconds", source, 0),
        main=str(annotations.get("kubectl.kubernetes.io/default-container", "")),
    )


def _amount(table: _Table, key: str, source: str, default: str) -> str:
    """A number of pods or a percentage of them."""
    value = table.get(key)
    text = default if value is None else str(value)
    if isinstance(value, bool) or not re.fullmatch(r"[0-9]+%?", text):
        raise ManifestError(
            source,
            table.lines.get(key, table.line),
            f"{key} {value!r} is neither a number nor a percentage",
        )
    return text


def _container(table: _Table, source: str) -> Container:
    ports: dict[str, int] = {}
    for item in _tables(table, "ports", source):
        number = _number(item, "containerPort", source, 0)
        if not 1 <= number <= 65535:
            raise ManifestError(
                source, item.line, f"containerPort {number} is not between 1 and 65535"
            )
        ports[str(_get(item, "name", str, source, str(number)))] = number
    env = {}
    for item in _tables(table, "env", source):
        value = item.get("value")
        if "name" in item and value is not None and not isinstance(value, (dict, list)):
            env[str(item["name"])] = str(value).lower() if isinstance(value, bool) else str(value)
    probes = {}
    for name in PROBES:
        key = f"{name}Probe"
        probe = _get(table, key, _Table, source)
        if probe:
            action = _action(probe, ports, source)
            if action is None:
                raise ManifestError(
                    source,
                    table.lines[key],
                    f"{key} does nothing: it needs {', '.join(ACTIONS[:-1])}",
                )
            probes[name] = _probe(probe, action, table.lines[key], source)
    hook = _get(_get(table, "lifecycle", _Table, source), "preStop", _Table, source)
    return Container(
        str(_get(table, "name", str, source, "(no name)")),
        table.line,
        ports,
        (*_words(table, "command", source), *_words(table, "args", source)),
        env,
        probes,
        _action(hook, ports, source),
    )


def _probe(table: _Table, action: Action, line: int, source: str) -> Probe:
    period = _get(table, "terminationGracePeriodSeconds", int, source)
    return Probe(
        action,
        line,
        period=_number(table, "periodSeconds", source, 10, 1),
        timeout=_number(table, "timeoutSeconds", source, 1, 1),
        failure_threshold=_number(table, "failureThreshold", source, 3, 1),
        success_threshold=_number(table, "successThreshold", source, 1, 1),
        initial_delay=_number(table, "initialDelaySeconds", source, 0),
        termination_period=period,
    )


def _action(table: _Table, ports: Mapping[str, int], source: str) -> Action | None:
    """The action of a probe or a hook; None if there is none."""
    kind = next((name for name in ACTIONS if name in table), None)
    if kind is None:
        return None
    what = _get(table, kind, _Table, source)
    line = table.lines[kind]
    if kind == "exec":
        return Action(kind, line, command=_words(what, "command", source))
    if kind == "sleep":
        return Action(kind, line, seconds=float(_number(what, "seconds", source, 0)))
    port = what.get("port")
    number = ports.get(str(port), int(port) if str(port).isdecimal() else None)
    if port is not None and number is None:
        known = ", ".join(name for name in ports if not name.isdecimal()) or "none"
        raise ManifestError(
            source,
            what.lines["port"],
            f"port {port!r} is no port of this container; named: {known}",
        )
    if kind != "httpGet":
        return Action(kind, line, port=number)
    path = str(_get(what, "path", str, source, "/"))
    headers = tuple(
        (str(h.get("name", "")), str(h.get("value", "")))
        for h in _tables(what, "httpHeaders", source)
    )
    return Action(
        kind,
        line,
        # An absent slash is put in front (pkg/probe/http/request.go, formatURL).
        path=path if path.startswith("/") else f"/{path}",
        port=number,
        headers=headers,
        https=str(what.get("scheme", "HTTP")).upper() == "HTTPS",
    )
