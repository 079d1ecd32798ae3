"""How a gunicorn ``Config`` comes to know our settings and to call our hooks.

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
    """The settings of a ``Config`` that knows ours, and that refuses an unknown ``grace_*`` name.

    gunicorn asks ``name in cfg.settings`` for each name of a configuration file, and silently skips
    names that are not there.

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
    """gunicorn ``Setting`` classes for the rows, registered in ``KNOWN_SETTINGS`` once per process.

    They are made on demand, because the table is also read where gunicorn is not imported (the
    Flask blueprint).
    """
    from gunicorn.config import Setting

    def build(field: dataclasses.Field[Any]) -> type:
        name = PREFIX + field.name
        parse = field.metadata["parse"]

        def set_value(self: Any, value: Any) -> None:
            # The file's value is checked even where the environment wins: a typo must not wait for
            # another Deployment.
            self.value = self.chosen = parse(name, value)
            given = os.environ.get(name.upper())
            if given is not None:
                self.value = parse(name.upper(), given)
            self.given = True
            self.by_hand = stack.loading_application() is None

        def initialise(self: Any) -> None:
            # Setting.__init__ leaves a default of None alone (22.0 to 27.0); the environment must
            # count there too.
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
    """Make ``cfg`` know our settings, without switching the plugin on. Doing it twice changes
    nothing.

    :raises SettingError: an environment variable has a value that its setting cannot have.
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
    """Return our hooks, if the plugin is switched on for this ``Config``."""
    return cfg.settings.hooks if isinstance(cfg.settings, AdoptedSettings) else None


def adopt(cfg: Config, hooks: Mapping[str, Hook]) -> None:
    """Make ``cfg`` know our settings, and call our hooks before the user's. Doing it twice changes
    nothing.

    Runs in the arbiter while a configuration file is being executed, and again when SIGHUP has made
    a new ``Config``.

    :param cfg: the ``Config`` that is being loaded.
    :param hooks: our hooks by gunicorn's names for them.
    :raises SettingError: an environment variable has a value that its setting cannot have.
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
    """Leave these hooks to the user alone. Doing it twice changes nothing.

    :param cfg: a ``Config`` that calls our hooks before the user's.
    :param names: gunicorn's names for them.
    """
    for name in names:
        setting: Any = cfg.settings[name]
        if "set" in vars(setting):
            del setting.set
            setting.value = setting.value.__wrapped__


def carry_over(old: Config, new: Config) -> None:
    """Keep what a program has set after its configuration was loaded: SIGHUP loads that anew, and
    the program is not asked again. Runs in the arbiter, after SIGHUP.

    A value that the new configuration sets itself wins.
    """
    for name in NAMES:
        before: Any = old.settings[name]
        after: Any = new.settings[name]
        if before.by_hand and not after.given:
            after.set(before.chosen)


def _check_after_loading(cfg: Config) -> None:
    # Config.validate is gunicorn's own last step of loading (27.0; before it `check` runs at start
    # alone).
    theirs = getattr(type(cfg), "validate", None)

    def validate() -> None:
        if theirs is not None:
            theirs(cfg)
        check(Settings.of(cfg))

    # setattr, not vars(): an instance whose dict was asked for is looked up the slow way.
    configuration: Any = cfg
    configuration.validate = validate


def _chain(setting: Any, ours: Hook) -> None:
    """Let a hook's ``Setting`` hold our hook and the user's in one.

    gunicorn's own ``set`` still sees the user's function, so gunicorn checks arity and type as
    always. A file that defines its hook after ours was installed goes through ``set`` too, and is
    chained.
    """
    cls_set = type(setting).set

    def set_value(value: Any) -> None:
        cls_set(setting, value)
        setting.value = _both(ours, setting.value)

    setting.set = set_value
    setting.value = _both(ours, setting.value)


def _note_when_set(setting: Any) -> None:
    """Let ``setting.given`` say whether a person chose the value: a chosen value may equal the
    default."""
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
