"""A configuration that was there before, with hooks of its own, and the two lines that switch the
plugin on.

gunicorn finds a file of this name by itself: ``gunicorn app:app`` in this folder.
"""

import os

bind = os.environ.get("BIND", "127.0.0.1:8080")
workers = 2
threads = 4


def when_ready(server):
    server.log.info("existing: ready for connections")


def post_fork(server, worker):
    server.log.info("existing: worker %s forked", worker.age)


def post_request(worker, req, environ, resp):
    worker.log.info(
        "existing: %s %s -> %s", req.method, req.path, resp.status if resp else "nothing"
    )


def on_exit(server):
    server.log.info("existing: bye")


# The two lines. They come last here, and might as well come first; the hooks above are called
# either way.
import gunicorn_grace  # noqa: E402

gunicorn_grace.install(globals())
