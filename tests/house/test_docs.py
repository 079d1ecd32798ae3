"""The documentation says what the code does.

What a table of the code says is rendered from that table; everything else that can be compared is.
When a test here fails, ``PYTHONPATH=tests python tests/house/test_docs.py`` writes the rendered parts anew.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import re
import string
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import gunicorn_grace
from gunicorn_grace import cli
from gunicorn_grace.arbiter import draining, lifecycle, listeners, notify, report, shutdown
from gunicorn_grace.arbiter.budget import budget_line
from gunicorn_grace.arbiter.lifecycle import Observation, Reason, decide
from gunicorn_grace.operate.check import judging
from gunicorn_grace.operate.fragments.places import PLACES
from gunicorn_grace.operate.routers import ROUTERS
from gunicorn_grace.probes import asker, trigger
from gunicorn_grace.probes.answers import Answers, Query, Situation
from gunicorn_grace.probes.checks import Outcome
from gunicorn_grace.rehearsal.report import schema
from gunicorn_grace.shared import agreed, metrics, platforms
from gunicorn_grace.shared import memory as shm
from gunicorn_grace.shared.board import Board
from gunicorn_grace.shared.cells import Header, Record
from gunicorn_grace.shared.phase import TRANSITIONS, Kind, Origin, Phase
from gunicorn_grace.shared.platforms import PLATFORMS, UNKNOWN
from gunicorn_grace.shared.settings import TERMINATION_LOG, Settings, rows
from gunicorn_grace.worker import connections
from support import figures
from support.paths import DOCS, TESTS

pytestmark = pytest.mark.once

PACKAGE = Path(gunicorn_grace.__file__).parent
NAMES = tuple(sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")))
"""Every page, by its path in ``docs/``."""

HINT = (
    "\n\nThe documentation parted from the code. Run PYTHONPATH=tests python tests/house/test_docs.py, or paste "
    "this:\n\n"
)


# -- what is rendered ----


def table(head: Iterable[str], body: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in (tuple(head), *map(tuple, body))]
    lines.insert(1, "|" + "---|" * (lines[0].count("|") - 1))
    return "\n".join(lines)


def settings() -> str:
    """The settings, from the table that the code reads."""
    return table(
        ("setting", "default", "meaning", "environment"),
        (
            (
                f"`grace_{row.name}`",
                default(row),
                row.metadata["meaning"],
                f"`GRACE_{row.name.upper()}`",
            )
            for row in rows()
        ),
    )


def default(row: Any) -> str:
    """A default as one would write it in a configuration file."""
    value = row.metadata["default"]
    # The default of grace_report depends on where this runs; its meaning says how.
    if value is None or value == TERMINATION_LOG:
        return "none"
    return "`" + repr(value).replace("'", '"') + "`"


SUMS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("The defaults, in Kubernetes", {"platform": "Kubernetes"}),
    ("The defaults, under supervisord", {"platform": "supervisord"}),
    (
        "`grace_termination_period = 90`, `grace_shutdown_delay = 15`",
        {"termination_period": 90, "shutdown_delay": 15},
    ),
    ("`grace_termination_period = 0`", {"termination_period": 0}),
    (
        "Warning: `grace_shutdown_delay = 20`, `graceful_timeout = 25`",
        {"shutdown_delay": 20, "graceful_timeout": 25},
    ),
    ("Warning: `grace_shutdown_delay = 25`", {"shutdown_delay": 25}),
)


def sum_of(platform: str | None = None, **given: Any) -> tuple[bool, str]:
    """The line for some settings; without a platform, its period is set."""
    if platform is None:
        given = {"termination_period": 30, **given}
    with pytest.MonkeyPatch.context() as patch:
        found = next((each for each in PLATFORMS if each.name == platform), UNKNOWN)
        patch.setattr(platforms, "here", lambda: found)
        return budget_line(
            Settings(**given),
            graceful_timeout_given="graceful_timeout" in given,
            all_defaults=platform is not None,
            platform=found,
        )


def platform_rows() -> str:
    """The table of the platforms."""
    return table(
        ("platform", "known by", "period", "where it is set", "sources"),
        (
            (
                each.name,
                f"`{each.sign}`",
                f"{each.period:g} s",
                f"`{each.knob}`" if each.knob else "nowhere",
                ", ".join(f"[{n}]({url})" for n, url in enumerate(each.sources, 1)),
            )
            for each in PLATFORMS
        ),
    )


def router_rows() -> str:
    """The table of the routers."""
    return table(
        ("router", "goes on sending for", "because", "sources"),
        (
            (
                f"`{each.name}`",
                f"{each.delay} s",
                each.why,
                ", ".join(f"[{n}]({url})" for n, url in enumerate(each.sources, 1)),
            )
            for each in ROUTERS.values()
        ),
    )


def fragments() -> str:
    """What ``gunicorn-grace manifest`` prints, and where."""
    return table(
        ("`--for`", "what is printed", "the period is", "at most"),
        (
            (
                f"`{each.name}`",
                each.what,
                f"[`{each.knob}`]({each.source})" if each.knob else f"[fixed]({each.source})",
                f"{each.limit} s" if each.limit else "",
            )
            for each in PLACES.values()
        ),
    )


def sums() -> str:
    """What the sum at boot says, for some settings."""
    parts = []
    for label, given in SUMS:
        warns, line = sum_of(**given)
        assert warns == label.startswith("Warning"), label
        shown = textwrap.fill(line, 110, break_on_hyphens=False)
        parts.append(f"{label}:\n\n```text\n{shown}\n```")
    return "\n\n".join(parts)


TIMES = (
    (
        lifecycle.LATE_WINDOW,
        "a request this recent extends the delay; so much silence ends an extension",
    ),
    (lifecycle.UNKNOWN_PERIOD_EXPIRY, "a trigger expires, where `grace_termination_period` is 0"),
    (listeners.EMPTY_FOR, "without a connection in the accept queue, it counts as served"),
    (
        draining.EMPTYING_MARGIN,
        "before the drain limit, workers are dismissed whatever still waits",
    ),
    (shutdown.QUICK_STOP, "workers have after SIGINT or SIGQUIT"),
    (agreed.LINGER, "idle connections are kept after draining began"),
    (
        connections.SENDING_FOR,
        "without a byte, a connection in the middle of a request counts as idle",
    ),
    (agreed.TELL_BEFORE, "before the drain limit, workers log what they are still doing"),
    (asker.MAX_AGE, "and older, a process is not a preStop hook"),
    (trigger.LOOKUP_INTERVAL, "between two look-ups of a trigger, in one worker"),
    (trigger.REFUSAL_LOG_INTERVAL, "between two log lines about refused triggers, in one worker"),
)


def times() -> str:
    """The times that are not settings."""
    return table(("seconds", "what for"), ((f"{seconds:g}", what) for seconds, what in TIMES))


def reached() -> dict[tuple[Phase, Phase], list[Reason]]:
    """Which reasons lead from one phase to another, found by asking ``decide`` about many
    situations."""
    found: dict[tuple[Phase, Phase], set[Reason]] = {}
    for (
        phase,
        origin,
        is_told,
        held,
        ended,
        awaited,
        quiet,
        moment,
        arrival,
        upgraded,
        undrain,
        booted,
        workers,
    ) in itertools.product(
        Phase,
        Origin,
        *[(False, True)] * 4,
        (0, 3),
        (101, 107, 111, 126, 200),
        (None, 110.5, 125.5),
        *[(False, True)] * 3,
        (0, 1),
    ):
        seen = Observation(
            now=moment,
            phase=phase,
            booted=booted,
            origin=origin,
            t0=None if origin is Origin.NONE and phase < Phase.LAME_DUCK else 100,
            clock=100,
            sigterm=100 if is_told else None,
            held=held,
            ended=ended,
            awaited=awaited,
            undrain=undrain,
            upgraded=upgraded,
            last_arrival=arrival,
            drain_started=100,
            workers=workers,
        )
        for extend in (False, True):
            then, reason = decide(seen, Settings(quiet_period=quiet, extend_delay=extend))
            if reason is not None:
                found.setdefault((phase, then), set()).add(reason)
    return {step: sorted(reasons, key=list(Reason).index) for step, reasons in found.items()}


def phases() -> str:
    """The state diagram, and what leads from one phase to the next."""
    reasons = reached()
    steps = [(a, b) for a in TRANSITIONS for b in sorted(TRANSITIONS[a])]
    assert set(reasons) <= set(steps)
    diagram = "\n".join(f"    {a} --> {b}" for a, b in steps)
    body = []
    for a, b in steps:
        why = [f"`{reason}`" for reason in reasons.get((a, b), ())]
        if b is Phase.STOPPED:
            why.append("SIGINT, SIGQUIT")
        assert why, f"nothing leads from {a} to {b}"
        body.append((str(a), str(b), ", ".join(why)))
    return f"```mermaid\nstateDiagram-v2\n    [*] --> {Phase(0)}\n{diagram}\n```\n\n" + table(
        ("from", "to", "because"), body
    )


def options(name: str) -> Callable[[], str]:
    """The options of a command, from click's own list."""

    def render() -> str:
        command = cli.cli.commands[name]
        with click.Context(command) as context:
            body = [
                option(parameter, context)
                for parameter in command.params
                if isinstance(parameter, click.Option)
            ]
        return table(("option", "default", "meaning"), body)

    return render


