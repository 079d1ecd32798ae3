"""The command: what it reads, what it writes, and how it ends."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gunicorn_grace import cli
from gunicorn_grace.operate.check import output
from gunicorn_grace.operate.check.documents import LARGEST, Input, read_text
from gunicorn_grace.operate.check.findings import RULES
from gunicorn_grace.operate.check.judging import judge
from gunicorn_grace.operate.check.patch import fix, merge
from gunicorn_grace.operate.routers import ROUTERS, Router
from support.paths import EXAMPLES

pytestmark = pytest.mark.once

BAD = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  strategy: {rollingUpdate: {maxUnavailable: 100%}}
  template:
    metadata:
      labels: {app: web}
      annotations: {gunicorn-grace/ignore: "startup-probe: it boots fast"}
    spec:
      terminationGracePeriodSeconds: 20
      containers:
        - name: sidecar
          image: envoy
        - name: app
          image: web
          command: ["sh", "-c", "cd /app && gunicorn -c python:gunicorn_grace.conf -b :8080 a:a"]
          ports: [{name: http, containerPort: 8080}]
          env:
            - {name: GRACE_TERMINATION_PERIOD, value: "90"}
            - {name: GRACE_SHUTDOWN_DELAI, value: "4"}
            - {name: OTHER, value: "1"}
          readinessProbe: {tcpSocket: {port: 9090}}
          livenessProbe: {httpGet: {path: /readyz, port: web}, initialDelaySeconds: 40}
          lifecycle:
            stopSignal: SIGINT
            preStop: {sleep: {seconds: 15}}
"""


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = cli.main(["check", *args])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "web.yaml"
    path.write_text(BAD)
    return str(path)


@pytest.mark.skipif(not EXAMPLES.is_dir(), reason="the examples are in the source tree only")
def test_the_examples_pass(capsys: pytest.CaptureFixture[str]) -> None:
    """What the project shows has no error and no warning by its own rules."""
    files = sorted(map(str, (EXAMPLES / "kubernetes").glob("*.yaml")))
    code, out, _ = run(capsys, "--strict", *files)
    assert code == 0, out
    assert "0 errors, 0 warnings" in out


