"""What other projects put into their CI: the pre-commit hook and the GitHub Action."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gunicorn_grace.arbiter import tested
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


def test_what_counts_as_tested_is_what_tox_runs() -> None:
    """A newer gunicorn or Python gets a line at boot. The newest without one is the newest that the
    matrix has, and the classifiers name no other."""
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    gunicorns = re.findall(r"gunicorn==(\d+)\.(\d+)", tox["testenv"]["deps"])
    assert max((int(major), int(minor)) for major, minor in gunicorns) == tested.NEWEST_GUNICORN
    (pythons,) = re.findall(r"py\{([\d, ]+)\}", tox["tox"]["env_list"])
    major, minor = tested.NEWEST_PYTHON
    assert pythons.split(", ")[-1] == f"{major}{minor}"
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = re.findall(r"Python :: (\d)\.(\d+)", setup["metadata"]["classifiers"])
    assert max((int(major), int(minor)) for major, minor in named) == tested.NEWEST_PYTHON


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.stem)
def test_an_action_of_somebody_else_is_pinned(workflow: Path) -> None:
    """To a commit, with the version beside it, and no job may do more than it says."""
    text = workflow.read_text(encoding="utf-8")
    assert yaml.safe_load(text)["permissions"] == {"contents": "read"}
    used = re.findall(r"uses: (.*)", text)
    assert used
    for action in used:
        assert re.fullmatch(r"\./\.github/.*|[\w./-]+@[0-9a-f]{40}  # v[\d.]+", action), action


def test_the_workflow_runs_what_tox_knows() -> None:
    """Each environment of tox's own list has a job, but for the Python that the jobs for each
    gunicorn have."""
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]
    listed = {row["env"] for row in jobs["tox"]["strategy"]["matrix"]["include"]}
    tox = configparser.ConfigParser()
    tox.read(ROOT / "tox.ini")
    known: set[str] = set()
    for line in tox["tox"]["env_list"].split("\n"):
        head, _, rest = line.strip().partition("{")
        numbers, _, tail = rest.partition("}")
        known |= {f"{head}{number.strip()}{tail}" for number in numbers.split(",")}
    assert listed == known - {"", "py311-gunicorn27"}
