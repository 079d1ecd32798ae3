"""The platforms for which a fragment can be printed, each with its limit for the period."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Place:
    """One platform.

    :ivar name: its name, as ``--for`` takes it.
    :ivar what: a description of the fragment for it.
    :ivar title: its name in messages.
    :ivar knob: the platform's name for the period; empty if the period cannot be set.
    :ivar source: the page of its documentation about the period.
    :ivar limit: the longest period that it allows, in seconds; None without a limit.
    :ivar way_out: what to do if the sum exceeds the limit, apart from lowering the settings.
    :ivar is_kubernetes: whether the kubelet asks the probes and routers of pods stand in front.
    :ivar routes_itself: whether the platform routes the requests to its instances itself.
    """

    name: str
    what: str
    title: str
    knob: str
    source: str
    limit: int | None = None
    way_out: str = ""
    is_kubernetes: bool = False
    routes_itself: bool = False

    @property
    def is_fixed(self) -> bool:
        """Whether the period cannot be changed."""
        return not self.knob


_POD = "https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination"

PLACES = {
    place.name: place
    for place in (
        *(
            Place(
                name, what, "Kubernetes", "terminationGracePeriodSeconds", _POD, is_kubernetes=True
            )
            for name, what in (
                ("deployment", "a Deployment, and a PodDisruptionBudget for it"),
                ("kustomize", "a component that patches the Deployment of that name"),
                ("helm-values", "values for a chart that passes them through"),
            )
        ),
        Place(
            "ecs",
            "a task definition, as JSON",
            "ECS",
            "stopTimeout",
            "https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_ContainerDefinition.html",
            limit=120,
            way_out="a service deregisters its tasks before SIGTERM, and waits for "
            "deregistration_delay.timeout_seconds of the target group: make that as long as the "
            "router needs, and the delay short",
        ),
        Place(
            "compose",
            "a service",
            "Compose",
            "stop_grace_period",
            "https://docs.docker.com/reference/compose-file/services/#stop_grace_period",
        ),
        Place(
            "systemd",
            "a unit",
            "systemd",
            "TimeoutStopSec",
            "https://www.freedesktop.org/software/systemd/man/latest/systemd.service.html#TimeoutStopSec=",
        ),
        Place(
            "nomad",
            "a job with one task",
            "Nomad",
            "kill_timeout",
            "https://developer.hashicorp.com/nomad/docs/job-specification/task#kill_timeout",
        ),
        Place(
            "cloudrun",
            "a service, as `gcloud run services replace` takes it",
            "Cloud Run",
            "",
            "https://cloud.google.com/run/docs/container-contract",
            limit=10,
            way_out="let longer work be done elsewhere (Cloud Run jobs, Cloud Tasks)",
            routes_itself=True,
        ),
    )
}
"""The platforms by name."""
