"""The platform's period: short ones, and those that are known without being told."""

from __future__ import annotations

import time

import pytest

from gunicorn_grace.shared.platforms import PLATFORMS
from support.servers import Connect, Serve, begin_a_request


@pytest.mark.ends
@pytest.mark.parametrize("settings", [{}, {"exit_margin": 40, "drain_reserve": 60}], ids=str)
def test_a_period_as_short_as_the_margin_leaves_time_for_what_is_in_flight(
    settings: dict[str, float], serve: Serve, connect: Connect
) -> None:
    """`docker stop -t 2`: what takes another 0.6 s is finished, as plain gunicorn finishes it,
    whatever the margin and the reserve are set to; and the process is gone in time."""
    server = serve(kind="gthread", settings={**settings, "termination_period": 2})
    client = connect(server)
    begin_a_request(server, client, "/slow?s=0.6")
    sent = time.monotonic()
    server.terminate()
    assert client.receive().status == 200
    client.close()
    assert server.wait(20) == 0, server.output
    assert server.exit_time is not None
    assert server.exit_time - sent < 2, server.output
    assert "0 cut off" in server.summary()


@pytest.mark.once
@pytest.mark.parametrize("name", ["supervisord", "Nomad"])
def test_an_instance_is_gone_before_the_platform_ends_it(name: str, serve: Serve) -> None:
    """The environment shows the platform, requests come all the time, nothing is set: the line at
    boot is no warning and says whose period it is, and the process is gone before SIGKILL."""
    (platform,) = (each for each in PLATFORMS if each.name == name)
    server = serve(kind="gthread", env={platform.sign: "1"})
    line = server.wait_line(f"is the default of {name}")
    assert "INFO" in line
    assert f"of {platform.period:g} s" in line
    if platform.signal:
        assert "WARNING" in server.wait_line("sends SIGINT by default")
    sent = time.monotonic()
    server.terminate()
    answered = 0
    while time.monotonic() - sent < platform.period and server.exit_time is None:
        try:
            answered += server.get("/").status == 200
        except OSError:
            break
        time.sleep(0.05)
    assert answered > 10
    assert server.wait(20) == 0, server.output
    assert server.exit_time is not None
    assert server.exit_time - sent < platform.period, server.output
