"""What a fleet file says of nodes: chosen from what they say of themselves, written beside what
people have written."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from sparkimage.config import fleetfile, inventory
from sparkimage.config.inventory import Node
from sparkimage.core.errors import UsageError
from sparkimage.core.process import Local
from sparkimage.nodes import discovery
from sparkimage.nodes.snapshot import NodeSnapshot
from tests.unit import spark_facts
from tests.unit.spark_facts import edited

# Choosing


def spark(number: int, *, control: str = "", links: str = "", rdma: str = "") -> NodeSnapshot:
    """One of several Sparks, at 10.0.0.N and, on both twins, 192.168.{100,101}.N."""
    if not links:
        own = ((f"{net}.1/24", f"{net}.{number}/24")
               for net in ("10.0.0", "192.168.100", "192.168.101"))  # fmt: skip
        links = edited("links", *own)
    if not rdma:
        rdma = edited("rdma", ("c0a8:6401", f"c0a8:64{number:02x}"),
                      ("c0a8:6501", f"c0a8:65{number:02x}"))  # fmt: skip
    machine = edited("machine", ("host=spark1", f"host=spark-{number}.lan"))
    node = Node(name=control or f"10.0.0.{number}", control=control or f"10.0.0.{number}")
    return spark_facts.spark(node, links=links, rdma=rdma, machine=machine)


def test_four_sparks_on_a_switch() -> None:
    nodes = discovery.entries([spark(number) for number in (1, 2, 3, 4)])
    assert nodes[1] == Node(
        name="spark-2", control="10.0.0.2", data="192.168.100.2", user="nv", role="worker",
        interface="enp1s0f1np1", hca=("rocep1s0f1", "roceP2p1s0f1"),
    )  # fmt: skip
    assert [node.role for node in nodes] == ["head", "worker", "worker", "worker"]


def test_gpus_are_written_where_there_are_several() -> None:
    second = "GPU-1f2e3d4c, [N/A]\n1, NVIDIA GB10, 580.95.05, [N/A], GPU-2, [N/A]"
    two = edited("gpus", ("GPU-1f2e3d4c, [N/A]", second))
    node = Node(name="a", control="a")
    nodes = [spark_facts.spark(node, gpus=gpus) for gpus in (two, spark_facts.PARTS["gpus"])]
    assert [discovery.entries([one])[0].gpus for one in nodes] == [2, None]
    assert "    gpus: 2\n" in fleetfile.new(discovery.entries(nodes[:1]))


def test_a_twin_without_an_address_is_left_out() -> None:
    bare = edited("rdma", *((line, "@") for line in spark_facts.PARTS["rdma"].split("\n")
                            if line.startswith("@gid roceP2p1s0f1")))  # fmt: skip
    (first, second) = discovery.entries([spark(1, rdma=bare), spark(2)])
    # The other one's has nobody to meet, but its address is in a network of the first one's.
    assert first.hca == ("rocep1s0f1",)
    assert second.hca[0] == "rocep1s0f1"


def test_sparks_with_link_local_addresses() -> None:
    """As NVIDIA's setup of two leaves them."""

    def links(number: int) -> str:
        return edited("links", ("192.168.100.1/24", f"169.254.7.{number}/16"),
                      ("192.168.101.1/24", f"169.254.8.{number}/16"))  # fmt: skip

    nodes = discovery.entries([spark(number, links=links(number)) for number in (1, 2)])
    assert [node.data for node in nodes] == ["169.254.7.1", "169.254.7.2"]
    assert [node.interface for node in nodes] == ["enp1s0f1np1"] * 2


def test_the_faster_network_of_two() -> None:
    rdma = edited(
        "rdma", ("rocep1s0f1|1|4: ACTIVE|Ethernet|200", "rocep1s0f1|1|4: ACTIVE|Ethernet|100")
    )
    nodes = discovery.entries([spark(1, rdma=rdma), spark(2)])
    assert [node.data for node in nodes] == ["192.168.101.1", "192.168.101.2"]


def test_nodes_that_share_no_fast_network_get_none() -> None:
    """One alone; a ring, in which each network has two nodes."""

    def links(number: int) -> str:
        return edited("links", ("192.168.100.1/24", f"192.168.1{number}.1/24"),
                      ("192.168.101.1/24", f"192.168.1{number % 3 + 1}.2/24"))  # fmt: skip

    ring = [spark(number, links=links(number)) for number in (1, 2, 3)]
    for node in (*discovery.entries(ring), *discovery.entries([spark(1)])):
        assert (node.data, node.interface, node.hca) == (None, None, ())


