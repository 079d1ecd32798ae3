"""Each rule finds what it is about, at its line, and finds nothing in a manifest without it."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from gunicorn_grace.operate.check.configuration import Configuration, read_configuration
from gunicorn_grace.operate.check.documents import Input, read_text
from gunicorn_grace.operate.check.findings import RULES, Finding, Severity
from gunicorn_grace.operate.check.judging import Verdict, cases_of, judge
from gunicorn_grace.operate.check.patch import fix, merge
from gunicorn_grace.operate.routers import ROUTERS, Router

pytestmark = pytest.mark.once

GOOD: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web"},
    "spec": {
        "replicas": 3,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {
                "terminationGracePeriodSeconds": 60,
                "containers": [
                    {
                        "name": "app",
                        "image": "registry.example/web:1",
                        "command": ["gunicorn", "-c", "python:gunicorn_grace.conf"],
                        "args": ["-b", "0.0.0.0:8080", "--threads", "4", "app:app"],
                        "ports": [{"name": "http", "containerPort": 8080}],
                        "env": [{"name": "GRACE_TERMINATION_PERIOD", "value": "60"}],
                        "startupProbe": {"httpGet": {"path": "/startupz", "port": "http"}},
                        "readinessProbe": {
                            "httpGet": {"path": "/readyz", "port": "http"},
                            "periodSeconds": 5,
                            "failureThreshold": 1,
                        },
                        "livenessProbe": {"httpGet": {"path": "/livez", "port": "http"}},
                        "lifecycle": {
                            "preStop": {"exec": {"command": ["gunicorn-grace", "prestop"]}}
                        },
                    }
                ],
            },
        },
    },
}
BUDGET = {
    "apiVersion": "policy/v1",
    "kind": "PodDisruptionBudget",
    "metadata": {"name": "web"},
    "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"app": "web"}}},
}


def given(
    container: dict[str, Any] | None = None,
    pod: dict[str, Any] | None = None,
    spec: dict[str, Any] | None = None,
    top: dict[str, Any] | None = None,
    *others: dict[str, Any],
) -> str:
    """The good manifest with some changes, written as a strategic-merge patch."""
    document = yaml.safe_load(yaml.safe_dump(GOOD, sort_keys=False))
    merge(document, {"spec": {"template": {"spec": pod or {}}}})
    merge(document["spec"], spec or {})
    merge(document, top or {})
    if container:
        containers = document["spec"]["template"]["spec"]["containers"]
        merge(containers[0], container)
    return yaml.safe_dump_all([document, *(others or (BUDGET,))], sort_keys=False)


def verdict(text: str, **options: Any) -> Verdict:
    found = Input()
    read_text(found, text.encode(), "web.yaml")
    return judge(found, **options)


def plain(container: dict[str, Any] | None = None, **parts: Any) -> str:
    """The same service without any sign of the plugin."""
    return given(
        {
            "command": ["gunicorn"],
            "env": [{"name": "GRACE_TERMINATION_PERIOD", "$patch": "delete"}],
            "lifecycle": None,
            "startupProbe": None,
            "readinessProbe": {"httpGet": {"path": "/ready"}},
            "livenessProbe": {"httpGet": {"path": "/alive"}},
            **(container or {}),
        },
        **parts,
    )


def env(**values: str) -> dict[str, Any]:
    return {"env": [{"name": name, "value": value} for name, value in values.items()]}


SLEEP = {"lifecycle": {"preStop": {"exec": None, "sleep": {"seconds": 15}}}}
HTTP_HOOK = {"httpGet": {"path": "/readyz?down=true", "port": "http"}}
ERROR, WARNING, NOTE = Severity.ERROR, Severity.WARNING, Severity.NOTE

# The rule, its severity there, the manifest, a part of its line, and of what it says.
CASES: list[tuple[str, Severity, str, str, str]] = [
    (
        "budget",
        ERROR,
        given(env(GRACE_SHUTDOWN_DELAY="55")),
        "GRACE_SHUTDOWN_DELAY",
        "grace_shutdown_delay 55 + grace_drain_reserve 5 + grace_exit_margin 2 = 62 s > "
        "terminationGracePeriodSeconds 60 s",
    ),
    (
        "budget",
        WARNING,
        given({"args": ["-b", "0.0.0.0:8080", "--graceful-timeout", "55", "a:a"]}),
        "args",
        "grace_shutdown_delay 10 + graceful_timeout 55 + grace_exit_margin 2 = 67 s > "
        "terminationGracePeriodSeconds 60 s: requests longer than 48 s are cut off",
    ),
    (
        "budget",
        ERROR,
        given(
            {**env(GRACE_TERMINATION_PERIOD="30", GRACE_SHUTDOWN_DELAY="10"), **SLEEP},
            {"terminationGracePeriodSeconds": 30},
        ),
        "sleep",
        "preStop sleep 15 + grace_shutdown_delay 10 + grace_drain_reserve 5 + grace_exit_margin 2 "
        "= 32 s > terminationGracePeriodSeconds 30 s",
    ),
    ("budget", ERROR, given(pod={"terminationGracePeriodSeconds": 0}), "Seconds: 0", "at once"),
    (
        "budget",
        ERROR,
        plain({"lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", "sleep 1m"]}}}}),
        "exec:",
        "preStop sleep 60 s >= terminationGracePeriodSeconds 60 s",
    ),
    (
        "budget",
        WARNING,
        plain(
            SLEEP,
            pod={"terminationGracePeriodSeconds": None},
        ),
        "sleep",
        "preStop sleep 15 + graceful_timeout 30 (its default) = 45 s > "
        "terminationGracePeriodSeconds 30 s: requests longer than 15 s",
    ),
    (
        "period",
        ERROR,
        given(env(GRACE_TERMINATION_PERIOD="90")),
        "name: GRACE_TERMINATION_PERIOD",
        "GRACE_TERMINATION_PERIOD 90 > terminationGracePeriodSeconds 60",
    ),
    (
        "period",
        WARNING,
        given(
            {
                "env": [{"name": "GRACE_TERMINATION_PERIOD", "$patch": "delete"}],
                "command": ["gunicorn", "-c", "python:gunicorn_grace.conf"],
            },
            {"terminationGracePeriodSeconds": 20},
        ),
        "terminationGracePeriodSeconds",
        "is not set, so 30 s are assumed, and the manifest has terminationGracePeriodSeconds 20",
    ),
    (
        "period",
        WARNING,
        given(env(GRACE_TERMINATION_PERIOD="45")),
        "name: GRACE_TERMINATION_PERIOD",
        "45 < terminationGracePeriodSeconds 60",
    ),
    ("prestop-sleep", WARNING, given(SLEEP), "sleep", "preStop sleeps 15 s before the delay"),
    (
        "delay",
        WARNING,
        given({"readinessProbe": {"periodSeconds": 10, "failureThreshold": 3}}),
        "periodSeconds",
        "periodSeconds 10 x failureThreshold 3 + timeoutSeconds 1 = 31 s to turn red, and the "
        "delay is 10 s",
    ),
    ("no-readiness", WARNING, given({"readinessProbe": None}), "name: app", "no readinessProbe"),
    (
        "readiness-path",
        ERROR,
        given({"readinessProbe": {"httpGet": {"path": "/livez"}}}),
        "path: /livez",
        "answers liveness",
    ),
    (
        "readiness-path",
        WARNING,
        given({"readinessProbe": {"httpGet": {"path": "/health"}}}),
        "path: /health",
        "the plugin does not turn red; that is /readyz",
    ),
    (
        "liveness-path",
        ERROR,
        given({"livenessProbe": {"httpGet": {"path": "/readyz/database"}}}),
        "path: /readyz/database",
        "503 restarts the container",
    ),
    (
        "liveness-path",
        NOTE,
        plain({"livenessProbe": {"httpGet": {"path": "/ready"}}}),
        "path: /ready",
        "both ask /ready",
    ),
    (
        "probe-port",
        ERROR,
        given({"livenessProbe": {"httpGet": {"port": "web"}}}),
        "port: web",
        "port web is not a port of container app (named: http)",
    ),
    (
        "probe-port",
        ERROR,
        given({"livenessProbe": {"httpGet": {"port": 9000}}}),
        "port: 9000",
        "asks port 9000, and gunicorn listens on 8080",
    ),
    (
        "probe-port",
        ERROR,
        given({"args": ["--bind=127.0.0.1:8080", "app:app"]}),
        "port: http",
        "127.0.0.1:8080, where the kubelet cannot reach it",
    ),
    (
        "probe-port",
        ERROR,
        given(
            {
                **env(GRACE_PROBE_BIND="127.0.0.1:8081"),
                "livenessProbe": {"httpGet": {"port": 8081}},
            }
        ),
        "port: 8081",
        "the probe port listens on 127.0.0.1:8081, where the kubelet cannot reach it",
    ),
    (
        "readiness-kind",
        WARNING,
        given({"readinessProbe": {"httpGet": None, "tcpSocket": {"port": "http"}}}),
        "tcpSocket",
        "readiness is tcpSocket",
    ),
    (
        "readiness-kind",
        WARNING,
        given({"readinessProbe": {"httpGet": None, "exec": {"command": ["true"]}}}),
        "exec:",
        "it starts a process each time",
    ),
    (
        "startup-probe",
        WARNING,
        given({"startupProbe": None, "livenessProbe": {"initialDelaySeconds": 60}}),
        "initialDelaySeconds",
        "initialDelaySeconds 60",
    ),
    (
        "liveness-period",
        WARNING,
        given({"livenessProbe": {"terminationGracePeriodSeconds": 5}}),
        "terminationGracePeriodSeconds: 5",
        "5 < 60",
    ),
    (
        "busy-worker",
        WARNING,
        given({"args": ["-b", "0.0.0.0:8080", "-w", "1", "app:app"]}),
        "readinessProbe",
        "timeoutSeconds 1 for the only worker",
    ),
    (
        "probe-port-clash",
        ERROR,
        given(env(GRACE_PROBE_BIND="0.0.0.0:8080")),
        "name: GRACE_PROBE_BIND",
        "which gunicorn binds",
    ),
    (
        "probe-port-clash",
        WARNING,
        given(env(GRACE_PROBE_BIND="0.0.0.0:8081"), {"hostNetwork": True}),
        "hostNetwork",
        "two pods on one node clash",
    ),
    (
        "shell",
        ERROR,
        given({"command": ["sh", "-c", "gunicorn -c python:gunicorn_grace.conf a:a | tee log"]}),
        "command",
        "goes on after gunicorn (|)",
    ),
    (
        "shell",
        WARNING,
        given({"command": ["/bin/sh", "-ec", "cd /app && X=1 gunicorn -b :8080 a:a"]}),
        "command",
        "sh -c runs gunicorn without exec",
    ),
    ("shell", NOTE, given({"command": ["bash", "-c", "gunicorn a:a"]}), "command", "bash -c"),
    ("shell", ERROR, given({"command": ["gunicorn -b :80 a:a"]}), "command", "no program of that"),
    (
        "stop-signal",
        ERROR,
        given({"lifecycle": {"stopSignal": "SIGINT"}}),
        "stopSignal",
        "lifecycle.stopSignal SIGINT",
    ),
    (
        "trigger",
        ERROR,
        given({"lifecycle": {"preStop": {"exec": None, **HTTP_HOOK}}}),
        "httpGet",
        'it comes from the node, and grace_trigger is "local"',
    ),
    (
        "trigger",
        ERROR,
        given(
            {
                **env(GRACE_TRIGGER="off"),
                "lifecycle": {
                    "preStop": {"exec": {"command": ["curl", "localhost/readyz?down=true"]}}
                },
            }
        ),
        "exec:",
        'grace_trigger is "off"',
    ),
    (
        "trigger",
        ERROR,
        given(
            {
                "env": [
                    {"name": "GRACE_TRIGGER", "value": "token"},
                    {"name": "GRACE_TRIGGER_TOKEN", "value": "file:/run/token"},
                ],
                "lifecycle": {"preStop": {"exec": None, **HTTP_HOOK}},
            }
        ),
        "httpGet",
        "it sends no X-Grace-Token",
    ),
    (
        "trigger-path",
        ERROR,
        given(
            {
                "lifecycle": {
                    "preStop": {
                        "exec": {"command": ["sh", "-c", "curl 'localhost:8080/livez?down=true'"]}
                    }
                }
            }
        ),
        "exec:",
        "preStop asks /livez?down=true, and only /readyz takes it",
    ),
    (
        "trigger-path",
        WARNING,
        given(
            {
                "envFrom": [{"configMapRef": {"name": "elsewhere"}}],
                "env": [{"name": "GRACE_TRIGGER", "value": "token"}],
                "lifecycle": {
                    "preStop": {"exec": None, "httpGet": {"path": "/?down=true", "port": "http"}}
                },
            }
        ),
        "httpGet",
        "preStop asks /?down=true",
    ),
    (
        "hook-tool",
        NOTE,
        given(
            {
                "image": "python:3.12-slim",
                "lifecycle": {
                    "preStop": {"exec": {"command": ["curl", "localhost/readyz?down=true"]}}
                },
            }
        ),
        "exec:",
        "preStop runs curl, and python:3.12-slim has none",
    ),
    (
        "hook-tool",
        NOTE,
        given({"image": "python:3.12"}),
        "exec:",
        "runs gunicorn-grace, and python:3.12 has none",
    ),
    (
        "token-in-clear",
        WARNING,
        given(env(GRACE_TRIGGER="token", GRACE_TRIGGER_TOKEN="0123456789abcdef0123456789abcdef")),
        "name: GRACE_TRIGGER_TOKEN",
        "written in clear",
    ),
    (
        "setting",
        ERROR,
        given(env(GRACE_SHUTDOWN_DELAY="10 s")),
        "name: GRACE_SHUTDOWN_DELAY",
        "GRACE_SHUTDOWN_DELAY = '10 s' is not a number",
    ),
    (
        "setting",
        ERROR,
        given(env(GRACE_TRIGGER="token")),
        "name: GRACE_TRIGGER",
        "grace_trigger_token is not set",
    ),
    (
        "setting",
        ERROR,
        given(env(GRACE_LIVENESS_PATH="/readyz")),
        "name: GRACE_LIVENESS_PATH",
        "grace_readiness_path and grace_liveness_path are both '/readyz'",
    ),
    (
        "unknown-setting",
        WARNING,
        given(env(GRACE_SHUTDOWN_DELAI="10")),
        "name: GRACE_SHUTDOWN_DELAI",
        "is no setting",
    ),
    (
        "not-seen",
        NOTE,
        given({"envFrom": [{"secretRef": {"name": "extra"}}]}),
        "secretRef",
        "envFrom secretRef extra",
    ),
    ("no-plugin", NOTE, plain(), "name: app", "nothing shows the plugin"),
    ("single-replica", WARNING, given(spec={"replicas": 1}), "replicas", "replicas is 1"),
    (
        "all-at-once",
        WARNING,
        given(spec={"strategy": {"rollingUpdate": {"maxUnavailable": "100%"}}}),
        "strategy",
        "maxUnavailable 100% of 3 replicas",
    ),
    (
        "all-at-once",
        WARNING,
        given(spec={"strategy": {"type": "Recreate"}}),
        "strategy",
        "strategy Recreate",
    ),
    (
        "no-disruption-budget",
        NOTE,
        given(
            None, None, None, None, {**BUDGET, "spec": {"selector": {"matchLabels": {"a": "b"}}}}
        ),
        "apiVersion: apps/v1",
        "no PodDisruptionBudget covers Deployment web",
    ),
    (
        "ignore",
        WARNING,
        given(top={"metadata": {"annotations": {"gunicorn-grace/ignore": "budget"}}}),
        "gunicorn-grace/ignore",
        "'budget' has no reason",
    ),
    (
        "not-judged",
        NOTE,
        given(top={"kind": "Job", "apiVersion": "batch/v1"}),
        "apiVersion",
        "its pods end by themselves",
    ),
    (
        "invalid-manifest",
        ERROR,
        given(spec={"replicas": "three"}),
        "replicas",
        "replicas is a string ('three'), not a number",
    ),
    ("unreadable", ERROR, "a: [\n", "", "not YAML"),
]


def test_a_good_manifest_has_no_finding() -> None:
    """What the docs recommend passes, notes included."""
    found = verdict(given())
    assert found.findings == ()
    assert found.judged == ("Deployment web, container app",)


@pytest.mark.parametrize(
    ("rule", "severity", "text", "line", "said"),
    CASES,
    ids=[f"{case[0]}-{number}" for number, case in enumerate(CASES)],
)
def test_a_rule_finds_what_it_is_about(
    rule: str, severity: Severity, text: str, line: str, said: str
) -> None:
    """The rule, how bad it is, the line in the manifest and the values."""
    found = [f for f in verdict(text).findings if f.rule.id == rule]
    assert found, [(f.rule.id, f.what) for f in verdict(text).findings]
    assert said in found[0].what
    assert found[0].severity is severity
    assert found[0].fix
    assert line in [*text.splitlines(), ""][found[0].line - 1]


def test_every_rule_is_tried() -> None:
    """No rule is in the table without a manifest that it finds."""
    assert {case[0] for case in CASES} == set(RULES)


@pytest.mark.parametrize("text", [case[2] for case in CASES], ids=[case[0] for case in CASES])
def test_a_patch_leaves_nothing_that_a_program_could_mend(text: str) -> None:
    """After the patch, whatever is left has no patch, or is only a note."""
    found = Input()
    read_text(found, text.encode(), "web.yaml")
    before = judge(found).findings
    fixed = fix(found)
    assert [f.what for f in fixed.left if f.patch is not None] == []
    mendable = [f for f in before if f.patch is not None and f.severity is not NOTE]
    assert bool(fixed.text) == bool(mendable)
    document = yaml.safe_load(text.split("\n---\n")[0]) if mendable else None
    for patch in yaml.safe_load_all(fixed.text):
        merge(document, {"spec": patch["spec"]})
        again = verdict(yaml.safe_dump_all([document, BUDGET], sort_keys=False)).findings
        assert {f.what for f in again if f.severity is not NOTE} == {f.what for f in fixed.left}


def findings(text: str, **options: Any) -> dict[str, Finding]:
    return {finding.rule.id: finding for finding in verdict(text, **options).findings}


def router(name: str, seconds: float) -> Router:
    return Router(name, seconds, "", ())


def test_a_router_that_asks_itself_learns_after_the_readiness_delay() -> None:
    """Envoy's own checks see 200 for so long; kube-proxy is told of the deletion."""
    later = given(env(GRACE_READINESS_DELAY="5"))
    found = [f.what for f in verdict(later, lags=[ROUTERS["envoy"]]).findings]
    assert "grace_shutdown_delay 10 s < 11 s, for which envoy goes on sending" in found
    assert "delay" not in findings(given(), lags=[ROUTERS["envoy"]])
    found = [f.what for f in verdict(later, lags=[ROUTERS["kube-proxy"]]).findings]
    assert not any("goes on sending" in what for what in found)


