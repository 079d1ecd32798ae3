"""An instance that is switched off (``grace_enabled``): plain gunicorn with probes.

A user who suspects the plugin in an incident switches it off in all services at once. So only
little of the plugin is left here. The workers answer the probes, because manifests ask for them.
The arbiter keeps a shared memory in which nothing happens. The commands find the instance by it.
They report that it is switched off, and do not fail a preStop hook.

With a probe port the arbiter also keeps the responder alive, and the workers' slots in that memory.
Without the slots the responder would be ready before any worker is. Nothing else of gunicorn's
arbiter is overridden.

An instance is on or off from its start to its end, and SIGHUP does not change that. The two kinds
differ in their signal handlers, their workers and their memory, and a mixture would not work.

Runs in the arbiter.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ..shared import memory
from ..shared.memory import Memory
from ..shared.settings import Settings
from . import stack
from .adoption import withdraw
from .made_memory import make
from .roster import Roster

SWITCHED_OFF = (
    "gunicorn-grace: switched off (grace_enabled): only the probes answer, and the shutdown is "
    "plain gunicorn's"
)

_TOO_LATE = "comes too late in on_starting, so set it in the configuration"

_UNUSED = ("pre_request", "post_request", "worker_int", "worker_abort")
"""Our hooks that have nothing to do in such an instance."""


class SwitchedOff:
    """The plugin in an arbiter when it is switched off.

    :ivar settings: the settings in use.
    :ivar memory: the shared memory; ``None`` until :meth:`start` has made it.
    :ivar roster: the workers' slots; ``None`` without a probe port.

    :param settings: the settings at the start.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings: Settings = settings
        self.memory: Memory | None = None
        self.roster: Roster | None = None

    def start(self, arbiter: Any) -> None:
        """Log that the plugin is switched off, and make the shared memory by which the commands
        find the instance. Runs in ``on_starting``."""
        arbiter.log.warning(SWITCHED_OFF)
        memory.is_switched_off = True
        withdraw(arbiter.cfg, _UNUSED)
        self.memory = made = make(arbiter, self.settings)
        made.header.switched_off = 1
        if self.settings.probe_bind is not None:
            self.roster = Roster(arbiter, made)

    def reload(self, arbiter: Any, settings: Settings) -> None:
        """Take new settings, after SIGHUP.

        :param settings: the settings of the new configuration. ``enabled`` is ignored.
        """
        withdraw(arbiter.cfg, _UNUSED)
        self.settings = settings
        port = getattr(arbiter, "grace_probe_port", None)
        if port is not None:
            port.reload(settings)


def keep(arbiter: Any, settings: Settings) -> Settings:
    """Return the settings with ``enabled`` as it is in this instance, and log a warning if that
    differs. Runs after SIGHUP, or when a hook has changed the settings in ``on_starting``.

    :param arbiter: gunicorn's arbiter, with the plugin in it, on or off.
    :param settings: the settings of the new configuration.
    """
    is_on = hasattr(arbiter, "grace")
    if settings.enabled is not is_on:
        arbiter.log.warning(
            "gunicorn-grace: grace_enabled = %s %s: this instance stays switched %s",
            settings.enabled,
            "needs a restart" if stack.has_started(arbiter) else _TOO_LATE,
            "on" if is_on else "off",
        )
    return dataclasses.replace(settings, enabled=is_on)
