"""A manifest in, workloads out, each with its line; anything else is one line that says where."""

from __future__ import annotations

import contextlib
import textwrap
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_grace.operate.manifest import choose, read
from gunicorn_grace.operate.manifest_yaml import ManifestError
from support.paths import EXAMPLES

pytestmark = pytest.mark.once

MANIFESTS = EXAMPLES / "kubernetes"

TWO = """\
apiVersion: v1
kind: Service
metadata: {name: web}
---
# nothing
---
kind: Deployment
metadata:
  name: web
spec:
  template:
    spec:
      containers:
        - name: sidecar
          image: envoy
        - name: app
          command: [gunicorn]
          args: ["app:app"]
---
kind: StatefulSet
metadata: {name: store}
spec:
  replicas: 2
  minReadySeconds: 4
  updateStrategy: {type: RollingUpdate, rollingUpdate: {maxUnavailable: 50%}}
  template:
    metadata: {annotations: {kubectl.kubernetes.io/default-container: second}}
    spec:
      terminationGracePeriodSeconds: 7
      containers:
        - {name: first}
        - name: second
          ports: [{containerPort: 9000}, {name: http, containerPort: 8080}]
          env:
            - {name: GRACE_SHUTDOWN_DELAY, value: "5"}
            - {name: FLAG, value: true}
            - {name: SECRET, valueFrom: {secretKeyRef: {name: a, key: b}}}
          readinessProbe: {tcpSocket: {port: 9000}, failureThreshold: 2}
          livenessProbe:
            httpGet:
              path: alive
              port: "http"
              scheme: HTTPS
              httpHeaders: [{name: X-A, value: b}]
            timeoutSeconds: 3
            terminationGracePeriodSeconds: 1
          lifecycle: {preStop: {sleep: {seconds: 15}}}
"""


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are in the source tree only")
@pytest.mark.parametrize("name", ["deployment-curl.yaml", "deployment-prestop.yaml"])
def test_the_examples_are_read(name: str) -> None:
    """Replicas, period, roll-out, ports, environment, probes with a named port, and the hook."""
    workload = choose(read((MANIFESTS / name).read_text(), name), name)
    assert (workload.kind, workload.name, workload.replicas, workload.period) == (
        "Deployment",
        "hello",
        3,
        90,
    )
    assert (workload.max_surge, workload.max_unavailable, workload.strategy) == (
        "1",
        "0",
        "RollingUpdate",
    )
    container = workload.serving()
    assert container.ports == {"http": 8080}
    assert container.env == {"GRACE_TERMINATION_PERIOD": "90"}
    assert {
        kind: (probe.action.path, probe.action.port) for kind, probe in container.probes.items()
    } == {
        "readiness": ("/readyz", 8080),
        "liveness": ("/healthz", 8080),
        "startup": ("/startupz", 8080),
    }
    assert (
        container.probes["readiness"].period,
        container.probes["readiness"].failure_threshold,
    ) == (5, 1)
    assert container.pre_stop is not None
    assert container.pre_stop.kind == "exec"
    line = (MANIFESTS / name).read_text().splitlines()[container.probes["readiness"].line - 1]
    assert "readinessProbe" in line


def test_several_documents_and_kinds_are_read() -> None:
    """A Service and an empty document are passed over; a StatefulSet has other words for the
    same."""
    web, store = read(TWO, "two.yaml")
    assert (web.name, web.replicas, web.period, web.max_surge, web.line) == ("web", 1, 30, "25%", 7)
    assert web.serving().name == "app"
    assert web.serving().command == ("gunicorn", "app:app")
    assert (store.kind, store.replicas, store.period, store.min_ready) == ("StatefulSet", 2, 7, 4)
    assert store.max_unavailable == "50%"
    second = store.serving()
    assert second.name == "second"
    assert second.ports == {"9000": 9000, "http": 8080}
    assert second.env == {"GRACE_SHUTDOWN_DELAY": "5", "FLAG": "true"}
    ready, alive = second.probes["readiness"], second.probes["liveness"]
    assert (ready.action.kind, ready.action.port, ready.failure_threshold) == ("tcpSocket", 9000, 2)
    assert (alive.action.path, alive.action.port, alive.action.https) == ("/alive", 8080, True)
    assert (alive.action.headers, alive.timeout) == ((("X-A", "b"),), 3)
    assert second.pre_stop is not None
    assert (second.pre_stop.kind, second.pre_stop.seconds) == ("sleep", 15.0)


