"""Measures `distribute` beside what people use instead, on the lab's four nodes: `make
bench-distribute`. Writes docs/benchmarks.json, from which docs/benchmarks.svg and the tables of
docs/benchmarks.md are made. Not a test of any time.

Every way starts from the same nodes and ends with the same image on each, which is looked at.
The nodes' disks are this machine's own, not small ones in files, and the ways reach them at their
own addresses: neither loop devices nor proxies take part.
All ways are run in turn, ROUNDS times (default 3). Bytes are those that the nodes' network
interfaces took in, SSH and all.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from sparkimage.build.engine.engine import Engine
from sparkimage.image import archive
from sparkimage.image.store import Image
from tests.lab import bench_picture
from tests.lab import fleet as fleets
from tests.lab import mirror as mirrors
from tests.lab.fleet import Fleet, each
from tests.lab.mirror import REPOSITORY, Mirror
from tests.lab.node import Node
from tests.lab.payload import PLAIN, Payload
from tests.lab.shipment import NAME, Shipment

MB = 1_000_000
SIZES = (250, 250, 250, 250, 250, 200, 49, 1)
SCALE = float(os.environ.get("SCALE", "1"))
"""Less than 1 to try the benchmark itself; then nothing is written."""
PAYLOAD = Payload.of(*(int(size * MB * SCALE) for size in SIZES))
IMAGES = {
    "cold": PAYLOAD,
    "top layer of 1 MB changed": PAYLOAD.changed(-1),
    "layer of 250 MB in the middle changed": PAYLOAD.changed(3),
    "nothing changed": PAYLOAD,
}
COLD, TOP, MIDDLE, SAME = IMAGES
ROUNDS = int(os.environ.get("ROUNDS", "3"))
BASE = "r:base"
LINK = 125 * MB
"""Bytes a second of a link of 1 Gbit/s."""


Run = Callable[[], int | None]


@dataclass
class Bench:
    """The nodes, the engine that the peers save from, and what was measured."""

    shipment: Shipment
    engine: Engine
    direct: Mapping[str, Any]
    wired: Mapping[str, Any]
    seen: dict[tuple[str, str], list[tuple[float, int]]] = field(default_factory=dict)
    memory: int = 0

    @property
    def nodes(self) -> list[Node]:
        return list(self.shipment.fleet)

    def reset(self, *, keep_base: bool) -> None:
        """Nothing on the nodes, or nothing but the image that the changes are made to."""

        def one(node: Node) -> None:
            for tag in node.images():
                if not (keep_base and tag == BASE):
                    node.docker("rmi", "--force", tag)
            for dangling in node.dangling():
                node.docker("rmi", "--force", dangling)
            if node.spec.containerd_store and not keep_base:
                # Else blobs without an image stay until containerd comes to it by itself. What
                # an image needs would go, too.
                node.exec("ctr", "--namespace", "moby", "content", "prune", "references")

        each(self.nodes, one)

    def measure(self, case: str, way: str, image: Image, run: Run, name: str) -> None:
        """One run of ``way``, after which every node must have ``image`` under ``name``."""
        before = [_received(node) for node in self.nodes]
        began = time.monotonic()
        sent = run()
        seconds = time.monotonic() - began
        moved = sum(_received(node) for node in self.nodes) - sum(before)
        if "--relay" in way:
            # What the nodes took from each other did not come from here.
            assert sent is not None
            moved = sent
        wanted = tuple(layer.diff_id for layer in image.layers)
        assert all(node.diff_ids(name) == wanted for node in self.nodes)
        self.seen.setdefault((case, way), []).append((seconds, moved))
        print(f"{case} | {way} | {seconds:.2f} s | {moved / MB:.1f} MB", flush=True)

    def ours(self, *words: str) -> int:
        """``distribute``; returns the bytes that it says it sent."""
        done = self.shipment.distribute("--json", *words)
        assert done.returncode == 0, done.stderr
        # The greatest of all children so far: ssh and the like are small beside it.
        self.memory = max(self.memory, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
        return sum(one["sent"] for one in json.loads(done.stdout)["nodes"])


def _received(node: Node) -> int:
    return int(node.exec("cat", "/sys/class/net/eth0/statistics/rx_bytes"))


@contextmanager
def _bench(engine: Engine, fleet: Fleet, folder: Path) -> Iterator[Bench]:
    """The nodes reached without the wires, whose pumps would share the processors."""
    config, known = folder / "direct_config", folder / "direct_known"
    hosts, keys = [], []
    for node in fleet:
        key = " ".join((node.folder / "host.pub").read_text().split()[:2])
        hosts.append(f"Host direct-{node.name}\n    HostName {node.inside}\n    Port 22\n")
        keys.append(f"{node.inside} {key}\n")
    known.write_text("".join(keys))
    config.write_text(
        "".join(hosts) + f"Host direct-*\n    User root\n    IdentityFile {fleet.folder}/client\n"
        f"    IdentitiesOnly yes\n    UserKnownHostsFile {known}\n    StrictHostKeyChecking yes\n"
        "    BatchMode yes\n    LogLevel ERROR\n"
    )
    with fleet.ssh_config.open("a") as file:
        file.write(config.read_text())
    shipment = Shipment.make(folder / "project", fleet)
    yield Bench(
        shipment=shipment,
        engine=engine,
        direct={"version": 1, "nodes": {f"direct-{node.name}": {} for node in fleet}},
        wired=fleet.data(),
    )
    for name in IMAGES:
        subprocess.run([*engine.docker, "rmi", _peer_name(name)], check=False, capture_output=True)


def _peer_name(case: str) -> str:
    return "r:" + re.sub(r"[^a-z0-9]+", "-", case)


def _load_here(bench: Bench, image: Image, name: str) -> None:
    """The image in this machine's engine, where the peers save or push it from."""
    loading = subprocess.Popen(
        [*bench.engine.docker, "load", "--quiet"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    assert loading.stdin is not None
    for piece in archive.stream(image, name, bench.shipment.store):
        loading.stdin.write(piece)
    loading.stdin.close()
    assert loading.wait() == 0


def _ssh(bench: Bench, node: Node) -> list[str]:
    return ["ssh", "-F", str(bench.shipment.fleet.ssh_config), f"direct-{node.name}"]


def _save_load(bench: Bench, name: str, node: Node) -> None:
    with subprocess.Popen([*bench.engine.docker, "save", name], stdout=subprocess.PIPE) as saving:
        loading = subprocess.run(
            [*_ssh(bench, node), "docker", "load"], stdin=saving.stdout, capture_output=True,
            check=False,
        )  # fmt: skip
    assert saving.returncode == 0
    assert loading.returncode == 0, loading.stderr


def one_by_one(bench: Bench, name: str) -> None:
    for node in bench.nodes:
        _save_load(bench, name, node)


def in_parallel(bench: Bench, name: str) -> None:
    each(bench.nodes, lambda node: _save_load(bench, name, node))


def by_file(bench: Bench, name: str) -> None:
    """Save to a file, copy it, load it there: the nodes at once, as eugr's script does."""
    file = bench.shipment.folder / "saved.tar"
    subprocess.run([*bench.engine.docker, "save", "--output", str(file), name], check=True)

    def one(node: Node) -> None:
        with file.open("rb") as source:
            subprocess.run([*_ssh(bench, node), "cat >/var/lib/docker/saved.tar"], stdin=source,
                           check=True)  # fmt: skip
        command = "docker load -i /var/lib/docker/saved.tar && rm /var/lib/docker/saved.tar"
        subprocess.run([*_ssh(bench, node), command], check=True, capture_output=True)

    each(bench.nodes, one)
    file.unlink()


LOADED = "distribute, without forwarding"
ONE_BY_ONE = "save | ssh load, one by one"
AT_ONCE = "save | ssh load, all at once"
PLAINLY = ", layers not compressed"
REGISTRY = "push to a registry, and pull"


def by_registry(bench: Bench, mirror: Mirror, name: str) -> None:
    """Push from here, and let all nodes pull at once."""
    tag = name.rpartition(":")[2]
    here = f"{mirror.here}/{REPOSITORY}:{tag}"
    subprocess.run([*bench.engine.docker, "tag", name, here], check=True)
    subprocess.run([*bench.engine.docker, "push", "--quiet", here], check=True,
                   stdout=subprocess.DEVNULL)  # fmt: skip
    subprocess.run([*bench.engine.docker, "rmi", here], check=True, stdout=subprocess.DEVNULL)
    each(bench.nodes, lambda node: node.docker("pull", "--quiet", f"{mirror.repository}:{tag}"))


def test_side_by_side(engine: Engine, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    specs = {
        name: replace(spec, disk_bytes=None, older_cli=False) for name, spec in fleets.FOUR.items()
    }
    with (
        capsys.disabled(),
        fleets.fleet(engine, tmp_path / "fleet", specs) as fleet,
        _bench(engine, fleet, tmp_path) as bench,
    ):
        print()
        _run(bench)
        if SCALE == 1:
            _write(bench)


def _run(bench: Bench) -> None:
    shipment = bench.shipment
    images = {case: shipment.image(payload) for case, payload in IMAGES.items()}
    for case in (COLD, TOP, MIDDLE):
        _load_here(bench, images[case], _peer_name(case))
    peers: Peers = {
        AT_ONCE: in_parallel,
        ONE_BY_ONE: one_by_one,
        "temporary file": by_file,
    }
    for round_ in range(ROUNDS):
        folder = shipment.folder / f"registry-{round_}"
        with mirrors.mirror(folder, shipment.fleet) as mirror:
            _cold(bench, peers, mirror)
            _changes(bench, mirror)
        shutil.rmtree(folder)
    _links(bench)


Peers = Mapping[str, Callable[[Bench, str], None]]


def _cold(bench: Bench, peers: Peers, mirror: Mirror) -> None:
    bench.shipment.nodes(bench.direct)
    image, name = bench.shipment.image(PAYLOAD), _peer_name(COLD)
    bench.reset(keep_base=False)
    bench.measure(COLD, "distribute", image, bench.ours, NAME)
    bench.reset(keep_base=False)
    with ExitStack() as stack:
        for node in bench.nodes:
            stack.enter_context(node.without_forwarding())
        bench.measure(COLD, LOADED, image, bench.ours, NAME)
    for way, run in peers.items():
        bench.reset(keep_base=False)
        bench.measure(COLD, way, image, partial(run, bench, name), name)
    bench.reset(keep_base=False)
    pulled = f"{mirror.repository}:{name.rpartition(':')[2]}"
    bench.measure(COLD, REGISTRY, image, partial(by_registry, bench, mirror, name), pulled)
    _local_load(bench, image)


def _changes(bench: Bench, mirror: Mirror) -> None:
    """What a change costs, on nodes that have the image before it."""
    bench.reset(keep_base=False)
    bench.shipment.image(PAYLOAD)
    bench.ours()
    each(bench.nodes, lambda node: node.docker("tag", NAME, BASE))
    for case in (TOP, MIDDLE, SAME):
        image = bench.shipment.image(IMAGES[case])
        bench.reset(keep_base=True)
        if case == SAME:
            bench.ours()
        bench.measure(case, "distribute", image, bench.ours, NAME)
        name = _peer_name(COLD if case == SAME else case)
        bench.reset(keep_base=True)
        bench.measure(case, AT_ONCE, image, partial(in_parallel, bench, name), name)
        bench.reset(keep_base=True)
        pulled = f"{mirror.repository}:{name.rpartition(':')[2]}"
        bench.measure(case, REGISTRY, image, partial(by_registry, bench, mirror, name), pulled)


def _links(bench: Bench) -> None:
    """Once: slow links, with layers as they are and not compressed."""
    shipment = bench.shipment
    packed = shipment.image(PAYLOAD)
    plain = shipment.image(Payload(parts=PAYLOAD.parts, packed=PLAIN))
    bench.reset(keep_base=False)
    bench.measure("cold, no limit", f"distribute{PLAINLY}", plain, bench.ours, NAME)
    shipment.nodes(bench.wired)
    each_, shared = "cold, 1 Gbit/s to each node", "cold, 1 Gbit/s for all nodes together"
    for case, rate, image, words in (
        (each_, LINK, plain, ()),
        (each_, LINK, packed, ()),
        (shared, LINK // 4, packed, ()),
        (shared, LINK, packed, ("--relay",)),
    ):
        shipment.store.name(NAME, shipment.store.descriptor(image.digest))
        bench.reset(keep_base=False)
        for node in bench.nodes:
            node.data.rate(rate)
        way = " ".join(["distribute", *words]) + (PLAINLY if image is plain else "")
        bench.measure(case, way, image, partial(bench.ours, *words), NAME)


def _local_load(bench: Bench, image: Image) -> None:
    """What the nodes' engines need for a file that they have already, all at once."""
    file = bench.shipment.folder / "local.tar"
    with file.open("wb") as sink:
        for piece in archive.stream(image, NAME, bench.shipment.store):
            sink.write(piece)

    def put(node: Node) -> None:
        with file.open("rb") as source:
            subprocess.run([*_ssh(bench, node), "cat >/var/lib/docker/local.tar"], stdin=source,
                           check=True)  # fmt: skip

    bench.reset(keep_base=False)
    each(bench.nodes, put)
    file.unlink()

    def load() -> None:
        each(bench.nodes, lambda node: node.docker("load", "-i", "/var/lib/docker/local.tar"))

    bench.measure(COLD, "docker load of a local file, all at once", image, load, NAME)
    each(bench.nodes, lambda node: node.exec("rm", "/var/lib/docker/local.tar"))


def _write(bench: Bench) -> None:
    rows = [
        {
            "case": case,
            "way": way,
            "seconds": [round(seconds, 2) for seconds, _ in runs],
            "median": round(statistics.median(seconds for seconds, _ in runs), 2),
            "bytes": int(statistics.median(moved for _, moved in runs)),
        }
        for (case, way), runs in bench.seen.items()
    ]
    data = {
        "command": "make bench-distribute",
        "image": {"megabytes": sum(SIZES), "layers": len(SIZES) + 1},
        "nodes": [
            f"{node.name}: Docker {node.docker('version', '--format', '{{.Server.Version}}')}"
            for node in bench.nodes
        ],
        "memory_kib": bench.memory,
        "rows": rows,
    }
    bench_picture.RESULTS.write_text(json.dumps(data, indent=1) + "\n")
    bench_picture.write()
