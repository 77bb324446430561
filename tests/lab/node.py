"""A Docker node in a container: its own Docker Engine with the containerd image store, and SSH."""

from __future__ import annotations

import select
import shutil
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sparkimage.engine import Engine
from tests.lab.servers import LOOPBACK

READY_S = 90.0
ALIAS = "lab-node"
IMAGE = "sparkimage-lab-node"


@dataclass(frozen=True, kw_only=True)
class Node:
    """A node that answers: ``ssh -F ssh_config lab-node``, or ``ssh lab-node`` with ``bin`` first
    in PATH, as the docker CLI calls it for ssh://root@lab-node.
    """

    address: str
    port: int
    ssh_config: Path
    bin: Path
    container: str


@contextmanager
def node(engine: Engine, *, base: str, folder: Path) -> Iterator[Node]:
    """A node made of ``base``, an image of Debian that the engine holds, of its own architecture.

    Keys and settings are written into ``folder``; container, volume and image are gone afterwards.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("host", "client"):
        _keygen(folder / name)
    image = f"{IMAGE}:{uuid.uuid4().hex[:12]}"
    _build(engine, base, image)
    container = _docker(
        engine, "create", "--privileged", "--cgroupns=private", f"--publish={LOOPBACK}::22", image
    )
    try:
        for path, to in (
            (folder / "host", "/etc/ssh/ssh_host_ed25519_key"),
            (folder / "client.pub", "/root/.ssh/authorized_keys"),
        ):
            _docker(engine, "cp", "--quiet", str(path), f"{container}:{to}")
        _docker(engine, "start", container)
        port = int(_docker(engine, "port", container, "22/tcp").splitlines()[0].rsplit(":", 1)[1])
        config = _configure(folder, port)
        made = Node(
            address=LOOPBACK,
            port=port,
            ssh_config=config,
            bin=_wrapper(folder / "bin", config),
            container=container,
        )
        _wait(engine, made)
        yield made
    finally:
        _docker(engine, "rm", "--force", "--volumes", container)
        _docker(engine, "rmi", image)


def _build(engine: Engine, base: str, image: str) -> None:
    output = f"type=image,name={image},compression=uncompressed,oci-mediatypes=true"
    _docker(
        engine, "buildx", "build", "--quiet", "--provenance=false", f"--output={output}",
        f"--build-context=below=docker-image://{base}",
        str(Path(__file__).with_name("node")),
    )  # fmt: skip


def _keygen(key: Path) -> None:
    for old in (key, key.with_suffix(".pub")):
        old.unlink(missing_ok=True)
    _run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(key)])


def _configure(folder: Path, port: int) -> Path:
    """The client's settings: they know this node's key, and no other one."""
    known = folder / "known_hosts"
    known.write_text(f"[{LOOPBACK}]:{port} {(folder / 'host.pub').read_text()}")
    config = folder / "ssh_config"
    config.write_text(
        f"Host {ALIAS}\n"
        f"    HostName {LOOPBACK}\n"
        f"    Port {port}\n"
        "    User root\n"
        f'    IdentityFile "{folder.resolve()}/client"\n'
        "    IdentitiesOnly yes\n"
        f'    UserKnownHostsFile "{known.resolve()}"\n'
        "    StrictHostKeyChecking yes\n"
        "    BatchMode yes\n"
        "    ConnectTimeout 10\n"
        "    ControlMaster no\n"
        "    ControlPath none\n"
        "    LogLevel ERROR\n"
    )
    return config


def _wrapper(folder: Path, config: Path) -> Path:
    """A folder with an ``ssh`` that reads ``config``."""
    real = shutil.which("ssh")
    assert real is not None
    folder.mkdir(exist_ok=True)
    program = folder / "ssh"
    program.write_text(f'#!/bin/sh\nexec "{real}" -F "{config.resolve()}" "$@"\n')
    program.chmod(0o755)
    return folder


def _wait(engine: Engine, made: Node) -> None:
    """Until the node's own engine answers over SSH."""
    deadline = time.monotonic() + READY_S
    while True:
        asked = subprocess.run(
            ["ssh", "-F", str(made.ssh_config), ALIAS, "docker", "version"],
            check=False,
            capture_output=True,
            text=True,
        )
        if asked.returncode == 0:
            return
        if time.monotonic() > deadline:
            tail = ("tail", "-n", "30", "/var/log/dockerd.log")
            said = _docker(engine, "exec", made.container, *tail)
            raise RuntimeError(f"the node does not answer: {asked.stderr}\n{said}")
        select.select([], [], [], 0.2)


def _docker(engine: Engine, *words: str) -> str:
    return _run([*engine.docker, *words])


def _run(argv: Sequence[str]) -> str:
    """The output of ``argv``; what it says of an error is the exception's message."""
    done = subprocess.run(argv, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(argv)} ended with {done.returncode}: {done.stderr}")
    return done.stdout.strip()
