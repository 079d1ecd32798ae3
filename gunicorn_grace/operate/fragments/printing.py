"""Puts the output together: the head, the fragment, and the lines for standard error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ...shared.text import printable
from . import elsewhere, kubernetes
from .plan import Plan

_PRINTERS: dict[str, Callable[[Plan], str]] = {
    "deployment": kubernetes.deployment,
    "kustomize": kubernetes.kustomize,
    "helm-values": kubernetes.helm_values,
    "cloudrun": kubernetes.cloud_run,
    "ecs": elsewhere.ecs,
    "compose": elsewhere.compose,
    "systemd": elsewhere.systemd,
    "nomad": elsewhere.nomad,
}

WITHOUT_COMMENTS = ("ecs",)


@dataclass(frozen=True)
class Fragment:
    """The output of the command.

    :ivar text: the text for standard output.
    :ivar beside: the lines for standard error: the warnings, and the reasons if the text cannot
        have comments.
    """

    text: str
    beside: tuple[str, ...]


def printed(plan: Plan) -> Fragment:
    """Return the output for a plan."""
    text = _PRINTERS[plan.place.name](plan)
    warnings = [
        *plan.warnings,
        *(elsewhere.about_nomad(plan) if plan.place.name == "nomad" else ()),
    ]
    head = [*_head(plan), *(f"Warning: {warning}" for warning in warnings)]
    beside = [f"Warning: {warning}" for warning in warnings]
    if plan.place.name in WITHOUT_COMMENTS:
        beside = [*_head(plan), *elsewhere.reasons(plan), *beside]
    else:
        text = "".join(f"# {_line(line)}\n" for line in head) + text
    return Fragment(text, tuple(map(_line, beside)))


def _head(plan: Plan) -> list[str]:
    router = plan.router
    told = f"gunicorn-grace manifest --for {plan.place.name}"
    if router is None:
        return [told]
    return [
        f"{told} --router {router.name}",
        f"{router.name} goes on sending for {router.delay} s: {router.why}.",
        *(f"  {source}" for source in router.sources),
    ]


def _line(text: str) -> str:
    return printable(text, 1000)
