"""A model's folder on this machine, and what the nodes have of it."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.lab import command
from tests.lab.distribution import Running
from tests.lab.fleet import Fleet
from tests.lab.node import Node, wait

MB = 1_000_000
THERE = "/disk/small/models/m"
"""The model's path on the nodes, on each one's own disk."""
OWN = "/disk/small/models/.m.sparkimage"
SIZES = {"config.json": 700, "model-1.safetensors": 3 * MB, "model-2.safetensors": 2 * MB}
REPLACED_NONE = "no folder was replaced: every node keeps what it had"


def noise(size: int, seed: object) -> bytes:
    """Bytes that are the same each time."""
    return random.Random(str(seed)).randbytes(size)


def fill(folder: Path, sizes: Mapping[str, int] = SIZES, seed: int = 0) -> Path:
    """A folder with files of these sizes."""
    for name, size in sizes.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(noise(size, f"{name} {seed}"))
    return folder


@dataclass
class Models:
    """A model here, and the nodes that it is pushed to."""

    fleet: Fleet
    folder: Path
    """For the home, the fleet's file and the model."""

    @property
    def here(self) -> Path:
        return self.folder / "model"

    @property
    def nodes(self) -> list[Node]:
        return list(self.fleet)

    def write_fleet(self, *names: str, **more: Any) -> None:
        data = self.fleet.data("root", *names)
        for node in data["nodes"].values():
            node.update(more)
        (self.folder / "fleet.yaml").write_text(json.dumps(data))

    @contextmanager
    def strangers(self) -> Iterator[None]:
        """Nodes that know neither the names nor the host keys of each other."""
        known, hosts = "/etc/ssh/ssh_known_hosts", "/etc/hosts"
        forget = f"mv {known} /tmp/known; cp {hosts} /tmp/hosts; sed /node/d /tmp/hosts >{hosts}"
        self.fleet.each(lambda node: node.exec("sh", "-ec", forget))
        try:
            yield
        finally:
            remember = f"mv /tmp/known {known}; cat /tmp/hosts >{hosts}"
            self.fleet.each(lambda node: node.exec("sh", "-ec", remember))

    @property
    def environment(self) -> dict[str, str]:
        return {
            "SPARKIMAGE_HOME": str(self.folder / "home"),
            "HOME": str(self.folder),
            **self.fleet.environment,
        }

    def words(self, verb: str, *words: str) -> list[str]:
        given = [str(self.here), "--to", THERE] if verb == "push" else []
        return ["model", verb, *given, "--nodes", str(self.folder / "fleet.yaml"), *words]

    def run(self, verb: str, *words: str) -> subprocess.CompletedProcess[str]:
        """`model VERB`, to its end."""
        return command.call(self.words(verb, *words), self.environment)

    def push(self, *words: str) -> dict[str, Any]:
        """A push that must succeed; its facts."""
        done = self.run("push", "--json", *words)
        assert done.returncode == 0, done.stderr
        facts: dict[str, Any] = json.loads(done.stdout)
        return facts

    @contextmanager
    def running(self, verb: str, *words: str) -> Iterator[Running]:
        running = Running(self.words(verb, *words), self.environment)
        try:
            yield running
        finally:
            running.close()

    @contextmanager
    def held(self, *words: str, after: int = MB) -> Iterator[Running]:
        """A push that waits for the first node after so many bytes."""
        wire = self.nodes[0].data
        wire.hang_after(after)
        with self.running("push", *words) as running:
            wait(lambda: wire.hangs or running.process.poll() is not None, "nothing came")
            assert wire.hangs, running.said
            yield running

    def quiet(self) -> None:
        """Until nobody is connected, and no lock is held."""
        self.fleet.quiet()

    def put(self, node: Node, folder: str = THERE) -> None:
        """A copy by hand of what is here."""
        pack = ["tar", "-C", str(self.here), "-cf", "-", "."]
        packed = subprocess.run(pack, check=True, capture_output=True).stdout
        node.exec("mkdir", "-p", folder)
        node.exec("tar", "-C", folder, "-xf", "-", given=packed)

    def there(self, node: Node) -> dict[str, str]:
        """The sha256 of each file of the model on a node."""
        ask = f"cd {THERE} 2>/dev/null && find -L . -type f -exec sha256sum {{}} + || :"
        lines = node.exec("sh", "-c", ask).splitlines()
        return {path[2:]: sha256 for sha256, path in (line.split("  ") for line in lines)}

    def expected(self) -> dict[str, str]:
        return {
            str(path.relative_to(self.here)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in self.here.rglob("*")
            if path.is_file() and not path.name.startswith(".")
        }

    def arrived(self) -> None:
        """All nodes have what is here, and nothing else is left there."""
        expected = self.expected()
        assert self.fleet.each(self.there) == dict.fromkeys(self.fleet.nodes, expected)
        left = self.fleet.each(lambda node: node.exec("ls", OWN).split())
        for name, files in left.items():
            assert set(files) <= {"manifest", "listing", "previous"}, (name, files)

    def clear(self) -> None:
        """As the nodes began."""

        def one(node: Node) -> None:
            for wire in node.wires:
                wire.restore()
            node.join()
            node.free_disk()
            node.exec("rm", "-rf", "/disk/small/models")
            for wire in node.wires:
                wire.forget()

        self.fleet.each(one)
