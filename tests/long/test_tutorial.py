"""The tutorial works: its files are written, and its commands are run, in the order of the page."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.paths import DOCS, copy_package

pytestmark = pytest.mark.once

PAGE = DOCS / "tutorial" / "flask-on-kubernetes.md"
BLOCK = re.compile(r"^```(?P<kind>\w+)\n(?P<body>.*?)^```$", re.M | re.S)
ELSEWHERE = ("docker ", "kubectl ")
"""Commands that need a cluster."""


def blocks() -> Iterator[tuple[str, str, str]]:
    """Kind and content of each block, and the text that comes before it."""
    text = PAGE.read_text(encoding="utf-8")
    end = 0
    for block in BLOCK.finditer(text):
        yield block["kind"], block["body"], text[end : block.start()]
        end = block.end()


def pattern(shown: str) -> re.Pattern[str]:
    """What is shown, as an expression for what is printed: numbers differ from run to run, but
    for statuses, and ``...`` stands for anything."""
    parts = []
    for line in shown.strip().splitlines():
        numbers = "" if line.startswith("HTTP/") else r"\d+(?:\.\d+)?|"
        words = re.split(rf"(\.\.\.|{numbers}\s+)", line.strip())
        parts.append(
            "".join(
                ".*"
                if word == "..."
                else r"\d+(?:\.\d+)?"
                if numbers and re.match(r"\d", word)
                else r"\s+"
                if word.isspace()
                else re.escape(word)
                for word in words
            )
        )
    return re.compile(r"\s*\n[\s\S]*?".join(parts))


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Reader:
    """Somebody who follows the page.

    :ivar said: what the last command printed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = str(free_port())
        self.said = ""
        self.server: subprocess.Popen[bytes] | None = None
        self.log = folder / "terminal-1"

    def save(self, name: str, content: str) -> None:
        (self.folder / name).write_text(content.replace("8080", self.port))

    def run(self, command: str, code: int) -> None:
        """Run a block. A server stays in the foreground of a terminal of its own."""
        command = command.replace("8080", self.port)
        # In a terminal curl shows no progress.
        activate = 'curl() { command curl -sS "$@"; }\n'
        activate += "" if "activate" in command else ". .venv/bin/activate\n"
        bash = ["bash", "-e", "-c", activate + command]
        if re.match(r"(GRACE_\w+=\S+ )?gunicorn ", command):
            bash[-1] = activate + "exec env " + command
            with self.log.open("wb") as log:
                self.server = subprocess.Popen(
                    bash, cwd=self.folder, stdout=log, stderr=log, start_new_session=True
                )
            self.wait_log("Booting worker")
            return
        done = subprocess.run(
            bash,
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
        )
        self.said = done.stdout
        assert done.returncode == code, command + self.said

    def wait_log(self, line: str) -> None:
        """Wait until the server's log has this line."""
        wanted = pattern(line)
        for _ in range(1000):
            if wanted.search(self.log.read_text()):
                return
            time.sleep(0.02)
        pytest.fail(f"no {line!r} in {self.log.read_text()}")

    def leave(self) -> None:
        """Close the first terminal."""
        if self.server is not None and self.server.poll() is None:
            os.killpg(self.server.pid, signal.SIGKILL)
            self.server.wait()


@pytest.mark.timeout(240)
def test_the_tutorial_works(tmp_path: Path) -> None:
    """Every file of the page is written, every command of it is run and exits as the page says,
    and what it prints is what the page shows. What needs a cluster is only parsed."""
    copy_package(tmp_path / "gunicorn-grace")
    reader = Reader(tmp_path)
    page = list(blocks())
    assert len(page) > 15
    try:
        for n, (kind, body, before) in enumerate(page):
            after = page[n + 1][2] if n + 1 < len(page) else ""
            if n + 2 < len(page) and page[n + 1][0] == "text":
                after = page[n + 2][2]
            if kind == "sh" and body.startswith(ELSEWHERE):
                subprocess.run(["bash", "-n", "-c", body], check=True, timeout=10)
            elif kind == "sh":
                reader.run(body, 1 if "exit code is 1" in after else 0)
            elif kind == "text":
                assert pattern(body).search(reader.said), body + "\n---\n" + reader.said
            elif kind == "log":
                for line in body.splitlines():
                    reader.wait_log(line)
            else:
                (name,) = re.findall(r"`([\w.-]+)`:\s*$", before)
                reader.save(name, body)
        assert reader.server is not None
        assert reader.server.wait(20) == 0
        assert "gunicorn-grace: stopped" in reader.log.read_text()
        assert "<svg" in (tmp_path / "rehearsal.html").read_text()
    finally:
        reader.leave()
