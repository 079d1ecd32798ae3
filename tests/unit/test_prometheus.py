"""What is measured of an instance, and how Prometheus is told."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.parser import text_string_to_metric_families

from gunicorn_grace.prometheus import Collector
from gunicorn_grace.shared import memory as shm
from gunicorn_grace.shared import metrics
from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.metrics import METRICS, Reading
from gunicorn_grace.shared.phase import Phase

pytestmark = pytest.mark.once

NAMES = (
    "gunicorn_grace_phase",
    "gunicorn_grace_workers",
    "gunicorn_grace_requests_in_flight",
    "gunicorn_grace_requests_total",
    "gunicorn_grace_requests_during_shutdown_total",
    "gunicorn_grace_requests_cut_off_total",
    "gunicorn_grace_shutdown_start_time_seconds",
)


def scrape(collector: Collector | None = None) -> dict[tuple[str, str], float]:
    """What a scrape gives: name and label value, and the number."""
    registry = CollectorRegistry()
    registry.register(collector or Collector())
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return {
        (s.name, "".join(s.labels.values())): s.value for family in families for s in family.samples
    }


@pytest.fixture
def instance(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> Memory:
    """This process belongs to an instance: one worker serves 2 of its 7 requests, one boots, one
    was told to go."""
    monkeypatch.setattr(shm, "attached", memory)
    memory.header.phase = Phase.SERVING
    for number, (booted, dismissed, in_flight, requests) in enumerate(
        [(1, 0, 2, 7), (0, 0, 0, 0), (1, 1, 1, 5)]
    ):
        memory.claim(number, number + 1)
        record = memory.record(number)
        record.booted, record.dismissed = booted, dismissed
        record.in_flight, record.requests = in_flight, requests
    return memory


def test_the_names_are_those_of_the_contract() -> None:
    """Who has a dashboard finds each metric under its name, and each says what it means."""
    assert tuple(metric.full_name for metric in METRICS) == NAMES
    text = generate_latest(registry_of(Collector())).decode()
    for metric in METRICS:
        assert f"# HELP {metric.full_name} {metric.meaning}\n" in text
        kind = "counter" if metric.is_counter else "gauge"
        assert f"# TYPE {metric.full_name} {kind}\n" in text


def registry_of(*collectors: Collector) -> CollectorRegistry:
    registry = CollectorRegistry(auto_describe=True)
    for collector in collectors:
        registry.register(collector)
    return registry


def test_outside_gunicorn_it_serves_and_everything_is_zero() -> None:
    """An application that runs under something else is told what an instance without traffic would
    say."""
    told = scrape()
    assert {label for (name, label), value in told.items() if name == NAMES[0] and value} == {
        "SERVING"
    }
    assert {value for (name, _), value in told.items() if name != NAMES[0]} == {0}
    assert (NAMES[-1], "") not in told


def test_it_tells_of_all_workers(instance: Memory) -> None:
    """Phase, states of the workers, in flight and totals are those of the instance, whichever
    process is asked."""
    told = scrape()
    assert {
        label: value for (name, label), value in told.items() if name == "gunicorn_grace_phase"
    } == {str(phase): float(phase is Phase.SERVING) for phase in Phase}
    assert {
        label: value for (name, label), value in told.items() if name == "gunicorn_grace_workers"
    } == {
        "booting": 1,
        "serving": 1,
        "leaving": 1,
    }
    assert told["gunicorn_grace_requests_in_flight", ""] == 3
    assert told["gunicorn_grace_requests_total", ""] == 12


def test_a_worker_that_died_stays_in_the_counters_and_leaves_the_gauges(instance: Memory) -> None:
    """Its requests still count, those it had in flight are cut off; the next worker of its slot is
    another one."""
    # As the arbiter does it.
    instance.header.gone_cut_off = instance.record(0).would_lose().total()
    instance.claim(0, age=9)
    told = scrape()
    assert told["gunicorn_grace_requests_total", ""] == 12
    assert told["gunicorn_grace_requests_cut_off_total", ""] == 2
    assert told["gunicorn_grace_requests_in_flight", ""] == 1
    assert (
        told["gunicorn_grace_workers", "serving"],
        told["gunicorn_grace_workers", "booting"],
    ) == (0, 2)


def test_the_shutdown_shows_as_soon_as_it_was_triggered(instance: Memory) -> None:
    """The arbiter need not have taken it up: phase and start time are there at once, and gone when
    it is taken back; what was counted meanwhile stays."""
    before = time.time()
    assert instance.trigger(3)
    instance.record(0).since_t0 = 4
    told = scrape()
    assert told["gunicorn_grace_phase", "LAME_DUCK"] == 1
    assert (
        before - 0.1 <= told["gunicorn_grace_shutdown_start_time_seconds", ""] <= time.time() + 0.1
    )
    instance.header.consumed = time.monotonic_ns()
    told = scrape()
    assert told["gunicorn_grace_phase", "SERVING"] == 1
    assert (NAMES[-1], "") not in told
    assert told["gunicorn_grace_requests_during_shutdown_total", ""] == 4


def test_a_registry_refuses_it_twice() -> None:
    """It says which names are its own, so a second one is a mistake that shows where it is made."""
    registry = registry_of(Collector())
    with pytest.raises(ValueError, match="gunicorn_grace_phase"):
        registry.register(Collector())


def test_registered_before_the_fork_it_reads_what_is_there_at_the_scrape(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With preload_app it is made before there is a shared memory."""
    collector = Collector()
    assert scrape(collector)["gunicorn_grace_phase", "SERVING"] == 1
    monkeypatch.setattr(shm, "attached", memory)
    assert scrape(collector)["gunicorn_grace_phase", "STARTING"] == 1


