"""Turns a workload of a manifest into the part of a plan that it describes.

Several instances share this machine, so addresses, ports and pids of a manifest have to be
translated. A part of the manifest that cannot be played is reported in a note.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from ...operate.manifest import Action, Container, ContainerProbe, Workload
from ..errors import PlanFailed
from .deletion import Exec, Hook, HttpGet, Sleep
from .probing import KubeletProbe, ProbeKind
from .rollout import Rollout

#: The variables that change how gunicorn behaves. The other variables of a container refer to its
#: cluster, so they are not used.
_ENVIRONMENT = re.compile(r"GRACE_[A-Z_]+|GUNICORN_CMD_ARGS|WEB_CONCURRENCY")
#: Variables that name a port or a file. Each container has its own, but instances on one machine
#: would share them.
_NOT_HERE = ("GRACE_PROBE_BIND", "GRACE_REPORT")
_BIND = re.compile(r"(?:^|\s)(?:-b|--bind)[= ]?\S*?:(\d+)(?=\s|$)")


@dataclass(frozen=True)
class Played:
    """The part of a plan that comes from a manifest; ``Plan`` explains the fields.

    :ivar notes: a line for each part of the manifest that is played differently from how it is
        written, or not at all.
    """

    instances: int
    period: float
    probes: Mapping[ProbeKind, KubeletProbe]
    pre_stop: Hook | tuple[()]
    env: Mapping[str, str]
    rollout: Rollout
    notes: tuple[str, ...] = ()


def played(workload: Workload, *, rolled_out: bool) -> Played:
    """Read the part of a plan that a workload describes.

    :param workload: the workload.
    :param rolled_out: whether a roll-out is played rather than a scale-down.

    :raises PlanFailed: the workload has no readiness probe, or a readiness probe that cannot be
        played; a probe or the hook names an unknown port; or the strategy is not ``RollingUpdate``
        although a roll-out is played.
    """
    container = workload.serving()
    where = f"{workload.source}:{container.line}: {workload.kind} {workload.name}"
    notes: list[str] = []
    probes: dict[ProbeKind, KubeletProbe] = {}
    for name, probe in container.probes.items():
        _refuse_unknown_port(probe.action, container, workload)
        if probe.action.kind == "httpGet":
            probes[ProbeKind(name)] = _translate_probe(probe)
            if probe.action.https:
                notes.append(
                    f"{workload.source}:{probe.action.line}: {name} probe played as HTTP, not HTTPS"
                )
            port = _gunicorn_port(container)
            if port is not None and probe.action.port not in (None, port):
                notes.append(
                    f"{workload.source}:{probe.action.line}: {name} probe of port "
                    f"{probe.action.port} is sent to gunicorn's own port, {port} in the manifest"
                )
        elif name != "readiness":
            notes.append(
                f"{workload.source}:{probe.line}: {name} probe left out: only httpGet is played"
            )
    if "readiness" not in container.probes:
        raise PlanFailed(
            f"{where} has no readinessProbe, so nothing takes it out of the routing when it is not "
            f"ready; add to container {container.name}: readinessProbe: {{httpGet: "
            f"{{path: /readyz, port: {_first_port_name(container)}}}, "
            f"periodSeconds: 5, failureThreshold: 1}}"
        )
    if ProbeKind.READINESS not in probes:
        readiness = container.probes["readiness"]
        raise PlanFailed(
            f"{workload.source}:{readiness.line}: the readinessProbe of {workload.kind} "
            f"{workload.name} is {readiness.action.kind}; only httpGet is played, because only it "
            "sees that an instance is no longer ready"
        )
    env = {name: value for name, value in container.env.items() if _ENVIRONMENT.fullmatch(name)}
    for name in _NOT_HERE:
        if env.pop(name, None) is not None:
            notes.append(
                f"{workload.source}:{container.line}: {name} left out: "
                "the instances share this machine"
            )
    if rolled_out and workload.strategy != "RollingUpdate":
        raise PlanFailed(
            f"{workload.source}:{workload.line}: the strategy of {workload.kind} {workload.name} "
            f"is {workload.strategy}, not RollingUpdate: a roll-out with a gap is not played"
        )
    return Played(
        instances=workload.replicas,
        period=float(workload.period),
        probes=probes,
        pre_stop=()
        if container.pre_stop is None
        else _translate_hook(container.pre_stop, container, workload, notes),
        env=env,
        rollout=Rollout(
            workload.max_surge,
            workload.max_unavailable,
            workload.min_ready,
            in_order=workload.kind == "StatefulSet",
        ),
        notes=tuple(notes),
    )


def _refuse_unknown_port(action: Action, container: Container, workload: Workload) -> None:
    """Refuse a named port that the container does not have, because Kubernetes could not reach it.

    :raises PlanFailed: the container has no port of this name.
    """
    if action.port is None and action.port_name:
        known = ", ".join(name for name in container.ports if not name.isdecimal()) or "none"
        raise PlanFailed(
            f"{workload.source}:{action.table.lines['port']}: port {action.port_name!r} is not a "
            f"port of this container; named: {known}"
        )


def _translate_probe(written: ContainerProbe) -> KubeletProbe:
    try:
        return KubeletProbe(
            written.action.path,
            float(written.period),
            float(written.timeout),
            written.failure_threshold,
            written.success_threshold,
            float(written.initial_delay),
            written.action.headers,
            None if written.grace is None else float(written.grace),
        )
    except ValueError as error:
        raise PlanFailed(str(error)) from error


def _translate_hook(
    action: Action, container: Container, workload: Workload, notes: list[str]
) -> Hook | tuple[()]:
    _refuse_unknown_port(action, container, workload)
    if action.kind == "sleep":
        return Sleep(action.seconds)
    if action.kind == "httpGet":
        return HttpGet(action.path, action.headers)
    if action.kind == "exec":
        ports = {*container.ports.values(), _gunicorn_port(container)}
        return Exec(tuple(here(action.command, ports)))
    notes.append(
        f"{workload.source}:{action.line}: preStop {action.kind} left out: "
        "Kubernetes does not run it either"
    )
    return ()


def here(command: tuple[str, ...], ports: set[int | None]) -> list[str]:
    """Translate a container's command for this machine, where each instance has its own port.

    ``localhost:8080`` becomes the instance's address if 8080 is a port of the container.
    ``gunicorn-grace prestop`` and ``drain`` look for the only gunicorn of their container, so they
    get ``--pid``.

    :param command: the command.
    :param ports: the ports of the container.
    """
    known = "|".join(str(port) for port in ports if port is not None)
    parts = list(command)
    if known:
        local = re.compile(rf"(?:localhost|127\.0\.0\.1|0\.0\.0\.0|\[::1?\]):(?:{known})(?!\d)")
        parts = [local.sub("{host}:{port}", part) for part in parts]
    parts = [
        re.sub(r"(gunicorn-grace (?:prestop|drain)\b)(?! --pid)", r"\1 --pid {pid}", part)
        for part in parts
    ]
    if (
        len(parts) > 1
        and parts[0].endswith("gunicorn-grace")
        and "--pid" not in parts
        and parts[1] in _COMMANDS
    ):
        parts += ["--pid", "{pid}"]
    return parts


_COMMANDS = ("prestop", "drain")


def _gunicorn_port(container: Container) -> int | None:
    """Return the port that gunicorn binds in the container: the one in its command, or the first
    declared one; None without either."""
    found = _BIND.search(" ".join((*container.command, container.env.get("GUNICORN_CMD_ARGS", ""))))
    return int(found[1]) if found else next(iter(container.ports.values()), None)


def _first_port_name(container: Container) -> str:
    return next(iter(container.ports), "8080")
