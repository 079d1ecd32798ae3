"""gunicorn's server hooks, and the parts of the plugin that each of them calls.

=====================================  =========================================================
hook                                   the part that it calls
=====================================  =========================================================
``on_starting``, ``on_reload``         arbiter: attach, the settings, the budget, the probe port,
                                       and the warnings at boot
``pre_fork``, ``child_exit``           arbiter: the roster
``post_fork``                          worker: join, before gunicorn sets the signals
``post_worker_init``                   worker: the overlay, the access log, publishing, booted
``pre_request``, ``post_request``      worker: the counter
``worker_int``, ``worker_abort``       worker: the requests that are cut off
``on_exit``                            arbiter: the summary, the report, the end of the probe port
=====================================  =========================================================

With ``grace_enabled = False`` only the probes are left in the arbiter and in the workers
(:mod:`gunicorn_grace.arbiter.switched_off`, :mod:`gunicorn_grace.worker.probes_only`).

``worker_exit`` is not used, because by then gunicorn has closed the worker's heartbeat (22.0 to
27.0) and would abort a worker that waits for a hold.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .arbiter import (
    adoption,
    budget,
    checking,
    embedding,
    overrides,
    reach,
    stack,
    switched_off,
    tested,
)
from .arbiter.roster import Roster
from .arbiter.switched_off import SwitchedOff
from .errors import ConfigurationError
from .shared import settings
from .shared.guard import guarded, tell_once
from .worker import classes, probes_only, process, shortcut
from .worker.access_log import quieten_probes
from .worker.answering import WorkerAnswers
from .worker.asgi_servers import answer_probes_in_front_of_asgi, stand_in_front_of_asgi
from .worker.counting import Counting
from .worker.overlay import Overlay
from .worker.publishing import publish
from .worker.unfinished import INTERRUPTED

_UNTRACKED = (
    "gunicorn-grace: requests of %s cannot be counted: the delay, readiness in the shared memory "
    "and sealing work; probes, extension, quiet and Connection: close do not"
)


def adopt(cfg: Any) -> None:
    """Add the plugin's settings to a gunicorn ``Config``, and these hooks in front of the user's.
    Runs in the arbiter.

    :param cfg: the ``Config`` that is being loaded.
    :raises SettingError: an environment variable has an invalid value.
    """
    adoption.adopt(cfg, HOOKS)


def on_starting(server: Any) -> None:
    """Runs in the arbiter, before the first fork.

    :raises ConfigurationError: two settings contradict each other.
    """
    loaded = settings.Settings.of(server.cfg)
    settings.check(loaded)
    for line in checking.told_of_variables(server.cfg):
        server.log.warning("gunicorn-grace: %s", line)
    if not loaded.enabled:
        server.grace_off = off = SwitchedOff(loaded)
        off.start(server)
        if off.memory is not None and loaded.probe_bind is not None:
            overrides.open_probe_port(server, off.memory, loaded)
        return
    overrides.attach(server, loaded, adopt)
    budget.tell(server, server.grace.settings)
    if loaded.probe_bind is not None:
        overrides.open_probe_port(server, server.grace.memory, loaded)
    if classes.tracking(server.cfg.worker_class) is None:
        server.log.warning(_UNTRACKED, f"the worker class {server.cfg.worker_class_str}")
    reach.tell(server)
    tested.tell(server.log)


def on_reload(server: Any) -> None:
    """Runs in the arbiter, after SIGHUP. If the new settings contradict each other, the old ones
    stay in force."""
    if not stack.has_plugin(server):
        embedding.tell_too_late(server)
        return
    loaded = settings.Settings.of(server.cfg)
    try:
        settings.check(loaded)
    except ConfigurationError as error:
        server.log.error("gunicorn-grace: the old settings stay in force: %s", error)
        return
    loaded = switched_off.keep(server, loaded)
    if not loaded.enabled:
        server.grace_off.reload(server, loaded)
        return
    server.grace.use(loaded)
    budget.tell(server, server.grace.settings)
    if server.grace_probe_port is not None:
        server.grace_probe_port.reload(loaded)
    elif loaded.probe_bind is not None:
        server.log.warning(
            "gunicorn-grace: grace_probe_bind = %r needs a restart", loaded.probe_bind
        )


def pre_fork(server: Any, worker: Any) -> None:
    """Runs in the arbiter."""
    if (roster := _roster(server)) is not None:
        roster.claim(worker)


def _roster(server: Any) -> Roster | None:
    """Return the workers' slots, if this instance has any."""
    owner = getattr(server, "grace", None) or getattr(server, "grace_off", None)
    return None if owner is None else owner.roster


def child_exit(server: Any, worker: Any) -> None:
    """Runs in the arbiter's main loop; in gunicorn 22 and 23 in its signal handler."""
    if (roster := _roster(server)) is not None:
        roster.free(worker)


