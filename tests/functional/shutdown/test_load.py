"""Scale-downs under load, by the rehearsal's own engine: what is lost, and how."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from gunicorn_grace.rehearsal.kubernetes.routing import EndpointTable
from gunicorn_grace.rehearsal.load.load import Load
from gunicorn_grace.rehearsal.load.tally import RequestOutcome
from gunicorn_grace.rehearsal.plan import GRACE, PLAIN
from gunicorn_grace.rehearsal.processes.fleet import Fleet
from gunicorn_grace.rehearsal.processes.instance import Instance
from gunicorn_grace.rehearsal.run import play
from support.servers import WORKERS, plan, told


def test_nothing_is_lost_when_the_lag_is_shorter_than_the_delay(kind: str, tmp_path: Path) -> None:
    """New and kept-alive connections, slow requests among them: a deletion loses none, and gunicorn
    exits with 0."""
    settings = {"shutdown_delay": 2, "min_delay": 0}
    planned = plan(
        kind, tmp_path, lag=1.0, settings=settings, slow_path="/slow?s=0.4", slow_share=0.05
    )
    result = play(planned, GRACE)
    assert result.plugin_spoke, told(result)
    assert result.tally.lost == 0, told(result)
    assert result.gone[0].exit_code == 0, told(result)
    assert result.killed == 0


@pytest.mark.long(but="gthread")
def test_nothing_is_lost_when_the_lag_is_longer_than_the_delay(kind: str, tmp_path: Path) -> None:
    """The delay is extended while requests still arrive, so a lag of three times the delay loses
    none."""
    planned = plan(kind, tmp_path, lag=3.0, settings={"shutdown_delay": 1, "min_delay": 0})
    result = play(planned, GRACE)
    assert result.tally.lost == 0, told(result)
    assert any(
        "lame_duck_ended" in text and "extended until quiet" in text
        for _, text in result.gone[0].events
    )


def test_a_delay_too_short_only_refuses(kind: str, tmp_path: Path) -> None:
    """Without extension and with a lag far beyond the delay, connections are refused, and none is
    reset or cut off."""
    settings = {"shutdown_delay": 0.5, "min_delay": 0, "extend_delay": "false"}
    result = play(plan(kind, tmp_path, lag=3.0, settings=settings, timeout=4.0), GRACE)
    assert result.tally.count(RequestOutcome.REFUSED) > 0, told(result)
    assert result.tally.count(RequestOutcome.REFUSED) == result.tally.lost, told(result)


def test_plain_gunicorn_loses_requests(tmp_path: Path) -> None:
    """The same deletion without the plugin loses requests: the rehearsal sees losses where there
    are some."""
    result = play(plan("gthread", tmp_path, lag=1.0), PLAIN)
    assert result.tally.lost > 0, told(result)
    assert not result.plugin_spoke


@pytest.mark.long(but="sync")
def test_prestop_then_sigterm_is_one_clock_and_loses_nothing(kind: str, tmp_path: Path) -> None:
    """`gunicorn-grace prestop` waits out the delay; the SIGTERM after it drains at once, and
    nothing is lost."""
    planned = plan(
        kind,
        tmp_path,
        lag=1.0,
        settings={"shutdown_delay": 2, "min_delay": 0},
        pre_stop=("gunicorn-grace", "prestop", "--pid", "{pid}"),
    )
    result = play(planned, GRACE)
    gone = result.gone[0]
    assert gone.pre_stop_problem == ""
    assert result.tally.lost == 0, told(result)
    began = [at for at, text in gone.events if "shutdown_initiated by trigger (prestop)" in text]
    ended = [at for at, text in gone.events if "lame_duck_ended" in text]
    assert began, told(result)
    assert ended, told(result)
    assert gone.sigterm is not None
    assert began[0] < gone.sigterm <= ended[0], (
        "the clock ran from the trigger, and the drain waited for SIGTERM"
    )


@pytest.mark.long(but="plain")
@pytest.mark.parametrize(
    ("kind", "extra"),
    [
        *(pytest.param(kind, (), id=f"{kind}-plain") for kind in sorted(WORKERS)),
        pytest.param("gthread", ("--preload",), id="gthread-preload"),
    ],
)
def test_sigterm_to_the_whole_process_group_loses_nothing(
    kind: str, extra: tuple[str, ...], tmp_path: Path
) -> None:
    """dumb-init and `tini -g` send SIGTERM to the workers as well: they stay until the arbiter
    dismisses them."""
    planned = plan(kind, tmp_path, lag=1.0, settings={"shutdown_delay": 2, "min_delay": 0})
    stay, goes = (
        Instance(
            "service:app", args=(*GRACE.args, *planned.args, *extra), env=planned.env, cwd=tmp_path
        )
        for _ in range(2)
    )
    with Fleet([stay, goes]) as fleet:
        table = EndpointTable()
        for instance in fleet:
            instance.wait_ready()
            table.add(instance.address)
        goes.wait_workers(int(planned.args[planned.args.index("-w") + 1]))
        with Load(table, rate=80, timeout=15) as load:
            load.wait_completed(80)
            table.remove(goes.address, lag=1.0)
            goes.signal_group(signal.SIGTERM)
            assert goes.wait(20) == 0, goes.output
            load.wait_completed(40)
            tally = load.stop()
    assert tally.lost == 0, f"{tally.lost_records[:5]}\n{goes.output}"
    ended = next(index for index, (_, line) in enumerate(goes.lines) if "lame_duck_ended" in line)
    assert not [line for _, line in goes.lines[:ended] if "Worker exiting" in line], goes.output
