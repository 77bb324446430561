"""A Docker node in a container: its own Docker Engine and containerd, and SSH, behind two wires."""

from __future__ import annotations

import io
import os
import select
import shlex
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sparkimage.build.engine.engine import Engine
from sparkimage.verify.checks import NOT_STARTED
from tests.lab.node_image import Release, output, run
from tests.lab.wire import Wire

READY_S = 300.0
"""How long a test waits for a state, on however busy a machine: only a failure takes so long."""
DISK_BYTES = 8 << 30
LEAST_FREE = 1 << 20
"""What a file system needs to say where the rest is."""
CONTAINERD = "/run/containerd/containerd.sock"
USERS = ("root", "worker", "plain", "sudoer", "asker")
"""root and worker may use Docker; sudoer may with sudo, asker with sudo and his password, plain
may not."""
PASSWORD = "asker"
NO_SSH = 255
HOST_KEY = "/etc/ssh/ssh_host_ed25519_key"


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a node is to be."""

    release: Release = Release.TRIXIE
    containerd_store: bool = True
    older_cli: bool = False
    """Its docker command is Debian 13's: testing's takes 35 ms more to start, which is half of what
    a node does in most tests. https://github.com/mattn/go-runewidth/issues/104"""
    disk_bytes: int | None = DISK_BYTES
    """The size of its own disk, of which only what is used takes up any of this machine's; None
    for this machine's disk itself, which is faster."""
    spark: bool = False
    """Docker takes --gpus there, and /dev/infiniband has devices; nothing is behind either."""
    options: tuple[str, ...] = ()
    """More options of the `docker create` of its container."""

    @property
    def store(self) -> str:
        return "containerd" if self.containerd_store else "overlay2"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node; see ``fleet``."""

    name: str
    spec: Spec
    engine: Engine
    """In which its container is."""
    container: str
    inside: str
    """Its address among the nodes."""
    control: Wire
    data: Wire
    """Both end at the node's sshd, and have the same port."""
    folder: Path
    """With the keys ``host`` and, after ``change_host_key``, ``other``."""
    _hosts_key: list[str] = field(default_factory=lambda: ["host"])

    @property
    def port(self) -> int:
        return self.control.port

    @property
    def wires(self) -> tuple[Wire, Wire]:
        return (self.control, self.data)

    @property
    def store(self) -> str:
        return self.spec.store

    # Looking

    def exec(self, *words: str, given: bytes = b"") -> str:
        """What a command says in the node, as root and past the wires. Raises ``RuntimeError``."""
        if self.shortcut.exists():
            argv = ["ssh", *self.to_shortcut, shlex.join(words)]
            done = subprocess.run(argv, check=False, capture_output=True, input=given)
            if done.returncode != NO_SSH:
                return output(done, words)
        argv = [*self.engine.docker, "exec", "--interactive", self.container, *words]
        try:
            return run(argv, given)
        except RuntimeError as error:
            if NOT_STARTED not in str(error):
                raise
            return run(argv, given)

    @property
    def shortcut(self) -> Path:
        """The socket of an SSH connection to the node: a fifth of the cost of ``docker exec``."""
        return self.folder / "ssh"

    @property
    def to_shortcut(self) -> list[str]:
        return ["-F", os.devnull, "-S", str(self.shortcut), "root@node"]

    def make_shortcut(self, key: Path) -> None:
        """Connect, past the wires."""
        assert self.control.target is not None
        address, port = self.control.target
        options = ("StrictHostKeyChecking=no", f"UserKnownHostsFile={os.devnull}",
                   "LogLevel=ERROR", "ServerAliveInterval=15", f"HostName={address}")  # fmt: skip
        argv = ["ssh", "-fMN", "-i", str(key), "-p", str(port)]
        argv += [word for option in options for word in ("-o", option)]
        # Where it cannot be, docker does all.
        subprocess.run(
            [*argv, *self.to_shortcut],
            check=False, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip

    def docker(self, *words: str, given: bytes = b"") -> str:
        """What the node's own docker says."""
        return self.exec("docker", *words, given=given)

    @property
    def version(self) -> str:
        """Its engine's."""
        return self.docker("version", "--format", "{{.Server.Version}}")

    def images(self) -> dict[str, str]:
        """The id of every image that has a name."""
        said = self.docker(
            "image", "ls", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}"
        )
        found = dict(line.split() for line in said.splitlines())
        return {name: id for name, id in found.items() if "<none>" not in name}

    def dangling(self) -> set[str]:
        """The ids of the images that have no name."""
        said = self.docker("image", "ls", "--no-trunc", "--quiet", "--filter", "dangling=true")
        return set(said.split())

    def diff_ids(self, image: str) -> tuple[str, ...]:
        """The layers of an image, whatever the store calls it."""
        template = '{{join .RootFS.Layers " "}}'
        return tuple(self.docker("image", "inspect", "--format", template, image).split())

    def blobs(self) -> set[str]:
        """The digests in containerd's content store."""
        return set(self.exec("ctr", "--namespace", "moby", "content", "ls", "--quiet").split())

    def disk_used(self) -> int:
        """Bytes on disk of all that dockerd and containerd hold."""
        parts = ("/var/lib/docker", "/var/lib/containerd")
        said = self.exec("du", "--summarize", "--one-file-system", "--block-size=1", *parts)
        return sum(int(line.split()[0]) for line in said.splitlines())

    def disk_free(self) -> int:
        """Bytes that are free where dockerd and containerd write."""
        said = self.exec("df", "--block-size=1", "--output=avail", "/var/lib/docker")
        return int(said.splitlines()[1])

    def log(self) -> str:
        """The last words of dockerd and containerd."""
        return self.exec("sh", "-c", "tail -n 40 /var/log/containerd.log /var/log/dockerd.log || :")

    # Faults

    def kill_dockerd(self) -> None:
        """SIGKILL for dockerd and containerd; both are gone afterwards."""
        self.exec("engine.sh", "kill")

    def stop_dockerd(self) -> None:
        """End dockerd and containerd in order."""
        self.exec("engine.sh", "stop")

    def start_dockerd(self) -> None:
        """Start what of dockerd and containerd does not run, and wait for Docker's answer."""
        self.exec("engine.sh", "start")
        self.wait_docker()

    def pause_dockerd(self) -> None:
        """SIGSTOP for both: whoever asks Docker waits."""
        self.exec("engine.sh", "pause")

    def resume_dockerd(self) -> None:
        self.exec("engine.sh", "resume")

    def wait_docker(self) -> None:
        """Until the node's Docker answers."""
        try:
            self.exec("timeout", f"{READY_S:g}", "engine.sh", "ready")
        except RuntimeError as error:
            said = f"{self.name}'s Docker does not answer: {error}\n{self.log()}"
            raise RuntimeError(said) from None

    def fill_disk(self, leave_bytes: int) -> None:
        """Take all of the node's own disk but ``leave_bytes``; takes none of this machine's."""
        assert self.spec.disk_bytes is not None

        def fill() -> bool:
            self.free_disk()
            size = self.disk_free() - max(leave_bytes, LEAST_FREE)
            try:
                self.exec("fallocate", "--length", str(size), "/disk/small/fill")
            except RuntimeError as error:
                # The engine may be writing.
                if "No space left" not in str(error):
                    raise
                return False
            return True

        wait(fill, f"{self.name}'s disk cannot be filled")

    def free_disk(self) -> None:
        """Undo ``fill_disk``."""
        self.exec("rm", "-f", "/disk/small/fill")

    def change_host_key(self) -> None:
        """Another host key, as after a new installation, or with another machine in between."""
        keygen(self.folder / "other")
        self._present("other")

    def restore_host_key(self) -> None:
        """The key that the client knows."""
        if self._hosts_key != ["host"]:
            self._present("host")

    @contextmanager
    def without_forwarding(self, setting: str = "AllowTcpForwarding no") -> Iterator[None]:
        """Its sshd forwards no ports meanwhile, or what the setting forbids."""
        config = "/etc/ssh/sshd_config.d/without-forwarding.conf"
        put(self, {config: (0o644, f"{setting}\n".encode())})
        self.exec("kill", "-HUP", "1")
        try:
            yield
        finally:
            self.exec("rm", config)
            self.exec("kill", "-HUP", "1")

    def part(self, other: Node) -> None:
        """Drop, silently, what this node sends to ``other`` directly."""
        self.exec("ip", "route", "replace", "blackhole", other.inside)

    def join(self) -> None:
        """Undo every ``part`` of this node."""
        self.exec("ip", "route", "flush", "type", "blackhole")

    def reset(self) -> bool:
        """A node as it began; whether that took a new disk."""
        for wire in self.wires:
            wire.restore()
        self.restore_host_key()
        wiped = "wiped" in self.exec("reset.sh", self.store)
        for wire in self.wires:
            wire.forget()
        return wiped

    def _present(self, key: str) -> None:
        put(self, {HOST_KEY: (0o600, (self.folder / key).read_bytes())})
        self.exec("kill", "-HUP", "1")
        self._hosts_key[:] = [key]
        wanted = (self.folder / key).with_suffix(".pub").read_text().split()[1]
        scan = ["ssh-keyscan", "-t", "ed25519", "-p", str(self.port), self.control.address]
        wait(
            lambda: (
                wanted in subprocess.run(scan, check=False, capture_output=True, text=True).stdout
            ),
            f"{self.name} does not present its key {key}",
        )


def put(node: Node, files: Mapping[str, tuple[int, bytes]]) -> None:
    """Write files into a node, or into one that has not started yet: path to mode and content."""
    put_into(node.engine, node.container, files)


def put_into(engine: Engine, container: str, files: Mapping[str, tuple[int, bytes]]) -> None:
    """As ``put``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, (mode, content) in files.items():
            member = tarfile.TarInfo(path.lstrip("/"))
            member.mode, member.size = mode, len(content)
            archive.addfile(member, io.BytesIO(content))
    run([*engine.docker, "cp", "--quiet", "-", f"{container}:/"], buffer.getvalue())


def keygen(key: Path) -> None:
    """A key pair without a passphrase, in place of an earlier one."""
    for old in (key, key.with_suffix(".pub")):
        old.unlink(missing_ok=True)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(key)])


def wait(true: Callable[[], bool], otherwise: str, seconds: float = READY_S) -> None:
    """Until ``true``. Raises ``AssertionError`` when that takes too long."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, otherwise
        select.select([], [], [], 0.05)
