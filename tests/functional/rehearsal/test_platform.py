"""The platform with real gunicorn: probes, hooks, roll-outs and restarts, and what is recorded of
them."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gunicorn_grace.rehearsal.errors import RehearsalError
from gunicorn_grace.rehearsal.kubernetes.deletion import Deletion, Hook, HttpGet, Sleep
from gunicorn_grace.rehearsal.kubernetes.pod import Pod
from gunicorn_grace.rehearsal.kubernetes.probing import KubeletProbe, ProbeKind, Prober
from gunicorn_grace.rehearsal.kubernetes.rollout import Rollout
from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable, Lag
from gunicorn_grace.rehearsal.load.wire import show_address
from gunicorn_grace.rehearsal.plan import GRACE, PLAIN, Plan
from gunicorn_grace.rehearsal.processes.fleet import Fleet
from gunicorn_grace.rehearsal.processes.instance import Instance
from gunicorn_grace.rehearsal.run import play

pytestmark = [pytest.mark.once, pytest.mark.long]

APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


def test_every_instance_has_its_life_recorded(folder: Path) -> None:
    """Of each instance when it started, listened, went and ended, in seconds since the deletion,
    and its memory."""
    result = play(
        Plan("app:app", instances=2, rate=50, lag=0.5, cwd=str(folder), warm_up=20, cool_down=20),
        PLAIN,
    )
    stayed, went = result.lives
    for life in (stayed, went):
        assert life.started is not None
        assert life.listening is not None
        assert life.started < life.listening < 0
        assert life.memory > 1 << 20
    assert (stayed.deleted, stayed.t0, stayed.ended) == (None, None, None)
    assert went.deleted is not None
    assert went.t0 is not None
    assert went.ended is not None
    assert went.unrouted is not None
    assert 0 <= went.deleted <= went.t0 < went.ended
    assert went.unrouted == pytest.approx(went.deleted + 0.5)
    assert result.memory.peak >= max(stayed.memory, went.memory)
    refused = [record for record in result.tally.lost_records if record.endpoint == went.endpoint]
    assert all((result.since_t0(record) or 0.0) < 0.6 for record in refused)
    document = json.loads(json.dumps(result.as_dict()))
    assert [life["name"] for life in document["lives"]] == ["instance 1", "instance 2"]
    assert document["memory"]["peak"] == result.memory.peak
    assert document["trustworthy"] is (document["fell_behind"] == "")


PROBED = """
import os

