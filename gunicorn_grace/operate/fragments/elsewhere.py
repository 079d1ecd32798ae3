"""Prints fragments for ECS, Compose, systemd and Nomad."""

from __future__ import annotations

import json
import re
from typing import Any

from . import commented
from .commented import quoted, said
from .kubernetes import about_delay
from .plan import SECRET, Plan

NOMAD_MOST = 30
"""The default of ``max_kill_timeout`` of a Nomad client; seconds."""
_NOMAD_CLIENT = "https://developer.hashicorp.com/nomad/docs/configuration/client#max_kill_timeout"
_ECS_SERVICE = "https://docs.aws.amazon.com/AmazonECS/latest/developerguide/update-service.html"
_KILL_MODE = "https://www.freedesktop.org/software/systemd/man/latest/systemd.kill.html#KillMode="


def ecs(plan: Plan) -> str:
    """Return a task definition for ECS. JSON has no comments, so the reasons go to standard
    error."""
    container: dict[str, Any] = {
        "name": plan.names.name,
        "image": plan.names.image,
        "essential": True,
        "command": list(plan.command),
        "portMappings": [{"containerPort": plan.port, "protocol": "tcp"}],
        "environment": [{"name": name, "value": value} for name, value in _in_order(plan)],
        "stopTimeout": plan.sum.period,
    }
    if plan.has_secret:
        container["secrets"] = [
            {"name": SECRET, "valueFrom": f"/{plan.names.name}/grace-trigger-token"}
        ]
    return (
        json.dumps({"family": plan.names.name, "containerDefinitions": [container]}, indent=2)
        + "\n"
    )


def compose(plan: Plan) -> str:
    """Return a service for Compose."""
    service = {
        "image": said(plan.names.image, "With gunicorn-grace in it."),
        "command": [_dollars(word) for word in plan.command],
        "stop_signal": said("SIGTERM", "At SIGINT and SIGQUIT gunicorn ends at once."),
        "stop_grace_period": said(
            f"{plan.sum.period}s", f"{plan.sum.told}; 10 s unless set: {plan.place.source}"
        ),
        "environment": {name: _about(plan, name, _dollars(text)) for name, text in _in_order(plan)},
    }
    if plan.has_secret:
        service["environment"][SECRET] = f"${{{SECRET}:?}}"  # type: ignore[index]
    return commented.document({"services": {plan.names.name: service}})


def systemd(plan: Plan) -> str:
    """Return a unit for systemd."""
    name = plan.names.name
    command = " ".join(_word(word) for word in plan.command)
    lines = [
        "[Unit]",
        f"Description=gunicorn, {name}",
        "After=network.target",
        "",
        "[Service]",
        "# The plugin tells systemd when the shutdown began, and asks for the time that it needs.",
        "Type=notify",
        "NotifyAccess=main",
        "# Where app, virtual environment and configuration are.",
        f"WorkingDirectory=/srv/{name}",
        f"ExecStart=/srv/{name}/venv/bin/{command}",
        "# SIGTERM to the arbiter alone, which dismisses its workers itself; SIGKILL to all: "
        f"{_KILL_MODE}",
        "KillMode=mixed",
        "# At SIGINT and SIGQUIT gunicorn ends at once.",
        "KillSignal=SIGTERM",
        f"# {plan.sum.told}: {plan.place.source}",
        f"TimeoutStopSec={plan.sum.period}",
    ]
    for variable, text in _in_order(plan):
        about = _ABOUT.get(variable, lambda _: "")(plan)
        lines += [f"# {about}"] if about else []
        lines.append(f"Environment={_word(f'{variable}={text}', is_command=False)}")
    if plan.has_secret:
        lines += [f"# {SECRET}=..., readable by root alone.", f"EnvironmentFile=/etc/{name}.env"]
    return "\n".join([*lines, "", "[Install]", "WantedBy=multi-user.target", ""])


def nomad(plan: Plan) -> str:
    """Return a job for Nomad with one task."""
    name = quoted(plan.names.name)
    command, *args = plan.command
    variables = []
    for variable, text in _in_order(plan):
        about = _ABOUT.get(variable, lambda _: "")(plan)
        variables += [f"        # {about}"] if about else []
        variables.append(f"        {variable} = {_hcl(text)}")
    inside = "{{ .grace_trigger_token }}{{ end }}"
    token = f'{SECRET}={{{{ with nomadVar "nomad/jobs/{plan.names.name}" }}}}{inside}'
    secret = f"""
      # From a Nomad variable: whoever has the token can take the instance out of rotation.
      template {{
        destination = "secrets/grace.env"
        env         = true
        data        = {quoted(token)}
      }}
"""
    return f"""\
job {name} {{
  group {name} {{
    count = 2
    network {{
      port "http" {{ to = {plan.port} }}
    }}
    task {name} {{
      driver = "docker"
      config {{
        # With gunicorn-grace in it.
        image   = {_hcl(plan.names.image)}
        command = {_hcl(command)}
        args    = [{", ".join(map(_hcl, args))}]
        ports   = ["http"]
      }}
      # SIGINT unless set, except through the Docker driver; at SIGINT gunicorn ends at once.
      kill_signal = "SIGTERM"
      # {plan.sum.told}; 5 s unless set: {plan.place.source}
      kill_timeout = "{plan.sum.period}s"
      env {{
{chr(10).join(variables)}
      }}
{secret if plan.has_secret else ""}    }}
  }}
}}
"""


def about_nomad(plan: Plan) -> list[str]:
    """Return a warning if Nomad's clients do not allow the period by default."""
    if plan.sum.period <= NOMAD_MOST:
        return []
    return [
        f"kill_timeout {plan.sum.period} s > max_kill_timeout {NOMAD_MOST} s, which a client has "
        f'unless set: set max_kill_timeout = "{plan.sum.period}s" in the client block of each '
        f"({_NOMAD_CLIENT})"
    ]


def reasons(plan: Plan) -> list[str]:
    """Return the reasons for a fragment without comments (ECS)."""
    return [
        f"stopTimeout: {plan.sum.told}: {plan.place.source}",
        "GRACE_SHUTDOWN_DELAY: for tasks that end while the target group still sends to them "
        f"(Spot, stop-task); a service deregisters its tasks before SIGTERM: {_ECS_SERVICE}",
        f"GRACE_TERMINATION_PERIOD: {_same(plan)}",
        f"target group: let its health check ask {plan.settings.readiness_path}",
    ]


def _same(plan: Plan) -> str:
    return f"The same as {plan.place.knob}: no process can ask {plan.place.title} for it."


_ABOUT = {"GRACE_SHUTDOWN_DELAY": about_delay, "GRACE_TERMINATION_PERIOD": _same}


def _in_order(plan: Plan) -> list[tuple[str, str]]:
    """Return the variables. The variables that every fragment has come first."""
    return sorted(plan.env.items(), key=lambda item: item[0] not in _ABOUT)


def _about(plan: Plan, name: str, value: str) -> Any:
    return said(value, _ABOUT[name](plan)) if name in _ABOUT else value


def _dollars(text: str) -> str:
    """Return a text in which Compose expands no variables."""
    return text.replace("$", "$$")


def _word(text: str, is_command: bool = True) -> str:
    """Return a word for a unit, with systemd's specifiers and variables escaped
    (systemd.syntax(7))."""
    text = text.replace("%", "%%")
    if is_command:
        text = text.replace("$", "$$")
    return text if re.fullmatch(r"[\w.,:=/@%+$-]+", text, re.ASCII) else quoted(text)


def _hcl(text: str) -> str:
    return quoted(text.replace("${", "$${").replace("%{", "%%{"))
