"""A release of this project itself: its section of the changelog and its source archive.

Nothing of the product needs this; `make release-notes`, `make source-archive` and `make release`
call it, here and in .github/workflows/release.yml.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import sys
from pathlib import Path

import typer

from sparkimage import __version__
from sparkimage.core.errors import SparkError, UsageError
from sparkimage.core.process import Local, Runner, start_bytes

PROJECT = Path(__file__).resolve().parents[1]
OUT = Path("out")
NAME = "sparkimage"
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def number(version: str, written: str = __version__) -> str:
    """The version of a tag (``v1.2.3``) or of a number. Raises ``UsageError`` for one that the
    package does not say of itself."""
    bare = version.removeprefix("v")
    if bare != written:
        raise UsageError(
            f"version {bare or 'none'!r} is asked for, and sparkimage/__init__.py says {written!r}",
            hint=f"VERSION={written}, or change both it and pyproject.toml before the tag",
        )
    return bare


def section(changelog: str, version: str) -> str:
    """What the changelog says of a version. Raises ``UsageError`` where that is not finished."""
    parts = re.split(r"^## +", changelog, flags=re.MULTILINE)[1:]
    for part in parts:
        title, _, text = part.partition("\n")
        if title.split()[:1] != [version]:
            continue
        if "unreleased" in title.lower():
            raise UsageError(
                f"CHANGELOG.md still calls {version} unreleased",
                hint=f"write `## {version} (YYYY-MM-DD)`, commit, then tag",
            )
        if not text.strip():
            raise UsageError(f"CHANGELOG.md says nothing of {version}", hint="write what changed")
        return f"{text.strip()}\n"
    raise UsageError(
        f"CHANGELOG.md has no section {version}",
        hint="it has " + ", ".join(part.split()[0] for part in parts if part.split()),
    )


def archive(project: Path, version: str) -> bytes:
    """The source of the version's tag as a .tar.gz: the same bytes whoever makes it.

    git takes times and order from the commit; what a user's configuration could change is set,
    and gzip's header holds neither time nor name.
    """
    argv = [
        "git", "-C", str(project), "-c", "tar.umask=0022", "-c", "core.autocrlf=false",
        "-c", "core.attributesFile=/dev/null", "archive", "--format=tar",
        f"--prefix={NAME}-{version}/", f"refs/tags/v{version}",
    ]  # fmt: skip
    with start_bytes(argv) as process:
        tar, said = process.communicate()
    if process.returncode != 0:
        raise UsageError(
            f"the tag v{version} cannot be packed: {said.decode(errors='replace').strip()}",
            hint=f"git tag v{version}, or fetch it: git fetch --tags",
        )
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, compresslevel=9, mtime=0) as file:
        file.write(tar)
    return packed.getvalue()


def publish_release(project: Path, version: str, files: tuple[Path, ...], runner: Runner) -> None:
    """Make the release of the tag, or, where it is there, put the same into it again."""
    notes, *assets = (str(file) for file in files)
    tag = f"v{version}"
    there = runner.run(["gh", "release", "view", tag], cwd=project, check=False).returncode == 0
    if not there:
        runner.run(
            ["gh", "release", "create", tag, "--verify-tag", "--title", tag,
             "--notes-file", notes, *assets],
            cwd=project,
        )  # fmt: skip
        return
    runner.run(["gh", "release", "edit", tag, "--notes-file", notes], cwd=project)
    runner.run(["gh", "release", "upload", tag, "--clobber", *assets], cwd=project)


def files(version: str) -> tuple[Path, Path, Path]:
    """The release's notes, its archive, and the archive's checksum."""
    packed = OUT / f"{NAME}-{version}.tar.gz"
    return OUT / f"notes-{version}.md", packed, packed.with_name(f"{packed.name}.sha256")


@app.command("notes")
def notes_command(version: str) -> None:
    """Write the changelog's section."""
    bare = number(version)
    text = section((PROJECT / "CHANGELOG.md").read_text(), bare)
    OUT.mkdir(exist_ok=True)
    path, *_ = files(bare)
    path.write_text(text)
    typer.echo(f"{path}: {len(text.splitlines())} lines")


@app.command("archive")
def archive_command(version: str) -> None:
    """Write the source archive, and its sha256 beside it."""
    bare = number(version)
    made = archive(PROJECT, bare)
    OUT.mkdir(exist_ok=True)
    _, path, beside = files(bare)
    path.write_bytes(made)
    digest = hashlib.sha256(made).hexdigest()
    beside.write_text(f"{digest}  {path.name}\n")
    typer.echo(f"{path}: {len(made)} bytes, sha256 {digest}")


@app.command("publish")
def publish_command(version: str) -> None:
    """Make the release on GitHub."""
    bare = number(version)
    publish_release(PROJECT, bare, tuple(path.absolute() for path in files(bare)), Local())
    typer.echo(f"released v{bare}")


if __name__ == "__main__":
    try:
        app()
    except SparkError as error:
        detail = f"\n{error.detail}" if error.detail else ""
        print(f"error: {error.message}{detail}\n→ {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