def app(environ, start_response):
    path = environ["PATH_INFO"]
    sick = os.path.exists(os.environ["SICK"]) and path in ("/ready", "/alive")
    if path == "/started" and os.environ.get("SLOW_START"):
        sick = not os.path.exists(os.environ["SLOW_START"])
    start_response("503 No" if sick else "200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""

QUICK = ("--threads", "4", "--keep-alive", "15")
READY = KubeletProbe("/ready", period=0.1, failure_threshold=2)


class Watched(Fleet):
    """One or more pods of an application whose readiness and liveness a file decides."""

    def __init__(
        self, folder: Path, count: int, probes: dict[ProbeKind, KubeletProbe], **options: Any
    ) -> None:
        (folder / "probed.py").write_text(PROBED)
        self.sick = folder / "sick"
        self.env = {"SICK": str(self.sick), **options.pop("env", {})}
        self.folder = folder
        super().__init__([self.make(f"pod {number}") for number in range(count)])
        self.table = EndpointTable()
        self.prober = Prober().start()
        self.start(ready=20)
        self.pods = [
            Pod(
                instance,
                self.table,
                self.prober,
                probes=probes,
                lag=0.0,
                again=self.again,
                **options,
            )
            for instance in self
        ]
        for pod in self.pods:
            pod.begin()

    def make(self, name: str, bind: str = "127.0.0.1:0") -> Instance:
        return Instance(
            "probed:app", args=QUICK, env=self.env, cwd=self.folder, name=name, bind=bind
        )

    def again(self, before: Instance) -> Instance:
        return self.make(f"{before.name}, again", show_address(before.address))

    def wait_for(self, condition: Callable[[], Any], what: str) -> None:
        """Poll a condition on what the platform knows."""
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, f"{what} did not come\n{self[0].output}"
            self.prober.check()
            time.sleep(0.01)

    def stop(self) -> None:
        for pod in getattr(self, "pods", []):
            pod.close()
        super().stop()
        self.prober.stop()


@pytest.fixture
def watched(folder: Path) -> Iterator[Callable[..., Watched]]:
    """Start pods; they end with the test."""
    with contextlib.ExitStack() as stack:

        def start(count: int, probes: dict[ProbeKind, KubeletProbe], **options: Any) -> Watched:
            fleet = Watched(folder, count, probes, **options)
            stack.callback(fleet.stop)
            return fleet

        yield start


def test_readiness_puts_an_endpoint_in_and_takes_it_out(watched: Callable[..., Watched]) -> None:
    """Not routed to before the probe passes, nor after it failed as often as its threshold; and in
    again."""
    fleet = watched(1, {ProbeKind.READINESS: READY})
    (pod,) = fleet.pods
    pod.wait_ready(20)
    assert fleet.table.endpoints() == [pod.address]
    fleet.sick.touch()
    fleet.wait_for(lambda: not pod.ready, "red readiness")
    assert fleet.table.endpoints() == []
    fleet.sick.unlink()
    pod.wait_ready(20)
    assert fleet.table.endpoints() == [pod.address]
    assert [ready for _, ready in pod.readiness] == [True, False, True]


def test_one_that_does_not_become_ready_is_told_with_its_probe(
    watched: Callable[..., Watched],
) -> None:
    """The first line says who, how long, and which probe; what gunicorn printed comes behind it."""
    fleet = watched(1, {ProbeKind.READINESS: READY})
    (pod,) = fleet.pods
    pod.wait_ready(20)
    fleet.sick.touch()
    fleet.wait_for(lambda: not pod.ready, "red readiness")
    with pytest.raises(RehearsalError) as caught:
        pod.wait_ready(0.0)
    assert caught.value.line == (
        "pod 0 was not ready within 0 s: the probe GET /ready (every 0.1 s, answered within 1 s) "
        "did not pass"
    )
    assert "Listening at" in str(caught.value)


def test_the_others_wait_for_the_start_up_probe(
    watched: Callable[..., Watched], folder: Path
) -> None:
    """Readiness passes all the time, but is not asked before the start-up probe has passed."""
    started = folder / "started"
    probes = {
        ProbeKind.READINESS: READY,
        ProbeKind.STARTUP: KubeletProbe("/started", period=0.1, failure_threshold=1000),
    }
    fleet = watched(1, probes, env={"SLOW_START": str(started)})
    (pod,) = fleet.pods
    fleet[0].wait_ready(path="/ready")
    assert not pod.ready
    started.touch()
    pod.wait_ready(20)


def test_a_failed_liveness_probe_restarts_the_container_at_its_address(
    watched: Callable[..., Watched], folder: Path
) -> None:
    """Hook, SIGTERM, another process at the same address; out of the routing until that is
    ready."""
    probes = {
        ProbeKind.READINESS: READY,
        ProbeKind.LIVENESS: KubeletProbe("/alive", period=0.1, failure_threshold=2),
    }
    fleet = watched(1, probes, pre_stop=("touch", "hooked"), period=10.0)
    (pod,) = fleet.pods
    pod.wait_ready(20)
    first = pod.instance
    fleet.sick.touch()
    first.wait_line("Handling signal: term", timeout=30)
    assert (folder / "hooked").exists()
    fleet.sick.unlink()
    fleet.wait_for(lambda: len(pod.instances) == 2 and pod.ready, "another container")
    assert first.exit_code == 0
    assert pod.instance.address == first.address
    assert pod.instance.pid != first.pid
    assert fleet.table.endpoints() == [pod.address]
    ((_, why),) = pod.restarts
    assert why == "liveness probe failed 2 times: GET /alive"
    pod.delete().join(20)
    assert pod.instance.exit_code == 0


def test_a_restart_has_the_period_of_the_probe_that_causes_it(
    watched: Callable[..., Watched],
) -> None:
    """terminationGracePeriodSeconds of the liveness probe counts, and not the pod's: the hook is
    ended after it, and SIGTERM follows."""
    alive = KubeletProbe("/alive", period=0.1, failure_threshold=2, grace=1.0)
    probes = {ProbeKind.READINESS: READY, ProbeKind.LIVENESS: alive}
    fleet = watched(1, probes, pre_stop=("sleep", "600"), period=600.0)
    (pod,) = fleet.pods
    pod.wait_ready(20)
    first = pod.instance
    fleet.sick.touch()
    first.wait_line("Handling signal: term", timeout=20)
    fleet.sick.unlink()


def test_a_pod_being_deleted_is_not_restarted(watched: Callable[..., Watched]) -> None:
    """Its liveness fails within the shutdown: the kubelet does not ask any more; readiness it still
    does."""
    probes = {
        ProbeKind.READINESS: READY,
        ProbeKind.LIVENESS: KubeletProbe("/alive", period=0.1, failure_threshold=1),
    }
    fleet = watched(
        2, probes, pre_stop=("sh", "-c", "while [ ! -e go ]; do sleep 0.05; done"), period=30.0
    )
    one, two = fleet.pods
    for pod in fleet.pods:
        pod.wait_ready(20)
    deletion = one.delete()
    assert fleet.table.endpoints() == [two.address]
    fleet.sick.touch()
    fleet.wait_for(lambda: not one.ready, "red readiness of the pod that goes")
    (fleet.folder / "go").touch()
    deletion.join(20)
    assert one.restarts == []
    assert (deletion.exit_code, deletion.killed, deletion.pre_stop_problem) == (0, False, "")


def test_readiness_is_asked_until_the_container_has_ended(watched: Callable[..., Watched]) -> None:
    """Liveness failed, and the container is being ended: readiness turns red all the same, by its
    own threshold."""
    probes = {
        ProbeKind.READINESS: replace(READY, failure_threshold=10),
        ProbeKind.LIVENESS: KubeletProbe("/alive", 0.1, 1.0, 1),
    }
    fleet = watched(
        1, probes, pre_stop=("sh", "-c", "while [ ! -e go ]; do sleep 0.05; done"), period=60.0
    )
    (pod,) = fleet.pods
    pod.wait_ready(20)
    fleet.sick.touch()
    fleet.wait_for(lambda: pod.restarting, "restart")
    fleet.wait_for(lambda: not pod.ready, "red readiness")
    assert pod.restarting


@pytest.mark.parametrize(
    ("hook", "problem"),
    [
        (HttpGet("/ready"), ""),
        (HttpGet("/ready", (("Host", "me"),)), ""),
        (Sleep(0.3), ""),
        (Sleep(5.0), "preStop hook `sleep 5` took longer than the period of 1 s"),
    ],
    ids=str,
)
def test_hooks_that_the_node_runs_itself(folder: Path, hook: Hook, problem: str) -> None:
    """A GET to the container and a wait come before SIGTERM, and count in the period."""
    with Instance("app:app", cwd=folder) as instance:
        instance.wait_ready()
        table = EndpointTable()
        table.add(instance.address)
        deletion = Deletion(instance, table, lag=0, period=1.0, pre_stop=hook).start().join(20)
    assert deletion.pre_stop_problem == problem
    assert deletion.started is not None
    assert deletion.sigterm is not None
    assert deletion.pre_stop_done is not None
    assert deletion.pre_stop_done <= deletion.sigterm
    if isinstance(hook, Sleep):
        assert deletion.sigterm - deletion.started >= min(hook.seconds, 1.0)


GRACE_ENV = {
    "GRACE_SHUTDOWN_DELAY": "1.5",
    "GRACE_MIN_DELAY": "0.5",
    "GRACE_TERMINATION_PERIOD": "20",
}


@pytest.mark.parametrize(
    "rollout", [Rollout("1", "0"), Rollout(in_order=True)], ids=["Deployment", "StatefulSet"]
)
def test_a_rollout_replaces_every_instance_and_loses_nothing(
    folder: Path, rollout: Rollout
) -> None:
    """Two instances replaced under load, each node with a lag of its own: other instances, no
    request lost."""
    plan = Plan(
        "app:app",
        instances=2,
        rate=40,
        routing=Lag(0.2, 0.6, 0.9, 0.1),
        lag=0.9,
        period=20,
        args=QUICK,
        env=GRACE_ENV,
        probes={ProbeKind.READINESS: KubeletProbe("/readyz", period=0.25, failure_threshold=1)},
        rollout=rollout,
        cwd=str(folder),
        warm_up=20,
        cool_down=20,
    )
    result = play(plan, GRACE)
    assert result.tally.lost == 0, result.as_dict()
    assert [life.name for life in result.lives] == [f"instance {number}" for number in range(1, 5)]
    old, new = result.lives[:2], result.lives[2:]
    assert all(life.ended is not None for life in old)
    assert all(life.ended is None and life.readiness[-1][1] for life in new)
    assert {gone.name for gone in result.gone} == {"instance 1", "instance 2"}
    # One is gone before its successor starts, and that is ready before the next one goes.
    if rollout.in_order:
        first, second = sorted(old, key=lambda life: life.deleted or 0.0)
        assert (new[0].started or 0.0) > (first.ended or 0.0)
        assert (second.deleted or 0.0) > new[0].readiness[0][0]


def test_many_instances_are_scaled_to_one(folder: Path) -> None:
    """A small form of 100 to 1: 12 instances, 11 deleted at once, none of the requests lost, memory
    told."""
    plan = Plan(
        "app:app", instances=12, to=1, rate=30, lag=1.0, args=QUICK, env=GRACE_ENV, cwd=str(folder)
    )
    result = play(plan, GRACE)
    assert result.tally.lost == 0, result.as_dict()
    assert len(result.gone) == 11
    assert result.killed == 0
    assert result.memory.peak > 12 << 20


MANIFEST = """\
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  strategy: {rollingUpdate: {maxSurge: 2, maxUnavailable: 0}}
  template:
    spec:
      terminationGracePeriodSeconds: 25
      containers:
        - name: web
          command: ["gunicorn", "-b", ":8080", "app:app"]
          ports: [{name: http, containerPort: 8080}]
          env: [{name: GRACE_SHUTDOWN_DELAY, value: "2"}, {name: GRACE_TERMINATION_PERIOD, value: "25"}]
          readinessProbe: {httpGet: {path: /readyz, port: http}, periodSeconds: 1, failureThreshold: 1}
          livenessProbe: {tcpSocket: {port: http}}
          lifecycle: {preStop: {exec: {command: ["gunicorn-grace", "prestop"]}}}
"""


def test_the_command_takes_its_platform_from_a_manifest(folder: Path) -> None:
    """Replicas, period, probe, hook and environment; the hook finds its instance; what is left out
    is said."""
    (folder / "web.yaml").write_text(MANIFEST)
    (folder / "urls.txt").write_text("/ 3\nPOST / a=1\n")
    command = [
        sys.executable,
        "-c",
        "from gunicorn_grace.rehearsal.command.command import rehearse; rehearse()",
    ]
    options = [
        "-f",
        "web.yaml",
        "--requests",
        "urls.txt",
        "--lag",
        "0.5..1",
        "--only",
        "grace",
        "--rate",
        "40",
    ]
    run = subprocess.run(
        [*command, "app:app", *options, "--json", "out.json"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "web.yaml:15: liveness probe left out: only httpGet is played" in run.stderr
    (result,) = json.loads((folder / "out.json").read_text())["results"]
    (gone,) = result["gone"]
    assert gone["pre_stop_problem"] == ""
    assert gone["sigterm"] >= 1.5  # the hook waited for the delay
    assert any("trigger (prestop)" in text for _, text in gone["events"])
    assert len(result["lives"]) == 2


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["-f", "bare.yaml"], "bare.yaml:3: Deployment a has no readinessProbe"),
        (["-f", "nowhere.yaml"], "-f nowhere.yaml: No such file or directory"),
        (
            ["-f", "tcp.yaml"],
            "tcp.yaml:3: the readinessProbe of Deployment a is tcpSocket; only httpGet",
        ),
        (
            ["-f", "recreate.yaml", "--rollout"],
            "the strategy of Deployment a is Recreate, not RollingUpdate",
        ),
        (["-f", "bad.yaml"], "bad.yaml:1: not YAML"),
        (["--lag", "5..1"], "lag 5..1 s"),
        (["--slow-node", "5"], "slow node '5' is not SHARE:SECONDS"),
        (
            ["--readiness", "/nowhere", "--only", "grace"],
            "readiness probe GET /nowhere answers 404",
        ),
        (["--max-surge", "1"], "--max-surge applies only to a roll-out: add --rollout"),
        (["--requests", "urls.txt"], "urls.txt:2: 'x' is not a path"),
        (["--", "--bind", "127.0.0.1:0"], "--bind cannot be given to the gunicorn of a rehearsal"),
    ],
)
def test_what_cannot_be_played_is_one_line(folder: Path, args: list[str], said: str) -> None:
    """Exit code 2, the last line says what is wrong, no traceback."""
    container = (
        "kind: Deployment\nmetadata: {name: a}\nspec: {%s template: {spec: {containers: "
        "[{name: c%s}]}}}\n"
    )
    (folder / "bare.yaml").write_text(container % ("", ""))
    (folder / "tcp.yaml").write_text(container % ("", ", readinessProbe: {tcpSocket: {port: 80}}"))
    ready = ", readinessProbe: {httpGet: {port: 80}}"
    (folder / "recreate.yaml").write_text(container % ("strategy: {type: Recreate},", ready))
    (folder / "bad.yaml").write_text("a: [")
    (folder / "urls.txt").write_text("/\nx\n")
    (folder / "app.py").write_text(
        APP.replace('"200 OK"', '"404 No" if "now" in environ["PATH_INFO"] else "200 OK"')
    )
    command = [
        sys.executable,
        "-c",
        "from gunicorn_grace.rehearsal.command.command import rehearse; rehearse()",
    ]
    run = subprocess.run(
        [*command, "app:app", *args], cwd=folder, capture_output=True, text=True, timeout=120
    )
    *_, last = run.stderr.splitlines()
    assert run.returncode == 2, run.stderr
    assert last.startswith("rehearse: ")
    assert said in last
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
