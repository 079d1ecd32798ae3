"""The line that explains why an instance did not start."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

import pytest

from gunicorn_grace.rehearsal.errors import likely_cause, traceback_cause

pytestmark = pytest.mark.once

MODULES = {
    "missing.py": ("import os\n\nos.environ['NO_SUCH_VARIABLE']\n", "3: KeyError: 'NO_SUCH"),
    "wrong.py": ("def app(environ)\n    pass\n", "1: SyntaxError: "),
    "factory.py": (
        "def create():\n    raise ValueError('no config')\n\ncreate()\n",
        "2: ValueError",
    ),
    "absent.py": ("import no_such_module\n", "1: ModuleNotFoundError: No module named 'no_such"),
    "foreign.py": ("import json\njson.loads('{')\n", "2: json.decoder.JSONDecodeError: "),
    "chained.py": (
        "try:\n    import no_such_module\nexcept ImportError as error:\n"
        "    raise RuntimeError('install it') from error\n",
        "4: RuntimeError: install it",
    ),
}


def output_of(file: Path) -> str:
    """What gunicorn logs when it cannot import this file: the real traceback."""
    try:
        exec(compile(file.read_text(), str(file), "exec"), {})
    except Exception:
        return "[2026-11-27] [7] [ERROR] Exception in worker process\n" + traceback.format_exc()
    raise AssertionError("it was imported")


@pytest.mark.parametrize("name", MODULES)
def test_a_mistake_has_its_place_in_the_users_code(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The innermost frame that is neither Python's nor a package's, relative to the working
    directory."""
    code, cause = MODULES[name]
    file = tmp_path / name
    file.write_text(code)
    said = output_of(file) + "[2026-11-27] [7] [INFO] Worker exiting (pid: 7)\n"
    monkeypatch.chdir(tmp_path)
    assert likely_cause(said).startswith(f"{name}:{cause}")
    monkeypatch.chdir(os.sep)
    assert likely_cause(said).startswith(f"{file}:{cause}")


def test_what_has_no_place_is_told_without_one() -> None:
    """A traceback of gunicorn alone, a line without one, and no output at all."""
    package = Path(sys.prefix) / "lib" / "python3.11" / "site-packages" / "gunicorn" / "util.py"
    alone = (
        f'Traceback (most recent call last):\n  File "{package}", line 9, in import_app\n'
        "ModuleNotFoundError: No module named 'nowhere'\n"
    )
    assert likely_cause(alone) == "ModuleNotFoundError: No module named 'nowhere'"
    assert likely_cause("gunicorn: error: unrecognized arguments: --no\n").startswith("gunicorn:")
    assert likely_cause("first\nlast\n\n") == "last"
    assert likely_cause("") == traceback_cause("KeyError: 1\n") == ""
