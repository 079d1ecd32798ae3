"""The platforms that stop instances, and how long each of them waits: ``"auto"`` as the period.

A platform sends a signal, waits, and then sends SIGKILL. It does not tell the process how long it
waits. But most platforms set an environment variable by which they can be recognized, and document
a default. If the plugin assumed 30 s everywhere, supervisord's SIGKILL would come after 10 s, in
the middle of the delay. Docker and Compose set no such variable.

The environment may show more than one platform: supervisord in a pod, or supervisord in a service
of systemd. Each platform ends the process by its own clock, so the shortest period counts. In the
pairs that occur, it is also the period of the inner platform, which sends the signal. Runs in any
process.
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
    :ivar sign: the environment variable by which it is recognized.
    :ivar period: the default number of seconds from its signal to SIGKILL.
    :ivar knob: the platform's name for that number; empty if it cannot be changed.
    :ivar sources: the pages that document the sign and the default.
    :ivar signal: a hint about a default signal that is not SIGTERM; otherwise empty.
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
"""All platforms. The docs repeat this table, and a test compares the two."""

UNKNOWN = Platform("", "", 30, "terminationGracePeriodSeconds")
"""Used if no platform is recognized. Its period is that of Kubernetes, because no other is more
likely."""

EXEC_PID = "SYSTEMD_EXEC_PID"


def find(environ: Mapping[str, str], pids: tuple[int, ...]) -> Platform:
    """Return the platform whose period ends this process first; :data:`UNKNOWN` if the environment
    shows none.

    :param environ: the environment.
    :param pids: the pids of this process and of its parent.
    """
    found = [each for each in PLATFORMS if each.sign in environ and _counts(each, environ, pids)]
    return min(found, key=lambda each: each.period, default=UNKNOWN)


def _counts(platform: Platform, environ: Mapping[str, str], pids: tuple[int, ...]) -> bool:
    """Whether the variable means that this platform runs this process."""
    if platform.name == "Cloud Run":
        # Knative sets the same variable in pods of Kubernetes, and waits longer there.
        return "KUBERNETES_SERVICE_HOST" not in environ
    if platform.name == "systemd":
        # Every terminal of a desktop runs below a service of systemd, and inherits its variables.
        # Since version 248, systemd names the process that it started.
        return environ.get(EXEC_PID) in (None, *map(str, pids))
    return True


@functools.cache
def here() -> Platform:
    """Return the platform of this process. The result of the first call is kept, because a process
    that loses its parent later is still on the same platform."""
    return find(os.environ, (os.getpid(), os.getppid()))
