"""How a container starts gunicorn, read from its command and arguments."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from gunicorn_grace.operate.check.configuration import (
    ConfigurationUnreadable,
    read_configuration,
)
from gunicorn_grace.operate.check.launch import Launch, options_of, read_launch
from gunicorn_grace.operate.check.seen import NAMES, _expand
from gunicorn_grace.operate.manifest import Container, read_workload
from gunicorn_grace.operate.manifest_yaml import parse_documents

pytestmark = pytest.mark.once


def container(command: list[str], args: list[str] | None = None) -> Container:
    pod = {"kind": "Pod", "spec": {"containers": [{"command": command, "args": args or []}]}}
    (document,) = parse_documents(yaml.safe_dump(pod), "pod.yaml")
    return read_workload(document, "pod.yaml").containers[0]


def launch(command: list[str], args: list[str] | None = None) -> Launch | None:
    return read_launch(container(command, args))


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["gunicorn", "-w", "2", "app:app"], ("-w", "2", "app:app")),
        (["/venv/bin/gunicorn", "app:app"], ("app:app",)),
        (["python", "-m", "gunicorn", "app:app"], ("app:app",)),
        (["hupper", "-m", "gunicorn.app.wsgiapp", "app:app"], ("app:app",)),
        (["ddtrace-run", "gunicorn", "app:app"], ("app:app",)),
        (["tini", "--", "gunicorn", "app:app"], ("app:app",)),
        (["/entrypoint.sh", "gunicorn", "app:app"], ("app:app",)),
        (["sh", "-c", "exec gunicorn 'a b:app' -w 2"], ("a b:app", "-w", "2")),
        (["bash", "-euo", "pipefail", "-c", "cd /app\npython3 -m gunicorn a:b\n"], ("a:b",)),
        (["sh", "-c", "pip install gunicorn && gunicorn a:b 2>&1 > log"], ("a:b",)),
        (["sh", "-c", "# gunicorn x\ngunicorn \\\n  -w 2 a:b"], ("-w", "2", "a:b")),
    ],
)
def test_gunicorn_is_found_with_its_arguments(command: list[str], words: tuple[str, ...]) -> None:
    """As a program, as a module, behind a wrapper, and in the script of a shell."""
    found = launch(command)
    assert found is not None
    assert found.words == words


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["celery", "-A", "gunicorn", "worker"],
        ["statsd_exporter", "--statsd.mapping-config=/etc/gunicorn.yaml"],
        ["sh", "-c", "pip install gunicorn && uvicorn app:app"],
        ["sh", "-c", "echo gunicorn"],
        ["sh", "-c", "while pgrep gunicorn-x; do sleep 1; done"],
    ],
)
def test_a_word_that_only_looks_like_it_is_not_gunicorn(command: list[str]) -> None:
    """A name, a file and a package are no command."""
    assert launch(command) is None


@pytest.mark.parametrize(
    ("script", "is_exec", "follows"),
    [
        ("gunicorn a:b", False, ""),
        ("exec gunicorn a:b", True, ""),
        ("cd /app && exec X=1 python -m gunicorn a:b", True, ""),
        ("migrate && gunicorn a:b", False, ""),
        ("migrate && gunicorn a:b;", False, ""),
        ("gunicorn a:b && echo done", False, "&&"),
        ("gunicorn a:b >> /log/out 2>&1", False, ""),
        ("gunicorn --access-logformat '%(h)s > & x' a:b &> log", False, ""),
        ("gunicorn a:b | tee log", False, "|"),
        ("gunicorn a:b & nginx -g 'daemon off;'", False, "&"),
        ("gunicorn a:b\necho over", False, ";"),
        ("exec echo; gunicorn a:b", False, ""),
    ],
)
def test_what_the_shell_does_with_it(script: str, is_exec: bool, follows: str) -> None:
    """Whether gunicorn takes the place of the shell, and what comes after it."""
    found = launch(["sh", "-c"], [script])
    assert found is not None
    assert (found.is_exec, found.follows) == (is_exec, follows)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["-w", "4", "-b", ":80", "-b", ":81"], {"workers": ["4"], "bind": [":80", ":81"]}),
        (["-w4", "-b:80", "--workers=2"], {"workers": ["4", "2"], "bind": [":80"]}),
        (["-w 1", "-b 0.0.0.0:5000"], {"workers": ["1"], "bind": ["0.0.0.0:5000"]}),
        (["--graceful-timeout"], {"graceful_timeout": [""]}),
        (["--chdir", "-w", "app:app"], {"chdir": ["-w"]}),
    ],
)
def test_options_are_read_as_gunicorn_reads_them(
    words: list[str], found: dict[str, list[str]]
) -> None:
    """Long and short, with and without a space or an equals sign."""
    assert options_of(tuple(words), NAMES) == found


@pytest.mark.parametrize(
    ("source", "seen"),
    [
        ("workers = 2 * 3 + 1", {"workers": 7}),
        ("import os\nworkers = int(os.environ.get('N', '4'))", {"workers": 4}),
        ("import os\nworkers = int(os.environ['SET'])", {"workers": 9}),
        ("import os\nbind = f\"0.0.0.0:{os.getenv('PORT') or 8000}\"", {"bind": "0.0.0.0:8000"}),
        ("a = 5\ngrace_shutdown_delay: int = -a", {"a": 5, "grace_shutdown_delay": -5}),
        ("a = 7 / 2\nworkers = 7 // 2 - 1", {"a": 3.5, "workers": 2}),
        ("bind = '0.0.0.0' + ':8000'", {"bind": "0.0.0.0:8000"}),
        ("bind = ['0.0.0.0:80', f'unix:{1}']", {"bind": ["0.0.0.0:80", "unix:1"]}),
        ("workers = 4 // 0", {}),
        ("workers = int('x')", {}),
        ("workers = 4 + True", {}),
        ("workers = 2\nif True:\n    workers = 3", {}),
        ("workers = cpu_count() * 2", {}),
        ("workers = 10 ** 10 ** 10", {}),
        ("workers = 'a' * 10 ** 12", {}),
    ],
)
def test_a_configuration_file_is_read_and_not_executed(
    tmp_path: Any, source: str, seen: dict[str, Any]
) -> None:
    """Values and plain sums are seen; what would have to be executed is named as not seen."""
    path = tmp_path / "gunicorn.conf.py"
    path.write_text(source + f"\nopen({str(tmp_path / 'touched')!r}, 'w')\n")
    values, unseen = read_configuration(str(path)).values({"SET": "9"})
    assert {name: value for name, (_, value) in values.items()} == seen
    assert seen or unseen == {"workers": source.count("\n") + 1}
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("content", [b"a = (", b"\0", b"\xff\xfe", b"(" * 5000])
def test_a_configuration_file_that_is_not_python_is_one_line(tmp_path: Any, content: bytes) -> None:
    """The file, and the line where there is one."""
    path = tmp_path / "bad.py"
    path.write_bytes(content)
    with pytest.raises(ConfigurationUnreadable) as caught:
        read_configuration(str(path))
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("0.0.0.0:$PORT", "0.0.0.0:8080"),
        ("0.0.0.0:${PORT}", "0.0.0.0:8080"),
        ("$(HOST):$(PORT)", "127.0.0.1:8080"),
        ("0.0.0.0:$PORT_ADMIN", "0.0.0.0:9090"),
        ("0.0.0.0:$PORTS", "0.0.0.0:$PORTS"),
        ("0.0.0.0:${PORT", "0.0.0.0:${PORT"),
    ],
)
def test_a_variable_ends_where_its_name_ends(written: str, read: str) -> None:
    """As for a shell and for Kubernetes; what is not set stays as it is written."""
    environ = {"PORT": "8080", "PORT_ADMIN": "9090", "HOST": "127.0.0.1"}
    assert _expand(written, environ) == read
