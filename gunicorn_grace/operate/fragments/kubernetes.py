"""Prints fragments for Kubernetes, and for Cloud Run, which describes a container in the same
way."""

from __future__ import annotations

from typing import Any

from . import commented
from .commented import Said, said
from .plan import SECRET, Plan
from .sums import number

_PROBES = (
    "https://kubernetes.io/docs/tasks/configure-pod-container/"
    "configure-liveness-readiness-startup-probes/"
)
_ROLLING = (
    "https://kubernetes.io/docs/concepts/workloads/controllers/deployment/"
    "#rolling-update-deployment"
)
_HOOKS = "https://kubernetes.io/docs/concepts/containers/container-lifecycle-hooks/"
_BUDGETS = "https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-budgets"

SLOWEST = 5
"""The longest interval of the readiness probe, and the longest time that a probe may wait for a
busy worker; seconds."""


def deployment(plan: Plan) -> str:
    """Return a Deployment, and a PodDisruptionBudget for it."""
    labels = {"app": plan.names.name}
    whole = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": plan.names.name, "labels": labels},
        "spec": {
            "replicas": said(2, "Two at least: somebody has to serve while a pod is moved."),
            "selector": {"matchLabels": labels},
            "strategy": said(
                {"rollingUpdate": {"maxSurge": 1, "maxUnavailable": 0}},
                f"A pod goes when another is ready: {_ROLLING}",
            ),
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "terminationGracePeriodSeconds": _period(plan),
                    "containers": [
                        {
                            "name": plan.names.name,
                            "image": said(plan.names.image, "With gunicorn-grace in it."),
                            "command": list(plan.command),
                            **_container(plan),
                        }
                    ],
                },
            },
        },
    }
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": plan.names.name},
        "spec": {
            "maxUnavailable": said(1, f"Nodes that are drained take one pod at a time: {_BUDGETS}"),
            "selector": {"matchLabels": labels},
        },
    }
    return f"{commented.document(whole)}---\n{commented.document(budget)}"


def kustomize(plan: Plan) -> str:
    """Return a component for Kustomize that patches the Deployment of this name."""
    patch = commented.document(
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": plan.names.name},
            "spec": {
                "template": {
                    "spec": {
                        "terminationGracePeriodSeconds": _period(plan),
                        "containers": [{"name": plan.names.name, **_container(plan)}],
                    }
                }
            },
        }
    )
    kind = {"kind": "Deployment", "name": plan.names.name}
    return (
        "# Save it as grace/kustomization.yaml, and add `components: [grace]` to your own.\n"
        f"# The container has to be called {plan.names.name}, and to run: "
        f"{' '.join(plan.command)}\n"
        + commented.document(
            {
                "apiVersion": "kustomize.config.k8s.io/v1alpha1",
                "kind": "Component",
                "patches": [{"target": kind, "patch": patch}],
            }
        )
    )


def helm_values(plan: Plan) -> str:
    """Return values for a Helm chart. The names are those of the API, which most charts pass
    through."""
    container = _container(plan)
    container.pop("ports")
    return (
        "# The probes are called so by `helm create`; a chart may have other names for the rest, "
        "such as extraEnvVars.\n"
        f"# The container has to run: {' '.join(plan.command)}\n"
        + commented.document({"terminationGracePeriodSeconds": _period(plan), **container})
    )


def cloud_run(plan: Plan) -> str:
    """Return a service for Cloud Run, in Knative's format."""
    probes = _probes(plan)
    container = {
        "name": plan.names.name,
        "image": said(plan.names.image, "With gunicorn-grace in it."),
        "command": list(plan.command),
        "ports": [{"containerPort": plan.port}],
        "env": _env(plan, "Cloud Run's own period, which nobody can set: " + plan.place.source),
        "startupProbe": probes["startupProbe"],
        "livenessProbe": probes["livenessProbe"],
    }
    return commented.document(
        {
            "apiVersion": "serving.knative.dev/v1",
            "kind": "Service",
            "metadata": {
                "name": plan.names.name,
                "annotations": said(
                    {"run.googleapis.com/ingress": "all"},
                    "A sign of Cloud Run: Knative in Kubernetes has another period.",
                ),
            },
            "spec": {"template": {"spec": {"containers": [container]}}},
        }
    )


