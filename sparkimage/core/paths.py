"""Where things lie on this machine. Pure, but for reading the environment."""

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


def home() -> Path:
    """The state folder: $SPARKIMAGE_HOME, else sparkimage under the user's XDG data folder.

    Raises ``PreflightError`` when $SPARKIMAGE_HOME is no absolute path.
    """
    own = os.environ.get("SPARKIMAGE_HOME")
    if own:
        path = Path(own)
        if not path.is_absolute():
            raise PreflightError(
                f"SPARKIMAGE_HOME is {own!r}, which is no absolute path",
                hint=f"export SPARKIMAGE_HOME={path.absolute()}",
            )
        return path
    data = os.environ.get("XDG_DATA_HOME", "")
    # A relative one is to be ignored: https://specifications.freedesktop.org/basedir-spec/latest/
    base = Path(data) if data.startswith("/") else Path.home() / ".local" / "share"
    return base / "sparkimage"


def store() -> Path:
    """The image store: $SPARKIMAGE_STORE, else store/ in the home."""
    own = os.environ.get("SPARKIMAGE_STORE")
    return Path(own).absolute() if own else home() / "store"


def mirrors() -> Path:
    """The user's own list of mirrors: $SPARKIMAGE_MIRRORS, else in the XDG configuration."""
    own = os.environ.get("SPARKIMAGE_MIRRORS")
    if own:
        return Path(own).absolute()
    config = os.environ.get("XDG_CONFIG_HOME", "")
    base = Path(config) if config.startswith("/") else Path.home() / ".config"
    return base / "sparkimage" / "mirrors.yaml"


@dataclass(frozen=True, kw_only=True)
class EnginePlace:
    """The files and names of the private engine of one home."""

    engine: Path
    run: Path
    tag: str

    @classmethod
    def of(cls, home: Path) -> EnginePlace:
        """The place for ``home``; its names are of the home, so that two homes never meet."""
        resolved = home.resolve()
        tag = hashlib.sha256(os.fsencode(resolved)).hexdigest()[:8]
        engine = resolved / "engine"
        run = engine / "run"
        if len(os.fsencode(run / LONGEST_SOCKET)) > SOCKET_PATH_MAX:
            run = Path(f"/run/sparkimage-{tag}")
        return cls(engine=engine, run=run, tag=tag)

    @property
    def root(self) -> Path:
        """The tree of Debian's packages, whose usr/ the daemon sees as its own."""
        return self.engine / "root"

    @property
    def data(self) -> Path:
        """The daemon's data root."""
        return self.engine / "data"

    @property
    def log(self) -> Path:
        """What the daemon says."""
        return self.engine / "log"

    @property
    def config(self) -> Path:
        """The daemon's configuration."""
        return self.engine / "daemon.json"

    @property
    def cli(self) -> Path:
        """The configuration folder of the Docker CLI, for this engine only."""
        return self.engine / "cli"

    @property
    def socket(self) -> Path:
        """The API's socket."""
        return self.run / "docker.sock"

    @property
    def lock(self) -> Path:
        """The file that one command holds while it changes the engine."""
        return self.engine.with_name("engine.lock")

    @property
    def host(self) -> str:
        """The API's address, as in DOCKER_HOST."""
        return f"unix://{self.socket}"

    @property
    def bridge(self) -> str:
        """The bridge's name; Linux takes 15 characters."""
        return f"spark-{self.tag}"

    @property
    def cgroup(self) -> str:
        """The cgroup that holds every container and RUN step of this engine."""
        return f"sparkimage-{self.tag}"
