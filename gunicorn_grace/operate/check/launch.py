"""The command of a container: whether it starts gunicorn, through which shell, with what arguments.

The command is taken apart, never run.
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
    :ivar script: what the shell is told.
    :ivar is_exec: whether gunicorn takes the place of the shell.
    :ivar follows: what the script has after gunicorn: an operator, such as ``|`` or ``&``; empty
        if gunicorn is its last command.
    :ivar at: where gunicorn begins in the script.
    :ivar part: which part of ``command`` and ``args`` together has the script.
    """

    words: tuple[str, ...] = ()
    shell: str = ""
    script: str = ""
    is_exec: bool = True
    follows: str = ""
    at: int = 0
    part: int = 0


def read_launch(container: Container) -> Launch | None:
    """How this container starts gunicorn; None if its command does not name gunicorn."""
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
    """The shell whose script a part is: ``sh -c SCRIPT``, ``bash -euo pipefail -c SCRIPT``."""
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
    # "pip install gunicorn" and the like name it too; what starts it is the last one.
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
    """The words of a command until an operator, and that operator if a command comes after it."""
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
    """The options of gunicorn that occur, by their long names, each with its values in order.

    :param words: gunicorn's arguments.
    :param names: the long name of each option that has a value, by all its names.
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
        # An argument such as "-w 4" in one word: argparse keeps the space, and gunicorn strips it.
        found.setdefault(names[name], []).append(value.strip())
    return found
