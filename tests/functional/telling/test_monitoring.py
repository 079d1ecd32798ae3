"""The examples for monitoring ask for what a real instance tells."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gunicorn_grace.rehearsal.load.wire import fetch, parse_address
from gunicorn_grace.shared.phase import Phase
from support.promql import OF_THE_SCRAPE, log_patterns, panel_expressions, rules, selectors
from support.servers import GRACE_COMMAND, QUICK, Connect, Serve

pytestmark = pytest.mark.once

Scrape = dict[str, list[tuple[dict[str, str], float]]]


def scrape(address: str) -> Scrape:
    """The samples of each metric, as Prometheus reads them."""
    page = fetch(parse_address(address), "/metrics").body.decode()
    if shutil.which("promtool"):
        lint = subprocess.run(
            ["promtool", "check", "metrics"], input=page, capture_output=True, text=True, timeout=20
        )
        assert lint.returncode == 0, lint.stdout + lint.stderr
    found: Scrape = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def value(seen: Scrape, name: str, **labels: str) -> float:
    """One sample."""
    (found,) = [number for its, number in seen[f"gunicorn_grace_{name}"] if its == labels]
    return found


def test_a_scrape_during_the_drain_shows_what_rules_and_dashboard_ask_for(
    serve: Serve, connect: Connect, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A worker dies with a request; another request is in flight to the drain limit. Through the
    probe port both are seen, under the very names and labels of the examples. What the limit cut
    off is in the log and in the report, where the examples look for it."""
    report = tmp_path_factory.mktemp("report") / "report.json"
    settings = {
        **QUICK,
        "termination_period": 4,
        "probe_bind": "127.0.0.1:0",
        "report": report,
    }
    server = serve(args=("-k", "gthread", "-w", "2"), settings=settings)
    server.wait_booted(2)
    address = server.wait_line("gunicorn-grace: probe port at ").rpartition(" at ")[2]
    lost = connect(server)
    lost.send(f"/wait?for={tmp_path / 'never'}")
    victim = server.wait_pid("slow request begins in ")
    before = scrape(address)
    assert value(before, "phase", phase="SERVING") == 1
    assert value(before, "requests_cut_off_total") == 0
    os.kill(victim, signal.SIGKILL)
    server.wait_in_flight(0)
    server.wait_booted(2)
    stuck = connect(server)
    at = server.mark()
    stuck.send(f"/wait?for={tmp_path / 'never'}")
    server.wait_pid("slow request begins in ", after=at)
    server.terminate()
    server.wait_phase(Phase.DRAINING)

    seen = scrape(address)
    assert value(seen, "phase", phase="DRAINING") == 1
    assert value(seen, "requests_in_flight") == 1
    assert value(seen, "requests_cut_off_total") == 1
    assert value(seen, "shutdown_start_time_seconds") > 1.7e9
    for expression in [
        *(rule["expr"] for rule in rules() if "statsd_" not in rule["expr"]),
        *panel_expressions(),
    ]:
        for name, wanted in selectors(expression):
            assert name in seen
            for label, words in wanted.items():
                if label not in OF_THE_SCRAPE:
                    values = {labels[label] for labels, _ in seen[name]}
                    assert set(words.split("|")) <= values, (name, label)

    server.assert_gone()
    found = {
        alert: [line for line in server.output.splitlines() if pattern.search(line)]
        for alert, pattern in log_patterns().items()
    }
    assert found["GunicornGraceShutdownCutOff"] == [server.summary()]
    assert [alert for alert, lines in found.items() if lines] == ["GunicornGraceShutdownCutOff"]
    told = subprocess.run(
        [*GRACE_COMMAND, "reports", str(report)], capture_output=True, text=True, timeout=60
    )
    assert told.returncode == 1
    assert "cut off: 1" in told.stdout
