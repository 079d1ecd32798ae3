"""What the answers to probes come to, and how a probe is written."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_grace.rehearsal.kubernetes.probing import KubeletProbe, Thresholds

pytestmark = pytest.mark.once


@given(st.lists(st.booleans(), max_size=40), st.integers(1, 4), st.integers(1, 4))
def test_a_verdict_takes_as_many_answers_in_a_row_as_its_threshold(
    answers: list[bool], failures: int, successes: int
) -> None:
    """At any time: the verdict is the last answer if it came that often in a row, and none
    otherwise."""
    thresholds = Thresholds(
        KubeletProbe("/", failure_threshold=failures, success_threshold=successes)
    )
    for number, answer in enumerate(answers, 1):
        needed = successes if answer else failures
        row = answers[max(0, number - needed) : number]
        expected = answer if len(row) == needed and set(row) == {answer} else None
        assert thresholds.count(answer) is expected


@pytest.mark.parametrize(
    ("text", "probe"),
    [
        ("/readyz", KubeletProbe("/readyz")),
        ("/r?x=1 period=5", KubeletProbe("/r?x=1", period=5.0)),
        (
            "/r delay=2 success=2 failure=1 timeout=0.5 period=0.25",
            KubeletProbe("/r", 0.25, 0.5, 1, 2, 2.0),
        ),
    ],
)
def test_a_probe_is_a_path_with_options(text: str, probe: KubeletProbe) -> None:
    """What is not given is as in Kubernetes."""
    assert KubeletProbe.parse(text) == probe


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("readyz", "does not begin with a slash"),
        ("/r period", "'period' is not one of period=, timeout=, failure=, success=, delay="),
        ("/r every=5", "'every=5' is not one of"),
        ("/r period=x", "'x' is not a number"),
        ("/r failure=1.5", "'1.5' is not a number"),
        ("/r period=0", "period 0 s is not above 0"),
        ("/r timeout=nan", "timeout nan s is not above 0"),
        ("/r failure=0", "failure threshold 0 is not 1 or more"),
        ("/r delay=-1", "delay -1 s is negative"),
        ("/\x01", "cannot be sent"),
    ],
)
def test_a_probe_that_cannot_be_sent_is_refused(text: str, said: str) -> None:
    """With the value, and what it may be."""
    with pytest.raises(ValueError) as caught:
        KubeletProbe.parse(text)
    assert said in str(caught.value)


@given(st.text(max_size=40))
def test_any_text_is_a_probe_or_an_error(text: str) -> None:
    """Whatever is typed, a ValueError is the worst that comes of it."""
    with contextlib.suppress(ValueError):
        assert KubeletProbe.parse(f"/{text}").path.startswith("/")
