"""Rules about the process: its command, its signal, its hook and its settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from ...shared import names
from ...shared.settings import LOCAL, OFF, PREFIX, TOKEN
from .budget import hook_patch
from .case import DOWN, Case
from .findings import Hit, Patch, Severity, rule

TOKEN_HEADER = "x-grace-token"
INITS = ("dumb-init", "s6-svscan", "supervisord")
"""Init programs that pass a signal on to every process below them."""
_URL = re.compile(r"(?:https?://)?([^\s/'\"=(]+)(/[^\s'\"]*)")
"""A URL in a command: host and port, path and query."""
_BASE = re.compile(
    r"(?:docker\.io/|(?:docker\.io/)?library/)?(python|debian|ubuntu|alpine|nginx|busybox)"
    r"(:[\w.-]+)?(@.*)?"
)


@rule(
    "shell",
    Severity.ERROR,
    "A shell stands between Kubernetes and gunicorn.",
    "SIGTERM goes to the shell, which as PID 1 ignores it. gunicorn learns nothing of the "
    "shutdown, "
    "and SIGKILL cuts off every request at the end of the period. Some shells put the last command "
    "in their own place, so it depends on the image: bash 5.2 does, dash 0.5.12 does not.",
    'Write `exec` before the command, `sh -c "exec gunicorn ..."`, or the command as a list '
    "without a shell.",
)
def shell(case: Case) -> Iterator[Hit]:
    """Find ``sh -c`` without ``exec``, and a whole command line in one word."""
    launch = case.launch
    if launch is None or not launch.script:
        return
    container = case.container
    key = "command" if launch.part < container.entry else "args"
    line = case.line(key)
    if not launch.shell:
        if launch.part == 0 and container.entry:
            yield Hit(
                line,
                f"command is one word with spaces, {_short(launch.script)}: there is no program of "
                "that name",
                "write each argument as an item of its own",
                Patch(container={"command": launch.script.split()})
                if not re.search(r"[\"'$&|;<>\\]", launch.script)
                else None,
            )
        return
    if launch.is_exec or any(part.rpartition("/")[2] in INITS for part in container.command):
        return
    trapped = re.search(r"\btrap\b", launch.script)
    goes_on = bool(launch.follows) and not trapped
    certain = goes_on and container.entry
    quick = launch.shell == "bash" and not launch.follows
    severity = Severity.ERROR if certain else Severity.NOTE if quick else Severity.WARNING
    why = (
        f"goes on after gunicorn ({launch.follows.strip()}), and never passes SIGTERM on"
        if goes_on
        else "may keep SIGTERM for itself"
    )
    patch = None
    if not launch.follows:
        parts = list(container.command)
        parts[launch.part] = _with_exec(launch.script, launch.at)
        own = parts[: container.entry] if key == "command" else parts[container.entry :]
        patch = Patch(container={key: own})
    yield Hit(
        line,
        f"{launch.shell} -c runs gunicorn without exec, so the shell {why}",
        "write exec before gunicorn" + ("; it has to be the last command" if goes_on else ""),
        patch,
        severity,
    )


def _with_exec(script: str, at: int) -> str:
    """Return the script with ``exec`` in front of the command that starts gunicorn.

    :param script: the script.
    :param at: the position in it at which gunicorn begins.
    """
    begin = max((m.end() for m in re.finditer(r"[;&|(\n]\s*", script[:at])), default=0)
    begin += len(script[begin:at]) - len(script[begin:at].lstrip())
    return f"{script[:begin]}exec {script[begin:]}"


def _short(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= 40 else text[:37] + "...")


@rule(
    "stop-signal",
    Severity.ERROR,
    "The container is stopped with another signal than SIGTERM.",
    "At SIGINT and SIGQUIT gunicorn ends at once and cuts off every request; at SIGHUP and others "
    "it does not end at all until SIGKILL.",
    "Leave `lifecycle.stopSignal` out. An image says the same with `STOPSIGNAL SIGTERM`.",
)
def stop_signal(case: Case) -> Iterator[Hit]:
    """Check ``lifecycle.stopSignal``."""
    signal = case.container.stop_signal
    if signal and signal != "SIGTERM":
        lifecycle = case.container.table.get("lifecycle")
        yield Hit(
            case.line("stopSignal", of=lifecycle),
            f"lifecycle.stopSignal {signal}",
            "leave it out, or write SIGTERM",
            Patch(container={"lifecycle": {"stopSignal": None}}),
        )


@rule(
    "trigger",
    Severity.ERROR,
    "The preStop hook asks for `?down=true`, and the plugin refuses it.",
    "The hook does nothing (403), so the clock begins only with SIGTERM, and the kubelet logs a "
    "FailedPreStopHook.",
    "Let the hook be `exec: {command: [gunicorn-grace, prestop]}`. An `httpGet` hook comes from "
    "the "
    'node and needs `grace_trigger = "token"` with the header `X-Grace-Token`.',
)
def trigger(case: Case) -> Iterator[Hit]:
    """Check whether ``grace_trigger`` lets the hook use ``?down=true``."""
    hook = case.hook
    if hook is None or "trigger" in case.seen.unseen or not case.has_plugin:
        return
    told = hook.path if hook.kind == "httpGet" else " ".join(hook.command)
    if DOWN not in told:
        return
    mode = case.seen.settings.trigger
    headers = {name.lower() for name, _ in hook.headers}
    if mode == OFF:
        why = 'grace_trigger is "off"'
    elif mode == LOCAL and hook.kind == "httpGet":
        why = 'it comes from the node, and grace_trigger is "local"'
    elif mode == TOKEN and TOKEN_HEADER not in headers and TOKEN_HEADER not in told.lower():
        why = 'grace_trigger is "token", and it sends no X-Grace-Token'
    else:
        return
    yield Hit(
        hook.line,
        f"preStop {hook.kind} with ?{DOWN} is refused: {why}",
        "let the hook be exec: gunicorn-grace prestop",
        Patch(container=hook_patch(case)),
        None if case.seen.is_certain("trigger") else Severity.WARNING,
    )


@rule(
    "trigger-path",
    Severity.ERROR,
    "The preStop hook asks for `?down=true` at a path that is not readiness.",
    "The hook does nothing, and nobody says so: that path answers as ever. The clock begins only "
    "with SIGTERM, so readiness turns red later than you counted on.",
    "Let the hook be `exec: {command: [gunicorn-grace, prestop]}`, or ask the path of readiness, "
    "`/readyz?down=true`.",
)
def trigger_path(case: Case) -> Iterator[Hit]:
    """Compare the path of ``?down=true`` with ``grace_readiness_path``."""
    hook = case.hook
    if hook is None or not case.has_plugin or "readiness_path" in case.seen.unseen:
        return
    if hook.kind == "httpGet":
        asked = [hook.path] if case.asks_gunicorn(hook) else []
    else:
        elsewhere = {f":{port}" for port in case.others_ports}
        found = _URL.findall(" ".join(hook.command))
        asked = [path for host, path in found if not host.endswith(tuple(elsewhere))]
    wanted = case.seen.settings.readiness_path
    right = {wanted, *(("/__heartbeat__",) if case.seen.settings.dockerflow else ())}
    for path, _, query in (text.partition("?") for text in asked):
        if DOWN not in query or path in right:
            continue
        certain = case.seen.is_certain("readiness_path", "dockerflow")
        yield Hit(
            hook.line,
            f"preStop asks {path}?{DOWN}, and only {wanted} takes it",
            f"let the hook be exec: gunicorn-grace prestop, or ask {wanted}",
            Patch(container=hook_patch(case)),
            None if certain else Severity.WARNING,
        )


@rule(
    "hook-tool",
    Severity.NOTE,
    "The preStop hook runs a program that the image does not have by itself.",
    "The hook fails, the kubelet logs a FailedPreStopHook, and the clock begins with SIGTERM.",
    "Install it in the image: the package gunicorn-grace brings `gunicorn-grace prestop`, which "
    "needs no `curl`.",
)
def hook_tool(case: Case) -> Iterator[Hit]:
    """Find hooks that run curl or gunicorn-grace in images that are known not to have them."""
    hook = case.hook
    if hook is None or hook.kind != "exec":
        return
    told, image = " ".join(hook.command), case.container.image
    base = _BASE.fullmatch(image)
    lean = re.search(r"distroless|-slim|alpine|/distroless/", image) and (
        base is not None or "distroless" in image
    )
    missing = []
    if lean and re.search(r"(^|[\s/;&|])curl\s", told + " "):
        missing.append("curl")
    if (
        base is not None
        and "gunicorn-grace" in told
        and "install" not in " ".join(case.container.command)
    ):
        missing.append("gunicorn-grace")
    for tool in missing:
        yield Hit(
            hook.line, f"preStop runs {tool}, and {image} has none", "install it in the image"
        )


@rule(
    "token-in-clear",
    Severity.WARNING,
    "The trigger's token stands in the manifest.",
    "Whoever can read the manifest or the pod can take the pod out of rotation.",
    "Take `GRACE_TRIGGER_TOKEN` from a Secret (`valueFrom.secretKeyRef`), or mount it and set "
    "`file:/path`. A header of an `httpGet` hook cannot come from a Secret: use "
    "`gunicorn-grace prestop`, which needs no token.",
)
def token_in_clear(case: Case) -> Iterator[Hit]:
    """Find a token that is written as a value or as a header."""
    value = case.container.env.get("GRACE_TRIGGER_TOKEN", "")
    if value and not value.startswith("file:") and "$" not in value:
        yield Hit(
            case.container.env_lines["GRACE_TRIGGER_TOKEN"],
            "GRACE_TRIGGER_TOKEN is written in clear",
            "take it from a Secret: valueFrom.secretKeyRef",
        )
    hook = case.hook
    if hook is not None and any(name.lower() == TOKEN_HEADER for name, _ in hook.headers):
        yield Hit(
            case.line("httpHeaders", of=hook.table),
            "the hook's header X-Grace-Token is written in clear",
            "let the hook be exec: gunicorn-grace prestop, which needs no token",
            Patch(container=hook_patch(case)),
        )


@rule(
    "setting",
    Severity.ERROR,
    "A setting of the plugin has a value that it refuses.",
    "gunicorn does not boot, so the pod never gets ready.",
    "Give it a value that [settings.md](settings.md) allows.",
)
def setting(case: Case) -> Iterator[Hit]:
    """Find values that the plugin refuses."""
    for source, line, what in case.seen.problems:
        what, _, fix = what.rpartition(": ")
        yield Hit(line, what, fix, source=source)


@rule(
    "unknown-setting",
    Severity.WARNING,
    "A variable looks like a setting of the plugin, and is none.",
    "The plugin does not read it, so the default counts. gunicorn logs a warning at boot.",
    "Write the name as in [settings.md](settings.md).",
)
def unknown_setting(case: Case) -> Iterator[Hit]:
    """Find ``GRACE_`` variables that are not settings. gunicorn ignores them."""
    if not case.has_plugin:
        return
    for name, line in case.container.env_lines.items():
        if not names.looks_like_a_setting(name):
            continue
        meant = names.variable_meant(name)
        yield Hit(
            line,
            f"{name} is no setting",
            f"write {meant}" if meant else "leave it out, or give it another prefix",
            _renamed(case, name, meant) if meant else None,
        )


def _renamed(case: Case, name: str, right: str) -> Patch | None:
    value = case.container.env.get(name)
    if value is None:
        return None
    variables: list[dict[str, Any]] = [{"name": name, "$patch": "delete"}]
    if right not in case.container.env_lines:
        variables.append({"name": right, "value": value})
    return Patch(container={"env": variables})


@rule(
    "not-seen",
    Severity.NOTE,
    "Some settings are elsewhere, and are not seen.",
    "None by itself. What is found beside it may not be true of the pod, so no error rests on a "
    "value that is not seen.",
    "Show the configuration file with `--config`; put the ConfigMap into the same input.",
)
def not_seen(case: Case) -> Iterator[Hit]:
    """Find settings in envFrom, valueFrom and configuration files that are not in the input."""
    for line, what in case.seen.elsewhere:
        yield Hit(line, f"not seen: {what}", "put it into the input")
    for name in sorted(case.seen.unseen):
        source, line = case.seen.lines.get(name, (case.workload.source, 0))
        shown = name if name == "graceful_timeout" else PREFIX + name
        variable = case.container.env_lines.get(shown.upper(), 0)
        yield Hit(
            line or variable or case.container.line,
            f"the value of {shown} is not seen",
            "write it as a value",
            source=source,
        )


@rule(
    "no-plugin",
    Severity.NOTE,
    "Nothing shows that gunicorn-grace is loaded.",
    "Plain gunicorn closes its sockets when SIGTERM arrives, while routers still send: each "
    "roll-out costs requests.",
    "Load it: `gunicorn -c python:gunicorn_grace.conf app:app`. Where the image loads it, show its "
    "configuration with `--config`.",
)
def no_plugin(case: Case) -> Iterator[Hit]:
    """Find gunicorn without the plugin, as far as the input shows it."""
    if not case.has_plugin:
        yield Hit(
            case.container.line,
            f"container {case.container.name} runs gunicorn, and nothing shows the plugin",
            "add -c python:gunicorn_grace.conf, or show the configuration with --config",
        )
