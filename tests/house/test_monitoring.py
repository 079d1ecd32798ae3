"""The examples for monitoring say what Prometheus and Grafana understand.

That a real scrape has what they ask for is in ``functional/telling/test_monitoring.py``.
"""

from __future__ import annotations

import ast
import json
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
import yaml

import gunicorn_grace
from gunicorn_grace import cli
from gunicorn_grace.shared import metrics
from support.promql import (
    DASHBOARD,
    MONITORING,
    OF_THE_SCRAPE,
    RULES,
    log_patterns,
    needs_promtool,
    panel_expressions,
    panels,
    rules,
    selectors,
)

pytestmark = pytest.mark.once

TESTED = MONITORING / "prometheus-rules-test.yaml"


def promtool(*words: str) -> None:
    done = subprocess.run(["promtool", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_the_rules_do_what_their_tests_say() -> None:
    """Prometheus reads them, and every alert fires and stays silent where it should."""
    promtool("check", "rules", str(RULES))
    promtool("test", "rules", str(TESTED))


def test_every_rule_is_tested() -> None:
    """Each alert has numbers at which it fires and numbers at which it must not; each recording
    rule has a value."""
    cases = yaml.safe_load(TESTED.read_text(encoding="utf-8"))["tests"]
    fires, silent, recorded = set(), set(), ""
    for case in cases:
        for alert in case["alert_rule_test"]:
            (fires if alert.get("exp_alerts") else silent).add(alert["alertname"])
        recorded += "".join(each["expr"] for each in case.get("promql_expr_test", ()))
    alerts = {rule["alert"] for rule in rules() if "alert" in rule}
    assert len(alerts) > 4
    assert fires == silent == alerts
    assert [r["record"] for r in rules() if "record" in r and r["record"] not in recorded] == []


@needs_promtool
def test_prometheus_reads_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    """promtool parses expressions in rules alone, so each panel becomes a rule."""
    expressions = panel_expressions()
    assert len(expressions) >= len(panels()) > 6
    wrapped = [{"record": f"panel:{i}", "expr": expr} for i, expr in enumerate(expressions)]
    path = tmp_path / "panels.yaml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": wrapped}]}))
    promtool("check", "rules", str(path))


def test_rules_and_dashboard_name_metrics_that_exist() -> None:
    """With the labels and the values of labels that they have."""
    known = {
        metric.full_name: {metric.label: set(metric.samples(metrics.Reading()))}
        for metric in metrics.METRICS
    }
    # statsd-mapping.yaml gives the gauges their names, and the labels that are matched there.
    known |= {f"statsd_gunicorn_grace_{gauge.name}": {} for gauge in metrics.GAUGES}
    expressions = [rule["expr"] for rule in rules()] + panel_expressions()
    named = [each for expression in expressions for each in selectors(expression)]
    assert {name for name, _ in named} - set(known) == set()
    # Every metric that is there is of use to somebody.
    assert {metric.full_name for metric in metrics.METRICS} <= {name for name, _ in named}
    for name, wanted in named:
        for label, value in wanted.items():
            if label not in OF_THE_SCRAPE:
                assert set(value.split("|")) <= known[name][label], (name, label)


def test_the_rules_for_the_log_look_for_lines_that_are_written() -> None:
    """Each pattern fits a format string of the package. That of the summary fits what ``%s`` stands
    for, and is tried on a real one."""
    formats = [
        node.value
        for path in Path(gunicorn_grace.__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    unwritten = {
        alert
        for alert, pattern in log_patterns().items()
        if not any(pattern.search(each) for each in formats if each.startswith("gunicorn-grace: "))
    }
    assert unwritten == {"GunicornGraceShutdownCutOff"}


def test_the_dashboard_needs_nothing_but_grafana() -> None:
    """Its panels are Grafana's own, the data source is a variable, and no two panels overlap."""
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    variables = {each["name"]: each for each in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert "__inputs" not in board
    assert board["schemaVersion"] >= 39
    assert {panel["type"] for panel in panels()} <= {"timeseries", "stat", "state-timeline"}
    cells: Counter[tuple[int, int]] = Counter()
    for panel in panels():
        assert panel["datasource"]["uid"] == "${datasource}"
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
        assert panel["title"]
        assert panel["description"]
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for x in range(at["x"], at["x"] + at["w"]):
            cells.update((x, y) for y in range(at["y"], at["y"] + at["h"]))
    assert max(cells.values()) == 1
    assert len({panel["id"] for panel in panels()}) == len(panels())


def test_the_manifests_scrape_the_port_that_they_open(capsys: pytest.CaptureFixture[str]) -> None:
    """``gunicorn-grace check`` finds nothing in the Deployment. PodMonitor and annotations name its
    probe port, and the Service does not."""
    path = MONITORING / "kubernetes" / "deployment.yaml"
    assert cli.main(["check", "--strict", str(path)]) == 0, capsys.readouterr().out
    deployment, service, _ = yaml.safe_load_all(path.read_text(encoding="utf-8"))
    pod = deployment["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    monitor = yaml.safe_load((MONITORING / "kubernetes" / "podmonitor.yaml").read_text())
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert {"name": "GRACE_PROBE_BIND", "value": f"0.0.0.0:{ports[endpoint['port']]}"} in container[
        "env"
    ]
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(ports[endpoint["port"]])
    assert pod["metadata"]["annotations"]["prometheus.io/path"] == endpoint["path"] == "/metrics"
    assert [port["targetPort"] for port in service["spec"]["ports"]] == ["http"]


def test_the_files_that_the_readme_names_are_there() -> None:
    """Each link of it leads to a file, and it names every file of the folder."""
    page = (MONITORING / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https://)([^)#]+)", page)
    assert [link for link in links if not (MONITORING / link).is_file()] == []
    there = {str(path.relative_to(MONITORING)) for path in MONITORING.rglob("*.*")}
    assert there - {"README.md"} <= set(links)


@needs_promtool
def test_the_scrape_configuration_is_one(tmp_path: Path) -> None:
    """But for the discovery in Kubernetes, which Debian's promtool does not know."""
    config = yaml.safe_load((MONITORING / "prometheus-scrape.yaml").read_text(encoding="utf-8"))
    (job,) = config["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    job["static_configs"] = [{"targets": ["127.0.0.1:8081"]}]
    config["rule_files"] = [str(RULES)]
    path = tmp_path / "prometheus.yaml"
    path.write_text(yaml.safe_dump(config))
    promtool("check", "config", str(path))
