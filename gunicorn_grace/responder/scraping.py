"""The answer to a scrape of the probe port. Runs in the probe responder.

A scrape through the service's own port ends with the drain: the listener is sealed, so nobody can
read there what the drain cut off. The probe port answers until the instance has gone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ..probes.answers import Answer
from ..shared import metrics
from ..shared.memory import Memory

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

PATH = "/metrics"


def scraped(memory: Memory) -> Answer | None:
    """Return the metrics in Prometheus' text format; ``None`` without prometheus_client.

    It is imported when somebody first asks, because it takes 15 MiB and a tenth of a second.
    """
    if "prometheus_client" not in sys.modules:
        _allow_openssl()
    try:
        from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

        from ..shared import exposition
    except ImportError:
        return None

    class Collector:
        def collect(self) -> Iterator[Metric]:
            return exposition.collect(metrics.read(memory))

    registry = CollectorRegistry()
    collector: Any = Collector()
    registry.register(collector)
    body = generate_latest(registry).decode()
    return Answer(200, body, (("Content-Type", CONTENT_TYPE_LATEST), ("Cache-Control", "no-store")))


def _allow_openssl() -> None:
    """Let the library import OpenSSL, which this process otherwise does without: see
    ``gunicorn_grace.arbiter.probe_process``. What was imported without it is imported anew."""
    for name, module in list(sys.modules.items()):
        if module is None or name in ("http.client", "urllib.request"):
            del sys.modules[name]
