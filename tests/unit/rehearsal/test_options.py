"""What the options of a rehearsal come to."""

from __future__ import annotations

from pathlib import Path

import pytest

from gunicorn_grace.rehearsal.command.command import rehearse
from gunicorn_grace.rehearsal.command.options import resolve

MANIFEST = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  template:
    spec:
      containers:
      - name: web
        command: [gunicorn, "app:app"]
        ports: [{containerPort: 8000}]
        readinessProbe: {httpGet: {path: /readyz, port: 8000}}
        lifecycle: {preStop: {exec: {command: [sh, -c, "touch 'a b'"]}}}
"""


@pytest.mark.parametrize("explicit", [False, True])
def test_a_manifests_hook_is_told_before_it_runs_here(explicit: bool, tmp_path: Path) -> None:
    """It comes from a file that may be somebody else's, and runs as the user. Where --prestop wins,
    it does not run."""
    file = tmp_path / "web.yaml"
    file.write_text(MANIFEST)
    given = rehearse.make_context("rehearse", ["app:app", "-f", str(file), "--prestop", ""]).params
    said: list[str] = []
    resolve(given, lambda name: explicit and name == "prestop", said.append)
    told = [line for line in said if "runs on this machine, as this user: sh -c" in line]
    assert len(told) == (not explicit)
