"""The Deployment controller's arithmetic: what a roll-out does next."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_grace.rehearsal.kubernetes.rollout import Counts, Rollout, Step, amount, next_step

pytestmark = pytest.mark.once

AMOUNTS = st.one_of(st.integers(0, 12).map(str), st.integers(0, 120).map("{}%".format))


@pytest.mark.parametrize(
    ("surge", "missing", "wanted", "limits"),
    [
        ("25%", "25%", 10, (3, 2)),  # rounded up, rounded down
        ("25%", "25%", 3, (1, 0)),
        ("1", "0", 3, (1, 0)),
        ("0", "0", 3, (0, 1)),  # else nothing would move
        ("0%", "10%", 3, (0, 1)),
        ("100%", "100%", 4, (4, 4)),
        ("2", "9", 4, (2, 4)),
    ],
)
def test_percentages_are_rounded_as_kubernetes_does(
    surge: str, missing: str, wanted: int, limits: tuple[int, int]
) -> None:
    """maxSurge up, maxUnavailable down, and one may be missing where both come to nothing."""
    assert Rollout(surge, missing).limits(wanted) == limits


@pytest.mark.parametrize("text", ["", "-1", "1.5", "x", "25 %", "%", "٣"])
def test_what_is_no_number_of_pods_is_refused(text: str) -> None:
    """Neither a number nor a percentage: said with its name, before anything is started."""
    with pytest.raises(ValueError, match="maxSurge"):
        Rollout(max_surge=text)
    with pytest.raises(ValueError, match="maxUnavailable"):
        Rollout(max_unavailable=text)


@given(
    wanted=st.integers(1, 40),
    surge=AMOUNTS,
    missing=AMOUNTS,
    in_order=st.booleans(),
    seed=st.randoms(),
)
def test_a_rollout_ends_and_keeps_to_its_limits(
    wanted: int, surge: str, missing: str, in_order: bool, seed: st.DataObject
) -> None:
    """Whatever the limits, and whenever new pods become available: every old pod is replaced, there
    are never more pods than the surge allows, and never fewer available than may be missing."""
    rollout = Rollout(surge, missing, in_order=in_order)
    most, least = wanted + rollout.limits(wanted)[0], wanted - rollout.limits(wanted)[1]
    old, starting, available = wanted, 0, 0
    for _ in range(20 * wanted + 20):
        step = next_step(wanted, rollout, Counts(old, old, starting + available, available))
        old -= step.delete
        starting += step.create
        assert old + starting + available <= most
        assert old + available >= least
        assert old >= 0
        if step == Step():
            if not old and available == wanted:
                return
            assert starting, "nothing is under way and nothing is done"
        ready = seed.randint(0, starting) if step != Step() else seed.randint(1, starting)  # type: ignore[attr-defined]
        starting, available = starting - ready, available + ready
    pytest.fail("it never ends")


def test_old_pods_that_are_not_available_go_first() -> None:
    """Two of four old pods are broken: they are deleted without waiting for a new one, the others
    are not."""
    assert next_step(4, Rollout("1", "1"), Counts(4, 2, 1, 0)) == Step(delete=1)
    assert next_step(4, Rollout("0", "0"), Counts(4, 4, 0, 0)) == Step(delete=1)


def test_a_stateful_set_waits_until_the_old_pod_is_gone() -> None:
    """One that is being deleted keeps its name, so that nothing happens before its end."""
    rollout = Rollout(in_order=True)
    assert next_step(3, rollout, Counts(3, 3, 0, 0)) == Step(delete=1)
    assert next_step(3, rollout, Counts(2, 2, 0, 0, leaving=1)) == Step()
    assert next_step(3, rollout, Counts(2, 2, 0, 0)) == Step(create=1)
    assert next_step(3, rollout, Counts(2, 2, 1, 0)) == Step()
    assert next_step(3, rollout, Counts(2, 2, 1, 1)) == Step(delete=1)


def test_min_ready_seconds_are_checked() -> None:
    """Negative ones are refused."""
    with pytest.raises(ValueError, match="minReadySeconds -1"):
        Rollout(min_ready=-1)


def test_amount_names_what_is_wrong() -> None:
    """The message has the value and both forms."""
    with pytest.raises(
        ValueError, match=r"maxSurge 'many' is neither a number of pods \(1\) nor a share"
    ):
        amount("many", 3, up=True, name="maxSurge")
