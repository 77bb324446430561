"""Debian's packages of a real Docker Engine and qemu, in a tree of their own.

The host's packages stay as they are. mmdebstrap's variant ``extract`` unpacks and runs no
maintainer script, which takes seconds: https://manpages.debian.org/mmdebstrap.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from sparkimage.core.arch import ARCHES
from sparkimage.core.errors import CommandError, NetworkError, PreflightError
from sparkimage.core.paths import EnginePlace
from sparkimage.core.process import Completed, Runner
from sparkimage.core.rights import root_prefix, run_as_root

SCRIPT = Path(__file__).parents[1] / "data" / "engine.sh"
SUITE = "trixie"
PACKAGES = (
    # The engine, and what dockerd itself calls: git for contexts by URL, kmod for its modules.
    "docker.io", "docker-cli", "docker-buildx", "containerd", "runc", "iptables", "iproute2",
    "kmod", "git", "ca-certificates",
    # For what git calls in turn.
    "dash", "coreutils", "sed", "grep",
    "qemu-user",
)  # fmt: skip
RECIPE = json.dumps({"suite": SUITE, "packages": PACKAGES, "form": 1})
NEEDED_BYTES = 2 * 10**9
"""Free disk for the tree (0.5 GB) and its packages while they are unpacked."""
HOST_PACKAGES = ("mmdebstrap", "gpg", "ca-certificates", "debian-archive-keyring")
"""The host's packages for making the tree; on Ubuntu, Debian's keys are a package of their own."""
WITHOUT_DOCS = (
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-include=/usr/share/doc/*/copyright",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)
"""Options of mmdebstrap: of the documentation, unpack the licenses only."""
USED_EMULATORS = (
    "--dpkgopt=path-exclude=/usr/bin/qemu-*",
    *(
        f"--dpkgopt=path-include=/usr/bin/qemu-{arch.machine}"
        for arch in ARCHES.values()
        if arch.machine != os.uname().machine
    ),
)
"""Options of mmdebstrap: of qemu's 35 emulators, half a gigabyte, unpack those that are used."""
UNUSED = (
    # What git does for dockerd, fetching, is none of its Perl programs, and of these none.
    "/usr/bin/perl*", "/usr/lib/*/libperl.so*", "/usr/lib/*/perl*", "/usr/share/perl*",
    *(f"/usr/*/{name}" for name in (
        "git-daemon", "git-http-backend", "git-http-fetch", "git-http-push", "git-imap-send",
        "git-shell", "scalar",
    )),
    # A second copy of /usr/bin/git.
    "/usr/lib/git-core/git",
    # dockerd starts containerd-shim-runc-v2.
    "/usr/bin/containerd-shim", "/usr/bin/containerd-shim-runc-v1",
    "/usr/lib/*/gconv/*",
    # Of iproute2, dockerd starts ip alone; the certificates are in place.
    "/usr/sbin/tc", "/usr/bin/openssl",
    *(f"/usr/share/{name}/*" for name in ("bash-completion", "gitweb", "info", "lintian", "zsh")),
)  # fmt: skip
WITHOUT_UNUSED = tuple(f"--dpkgopt=path-exclude={glob}" for glob in UNUSED)
"""Options of mmdebstrap: leave out 0.11 GB that nothing of the engine calls."""
APT_PATIENCE_S = 300
"""Seconds to wait for another apt-get on the host."""


def installed(place: EnginePlace) -> bool:
    """Whether the tree is complete, and made by this version's recipe."""
    try:
        return (place.root / "recipe.json").read_text() == RECIPE
    except OSError:
        return False


