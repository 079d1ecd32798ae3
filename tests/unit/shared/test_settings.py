"""The settings: each row parsed from a file and from the environment, inside gunicorn's own
``Config``."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
from gunicorn.config import KNOWN_SETTINGS, Config
from hypothesis import assume, example, given
from hypothesis import strategies as st

from gunicorn_grace.arbiter.adoption import adopt, know
from gunicorn_grace.arbiter.budget import budget_line
from gunicorn_grace.conf import install
from gunicorn_grace.errors import ConfigurationError, SettingError, UnknownSetting
from gunicorn_grace.shared import platforms
from gunicorn_grace.shared import settings as module
from gunicorn_grace.shared.budget import budget, drain_reserve, exit_margin, longest_delay
from gunicorn_grace.shared.platforms import PLATFORMS, UNKNOWN, Platform
from gunicorn_grace.shared.settings import NAMES, Secret, Settings, check, rows

SECONDS = [(3, 3), ("7.5", 7.5), ("8", 8), (0, 0)]
NO_SECONDS: list[Any] = [-1, "x", None, True, math.inf, math.nan, [], ""]
FLAGS = [
    (True, True),
    (False, False),
    ("true", True),
    ("No", False),
    ("0", False),
    ("on", True),
    (" 1 ", True),
]
NO_FLAGS: list[Any] = ["maybe", None, 1, 0, 2.0, [], ""]
PATHS = [("/healthz/ready", "/healthz/ready")]
NO_PATHS: list[Any] = ["ready", "", None, 3, "/a?b", "/a b", "/a#b", "/a\nb", "a\nb", "  \n"]

# name: (values as given and as meant, values that are refused)
TABLE: dict[str, tuple[list[tuple[Any, Any]], list[Any]]] = {
    "grace_shutdown_delay": (SECONDS, NO_SECONDS),
    "grace_min_delay": (SECONDS, NO_SECONDS),
    "grace_extend_delay": (FLAGS, NO_FLAGS),
    "grace_drain_reserve": (SECONDS, NO_SECONDS),
    "grace_quiet_period": ([*SECONDS, ("auto", "auto")], [*NO_SECONDS, "Auto"]),
    "grace_quiet_share": (
        [(0.5, 0.5), ("0.01", 0.01), (1, 1.0)],
        [0, 1.1, -1, "x", True, None, math.nan],
    ),
    "grace_termination_period": ([*SECONDS, ("auto", "auto")], [*NO_SECONDS, "Auto"]),
    "grace_exit_margin": (SECONDS, NO_SECONDS),
    "grace_enabled": (FLAGS, NO_FLAGS),
    "grace_readiness_delay": (SECONDS, NO_SECONDS),
    "grace_readiness_path": (PATHS, NO_PATHS),
    "grace_liveness_path": (PATHS, NO_PATHS),
    "grace_startup_path": (PATHS, NO_PATHS),
    "grace_dockerflow": (FLAGS, NO_FLAGS),
    "grace_overlay": (FLAGS, NO_FLAGS),
    "grace_ignore_paths": (
        [
            (["/a", "/b"], ["/a", "/b"]),
            ("/a, /b,", ["/a", "/b"]),
            (("/a",), ["/a"]),
            ([], []),
            ("", []),
        ],
        [3, None, ["a"], ["/a", 3], "/a,b"],
    ),
    "grace_websocket_close": (
        [(1012, 1012), ("1001", 1001), (0, 0), ("0", 0), (4999, 4999), (3000.0, 3000)],
        [1005, 1006, 1011, 999, 5000, -1, 1012.5, True, False, None, "", "x", math.nan, math.inf],
    ),
    "grace_trigger": (
        [("off", "off"), ("local", "local"), ("token", "token")],
        ["Local", None, True, ""],
    ),
    "grace_trigger_token": (
        [("s3cret", "s3cret"), (None, None)],
        ["", "  ", 3, "file:/nowhere/at/all"],
    ),
    "grace_probe_bind": (
        [
            ("127.0.0.1:8081", "127.0.0.1:8081"),
            ("localhost:0", "localhost:0"),
            ("[::1]:8081", "[::1]:8081"),
            ("unix:/run/probe.sock", "unix:/run/probe.sock"),
            (None, None),
            ("", None),
        ],
        [
            *(
                8081,
                True,
                "8081",
                ":8081",
                "localhost",
                "127.0.0.1:",
                "127.0.0.1:http",
                "127.0.0.1:65536",
                "h:-1",
            ),
            *(
                "::1:8081",
                "[::1]",
                "[::1:8081",
                "[127.0.0.1]:80",
                "a b:80",
                "http://h:80",
                "h\n:80",
                "[::1\n]:80",
            ),
            *("unix:probe.sock", "unix:", "unix:/", "unix:/a\0b", "unix:/" + 107 * "a", "fd://3"),
        ],
    ),
    "grace_log_probes": (FLAGS, NO_FLAGS),
    "grace_report": ([("/tmp/r.json", "/tmp/r.json"), (None, None), ("", None)], [3, True]),
}
GOOD = [(name, given, meant) for name, (good, _) in TABLE.items() for given, meant in good]
BAD = [(name, given) for name, (_, bad) in TABLE.items() for given in bad]


@pytest.fixture
def config() -> Config:
    """A ``Config`` as gunicorn makes one, that knows our settings."""
    made = Config()
    adopt(made, {})
    return made


def value(cfg: Config, name: str) -> Any:
    return cfg.settings[name].get()


# -- the rows ----


def test_the_table_of_this_file_is_complete() -> None:
    """A row that is added without a test of its values makes this fail."""
    assert tuple(TABLE) == NAMES


@pytest.mark.parametrize(("name", "given", "meant"), GOOD)
def test_a_file_sets_it(config: Config, name: str, given: Any, meant: Any) -> None:
    """Assigned as gunicorn assigns what a file says, it comes out as the type that the code
    reads."""
    config.set(name, given)
    assert value(config, name) == meant
    assert type(value(config, name)) in (type(meant), Secret)
    read = getattr(Settings.of(config), name.removeprefix("grace_"))
    assert read == (30 if (name, meant) == ("grace_termination_period", "auto") else meant)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize(
    ("name", "given", "meant"), [*GOOD, ("graceful_timeout", 30, 30), ("graceful_timeout", 7, 7)]
)
def test_a_program_sets_it_before_or_after_it_installs(
    order: str, name: str, given: Any, meant: Any
) -> None:
    """Its value is the same, and so is whether somebody has set it: the default may be chosen,
    too."""
    cfg = Config()
    know(cfg)  # As gunicorn makes one, once the package is imported.
    if order == "before":
        cfg.set(name, given)
    install(cfg)
    if order == "after":
        cfg.set(name, given)
    assert value(cfg, name) == meant
    assert cfg.settings[name].given is True


@pytest.mark.parametrize(
    ("name", "given", "meant"), [row for row in GOOD if isinstance(row[1], str)]
)
def test_the_environment_wins(
    monkeypatch: pytest.MonkeyPatch, name: str, given: str, meant: Any
) -> None:
    """A variable beats the default and what a file says later; the file's own value is a good one
    all the same."""
    monkeypatch.setenv(name.upper(), given)
    cfg = Config()
    adopt(cfg, {})
    assert value(cfg, name) == meant
    for other, _ in TABLE[name][0]:
        cfg.set(name, other)
        assert value(cfg, name) == meant


@pytest.mark.parametrize(("name", "given"), BAD)
def test_a_bad_value_is_told_in_one_line(config: Config, name: str, given: Any) -> None:
    """The line has the setting, the value and what to write instead; the value before it stays."""
    before = value(config, name)
    with pytest.raises(SettingError) as caught:
        config.set(name, given)
    line = str(caught.value)
    assert line.startswith(f"{name} = ")
    assert len(line.splitlines()) == 1
    assert ": " in line
    if name != "grace_trigger_token":
        assert repr(given) in line or isinstance(given, (list, str))
    assert caught.value.name == name
    assert value(config, name) == before


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        (name, bad)
        for name, (_, refused) in TABLE.items()
        for bad in refused[-1:]
        if isinstance(bad, str)
    ],
)
def test_a_bad_variable_is_told_by_its_own_name(
    monkeypatch: pytest.MonkeyPatch, name: str, bad: str
) -> None:
    """What the environment says is checked as a file is, and the culprit is the variable, at
    adoption already."""
    monkeypatch.setenv(name.upper(), bad)
    # From the second one on a Config has our settings from gunicorn's own table.
    with pytest.raises(SettingError, match=f"^{name.upper()} = "):
        adopt(Config(), {})


def test_a_typo_in_the_file_does_not_hide_behind_the_environment(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would come up with the next Deployment, which has no such variable."""
    monkeypatch.setenv("GRACE_MIN_DELAY", "3")
    with pytest.raises(SettingError, match=r"^grace_min_delay = 'x'"):
        config.set("grace_min_delay", "x")


