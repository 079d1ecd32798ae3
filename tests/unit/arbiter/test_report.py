"""The report: what it says, that it fits, and that a whole one is there whatever happens."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as hyp

from gunicorn_grace.arbiter import report as reporting
from gunicorn_grace.arbiter.report import LIMIT, Report, told_lost, uncounted, verdict
from gunicorn_grace.shared.cells import Lost
from support.paths import TESTS
from support.trials import trials

pytestmark = pytest.mark.once

ROOT = Path(reporting.__file__).parents[1]


def report(**changes: Any) -> Report:
    values: dict[str, Any] = {
        "version": "1.2.3",
        "origin": "sigterm",
        "t0_unix_seconds": 1_795_602_038.966,
        "phase": "STOPPED",
        "ended": "drained",
        "lame_duck_seconds": 10.101,
        "lame_duck_ended": "delay elapsed",
        "draining_seconds": 1.4,
        "requests_since_t0": 130,
        "last_request_after_t0_seconds": 3.1,
        "handed_over": False,
        "in_flight_at_t0": 3,
        "in_flight_at_drain": 1,
        "in_flight_at_stop": 0,
        "cut_off": 0,
        "cut_off_by_kind": Lost()._asdict(),
        "cut_off_by_worker": [],
        "verdict": verdict(3.1, 10),
    }
    return Report(**{**values, **changes})


def test_the_keys_are_the_fields() -> None:
    """In their order, each with a meaning for the docs; one line."""
    data = report().to_json()
    assert list(json.loads(data)) == [field.name for field in dataclasses.fields(Report)]
    assert all(field.metadata["meaning"] for field in dataclasses.fields(Report))
    assert data.count(b"\n") == 1
    assert data.endswith(b"}\n")


@trials(200)
@given(
    workers=hyp.integers(0, 1024),
    number=hyp.integers(0, 2**63 - 1),
    seconds=hyp.one_of(hyp.none(), hyp.floats(-1e17, 1e17)),
    reason=hyp.one_of(hyp.none(), hyp.text(max_size=3000)),
)
def test_it_never_exceeds_the_limit(
    workers: int, number: int, seconds: float | None, reason: str | None
) -> None:
    """Whatever the numbers, however many workers, whatever an application's error says: at most
    4096 bytes of JSON."""
    told = report(
        ended=reason,
        requests_since_t0=number,
        last_request_after_t0_seconds=seconds,
        handed_over=False,
        lame_duck_seconds=seconds or 0.0,
        draining_seconds=seconds or 0.0,
        in_flight_at_t0=number,
        in_flight_at_drain=number,
        in_flight_at_stop=number,
        cut_off=number,
        cut_off_by_kind=Lost(*[number] * len(Lost._fields))._asdict(),
        cut_off_by_worker=[{"pid": 4_194_304 - i, "requests": number} for i in range(workers)],
        verdict=verdict(seconds, 10),
    )
    data = told.to_json()
    assert len(data) <= LIMIT == 4096
    assert json.loads(data)["cut_off"] == number


def test_what_cannot_be_counted_is_null() -> None:
    """No number of such a report is zero: only the accept queue is the kernel's to tell."""
    lost = Lost(accept_queue=3)
    told = json.loads(uncounted(report(cut_off=3, cut_off_by_kind=lost._asdict())).to_json())
    assert {key for key, value in told.items() if value is None} == {
        "requests_since_t0",
        "last_request_after_t0_seconds",
        "in_flight_at_t0",
        "in_flight_at_drain",
        "in_flight_at_stop",
        "cut_off",
        "cut_off_by_worker",
    }
    kinds = told["cut_off_by_kind"]
    assert kinds.pop("accept_queue") == 3
    assert set(kinds.values()) == {None}
    assert "not counted" in told["verdict"]
    assert told_lost(lost, counted=False) == (
        "what was cut off is not counted, 3 lost in the accept queue"
    )
    assert told_lost(Lost(), counted=False) == "what was cut off is not counted"


def test_each_kind_of_loss_has_its_word() -> None:
    """The sum comes first. How far they had come is said where some were not in flight."""
    assert told_lost(Lost()) == "0 cut off"
    assert told_lost(Lost(in_flight=2)) == "2 cut off"
    assert told_lost(Lost(1, 2, 3, 4, 5)) == (
        "15 cut off (1 in flight, 2 behind another, 3 read in part, 4 not begun, "
        "5 in the accept queue)"
    )
    assert told_lost(Lost(not_begun=1)) == "1 cut off (1 not begun)"


def test_the_list_is_what_gives_way() -> None:
    """A report that would be too long keeps every other key, and the first workers of the list: as
    many as fit."""
    workers = [{"pid": 10_000 + i, "requests": 500 - i} for i in range(500)]
    data = report(cut_off=7, cut_off_by_worker=workers).to_json()
    told = json.loads(data)
    kept = told["cut_off_by_worker"]
    assert kept == workers[: len(kept)]
    assert 50 < len(kept) < 500
    assert LIMIT - len(json.dumps(workers[0])) - 2 < len(data) <= LIMIT
    assert told["cut_off"] == 7
    assert (
        len(json.loads(report(cut_off_by_worker=workers[:20]).to_json())["cut_off_by_worker"]) == 20
    )


@pytest.mark.parametrize(
    ("before", "after"), [("drained", "x" * 100), ("x" * 100, "drained"), (None, "drained")]
)
def test_a_report_replaces_the_one_before(before: str | None, after: str, tmp_path: Path) -> None:
    """Longer or shorter, nothing of the old one stays."""
    path = tmp_path / "report.json"
    for ended in (before, after):
        reporting.write(str(path), report(ended=ended), last=False)
    assert path.read_bytes() == report(ended=after).to_json()


