"""Logger classes as users write them."""

from __future__ import annotations

import os
from typing import Any

from gunicorn.glogging import Logger


class Renamed(Logger):
    """Its atoms have names of their own, and neither path nor status is where gunicorn has them."""

    def atoms(self, resp: Any, req: Any, environ: Any, request_time: Any) -> dict[str, Any]:
        atoms = super().atoms(resp, req, environ, request_time)
        return {"what": f"{atoms.pop('m')} {atoms.pop('U')}", "how": atoms.pop("s")}


class Sentence(Logger):
    """Writes one string, without any atoms, to gunicorn's access log."""

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        self.access_log.info(f"{environ['REQUEST_METHOD']} {req.path} -> {resp.status}")


class Elsewhere(Logger):
    """Writes to a file of its own, past the logging module."""

    def access(self, resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        with open(os.environ["ELSEWHERE"], "a") as file:
            file.write(f"{environ['REQUEST_METHOD']} {req.path} -> {resp.status}\n")


class Delegating:
    """No subclass of gunicorn's; it passes on whatever it is asked for."""

    def __init__(self, cfg: Any) -> None:
        self.logger = Logger(cfg)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.logger, name)
