"""Rules and their findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .case import Case

PAGE = "docs/reference/check.md"
"""The page that explains the rules. Each rule has a heading with its id."""


class Severity(Enum):
    """The severity of a finding. An error costs requests, or the pod never gets ready. A warning
    can cost requests. A note says that something cannot be seen, or is worth a look."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Patch:
    """The parts to merge into an object so that the rule no longer finds anything.

    :ivar spec: into the ``spec`` of the object.
    :ivar pod: into the pod's spec.
    :ivar container: into the container.
    """

    spec: dict[str, Any] = field(default_factory=dict)
    pod: dict[str, Any] = field(default_factory=dict)
    container: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """A fault that a rule has found.

    :ivar rule: the rule.
    :ivar severity: the severity of this finding, which may differ from the rule's.
    :ivar source: the name of the file.
    :ivar line: the line number from 1; 0 for the whole file.
    :ivar what: the values and the limit, in one line.
    :ivar fix: what to write instead.
    :ivar workload: the workload, such as ``Deployment web``; empty for the whole file.
    :ivar container: the name of the container; empty without one.
    :ivar patch: the fix as a patch; None if only a person can decide on the fix.
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
    """The part of a finding that a rule yields. The caller of the rule adds the rest.

    :ivar line: the line number in the manifest.
    :ivar what: the values and the limit, in one line.
    :ivar fix: what to write instead.
    :ivar patch: the fix as a patch; None if only a person can decide on the fix.
    :ivar severity: the severity; None for the rule's usual severity.
    :ivar source: the name of the file; None for the manifest.
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

    :ivar id: its name. It is also the rule's heading in the docs, and annotations use it.
    :ivar severity: its usual severity.
    :ivar title: what is wrong, in a few words.
    :ivar users: what happens to users.
    :ivar fix: what to do.
    :ivar search: yields the hits for a container; None if another module makes the findings.
    """

    id: str
    severity: Severity
    title: str
    users: str
    fix: str
    search: Search | None = field(default=None, compare=False, repr=False)

    @property
    def page(self) -> str:
        """The place in the docs that explains the rule."""
        return f"{PAGE}#{self.id}"


RULES: dict[str, Rule] = {}
"""All rules by their ids, in the order of the docs."""


def rule(id: str, severity: Severity, title: str, users: str, fix: str) -> Callable[[Search], Rule]:
    """Return a decorator that turns a function into a rule and adds the rule to the table. The
    function yields the rule's hits for a container.

    :param id: the rule's name.
    :param severity: its usual severity.
    :param title: what is wrong, in a few words.
    :param users: what happens to users.
    :param fix: what to do.
    """

    def register(search: Search) -> Rule:
        return add(Rule(id, severity, title, users, fix, search))

    return register


def add(new: Rule) -> Rule:
    """Add a rule to the table, and return it."""
    RULES[new.id] = new
    return new
