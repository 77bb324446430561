"""What is true after a Ctrl-C, by command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NOTHING = "nothing was changed"
LEFT: Mapping[str, str] = {
    "image": "no image was tagged, and what was built is kept",
    "lock": "matrix.lock is as it was",
    "verify": "the seal is as it was",
    "report": "no report was written",
    "save": "no archive was written",
    "load": "no image was tagged",
    "publish": "no tag was set, and what was uploaded is kept",
    "distribute": "no name was changed",
    "rollback": "no name was changed",
    "gc": "what was removed by then stays removed",
    "model push": "no folder was changed, and what was copied is kept",
    "model gc": "what was removed by then stays removed",
    "launch": "nothing was started",
    "stop": "nothing was stopped",
    "restart": "it may be stopped on some nodes",
    "init": "no file was written",
    "engine up": "the engine may not run yet",
    "engine down": "the engine may still run",
    "store gc": "what was removed by then stays removed",
    "probe": "no measurement was completed",
}
"""What is left where the command itself does not say it; without an entry: ``NOTHING``."""
RESUMES = frozenset({
    "image", "lock", "publish", "distribute", "rollback", "gc", "model push", "model gc", "stop",
    "engine up", "engine down", "store gc",
})  # fmt: skip
"""Commands that go on from there when they are run again."""


def sentence(command: str, notes: Sequence[str]) -> str:
    """What to tell whoever has interrupted ``command``; ``notes``: what it says of this run."""
    # What follows may be an argument: `init HOST`.
    of_command = LEFT.get(command) or LEFT.get(command.partition(" ")[0], NOTHING)
    left = ", ".join(notes) or of_command
    more = "; run the same command again to continue" if command in RESUMES else ""
    return f"interrupted: {left}{more}"
