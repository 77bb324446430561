"""Runs of ``distribute`` that something happens to, and what a node is to look like after them."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from sparkimage.storage.store import Image
from tests.lab.node import READY_S, Node, wait
from tests.lab.payload import Part, Payload
from tests.lab.shipment import MB, NAME, NODES, VARIANT, Shipment, layers
from tests.unit import good_maker

PAYLOAD = Payload.of(1 * MB, 11 * MB)
"""Half of it is noise: a top layer of 5.5 MB on the wire."""
MIDWAY = 3 * MB // 2
"""Bytes that have passed when a run is in mid-stream: with 2 MB under way in SSH's window and one
in its pipe, some has not left the command."""
SIZE = 14 * MB
"""Of each of five layers that are pulled: half of it is noise, and all of them are more on the wire
than what is loaded at once."""
SLACK = 1 * MB
"""Bytes of records, beside the layers, that an engine may keep of an image."""
BUSY = "another run changes its images"
TRACES = """{
    ls -A /tmp /run/user/* 2>/dev/null | grep '^tmp'
    pgrep --list-full --exact docker | grep ' pull '
}"""
"""Says what no pull leaves on a node once it is over."""
LOOK = f"""
docker image inspect --format '{{{{join .RootFS.Layers "+"}}}}' {NAME} 2>/dev/null || echo nothing
docker image ls --format '{{{{.Repository}}}}:{{{{.Tag}}}}' | grep staging | xargs echo
docker ps --all --quiet --filter label=dev.sparkimage.proof | xargs echo
{TRACES} | xargs echo
echo end
"""


@dataclass(frozen=True, kw_only=True)
class Look:
    """A node at one moment."""

    name: str
    """The layers of what the name stands for there."""
    staging: str
    proofs: str
    traces: str


def look(node: Node) -> Look:
    name, staging, proofs, traces, _ = node.exec("sh", "-c", LOOK).split("\n")
    return Look(name=name, staging=staging, proofs=proofs, traces=traces)


def used(node: Node) -> int:
    """Bytes of its disk that all its engine holds takes up, with what is not written yet."""
    node.exec("sync", "--file-system", "/var/lib/docker", "/var/lib/containerd")
    return node.disk_used()


def kept(node: Node) -> int:
    """Layers that its engine has under a staging name, before it has all."""
    found = (re.search(r"staging:\w+-(\d+)$", tag) for tag in node.images())
    return max((int(one[1]) for one in found if one), default=0)


def others(names: str | Sequence[str]) -> list[str]:
    """What is said of all other nodes once they have the image."""
    return [f"{one}: proven" for one in NODES if one not in listed(names)]


def nothing_moved(names: Sequence[str]) -> str:
    return f"{len(names)} of 4 nodes failed; no name was moved: every node keeps what it had"


def listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _no_move(node: Node) -> None:
    ask = "! pgrep --full '@@ [n]oreceipt' >/dev/null"
    node.exec("timeout", f"{READY_S:g}", "sh", "-c", f"until {ask}; do :; done")


class Running:
    """A command that runs, and the lines that it has said so far."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(
            argv, env=environment, text=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self.lines.append(line.rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def said(self) -> str:
        return "\n".join(self.lines)

    def until(self, *patterns: str) -> None:
        """Until each of these has been said."""

        def met() -> bool:
            return all(any(re.search(one, line) for line in self.lines) for one in patterns)

        with self._news:
            self._news.wait_for(lambda: met() or self._ended, READY_S)
            assert met(), f"{patterns} was not said:\n{self.said}"

    def end(self) -> int:
        """Its exit code."""
        code = self.process.wait(READY_S)
        self._reader.join(READY_S)
        return code

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        return self.end()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join(READY_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


@dataclass
class Voyage:
    """A fleet that has one image everywhere, and the next ones on their way to it."""

    shipment: Shipment
    old: Image | None = None
    used: dict[str, int] = field(default_factory=dict)
    """Bytes of each node's disk with ``old``, and all before it."""
    seed: int = 0
    at_rest: bool = False
    """Whether nothing has left since ``old`` arrived everywhere."""

    @property
    def nodes(self) -> list[Node]:
        return list(self.shipment.fleet)

    def next(self, payload: Payload | None = None) -> Image:
        """Another image: by default one with another top layer."""
        self.seed += 1
        self.at_rest = False
        return self.shipment.image(payload or PAYLOAD.changed(-1, self.seed))

    @contextmanager
    def run(self, *words: str, command: str = "distribute", **more: str) -> Iterator[Running]:
        argv = self.shipment.argv(command, VARIANT, *words)
        running = Running(argv, self.shipment.environment(**more))
        try:
            yield running
        finally:
            running.close()

    @contextmanager
    def held(
        self, names: str | Sequence[str], *words: str, after: int = MIDWAY
    ) -> Iterator[Running]:
        """A run that waits for these nodes ``after`` so many bytes, by default in the middle of the
        top layer that ``next`` makes."""
        wires = [self.shipment.fleet[name].data for name in listed(names)]
        for wire in wires:
            wire.hang_after(after)

        def hang() -> bool:
            return all(wire.hangs for wire in wires)

        with self.run(*words) as running:
            wait(lambda: hang() or running.process.poll() is not None, "nothing came")
            assert hang(), running.said
            yield running

    def fresh(self, count: int = 5, size: int = SIZE) -> Image:
        """An image that shares a busybox with the one before it, and nothing else: large enough to
        be pulled."""
        self.seed += 1
        return self.next(
            Payload(parts=tuple(Part(size=size, seed=1000 * self.seed + n) for n in range(count)))
        )

    def looks(self) -> dict[str, Look]:
        return self.shipment.fleet.each(look)

    def moved(self, new: Image, found: Mapping[str, Look] | None = None) -> bool:
        """Whether all nodes show the new image; else all show the old one."""
        wanted = layers(self.old) if self.old is not None else "nothing"
        found = found or self.looks()
        shown = {one.name for one in found.values()}
        assert shown in ({wanted}, {layers(new)}), f"the fleet is mixed: {found}"
        return shown == {layers(new)}

    def kept(self, new: Image) -> None:
        """All show the old image, still."""
        assert not self.moved(new)

    def quiet(self) -> None:
        """Until nobody is connected any more, and no name is being moved."""
        self.shipment.fleet.each(_no_move)
        self.shipment.fleet.quiet()

    def complete(self, new: Image, *words: str) -> dict[str, Any]:
        """A run that nothing happens to, and all that holds after it. What it says of the nodes."""
        done = self.shipment.distribute("--json", *words)
        while BUSY in done.stderr:
            # A killed one lets go when the node hears of it.
            self.quiet()
            done = self.shipment.distribute("--json", *words)
        assert done.returncode == 0, done.stderr
        self.arrived(new)
        return {one["node"]: one for one in json.loads(done.stdout)["nodes"]}

    def arrived(self, new: Image) -> None:
        """All show the new image, and nothing else is left."""
        found = self.looks()
        assert self.moved(new, found), f"not moved: {found}"
        for node in self.nodes:
            seen = found[node.name]
            assert seen.staging == "", f"{node.name} has {seen.staging}"
            assert seen.proofs == "", f"{node.name} has containers"
            assert seen.traces == "", f"{node.name} has {seen.traces}"
        known = {layer.diff_id for layer in self.old.layers} if self.old is not None else set()
        blobs = sum(layer.size for layer in new.layers if layer.diff_id not in known)
        self.used = self.shipment.fleet.each(partial(self._settled, blobs=blobs))
        self.old, self.at_rest = new, True

    def _settled(self, node: Node, blobs: int) -> int:
        """Bytes of its disk, once they have grown by these blobs and no more: containerd collects
        its garbage when it has the time."""
        # Noise is half of a layer.
        due = 2 * blobs + (blobs if node.spec.containerd_store else 0)
        taken = used(node)
        if node.name in self.used:
            deadline = time.monotonic() + READY_S
            while (grown := taken - self.used[node.name]) >= due + SLACK:
                assert time.monotonic() < deadline, f"{node.name} grew by {grown}, not {due}"
                taken = used(node)
        return taken

    def prepared(self) -> Iterator[Voyage]:
        """For a test: all nodes have one image. What it breaks is mended after it."""
        if not self.at_rest:
            # The one before it did not come to its end.
            self.begin()
        self.at_rest = False
        yield self
        self.shipment.nodes(self.shipment.fleet.data())

    def begin(self) -> None:
        """From nothing: a first image, and a second one to see what one takes of the disk."""
        self.shipment.fleet.reset()
        self.old, self.used = None, {}
        for _ in range(2):
            self.complete(self.next())


def lying(shipment: Shipment, payload: Payload | None = None) -> Image:
    """An image whose top layer is not what its config says: every engine is to refuse it."""
    store = shipment.store
    image = shipment.image(payload or PAYLOAD.changed(-1, 7777))
    wrong = {**image.config, "rootfs": {**image.config["rootfs"]}}
    wrong["rootfs"]["diff_ids"] = [*image.config["rootfs"]["diff_ids"][:-1], f"sha256:{'5' * 64}"]
    return good_maker.put_image(store, wrong, image.manifest["layers"])


@dataclass(frozen=True, kw_only=True)
class Way:
    """How the bytes of an image come into the nodes' engines."""

    name: str
    midway: int
    """Bytes that have passed when a run with ``image`` is in mid-stream."""
    image: Callable[[Voyage], Image]
    """The next one on its way, which the nodes lack as far as it takes to go this way."""
    size: int
    """Of each of five layers that go this way."""
    rate: int
    """Bytes a second of a link that is quick for such layers, but no quicker."""

    def __str__(self) -> str:
        return self.name


LOADED = Way(name="loaded", midway=MIDWAY, image=Voyage.next, size=5 * MB // 2, rate=4 * MB)
PULLED = Way(name="pulled", midway=20 * MB, image=Voyage.fresh, size=2 * SIZE, rate=40 * MB)


both = pytest.mark.parametrize("way", [LOADED, PULLED], ids=str)


def either(loaded: Sequence[str], pulled: Sequence[str]) -> pytest.MarkDecorator:
    """Both ways, each with these nodes in trouble at once."""
    cases = [(LOADED, loaded), (PULLED, pulled)]
    return pytest.mark.parametrize(("way", "names"), cases, ids=[way.name for way, _ in cases])
