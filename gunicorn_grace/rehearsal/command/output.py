"""The files that a rehearsal writes at its end.

They are opened before the rehearsal begins, so that a missing folder is reported at once and not
after minutes.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from ..errors import OutputFailed


class Output:
    """A file that is opened now and written later. An existing file keeps its content until then.

    :param option: the option that named it, for error messages.
    :param path: path of the file.

    :raises OutputFailed: it cannot be written.
    """

    def __init__(self, option: str, path: str) -> None:
        self.option = option
        self.path = path
        self._new = not os.path.lexists(path)
        self._written = False
        try:
            # It stays open as long as the rehearsal runs.
            self._file: TextIO = open(path, "a", encoding="utf-8")  # noqa: SIM115
        except (OSError, ValueError) as error:  # ValueError: a null byte in the path
            raise self._failed(error) from error

    def write(self, text: str) -> None:
        """Replace the content with ``text``.

        :raises OutputFailed: it cannot be written, for example on a full disk. The file is then
            empty.
        """
        try:
            self._empty()
            self._file.write(text)
            self._file.flush()
        except OSError as error:
            with suppress(OSError):
                self._empty()
            raise self._failed(error) from error
        self._written = True

    def close(self) -> None:
        """Close it. A file that did not exist before and was not written is deleted."""
        with suppress(OSError):  # a failed flush has been reported
            self._file.close()
        if self._new and not self._written:
            with suppress(OSError):
                os.unlink(self.path)

    def _empty(self) -> None:
        # A pipe or a terminal cannot be truncated.
        if stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            self._file.truncate(0)

    def _failed(self, error: Exception) -> OutputFailed:
        why = error.strerror if isinstance(error, OSError) else error
        return OutputFailed(f"{self.option} {self.path}: {why}")


def give_up_stdout() -> None:
    """Discard the buffered and all further text for standard output.

    Otherwise the interpreter tries to flush it again at its end, fails, and changes the exit code
    to 120.
    """
    with suppress(OSError):  # without a descriptor, nothing is flushed at the end either
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, sys.stdout.fileno())
        os.close(null)


@contextmanager
def opened(paths: dict[str, str]) -> Iterator[dict[str, Output]]:
    """Open all files.

    :param paths: the paths, by the option that names each.

    :raises OutputFailed: one cannot be written, or two are the same.
    """
    outputs: dict[str, Output] = {}
    try:
        for option, path in paths.items():
            for other in outputs.values():
                if os.path.realpath(other.path) == os.path.realpath(path):
                    raise OutputFailed(
                        f"{other.option} and {option} are the same file, {path}: name two"
                    )
            outputs[option] = Output(option, path)
        yield outputs
    finally:
        for output in outputs.values():
            output.close()
