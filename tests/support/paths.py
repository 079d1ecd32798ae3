"""Where things are in a checkout."""

from __future__ import annotations

import shutil
from pathlib import Path

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
APPS = TESTS / "apps"
"""The applications that servers load: on ``PYTHONPATH`` of every server under test."""
DOCS = ROOT / "docs"
EXAMPLES = ROOT / "examples"
PACKED = ("setup.py", "setup.cfg", "pyproject.toml", "README.md", "LICENSE", "gunicorn_grace")
"""What the package is built from."""


def copy_package(folder: Path) -> Path:
    """Copy what the package is built from into a folder, which may not be there yet."""
    folder.mkdir(exist_ok=True)
    for name in PACKED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    return folder