def test_a_named_router_is_waited_for() -> None:
    """``--lag alb=25`` against the delay; without extension it is an error."""
    found = findings(given(), lags=[router("alb", 25.0)])["delay"]
    assert found.what == "grace_shutdown_delay 10 s < 25 s, for which alb goes on sending"
    assert found.severity is WARNING
    off = env(GRACE_EXTEND_DELAY="false")
    assert findings(given(off), lags=[router("alb", 25.0)])["delay"].severity is ERROR
    assert "delay" not in findings(given(), lags=[router("alb", 10.0)])


def test_decimals_that_fit_exactly_fit() -> None:
    """22.6 + 5.1 + 2.3 is 30, although a computer's sum is 30.000000000000004; 30.1 is too much, and
    31 is enough."""
    pod = {"terminationGracePeriodSeconds": 30}
    parts = {"GRACE_TERMINATION_PERIOD": "30", "GRACE_EXIT_MARGIN": "2.3"}
    parts["GRACE_DRAIN_RESERVE"] = "5.1"
    fits = env(**parts, GRACE_SHUTDOWN_DELAY="22.6")
    assert "budget" not in findings(given(fits, pod))
    found = findings(given(env(**parts, GRACE_SHUTDOWN_DELAY="22.7"), pod))["budget"]
    assert "= 30.1 s > terminationGracePeriodSeconds 30 s" in found.what
    assert "GRACE_TERMINATION_PERIOD to 31," in found.fix


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(tmp_path: Any) -> None:
    """The settings that count, each with the place where it is written."""
    path = tmp_path / "gunicorn.conf.py"
    path.write_text(
        "import os\nfrom gunicorn_grace.conf import *\ngrace_shutdown_delay = 2 * 30\n"
        "graceful_timeout = int(os.environ.get('DRAIN', '9'))\nworkers = os.cpu_count()\n"
    )
    shown: Configuration = read_configuration(str(path))
    found = findings(given(), configuration=shown)
    assert "grace_shutdown_delay 60" in found["budget"].what
    assert "budget" not in findings(given(env(GRACE_SHUTDOWN_DELAY="9")), configuration=shown)
    found = findings(given(env(GRACE_SHUTDOWN_DELAY="9", DRAIN="58")), configuration=shown)
    assert "graceful_timeout 58" in found["budget"].what


