"""Engines pull from here through their ssh connections. What can befall them stands in
test_distribute_midstream.py, beside what can befall a load."""

from __future__ import annotations

import re
import signal
from dataclasses import replace
from functools import partial
from itertools import product

import pytest

from tests.lab.distribution import (
    PULLED,
    SIZE,
    STORES,
    TRACES,
    Distribution,
    Running,
    cases,
    lying,
    stores,
)
from tests.lab.node import READY_S, Node, wait
from tests.lab.payload import Part, Payload
from tests.lab.shipment import MB, NODE_FAILED, spread


def pulls(running: Running, *names: str) -> None:
    """These nodes have pulled, and no other one."""
    output = re.findall(r"(\w+): pulls$", running.said, re.MULTILINE)
    assert sorted(output) == sorted(names), running.said
    assert "cannot pull" not in running.said


def clean(node: Node) -> bool:
    return node.exec("sh", "-c", f"{TRACES}; true") == ""


def test_engines_pull_each_byte_once(distribution: Distribution) -> None:
    new = distribution.fresh()
    before = spread(distribution.fleet)
    with distribution.run("--step", "10") as running:
        assert running.end() == 0, running.said
    pulls(running, *distribution.fleet.nodes)
    distribution.arrived(new)
    sent = sum(layer.size for layer in new.layers[1:])
    for node in distribution.nodes:
        assert sent < node.data.up - before[node.name] < 1.02 * sent + MB


@pytest.mark.thorough
def test_a_change_is_pulled_where_the_engine_knows_what_it_has(distribution: Distribution) -> None:
    """containerd knows every blob; overlay2 would pull again what it has, so it loads."""
    distribution.seed += 1
    parts = tuple(Part(size=5 * SIZE, seed=distribution.seed * 1000 + n) for n in range(2))
    distribution.complete(distribution.next(Payload(parts=parts)))
    new = distribution.next(Payload(parts=(parts[0], replace(parts[1], seed=7))))
    before = spread(distribution.fleet)
    with distribution.run() as running:
        assert running.end() == 0, running.said
    pulls(running, distribution.node("containerd").name)
    distribution.arrived(new)
    for node in distribution.nodes:
        assert node.data.up - before[node.name] < 1.02 * new.layers[-1].size


INGEST = """
head -c 1000000 |
    ctr --namespace moby content ingest --expected-digest {0} --expected-size 9999999 layer-{0} 2>&1
ctr --namespace moby content active
"""


def test_incomplete_layer_of_a_broken_pull_is_completed(distribution: Distribution) -> None:
    """However little it is: containerd keeps it for hours, and a load would not make use of it."""
    new, node = distribution.next(), distribution.node("containerd")
    top = new.layers[-1]
    with distribution.shipment.store.open_blob(top.digest) as blob:
        left = node.exec("sh", "-c", INGEST.format(top.digest), given=blob.read())
    assert f"layer-{top.digest}" in left
    with distribution.run() as running:
        assert running.end() == 0, running.said
    pulls(running, node.name)
    assert "layer-" not in node.exec("ctr", "--namespace", "moby", "content", "active")
    distribution.arrived(new)


@pytest.mark.thorough
@stores("users that may pull")
def test_users_that_may_pull(distribution: Distribution, store: str) -> None:
    node, data = distribution.node(store), distribution.fleet.data("worker")
    # One that is reached at one address only.
    data["nodes"][node.name] |= {"user": "sudoer", "sudo": True}
    del data["nodes"][node.name]["data"]
    distribution.shipment.nodes(data)
    new = distribution.fresh()
    with distribution.run() as running:
        assert running.end() == 0, running.said
    pulls(running, *distribution.fleet.nodes)
    distribution.arrived(new)


@cases(
    "a node that forbids the way back", "store, setting",
    *product(STORES, ("AllowTcpForwarding no", "DisableForwarding yes")),
)  # fmt: skip
def test_node_without_forwarding_loads(
    distribution: Distribution, store: str, setting: str
) -> None:
    """Also where not even the engine's socket may be forwarded."""
    node, new = distribution.node(store), distribution.fresh()
    with node.without_forwarding(setting), distribution.run() as running:
        assert running.end() == 0, running.said
    running.until(f"{node.name}: cannot pull, loads: its sshd forwards no port to here")
    distribution.arrived(new)


@pytest.mark.thorough
@stores("only who was admitted may pull")
def test_only_admitted_clients_may_pull(distribution: Distribution, store: str) -> None:
    """Others on the node reach the port, and are told nothing; they do not see the password."""
    node, new = distribution.node(store), distribution.fresh(size=PULLED.size)
    with distribution.held(node) as running:
        output = node.exec("ps", "-eo", "args")
        listening = node.exec("ss", "--listening", "--tcp", "--numeric", "--processes")
        found = re.search(r"127\.0\.0\.1:(\d+) .*sshd", listening)
        assert found is not None, listening
        port, digest = found[1], new.digest
        node.data.restore()
        # So slow that it lasts as long as the questions.
        node.data.rate(5 * MB)
        for path in ("/v2/", f"/v2/sparkimage-staging/manifests/{digest}"):
            for word in ("", "Authorization: Basic bm9kZTo=\r\n"):
                ask = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{word}\r\n".encode()
                to = f"TCP:127.0.0.1:{port}"
                answer = node.exec("socat", "-t", f"{READY_S:g}", "-", to, given=ask)
                assert answer.startswith("HTTP/1.1 401 "), answer
        node.data.restore()
        assert "password" not in output
        assert running.end() == 0, running.said
    distribution.arrived(new)


@pytest.mark.thorough
def test_image_with_wrong_diff_ids_is_refused(distribution: Distribution) -> None:
    payload = Payload(parts=tuple(Part(size=SIZE, seed=4000 + n) for n in range(5)))
    image = lying(distribution.shipment, payload)
    distribution.shipment.seal(image)
    with distribution.run() as running:
        assert running.end() == NODE_FAILED
    assert "2 of 2 nodes failed; no name was moved" in running.said
    distribution.kept(image)
    distribution.complete(distribution.fresh())


# The command


@cases(
    "an end in mid-pull", "user, number",
    ("root", signal.SIGKILL), ("sudoer", signal.SIGKILL), ("root", signal.SIGINT),
)  # fmt: skip
def test_command_ended_in_mid_pull_leaves_no_process(
    distribution: Distribution, user: str, number: signal.Signals
) -> None:
    data = distribution.fleet.data(user)
    for node in data["nodes"].values():
        node["sudo"] = user == "sudoer"
    distribution.shipment.nodes(data)
    new = distribution.fresh()
    with distribution.held(distribution.nodes[0], after=PULLED.midway) as running:
        assert running.kill(number) == (130 if number is signal.SIGINT else -number)
    distribution.kept(new)
    distribution.nodes[0].data.restore()
    distribution.quiet()
    for node in distribution.nodes:
        wait(partial(clean, node), f"{node.name}: a pull goes on")
    distribution.complete(new)
