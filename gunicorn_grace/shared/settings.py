"""The settings: one table for the code, gunicorn's ``Setting`` classes, ``--print-config`` and the
docs.

Each row is a field of :class:`Settings`. Users write the field's name with the prefix ``grace_``,
and the same name in capitals in the environment. :func:`gunicorn_grace.arbiter.adoption.adopt` adds
the rows to the gunicorn ``Config`` that is loading a configuration file. They then behave like
gunicorn's own settings: a file assigns them, each is checked when it is assigned,
``--print-config`` prints them, and SIGHUP reads them again. Otherwise gunicorn would silently
ignore all of them (``load_config_from_module_name_or_filename`` skips unknown names, 22.0 to
27.0).
"""

from __future__ import annotations

import dataclasses
import functools
import ipaddress
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, SettingError
from . import platforms
from .secret import Secret as Secret
from .secret import secret

if TYPE_CHECKING:
    from gunicorn.config import Config

PREFIX = "grace_"
SECTION = "Grace"

AUTO = "auto"
OFF, LOCAL, TOKEN = "off", "local", "token"
A_YEAR = 31_536_000
TERMINATION_LOG = "/dev/termination-log"


def _seconds(name: str, value: Any) -> float:
    fix = "give a number of seconds, 0 or more"
    if isinstance(value, bool):
        raise SettingError(name, value, "is not a number", fix)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise SettingError(name, value, "is not a number", fix) from None
    if not math.isfinite(number):
        raise SettingError(name, value, "is not finite", fix)
    if number < 0:
        raise SettingError(name, value, "is less than 0 s", fix)
    if number > A_YEAR:
        raise SettingError(
            name,
            value,
            f"is more than {A_YEAR} s, a year",
            "give less: the shared memory counts nanoseconds",
        )
    return int(number) if number.is_integer() else number


def _seconds_or_auto(name: str, value: Any) -> float | str:
    if value == AUTO:
        return AUTO
    try:
        return _seconds(name, value)
    except SettingError:
        raise SettingError(
            name, value, "is not a number of seconds, 0 or more", 'give one, or "auto"'
        ) from None


def _share(name: str, value: Any) -> float:
    fix = "give a share of the traffic, more than 0 and at most 1, such as 0.01"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise SettingError(name, value, "is not a number", fix) from None
    if isinstance(value, bool) or not 0 < number <= 1:
        raise SettingError(name, value, "is not a share", fix)
    return number


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else value
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise SettingError(name, value, "is not a boolean", "give true or false")


_USUAL = {"readiness": "readyz", "liveness": "livez", "startup": "startupz"}


def _path(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/"):
        is_word = isinstance(value, str) and value.isascii() and value.isalnum()
        shown = value if is_word else _USUAL.get(name.lower().split("_")[1], "metrics")
        raise SettingError(
            name, value, "does not begin with a slash", f'give a path such as "/{shown}"'
        )
    if any(c in value for c in "?# \t\r\n"):
        raise SettingError(
            name, value, "is not a bare path", "leave out query, fragment and white space"
        )
    return value


def _paths(name: str, value: Any) -> list[str]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, Iterable):
        raise SettingError(
            name, value, "is not a list of paths", 'give a list such as ["/metrics"]'
        )
    return [_path(name, path) for path in value]


def _choice(*words: str) -> Callable[[str, Any], str]:
    def parse(name: str, value: Any) -> str:
        if value not in words:
            raise SettingError(
                name, value, "is not one of the choices", "give " + ", ".join(map(repr, words))
            )
        return str(value)

    return parse


def _close_code(name: str, value: Any) -> int:
    """Check a code that a server may send in a close frame when it shuts down (RFC 6455, section
    7.4, and IANA's registry), or 0."""
    fix = "give 1012 (service restart), 1001 (going away), one of 3000 to 4999, or 0 for none"
    try:
        code = int(value)
    except (OverflowError, TypeError, ValueError):
        raise SettingError(name, value, "is not a number", fix) from None
    is_code = code in (0, 1000, 1001, 1012, 1013) or 3000 <= code <= 4999
    if isinstance(value, bool) or code != float(value) or not is_code:
        raise SettingError(name, value, "is not a close code for a shutdown", fix)
    return code


