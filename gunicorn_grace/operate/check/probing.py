"""Rules about probes: which path they ask, in which way, and what follows from the answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..manifest import Action, ContainerProbe
from .case import Case
from .findings import Hit, Patch, Severity, rule

LIVENESS_ALIAS = "/healthz"
HEARTBEATS = {"/__heartbeat__": "readiness", "/__lbheartbeat__": "liveness"}
SLOW_BOOT = 30
"""A boot counts as slow if initialDelaySeconds is at least this; seconds."""


def questions(case: Case) -> dict[str, str]:
    """Return the paths that the plugin answers, each with its kind of probe."""
    s = case.seen.settings
    named = {
        s.startup_path: "startup",
        LIVENESS_ALIAS: "liveness",
        s.liveness_path: "liveness",
        s.readiness_path: "readiness",
    }
    return {**named, **(HEARTBEATS if s.dockerflow else {})}


def asked(case: Case, action: Action) -> str:
    """Return the kind of probe that a path asks the plugin for; an empty string for a path of the
    application."""
    path = action.path.partition("?")[0]
    known = questions(case)
    # A configured path takes precedence over a single check under another path
    # (probes/answers.py).
    return known.get(path) or known.get(path.rpartition("/")[0], "")


def probes_of(case: Case, *kinds: str) -> Iterator[tuple[str, ContainerProbe]]:
    for name in kinds or ("readiness", "liveness", "startup"):
        if name in case.container.probes:
            yield name, case.container.probes[name]


def right_port(case: Case) -> str | int | None:
    """Return the port that a probe should ask: the probe port, a declared port of gunicorn by its
    name if it has one, or the port that gunicorn binds. None if no port is known."""
    if case.probe_port is not None:
        return case.probe_port
    ours = case.ports
    declared = {name: n for name, n in case.container.ports.items() if ours is None or n in ours}
    named = [name for name in declared if not name.isdecimal()]
    if named:
        return "http" if "http" in named else named[0]
    if declared:
        return next(iter(declared.values()))
    return min(ours) if ours else None


@rule(
    "no-readiness",
    Severity.WARNING,
    "There is no readiness probe.",
    "A new pod gets requests before gunicorn listens, so each roll-out costs some. Nobody learns "
    "that a pod is not ready any more.",
    "Ask the plugin: `readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 5, "
    "failureThreshold: 1}`.",
)
def no_readiness(case: Case) -> Iterator[Hit]:
    """Find a container without a readiness probe."""
    if case.is_knative or "readiness" in case.container.probes:
        return
    port = right_port(case)
    patch = None
    if case.has_plugin and port is not None:
        probe: dict[str, Any] = {"httpGet": {"path": case.seen.settings.readiness_path}}
        probe["httpGet"]["port"] = port
        patch = Patch(container={"readinessProbe": {**probe, "periodSeconds": 5}})
        patch.container["readinessProbe"]["failureThreshold"] = 1
    yield Hit(
        case.container.line,
        f"container {case.container.name} has no readinessProbe",
        f"add one: httpGet {case.seen.settings.readiness_path}, periodSeconds 5, failureThreshold "
        "1",
        patch,
    )


@rule(
    "readiness-path",
    Severity.ERROR,
    "The readiness probe does not ask the path that turns red.",
    "Readiness stays green while the pod shuts down or is drained by hand, so a router that goes "
    "by it keeps sending.",
    "Ask `/readyz`, or set `grace_readiness_path` to the path that the probe asks.",
)
def readiness_path(case: Case) -> Iterator[Hit]:
    """Check the path of the readiness probe."""
    for _, probe in probes_of(case, "readiness"):
        if not case.has_plugin or probe.action.kind != "httpGet":
            return
        if not case.asks_gunicorn(probe.action):
            return
        path = probe.action.path.partition("?")[0]
        question = asked(case, probe.action)
        if question == "readiness" or "readiness_path" in case.seen.unseen:
            return
        wanted = case.seen.settings.readiness_path
        certain = question and case.seen.is_certain(
            "readiness_path", "liveness_path", "startup_path"
        )
        yield Hit(
            case.line("path", of=probe.action.table),
            f"readiness asks {path}, which "
            + (
                f"answers {question}: it stays 200"
                if question
                else f"the plugin does not turn red; that is {wanted}"
            ),
            f'ask {wanted}, or set GRACE_READINESS_PATH to "{path}"'
            if not question
            else f"ask {wanted}",
            Patch(container={"readinessProbe": {"httpGet": {"path": wanted}}}),
            Severity.ERROR if certain else Severity.WARNING,
        )


@rule(
    "liveness-path",
    Severity.ERROR,
    "Liveness asks what readiness asks.",
    "A pod that is not ready is restarted for it. With the plugin, a trigger or "
    "`gunicorn-grace drain` ends in a restart, which cuts off what the drain was to save. A "
    "database that is down restarts every pod at once.",
    "Ask `/livez`, which stays 200 through the shutdown.",
)
def liveness_path(case: Case) -> Iterator[Hit]:
    """Check the path of the liveness probe."""
    readiness = case.container.probes.get("readiness")
    for _, probe in probes_of(case, "liveness"):
        if probe.action.kind != "httpGet" or not case.asks_gunicorn(probe.action):
            return
        wanted = case.seen.settings.liveness_path
        path = probe.action.path.partition("?")[0]
        line = case.line("path", of=probe.action.table)
        patch = Patch(container={"livenessProbe": {"httpGet": {"path": wanted}}})
        if case.has_plugin and asked(case, probe.action) == "readiness":
            certain = case.seen.is_certain("readiness_path", "liveness_path")
            yield Hit(
                line,
                f"liveness asks {path}, which is readiness: 503 restarts the container",
                f"ask {wanted}",
                patch,
                Severity.ERROR if certain else Severity.WARNING,
            )
        elif (
            readiness is not None
            and readiness.action.kind == "httpGet"
            and readiness.action.path.partition("?")[0] == path
            and readiness.action.port == probe.action.port
            and asked(case, probe.action) != "liveness"
        ):
            yield Hit(
                line,
                f"liveness and readiness both ask {path}",
                f"ask {wanted} for liveness"
                if case.has_plugin
                else "give liveness a path of its own, which looks at nothing but the process",
                patch if case.has_plugin else None,
                Severity.WARNING if case.has_plugin else Severity.NOTE,
            )


@rule(
    "readiness-kind",
    Severity.WARNING,
    "The readiness probe is not `httpGet`.",
    "A socket that listens says nothing about readiness: it stays green through the whole delay. "
    "An `exec` probe starts a process in the container each time, and is slow where all are busy.",
    "Ask `/readyz` with `httpGet`.",
)
def readiness_kind(case: Case) -> Iterator[Hit]:
    """Find exec, tcpSocket and grpc as readiness probes."""
    for _, probe in probes_of(case, "readiness"):
        kind = probe.action.kind
        if kind == "httpGet" or case.is_knative:
            return
        port = right_port(case)
        wanted = case.seen.settings.readiness_path
        patch = None
        if case.has_plugin and port is not None:
            patch = Patch(
                container={
                    "readinessProbe": {kind: None, "httpGet": {"path": wanted, "port": port}}
                }
            )
        why = {
            "exec": "it starts a process each time",
            "tcpSocket": "it sees that something listens, and not that it is ready",
        }.get(kind, "gunicorn does not speak it")
        is_plain = Severity.NOTE if not case.has_plugin else None
        if kind == "exec" and wanted in " ".join(probe.action.command):
            is_plain = Severity.NOTE
        yield Hit(
            probe.action.line,
            f"readiness is {kind}: {why}",
            f"ask {wanted} with httpGet" if case.has_plugin else "ask a path with httpGet",
            patch,
            is_plain,
        )


@rule(
    "startup-probe",
    Severity.WARNING,
    "The boot is slow, and there is no start-up probe.",
    "A boot that takes longer than initialDelaySeconds is ended by liveness, again and again. One "
    "that takes less waits all the same, and so does each roll-out.",
    "Add `startupProbe: {httpGet: {path: /startupz, port: http}, periodSeconds: 1, "
    "failureThreshold: 60}`, and leave initialDelaySeconds out.",
)
def startup_probe(case: Case) -> Iterator[Hit]:
    """Find a long initialDelaySeconds that stands in for a start-up probe."""
    if "startup" in case.container.probes or case.is_knative:
        return
    for name, probe in probes_of(case, "liveness", "readiness"):
        if probe.initial_delay < SLOW_BOOT:
            continue
        port = right_port(case)
        patch = None
        if case.has_plugin and port is not None:
            path = case.seen.settings.startup_path
            most = max(60, probe.initial_delay * 2)
            patch = Patch(
                container={
                    "startupProbe": {
                        "httpGet": {"path": path, "port": port},
                        "periodSeconds": 1,
                        "failureThreshold": most,
                    }
                }
            )
        yield Hit(
            case.line("initialDelaySeconds", of=probe.table),
            f"{name} waits initialDelaySeconds {probe.initial_delay} for a slow boot",
            "add a startupProbe that asks every second",
            patch,
        )
        return


@rule(
    "liveness-period",
    Severity.WARNING,
    "The liveness probe has a shorter period of its own.",
    "A restart by liveness ends after it with SIGKILL, while the plugin counts on the longer one.",
    "Leave `livenessProbe.terminationGracePeriodSeconds` out, or make it as long as the pod's.",
)
def liveness_period(case: Case) -> Iterator[Hit]:
    """Check terminationGracePeriodSeconds of the liveness probe and of the start-up probe."""
    for name, probe in probes_of(case, "liveness", "startup"):
        if probe.grace is not None and probe.grace < case.period:
            yield Hit(
                case.line("terminationGracePeriodSeconds", of=probe.table),
                f"{name} restarts with terminationGracePeriodSeconds {probe.grace} < {case.period}",
                "leave it out",
                Patch(container={f"{name}Probe": {"terminationGracePeriodSeconds": None}}),
                None if case.has_plugin else Severity.NOTE,
            )
