"""The metrics of an instance in the form that prometheus_client takes. Runs in any process that has
prometheus_client installed."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from . import metrics


def collect(seen: metrics.Reading) -> Iterator[Metric]:
    """Yield the metrics with the values that were read."""
    for metric in metrics.METRICS:
        family = _family(metric)
        for label, value in metric.samples(seen).items():
            family.add_metric([label] if metric.label else [], value)
        yield family


def describe() -> Iterator[Metric]:
    """Yield the metrics without values, because a registry refuses two metrics with the same
    name."""
    return map(_family, metrics.METRICS)


def _family(metric: metrics.Metric) -> CounterMetricFamily | GaugeMetricFamily:
    family = CounterMetricFamily if metric.is_counter else GaugeMetricFamily
    return family(
        metrics.PREFIX + metric.name, metric.meaning, labels=[metric.label] if metric.label else []
    )
