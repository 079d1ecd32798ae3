"""What a rehearsal writes, end to end: one real run, its page in a real browser, its JSON against
the schema.

The browser is Chromium, headless; where there is none, the tests that need it are skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path

import jsonschema
import pytest

from gunicorn_grace.rehearsal.command.contenders import contender_named
from gunicorn_grace.rehearsal.processes import procfs
from gunicorn_grace.rehearsal.report import schema
from gunicorn_grace.rehearsal.report import text as report_text
from gunicorn_grace.rehearsal.report.page import page
from support.paths import DOCS
from support.rehearsed import plain, result

pytestmark = [pytest.mark.once, pytest.mark.long]

pytest_plugins = "pytester"

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium on the PATH: nothing to look at the page with"
)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
MARK = "REHEARSAL_PAGE"
PAGE = DOCS / "reference/rehearsal.md"

APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""

REHEARSE = (sys.executable, "-m", "gunicorn_grace.cli", "rehearse", "app:app")
SHORT = ("--instances", "2", "--rate", "40", "--lag", "0.5", "--delay", "1")
#: A delay as short as these want; on a day like any other it is never ended before grace_min_delay.
SETTINGS = {"GRACE_MIN_DELAY": "0"}


@pytest.fixture
def folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the others have, with ``SETTINGS``."""
    for name, value in SETTINGS.items():
        monkeypatch.setenv(name, value)
    return folder


def rehearse(folder: Path, *args: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*REHEARSE, *args], cwd=folder, capture_output=True, text=True, timeout=150, **options
    )


# -- the browser ----


Browse = Callable[..., str]


