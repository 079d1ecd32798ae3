"""What `gunicorn-grace check` knows of a container: its command, its environment, its files."""

from __future__ import annotations

import pytest

from gunicorn_grace.operate.check.launch import read_launch
from gunicorn_grace.operate.check.seen import Seen, see
from gunicorn_grace.operate.manifest import read_workload
from gunicorn_grace.operate.manifest_yaml import parse_documents

COMMAND = "[gunicorn, app:app]"
MAP = "kind: ConfigMap\nmetadata: {name: tuning}\ndata: {delay: '7', bad: '$(('}\n"


def seen(env: str, command: str = COMMAND) -> Seen:
    """A Deployment whose container has this environment, with a ConfigMap beside it."""
    deployment, tuning = parse_documents(
        f"kind: Deployment\nspec: {{template: {{spec: {{containers: [{{name: web, command: {command}, "
        f"env: {env}}}]}}}}}}\n---\n{MAP}",
        "web.yaml",
    )
    (container,) = read_workload(deployment, "web.yaml").containers
    return see(container, read_launch(container), "web.yaml", None, [("web.yaml", tuning)])


def test_gunicorn_binds_to_the_port_of_the_environment() -> None:
    """As gunicorn does where no address is given."""
    assert seen("[{name: PORT, value: '9000'}]").binds == ("0.0.0.0:9000",)
    told = seen("[{name: PORT, value: '9000'}]", "[gunicorn, -b, '0.0.0.0:$(PORT)', app:app]")
    assert told.binds == ("0.0.0.0:9000",)
    assert seen("[{name: PORT, value: http}]").binds != ("0.0.0.0:http",)


def test_the_workers_of_the_environment_are_a_default() -> None:
    """WEB_CONCURRENCY, which an option overrides."""
    env = "[{name: WEB_CONCURRENCY, value: '3'}]"
    assert seen(env).whole("workers", 1) == 3
    assert seen(env, "[gunicorn, -w, '5', app:app]").whole("workers", 1) == 5


def test_a_value_of_a_config_map_counts() -> None:
    """It is in the input, under the name that the container gives it."""
    ref = "{configMapKeyRef: {name: tuning, key: delay}}"
    found = seen(f"[{{name: GRACE_SHUTDOWN_DELAY, valueFrom: {ref}}}]")
    assert found.settings.shutdown_delay == 7
    assert not found.unseen


@pytest.mark.parametrize(
    ("env", "unseen", "elsewhere"),
    [
        (
            "[{name: GRACE_SHUTDOWN_DELAY, valueFrom: {secretKeyRef: {name: s, key: k}}}]",
            {"shutdown_delay"},
            [],
        ),
        (
            "[{name: GRACE_SHUTDOWN_DELAY, valueFrom: {configMapKeyRef: {name: no, key: k}}}]",
            {"shutdown_delay"},
            [],
        ),
        (
            "[{name: GUNICORN_CMD_ARGS, valueFrom: {secretKeyRef: {name: s, key: k}}}]",
            set(),
            ["GUNICORN_CMD_ARGS is elsewhere"],
        ),
    ],
)
def test_what_is_elsewhere_is_named(env: str, unseen: set[str], elsewhere: list[str]) -> None:
    """A secret, or a ConfigMap that is not in the input: nothing is concluded from its default."""
    found = seen(env)
    assert found.unseen == unseen
    assert [text for _, text in found.elsewhere] == elsewhere


def test_arguments_that_a_shell_would_refuse_are_none() -> None:
    """An open quote in GUNICORN_CMD_ARGS: gunicorn itself says so when it starts."""
    found = seen('[{name: GUNICORN_CMD_ARGS, value: "-w 3 --name \'x"}]')
    assert found.whole("workers", 1) == 1


def test_a_number_that_a_shell_fills_in_is_not_seen() -> None:
    """`--graceful-timeout $DRAIN`: neither a mistake nor the default."""
    found = seen("[]", "[gunicorn, --graceful-timeout, $DRAIN, app:app]")
    assert found.unseen == {"graceful_timeout"}
    assert not found.problems
