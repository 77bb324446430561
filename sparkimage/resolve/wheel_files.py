"""The files of locked wheels themselves, each kept in the home under its hash."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path

from packaging.utils import parse_wheel_filename

from sparkimage.config.address import without_login
from sparkimage.config.lockfile import Wheel
from sparkimage.config.plan import PatchSeries
from sparkimage.core.errors import CommandError, LockError
from sparkimage.core.files import new_folder
from sparkimage.resolve import wheels
from sparkimage.resolve.context import ResolveContext, unreachable


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
                f"{title}: {local} has another hash than the lock says",
                hint="find out what changed it, or run `python build.py lock --update "
                f"{wheel.name}`",
            )
        return local
    folder = context.home / "wheels" / wheel.sha256
    if not folder.is_dir():
        context.say(f"fetching {wheel.file} ({wheel.size / 1e6:.0f} MB) for its files")
        with new_folder(folder) as new:
            pin = new.with_name("requirements.txt")
            pin.write_text(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n")
            try:
                argv = _pip(wheel.file, str(one.python), new, pin)
                environment = wheels.environment(context.mirrors, one.index)
                # pip's own name for uv's; which one of them has the file does not matter.
                more = {"PIP_EXTRA_INDEX_URL": environment.get("UV_INDEX", "")}
                context.runner.run(argv, env={**environment, **more})
            except CommandError as error:
                subject = f"{title}: the wheel {wheel.name} {wheel.version}"
                text = without_login(error.output)
                refused = wheels.refused(subject, text)
                raise refused or unreachable(subject, "the wheel index", text) from None
    (file,) = folder.iterdir()
    return file


def _pip(file: str, python: str, folder: Path, requirements: Path) -> list[str]:
    """The command that downloads exactly this file, whatever this machine is."""
    tags = parse_wheel_filename(file)[-1]

    def each(option: str, values: Iterable[str]) -> list[str]:
        return [word for value in sorted(set(values)) for word in (option, value)]

    return [
        sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
        "--only-binary", ":all:", "--python-version", python, "--dest", str(folder),
        *each("--platform", (tag.platform for tag in tags)),
        *each("--abi", (tag.abi for tag in tags)),
        "--requirement", str(requirements),
    ]  # fmt: skip
