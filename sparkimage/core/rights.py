"""Commands that need root, with sudo where the user is not root."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence

from sparkimage.core.errors import PreflightError
from sparkimage.core.process import Completed, Runner

KEPT = (
    "http_proxy", "https_proxy", "no_proxy", "all_proxy",
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "SSL_CERT_FILE",
)  # fmt: skip
"""Variables that sudo keeps, by name: a proxy's password must not be on a command line."""


def run_as_root(runner: Runner, argv: Sequence[str]) -> Completed:
    """Run ``argv`` as root.

    Raises ``PreflightError`` when this user is not root and cannot use sudo, ``CommandError``
    when the command fails.
    """
    return runner.run((*root_prefix(runner), *argv))


def root_prefix(runner: Runner, *, ask: bool = True, what: str = "this step") -> tuple[str, ...]:
    """The words before a command that needs root: none, or sudo with its options.

    sudo may ask for a password when there is a terminal and ``ask``. Errors name ``what`` needs it.

    Raises ``PreflightError`` when this user is not root and cannot use sudo.
    """
    if os.geteuid() == 0:
        return ()
    if shutil.which("sudo") is None:
        raise PreflightError(
            f"{what} needs root; the user id is {os.geteuid()} and sudo is not installed",
            hint="run the same command as root, or let root run `apt-get install sudo` "
            "and add this user to the group sudo",
        )
    quiet = () if ask and sys.stdin.isatty() else ("-n",)
    if runner.run(("sudo", *quiet, "true"), check=False).returncode != 0:
        raise PreflightError(
            f"{what} needs root, and sudo refused"
            + (" (there is no terminal to ask for a password)" if quiet else ""),
            hint="run `sudo -v` in this terminal and then the same command, or run it as root",
        )
    kept = ",".join(name for name in KEPT if name in os.environ)
    return ("sudo", *quiet, *((f"--preserve-env={kept}",) if kept else ()))