def option(parameter: click.Option, context: click.Context) -> tuple[str, str, str]:
    """One option: how it is written, its default, its meaning."""
    meaning, _, said = (parameter.help or "").partition("  [default: ")
    value = parameter.to_info_dict()["default"]
    if isinstance(value, (list, tuple)):
        value = " ".join(map(str, value))
    if isinstance(value, float):
        value = f"{value:g}"
    shown = said.rstrip("]") or (
        "" if value is None or not isinstance(value, (str, int)) else f"{value}"
    )
    if parameter.required:
        shown = "required"
    metavar = (
        parameter.make_metavar(context) if _wants_context(parameter) else parameter.make_metavar()
    )  # type: ignore[call-arg]
    if parameter.is_flag:
        metavar, shown = "", "no"
    return (
        f"`{f'{parameter.opts[0]} {metavar}'.strip()}`".replace("|", "\\|"),
        shown or "none",
        meaning,
    )


def _wants_context(parameter: click.Option) -> bool:
    return bool(inspect.signature(parameter.make_metavar).parameters)  # click 8.2


def measured() -> str:
    """The metrics for Prometheus."""
    return table(
        ("metric", "kind", "label", "meaning"),
        (
            (
                f"`{metric.full_name}`",
                "counter" if metric.is_counter else "gauge",
                f"`{metric.label}`: "
                + ", ".join(f"`{value}`" for value in metric.samples(metrics.Reading()))
                if metric.label
                else "",
                metric.meaning,
            )
            for metric in metrics.METRICS
        ),
    )


