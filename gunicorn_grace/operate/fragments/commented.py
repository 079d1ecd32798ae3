"""Writes YAML with comments above keys, which PyYAML cannot do."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 100
"""A mapping is written in one line if that line is shorter than this."""

_PLAIN = re.compile(r"[A-Za-z/][A-Za-z0-9_./-]*")
_WORDS = {"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"}
"""The words that YAML 1.1 does not read as strings."""


@dataclass(frozen=True)
class Said:
    """A value with a comment.

    :ivar value: the value.
    :ivar why: the lines of the comment above its key, one reason in each.
    """

    value: Any
    why: tuple[str, ...]


def said(value: Any, *why: str) -> Said:
    """Return a value with the reasons for it."""
    return Said(value, why)


def document(value: Mapping[str, Any]) -> str:
    """Return a mapping as a YAML document."""
    return "\n".join(_mapping(value, "")) + "\n"


def bare(value: Any) -> Any:
    """Return a value without its comments."""
    if isinstance(value, Said):
        return bare(value.value)
    if isinstance(value, Mapping):
        return {key: bare(item) for key, item in value.items()}
    return [bare(item) for item in value] if isinstance(value, (list, tuple)) else value


def _mapping(value: Mapping[str, Any], pad: str) -> list[str]:
    lines: list[str] = []
    for key, item in value.items():
        if isinstance(item, Said):
            lines += [f"{pad}# {why}" for why in item.why]
            item = item.value
        head = f"{pad}{scalar(key)}:"
        if isinstance(item, str) and "\n" in item:
            lines += [f"{head} |-", *(f"{pad}  {line}".rstrip() for line in item.splitlines())]
        elif (flat := _flat(item)) is not None and len(head) + len(flat) < WIDTH:
            lines.append(f"{head} {flat}")
        elif isinstance(item, Mapping):
            lines += [head, *_mapping(item, f"{pad}  ")]
        else:
            lines += [head, *_items(item, f"{pad}  ")]
    return lines


def _items(items: Sequence[Any], pad: str) -> list[str]:
    lines: list[str] = []
    for item in items:
        if isinstance(item, Said):
            lines += [f"{pad}# {why}" for why in item.why]
            item = item.value
        flat = _flat(item)
        if flat is not None and len(flat) < WIDTH and (not isinstance(item, Mapping) or _few(item)):
            lines.append(f"{pad}- {flat}")
            continue
        if not isinstance(item, Mapping):
            lines.append(f"{pad}- {flat}")
            continue
        inner = _mapping(item, f"{pad}  ")
        first = next(n for n, line in enumerate(inner) if not line.lstrip().startswith("#"))
        inner[first] = f"{pad}- {inner[first].lstrip()}"
        lines += inner
    return lines


def _few(item: Mapping[str, Any]) -> bool:
    return len(item) <= 3


def _flat(value: Any) -> str | None:
    """Return a value in one line; None if it does not fit there, because a part of it has a comment
    or it has too many parts."""
    if isinstance(value, Said):
        return None
    if isinstance(value, Mapping):
        parts = [(scalar(key), _flat(item)) for key, item in value.items()]
        if len(parts) > 3 or any(part is None for _, part in parts):
            return None
        return "{" + ", ".join(f"{key}: {part}" for key, part in parts) + "}"
    if isinstance(value, (list, tuple)):
        items = [_flat(item) for item in value]
        if any(item is None for item in items) or any(isinstance(i, Mapping) for i in value):
            return None
        return "[" + ", ".join(filter(None, items)) + "]"
    return scalar(value)


def scalar(value: Any) -> str:
    """Return a number, a flag or a string for YAML. A string that YAML would read as something else
    is put in quotes."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, float)):
        return str(value)
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return quoted(text)


def quoted(text: str) -> str:
    """Return a string in double quotes, which YAML and HCL read alike."""

    def one(c: str) -> str:
        if c in '"\\':
            return f"\\{c}"
        return c if c.isprintable() else f"\\U{ord(c):08x}"

    return '"' + "".join(map(one, text)) + '"'
