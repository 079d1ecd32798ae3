"""What the shutdowns of a fleet tell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as hyp

from gunicorn_grace import cli
from gunicorn_grace.operate import collecting, reports, reports_text
from gunicorn_grace.operate.collecting import Found, Late


def report(**fields: Any) -> dict[str, Any]:
    """The report of a shutdown that went well, but for what is given."""
    return {
        "version": "0.1.0",
        "origin": "sigterm",
        "t0_unix_seconds": 1795795416.7,
        "phase": "STOPPED",
        "ended": "drained",
        "lame_duck_seconds": 10.0,
        "draining_seconds": 2.0,
        "last_request_after_t0_seconds": 4.0,
        "cut_off": 0,
        **fields,
    }


def pod(name: str, *messages: Any, labels: dict[str, str] | None = None) -> dict[str, Any]:
    """A pod as kubectl shows it, with the termination messages of its containers."""
    return {
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": labels or {}},
        "status": {
            "containerStatuses": [
                {"lastState": {"terminated": {"message": message}}} for message in messages
            ]
        },
    }


def told(capsys: pytest.CaptureFixture[str], *files: Path, code: int = 0) -> dict[str, Any]:
    """The services in the JSON document of the command."""
    assert cli.main(["reports", "--json", *map(str, files)]) == code
    services = json.loads(capsys.readouterr().out)["services"]
    assert isinstance(services, dict)
    return services


def test_the_pods_of_kubectl(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each termination message that is a report counts for the service of its pod: by its label, or
    by its name without what a Deployment or a StatefulSet adds. Others are passed over."""
    well = json.dumps(report())
    pods = [
        pod("web-7d9f5b5c4d-x2x9k", well, "OOM", None),
        pod("web-7d9f5b5c4d-abcde", well),
        pod("db-0", json.dumps(report(origin="prestop")) + "\n   "),
        pod("x", well, labels={"app.kubernetes.io/name": "api"}),
        pod("silent-0"),
    ]
    file = tmp_path / "pods.json"
    for indent in (None, 4):
        file.write_text(json.dumps({"kind": "List", "items": pods}, indent=indent))
        services = told(capsys, file)
        assert {name: service["shutdowns"] for name, service in services.items()} == {
            "shop/api": 1,
            "shop/db": 1,
            "shop/web": 2,
        }
    assert services["shop/db"]["begun_by"] == {"prestop": 1}


