"""The shared memory of an instance as its arbiter makes it. Runs in ``on_starting``."""

from __future__ import annotations

from typing import Any

import gunicorn

from ..shared.memory import Memory
from ..shared.settings import Settings
from ..shared.version import __version__


def make(arbiter: Any, settings: Settings) -> Memory:
    """Make the memory, and show in it what the instance is.

    :param arbiter: gunicorn's arbiter.
    :param settings: the settings at the start.
    """
    made = Memory.create(boards=settings.probe_bind is not None)
    header = made.header
    header.plugin, header.gunicorn = __version__, gunicorn.__version__
    # A program that starts gunicorn itself may have no address of an application.
    header.application = str(getattr(arbiter.app, "app_uri", None) or arbiter.cfg.proc_name)
    return made
