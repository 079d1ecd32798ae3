"""What a rule is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .case import Case

PAGE = "docs/reference/check.md"
"""The page that explains the rules. Each has a heading of its id."""


class Severity(Enum):
    """How bad a finding is. An error costs requests, or the pod never gets ready. A warning can
    cost requests. A note is something that cannot be seen from here, or that is worth a look."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Patch:
    """What to merge into an object so that a finding is gone.

    :ivar spec: into the ``spec`` of the object.
    :ivar pod: into the pod's spec.
    :ivar container: into the container.
    """

    spec: dict[str, Any] = field(default_factory=dict)
    pod: dict[str, Any] = field(default_factory=dict)
    container: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """One thing that a rule has found.

    :ivar rule: the rule.
    :ivar severity: how bad it is here.
    :ivar source: name of the file.
    :ivar line: line number from 1, or 0 for the whole file.
    :ivar what: the values and the limit, in one line.
    :ivar fix: what to write instead.
    :ivar workload: what it is about, such as ``Deployment web``; empty for the whole file.
    :ivar container: name of the container.
    :ivar patch: the fix for a program; None where only a person can know it.
    """

    rule: Rule
    severity: Severity
    source: str
    line: int
    what: str
    fix: str
    workload: str = ""
    container: str = ""
    patch: Patch | None = None


@dataclass(frozen=True)
class Hit:
    """What a rule says about one container; the rest of a finding is known to whoever asks it.

    :ivar line: line number in the manifest.
    :ivar what: the values and the limit, in one line.
    :ivar fix: what to write instead.
    :ivar patch: the fix for a program.
    :ivar severity: how bad it is here; None for the rule's usual severity.
    :ivar source: name of the file, if it is not the manifest.
    """

    line: int
    what: str
    fix: str
    patch: Patch | None = None
    severity: Severity | None = None
    source: str | None = None


Search = Callable[["Case"], Iterator[Hit]]


@dataclass(frozen=True)
class Rule:
    """A rule.

    :ivar id: its name, also its heading in the docs, and what an annotation ignores it by.
    :ivar severity: its usual severity.
    :ivar title: what is wrong, in a few words.
    :ivar users: what happens to users.
    :ivar fix: what to do.
    """

    id: str
    severity: Severity
    title: str
    users: str
    fix: str
    search: Search | None = field(default=None, compare=False, repr=False)

    @property
    def page(self) -> str:
        """Where the docs explain it."""
        return f"{PAGE}#{self.id}"


RULES: dict[str, Rule] = {}
"""All rules by their ids, in the order of the docs."""


def rule(id: str, severity: Severity, title: str, users: str, fix: str) -> Callable[[Search], Rule]:
    """Make a rule of a function that yields its findings."""

    def register(search: Search) -> Rule:
        return add(Rule(id, severity, title, users, fix, search))

    return register


def add(new: Rule) -> Rule:
    """Add a rule to the table."""
    RULES[new.id] = new
    return new
