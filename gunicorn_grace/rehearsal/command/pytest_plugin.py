"""The pytest fixture ``rehearse``, with which a project rehearses its own application in a test.

pytest finds the fixture by its entry point (``pytest11``). So wherever the package is installed,
every run of pytest imports this module. It imports the rest of the rehearsal only when a test calls
the fixture, so that other tests do not need h11.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from ..result import Result


class Rehearse(Protocol):
    """The function that the fixture returns."""

    def __call__(
        self,
        app: str,
        *,
        contender: str = "grace",
        config: str | None = None,
        delay: float | None = None,
        **plan: Any,
    ) -> Result: ...


@pytest.fixture
def rehearse(request: pytest.FixtureRequest) -> Rehearse:
    """A function that scales an application down under load, and returns the ``Result``.

    ``rehearse("app:app", instances=2, lag=1, delay=3).flawless`` is true if no request was lost and
    every instance was gone within its period. ``.tally`` counts the requests, ``.gone`` has the
    deleted instances, and ``.outputs`` the output of each instance. A test that fails shows the
    report.

    Arguments of the function:

    - ``app``: the application, as gunicorn takes it, relative to pytest's ``rootdir`` unless
      ``cwd`` is given
    - ``contender``: ``grace``, ``plain`` or ``sleep:SECONDS``
    - ``config``: your gunicorn configuration, with the plugin in it
    - ``delay``: ``grace_shutdown_delay`` in seconds, in place of the configured one
    - the others: fields of ``gunicorn_grace.rehearsal.plan.Plan``, by name

    The test fails if the rehearsal cannot be carried out: h11 is missing, the application does not
    start, a path does not answer 2xx, or the plugin is not at work.
    """

    def run(
        app: str,
        *,
        contender: str = "grace",
        config: str | None = None,
        delay: float | None = None,
        **plan: Any,
    ) -> Result:
        try:
            from ..errors import RehearsalError
            from ..plan import Plan
            from ..report import text as report_text
            from ..run import play
            from .contenders import contender_named, expect_plugin, refuse_clashes
        except ModuleNotFoundError as error:
            if error.name != "h11":
                raise
            pytest.fail("h11 is missing: pip install 'gunicorn-grace[rehearse]'", pytrace=False)
        env = dict(plan.pop("env", {}))
        if delay is not None:
            env["GRACE_SHUTDOWN_DELAY"] = f"{delay:g}"
        plan.setdefault("cwd", str(request.config.rootpath))
        problem = None
        try:
            refuse_clashes(plan.get("args", ()))
            result = play(Plan(app, env=env, **plan), contender_named(contender, config))
            expect_plugin(result, config)
        except RehearsalError as error:
            problem = error
        # Outside the handler, because pytest would otherwise show the instance's output twice.
        if problem is not None:
            pytest.fail(f"the rehearsal could not be carried out: {problem}", pytrace=False)
        request.node.add_report_section("call", "rehearsal", report_text.render([result]))
        return result

    return run
