"""Finds the settings of a container in the defaults, ``--config``, the environment and the command
line.

The later of these sources override the earlier ones. The plugin's settings have no command-line
options, so the environment overrides all else. Settings that cannot be seen are listed, and no
error is based on them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ...errors import ConfigurationError, SettingError
from ...shared import settings as table
from ...shared.settings import PREFIX, Settings, rows
from ..manifest import Container
from ..manifest_yaml import Table
from .configuration import Configuration
from .launch import Launch, options_of

NAMES = {
    "-c": "config",
    "--config": "config",
    "-b": "bind",
    "--bind": "bind",
    "-w": "workers",
    "--workers": "workers",
    "--threads": "threads",
    "-k": "worker_class",
    "--worker-class": "worker_class",
    "-t": "timeout",
    "--timeout": "timeout",
    "--graceful-timeout": "graceful_timeout",
    **{name: name for name in ("-p", "-u", "-g", "-m", "-e", "-n", "--log-level", "--name")},
    "--chdir": "chdir",
    "--access-logfile": "access",
    "--error-logfile": "error",
}
"""gunicorn's options that have a value, each with the setting that it sets."""

PERIOD = 30
"""The default of terminationGracePeriodSeconds."""


@dataclass
class Seen:
    """The settings of one container, as far as they are seen.

    :ivar settings: the plugin's settings.
    :ivar given: the names of the settings that a person chose: those of the plugin without
        ``grace_``, and ``graceful_timeout``.
    :ivar lines: the file and the line where each setting was chosen.
    :ivar unseen: the names of settings that are set, but whose value is not seen.
    :ivar elsewhere: sources that are not seen and may set any setting, such as a file or a
        ConfigMap: the line that refers to each, and its description.
    :ivar plugin: the sign that the plugin is loaded; empty if there is none.
    :ivar gunicorn: gunicorn's own settings that were chosen, as text.
    :ivar binds: the addresses on which gunicorn listens; None if they are not known.
    :ivar problems: the values that the plugin refuses: file, line and error.
    :ivar is_shown: whether the configuration file was shown. If not, the image may have one.
    """

    settings: Settings = field(default_factory=lambda: Settings(termination_period=PERIOD))
    given: set[str] = field(default_factory=set)
    lines: dict[str, tuple[str, int]] = field(default_factory=dict)
    unseen: set[str] = field(default_factory=set)
    elsewhere: list[tuple[int, str]] = field(default_factory=list)
    plugin: str = ""
    gunicorn: dict[str, str] = field(default_factory=dict)
    binds: tuple[str, ...] | None = None
    problems: list[tuple[str, int, str]] = field(default_factory=list)
    is_shown: bool = False

    def is_certain(self, *names: str) -> bool:
        """Whether the container certainly uses the seen values of these settings."""
        return not self.unseen & {*names} and (not self.elsewhere or {*names} <= self.given)

    def is_chosen(self, *names: str) -> bool:
        """Whether a person chose these values, or the defaults are known to count."""
        return self.is_certain(*names) and (self.is_shown or {*names} <= self.given)

    @property
    def graceful_timeout(self) -> float:
        """``graceful_timeout``, in seconds."""
        return self.settings.graceful_timeout

    def whole(self, name: str, default: int) -> int | None:
        """Return one of gunicorn's settings as a whole number; None if it is not one.

        :param name: the setting.
        :param default: gunicorn's default for it.
        """
        text = self.gunicorn.get(name, str(default)).strip()
        return int(text) if text.isascii() and text.isdecimal() else None