def test_a_fault_in_the_file_is_found_once(tmp_path: Any) -> None:
    """Two containers read the same file; its line is told once."""
    path = tmp_path / "gunicorn.conf.py"
    path.write_text("import gunicorn_grace\ngrace_shutdown_delay = 'soon'\n")
    second = {"containers": [{"name": "second", "image": "i", "command": ["gunicorn", "a:a"]}]}
    found = verdict(given(None, second), configuration=read_configuration(str(path)))
    (fault,) = [f for f in found.findings if f.rule.id == "setting"]
    assert (fault.source, fault.line) == (str(path), 2)
    assert len(found.judged) == 2


def test_no_error_rests_on_what_is_not_seen() -> None:
    """A ConfigMap that is not in the input may set the period; one that is in it is read."""
    removed = [{"name": "GRACE_TERMINATION_PERIOD", "$patch": "delete"}]
    container = {"env": removed, "envFrom": [{"configMapRef": {"name": "web"}}]}
    short = {"terminationGracePeriodSeconds": 20}
    assert findings(given(container, short))["period"].severity is WARNING
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "web"},
        "data": {"GRACE_TERMINATION_PERIOD": "20"},
    }
    assert findings(given(container, short, None, None, BUDGET, config)) == {}


def test_a_default_makes_no_error_unless_the_file_was_shown(tmp_path: Any) -> None:
    """The image may have a gunicorn.conf.py that nobody showed."""
    removed = {"env": [{"name": "GRACE_TERMINATION_PERIOD", "$patch": "delete"}]}
    text = given(removed, {"terminationGracePeriodSeconds": 20})
    assert findings(text)["period"].severity is WARNING
    path = tmp_path / "gunicorn.conf.py"
    path.write_text("import gunicorn_grace\n")
    shown = read_configuration(str(path))
    assert findings(text, configuration=shown)["period"].severity is ERROR


