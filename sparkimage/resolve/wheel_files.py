"""The files of locked wheels themselves, each kept in the home under its hash."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile

from packaging.utils import parse_wheel_filename

from sparkimage.config.address import without_login
from sparkimage.config.lock_items import Wheel
from sparkimage.config.plan import PatchSeries
from sparkimage.core.errors import CommandError, LockError, NetworkError
from sparkimage.core.files import new_folder
from sparkimage.core.program import program
from sparkimage.resolve import wheels
from sparkimage.resolve.context import ResolveContext

PIP = (
    sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
    "--only-binary", ":all:",
)  # fmt: skip


def wheel_file(
    title: str, wheel: Wheel, one: PatchSeries, links: Path | None, context: ResolveContext
) -> Path:
    """The file of a wheel, checked against its hash: of the folder ``links`` where it is there,
    else of the indexes of its pin, which ``one`` patches.

    Raises ``LockError`` where the index no longer has it, ``NetworkError``.
    """
    if links is not None and (links / wheel.file).is_file():
        local = links / wheel.file
        if hashlib.sha256(local.read_bytes()).hexdigest() != wheel.sha256:
            raise LockError(
                f"{title}: {local} does not have the lock's hash",
                hint=f"find out what changed it, or run `{program()} lock --update {wheel.name}`",
            )
        return local
    folder = context.home / "wheels" / wheel.sha256
    if not folder.is_dir():
        context.say(f"fetching {wheel.file} ({wheel.size / 1e6:.0f} MB) for its files")
        with new_folder(folder) as new:
            pin = f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n"
            subject = f"{title}: the wheel {wheel.name} {wheel.version}"
            fetch(_pip(wheel.file, str(one.python), new), pin, subject, context, one.index)
    (file,) = folder.iterdir()
    return file


def fetch(
    argv: Sequence[str],
    pin: str,
    subject: str,
    context: ResolveContext,
    index: Sequence[str] = (),
    **variables: str,
) -> None:
    """Run uv or pip for the requirement ``pin``, from the default index or one of ``index``.

    Raises ``LockError`` where none has it any more, ``NetworkError``.
    """
    environment = wheels.environment(context.mirrors, index)
    # pip's own name for uv's; which one of them has the file does not matter.
    variables = {**environment, "PIP_EXTRA_INDEX_URL": environment.get("UV_INDEX", ""), **variables}
    with NamedTemporaryFile("w", prefix="sparkimage-", suffix=".txt") as file:
        file.write(pin)
        file.flush()
        try:
            context.runner.run([*argv, "--requirement", file.name], env=variables)
        except CommandError as error:
            text = without_login(error.output)
            place = next((f"the index {one}" for one in index if one in text), "the wheel index")
            raise wheels.refused(subject, text) or NetworkError(
                f"{subject} cannot be fetched from {place}",
                hint="check this machine's network and proxy settings, then run the same command",
                detail="\n".join(text.strip().splitlines()[-5:]),
            ) from None


def _pip(file: str, python: str, folder: Path) -> list[str]:
    """The command that downloads exactly this file, whatever this machine is."""
    tags = parse_wheel_filename(file)[-1]

    def each(option: str, values: Iterable[str]) -> list[str]:
        return [word for value in sorted(set(values)) for word in (option, value)]

    return [
        *PIP, "--python-version", python, "--dest", str(folder),
        *each("--platform", (tag.platform for tag in tags)),
        *each("--abi", (tag.abi for tag in tags)),
    ]  # fmt: skip
