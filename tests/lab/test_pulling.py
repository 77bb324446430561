"""What engines pull from here through their ssh connections is as safe as what they load.

The faults of test_distribute_faults.py, with an image of which the nodes lack nearly all.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

from sparkimage.storage.store import Image
from tests.lab.fleet import Fleet
from tests.lab.node import Node, wait
from tests.lab.payload import Part, Payload
from tests.lab.shipment import Shipment
from tests.lab.test_distribute_faults import ALL, NODE, lying, others
from tests.lab.voyage import MB, Running, Voyage

LAYERS, SIZE = 5, 20 * MB
"""Half of it is noise: 10 MB on the wire for each layer."""
PULL = ("node1", "node3", "node4")
"""Docker 26 with containerd's store loads: it does not say when it has unpacked a layer."""
SLOW = 20 * MB
"""Bytes a second of a slow link."""
MIDWAY = 25 * MB
"""In the third layer."""
TRACES = """
ls -A /tmp /run/user/* 2>/dev/null | grep '^tmp'
pgrep --full --list-full 'pull [-]-quiet'
true
"""
"""What a pull must not leave on a node, once it is over."""


@pytest.fixture(scope="module")
def trip(four: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Voyage]:
    yield Voyage(Shipment.make(tmp_path_factory.mktemp("pulling"), four))
    four.reset()


@pytest.fixture
def voyage(trip: Voyage) -> Iterator[Voyage]:
    yield from trip.prepared()


def fresh(voyage: Voyage, count: int = LAYERS, size: int = SIZE) -> Image:
    """An image that shares a busybox with the one before it, and nothing else."""
    voyage.seed += 1
    return voyage.next(
        Payload(parts=tuple(Part(size=size, seed=1000 * voyage.seed + n) for n in range(count)))
    )


def pulls(running: Running, *names: str) -> None:
    """These nodes have pulled (all that do, where none is named), and no other one."""
    said = re.findall(r"(\w+): pulls$", running.said, re.MULTILINE)
    assert sorted(said) == sorted(names or PULL), running.said
    assert "cannot pull" not in running.said


def traces(node: Node) -> str:
    return node.exec("sh", "-c", TRACES)


def clean(node: Node) -> bool:
    return traces(node) == ""


def test_engines_pull_and_each_byte_goes_once(voyage: Voyage) -> None:
    new = fresh(voyage)
    before = {node.name: node.data.up for node in voyage.nodes}
    with voyage.run("--step", "10") as running:
        assert running.end() == 0, running.said
    pulls(running)
    voyage.arrived(new)
    sent = sum(layer.size for layer in new.layers[1:])
    for node in voyage.nodes:
        assert sent < node.data.up - before[node.name] < 1.02 * sent + MB
        assert traces(node) == ""


def test_a_change_is_pulled_where_the_engine_knows_what_it_has(voyage: Voyage) -> None:
    """containerd knows every blob; overlay2 would pull again what it has, so it loads."""
    voyage.seed += 1
    parts = tuple(Part(size=4 * SIZE, seed=voyage.seed * 1000 + n) for n in range(2))
    voyage.complete(voyage.next(Payload(parts=parts)))
    new = voyage.next(Payload(parts=(parts[0], replace(parts[1], seed=7))))
    before = {node.name: node.data.up for node in voyage.nodes}
    with voyage.run() as running:
        assert running.end() == 0, running.said
    pulls(running, "node4")
    voyage.arrived(new)
    for node in voyage.nodes:
        assert node.data.up - before[node.name] < 1.02 * new.layers[-1].size


def test_users_that_may(voyage: Voyage) -> None:
    data = voyage.shipment.fleet.data()
    for name, user in zip(ALL, ("sudoer", "worker", "worker", "sudoer"), strict=True):
        data["nodes"][name] |= {"user": user, "sudo": user == "sudoer"}
    # One that is reached at one address only.
    del data["nodes"]["node1"]["data"]
    voyage.shipment.nodes(data)
    new = fresh(voyage)
    with voyage.run() as running:
        assert running.end() == 0, running.said
    pulls(running)
    voyage.arrived(new)
    assert {traces(node) for node in voyage.nodes} == {""}