@given(
    st.one_of(st.floats(), st.integers(), st.text(), st.none(), st.booleans(), st.lists(st.text()))
)
@pytest.mark.parametrize("row", rows(), ids=lambda row: row.name)
def test_a_parser_returns_or_raises_a_setting_error(row: Any, given: Any) -> None:
    """Whatever a file says, no other exception comes out, and what is accepted is accepted again
    unchanged."""
    parse = row.metadata["parse"]
    refusal = ""
    try:
        parsed = parse("grace_x", given)
    except SettingError as error:
        refusal = str(error)
    else:
        assert parse("grace_x", parsed) == parsed
    assert len(refusal.splitlines()) <= 1


@pytest.mark.parametrize("huge", [1e10, "1e300"])
def test_seconds_fit_into_the_shared_memory(config: Config, huge: Any) -> None:
    """A duration that 64 bits of nanoseconds cannot hold is refused here, not by a crash when
    gunicorn starts."""
    with pytest.raises(SettingError, match=r"^grace_shutdown_delay = "):
        config.set("grace_shutdown_delay", huge)


def test_defaults_are_those_of_the_design() -> None:
    """DESIGN section 6, and every row tells what it means."""
    assert Settings(report=None) == Settings(
        shutdown_delay=10,
        min_delay=5,
        extend_delay=True,
        drain_reserve=5,
        quiet_period=0,
        quiet_share=0.01,
        termination_period="auto",  # type: ignore[arg-type]
        exit_margin=2,
        readiness_delay=0,
        readiness_path="/readyz",
        liveness_path="/livez",
        startup_path="/startupz",
        dockerflow=False,
        overlay=True,
        ignore_paths=["/metrics"],
        websocket_close=1012,
        trigger="local",
        trigger_token=None,
        probe_bind=None,
        log_probes=False,
        report=None,
        graceful_timeout=30,
    )
    assert all(row.metadata["meaning"].endswith(".") for row in rows())