def test_the_text_fits_80_columns_and_names_file_and_line(
    capsys: pytest.CaptureFixture[str], bad: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """file:line: severity rule, then the values, what happens to users, and the fix."""
    monkeypatch.chdir(Path(bad).parent)
    code, out, err = run(capsys, "web.yaml")
    assert (code, err) == (1, "")
    assert "web.yaml:22: error period (Deployment web, app)\n" in out
    assert "  GRACE_TERMINATION_PERIOD 90 > terminationGracePeriodSeconds 20\n" in out
    assert "startup-probe ignored: it boots fast" in out
    assert max(map(len, out.splitlines())) <= output.WIDTH
    assert "\x1b" not in out


def test_a_router_that_is_known_needs_no_number(
    capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    """``--lag aws-nlb`` takes the seconds from the table that ``manifest`` has, too."""
    _, out, _ = run(capsys, bad, "--lag", "aws-nlb", "--format", "json")
    what = [f["message"] for f in json.loads(out)["findings"] if f["rule"] == "delay"]
    assert f"10 s < {ROUTERS['aws-nlb'].delay} s, for which aws-nlb goes on sending" in what[0]


def test_standard_input_and_lists_are_read(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """``-`` is standard input; the objects of a List are judged as if they stood alone."""
    listed = {"kind": "List", "apiVersion": "v1", "items": [yaml.safe_load(BAD)]}
    stream = io.TextIOWrapper(io.BytesIO(yaml.safe_dump(listed).encode()))
    monkeypatch.setattr(sys, "stdin", stream)
    code, out, _ = run(capsys, "-", "--format", "json")
    assert code == 1
    document = json.loads(out)
    assert {f["file"] for f in document["findings"]} == {"<stdin>"}
    assert document["judged"] == ["Deployment web, container app"]


def test_the_exit_code_is_that_of_the_worst_finding(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Errors are 1; warnings are 0, and 1 with ``--strict``."""
    path = tmp_path / "one.yaml"
    document = yaml.safe_load(BAD.replace("90", "20"))
    container = {"command": ["gunicorn", "a:a"], "name": "app"}
    document["spec"]["template"]["spec"]["containers"] = [container]
    path.write_text(yaml.safe_dump(document))
    assert run(capsys, str(path))[0] == 0
    assert run(capsys, str(path), "--strict")[0] == 1


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--lag", "alb=soon"], "check: --lag 'alb=soon': 'soon' is no number of seconds"),
        (["--lag", "f5"], "check: --lag 'f5': 'f5' is no number of seconds, such as edge=25, and"),
        (["--config", "nowhere.py"], "check: --config nowhere.py: No such file"),
    ],
)
def test_wrong_usage_is_one_line(
    capsys: pytest.CaptureFixture[str], bad: str, args: list[str], said: str
) -> None:
    """On standard error, with exit code 2."""
    code, out, err = run(capsys, bad, *args)
    assert (code, out) == (2, "")
    assert err.startswith(said)
    assert err.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is Linux's")
def test_a_full_disk_is_one_line(bad: str) -> None:
    """What cannot be written is said on standard error."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "gunicorn_grace.cli", "check", bad],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert (done.returncode, done.stderr) == (
        1,
        "Error: standard output: No space left on device\n",
    )


def test_a_closed_standard_input_is_one_finding(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python has no ``sys.stdin`` then."""
    monkeypatch.setattr(sys, "stdin", None)
    code, out, _ = run(capsys, "-")
    assert code == 1
    assert "  standard input is closed\n" in out


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join(['*' + old] * 9)}]}}\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (b"\x00\x01\x02", "not YAML"),
        (b"\xff\xfe\x00", "it is not UTF-8 text"),
        (b"a: [", "not YAML"),
        (b"[" * 20_000, "not YAML"),
        (b"a: &a [*a]\n", "its aliases stand for more than"),
        (BOMB.encode(), "its aliases stand for more than"),
        (MERGES.encode(), "its aliases stand for more than"),
        (b"x" * (LARGEST + 1), "more than 4 MiB"),
        (b"kind: Deployment\n", "Deployment (no name): a part of an object, such as a patch"),
        (
            b"kind: Pod\nspec: {containers: [{image: a, ports: [{containerPort: '${P}'}]}]}",
            "template",
        ),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value[:20],
)
def test_what_cannot_be_read_is_one_finding(raw: bytes, said: str) -> None:
    """Binary data, bombs and half a file are one line each, and nothing is executed."""
    found = Input()
    read_text(found, raw, "bad.yaml")
    (finding,) = judge(found).findings
    assert said in finding.what
    assert "\n" not in finding.what


@pytest.mark.parametrize("kind", ["object/apply:os.system ['touch {}']", "name:os.system ''"])
def test_nothing_of_a_manifest_is_run(kind: str, tmp_path: Path) -> None:
    """Tags of Python's are read as if they were not there."""
    found = Input()
    tag = kind.format(tmp_path / "touched")
    read_text(found, f"kind: Deployment\nspec: !!python/{tag}\n".encode(), "bad.yaml")
    assert [f.rule.id for f in judge(found).findings] == ["not-judged"]
    assert not (tmp_path / "touched").exists()


def test_what_kubernetes_reads_is_read() -> None:
    """A tab at the end of a line, a date that is none and a lone equals sign: PyYAML alone would
    refuse them."""
    found = Input()
    text = BAD.replace("kind: Deployment", "kind: Deployment\t\nday: 2024-99-99\nis: =\t# so")
    text = text.replace('["sh", "-c",', '["sh",\n\t\t"-c",')
    read_text(found, text.encode(), "web.yaml")
    assert judge(found).judged == ("Deployment web, container app",)


def test_a_patch_of_kustomize_is_not_taken_for_a_whole_object() -> None:
    """It selects no pods and has no image, so what is missing in it is elsewhere."""
    found = Input()
    env = "env: [{name: GUNICORN_CMD_ARGS, value: -w 1}]"
    patch = (
        f"kind: Deployment\nspec: {{template: {{spec: {{containers: [{{name: app, {env}}}]}}}}}}\n"
    )
    read_text(found, patch.encode(), "patch.yaml")
    (finding,) = judge(found).findings
    assert finding.what == "Deployment (no name): a part of an object, such as a patch"


def test_yaml_that_is_no_object_is_passed_over() -> None:
    """Values of a chart, a workflow, a list: not ours to judge. A template is a note."""
    found = Input()
    foreign = (
        "Resources: {A: !Sub x, B: !Join [a, [b]], C: !Map {d: e}, F: !!python/name:os.system ''}\n"
    )
    for text in ("replicas: 3\n", "- a\n- b\n", "", "on: push\njobs: {}\n", "kind: [a]\n", foreign):
        read_text(found, text.encode(), "values.yaml")
    assert judge(found).findings == ()
    read_text(found, b"kind: Pod\nname: {{ .Values.name }}: {{ x }}\n", "pod.yaml")
    (finding,) = judge(found).findings
    assert (finding.rule.id, finding.severity.value) == ("not-judged", "note")


KEYS = [
    "kind",
    "apiVersion",
    "metadata",
    "name",
    "namespace",
    "annotations",
    "labels",
    "spec",
    "template",
    "replicas",
    "strategy",
    "type",
    "rollingUpdate",
    "maxSurge",
    "maxUnavailable",
    "containers",
    "image",
    "command",
    "args",
    "env",
    "envFrom",
    "value",
    "valueFrom",
    "configMapKeyRef",
    "configMapRef",
    "key",
    "ports",
    "containerPort",
    "readinessProbe",
    "livenessProbe",
    "startupProbe",
    "httpGet",
    "exec",
    "tcpSocket",
    "sleep",
    "seconds",
    "path",
    "port",
    "host",
    "httpHeaders",
    "periodSeconds",
    "timeoutSeconds",
    "failureThreshold",
    "initialDelaySeconds",
    "terminationGracePeriodSeconds",
    "lifecycle",
    "preStop",
    "stopSignal",
    "hostNetwork",
    "selector",
    "matchLabels",
    "data",
    "items",
    "gunicorn-grace/ignore",
    "scaleTargetRef",
]
WORDS = [
    "Deployment",
    "Pod",
    "Rollout",
    "Service",
    "StatefulSet",
    "List",
    "PodDisruptionBudget",
    "ConfigMap",
    "gunicorn",
    "sh",
    "-c",
    "-b",
    ":80",
    "0.0.0.0:$PORT",
    "exec&&gunicorn",
    "GRACE_SHUTDOWN_DELAY",
    "GRACE_PROBE_BIND",
    "GRACE_TRIGGER",
    "GRACE_TERMINATION_PERIOD",
    "GUNICORN_CMD_ARGS",
    "token",
    "local",
    "1e999",
    "/readyz",
    "/readyz?down=true",
    "budget:x",
    "serving.knative.dev/v1",
    "100%",
    "web",
]
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 70_000)
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6)
    ),
    max_leaves=40,
)


