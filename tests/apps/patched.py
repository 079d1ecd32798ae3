"""``service`` in a process that gevent has patched: with ``preload_app`` that is the arbiter."""

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

from service import app  # noqa: E402

__all__ = ["app"]
