"""What an image's ENTRYPOINT makes of the words after it. Pure."""

from __future__ import annotations

import posixpath
import shlex
from collections.abc import Sequence

from sparkimage.core.errors import UsageError

SHELLS = ("sh", "bash", "dash", "ash")
WRAPPERS = ("tini", "dumb-init", "catatonit", "env", "gosu", "su-exec")
"""Programs that start the command that follows them."""
CLI_MODULES = (("-m", "vllm"), ("-m", "vllm.entrypoints.cli.main"))
"""The command line `vllm` as Python starts it."""


def serve_prefix(entrypoint: tuple[str, ...], command: Sequence[str] | None) -> tuple[str, ...]:
    """What to put before MODEL so that the ENTRYPOINT becomes ``vllm serve MODEL``; ``command``:
    the profile's.

    Raises ``UsageError`` where the ENTRYPOINT does not tell.
    """
    if command is not None:
        return tuple(command)
    names = [posixpath.basename(word) for word in entrypoint]
    serves = any(names[i : i + 2] == ["vllm", "serve"] for i in range(len(names)))
    if serves or entrypoint[-3:-1] in CLI_MODULES:
        return ()
    if names[-1:] == ["vllm"] or entrypoint[-2:] in CLI_MODULES:
        return ("serve",)
    if len(names) > 2 and names[0] in SHELLS and "-c" in entrypoint:
        raise UsageError(
            f"the image's ENTRYPOINT is a shell script: {shlex.join(entrypoint)}",
            hint="set `command` in the profile to what must come before MODEL: [] if the script "
            "passes its arguments to vllm serve",
        )
    if "vllm.entrypoints.openai.api_server" in entrypoint:
        raise UsageError(
            "the image's ENTRYPOINT is vLLM's API server, which has no --headless",
            hint="build the image with ENTRYPOINT [vllm, serve], or set `command` in the profile",
        )
    if (engine := _other_engine(entrypoint)) is not None:
        raise UsageError(
            f"the image's ENTRYPOINT starts {engine}, and launch derives the arguments of "
            f"`vllm serve`: {shlex.join(entrypoint)}",
            hint="start another engine with docker run and its own arguments; if this one starts "
            "the command that it is given, set `command: [vllm, serve]` in the profile",
        )
    return ("vllm", "serve")


def _other_engine(entrypoint: tuple[str, ...]) -> str | None:
    """The program that the ENTRYPOINT starts; None for one that starts what it is given, such as a
    script."""
    words = [word for word in entrypoint if not word.startswith("-")]
    words = [word for word in words if posixpath.basename(word) not in WRAPPERS]
    name = posixpath.basename(words[0]) if words else ""
    if not name or name in SHELLS or name.endswith(".sh") or "entrypoint" in name:
        return None
    return words[1] if name.startswith("python") and len(words) > 1 else name


def takes_one_word(entrypoint: tuple[str, ...]) -> bool:
    """The ENTRYPOINT is ``sh -c``, which takes one word as its script."""
    names = [posixpath.basename(word) for word in entrypoint]
    return len(names) == 2 and names[0] in SHELLS and names[1] == "-c"
