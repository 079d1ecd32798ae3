"""Reads the input, from files and standard input, and sorts out the objects to judge.

Every file results in objects or findings, whatever its content. Nothing in it is executed.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..manifest import Workload, read_workload
from ..manifest_yaml import ManifestError, Table, find_objects, parse_documents
from . import budget, ports, probing, process, rollout
from .findings import Finding, Rule, Severity, add

FIRST = (budget, ports, probing, process, rollout)
"""The modules whose rules come before those of this module. Importing them here keeps that order,
whichever module is imported first."""

LARGEST = 4 * 1024 * 1024
"""The largest file that is read, in bytes. An object in Kubernetes has at most 1.5 MiB (etcd's
limit)."""

KINDS = (
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "ReplicaSet",
    "ReplicationController",
    "Pod",
    "Rollout",
)
KNATIVE = "serving.knative.dev/"
PASSING = ("Job", "CronJob")
"""Kinds whose pods end by themselves. Such pods serve no requests, so they are not judged."""

UNREADABLE = add(
    Rule(
        "unreadable",
        Severity.ERROR,
        "The file cannot be read as YAML.",
        "Nothing in it was looked at.",
        "Mend the YAML. Render a Helm template first, `helm template .`, and Kustomize files with "
        "`kubectl kustomize .`; `gunicorn-grace check -` reads what they print.",
    )
)
INVALID = add(
    Rule(
        "invalid-manifest",
        Severity.ERROR,
        "A value has a type or a size that Kubernetes refuses.",
        "The API server refuses the object, so the old pods go on running, or none are there.",
        "Write the value as Kubernetes expects it; strings in quotes, lists as lists.",
    )
)
SKIPPED = add(
    Rule(
        "not-judged",
        Severity.NOTE,
        "The object is not judged.",
        "Whatever is wrong with it is not seen here.",
        "Nothing needs to be done for a Job, because its pods serve nobody. Render templates first."
        " Name a container that runs gunicorn from its image with `--container NAME`.",
    )
)


@dataclass
class Input:
    """Everything that was read.

    :ivar workloads: the objects that have pods, in their order.
    :ivar others: the other objects, each with the name of its file.
    :ivar findings: findings about input that could not be read or is not judged.
    """

    workloads: list[Workload] = field(default_factory=list)
    others: list[tuple[str, Table]] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def read_all(names: Iterable[str]) -> Input:
    """Read files. A file that cannot be read results in a finding.

    :param names: the names of the files; ``-`` is standard input.
    """
    found = Input()
    for name in names:
        source = "<stdin>" if name == "-" else name
        try:
            if name == "-" and sys.stdin is None:
                raise ValueError("standard input is closed")
            if name == "-":
                raw = sys.stdin.buffer.read(LARGEST + 1)
            else:
                with Path(name).open("rb") as file:
                    raw = file.read(LARGEST + 1)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            found.findings.append(_unreadable(source, 0, reason))
            continue
        read_text(found, raw, source)
    return found


def read_text(found: Input, raw: bytes, source: str) -> None:
    """Read one file.

    :param found: the objects and findings are added to it.
    :param raw: the bytes of the file.
    :param source: the name of the file.
    """
    if len(raw) > LARGEST:
        found.findings.append(
            _unreadable(source, 0, f"more than {LARGEST // 1024 // 1024} MiB: split it")
        )
        return
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        found.findings.append(_unreadable(source, 0, "it is not UTF-8 text"))
        return
    try:
        documents = parse_documents(text, source)
    except ManifestError as error:
        what = error.what
        if "{{" in text:
            found.findings.append(
                Finding(SKIPPED, Severity.NOTE, source, error.line, what, "render it first")
            )
        else:
            found.findings.append(_unreadable(source, error.line, what))
        return
    for document in documents:
        for item in _objects(document, source, found):
            _sort(item, source, found)


def _objects(document: object, source: str, found: Input) -> Iterator[Table]:
    """Yield the Kubernetes objects in a document. Other YAML is ignored."""
    if not isinstance(document, Table) or not isinstance(document.get("kind"), str):
        return
    try:
        yield from find_objects([document], source)
    except ManifestError as error:
        found.findings.append(_invalid(source, error))


def _sort(item: Table, source: str, found: Input) -> None:
    kind = item.get("kind")
    version = str(item.get("apiVersion", ""))
    label = f"{kind} {name_of(item)}"

    def skip(why: str, fix: str) -> None:
        found.findings.append(
            Finding(SKIPPED, Severity.NOTE, source, item.line, f"{label}: {why}", fix, label)
        )

    if kind in PASSING:
        skip("its pods end by themselves and serve nobody", "nothing needs to be done")
        return
    is_knative = kind == "Service" and version.startswith(KNATIVE)
    if kind not in KINDS and not is_knative:
        found.others.append((source, item))
        return
    spec = item.get("spec")
    if kind == "Rollout" and isinstance(spec, Table) and "workloadRef" in spec:
        skip("its pods are described by another object", "check that one")
        return
    try:
        found.workloads.append(read_workload(item, source))
    except ManifestError as error:
        if is_part(item):
            skip(PART, "render it first: kubectl kustomize")
        elif re.search(r"\{\{|\$\{|\$\(", error.what):
            skip(f"a template: {error.what}", "render it first")
        else:
            found.findings.append(_invalid(source, error, label))


PART = "a part of an object, such as a patch"


def is_part(item: Table) -> bool:
    """Whether an object is incomplete, such as a patch of Kustomize. It is if a container has no
    image and there is no selector, or if there are no containers. The API server requires all of
    them."""
    spec = item.get("spec")
    if not isinstance(spec, Table):
        return True
    template = item if item.get("kind") == "Pod" else spec.get("template")
    pod = template.get("spec") if isinstance(template, Table) else None
    containers = pod.get("containers") if isinstance(pod, Table) else None
    if isinstance(containers, list) and containers:
        has_image = all(isinstance(c, Table) and "image" in c for c in containers)
    else:
        has_image = False
    selects = "selector" in spec or item.get("kind") in ("Pod", "ReplicationController", "Service")
    return not has_image and not (selects and containers)


def name_of(item: Table) -> str:
    """Return the name of an object, for messages."""
    metadata = item.get("metadata")
    name = metadata.get("name") if isinstance(metadata, Table) else None
    return name if isinstance(name, str) else "(no name)"


def _unreadable(source: str, line: int, what: str) -> Finding:
    return Finding(UNREADABLE, Severity.ERROR, source, line, what, "mend it, or leave it out")


def _invalid(source: str, error: ManifestError, label: str = "") -> Finding:
    return Finding(
        INVALID,
        Severity.ERROR,
        source,
        error.line,
        error.what,
        "write it as Kubernetes expects it",
        label,
    )
