"""What other projects put into their CI: the pre-commit hook and the GitHub Action."""

from __future__ import annotations

import configparser
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.paths import EXAMPLES, ROOT

pytestmark = pytest.mark.once

HOOKS = ROOT / ".pre-commit-hooks.yaml"
ACTION = ROOT / "action.yml"


def test_the_hook_runs_a_command_that_is_installed() -> None:
    """pre-commit installs the package without extras, so the hook names what ``check`` needs."""
    (hook,) = yaml.safe_load(HOOKS.read_text(encoding="utf-8"))
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    scripts = setup["options.entry_points"]["console_scripts"].split()
    assert hook["entry"].split()[0] in scripts
    needed = setup["options.extras_require"]["manifest"].split()
    assert hook["additional_dependencies"] == needed


@pytest.mark.parametrize(
    ("files", "code"), [("*.yaml", 0), ("bad.yml", 1), ("**/none-*.yaml", 2), ("$(touch x)", 1)]
)
def test_the_action_judges_the_files_that_fit(files: str, code: int, tmp_path: Path) -> None:
    """Its script expands patterns, runs no command that an input holds, and writes SARIF too."""
    if shutil.which("bash") is None:
        pytest.skip("bash is not here")
    step = yaml.safe_load(ACTION.read_text(encoding="utf-8"))["runs"]["steps"][-1]
    for path in (EXAMPLES / "kubernetes").glob("*.yaml"):
        shutil.copy(path, tmp_path)
    (tmp_path / "bad.yml").write_text("a: [")
    given = {"FILES": files, "CONFIG": "", "STRICT": "true", "SARIF": "out.sarif"}
    assert set(step["env"]) == set(given)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    done = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", step["run"]],
        cwd=tmp_path,
        env={**os.environ, **given, "RUNNER_TEMP": str(tmp_path / "none"), "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert (tmp_path / "out.sarif").exists() == (code != 2)
    assert not (tmp_path / "x").exists()
