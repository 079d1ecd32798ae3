"""The platforms that stop instances, and how long each of them waits: ``"auto"`` as the period.

A platform sends a signal, waits, and then sends SIGKILL. No process is told how long the wait is,
but most platforms leave a sign of themselves in the environment, and have a documented default. If
the plugin assumed 30 s everywhere, supervisord's SIGKILL would come after 10 s, in the middle of
the delay. Docker and Compose leave no sign.

Signs can be there for more than one platform: supervisord in a pod, a service of systemd's in
which supervisord runs. Each of them ends the process by its own clock, so the shortest period
counts. It is also the period of the innermost one in each pair that occurs, because that one sends
the signal.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Platform:
    """One platform. Its defaults are those of its documentation.

    :ivar name: its name.
    :ivar sign: the environment variable by which it is known.
    :ivar period: seconds from its signal to SIGKILL, unless a person sets another number.
    :ivar knob: how that number is called there; empty where it cannot be set.
    :ivar sources: the pages that document the sign and the default.
    :ivar signal: what to know about a default signal that is not SIGTERM.
    """

    name: str
    sign: str
    period: float
    knob: str
    sources: tuple[str, ...] = ()
    signal: str = ""


PLATFORMS = (
    Platform(
        "Kubernetes",
        "KUBERNETES_SERVICE_HOST",
        30,
        "terminationGracePeriodSeconds",
        (
            "https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#pod-termination",
            "https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables",
        ),
    ),
    Platform(
        "ECS",
        "ECS_CONTAINER_METADATA_URI_V4",
        30,
        "stopTimeout",
        (
            "https://docs.aws.amazon.com/AmazonECS/latest/APIReference/API_ContainerDefinition.html",
            "https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task-metadata-endpoint-v4.html",
        ),
    ),
    Platform(
        "Cloud Run",
        "K_SERVICE",
        10,
        "",
        ("https://cloud.google.com/run/docs/container-contract",),
    ),
    Platform(
        "Heroku",
        "DYNO",
        30,
        "",
        ("https://devcenter.heroku.com/articles/dynos",),
    ),
    Platform(
        "supervisord",
        "SUPERVISOR_ENABLED",
        10,
        "stopwaitsecs",
        (
            "https://supervisord.org/configuration.html#program-x-section-settings",
            "https://supervisord.org/subprocess.html#subprocess-environment",
        ),
    ),
    Platform(
        "systemd",
        "INVOCATION_ID",
        90,
        "TimeoutStopSec",
        (
            "https://www.freedesktop.org/software/systemd/man/latest/systemd-system.conf.html",
            "https://www.freedesktop.org/software/systemd/man/latest/systemd.exec.html",
        ),
    ),
    Platform(
        "Fly",
        "FLY_APP_NAME",
        5,
        "kill_timeout",
        ("https://fly.io/docs/reference/configuration/",),
        'Fly sends SIGINT by default: set kill_signal = "SIGTERM" in fly.toml',
    ),
    Platform(
        "Nomad",
        "NOMAD_ALLOC_ID",
        5,
        "kill_timeout",
        (
            "https://developer.hashicorp.com/nomad/docs/job-specification/task",
            "https://developer.hashicorp.com/nomad/docs/reference/runtime-environment-settings",
        ),
        "Nomad sends SIGINT by default, except through its Docker driver: "
        'set kill_signal = "SIGTERM" in the task',
    ),
)
"""The table. The docs have it too, and a test compares them."""

UNKNOWN = Platform("", "", 30, "terminationGracePeriodSeconds")
"""Where no platform is known: Kubernetes' period, as good as any."""

EXEC_PID = "SYSTEMD_EXEC_PID"


def find(environ: Mapping[str, str], pids: tuple[int, ...]) -> Platform:
    """Return the platform by whose clock a process ends; :data:`UNKNOWN` if there is no sign.

    :param environ: the environment.
    :param pids: this process and its parent.
    """
    found = [each for each in PLATFORMS if each.sign in environ and _counts(each, environ, pids)]
    return min(found, key=lambda each: each.period, default=UNKNOWN)


def _counts(platform: Platform, environ: Mapping[str, str], pids: tuple[int, ...]) -> bool:
    """Whether the sign is there for this process, and not for another reason."""
    if platform.name == "Cloud Run":
        # Knative sets the same name in the pods of Kubernetes, and waits longer there.
        return "KUBERNETES_SERVICE_HOST" not in environ
    if platform.name == "systemd":
        # Every terminal of a desktop is below a service of systemd's, and inherits its variables.
        # From version 248 on, systemd names the process that it started.
        return environ.get(EXEC_PID) in (None, *map(str, pids))
    return True


@functools.cache
def here() -> Platform:
    """Return the platform of this process. It is found once, because a process that has lost its
    parent is still on the same platform."""
    return find(os.environ, (os.getpid(), os.getppid()))