def gauges() -> str:
    """The gauges for StatsD."""
    body = ((f"`{metrics.STATSD_PREFIX}{gauge.name}`", gauge.meaning) for gauge in metrics.GAUGES)
    return table(("gauge", "meaning"), body)


def reported() -> str:
    """The keys of the report."""
    fields = dataclasses.fields(report.Report)
    return table(
        ("key", "meaning"), ((f"`{field.name}`", field.metadata["meaning"]) for field in fields)
    )


def probe_table() -> str:
    """What each question is answered in each phase, without checks and with one that fails."""
    core = Answers(Settings())

    def status(kind: Kind, phase: Phase) -> str:
        passing, failing = (
            core.answer(kind, Situation(phase), [Outcome("a check", passed)]).status
            for passed in (True, False)
        )
        return f"{passing}" if passing == failing else f"{passing}, or {failing} by a check"

    return table(
        ("", *(kind.value for kind in Kind)),
        (
            (f"{phase}", *(status(kind, phase) for kind in Kind))
            for phase in Phase
            if phase is not Phase.STOPPED
        ),
    )


def judged() -> str:
    """The rules of ``gunicorn-grace check``, from the table that it reads."""
    return "\n\n".join(
        "\n\n".join(
            [
                f"### {rule.id}",
                textwrap.fill(f"**{rule.title}** Usually {SEVERITIES[rule.severity]}.", 118),
                textwrap.fill(f"What happens to users: {rule.users}", 118),
                textwrap.fill(f"What to do: {rule.fix}", 118, break_on_hyphens=False),
            ]
        )
        for rule in judging.RULES.values()
    )


