"""Writes the result of ``check``: text for people, JSON for programs, SARIF 2.1.0 for code
scanners."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

from ...shared.text import in_one_line
from ...shared.version import __version__
from .findings import PAGE, RULES, Finding, Rule, Severity
from .judging import Verdict

WIDTH = 80
VERSION = 1
"""The version of the JSON document. It grows when a field is removed or changes its meaning, not
when one is added."""

SARIF_SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)

Paint = Callable[[str, str], str]


def plain(text: str, what: str) -> str:
    """Return the text without colour."""
    return text


def text(verdict: Verdict, paint: Paint = plain) -> str:
    """Return the result as text of 80 columns. The consequence for users is written only once for
    each rule.

    :param verdict: the result.
    :param paint: colours a text; its second argument is ``error``, ``warning``, ``note`` or
        ``dim``.
    """
    lines: list[str] = []
    told: set[str] = set()
    for finding in verdict.findings:
        lines += [*_one(finding, paint, finding.rule.id not in told), ""]
        told.add(finding.rule.id)
    for finding, reason in verdict.ignored:
        lines += _wrap(f"{place(finding)}: {finding.rule.id} ignored: {printable(reason)}", "")
    lines += _wrap(summary(verdict), "")
    if told:
        lines += _wrap(f"{PAGE} explains each rule.", "")
    return "\n".join(lines) + "\n"


def _one(finding: Finding, paint: Paint, is_first: bool) -> list[str]:
    level = finding.severity.value
    about = ", ".join(filter(None, (finding.workload, finding.container)))
    lines = [
        f"{printable(place(finding))}: {paint(level, level)} {finding.rule.id}"
        + (paint(f" ({printable(about)})", "dim") if about else "")
    ]
    lines += _wrap(printable(finding.what), "  ")
    if is_first and finding.severity is not Severity.NOTE:
        lines += _wrap(_bare(finding.rule.users), "  users: ")
    return lines + _wrap(printable(finding.fix), "  fix: ")


def _bare(markdown: str) -> str:
    return markdown.replace("`", "")


def _wrap(what: str, head: str) -> list[str]:
    return textwrap.wrap(
        what,
        WIDTH,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    )


printable = in_one_line
"""Makes a text safe for a terminal. A manifest may contain control characters."""


def place(finding: Finding) -> str:
    """Return the file and the line of a finding."""
    return f"{finding.source}:{finding.line}" if finding.line else finding.source


def summary(verdict: Verdict) -> str:
    """Return the last line of the text: the number of findings and of containers."""
    counts = ", ".join(
        f"{verdict.count(severity)} {severity.value}{'' if verdict.count(severity) == 1 else 's'}"
        for severity in Severity
    )
    number = len(verdict.judged)
    if not number:
        return f"{counts}; no container was judged."
    return f"{counts} in {number} container{'' if number == 1 else 's'}."


def as_json(verdict: Verdict, strict: bool = False) -> str:
    """Return the result as a JSON document.

    :param verdict: the result.
    :param strict: whether warnings count as errors.
    """
    document = {
        "schema": VERSION,
        "version": __version__,
        "passed": not verdict.fails(strict),
        "counts": {severity.value: verdict.count(severity) for severity in Severity},
        "judged": list(verdict.judged),
        "findings": [_fields(finding) for finding in verdict.findings],
        "ignored": [{**_fields(finding), "reason": reason} for finding, reason in verdict.ignored],
    }
    return json.dumps(document, indent=2, default=str) + "\n"


def _fields(finding: Finding) -> dict[str, Any]:
    return {
        "rule": finding.rule.id,
        "severity": finding.severity.value,
        "file": finding.source,
        "line": finding.line or None,
        "workload": finding.workload or None,
        "container": finding.container or None,
        "message": finding.what,
        "users": _bare(finding.rule.users),
        "fix": finding.fix,
        "page": finding.rule.page,
        "can_be_fixed": finding.patch is not None,
    }


def as_sarif(verdict: Verdict) -> str:
    """Return the result for code scanners, in the Static Analysis Results Interchange Format
    2.1.0."""
    numbers = {rule: number for number, rule in enumerate(RULES)}

    def result(finding: Finding, reason: str | None = None) -> dict[str, Any]:
        location: dict[str, Any] = {"artifactLocation": {"uri": quote(finding.source)}}
        if finding.line:
            location["region"] = {"startLine": finding.line}
        about = ", ".join(filter(None, (finding.workload, finding.container)))
        found: dict[str, Any] = {
            "ruleId": finding.rule.id,
            "ruleIndex": numbers[finding.rule.id],
            "level": finding.severity.value,
            "message": {
                "text": f"{about}: {finding.what}. Fix: {finding.fix}."
                if about
                else f"{finding.what}. Fix: {finding.fix}."
            },
            "locations": [{"physicalLocation": location}],
        }
        if reason is not None:
            found["suppressions"] = [{"kind": "inSource", "justification": reason}]
        return found

    run = {
        "tool": {
            "driver": {
                "name": "gunicorn-grace check",
                "version": __version__,
                "rules": [_described(rule) for rule in RULES.values()],
            }
        },
        "results": [
            *(result(finding) for finding in verdict.findings),
            *(result(finding, reason) for finding, reason in verdict.ignored),
        ],
    }
    document = {"$schema": SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(document, indent=2) + "\n"


def _described(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "shortDescription": {"text": rule.title},
        "fullDescription": {"text": _bare(rule.users)},
        "help": {
            "text": f"{_bare(rule.fix)} See {rule.page}.",
            "markdown": f"{rule.fix} See {rule.page}.",
        },
        "defaultConfiguration": {"level": rule.severity.value},
    }
