"""Rules about seconds: the preStop hook, the delay, the drain and the margin within the period."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from ...shared.budget import drain_reserve, exceeds, exit_margin, whole_seconds
from .case import Case
from .findings import Hit, Patch, Severity, rule

GUNICORNS = 30
"""gunicorn's default for ``graceful_timeout``, and its default period in Kubernetes; seconds."""
PERIOD = "terminationGracePeriodSeconds"
PRESTOP = {"exec": {"command": ["gunicorn-grace", "prestop"]}}


def env(**values: object) -> dict[str, Any]:
    """Return a part of a patch that sets environment variables of a container."""
    return {"env": [{"name": name, "value": f"{value}"} for name, value in values.items()]}


def hook_patch(case: Case) -> dict[str, Any]:
    """Return a part of a patch that replaces the preStop hook by the plugin's."""
    kind = case.hook.kind if case.hook else "exec"
    other = {} if kind == "exec" else {kind: None}
    return {"lifecycle": {"preStop": {**other, **PRESTOP}}}


def period_patch(case: Case, seconds: float) -> Patch:
    """Return a patch that sets the period: in the pod, and for the plugin if it is there. Knative
    sets the period of its pods itself.

    :param seconds: the period; it is rounded up.
    """
    whole = whole_seconds(seconds)
    container = env(GRACE_TERMINATION_PERIOD=whole) if case.has_plugin else {}
    return Patch(pod={} if case.is_knative else {PERIOD: whole}, container=container)


@rule(
    "budget",
    Severity.ERROR,
    "preStop hook, delay, drain and margin do not fit into the period.",
    "SIGKILL comes in the middle, and the requests that are in flight are cut off. Where the "
    "plugin "
    "knows the period, it makes the delay or the drain shorter than you asked for, and late "
    "requests are refused.",
    "Raise `terminationGracePeriodSeconds` and `GRACE_TERMINATION_PERIOD` to the sum, or lower a "
    "part of it.",
)
def budget(case: Case) -> Iterator[Hit]:
    """Compare the sum of the parts with the period."""
    if case.is_knative:
        return
    slept = 0.0 if case.is_trigger else case.slept
    if not case.period:
        yield Hit(
            case.period_line,
            f"{PERIOD} 0: SIGKILL comes at once",
            "leave it out (30 s), or give the shutdown time",
            period_patch(case, 30),
        )
        return
    if slept >= case.period:
        line = case.hook.line if case.hook else case.period_line
        yield Hit(
            line,
            f"preStop sleep {slept:g} s >= {PERIOD} {case.period} s: gunicorn is told to end when "
            "its time is over",
            f"sleep less, or raise {PERIOD} to {whole_seconds(slept) + GUNICORNS}",
            period_patch(case, slept + GUNICORNS) if not case.has_plugin else None,
        )
        return
    yield from (_with_plugin if case.has_plugin else _plain)(case, slept)


def _with_plugin(case: Case, slept: float) -> Iterator[Hit]:
    s = case.seen.settings
    if case.seen.unseen & {"shutdown_delay", "exit_margin"}:
        return
    margin = min(exit_margin(s), s.exit_margin)
    before = f"preStop sleep {slept:g} + " if slept else ""
    chosen = "graceful_timeout" in case.seen.given
    least = slept + s.shutdown_delay + drain_reserve(s) + margin
    whole = slept + s.shutdown_delay + s.graceful_timeout + margin
    line = _line(case, "shutdown_delay" if not slept else "")
    advice = max(least, whole if chosen else 0)
    if exceeds(least, case.period):
        certain = case.seen.is_chosen("shutdown_delay")
        yield Hit(
            line,
            f"{before}grace_shutdown_delay {s.shutdown_delay:g} + grace_drain_reserve "
            f"{drain_reserve(s):g} + grace_exit_margin {margin:g} = {least:g} s > {PERIOD} "
            f"{case.period} s",
            f"raise {PERIOD} and GRACE_TERMINATION_PERIOD to {whole_seconds(advice)}, or shorten "
            f"the {'sleep' if slept else 'delay'}",
            period_patch(case, advice),
            None if certain else Severity.WARNING,
        )
    elif chosen and exceeds(whole, case.period):
        yield Hit(
            _line(case, "graceful_timeout"),
            f"{before}grace_shutdown_delay {s.shutdown_delay:g} + graceful_timeout "
            f"{s.graceful_timeout:g} + grace_exit_margin {margin:g} = {whole:g} s > {PERIOD} "
            f"{case.period} s: requests longer than "
            f"{max(0.0, case.period - slept - s.shutdown_delay - margin):g} s are cut off",
            f"raise {PERIOD} and GRACE_TERMINATION_PERIOD to {whole_seconds(whole)}, or lower "
            "graceful_timeout",
            period_patch(case, whole),
            Severity.WARNING,
        )