@pytest.fixture
def browse(tmp_path: Path) -> Iterator[Browse]:
    """Runs the browser with further arguments, and returns what it printed. None of its processes
    is left."""
    profile = str(tmp_path / "profile")

    def run(*args: str) -> str:
        done = subprocess.run(
            [str(BROWSER), *FLAGS, f"--user-data-dir={profile}", *args],
            env={**os.environ, MARK: profile, "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            timeout=120,
            start_new_session=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    yield run
    procfs.end_marked(MARK, profile)


#: Put behind the page's own script, in a copy whose policy does not forbid it: asks what the
#: browser made of the page.
PROBE = """<script type="module">
const found = {
  width: document.documentElement.clientWidth,
  overflow: document.documentElement.scrollWidth,
  titles: document.querySelectorAll("svg title").length,
  tips: document.querySelectorAll("svg [data-tip]").length,
  background: getComputedStyle(document.body).backgroundColor,
  font: Math.min(...[...document.querySelectorAll("svg text")].map(t => parseFloat(getComputedStyle(t).fontSize))),
  resources: performance.getEntriesByType("resource").map(r => r.name),
  outside: [], overlaps: [],
  figures: [...document.querySelectorAll(".figures")].map(t => t.scrollWidth - t.parentNode.clientWidth),
  times: 0,
};
for (const details of document.querySelectorAll("details:not(.behind)")) details.open = true;
const range = document.createRange();
for (const cell of document.querySelectorAll(".left td:first-child")) {
  range.selectNodeContents(cell);
  found.times = Math.max(found.times, new Set([...range.getClientRects()].map(r => r.top)).size);
}
for (const picture of document.querySelectorAll("svg.picture")) {
  const frame = picture.closest("figure").getBoundingClientRect();
  const boxes = [...picture.querySelectorAll("text")].map(t => [t.textContent, t.getBoundingClientRect()])
    .filter(([, b]) => b.width);
  for (const [text, b] of boxes)
    if (b.left < frame.left || b.right > frame.right || b.top < frame.top || b.bottom > frame.bottom)
      found.outside.push(text);
  boxes.forEach(([one, a], i) => boxes.slice(i + 1).forEach(([other, b]) => {
    if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1 &&
        Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3) found.overlaps.push([one, other]);
  }));
}
const bar = document.querySelector(".bar");
const box = bar.querySelector(".hit").getBoundingClientRect();
bar.querySelector(".hit").dispatchEvent(new PointerEvent("pointerdown",
  {bubbles: true, clientX: box.left + box.width / 2, clientY: box.top + 20}));
const tip = document.getElementById("tip");
found.tip = tip.hidden ? "" : tip.textContent;
found.tipInside = tip.getBoundingClientRect().left >= 0 &&
  tip.getBoundingClientRect().right <= document.documentElement.clientWidth;
parent.postMessage("FOUND" + JSON.stringify(found) + "DNUOF", "*");
</script></body>"""


def examine(
    browse: Browse, folder: Path, html: str, *, width: int, dark: bool = False
) -> dict[str, object]:
    """What the browser made of the page on a screen so many pixels wide.

    Chromium's own window is 500 pixels wide at least, so the page is shown in a frame.
    """
    inner = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html).replace(
        "</body>", PROBE
    )
    (folder / "inner.html").write_text(inner, encoding="utf-8")
    outer = (
        "<script>onmessage = event => { document.title = event.data; };</script><body "
        "style='margin:0'>"
        f"<iframe src='inner.html' style='width:{width}px;height:1500px;border:0'></iframe>"
    )
    (folder / "outer.html").write_text(outer, encoding="utf-8")
    theme = (
        ("--blink-settings=preferredColorScheme=0",)
        if dark
        else ("--blink-settings=preferredColorScheme=1",)
    )
    dom = browse(
        *theme,
        f"--window-size={max(width, 500)},1500",
        "--virtual-time-budget=10000",
        "--dump-dom",
        f"file://{folder}/outer.html",
    )
    told = re.search(r"<title>FOUND(.*?)DNUOF</title>", dom, re.S)
    assert told, dom[:2000]
    found: dict[str, object] = json.loads(
        told[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
    )
    return found


def drawn() -> str:
    """A page of all three contenders; only plain gunicorn loses."""
    runs = [
        plain(*(n / 10 for n in range(1, 29))),
        result(contender_named("sleep:15"), exited=15.4, seconds=17),
        result(),
    ]
    return page(runs, made=datetime(2026, 7, 1, 12, tzinfo=timezone.utc))


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [320, 1280], ids=["phone", "desktop"])
def test_the_page_is_readable_on_every_screen(
    tmp_path: Path, browse: Browse, width: int, dark: bool
) -> None:
    """It is as wide as the screen and no wider, no text covers another or leaves its picture, and
    letters keep their size; it is dark where the reader's system is; a tap on a bar says what it
    stands for; nothing was loaded."""
    found = examine(browse, tmp_path, drawn(), width=width, dark=dark)
    assert found["width"] == width
    assert found["overflow"] == width
    assert found["figures"] == [0], "no column of the comparison is cut off"
    assert found["times"] == 1, "no time breaks across lines"
    assert found["outside"] == []
    assert found["overlaps"] == []
    assert float(str(found["font"])) >= 11
    assert found["background"] == ("rgb(18, 23, 29)" if dark else "rgb(255, 255, 255)")
    assert found["titles"] == 0
    assert int(str(found["tips"])) > 200
    assert re.match(r"-1\.0 to -0\.9 s\n1 ok\nin flight: 1", str(found["tip"]))
    assert found["tipInside"]
    assert found["resources"] == []


def pixels(png: bytes) -> set[tuple[int, int, int]]:
    """The colours that occur in a PNG of 8 bits a channel, as Chromium writes it (PNG, 9.2:
    filters)."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, kind = struct.unpack(">IIBB", png[16:26])
    assert depth == 8
    channels = {2: 3, 6: 4}[kind]
    data, at = b"", 8
    while at < len(png):
        (length,) = struct.unpack(">I", png[at : at + 4])
        if png[at + 4 : at + 8] == b"IDAT":
            data += png[at + 8 : at + 8 + length]
        at += length + 12
    raw, stride = zlib.decompress(data), width * channels
    before, found = bytearray(stride), set()
    for row in range(height):
        start = row * (stride + 1)
        line, how = bytearray(raw[start + 1 : start + 1 + stride]), raw[start]
        for i in range(stride):
            left = line[i - channels] if i >= channels else 0
            up = before[i]
            corner = before[i - channels] if i >= channels else 0
            if how == 1:
                line[i] = (line[i] + left) & 255
            elif how == 2:
                line[i] = (line[i] + up) & 255
            elif how == 3:
                line[i] = (line[i] + (left + up) // 2) & 255
            elif how == 4:
                guess = left + up - corner
                nearest = min((left, up, corner), key=lambda value: abs(guess - value))
                line[i] = (line[i] + nearest) & 255
        found.update(zip(line[0::channels], line[1::channels], line[2::channels], strict=True))
        before = line
    return found


@needs_browser
def test_what_was_lost_is_seen_on_the_picture(tmp_path: Path, browse: Browse) -> None:
    """A screenshot with the policy in force, so that its hashes are right: bars of both kinds are
    painted.

    The style is one that the policy allows by its hash: without it, there would be no colour at
    all.
    """
    (tmp_path / "page.html").write_text(drawn(), encoding="utf-8")
    # Scrolled to the first picture: a small screenshot is read in no time.
    (tmp_path / "part.html").write_text(
        "<body style='margin:0'><iframe src='page.html' "
        "style='width:500px;height:1600px;border:0;margin-top:-650px'></iframe>"
    )
    shot = tmp_path / "shot.png"
    browse(
        "--blink-settings=preferredColorScheme=1",
        "--window-size=500,500",
        f"--screenshot={shot}",
        f"file://{tmp_path}/part.html",
    )
    seen = pixels(shot.read_bytes())
    assert (0x4C, 0x83, 0xB6) in seen, "answered requests"
    assert (0xC4, 0x50, 0x0A) in seen, "refused requests"


@needs_browser
def test_the_pages_own_script_runs_under_its_policy(tmp_path: Path, browse: Browse) -> None:
    """The titles have become tips: the one script that the hash allows was executed. Without it
    they would remain."""
    (tmp_path / "page.html").write_text(drawn(), encoding="utf-8")
    dom = browse("--virtual-time-budget=5000", "--dump-dom", f"file://{tmp_path}/page.html")
    assert "data-tip=" in dom
    assert "<title>Rehearsal of app:app</title>" in dom
    assert dom.count("</title>") == 1


# -- one real run ----


def test_one_run_writes_all_reports(folder: Path) -> None:
    """All three contenders, really played: the terminal, the JSON (as its schema has it) and the
    page tell the same."""
    run = rehearse(
        folder, *SHORT, "--beside", "sleep:1", "--json", "out.json", "--html", "out.html"
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "\x1b" not in run.stdout + run.stderr, "no colours but on a terminal"
    assert max(map(len, run.stdout.splitlines())) <= report_text.WIDTH
    document = json.loads((folder / "out.json").read_text())
    jsonschema.Draft202012Validator(schema.schema()).validate(document)
    names = [played["contender"] for played in document["results"]]
    assert names == ["plain gunicorn", "preStop: sleep 1", "gunicorn-grace"]
    assert document["passed"] is True
    assert document["verdict"] in " ".join(run.stdout.split())
    assert document["results"][1]["gone"][0]["pre_stop_done"] >= 1
    html = (folder / "out.html").read_text()
    for played in document["results"]:
        assert (
            f"{played['contender']}: {played['requests']} requests, {played['lost']} lost" in html
        )
        assert sum(map(sum, played["timeline"]["began"].values())) == played["requests"]
    assert "lame duck" in html


def test_json_alone_goes_to_standard_output(folder: Path) -> None:
    """``--json -`` prints a document and nothing else; losses that --max-lost allows are exit code
    0."""
    run = rehearse(folder, *SHORT, "--only", "plain", "--json", "-", "--max-lost", "1000")
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    jsonschema.Draft202012Validator(schema.schema()).validate(document)
    assert document["max_lost"] == 1000
    assert document["results"][0]["lost"] > 0
    assert document["passed"] is True


# -- what cannot be ----


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--html", "nowhere/page.html"], "--html nowhere/page.html: No such file or directory"),
        (["--json", "."], "--json .: Is a directory"),
        (["--json", "x", "--html", "x"], "the same file"),
        (["--max-lost", "-1"], "--max-lost -1 is negative"),
        (["--beside", "uwsgi"], "contender 'uwsgi' is unknown"),
        (
            ["--", "--bind", "127.0.0.1:8000"],
            "--bind cannot be given to the gunicorn of a rehearsal",
        ),
    ],
)
def test_what_cannot_be_is_told_before_anything_is_started(
    folder: Path, args: list[str], said: str
) -> None:
    """One line and exit code 2, no instance booted, no file made."""
    run = rehearse(folder, *args)
    assert run.returncode == 2
    (line,) = run.stderr.splitlines()
    assert line.startswith("rehearse: ")
    assert said in line
    assert run.stdout == ""
    assert sorted(path.name for path in folder.iterdir()) == ["app.py"]


@pytest.mark.parametrize("where", ["--json", "--html", "stdout"])
def test_a_full_disk_is_one_line_and_exit_code_2(folder: Path, where: str) -> None:
    """The rehearsal was played, and the report could not be kept."""
    args = ("--only", "plain", "--instances", "2", "--rate", "40", "--lag", "0")
    if where == "stdout":
        # Buffered, as it is unless somebody says otherwise: what is left is flushed once more at
        # the end.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        with open("/dev/full", "w") as full:
            run = subprocess.run(
                [*REHEARSE, *args],
                cwd=folder,
                env=env,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                timeout=150,
            )
        where = "standard output"
    else:
        run = rehearse(folder, *args, where, "/dev/full")
    assert run.returncode == 2
    *_, line = run.stderr.splitlines()
    assert re.match(rf"rehearse: {where}.*: No space left on device$", line)
    assert "Traceback" not in run.stderr


def living(pids: list[int]) -> list[int]:
    return [pid for pid in pids if procfs._state(pid) not in ("", "Z", "X")]


def descendants(pid: int) -> list[int]:
    found = procfs.children(pid)
    return found + [grandchild for child in found for grandchild in descendants(child)]


def test_ctrl_c_leaves_a_report_on_what_was_played(folder: Path) -> None:
    """In the middle of the second contender's shutdown: exit code 130, all children gone, and JSON
    and page hold both runs, the second one as far as it came."""
    args = ("--instances", "2", "--rate", "40", "--lag", "0.5", "--delay", "60", "--period", "120")
    command = subprocess.Popen(
        [*REHEARSE, *args, "--json", "out.json", "--html", "out.html"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GRACE_TERMINATION_PERIOD": "120"},
    )
    with command:
        try:
            assert command.stderr is not None
            while "gunicorn-grace: deleting" not in (line := command.stderr.readline()):
                assert line, "the command ended early"
            family = descendants(command.pid)
            command.send_signal(signal.SIGINT)
            out, err = command.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                command.kill()
    assert command.returncode == 130, err
    assert "Traceback" not in err
    assert len(family) >= 4
    assert living(family) == []
    assert "gunicorn-grace: interrupted; the numbers cover the run until then." in out
    assert "Interrupted. plain gunicorn lost" in out
    document = json.loads((folder / "out.json").read_text())
    jsonschema.Draft202012Validator(schema.schema()).validate(document)
    assert [played["complete"] for played in document["results"]] == [True, False]
    assert (document["interrupted"], document["passed"]) == (True, False)
    assert "Interrupted." in (folder / "out.html").read_text()


# -- the terminal ----


def on_a_terminal(folder: Path, env: dict[str, str]) -> str:
    """What a short rehearsal writes to a terminal."""
    ours, theirs = os.openpty()
    command = subprocess.Popen(
        [*REHEARSE, *SHORT, "--only", "plain"],
        cwd=folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={
            **{k: v for k, v in os.environ.items() if k != "NO_COLOR"},
            "TERM": "xterm",
            "COLUMNS": "80",
            **env,
        },
    )
    os.close(theirs)
    said = b""
    try:
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # EIO: the last writer has closed it (pty(7))
                break
            if not piece:
                break
            said += piece
        command.wait(60)
    finally:
        command.kill()
        command.wait()
        os.close(ours)
    return said.decode()


def test_on_a_terminal_one_line_tells_how_it_goes(folder: Path) -> None:
    """It counts requests and losses as they happen, is written over, and is gone when the report
    comes, in colour."""
    said = on_a_terminal(folder, {})
    progress, _, told = said.rpartition("\r\x1b[K")
    assert re.search(r"plain gunicorn: deleting 1 of 2, \d+ s: \d+ requests, \d+ lost", progress)
    assert progress.count("\n") == 1, "the one line that stays says what the contender came to"
    assert all(len(line) < 80 for line in re.split(r"\r\x1b\[K|\r\n", progress))
    assert "\x1b[31m" in told
    assert "plain gunicorn LOST" in told


def test_no_color_is_respected(folder: Path) -> None:
    """https://no-color.org: set and not empty, nothing is coloured; the line that is written over
    needs no colour."""
    said = on_a_terminal(folder, {"NO_COLOR": "1"})
    assert "plain gunicorn LOST" in said
    assert re.findall(r"\x1b\[[0-9;]*m", said) == []


# -- in a user's tests ----


def test_the_fixture_rehearses_an_application(folder: Path, pytester: pytest.Pytester) -> None:
    """The three lines of the documentation pass, and pytest finds the fixture by itself; a
    rehearsal that lost requests fails with the whole report, and one that cannot be carried out
    with the reason."""
    pytester.makepyfile(app=APP)
    (documented,) = re.findall(r"```python\n(def .*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    pytester.makepyfile(test_documented=documented)
    pytester.makepyfile(
        test_rollout="""
        SHORT = {"instances": 2, "rate": 40, "lag": 0.5}

        def test_plain(rehearse):
            assert rehearse("app:app", contender="plain", **SHORT).flawless

        def test_nowhere(rehearse):
            rehearse("nowhere:app", **SHORT)
        """
    )
    plugin = (
        ()
        if entry_point_is_installed()
        else ("-p", "gunicorn_grace.rehearsal.command.pytest_plugin")
    )
    run = pytester.runpytest_subprocess("-p", "no:cacheprovider", *plugin)
    run.assert_outcomes(passed=1, failed=2)
    run.stdout.re_match_lines_random(
        [
            r".*<Result plain gunicorn: \d+ of \d+ requests lost>.*",
            r"-+ Captured rehearsal call -+",
            r"plain gunicorn LOST \d+ of \d+ requests\.",
            r".*the rehearsal could not be carried out: .*No module named 'nowhere'.*",
        ]
    )


def entry_point_is_installed() -> bool:
    """Whether pytest finds the fixture by itself; it does where the package is installed as it is
    now."""
    from importlib.metadata import entry_points

    return any(
        point.value == "gunicorn_grace.rehearsal.command.pytest_plugin"
        for point in entry_points(group="pytest11")
    )