def test_a_list_object_is_looked_into() -> None:
    """``kubectl get -o yaml`` puts objects into one."""
    items = "kind: List\nitems:\n" + textwrap.indent(
        "- kind: Deployment\n  metadata: {name: a}\n  spec: {template: {spec: {containers: "
        "[{name: c}]}}}\n",
        "  ",
    )
    assert [workload.name for workload in read(items, "list.yaml")] == ["a"]


def test_the_workload_is_named_or_the_only_one() -> None:
    """Of several, the one whose command runs gunicorn; a name chooses any; else it is asked for."""
    workloads = read(TWO, "two.yaml")
    assert choose(workloads, "two.yaml").name == "web"
    assert choose(workloads, "two.yaml", "store").name == "store"
    with pytest.raises(
        ManifestError, match=r"two\.yaml: 0 workloads are called 'shop'; there are: web, store"
    ):
        choose(workloads, "two.yaml", "shop")
    with pytest.raises(ManifestError, match="it contains 2 workloads: choose one"):
        choose([workloads[1], workloads[1]], "two.yaml")
    with pytest.raises(ManifestError, match="it contains no Deployment or StatefulSet"):
        choose([], "two.yaml")


def deployment(container: str) -> str:
    return (
        f"kind: Deployment\nmetadata: {{name: a}}\nspec: {{template: {{spec: {{containers: "
        f"[{container}]}}}}}}\n"
    )


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("a: [", 1, "not YAML"),
        (
            "kind: Deployment\nname: {{ .Values.name }}: x\n",
            2,
            "a Helm template has to be rendered first",
        ),
        ("- 1\n", 0, "it contains a list, not a Kubernetes object"),
        ("? [a]\n: b\n", 1, "a key is not a scalar"),
        ("[" * 3000, 0, "nested too deeply"),
        ("kind: Deployment\nspec: 3\n", 2, "spec is a number (3), not a mapping"),
        ("kind: Deployment\nmetadata: {name: a}\n", 1, "Deployment a has no containers"),
        (
            "kind: Deployment\nspec:\n  replicas: '3'\n  template: {spec: {containers: [{}]}}\n",
            3,
            "replicas is a string",
        ),
        (
            "kind: Deployment\nspec:\n  replicas: -1\n  template: {spec: {containers: [{}]}}\n",
            3,
            "replicas -1 is less",
        ),
        (
            "kind: Deployment\nspec:\n  strategy: {rollingUpdate: {maxSurge: lots}}\n"
            "  template: {spec: {containers: [{}]}}\n",
            3,
            "maxSurge 'lots' is neither a number nor a percentage",
        ),
        (deployment("1"), 3, "containers holds a number, not a mapping"),
        (deployment("{command: gunicorn}"), 3, "command is a string ('gunicorn'), not a list"),
        (deployment("{args: [-w, 4]}"), 3, "args holds a number (4): put it in quotes"),
        (
            deployment("{ports: [{containerPort: 0}]}"),
            3,
            "containerPort 0 is not between 1 and 65535",
        ),
        (deployment("{readinessProbe: {periodSeconds: 5}}"), 3, "readinessProbe has no action"),
        (
            deployment("{readinessProbe: {httpGet: {port: 80}, periodSeconds: 0}}"),
            3,
            "periodSeconds 0 is less than 1",
        ),
    ],
)
def test_what_is_wrong_is_told_with_file_and_line(text: str, line: int, said: str) -> None:
    """One line, the place first."""
    with pytest.raises(ManifestError) as caught:
        read(text, "bad.yaml")
    assert caught.value.line == line
    assert str(caught.value).startswith(f"bad.yaml:{line}: " if line else "bad.yaml: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


KEYS = [
    "name",
    "ports",
    "containerPort",
    "env",
    "value",
    "command",
    "args",
    "readinessProbe",
    "livenessProbe",
]
KEYS += [
    "httpGet",
    "exec",
    "tcpSocket",
    "sleep",
    "seconds",
    "path",
    "port",
    "httpHeaders",
    "scheme",
    "periodSeconds",
]
KEYS += ["failureThreshold", "lifecycle", "preStop"]

VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 70_000) | st.text("abc/:80% -", max_size=6),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(VALUES, VALUES, VALUES)
def test_any_content_is_read_or_refused(container: Any, strategy: Any, replicas: Any) -> None:
    """Whatever stands in a manifest, it is a workload or a ManifestError."""
    document = {
        "kind": "Deployment",
        "spec": {
            "replicas": replicas,
            "strategy": {"rollingUpdate": strategy},
            "template": {"spec": {"containers": [container]}},
        },
    }
    with contextlib.suppress(ManifestError):
        (workload,) = read(yaml.safe_dump(document), "any.yaml")
        assert workload.serving().line > 0


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text breaks the reader."""
    with contextlib.suppress(ManifestError):
        read(text, "any.yaml")