# -- secrets ----


def test_the_token_is_never_shown(config: Config) -> None:
    """``--print-config``, formatting and ``repr`` show stars; only ``reveal`` has it."""
    config.set("grace_trigger_token", "s3cret")
    secret = value(config, "grace_trigger_token")
    shown = [
        str(config),
        str(secret),
        repr(secret),
        f"{secret}",
        f"{secret:>20}",
        f"{secret!s} {secret!r}",
    ]
    assert not [
        text for text in [*shown, repr(Settings.of(config)), str([secret])] if "s3cret" in text
    ]
    assert "grace_trigger_token" in str(config)
    assert secret.reveal() == b"s3cret"


def test_the_token_can_come_from_a_file(config: Config, tmp_path: Path) -> None:
    """Mounted secrets end with a newline, which is not part of them; an empty one is not a
    token."""
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    config.set("grace_trigger_token", f"file:{file}")
    assert value(config, "grace_trigger_token").reveal() == b"s3cret"
    file.write_text("\n")
    with pytest.raises(SettingError, match="is an empty file"):
        config.set("grace_trigger_token", f"file:{file}")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(SettingError, match="cannot be read"):
        config.set("grace_trigger_token", f"file:{file}")


@pytest.mark.parametrize("around", ["{}\n", " {}", "\t{} \r\n"])
@pytest.mark.parametrize("given", ["s3cret", "file"])
def test_white_space_around_a_token_is_taken_off(
    given: str, around: str, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Kubernetes Secret made with ``echo`` ends with a line feed, in the environment too. No
    header could ever hold it."""
    if given == "file":
        (tmp_path / "token").write_text(around.format("s3cret"))
        given = f"file:{tmp_path}/token"
    config.set("grace_trigger_token", around.format(given))
    assert value(config, "grace_trigger_token").reveal() == b"s3cret"
    monkeypatch.setenv("GRACE_TRIGGER_TOKEN", around.format(given))
    config.set("grace_trigger_token", "another")
    assert value(config, "grace_trigger_token").reveal() == b"s3cret"


@pytest.mark.parametrize("token", ["two words", "two\nlines", "a\tb", "a\x00b", "a\x7fb", "a\x1fb"])
def test_a_token_with_a_blank_within_is_refused(token: str, config: Config) -> None:
    """It is not shown in the message."""
    with pytest.raises(SettingError, match="has a blank or a control character within") as error:
        config.set("grace_trigger_token", token)
    assert "two" not in str(error.value)
    assert token not in str(error.value)


# -- names ----


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("grace_shutdwn_delay", "grace_shutdown_delay"),
        ("grace_shutdown_dealy", "grace_shutdown_delay"),
        ("grace_readyness_path", "grace_readiness_path"),
        ("grace_zzzzzzzz", None),
        ("grace_helper", None),
    ],
)
def test_an_unknown_name_suggests_the_nearest(
    config: Config, name: str, nearest: str | None
) -> None:
    """gunicorn itself would skip it without a word."""
    with pytest.raises(UnknownSetting) as caught:
        config.set(name, 1)
    assert caught.value.nearest == nearest
    assert str(caught.value).startswith(f"unknown setting {name}: ")
    if nearest:
        assert str(caught.value).endswith(f"did you mean {nearest}?")


@pytest.mark.parametrize(
    ("name", "value", "suggested"),
    [
        ("grace_readiness_path", "", "/readyz"),
        ("grace_liveness_path", "", "/livez"),
        ("grace_startup_path", 7, "/startupz"),
        ("grace_liveness_path", "alive", "/alive"),
        ("grace_ignore_paths", ["no slash"], "/metrics"),
    ],
)
def test_the_path_that_is_suggested_is_accepted(
    config: Config, name: str, value: object, suggested: str
) -> None:
    """No two probes have the same path, so each has a suggestion of its own."""
    with pytest.raises(SettingError, match=f'give a path such as "{suggested}"$'):
        config.set(name, value)


def test_names_that_are_not_ours_are_gunicorns_business(config: Config) -> None:
    """A helper in somebody's file is skipped as ever, and asking with ``hasattr`` is not an
    error."""
    assert "my_helper" not in config.settings
    assert "workers" in config.settings
    assert not hasattr(config, "grace_nothing")


# -- adoption ----


def test_adopting_twice_changes_nothing() -> None:
    """Values, hooks and gunicorn's table are as after the first time."""
    calls: list[str] = []
    cfg = Config()
    hooks = {"on_starting": lambda server: calls.append("ours")}
    adopt(cfg, hooks)
    cfg.set("grace_min_delay", 3)
    cfg.set("on_starting", lambda server: calls.append("theirs"))
    before, known = dict(cfg.settings), list(KNOWN_SETTINGS)
    adopt(cfg, hooks)
    assert dict(cfg.settings) == before
    assert list(KNOWN_SETTINGS) == known
    cfg.on_starting(None)
    assert calls == ["ours", "theirs"]
    assert cfg.grace_min_delay == 3


def test_the_settings_are_gunicorns_own_kind(config: Config) -> None:
    """Each is registered once in KNOWN_SETTINGS, in section Grace, described and printed by
    ``--print-config``."""
    ours: list[Any] = [known for known in KNOWN_SETTINGS if str(known.name).startswith("grace_")]
    assert sorted(known.name for known in ours) == sorted(NAMES)
    assert {known.section for known in ours} == {"Grace"}
    assert all(known.desc and known.short for known in ours)
    printed = str(config)
    assert all(name in printed for name in NAMES)
    config.parser().parse_args([])


def test_a_new_config_starts_from_the_defaults(config: Config) -> None:
    """SIGHUP makes a new ``Config``: what was removed from the file is gone, lists included."""
    config.set("grace_min_delay", 3)
    value(config, "grace_ignore_paths").append("/more")
    again = Config()
    adopt(again, {})
    assert again.grace_min_delay == 5
    assert again.grace_ignore_paths == ["/metrics"]


def test_loaded_is_what_was_adopted_last(config: Config) -> None:
    """The blueprint asks it for the paths; it follows later assignments."""
    config.set("grace_readiness_path", "/ready")
    loaded = module.loaded()
    assert loaded is not None
    assert loaded.readiness_path == "/ready"


def test_nothing_is_loaded_outside_gunicorn() -> None:
    """Where gunicorn loaded no configuration there are no settings but the defaults."""
    assert module.loaded() is None


# -- together ----


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (Settings(trigger="token"), "grace_trigger_token is not set"),
        (
            Settings(liveness_path="/readyz"),
            r"grace_readiness_path and grace_liveness_path are both '/readyz'",
        ),
        (
            Settings(startup_path="/livez"),
            r"grace_liveness_path and grace_startup_path are both '/livez'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(settings: Settings, says: str) -> None:
    """One line that names both sides."""
    with pytest.raises(ConfigurationError, match=says) as caught:
        check(settings)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    "settings",
    [
        Settings(),
        Settings(trigger="token", trigger_token=Secret("x")),
        Settings(liveness_path="/healthz"),
    ],
)
def test_what_goes_together_is_accepted(settings: Settings) -> None:
    """The defaults do, and liveness may have its alias as its own path."""
    check(settings)


def test_a_loaded_configuration_is_checked() -> None:
    """``Config.validate``, gunicorn's last step of loading, ends with our check and does gunicorn's
    own first."""
    cfg = Config()
    install(cfg)
    cfg.validate()
    cfg.set("grace_trigger", "token")
    with pytest.raises(ConfigurationError, match="grace_trigger_token"):
        cfg.validate()


# -- the budget line ----


@pytest.mark.parametrize(
    ("settings", "by_hand", "wanted"),
    [
        (
            Settings(termination_period=30),
            False,
            (False, "lame duck 10 s, then up to 18 s to drain, gone by 28 s of 30 s"),
        ),
        (
            Settings(termination_period=30, graceful_timeout=8),
            True,
            (False, "lame duck 10 s, then up to 8 s to drain, gone by 18 s of 30 s"),
        ),
        (
            Settings(termination_period=0),
            True,
            (False, "lame duck 10 s, then up to 30 s to drain; the platform's period is not known"),
        ),
        (
            Settings(termination_period=30, shutdown_delay=23),
            False,
            (False, "lame duck 23 s, then up to 5 s to drain, gone by 28 s of 30 s"),
        ),
        (
            Settings(termination_period=30, shutdown_delay=20),
            True,
            (
                True,
                "grace_shutdown_delay 20 + graceful_timeout 30 + grace_exit_margin 2 = 52 s > "
                "grace_termination_period 30 s: draining will be cut to 8 s; lower the delay or "
                "raise "
                "terminationGracePeriodSeconds and grace_termination_period to 52",
            ),
        ),
        (
            Settings(termination_period=30, shutdown_delay=25),
            False,
            (
                True,
                "grace_shutdown_delay 25 + grace_drain_reserve 5 + grace_exit_margin 2 = 32 s > "
                "grace_termination_period 30 s: the delay will be cut to 23 s; lower it or raise "
                "terminationGracePeriodSeconds and grace_termination_period to 57",
            ),
        ),
        (
            Settings(termination_period=30, graceful_timeout=3, shutdown_delay=25),
            True,
            (
                True,
                "grace_shutdown_delay 25 + grace_drain_reserve 5 + grace_exit_margin 2 = 32 s > "
                "grace_termination_period 30 s: the delay will be cut to 23 s; lower it or raise "
                "terminationGracePeriodSeconds and grace_termination_period to 32",
            ),
        ),
        (
            Settings(termination_period=30, shutdown_delay=20.5),
            True,
            (
                True,
                "grace_shutdown_delay 20.5 + graceful_timeout 30 + grace_exit_margin 2 = 52.5 s > "
                "grace_termination_period 30 s: draining will be cut to 7.5 s; lower the delay or "
                "raise "
                "terminationGracePeriodSeconds and grace_termination_period to 53",
            ),
        ),
    ],
    ids=[
        "fits",
        "fits-with-room",
        "unknown",
        "just-the-reserve",
        "cut",
        "too-long",
        "short-drain",
        "fractions",
    ],
)
def test_the_budget_in_one_line(
    settings: Settings, by_hand: bool, wanted: tuple[bool, str]
) -> None:
    """The sum that fits, or the formula that does not, both numbers and the way out."""
    assert budget_line(settings, graceful_timeout_given=by_hand) == wanted


seconds = st.integers(0, 120)


@given(
    settings=st.builds(
        Settings,
        shutdown_delay=seconds,
        graceful_timeout=seconds,
        exit_margin=st.integers(0, 10),
        drain_reserve=st.integers(0, 10),
        termination_period=seconds,
    ),
    by_hand=st.booleans(),
)
def test_the_way_out_is_one(settings: Settings, by_hand: bool) -> None:
    """Whoever raises the period to the number in the warning is warned no more; what fits is never
    a warning, and a delay that is cut is cut to what LAME_DUCK then lasts."""
    warn, line = budget_line(settings, graceful_timeout_given=by_hand)
    assert len(line.splitlines()) == 1
    drain = max(settings.graceful_timeout, settings.drain_reserve)
    fits = settings.shutdown_delay + drain + settings.exit_margin <= settings.termination_period
    assert not (warn and fits)
    if warn:
        raised = copy.copy(settings)
        object.__setattr__(raised, "termination_period", int(line.rsplit(" ", 1)[1]))
        assert not budget_line(raised, graceful_timeout_given=by_hand)[0]
    if "the delay will be cut" in line:
        assert f"cut to {longest_delay(settings):g} s;" in line
        assert longest_delay(settings) < settings.shutdown_delay
    elif settings.termination_period:
        assert longest_delay(settings) == settings.shutdown_delay


@given(
    delay=st.integers(0, 900),
    reserve=st.integers(0, 100),
    margin=st.integers(0, 50),
    over=st.integers(-1, 1),
)
@example(delay=238, reserve=51, margin=11, over=0)
@example(delay=226, reserve=51, margin=23, over=0)
def test_decimals_that_fit_exactly_fit(delay: int, reserve: int, margin: int, over: int) -> None:
    """In tenths of a second: 23.8 + 5.1 + 1.1 is 30, although a computer's sum may be a little more
    or less. A tenth too much is a warning."""
    period = delay + reserve + margin
    assume(period > max(2 * reserve, 5 * margin, 1))  # So no share is cut, and 0 is no period.
    settings = Settings(
        shutdown_delay=delay / 10,
        drain_reserve=reserve / 10,
        exit_margin=margin / 10,
        termination_period=(period - over) / 10,
    )
    warns, line = budget_line(settings, graceful_timeout_given=False)
    assert warns == (over > 0), line


@given(
    period=st.floats(0.1, 120),
    margin=st.integers(0, 200),
    reserve=st.integers(0, 200),
    delay=st.integers(0, 200),
)
def test_something_is_left_of_every_period(
    period: float, margin: int, reserve: int, delay: int
) -> None:
    """Whatever margin and reserve are set to, the margin takes a fifth of the period at most, the
    reserve half of it, and where the delay is wanted and cut it still has three tenths."""
    settings = Settings(
        termination_period=period, exit_margin=margin, drain_reserve=reserve, shutdown_delay=delay
    )
    assert exit_margin(settings) == pytest.approx(min(margin, period / 5))
    assert budget(settings) >= period * 0.8 * (1 - 1e-9)
    assert drain_reserve(settings) == pytest.approx(min(reserve, period / 2))
    assert longest_delay(settings) >= min(delay, period * 0.3 * (1 - 1e-9))
    assert longest_delay(settings) + drain_reserve(settings) <= budget(settings) * (
        1 + 1e-9
    ) or not longest_delay(settings)


@pytest.mark.parametrize("platform", [*PLATFORMS, UNKNOWN], ids=lambda each: each.name or "none")
def test_the_defaults_fit_together_on_every_platform(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With nothing set, the line is no warning, the sum is within the period, and the line says
    whose period it is, by what it is known, and what to set."""
    if platform.sign:
        monkeypatch.setenv(platform.sign, "1")
    settings = Settings()
    assert (settings.termination_period, settings.period_is_assumed) == (platform.period, True)
    warns, line = budget_line(
        settings, graceful_timeout_given=False, all_defaults=True, platform=platforms.here()
    )
    assert not warns
    assert longest_delay(settings) > 0
    assert drain_reserve(settings) > 0
    for words in (platform.name, platform.sign, platform.knob if platform.name else "assumed"):
        assert words in line
    assert "set grace_termination_period" in line or not platform.knob


@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({"SUPERVISOR_ENABLED": "1", "KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "supervisord"),
        ({"SUPERVISOR_ENABLED": "1", "INVOCATION_ID": "ab"}, "supervisord"),
        ({"SUPERVISOR_ENABLED": "1", "FLY_APP_NAME": "app"}, "Fly"),
        ({"NOMAD_ALLOC_ID": "ab", "INVOCATION_ID": "cd"}, "Nomad"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "INVOCATION_ID": "cd"}, "Kubernetes"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1", "K_SERVICE": "knative"}, "Kubernetes"),
        ({"INVOCATION_ID": "cd", "SYSTEMD_EXEC_PID": "20"}, "systemd"),
        ({"INVOCATION_ID": "cd", "SYSTEMD_EXEC_PID": "10"}, "systemd"),
        ({"INVOCATION_ID": "cd", "SYSTEMD_EXEC_PID": "3"}, ""),
        ({}, ""),
    ],
)
def test_the_shortest_clock_counts(environ: dict[str, str], name: str) -> None:
    """Where one platform runs in another, each ends the process by its own clock. Knative is in
    Kubernetes, and a terminal that inherits systemd's variables is no service."""
    assert platforms.find(environ, (20, 10)).name == name


def test_without_a_period_nothing_cuts_the_delay() -> None:
    """`grace_termination_period = 0` says that nobody ends the process: the delay is as long as it
    was set to."""
    assert longest_delay(Settings(shutdown_delay=500, termination_period=0)) == 500


def test_a_delay_that_a_person_chose_is_not_cut_silently(monkeypatch: pytest.MonkeyPatch) -> None:
    """The warning names what to raise on this platform; where nothing can be raised it says so by
    naming nothing."""
    monkeypatch.setenv("SUPERVISOR_ENABLED", "1")
    options = {"graceful_timeout_given": False, "platform": platforms.here()}
    warns, line = budget_line(Settings(shutdown_delay=20), **options)
    assert warns
    assert "cut to 3 s; lower it or raise stopwaitsecs and grace_termination_period to 52" in line
    cloud_run = next(each for each in PLATFORMS if not each.knob)
    line = budget_line(Settings(shutdown_delay=20), **{**options, "platform": cloud_run})[1]
    assert "cut to 3 s; lower it; 10 s is the period of" in line


@pytest.mark.parametrize(
    ("value", "by_hand"),
    [(None, False), (30, True), (8, True)],
    ids=["default", "the-default-by-hand", "other"],
)
def test_a_value_that_was_set_by_hand_is_known(value: int | None, by_hand: bool) -> None:
    """``graceful_timeout = 30`` in a file is a wish, which is worth a warning when it is cut; the
    default is none."""
    cfg = Config()
    adopt(cfg, {})
    if value is not None:
        cfg.set("graceful_timeout", value)
    setting: Any = cfg.settings["graceful_timeout"]
    assert (setting.given, cfg.graceful_timeout) == (by_hand, value or 30)
