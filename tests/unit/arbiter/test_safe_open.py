"""What a path is followed through, and what is refused: tried with real links of several users."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gunicorn_grace.arbiter.safe_open import LONGEST_CHAIN, safe_open

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(not hasattr(os, "O_PATH"), reason="no O_PATH here"),
]

NOBODY = 65534
WRITE = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's link")


def write(path: str | Path) -> None:
    fd = safe_open(str(path), WRITE, 0o600)
    os.write(fd, b"report")
    os.close(fd)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder that everybody may write to."""
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o777)
    return folder


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file that must not be overwritten."""
    file = tmp_path / "secret"
    file.write_text("secret")
    return file


@needs_root
@pytest.mark.parametrize("mode", [0o777, 0o1777], ids=["not sticky", "sticky"])
@pytest.mark.parametrize("where", ["the file", "a folder above it", "behind a link of ours"])
def test_a_link_of_another_user_is_not_followed(
    mode: int, where: str, shared: Path, secret: Path, tmp_path: Path
) -> None:
    """Neither as the file, nor as a folder on the way, nor where a link of our own leads to it.
    What it names is left alone."""
    shared.chmod(mode)
    link = shared / "link"
    link.symlink_to(tmp_path if where == "a folder above it" else secret)
    os.lchown(link, NOBODY, NOBODY)
    path = link
    if where == "a folder above it":
        path = link / "secret"
    if where == "behind a link of ours":
        path = tmp_path / "ours"
        path.symlink_to("shared/link")
    with pytest.raises(PermissionError, match=f"a link of user {NOBODY} in a folder"):
        write(path)
    assert secret.read_text() == "secret"


def test_a_file_with_a_second_name_is_not_overwritten(shared: Path, secret: Path) -> None:
    """A hard link names the same file, and has the owner of that file."""
    os.link(secret, shared / "link")
    with pytest.raises(PermissionError, match="a file with 2 names"):
        write(shared / "link")
    assert secret.read_text() == "secret"


def test_links_of_our_own_are_followed(shared: Path, tmp_path: Path) -> None:
    """Absolute and relative ones, in a shared folder too, and one that leads to a file that is not
    there yet."""
    (shared / "relative").symlink_to("../made")
    (shared / "absolute").symlink_to(shared / "relative")
    (tmp_path / "folder").symlink_to(shared)
    for path in (shared / "absolute", tmp_path / "folder" / "relative"):
        write(path)
        assert (tmp_path / "made").read_text() == "report"
        (tmp_path / "made").unlink()


def test_plain_files_are_written(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By absolute and relative paths, with dots and double slashes in them."""
    monkeypatch.chdir(shared)
    for path in (
        "report",
        "./report",
        "../shared//report",
        f"{shared}/./report",
        f"/{shared}/report",
    ):
        write(path)
        assert Path("report").read_text() == "report"
        Path("report").unlink()


def test_what_is_not_there_says_so(tmp_path: Path) -> None:
    """A folder that is missing, a folder in the place of the file, a file in the place of a folder,
    links in a circle."""
    (tmp_path / "file").touch()
    (tmp_path / "circle").symlink_to("circle")
    for path, error in {
        "none/report": FileNotFoundError,
        "": IsADirectoryError,
        ".": IsADirectoryError,
        "file/report": NotADirectoryError,
    }.items():
        with pytest.raises(error):
            write(f"{tmp_path}/{path}")
    with pytest.raises(OSError, match="Too many levels"):
        write(tmp_path / "circle")
    assert LONGEST_CHAIN == 40


def test_standard_error_and_fifos_go_on_working(tmp_path: Path) -> None:
    """``/dev/stderr`` is a link into /proc, to a pipe mostly. A FIFO is opened like a file."""
    code = "from gunicorn_grace.arbiter.safe_open import safe_open as o; import os\n"
    code += "os.write(o('/dev/stderr', os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK), b'report')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=20)
    assert done.stderr == b"report"
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    write(fifo)
    assert os.read(reader, 100) == b"report"
    os.close(reader)


def test_nothing_is_left_open(shared: Path, secret: Path, tmp_path: Path) -> None:
    """Neither after a file was opened nor after one was refused."""
    os.link(secret, shared / "hard")
    (tmp_path / "ours").symlink_to("shared/report")
    (tmp_path / "circle").symlink_to("circle")
    before = len(os.listdir("/proc/self/fd"))
    for path in (tmp_path / "ours", shared / "hard", shared / "none" / "x", tmp_path / "circle"):
        try:
            write(path)
        except OSError:
            continue
    assert len(os.listdir("/proc/self/fd")) == before
