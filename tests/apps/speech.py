"""How an application under test tells the test how far it is."""

from __future__ import annotations

import os


def say(text: str) -> None:
    """One line on standard error, in one write.

    ``print`` makes two of an unbuffered stream, text and end of line, and what another process of
    the instance writes between them would end up on the same line.
    """
    os.write(2, f"{text}\n".encode())
