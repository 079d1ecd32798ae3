"""``--fix``: makes a strategic-merge patch for each object that mends what can be mended.

One finding at a time is mended in a copy, and the rules are then applied again. So the fixes never
contradict each other, and the effect of a patch is known before it is printed.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from ..manifest import Workload, read_workload
from ..manifest_yaml import ManifestError, parse_documents
from ..routers import Router
from .configuration import Configuration
from .documents import Input
from .findings import Finding, Severity
from .judging import Verdict, judge

MOST_STEPS = 60
"""The largest number of findings of one object that are mended. If there are more, two fixes undo
each other."""

MERGED_BY = {"containers": "name", "env": "name", "ports": "containerPort"}
"""The lists that Kubernetes merges item by item, and the key that names an item
(``patchMergeKey`` in k8s.io/api/core/v1/types.go)."""

LAST = ("budget", "period")
"""The rules about sums, whose findings are mended last."""

OWN_KINDS = ("Rollout", "Service")
"""Kinds that are not built into Kubernetes. A patch replaces their lists as a whole."""


@dataclass(frozen=True)
class Fixed:
    """The result of ``--fix``.

    :ivar text: the patches, as YAML.
    :ivar left: the errors and warnings that the patches do not mend.
    """

    text: str
    left: tuple[Finding, ...]


def fix(
    found: Input,
    configuration: Configuration | None = None,
    lags: Sequence[Router] = (),
    containers: Sequence[str] = (),
) -> Fixed:
    """Make the patches.

    :param found: the input.
    :param configuration: the file of ``--config``.
    :param lags: the routers in front.
    :param containers: the names of containers that run gunicorn.
    """
    patches: list[dict[str, Any]] = []
    left = [finding for finding in found.findings if _asks(finding)]
    for workload in found.workloads:

        def judged(of: Workload) -> Verdict:
            return judge(Input([of], found.others), configuration, lags, containers)

        mended = workload
        patch: dict[str, Any] = {}
        for _ in range(MOST_STEPS):
            mendable = [f for f in judged(mended).findings if _asks(f) and f.patch]
            # The sum comes last, because the other fixes change parts of it.
            finding = min(mendable, key=lambda f: f.rule.id in LAST, default=None)
            if finding is None or workload.name == "(no name)":
                break
            step = _whole(mended, finding)
            try:
                after = _plain(mended.document)
                merge(after, step)
                mended = _read_again(after, workload)
            except (ManifestError, RecursionError):
                # The document is nested so deeply that it can be read but not written.
                break
            patch = combine(patch, step)
        if patch:
            patches.append(_written(patch, mended))
        left += [finding for finding in judged(mended).findings if _asks(finding)]
    text = yaml.safe_dump_all(patches, sort_keys=False, width=100) if patches else ""
    return Fixed(text, tuple(left))


def _asks(finding: Finding) -> bool:
    return finding.severity is not Severity.NOTE


def _whole(workload: Workload, finding: Finding) -> dict[str, Any]:
    """Return the patch of a finding as a patch of the whole object."""
    patch = finding.patch
    assert patch is not None
    pod: dict[str, Any] = dict(patch.pod)
    if patch.container:
        pod["containers"] = [{"name": finding.container, **patch.container}]
    spec: dict[str, Any] = dict(patch.spec)
    if pod:
        spec = {**spec, **(pod if workload.kind == "Pod" else {"template": {"spec": pod}})}
    return {"spec": spec}


def _read_again(document: dict[str, Any], workload: Workload) -> Workload:
    """Return the workload after a step. Its line numbers have no meaning, because they refer to a
    text that is never shown."""
    (again,) = parse_documents(yaml.safe_dump(document, sort_keys=False), workload.source)
    return replace(read_workload(again, workload.source), line=workload.line)


def _written(patch: dict[str, Any], mended: Workload) -> dict[str, Any]:
    """Return the patch as a document that names its object."""
    metadata: dict[str, Any] = {"name": mended.name}
    if mended.namespace:
        metadata["namespace"] = mended.namespace
    if mended.kind in OWN_KINDS:
        pod = patch["spec"].get("template", {}).get("spec", {})
        if "containers" in pod:
            pod["containers"] = _plain(mended.pod["containers"])
    return {
        "apiVersion": str(mended.document.get("apiVersion", "apps/v1")),
        "kind": mended.kind,
        "metadata": metadata,
        **patch,
    }


def _plain(value: Any) -> Any:
    """Return a plain copy of a value, without line numbers. It has no shared parts, because YAML
    would write them as aliases."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value


def merge(target: dict[str, Any], patch: dict[str, Any]) -> None:
    """Apply a strategic-merge patch to a plain object, as Kubernetes does."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, dict):
            inner = target.get(key)
            if not isinstance(inner, dict):
                inner = target[key] = {}
            merge(inner, value)
        elif isinstance(value, list) and key in MERGED_BY:
            items = target.get(key)
            target[key] = _merged(items if isinstance(items, list) else [], value, MERGED_BY[key])
        else:
            target[key] = copy.deepcopy(value)


def _merged(items: list[Any], changes: list[dict[str, Any]], by: str) -> list[Any]:
    merged = list(items)
    for change in changes:
        there = next(_at(merged, change, by), None)
        if change.get("$patch") == "delete":
            if there is not None:
                del merged[there]
        elif there is None:
            item: dict[str, Any] = {}
            merge(item, change)
            merged.append(item)
        else:
            merge(merged[there], change)
    return merged


def _at(items: list[Any], change: dict[str, Any], by: str) -> Iterator[int]:
    for number, item in enumerate(items):
        if isinstance(item, dict) and item.get(by) == change.get(by):
            yield number


def combine(first: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    """Return one patch that has the effect of two patches, applied one after the other."""
    whole = dict(first)
    for key, value in then.items():
        before = whole.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            whole[key] = combine(before, value)
        elif isinstance(value, list) and key in MERGED_BY and isinstance(before, list):
            items = list(before)
            for change in value:
                there = next(_at(items, change, MERGED_BY[key]), None)
                if there is None:
                    items.append(change)
                else:
                    items[there] = combine(items[there], change)
            whole[key] = items
        else:
            whole[key] = copy.deepcopy(value)
    return whole
