"""An application that leaves its mark in the memory map of whoever imports it."""

from __future__ import annotations

import mmap
import os

MARK = "application-was-imported"

_fd = os.open(os.path.join(os.environ["XDG_RUNTIME_DIR"], MARK), os.O_RDWR | os.O_CREAT)
os.ftruncate(_fd, mmap.PAGESIZE)
_mapped = mmap.mmap(_fd, mmap.PAGESIZE)
os.close(_fd)
os.unlink(os.path.join(os.environ["XDG_RUNTIME_DIR"], MARK))


def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "3")])
    return [b"hi\n"]
