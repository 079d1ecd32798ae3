"""Hooks: ours and the user's, chained in a real gunicorn ``Config``, whoever came first."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config

from gunicorn_grace import conf, hooks
from gunicorn_grace.arbiter.adoption import adopt
from gunicorn_grace.errors import ConfigurationError
from gunicorn_grace.shared import guard

ARITIES = {
    "on_starting": 1,
    "on_reload": 1,
    "pre_fork": 2,
    "post_fork": 2,
    "post_worker_init": 1,
    "pre_request": 2,
    "post_request": 4,
    "worker_int": 1,
    "worker_abort": 1,
    "child_exit": 2,
    "on_exit": 1,
}


def recorder(calls: list[Any], who: str, arity: int) -> Callable[..., None]:
    """A hook with exactly so many parameters, as gunicorn counts them."""
    names = ", ".join("abcd"[:arity])
    scope: dict[str, Any] = {"calls": calls, "who": who}
    exec(f"def hook({names}): calls.append((who, {names}))", scope)
    hook: Callable[..., None] = scope["hook"]
    return hook


def test_every_hook_of_ours_is_one_of_gunicorns() -> None:
    """The names that we chain are the names that gunicorn has, and the arity of each is as it calls
    it."""
    assert set(hooks.HOOKS) == set(ARITIES)
    assert set(hooks.HOOKS) <= set(Config().settings)
    for name, hook in hooks.HOOKS.items():
        assert hook.__wrapped__.__code__.co_argcount == ARITIES[name]  # type: ignore[attr-defined]


@pytest.mark.parametrize("order", ["before", "after", "both", "never"])
@pytest.mark.parametrize("name", ARITIES)
def test_ours_runs_first_and_then_the_users(name: str, order: str) -> None:
    """Set before ``install``, after it, or both (then the later): each runs once, with gunicorn's
    own arguments."""
    calls: list[Any] = []
    arity = ARITIES[name]
    cfg = Config()
    if order in ("before", "both"):
        cfg.set(name, recorder(calls, "before", arity))
    adopt(cfg, {name: recorder(calls, "ours", arity)})
    if order in ("after", "both"):
        cfg.set(name, recorder(calls, "after", arity))
    # What gunicorn's own default of pre_request looks at, and a number to tell them apart.
    args = tuple(
        SimpleNamespace(log=logging.getLogger(), method="GET", path="/", number=n)
        for n in range(arity)
    )
    cfg.settings[name].get()(*args)
    theirs = {"both": ["after"], "never": []}.get(order, [order])
    assert calls == [("ours", *args), *((who, *args) for who in theirs)]


@pytest.mark.parametrize("before", [True, False], ids=["before", "after"])
@pytest.mark.parametrize("arity", [2, 3, 4])
def test_post_request_may_have_two_three_or_four_parameters(arity: int, before: bool) -> None:
    """gunicorn calls it with four and cuts for the user; ours gets all of them."""
    calls: list[Any] = []
    cfg, theirs = Config(), recorder(calls, "theirs", arity)
    if before:
        cfg.set("post_request", theirs)
    adopt(cfg, {"post_request": recorder(calls, "ours", 4)})
    if not before:
        cfg.set("post_request", theirs)
    cfg.post_request("w", "r", "e", "p")
    assert calls == [("ours", "w", "r", "e", "p"), ("theirs", *("w", "r", "e", "p")[:arity])]


@pytest.mark.parametrize(
    ("name", "hook"),
    [
        ("on_starting", lambda: None),
        ("pre_request", lambda worker: None),
        ("pre_request", lambda *args: None),
        ("post_request", lambda worker: None),
        ("child_exit", "no callable"),
        ("child_exit", 3),
    ],
)
def test_a_wrong_hook_is_refused_in_gunicorns_own_words(name: str, hook: Any) -> None:
    """Type and arity are checked by gunicorn as without us, and ours stays in place."""
    plain, ours = Config(), Config()
    calls: list[Any] = []
    adopt(ours, {name: recorder(calls, "ours", ARITIES[name])})
    before = ours.settings[name].get()
    messages = []
    for cfg in (plain, ours):
        with pytest.raises(TypeError) as caught:
            cfg.set(name, hook)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert ours.settings[name].get() is before


class WithoutQualname:
    """A callable object, such as a user's hook with state."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, server: Any) -> None:
        self.calls += 1


def test_the_configuration_can_be_printed() -> None:
    """``--print-config`` names our chain as the user's function, and a callable object does not
    break it."""

    def when_ready_for_all(server: Any) -> None:
        pass

    theirs = WithoutQualname()
    cfg = Config()
    cfg.set("on_exit", theirs)
    conf.install(cfg)
    cfg.set("on_starting", when_ready_for_all)
    cfg.set("on_reload", theirs)
    printed = str(cfg)
    assert "when_ready_for_all" in printed
    cfg.on_reload(SimpleNamespace())
    cfg.on_exit(SimpleNamespace())
    assert theirs.calls == 2


@pytest.mark.parametrize("name", ARITIES)
def test_an_error_of_ours_stops_neither_gunicorn_nor_the_users_hook(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged once with its traceback and the hook's name; the user's hook runs every time."""

    def broken(*args: Any) -> None:
        raise ZeroDivisionError("a bug of ours")

    broken.__name__ = name
    monkeypatch.setattr(guard, "_told", set())
    calls: list[Any] = []
    cfg = Config()
    adopt(cfg, {name: guard.guarded(broken)})
    cfg.set(name, recorder(calls, "theirs", ARITIES[name]))
    args = [SimpleNamespace(log=logging.getLogger("gunicorn.error"))] + [None] * (ARITIES[name] - 1)
    cfg.settings[name].get()(*args)
    cfg.settings[name].get()(*args)
    assert len(calls) == 2
    told = [record for record in caplog.records if record.exc_info]
    assert len(told) == 1
    assert name in told[0].getMessage()
    assert "gunicorn goes on" in told[0].getMessage()


def test_the_real_hooks_are_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of hooks.HOOKS survives a server or worker that is nothing like one, its log
    included."""
    monkeypatch.setattr(guard, "_told", set())
    for name, hook in hooks.HOOKS.items():
        hook(*[object()] * ARITIES[name])


def test_a_configuration_error_is_the_users_to_know() -> None:
    """The guard lets it out: gunicorn prints it in one line and does not start."""

    def refuses(server: Any) -> None:
        raise ConfigurationError("no")

    with pytest.raises(ConfigurationError):
        guard.guarded(refuses)(None)


def test_the_users_error_is_the_users() -> None:
    """What the user's hook raises is neither swallowed nor changed."""

    def theirs(server: Any) -> None:
        raise KeyError("theirs")

    cfg = Config()
    conf.install(cfg)
    cfg.set("on_exit", theirs)
    with pytest.raises(KeyError, match="theirs"):
        cfg.on_exit(SimpleNamespace())


def test_install_without_a_configuration_says_what_to_do() -> None:
    """Outside a configuration file there is nothing to install into."""
    with pytest.raises(
        ConfigurationError, match="call it from a configuration file, or give it the Config"
    ):
        conf.install({})


def test_the_configuration_module_brings_no_setting_by_accident() -> None:
    """gunicorn would take each of its globals that is named like a setting for one."""
    cfg = Config()
    conf.install(cfg)
    assert conf.__all__ == []
    assert not [name for name in vars(conf) if conf._is_setting(cfg, name)]
