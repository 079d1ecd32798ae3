"""A line of text is a request; what cannot be sent is refused with its line."""

from __future__ import annotations

import contextlib
from collections import Counter

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gunicorn_grace.rehearsal.load.requests import (
    PIECES,
    PlannedRequest,
    in_turn,
    parse_line,
    parse_lines,
)

pytestmark = pytest.mark.once


def no_file(name: str) -> bytes:
    raise FileNotFoundError(2, "No such file or directory", name)


FORM = ("Content-Type", "application/x-www-form-urlencoded")
JSON = ("Content-Type", "application/json")


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        ("/", PlannedRequest("/")),
        ("/ 3", PlannedRequest("/", weight=3)),
        ("GET /a?b=c", PlannedRequest("/a?b=c")),
        ("HEAD /a 2", PlannedRequest("/a", "HEAD", weight=2)),
        ("POST /a", PlannedRequest("/a", "POST")),
        ("POST /a a=1&b=2", PlannedRequest("/a", "POST", b"a=1&b=2", (FORM,))),
        ("""POST /a '{"a": 1}' 4""", PlannedRequest("/a", "POST", b'{"a": 1}', (JSON,), 4)),
        (
            "PUT /a @file upload=2",
            PlannedRequest("/a", "PUT", b"content of file", (FORM,), upload=2),
        ),
        (
            'GET /a read=1.5 "Accept: text/csv"',
            PlannedRequest("/a", headers=(("Accept", "text/csv"),), read=1.5),
        ),
        (
            'POST /a x "Content-Type: text/plain" 2',
            PlannedRequest("/a", "POST", b"x", (("Content-Type", "text/plain"),), weight=2),
        ),
        ("GET /a 3 read=1", PlannedRequest("/a", weight=3, read=1.0)),
        ("POST /a 5 1", PlannedRequest("/a", "POST", b"5", (FORM,))),
    ],
)
def test_a_line_is_a_request(line: str, request_: PlannedRequest) -> None:
    """Method, path, body, weight, headers and options, each where it may stand."""
    assert parse_line(line, lambda name: f"content of {name}".encode()) == request_


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("x", "'x' is not a path"),
        ("POST", "'POST' is not a path"),
        ("POST x", "'x' is not a path"),
        ("/a x y", "'y' is a second body"),
        ("/a upload=2", "upload 2 of /a has no body"),
        ("/a x upload=soon", "'soon' is not a number of seconds"),
        ("/a read=-1", "read -1 of /a is not 0 s or more"),
        ("/a read=nan", "read nan of /a is not 0 s or more"),
        ("/a 0", "weight 0 of /a is not between 1 and"),
        ("/a @nowhere", "@nowhere: No such file or directory"),
        ("/a 'x", "No closing quotation"),
        ("'/a b'", "path '/a b' or host None cannot be sent"),
    ],
)
def test_a_wrong_line_is_told_with_its_number(line: str, said: str) -> None:
    """The file, the number of the line, and what is wrong with it."""
    with pytest.raises(ValueError) as caught:
        parse_lines(f"# comment\n\n{line}\n", "urls.txt", no_file)
    assert str(caught.value).startswith("urls.txt:3: ")
    assert said in str(caught.value)


def test_a_file_without_a_request_is_refused() -> None:
    """Comments only: there would be no load."""
    with pytest.raises(ValueError, match=r"urls\.txt: it contains no request"):
        parse_lines("# nothing\n\n", "urls.txt", no_file)


@given(st.text(max_size=60))
def test_any_text_is_a_request_or_an_error(text: str) -> None:
    """No text ends in anything but requests that can be sent, or a ValueError."""
    with contextlib.suppress(ValueError):
        found = parse_lines(text, "urls.txt", no_file)
        assert found
        assert [
            request.head(h11.Connection(h11.CLIENT), "", close=True, host=None) for request in found
        ]


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_each_request_comes_as_often_as_its_weight(weights: list[int]) -> None:
    """In one round, every request comes exactly so often, and never long before its time."""
    requests = [
        PlannedRequest(f"/{number}", weight=weight) for number, weight in enumerate(weights)
    ]
    order = in_turn(requests)
    assert Counter(order) == {request: request.weight for request in requests}
    for request in requests:
        for end in range(len(order) + 1):
            due = request.weight * end / len(order)
            assert abs(order[:end].count(request) - due) <= len(requests)


def test_requests_of_the_same_weight_come_in_turn() -> None:
    """As ``--path`` given three times always did."""
    one, two, three = PlannedRequest("/1"), PlannedRequest("/2"), PlannedRequest("/3")
    assert in_turn([one, two, three]) == [one, two, three]


def test_too_great_weights_are_refused() -> None:
    """A round of millions would be a list of millions."""
    with pytest.raises(ValueError, match="the weights come to 20000"):
        in_turn([PlannedRequest("/", weight=10_000), PlannedRequest("/a", weight=10_000)])


def test_an_upload_goes_in_pieces() -> None:
    """All of the body, in ten pieces at most; at once where it is not an upload."""
    slow = PlannedRequest("/", "PUT", bytes(range(95)), upload=1.0)
    assert len(list(slow.pieces())) == PIECES
    assert b"".join(slow.pieces()) == slow.body
    assert list(PlannedRequest("/", "PUT", b"abc", upload=1.0).pieces()) == [b"a", b"b", b"c"]
    assert list(PlannedRequest("/", "PUT", b"abc").pieces()) == [b"abc"]
    assert list(PlannedRequest("/").pieces()) == []


def test_a_method_that_expects_a_body_says_that_it_is_empty() -> None:
    """RFC 9110, 8.6: Content-Length: 0 for POST, nothing for GET."""
    for method, said in (("POST", True), ("GET", False)):
        head = PlannedRequest("/", method).head(
            h11.Connection(h11.CLIENT), "", close=True, host="me"
        )
        assert (b"Content-Length: 0" in head) is said
        assert b"Host: me" in head
