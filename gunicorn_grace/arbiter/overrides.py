"""The methods of gunicorn's Arbiter that we override.

:func:`attach` puts :class:`GraceArbiter` in front of the class of the running arbiter, in
``on_starting``, before the arbiter's signal handlers are installed. The methods are thin. The rules
are in :class:`~gunicorn_grace.arbiter.shutdown.Shutdown`.

When any of our code fails, the error is logged with its traceback, and the arbiter behaves as plain
gunicorn from then on. If a SIGTERM had come, gunicorn stops at once. Runs in the arbiter.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from gunicorn.errors import HaltServer

from ..errors import GraceError
from ..shared import memory
from ..shared.memory import Memory
from ..shared.settings import Settings
from . import dirty
from .adoption import carry_over
from .made_memory import make
from .pace import Pace
from .probe_port import ProbePort
from .shutdown import Shutdown

if TYPE_CHECKING:
    from gunicorn.arbiter import Arbiter

    _Base = Arbiter
else:
    _Base = object

CONF_MODULE = "gunicorn_grace.conf"


class _ReloadCutShort(GraceError):
    """A SIGTERM came while gunicorn waited for the old workers of a reload."""


class PortArbiter(_Base):
    """The overrides that keep the probe port alive, also in an instance that is switched off.

    :ivar grace_probe_port: the probe port; ``None`` without one.
    """

    grace_probe_port: ProbePort | None = None

    def maybe_promote_master(self) -> None:
        # This is the only method that gunicorn 22.0 to 27.0 call at the top of every pass.
        super().maybe_promote_master()
        if self.grace_probe_port is not None:
            self.grace_probe_port.look()

    def reap_workers(self) -> None:
        if self.grace_probe_port is not None:
            self.grace_probe_port.reap()
        super().reap_workers()

    def handle_usr2(self) -> None:
        port = self.grace_probe_port
        with port.listener.handing_over() if port is not None else contextlib.nullcontext():
            super().handle_usr2()


class SwitchedOffArbiter(PortArbiter):
    """The overrides of an arbiter whose plugin is switched off and has a probe port."""

    def maybe_promote_master(self) -> None:
        if self.grace_probe_port is not None:
            # While another arbiter serves the same sockets, the end of this one must not make the
            # service look not ready.
            is_upgraded = bool(self.reexec_pid or self.master_pid)
            self.grace_probe_port.memory.header.upgraded = is_upgraded
        super().maybe_promote_master()


class GraceArbiter(PortArbiter):
    """The overrides of an arbiter whose plugin is switched on. When the plugin has failed, every
    method works as gunicorn's own.

    :ivar grace: the shutdown of this instance.
    :ivar grace_adopt: adds our settings and hooks to a new ``Config``, after SIGHUP.
    :ivar grace_reloads: whether gunicorn is in the middle of a reload.
    :ivar grace_paces: the paces of gunicorn's methods in a shutdown, by the names of the methods.
    """

    grace: Shutdown
    grace_adopt: Callable[[Any], None]
    grace_reloads: bool = False
    grace_paces: dict[str, Pace]
    log: Any

    def _guarded(self, action: Callable[..., Any], *args: Any) -> Any:
        """Run code of the plugin. After an error in it the plugin does nothing more, and gunicorn
        goes on.

        :returns: the result of the action; ``None`` if the plugin has failed.
        :raises StopIteration: the action wants to end gunicorn's loop, or it failed and a SIGTERM
            had come.
        """
        if self.grace.progress.failed:
            return None
        try:
            return action(*args)
        except StopIteration:
            raise
        except Exception:
            self.grace.progress.failed = True
            self.log.exception("gunicorn-grace: failed, and leaves the shutdown to gunicorn")
            with contextlib.suppress(Exception):
                self.grace.let_go()
            with contextlib.suppress(Exception):
                self.grace.timer.set(0)
            if self.grace.progress.terms:
                raise StopIteration from None
            return None

    def _is_ours(self) -> bool:
        """Whether a shutdown has begun and the plugin, which has not failed, runs it."""
        return not self.grace.progress.failed and self.grace.observer.has_begun()

    def grace_wake(self, sig: int, frame: Any) -> None:
        """Handle SIGALRM of our timer."""
        if os.getpid() != self.pid:
            # This is a child that the application has forked. Its alarm must act as without us.
            signal.signal(sig, signal.SIG_DFL)
            os.kill(os.getpid(), sig)
            return
        # An error would reach gunicorn's loop, and gunicorn would cut off the requests in flight.
        with contextlib.suppress(Exception):
            self.grace.timer.tick()

    def signal(self, sig: int, frame: Any) -> None:
        # A child that was just forked still has this handler. A SIGTERM to the child is not one to
        # the instance.
        if os.getpid() == self.pid:
            if sig == signal.SIGTERM:
                self.grace.on_sigterm()
            elif sig in (signal.SIGINT, signal.SIGQUIT):
                self.grace.telling.interrupted = signal.Signals(sig).name
        super().signal(sig, frame)

    def maybe_promote_master(self) -> None:
        super().maybe_promote_master()
        if hasattr(self, "signal_chld"):
            # A preloaded application may have taken SIGCHLD. gevent's monkey.patch_all() gives it
            # to gevent's loop, which does not run here (24.1 to 27.0), so gunicorn would not notice
            # dead workers. 22 and 23 reap in a signal handler, and their loop also runs gevent's.
            self.handle_chld()
        self._guarded(self.grace.step)

    def handle_term(self) -> None:
        if self.grace.progress.failed:
            super().handle_term()
        elif not self.grace.progress.terms:
            self.grace.on_sigterm()
        # Otherwise the signal handler has noted it, and the next pass acts on it.

    def handle_hup(self) -> None:
        if self._is_ours():
            self.log.warning("gunicorn-grace: SIGHUP is refused: the shutdown has begun")
            return
        super().handle_hup()

    def handle_usr2(self) -> None:
        if self._is_ours() or (self.grace.progress.terms and not self.grace.progress.failed):
            # A successor would be ready, although an operator may have drained this instance.
            self.log.warning(
                "gunicorn-grace: SIGUSR2 is refused: the shutdown has begun%s",
                ", or the instance is drained: undrain it first"
                if self.grace.progress.held
                else "",
            )
            return
        super().handle_usr2()

    def setup(self, app: Any) -> None:
        # A configuration module that gunicorn has cached (python:my.conf) does not run again on
        # SIGHUP.
        self._guarded(self.grace_adopt, app.cfg)
        self._guarded(carry_over, self.cfg, app.cfg)
        super().setup(app)

    def reload(self) -> None:
        # Otherwise Python would return the module of the first load, and the user's file would not
        # be read again.
        sys.modules.pop(CONF_MODULE, None)
        self.grace_reloads = True
        try:
            super().reload()
        except _ReloadCutShort:
            self.log.info(
                "gunicorn-grace: the reload no longer waits for the old workers: "
                "the shutdown has begun"
            )
        except SystemExit:
            # The configuration cannot be loaded. gunicorn 22.0 to 27.0 would end here and orphan
            # its workers.
            if self.app.cfg is self.cfg:
                raise
            self.app.cfg = self.cfg
            os.environ.update(self.cfg.env)
            self.log.error(
                "gunicorn-grace: SIGHUP: the configuration cannot be loaded, and stays as it was"
            )
        finally:
            self.grace_reloads = False

    def reap_workers(self) -> None:
        while True:
            try:
                super().reap_workers()
                break
            except HaltServer as halt:
                # A worker that replaces a dead one cannot boot. In a shutdown gunicorn must not
                # halt for that, because it would cut off the requests of the other workers.
                if not self._is_ours() or not self._forget_the_dead():
                    raise
                self._give_up_forking(halt.reason)
            except Exception as error:
                # A user's child_exit has failed. If the error reached gunicorn's loop, gunicorn
                # would cut off the requests of the other workers. The dead worker has left WORKERS
                # by then (22.0 to 27.0).
                if not self._is_ours():
                    raise
                self.grace.telling.later(error)
        # From 24.1 on reload() calls this while it waits, for up to graceful_timeout. 22 and 23 do
        # not wait, and reap inside the signal handler, where nothing may be raised.
        if self.grace_reloads and hasattr(self, "signal_chld") and self._is_ours():
            raise _ReloadCutShort("SIGTERM during reload")

    def _forget_the_dead(self) -> bool:
        """Remove dead workers, which gunicorn 22.0 to 25.3 do not do when a worker cannot boot.

        :returns: whether any worker is still alive.
        """
        for pid, worker in list(self.WORKERS.items()):
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                self.WORKERS.pop(pid)
                worker.tmp.close()
                try:
                    self.cfg.child_exit(self, worker)
                except Exception as error:
                    self.grace.telling.later(error)
        return bool(self.WORKERS)

    def _give_up_forking(self, why: object) -> None:
        """Replace no more workers, and serve with those that are left. A worker that cannot be
        replaced is not a reason to lose the requests of the others. In gunicorn 22 and 23 this runs
        in a signal handler, so the next pass logs it."""
        roster = self.grace.roster
        roster.gave_up_forking = roster.gave_up_forking or str(why) or "the fork failed"

    def spawn_worker(self) -> Any:
        try:
            return super().spawn_worker()
        except Exception as error:
            # The fork or a user's pre_fork has failed. If the error reached gunicorn's loop,
            # gunicorn would cut off the requests of the other workers.
            if os.getpid() != self.pid or not self._is_ours() or not self.WORKERS:
                raise
            self._give_up_forking(f"{type(error).__name__}: {error}")
            return None

    def spawn_dirty_arbiter(self) -> Any:
        # gunicorn 25.0 to 27.0 call this.
        self._guarded(dirty.guard, self.grace.memory)
        return super().spawn_dirty_arbiter()

    def murder_workers(self) -> None:
        # Workers that finish their last requests send no heartbeat (gthread 22.0 to 26.2), and must
        # not be killed for that.
        if self.grace.progress.failed or not self.grace.roster.are_dismissed:
            self._paced("murder_workers", super().murder_workers)

    def manage_workers(self) -> None:
        roster = self.grace.roster
        keeps = roster.are_dismissed or (roster.gave_up_forking and self.WORKERS)
        if self.grace.progress.failed or not keeps:
            self._paced("manage_workers", super().manage_workers)

    def _paced(self, name: str, method: Callable[[], None]) -> None:
        """Run a method that gunicorn calls in each pass of its loop, but no more often than without
        our timer."""
        if self.grace.timer.is_on:
            self.grace_paces.setdefault(name, Pace()).run(self, method)
        else:
            method()

    def kill_worker(self, pid: int, sig: int) -> None:
        if sig == signal.SIGTERM and pid in self.WORKERS:
            with contextlib.suppress(Exception):
                self.grace.roster.dismiss(self.WORKERS[pid])
        super().kill_worker(pid, sig)

    def halt(self, reason: str | None = None, exit_status: int = 0) -> None:
        self.grace.telling.halted = reason or ""
        super().halt(reason, exit_status)

    def stop(self, graceful: bool = True) -> None:
        if os.getpid() != self.pid:
            # This is the child that SIGUSR2 forks. If it cannot execute the successor, it ends up
            # in the loop that it inherited (22.0 to 27.0). It must not stop anything, because the
            # workers, the sockets, the pid file and the memory belong to the arbiter, which goes
            # on.
            os._exit(1)
        with contextlib.suppress(StopIteration):
            self._guarded(self.grace.before_stop, graceful)
        with contextlib.suppress(Exception):
            self.grace.listeners.close_what_was_sealed(has_begun=self._is_ours())
        super().stop(graceful)
        with contextlib.suppress(Exception):
            self.grace.timer.set(0)
        with contextlib.suppress(Exception):
            self.grace.roster.bury()


def attach(arbiter: Any, settings: Settings, adopt: Callable[[Any], None]) -> Shutdown:
    """Put our overrides into the running arbiter, and make the shared memory. Runs in
    ``on_starting``.

    :param arbiter: gunicorn's arbiter.
    :param settings: the settings at the start.
    :param adopt: adds our settings and hooks to a new ``Config``, after SIGHUP.
    """
    memory.attached = made = make(arbiter, settings)
    shutdown = Shutdown(arbiter, made, settings)
    atexit.register(_end, shutdown, os.getpid())
    arbiter.grace_adopt = adopt
    arbiter.grace_paces = {}
    _mix_in(GraceArbiter, arbiter)
    arbiter.grace = shutdown  # Last: workers that find it take part.
    if not made.shared_by_name:
        arbiter.log.warning(
            "gunicorn-grace: no memfd here: an anonymous mapping is used; "
            "the gunicorn-grace commands need Linux' memfd"
        )
    return shutdown


def _mix_in(ours: type, arbiter: Any) -> None:
    cls = type(arbiter)
    arbiter.__class__ = type(cls.__name__, (ours, cls), {"__module__": cls.__module__})


def _end(shutdown: Shutdown, arbiter_pid: int) -> None:
    """Stop the timer, and write the report if ``on_exit`` has not run. Runs at the exit of the
    arbiter's process. Workers inherit this call, and skip it.

    A ``SystemExit``, for example from a user's hook, ends gunicorn's loop without ``on_exit``. When
    Python ends, it removes signal handlers (3.10 to 3.13). An alarm of our timer would then kill
    the process, and change its exit code.
    """
    if os.getpid() == arbiter_pid:
        shutdown.timer.set(0)
        if not shutdown.telling.has_finished:
            shutdown.telling.is_exiting = True
            shutdown.telling.report(last=True)


def open_probe_port(arbiter: Any, made: Memory, settings: Settings) -> None:
    """Bind the probe port and start its responder. Runs in ``on_starting``.

    :param arbiter: gunicorn's arbiter.
    :param made: its shared memory.
    :param settings: the settings, with ``probe_bind`` set.
    :raises SystemExit: the address cannot be bound. gunicorn ends in the same way if it cannot bind
        a listener.
    """
    if not made.shared_by_name or not sys.executable:
        arbiter.log.warning(
            "gunicorn-grace: grace_probe_bind = %r is not served: "
            "it needs Linux' memfd and a Python executable",
            settings.probe_bind,
        )
        return
    port = ProbePort(arbiter, made, settings)
    atexit.register(port.end)
    if not isinstance(arbiter, PortArbiter):
        _mix_in(SwitchedOffArbiter, arbiter)
    arbiter.grace_probe_port = port
    port.start()
