"""Secrets of a server: the variables that ``launch`` takes from its own environment.

Only the standard input of ``docker create`` on a node has the values, as an environment file
(https://docs.docker.com/reference/cli/docker/container/run/#env): so they are in no command line,
and ``sudo`` does not drop them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from sparkimage.core import secrets
from sparkimage.core.errors import PreflightError, SparkError

API_KEY = "VLLM_API_KEY"
"""VLLM's own variable for the key of its server."""
PIPED = 'cat | "$@"'
"""Runs a command with a pipe as its input: sshd may give it a socket, which has no path."""


def take(profile: str, names: Sequence[str]) -> dict[str, str]:
    """The values of a profile's secrets. Raises ``PreflightError``."""
    given = {name: os.environ.get(name, "") for name in names}
    if missing := [name for name, value in given.items() if not value]:
        raise PreflightError(
            f"profile {profile} has secrets that are not in the environment: {', '.join(missing)}; "
            "nothing was started",
            hint="; ".join(f"export {name}=…" for name in missing),
        )
    for name, value in given.items():
        if not value.isprintable():
            raise PreflightError(
                f"the secret {name} is not one line of printable text; nothing was started",
                hint="look for a line break in it, which an environment file cannot have",
            )
    return given


def env_file(values: Mapping[str, str], names: Sequence[str]) -> str:
    """The environment file with these of the values."""
    return "".join(f"{name}={values[name]}\n" for name in names)


def hide(values: Mapping[str, str], error: SparkError) -> None:
    """Replace the values in an error, which may quote what a server has logged."""
    hidden = secrets.hider(one for one in values.values() if len(one) >= secrets.SHORT)
    error.message, error.detail = hidden(error.message), hidden(error.detail)
