"""An application with a worker that stores random values all over the shared memory.

``POST /scribble`` begins it, in a thread of the worker that answers; it goes on until the worker
ends. The values are those that hurt most: random, extreme, and times around now.
"""

from __future__ import annotations

import os
import random
import threading
import time

from routes import Routes
from speech import say

import gunicorn_grace
from gunicorn_grace.shared import memory
from gunicorn_grace.shared.board import BOARD_CELLS
from gunicorn_grace.shared.cells import HEADER_CELLS

app = Routes()


@gunicorn_grace.check("database")
def database() -> bool:
    return True


@app.get("/")
def index(query: dict[str, str]) -> str:
    return "hello\n"


@app.get("/scribble")
def scribble(query: dict[str, str]) -> str:
    """Begin. ``cells`` is how many cells from the beginning are written, and of the boards as well
    if that is more than the header; ``pause`` the seconds between two rounds."""
    size, pause = int(query["cells"]), float(query["pause"])
    threading.Thread(target=write, args=(size, pause, int(query["seed"])), daemon=True).start()
    return "scribbling\n"


def write(size: int, pause: float, seed: int) -> None:
    attached = memory.attached
    assert attached is not None
    cells, dice = attached.cells, random.Random(seed)
    boards = range(attached.boards, attached.boards + 2 * BOARD_CELLS if size > HEADER_CELLS else 0)
    say(f"scribbling in {os.getpid()}")
    while True:
        for cell in dice.sample([*range(size), *boards], size // 2):
            now = time.monotonic_ns()
            cells[cell] = dice.choice(
                (
                    dice.randint(-(2**63), 2**63 - 1),
                    dice.choice((0, 1, 2, 3, 4, -1, 2**62, 2**63 - 1, -(2**63))),
                    now + dice.randint(-(10**10), 10**10),
                    (now & ~7) | dice.randint(0, 7),
                )
            )
        time.sleep(pause)