@st.composite
def mangled(draw: st.DrawFn) -> Any:
    """The bad manifest with some of its values replaced."""
    document = yaml.safe_load(BAD)
    for _ in range(draw(st.integers(0, 4))):
        at: Any = document
        while isinstance(at, (dict, list)) and at:
            key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
            if not isinstance(at[key], (dict, list)) or not at[key] or draw(st.booleans()):
                at[key] = draw(VALUES)
                break
            at = at[key]
    return document


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mangled() | VALUES)
def test_whatever_a_manifest_holds_there_is_no_traceback(document: Any) -> None:
    """Judged, mended and written in each format."""
    found = Input()
    read_text(found, yaml.safe_dump(document, allow_unicode=True).encode(), "web.yaml")
    verdict = judge(found, None, [Router("alb", 25.0, "", ())], ["web"])
    assert max(map(len, output.text(verdict).splitlines())) >= 0
    json.loads(output.as_json(verdict))
    jsonschema.validate(json.loads(output.as_sarif(verdict)), SARIF)
    fix(found)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_a_file_holds_there_is_no_traceback(raw: bytes) -> None:
    """Bytes that are no YAML, or no text."""
    found = Input()
    read_text(found, raw, "web.yaml")
    for finding in judge(found).findings:
        assert "\n" not in output.printable(finding.what)


def obj(required: str, **properties: Any) -> dict[str, Any]:
    """A JSON object with these properties and no others."""
    return {
        "type": "object",
        "additionalProperties": False,
        "required": required.split(),
        "properties": properties,
    }


LEVEL = {"enum": ["none", "note", "warning", "error"]}
TEXT = {"type": "string"}
MESSAGE = obj("text", text=TEXT, markdown=TEXT)
URI = {"type": "string", "pattern": r"^[A-Za-z0-9%/._~:?#\[\]@!$&'()*+,;=-]+$"}
# What the published schema of SARIF 2.1.0 says about the properties in use (OASIS, errata 01:
# sections 3.13 sarifLog, 3.14 run, 3.19 toolComponent, 3.27 result, 3.28 location, 3.35
# suppression, 3.49 reportingDescriptor). Others are not allowed here.
SARIF = obj(
    "version runs",
    **{"$schema": URI},
    version={"const": "2.1.0"},
    runs={
        "type": "array",
        "items": obj(
            "tool results",
            tool=obj(
                "driver",
                driver=obj(
                    "name rules",
                    name=TEXT,
                    version=TEXT,
                    rules={
                        "type": "array",
                        "uniqueItems": True,
                        "items": obj(
                            "id",
                            id=TEXT,
                            shortDescription=MESSAGE,
                            fullDescription=MESSAGE,
                            help=MESSAGE,
                            defaultConfiguration=obj("level", level=LEVEL),
                        ),
                    },
                ),
            ),
            results={
                "type": "array",
                "items": obj(
                    "ruleId message",
                    ruleId=TEXT,
                    ruleIndex={"type": "integer", "minimum": 0, "maximum": len(RULES) - 1},
                    level=LEVEL,
                    message=MESSAGE,
                    locations={
                        "type": "array",
                        "items": obj(
                            "physicalLocation",
                            physicalLocation=obj(
                                "artifactLocation",
                                artifactLocation=obj("uri", uri=URI),
                                region=obj(
                                    "startLine", startLine={"type": "integer", "minimum": 1}
                                ),
                            ),
                        ),
                    },
                    suppressions={
                        "type": "array",
                        "items": obj(
                            "kind", kind={"enum": ["inSource", "external"]}, justification=TEXT
                        ),
                    },
                ),
            },
        ),
    },
)


