"""The phases, the table of transitions, and the errors that carry their evidence."""

from __future__ import annotations

import itertools

import pytest

from gunicorn_grace import errors
from gunicorn_grace.shared.phase import (
    TRANSITIONS,
    Phase,
    check_transition,
    is_terminating,
)

pytestmark = pytest.mark.once

# DESIGN section 2, and 8 for those that skip a phase.
ALLOWED = {
    ("STARTING", "SERVING"),
    ("STARTING", "STOPPED"),
    ("SERVING", "LAME_DUCK"),
    ("SERVING", "DRAINING"),
    ("SERVING", "STOPPED"),
    ("LAME_DUCK", "SERVING"),
    ("LAME_DUCK", "DRAINING"),
    ("LAME_DUCK", "STOPPED"),
    ("DRAINING", "STOPPED"),
}


@pytest.mark.parametrize(("current", "wanted"), list(itertools.product(Phase, Phase)))
def test_the_table_allows_what_the_design_does_and_nothing_else(
    current: Phase, wanted: Phase
) -> None:
    """Of 25 pairs of phases, 9 are transitions; each other one is an error that names both."""
    if (str(current), str(wanted)) in ALLOWED:
        check_transition(current, wanted)
        return
    with pytest.raises(
        errors.TransitionError, match=f"^no transition from {current} to {wanted}$"
    ) as caught:
        check_transition(current, wanted)
    assert (caught.value.current, caught.value.wanted) == (current, wanted)


def test_the_table_cannot_be_changed() -> None:
    """Every phase has a row, and a row is nobody's to edit."""
    assert set(TRANSITIONS) == set(Phase)
    with pytest.raises(TypeError):
        TRANSITIONS[Phase.STOPPED] = frozenset({Phase.SERVING})  # type: ignore[index]


def test_the_order_of_the_values_is_the_order_in_time() -> None:
    """The shared memory holds these numbers, and ``>=`` asks how far the shutdown is."""
    assert [int(p) for p in Phase] == [0, 1, 2, 3, 4]
    assert [str(p) for p in Phase] == ["STARTING", "SERVING", "LAME_DUCK", "DRAINING", "STOPPED"]


def test_terminating_and_serving_overlap_in_lame_duck_and_draining() -> None:
    """An instance that goes away still answers: that is the point of the two phases."""
    assert [p for p in Phase if is_terminating(p)] == [
        Phase.LAME_DUCK,
        Phase.DRAINING,
        Phase.STOPPED,
    ]


@pytest.mark.parametrize(
    ("error", "also", "evidence", "message"),
    [
        (
            errors.SettingError("grace_min_delay", "x", "is not a number", "give one"),
            ValueError,
            {"name": "grace_min_delay", "value": "x"},
            "grace_min_delay = 'x' is not a number: give one",
        ),
        (
            errors.UnknownSetting("grace_dely", "grace_delay"),
            AttributeError,
            {"name": "grace_dely", "nearest": "grace_delay"},
            "unknown setting grace_dely: did you mean grace_delay?",
        ),
        (
            errors.UnknownSetting("grace_dely", None),
            AttributeError,
            {"name": "grace_dely", "nearest": None},
            "unknown setting grace_dely: see docs/reference/settings.md for the list of settings",
        ),
        (errors.ConfigurationError("a and b"), RuntimeError, {}, "a and b"),
        (errors.StateError("too short"), errors.GraceError, {}, "too short"),
        (
            errors.TransitionError(Phase.STOPPED, Phase.SERVING),
            errors.GraceError,
            {"current": Phase.STOPPED, "wanted": Phase.SERVING},
            "no transition from STOPPED to SERVING",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_errors_have_one_root_and_carry_their_evidence(
    error: Exception, also: type[Exception], evidence: dict[str, object], message: str
) -> None:
    """``except GraceError`` is enough, the built-in kin that gunicorn looks for is there, and
    values are attributes."""
    assert isinstance(error, errors.GraceError)
    assert isinstance(error, also)
    assert {name: getattr(error, name) for name in evidence} == evidence
    assert str(error) == message
