"""Finds out from a container's command whether it starts gunicorn, through which shell, and with
what arguments.

The command is only parsed, never run.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from ..manifest import Container

SHELLS = ("sh", "bash", "ash", "dash", "zsh", "ksh")
_GUNICORN = r"(?:[\w./${}-]*/)?gunicorn(?:\.app\.wsgiapp|[0-9.]*)"
_IN_SCRIPT = re.compile(
    rf"(?:^|(?<=[\s;&|(]))(?:[\w./-]*python[0-9.]*\s+-m\s+)?{_GUNICORN}(?=\s|$)"
)
_OPERATORS = ("&&", "||", ";", "|", "&", "\n", ";;", "|&", ")")
_REDIRECTION = re.compile(
    r"(?P<quoted>'[^']*'|\"[^\"]*\"|\\.)|(?:\d+|&)?>{1,2}(?:&?\d+|&?\s*[^\s;&|]+)|\d*<\s*[^\s;&|]+"
)
_EXEC = re.compile(r"(?:^|[\s;&|(])exec\s[^;&|\n]*$")


@dataclass(frozen=True)
class Launch:
    """How a container starts gunicorn.

    :ivar words: gunicorn's own arguments.
    :ivar shell: the shell that runs the command; empty if there is none.
    :ivar script: the script for the shell; empty if there is none. If ``shell`` is empty, it is a
        whole command line in one word.
    :ivar is_exec: whether gunicorn replaces the shell (``exec``).
    :ivar follows: the operator after gunicorn in the script, such as ``|`` or ``&``; empty if
        gunicorn is its last command.
    :ivar at: the position in the script at which gunicorn begins.
    :ivar part: the index of the script in ``command`` and ``args`` together.
    """

    words: tuple[str, ...] = ()
    shell: str = ""
    script: str = ""
    is_exec: bool = True
    follows: str = ""
    at: int = 0
    part: int = 0


def read_launch(container: Container) -> Launch | None:
    """Return how this container starts gunicorn; None if its command does not start it."""
    parts = container.command
    for number, part in enumerate(parts):
        if re.fullmatch(_GUNICORN, part) and (number == 0 or not _is_option_value(parts, number)):
            return Launch(parts[number + 1 :])
        shell = _shell_before(parts, number)
        if shell or (number == 0 and re.search(r"\s", part)):
            found = _read_script(part, shell, number)
            if found is not None:
                return found
    return None


def _is_option_value(parts: tuple[str, ...], number: int) -> bool:
    """Whether a part is the value of an option, as in ``celery -A gunicorn``."""
    before = parts[number - 1]
    return before.startswith("-") and before not in ("-m", "--", "-g", "-s", "-v")


def _shell_before(parts: tuple[str, ...], number: int) -> str:
    """Return the name of the shell if this part is a script for one, as in ``sh -c SCRIPT`` or
    ``bash -euo pipefail -c SCRIPT``; otherwise an empty string."""
    if not number or not re.fullmatch(r"-[a-z]*c", parts[number - 1]):
        return ""
    for before in reversed(parts[: number - 1]):
        name = before.rpartition("/")[2]
        if name in SHELLS:
            return name
    return ""


def _read_script(script: str, shell: str, part: int) -> Launch | None:
    uncommented = re.sub(r"(?m)(^|\s)#.*$", lambda m: m[1] + " " * (len(m[0]) - len(m[1])), script)
    found = list(_IN_SCRIPT.finditer(uncommented))
    # Commands such as "pip install gunicorn" only name it. The last of the others starts it.
    found = [
        m
        for m in found
        if not re.search(
            r"\b(pip3?|uv|apk|apt-get|which|echo|install)\b[^;&|\n]*$", uncommented[: m.start()]
        )
    ]
    if not found:
        return None
    start = found[-1]
    words, follows = _split(uncommented[start.end() :])
    return Launch(
        tuple(words),
        shell,
        script,
        is_exec=bool(_EXEC.search(uncommented[: start.start()])),
        follows=follows,
        at=start.start(),
        part=part,
    )


def _split(text: str) -> tuple[list[str], str]:
    """Return the words of a command up to an operator, and that operator. The operator is empty if
    no command follows, unless it is ``&``."""
    text = _REDIRECTION.sub(lambda m: m["quoted"] or " ", text.replace("\\\n", " "))
    lexer = shlex.shlex(text.replace("\n", " ; "), posix=True, punctuation_chars=";&|()")
    lexer.whitespace_split = True
    lexer.commenters = ""
    words: list[str] = []
    try:
        for token in lexer:
            if token and set(token) <= set(";&|()"):
                rest = list(lexer)
                return words, token if any(set(t) - set(";") for t in rest) or token == "&" else ""
            words.append(token)
    except ValueError:  # An open quote.
        return words, ""
    return words, ""


def options_of(words: tuple[str, ...], names: dict[str, str]) -> dict[str, list[str]]:
    """Return the values of the options that occur among gunicorn's arguments.

    :param words: gunicorn's arguments.
    :param names: the options that have a value, each with the setting that it sets.
    :returns: the settings, each with its values in order.
    """
    found: dict[str, list[str]] = {}
    left = list(words)
    while left:
        word = left.pop(0)
        name, equals, value = word.partition("=")
        if name.startswith("--") and name in names:
            if not equals:
                value = left.pop(0) if left else ""
        elif re.match(r"-[a-zA-Z]", word) and word[:2] in names:
            name, value = word[:2], word[2:].removeprefix("=")
            if not value:
                value = left.pop(0) if left else ""
        else:
            continue
        # If an argument such as "-w 4" is one word, argparse keeps the space, and gunicorn strips
        # it.
        found.setdefault(names[name], []).append(value.strip())
    return found
