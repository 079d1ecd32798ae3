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


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "    spec:\n      containers",
            "    spec:\n      terminationGracePeriodSeconds: 20\n      containers",
            ":8: warning: grace_termination_period is not set, so 30 s are assumed, and the manifest "
            'has terminationGracePeriodSeconds 20; set GRACE_TERMINATION_PERIOD to "20" '
            "(docs/reference/check.md#period)",
        ),
        (
            "exec: {command: [sh, -c, \"touch 'a b'\"]}",
            "sleep: {seconds: 15}",
            "preStop sleep 15 + grace_shutdown_delay 10 + grace_drain_reserve 5 + "
            "grace_exit_margin 2 = 32 s > terminationGracePeriodSeconds 30 s",
        ),
        (
            "readinessProbe",
            "livenessProbe: {httpGet: {path: /readyz, port: 8000}}\n        readinessProbe",
            "error: liveness asks /readyz, which is readiness: 503 restarts the container",
        ),
    ],
)
def test_what_the_rules_find_is_told_before_anything_is_played(
    old: str, new: str, said: str, tmp_path: Path
) -> None:
    """The rules of ``gunicorn-grace check``, but for notes; the rehearsal goes on."""
    file = tmp_path / "web.yaml"
    file.write_text(MANIFEST.replace(old, new))
    given = rehearse.make_context("rehearse", ["app:app", "-f", str(file)]).params
    told: list[str] = []
    assert resolve(given, lambda name: False, told.append)["probes"]
    assert [line for line in told if said in line]
    assert not [line for line in told if ": note: " in line]
