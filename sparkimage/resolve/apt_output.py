"""What apt prints when it cannot do what it is asked to, and what that means for a pin."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sparkimage.config.address import without_login
from sparkimage.core import suites
from sparkimage.core.errors import Locked, LockError, SparkError
from sparkimage.resolve.context import unreachable

if TYPE_CHECKING:
    from sparkimage.resolve.apt import Source

UNREACHABLE = re.compile(
    r"Could not resolve|Temporary failure|Could not connect|Connection (refused|timed out|failed)"
    r"|Unable to connect|Network is unreachable|Failed to fetch|Could not handshake"
)
GONE = re.compile(
    r"Version '([^']+)' for '([^']+)' was not found|Unable to locate package (\S+)"
    r"|Package '?([^\s']+)'? has no installation candidate|Can't find a source to download version"
)
REMOVED = re.compile(r"(?m)^Remv (\S+)")
UNMET = re.compile(r"The following packages have unmet dependencies:(\n .*)+")
NO_KEY = re.compile(r"(?:NO_PUBKEY|Missing key) ([0-9A-F]{16,40})")
"""The words of apt with gpgv, and with sqv (apt 3)."""


def explain(locked: Locked, source: Source, output: str) -> SparkError:
    """The error for packages of ``source`` that apt did not resolve or fetch, by its output."""
    output = without_login(output)
    tail = "\n".join(output.splitlines()[-12:])
    if gone := GONE.findall(output):
        names = [" ".join(filter(None, match[1::-1])) or match[2] or match[3] for match in gone]
        packages = ", ".join(dict.fromkeys(name for name in names if name)) or "a package"
        return _gone(locked, source, packages, tail)
    if unmet := UNMET.search(output):
        return LockError(
            f"{locked}: {source} cannot satisfy all dependencies",
            hint="what is missing is in another component or pocket (`components`, `pockets`), or "
            "in another repository: give it a deb pin of its own in a layer below",
            detail=unmet[0],
        )
    if missing := NO_KEY.search(output):
        return _no_key(locked, source, missing[1], tail)
    if "is not signed" in output:
        return LockError(
            f"{locked}: {source} is not signed",
            hint="name a signed repository; one without suites, which the lock's sha256 protects, "
            "is a pin without `suite`",
            detail=tail,
        )
    if "does not have a Release file" in output:
        return LockError(
            f"{locked}: there is no {source}",
            hint="correct its `suite`, `pockets`, `repository` or `snapshot`; on Debian, package "
            "distro-info-data knows Ubuntu's suites",
            detail=tail,
        )
    if "did not find any indices" in output or "doesn't have the component" in output:
        return LockError(
            f"{locked}: {source} has none of the components "
            f"{', '.join(source.components or ('main',))}",
            hint="correct its `components`, or leave the platform out",
            detail=tail,
        )
    if UNREACHABLE.search(output):
        return unreachable(locked, source, tail)
    return LockError(
        f"{locked}: apt failed for {source}", hint="correct this pin in the matrix", detail=tail
    )


def _gone(locked: Locked, source: Source, packages: str, tail: str) -> LockError:
    if source.dated:
        return LockError(
            f"{locked}: the snapshot {source} does not have {packages}",
            hint="take a later (or an earlier) `snapshot`, or another version",
            detail=tail,
        )
    return LockError(
        f"{locked}: {source} no longer has {packages}: withdrawn, or superseded",
        hint=f"take what it has now: {locked.update}; or name a mirror that keeps old versions",
        detail=tail,
    )


def _no_key(locked: Locked, source: Source, key: str, tail: str) -> LockError:
    """The error for a suite that is signed with a key which this machine has not."""
    if source.key is not None:
        what, hint = "which its `key` is not", "correct its `key`"
    else:
        what = "which this machine does not have"
        hint = "give the pin its `key:`, a file below the project or a file pin"
        if source.suite in suites.SUITES:
            package = source.distribution.package
            hint = f"sudo apt-get install {package}, where this machine's suite has it; or {hint}"
    return LockError(f"{locked}: {source} is signed with {key}, {what}", hint=hint, detail=tail)
