"""The HTML page of a rehearsal, without a browser; tests/functional/test_report_page.py looks at it
in one."""

from __future__ import annotations

import base64
import hashlib
import re
from dataclasses import replace
from datetime import datetime, timezone
from html.parser import HTMLParser
from importlib import resources

import pytest
from hypothesis import given
from hypothesis import strategies as some

from gunicorn_grace.rehearsal.command.contenders import contender_named
from gunicorn_grace.rehearsal.load.tally import ConnectionKind, RequestOutcome
from gunicorn_grace.rehearsal.plan import Contender, Plan
from gunicorn_grace.rehearsal.report import labels
from gunicorn_grace.rehearsal.report import page as page_module
from gunicorn_grace.rehearsal.report import text as report_text
from gunicorn_grace.rehearsal.report.advice import advice
from gunicorn_grace.rehearsal.report.labels import Axis
from gunicorn_grace.rehearsal.report.page import MOST_LOSSES, page
from gunicorn_grace.rehearsal.report.phases import phases
from gunicorn_grace.rehearsal.report.picture import MOST_LANES
from gunicorn_grace.rehearsal.result import Gone, Life, Result
from support.rehearsed import DELETED, plain, record, result

pytestmark = pytest.mark.once

MADE = datetime(2026, 7, 1, 12, tzinfo=timezone.utc)
#: Elements without an end tag, of those in the page.
VOID = {"meta"}


class Page(HTMLParser):
    """The page as a browser reads it: elements with their attributes, and the text of each."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)
        assert self._open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self._open[-1], data.strip()))

    def all(self, tag: str, kind: str | None = None) -> list[dict[str, str | None]]:
        """The attributes of the elements of this name, and of this class if given."""
        return [
            a
            for name, a in self.elements
            if name == tag and (kind is None or kind in (a.get("class") or "").split())
        ]

    def text(self, tag: str) -> list[str]:
        return [text for name, text in self.texts if name == tag]


def rendered(*results: Result) -> Page:
    return Page(page(results, made=MADE))


def three() -> list[Result]:
    return [
        plain(0.1, 0.2, 2.9),
        result(contender_named("sleep:15"), exited=15.4, seconds=17),
        result(),
    ]


def test_the_page_tells_what_the_terminal_tells() -> None:
    """Heading, verdict, notes and the comparison in the same words and numbers."""
    results = three()
    shown = rendered(*results)
    text = " ".join(text for _, text in shown.texts)
    assert report_text.verdict(results) in text
    assert all(note in text for note in report_text.notes(results))
    for row in report_text.rows(results):
        assert row.label in shown.text("th")
        cells = [text.replace("\u00a0", " ") for text in shown.text("td")]
        assert all(cell in cells for cell in row.cells)
    assert shown.text("title")[0] == "Rehearsal of app:app"
    assert "2026-07-01 12:00 UTC" in text


def test_each_contender_is_drawn_on_the_same_axis() -> None:
    """Three pictures with the same seconds from end to end, each with its numbers in a table behind
    it."""
    shown = rendered(*three())
    boxes = [svg["viewbox"] for svg in shown.all("svg") if "viewbox" in svg]
    assert len(boxes) == 3
    assert len({tuple((box or "").split()[:3:2]) for box in boxes}) == 1
    assert (boxes[0] or "").split()[0] == "-1"
    assert shown.text("summary").count("The numbers behind the picture") == 3


def test_losses_are_marked_where_they_happened() -> None:
    """One mark for each step with a loss, at its second, and a bar with its outcome's class."""
    shown = rendered(plain(0.15, 0.17, 2.95))
    marks = [float(mark["x"] or "nan") for mark in shown.all("rect", "lost-mark")]
    assert marks == pytest.approx([0.1, 2.9])
    assert len(shown.all("rect", "refused")) == 2
    assert rendered(result()).all("rect", "lost-mark") == []


def test_the_heights_of_the_bars_are_the_counts() -> None:
    """Twice as many requests, twice the height; all of a step are stacked on one another down to
    the line."""
    shown = rendered(
        result(
            lost=[record(2.01, RequestOutcome.RESET), record(2.02, RequestOutcome.RESET)],
            plan=Plan("app:app"),
        )
    )
    (reset,) = shown.all("rect", "reset")
    ok = next(bar for bar in shown.all("rect", "ok") if bar["x"] == reset["x"])
    assert float(reset["height"] or 0) == pytest.approx(2 * float(ok["height"] or 0), abs=0.02)
    assert float(reset["y"] or 0) + float(reset["height"] or 0) == pytest.approx(
        float(ok["y"] or 0), abs=0.02
    )


