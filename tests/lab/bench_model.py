"""Measures `model push` beside rsync, on the lab's four nodes: `make bench-model`. Prints the table
of docs/model.md. Not a test of any time.

A model of SIZE MB (default 2000) in 12 shards; all ways in turn, ROUNDS times (default 3, about 13
minutes). In the first round the bytes on each node are compared after every run. The nodes' disks
are in memory, so that four of them do not share one: it takes five times SIZE. LINKS are the MB/s
that leave this machine (default 125: 1 Gbit/s); each sender keeps to them by itself, and where all
nodes are sent to at once each one gets a quarter. Processor seconds are those of this whole
machine, which the nodes share: nothing else should run there.
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
LINKS = [int(rate) * MB for rate in os.environ.get("LINKS", "125").split(",")]
PUSH, IN_TURN, AT_ONCE = "model push", "rsync, one by one", "rsync, all at once"
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
    compares: bool = True
    """The bytes on the nodes after each run with those here."""
    seen: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=dict)
    """Seconds, and processor seconds, of each run of a way in a case."""

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
        began, worked = time.monotonic(), processor_s()
        WAYS[way](self, rate)
        run = time.monotonic() - began, processor_s() - worked
        if self.compares:
            there = self.models.fleet.each(self.models.there)
            assert there == dict.fromkeys(self.models.fleet.nodes, self.models.expected())
        self.seen.setdefault((case, way), []).append(run)
        print(f"{case} | {way} | {run[0]:.2f} s | {run[1]:.1f} processor s", flush=True)

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


WAYS: Mapping[str, Callable[[Bench, int | None], None]] = {
    PUSH: Bench.push, IN_TURN: Bench.in_turn, AT_ONCE: Bench.at_once,
}  # fmt: skip


def processor_s() -> float:
    """Seconds that all processors of this machine have worked."""
    user, nice, system, _, _, irq, soft, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return (user + nice + system + irq + soft) / os.sysconf("SC_CLK_TCK")


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
    """Let ssh reach the nodes at their own addresses, as direct-NAME."""
    known, hosts = folder / "direct_known", ""
    with known.open("w") as keys:
        for node in fleet:
            key = " ".join((node.folder / "host.pub").read_text().split()[:2])
            keys.write(f"{node.inside} {key}\n")
            hosts += f"Host direct-{node.name}\n    HostName {node.inside}\n    Port 22\n"
    with fleet.ssh_config.open("a") as file:
        file.write(
            f"{hosts}Host direct-*\n    User root\n    IdentityFile {fleet.folder}/client\n"
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
        try:
            for number in range(ROUNDS):
                _round(bench, number)
                bench.compares = False
            _many(bench)
        finally:
            shutil.rmtree(models.here, ignore_errors=True)
        _print(bench)


def _round(bench: Bench, number: int) -> None:
    models, model = bench.models, shards(SHARDS, SIZE)
    changed = dict(list(model.items())[-1:])
    shutil.rmtree(models.here, ignore_errors=True)
    shutil.rmtree(models.folder / "home", ignore_errors=True)
    fill(models.here, model, seed=2 * number)
    bench.measure("no limit", IN_TURN, fresh=True)
    for way in (AT_ONCE, PUSH):
        fill(models.here, changed, seed=2 * number)
        bench.measure("no limit", way, fresh=True)
        fill(models.here, changed, seed=2 * number + 1)
        bench.measure(f"one of {SHARDS} shards changed", way)
        bench.measure("nothing changed", way)
    for rate in LINKS:
        for way in (IN_TURN, AT_ONCE, PUSH):
            link = f"{rate * 8 / 1e9:g} Gbit/s from the source"
            bench.measure(link, way, rate=rate, fresh=True)
    bench.clear()


def _many(bench: Bench) -> None:
    shutil.rmtree(bench.models.here)
    fill(bench.models.here, shards(200, 20 * MB))
    for way in (PUSH, AT_ONCE):
        # Each has its own idea of what is unchanged.
        WAYS[way](bench, None)
        for _ in range(ROUNDS):
            bench.measure("nothing changed, 200 shards", way)


def _print(bench: Bench) -> None:
    """A row for each case, of medians; and all runs."""

    def median(case: str, way: str, of: int = 0) -> float:
        return statistics.median(run[of] for run in bench.seen[case, way])

    print(
        f"\n| case | {PUSH} | {AT_ONCE} | ratio | {IN_TURN} | processor, {PUSH} | {AT_ONCE} |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for case in dict.fromkeys(case for case, _ in bench.seen):
        push, rsync = median(case, PUSH), median(case, AT_ONCE)
        in_turn = f"{median(case, IN_TURN):.1f} s" if (case, IN_TURN) in bench.seen else ""
        print(
            f"| {case} | {push:.1f} s | {rsync:.1f} s | {push / rsync:.2f} | {in_turn} "
            f"| {median(case, PUSH, 1):.1f} s | {median(case, AT_ONCE, 1):.1f} s |"
        )
    for (case, way), runs in bench.seen.items():
        print(f"{case}, {way}: {', '.join(f'{seconds:.2f}' for seconds, _ in runs)} s")