SEVERITIES = {
    judging.Severity.ERROR: "an error",
    judging.Severity.WARNING: "a warning",
    judging.Severity.NOTE: "a note",
}


ANSWERS: tuple[tuple[str, str, Phase], ...] = (
    ("/readyz?verbose", "", Phase.SERVING),
    ("/readyz", "", Phase.SERVING),
    ("/readyz?exclude=database", "", Phase.SERVING),
    ("/readyz?verbose", "", Phase.LAME_DUCK),
    ("/readyz", "application/json", Phase.LAME_DUCK),
)


def probe_answers() -> str:
    """What comes back where ``cache`` passes and ``database`` does not."""
    outcomes = [Outcome("cache", True), Outcome("database", False)]
    parts = []
    for target, accept, phase in ANSWERS:
        query = Query.of(target.partition("?")[2], accept)
        left = 26.5 if phase is Phase.LAME_DUCK else None
        told = Answers(Settings()).answer(
            Kind.READINESS, Situation(phase, seconds_left=left), outcomes, query
        )
        asked = f"`{target}`" + (f" with `Accept: {accept}`" if accept else "")
        parts.append(f"{asked} in {phase}: {told.status}\n\n```text\n{told.body}```")
    return "\n\n".join(parts)


def document() -> str:
    """The fields of the JSON document of a rehearsal, from its schema."""
    defined = schema.schema()
    parts = []
    for name, part in (("the document", defined), *defined["$defs"].items()):
        body = [
            (f"`{key}`", kind(field), field["description"])
            for key, field in part["properties"].items()
        ]
        parts.append(
            f"### {name.replace('_', ' ')}\n\n{part['description']}\n\n"
            f"{table(('key', 'type', 'meaning'), body)}"
        )
    return "\n\n".join(parts)


def kind(field: dict[str, Any]) -> str:
    """The type of a field in a word or two."""
    if "$ref" in field:
        return field["$ref"].rpartition("/")[2].replace("_", " ")
    if "enum" in field or "const" in field:
        return ", ".join(f"`{value}`" for value in field.get("enum", [field.get("const")]))
    if field["type"] == "array":
        items = field.get("prefixItems") or [field["items"]]
        return ("list of " if "prefixItems" not in field else "") + ", ".join(
            kind(item) for item in items
        )
    return " or ".join([field["type"]] if isinstance(field["type"], str) else field["type"])


RENDERED: dict[str, tuple[str, Callable[[], str]]] = {
    "settings": ("reference/settings.md", settings),
    "sums": ("reference/settings.md", sums),
    "platforms": ("reference/settings.md", platform_rows),
    "times": ("reference/events.md", times),
    "metrics": ("reference/metrics.md", measured),
    "gauges": ("reference/metrics.md", gauges),
    "report": ("reference/metrics.md", reported),
    "phases": ("explanation/how-it-works.md", phases),
    "probes": ("reference/probes.md", probe_table),
    "answers": ("reference/probes.md", probe_answers),
    "options of reports": ("reference/commands.md", options("reports")),
    "options of status": ("reference/commands.md", options("status")),
    "options of end-delay": ("reference/commands.md", options("end-delay")),
    "options of prestop": ("reference/commands.md", options("prestop")),
    "options of drain": ("reference/commands.md", options("drain")),
    "options of undrain": ("reference/commands.md", options("undrain")),
    "routers": ("how-to/balancers.md", router_rows),
    "fragments": ("reference/commands.md", fragments),
    "options of manifest": ("reference/commands.md", options("manifest")),
    "options of check": ("reference/commands.md", options("check")),
    "options of rehearse": ("reference/commands.md", options("rehearse")),
    "rules": ("reference/check.md", judged),
    "document": ("reference/rehearsal.md", document),
    "machines": ("reference/benchmarks.md", figures.machines),
    "summary of the benchmarks": ("../README.md", figures.summary),
    **{
        f"benchmark {name}": ("reference/benchmarks.md", functools.partial(figures.table, name))
        for name in figures.BENCHMARKS
    },
}