def post_fork(server: Any, worker: Any) -> None:
    """Runs in the worker, before gunicorn sets its signal handlers."""
    if (port := getattr(server, "grace_probe_port", None)) is not None:
        port.leave()
    if hasattr(server, "grace_off"):
        off = server.grace_off
        probes_only.join(worker, off.settings, off.memory if off.roster is not None else None)
    if hasattr(server, "grace"):
        shutdown = server.grace
        number = getattr(worker, "grace_slot", None)
        joined = process.join(worker, shutdown.memory, number, shutdown.settings)
        joined.draining.owns_listeners = shutdown.listeners.are_the_workers_own()


def post_worker_init(worker: Any) -> None:
    """Runs in the worker, once the application is loaded."""
    ours = process.this_worker
    if ours is None:
        if probes_only.this_worker is not None:
            _answer_probes_only(worker, probes_only.this_worker)
        return
    try:
        _stand_in_front(worker, ours)
    finally:
        # The worker serves even if a part has failed. If it were not marked as booted, the instance
        # would never be ready.
        ours.booted(worker)
    # The settings object that refuses unknown names adds a Python call to every lookup, and
    # gunicorn makes 20 lookups for each request.
    worker.cfg.settings = dict(worker.cfg.settings)
    shortcut.shorten(worker.cfg, ours)


def _answer_probes_only(worker: Any, ours: probes_only.ProbesOnly) -> None:
    """Answer the probes in front of the application of an instance that is switched off."""
    try:
        how = classes.tracking(type(worker))
        if how == classes.WSGI and classes.is_tornado_app(worker.wsgi):
            how = None
        if how in (classes.HOOKS, classes.WSGI) and ours.settings.overlay:
            worker.wsgi = Overlay(worker.wsgi, WorkerAnswers(None)).serve
        elif how is not None and ours.settings.overlay:
            answer_probes_in_front_of_asgi(worker)
    finally:
        ours.booted(worker)
    worker.cfg.settings = dict(worker.cfg.settings)


def _stand_in_front(worker: Any, ours: process.WorkerProcess) -> None:
    """Put the parts that answer probes, count requests and filter the log in front of the
    application and the log."""
    if ours.tracking == classes.WSGI and classes.is_tornado_app(worker.wsgi):
        ours.tracking, ours.draining.sees_all, ours.record.uncounted = None, False, 1
        if worker.age == 1:
            worker.log.warning(_UNTRACKED, "an application of tornado's own")
    if ours.tracking in (classes.HOOKS, classes.WSGI):
        if ours.settings.overlay:
            worker.wsgi = Overlay(worker.wsgi, WorkerAnswers(ours)).serve
        if ours.tracking == classes.WSGI:
            worker.wsgi = Counting(worker.wsgi, ours.counter, ours.memory.is_terminating)
    elif ours.tracking is not None:
        is_there = stand_in_front_of_asgi(worker, ours)
        if not is_there and worker.age == 1:
            worker.log.warning(_UNTRACKED, f"the worker class {worker.cfg.worker_class_str}")
    if not ours.settings.log_probes:
        try:
            quieten_probes(worker.log, ours.counter.probe_paths)
        except Exception:
            tell_once("access log", worker)
    try:
        publish(worker, ours.memory, ours.number, ours.settings)
    except Exception:
        tell_once("probe port", worker)


def pre_request(worker: Any, req: Any) -> None:
    """Runs in the worker, in the thread or greenlet that serves the request."""
    if process.this_worker is not None:
        process.this_worker.begin(req)


def post_request(worker: Any, req: Any, environ: Any, resp: Any) -> None:
    """Runs in the worker, in the same thread or greenlet."""
    if process.this_worker is not None:
        process.this_worker.end(req)


def worker_int(worker: Any) -> None:
    """Runs in the worker, in its signal handler; with ``reload`` in the reloader's thread."""
    ours = process.this_worker
    # When the reloader calls this hook, only its own thread ends (gunicorn 22.0 to 27.0). The
    # worker finishes the requests that it serves.
    if ours is not None and not process.is_in_reloader(worker):
        ours.leaving.note_cut_off()
        ours.unfinished.tell_at_once(INTERRUPTED)


def worker_abort(worker: Any) -> None:
    """Runs in the worker, in its signal handler."""
    ours = process.this_worker
    if ours is not None:
        ours.leaving.note_cut_off()
        ours.unfinished.tell_at_once("when the worker was aborted, and cut off")


def on_exit(server: Any) -> None:
    """Runs in the arbiter, last."""
    try:
        if hasattr(server, "grace"):
            server.grace.telling.the_end()
    finally:
        if (port := getattr(server, "grace_probe_port", None)) is not None:
            port.end()


HOOKS: dict[str, Callable[..., None]] = {
    hook.__name__: guarded(hook)
    for hook in (
        on_starting,
        on_reload,
        pre_fork,
        post_fork,
        post_worker_init,
        pre_request,
        post_request,
        worker_int,
        worker_abort,
        child_exit,
        on_exit,
    )
}
