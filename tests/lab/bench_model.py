"""Measures `model push` beside rsync, on the lab's four nodes: `make bench-model`. Prints the table
of docs/model.md. Not a test of any time.

A model of SIZE MB (default 2000) in 12 shards; all ways in turn, ROUNDS times (default 3). Every
run ends with the same bytes on each node, which are compared. The nodes' disks are in memory, so
that four of them do not share one: it takes four times SIZE. LINKS are the MB/s that leave this
machine (default 25 and 125: 0.2 and 1 Gbit/s); each sender keeps to them by itself, and where all
nodes are sent to at once each one gets a quarter.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from sparkimage.build.engine.engine import Engine
from tests.lab import fleet as fleets
from tests.lab.fleet import Fleet, each
from tests.lab.modelling import MB, OWN, THERE, Models, fill
from tests.lab.node import Node, put

SIZE = int(os.environ.get("SIZE", "2000")) * MB
ROUNDS = int(os.environ.get("ROUNDS", "3"))
SHARDS = 12
LINKS = [int(rate) * MB for rate in os.environ.get("LINKS", "25,125").split(",")]
PUSH, IN_TURN, AT_ONCE = "model push", "rsync, one by one", "rsync, all at once"
TAR = "tar | ssh tar, all at once"
CIPHERS = ("aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com")
DEBS = ("rsync", "libpopt0", "libxxhash0")
WRAPPER = '#!/bin/sh\nLD_LIBRARY_PATH={folder} exec {folder}/rsync "$@"\n'


def shards(count: int, size: int) -> dict[str, int]:
    names = [f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)]
    return {"config.json": 700, **dict.fromkeys(names, size // count)}


@dataclass
class Bench:
    models: Models
    rsync: Path
    """The program here."""
    seen: dict[tuple[str, str], list[float]] = field(default_factory=dict)

    @property
    def nodes(self) -> list[Node]:
        return self.models.nodes

    def shell(self, node: Node) -> list[str]:
        return ["ssh", "-F", str(self.models.fleet.ssh_config), f"direct-{node.name}"]

    def clear(self) -> None:
        each(self.nodes, lambda node: node.exec("rm", "-rf", THERE, OWN))

    def measure(self, case: str, way: str, *, rate: int | None = None, fresh: bool = False) -> None:
        if fresh:
            self.clear()
        began = time.monotonic()
        WAYS[way](self, rate)
        seconds = time.monotonic() - began
        expected = self.models.expected()
        assert self.models.fleet.each(self.models.there) == dict.fromkeys(
            self.models.fleet.nodes, expected
        )
        self.seen.setdefault((case, way), []).append(seconds)
        print(f"{case} | {way} | {seconds:.2f} s", flush=True)

    def push(self, rate: int | None) -> None:
        self.models.push(*([] if rate is None else ["--limit", str(rate / MB)]))

    def copy(self, node: Node, rate: int | None) -> None:
        *shell, to = self.shell(node)
        limit = [] if rate is None else [f"--bwlimit={rate / MB:g}MB"]
        node.exec("mkdir", "-p", THERE)
        subprocess.run(
            [str(self.rsync), "-a", "--delete", *limit, "-e", shlex.join(shell),
             f"{self.models.here}/", f"{to}:{THERE}/"],
            check=True,
        )  # fmt: skip

    def in_turn(self, rate: int | None) -> None:
        for node in self.nodes:
            self.copy(node, rate)

    def at_once(self, rate: int | None) -> None:
        each(self.nodes, lambda node: self.copy(node, rate and rate // len(self.nodes)))

    def tar(self, _rate: int | None) -> None:
        def one(node: Node) -> None:
            pack = ["tar", "-C", str(self.models.here), "-cf", "-", "."]
            unpack = f"mkdir -p {THERE} && tar -C {THERE} -xf -"
            with subprocess.Popen(pack, stdout=subprocess.PIPE) as packing:
                subprocess.run([*self.shell(node), unpack], stdin=packing.stdout, check=True)

        each(self.nodes, one)


WAYS: Mapping[str, Callable[[Bench, int | None], None]] = {
    PUSH: Bench.push, IN_TURN: Bench.in_turn, AT_ONCE: Bench.at_once, TAR: Bench.tar,
}  # fmt: skip


def get_rsync(folder: Path, fleet: Fleet) -> Path:
    """rsync of this machine's release, unpacked here and on the nodes, which have none."""
    folder.mkdir()
    subprocess.run(["apt-get", "-qq", "-o", "APT::Sandbox::User=root", "download", *DEBS],
                   cwd=folder, check=True)  # fmt: skip
    for deb in folder.glob("*.deb"):
        subprocess.run(["dpkg-deb", "--extract", str(deb), str(folder / "root")], check=True)
    parts = folder / "parts"
    parts.mkdir()
    for path in (folder / "root" / "usr").rglob("*"):
        if (path.name == "rsync" and path.parent.name == "bin") or ".so." in path.name:
            shutil.copy(path, parts / path.name)
    program = folder / "rsync"
    program.write_text(WRAPPER.format(folder=parts))
    program.chmod(0o755)
    there = "/usr/local/lib/rsync"
    files = {f"{there}/{path.name}": (0o755, path.read_bytes()) for path in parts.iterdir()}
    files["/usr/local/bin/rsync"] = (0o755, WRAPPER.format(folder=there).encode())
    for node in fleet:
        node.exec("mkdir", "-p", there)
        put(node, files)
    return program


