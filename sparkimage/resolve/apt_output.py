"""What apt prints when it cannot do what it is asked to, and what that means for a pin."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sparkimage.config.address import without_login
from sparkimage.core import suites
from sparkimage.core.errors import Locked, LockError, SparkError
from sparkimage.resolve import outputs
from sparkimage.resolve.context import unreachable

if TYPE_CHECKING:
    from sparkimage.resolve.apt_source import Source

UNREACHABLE = re.compile(
    r"Could not resolve|Temporary failure|Could not connect|Connection (refused|timed out|failed)"
    r"|Unable to connect|Network is unreachable|Failed to fetch|Could not handshake"
)
GONE = re.compile(
    r"Version '([^']+)' for '([^']+)' was not found|Unable to locate package (\S+)"
    r"|Package '?([^\s']+)'? has no installation candidate|Can't find a source to download version"
)
REMOVED = re.compile(r"(?m)^Remv (\S+)")


def explain(locked: Locked, source: Source, output: str) -> SparkError:
    """The error for packages of ``source`` that apt did not resolve or fetch, by its output."""
    output = without_login(output)
    tail = "\n".join(output.splitlines()[-12:])
    if gone := GONE.findall(output):
        names = [" ".join(filter(None, match[1::-1])) or match[2] or match[3] for match in gone]
        packages = ", ".join(dict.fromkeys(name for name in names if name)) or "a package"
        return _gone(locked, source, packages, tail)
    known = outputs.explain(
        "apt", output, detail=tail, title=locked, address=source,
        components=", ".join(source.components or ("main",)), **_key_facts(source),
    )  # fmt: skip
    if known is not None:
        return known
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
        f"{locked}: {source} no longer has {packages}: withdrawn, superseded, or never there",
        hint=f"correct its name, or take what it has now: {locked.update}; or name a mirror that "
        "keeps old versions",
        detail=tail,
    )


def _key_facts(source: Source) -> dict[str, str]:
    """What to say of a suite that is signed with a key which this machine has not."""
    if source.key is not None:
        return {"key_missing": "which its `key` is not", "key_hint": "correct its `key`"}
    hint = "give the pin its `key:`, a file below the project or a file pin"
    if source.suite in suites.SUITES:
        package = source.distribution.package
        hint = f"sudo apt-get install {package}, where this machine's suite has it; or {hint}"
    return {"key_missing": "which this machine does not have", "key_hint": hint}
