"""Docker nodes in containers, and the network to them under the tests' control.

The client reaches each node at two addresses of the loopback (``CONTROL`` and ``DATA``), each
through a wire that the tests may cut, slow down or tamper with. The nodes reach each other in the
engine's network, by name, by their address there, and by the client's data address and port.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from sparkimage.build.engine.engine import Engine
from tests.lab import node_image
from tests.lab.node import HOST_KEY, READY_S, Node, Spec, keygen, put_into, wait
from tests.lab.node_image import Release, run
from tests.lab.servers import LOOPBACK
from tests.lab.wire import Wire, wire

CONTROL, DATA = LOOPBACK, "127.0.0.2"
FOUR = {
    "node1": Spec(release=Release.TRIXIE, containerd_store=False),
    "node2": Spec(release=Release.TRIXIE, containerd_store=True),
    "node3": Spec(release=Release.TESTING, containerd_store=False, older_cli=True),
    "node4": Spec(release=Release.TESTING, containerd_store=True, older_cli=True),
}
PAIRS = (("node1", "node4"), ("node2", "node3"))
"""Two of them with both releases and both stores; together they are all four."""
OWNER = "dev.sparkimage.lab.owner"
"""The label with the process that a node belongs to."""
Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """Nodes that answer: ``ssh -F ssh_config NAME``, or ``ssh NAME`` with ``environment``."""

    nodes: Mapping[str, Node]
    ssh_config: Path
    bin: Path
    """A folder with an ``ssh`` that reads ``ssh_config``, to go first in PATH."""
    folder: Path
    """With the keys ``client`` (the user's) and ``inter`` (the nodes' own, for each other)."""
    resets: Counter[str] = field(default_factory=Counter)
    """How often each node was reset."""

    def __getitem__(self, name: str) -> Node:
        return self.nodes[name]

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes.values())

    def only(self, *names: str) -> Fleet:
        """These of its nodes."""
        return replace(self, nodes={name: self.nodes[name] for name in names})

    @property
    def environment(self) -> dict[str, str]:
        """What a command needs so that its ``ssh`` finds the nodes."""
        return {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}

    def data(self, user: str = "root", *names: str) -> dict[str, Any]:
        """What a fleet.yaml says of these nodes, of all where none is named."""
        return {
            "version": 1,
            "nodes": {
                node.name: {"control": CONTROL, "data": DATA, "user": user, "port": node.port}
                for node in self
                if not names or node.name in names
            },
        }

    def ssh(
        self, to: str, *words: str, options: Sequence[str] = (), given: bytes = b""
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a command by SSH at NAME or USER@NAME."""
        argv = ["ssh", "-F", str(self.ssh_config), *options, to, shlex.join(words)]
        return subprocess.run(argv, check=False, capture_output=True, input=given, timeout=READY_S)

    def each(self, work: Callable[[Node], Result]) -> dict[str, Result]:
        """What ``work`` gives for each node, all at once."""
        return each(list(self), work)

    def quiet(self) -> None:
        """Until nobody is connected any more."""
        wires = [wire for node in self for wire in node.wires]
        wait(lambda: not any(wire.connections for wire in wires), "somebody is connected")

    def reset(self) -> dict[str, bool]:
        """All as it began: wires, keys, daemons, disks, no image, nobody's state. Which nodes
        needed a new disk."""
        self.resets.update(self.nodes.keys())
        return self.each(Node.reset)


@contextmanager
def fleet(engine: Engine, folder: Path, specs: Mapping[str, Spec] | None = None) -> Iterator[Fleet]:
    """Nodes of the machine's own architecture, by name (default: ``FOUR``).

    Keys and settings are written into ``folder``; containers and volumes are gone afterwards.
    """
    specs = FOUR if specs is None else specs
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("client", "inter"):
        keygen(folder / name)
    images = {release: node_image.ensure(engine, release) for release in _releases(specs)}
    _sweep(engine)
    with ExitStack() as stack:
        starts = [
            _Start(engine, folder, name, spec, images[spec.release], *_wires(stack))
            for name, spec in specs.items()
        ]
        stack.callback(each, starts, _Start.remove)
        made = each(starts, _Start.start)
        whole = Fleet(
            nodes=made,
            ssh_config=_configure(folder, list(made.values())),
            bin=_wrapper(folder / "bin", folder / "ssh_config"),
            folder=folder,
        )
        whole.each(lambda node: _introduce(node, whole))
        yield whole


def each(things: Sequence[Any], work: Callable[[Any], Result]) -> dict[str, Result]:
    """What ``work`` gives for each thing, by its name, all at once."""
    with ThreadPoolExecutor(max(1, len(things))) as pool:
        return dict(zip([one.name for one in things], pool.map(work, things), strict=True))


def _releases(specs: Mapping[str, Spec]) -> list[Release]:
    return sorted({spec.release for spec in specs.values()})


