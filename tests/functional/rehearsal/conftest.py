"""What the tests of the rehearsal share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import gunicorn_grace


@pytest.fixture
def folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the module's ``APP`` as ``app:app``, where this package is found,
    installed or not."""
    package = str(Path(gunicorn_grace.__file__).parents[1])
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
    )
    (tmp_path / "app.py").write_text(request.module.APP)
    return tmp_path
