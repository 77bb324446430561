"""Reads YAML that people write: with the line of every key, and with limits.

The safe loader's node graph is walked instead of its result: only nodes know their lines, and a
recursive or exploding alias is refused before it is expanded.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import Reader

from sparkimage.config import yamlsyntax
from sparkimage.core import secrets
from sparkimage.core.errors import ConfigError, Problem
from sparkimage.core.files import shown

MAX_BYTES = 1 << 20
MAX_NODES = 200_000
"""Nodes after the expansion of aliases; 1,000 variants written out have about 20,000."""
MAX_DEPTH = 50
"""Lists and mappings within each other; libyaml's composer recurses in C, without a limit."""
MAX_DIGITS = 100
"""Of a number: Python's time for one grows with the square of their count."""

Key = tuple[str | int, ...]
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_STRINGS = (f"{_TAG}str", f"{_TAG}timestamp", f"{_TAG}value", _MERGE)
"""Tags of scalars that are strings here: dates and `=` have no meaning of their own, and `<<` has
one only as a key."""
Pairs = list[tuple[yaml.Node, yaml.Node]]


@dataclass(kw_only=True)
class Document:
    """A file's data, with what its data does not tell."""

    file: str
    text: str = ""
    data: Any = None
    lines: dict[Key, int] = field(default_factory=dict)
    """The line, from 1, of every key path."""
    literals: dict[Key, str] = field(default_factory=dict)
    """Every value that is not a string, as it is written: 3.10 is the number 3.1."""

    def line(self, key: Key) -> int:
        """The line of ``key``, or of its nearest parent that the file has."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)

    def problem(self, key: Key, what: str, todo: str) -> Problem:
        """A problem at ``key``."""
        return self.problem_at(self.line(key), what, todo)

    def problem_at(self, line: int, what: str, todo: str) -> Problem:
        """A problem in a line. No secret of the file is in its words."""
        return Problem(file=self.file, line=line, what=self.hide(what), todo=self.hide(todo))

    @cached_property
    def hide(self) -> Callable[[str], str]:
        """What replaces the secrets of the file in a text."""
        return secrets.hider(secrets.values_in(self.text))


def own(text: str) -> Any:
    """The data of a file of this package, which has no problems."""
    return yaml.load(text, Loader=_Loader)  # noqa: S506  # one of the safe loaders


def load(
    path: Path, *, if_missing: str = "pass another one", max_bytes: int = MAX_BYTES
) -> Document:
    """Read one YAML document; ``if_missing`` is the next action when there is no such file.

    Raises ``ConfigError`` for everything that is wrong with it.
    """
    text = _read(path, if_missing, max_bytes)
    reader = _Reader(Document(file=shown(path), text=text))
    try:
        _check_depth(path, text)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        line, what, todo = yamlsyntax.explain(text, error, _Loader)
        problem = reader.document.problem_at(line, f"invalid YAML: {what}", todo)
        raise ConfigError([problem]) from None
    except yaml.YAMLError as error:
        raise _error(path, 1, f"invalid YAML: {error}", "save it as plain UTF-8 text") from None
    if node is None:
        raise _error(path, 1, "the file is empty", "write at least `version: 1`; see README")
    reader.document.data = reader.value(node, ())
    if reader.problems:
        raise ConfigError(reader.problems)
    return reader.document


def _read(path: Path, if_missing: str, max_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise _error(path, 1, "the file does not exist", if_missing) from None
    except OSError as error:
        what = f"the file cannot be read: {error.strerror}"
        raise _error(path, 1, what, "check its path and permissions") from None
    if len(content) > max_bytes:
        what = f"the file is larger than {max_bytes >> 20} MiB"
        raise _error(path, 1, what, "is it the right file?")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise _error(path, 1, "the file is UTF-16", "save it as UTF-8") from None
        raise ConfigError([Problem.of_encoding(shown(path), error)]) from None
    if control := Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, control.start()) + 1
        what = f"invalid YAML: the control character U+{ord(control[0]):04X} is not allowed"
        raise _error(path, line, what, "remove it")
    return text


def _check_depth(path: Path, text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1 if event.start_mark else 1
            what = f"values are nested over {MAX_DEPTH} deep"
            raise _error(path, line, what, "is it the right file?")


def _error(path: Path, line: int, what: str, todo: str) -> ConfigError:
    return ConfigError([Problem(file=shown(path), line=line, what=what, todo=todo)])


class _Reader:
    """Turns nodes into data, with lines, duplicate keys, tags, and aliases that never end."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.problems: list[Problem] = []
        self.open: set[int] = set()
        self.merged: dict[int, Pairs] = {}
        self.count = 0
        # Only used to give scalars their types by the safe rules.
        self.scalars: Any = yaml.SafeLoader("")

    def value(self, node: yaml.Node, key: Key) -> Any:
        line = node.start_mark.line + 1
        self.document.lines.setdefault(key, line)
        self.count += 1
        if self.count > MAX_NODES:
            what = f"with aliases expanded, the file has more than {MAX_NODES} values"
            todo = "is it the right file? Write values out instead of nesting aliases"
            raise ConfigError([self.document.problem_at(line, what, todo)])
        if isinstance(node, yaml.ScalarNode):
            return node.value if node.tag in _STRINGS else self._scalar(node, key)
        if id(node) in self.open:
            what = "an alias contains itself"
            problem = self.document.problem_at(line, what, "remove the alias (`*name`) here")
            raise ConfigError([problem])
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                self._check_tag(node, f"{_TAG}map")
                return self._mapping(node, key)
            self._check_tag(node, f"{_TAG}seq")
            return [self.value(item, (*key, i)) for i, item in enumerate(node.value)]
        finally:
            self.open.discard(id(node))

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> Any:
        self.document.literals[key] = node.value
        plain = not node.style
        usual = self.scalars.resolve(yaml.ScalarNode, node.value, (plain, not plain))
        if not self._check_tag(node, usual):
            return None
        if len(node.value) > MAX_DIGITS:
            self._add(node, f"this number is longer than {MAX_DIGITS} digits", "quote it")
            return None
        try:
            return self.scalars.construct_object(node)
        except ValueError:
            self._add(node, f"{node.value} looks like a number, but is none", "quote it")
            return None

    def _check_tag(self, node: yaml.Node, usual: str) -> bool:
        """Whether the node has no other tag written out, such as `!!set` or `!mine`."""
        if node.tag != usual:
            tag = node.tag.replace(_TAG, "!!")
            todo = "remove it"
            if isinstance(node, yaml.ScalarNode) and not tag.startswith("!!"):
                todo = f'quote it: "{tag}{" " * bool(node.value)}{node.value}"'
            self._add(node, f"unknown tag `{tag}`", todo)
        return node.tag == usual

    def _mapping(self, node: yaml.MappingNode, key: Key) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for name_node, value in self._pairs(node):
            if not isinstance(name_node, yaml.ScalarNode):
                self._add(name_node, "a key must be a plain word", "write `name: value`")
                continue
            # The text as written: a version such as 2.30 must not become the number 2.3.
            name = name_node.value
            if name in data:
                other = self.document.lines[*key, name]
                what = f"duplicate key {name!r} (the other: line {other})"
                self._add(name_node, what, "keep one of the two")
            self.document.lines[(*key, name)] = name_node.start_mark.line + 1
            data[name] = self.value(value, (*key, name))
        return data

    def _pairs(self, node: yaml.MappingNode) -> Pairs:
        """The keys and values of a mapping, with those that `<<` merges: its own go before.

        https://yaml.org/type/merge.html
        """
        if (known := self.merged.get(id(node))) is not None:
            return known
        own = [pair for pair in node.value if pair[0].tag != _MERGE]
        names = {name.value for name, _ in own if isinstance(name, yaml.ScalarNode)}
        self.merged[id(node)] = own  # for a mapping that merges itself
        more: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for name, value in (pair for pair in node.value if pair[0].tag == _MERGE):
            for one in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(one, yaml.MappingNode):
                    self._add(name, "`<<` merges no mapping", "write `<<: *name`")
                    break
                for pair in self._pairs(one):
                    more.setdefault(str(pair[0].value), pair)
        self.merged[id(node)] = own + [pair for name, pair in more.items() if name not in names]
        return self.merged[id(node)]

    def _add(self, node: yaml.Node, what: str, todo: str) -> None:
        self.problems.append(self.document.problem_at(node.start_mark.line + 1, what, todo))
