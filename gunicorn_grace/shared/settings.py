"""The settings: one table for the code, gunicorn's ``Setting`` classes, ``--print-config`` and the
docs.

Each row is a field of :class:`Settings`; the name that users write is ``grace_`` and the field's
name, and in the environment the same in capitals. :func:`adopt` puts the rows into the gunicorn
``Config`` that is loading a configuration file, so that they behave as gunicorn's own: assigned in
a file, checked as they are assigned, printed by ``--print-config``, read again on SIGHUP. Without
that, gunicorn would silently ignore every one of them (``load_config_from_module_name_or_filename``
skips names it does not know, 22.0 to 27.0).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import ipaddress
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import ConfigurationError, SettingError, UnknownSetting

if TYPE_CHECKING:
    from gunicorn.config import Config

PREFIX = "grace_"
SECTION = "Grace"

AUTO = "auto"
OFF, LOCAL, TOKEN = "off", "local", "token"
A_YEAR = 31_536_000
TERMINATION_LOG = "/dev/termination-log"


class Secret(str):
    """A value that is never shown: ``--print-config`` and gunicorn's debug log print every
    setting."""

    def __str__(self) -> str:
        return "********"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def reveal(self) -> bytes:
        """The secret itself, to compare with; a variable of the environment may hold any bytes (PEP
        383)."""
        return self.encode("utf-8", "surrogateescape")


def _seconds(name: str, value: Any) -> float:
    fix = "give a number of seconds, 0 or more"
    if isinstance(value, bool):
        raise SettingError(name, value, "is no number", fix)
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise SettingError(name, value, "is no number", fix) from None
    if not math.isfinite(number):
        raise SettingError(name, value, "is not finite", fix)
    if number < 0:
        raise SettingError(name, value, "is less than 0 s", fix)
    if number > A_YEAR:
        raise SettingError(
            name,
            value,
            f"is more than {A_YEAR} s, a year",
            "give less: the shared memory counts ns",
        )
    return int(number) if number.is_integer() else number


def _seconds_or_auto(name: str, value: Any) -> float | str:
    if value == AUTO:
        return AUTO
    try:
        return _seconds(name, value)
    except SettingError:
        raise SettingError(
            name, value, "is no number of seconds, 0 or more", 'give one, or "auto"'
        ) from None


def _share(name: str, value: Any) -> float:
    fix = "give a share of the traffic, more than 0 and at most 1, such as 0.01"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise SettingError(name, value, "is no number", fix) from None
    if isinstance(value, bool) or not 0 < number <= 1:
        raise SettingError(name, value, "is no share", fix)
    return number


def _flag(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = value.strip().lower() if isinstance(value, str) else value
    if word in ("true", "1", "yes", "on"):
        return True
    if word in ("false", "0", "no", "off"):
        return False
    raise SettingError(name, value, "is no boolean", "give true or false")


def _path(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.startswith("/"):
        shown = (
            value if isinstance(value, str) and value.isascii() and value.isalnum() else "readyz"
        )
        raise SettingError(
            name, value, "does not begin with a slash", f'give a path such as "/{shown}"'
        )
    if any(c in value for c in "?# \t\r\n"):
        raise SettingError(
            name, value, "is no bare path", "leave out query, fragment and white space"
        )
    return value


def _paths(name: str, value: Any) -> list[str]:
    if isinstance(value, str):
        value = [part.strip() for part in value.split(",") if part.strip()]
    if not isinstance(value, Iterable):
        raise SettingError(name, value, "is no list of paths", 'give a list such as ["/metrics"]')
    return [_path(name, path) for path in value]


def _choice(*words: str) -> Callable[[str, Any], str]:
    def parse(name: str, value: Any) -> str:
        if value not in words:
            raise SettingError(
                name, value, "is none of the choices", "give " + ", ".join(map(repr, words))
            )
        return str(value)

    return parse


def _secret(name: str, value: Any) -> Secret | None:
    if value is None or isinstance(value, Secret):
        return value
    if not isinstance(value, str) or not value.strip():
        raise SettingError(name, "", "is empty", 'give the token, or "file:/path/to/it"')
    if not value.startswith("file:"):
        return Secret(value)
    file = value[len("file:") :]
    try:
        with open(file, encoding="utf-8") as stream:
            content = stream.read().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(
            name, value, f"cannot be read ({error})", "give a file that the arbiter may read"
        ) from None
    if not content:
        raise SettingError(name, value, "is an empty file", "put the token into it")
    return Secret(content)


def _optional_file(name: str, value: Any) -> str | None:
    if value is None or value == "":
        return None
    if not isinstance(value, str):
        raise SettingError(name, value, "is no file name", "give a path, or None")
    return value


SUN_PATH = 107
"""Bytes of a UNIX socket's path (unix(7): 108 with its closing null)."""