def test_an_annotation_with_a_reason_ignores_a_rule() -> None:
    """The finding is kept apart, with its reason."""
    note = {"gunicorn-grace/ignore": "single-replica: one team uses it\nno-such: because"}
    found = verdict(given(spec={"replicas": 1}, top={"metadata": {"annotations": note}}))
    assert [(f.rule.id, why) for f, why in found.ignored] == [
        ("single-replica", "one team uses it")
    ]
    assert [(f.rule.id, f.what) for f in found.findings] == [
        ("ignore", "gunicorn-grace/ignore: 'no-such' is no rule")
    ]


@pytest.mark.parametrize("kind", ["StatefulSet", "DaemonSet", "ReplicaSet", "Rollout"])
def test_every_kind_with_pods_is_judged(kind: str) -> None:
    """The kinds differ in where their roll-out is described, and in nothing else."""
    text = given(env(GRACE_TERMINATION_PERIOD="90"), top={"kind": kind})
    assert findings(text)["period"].workload == f"{kind} web"


def test_a_pod_and_a_knative_service_are_judged() -> None:
    """A pod has no template; Knative sets the period by timeoutSeconds."""
    container = GOOD["spec"]["template"]["spec"]["containers"][0]
    pod = {"kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": [container]}}
    assert "60 > terminationGracePeriodSeconds 30" in findings(yaml.safe_dump(pod))["period"].what
    knative = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": "k"},
        "spec": {"template": {"spec": {"timeoutSeconds": 50, "containers": [container]}}},
    }
    assert "60 > timeoutSeconds 50" in findings(yaml.safe_dump(knative))["period"].what


