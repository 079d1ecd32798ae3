"""The smallest WSGI application, with three checks registered."""

from tiny import app

import gunicorn_grace

__all__ = ["app"]

for name, kind in (("database", "readiness"), ("cache", "readiness"), ("loop", "liveness")):
    gunicorn_grace.check(name, kind=kind)(lambda: None)
