"""The next step of the Deployment controller in a rolling update, computed from counts of pods.

A roll-out is harder on a service than a scale-down. Pods come and go at once, several times in a
row; their number depends on ``maxSurge``, ``maxUnavailable`` and ``minReadySeconds``. The source is
pkg/controller/deployment/rolling.go and, for the numbers,
pkg/controller/deployment/util/deployment_util.go (NewRSNewReplicas, ResolveFenceposts).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Rollout:
    """How all pods are replaced, with the defaults of Kubernetes.

    :ivar max_surge: pods above the wanted number: a number, or a share such as ``25%``, which is
        rounded up.
    :ivar max_unavailable: pods that may be missing: a number, or a share, which is rounded down.
    :ivar min_ready: minReadySeconds, for which a pod must have been ready to count as available.
    :ivar in_order: whether to replace one pod after the other. The next pod follows when the old
        one is gone and its successor is available, as with a StatefulSet
        (pkg/controller/statefulset/stateful_set_control.go).

    :raises ValueError: a number is out of its range.
    """

    max_surge: str = "25%"
    max_unavailable: str = "25%"
    min_ready: float = 0.0
    in_order: bool = False

    def __post_init__(self) -> None:
        for name, text in (("maxSurge", self.max_surge), ("maxUnavailable", self.max_unavailable)):
            amount(text, 1, up=True, name=name)
        if not 0 <= self.min_ready < math.inf:
            raise ValueError(f"minReadySeconds {self.min_ready:g} is not 0 s or more")

    def limits(self, wanted: int) -> tuple[int, int]:
        """Return how many pods above ``wanted`` may exist, and how many may be missing.

        If both were 0, no pod could ever be replaced, so one may be missing then.
        """
        if self.in_order:
            return 0, 1
        surge = amount(self.max_surge, wanted, up=True, name="maxSurge")
        missing = amount(self.max_unavailable, wanted, up=False, name="maxUnavailable")
        return surge, min(wanted, missing) if surge or missing else 1


def amount(text: str, wanted: int, *, up: bool, name: str) -> int:
    """Read a number of pods, or a percentage of ``wanted``.

    :param text: the number or the percentage.
    :param wanted: the number of pods of which a percentage is taken.
    :param up: whether a percentage is rounded up.
    :param name: the name of the value, for messages.
    :raises ValueError: the text is neither, or it is negative.
    """
    number = text.removesuffix("%")
    if not number.isdecimal() or not number.isascii():
        raise ValueError(
            f"{name} {text!r} is neither a number of pods (1) nor a share of them (25%)"
        )
    if number == text:
        return int(number)
    return (int(number) * wanted + (99 if up else 0)) // 100


@dataclass(frozen=True)
class Counts:
    """The pods at one moment. As with a ReplicaSet, pods being deleted count only as ``leaving``.

    :ivar old: the number of pods of the old template.
    :ivar old_available: how many of those are available.
    :ivar new: the number of pods of the new template, including those that are still starting.
    :ivar new_available: how many of those are available.
    :ivar leaving: the number of pods that are being deleted. A StatefulSet waits for them.
    """

    old: int
    old_available: int
    new: int
    new_available: int
    leaving: int = 0


@dataclass(frozen=True)
class Step:
    """The number of new pods to create now, and of old pods to delete."""

    create: int = 0
    delete: int = 0


def next_step(wanted: int, rollout: Rollout, now: Counts) -> Step:
    """Return the controller's next step on the way to ``wanted`` new pods and no old pods.

    The controller first adds as many pods as the surge allows. Then it deletes old pods, as long as
    enough pods stay available: ``wanted`` less the number that may be missing. Old pods that are
    not available go first.
    """
    surge, missing = rollout.limits(wanted)
    if rollout.in_order and now.leaving:
        return Step()
    total = now.old + now.new
    create = max(0, min(wanted - now.new, wanted + surge - total))
    if create:
        return Step(create=create)
    least = wanted - missing
    spare = total - least - (now.new - now.new_available)
    if spare <= 0 or not now.old:
        return Step()
    broken = min(spare, now.old - now.old_available)
    enough = max(0, min(now.old - broken, now.old_available + now.new_available - least))
    if rollout.in_order:
        return Step(delete=min(1, broken + enough))
    return Step(delete=broken + enough)