def see(
    container: Container,
    launch: Launch | None,
    source: str,
    configuration: Configuration | None,
    others: Sequence[tuple[str, Table]],
    namespace: str = "",
) -> Seen:
    """Find the settings of a container.

    :param container: the container.
    :param launch: how its command starts gunicorn; None if the command does not.
    :param source: the name of the manifest.
    :param configuration: the file of ``--config``, if there is one.
    :param others: the other objects of the input, among which ConfigMaps are looked up.
    :param namespace: the namespace of the workload.
    """
    found = Seen(is_shown=configuration is not None)
    environ = _environ(container, others, namespace, found)
    words = launch.words if launch else ()
    from_env = _split(environ.get("GUNICORN_CMD_ARGS", ""))
    options = options_of((*from_env, *words), NAMES)
    values: dict[str, Any] = {}
    if configuration is not None:
        _take_file(configuration, environ, values, found)
    own = {name: texts[-1] for name, texts in options.items()}
    found.gunicorn.update(own)
    _bind(found, options, environ)
    if "WEB_CONCURRENCY" in environ:
        found.gunicorn.setdefault("workers", environ["WEB_CONCURRENCY"])
    file = own.get("config", "")
    if file and not file.startswith("python:gunicorn_grace") and configuration is None:
        line = container.table.lines.get("args", container.table.lines.get("command", 0))
        found.elsewhere.append((line or container.line, f"{file}: show it with --config"))
    for row in rows():
        variable = (PREFIX + row.name).upper()
        if variable in environ:
            values[row.name] = environ[variable]
            found.lines[row.name] = (source, container.env_lines.get(variable, container.line))
            found.given.add(row.name)
    timeout = own.get("graceful_timeout")
    if timeout is not None:
        values["graceful_timeout"] = timeout
        found.given.add("graceful_timeout")
        line = container.table.lines.get("args", container.table.lines.get("command", 0))
        found.lines["graceful_timeout"] = (source, line or container.line)
    _settle(found, values, source)
    found.plugin = _sign(container, words, environ, configuration)
    return found