def test_phases_readiness_and_ends_are_drawn() -> None:
    """The plugin's phases as its log has them, the platform's view of readiness, the last request
    and the exit."""
    shown = rendered(plain(0.1), result())
    titles = shown.text("title")
    assert "instance 3: lame duck\n0.0 to 5.0 s" in titles
    assert "instance 3: draining\n5.0 to 5.6 s" in titles
    assert "instance 3: stopping\n0.0 to 0.4 s" in titles
    assert "instance 3: ready\n-1.0 to 1.0 s" in titles
    assert "instance 3: gone, exit code 0\nat 5.6 s" in titles
    labels = shown.text("text")
    assert any("last request" in label for label in labels)
    assert "gone 5.6 s" in labels
    assert "routing knows 3.0 s" in labels


def test_every_shape_explains_itself_without_a_script() -> None:
    """What the pointer shows is in the page: one title for each step in which something was under
    way."""
    titles = rendered(plain(0.15)).text("title")
    assert any(
        re.match(r"0\.1 to 0\.2 s\n\d ok, 1 refused\nin flight: \d", title) for title in titles
    )


def names(gone: Gone, life: Life | None = None) -> list[tuple[str, float, float]]:
    return [(span.kind, span.start, span.end) for span in phases(gone, life)]


def test_phases_are_read_from_what_was_said() -> None:
    """With and without the plugin, with and without a hook, and for one that has not gone yet."""
    (gone,) = result().gone
    assert names(gone) == [("lame-duck", 0.01, 5.0), ("draining", 5.0, 5.6)]
    silent = replace(gone, events=())
    assert names(silent) == [("stopping", 0.0, 5.6)]
    slept = replace(silent, sigterm=15.0, pre_stop_done=15.0, exited=15.5)
    assert names(slept) == [("prestop", 0.0, 15.0), ("stopping", 15.0, 15.5)]
    assert names(replace(gone, exited=None)) == [("lame-duck", 0.01, 5.0), ("draining", 5.0, 5.5)]
    assert names(replace(silent, sigterm=None, exited=None)) == []


def test_the_verdict_has_its_remedy_or_its_gain() -> None:
    """The page says it where it says the verdict."""
    for run in (result(), plain(1.0)):
        assert advice([run]) in rendered(run).text("p")


def test_a_long_name_is_not_broken() -> None:
    """The terminal has to break it, and the page has the whole width of the screen."""
    app = "organisation.department.service.application:create_application('production', debug=0)"
    assert f"{app}: 3 instances scaled" in rendered(result(plan=Plan(app, rate=10))).text("p")[0]


def test_one_contender_is_not_side_by_side() -> None:
    """The heading of the table says what is in it."""
    assert "Side by side" in rendered(*three()).text("h2")
    assert "Figures" in rendered(result()).text("h2")
    assert "Side by side" not in rendered(result()).text("h2")


def test_axes_have_units_and_lanes_have_names() -> None:
    """Seconds across, requests upwards; the name of a phase stands on its lane if it has room."""
    texts = rendered(result()).text("text")
    assert "2 requests" in texts
    assert {"0 s", "2 s", "4 s"} <= set(texts)
    assert {"instance 3", "lame duck"} <= set(texts)
    assert "draining" not in texts, "0.6 s are too short for the word"
    (gone,) = result().gone
    long = replace(gone, name="x" * 99, exited=5.6)
    assert "x" * 27 + "..." in rendered(result(gone=(long,), lives=())).text("text")


def test_the_page_explains_its_rows() -> None:
    """What is meant by each row that does not explain itself."""
    shown = rendered(result())
    assert dict(zip(shown.text("dt"), shown.text("dd"), strict=True)) == report_text.MEANINGS


def test_many_instances_are_drawn_by_the_first_and_the_last_to_go() -> None:
    """Twenty lanes would be no picture: six are drawn, and the page says how many are not."""
    gone = [replace(result().gone[0], name=f"instance {n}", exited=5 + n / 10) for n in range(20)]
    shown = rendered(result(gone=tuple(gone), lives=()))
    lanes = {text for text in shown.text("text") if text.startswith("instance ")}
    assert lanes == {f"instance {n}" for n in (0, 1, 2, 17, 18, 19)}
    assert f"{20 - MOST_LANES} more went between them" in " ".join(shown.text("figcaption"))


