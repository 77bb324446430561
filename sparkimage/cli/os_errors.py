"""What the system refuses: a right, a disk, a path. No command can expect each of these at each of
its files, and a user can do something about all of them."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from sparkimage.core import paths
from sparkimage.core.errors import PreflightError

DISK = (errno.ENOSPC, errno.EDQUOT)
PLACE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG,
)  # fmt: skip
HARDWARE = (errno.EIO,)


def refusal(error: OSError) -> PreflightError | None:
    """The error for a user; None for one that the program itself must have made."""
    path = os.fsdecode(error.filename) if error.filename is not None else ""
    if error.errno not in (*DISK, *PLACE, *HARDWARE) or not (path or error.errno in DISK):
        return None
    return PreflightError(
        f"{path}: {error.strerror}" if path else f"{error.strerror}", hint=_hint(error.errno, path)
    )


def _hint(number: int | None, path: str) -> str:
    if number in DISK:
        return "free some disk (df -h), then run the same command again"
    if number in HARDWARE:
        return "the disk may be broken: dmesg -T"
    for name, folder in (("SPARKIMAGE_HOME", paths.home()), ("SPARKIMAGE_STORE", paths.store())):
        if Path(path).is_relative_to(folder) or folder.is_relative_to(path):
            # Such as one that was made with sudo.
            take = f'sudo chown -R "$USER" {folder}; or ' if os.path.exists(folder) else ""
            return f"{take}export {name}=DIR, a folder that this user can write to"
    return "pass another path, or let its owner give you the right to it"