def test_a_node_that_forbids_the_way_back_loads(voyage: Voyage) -> None:
    node, new = voyage.shipment.fleet["node1"], fresh(voyage)
    with node.without_forwarding(), voyage.run() as running:
        assert running.end() == 0, running.said
    running.until("node1: cannot pull, loads: its sshd forwards no port to here")
    voyage.arrived(new)


def test_only_who_was_admitted_may_pull(voyage: Voyage) -> None:
    """Others on the node reach the port, and are told nothing; they do not see the password."""
    node, new = voyage.shipment.fleet["node3"], fresh(voyage)
    with voyage.held("node3") as running:
        said = node.exec("ps", "-eo", "args")
        found = re.search(r"127\.0\.0\.1:(\d+)/sparkimage-staging@(\S+)", said)
        assert found is not None
        port, digest = found.groups()
        node.data.restore()
        for path in ("/v2/", f"/v2/sparkimage-staging/manifests/{digest}"):
            for word in ("", "Authorization: Basic bm9kZTo=\r\n"):
                ask = f"GET {path} HTTP/1.1\r\nHost: x\r\n{word}\r\n".encode()
                answer = node.exec("socat", "-t", "5", "-", f"TCP:127.0.0.1:{port}", given=ask)
                assert answer.startswith("HTTP/1.1 401 "), answer
        assert '"auth"' not in said
        assert running.end() == 0, running.said
    voyage.arrived(new)


# The link


def test_a_link_that_comes_back_goes_on(voyage: Voyage) -> None:
    nodes, new = voyage.nodes, fresh(voyage)
    before = {node.name: node.data.up for node in nodes}
    for node in nodes:
        node.data.rate(SLOW)
        node.data.cut_after(MIDWAY)
    with voyage.run("--step", "10") as running:
        running.until(*(f"{node.name}: again: cannot be reached" for node in nodes))
        for node in nodes:
            node.data.restore()
        assert running.end() == 0, running.said
    voyage.arrived(new)
    assert "cannot pull" not in running.said
    sent = sum(layer.size for layer in new.layers)
    for node in nodes:
        # What was on the link, and on its way to be unpacked.
        assert node.data.up - before[node.name] < sent + MIDWAY


@pytest.mark.parametrize("name", PULL)
def test_a_link_that_stays_cut_costs_what_was_on_it(voyage: Voyage, name: str) -> None:
    # Each layer is larger than all that lies in buffers on the way, and comes so slowly that the
    # one below it is unpacked meanwhile.
    node, new = voyage.shipment.fleet[name], fresh(voyage, 3, 3 * SIZE)
    node.data.rate(SLOW)
    node.data.cut_after(sum(layer.size for layer in new.layers[1:]) - MB)
    with voyage.run("--step", "10") as running:
        assert running.end() == NODE
    assert "1 of 4 nodes failed; no name was moved: every node keeps what it had" in running.said
    assert f"{name} cannot be reached at its data address 127.0.0.2" in running.said
    running.until(*others(name))
    voyage.kept(new)
    voyage.quiet()
    assert traces(node) == ""
    node.data.restore()
    before = node.data.up
    voyage.complete(new, "--step", "10")
    assert node.data.up - before < sum(layer.size for layer in new.layers[2:]) + MB


def test_a_bit_that_flips_on_the_wire(voyage: Voyage) -> None:
    node, new = voyage.shipment.fleet["node3"], fresh(voyage)
    node.data.flip_after(MIDWAY)
    with voyage.run() as running:
        assert running.end() == 0, running.said
    assert "node3: again: " in running.said
    voyage.arrived(new)


@pytest.mark.parametrize("name", ["node1", "node4"])
def test_a_link_that_hangs_holds_nobody_else(voyage: Voyage, name: str) -> None:
    node, new = voyage.shipment.fleet[name], fresh(voyage)
    with voyage.held(name, "--patience", "4", after=MIDWAY) as running:
        assert running.end() == NODE
    running.until(*others(name))
    assert f"{name}: no progress for 4 s: it hangs" in running.said
    voyage.kept(new)
    node.data.restore()
    voyage.complete(new)


