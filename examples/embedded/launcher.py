"""A launcher that has options of its own, and passes all others on to gunicorn's command.

    python launcher.py [--name NAME] [HOST:PORT] -- --config python:gunicorn_grace.conf
    GUNICORN_CMD_ARGS="-c python:gunicorn_grace.conf" python launcher.py [HOST:PORT]

It runs gunicorn's own ``WSGIApplication``, which reads options, ``GUNICORN_CMD_ARGS`` and the
configuration file. So both ways are gunicorn's own, and the ``gunicorn.conf.py`` of the working
directory counts as well.
"""

from __future__ import annotations

import argparse
import sys

from gunicorn.app.wsgiapp import WSGIApplication

if __name__ == "__main__":
    own, passed_on = sys.argv[1:], []
    if "--" in own:
        at = own.index("--")
        own, passed_on = own[:at], own[at + 1 :]
    parser = argparse.ArgumentParser()
    parser.add_argument("bind", nargs="?", default="127.0.0.1:8080")
    parser.add_argument("--name", default="hello")
    given = parser.parse_args(own)
    sys.argv[1:] = ["--bind", given.bind, "--name", given.name, *passed_on, "hello:app"]
    WSGIApplication().run()
