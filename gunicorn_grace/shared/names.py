"""Environment variables that look like settings and are not, such as misspelled ones.

Without this module a misspelled variable would be silently ignored. Runs in the arbiter and in
commands.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping

from .agreed import HANDED_OVER, WORKERS_MARK
from .settings import NAMES, PREFIX
from .text import printable

IN_ENVIRONMENT = PREFIX.upper()

_KNOWN = {name.upper() for name in NAMES}

_OURS = {HANDED_OVER, WORKERS_MARK}
"""Variables that the plugin itself sets. They are in the environment of processes that the
application starts, and of the successor after SIGUSR2."""

_OF_A_SERVICE = re.compile(r"_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_\w+)?)$")
"""The names of the variables that Kubernetes sets for a Service whose name begins with "grace"."""


def nearest(name: str) -> str | None:
    """Return the setting with the most similar name; ``None`` if none is similar.

    :param name: the unknown name, such as ``grace_shutdown_dely``.
    """
    # All names share the prefix. With it, any two of them would look similar.
    names = [known.removeprefix(PREFIX) for known in NAMES]
    found = difflib.get_close_matches(name.removeprefix(PREFIX), names, n=1)
    return PREFIX + found[0] if found else None


def looks_like_a_setting(name: str) -> bool:
    """Whether an environment variable looks like a setting and is not: it is misspelled, in small
    letters, or begins with ``GUNICORN_``. It may still belong to another program."""
    bare = name.upper().removeprefix("GUNICORN_")
    is_none = name not in _KNOWN and name not in _OURS and not _OF_A_SERVICE.search(name)
    return is_none and bare.startswith(IN_ENVIRONMENT)


def variable_meant(name: str) -> str | None:
    """Return the variable that the user probably meant; ``None`` if none is similar."""
    near = nearest(name.lower().removeprefix("gunicorn_"))
    return near and near.upper()


def told_of(environ: Mapping[str, str]) -> str | None:
    """Return a line about the environment variables that look like settings and are not, with the
    most similar setting of each; ``None`` if there are no such variables.

    :param environ: the environment.
    """
    found = []
    for name in sorted(filter(looks_like_a_setting, environ)):
        meant = variable_meant(name)
        found.append(printable(name) + (f" (did you mean {meant}?)" if meant else ""))
    if not found:
        return None
    return f"environment variables that are no settings are ignored: {', '.join(found)}"


def told_of_late(given: Mapping[str, str], environ: Mapping[str, str]) -> str | None:
    """Return a line about settings among the variables that gunicorn itself sets (``raw_env``,
    ``--env``); ``None`` if there are none. gunicorn sets these variables after the settings have
    been read (22.0 to 27.0), so they would be silently ignored.

    :param given: the variables that gunicorn sets.
    :param environ: the environment in which the settings were read.
    """
    late = sorted(
        name for name, value in given.items() if name in _KNOWN and environ.get(name) != value
    )
    if not late:
        return None
    return (
        f"raw_env (--env) comes too late for {', '.join(late)}, because gunicorn reads the "
        f"settings before it: set {', '.join(map(str.lower, late))} in the configuration file"
    )
