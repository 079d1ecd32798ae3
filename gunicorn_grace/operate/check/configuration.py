"""Reads a gunicorn configuration file without executing it.

A setting is seen if it is written as a value, or computed in a simple way from values and the
environment. All other settings are reported as not seen.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import GraceError

LARGEST = 1024 * 1024
"""The largest configuration file that is read, in bytes."""


class NotSeen(Exception):
    """A value cannot be found without executing the file."""


class ConfigurationUnreadable(GraceError):
    """The configuration file cannot be read, or is not Python."""


@dataclass(frozen=True)
class Configuration:
    """A configuration file.

    :ivar source: the name of the file, as the command got it.
    :ivar tree: its syntax tree.
    :ivar loads_plugin: whether it names the plugin.
    """

    source: str
    tree: ast.Module = field(repr=False)
    loads_plugin: bool = False

    def values(
        self, environ: Mapping[str, str]
    ) -> tuple[dict[str, tuple[int, Any]], dict[str, int]]:
        """Return the values of the settings and the settings whose value is not seen.

        :param environ: the environment of the container.
        :returns: each name with its line and its value; each name that is not seen with its line.
        """
        seen: dict[str, tuple[int, Any]] = {}
        unseen: dict[str, int] = {}
        for node in self.tree.body:
            self._assign(node, environ, seen, unseen)
        return seen, unseen

    def _assign(
        self,
        node: ast.stmt,
        environ: Mapping[str, str],
        seen: dict[str, tuple[int, Any]],
        unseen: dict[str, int],
    ) -> None:
        if isinstance(node, ast.Assign):
            targets, value = node.targets, node.value
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            targets, value = [node.target], node.value
        else:
            # The assignment is under a condition or in a loop, so it may not be executed.
            for inner in ast.walk(node):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
                    seen.pop(inner.id, None)
                    unseen[inner.id] = inner.lineno
            return
        names = [target.id for target in targets if isinstance(target, ast.Name)]
        known = {name: value for name, (_, value) in seen.items()}
        try:
            found = _evaluate(value, known, environ)
        except (NotSeen, TypeError, ValueError, ArithmeticError, RecursionError):
            for name in names:
                seen.pop(name, None)
                unseen[name] = node.lineno
        else:
            for name in names:
                unseen.pop(name, None)
                seen[name] = (node.lineno, found)


def read_configuration(name: str) -> Configuration:
    """Read a configuration file. A module, such as ``python:gunicorn_grace.conf``, is not read and
    has no values.

    :param name: the file, as ``--config`` takes it.
    :raises ConfigurationUnreadable: the file cannot be read, is too large, or is not Python.
    """
    if name.startswith("python:"):
        return Configuration(name, ast.Module([], []), "gunicorn_grace" in name)
    path = name.removeprefix("file:")
    try:
        with Path(path).open("rb") as file:
            raw = file.read(LARGEST + 1)
        if len(raw) > LARGEST:
            raise ConfigurationUnreadable(f"--config {name}: it is larger than 1 MiB")
        tree = ast.parse(raw)
    except (OSError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        line = getattr(error, "lineno", None)
        reason = getattr(error, "strerror", None) or getattr(error, "msg", None) or str(error)
        raise ConfigurationUnreadable(
            f"--config {name}{f':{line}' if line else ''}: {reason or 'it is not Python'}"
        ) from error
    return Configuration(name, tree, b"gunicorn_grace" in raw)


_BINARY = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//"}


def _evaluate(node: ast.expr, known: Mapping[str, Any], environ: Mapping[str, str]) -> Any:
    """Return the value of an expression.

    :raises NotSeen: the expression would have to be executed.
    """

    def value(of: ast.expr) -> Any:
        return _evaluate(of, known, environ)

    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, (ast.List, ast.Tuple)):
        return [value(item) for item in node.elts]
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(value(node.operand))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = value(node.left), value(node.right)
        if isinstance(left, str) and isinstance(right, str) and isinstance(node.op, ast.Add):
            return left + right
        return _compute(_BINARY[type(node.op)], _number(left), _number(right))
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(value(part.value if isinstance(part, ast.FormattedValue) else part))
            for part in node.values
        )
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or):
        found = None
        for part in node.values:
            found = value(part)
            if found:
                break
        return found
    if isinstance(node, ast.Call) and not node.keywords:
        name = ast.unparse(node.func)
        args = [value(arg) for arg in node.args]
        if name in ("os.environ.get", "os.getenv", "environ.get", "getenv") and args:
            return environ.get(str(args[0]), args[1] if len(args) > 1 else None)
        if name in ("int", "float", "str") and len(args) == 1:
            return {"int": int, "float": float, "str": str}[name](args[0])
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("os.environ", "environ"):
        name = value(node.slice)
        if name in environ:
            return environ[name]
    raise NotSeen


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > 1e12:
        raise NotSeen
    return value


def _compute(operator: str, left: float, right: float) -> float:
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    return left / right if operator == "/" else left // right
