#!/usr/bin/env python3
"""Enters the project's own environment (.venv, made on first use) and calls the package there."""

import fcntl
import hashlib
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
VENV = os.path.join(HERE, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
LOCK = os.path.join(HERE, "requirements.txt")
PREFLIGHT = 9
"""Exit code when this machine lacks something, as sparkimage.core.errors.PreflightError."""


def prepare() -> None:
    """Make .venv hold exactly what requirements.txt says; costs nothing when it does."""
    if sys.version_info < (3, 11):
        fail(f"python {sys.version.split()[0]} is too old", "run this with python 3.11 or later")
    # The folder counts too: an environment does not survive a move.
    with open(LOCK, "rb") as source:
        wanted = hashlib.sha256(source.read() + os.fsencode(HERE)).hexdigest()
    if is_made(wanted):
        return
    with open(os.path.abspath(__file__), "rb") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if not is_made(wanted):
            make(wanted)


def is_made(wanted: str) -> bool:
    """Whether .venv was finished for this lock; its stamp is written last."""
    try:
        with open(os.path.join(VENV, "stamp"), encoding="ascii") as stamp:
            return stamp.read() == wanted and os.path.exists(PYTHON)
    except OSError:
        return False


def make(wanted: str) -> None:
    """Make .venv anew."""
    import shutil
    from importlib.util import find_spec

    print("preparing .venv with the locked tools (once)", file=sys.stderr, flush=True)
    # Debian has both modules in a package of its own.
    if find_spec("ensurepip") is None or find_spec("venv") is None:
        install_venv_module()
    shutil.rmtree(VENV, ignore_errors=True)
    run(sys.executable, "-m", "venv", VENV)
    run(
        PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
        "--only-binary=:all:", "--require-hashes", "--requirement", LOCK,
    )  # fmt: skip
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = os.path.join(VENV, "lib", version, "site-packages", "sparkimage.pth")
    with open(site, "w", encoding="utf-8") as path:
        path.write(f"{HERE}\n")
    with open(os.path.join(VENV, "stamp.new"), "w", encoding="ascii") as stamp:
        stamp.write(wanted)
    os.replace(stamp.name, os.path.join(VENV, "stamp"))


def install_venv_module() -> None:
    """Install Debian's python3-venv."""
    import shutil

    by_hand = "sudo apt-get update && sudo apt-get install python3-venv"
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    if not os.path.realpath(sys.executable).startswith("/usr/bin/"):
        fail(f"{sys.executable} lacks the modules venv and ensurepip", "run this with python3")
    if shutil.which("apt-get") is None or (sudo and shutil.which("sudo") is None):
        fail("python3 lacks the modules venv and ensurepip", f"let root install them: {by_hand}")
    run(*sudo, "apt-get", "update", "-qq")
    run(
        *sudo, "env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "install", "-qq", "--yes",
        "--no-install-recommends", "python3-venv",
    )  # fmt: skip


def run(*argv: str) -> None:
    """Run a command, its output on standard error; end this program when it fails."""
    import subprocess

    if subprocess.run(argv, stdout=sys.stderr, stdin=None, check=False).returncode != 0:
        fail(f"failed: {' '.join(argv)}", "its output is above; put that right and run this again")


def fail(what: str, todo: str) -> None:
    """Say what is wrong and what to do, and end."""
    print(f"error: {what}\n  {todo}", file=sys.stderr)
    sys.exit(PREFLIGHT)


if __name__ == "__main__":
    prepare()
    # -P: a file in the present folder must not stand in for a module.
    os.execv(PYTHON, [PYTHON, "-P", "-m", "sparkimage", *sys.argv[1:]])
