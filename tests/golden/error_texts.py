"""Every error that the sources can raise, as a user reads it: the values that a message names are
in braces. What is built from other parts than texts at its place is not shown."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sparkimage.core import errors
from sparkimage.core.errors import CommandError, ConfigError, SparkError

PACKAGE = Path(errors.__file__).parents[1]
KINDS: Mapping[str, type[SparkError]] = {
    name: kind
    for name, kind in vars(errors).items()
    if isinstance(kind, type)
    and issubclass(kind, SparkError)
    # Their texts are those of a file's problems, and of a command.
    and kind not in (ConfigError, CommandError)
}


def all_errors() -> Iterator[tuple[str, SparkError]]:
    """Each error and its module, in the order of the sources."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).as_posix()
        tree = ast.parse(path.read_text())
        reader = _Reader(constants=_assigned(tree.body))
        reader.visit(tree)
        yield from ((module, error) for error in reader.found)


@dataclass
class _Reader(ast.NodeVisitor):
    """Reads a module."""

    constants: Mapping[str, ast.expr]
    found: list[SparkError] = field(default_factory=list)
    assigned: dict[str, ast.expr] = field(default_factory=dict)
    """What the function that is read has assigned to a name, the last value."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self.assigned = self.assigned, _assigned(ast.walk(node))
        self.generic_visit(node)
        self.assigned = outer

    def visit_Call(self, node: ast.Call) -> None:
        self.generic_visit(node)
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in KINDS and node.args:
            words = {word.arg: self.text(word.value) for word in node.keywords if word.arg}
            self.found.append(
                KINDS[name](
                    self.text(node.args[0]),
                    hint=words.get("hint", ""),
                    detail=words.get("detail", ""),
                )
            )

    def text(self, node: ast.expr) -> str:
        """An expression as text, with its values in braces."""
        match node:
            case ast.Constant():
                return str(node.value)
            case ast.JoinedStr():
                return "".join(map(self.text, node.values))
            case ast.FormattedValue(value=ast.Call(func=ast.Name(id="program"))):
                return "sparkimage"
            case ast.FormattedValue(value=ast.IfExp() | ast.BoolOp() as value):
                return self.text(value)
            case ast.IfExp():
                return self.text(node.body) or self.text(node.orelse)
            case ast.BoolOp():
                return self.text(node.values[-1])
            case ast.BinOp(op=ast.Add()):
                return self.text(node.left) + self.text(node.right)
            case ast.Name(id=name) if name in self.assigned:
                return self.text(self.assigned.pop(name))
            case ast.Name(id=name) | ast.FormattedValue(value=ast.Name(id=name)) if (
                name in self.constants
            ):
                return self.text(self.constants[name])
            case ast.FormattedValue():
                return _name(node.value)
        return _name(node)


def _assigned(nodes: Iterable[ast.AST]) -> dict[str, ast.expr]:
    return {
        node.targets[0].id: node.value
        for node in nodes
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }


def _name(node: ast.expr) -> str:
    """A value by its last name: ``{digest}`` of `image.digest[:19]`."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return f"{{{name}}}"
        case ast.Subscript(value=value) | ast.Starred(value=value):
            return _name(value)
        case ast.Call(func=ast.Attribute(value=value, attr=method), args=[]) if hasattr(
            bytes, method
        ):
            return _name(value)
        case ast.Call(args=[*_, last]):
            return _name(last)
        case ast.Call(func=function):
            return _name(function)
    return "{…}"
