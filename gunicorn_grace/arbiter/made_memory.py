"""Making the shared memory of an instance. Runs in the arbiter, in ``on_starting``."""

from __future__ import annotations

from typing import Any

import gunicorn

from ..shared.memory import Memory
from ..shared.settings import Settings
from ..shared.version import __version__


def make(arbiter: Any, settings: Settings) -> Memory:
    """Make the memory, and store in it the versions and the name of the application.

    :param arbiter: gunicorn's arbiter.
    :param settings: the settings at the start.
    """
    made = Memory.create(boards=settings.probe_bind is not None)
    header = made.header
    header.plugin, header.gunicorn = __version__, gunicorn.__version__
    # A program that starts gunicorn in Python may have no app_uri.
    header.application = str(getattr(arbiter.app, "app_uri", None) or arbiter.cfg.proc_name)
    return made
