"""The metrics of the whole instance for Prometheus, from any worker.

Use ``registry.register(Collector())``, with the extra ``prometheus`` installed. In
prometheus_client's own multiprocess mode each worker writes files. A scrape sums them, and somebody
has to remove them when the worker is gone. The plugin's metrics need no files. Both kinds of
metrics can use the same registry.
"""

from __future__ import annotations

from collections.abc import Iterator

from .shared import memory, metrics

try:
    from prometheus_client import registry
    from prometheus_client.metrics_core import Metric

    from .shared import exposition
except ModuleNotFoundError as _error:
    if _error.name != "prometheus_client":
        raise
    raise ModuleNotFoundError(
        "gunicorn_grace.prometheus needs prometheus_client: "
        "pip install 'gunicorn-grace[prometheus]'",
        name=_error.name,
    ) from None


class Collector(registry.Collector):
    """A collector for a ``CollectorRegistry``, even one that contains a ``MultiProcessCollector``.

    Each scrape reads the shared memory of the instance that the process belongs to. Runs in the
    arbiter and in workers, and may be registered before the fork (``preload_app``). Outside
    gunicorn the phase is SERVING, every count is 0, and the start of the shutdown is absent.
    """

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics with their current values."""
        return exposition.collect(metrics.read(memory.attached))

    def describe(self) -> Iterator[Metric]:
        """Yield the metrics without values, because the registry refuses two metrics with the same
        name."""
        return exposition.describe()