def install(place: EnginePlace, runner: Runner, say: Callable[[str], None]) -> None:
    """Make the tree unless it is installed; an interrupted one is made anew.

    Raises ``PreflightError`` when this machine cannot (rights, disk, no apt), ``NetworkError``
    when the packages cannot be fetched.
    """
    if installed(place):
        return
    if place.engine.is_relative_to("/usr"):
        raise PreflightError(
            f"the engine cannot live in {place.engine}: it replaces /usr for itself",
            hint="export SPARKIMAGE_HOME=/var/lib/sparkimage",
        )
    root_prefix(runner, what="a private Docker engine")
    place.engine.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place.engine).free
    if free < NEEDED_BYTES:
        raise PreflightError(
            f"{place.engine} has {free / 1e9:.1f} GB free; the engine's packages need "
            f"{NEEDED_BYTES / 1e9:.0f} GB",
            hint="free some disk, or export SPARKIMAGE_HOME to a folder on a larger one",
        )
    install_on_host(HOST_PACKAGES, "mmdebstrap", runner, say)
    say(f"installing Docker Engine and qemu of Debian {SUITE} into {place.root} (no host package)")
    new = place.engine / "root.new"
    run_as_root(runner, ("rm", "-rf", "--one-file-system", str(new), str(place.root)))
    argv = (
        "mmdebstrap", "--quiet", "--variant=extract", f"--include={','.join(PACKAGES)}",
        *WITHOUT_DOCS, *USED_EMULATORS, *WITHOUT_UNUSED, SUITE, str(new),
    )  # fmt: skip
    try:
        run_as_root(runner, argv)
    except CommandError as error:
        raise NetworkError(
            f"Docker Engine's packages of Debian {SUITE} cannot be fetched and unpacked",
            hint="check that this machine reaches its Debian mirror (proxy settings?), then run "
            "the same command",
            detail="\n".join(error.detail.splitlines()[-15:]),
        ) from None
    engine_script(runner, "finish", str(new), str(os.getuid()))
    (new / "recipe.json").write_text(RECIPE)
    new.rename(place.root)


def engine_script(runner: Runner, verb: str, *arguments: str) -> Completed:
    """Run a verb of data/engine.sh as root. Raises ``CommandError``, ``PreflightError``."""
    return run_as_root(runner, ("sh", str(SCRIPT), verb, *arguments))


def link_cli(place: EnginePlace) -> None:
    """Make the configuration folder of the private engine's Docker CLI."""
    own = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    programs = place.root / "usr"
    for link, target in (
        (place.cli / "cli-plugins" / "docker-buildx",
         programs / "libexec" / "docker" / "cli-plugins" / "docker-buildx"),
        (place.cli / "bin" / "docker", programs / "bin" / "docker"),
        # The user's logins, without a copy of them. The file may be created later.
        (place.cli / "config.json", own),
    ):  # fmt: skip
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def install_on_host(
    packages: tuple[str, ...], program: str, runner: Runner, say: Callable[[str], None]
) -> None:
    """Install ``packages`` with apt unless ``program`` is on the host already.

    Raises ``PreflightError`` where there is no apt or no right to use it, ``NetworkError`` when
    the packages cannot be fetched.
    """
    if shutil.which(program) is not None:
        return
    if shutil.which("apt-get") is None:
        raise PreflightError(
            f"this machine has neither {program} nor apt-get to install it with",
            hint="install Docker Engine (23 or later) with buildx yourself; it is then used",
        )
    say(f"installing {', '.join(packages)} with apt-get")
    try:
        _apt_get(("update",), runner, say)
        _apt_get(("install", "--yes", "--no-install-recommends", *packages), runner, say)
    except CommandError as error:
        raise NetworkError(
            f"apt-get cannot install {', '.join(packages)}",
            hint=f"sudo apt-get update && sudo apt-get install {' '.join(packages)}",
            detail="\n".join(error.detail.splitlines()[-15:]),
        ) from None


def _apt_get(words: tuple[str, ...], runner: Runner, say: Callable[[str], None]) -> None:
    """Run apt-get when no other one runs: a machine that has just started updates itself. Raises
    ``CommandError``."""
    argv = (
        "env", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8", "apt-get", "-qq",
        "-o", f"DPkg::Lock::Timeout={APT_PATIENCE_S}", *words,
    )  # fmt: skip
    start = time.monotonic()
    for attempt in itertools.count():
        try:
            run_as_root(runner, argv)
            return
        except CommandError as error:
            # apt 2.6 waits for dpkg's lock, and not for those of its lists and of its archives.
            if "Could not get lock" not in error.detail or (
                time.monotonic() > start + APT_PATIENCE_S
            ):
                raise
            if attempt == 0:
                say("waiting for another apt-get")
            time.sleep(1)
