"""Text that somebody else chose, made safe for a log line. Runs in any process."""

from __future__ import annotations

LONGEST = 200
"""How many characters of a foreign text a log line shows. gunicorn accepts paths of 4094 bytes."""


def printable(value: object, longest: int = LONGEST) -> str:
    r"""Return a text that a client or another process chose as printable ASCII, in one line.

    A worker class decodes ``%0a`` and ``%1b`` in a path before the plugin sees it, and others pass
    control characters as they came. Unchanged, they would forge whole lines of the log, or give
    orders to the terminal that shows it. So everything but printable ASCII is escaped as Python
    does it: also C1 controls, DEL, U+2028, what changes the direction of writing, and halves of
    surrogate pairs, which no stream could encode. A backslash is doubled, so that ``\n`` in the log
    is never one that the client wrote.

    :param value: the text, or any object.
    :param longest: how many of its characters are shown; ``...`` stands for the others.
    """
    text = str(value)
    # ascii() escapes an apostrophe only in a text that holds both kinds of quotes. A codec would
    # have to be imported.
    shown = "'".join(ascii(part)[1:-1] for part in text[:longest].split("'"))
    return shown if len(text) <= longest else f"{shown}..."


def in_one_line(text: str) -> str:
    """Return a message for a person, with everything escaped that is not printable: the name of a
    file may hold line breaks, and orders to the terminal. Letters of any language stay as they are.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
