"""Adding our settings and our hooks to a gunicorn ``Config``.

Runs in the arbiter, while gunicorn loads its configuration, and again after SIGHUP.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import UnknownSetting
from ..shared import settings as table
from ..shared.names import nearest
from ..shared.settings import NAMES, PREFIX, SECTION, Settings, check, rows
from . import checking, stack

if TYPE_CHECKING:
    from gunicorn.config import Config

Hook = Callable[..., None]


class AdoptedSettings(dict[str, Any]):
    """The settings of a ``Config``, with ours among them. An unknown ``grace_*`` name is refused.

    gunicorn evaluates ``name in cfg.settings`` for each name of a configuration file, and silently
    skips names for which it is false. So that test raises :exc:`UnknownSetting` here.

    :ivar hooks: our hooks by gunicorn's names for them; ``None`` while the plugin is not switched
        on for this ``Config``.
    """

    hooks: Mapping[str, Hook] | None = None

    def __contains__(self, name: object) -> bool:
        if super().__contains__(name):
            return True
        if isinstance(name, str) and name.startswith(PREFIX):
            raise UnknownSetting(name, nearest(name))
        return False


@functools.cache
def setting_classes() -> tuple[type, ...]:
    """Return a gunicorn ``Setting`` class for each row of the table. gunicorn registers the classes
    in ``KNOWN_SETTINGS`` when they are made, once per process.

    They are made on demand, because code that does not import gunicorn reads the table too (the
    Flask blueprint).
    """
    from gunicorn.config import Setting

    def build(field: dataclasses.Field[Any]) -> type:
        name = PREFIX + field.name
        parse = field.metadata["parse"]

        def set_value(self: Any, value: Any) -> None:
            # The file's value is checked even if the environment overrides it. Otherwise a typo
            # would only show in a Deployment without that variable.
            self.value = self.chosen = parse(name, value)
            given = os.environ.get(name.upper())
            if given is not None:
                self.value = parse(name.upper(), given)
            self.given = True
            self.by_hand = stack.loading_application() is None

        def initialise(self: Any) -> None:
            # Setting.__init__ does not call set() for a default of None (22.0 to 27.0), so the
            # environment would not count.
            self.set(field.metadata["default"])
            self.given = name.upper() in os.environ
            self.by_hand = False

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


def know(cfg: Config) -> AdoptedSettings:
    """Add our settings to ``cfg``, without switching the plugin on. A second call changes nothing.

    :raises SettingError: an environment variable has an invalid value.
    """
    if isinstance(cfg.settings, AdoptedSettings):
        return cfg.settings
    settings = AdoptedSettings(cfg.settings)
    for cls in setting_classes():
        setting = cls()
        settings.setdefault(setting.name, setting)
    _note_when_set(settings["graceful_timeout"])
    cfg.settings = settings
    return settings


def hooks_of(cfg: Any) -> Mapping[str, Hook] | None:
    """Return our hooks; ``None`` if the plugin is not switched on for this ``Config``."""
    return cfg.settings.hooks if isinstance(cfg.settings, AdoptedSettings) else None


def adopt(cfg: Config, hooks: Mapping[str, Hook]) -> None:
    """Add our settings to ``cfg``, and our hooks in front of the user's. A second call changes
    nothing.

    Runs in the arbiter while a configuration file is being executed, and again when SIGHUP has made
    a new ``Config``.

    :param cfg: the ``Config`` that is being loaded.
    :param hooks: our hooks by gunicorn's names for them.
    :raises SettingError: an environment variable has an invalid value.
    """
    settings = know(cfg)
    table.adopted = cfg
    if settings.hooks is not None:
        return
    settings.hooks = hooks
    for name, hook in hooks.items():
        _chain(settings[name], hook)
    _check_after_loading(cfg)
    checking.watch(cfg)


def withdraw(cfg: Config, names: Iterable[str]) -> None:
    """Take our part out of these hooks, so that only the user's part is left. A second call changes
    nothing.

    :param cfg: a ``Config`` that calls our hooks before the user's.
    :param names: gunicorn's names of the hooks.
    """
    for name in names:
        setting: Any = cfg.settings[name]
        if "set" in vars(setting):
            del setting.set
            setting.value = setting.value.__wrapped__


def carry_over(old: Config, new: Config) -> None:
    """Keep the values that a program has set after its configuration was loaded. SIGHUP loads the
    configuration again, but the code that set these values does not run again. Runs in the arbiter,
    after SIGHUP.

    A value that the new configuration sets itself wins.
    """
    for name in NAMES:
        before: Any = old.settings[name]
        after: Any = new.settings[name]
        if before.by_hand and not after.given:
            after.set(before.chosen)


def _check_after_loading(cfg: Config) -> None:
    # Config.validate is gunicorn's own last step of loading (27.0). In older versions our check
    # runs only in on_starting and on_reload.
    theirs = getattr(type(cfg), "validate", None)

    def validate() -> None:
        if theirs is not None:
            theirs(cfg)
        check(Settings.of(cfg))

    # This does not use vars(cfg), because Python looks up attributes more slowly in an instance
    # whose __dict__ was once taken.
    configuration: Any = cfg
    configuration.validate = validate


def _chain(setting: Any, ours: Hook) -> None:
    """Make a hook's ``Setting`` hold one function that calls our hook and then the user's.

    gunicorn's own ``set`` still gets the user's function, so gunicorn checks its arity and type as
    always. A configuration file may define its hook after ours was installed. That also goes
    through ``set``, and is chained.
    """
    cls_set = type(setting).set

    def set_value(value: Any) -> None:
        cls_set(setting, value)
        setting.value = _both(ours, setting.value)

    setting.set = set_value
    setting.value = _both(ours, setting.value)


def _note_when_set(setting: Any) -> None:
    """Make ``setting.given`` tell whether a person chose the value. Comparing the value with the
    default is not enough, because a person may choose the default."""
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