def _optional_address(name: str, value: Any) -> str | None:
    if value is None or value == "":
        return None
    fix = 'give "127.0.0.1:8081", "[::]:8081" or "unix:/run/probe.sock"'
    if not isinstance(value, str):
        raise SettingError(name, value, "is no address", fix)
    if value.startswith("unix:"):
        path = value.removeprefix("unix:")
        if not path.startswith("/") or path.endswith("/") or not path.isprintable():
            raise SettingError(name, value, "has no absolute path of a file", fix)
        if len(os.fsencode(path)) > SUN_PATH:
            raise SettingError(
                name, value, f"has a path of more than {SUN_PATH} bytes", "give a shorter one"
            )
        return value
    host, colon, port = value.rpartition(":")
    if not colon or not host:
        raise SettingError(name, value, "is not host:port", fix)
    if not (port.isascii() and port.isdecimal()):
        raise SettingError(name, value, f"has {port!r} for a port", fix)
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
    """A checked ``grace_probe_bind``: the path of a UNIX socket, or host and port."""
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
    """The settings of one instance, checked, as the rest of the package reads them. Durations are
    seconds."""

    shutdown_delay: float = _row(
        10,
        _seconds,
        "How long LAME_DUCK lasts, in seconds, unless quiet ends it early or late requests extend it.",
    )
    min_delay: float = _row(5, _seconds, "LAME_DUCK never ends as quiet before this many seconds.")
    extend_delay: bool = _row(
        True,
        _flag,
        "Whether requests that still arrive when the delay is over (one in the last 2 s, probes excluded) keep "
        "LAME_DUCK going, until 2 s of silence or until only the drain reserve is left of the budget.",
    )
    drain_reserve: float = _row(
        5,
        _seconds,
        "Seconds of the budget that are left for draining; an extension leaves at least the longest request of the "
        "last five minutes.",
    )
    quiet_period: float | str = _row(
        0,
        _seconds_or_auto,
        'End LAME_DUCK after so many seconds without a request that is no probe; 0 is off, "auto" the quiet test.',
    )
    quiet_share: float = _row(
        0.01, _share, "Quiet test: the smallest share of the traffic that may still be routed here."
    )
    termination_period: float = _row(
        30, _seconds, "The platform's terminationGracePeriodSeconds; 0 when it is not known."
    )
    exit_margin: float = _row(
        2, _seconds, "Be gone this many seconds before the platform's period is over."
    )
    readiness_delay: float = _row(
        0,
        _seconds,
        "Keep answering ready this many seconds after the shutdown began, for routers that cut the connections of an "
        "instance that is not ready.",
    )
    readiness_path: str = _row("/readyz", _path, "Where readiness is answered.")
    liveness_path: str = _row(
        "/livez", _path, "Where liveness is answered; /healthz is an alias of it."
    )
    startup_path: str = _row("/startupz", _path, "Where start-up is answered.")
    dockerflow: bool = _row(
        False,
        _flag,
        "Whether liveness is answered at /__lbheartbeat__ as well, and readiness at /__heartbeat__, as in Dockerflow.",
    )
    overlay: bool = _row(True, _flag, "Whether the probes are served in front of the application.")
    ignore_paths: list[str] = _row(
        ["/metrics"], _paths, "Requests that count neither as traffic nor as late; probes never do."
    )
    trigger: str = _row(
        LOCAL,
        _choice(OFF, LOCAL, TOKEN),
        'Who may begin the shutdown with ?down=true: "off", "local" or "token".',
    )
    trigger_token: Secret | None = _row(
        None, _secret, 'The secret of the trigger "token"; "file:/path" reads it from a file.'
    )
    probe_bind: str | None = _row(
        None,
        _optional_address,
        'Address of the probe port, "host:port", "[v6]:port" or "unix:/path": a process of its own answers the probes '
        "there, also while every worker is busy.",
    )
    log_probes: bool = _row(
        False,
        _flag,
        "Whether probes that succeed are written to the access log; those that fail always are.",
    )
    report: str | None = _row(
        TERMINATION_LOG if "KUBERNETES_SERVICE_HOST" in os.environ else None,
        _optional_file,
        "File that the summary is written to, as JSON. In Kubernetes /dev/termination-log.",
    )

    # gunicorn's own, with its meaning; here because the lifecycle needs both together.
    graceful_timeout: float = 30

    @classmethod
    def of(cls, cfg: Config) -> Settings:
        """The settings as a loaded gunicorn configuration has them."""
        values = {field.name: cfg.settings[PREFIX + field.name].get() for field in rows()}
        return cls(**values, graceful_timeout=cfg.graceful_timeout)


