"""What is packed is what is in the source tree."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
PACKED = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "gunicorn_grace")


def test_a_file_of_a_former_build_is_not_packed(tmp_path: Path) -> None:
    """``pip install .`` leaves ``build/`` in the source tree; a module that has moved since then
    must not be in the next wheel."""
    pytest.importorskip("setuptools", minversion="77")
    for name in PACKED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tmp_path / name)
        else:
            shutil.copy(source, tmp_path / name)
    stale = tmp_path / "build" / "lib" / "gunicorn_grace" / "stale.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("")
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    command = [sys.executable, "-c", build, str(tmp_path)]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, timeout=100)
    (wheel,) = tmp_path.glob("*.whl")
    names = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("gunicorn")}
    packed = {name for name in names if "dist-info" not in name and name.endswith(".py")}
    sources = {str(path.relative_to(ROOT)) for path in (ROOT / "gunicorn_grace").rglob("*.py")}
    assert packed == sources