def test_what_a_file_held_before_is_gone(tmp_path: Path) -> None:
    """Also when it was not a report of ours, and longer than one may be."""
    path = tmp_path / "report.json"
    path.write_text("x" * 10_000)
    reporting.write(str(path), report(), last=True)
    assert path.read_bytes() == report().to_json()


WRITER = """
import sys
sys.path.insert(0, sys.argv[3])
from unit.arbiter.test_report import report
from gunicorn_grace.arbiter import report as reporting
while True:
    for ended in ("drained", "x" * 150, "deadline"):
        reporting.write(sys.argv[1], report(ended=ended), last=True)
        print(ended, flush=True)
"""


@pytest.mark.parametrize("writes", [1, 2, 3, 50])
def test_whenever_it_is_killed_a_whole_report_is_there(writes: int, tmp_path: Path) -> None:
    """A process that writes all the time is ended by SIGKILL while it does: what it leaves is JSON,
    long or short."""
    path = tmp_path / "report.json"
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(ROOT), str(TESTS)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            for _ in range(writes):
                assert process.stdout.readline()
        finally:
            process.kill()
    assert json.loads(path.read_bytes())["version"] == "1.2.3"


def test_between_its_two_steps_a_whole_report_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one over the longer old one is JSON already before the file is cut to its length."""
    path = tmp_path / "report.json"
    reporting.write(str(path), report(ended="x" * 150), last=False)
    seen = []
    monkeypatch.setattr(os, "ftruncate", lambda fd, length: seen.append(path.read_bytes()))
    reporting.write(str(path), report(), last=True)
    assert [json.loads(data)["ended"] for data in seen] == ["drained"]
    assert len(seen[0]) > len(report().to_json())


def test_a_fifo_that_nobody_reads_holds_nothing(tmp_path: Path) -> None:
    """Opening one waits for a reader, for ever (fifo(7)); it is an error at once. A reader gets the
    last report."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    with pytest.raises(OSError) as error:
        reporting.write(str(path), report(), last=True)
    assert error.value.errno == errno.ENXIO
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        reporting.write(str(path), report(ended=None), last=False)
        reporting.write(str(path), report(), last=True)
        assert os.read(fd, 65536) == report().to_json()
    finally:
        os.close(fd)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_no_space_is_an_error() -> None:
    """And no silence: the caller logs it."""
    with pytest.raises(OSError):
        reporting.write("/dev/full", report(), last=True)


@pytest.mark.parametrize(
    ("last_after", "delay", "words"),
    [
        (None, 10, "no request came after T0"),
        (9.7, 10, "requests still arrived at 97 % of the delay: make it longer"),
        (3.1, 10, "last request came 3.1 s after T0; a delay of 6 s would do"),
        (0.1, 10, "last request came 0.1 s after T0; a delay of 1 s would do"),
        (6.0, 10, "last request came 6.0 s after T0; the delay of 10 s fits"),
        (2.0, 0, "last request came 2.0 s after T0, and there is no delay"),
    ],
)
def test_the_verdict(last_after: float | None, delay: float, words: str) -> None:
    """What the last request says about the delay."""
    assert verdict(last_after, delay) == words


@pytest.mark.parametrize(
    ("cut_short", "lasted", "handed_over", "words"),
    [
        ("budget", 21.0, False, "requests came until the budget ended the delay after 21.0 s"),
        (
            "budget",
            8.0,
            False,
            "the delay was cut short (budget): nothing is known about its length",
        ),
        ("", 21.0, True, "no delay is needed: the listening sockets were handed over"),
        ("SIGINT", 1.0, True, "no delay is needed: the listening sockets were handed over"),
    ],
)
def test_a_longer_delay_is_not_advised_where_it_would_not_help(
    cut_short: str, lasted: float, handed_over: bool, words: str
) -> None:
    """Requests that never stop coming, and sockets that somebody else keeps, ask for no longer
    delay."""
    told = verdict(10.0, 10, cut_short, lasted=lasted, handed_over=handed_over)
    assert told.startswith(words)
    assert "make it longer" not in told


def test_whether_it_could_be_written_is_known_without_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is there keeps its content, one that is not there is not made, and a FIFO needs
    no reader."""
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("before")
    os.mkfifo("fifo")
    for path in ("there", "new", "fifo", str(tmp_path / "new"), "/dev/null", "/dev/stderr"):
        assert reporting.why_unwritable(path) is None, path
    assert Path("there").read_text() == "before"
    assert not Path("new").exists()
    assert reporting.why_unwritable(str(tmp_path)) == os.strerror(errno.EISDIR)
    assert reporting.why_unwritable("there/new") == os.strerror(errno.ENOTDIR)
    assert reporting.why_unwritable("nowhere/new") == os.strerror(errno.ENOENT)
    assert reporting.why_unwritable("a\0b") is not None


def test_the_termination_message_is_there_in_the_pod_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where Kubernetes shows itself it has to be writable; elsewhere its absence is no fault."""
    monkeypatch.setattr(reporting, "TERMINATION_LOG", str(tmp_path / "none" / "log"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    assert reporting.why_unwritable(reporting.TERMINATION_LOG) is None
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert reporting.why_unwritable(reporting.TERMINATION_LOG) == os.strerror(errno.ENOENT)
