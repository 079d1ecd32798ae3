"""Keeps probes that succeed out of the access log. Runs in workers."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from typing import Any

from ..probes.answers import METHODS


class QuietProbes(logging.Filter):
    """Drops the access log lines of a thread or greenlet while its ``is_quiet`` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.thread: threading.local = threading.local()

    def filter(self, record: logging.LogRecord) -> bool:
        return not getattr(self.thread, "is_quiet", False)


ACCESS_LOGS = ("accesslog", "logconfig", "logconfig_dict", "logconfig_json", "syslog")
"""If none of these settings is set, gunicorn's own ``access`` writes nothing (22.0 to 27.0)."""


def quieten_probes(log: Any, paths: Collection[str]) -> None:
    """Keep probes that succeed out of the access log, in this worker.

    The user decides on the content of a log record (``access_log_format``, ``atoms``, a logger
    class), so records are not inspected. Instead a wrapper in front of the logger's ``access``
    looks at the request and the response. It does not call ``access`` for a probe that succeeds,
    because a user's ``access`` may write anywhere. gunicorn's StatsD logger is the exception: it
    counts requests in the same call. So it is called, and the line that it writes is dropped.

    Runs in the worker, just before it serves.

    :param log: gunicorn's logger, an instance of ``logger_class``.
    :param paths: the paths of the probes. The collection may grow later.
    """
    theirs = log.access
    author = type(log).access.__module__
    counts = author == "gunicorn.instrument.statsd"
    if author == "gunicorn.glogging" and not any(
        getattr(log.cfg, name, None) for name in ACCESS_LOGS
    ):
        return  # No access log is written, so spare every request the wrapper.
    quiet = QuietProbes()
    if counts:
        log.access_log.addFilter(quiet)

    def access(resp: Any, req: Any, environ: Any, request_time: Any) -> None:
        try:
            method, path = req.method, req.path
        except AttributeError:  # pywsgi passes headers, not a request.
            method, path = ((environ or {}).get(name) for name in ("REQUEST_METHOD", "PATH_INFO"))
        # A request with any other method is not a probe, so a stranger's POST is logged.
        if path not in paths or method not in METHODS or not _succeeded(resp):
            theirs(resp, req, environ, request_time)
        elif counts:
            quiet.thread.is_quiet = True
            try:
                theirs(resp, req, environ, request_time)
            finally:
                quiet.thread.is_quiet = False

    log.access = access
    # uvicorn's protocols (0.20 to 0.54) write to this logger themselves: client, method, path with
    # query, version, status.
    logging.getLogger("uvicorn.access").addFilter(lambda record: _is_no_quiet_probe(record, paths))


def _is_no_quiet_probe(record: logging.LogRecord, paths: Collection[str]) -> bool:
    match record.args:
        case (_, method, str(path), _, status):
            is_probe = method in METHODS and path.partition("?")[0] in paths
            return not is_probe or not str(status).startswith("2")
    return True


def _succeeded(resp: Any) -> bool:
    status = getattr(resp, "status", None)
    return (status.decode("latin-1") if isinstance(status, bytes) else str(status)).startswith("2")