def _period(plan: Plan) -> Said:
    why = [f"{plan.sum.told}: {plan.place.source}"]
    if plan.sum.told.rpartition("= ")[2] != f"{plan.sum.period} s":
        why.append("grace_termination_period is longer, and counts.")
    return said(plan.sum.period, *why)


def _container(plan: Plan) -> dict[str, Any]:
    """Return the ports, the variables, the probes and the hook of a container."""
    ports = [{"name": "http", "containerPort": plan.port}]
    if plan.probe_port is not None:
        ports.append({"name": "probes", "containerPort": plan.probe_port})
    return {
        "ports": ports,
        "env": _env(
            plan,
            "The same as terminationGracePeriodSeconds: no process can ask Kubernetes for it.",
        ),
        **_probes(plan),
        "lifecycle": said(
            {"preStop": {"exec": {"command": ["gunicorn-grace", "prestop"]}}},
            "Begins the delay, and returns when it is over. Its time is part of the period: "
            f"{_HOOKS}",
        ),
    }


def _env(plan: Plan, about_period: str) -> list[Any]:
    about = {
        "GRACE_SHUTDOWN_DELAY": about_delay(plan),
        "GRACE_TERMINATION_PERIOD": about_period,
    }
    found: list[Any] = []
    for name, value in sorted(plan.env.items(), key=lambda item: item[0] not in about):
        # Kubernetes expands $(NAME), unless the dollar is doubled.
        entry: dict[str, Any] = {"name": name, "value": value.replace("$(", "$$(")}
        found.append(said(entry, about[name]) if name in about else entry)
    if plan.has_secret:
        key = {"name": f"{plan.names.name}-grace", "key": "trigger-token"}
        found.append(
            said(
                {"name": SECRET, "valueFrom": {"secretKeyRef": key}},
                "From a Secret: whoever has the token can take the pod out of rotation.",
            )
        )
    return found


def about_delay(plan: Plan) -> str:
    """Return the reason for the length of the delay."""
    stays = plan.settings.readiness_delay
    if plan.router is not None and plan.sum.delay == plan.router.needs(stays):
        after = f", and {number(stays)} s of grace_readiness_delay" if stays else ""
        return f"As long as {plan.router.name} goes on sending, see above{after}."
    return "The delay: requests are served as ever, while routers learn that the instance goes."


def intervals(plan: Plan) -> tuple[int, int]:
    """Return periodSeconds and timeoutSeconds of the readiness probe, in seconds. They are short
    enough for readiness to turn red within the delay."""
    if not plan.place.is_kubernetes:
        return SLOWEST, SLOWEST
    room = int(plan.sum.delay - plan.settings.readiness_delay)
    patience = max(2, min(SLOWEST, room // 2))
    return max(1, min(SLOWEST, room - patience)), patience


def _probes(plan: Plan) -> dict[str, Any]:
    s = plan.settings
    port: int | str = "http" if plan.place.is_kubernetes else plan.port
    if plan.probe_port is not None and plan.place.is_kubernetes:
        # A chart may not have a port of this name, so its number is used.
        port = plan.probe_port if plan.place.name == "helm-values" else "probes"
    every, patience = intervals(plan)

    def ask(path: str, **more: int) -> dict[str, Any]:
        return {"httpGet": {"path": path, "port": port}, "timeoutSeconds": patience, **more}

    return {
        "startupProbe": said(
            ask(s.startup_path, periodSeconds=patience, failureThreshold=60),
            f"Other probes wait until this passes, so that a slow boot is no failure: {_PROBES}",
        ),
        "readinessProbe": said(
            ask(s.readiness_path, periodSeconds=every, failureThreshold=1),
            f"Red at T0, and believed at once: {every} + {patience} s are within the delay of "
            f"{number(plan.sum.delay)} s.",
        ),
        "livenessProbe": said(
            ask(s.liveness_path, periodSeconds=10, failureThreshold=3),
            "Stays 200 through the shutdown: a restart would cut off what the drain saves.",
        ),
    }
