"""Foreign text (from a client, a file name, another process), made safe for a log line. Runs in any
process."""

from __future__ import annotations

LONGEST = 200
"""How many characters of a foreign text a log line shows. gunicorn accepts paths of 4094 bytes."""


def printable(value: object, longest: int = LONGEST) -> str:
    r"""Return a foreign text as one line of printable ASCII.

    Some worker classes decode ``%0a`` and ``%1b`` in a path before the plugin sees it, and others
    pass control characters on as they came. Unescaped, these characters could forge whole lines of
    the log, or control the terminal that shows it. So everything but printable ASCII is escaped as
    Python does it: also C1 controls, DEL, U+2028, characters that change the direction of writing,
    and halves of surrogate pairs, which no stream can encode. A backslash is doubled, so ``\n`` in
    the log always stands for a line feed and never for two characters that the client wrote.

    :param value: the text, or any object.
    :param longest: how many characters of the text are shown; ``...`` stands for the others.
    """
    text = str(value)
    # ascii() escapes an apostrophe only in a text that has both kinds of quotes, so the text is
    # split at apostrophes. A codec would do too, but would have to be imported.
    shown = "'".join(ascii(part)[1:-1] for part in text[:longest].split("'"))
    return shown if len(text) <= longest else f"{shown}..."


def in_one_line(text: str) -> str:
    """Return a message for a person in one line. Characters that are not printable are escaped,
    because the name of a file may contain line breaks and control sequences for the terminal.
    Letters of any language stay as they are.
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
