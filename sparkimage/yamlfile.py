"""Reads YAML that people write: with the line of every key, and with limits.

The safe loader's node graph is walked instead of its result, since only nodes know their lines,
and since a recursive or exploding alias can be refused before it is expanded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sparkimage.errors import ConfigError, Problem

MAX_BYTES = 1 << 20
MAX_NODES = 200_000
"""Nodes after the expansion of aliases; 1,000 variants written out have about 20,000."""

MAX_DEPTH = 50
"""Lists and mappings within each other; libyaml's composer recurses in C, without a limit."""

Key = tuple[str | int, ...]
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True, kw_only=True)
class Document:
    """A file's data, and the line (from 1) of every key path in it."""

    file: str
    data: Any
    lines: dict[Key, int]

    def line(self, key: Key) -> int:
        """The line of ``key``, or of its nearest parent that the file has."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)


def load(path: Path, *, if_missing: str = "name another one") -> Document:
    """Read one YAML document; ``if_missing`` is what to do when there is no such file.

    Raises ``ConfigError`` for everything that is wrong with it.
    """
    text = _read(path, if_missing)
    try:
        _check_depth(path, text)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        hint = "write one document, without `---` between parts"
        if "expected a single document" not in str(error):
            hint = "correct the YAML here; indent with spaces, and quote values with `: ` or `#`"
        raise _wrong(path, line, f"this is no YAML: {error.problem}", hint) from None
    except yaml.YAMLError as error:
        raise _wrong(path, 1, f"this is no YAML: {error}", "save it as plain UTF-8 text") from None
    if node is None:
        raise _wrong(path, 1, "the file is empty", "write at least `version: 1`; see README")
    walker = _Walker(path)
    data = walker.walk(node, ())
    if walker.problems:
        raise ConfigError(walker.problems)
    return Document(file=path.name, data=data, lines=walker.lines)


def _read(path: Path, if_missing: str) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise _wrong(
                path, 1, f"the file is larger than {MAX_BYTES >> 20} MiB", "is it the right file?"
            )
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise _wrong(path, 1, "the file does not exist", if_missing) from None
    except UnicodeDecodeError as error:
        raise _wrong(
            path, 1, f"the file is not UTF-8: {error.reason}", "save it as UTF-8"
        ) from None
    except OSError as error:
        raise _wrong(
            path, 1, f"the file cannot be read: {error.strerror}", "check its path and permissions"
        ) from None


def _check_depth(path: Path, text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                line = event.start_mark.line + 1 if event.start_mark else 1
                raise _wrong(
                    path, line, f"values are nested over {MAX_DEPTH} deep",
                    "is it the right file?",
                )  # fmt: skip
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _wrong(path: Path, line: int, what: str, todo: str) -> ConfigError:
    return ConfigError([Problem(file=path.name, line=line, what=what, todo=todo)])


class _Walker:
    """Turns nodes into data, noting lines, duplicate keys, and aliases that never end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Key, int] = {}
        self.problems: list[Problem] = []
        self.open: set[int] = set()
        self.seen = 0
        # Only used to give scalars their types by the safe rules.
        self.scalars = yaml.SafeLoader("")

    def walk(self, node: yaml.Node, key: Key) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(key, line)
        self.seen += 1
        if self.seen > MAX_NODES:
            raise _wrong(
                self.path, line, f"aliases expand to more than {MAX_NODES} values",
                "write the values out instead of nesting aliases",
            )  # fmt: skip
        if id(node) in self.open:
            raise _wrong(
                self.path, line, "an alias contains itself", "remove the alias (`*name`) here"
            )
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, key)
            if isinstance(node, yaml.SequenceNode):
                return [self.walk(item, (*key, i)) for i, item in enumerate(node.value)]
            try:
                return self.scalars.construct_object(node)
            except (yaml.YAMLError, ValueError) as error:
                reason = getattr(error, "problem", None) or str(error)
                self._problem(line, f"this value cannot be read: {reason}", "quote it")
                return None
        finally:
            self.open.discard(id(node))

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for name_node, value in node.value:
            line = name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode):
                self._problem(line, "a key must be a plain word", "write `name: value`")
                continue
            # The text as written: a version such as 2.30 must not become the number 2.3.
            name = name_node.value
            if name in data:
                self._problem(line, f"the key {name!r} stands here twice", "keep one of the two")
            self.lines[(*key, name)] = line
            data[name] = self.walk(value, (*key, name))
        return data

    def _problem(self, line: int, what: str, todo: str) -> None:
        self.problems.append(Problem(file=self.path.name, line=line, what=what, todo=todo))
