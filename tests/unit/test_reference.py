"""The pages of docs/ that the program writes, and what in docs/ the program names."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main
from typer.exceptions import TyperException

from sparkimage.cli import examples
from sparkimage.cli.app import app
from sparkimage.serve.explain import pages as failure_pages
from tools import pictures, reference

PROJECT = Path(__file__).resolve().parents[2]
NAMED = re.compile(r"(?<![\w./-])(docs/[\w/-]+\.(?:md|json))(?:#([\w-]+))?")
BLOCK = re.compile(r"^```.*?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CALLED = re.compile(r"(?:sparkimage|\./build\.py) ([a-z-].*)")
INTERNAL = {
    "SPARKIMAGE_APT", "SPARKIMAGE_CHECK_REQUEST", "SPARKIMAGE_INDEX", "SPARKIMAGE_PROBE",
    "SPARKIMAGE_PROGRAM", "SPARKIMAGE_RANK",
}  # fmt: skip
"""Variables that the program sets for what it starts."""


@pytest.mark.parametrize("name", reference.pages())
def test_a_page_is_what_the_program_says(name: str) -> None:
    told = "make reference (python -P -m tools.reference)"
    assert (PROJECT / "docs" / name).read_text() == reference.pages()[name], told


@pytest.mark.parametrize(
    "name", ["reference/matrix.md", "reference/fleet.md", "reference/patches.md"]
)
def test_every_key_of_a_file_says_what_it_is(name: str) -> None:
    page = reference.pages()[name]
    assert page.count("\n| `") > 10
    assert re.findall(r"^\| `(?!kind|version)(\w+)` \| [^|]+ \|  \|", page, re.MULTILINE) == []


@pytest.mark.parametrize("name", pictures.drawings())
def test_a_drawing_is_of_its_data(name: str) -> None:
    told = "make pictures (python -P -m tools.pictures)"
    assert (pictures.PICTURES / name).read_text() == pictures.drawings()[name], told


def test_every_known_failure_has_its_place() -> None:
    pages = reference.pages()
    for path, (_, entries) in failure_pages.areas().items():
        for entry in entries:
            assert f"]({path}#{failure_pages.slug(entry.title)})" in pages["troubleshooting.md"]
            assert f"## {entry.title}\n`{entry.id}`" in pages[path]
            assert entry.fix in pages[path]


def test_every_page_that_the_program_names_is_there() -> None:
    files = [
        path
        for folder in ("sparkimage", "tools", "images", "patches")
        for path in (PROJECT / folder).rglob("*")
        if path.is_file() and path.suffix in (".py", ".yaml", ".j2", ".sh", ".md")
    ]
    named = {found for path in files for found in NAMED.findall(path.read_text())}
    assert named
    for name, anchor in named:
        page = PROJECT / name
        assert page.is_file(), name
        headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE)
        assert not anchor or anchor in map(failure_pages.slug, headings), (name, anchor)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_beside_the_site_lead_somewhere(name: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#\s]+)(?:#([\w-]+))?\)", (PROJECT / name).read_text())
    for path, anchor in links:
        page = PROJECT / path
        assert page.exists(), path
        headings = re.findall(r"^#+ +(.+)$", page.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in map(failure_pages.slug, headings), (path, anchor)


def test_every_page_has_its_place_in_the_site() -> None:
    docs = PROJECT / "docs"
    placed = re.findall(r"[\w/-]+\.md$", (PROJECT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(placed) == sorted(str(page.relative_to(docs)) for page in docs.rglob("*.md"))


def test_every_variable_of_a_user_is_on_its_page() -> None:
    page = (PROJECT / "docs" / "reference" / "environment.md").read_text()
    named = {
        name
        for path in (PROJECT / "sparkimage").rglob("*.py")
        for name in re.findall(r"\bSPARKIMAGE_[A-Z_]+\b", path.read_text())
    }
    assert {name for name in named - INTERNAL if f"`{name}`" not in page} == set()


def parse(line: str) -> None:
    """Reads a call as the command line does, but for values. Raises ``TyperException``."""
    command = typer.main.get_command(app)
    words = shlex.split(line.partition(" >")[0].partition(" |")[0], comments=True)
    context = command.context_class(command)
    while True:
        _, words, _ = command.make_parser(context).parse_args(words)
        below = getattr(command, "commands", {})
        # A page may say that options follow; `init` takes hosts, too.
        if not below or not words or words[0] == "[OPTIONS]":
            return
        if command.name == "init" and words[0] not in below:
            return
        assert words[0] in below, words
        command = below[words.pop(0)]
        context = command.context_class(command, parent=context)


def calls(text: str) -> set[str]:
    """The calls of the program in a page's code: what follows its name."""
    inline = re.findall(r"`([^`]+)`", BLOCK.sub("", text))
    lines = "\n".join(BLOCK.findall(text)).splitlines()
    code = [*lines, *(" ".join(one.split()) for one in inline)]
    return {found[1] for one in code if (found := CALLED.match(one))}


def test_a_command_of_a_page_has_the_options_that_it_names() -> None:
    pages = [PROJECT / "README.md", *(PROJECT / "docs").rglob("*.md")]
    found = {line for page in pages for line in calls(page.read_text())}
    for lines in examples.EXAMPLES.values():
        found |= {line.partition("sparkimage ")[2] for line in lines}
    assert len(found) > 80
    for line in sorted(found):
        parse(line)
    for line in ("launch default --modle /m", "gc --keep", "bild default"):
        with pytest.raises((TyperException, AssertionError), match=r"modle|keep|bild"):
            parse(line)
