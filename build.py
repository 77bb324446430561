#!/usr/bin/env python3
"""Enters the project's own environment, made on first use, and calls the package there."""

import fcntl
import hashlib
import os
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
LOCK = os.path.join(HERE, "requirements.txt")
PREFLIGHT = 9
"""Exit code when this machine lacks something, as sparkimage.core.errors.PreflightError."""


def prepare() -> str:
    """Make the environment hold exactly what requirements.txt says; costs nothing when it does.

    Returns its folder: .venv here, or one below the user's cache where this folder is read-only.
    """
    if sys.version_info < (3, 11):
        fail(f"python {sys.version.split()[0]} is too old", "run this with python 3.11 or later")
    # The folder counts too: an environment does not survive a move.
    with open(LOCK, "rb") as source:
        wanted = hashlib.sha256(source.read() + os.fsencode(HERE)).hexdigest()
    venv = os.path.join(HERE, ".venv")
    if is_made(venv, wanted):
        return venv
    if not os.access(HERE, os.W_OK):
        venv = below_the_cache()
    with open(__file__, "rb") as one_at_a_time:
        fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
        if not is_made(venv, wanted):
            make(venv, wanted)
    return venv


def below_the_cache() -> str:
    """The folder in the user's cache for the environment of this clone."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if not cache.startswith("/"):
        cache = os.path.expanduser("~/.cache")
    clone = hashlib.sha256(os.fsencode(HERE)).hexdigest()[:12]
    return os.path.join(cache, "sparkimage", f"venv-{clone}")


def python_of(venv: str) -> str:
    """The environment's interpreter."""
    return os.path.join(venv, "bin", "python")


def is_made(venv: str, wanted: str) -> bool:
    """Whether the environment was finished for this lock; its stamp is written last."""
    try:
        with open(os.path.join(venv, "stamp"), encoding="ascii") as stamp:
            return stamp.read() == wanted and os.path.exists(python_of(venv))
    except OSError:
        return False


def make(venv: str, wanted: str) -> None:
    """Make the environment anew."""
    import shutil
    from importlib.util import find_spec

    print(f"preparing {venv} with the locked tools (once)", file=sys.stderr, flush=True)
    # Debian has both modules in a package of its own.
    if find_spec("ensurepip") is None or find_spec("venv") is None:
        install_venv_module()
    shutil.rmtree(venv, ignore_errors=True)
    run(sys.executable, "-m", "venv", venv)
    run(
        python_of(venv), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
        "--no-deps", "--only-binary=:all:", "--require-hashes", "--requirement", LOCK,
    )  # fmt: skip
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = os.path.join(venv, "lib", version, "site-packages", "sparkimage.pth")
    with open(site, "w", encoding="utf-8") as path:
        path.write(f"{HERE}\n")
    with open(os.path.join(venv, "stamp.new"), "w", encoding="ascii") as stamp:
        stamp.write(wanted)
    os.replace(stamp.name, os.path.join(venv, "stamp"))


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


def called() -> str:
    """How this file was started: the program's messages name it so."""
    import shlex

    path = sys.argv[0]
    if os.path.dirname(path) in os.environ.get("PATH", "").split(os.pathsep):
        return shlex.quote(os.path.basename(path))
    # A shell starts a file without python only by a path with a slash.
    if os.sep in path and os.access(path, os.X_OK):
        return shlex.quote(path)
    return shlex.join([os.path.basename(sys.orig_argv[0]), path])


if __name__ == "__main__":
    made = prepare()
    os.environ["SPARKIMAGE_PROGRAM"] = called()
    if not made.startswith(HERE):
        os.environ["PYTHONPYCACHEPREFIX"] = os.path.join(made, "pycache")
    # -P: a file in the present folder must not stand in for a module.
    os.execv(python_of(made), [python_of(made), "-P", "-m", "sparkimage", *sys.argv[1:]])
