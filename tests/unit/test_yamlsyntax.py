"""What a text that is no YAML is told: the line of the mistake, and what to write there."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkimage.config import yamlfile
from sparkimage.core.errors import ConfigError, Problem


def problem(tmp_path: Path, text: str) -> Problem:
    path = tmp_path / "some.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        yamlfile.load(path)
    (one,) = error.value.problems
    return one


@pytest.mark.parametrize(
    ("text", "line", "what", "todo"),
    [
        ("a: [x, *]\n", 1, "`*` means the value of an anchor", 'quote it: "*"'),
        ("a: *-arm64\n", 1, "no `&-arm64` is above it", 'quote it: "*-arm64"'),
        ("a: *common\n", 1, "no `&common` is above it",
         'write `&common` there, or quote it: "*common"'),
        ("a: {b: *}\n", 1, "`*` means the value", 'quote it: "*"'),
        ("a: 1\n\tb: 1\n", 2, "a tab", "indent with spaces"),
        ("a: @x\n", 1, "no value can begin with `@`", 'quote it: "@x"'),
        ("a: %x\n", 1, "no value can begin with `%`", 'quote it: "%x"'),
        ("a: `x`\n", 1, "no value can begin with ``", 'quote it: "`x`"'),
        ("a: {b}-{c}\n", 1, "`{b}-{c}` begins as a mapping", 'quote it: "{b}-{c}"'),
        ("a:\n  - {b}/x\n", 2, "`{b}/x` begins as a mapping", 'quote it: "{b}/x"'),
        ("a:\n  b: [x, y\n  c: z\n", 2, "`[` is not closed before line 3", "write `]`"),
        ("a:\n  b: {x: y\n  c: z\n", 2, "`{` is not closed", "write `}`"),
        ('a: "x\nb: "y"\n', 1, "closed only in line 2", "close it in its own line"),
        ("a: 'x\nb: y\n", 1, "a quotation mark is never closed", "close it"),
        ("a: b: c\n", 1, "a value with `: ` in it", 'quote it: "b: c"'),
        ("a:b\nc: d\n", 1, "no space behind `a:`", "write `a: …`"),
        ("a: 1\nbc\nd: e\n", 2, "no `:` behind `bc`", "write `name: value`"),
        ("a: 1\n<<<<<<< HEAD\nb: 1\n=======\nb: 2\n>>>>>>> other\n", 2,
         "a merge conflict of git", "keep one side"),
        ("a: !b\n", 1, "unknown tag `!b`", 'quote it: "!b"'),
        ("a: !b c\n", 1, "unknown tag `!b`", 'quote it: "!b c"'),
        ("a: !!set {x}\n", 1, "unknown tag `!!set`", "remove it"),
        ("a: 1\nb: 2\na: 3\n", 3, "duplicate key 'a' (the other: line 1)", "keep one"),
        ("a: {<<: b}\n", 1, "`<<` merges no mapping", "write `<<: *name`"),
    ],
)  # fmt: skip
def test_a_mistake_has_its_line_and_next_action(
    tmp_path: Path, text: str, line: int, what: str, todo: str
) -> None:
    seen = problem(tmp_path, text)
    assert (seen.line, what in seen.what, todo in seen.todo) == (line, True, True), seen


def test_a_merge_adds_what_a_mapping_does_not_say(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    path.write_text(
        "a: &a {x: 1, y: 2}\nb: &b {<<: *a, x: 3}\nc: {<<: [*b, {z: 4, y: 5}]}\nd: {'<<': 1}\n"
    )
    document = yamlfile.load(path)
    assert document.data["b"] == {"x": 3, "y": 2}
    assert document.data["c"] == {"x": 3, "y": 2, "z": 4}
    assert document.data["d"] == {"<<": 1}
    assert document.line(("c", "y")) == 1


def test_merges_do_not_explode_and_end(tmp_path: Path) -> None:
    path = tmp_path / "some.yaml"
    lines = ["a0: &a0 {k: 1}"]
    lines += [f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 9)}]}}" for n in range(1, 40)]
    path.write_text("\n".join(lines) + "\nb: &b {<<: *b, x: 1}\n")
    data = yamlfile.load(path).data
    assert (data["a39"], data["b"]) == ({"k": 1}, {"x": 1})
