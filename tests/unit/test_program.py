"""How messages, data and docs name the program: all of it can be pasted."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from sparkimage.cli.app import app
from sparkimage.core import program

PROJECT = Path(__file__).resolve().parents[2]
PACKAGE = PROJECT / "sparkimage"
SUFFIXES = (".yaml", ".j2", ".md")
NAMED = re.compile(r"(?<![\w./-])sparkimage (?P<first>[a-z][\w-]*)(?: (?P<second>[a-z][\w-]*))?")


def said(*argv: str, **more: str) -> str:
    """What the program calls itself in a hint, started so."""
    env = {name: value for name, value in os.environ.items() if name != program.VARIABLE}
    done = subprocess.run(
        argv, env={**env, "PYTHONPATH": str(PROJECT), **more}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    match = re.search(r"→ (.*) --matrix --only", done.stderr)
    assert match, done.stderr
    return match[1]


WRONG = ("--matrix", "images")
"""Arguments whose refusal has a hint that names the program."""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The program as pip installs it."""
    path = tmp_path / "bin" / "sparkimage"
    path.parent.mkdir()
    path.write_text(
        f"#!{sys.executable}\nfrom sparkimage.cli.app import main\n"
        "if __name__ == '__main__':\n    main()\n"
    )
    path.chmod(0o755)
    return path


def test_the_name_is_the_one_that_was_used(script: Path) -> None:
    on_path = f"{script.parent}:{os.environ['PATH']}"
    assert said("sparkimage", *WRONG, PATH=on_path) == "sparkimage"
    assert said(str(script), *WRONG) == str(script)
    python = sys.executable
    assert said(python, "-P", "-m", "sparkimage", *WRONG) == f"{python} -P -m sparkimage"
    # As build.py says.
    assert said(str(script), *WRONG, SPARKIMAGE_PROGRAM="./build.py") == "./build.py"


def test_a_program_that_uvx_started(script: Path, tmp_path: Path) -> None:
    """Its folder is on its own PATH, and not on the user's."""
    uv = tmp_path / "uv"
    shutil.copy(Path(sys.executable).resolve(), uv)
    start = "import os, subprocess, sys; sys.exit(subprocess.call([sys.argv[1], *sys.argv[-2:]]))"
    (tmp_path / "tool").write_text(start)
    on_path = f"{script.parent}:{os.environ['PATH']}"
    argv = ("bash", "-c", 'exec -a uv "$@"', "bash", sys.executable)
    # What a process is called by is its first word; the interpreter's own options come after it.
    name = said(*argv, "-c", start, str(script), "--from", ".", "sparkimage", *WRONG, PATH=on_path)
    assert name.startswith("uv -c ")
    assert name.endswith(" --from . sparkimage")


def commands() -> dict[str, set[str]]:
    """The commands, each with its own."""
    group = typer.main.get_command(app)
    assert isinstance(group, typer.core.TyperGroup)
    return {name: set(getattr(one, "commands", ())) for name, one in group.commands.items()}


def texts() -> Iterator[tuple[Path, int, str]]:
    """Every text that a user reads, and where it is: data and docs, and the strings of code."""
    docs = (*PROJECT.glob("*.md"), *PROJECT.glob("docs/*.md"), PROJECT / "matrix.yaml")
    data = (path for path in (PACKAGE / "data").rglob("*") if path.suffix in SUFFIXES)
    for path in (*docs, *data):
        if path.name != "CHANGELOG.md":
            yield path, 0, path.read_text()
    for path in PACKAGE.rglob("*.py"):
        nodes = list(ast.walk(ast.parse(path.read_text())))
        alone = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        for node in nodes:
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                # Docstrings are texts of data: those of commands are their help.
                yield path, 0 if id(node) in alone else node.lineno, node.value


def test_every_command_that_is_named_is_there() -> None:
    known = commands()

    def is_there(first: str, second: str | None) -> bool:
        # `init` takes hosts, too.
        return first in known and (
            not known[first] or first == "init" or second in {None, *known[first]}
        )

    wrong = [
        (path, match[0])
        for path, _, text in texts()
        for match in NAMED.finditer(text)
        if not is_there(match["first"], match["second"])
    ]
    assert wrong == []
    assert is_there("patches", None)
    assert not is_there("imagine", None)
    assert not is_there("model", "pull")


def test_no_text_names_the_program_as_it_cannot_be_started() -> None:
    """Debian 12 and Ubuntu have no `python`; and a hint says how the program was called."""
    assert [path for path, _, text in texts() if re.search(r"\bpython\s+build\.py", text)] == []
    fixed = {path.name for path, line, text in texts() if line and NAMED.search(text)}
    # Headers of files that are the same whoever writes them.
    # What --help shows is made of examples.py, as the program was called.
    assert fixed == {"examples.py", "fleetfile.py", "lockfile.py"}
