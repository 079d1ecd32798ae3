"""The metrics of the whole instance for Prometheus, from whichever worker is asked.

``registry.register(Collector())``, with the extra ``prometheus`` installed. prometheus_client's own
multiprocess mode has each worker leave files that are summed at a scrape, and that somebody has to
tidy up after each worker; these numbers need none of that, and stand beside it in the same
registry.
"""

from __future__ import annotations

from collections.abc import Iterator

from .shared import memory, metrics

try:
    from prometheus_client import registry
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
except ModuleNotFoundError as error:
    if error.name != "prometheus_client":
        raise
    raise ModuleNotFoundError(
        "gunicorn_grace.prometheus needs prometheus_client: pip install 'gunicorn-grace[prometheus]'",
        name=error.name,
    ) from None


class Collector(registry.Collector):
    """A collector for a ``CollectorRegistry``, also one that holds a ``MultiProcessCollector``.

    Each scrape reads the shared memory of the instance that the process belongs to. Any process:
    arbiter, worker (also after ``preload_app`` has registered it before the fork), or outside
    gunicorn, where the phase is SERVING and everything else 0.
    """

    def collect(self) -> Iterator[Metric]:
        """The metrics, as they are now."""
        seen = metrics.read(memory.attached)
        for metric in metrics.METRICS:
            family = _family(metric)
            for label, value in metric.samples(seen).items():
                family.add_metric([label] if metric.label else [], value)
            yield family

    def describe(self) -> Iterator[Metric]:
        """Their names: for the registry, which refuses two metrics of one name."""
        return map(_family, metrics.METRICS)


def _family(metric: metrics.Metric) -> CounterMetricFamily | GaugeMetricFamily:
    family = CounterMetricFamily if metric.is_counter else GaugeMetricFamily
    return family(
        metrics.PREFIX + metric.name, metric.meaning, labels=[metric.label] if metric.label else []
    )
