"""``asgi_service`` as its author would wrap it."""

from __future__ import annotations

from asgi_service import bare

from gunicorn_grace.asgi import Probes

app = Probes(bare)