def _plain(case: Case, slept: float) -> Iterator[Hit]:
    chosen = "graceful_timeout" in case.seen.given
    drain = case.seen.graceful_timeout
    if exceeds(slept + drain, case.period) and (slept or chosen):
        default = "" if chosen else " (its default)"
        yield Hit(
            _line(case, "graceful_timeout") if chosen else case.hook.line if case.hook else 0,
            f"{f'preStop sleep {slept:g} + ' if slept else ''}graceful_timeout {drain:g}{default} "
            f"= {slept + drain:g} s > {PERIOD} {case.period} s: requests longer than "
            f"{max(0.0, case.period - slept):g} s are cut off by SIGKILL",
            f"raise {PERIOD} to {whole_seconds(slept + drain) + 2}, or lower graceful_timeout",
            period_patch(case, slept + drain + 2),
            Severity.WARNING,
        )


def _line(case: Case, name: str) -> int:
    """Return the line of a setting in the manifest. If it is not written there, return the line of
    the hook or of the period."""
    source, line = case.seen.lines.get(name, ("", 0))
    if source == case.workload.source and line:
        return line
    if case.hook is not None and case.slept and not name:
        return case.hook.line
    return case.period_line


@rule(
    "period",
    Severity.ERROR,
    "The plugin counts on another period than the manifest gives.",
    "Where the manifest gives less, SIGKILL comes before the plugin expects it, and cuts off what "
    "is in flight. Where it gives more, the plugin ends requests that still had time.",
    "Set `GRACE_TERMINATION_PERIOD` to the number in `terminationGracePeriodSeconds`. The plugin "
    "cannot ask Kubernetes for it.",
)
def period(case: Case) -> Iterator[Hit]:
    """Compare ``GRACE_TERMINATION_PERIOD`` with terminationGracePeriodSeconds."""
    seen = case.seen
    if not case.has_plugin or "termination_period" in seen.unseen or not case.period:
        return
    ours = seen.settings.termination_period
    chosen = "termination_period" in seen.given
    # The plugin recognizes Cloud Run by its environment variables, and then uses its period.
    if ours == case.period or (case.is_cloud_run and not chosen):
        return
    source, line = seen.lines.get("termination_period", ("", 0))
    called = (
        "grace_termination_period"
        if source != case.workload.source
        else ("GRACE_TERMINATION_PERIOD")
    )
    asked = f"{PERIOD} {case.period}"
    if case.is_knative:
        asked = f"timeoutSeconds {case.period}"
    if case.is_cloud_run:
        asked = f"Cloud Run's period, {case.period} s"
    severity = Severity.WARNING
    if not ours:
        what = f"{called} 0 says that the period is not known, and the manifest has {asked}"
    elif not chosen:
        what = f"{called} is not set, so {ours:g} s are assumed, and the manifest has {asked}"
    else:
        what = f"{called} {ours:g} {'>' if ours > case.period else '<'} {asked}"
    if ours > case.period and seen.is_chosen("termination_period"):
        severity = Severity.ERROR
    yield Hit(
        line if source == case.workload.source and line else case.period_line,
        what,
        f'set GRACE_TERMINATION_PERIOD to "{case.period}"',
        Patch(container=env(GRACE_TERMINATION_PERIOD=case.period)),
        severity,
    )