def between(name: str) -> re.Pattern[str]:
    """The markers of a rendered part, and what is between them."""
    return re.compile(
        rf"(<!-- {name}: rendered by tests/house/test_docs\.py -->\n)(.*?)(<!-- end of {name} -->)",
        re.S,
    )


def rewrite() -> None:
    """Write every rendered part into its page."""
    for name, (page, render) in RENDERED.items():
        path = DOCS / page
        text = path.read_text(encoding="utf-8")
        new, count = between(name).subn(lambda m, r=render: f"{m[1]}\n{r()}\n\n{m[3]}", text)  # type: ignore[misc]
        assert count == 1, f"{page} has {count} places for {name}"
        path.write_text(new, encoding="utf-8")


@pytest.mark.parametrize("name", RENDERED)
def test_a_rendered_part_is_what_the_code_says(name: str) -> None:
    """Settings, sums, times, phases and options stand in the docs as the code has them now."""
    page, render = RENDERED[name]
    found = between(name).findall(read(page))
    assert len(found) == 1, f"{page} has {len(found)} places for {name}"
    wanted = render()
    assert found[0][1].strip() == wanted, f"{page}, {name}:{HINT}{wanted}\n"


# -- what is compared ----


def read(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def first_column(page: str, head: str) -> list[str]:
    """What stands between backticks in the first column of the table whose first heading this
    is."""
    (body,) = re.findall(rf"^\| {head} \|.*\n\|[-|]+\n((?:\|.*\n)+)", read(page), re.M)
    return [
        word for row in body.splitlines() for word in re.findall(r"`([^`]+)`", row.split("|")[1])
    ]


def test_every_reason_is_explained() -> None:
    """The table of reasons has each one, once, in the words of the log."""
    assert sorted(first_column("explanation/how-it-works.md", "reason")) == sorted(map(str, Reason))


def test_every_transition_of_the_diagram_is_reached() -> None:
    """All reasons occur, and no step is decided that the table of transitions does not allow."""
    found = reached()
    assert {reason for reasons in found.values() for reason in reasons} == set(Reason)
    assert all(after in TRANSITIONS[before] for before, after in found)


def test_the_cells_of_the_shared_memory_exist() -> None:
    """Who reads the table of writers finds the same names in ``gunicorn_grace.shared.memory``."""
    cells = first_column("explanation/shared-memory.md", "cells")
    assert len(cells) > 10
    known = {*vars(Header), *vars(Record), *vars(Board)}
    assert [name for name in cells if name not in known] == []


def test_the_times_and_sizes_of_the_metrics_are_those_of_the_code() -> None:
    """What docs/reference/metrics.md says of how often, how long and how much."""
    page = " ".join(read("reference/metrics.md").split())
    assert notify.GAUGE_EVERY == 1
    assert f"every second from T0 on, every {notify.GAUGE_EVERY_SERVING:g} s before" in page
    assert f"`EXTEND_TIMEOUT_USEC=`, every {notify.RENEW_EVERY:g} s" in page
    assert f"it is {notify.STRETCH:g} s, renewed" in page
    assert f"Never more than {report.LIMIT} bytes" in page
    assert f"is cut to {report.LONGEST_REASON} characters" in page
    assert f"`STATUS={notify.status(Phase.LAME_DUCK, 3)}`" in page
    assert f"beyond the {shm.SLOTS}th" in page


def logged() -> Iterator[re.Pattern[str]]:
    """Every log line of the package, as a pattern: ``%s`` and its like stand for anything."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                text = node.value
                if text.startswith("gunicorn-grace: ") and text != "gunicorn-grace: %s":
                    parts = re.split(r"%(?:\.\d)?[sdfg]", text.replace("%%", "%"))
                    yield re.compile(".*".join(map(re.escape, parts)))


def shown() -> list[str]:
    """The log lines that the docs show."""
    blocks = [
        block
        for page in NAMES
        for block in re.findall(r"^```log\n(.*?)^```", read(page), re.M | re.S)
    ]
    return [line for block in blocks for line in block.splitlines()]


def test_log_lines_in_the_docs_are_those_of_the_code() -> None:
    """Each line in a ``log`` block fits a format string of the package, or is the sum of the
    defaults, or that of the tutorial's delay."""
    patterns = list(logged())
    sums = [
        "gunicorn-grace: " + budget_line(given, graceful_timeout_given=False)[1]
        for given in (
            Settings(termination_period=30),
            Settings(termination_period=30, shutdown_delay=4),
        )
    ]
    assert len(shown()) > 8
    strange = [s for s in shown() if s not in sums and not any(p.fullmatch(s) for p in patterns)]
    assert strange == []


@pytest.mark.parametrize(
    "word",
    [
        "shutdown_initiated",
        "lame_duck_ended",
        "sealed",
        "drained",
        "deadline_reached",
        "stopped",
        "trigger_expired",
    ],
)
def test_every_event_is_shown(word: str) -> None:
    """The docs show a line of each event that the arbiter logs."""
    source = "".join(path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py"))
    assert f'"gunicorn-grace: {word}' in source
    assert f"\ngunicorn-grace: {word}" in read("reference/log.md")


def test_the_verdicts_in_the_docs_are_those_of_the_code() -> None:
    """The last words of the summary, with their numbers."""
    assert report.verdict(3.1, 10) == "last request came 3.1 s after T0; a delay of 6 s would do"
    for page in ("reference/settings.md", "reference/log.md"):
        assert report.verdict(3.1, 10) in read(page)
    assert report.verdict(9.7, 10) in read("reference/log.md")


def test_every_command_has_its_section() -> None:
    """A section for each command, and none for one that is not there."""
    sections = re.findall(r"^## gunicorn-grace (\S+)$", read("reference/commands.md"), re.M)
    assert sorted(sections) == sorted(cli.cli.commands)


def test_every_command_has_its_exit_codes() -> None:
    """The first table names the commands that it is about; the others have a table in their
    section."""
    head, *sections = re.split(r"^## gunicorn-grace ", read("reference/commands.md"), flags=re.M)
    (named,) = re.findall(r"^\| exit code \| of (.*) \|$", head, re.M)
    common = set(re.findall(r"`([^`]+)`", named))
    own = {part.split()[0] for part in sections if "| exit code | meaning |" in part}
    assert common | own == set(cli.cli.commands)
    assert common & own == set()


def test_settings_named_in_the_docs_exist() -> None:
    """No page speaks of a ``grace_`` setting or a variable that nobody reads."""
    known = {f"grace_{row.name}" for row in rows()}
    for page in NAMES:
        named = {
            name.lower() for name in re.findall(r"\b(?:grace_[a-z_]+|GRACE_[A-Z_]+)\b", read(page))
        }
        # The helper that a user must not have, the fixture, and an option of Caddy's.
        assert named - known - {"grace_something", "grace_instance", "grace_period"} == set(), page


def test_the_parameters_of_a_check_and_their_defaults_are_those_of_the_code() -> None:
    """The table has each of them, in order."""
    rows = re.findall(
        r"^\| `(\w+)` \| (\S*) ?\|", read("reference/probes.md").partition("| parameter |")[2], re.M
    )
    defaults = {
        name: "" if parameter.default is parameter.empty else repr(parameter.default).strip("'")
        for name, parameter in inspect.signature(gunicorn_grace.check).parameters.items()
    }
    assert {name: default.strip('`"') for name, default in rows} == defaults


def faults() -> list[str]:
    """The tests that the table of faults names."""
    return re.findall(r"`(test_\w+)`", read("reference/faults.md"))


def test_every_fault_names_a_test_that_exists() -> None:
    """Each row of the table of faults ends with the tests that prove it, and they are there."""
    tests = {
        node.name
        for path in (TESTS / "functional").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef)
    }
    assert set(faults()) - tests == set()
    rows = [
        row
        for row in read("reference/faults.md").splitlines()
        if row.startswith("| ") and not row.startswith("| fault |")
    ]
    assert len(rows) > 30
    assert [row for row in rows if not re.search(r"\| `test_\w+`(, `test_\w+`)* \|$", row)] == []


def test_every_test_of_a_fault_is_in_the_table() -> None:
    """Whatever tests/functional/faults proves, a reader finds it in the table."""
    proved = {
        node.name
        for path in (TESTS / "functional" / "faults").glob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    assert proved - set(faults()) == set()


def test_every_cell_about_a_worker_class_names_a_test_that_exists() -> None:
    """Each row of those tables ends with the tests that prove it, and they are there; and none of
    them is left out."""
    page = read("reference/worker-classes.md")
    tests = {
        node.name
        for name in (
            "test_worker_classes.py",
            "test_asgi.py",
            "test_http2.py",
            "test_more_classes.py",
        )
        for node in ast.parse(
            (TESTS / "functional" / "worker_classes" / name).read_text(encoding="utf-8")
        ).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    # Those are about no cell: that nothing is said where all works, and what is not part of a
    # shutdown.
    beside = {
        "test_nothing_is_said_where_all_works",
        "test_sigterm_to_one_worker_by_hand_replaces_it",
        "test_sigterm_while_the_application_is_imported_exits_at_once",
    }
    assert set(re.findall(r"`(test_\w+)`", page)) == tests - beside
    rows = [row for row in page.splitlines() if row.startswith("| ") and not row.startswith("| |")]
    assert [row for row in rows if not re.search(r"\| `test_\w+`(, `test_\w+`)* \|$", row)] == []


# -- form ----


def prose(page: str) -> str:
    """A page without its code, and without the addresses of other sites."""
    text = re.sub(r"\(https://[^)]*\)", "", read(page))
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))


@pytest.mark.parametrize("page", NAMES)
def test_the_words_are_those_of_the_design(page: str) -> None:
    """One word for one thing; these are words for something else, or for nothing."""
    avoided = r"\b(quiesc\w*|masters?|healthy|maintenance|graceful mode|timeouts?|killed)\b"
    assert re.findall(avoided, prose(page), re.I) == []


@pytest.mark.parametrize("page", NAMES)
def test_lines_are_at_most_120_characters_long(page: str) -> None:
    """But for tables, whose rows Markdown cannot wrap, and for links."""
    assert [
        line
        for line in read(page).splitlines()
        if len(line) > 120 and not line.startswith("|") and " " in line
    ] == []


def anchors(text: str) -> set[str]:
    """The anchors that a page's headings get."""
    kept = string.ascii_lowercase + string.digits + "-_ "
    titles = [title.lower() for title in re.findall(r"^#+ (.*)$", text, re.M)]
    return {"".join(c for c in title if c in kept).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", NAMES)
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link names a file that is there, and a heading of it."""
    for target in re.findall(r"\]\((?!https://)([^)]+)\)", read(page)):
        path, _, anchor = target.partition("#")
        file = (DOCS / page).parent / path if path else DOCS / page
        assert file.is_file(), target
        if anchor:
            assert anchor in anchors(file.read_text(encoding="utf-8")), target


if __name__ == "__main__":
    rewrite()
    sys.exit()
