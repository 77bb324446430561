"""YAML that people write: what is refused, at which line, and that nothing in it is run."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest

from sparkimage.config import yamlfile
from sparkimage.core.errors import ConfigError


def refused(tmp_path: Path, content: bytes) -> list[tuple[int, str]]:
    path = tmp_path / "some.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as error:
        yamlfile.load(path)
    return [(problem.line, problem.what) for problem in error.value.problems]


def test_a_missing_key_has_the_line_of_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("a:\n  b:\n    - x\n    - y\n2.30: z\n")
    document = yamlfile.load(path)
    assert document.data == {"a": {"b": ["x", "y"]}, "2.30": "z"}
    assert document.line(("a", "b")) == 2
    assert document.line(("a", "b", 1)) == 4
    assert document.line(("a", "c", "d")) == 1
    assert document.line(("2.30",)) == 5
    assert document.line(("other",)) == 1


@pytest.mark.parametrize(
    ("content", "line", "what"),
    [
        # Without a limit of ours, the first two end the process in libyaml's C stack.
        (b"[" * 1_000_000, 1, "nested over 50 deep"),
        (b"a: 1\nb:\n  " + b"- " * 500_000, 3, "nested over 50 deep"),
        (b"[" * 700 + b"]" * 700, 1, "nested over 50 deep"),
        (b"a: 1\nb: \x00", 2, "the control character U+0000 is not allowed"),
        (b"a: 1\nb: \xff", 2, "invalid UTF-8"),
        (b'a: "\\ud800"', 1, "invalid Unicode character escape code"),
        (b"a: !foo bar", 1, "unknown tag `!foo`"),
        (b"a: 1\nb: !!bool maybe", 2, "unknown tag `!!bool`"),
        (b"a: !!binary x", 1, "unknown tag `!!binary`"),
        (b"a: !!set {x: }", 1, "unknown tag `!!set`"),
        (b"a: !!python/tuple [x]", 1, "unknown tag `!!python/tuple`"),
        (b"a: 1\nb: *nothing", 2, "no `&nothing` is above it"),
        (b"a: 1\n? [x, y]\n: 1", 2, "a key must be a plain word"),
        (b"a: 1" + b"1" * 5000, 1, "this number is longer than 100 digits"),
        (b"a: 0x" + b"f" * 5000, 1, "this number is longer than 100 digits"),
        (b"a: 1" + b":59" * 5000, 1, "this number is longer than 100 digits"),
        (b"a: 0b_", 1, "0b_ looks like a number, but is none"),
        (b"a: &a [*a]", 1, "an alias contains itself"),
        (b"a: [b\nc: d", 1, "`[` is not closed before line 2"),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_what_is_refused(tmp_path: Path, content: bytes, line: int, what: str) -> None:
    reported = refused(tmp_path, content)
    assert [(at, what in seen) for at, seen in reported] == [(line, True)], reported


def test_every_problem_is_in_one_report(tmp_path: Path) -> None:
    reported = refused(tmp_path, b"a: 0b_\nb: 1\nb: 2\nc: !foo x\n")
    assert [line for line, _ in reported] == [1, 3, 4]


def test_many_shallow_lists_are_not_deep(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("a: [[1], [2]]\n" + "".join(f"k{i}: [{{}}]\n" for i in range(500)))
    assert len(yamlfile.load(path).data) == 501


def test_an_alias_has_the_value_of_its_anchor(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("a: &a {x: [1, true, text]}\nb: *a\n")
    data = yamlfile.load(path).data
    assert data["b"] == data["a"] == {"x": [1, True, "text"]}


def test_the_literal_of_a_value_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text("a: 3.10\nb: [0x10, yes, '3.10', =, <<, 2024-13-45]\n")
    document = yamlfile.load(path)
    assert document.data == {"a": 3.1, "b": [16, True, "3.10", "=", "<<", "2024-13-45"]}
    assert document.literals == {("a",): "3.10", ("b", 0): "0x10", ("b", 1): "yes"}


def test_a_tag_runs_nothing(tmp_path: Path) -> None:
    made = tmp_path / "made"
    path = tmp_path / "some.yaml"
    for content in (
        f"a: !!python/object/apply:os.mkdir [{made}]\n",
        f'a: !!python/object/apply:os.mkdir "{made}"\n',
    ):
        path.write_text(content)
        with suppress(ConfigError):
            yamlfile.load(path)
    assert not made.exists()