def test_of_thousands_of_losses_the_first_are_listed() -> None:
    """The page stays small, and says of how many."""
    shown = rendered(plain(*(n / 1000 for n in range(2000))))
    assert f"Lost requests: 2000, the first {MOST_LOSSES}" in shown.text("summary")
    assert len(shown.html) < 2_000_000


INJECTED = (
    "</title></svg><script>alert(1)</script><img src=//evil.example onerror=alert(1)> \"' "
    "{{ 7 * 7 }}"
)


def test_nothing_that_others_wrote_becomes_markup() -> None:
    """Application, contender, instance, log line, path, error and hook: all are shown, none of them
    acts."""
    hostile = result(
        Contender(INJECTED),
        lost=[
            record(
                1.0,
                RequestOutcome.RESET,
                path=INJECTED,
                error=INJECTED,
                endpoint=INJECTED,
                method=INJECTED,
            )
        ],
        plan=Plan(INJECTED, rate=10),
        fell_behind=INJECTED,
    )
    (gone,) = hostile.gone
    gone = replace(
        gone, name=INJECTED, events=((1.0, INJECTED),), pre_stop_problem=INJECTED, exit_code=3
    )
    hostile = replace(hostile, gone=(gone,), lives=())
    shown = rendered(hostile)
    assert len(shown.all("script")) == 1
    assert shown.all("img") == []
    assert "49" not in " ".join(shown.text("h1"))
    assert shown.text("h1")[0] == f"Rehearsal of {INJECTED}"
    assert not any(name.startswith("on") for _, attributes in shown.elements for name in attributes)
    assert shown.html.count(INJECTED) == 0


