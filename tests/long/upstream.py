"""gunicorn's own tests, once as they are and once with the plugin loaded: ``tox -e
gunicorn-suite27``.

What this project tests of gunicorn is what its authors thought of. The tests in gunicorn's source
distribution were written by others, against gunicorn's own promises: signals, reload, control
socket, keep-alive at the stop. They have to come out the same with the plugin, test by test.

The source distribution of the installed version is fetched with pip, and only its tests are
unpacked, so that what is tested is the installed gunicorn. The plugin comes in by
``GUNICORN_CMD_ARGS``, which every gunicorn that a test starts reads; that it was at work is seen by
the report that it leaves. The delay is shortened, because upstream's tests allow a stop only a few
seconds. Pipes are made larger, both ways: one test reloads ten times at log level debug and never
reads what gunicorn says, 62 KiB of it in plain gunicorn 27.0.1, and a pipe that is full at 64 KiB
stops whoever logs; the settings of the plugin in that listing make it 69. A test that comes out
differently, or fails with the plugin, is run once more, both ways: some of upstream's are a matter
of luck on a busy machine. What then differs or fails with the plugin, fails the run, also if plain
gunicorn failed as well: such a comparison would show nothing.

Exit code: 0 the same; 1 not; 2 it could not be run.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
import xml.etree.ElementTree
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import click

FILES = (
    "test_signal_integration.py",
    "test_control_socket_integration.py",
    "test_gthread_keepalive_shutdown.py",  # From 27.0 on.
    "test_arbiter.py",
    "test_gthread.py",
    "test_reload.py",
    "test_asgi_nr_conns_shutdown.py",
)
DELAY = "1"

PIPES = "larger_pipes"
LARGER_PIPES = """
import functools, subprocess
subprocess.Popen.__init__ = functools.partialmethod(subprocess.Popen.__init__, pipesize=1 << 20)
"""


class CouldNotRun(click.ClickException):
    """There is nothing to compare."""

    exit_code = 2


def fetch(version: str, folder: Path) -> Path:
    """Download and unpack the tests of this version; the folder that holds ``tests``."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    done = subprocess.run(
        [*command, "--no-binary", "gunicorn", "--dest", str(folder), f"gunicorn=={version}"],
        check=False,
        timeout=300,
    )
    if done.returncode:
        raise CouldNotRun(f"pip could not download the source distribution of gunicorn {version}")
    name = f"gunicorn-{version}"
    with tarfile.open(folder / f"{name}.tar.gz") as archive:
        tests = [
            member for member in archive.getmembers() if member.name.startswith(f"{name}/tests/")
        ]
        archive.extractall(folder, members=tests, filter="data")
    (folder / name / f"{PIPES}.py").write_text(LARGER_PIPES)
    # Gunicorn's own file asks for coverage; and with none, pytest would take one from a folder
    # further up.
    (folder / name / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\njunit_family = xunit1\n"
    )
    return folder / name


def run(
    source: Path, tests: Sequence[str], name: str, extra: Mapping[str, str], timeout: float
) -> dict[str, str]:
    """Run tests of gunicorn's; what became of each: passed, failed, error or skipped."""
    written = source.parent / f"{name}.xml"
    written.unlink(missing_ok=True)
    env = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("GRACE_", "GUNICORN_", "PYTEST_"))
    }
    options = [
        "-q",
        "-p",
        PIPES,
        "-p",
        "no:cacheprovider",
        "-c",
        "pytest.ini",
        f"--junitxml={written}",
    ]
    with (source.parent / f"{name}.log").open("w") as log:
        subprocess.run(
            [sys.executable, "-m", "pytest", *options, *tests],
            cwd=source,
            env={**env, **extra},
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=timeout,
            check=False,
        )
    if not written.exists():
        raise CouldNotRun(
            f"pytest ended without a result: {(source.parent / f'{name}.log').read_text()}"
        )
    return outcomes(written.read_text())


def outcomes(junit: str) -> dict[str, str]:
    """The outcome of each test, by the name that pytest takes on its command line."""
    found = {}
    for case in xml.etree.ElementTree.fromstring(junit).iter("testcase"):
        file = case.get("file") or ""
        module = file.removesuffix(".py").replace("/", ".")
        classes = (case.get("classname") or "").removeprefix(module).strip(".")
        name = "::".join(filter(None, [file, *classes.split("."), case.get("name")]))
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        found[name] = (
            {"failure": "failed", "error": "error", "skipped": "skipped"}[min(kinds)]
            if kinds
            else "passed"
        )
    return found


def doubtful(plain: Mapping[str, str], grace: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Tests that did not come out the same both ways, or not well with the plugin."""
    both = (
        (name, (plain.get(name, "missing"), grace.get(name, "missing")))
        for name in {*plain, *grace}
    )
    return {
        name: pair
        for name, pair in sorted(both)
        if pair not in (("passed", "passed"), ("skipped", "skipped"))
    }


def counts(found: Iterable[str]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(Counter(found).items()))


@click.command(context_settings={"show_default": True})
@click.option(
    "--folder", type=click.Path(path_type=Path), help="Where to unpack.  [default: a temporary one]"
)
@click.option("--timeout", default=600.0, help="Seconds for one run of the tests.")
def main(folder: Path | None, timeout: float) -> None:
    """Compare gunicorn's own tests with and without the plugin."""
    version = importlib.metadata.version("gunicorn")
    folder = (folder or Path(tempfile.mkdtemp(prefix="upstream-"))).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    source = fetch(version, folder)
    tests = [f"tests/{file}" for file in FILES if (source / "tests" / file).exists()]
    if not tests:
        raise CouldNotRun(f"gunicorn {version} carries none of the tests")
    reported = folder / "report.json"
    reported.unlink(missing_ok=True)
    ways: dict[str, dict[str, str]] = {
        "plain": {},
        "grace": {
            "GUNICORN_CMD_ARGS": "-c python:gunicorn_grace.conf",
            "GRACE_SHUTDOWN_DELAY": DELAY,
            "GRACE_MIN_DELAY": "0",
            "GRACE_REPORT": str(reported),
        },
    }
    first = {name: run(source, tests, name, extra, timeout) for name, extra in ways.items()}
    for name, found in first.items():
        click.echo(f"gunicorn {version}, {len(tests)} files, {name}: {counts(found.values())}")
    suspects = doubtful(first["plain"], first["grace"])
    for name, (plain, grace) in suspects.items():
        click.echo(f"doubtful: {name}: plain {plain}, grace {grace}")
    bad: dict[str, tuple[str, str]] = {}
    if suspects:
        # Only what both have can be asked of both.
        common = [name for name in suspects if "missing" not in suspects[name]]
        second = {
            name: run(source, common, f"{name}-again", extra, timeout)
            for name, extra in ways.items()
            if common
        }
        bad = {name: pair for name, pair in suspects.items() if "missing" in pair}
        bad |= doubtful(second.get("plain", {}), second.get("grace", {}))
        for name in suspects:
            click.echo(
                f"again: {name}: "
                + ("plain {}, grace {}".format(*bad[name]) if name in bad else "the same")
            )
    if not reported.exists():
        raise CouldNotRun("the plugin was not at work: no gunicorn of these tests left a report")
    if bad or "passed" not in first["plain"].values():
        click.echo(f"not the same: the output of both is in {folder}")
        sys.exit(1)
    click.echo("the same with the plugin as without it")


if __name__ == "__main__":
    main()