def test_files_and_logs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A report file counts for the folder that it is in. In a log a report is a line, after the
    prefix of kubectl, or in the object that a collector has made of it."""
    (tmp_path / "cart").mkdir()
    one = tmp_path / "cart" / "pod-1.json"
    one.write_text(json.dumps(report()) + " " * 200)
    wrapped = {"log": json.dumps(report()), "kubernetes": {"labels": {"app": "mail"}}}
    log = tmp_path / "cart" / "log"
    log.write_text(
        "\n".join(
            [
                "[2026-11-27 16:03:40 +0000] [10853] [INFO] Handling signal: term",
                f"[pod/web-7d9f5b5c4d-x2x9k/app] {json.dumps(report())}",
                "[pod/web-7d9f5b5c4d-x2x9k/app] [INFO] gunicorn-grace: late_request 8.7 s after T0, "
                "past 80 % of grace_shutdown_delay 10 s: GET / from 10.0.0.7 port 51712 "
                "(X-FORWARDED-FOR '192.0.2.7', USER-AGENT 'slow-router/1'); make it longer",
                json.dumps(wrapped),
                json.dumps({"message": json.dumps(report())}),
                "{broken " + json.dumps(report()),
            ]
        )
    )
    services = told(capsys, one, log)
    assert {name: service["shutdowns"] for name, service in services.items()} == {
        "cart": 2,
        "mail": 1,
        "web": 1,
    }
    assert services["web"]["late_requests_by_router"] == {
        "10.0.0.7 (slow-router/1) for 192.0.2.7": 1
    }


def test_what_was_lost_or_killed_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A report that was never finished is one of a process that was killed. Both make the exit code
    1; what could not be counted is told, and is no failure."""
    file = tmp_path / "log"
    rows = [report(cut_off=None), report(cut_off=3), report(ended="deadline"), report(ended=None)]
    file.write_text("\n".join(map(json.dumps, rows)))
    (service,) = told(capsys, file, code=1).values()
    assert service["ended"] == {"drained": 2, "deadline": 1, "killed": 1}
    assert (service["cut_off"], service["shutdowns_with_cut_off"]) == (3, 1)
    assert (service["shutdowns_not_counted"], service["not_over_in_time"]) == (1, 2)
    assert service["period_that_would_do"] is None
    assert cli.main(["reports", str(file)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert "  cut off: 3 requests in 1 shutdown; not counted in 1 shutdown" in said
    assert said[-2].startswith("  not over in time: 2; the longest drain took ")
    assert " ".join(said[-2:]).endswith("lengthen the period, or     shorten what is in flight")
    assert max(map(len, said)) <= reports_text.WIDTH
    file.write_text(json.dumps(report(cut_off=None)))
    told(capsys, file)


def test_the_delay_and_the_period_that_would_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The latest request of 100 shutdowns came after 8 s, so a delay of 10 s has it within 80 %.
    The longest drain took 20 s: 10 + 25 + 2 s."""
    file = tmp_path / "log"
    rows = [
        report(last_request_after_t0_seconds=after / 12.5, draining_seconds=after / 5)
        for after in range(1, 101)
    ]
    file.write_text("\n".join(map(json.dumps, [*rows, report(last_request_after_t0_seconds=None)])))
    (service,) = told(capsys, file).values()
    assert service["delay_that_would_do"] == 10
    assert service["period_that_would_do"] == 37
    assert service["last_request_after_t0_seconds"] == {
        "median": 4.0,
        "p99": 7.92,
        "most": 8.0,
        "none_in": 1,
    }
    assert cli.main(["reports", str(file)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  would do: grace_shutdown_delay 10 s, grace_termination_period 37 s" in lines
    assert max(map(len, lines)) <= reports_text.WIDTH


def test_requests_that_never_stop_say_nothing_about_the_delay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The budget ended the delay, or somebody else keeps the sockets: the advice comes from the
    other shutdowns, and none is given where there are no others."""
    file = tmp_path / "log"
    endless = report(last_request_after_t0_seconds=21.0, lame_duck_ended="budget")
    kept = report(last_request_after_t0_seconds=0.3, handed_over=True)
    file.write_text("\n".join(map(json.dumps, [endless, kept, report()])))
    (service,) = told(capsys, file).values()
    assert (service["delay_ended_by_budget"], service["sockets_handed_over"]) == (1, 1)
    assert service["delay_that_would_do"] == 5
    assert cli.main(["reports", str(file)]) == 0
    assert "in 1, requests never stopped coming" in capsys.readouterr().out
    file.write_text(json.dumps(kept))
    assert cli.main(["reports", str(file)]) == 0
    assert "no delay is needed" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, b"", b"\xff\xfe{", b"[1, 2]", b"{" * 10000, b"no\n"])
def test_input_without_a_report_is_one_line(
    content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not there, empty, not text, other JSON, nested too deeply, another log."""
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    assert cli.main(["reports", str(file)]) == 1
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert str(file) in err


JSON = hyp.recursive(
    hyp.none() | hyp.booleans() | hyp.floats() | hyp.integers() | hyp.text(max_size=5),
    lambda inner: (
        hyp.lists(inner, max_size=3)
        | hyp.dictionaries(hyp.sampled_from([*report(), "items", "kind", "status"]), inner)
    ),
    max_leaves=12,
)


@given(hyp.dictionaries(hyp.sampled_from(list(report())), JSON), JSON)
def test_no_json_is_a_traceback(fields: dict[str, Any], other: Any) -> None:
    """Reports with any values, and pods that are none, are counted or passed over."""
    service = reports.Service()
    pods = [pod("x", json.dumps(report(**fields))), {"kind": "Pod", "status": other}]
    documents = [report(**fields), other, {"items": [pods, other]}, pods]
    for found in collecting.in_document(documents, "any"):
        service.add(found.report)
    lines = [json.dumps(each) for each in documents]
    for one in collecting.in_lines(lines, "any"):
        assert isinstance(one, (Found, Late))
    shown = {"any": service}
    assert max(map(len, reports_text.text(shown).splitlines())) <= reports_text.WIDTH
    json.dumps(reports_text.document(shown))


def test_a_large_fleet_takes_little_memory(tmp_path: Path) -> None:
    """20,000 reports of 200 services take no 8 MiB more than one: they are not kept."""
    script = (
        "import resource, sys; from gunicorn_grace import cli; code = cli.main(sys.argv[1:]); "
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024); sys.exit(code)"
    )

    def lines(count: int) -> list[str]:
        file = tmp_path / "log"
        with file.open("w") as stream:
            for number in range(count):
                stream.write(f"[pod/web{number % 200}-0/app] {json.dumps(report())}\n")
        run = [sys.executable, "-c", script, "reports", str(file)]
        done = subprocess.run(run, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.splitlines()

    *paragraphs, many = lines(20_000)
    assert sum(": 100 shutdowns" in line for line in paragraphs) == 200
    assert int(many) < int(lines(1)[-1]) + 8