def test_cloud_run_has_a_period_of_its_own() -> None:
    """A sign of Cloud Run makes it 10 s, whatever timeoutSeconds says, and the plugin knows that
    by itself."""
    container = dict(GOOD["spec"]["template"]["spec"]["containers"][0])
    service = {
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": "k", "labels": {"cloud.googleapis.com/location": "europe-west1"}},
        "spec": {"template": {"spec": {"timeoutSeconds": 50, "containers": [container]}}},
    }
    assert "60 > Cloud Run's period, 10 s" in findings(yaml.safe_dump(service))["period"].what
    container["env"] = []
    assert "period" not in findings(yaml.safe_dump(service))


@pytest.mark.parametrize(
    ("command", "settings"),
    [
        ("curl -f http://localhost:8080/readyz?down=true", {}),
        ("curl -s 'http://[::1]:8080/up?verbose&down=true'", {"GRACE_READINESS_PATH": "/up"}),
        ("wget -qO- 127.0.0.1:8080/__heartbeat__?down=true", {"GRACE_DOCKERFLOW": "true"}),
        ("curl localhost:15020/quit?down=true", {}),
        ("/usr/bin/curl localhost:8080/livez; gunicorn-grace prestop", {}),
    ],
)
def test_the_right_path_of_a_trigger_is_no_fault(command: str, settings: dict[str, str]) -> None:
    """Readiness, however it is called, and what another container of the pod answers."""
    sidecar = {"name": "mesh", "image": "mesh", "ports": [{"containerPort": 15020}]}
    hook = {"lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", command]}}}}
    found = findings(given({**env(**settings), **hook}, {"containers": [sidecar]}))
    assert "trigger-path" not in found


