"""Rules about the number of pods: during a roll-out, when a node is drained, and in the disruption
budget."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..manifest import Workload
from ..manifest_yaml import Table
from .case import Case
from .findings import Hit, Patch, Severity, rule

SCALED = ("Deployment", "StatefulSet", "ReplicaSet", "ReplicationController", "Rollout")
ROLLED = ("Deployment", "StatefulSet")
AUTOSCALERS = ("HorizontalPodAutoscaler", "ScaledObject")


def _namespace(item: Table) -> str:
    metadata = item.get("metadata")
    return str(metadata.get("namespace") or "") if isinstance(metadata, Table) else ""


def _same_namespace(case: Case, item: Table) -> bool:
    ours, its = case.workload.namespace, _namespace(item)
    return ours == its or not ours or not its


def _is_autoscaled(case: Case) -> bool:
    for _, item in case.others:
        spec = item.get("spec")
        target = spec.get("scaleTargetRef") if isinstance(spec, Table) else None
        if (
            item.get("kind") in AUTOSCALERS
            and isinstance(target, Table)
            and target.get("name") == case.workload.name
            and target.get("kind", "Deployment") == case.workload.kind
            and _same_namespace(case, item)
        ):
            return True
    return False


def labels_of(workload: Workload) -> dict[str, str]:
    """Return the labels of a workload's pods."""
    spec = workload.document.get("spec")
    template = spec.get("template") if isinstance(spec, Table) else None
    metadata = template.get("metadata") if isinstance(template, Table) else None
    labels = metadata.get("labels") if isinstance(metadata, Table) else None
    return {str(k): str(v) for k, v in labels.items()} if isinstance(labels, Table) else {}


def _covers(selector: object, labels: dict[str, str]) -> bool:
    """Whether a selector chooses pods with these labels. Its ``matchExpressions`` are assumed to
    match."""
    if not isinstance(selector, Table):
        return False
    wanted = selector.get("matchLabels")
    if not isinstance(wanted, Table):
        return True
    return all(labels.get(str(key)) == str(value) for key, value in wanted.items())


@rule(
    "single-replica",
    Severity.WARNING,
    "There is one pod.",
    "Nobody answers while it is moved: when its node is drained, and with a StatefulSet at each "
    "roll-out. No shutdown, however graceful, helps with that.",
    "Run two pods at least. Where an autoscaler or somebody else sets the number, ignore this "
    "rule.",
)
def single_replica(case: Case) -> Iterator[Hit]:
    """Find a workload with a single pod."""
    workload = case.workload
    if workload.kind not in SCALED or workload.replicas != 1 or _is_autoscaled(case):
        return
    spec = workload.document.get("spec")
    written = isinstance(spec, Table) and spec.get("replicas") is not None
    yield Hit(
        case.line("replicas", of=spec) if isinstance(spec, Table) else workload.line,
        "replicas is 1" if written else "replicas is not set: 1",
        "run two at least",
        None,
        Severity.WARNING if written else Severity.NOTE,
    )


def _resolve(amount: str, replicas: int, up: bool) -> int:
    if amount.endswith("%"):
        share = int(amount[:-1]) * replicas / 100
        return math.ceil(share) if up else math.floor(share)
    return int(amount)


@rule(
    "all-at-once",
    Severity.WARNING,
    "A roll-out takes every pod at once.",
    "Nobody answers from the moment the old pods go until the new ones are ready.",
    "Roll out with `maxUnavailable: 0` and `maxSurge: 1`, where the old and the new version can "
    "run side by side.",
)
def all_at_once(case: Case) -> Iterator[Hit]:
    """Find ``Recreate``, and a maxUnavailable that is as large as the number of pods."""
    workload = case.workload
    spec = workload.document.get("spec")
    if workload.kind not in ROLLED or not isinstance(spec, Table) or not workload.replicas:
        return
    line = case.line("strategy", "updateStrategy", of=spec)
    if workload.strategy == "Recreate":
        yield Hit(line, "strategy Recreate", "use RollingUpdate, if two versions can run together")
        return
    if workload.strategy != "RollingUpdate" or (
        workload.replicas == 1 and (workload.kind == "StatefulSet")
    ):
        return
    gone = _resolve(workload.max_unavailable, workload.replicas, up=False)
    more = _resolve(workload.max_surge, workload.replicas, up=True)
    if workload.kind == "Deployment" and not gone and not more:
        gone = 1
    if gone < workload.replicas:
        return
    patch = None
    if workload.kind == "Deployment":
        patch = Patch(spec={"strategy": {"rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}}})
    yield Hit(
        line,
        f"maxUnavailable {workload.max_unavailable} of {workload.replicas} replicas",
        "set maxUnavailable to 0 and maxSurge to 1",
        patch,
    )


@rule(
    "no-disruption-budget",
    Severity.NOTE,
    "No PodDisruptionBudget in the input covers the pods.",
    "Draining nodes can take all pods at the same time.",
    "Add a PodDisruptionBudget with `maxUnavailable: 1` that selects the pods.",
)
def no_disruption_budget(case: Case) -> Iterator[Hit]:
    """Find workloads that no PodDisruptionBudget of the input covers."""
    if case.workload.kind not in SCALED or case.workload.replicas < 2:
        return
    labels = labels_of(case.workload)
    for _, item in case.others:
        spec = item.get("spec")
        if (
            item.get("kind") == "PodDisruptionBudget"
            and isinstance(spec, Table)
            and _same_namespace(case, item)
            and _covers(spec.get("selector"), labels)
        ):
            return
    yield Hit(
        case.workload.line,
        f"no PodDisruptionBudget covers {case.workload.kind} {case.workload.name}",
        "add one with maxUnavailable: 1",
    )
