"""Reads YAML. It keeps the lines of mappings, and checks that values have the types that Kubernetes
expects."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable, Iterator
from typing import Any

import yaml

from ..errors import GraceError


class ManifestError(GraceError):
    """A manifest cannot be read, or does not contain the requested workload.

    :ivar source: name of the file.
    :ivar line: the line number from 1; 0 for the whole file.
    :ivar what: the fault, without file and line.
    """

    def __init__(self, source: str, line: int, what: str) -> None:
        self.source = source
        self.line = line
        self.what = what
        super().__init__(f"{source}:{line}: {what}" if line else f"{source}: {what}")


class Table(dict[Any, Any]):
    """A mapping with line numbers.

    :ivar line: the line where it begins, from 1.
    :ivar lines: the line of each key.
    """

    def __init__(self, line: int = 0) -> None:
        super().__init__()
        self.line = line
        self.lines: dict[Any, int] = {}


MOST_NODES = 500_000
"""The largest number of values that a document may have once its aliases are followed. A few lines
with aliases of aliases can stand for billions of values."""

LONG = 100_000
"""A text of more characters is read with libyaml if PyYAML was built with it, because libyaml is
ten times as fast. Other texts are not, because its messages say less."""


class Loader(yaml.SafeLoader):
    """A safe loader that builds a :class:`Table` for every mapping. All values are plain ones."""


_Quick: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _QuickLoader(_Quick):  # type: ignore[misc]
    """The same as :class:`Loader`, for a long text."""


def _construct(loader: Any, node: yaml.MappingNode) -> Iterator[Table]:
    loader.flatten_mapping(node)
    found = Table(node.start_mark.line + 1)
    yield found
    for key_node, value_node in node.value:
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, Hashable):
            raise yaml.constructor.ConstructorError(
                None, None, "a key is not a scalar", key_node.start_mark
            )
        found[key] = loader.construct_object(value_node, deep=True)
        found.lines[key] = key_node.start_mark.line + 1


def _construct_tagged(loader: Any, suffix: str, node: yaml.Node) -> Any:
    """Build a value with an unknown tag, such as ``!Ref``, as if it had no tag. Kubernetes does the
    same."""
    if isinstance(node, yaml.ScalarNode):
        return loader.construct_scalar(node)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return dict(loader.construct_mapping(node, deep=True))


def _construct_text(loader: Any, node: yaml.ScalarNode) -> Any:
    """Build a date or a lone equals sign as text. JSON has no types for them, so Kubernetes reads
    them as text too."""
    return loader.construct_scalar(node)


for _loader in (Loader, _QuickLoader):
    _loader.add_constructor("tag:yaml.org,2002:map", _construct)
    _loader.add_constructor("tag:yaml.org,2002:timestamp", _construct_text)
    _loader.add_constructor("tag:yaml.org,2002:value", _construct_text)
    _loader.add_multi_constructor("!", _construct_tagged)
    # MkDocs has such tags in files next to the manifests. The objects that they name are not
    # created.
    _loader.add_multi_constructor("tag:yaml.org,2002:python/", _construct_tagged)


def parse_documents(text: str, source: str) -> list[Any]:
    """Read the documents of a YAML stream.

    :param text: the stream.
    :param source: the name of the file, for messages.
    :raises ManifestError: the text is not YAML, or its aliases stand for too many values.
    """
    # PyYAML refuses a tab at the end of a line, and in front of an item of a flow list; Kubernetes'
    # parser does not.
    text = re.sub(r"(?m)\t+[ \t]*(?=(?:#.*)?$)", " ", text)
    text = re.sub(r"(?m)^[ \t]*\t[ \t]*(?=[\"'\]},])", "        ", text)
    try:
        loader = (_QuickLoader if len(text) > LONG else Loader)(text)
        try:
            return list(_documents(loader, source))
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        hint = (
            "; a Helm template has to be rendered first: helm template"
            if re.search(r"\{\{", text)
            else ""
        )
        raise ManifestError(
            source, line, f"not YAML: {error.problem or error.context}{hint}"
        ) from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = (
            "it is nested too deeply"
            if isinstance(error, RecursionError)
            else str(error).partition("\n")[0]
        )
        raise ManifestError(source, 0, f"not YAML: {reason}") from error


def _documents(loader: Any, source: str) -> Iterator[Any]:
    while loader.check_node():
        node = loader.get_node()
        # The values are counted before they are built, because a merge key copies the values of its
        # alias.
        if _weight(node, {}) > MOST_NODES:
            raise ManifestError(
                source,
                node.start_mark.line + 1,
                f"its aliases stand for more than {MOST_NODES} values: write them out",
            )
        yield loader.construct_document(node)


def _weight(node: yaml.Node, known: dict[int, float]) -> float:
    """Return the number of values that a node has once its aliases are followed. It is infinite if
    the node contains itself.

    :param node: the node.
    :param known: the results for other nodes, by their ``id``.
    """
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = math.inf
        parts = node.value
        if isinstance(node, yaml.MappingNode):
            parts = [part for pair in parts for part in pair]
        known[id(node)] = 1 + sum(_weight(part, known) for part in parts)
    return known[id(node)]


def find_objects(documents: list[Any], source: str) -> Iterator[Table]:
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, Table):
            raise ManifestError(
                source, 0, f"it contains {_type_name(document)}, not a Kubernetes object"
            )
        if document.get("kind") == "List":
            yield from find_objects(get_value(document, "items", list, source, []), source)
        else:
            yield document


_TYPE_NAMES = {
    Table: "a mapping",
    dict: "a mapping",
    list: "a list",
    str: "a string",
    int: "a number",
    bool: "true or false",
}


def _type_name(value: object) -> str:
    return "nothing" if value is None else _TYPE_NAMES.get(type(value), type(value).__name__)


def get_value(table: Table, key: str, kind: type, source: str, default: Any = None) -> Any:
    """Return ``table[key]``, which must have this type; ``default`` if it is missing or null. A
    missing :class:`Table` without a default is an empty one.

    :raises ManifestError: the value has another type.
    """
    value = table.get(key)
    if value is None:
        return Table(table.line) if kind is Table and default is None else default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        line = table.lines.get(key, table.line)
        shown = f" ({value!r})" if not isinstance(value, (dict, list)) else ""
        raise ManifestError(
            source, line, f"{key} is {_type_name(value)}{shown}, not {_TYPE_NAMES[kind]}"
        )
    return value


def get_number(table: Table, key: str, source: str, default: int, least: int = 0) -> int:
    value = int(get_value(table, key, int, source, default))
    if value < least:
        raise ManifestError(
            source, table.lines.get(key, table.line), f"{key} {value} is less than {least}"
        )
    return value


def get_tables(table: Table, key: str, source: str) -> list[Table]:
    """Return a list of mappings; an empty list if the key is missing.

    :raises ManifestError: the value is not such a list.
    """
    found = get_value(table, key, list, source, [])
    for item in found:
        if not isinstance(item, Table):
            raise ManifestError(
                source,
                table.lines.get(key, table.line),
                f"{key} holds {_type_name(item)}, not a mapping",
            )
    return list(found)


def get_words(table: Table, key: str, source: str) -> tuple[str, ...]:
    """Return a list of strings; an empty tuple if the key is missing.

    :raises ManifestError: the value is not such a list.
    """
    found = get_value(table, key, list, source, [])
    for item in found:
        if not isinstance(item, str):
            line = table.lines.get(key, table.line)
            raise ManifestError(
                source, line, f"{key} holds {_type_name(item)} ({item!r}): put it in quotes"
            )
    return tuple(found)
