"""What of a manifest is played, and what becomes of it on one machine."""

from __future__ import annotations

import pytest

from gunicorn_grace.operate.manifest import Workload, choose, read
from gunicorn_grace.rehearsal.errors import PlanFailed
from gunicorn_grace.rehearsal.kubernetes.deletion import Exec, HttpGet, Sleep
from gunicorn_grace.rehearsal.kubernetes.deployment import here, played
from gunicorn_grace.rehearsal.kubernetes.probing import KubeletProbe, ProbeKind
from gunicorn_grace.rehearsal.kubernetes.rollout import Rollout

pytestmark = pytest.mark.once


def workload(container: str = "", spec: str = "", kind: str = "Deployment") -> Workload:
    text = (
        f"kind: {kind}\nmetadata: {{name: web}}\nspec: {{{spec}template: {{spec: "
        f"{{terminationGracePeriodSeconds: 40, containers: [{{name: app, {container}}}]}}}}}}\n"
    )
    return choose(read(text, "web.yaml"), "web.yaml")


READY = "readinessProbe: {httpGet: {path: /r, port: 80}, periodSeconds: 5, failureThreshold: 1}"


def test_everything_is_taken_over() -> None:
    """Replicas, period, probes with their numbers, hook, roll-out, and the variables that gunicorn
    reads."""
    found = played(
        workload(
            READY + ", ports: [{containerPort: 80}], livenessProbe: {httpGet: {path: /l, port: 80, "
            "httpHeaders: "
            "[{name: Host, value: me}]}, initialDelaySeconds: 3, terminationGracePeriodSeconds: 7}, "
            "lifecycle: {preStop: {sleep: "
            "{seconds: 15}}}, env: "
            "[{name: GRACE_SHUTDOWN_DELAY, value: '4'}, {name: WEB_CONCURRENCY, value: '2'}, "
            "{name: DB, value: x}]",
            "replicas: 4, minReadySeconds: 2, strategy: {rollingUpdate: {maxSurge: 2}}, ",
        ),
        rolled_out=True,
    )
    assert (found.instances, found.period) == (4, 40.0)
    assert found.probes == {
        ProbeKind.READINESS: KubeletProbe("/r", 5.0, 1.0, 1, 1, 0.0),
        ProbeKind.LIVENESS: KubeletProbe("/l", 10.0, 1.0, 3, 1, 3.0, (("Host", "me"),), 7.0),
    }
    assert found.pre_stop == Sleep(15.0)
    assert found.rollout == Rollout("2", "25%", 2.0)
    assert found.env == {"GRACE_SHUTDOWN_DELAY": "4", "WEB_CONCURRENCY": "2"}
    assert found.notes == ()


def test_a_stateful_set_is_rolled_out_in_order() -> None:
    """One after the other, whatever else it says."""
    assert played(workload(READY, kind="StatefulSet"), rolled_out=True).rollout.in_order


@pytest.mark.parametrize(
    ("hook", "expected"),
    [
        ("httpGet: {path: '/d?down=true', port: 80}", HttpGet("/d?down=true")),
        ("exec: {command: [sh, -c, 'sleep 5']}", Exec(("sh", "-c", "sleep 5"))),
        ("tcpSocket: {port: 80}", ()),
    ],
)
def test_each_kind_of_hook_is_known(hook: str, expected: object) -> None:
    """Commands, requests and waits; the rest is left out, and said."""
    found = played(workload(f"{READY}, lifecycle: {{preStop: {{{hook}}}}}"), rolled_out=False)
    assert found.pre_stop == expected
    assert bool(found.notes) is (expected == ())


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("gunicorn-grace", "prestop"), ["gunicorn-grace", "prestop", "--pid", "{pid}"]),
        (
            ("/venv/bin/gunicorn-grace", "drain"),
            ["/venv/bin/gunicorn-grace", "drain", "--pid", "{pid}"],
        ),
        (("gunicorn-grace", "prestop", "--pid", "7"), ["gunicorn-grace", "prestop", "--pid", "7"]),
        (
            ("sh", "-c", "sleep 1; gunicorn-grace prestop"),
            ["sh", "-c", "sleep 1; gunicorn-grace prestop --pid {pid}"],
        ),
        (("curl", "http://localhost:8080/r"), ["curl", "http://{host}:{port}/r"]),
        (("curl", "127.0.0.1:8080"), ["curl", "{host}:{port}"]),
        (("curl", "http://[::1]:8080/"), ["curl", "http://{host}:{port}/"]),
        (("curl", "localhost:80800"), ["curl", "localhost:80800"]),
        (("curl", "localhost:9901/quit"), ["curl", "localhost:9901/quit"]),
        (("sleep", "15"), ["sleep", "15"]),
    ],
)
def test_a_hook_finds_its_own_instance_among_several(
    command: tuple[str, ...], expected: list[str]
) -> None:
    """The container's port becomes the instance's, and gunicorn-grace is told whom it means; the
    rest stays."""
    assert here(command, {8080, None}) == expected


def test_what_cannot_be_shared_or_sent_is_said() -> None:
    """A probe port, a report file, HTTPS, a probe at another port: played without, and each said
    with its line."""
    notes = played(
        workload(
            "command: [gunicorn, '-b', '0.0.0.0:80'], readinessProbe: {httpGet: {port: 9000, "
            "scheme: HTTPS}}, "
            "livenessProbe: {exec: {command: [a]}}, env: [{name: GRACE_PROBE_BIND, value: ':9000'}]"
        ),
        rolled_out=False,
    ).notes
    assert [note.partition(": ")[0] for note in notes] == ["web.yaml:3"] * 4
    assert "played as HTTP" in notes[0]
    assert "port 9000 is sent to gunicorn's own port, 80 in the manifest" in notes[1]
    assert "liveness probe left out" in notes[2]
    assert "GRACE_PROBE_BIND left out" in notes[3]


@pytest.mark.parametrize(
    ("container", "spec", "said"),
    [
        (
            "ports: [{name: web, containerPort: 80}]",
            "",
            "add to container app: readinessProbe: {httpGet: {path: /readyz",
        ),
        ("readinessProbe: {exec: {command: [a]}}", "", "is exec; only httpGet"),
        (READY, "strategy: {type: Recreate}, ", "is Recreate, not RollingUpdate"),
        ("readinessProbe: {httpGet: {path: '/a b', port: 80}}", "", "cannot be sent"),
        (
            "ports: [{name: web, containerPort: 80}], readinessProbe: {httpGet: {port: http}}",
            "",
            "web.yaml:3: port 'http' is not a port of this container; named: web",
        ),
    ],
)
def test_what_cannot_be_played_is_one_line(container: str, spec: str, said: str) -> None:
    """What is missing, and what to write."""
    with pytest.raises(PlanFailed) as caught:
        played(workload(container, spec), rolled_out=True)
    assert said in caught.value.line


def test_a_strategy_matters_for_a_rollout_only() -> None:
    """A Deployment that is recreated on a roll-out is scaled down like any other."""
    assert played(workload(READY, "strategy: {type: Recreate}, "), rolled_out=False).instances == 1