def test_the_page_asks_the_network_for_nothing() -> None:
    """No address in it, nothing that loads; its policy allows one style and one script, by their
    hashes."""
    shown = rendered(*three())
    assert [
        tag
        for tag, _ in shown.elements
        if tag in ("link", "img", "iframe", "object", "image", "use")
    ] == []
    assert not any(
        key in ("src", "href", "style") for _, attributes in shown.elements for key in attributes
    )
    assert re.findall(r"https?://|url\(|@import", shown.html.replace("http://127", "")) == []
    (policy,) = [
        m["content"] or ""
        for m in shown.all("meta")
        if m.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy.startswith("default-src 'none';")
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", shown.html, re.S)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy


def test_an_interrupted_run_can_be_drawn() -> None:
    """Ctrl-C a moment after the deletion: nothing gone, nothing ended, and a page all the same."""
    begun = result(
        exited=None, events=(), complete=False, tally=replace(result().tally, records=[]), lives=()
    )
    text = page([begun], made=MADE, interrupted=True)
    assert "Interrupted." in text
    assert Page(text).all("svg", "picture")


def test_a_thousand_steps_and_a_minute_fit_the_axis() -> None:
    """Ticks are round numbers, at most fifteen of them, and the first and last lie inside."""
    for low, high in ((-1, 7), (-2, 19), (0, 61), (-3, 240), (-10, 3600)):
        ticks = Axis(low, high).ticks()
        assert 3 <= len(ticks) <= 16
        assert all(0 <= percent <= 100 for percent, _, _ in ticks)
    assert Axis(-2, 8).percent(3) == 50


# -- colours ----


CSS = (
    resources.files(page_module.__package__ or "").joinpath("page.css").read_text(encoding="utf-8")
)


def colours(dark: bool) -> dict[str, tuple[float, float, float]]:
    """The named colours of a theme, as linear red, green and blue."""
    light_part, dark_part = re.findall(r":root \{(.*?)\}", CSS, re.S)
    found = dict(re.findall(r"--([\w-]+): #([0-9a-f]{6});", light_part))
    if dark:
        found.update(re.findall(r"--([\w-]+): #([0-9a-f]{6});", dark_part))
    return {name: linear(value) for name, value in found.items()}


def linear(value: str) -> tuple[float, float, float]:
    red, green, blue = (int(value[i : i + 2], 16) / 255 for i in (0, 2, 4))
    return _linear(red), _linear(green), _linear(blue)


def _linear(part: float) -> float:
    # WCAG 2.2, relative luminance.
    return part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4


def contrast(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    """WCAG 2.2, contrast ratio."""
    lights = sorted(0.2126 * r + 0.7152 * g + 0.0722 * b for r, g, b in (one, other))
    return (lights[1] + 0.05) / (lights[0] + 0.05)


#: Machado, Oliveira and Fernandes, A Physiologically-based Model for Simulation of Color Vision
#: Deficiency (2009), severity 1.
BLIND = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}


def lab(colour: tuple[float, float, float]) -> tuple[float, float, float]:
    """CIELAB, D65."""
    r, g, b = colour
    xyz = (
        (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.95047,
        0.2126 * r + 0.7152 * g + 0.0722 * b,
        (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.08883,
    )
    x, y, z = (v ** (1 / 3) if v > 0.008856 else 7.787 * v + 16 / 116 for v in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def difference(one: tuple[float, float, float], other: tuple[float, float, float]) -> float:
    return sum((a - b) ** 2 for a, b in zip(lab(one), lab(other), strict=True)) ** 0.5


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_and_shapes_stand_out(dark: bool) -> None:
    """WCAG 2.2: 4.5 to 1 for text (1.4.3), 3 to 1 for what has to be seen to understand a picture
    (1.4.11)."""
    theme = colours(dark)
    for text in ("ink", "soft", "good", "bad"):
        for ground in ("paper", "card"):
            assert contrast(theme[text], theme[ground]) >= 4.5, (text, ground)
    for phase in ("lame-duck", "draining", "stopping", "prestop"):
        assert contrast(theme["paper"], theme[phase]) >= 4.5, f"the name of the phase {phase}"
    for shape in (
        *(outcome.value for outcome in RequestOutcome),
        "lame-duck",
        "draining",
        "stopping",
        "prestop",
        "ready",
    ):
        assert contrast(theme[shape], theme["card"]) >= 3, shape


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("kind", ["trichromacy", *BLIND])
def test_a_loss_differs_from_an_answer_for_every_eye(dark: bool, kind: str) -> None:
    """And so do the phases that lie beside each other. A difference of 15 in CIELAB is seen at a
    glance."""
    theme = colours(dark)

    def seen(name: str) -> tuple[float, float, float]:
        colour = theme[name]
        if kind == "trichromacy":
            return colour
        r, g, b = (
            min(1.0, max(0.0, sum(w * c for w, c in zip(row, colour, strict=True))))
            for row in BLIND[kind]
        )
        return r, g, b

    losses = [outcome.value for outcome in RequestOutcome if outcome is not RequestOutcome.OK]
    pairs = [("ok", loss) for loss in losses] + [("refused", "reset"), ("prestop", "stopping")]
    pairs += [("lame-duck", "draining"), ("prestop", "lame-duck"), ("ready", "lame-duck")]
    pairs += [(loss, "lame-duck") for loss in losses] if kind == "trichromacy" else []
    close = {
        pair: round(d, 1) for pair in pairs if (d := difference(seen(pair[0]), seen(pair[1]))) < 15
    }
    assert close == {}


def test_kinds_of_connections_and_deleted_endpoints_are_listed_with_their_losses() -> None:
    """The table of losses says when, on what connection, to whom and why."""
    shown = rendered(
        plain(),
        result(
            lost=[
                record(
                    2.5,
                    RequestOutcome.TIMEOUT,
                    kind=ConnectionKind.KEPT,
                    endpoint=DELETED,
                    error="slow",
                )
            ]
        ),
    )
    cells = shown.text("td")
    at = cells.index("2.50")
    assert cells[at : at + 7] == ["2.50", "2.50", "timeout", "kept", "GET /", DELETED, "slow"]


@given(some.floats(0, 20), some.floats(0, 2), some.floats(0, 20), some.floats(0, 20))
def test_names_of_moments_never_cover_each_other(
    sigterm: float, stop: float, last: float, unrouted: float
) -> None:
    """Whenever SIGTERM, the end, the last request and the routing's knowledge come."""
    run = result(lost=[record(last, RequestOutcome.REFUSED, endpoint=DELETED)], seconds=21)
    (gone,) = run.gone
    run = replace(
        run,
        gone=(replace(gone, sigterm=sigterm, exited=sigterm + stop, events=()),),
        lives=tuple(replace(life, unrouted=unrouted) for life in run.lives),
    )
    placed = labels.marks_of(run, Axis(-1, 22))
    spans: list[tuple[int, float, float]] = []
    for mark in placed:
        width = labels._width(mark.label)
        left = mark.percent if mark.anchor == "start" else mark.percent - width
        spans.append((mark.row, left, left + width))
    for index, (row, left, right) in enumerate(spans):
        assert not any(
            row == r and left < end and start < right for r, start, end in spans[index + 1 :]
        )
    assert min(mark.row for mark in placed) == 0
    assert {"deleted", "SIGTERM", "gone"} <= {
        name
        for mark in placed
        for name in mark.label.rpartition(" s")[0].rpartition(" ")[0].split(", ")
    }
