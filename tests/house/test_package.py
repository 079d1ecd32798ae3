"""What is packed is what is in the source tree."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from support.paths import ROOT, copy_package

pytestmark = pytest.mark.once


def build(folder: Path, **env: str) -> Path:
    """Build the wheel of a folder."""
    pytest.importorskip("setuptools", minversion="77")
    code = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", code, str(folder)]
    environ = {**os.environ, **env}
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=100, env=environ)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_a_file_of_a_former_build_is_not_packed(tmp_path: Path) -> None:
    """``pip install .`` leaves ``build/`` in the source tree; a module that has moved since then
    must not be in the next wheel."""
    folder = copy_package(tmp_path / "source")
    stale = folder / "build" / "lib" / "gunicorn_grace" / "stale.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    wheel = build(folder)
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("gunicorn")}
    packed = {name for name in names if "dist-info" not in name and name.endswith(".py")}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "gunicorn_grace").rglob("*.py")}
    assert packed == sources


def test_everybody_builds_the_same_wheel(tmp_path: Path) -> None:
    """Neither the umask of a checkout nor the time of its files is in it."""
    wheels = []
    for name, mode, when in (("one", 0o644, 1_600_000_000), ("two", 0o600, 1_700_000_000)):
        folder = copy_package(tmp_path / name)
        for path in folder.rglob("*"):
            if path.is_file():
                path.chmod(mode)
                os.utime(path, (when, when))
        wheels.append(build(folder, SOURCE_DATE_EPOCH="1767225600"))
    one, two = (wheel.read_bytes() for wheel in wheels)
    assert one == two
