"""How the tests are chosen and spread, and a process that nothing of an earlier test is left in.

One marker, ``long``, is on all that the README's command leaves out; ``tox`` runs that too.
``tests/README.md`` says what needs what.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import gunicorn
import pytest

import gunicorn_grace
from gunicorn_grace.probes import checks
from gunicorn_grace.shared import memory as shm
from gunicorn_grace.shared import platforms, settings
from gunicorn_grace.shared.memory import Memory
from gunicorn_grace.shared.phase import Kind
from gunicorn_grace.worker import duties, probes_only, process

TESTS = Path(__file__).parent
NO_LONG = "not long"

pytest.register_assert_rewrite("support")


def pytest_xdist_auto_num_workers() -> int:
    """Tests wait for servers most of their time: four for each core, up to twelve."""
    cores = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    return min(4 * cores, 12)


def pytest_report_header() -> str:
    """What is under test: the installed package, unless somebody has put the source in front of
    it."""
    return f"gunicorn-grace {Path(gunicorn_grace.__file__).parent}, gunicorn {gunicorn.__version__}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Settle which variants are long, and run what takes longest first.

    Tests that fail are tried again as often as ``RERUNS`` says: not at all, but for tox. That holds
    for unit tests as well: many use real sockets and processes, and Hypothesis repeats a failure
    that it has found.
    """
    again = pytest.mark.flaky(reruns=int(os.environ.get("RERUNS", "0")))
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        if folder == "long":
            item.add_marker(pytest.mark.long)
        item.add_marker(again)
        marker = item.get_closest_marker("long")
        if marker is not None and _is_spared(item, marker):
            item.own_markers.remove(marker)
    items.sort(key=lambda item: item.path.relative_to(TESTS).parts[0] != "functional")


def _is_spared(item: pytest.Item, marker: pytest.Mark) -> bool:
    """Whether ``@pytest.mark.long(but="gthread")`` means all variants but this one: by its id, or a
    part of it."""
    spared = marker.kwargs.get("but", ())
    variant = getattr(item, "callspec", None)
    names = {variant.id, *variant.id.split("-")} if variant is not None else set()
    return not names.isdisjoint({spared} if isinstance(spared, str) else spared)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What a test said that was then tried again: its second try must not hide the first."""
    for report in terminalreporter.stats.get("rerun", ()):
        terminalreporter.section(f"first try of {report.nodeid}", sep="_")
        terminalreporter.line(report.longreprtext)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """The last line: what was not run, and how it is."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if (
        reporter is not None
        and not hasattr(config, "workerinput")
        and config.option.markexpr == NO_LONG
    ):
        reporter.write_line(
            "Left out: what is marked long. Here: pytest -m '' tests. Everywhere: tox."
        )


@pytest.fixture(autouse=True)
def _outside_gunicorn(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is not part of an instance, has no checks, and neither a setting nor a platform
    comes from its environment."""
    signs = {platform.sign for platform in platforms.PLATFORMS}
    for name in list(os.environ):
        if name.startswith(("GRACE_", "GUNICORN_")) or name in signs:
            monkeypatch.delenv(name)
    platforms.here.cache_clear()
    monkeypatch.setattr(settings, "adopted", None)
    monkeypatch.setattr(shm, "attached", None)
    monkeypatch.setattr(shm, "is_switched_off", False)
    monkeypatch.setattr(process, "this_worker", None)
    monkeypatch.setattr(probes_only, "this_worker", None)
    monkeypatch.setattr(checks.registry, "_of", dict.fromkeys(Kind, ()))
    monkeypatch.setattr(duties, "this_workers", None)
    monkeypatch.setattr(duties, "registered", {phase: [] for phase in duties.DECORATORS})


@pytest.fixture
def memory() -> Iterator[Memory]:
    """The shared memory of an instance, whose arbiter is this process."""
    made = Memory.create(slots=8)
    yield made
    made.close()
