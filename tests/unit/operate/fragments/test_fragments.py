"""What ``gunicorn-grace manifest`` prints fits its platform, and passes the project's own check."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as some

from gunicorn_grace import cli
from gunicorn_grace.arbiter.budget import budget_line
from gunicorn_grace.errors import GraceError
from gunicorn_grace.operate.check.configuration import read_configuration
from gunicorn_grace.operate.check.documents import Input, read_text
from gunicorn_grace.operate.check.judging import Verdict, judge
from gunicorn_grace.operate.check.output import text as told
from gunicorn_grace.operate.check.patch import merge
from gunicorn_grace.operate.fragments.places import PLACES
from gunicorn_grace.operate.fragments.plan import Names, Plan, make_plan
from gunicorn_grace.operate.fragments.printing import Fragment, printed
from gunicorn_grace.operate.routers import ROUTERS
from gunicorn_grace.shared.budget import exit_margin, longest_delay
from gunicorn_grace.shared.settings import Settings
from support.trials import trials

pytestmark = pytest.mark.once

KUBERNETES = ("deployment", "kustomize", "helm-values")

BASE: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "web"},
    "spec": {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "web"}},
        "template": {
            "metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "web", "image": "registry.example/web:1"}]},
        },
    },
}
"""The Deployment to which a component or values are added."""


def plan(place: str, router: str | None = None, **environ: str) -> Plan:
    """A plan for these variables."""
    return make_plan(Names(), PLACES[place], ROUTERS[router] if router else None, None, environ)


def fragment(place: str, router: str | None = None, **environ: str) -> Fragment:
    """What is printed for these variables."""
    return printed(plan(place, router, **environ))


def manifest_of(made: Plan) -> str:
    """The manifest that the fragment of a plan leads to."""
    place, text = made.place.name, printed(made).text
    if place in ("deployment", "cloudrun"):
        return text
    whole = json.loads(json.dumps(BASE))
    container = whole["spec"]["template"]["spec"]["containers"][0]
    container["command"] = list(made.command)
    if place == "kustomize":
        (patch,) = yaml.safe_load(text)["patches"]
        merge(whole, yaml.safe_load(patch["patch"]))
    else:
        values = yaml.safe_load(text)
        pod = whole["spec"]["template"]["spec"]
        pod["terminationGracePeriodSeconds"] = values.pop("terminationGracePeriodSeconds")
        container["ports"] = [{"name": "http", "containerPort": made.port}]
        container.update(values)
    return yaml.safe_dump(whole)


def judged(place: str, router: str | None = None, **environ: str) -> Verdict:
    """What the check says about the fragment, behind this router."""
    made = plan(place, router, **environ)
    found = Input()
    read_text(found, manifest_of(made).encode(), "fragment.yaml")
    return judge(found, lags=[ROUTERS[router]] if router else [])


SETTINGS: list[Mapping[str, str]] = [
    {},
    {"GRACE_SHUTDOWN_DELAY": "0"},
    {"GRACE_SHUTDOWN_DELAY": "2.5", "GRACE_DRAIN_RESERVE": "0", "GRACE_EXIT_MARGIN": "0"},
    {"GRACE_SHUTDOWN_DELAY": "25", "GRACE_TERMINATION_PERIOD": "30"},
    {"GRACE_READINESS_DELAY": "30"},
    {"GRACE_TERMINATION_PERIOD": "300"},
    {"GRACE_TERMINATION_PERIOD": "0"},
    {"GRACE_EXIT_MARGIN": "1000", "GRACE_DRAIN_RESERVE": "500"},
    {"GUNICORN_CMD_ARGS": "--graceful-timeout 600 -b 127.0.0.1:9000"},
    {"GRACE_PROBE_BIND": "[::]:8081"},
    {"GRACE_PROBE_BIND": "127.0.0.1:8081"},
    {"GRACE_READINESS_PATH": "/health", "GRACE_LIVENESS_PATH": "/health/live"},
    {"GRACE_TRIGGER": "token", "GRACE_TRIGGER_TOKEN": "s3cret"},
    {"GRACE_TRIGGER": "token", "GRACE_TRIGGER_TOKEN": "file:/run/token"},
    {"GRACE_REPORT": "/dev/termination-log", "GRACE_ENABLED": "false"},
]


@pytest.mark.parametrize("router", [None, *ROUTERS])
@pytest.mark.parametrize("place", KUBERNETES)
def test_what_is_printed_for_kubernetes_passes_the_check(place: str, router: str | None) -> None:
    """No error and no warning, for each router and several settings; one container is judged."""
    for environ in SETTINGS:
        verdict = judged(place, router, **environ)
        assert len(verdict.judged) == 1, environ
        assert not verdict.fails(strict=True), f"{environ}\n{told(verdict)}"


paths = some.from_regex(r"/[A-Za-z0-9_~.{}\"'#%é-]{1,8}(/[a-z]{1,4})?", fullmatch=True).filter(
    lambda path: "#" not in path
)
seconds = some.one_of(
    some.integers(0, 10_000).map(str),
    some.floats(0, 1e6, allow_nan=False).map(repr),
    some.floats(0, 20, allow_nan=False).map(repr),
    some.sampled_from(["0", "31536000", "1e3", "0.001"]),
)
environments = some.fixed_dictionaries(
    {},
    optional={
        "GRACE_SHUTDOWN_DELAY": seconds,
        "GRACE_MIN_DELAY": seconds,
        "GRACE_READINESS_DELAY": seconds,
        "GRACE_DRAIN_RESERVE": seconds,
        "GRACE_EXIT_MARGIN": seconds,
        "GRACE_TERMINATION_PERIOD": some.one_of(seconds, some.just("auto")),
        "GRACE_EXTEND_DELAY": some.sampled_from(["true", "false"]),
        "GRACE_READINESS_PATH": paths,
        "GRACE_LIVENESS_PATH": paths,
        "GRACE_STARTUP_PATH": paths,
        "GRACE_DOCKERFLOW": some.sampled_from(["on", "off"]),
        "GRACE_PROBE_BIND": some.sampled_from(
            ["0.0.0.0:8081", "[::1]:8081", "unix:/run/probe.sock", "0.0.0.0:8000", ""]
        ),
        "GRACE_TRIGGER": some.sampled_from(["off", "local", "token"]),
        "GRACE_TRIGGER_TOKEN": some.sampled_from(["s3cret", "file:/run/token"]),
        "GUNICORN_CMD_ARGS": some.sampled_from(
            ["--graceful-timeout 90", "--graceful-timeout=0 --bind :9000", "-b unix:/run/web.sock"]
        ),
        "WEB_CONCURRENCY": some.just("1"),
    },
)


def attempt(place: str, router: str | None, environ: dict[str, str]) -> tuple[Plan | None, str]:
    """The plan, or why there is none."""
    try:
        return plan(place, router, **environ), ""
    except GraceError as error:
        return None, str(error)


@trials(400)
@given(some.sampled_from(list(PLACES)), some.sampled_from([None, *ROUTERS]), environments)
@example(  # A reserve that is nothing but rounding.
    "deployment",
    None,
    {"GUNICORN_CMD_ARGS": "--graceful-timeout=0 --bind :9000", "GRACE_DRAIN_RESERVE": "2.6e-13"},
)
def test_any_settings_give_a_fragment_that_fits_or_one_line(
    place: str, router: str | None, environ: dict[str, str]
) -> None:
    """Whatever the settings are: the fragment passes the check, delay, drain, reserve and margin fit
    into its period, and gunicorn boots with it without a warning; or the command refuses in one
    line, which names the fix."""
    made, refusal = attempt(place, router, environ)
    if made is None:
        assert "\n" not in refusal
        assert ": " in refusal
        return
    s = made.settings
    limit = PLACES[place].limit
    assert made.env["GRACE_TERMINATION_PERIOD"] == str(made.sum.period)
    assert longest_delay(s) == pytest.approx(s.shutdown_delay)
    if limit is None:
        needed = s.shutdown_delay + s.graceful_timeout + exit_margin(s)
        assert needed <= made.sum.period + 1e-6
        assert router is None or s.shutdown_delay >= ROUTERS[router].needs(s.readiness_delay)
        given = "--graceful-timeout" in made.command
        warns, line = budget_line(s, graceful_timeout_given=given)
        assert not warns, line
    else:
        assert made.sum.period <= limit
    assert "s3cret" not in printed(made).text
    if place in KUBERNETES or place == "cloudrun":
        found = Input()
        read_text(found, manifest_of(made).encode(), "f.yaml")
        verdict = judge(found)
        assert len(verdict.judged) == 1
        assert not verdict.fails(strict=True), told(verdict)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not there")
def test_kustomize_takes_the_component(tmp_path: Path) -> None:
    """``kubectl kustomize`` builds a Deployment with it, and the check passes that."""
    made = plan("kustomize", "aws-alb", GRACE_READINESS_PATH='/"odd"')
    (tmp_path / "grace").mkdir()
    (tmp_path / "grace" / "kustomization.yaml").write_text(printed(made).text)
    base = json.loads(json.dumps(BASE))
    base["spec"]["template"]["spec"]["containers"][0]["command"] = list(made.command)
    (tmp_path / "web.yaml").write_text(json.dumps(base))
    (tmp_path / "kustomization.yaml").write_text("resources: [web.yaml]\ncomponents: [grace]\n")
    done = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path)], capture_output=True, timeout=60, check=True
    )
    found = Input()
    read_text(found, done.stdout, "built.yaml")
    verdict = judge(found, lags=[ROUTERS["aws-alb"]])
    assert len(verdict.judged) == 1
    assert not verdict.fails(strict=True), told(verdict)


@pytest.mark.parametrize("router", ["aws-alb", "aws-nlb", "envoy", "haproxy", None])
def test_a_task_of_ecs_stops_within_the_limit(router: str | None) -> None:
    """``stopTimeout`` is at most 120 and the same as the plugin's period. Reasons go beside the
    JSON; what does not fit is one line with the fix."""
    made = fragment("ecs", router, GUNICORN_CMD_ARGS="--graceful-timeout 60")
    (container,) = json.loads(made.text)["containerDefinitions"]
    env = {item["name"]: item["value"] for item in container["environment"]}
    assert 2 <= container["stopTimeout"] <= 120
    assert env["GRACE_TERMINATION_PERIOD"] == str(container["stopTimeout"])
    warnings = [line for line in made.beside if line.startswith("Warning: ")]
    assert len(warnings) == (router == "aws-nlb")
    if warnings:
        assert "187 s > 120 s, the most of stopTimeout: the delay is cut to 113 s" in warnings[0]
        assert "deregistration_delay.timeout_seconds" in warnings[0]


def test_cloud_run_has_ten_seconds() -> None:
    """The period is 10 s whatever is set, the delay is cut to it, and one line says so. The check
    knows Cloud Run by its annotation."""
    made = fragment("cloudrun", GRACE_TERMINATION_PERIOD="300")
    service = yaml.safe_load(made.text)
    (container,) = service["spec"]["template"]["spec"]["containers"]
    env = {item["name"]: item["value"] for item in container["env"]}
    assert (env["GRACE_SHUTDOWN_DELAY"], env["GRACE_TERMINATION_PERIOD"]) == ("3", "10")
    assert "readinessProbe" not in container
    (warning,) = made.beside
    assert "47 s > 10 s, after which Cloud Run sends SIGKILL: the delay is cut to 3 s" in warning
    found = Input()
    read_text(found, made.text.encode(), "f.yaml")
    assert not judge(found).fails(strict=True)


def test_a_service_of_compose_has_period_and_signal() -> None:
    """Compose puts no variable into what is printed."""
    made = fragment(
        "compose", GRACE_READINESS_PATH="/$x", GRACE_TRIGGER="token", GRACE_TRIGGER_TOKEN="t"
    )
    service = yaml.safe_load(made.text)["services"]["web"]
    assert service["stop_grace_period"] == "47s"
    assert service["stop_signal"] == "SIGTERM"
    assert service["environment"]["GRACE_TERMINATION_PERIOD"] == "47"
    assert service["environment"]["GRACE_READINESS_PATH"] == "/$$x"
    assert service["environment"]["GRACE_TRIGGER_TOKEN"] == "${GRACE_TRIGGER_TOKEN:?}"


def test_a_unit_of_systemd_has_period_signal_and_mode() -> None:
    """SIGTERM goes to the arbiter alone, SIGKILL to all."""
    lines = fragment("systemd", GRACE_LIVENESS_PATH="/100%$").text.splitlines()
    for line in (
        "Type=notify",
        "KillMode=mixed",
        "KillSignal=SIGTERM",
        "TimeoutStopSec=47",
        "Environment=GRACE_TERMINATION_PERIOD=47",
        "Environment=GRACE_LIVENESS_PATH=/100%%$",
    ):
        assert line in lines
    assert all(re.fullmatch(r"|#.*|\[\w+\]|[A-Z]\w+=.+", line) for line in lines)


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not there")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    """``systemd-analyze verify`` has nothing to say about it."""
    made = fragment("systemd", "haproxy", GRACE_READINESS_PATH='/"a%b"', GRACE_STARTUP_PATH="/é")
    program = shutil.which("true")
    text = re.sub(r"(?m)^ExecStart=\S+", f"ExecStart={program}", made.text)
    unit = tmp_path / "web.service"
    unit.write_text(text.replace("/srv/web", str(tmp_path)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(unit)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    ours = [line for line in done.stderr.splitlines() if "web.service" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


def hcl(text: str) -> dict[str, Any]:
    """What blocks and strings of HCL say, as far as a job needs it."""
    token = re.compile(r'\s+|#[^\n]*|"(?:\\.|[^"\\])*"|[{}=\[\],]|[\w-]+')
    found, at = [], 0
    while at < len(text):
        match = token.match(text, at)
        assert match, text[at : at + 40]
        at = match.end()
        if not match[0].isspace() and not match[0].startswith("#"):
            found.append(match[0])

    def value() -> Any:
        item = found.pop(0)
        if item == "[":
            items = []
            while found[0] != "]":
                items.append(value())
                if found[0] == ",":
                    found.pop(0)
            found.pop(0)
            return items
        return json.loads(item) if item.startswith('"') else int(item) if item.isdecimal() else item

    def body() -> dict[str, Any]:
        table: dict[str, Any] = {}
        while found and found[0] != "}":
            key = found.pop(0)
            if found[0] == "=":
                found.pop(0)
                table[key] = value()
                continue
            while found[0] != "{":
                key += " " + json.loads(found.pop(0))
            found.pop(0)
            table[key] = body()
            assert found.pop(0) == "}"
        return table

    whole = body()
    assert not found
    return whole


def test_a_task_of_nomad_has_period_and_signal() -> None:
    """Nomad ends a task with SIGINT unless told, and a client caps the period at 30 s: one line
    says how to raise that."""
    made = fragment(
        "nomad", GRACE_READINESS_PATH="/${x}", GRACE_TRIGGER="token", GRACE_TRIGGER_TOKEN="t"
    )
    task = hcl(made.text)["job web"]["group web"]["task web"]
    assert (task["kill_signal"], task["kill_timeout"]) == ("SIGTERM", "47s")
    assert task["env"]["GRACE_TERMINATION_PERIOD"] == "47"
    assert task["env"]["GRACE_READINESS_PATH"] == "/$${x}"
    assert task["config"]["args"][-1] == "app:app"
    assert "GRACE_TRIGGER_TOKEN=" in task["template"]["data"]
    assert 'set max_kill_timeout = "47s"' in made.beside[0]
    short = fragment("nomad", GRACE_SHUTDOWN_DELAY="5", GUNICORN_CMD_ARGS="--graceful-timeout 10")
    assert short.beside == ()


@pytest.mark.parametrize("place", PLACES)
def test_each_number_has_its_source(place: str) -> None:
    """The period is explained by the sum and by a page of the platform; the delay by the router's
    pages, where one was named."""
    router = None if PLACES[place].routes_itself else "haproxy"
    made = fragment(place, router)
    whole = made.text + "\n".join(made.beside)
    assert PLACES[place].source in whole
    assert "grace_drain_reserve 5 + grace_exit_margin 2 = " in whole
    for source in ROUTERS["haproxy"].sources if router else ():
        assert source in whole


def test_a_file_is_read_and_not_executed(tmp_path: Path) -> None:
    """Its values count, the environment wins, and the command names it."""
    file = tmp_path / "conf.py"
    file.write_text(
        "from gunicorn_grace.conf import *\nbind = '0.0.0.0:9000'\ngraceful_timeout = 60\n"
        "grace_shutdown_delay = 15\ngrace_readiness_path = '/up'\n"
        f"open({str(tmp_path / 'executed')!r}, 'w')\n"
    )
    made = make_plan(
        Names(),
        PLACES["deployment"],
        None,
        read_configuration(str(file)),
        {"GRACE_SHUTDOWN_DELAY": "20"},
    )
    assert (made.sum.delay, made.sum.period, made.port) == (20, 87, 9000)
    assert made.command[2] == str(file)
    assert "{path: /up, port: http}" in printed(made).text
    assert made.warnings == ()
    assert not (tmp_path / "executed").exists()


def test_a_delay_that_is_too_short_for_the_router_is_told() -> None:
    """The router's delay is printed, and a line says that the setting is less."""
    made = fragment("deployment", "aws-alb", GRACE_SHUTDOWN_DELAY="15")
    (warning,) = made.beside
    assert warning == (
        "Warning: grace_shutdown_delay 15 s < 20 s, for which aws-alb goes on sending: 20 is "
        "printed; set it to that"
    )
    assert 'GRACE_SHUTDOWN_DELAY, value: "20"' in made.text
    assert not fragment("deployment", "aws-alb", GRACE_SHUTDOWN_DELAY="30").beside
    assert not fragment("deployment", "aws-alb").beside