# The engine


@pytest.mark.parametrize("name", ["node3", "node4"])
def test_an_engine_that_hangs_holds_nobody_else(voyage: Voyage, name: str) -> None:
    node, new = voyage.shipment.fleet[name], fresh(voyage)
    with voyage.held(name, "--patience", "4", after=MIDWAY) as running:
        node.pause_dockerd()
        node.data.restore()
        assert running.end() == NODE
    running.until(*others(name))
    assert f"{name}: no progress for 4 s: it hangs" in running.said
    node.resume_dockerd()
    voyage.kept(new)
    voyage.complete(new)


@pytest.mark.parametrize("name", PULL)
def test_an_engine_killed_in_mid_pull(voyage: Voyage, name: str) -> None:
    node, new = voyage.shipment.fleet[name], fresh(voyage)
    with voyage.held(name, after=MIDWAY) as running:
        running.until(*others(name))
        node.kill_dockerd()
        node.data.restore()
        assert running.end() == NODE
    assert f"{name}: its Docker" in running.said
    node.start_dockerd()
    voyage.kept(new)
    voyage.complete(new)


@pytest.mark.parametrize("name", ["node1", "node4"])
def test_a_disk_that_fills_in_mid_pull(voyage: Voyage, name: str) -> None:
    node, new = voyage.shipment.fleet[name], fresh(voyage)
    with voyage.held(name, after=MIDWAY) as running:
        node.fill_disk(3 * MB)
        node.data.restore()
        assert running.end() == NODE
    running.until(*others(name))
    assert f"{name}: its disk is full" in running.said
    node.free_disk()
    voyage.kept(new)
    voyage.complete(new)


# What is in the store


def test_a_bit_that_flipped_in_the_store(voyage: Voyage) -> None:
    new = fresh(voyage)
    layer = new.layers[2]
    path = voyage.shipment.store.path(layer.digest)
    good = path.read_bytes()
    path.write_bytes(good[:-1000] + bytes([good[-1000] ^ 1]) + good[-999:])
    with voyage.run() as running:
        assert running.end() != 0
    assert f"the stored blob {layer.digest} holds other bytes" in running.said
    assert "python build.py image payload --repair" in running.said
    voyage.kept(new)
    path.write_bytes(good)
    voyage.complete(new)


def test_a_layer_that_is_gone_from_the_store(voyage: Voyage) -> None:
    new = fresh(voyage)
    path = voyage.shipment.store.path(new.layers[2].digest)
    good = path.read_bytes()
    path.unlink()
    with voyage.run() as running:
        assert running.end() != 0
    assert f"the stored blob {new.layers[2].digest} is missing" in running.said
    voyage.kept(new)
    path.write_bytes(good)
    voyage.complete(new)


def test_an_image_that_is_not_what_it_says(voyage: Voyage) -> None:
    payload = Payload(parts=tuple(Part(size=SIZE, seed=4000 + n) for n in range(LAYERS)))
    image = lying(voyage.shipment, payload)
    voyage.shipment.seal(image)
    with voyage.run() as running:
        assert running.end() == NODE
    assert "4 of 4 nodes failed; no name was moved" in running.said
    voyage.kept(image)
    voyage.complete(fresh(voyage))


# The command


@pytest.mark.parametrize(
    ("user", "number"),
    [("root", signal.SIGKILL), ("sudoer", signal.SIGKILL), ("root", signal.SIGINT)],
)
def test_an_end_in_mid_pull_leaves_nothing_running(
    voyage: Voyage, user: str, number: signal.Signals
) -> None:
    data = voyage.shipment.fleet.data(user)
    for node in data["nodes"].values():
        node["sudo"] = user == "sudoer"
    voyage.shipment.nodes(data)
    new = fresh(voyage)
    with voyage.held("node1", after=MIDWAY) as running:
        assert running.kill(number) == (130 if number is signal.SIGINT else -number)
    voyage.kept(new)
    voyage.shipment.fleet["node1"].data.restore()
    voyage.quiet()
    for node in voyage.nodes:
        wait(partial(clean, node), f"{node.name}: a pull goes on")
    voyage.complete(new)