def _wires(stack: ExitStack) -> tuple[Wire, Wire]:
    """Two wires with one port."""
    while True:
        control = stack.enter_context(wire(CONTROL))
        try:
            data = Wire(address=DATA, port=control.port)
        except OSError:
            continue
        stack.callback(data.close)
        return control, data


class _Start:
    """Starts a node, and removes it."""

    def __init__(
        self, engine: Engine, folder: Path, name: str, spec: Spec, image: str,
        control: Wire, data: Wire,
    ) -> None:  # fmt: skip
        self.engine, self.name, self.spec, self.image = engine, name, spec, image
        self.control, self.data, self.keys, self.folder = control, data, folder, folder / name
        # Known before it is there: an interrupt may end `docker create` after its work.
        self.container = f"lab-{uuid.uuid4().hex[:8]}-{name}"

    def start(self) -> Node:
        self.folder.mkdir(exist_ok=True)
        keygen(self.folder / "host")
        disk = self.spec.disk_bytes
        self._docker(
            "create", f"--name={self.container}", "--privileged", "--cgroupns=private",
            f"--hostname={self.name}", f"--publish={LOOPBACK}::22",
            f"--label={OWNER}={os.getpid()}",
            f"--env=STORE={self.spec.store}",
            f"--env=DISK_BYTES={'' if disk is None else disk}",
            f"--env=OLDER_CLI={'1' if self.spec.older_cli else ''}",
            f"--env=SPARK={'1' if self.spec.spark else ''}", *self.spec.options, self.image,
        )  # fmt: skip
        keys = [self.keys / "client.pub", self.keys / "inter.pub"]
        put_into(self.engine, self.container, {
            HOST_KEY: (0o600, (self.folder / "host").read_bytes()),
            "/etc/ssh/authorized_keys": (0o644, b"".join(key.read_bytes() for key in keys)),
            "/etc/ssh/inter": (0o600, (self.keys / "inter").read_bytes()),
        })  # fmt: skip
        self._docker("start", self.container)
        template = (
            "{{.NetworkSettings.IPAddress}} "
            '{{(index (index .NetworkSettings.Ports "22/tcp") 0).HostPort}}'
        )
        inside, port = self._docker("inspect", "--format", template, self.container).split()
        self.control.target = self.data.target = (LOOPBACK, int(port))
        return Node(
            name=self.name, spec=self.spec, engine=self.engine, container=self.container,
            inside=inside, control=self.control, data=self.data, folder=self.folder,
        )  # fmt: skip

    def remove(self) -> None:
        leave = ["ssh", "-F", os.devnull, "-S", str(self.folder / "ssh"), "-O", "exit", "node"]
        subprocess.run(leave, check=False, capture_output=True)
        try:
            self._docker("rm", "--force", "--volumes", self.container)
        except RuntimeError as error:
            if "No such container" not in str(error):
                raise

    def _docker(self, *words: str) -> str:
        return run([*self.engine.docker, *words])


def _sweep(engine: Engine) -> None:
    """Remove nodes whose tests were killed."""
    listed = run([
        *engine.docker, "ps", "--all", f"--filter=label={OWNER}",
        "--format", '{{.ID}} {{.Label "' + OWNER + '"}}',
    ])  # fmt: skip
    for line in listed.splitlines():
        container, owner = line.split()
        if not Path("/proc", owner).exists():
            run([*engine.docker, "rm", "--force", "--volumes", container])


def _introduce(node: Node, whole: Fleet) -> None:
    """Tell a node of the other ones, and wait for its Docker."""
    lines = [
        f"{other.name} {other.inside} {DATA} {other.port} {_host_key(other)}\n"
        for other in whole
        if other is not node
    ]
    node.exec("join.sh", given="".join(lines).encode())
    node.wait_docker()
    node.make_shortcut(whole.folder / "client")


def _host_key(node: Node) -> str:
    """As known_hosts has it."""
    return " ".join((node.folder / "host.pub").read_text().split()[:2])


def _configure(folder: Path, nodes: Sequence[Node]) -> Path:
    """The client's settings: they know these nodes' keys, and no other ones."""
    known = folder / "known_hosts"
    known.write_text(
        "".join(
            f"[{address}]:{node.port} {_host_key(node)}\n"
            for node in nodes
            for address in (CONTROL, DATA)
        )
    )
    hosts = "".join(
        f"Host {node.name}\n    HostName {CONTROL}\n    Port {node.port}\n" for node in nodes
    )
    config = folder / "ssh_config"
    config.write_text(
        f"{hosts}"
        f"Host {' '.join(node.name for node in nodes)} {CONTROL} {DATA}\n"
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
    """A folder with programs of SSH that read ``config``."""
    folder.mkdir(exist_ok=True)
    for name in ("ssh", "scp"):
        real = shutil.which(name)
        assert real is not None
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec "{real}" -F "{config.resolve()}" "$@"\n')
        program.chmod(0o755)
    return folder