def test_one_machine_is_one_node_under_a_name_of_its_own() -> None:
    both = [spark(1, control="spark1.local"), spark(1), spark(2, control="other.spark1")]
    machines = discovery.distinct(both)
    assert [one.node.control for one in machines] == ["spark1.local", "other.spark1"]
    twice = [spark(1, control="a.x"), spark(2, control="a.y"), spark(3, control="a.y.z")]
    assert [node.name for node in discovery.entries(twice)] == ["a", "a.y", "a.y.z"]
    known = (replace(spark(1).node, name="spark-2", role="head"),)
    old, new = discovery.entries([replace(spark(1), node=known[0]), spark(2)], known)
    assert (old, new.name, new.role) == (known[0], "node1", "worker")


@pytest.mark.parametrize(
    ("says", "reached"), [(b"SSH-2.0-x\r\n", True), (b"HTTP", False), (b"", False)]
)
def test_an_sshd_says_that_it_is_one(*, says: bytes, reached: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            with server.accept()[0] as connection:
                connection.sendall(says)

        thread = threading.Thread(target=answer)
        thread.start()
        node = Node(name="a", control="nowhere", data="127.0.0.1", port=server.getsockname()[1])
        assert discovery.reaches(node) is reached
        thread.join()
    assert not discovery.reaches(node)


# Writing

TWO = [Node(name="on", control="10.0.0.1", data="192.168.100.1", user="nv", role="head",
            interface="enp1s0f1np1", hca=("a", "b")),
       Node(name="n2", control="n2", port=2222)]  # fmt: skip
MORE = [Node(name="n3", control="10.0.0.3")]
ENTRY = "  n3:\n    control: 10.0.0.3\n"


def nodes_of(text: str, folder: Path) -> tuple[Node, ...]:
    file = folder / "fleet.yaml"
    file.write_text(text)
    return inventory.load(file).nodes


def test_a_new_file_says_what_was_found(tmp_path: Path) -> None:
    assert nodes_of(fleetfile.new(TWO), tmp_path) == tuple(TWO)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version: 1\nnodes:\n  a: {}\n", f"version: 1\nnodes:\n  a: {{}}\n{ENTRY}"),
        ("nodes:\n  a:\n    user: nv # mine\n\n# end\nversion: 1\n",
         f"nodes:\n  a:\n    user: nv # mine\n{ENTRY}\n# end\nversion: 1\n"),
        ("version: 1\nnodes:\n  a:\n    labels: {x: y}",
         f"version: 1\nnodes:\n  a:\n    labels: {{x: y}}\n{ENTRY}"),
        ("version: 1\nnodes:\n  a:\n    labels:\n      x: |\n        y\n        z\n# e\n",
         f"version: 1\nnodes:\n  a:\n    labels:\n      x: |\n        y\n        z\n{ENTRY}# e\n"),
        ("version: 1\nnodes:\n  a:\n    hca:\n    - x\n    - y\n",
         f"version: 1\nnodes:\n  a:\n    hca:\n    - x\n    - y\n{ENTRY}"),
        ("{version: 1, nodes: {a: {}}}\n", None),
        ("version: 1\nnodes: {a: {}}\n", None),
    ],
)  # fmt: skip
def test_nodes_come_to_those_of_a_file(text: str, expected: str | None, tmp_path: Path) -> None:
    found = fleetfile.extended(text, MORE)
    assert found == expected
    before = nodes_of(text, tmp_path)
    assert found is None or nodes_of(found, tmp_path) == (*before, *MORE)


# Hosts


def test_hosts_as_they_are_named() -> None:
    words = ["spark1", "nv@10.0.0.1", "nv@h:2222", "fe80::1", "spark1"]
    nodes = [one.node for one in discovery.given(words, "me")]
    assert [(node.control, node.user, node.port) for node in nodes] == [
        ("spark1", "me", None), ("10.0.0.1", "nv", None), ("h", "nv", 2222), ("fe80::1", "me", None)
    ]  # fmt: skip
    for wrong in ("-oProxyCommand=x", "a b", "@h", "n v@h", ""):
        with pytest.raises(UsageError, match="not the address of a node"):
            discovery.given([wrong], None)


def test_hosts_of_ssh_config(tmp_path: Path) -> None:
    (tmp_path / "config").write_text(
        "# Host no\nHost one two *.lan !three\n  User x\nhost=four\nInclude conf.d/* missing\n"
        'Match host five\nHost "six" one\nHost \'unfinished\n'
    )
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "a").write_text("Host seven\nInclude config\n")
    found = discovery.of_ssh_config(tmp_path / "config", Local(), None)
    assert [one.node.name for one in found] == ["one", "two", "four", "seven", "six"]
    assert discovery.of_ssh_config(tmp_path / "none", Local(), None) == []
