"""Applies the rules to everything that was read, and sets aside the findings that an annotation
ignores."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ..manifest import Container, Workload
from ..manifest_yaml import Table
from ..routers import Router
from . import budget, ports, probing, process, rollout
from .case import Case, is_cloud_run
from .configuration import Configuration
from .documents import PART, SKIPPED, Input, is_part
from .findings import RULES, Finding, Rule, Severity, add
from .launch import read_launch
from .seen import see

__all__ = ["budget", "ports", "probing", "process", "rollout"]

IGNORE = "gunicorn-grace/ignore"
"""The annotation: ``rule: reason``, one a line or separated by ``;``."""
CONTAINER = "gunicorn-grace/container"
"""The annotation that names the container of gunicorn, if only its image shows that it runs
gunicorn."""
KNATIVE_PERIOD = 300
"""The default timeoutSeconds of a Knative revision, which is also the period of its pods; seconds
(config-defaults, ``revision-timeout-seconds``)."""

CLOUD_RUN_PERIOD = 10
"""The period of Cloud Run, whatever timeoutSeconds says; seconds
(https://cloud.google.com/run/docs/container-contract)."""

BAD_IGNORE = add(
    Rule(
        "ignore",
        Severity.WARNING,
        "An annotation ignores a rule without a reason, or one that does not exist.",
        "None. The rule is not ignored.",
        'Write `gunicorn-grace/ignore: "single-replica: a batch front end, used by one team"`.',
    )
)


@dataclass(frozen=True)
class Verdict:
    """The result of judging the input.

    :ivar findings: the findings, in the order of files and lines.
    :ivar judged: the containers that were judged, as text.
    :ivar ignored: the findings that an annotation ignores, each with the reason.
    """

    findings: tuple[Finding, ...]
    judged: tuple[str, ...] = ()
    ignored: tuple[tuple[Finding, str], ...] = ()

    def count(self, severity: Severity) -> int:
        """Return the number of findings with this severity."""
        return sum(finding.severity is severity for finding in self.findings)

    def fails(self, strict: bool = False) -> bool:
        """Whether the exit code is 1.

        :param strict: whether warnings count as errors.
        """
        return bool(self.count(Severity.ERROR) or (strict and self.count(Severity.WARNING)))


def judge(
    found: Input,
    configuration: Configuration | None = None,
    lags: Sequence[Router] = (),
    containers: Sequence[str] = (),
    *,
    plugin: str = "",
) -> Verdict:
    """Judge everything that was read.

    :param found: the input.
    :param configuration: the file of ``--config``.
    :param lags: the routers in front.
    :param containers: the names of containers that run gunicorn although their command may not show
        it.
    :param plugin: a sign that the plugin is loaded although the manifest may not show it; empty
        without one.
    """
    findings = list(found.findings)
    ignored: list[tuple[Finding, str]] = []
    judged: list[str] = []
    for workload in found.workloads:
        reasons, complaints = _ignored(workload)
        findings += complaints
        if is_part(workload.document) and not {*containers} & {c.name for c in workload.containers}:
            findings.append(_skipped(workload, PART, "render it first: kubectl kustomize"))
            continue
        cases = list(cases_of(workload, found, configuration, lags, containers, plugin=plugin))
        if not cases:
            findings.append(
                _skipped(
                    workload,
                    "nothing in it names gunicorn",
                    "if its image runs gunicorn, say which container: --container NAME, or the "
                    f"annotation {CONTAINER}",
                )
            )
        for case in cases:
            judged.append(f"{label_of(workload)}, container {case.container.name}")
            for finding in judge_case(case):
                if finding.rule.id in reasons:
                    ignored.append((finding, reasons[finding.rule.id]))
                else:
                    findings.append(finding)
    # A fault in the file of --config is found again for each container.
    unique = {(f.rule.id, f.source, f.line, f.what, f.container): f for f in findings}
    if configuration is not None:
        unique = {key: f for key, f in unique.items() if f.source != configuration.source} | {
            (*key[:4], ""): f for key, f in unique.items() if f.source == configuration.source
        }
    order = {source: n for n, source in enumerate(dict.fromkeys(f.source for f in findings))}
    findings = sorted(unique.values(), key=lambda f: (order[f.source], f.line))
    return Verdict(tuple(findings), tuple(judged), tuple(ignored))


def cases_of(
    workload: Workload,
    found: Input,
    configuration: Configuration | None = None,
    lags: Sequence[Router] = (),
    containers: Sequence[str] = (),
    *,
    plugin: str = "",
) -> Iterator[Case]:
    """Yield the containers of a workload that run gunicorn. The parameters are those of
    :func:`judge`."""
    if workload.kind == "Service":
        workload = replace(workload, period=_knative_period(workload))
    named = {*containers, str(_annotations(workload).get(CONTAINER, ""))}
    for container in workload.containers:
        launch = read_launch(container)
        if launch is None and container.name not in named and not _hints(container):
            continue
        seen = see(
            container, launch, workload.source, configuration, found.others, workload.namespace
        )
        seen.plugin = seen.plugin or plugin
        yield Case(workload, container, launch, seen, found.others, lags)


def judge_case(case: Case) -> Iterator[Finding]:
    """Yield the findings of all rules about one container."""
    for rule in list(RULES.values()):
        if rule.search is None:
            continue
        for hit in rule.search(case):
            yield Finding(
                rule,
                hit.severity or rule.severity,
                case.workload.source if hit.source is None else hit.source,
                hit.line,
                hit.what,
                hit.fix,
                label_of(case.workload),
                case.container.name,
                hit.patch,
            )


def label_of(workload: Workload) -> str:
    """Return the kind and the name of a workload, for messages."""
    return f"{workload.kind} {workload.name}"


def _knative_period(workload: Workload) -> int:
    if is_cloud_run(workload.document):
        return CLOUD_RUN_PERIOD
    seconds = workload.pod.get("timeoutSeconds")
    if isinstance(seconds, int) and not isinstance(seconds, bool) and seconds > 0:
        return seconds
    return KNATIVE_PERIOD


def _hints(container: Container) -> bool:
    """Whether a container seems to run gunicorn: by its hook, or, if it has no command of its own,
    by its environment or its image."""
    hook = " ".join(container.pre_stop.command) if container.pre_stop else ""
    if "gunicorn-grace" in hook:
        return True
    if container.command:
        return False
    variables = container.env_lines
    return "gunicorn" in container.image or any(
        name == "GUNICORN_CMD_ARGS"
        or name.startswith(("GUNICORN_", "GRACE_SHUTDOWN_", "GRACE_TERM"))
        for name in variables
    )


def _skipped(workload: Workload, why: str, fix: str) -> Finding:
    return Finding(
        SKIPPED,
        Severity.NOTE,
        workload.source,
        workload.line,
        f"{label_of(workload)}: {why}",
        fix,
        label_of(workload),
    )


def _annotations(workload: Workload) -> Table:
    """Return the annotations of the workload and of its pods together."""
    both = Table(workload.line)
    spec = workload.document.get("spec")
    template = spec.get("template") if isinstance(spec, Table) else None
    for item in (workload.document, template):
        metadata = item.get("metadata") if isinstance(item, Table) else None
        found = metadata.get("annotations") if isinstance(metadata, Table) else None
        if isinstance(found, Table):
            both.update(found)
            both.lines.update(found.lines)
    return both


def _ignored(workload: Workload) -> tuple[dict[str, str], list[Finding]]:
    """Return the ignored rules with their reasons, and findings about the annotation itself."""
    annotations = _annotations(workload)
    reasons: dict[str, str] = {}
    complaints = []
    for part in re.split(r"[;\n]", str(annotations.get(IGNORE) or "")):
        name, _, reason = (word.strip() for word in part.partition(":"))
        if not name:
            continue
        if name in RULES and reason:
            reasons[name] = reason
            continue
        what = f"{IGNORE}: {name!r} " + ("has no reason" if name in RULES else "is no rule")
        complaints.append(
            Finding(
                BAD_IGNORE,
                Severity.WARNING,
                workload.source,
                annotations.lines.get(IGNORE, workload.line),
                what,
                'write "rule: reason", with a rule of docs/reference/check.md',
                label_of(workload),
            )
        )
    return reasons, complaints