@pytest.mark.parametrize(
    ("router", "delay"), [("envoy", 26), ("haproxy", 28), ("kube-proxy", 23), ("aws-nlb", 120)]
)
def test_who_asks_for_readiness_learns_later_where_it_stays_green(router: str, delay: int) -> None:
    """``grace_readiness_delay`` is added for routers that learn by asking; the others are told by
    Kubernetes, and only the probe has to have its turn."""
    assert plan("deployment", router, GRACE_READINESS_DELAY="20").sum.delay == delay


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """The command's exit code, and what it wrote."""
    code = cli.main(["manifest", *args])
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize(
    ("args", "file", "said"),
    [
        (
            ["--for", "cloudrun", "--router", "envoy"],
            "",
            "Cloud Run routes to its instances itself",
        ),
        (["--for", "ecs", "--router", "gke-neg"], "", "and --for ecs has none"),
        (["--for", "ecs", "--name", "Web_1"], "", "--name 'Web_1' is no name of a service"),
        (["--for", "ecs", "--app", "a b"], "", "--app 'a b' is empty, or has a blank"),
        (["--for", "ecs", "--config", "nowhere.py"], "", "nowhere.py: No such file"),
        (["--for", "ecs", "--config", "new\nline.py"], "", r"new\nline.py: No such file"),
        (["--for", "ecs"], "bind = (", "conf.py:1: "),
        (["--for", "ecs"], "grace_shutdown_delay = -1", "conf.py:1: grace_shutdown_delay = -1"),
        (["--for", "ecs"], "grace_shutdown_delay = f()", "is not seen without executing it: set"),
        (["--for", "ecs"], "grace_probe_bind = ':::'", "conf.py:1: grace_probe_bind = ':::'"),
        (["--for", "ecs"], "graceful_timeout = float('nan')", "graceful_timeout = nan is not a"),
        (["--for", "ecs"], "graceful_timeout = 1e999", "graceful_timeout = inf is not a whole"),
        (["--for", "ecs"], f"graceful_timeout = {10**30}", "from 0 to 31536000: give one"),
        (["--for", "systemd"], "grace_exit_margin = 1e8", "grace_exit_margin = 100000000"),
        (["--for", "systemd"], "grace_shutdown_delay = 31536000", "> 31536000 s, the most that"),
        (
            ["--for", "ecs"],
            "grace_liveness_path = '/readyz'",
            "grace_readiness_path and grace_liveness_path are both '/readyz'",
        ),
        (["--for", "ecs"], "grace_probe_bind = '0.0.0.0:8000'", "has port 8000, which gunicorn"),
    ],
    ids=lambda value: "" if isinstance(value, list) else value[:24],
)
def test_what_cannot_be_used_is_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    file: str,
    said: str,
) -> None:
    """On standard error, with exit code 1, and nothing is printed."""
    monkeypatch.chdir(tmp_path)
    if file:
        Path("conf.py").write_text(file)
        args = [*args, "--config", "conf.py"]
    code, out, err = run(capsys, *args)
    assert (code, out) == (1, "")
    assert err.startswith("Error: ")
    assert said in err
    assert err.count("\n") == 1


def test_wrong_usage_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """A platform or a router that is not known lists those that are."""
    code, _, err = run(capsys, "--for", "kubernetes")
    assert code == 2
    assert "'deployment', 'kustomize', 'helm-values'" in err
    code, _, err = run(capsys, "--for", "ecs", "--router", "f5")
    assert code == 2
    assert "'aws-nlb'" in err


def test_the_fragment_goes_to_standard_output_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """Warnings are on standard error, so that a file gets what is valid."""
    code, out, err = run(capsys, "--for", "ecs", "--router", "aws-nlb")
    assert code == 0
    assert json.loads(out)["family"] == "web"
    assert "\nWarning: delay 120 + " in err


def test_the_routers_have_plausible_numbers() -> None:
    """A delay of whole seconds that leaves ECS's largest period something, and pages on the web."""
    assert list(ROUTERS) == [
        "kube-proxy",
        "ingress-nginx",
        "aws-alb",
        "aws-nlb",
        "gke-neg",
        "envoy",
        "haproxy",
    ]
    for router in ROUTERS.values():
        assert 1 <= router.delay <= 120
        assert router.sources
        assert all(source.startswith("https://") for source in router.sources)
    assert Settings().min_delay <= min(router.delay for router in ROUTERS.values())
