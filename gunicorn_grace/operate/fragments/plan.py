"""The content of a fragment, which is the same for all platforms: the command, the variables, the
ports and the seconds.

The settings come from the file of ``--config``, which is read but not executed, from the
environment, and from the defaults, as in a container with the same environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath

from ...errors import ConfigurationError, GraceError
from ...shared.settings import PREFIX, Settings, rows
from ..check.configuration import Configuration
from ..check.seen import Seen, see
from ..manifest import Container
from ..routers import Router
from .places import Place
from .sums import Sum, add_up, number

THE_PLUGIN = "python:gunicorn_grace.conf"
USUAL_FILE = "gunicorn.conf.py"
"""The configuration file that :data:`THE_PLUGIN` loads too."""

CLOUD_RUN_PORT = 8080
"""The default of ``$PORT`` on Cloud Run (container contract)."""

NEEDED = (
    "shutdown_delay",
    "readiness_delay",
    "drain_reserve",
    "exit_margin",
    "graceful_timeout",
    "readiness_path",
    "liveness_path",
    "startup_path",
    "probe_bind",
)
"""The settings that a fragment is made from. It cannot be printed if the value of one is not
seen."""

SECRET = "GRACE_TRIGGER_TOKEN"


@dataclass(frozen=True)
class Names:
    """The names that only the user can give.

    :ivar name: the name of the service and of its container.
    :ivar app: the application, as gunicorn takes it.
    :ivar image: the image of the container.
    """

    name: str = "web"
    app: str = "app:app"
    image: str = "registry.example/web:1.0.0"


@dataclass(frozen=True)
class Plan:
    """The content of a fragment.

    :ivar names: the names that the user gave.
    :ivar place: the platform.
    :ivar router: the router in front; None if it is not named.
    :ivar sum: the seconds.
    :ivar command: gunicorn's command.
    :ivar env: the environment variables, except a token that comes from a secret.
    :ivar has_secret: whether the token comes from a secret.
    :ivar port: the port that gunicorn binds.
    :ivar probe_port: the probe port; None if there is none that the platform can reach.
    :ivar warnings: the warnings, each in one line with the fix.
    """

    names: Names
    place: Place
    router: Router | None
    sum: Sum
    command: tuple[str, ...]
    env: Mapping[str, str]
    has_secret: bool = False
    port: int = 8000
    probe_port: int | None = None
    warnings: tuple[str, ...] = field(default=())

    @property
    def settings(self) -> Settings:
        """The settings that the fragment leads to."""
        return self.sum.settings


def make_plan(
    names: Names,
    place: Place,
    router: Router | None,
    configuration: Configuration | None,
    environ: Mapping[str, str],
) -> Plan:
    """Gather the content of a fragment.

    :param names: the names that the user gave.
    :param place: the platform.
    :param router: the router in front; None if it is not named.
    :param configuration: the file of ``--config``; None without one.
    :param environ: the environment.
    :raises GraceError: the settings cannot be used, or do not fit the platform.
    """
    _refuse_strange_router(place, router)
    env = {
        name: value
        for name, value in environ.items()
        if name in _VARIABLES or name == "GUNICORN_CMD_ARGS"
    }
    seen = see(Container(names.name, 0, env=env), None, "the environment", configuration, ())
    _refuse_what_is_not_usable(seen, configuration)
    added = add_up(seen.settings, seen.given, place, router)
    warnings = [*_about_file(configuration), *added.warnings]
    port, bind = _bind(seen, place)
    probe_port = _probe_port(seen.settings, port)
    kept = {name: value for name, value in env.items() if name in _VARIABLES and name != SECRET}
    token = env.get(SECRET, "")
    if token.startswith("file:"):
        kept[SECRET] = token
    kept.update(_printed(added, seen.settings, probe_port))
    return Plan(
        names,
        place,
        router,
        added,
        _command(names, configuration, seen, bind),
        kept,
        has_secret=bool(token) and SECRET not in kept,
        port=port,
        probe_port=probe_port,
        warnings=tuple(warnings),
    )


_VARIABLES = frozenset((PREFIX + row.name).upper() for row in rows())


def _refuse_strange_router(place: Place, router: Router | None) -> None:
    if router is None:
        return
    if place.routes_itself:
        raise GraceError(
            f"--router {router.name}: {place.title} routes to its instances itself: leave "
            "--router out"
        )
    if router.of_pods and not place.is_kubernetes:
        raise GraceError(
            f"--router {router.name} routes to pods, and --for {place.name} has none: leave it "
            "out, or use --for deployment, kustomize or helm-values"
        )


def _refuse_what_is_not_usable(seen: Seen, configuration: Configuration | None) -> None:
    for source, line, what in seen.problems:
        where = f"{source}:{line}: " if configuration and source == configuration.source else ""
        raise GraceError(f"{where}{what}")
    for name in NEEDED:
        if name not in seen.unseen:
            continue
        source, line = seen.lines.get(name, ("", 0))
        shown = name if name == "graceful_timeout" else PREFIX + name
        place = f"{source}:{line}: " if line else ""
        fix = "write a number of seconds"
        if name != "graceful_timeout":
            fix = f"set {shown.upper()} for this command, or write it as a value"
        raise GraceError(f"{place}the value of {shown} is not seen without executing it: {fix}")


def _about_file(configuration: Configuration | None) -> list[str]:
    """Return a warning if the configuration file does not load the plugin."""
    if configuration is None or configuration.loads_plugin:
        return []
    name = configuration.source.removeprefix("file:")
    if PurePath(name).name == USUAL_FILE:
        return []
    return [
        f"{configuration.source} does not load the plugin: add `from gunicorn_grace.conf import *` "
        "to it"
    ]


def _command(
    names: Names, configuration: Configuration | None, seen: Seen, bind: str
) -> tuple[str, ...]:
    file = THE_PLUGIN
    if (configuration is not None and PurePath(configuration.source).name != USUAL_FILE) or (
        configuration is not None and configuration.loads_plugin
    ):
        file = configuration.source
    drain: tuple[str, ...] = ()
    if "graceful_timeout" in seen.given:
        drain = ("--graceful-timeout", number(seen.graceful_timeout))
    return ("gunicorn", "-c", file, "-b", bind, *drain, names.app)


def _bind(seen: Seen, place: Place) -> tuple[int, str]:
    """Return gunicorn's port and bind address. In a container the address has to be reachable from
    outside."""
    default = CLOUD_RUN_PORT if place.routes_itself else 8000
    for bind in seen.binds or ():
        if bind.startswith(("unix:", "fd:")):
            continue
        host, colon, text = bind.rpartition(":")
        port = text if colon else str(default)
        if port.isascii() and port.isdecimal() and 0 < int(port) < 65536:
            shown = bind if place.name == "systemd" and colon and host else f"0.0.0.0:{port}"
            return int(port), shown
    host = "127.0.0.1" if place.name == "systemd" else "0.0.0.0"
    return default, f"{host}:{default}"


def _probe_port(s: Settings, port: int) -> int | None:
    """Return the probe port; None if there is none that the platform can reach.

    :raises ConfigurationError: gunicorn binds the same port.
    """
    bind = s.probe_bind
    if not bind or bind.startswith(("unix:", "127.", "localhost:", "[::1]:")):
        return None
    found = int(bind.rpartition(":")[2])
    if found == port:
        raise ConfigurationError(
            f"grace_probe_bind {bind!r} has port {port}, which gunicorn binds: give another port"
        )
    return found or None


def _printed(added: Sum, before: Settings, probe_port: int | None) -> dict[str, str]:
    """Return the variables that every fragment has. The environment overrides a file, so these
    values are used."""
    found = {
        "GRACE_SHUTDOWN_DELAY": number(added.delay),
        "GRACE_TERMINATION_PERIOD": str(added.period),
    }
    if probe_port is not None and before.probe_bind is not None:
        found["GRACE_PROBE_BIND"] = before.probe_bind
    return found