@rule(
    "prestop-sleep",
    Severity.WARNING,
    "A preStop hook sleeps, and the plugin's delay comes after it.",
    "Each pod takes longer to end. The plugin's clock begins only with SIGTERM, so it counts on "
    "more of the period than is left, and SIGKILL can come before it.",
    "Let the hook be `gunicorn-grace prestop`, which begins the delay and returns when it is over, "
    "or leave the hook out.",
)
def prestop_sleep(case: Case) -> Iterator[Hit]:
    """Find a hook that sleeps in addition to the delay."""
    if not case.has_plugin or case.is_trigger or not case.slept or case.hook is None:
        return
    delay = case.seen.settings.shutdown_delay
    left = case.period - case.slept
    counted = min(case.seen.settings.termination_period, case.period)
    certain = case.seen.is_certain("shutdown_delay")
    seconds = f"{math.ceil(max(delay, case.slept))}"
    longer = certain and case.slept > delay
    yield Hit(
        case.hook.line,
        f"preStop sleeps {case.slept:g} s before the delay of {delay:g} s begins: "
        f"{max(0.0, left):g} s are left, and the plugin counts on {counted:g} s",
        "let the hook be gunicorn-grace prestop, or leave it out"
        + (f', and set GRACE_SHUTDOWN_DELAY to "{seconds}"' if longer else ""),
        Patch(
            container={
                **hook_patch(case),
                **(env(GRACE_SHUTDOWN_DELAY=seconds) if longer else {}),
            }
        ),
    )


@rule(
    "delay",
    Severity.WARNING,
    "The delay is shorter than a router takes to learn that the pod is not ready.",
    "Requests still come when draining begins. The plugin extends the delay for them while the "
    "budget lasts; after that they are refused.",
    "Let the readiness probe ask more often and believe the first failure (`periodSeconds: 5`, "
    "`failureThreshold: 1`), or make `grace_shutdown_delay` longer. Name your router, "
    "`--lag aws-alb`, or give the time that it takes, `--lag NAME=SECONDS`.",
)
def delay(case: Case) -> Iterator[Hit]:
    """Compare the delay with the readiness probe and with the named routers."""
    seen = case.seen
    if "shutdown_delay" in seen.unseen:
        return
    seconds = seen.settings.shutdown_delay if case.has_plugin else case.slept
    called = "grace_shutdown_delay" if case.has_plugin else "preStop sleep"
    line = case.hook.line if case.hook is not None else case.workload.line
    for router in case.lags:
        lag = router.needs(seen.settings.readiness_delay if case.has_plugin else 0)
        named = router.name or "the router"
        if seconds < lag:
            yield Hit(
                _line(case, "shutdown_delay") if case.has_plugin else line,
                f"{called} {seconds:g} s < {lag:g} s, for which {named} goes on sending",
                f'set GRACE_SHUTDOWN_DELAY to "{math.ceil(lag)}"',
                Patch(container=env(GRACE_SHUTDOWN_DELAY=math.ceil(lag)))
                if case.has_plugin
                else None,
                Severity.WARNING
                if seen.settings.extend_delay or not seen.is_certain("extend_delay")
                else Severity.ERROR,
            )
    probe = case.container.probes.get("readiness")
    if not case.has_plugin or probe is None or probe.action.kind != "httpGet":
        return
    seconds = seen.settings.shutdown_delay - seen.settings.readiness_delay
    learnt = probe.period * probe.failure_threshold + probe.timeout
    least = math.ceil(5 + probe.timeout + seen.settings.readiness_delay)
    if seconds < learnt:
        yield Hit(
            probe.table.lines.get("periodSeconds", probe.line),
            f"readiness takes periodSeconds {probe.period} x failureThreshold "
            f"{probe.failure_threshold} + timeoutSeconds {probe.timeout} = {learnt} s to turn red, "
            f"and the delay is {seconds:g} s",
            "let it ask every 5 s with failureThreshold 1, or make the delay longer",
            Patch(
                container={
                    "readinessProbe": {"periodSeconds": 5, "failureThreshold": 1},
                    **(env(GRACE_SHUTDOWN_DELAY=least) if seconds < 5 + probe.timeout else {}),
                }
            ),
        )
