"""Reads YAML that people write: with the line of every key, and with limits.

The safe loader's node graph is walked instead of its result, since only nodes know their lines,
and since a recursive or exploding alias can be refused before it is expanded.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import Reader

from sparkimage.core.errors import ConfigError, Problem

MAX_BYTES = 1 << 20
MAX_NODES = 200_000
"""Nodes after the expansion of aliases; 1,000 variants written out have about 20,000."""

MAX_DEPTH = 50
"""Lists and mappings within each other; libyaml's composer recurses in C, without a limit."""

MAX_DIGITS = 100
"""Of a number: Python takes a time that grows with the square of their count."""

Key = tuple[str | int, ...]
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_TAG = "tag:yaml.org,2002:"
_TEXT = (f"{_TAG}str", f"{_TAG}timestamp", f"{_TAG}value", f"{_TAG}merge")
"""Of scalars that are text: dates, `=` and `<<` have no meaning of their own here."""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A file's data, the line (from 1) of every key path in it, and the text of every value that
    is no text, as it is in the file: 3.10 is the number 3.1."""

    file: str
    data: Any
    lines: dict[Key, int]
    words: dict[Key, str]

    def line(self, key: Key) -> int:
        """The line of ``key``, or of its nearest parent that the file has."""
        while key and key not in self.lines:
            key = key[:-1]
        return self.lines.get(key, 1)


def load(
    path: Path, *, if_missing: str = "name another one", max_bytes: int = MAX_BYTES
) -> Document:
    """Read one YAML document; ``if_missing`` is what to do when there is no such file.

    Raises ``ConfigError`` for everything that is wrong with it.
    """
    text = _read(path, if_missing, max_bytes)
    try:
        _check_depth(path, text)
        node = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = min(mark.line, text.count("\n")) + 1 if mark else 1
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
    return Document(file=path.name, data=data, lines=walker.lines, words=walker.words)


def _read(path: Path, if_missing: str, max_bytes: int) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(max_bytes + 1)
    except FileNotFoundError:
        raise _wrong(path, 1, "the file does not exist", if_missing) from None
    except OSError as error:
        raise _wrong(
            path, 1, f"the file cannot be read: {error.strerror}", "check its path and permissions"
        ) from None
    if len(content) > max_bytes:
        what = f"the file is larger than {max_bytes >> 20} MiB"
        raise _wrong(path, 1, what, "is it the right file?")
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        what = f"the file is not UTF-8: {error.reason}"
        raise _wrong(path, line, what, "save it as UTF-8") from None
    odd = Reader.NON_PRINTABLE.search(text)
    if odd is not None:
        line = text.count("\n", 0, odd.start()) + 1
        what = f"this is no YAML: the control character U+{ord(odd[0]):04X} is not allowed"
        raise _wrong(path, line, what, "remove it")
    return text


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
    """Turns nodes into data, noting lines, duplicate keys, tags, and aliases that never end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[Key, int] = {}
        self.words: dict[Key, str] = {}
        self.problems: list[Problem] = []
        self.open: set[int] = set()
        self.seen = 0
        # Only used to give scalars their types by the safe rules.
        self.scalars: Any = yaml.SafeLoader("")

    def walk(self, node: yaml.Node, key: Key) -> Any:
        line = node.start_mark.line + 1
        self.lines.setdefault(key, line)
        self.seen += 1
        if self.seen > MAX_NODES:
            raise _wrong(
                self.path, line, f"with aliases expanded, these are more than {MAX_NODES} values",
                "is it the right file? Write values out instead of nesting aliases",
            )  # fmt: skip
        if isinstance(node, yaml.ScalarNode):
            return node.value if node.tag in _TEXT else self._scalar(node, key)
        if id(node) in self.open:
            raise _wrong(
                self.path, line, "an alias contains itself", "remove the alias (`*name`) here"
            )
        self.open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                self._has_usual_tag(node, f"{_TAG}map")
                return self._mapping(node, key)
            self._has_usual_tag(node, f"{_TAG}seq")
            return [self.walk(item, (*key, i)) for i, item in enumerate(node.value)]
        finally:
            self.open.discard(id(node))

    def _scalar(self, node: yaml.ScalarNode, key: Key) -> Any:
        line, plain = node.start_mark.line + 1, not node.style
        self.words[key] = node.value
        usual = self.scalars.resolve(yaml.ScalarNode, node.value, (plain, not plain))
        if not self._has_usual_tag(node, usual):
            return None
        if len(node.value) > MAX_DIGITS:
            self._problem(line, f"this number is longer than {MAX_DIGITS} digits", "quote it")
            return None
        try:
            return self.scalars.construct_object(node)
        except ValueError:
            self._problem(line, f"{node.value} looks like a number, but is none", "quote it")
            return None

    def _has_usual_tag(self, node: yaml.Node, usual: str) -> bool:
        """Whether no other tag is written out, such as `!!set` or `!mine`."""
        if node.tag != usual:
            tag = node.tag.replace(_TAG, "!!")
            line = node.start_mark.line + 1
            self._problem(line, f"the tag `{tag}` has no meaning here", "remove it")
        return node.tag == usual

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
