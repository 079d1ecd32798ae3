"""The options of ``rehearse`` that describe the platform and the load, and their values in a plan.

Each value comes from the command line, from a manifest or from the defaults, in this order.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from ...operate.manifest import Workload

_Command = TypeVar("_Command", bound=Callable[..., Any])

_OPTIONS = (
    click.option(
        "-f",
        "--manifest",
        metavar="FILE",
        help="Take the platform's values from a Deployment or StatefulSet; - is stdin. Its exec "
        "hook runs on this machine.",
    ),
    click.option(
        "--workload", metavar="NAME", help="Name of the workload, if the manifest has several."
    ),
    click.option(
        "--slow-node",
        metavar="SHARE:SECONDS",
        help="Add a node that has this share of the traffic and this lag.",
    ),
    click.option(
        "--readiness",
        metavar="PROBE",
        help="Readiness probe: `/readyz period=5 timeout=1 failure=1 success=1 delay=0`.",
    ),
    click.option(
        "--liveness",
        metavar="PROBE",
        help="Liveness probe, written the same way. A container that fails it is restarted.",
    ),
    click.option(
        "--startup",
        metavar="PROBE",
        help="Start-up probe, written the same way. The other probes wait until it passes.",
    ),
    click.option("--rollout", is_flag=True, help="Replace every instance instead of scaling down."),
    click.option(
        "--max-surge", metavar="N|N%", help="Instances above the wanted number.  [default: 25%]"
    ),
    click.option(
        "--max-unavailable", metavar="N|N%", help="Instances that may be missing.  [default: 25%]"
    ),
    click.option("--min-ready", type=float, help="minReadySeconds.  [default: 0]"),
    click.option(
        "--requests",
        "request_file",
        metavar="FILE",
        help="File with the requests to send, one per line; see docs/reference/rehearsal.md.",
    ),
    click.option(
        "--think", default=0.0, help="Seconds that a kept-alive connection rests between requests."
    ),
    click.option(
        "--clients", default=10, help="Clients that share the load, each on its own node."
    ),
)


def platform_options(command: _Command) -> _Command:
    """Add the options to a click command, which gets them as keyword arguments."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def resolve(
    given: Mapping[str, Any], explicit: Callable[[str], bool], tell: Callable[[str], None]
) -> dict[str, Any]:
    """Compute the fields of a ``Plan`` from the options of the platform and the load.

    :param given: all parameters of the command.
    :param explicit: returns whether a parameter was given on the command line. It then overrides
        the manifest.
    :param tell: called with a line for each part of the manifest that is not played as written.

    :raises PlanFailed: an option, the manifest or the file of requests is wrong. The message is one
        line.
    """
    from ..errors import PlanFailed

    try:
        return _resolve_fields(given, explicit, tell)
    except ValueError as error:
        raise PlanFailed(str(error)) from error


def _resolve_fields(
    given: Mapping[str, Any], explicit: Callable[[str], bool], tell: Callable[[str], None]
) -> dict[str, Any]:
    from ..errors import PlanFailed
    from ..kubernetes.deletion import Exec
    from ..kubernetes.probing import KubeletProbe, ProbeKind
    from ..kubernetes.rollout import Rollout
    from ..kubernetes.routing import Lag

    routing = Lag.parse(given["lag"], given["slow_node"])
    fields: dict[str, Any] = {
        "lag": routing.longest,
        "routing": None if routing.low == routing.longest else routing,
        "requests": _read_requests(given, explicit),
        "think": given["think"],
        "clients": given["clients"],
    }
    asked = {
        kind: KubeletProbe.parse(text)
        for kind in ProbeKind
        if (text := given[kind.value]) is not None
    }
    rollout = Rollout()
    if given["manifest"] is not None:
        played = _read_manifest(given, tell)
        for note in played.notes:
            tell(note)
        asked = {**played.probes, **asked}
        rollout = played.rollout
        fields.update(
            {"instances": played.instances} if not explicit("instances") else {},
            env={**played.env, **given_env(given)},
        )
        if not explicit("period"):
            fields["period"] = played.period
        if not explicit("prestop"):
            fields["pre_stop"] = played.pre_stop
            if isinstance(played.pre_stop, Exec):
                tell(
                    f"-f {given['manifest']}: its preStop hook runs on this machine, as this user: "
                    f"{shlex.join(played.pre_stop.command)}"
                )
    if "pre_stop" not in fields:
        fields["pre_stop"] = _parse_hook(given["prestop"])
    if asked:
        fields["probes"] = asked
    written = {
        "max_surge": given["max_surge"],
        "max_unavailable": given["max_unavailable"],
        "min_ready": given["min_ready"],
    }
    changed = {name: value for name, value in written.items() if value is not None}
    if changed:
        rollout = Rollout(**{**vars(rollout), **changed, "in_order": False})
    if given["rollout"]:
        fields["rollout"] = rollout
    elif changed:
        name = next(iter(changed)).replace("_", "-")
        raise PlanFailed(f"--{name} applies only to a roll-out: add --rollout")
    return fields


