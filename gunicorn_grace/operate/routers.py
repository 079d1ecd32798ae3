"""The routers that stand in front of instances, and how long each goes on sending to an instance
that shuts down.

``manifest``, ``check --lag NAME`` and the docs use this one table. Each number comes from the
router's documentation, its source or a measurement, and is for its defaults. A router with another
configuration has another number. The last line of the log shows it after each shutdown.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Router:
    """One router.

    :ivar name: its name, as an option takes it.
    :ivar delay: for how many seconds it goes on sending. The delay has to be at least that long.
    :ivar why: the reason for the number.
    :ivar sources: the pages that give the number.
    :ivar of_pods: whether it routes only to pods of Kubernetes.
    :ivar asks_readiness: whether it probes readiness itself, rather than being told by the
        platform.
    """

    name: str
    delay: float
    why: str
    sources: tuple[str, ...]
    of_pods: bool = False
    asks_readiness: bool = False

    def needs(self, readiness_delay: float) -> float:
        """Return the delay that it needs, in seconds.

        :param readiness_delay: for how many seconds after T0 readiness stays 200.
        """
        return self.delay + (math.ceil(readiness_delay) if self.asks_readiness else 0)


ROUTERS = {
    router.name: router
    for router in (
        Router(
            "kube-proxy",
            10,
            "each node writes its rules at most once a second, after the EndpointSlice has reached "
            "it; AWS advises to hold SIGTERM back for 10 s",
            (
                "https://kubernetes.io/docs/reference/config-api/kube-proxy-config.v1alpha1/",
                "https://docs.aws.amazon.com/eks/latest/best-practices/load-balancing.html",
            ),
            of_pods=True,
        ),
        Router(
            "ingress-nginx",
            5,
            "the controller syncs 0.3 times a second, and nginx looks for new endpoints once a "
            "second: 3.3 + 1 s",
            (
                "https://kubernetes.github.io/ingress-nginx/user-guide/cli-arguments/",
                "https://github.com/kubernetes/ingress-nginx/blob/main/rootfs/etc/nginx/lua/balancer.lua",
            ),
            of_pods=True,
        ),
        Router(
            "aws-alb",
            20,
            "10 s of requests were lost with IP targets, and users of the controller count 10 s "
            "for AWS to act on a call; twice that, for the controller has to make the call first",
            (
                "https://github.com/kubernetes-sigs/aws-load-balancer-controller/issues/2048",
                "https://github.com/kubernetes-sigs/aws-load-balancer-controller/issues/1719",
            ),
        ),
        Router(
            "aws-nlb",
            120,
            "new connections were seen for two minutes after the target was deregistered, however "
            "short the deregistration delay",
            (
                "https://github.com/kubernetes-sigs/aws-load-balancer-controller/issues/2366",
                "https://github.com/aws/containers-roadmap/issues/470",
            ),
        ),
        Router(
            "gke-neg",
            40,
            "Google's own example sleeps for 40 s, until the endpoint is out of the network "
            "endpoint group",
            (
                "https://cloud.google.com/knowledge/kb/502-503-errors-on-external-http-s-load-balancer-000006416",
            ),
            of_pods=True,
        ),
        Router(
            "envoy",
            6,
            "active checks as in balancers.md: one each second, which may wait 5 s for its answer; "
            "the first 503 counts, whatever unhealthy_threshold says",
            (
                "https://www.envoyproxy.io/docs/envoy/latest/api-v3/config/core/v3/health_check.proto",
            ),
            asks_readiness=True,
        ),
        Router(
            "haproxy",
            8,
            "its defaults: three failed checks (fall 3), one each 2 s (inter 2s), and 2 s for the "
            "last answer",
            (
                "https://docs.haproxy.org/2.6/configuration.html#5.2-fall",
                "https://docs.haproxy.org/2.6/configuration.html#5.2-inter",
            ),
            asks_readiness=True,
        ),
    )
}
"""The routers by name."""
