"""Runs of ``distribute`` that something happens to, and what a node is to look like after them."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, TextIO

import pytest

from sparkimage.image.store import Image
from tests.lab import command, sampling
from tests.lab.fleet import Fleet
from tests.lab.node import READY_S, Node, wait
from tests.lab.payload import Part, Payload
from tests.lab.shipment import MB, NAME, VARIANT, Shipment, layers
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
PATIENCES = ("3", "15", "60")
"""Seconds after which a command is to take a node for one that hangs. On a busy machine a node that
does not may need longer: then the next one."""
NOTHING_MOVED = "1 of 2 nodes failed; no name was moved: every node keeps what it had"
MANY = 20
"""Images after which the nodes are emptied."""
BUSY = "another run changes its images"
TRACES = """{
    ls -A /tmp /run/user/* 2>/dev/null | grep '^tmp'
    pgrep --list-full --exact docker | grep -e ' pull ' -e dial-stdio
}"""
"""Says what no run leaves on a node once it is over."""
LOOK = f"""
docker image inspect --format '{{{{join .RootFS.Layers "+"}}}}' {NAME} 2>/dev/null || echo nothing
docker image ls --all --digests --format '{{{{.Repository}}}}:{{{{.Tag}}}} {{{{.Digest}}}}' \
    | grep staging | xargs echo
docker ps --all --quiet --filter label=dev.sparkimage.proof | xargs echo
{TRACES} | xargs echo
du -cxsB1 /var/lib/docker /var/lib/containerd | tail -n 1 | cut -f 1
"""


@dataclass(frozen=True, kw_only=True)
class Look:
    """A node at one moment."""

    name: str
    """The layers of what the name stands for there."""
    staging: str
    proofs: str
    traces: str
    used: int
    """Bytes of its disk that all its engine holds takes up."""


def look(node: Node) -> Look:
    name, staging, proofs, traces, used = node.exec("sh", "-c", LOOK).split("\n")
    return Look(name=name, staging=staging, proofs=proofs, traces=traces, used=int(used))


def kept(node: Node) -> int:
    """Layers that its engine has under a staging name, before it has all."""
    found = (re.search(r"staging:\w+-(\d+)$", tag) for tag in node.images())
    return max((int(one[1]) for one in found if one), default=0)


class Running:
    """A command that runs, and its output so far."""

    def __init__(self, words: Sequence[str], environment: Mapping[str, str]) -> None:
        self.lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        read, write = os.pipe()
        with open(os.devnull) as nothing:
            self.process = command.start(words, environment, (nothing.fileno(), write, write))
        os.close(write)
        self._reader = threading.Thread(target=self._read, args=(os.fdopen(read),), daemon=True)
        self._reader.start()

    def _read(self, output: TextIO) -> None:
        with output:
            for line in output:
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
        """Until each of these is in its output."""

        def met() -> bool:
            return all(any(re.search(one, line) for line in self.lines) for one in patterns)

        with self._news:
            self._news.wait_for(lambda: met() or self._ended, READY_S)
            assert met(), f"{patterns} is not in the output:\n{self.said}"

    def end(self) -> int:
        """Its exit code."""
        wait(lambda: self.process.poll() is not None, f"it does not end:\n{self.said}")
        self._reader.join(READY_S)
        return self.process.wait()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        self.process.send_signal(number)
        return self.end()

    def close(self) -> None:
        self.kill()


@dataclass
class Distribution:
    """A fleet that has one image everywhere, and the next ones on their way to it."""

    shipment: Shipment
    old: Image | None = None
    used: dict[str, int] = field(default_factory=dict)
    """Bytes of each node's disk with ``old``, and all before it."""
    seed: int = 0
    begun: int = 0
    """The seed with which it began."""
    resets: Mapping[str, int] = field(default_factory=dict)
    """How often the nodes had been reset when it began."""
    at_rest: bool = False
    """Whether nothing has left since ``old`` arrived everywhere."""

    @property
    def fleet(self) -> Fleet:
        return self.shipment.fleet

    @property
    def nodes(self) -> list[Node]:
        return list(self.fleet)

    @property
    def names(self) -> list[str]:
        return list(self.fleet.nodes)

    def node(self, store: str) -> Node:
        """The one with this store."""
        return next(one for one in self.fleet if one.store == store)

    def other(self, node: Node) -> Node:
        return next(one for one in self.fleet if one is not node)

    def others(self, node: Node) -> list[str]:
        """The output about all other nodes once they have the image."""
        return [f"{one.name}: proven" for one in self.nodes if one is not node]

    def next(self, payload: Payload | None = None) -> Image:
        """Another image: by default one with another top layer."""
        self.seed += 1
        self.at_rest = False
        return self.shipment.image(payload or PAYLOAD.changed(-1, self.seed))

    @contextmanager
    def run(self, *words: str, command: str = "distribute", **more: str) -> Iterator[Running]:
        all_words = self.shipment.words(command, VARIANT, *words)
        running = Running(all_words, self.shipment.environment(**more))
        try:
            yield running
        finally:
            running.close()

    @contextmanager
    def held(self, node: Node, *words: str, after: int = MIDWAY) -> Iterator[Running]:
        """A run that waits for this node ``after`` so many bytes, by default in the middle of the
        top layer that ``next`` makes."""
        node.data.hang_after(after)
        with self.run(*words) as running:
            wait(lambda: node.data.hangs or running.process.poll() is not None, "nothing came")
            assert node.data.hangs, running.said
            yield running

    def fresh(self, count: int = 5, size: int = SIZE) -> Image:
        """An image that shares a busybox with the one before it, and nothing else: large enough to
        be pulled."""
        self.seed += 1
        return self.next(
            Payload(parts=tuple(Part(size=size, seed=1000 * self.seed + n) for n in range(count)))
        )

    def looks(self) -> dict[str, Look]:
        return self.fleet.each(look)

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
        """Until nobody is connected any more."""
        self.fleet.quiet()

    def complete(self, new: Image, *words: str, interrupted: Node | None = None) -> dict[str, Any]:
        """A run that nothing happens to, and all that holds after it. What it says of the nodes.

        ``interrupted`` is a node whose engine was killed while it unpacked the image.
        """
        done = self.shipment.distribute("--json", *words)
        while BUSY in done.stderr:
            # A killed one lets go when the node hears of it.
            self.quiet()
            done = self.shipment.distribute("--json", *words)
        assert done.returncode == 0, done.stderr
        self.arrived(new, interrupted)
        return {one["node"]: one for one in json.loads(done.stdout)["nodes"]}

    def arrived(self, new: Image, interrupted: Node | None = None) -> None:
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
        for node in self.nodes:
            # Noise is half of a layer.
            due = 2 * blobs + (blobs if node.spec.containerd_store else 0)
            if node is interrupted:
                # What a killed engine was unpacking stays until its lease ends, hours later:
                # https://github.com/containerd/containerd/blob/main/docs/garbage-collection.md
                due += 2 * blobs
            if node.name in self.used:
                most = self.used[node.name] + due + SLACK
                # containerd collects its garbage when it has the time.
                wait(
                    partial(self._within, found, node, most),
                    f"{node.name}'s disk holds more than {most}",
                )
        self.used = {name: one.used for name, one in found.items()}
        self.old, self.at_rest = new, True

    def _within(self, found: dict[str, Look], node: Node, most: int) -> bool:
        """Whether its engine takes up less than this by now."""
        if found[node.name].used >= most:
            found[node.name] = look(node)
        return found[node.name].used < most

    def prepared(self) -> Iterator[Distribution]:
        """For a test: all nodes have one image. What it breaks is mended after it."""
        many = self.seed - self.begun > MANY
        if not self.at_rest or self.resets != self.fleet.resets or many:
            # The one before it did not come to its end, or others had the nodes; or the disks are
            # filling up.
            self.begin()
        self.at_rest = False
        yield self
        self.shipment.nodes(self.fleet.data())

    def begin(self) -> None:
        """From nothing: a first image, and a second one to see what one takes of the disk."""
        self.fleet.reset()
        self.resets = self.fleet.resets.copy()
        self.old, self.used, self.begun = None, {}, self.seed
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
    image: Callable[[Distribution], Image]
    """The next one on its way, which the nodes lack as far as it takes to go this way."""
    size: int
    """Of each of five layers that go this way."""
    rate: int
    """Bytes a second of a link that is quick for such layers, but no quicker."""

    def __str__(self) -> str:
        return self.name


LOADED = Way(name="loaded", midway=MIDWAY, image=Distribution.next, size=5 * MB // 2, rate=4 * MB)
PULLED = Way(name="pulled", midway=20 * MB, image=Distribution.fresh, size=2 * SIZE, rate=40 * MB)


STORES = ("overlay2", "containerd")


def cases(
    name: str, words: str, *choices: tuple[object, ...], dear: Sequence[tuple[object, ...]] = ()
) -> pytest.MarkDecorator:
    """All of these; ``make test`` takes one of ``choices`` for the test of this name."""
    picked = sampling.one_of(name, choices)
    return pytest.mark.parametrize(
        words,
        [
            pytest.param(
                *choice,
                marks=() if choice is picked else pytest.mark.thorough,
                id="-".join(map(str, choice)),
            )
            for choice in (*choices, *dear)
        ],
    )


def ways(name: str) -> pytest.MarkDecorator:
    """Both ways."""
    return cases(name, "way", (LOADED,), (PULLED,))


def stores(name: str) -> pytest.MarkDecorator:
    """In trouble: the node with this store."""
    return cases(name, "store", *((store,) for store in STORES))


def ways_and_stores(name: str) -> pytest.MarkDecorator:
    """Both ways, and each store in trouble."""
    return cases(name, "way, store", *product((LOADED, PULLED), STORES))


def ways_and_stores_that_wait(name: str) -> pytest.MarkDecorator:
    """The same where a pull is given up only after a while: ``make test`` takes a load."""
    loaded, pulled = (list(product((way,), STORES)) for way in (LOADED, PULLED))
    return cases(name, "way, store", *loaded, dear=pulled)