def given_env(given: Mapping[str, Any]) -> dict[str, str]:
    """Return the environment variables from the command line, which override the manifest."""
    return {} if given["delay"] is None else {"GRACE_SHUTDOWN_DELAY": f"{given['delay']:g}"}


def _parse_hook(text: str) -> Any:
    from ..errors import PlanFailed
    from ..kubernetes.deletion import as_hook

    try:
        return as_hook(shlex.split(text)) or ()
    except ValueError as error:
        raise PlanFailed(f"--prestop {text}: {error}") from error


def _read_manifest(given: Mapping[str, Any], tell: Callable[[str], None]) -> Any:
    from ..errors import PlanFailed

    try:
        from ...operate.manifest import choose, read
        from ...operate.manifest_yaml import ManifestError
    except ModuleNotFoundError as error:
        if error.name != "yaml":
            raise
        raise PlanFailed("PyYAML is missing: pip install 'gunicorn-grace[rehearse]'") from error
    from ..kubernetes.deployment import played

    name = given["manifest"]
    source = "<stdin>" if name == "-" else name
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        workload = choose(read(text, source), source, given["workload"])
        _judge(text, source, workload, given["config"], tell)
        return played(workload, rolled_out=given["rollout"])
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise PlanFailed(f"-f {name}: {reason or error}") from error
    except ManifestError as error:
        raise PlanFailed(str(error)) from error


def _judge(
    text: str, source: str, workload: Workload, config: str | None, tell: Callable[[str], None]
) -> None:
    """Report the errors and warnings that the rules of ``gunicorn-grace check`` find in a workload.
    A rehearsal plays a manifest on one machine, so it cannot find all of them itself."""
    from ...operate.check.configuration import ConfigurationUnreadable, read_configuration
    from ...operate.check.documents import Input, read_text
    from ...operate.check.findings import Severity
    from ...operate.check.judging import judge
    from ...operate.check.output import place, printable
    from ..errors import PlanFailed

    try:
        configuration = None if config is None else read_configuration(config)
    except ConfigurationUnreadable as error:
        raise PlanFailed(str(error)) from error
    found = Input()
    read_text(found, text.encode(), source)
    found.workloads = [
        each for each in found.workloads if (each.kind, each.name) == (workload.kind, workload.name)
    ]
    found.findings = []
    verdict = judge(
        found, configuration, containers=[workload.serving().name], plugin="the rehearsal"
    )
    for finding in verdict.findings:
        if finding.severity is not Severity.NOTE:
            tell(
                printable(
                    f"{place(finding)}: {finding.severity.value}: {finding.what}; {finding.fix} "
                    f"({finding.rule.page})"
                )
            )


def _read_requests(given: Mapping[str, Any], explicit: Callable[[str], bool]) -> list[Any]:
    """Return the requests of ``--requests`` and ``--path``. The default path is used only without a
    file."""
    from ..errors import PlanFailed
    from ..load.requests import parse_line, parse_lines

    found = []
    name = given["request_file"]
    if name is not None:
        file = Path(name)
        try:
            text = file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
            raise PlanFailed(f"--requests {name}: {reason or error}") from error
        found = parse_lines(text, name, lambda path: (file.parent / path).read_bytes())
    if name is None or explicit("paths"):
        for line in given["paths"]:
            try:
                found.append(parse_line(line, lambda path: Path(path).read_bytes()))
            except ValueError as error:
                raise PlanFailed(f"--path {line}: {error}") from error
    return found