def rows() -> list[dataclasses.Field[Any]]:
    """The table: the fields of :class:`Settings` that are settings of ours."""
    return [field for field in dataclasses.fields(Settings) if field.metadata]


NAMES = tuple(PREFIX + field.name for field in rows())


def check(settings: Settings) -> None:
    """Raise :class:`~gunicorn_grace.errors.ConfigurationError` when settings do not go together."""
    if settings.trigger == TOKEN and not settings.trigger_token:
        raise ConfigurationError(
            'grace_trigger = "token", but grace_trigger_token is not set: set it, or "file:/path/to/it"'
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


def longest_delay(s: Settings) -> float:
    """How long LAME_DUCK lasts at the most, unless late requests extend it: the delay, or what the
    budget leaves it."""
    if not s.termination_period:
        return s.shutdown_delay
    return min(s.shutdown_delay, max(0.0, s.termination_period - s.exit_margin - s.drain_reserve))


def budget_line(s: Settings, *, graceful_timeout_given: bool) -> tuple[bool, str]:
    """What the timeline comes to, in one line, and whether that is a warning.

    :param graceful_timeout_given: whether a person chose ``graceful_timeout``; a default that is
        cut is no news.
    """
    lame_duck = s.shutdown_delay
    if not s.termination_period:
        drain = s.graceful_timeout
        return (
            False,
            f"lame duck {lame_duck:g} s, then up to {drain:g} s to drain; the platform's period is not known",
        )
    gone_by = max(0.0, s.termination_period - s.exit_margin)
    left = gone_by - lame_duck
    needed = lame_duck + s.graceful_timeout + s.exit_margin
    formula = (
        f"grace_shutdown_delay {lame_duck:g} + graceful_timeout {s.graceful_timeout:g} + "
        f"grace_exit_margin {s.exit_margin:g} = {needed:g} s > grace_termination_period {s.termination_period:g} s"
    )
    if left < s.drain_reserve:
        enough = math.ceil(max(needed, lame_duck + s.drain_reserve + s.exit_margin))
        return True, (
            f"grace_shutdown_delay {lame_duck:g} + grace_drain_reserve {s.drain_reserve:g} + "
            f"grace_exit_margin {s.exit_margin:g} = {lame_duck + s.drain_reserve + s.exit_margin:g} s > "
            f"grace_termination_period {s.termination_period:g} s: the delay will be cut to {longest_delay(s):g} s; "
            f"lower it or raise terminationGracePeriodSeconds and grace_termination_period to {enough:g}"
        )
    if graceful_timeout_given and s.graceful_timeout > left:
        return True, (
            f"{formula}: draining will be cut to {left:g} s; lower the delay or raise "
            f"terminationGracePeriodSeconds and grace_termination_period to {math.ceil(needed):g}"
        )
    drain = min(s.graceful_timeout, left)
    return False, (
        f"lame duck {lame_duck:g} s, then up to {drain:g} s to drain, gone by {lame_duck + drain:g} s "
        f"of {s.termination_period:g} s"
    )


class AdoptedSettings(dict[str, Any]):
    """The settings of a ``Config`` that knows ours, and that refuses a ``grace_*`` name which
    nobody knows.

    gunicorn asks ``name in cfg.settings`` for each name of a configuration file and silently skips
    what is not there.
    """

    def __contains__(self, name: object) -> bool:
        if super().__contains__(name):
            return True
        if isinstance(name, str) and name.startswith(PREFIX):
            nearest = difflib.get_close_matches(name, NAMES, n=1)
            raise UnknownSetting(name, nearest[0] if nearest else None)
        return False


@functools.cache
def setting_classes() -> tuple[type, ...]:
    """gunicorn ``Setting`` classes for the rows, registered in ``KNOWN_SETTINGS`` once a process.

    Made on demand, so that reading the table needs no gunicorn (the Flask blueprint also runs where
    gunicorn does not).
    """
    from gunicorn.config import Setting

    def build(field: dataclasses.Field[Any]) -> type:
        name = PREFIX + field.name
        parse = field.metadata["parse"]

        def set_value(self: Any, value: Any) -> None:
            # The file's value is checked even where the environment wins: a typo must not wait for
            # another Deployment.
            self.value = parse(name, value)
            given = os.environ.get(name.upper())
            if given is not None:
                self.value = parse(name.upper(), given)

        def initialise(self: Any) -> None:
            # Setting.__init__ leaves a default of None alone (22.0 to 27.0); the environment must
            # count there too.
            self.set(field.metadata["default"])

        meta: Any = type(Setting)
        cls: type = meta(
            "".join(part.title() for part in name.split("_")),
            (Setting,),
            {
                "name": name,
                "section": SECTION,
                "default": field.metadata["default"],
                "validator": lambda value: parse(name, value),
                "desc": field.metadata["meaning"],
                "set": set_value,
                "__init__": initialise,
                "__module__": __name__,
            },
        )
        return cls

    return tuple(build(field) for field in rows())


Hook = Callable[..., None]

_adopted: Config | None = None


def loaded() -> Settings | None:
    """The settings of the configuration that this process loaded last; ``None`` where gunicorn
    loaded none."""
    return None if _adopted is None else Settings.of(_adopted)


def adopt(cfg: Config, hooks: Mapping[str, Hook]) -> None:
    """Make ``cfg`` know our settings, and call our hooks before the user's. Doing it twice changes
    nothing.

    Runs in the arbiter while a configuration file is being executed, and again when SIGHUP has made
    a new ``Config``.

    :raises SettingError: an environment variable has a value that its setting cannot have.
    """
    global _adopted
    _adopted = cfg
    classes = setting_classes()
    if isinstance(cfg.settings, AdoptedSettings):
        return
    settings = AdoptedSettings(cfg.settings)
    for cls in classes:
        setting = cls()
        settings.setdefault(setting.name, setting)
    for name, hook in hooks.items():
        _chain(settings[name], hook)
    _note_when_set(settings["graceful_timeout"])
    cfg.settings = settings
    _check_after_loading(cfg)


def _check_after_loading(cfg: Config) -> None:
    # Config.validate is gunicorn's own last step of loading (27.0; before it `check` runs at start
    # alone).
    theirs = getattr(type(cfg), "validate", None)

    def validate() -> None:
        if theirs is not None:
            theirs(cfg)
        check(Settings.of(cfg))

    configuration: Any = (
        cfg  # setattr, and not vars(): a dict that was asked for is looked up the slow way.
    )
    configuration.validate = validate


def _chain(setting: Any, ours: Hook) -> None:
    """Let a hook's ``Setting`` hold our hook and the user's in one.

    gunicorn's own ``set`` still sees the user's function, so arity and type are checked as ever; a
    file that defines its hook after ours was installed goes through ``set`` and is chained all the
    same.
    """
    cls_set = type(setting).set

    def set_value(value: Any) -> None:
        cls_set(setting, value)
        setting.value = _both(ours, setting.value)

    setting.set = set_value
    setting.value = _both(ours, setting.value)


def _note_when_set(setting: Any) -> None:
    """Let ``setting.given`` say whether a person chose the value: one that equals the default looks
    no different."""
    cls_set = type(setting).set
    setting.given = setting.value != setting.default

    def set_value(value: Any) -> None:
        cls_set(setting, value)
        setting.given = True

    setting.set = set_value


def _both(ours: Hook, theirs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def chained(*args: Any) -> Any:
        ours(*args)
        return theirs(*args)

    return chained