def _optional_file(name: str, value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise SettingError(name, value, "is not a file name", "give a path, or None")
    return value


SUN_PATH = 107
"""The longest path of a UNIX socket, in bytes (unix(7): 108 with the terminating null byte)."""


def _optional_address(name: str, value: Any) -> str | None:
    if value is None or value == "":
        return None
    fix = 'give "127.0.0.1:8081", "[::]:8081" or "unix:/run/probe.sock"'
    if not isinstance(value, str):
        raise SettingError(name, value, "is not an address", fix)
    if value.startswith("unix:"):
        path = value.removeprefix("unix:")
        if not path.startswith("/") or path.endswith("/") or not path.isprintable():
            raise SettingError(name, value, "does not give the absolute path of a file", fix)
        if len(os.fsencode(path)) > SUN_PATH:
            raise SettingError(
                name, value, f"has a path of more than {SUN_PATH} bytes", "give a shorter one"
            )
        return value
    host, colon, port = value.rpartition(":")
    if not colon or not host:
        raise SettingError(name, value, "is not host:port", fix)
    if not (port.isascii() and port.isdecimal()):
        raise SettingError(name, value, f"has {port!r} as its port", fix)
    if int(port) > 65535:
        raise SettingError(name, value, "has a port above 65535", fix)
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            raise SettingError(name, value, "has no IPv6 address in its brackets", fix) from None
    elif any(c in host for c in ":[]/ ") or not host.isprintable():
        raise SettingError(name, value, "is not host:port, with an IPv6 address in brackets", fix)
    return value


def address_of(bind: str) -> str | tuple[str, int]:
    """Split a checked ``grace_probe_bind`` into the path of a UNIX socket, or host and port."""
    if bind.startswith("unix:"):
        return bind.removeprefix("unix:")
    host, _, port = bind.rpartition(":")
    return host.strip("[]"), int(port)


def _row(default: Any, parse: Callable[[str, Any], Any], meaning: str) -> Any:
    metadata = {"parse": parse, "meaning": meaning, "default": default}
    if isinstance(default, list):
        return dataclasses.field(
            default_factory=functools.partial(list, default), metadata=metadata
        )
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """The checked settings of one instance. All durations are seconds.

    It has more attributes than a class should, because each is one setting: a row of the table.
    """

    shutdown_delay: float = _row(
        10,
        _seconds,
        "How many seconds LAME_DUCK lasts, unless the quiet rule ends it early or late requests "
        "extend it.",
    )
    min_delay: float = _row(
        5, _seconds, "The quiet rule does not end LAME_DUCK before this many seconds."
    )
    extend_delay: bool = _row(
        True,
        _flag,
        "Whether LAME_DUCK goes on after the delay while requests still arrive (one in the last "
        "2 s, probes excluded). It then ends after 2 s of silence, or when only the drain reserve "
        "of the budget is left.",
    )
    drain_reserve: float = _row(
        5,
        _seconds,
        "Seconds of the budget that are kept for draining. What counts is never more than half of "
        "the period. An extension of the delay also keeps at least the duration of the longest "
        "request of the last five to ten minutes.",
    )
    quiet_period: float | str = _row(
        0,
        _seconds_or_auto,
        "End the delay after this many seconds without a request (probes excluded); 0 disables "
        'it, and "auto" uses the quiet test.',
    )
    quiet_share: float = _row(
        0.01,
        _share,
        "For the quiet test: the smallest share of the earlier traffic that a router may still "
        "send here.",
    )
    termination_period: float = _row(
        AUTO,
        _seconds_or_auto,
        "Seconds from SIGTERM, or the preStop hook before it, to the platform's SIGKILL; 0 if they "
        'are not known. "auto" is the default of the platform that the environment shows, or 30.',
    )
    exit_margin: float = _row(
        2,
        _seconds,
        "Exit this many seconds before the platform's period is over. What counts is never more "
        "than a fifth of the period.",
    )
    enabled: bool = _row(
        True,
        _flag,
        "Whether the plugin is switched on. Otherwise gunicorn works and shuts down as without it, "
        "and only the probes go on answering, as in an instance that serves.",
    )
    readiness_delay: float = _row(
        0,
        _seconds,
        "Readiness stays 200 for this many seconds after the shutdown began, for routers that cut "
        "the open connections of an instance as soon as it is not ready.",
    )
    readiness_path: str = _row("/readyz", _path, "Path of the readiness probe.")
    liveness_path: str = _row(
        "/livez", _path, "Path of the liveness probe; /healthz is an alias for it."
    )
    startup_path: str = _row("/startupz", _path, "Path of the start-up probe.")
    dockerflow: bool = _row(
        False,
        _flag,
        "Whether /__lbheartbeat__ also answers liveness and /__heartbeat__ also answers "
        "readiness, as in Dockerflow.",
    )
    overlay: bool = _row(
        True, _flag, "Whether the plugin answers the probes in front of the application."
    )
    ignore_paths: list[str] = _row(
        ["/metrics"],
        _paths,
        "Paths whose requests count neither as traffic nor as late. Probes never count.",
    )
    websocket_close: int = _row(
        1012,
        _close_code,
        "Code of the close frame that the WebSockets of ASGI workers get when draining begins, so "
        "that clients reconnect elsewhere; 0 leaves them open up to the drain limit.",
    )
    trigger: str = _row(
        LOCAL,
        _choice(OFF, LOCAL, TOKEN),
        'Which requests may begin the shutdown with ?down=true: "off", "local" or "token".',
    )
    trigger_token: Secret | None = _row(
        None, secret, 'The secret for the trigger "token"; "file:/path" reads it from a file.'
    )
    probe_bind: str | None = _row(
        None,
        _optional_address,
        'Address of the probe port: "host:port", "[v6]:port" or "unix:/path". A separate process '
        "answers the probes there, even while every worker is busy.",
    )
    log_probes: bool = _row(
        False,
        _flag,
        "Whether the access log contains probes that succeed. It always contains probes that fail.",
    )
    report: str | None = _row(
        TERMINATION_LOG if "KUBERNETES_SERVICE_HOST" in os.environ else None,
        _optional_file,
        "File to which the summary is written as JSON. In Kubernetes the default is "
        "/dev/termination-log.",
    )

    # This is gunicorn's own setting, with gunicorn's meaning. The lifecycle needs it together with
    # the plugin's settings.
    graceful_timeout: float = 30

    period_is_assumed: bool = False
    """Whether the period was set to ``"auto"``. ``termination_period`` itself is a number in every
    object of this class."""

    def __post_init__(self) -> None:
        period: float | str = self.termination_period
        if period == AUTO:
            object.__setattr__(self, "termination_period", platforms.here().period)
            object.__setattr__(self, "period_is_assumed", True)

    @classmethod
    def of(cls, cfg: Config) -> Settings:
        """Read the settings from a gunicorn ``Config`` that knows them. Runs in any process."""
        values = {field.name: cfg.settings[PREFIX + field.name].get() for field in rows()}
        return cls(**values, graceful_timeout=cfg.graceful_timeout)


def rows() -> list[dataclasses.Field[Any]]:
    """Return the table: the fields of :class:`Settings` that belong to the plugin."""
    return [field for field in dataclasses.fields(Settings) if field.metadata]


NAMES = tuple(PREFIX + field.name for field in rows())


def check(settings: Settings) -> None:
    """Check the settings against each other.

    :raises ConfigurationError: two settings contradict each other.
    """
    if settings.trigger == TOKEN and not settings.trigger_token:
        raise ConfigurationError(
            'grace_trigger = "token", but grace_trigger_token is not set: set it to the token, '
            'or to "file:/path/to/it"'
        )
    paths = {
        "grace_readiness_path": settings.readiness_path,
        "grace_liveness_path": settings.liveness_path,
        "grace_startup_path": settings.startup_path,
    }
    for name, path in paths.items():
        twins = [other for other, its in paths.items() if its == path and other != name]
        if twins:
            raise ConfigurationError(
                f"{name} and {twins[0]} are both {path!r}: give each its own path"
            )


adopted: Config | None = None
"""The configuration that this process loaded last; ``None`` if gunicorn has not loaded one."""


def loaded() -> Settings | None:
    """Return the settings of :data:`adopted`; ``None`` if gunicorn has not loaded a
    configuration."""
    return None if adopted is None else Settings.of(adopted)