def _split(text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError:
        return []


def _environ(
    container: Container, others: Sequence[tuple[str, Table]], namespace: str, found: Seen
) -> dict[str, str]:
    """Return the environment, including values from ConfigMaps of the same input."""
    maps = {
        metadata.get("name"): item.get("data")
        for _, item in others
        if item.get("kind") == "ConfigMap"
        and isinstance(metadata := item.get("metadata"), Table)
        and metadata.get("namespace", namespace) in (namespace, "", None)
    }
    environ: dict[str, str] = {}

    def ref(item: Any, key: str) -> Any:
        inner = item.get(key) if isinstance(item, Table) else None
        return inner if isinstance(inner, Table) else None

    for item in _tables(container.table.get("envFrom")):
        name = (ref(item, "configMapRef") or {}).get("name")
        prefix = item.get("prefix") or ""
        data = maps.get(name) if isinstance(name, str) else None
        if isinstance(data, Table):
            environ.update({f"{prefix}{key}": str(value) for key, value in data.items()})
        else:
            kind = next((k for k in ("configMapRef", "secretRef") if k in item), "envFrom")
            secret = (ref(item, kind) or {}).get("name", "")
            found.elsewhere.append((item.line, f"envFrom {kind} {secret}".rstrip()))
    environ.update(container.env)
    for item in _tables(container.table.get("env")):
        name = item.get("name")
        if not isinstance(name, str) or name in container.env:
            continue
        source = ref(ref(item, "valueFrom"), "configMapKeyRef") or {}
        key, owner = source.get("key"), source.get("name")
        data = maps.get(owner) if isinstance(owner, str) else None
        if isinstance(data, Table) and isinstance(key, str) and key in data:
            environ[name] = str(data[key])
            continue
        environ.pop(name, None)
        if "valueFrom" in item and name.startswith(PREFIX.upper()):
            found.unseen.add(name.lower().removeprefix(PREFIX))
        elif "valueFrom" in item and name == "GUNICORN_CMD_ARGS":
            found.elsewhere.append((item.line, "GUNICORN_CMD_ARGS is elsewhere"))
    return environ


def _tables(items: Any) -> list[Table]:
    return [item for item in items if isinstance(item, Table)] if isinstance(items, list) else []


def _take_file(
    configuration: Configuration,
    environ: Mapping[str, str],
    values: dict[str, Any],
    found: Seen,
) -> None:
    seen, unseen = configuration.values(environ)
    known = {PREFIX + row.name: row.name for row in rows()}
    known["graceful_timeout"] = "graceful_timeout"
    for name, (line, value) in seen.items():
        if name in known:
            values[known[name]] = value
            found.given.add(known[name])
            found.lines[known[name]] = (configuration.source, line)
        elif name in ("workers", "threads", "worker_class", "timeout", "bind"):
            text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
            found.gunicorn[name] = text
    for name, line in unseen.items():
        if name in known:
            found.unseen.add(known[name])
            found.lines[known[name]] = (configuration.source, line)
        elif name in ("workers", "threads", "worker_class", "bind"):
            found.gunicorn[name] = ""


def _bind(found: Seen, options: Mapping[str, list[str]], environ: Mapping[str, str]) -> None:
    """Store the addresses on which gunicorn listens, if they are written somewhere."""
    from_file = found.gunicorn.get("bind")
    if "bind" in options:
        found.binds = tuple(options["bind"])
    elif from_file:
        found.binds = tuple(from_file.split(","))
    elif "PORT" in environ and environ["PORT"].isdecimal() and not options.get("config"):
        found.binds = (f"0.0.0.0:{environ['PORT']}",)
    if found.binds is not None:
        expanded = tuple(_expand(bind, environ) for bind in found.binds)
        found.binds = None if any("$" in bind for bind in expanded) else expanded


_VARIABLE = re.compile(r"\$\((\w+)\)|\$\{(\w+)\}|\$(\w+)")


def _expand(text: str, environ: Mapping[str, str]) -> str:
    """Return a text with the container's variables expanded, as Kubernetes and a shell do it."""
    return _VARIABLE.sub(
        lambda found: environ.get(found[1] or found[2] or found[3], found[0]), text
    )


def _settle(found: Seen, values: Mapping[str, Any], source: str) -> None:
    """Check the values as the plugin does, and store the valid ones."""
    parsers = {row.name: row.metadata["parse"] for row in rows()}
    good: dict[str, Any] = {}
    for name, value in values.items():
        where = found.lines.get(name, (source, 0))
        try:
            if name == "graceful_timeout":
                good[name] = _whole(value)
            else:
                good[name] = parsers[name](
                    (PREFIX + name).upper() if where[0] == source else PREFIX + name,
                    value if name != "trigger_token" else _token(value),
                )
        except (SettingError, ConfigurationError) as error:
            found.problems.append((*where, str(error)))
        except (TypeError, ValueError):
            found.unseen.add(name)  # It is not a number. It may be a variable of the shell.
    if good.get("termination_period", table.AUTO) == table.AUTO:
        good["termination_period"] = PERIOD
        found.given.discard("termination_period")
    found.settings = Settings(**good)
    if found.problems or found.unseen:
        return
    try:
        table.check(found.settings)
    except ConfigurationError as error:
        lines = [found.lines[name] for name in ("trigger", *_PATHS) if name in found.lines]
        found.problems.append((*(lines or [(source, 0)])[0], str(error)))


def _whole(value: Any) -> int:
    """Return ``graceful_timeout`` in seconds, as gunicorn reads it (``validate_pos_int``, 22.0 to
    27.0).

    :raises SettingError: gunicorn or the plugin refuses the value.
    :raises ValueError: the value is not a number, for example a variable of the shell.
    """
    number = int(value) if isinstance(value, (int, str)) else value
    if not isinstance(number, int) or not 0 <= number <= table.A_YEAR:
        raise SettingError(
            "graceful_timeout",
            value if isinstance(number, float) else number,
            f"is not a whole number of seconds, from 0 to {table.A_YEAR}",
            "give one",
        )
    return number


_PATHS = ("readiness_path", "liveness_path", "startup_path")
"""The settings whose values must differ from each other."""


def _token(value: Any) -> Any:
    """Return the token, or a placeholder if it is in a file, because that file is in the
    container."""
    return "from-a-file" if isinstance(value, str) and value.startswith("file:") else value


def _sign(
    container: Container,
    words: Sequence[str],
    environ: Mapping[str, str],
    configuration: Configuration | None,
) -> str:
    """Return the sign that the plugin is loaded; an empty string if there is none."""
    if configuration is not None and configuration.loads_plugin:
        return configuration.source
    known = {(PREFIX + row.name).upper() for row in rows()}
    for name in (*environ, *container.env_lines):
        if name in known:
            return name
    text = " ".join((*container.command, *words, environ.get("GUNICORN_CMD_ARGS", "")))
    if "gunicorn_grace" in text or "gunicorn-grace" in text:
        return "the command"
    hook = container.pre_stop
    if hook is not None:
        told = " ".join((*hook.command, hook.path if hook.kind == "httpGet" else ""))
        if "gunicorn-grace" in told or "down=true" in told:
            return "the preStop hook"
    return ""
