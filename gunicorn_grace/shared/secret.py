"""A value that is never shown. Runs in any process."""

from __future__ import annotations

from typing import Any

from ..errors import SettingError


class Secret(str):
    """A string that prints as asterisks, because ``--print-config`` and gunicorn's debug log print
    every setting."""

    def __str__(self) -> str:
        return "********"

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(str(self), spec)

    def reveal(self) -> bytes:
        """Return the secret itself, for comparison. The result is bytes, because an environment
        variable may hold any bytes (PEP 383)."""
        return self.encode("utf-8", "surrogateescape")


_BLANKS = " \t\r\n\v\f"


def secret(name: str, value: Any) -> Secret | None:
    """Check the value of ``grace_trigger_token``, which may name a file.

    :param name: the setting, or the environment variable that gave the value.
    :param value: the token, ``"file:/path/to/it"``, or ``None``.
    :raises SettingError: the value is not a token, or the file cannot be read or is empty.
    """
    if value is None or isinstance(value, Secret):
        return value
    if not isinstance(value, str) or not value.strip():
        raise SettingError(name, "", "is empty", 'give the token, or "file:/path/to/it"')
    value = value.strip(_BLANKS)
    if not value.startswith("file:"):
        return _token(name, value)
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
    return _token(name, content)


def _token(name: str, text: str) -> Secret:
    """Return a token without the white space around it. A token with a line feed at its end, as
    files and Kubernetes Secrets have it, would never match, because HTTP strips a header's
    value."""
    token = text.strip(_BLANKS)
    if not token:
        raise SettingError(name, "", "is empty", 'give the token, or "file:/path/to/it"')
    if any(c in _BLANKS or c < " " or c == "\x7f" for c in token):
        raise SettingError(
            name,
            Secret(token),
            "has a blank or a control character within",
            "give one without",
        )
    return Secret(token)
