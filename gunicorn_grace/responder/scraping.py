"""The answer to a scrape of the probe port. Runs in the probe responder.

The service's own port cannot be scraped once draining has begun, because its listener is sealed. So
a scrape there would never show the requests that the drain cut off. The probe port answers until
the instance ends.
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
    """Return the metrics in Prometheus' text format; ``None`` if prometheus_client is not
    installed.

    The library is imported at the first scrape, because it takes 15 MiB and a tenth of a second.

    :param memory: the shared memory.
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
    """Let the library import OpenSSL, which this process otherwise does without (see
    ``gunicorn_grace.arbiter.probe_process``). Modules that were imported without OpenSSL are
    removed, so that they are imported again."""
    for name, module in list(sys.modules.items()):
        if module is None or name in ("http.client", "urllib.request"):
            del sys.modules[name]
