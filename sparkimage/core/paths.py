"""The paths of this machine. Pure, but for reading the environment."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from sparkimage.core.errors import PreflightError

SOCKET_PATH_MAX = 107
"""Bytes that Linux takes as a socket's path: https://man7.org/linux/man-pages/man7/unix.7.html."""

LONGEST_SOCKET = "containerd/containerd-debug.sock"
"""The longest socket path that dockerd and its containerd make below their run folder."""

MODELS = "models"
"""The folder in the home with the manifests of pushed models."""


def home() -> Path:
    """The state folder: $SPARKIMAGE_HOME, else sparkimage/ under the user's XDG data folder.

    Raises ``PreflightError`` when $SPARKIMAGE_HOME is a relative path.
    """
    own = os.environ.get("SPARKIMAGE_HOME")
    if own and not own.startswith("/"):
        raise PreflightError(
            f"SPARKIMAGE_HOME is {own!r}, which is a relative path",
            hint=f"export SPARKIMAGE_HOME={Path(own).absolute()}",
        )
    return Path(own) if own else _xdg("XDG_DATA_HOME", ".local/share")


def store() -> Path:
    """The image store: $SPARKIMAGE_STORE, else store/ in the home."""
    own = os.environ.get("SPARKIMAGE_STORE")
    return Path(own).absolute() if own else home() / "store"


MIRRORS = "SPARKIMAGE_MIRRORS"


def mirrors() -> Path:
    """The user's own list of mirrors: $SPARKIMAGE_MIRRORS, else in the XDG configuration."""
    own = os.environ.get(MIRRORS)
    return Path(own).absolute() if own else _xdg("XDG_CONFIG_HOME", ".config") / "mirrors.yaml"


def _xdg(variable: str, default: str) -> Path:
    """Our folder in an XDG folder; a relative one is ignored, as the specification says:
    https://specifications.freedesktop.org/basedir-spec/latest/"""
    folder = os.environ.get(variable, "")
    base = Path(folder) if folder.startswith("/") else Path.home() / default
    return base / "sparkimage"


@dataclass(frozen=True, kw_only=True)
class EnginePlace:
    """The files and names of the private engine of one home."""

    engine: Path
    """The folder of all that is not in ``run``."""
    run: Path
    """The daemon's run folder."""
    root: Path
    """The tree of Debian's packages, whose usr/ the daemon sees as its own."""
    data: Path
    """The daemon's data root."""
    log: Path
    """The daemon's log."""
    config: Path
    """The daemon's configuration."""
    cli: Path
    """The configuration folder of the Docker CLI, for this engine only."""
    socket: Path
    """The API's socket."""
    lock: Path
    """The file that a command locks while it changes the engine."""
    host: str
    """The API's address, as in DOCKER_HOST."""
    bridge: str
    """The bridge's name; Linux takes 15 characters."""
    tag: str
    """A part of all its names that is the home's own."""
    cgroup: str
    """The cgroup that holds every container and RUN step of this engine."""

    @classmethod
    def of(cls, home: Path) -> EnginePlace:
        """The place for ``home``; its names are derived from it, so that two homes never clash."""
        resolved = home.resolve()
        tag = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:8]
        engine = resolved / "engine"
        run = engine / "run"
        if len(os.fsencode(run / LONGEST_SOCKET)) > SOCKET_PATH_MAX:
            run = Path(f"/run/sparkimage-{tag}")
        return cls(
            engine=engine,
            run=run,
            root=engine / "root",
            data=engine / "data",
            log=engine / "log",
            config=engine / "daemon.json",
            cli=engine / "cli",
            socket=run / "docker.sock",
            lock=engine.with_name("engine.lock"),
            tag=tag,
            host=f"unix://{run / 'docker.sock'}",
            bridge=f"spark-{tag}",
            cgroup=f"sparkimage-{tag}",
        )