def test_the_sarif_keeps_the_rules_of_the_published_schema(
    capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    """Each result names its rule by id and index; what is ignored is a suppression."""
    code, out, _ = run(capsys, bad, "--format", "sarif")
    assert code == 1
    document = json.loads(out)
    jsonschema.validate(document, SARIF)
    (of,) = document["runs"]
    rules = [rule["id"] for rule in of["tool"]["driver"]["rules"]]
    assert rules == list(RULES)
    assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in of["results"])
    (suppressed,) = [result for result in of["results"] if "suppressions" in result]
    assert suppressed["suppressions"][0]["justification"] == "it boots fast"


def test_a_patch_is_printed_and_what_it_leaves_is_said(
    capsys: pytest.CaptureFixture[str], bad: str
) -> None:
    """The patch on standard output; on standard error what only a person can mend."""
    code, out, err = run(capsys, "--fix", bad)
    assert (code, err) == (0, "")
    (patch,) = yaml.safe_load_all(out)
    document = yaml.safe_load(BAD)
    merge(document, {"spec": patch["spec"]})
    found = Input()
    read_text(found, yaml.safe_dump(document).encode(), "web.yaml")
    assert {f.severity.value for f in judge(found).findings} <= {"note"}


@pytest.mark.parametrize("depth", [50, 150, 200, 250, 300, 320, 340, 900, 5000])
@pytest.mark.parametrize("length", [0, 200_000])
def test_whatever_is_nested_there_is_no_traceback(depth: int, length: int) -> None:
    """Also where a document can just be read, and not be written again."""
    nested = f"data: {'[' * depth}{']' * depth}\n# {'x' * length}\n"
    found = Input()
    read_text(found, (BAD + nested).encode(), "web.yaml")
    verdict = judge(found)
    assert verdict.findings
    fixed = fix(found)
    assert fixed.text or fixed.left


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
@pytest.mark.parametrize("kind", ["Deployment", "StatefulSet", "DaemonSet", "Rollout"])
def test_kustomize_applies_the_patch(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, kind: str
) -> None:
    """Kubernetes' own tool merges it, and what comes out passes."""
    text = BAD.replace("kind: Deployment", f"kind: {kind}")
    if kind == "Rollout":
        text = text.replace("apps/v1", "argoproj.io/v1alpha1")
    (tmp_path / "web.yaml").write_text(text)
    code, out, _ = run(capsys, "--fix", str(tmp_path / "web.yaml"))
    (tmp_path / "patch.yaml").write_text(out)
    kustomization = {"resources": ["web.yaml"], "patches": [{"path": "patch.yaml"}]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    built = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert built.returncode == 0, built.stderr
    found = Input()
    read_text(found, built.stdout.encode(), "built.yaml")
    (workload,) = found.workloads
    containers = {container.name: container for container in workload.containers}
    assert sorted(containers) == ["app", "sidecar"]
    assert containers["app"].env["OTHER"] == "1"
    left = [f.what for f in judge(found).findings if f.severity.value != "note"]
    assert (code, left) == (0, [])


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here")
def test_kubectl_patches_one_object(
    capsys: pytest.CaptureFixture[str], bad: str, tmp_path: Path
) -> None:
    """The command that the docs show."""
    (tmp_path / "patch.yaml").write_text(run(capsys, "--fix", bad)[1])
    command = ["kubectl", "patch", "--local", "-f", bad, "--patch-file"]
    done = subprocess.run(
        [*command, str(tmp_path / "patch.yaml"), "-o", "yaml"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    (tmp_path / "done.yaml").write_text(done.stdout)
    assert run(capsys, "--strict", str(tmp_path / "done.yaml"))[0] == 0


@pytest.mark.parametrize("first", ["documents", "output", "patch", "command"])
def test_the_rules_have_one_order(first: str) -> None:
    """Whichever module of the check is imported first: SARIF numbers the rules, and the docs list
    them."""
    code = (
        f"import gunicorn_grace.operate.check.{first}\n"
        "from gunicorn_grace.operate.check.judging import RULES\nprint(*RULES)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == list(RULES)
    assert done.stdout.split()[0] == "budget"
    assert done.stdout.split()[-4:] == ["unreadable", "invalid-manifest", "not-judged", "ignore"]
