"""The application under test: quick, slow and streaming routes, and a look into the worker that
answers."""

from __future__ import annotations

import ctypes
import os
import resource
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from routes import Routes
from speech import say

import gunicorn_grace

app = Routes()

Query = Mapping[str, str]


@app.get("/")
def index(query: Query) -> str:
    return "hello\n"


@app.get("/slow")
def slow(query: Query) -> str:
    """Takes as long as it is told, and says on standard error when it begins, so that a test can
    wait for it."""
    seconds = float(query["s"])
    say(f"slow request begins in {os.getpid()}")
    time.sleep(seconds)
    return f"slept {seconds:g} s\n"


@app.get("/wait")
def wait(query: Query) -> str:
    """Takes until a file is there: a test holds the request, and lets it go when it has seen
    enough."""
    say(f"slow request begins in {os.getpid()}")
    while not os.path.exists(query["for"]):
        time.sleep(0.02)
    return "waited\n"


@app.get("/stream")
def stream(query: Query) -> Iterator[str]:
    """So many lines, so many seconds apart."""
    for number in range(int(query["n"])):
        say(f"stream line {number}")
        yield f"line {number}\n"
        time.sleep(float(query["pause"]))


@app.get("/look")
def look(query: Query) -> dict[str, Any]:
    """What the application sees in the worker that answers."""
    return {
        "pid": os.getpid(),
        "phase": str(gunicorn_grace.phase()),
        "terminating": gunicorn_grace.is_terminating(),
        "seconds_left": gunicorn_grace.seconds_left(),
    }


@app.get("/fetch")
def fetch(query: Query) -> dict[str, Any]:
    """A server-side request forgery: the application fetches whatever it is told to, with a process
    of its own."""
    import subprocess

    done = subprocess.run(
        ["curl", "-s", "-o", os.devnull, "-w", "%{http_code}", query["url"]],
        capture_output=True,
        text=True,
    )
    return {"status": int(done.stdout or 0)}


@app.get("/fetch-later")
def fetch_later(query: Query) -> dict[str, Any]:
    """Let a curl in the background fetch ``url``: its shell has ended by then. The status is
    written into ``file``."""
    import subprocess

    file = os.path.join(os.getcwd(), "status-of-curl")
    script = 'exec 3>&1; (sleep 0.3; exec curl -s -o /dev/null -w \'%{http_code}\' "$1" >"$2") &'
    open(file, "w").close()
    subprocess.run(["sh", "-c", script, "sh", query["url"], file], check=True)
    return {"file": file}


@app.get("/fetch-here")
def fetch_here(query: Query) -> dict[str, Any]:
    """The same, by the worker itself."""
    import urllib.error
    import urllib.request

    try:
        with urllib.request.urlopen(query["url"]) as answer:
            return {"status": answer.status}
    except urllib.error.HTTPError as error:
        return {"status": error.code}


@app.get("/crash")
def crash(query: Query) -> str:
    os._exit(1)


@app.get("/busy")
def busy(query: Query) -> str:
    """Takes as long as it is told and never waits: under gevent nothing else runs meanwhile."""
    say(f"slow request begins in {os.getpid()}")
    end = time.monotonic() + float(query["s"])
    while time.monotonic() < end:
        pass
    return "busy\n"


@app.get("/keep")
def keep(query: Query) -> str:
    """Leaves a thread behind that keeps the worker from its end."""
    threading.Thread(target=upload, name="uploader").start()
    return "kept\n"


def upload() -> None:
    threading.Event().wait(60)


@app.get("/nap")
def nap(query: Query) -> str:
    """Takes as long as it is told, without a word."""
    time.sleep(float(query["s"]))
    return "slept\n"


@app.get("/hang")
def hang(query: Query) -> str:
    """Never returns from C, holds the GIL, and no signal interrupts it: only SIGKILL ends such a
    process.

    A second lock of the same mutex waits for ever, and goes on waiting after a signal
    (pthread_mutex_lock(3)).
    """
    libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(64)
    say(f"hangs in {os.getpid()}")
    while True:
        libc.pthread_mutex_lock(mutex)


@app.get("/hog")
def hog(query: Query) -> str:
    """Asks for a GiB where there are, from now on, only ``spare`` MiB left for this process;
    ``abort`` as C++ does."""
    # Python 3.15 imports what it formats a traceback with at the first one. Without memory that
    # fails, and with it the log, and with that the worker.
    try:
        raise MemoryError
    except MemoryError:
        traceback.format_exc()
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = used + (int(query["spare"]) << 20)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    try:
        return f"{len(bytearray(1 << 30))}\n"
    except MemoryError:
        if "abort" in query:
            os.abort()
        raise


@app.get("/clock")
def clock(query: Query) -> str:
    """The wall clock."""
    return f"{time.time()}\n"
