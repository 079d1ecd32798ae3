"""What others chose is printed as one line of printable ASCII."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_grace.shared.text import LONGEST, printable


@given(st.text(st.characters()))
def test_whatever_it_is_it_is_one_line_of_printable_ascii(text: str) -> None:
    """Surrogate halves and control characters too, so that every stream can encode it."""
    shown = printable(text)
    assert shown.isascii()
    assert shown == "" or shown.isprintable()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/plain/path?x=1", "/plain/path?x=1"),
        ("/a\n[2099-01-01] [1] [CRITICAL] forged", r"/a\n[2099-01-01] [1] [CRITICAL] forged"),
        ("\x1b[31m\x07\x0b\x7f", r"\x1b[31m\x07\x0b\x7f"),
        ("\x85\x9b31m", r"\x85\x9b31m"),
        ("\u2028\u2029\u202e", r"\u2028\u2029\u202e"),
        ("\udc80\ud800", r"\udc80\ud800"),
        (r"\n", r"\\n"),
        ('it\'s "quoted"', 'it\'s "quoted"'),
        (7, "7"),
    ],
)
def test_what_is_escaped(text: object, shown: str) -> None:
    """Controls, what a terminal obeys, and the backslash itself."""
    assert printable(text) == shown


def test_a_long_text_is_cut() -> None:
    """A path of 4094 bytes does not fill the log."""
    assert printable("x" * 4094) == "x" * LONGEST + "..."