def direct(fleet: Fleet, folder: Path) -> None:
    """Let ssh reach the nodes at their own addresses, as direct-NAME, and each other."""
    known, hosts = folder / "direct_known", []
    keys = []
    for node in fleet:
        key = " ".join((node.folder / "host.pub").read_text().split()[:2])
        name = f"direct-{node.name}"
        hosts.append(f"Host {name}\n    HostName {node.inside}\n    Port 22\n")
        keys.append(f"{node.inside} {key}\n")
        for other in fleet:
            other.exec("sh", "-c", f"echo {node.inside} {name} >>/etc/hosts; "
                       f"echo '{name} {key}' >>/etc/ssh/ssh_known_hosts")  # fmt: skip
    known.write_text("".join(keys))
    with fleet.ssh_config.open("a") as file:
        file.write(
            "".join(hosts)
            + f"Host direct-*\n    User root\n    IdentityFile {fleet.folder}/client\n"
            f"    IdentitiesOnly yes\n    UserKnownHostsFile {known}\n"
            "    StrictHostKeyChecking yes\n    BatchMode yes\n    LogLevel ERROR\n"
        )


def test_side_by_side(engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specs = {name: replace(spec, disk_bytes=None) for name, spec in fleets.FOUR.items()}
    with capsys.disabled(), fleets.fleet(engine, tmp_path / "fleet", specs) as fleet:
        direct(fleet, tmp_path)
        models = Models(fleet, tmp_path)
        names: dict[str, dict[str, str]] = {f"direct-{node.name}": {} for node in fleet}
        (tmp_path / "fleet.yaml").write_text(json.dumps({"version": 1, "nodes": names}))
        bench = Bench(models, get_rsync(tmp_path / "tools", fleet))
        for node in fleet:
            node.exec("sh", "-ec", "mkdir -p /disk/small; mount -t tmpfs none /disk/small")
        print()
        for number in range(ROUNDS):
            _round(bench, number)
        _many(bench)
        _ciphers(bench)
        _print(bench)


def _round(bench: Bench, number: int) -> None:
    models = bench.models
    model = shards(SHARDS, SIZE)
    changed = dict(list(model.items())[-1:])
    for way in (IN_TURN, TAR, AT_ONCE, PUSH):
        shutil.rmtree(models.here, ignore_errors=True)
        shutil.rmtree(models.folder / "home", ignore_errors=True)
        fill(models.here, model, seed=2 * number)
        bench.measure("cold, no limit", way, fresh=True)
        if way not in (PUSH, AT_ONCE):
            continue
        fill(models.here, changed, seed=2 * number + 1)
        bench.measure("one of 12 shards changed", way)
        bench.measure("nothing changed", way)
    for rate in LINKS:
        link = f"cold, {rate * 8 / 1e9:g} Gbit/s from the source"
        for way in (IN_TURN, AT_ONCE, PUSH):
            bench.measure(link, way, rate=rate, fresh=True)
    bench.clear()


def _many(bench: Bench) -> None:
    shutil.rmtree(bench.models.here)
    fill(bench.models.here, shards(200, 20 * MB))
    bench.measure("200 shards of 100 kB, cold", PUSH, fresh=True)
    for _ in range(ROUNDS):
        bench.measure("200 shards, nothing changed", PUSH)
        bench.measure("200 shards, nothing changed", AT_ONCE)


def _ciphers(bench: Bench) -> None:
    """What a cipher takes of this machine and a node together."""
    node = bench.nodes[0]
    for _ in range(ROUNDS):
        for cipher in CIPHERS:
            argv = [*bench.shell(node), "cat >/dev/null"]
            argv[1:1] = ["-c", cipher]
            began = time.monotonic()
            with subprocess.Popen(["head", "-c", str(SIZE // 2), "/dev/zero"],
                                  stdout=subprocess.PIPE) as zeros:  # fmt: skip
                subprocess.run(argv, stdin=zeros.stdout, check=True)
            seconds = time.monotonic() - began
            bench.seen.setdefault((f"{SIZE // 2 // MB} MB to one node", cipher), []).append(seconds)


def _print(bench: Bench) -> None:
    print("\n| case | way | median | all runs |\n| --- | --- | ---: | --- |")
    for (case, way), runs in bench.seen.items():
        shown = ", ".join(f"{seconds:.2f}" for seconds in runs)
        print(f"| {case} | {way} | {statistics.median(runs):.2f} s | {shown} |")
