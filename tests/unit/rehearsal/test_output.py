"""The files that a rehearsal writes at its end."""

from __future__ import annotations

from pathlib import Path

import pytest

from gunicorn_grace.rehearsal.command.output import opened
from gunicorn_grace.rehearsal.errors import OutputFailed

pytestmark = pytest.mark.once


def test_a_file_keeps_what_it_held_until_it_is_written(tmp_path: Path) -> None:
    """A rehearsal that fails leaves the last report alone, and no empty file; one that ends
    replaces it."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("before, and longer")
    with opened({"--json": str(old), "--html": str(new)}):
        assert old.read_text() == "before, and longer"
    assert old.read_text() == "before, and longer"
    assert not new.exists()
    with opened({"--json": str(old), "--html": str(new)}) as outputs:
        outputs["--json"].write("after")
        outputs["--html"].write("page")
    assert (old.read_text(), new.read_text()) == ("after", "page")


@pytest.mark.parametrize(
    ("path", "said"),
    [("nowhere/x", "No such file or directory"), (".", "Is a directory"), ("a\0b", "null byte")],
)
def test_a_file_that_cannot_be_written_is_told_before_the_rehearsal(
    tmp_path: Path, path: str, said: str
) -> None:
    """The option, the path and the reason in one line."""
    with (
        pytest.raises(OutputFailed, match=f"--html .*: .*{said}"),
        opened({"--html": str(tmp_path / path)}),
    ):
        pytest.fail("it was opened")


def test_a_full_disk_is_told_and_leaves_no_half_file() -> None:
    """/dev/full takes nothing."""
    with (
        opened({"--json": "/dev/full"}) as outputs,
        pytest.raises(OutputFailed, match=r"^--json /dev/full: No space"),
    ):
        outputs["--json"].write("x" * 100_000)


def test_two_reports_do_not_fit_into_one_file(tmp_path: Path) -> None:
    """By whatever way the same file is named."""
    path = tmp_path / "x"
    wanted = {"--json": str(path), "--html": f"{tmp_path}/../{tmp_path.name}/x"}
    with pytest.raises(OutputFailed, match="same file"), opened(wanted):
        pytest.fail("both were opened")
    assert not path.exists()