def test_a_path_of_its_own_comes_before_a_single_check() -> None:
    """``/health/ready`` is readiness if it was set to that, although start-up is ``/health``."""
    paths = env(GRACE_STARTUP_PATH="/health", GRACE_READINESS_PATH="/health/ready")
    probes = {
        "startupProbe": {"httpGet": {"path": "/health/booted"}},
        "readinessProbe": {"httpGet": {"path": "/health/ready"}},
    }
    assert findings(given({**paths, **probes})) == {}
    probes["readinessProbe"] = {"httpGet": {"path": "/health/ready/a/b"}}
    assert "readiness-path" in findings(given({**paths, **probes}))


@pytest.mark.parametrize("value", ["float('nan')", "1e999", "12.5", "-1", "1000000000 * 100"])
def test_gunicorns_own_setting_is_taken_as_gunicorn_takes_it(value: str, tmp_path: Any) -> None:
    """gunicorn refuses what is no whole number of seconds, so no sum is made of it."""
    path = tmp_path / "gunicorn.conf.py"
    path.write_text(f"import gunicorn_grace\ngraceful_timeout = {value}\n")
    found = findings(given(), configuration=read_configuration(str(path)))
    assert "graceful_timeout = " in found["setting"].what
    assert (found["setting"].source, found["setting"].line) == (str(path), 2)