def test_it_stands_beside_the_multiprocess_mode(
    instance: Memory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In one registry with a MultiProcessCollector both give what is theirs, and no file is of
    ours."""
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    registry = CollectorRegistry()
    MultiProcessCollector(registry)
    registry.register(Collector())
    text = generate_latest(registry).decode()
    assert "gunicorn_grace_requests_total 12.0\n" in text
    own = CollectorRegistry()
    Gauge("users_own", "A metric beside ours.", registry=own).set(1)
    own.register(Collector())
    assert {"users_own", *NAMES} <= set(
        re.findall(r"^# TYPE (\S+)", generate_latest(own).decode(), re.M)
    )


def test_a_scrape_in_many_threads_is_whole(instance: Memory) -> None:
    """Threads that scrape while requests are counted each get a complete page, and no counter goes
    back."""
    stop = threading.Event()
    record = instance.record(0)

    def count() -> None:
        while not stop.is_set():
            record.requests += 1

    wrong: list[object] = []

    def watch() -> None:
        last = 0.0
        for _ in range(50):
            told = scrape()
            now = told["gunicorn_grace_requests_total", ""]
            if now < last or len(told) != len(METRICS) - 1 + len(Phase) - 1 + 2:
                wrong.append((last, told))
            last = now

    counting = threading.Thread(target=count)
    watching = [threading.Thread(target=watch) for _ in range(4)]
    for thread in (counting, *watching):
        thread.start()
    for thread in watching:
        thread.join(30)
    stop.set()
    counting.join(30)
    assert wrong == []


def test_without_prometheus_client_the_way_out_is_told() -> None:
    """The package itself does not need it; who imports the collector without it is told what to
    install."""
    hide = (
        "import sys\n"
        "class Hide:\n"
        "    def find_spec(self, name, *more):\n"
        "        if name == 'prometheus_client': raise ModuleNotFoundError(f'No module named "
        "{name!r}', name=name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "import gunicorn_grace.shared.metrics\n"
        "import gunicorn_grace.prometheus\n"
    )
    root = Path(metrics.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", hide], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(
        "gunicorn_grace.prometheus needs prometheus_client: pip install "
        "'gunicorn-grace[prometheus]'"
    )


def test_what_cannot_be_counted_is_absent(instance: Memory) -> None:
    """A worker class that is not known: no zero for its requests, in Prometheus and StatsD. The
    arbiter still knows when the workers are gone."""
    counts = {
        "gunicorn_grace_requests_in_flight",
        "gunicorn_grace_requests_total",
        "gunicorn_grace_requests_during_shutdown_total",
        "gunicorn_grace_requests_cut_off_total",
    }
    for view in (instance.record(0), instance.header):
        view.uncounted = 1
        assert not counts & {name for name, _ in scrape()}
        seen = metrics.read(instance)
        told = {gauge.name for gauge in metrics.GAUGES if gauge.value(seen) is not None}
        assert told == {"phase"}
        view.uncounted = 0
    assert counts <= {name for name, _ in scrape()}


def test_statsd_gauges_are_whole_numbers() -> None:
    """StatsD has no labels and no texts: each gauge is one integer, and the phase is its number."""
    seen = Reading(phase=Phase.DRAINING, in_flight=3, during_shutdown=9, cut_off=2)
    assert {gauge.name: gauge.value(seen) for gauge in metrics.GAUGES} == {
        "phase": 3,
        "requests_in_flight": 3,
        "requests_during_shutdown": 9,
        "requests_cut_off": 2,
    }
