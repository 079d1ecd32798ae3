"""What the monitoring examples say: their expressions, and the metrics that those name."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from support.paths import EXAMPLES

MONITORING = EXAMPLES / "monitoring"
RULES = MONITORING / "prometheus-rules.yaml"
DASHBOARD = MONITORING / "grafana-dashboard.json"

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)"
)

OF_THE_SCRAPE = {"job", "instance", "namespace", "pod"}
"""Labels that Prometheus gives a target."""

_SELECTOR = re.compile(r"(?<![\w:])(\w*gunicorn_grace_\w+)(?![\w:(])(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')


def rules() -> list[dict[str, Any]]:
    """The rules for Prometheus."""
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return found


def panel_expressions() -> list[str]:
    """The expressions of the dashboard as Prometheus gets them from Grafana."""
    return [
        target["expr"]
        .replace("$__rate_interval", "1m")
        .replace("$__range", "30m")
        .replace("$job", ".*")
        .replace("$instance", ".*")
        for panel in panels()
        for target in panel["targets"]
    ]


def selectors(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Each metric that an expression names, with the values that it wants of labels."""
    for name, matchers in _SELECTOR.findall(expression):
        yield name, {label: value for label, _, value in _MATCHER.findall(matchers)}


def log_patterns() -> dict[str, re.Pattern[str]]:
    """What each rule for Loki looks for in a line. Such simple expressions mean the same in Go."""
    groups = yaml.safe_load((MONITORING / "loki-rules.yaml").read_text(encoding="utf-8"))["groups"]
    found = {}
    for rule in (rule for group in groups for rule in group["rules"]):
        (pattern,) = re.findall(r'\|~ "([^"]*)"', rule["expr"])
        found[rule["alert"]] = re.compile(pattern)
    return found