def test_a_token_that_is_in_a_file_is_taken_for_one() -> None:
    """The file is the container's, so nothing is read, and nothing is wrong with it."""
    assert findings(given(env(GRACE_TRIGGER="token", GRACE_TRIGGER_TOKEN="file:/run/token"))) == {}


def test_what_does_not_run_gunicorn_is_named_and_not_judged() -> None:
    """A container is judged if its command names gunicorn, or a person says so."""
    other = given({"command": ["celery", "-A", "gunicorn"], "args": None, "lifecycle": None})
    found = verdict(other)
    assert [(f.rule.id, f.severity) for f in found.findings] == [("not-judged", NOTE)]
    assert found.judged == ()
    assert verdict(other, containers=["app"]).judged == ("Deployment web, container app",)


@pytest.mark.parametrize(
    ("script", "seconds"),
    [
        ("sleep 5; sleep 10", 15),
        ("/bin/sleep 1m", 60),
        ("if ready; then sleep 5; else sleep 100; fi", 5),
        ("while busy; do sleep 1; done", 1),
        ("nginx -s quit; sleep 2.5s", 2.5),
        ("sleepy 100", 0),
    ],
)
def test_a_hook_sleeps_at_least_as_long_as_it_says(script: str, seconds: float) -> None:
    """The sum, and where there are branches the least of them."""
    hook = {"lifecycle": {"preStop": {"exec": {"command": ["sh", "-c", script]}}}}
    found = Input()
    read_text(found, plain(hook).encode(), "web.yaml")
    (case,) = cases_of(found.workloads[0], found)
    assert case.slept == seconds


@pytest.mark.parametrize("key", ["containers", "initContainers"])
def test_what_a_sidecar_answers_is_its_own(key: str) -> None:
    """A proxy in front of gunicorn has paths and ports of its own, and may well be asked."""
    proxy = {"name": "proxy", "image": "envoy", "ports": [{"containerPort": 9000}]}
    probes = {
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": 9000}},
        "livenessProbe": {"httpGet": {"path": "/readyz", "port": 9000}},
    }
    assert [f for f in verdict(given(probes, {key: [proxy]})).findings if f.severity is ERROR] == []
    assert {f.rule.id for f in verdict(given(probes)).findings} == {"probe-port"}
