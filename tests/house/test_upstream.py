"""How the comparison of gunicorn's own tests reads their results."""

from __future__ import annotations

from long import upstream

JUNIT = """<testsuites><testsuite name="pytest">
<testcase classname="tests.test_a" name="test_one[x-1]" file="tests/test_a.py" line="3"/>
<testcase classname="tests.test_a.TestB" name="test_two" file="tests/test_a.py"><failure message="no"/></testcase>
<testcase classname="tests.test_a.TestB" name="test_three" file="tests/test_a.py"><skipped/></testcase>
<testcase classname="tests.test_a.TestB" name="test_four" file="tests/test_a.py"><error/></testcase>
</testsuite></testsuites>"""


def test_each_test_is_named_as_pytest_takes_it() -> None:
    """So that one that came out differently can be run again by its name."""
    assert upstream.outcomes(JUNIT) == {
        "tests/test_a.py::test_one[x-1]": "passed",
        "tests/test_a.py::TestB::test_two": "failed",
        "tests/test_a.py::TestB::test_three": "skipped",
        "tests/test_a.py::TestB::test_four": "error",
    }


def test_a_difference_is_doubtful_and_so_is_a_failure_both_ways() -> None:
    """Only what passed both ways, or was skipped both ways, is beyond doubt; a test that one of
    them lacks is not."""
    plain = {
        "same": "passed",
        "skipped": "skipped",
        "broken": "failed",
        "differs": "passed",
        "gone": "passed",
    }
    grace = {
        "same": "passed",
        "skipped": "skipped",
        "broken": "failed",
        "differs": "skipped",
        "new": "passed",
    }
    assert upstream.doubtful(plain, grace) == {
        "broken": ("failed", "failed"),
        "differs": ("passed", "skipped"),
        "gone": ("passed", "missing"),
        "new": ("missing", "passed"),
    }
