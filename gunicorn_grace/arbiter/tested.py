"""The newest gunicorn and Python with which this version was tested.

The plugin overrides parts of gunicorn's arbiter and of its workers. A newer gunicorn may have
changed them. If something breaks then, gunicorn still shuts down as it would without the plugin.
But you should know the reason before an incident. Runs in the arbiter.
"""

from __future__ import annotations

import sys
from typing import Any

import gunicorn

from ..shared.version import __version__

NEWEST_GUNICORN = (27, 0)
NEWEST_PYTHON = (3, 15)
"""The newest versions that the tests run. A later patch of the same minor version counts as
tested."""


def tell(log: Any) -> None:
    """Log one line for gunicorn and one for Python, if it is newer. Runs in ``on_starting``.

    :param log: gunicorn's logger.
    """
    for name, here, found, newest in (
        ("gunicorn", gunicorn.version_info, gunicorn.__version__, NEWEST_GUNICORN),
        ("Python", sys.version_info, sys.version.split()[0], NEWEST_PYTHON),
    ):
        if tuple(here[:2]) > newest:
            log.warning(
                "gunicorn-grace: %s %s is newer than %s, the newest that gunicorn-grace %s was "
                "tested with: rehearse a shutdown before you rely on it, or upgrade gunicorn-grace",
                name,
                found,
                ".".join(map(str, newest)),
                __version__,
            )
