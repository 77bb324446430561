"""The doctor on RDMA networks: a ring without a switch, link-local addresses, routes, old facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from sparkimage.config.inventory import Node
from sparkimage.nodes.rdma import Rdma
from sparkimage.nodes.session import NodeReport
from sparkimage.nodes.snapshot import Unreached
from sparkimage.nodes.topology import topology
from sparkimage.serve.doctor import doctor
from sparkimage.serve.doctor.checks import ClusterReport, Result, Severity
from tests.unit.spark_facts import PARTS, edited, spark, without_gids

OK, INFO, WARN, FAIL = Severity.OK, Severity.INFO, Severity.WARN, Severity.FAIL
PORTS = (("rocep1s0f0", "enp1s0f0np0"), ("roceP2p1s0f0", "enP2p1s0f0np0"),
         ("rocep1s0f1", "enp1s0f1np1"), ("roceP2p1s0f1", "enP2p1s0f1np1"))  # fmt: skip


def node(number: int, fast: dict[str, str], **entry: Any) -> NodeReport:
    """Node sparkN with a management address, whose RDMA interfaces have these addresses."""
    links = [f"enP7s7 10000 1500 up\n@ enP7s7 10.0.0.{number}/24"]
    links += [f"{name} 200000 9000 up\n@ {name} {address}" for name, address in fast.items()]
    rdma = [
        f"{device}|1|4: ACTIVE|Ethernet|200 Gb/sec (4X HDR)|{name}"
        for device, name in PORTS
        if name in fast
    ]
    name = f"spark{number}"
    found = Node(name=name, control=name, **{"data": f"10.0.0.{number}", **entry})
    machine = edited("machine", ("spark1", name), ("-0001", f"-000{number}"))
    snapshot = spark(found, machine=machine, links="\n".join(links), rdma="\n".join(rdma))
    return NodeReport(node=found, snapshot=replace(snapshot, unreached=()))


def ring(count: int, order: Sequence[int] = (), **entry: Any) -> list[NodeReport]:
    """Port 0 of each node is connected to port 1 of the next one, with a network for each of the
    cable's two devices, as NVIDIA's playbook and eugr's guide have it."""
    along = list(order) or list(range(1, count + 1))
    fast: dict[int, dict[str, str]] = {number: {} for number in along}
    for cable, (one, other) in enumerate(zip(along, [*along[1:], along[0]], strict=True)):
        fast[one] |= {"enp1s0f0np0": f"10.20.{2 * cable}.{one}/24",
                      "enP2p1s0f0np0": f"10.20.{2 * cable + 1}.{one}/24"}  # fmt: skip
        fast[other] |= {"enp1s0f1np1": f"10.20.{2 * cable}.{other}/24",
                        "enP2p1s0f1np1": f"10.20.{2 * cable + 1}.{other}/24"}  # fmt: skip
    return [node(number, fast[number], **entry) for number in range(1, count + 1)]


def examined(id: str, reports: Sequence[NodeReport], **more: Any) -> Result:
    return doctor.CHECKS[id].examine(ClusterReport(nodes=tuple(reports), **more))


def said(result: Result) -> str:
    return "\n".join(f"{one.severity}: {one.what} → {one.fix}" for one in result.findings)


@pytest.mark.parametrize("count", [3, 4, 6])
def test_a_ring_is_recognised_and_gets_its_own_settings(count: int) -> None:
    cluster = ClusterReport(nodes=tuple(ring(count)), nccl="2.30.7")
    network = cluster.topology
    assert network.ring[0] == "spark1"
    assert set(network.ring) == {f"spark{n}" for n in range(1, count + 1)}
    head = cluster.known[0]
    assert network.hcas(head) == tuple(device for device, _ in PORTS)
    assert network.env(head) == {
        "NCCL_IB_SUBNET_AWARE_ROUTING": "1", "NCCL_IB_MERGE_NICS": "0", "NCCL_NET_PLUGIN": "none",
        "NCCL_NVLS_ENABLE": "0", **({"NCCL_ALGO": "Ring"} if count > 3 else {}),
    }  # fmt: skip
    found = doctor.examine(cluster).findings
    assert {(one.check, one.severity) for one in found if one.check != "combinations"} == {
        ("ring", INFO), *([("ring", WARN)] if count > 3 else []),
    }  # fmt: skip
    assert "the nodes are a ring: spark1 - spark2 - " in found[-1].what


def test_nodes_at_a_switch_or_in_a_chain_are_no_ring() -> None:
    switch = [node(n, {"enp1s0f0np0": f"10.20.0.{n}/24"}) for n in (1, 2, 3)]
    chain = ring(4)[:3]
    two = ring(3)[:2]
    for nodes in (switch, chain, two):
        cluster = ClusterReport(nodes=tuple(nodes))
        assert cluster.topology.ring == ()
        assert set(cluster.topology.env(cluster.known[0])) == {"NCCL_NVLS_ENABLE"}
        assert examined("ring", nodes).worst is Severity.UNKNOWN
    unknown = (*ring(3), replace(ring(3)[0], node=Node(name="x", control="x"), snapshot=None))
    assert ClusterReport(nodes=unknown).topology.ring == ()


def test_what_a_ring_needs() -> None:
    old = said(examined("ring", ring(3), nccl="2.30.4"))
    assert "fail: the image's NCCL 2.30.4 does not know NCCL_IB_SUBNET_AWARE_ROUTING" in old
    assert "pin NCCL 2.30.6 or later" in old
    assert "fail" not in said(examined("ring", ring(3), nccl="2.30.6"))
    cables = [
        NodeReport(node=one, snapshot=replace(each.snapshot, node=one))
        for each in ring(3)
        if each.snapshot is not None
        for one in [replace(each.node, data=each.snapshot.interfaces[1].addresses[0])]
    ]
    wrong = examined("ring", cables)
    assert "fail: the data addresses are in different networks" in said(wrong)
    assert examined("network", cables).worst is OK
    order = said(examined("ring", ring(4, order=(1, 3, 2, 4))))
    assert "fail: rank order and ring differ: no cable connects spark1 and spark2" in order
    assert "the ring is spark1 - spark3 - spark2 - spark4 - spark1" in order
    assert "fail: " not in said(examined("ring", ring(4)))


def test_merging_ports_that_lead_to_different_nodes() -> None:
    merged = examined("settings", ring(3), env={"NCCL_IB_MERGE_NICS": "1"})
    assert merged.worst is FAIL
    assert "joins two ports that lead to different nodes" in said(merged)
    assert examined("settings", ring(3)).worst is OK
    # One that uses a switch has it by default.
    both = ("rocep1s0f0", "roceP2p1s0f0")
    fast = [
        node(n, {"enp1s0f0np0": f"10.20.0.{n}/24", "enP2p1s0f0np0": f"10.20.1.{n}/24"}, hca=both)
        for n in (1, 2)
    ]
    assert examined("settings", fast, env={"NCCL_IB_MERGE_NICS": "1"}).worst is OK
    assert examined("settings", fast, env={"NCCL_IB_MERGE_NICS": "0"}).worst is WARN


def test_a_ring_uses_no_device_of_one_neighbour_alone() -> None:
    half = ring(3)
    half[0] = NodeReport(
        node=replace(half[0].node, hca=("rocep1s0f0",)),
        snapshot=replace(half[0].snapshot, node=replace(half[0].node, hca=("rocep1s0f0",)))
        if half[0].snapshot is not None
        else None,
    )
    result = examined("rails", half)
    assert result.worst is FAIL
    assert "spark3" in said(result)
    assert examined("rails", ring(3)).worst is OK


def test_devices_in_another_order() -> None:
    both = ("rocep1s0f0", "roceP2p1s0f0")
    straight = {"enp1s0f0np0": "10.20.0.{}/24", "enP2p1s0f0np0": "10.20.1.{}/24"}
    swapped = {"enp1s0f0np0": "10.20.1.{}/24", "enP2p1s0f0np0": "10.20.0.{}/24"}

    def made(number: int, plan: dict[str, str]) -> NodeReport:
        data = plan["enp1s0f0np0"].format(number).partition("/")[0]
        fast = {name: text.format(number) for name, text in plan.items()}
        return node(number, fast, hca=both, data=data)

    crossed = examined("rails", [made(1, straight), made(2, swapped)])
    assert crossed.worst is WARN
    assert "the networks of the RDMA devices are in another order" in said(crossed)
    assert examined("rails", [made(1, straight), made(2, straight)]).worst is OK


def test_networks_that_meet_by_a_route() -> None:
    def made(number: int, routes: str) -> NodeReport:
        each = node(number, {"enp1s0f0np0": f"10.20.{number}.2/24"}, data=f"10.20.{number}.2")
        assert each.snapshot is not None
        parsed = spark(each.node, routes=routes).routes
        return replace(each, snapshot=replace(each.snapshot, routes=parsed))

    assert examined("rails", [made(1, ""), made(2, "")]).worst is FAIL
    routed = [made(n, f"10.20.0.0/16 via 10.20.{n}.1 dev enp1s0f0np0") for n in (1, 2)]
    assert examined("rails", routed).worst is OK
    elsewhere = [made(n, "default via 10.0.0.254 dev enP7s7") for n in (1, 2)]
    assert examined("rails", elsewhere).worst is FAIL


def test_link_local_addresses_are_as_good_as_others() -> None:
    """What NVIDIA's own setup of two Sparks gives: https://build.nvidia.com/spark/connect-two-sparks"""
    nodes = [node(n, {"enp1s0f1np1": f"169.254.7.{n}/16"}, data=f"169.254.7.{n}") for n in (1, 2)]
    cluster = ClusterReport(nodes=tuple(nodes))
    assert doctor.examine(cluster).findings == ()
    assert [port.addressed for port in cluster.topology.in_use(cluster.known[0])] == [True]


def test_a_twin_without_an_address_is_not_advised_on_any_node() -> None:
    """Also where it is the other node's that has none."""
    bare = edited("links", ("@ enP2p1s0f1np1 192.168.101.1/24\n", ""))
    whole = spark(Node(name="a", control="a", data="192.168.100.1"))
    other = spark(
        Node(name="b", control="b", data="192.168.100.1"), links=bare, rdma=without_gids()
    )
    reports = [NodeReport(node=one.node, snapshot=one) for one in (whole, other)]
    result = examined("hca", reports)
    assert "set `hca" not in said(result)
    assert "roceP2p1s0f1 is on the same port of the machine, and cannot be used" in said(result)
    both = [
        NodeReport(node=one.node, snapshot=one) for one in (whole, replace(other, rdma=whole.rdma))
    ]
    assert "set `hca: [rocep1s0f1, roceP2p1s0f1]`" in said(examined("hca", both))


def test_a_twin_with_another_mtu_is_not_advised() -> None:
    reports = [NodeReport(node=spark().node, snapshot=spark())]
    small = edited("links", ("enP2p1s0f1np1 200000 9000", "enP2p1s0f1np1 200000 1500"))
    entry = Node(name="b", control="b", data="192.168.100.1")
    for links, advised in ((PARTS["links"], True), (small, False)):
        one = NodeReport(node=entry, snapshot=spark(entry, links=links))
        found = examined("hca", [*reports, one]).findings
        assert any("b" in each.nodes for each in found) is advised
        both = [replace(entry, name=name, hca=("rocep1s0f1", "roceP2p1s0f1")) for name in "ab"]
        named = [
            NodeReport(node=node, snapshot=spark(node, links=text))
            for node, text in zip(both, (PARTS["links"], links), strict=True)
        ]
        assert (examined("mtu", named).worst is FAIL) is not advised


def test_a_device_as_a_record() -> None:
    port = next(port for port in spark().rdma if port.device == "rocep1s0f1")
    assert (port.interface, port.state, port.rate, port.mtu) == ("enp1s0f1np1", "ACTIVE", 200, 9000)
    assert (port.addresses, port.networks) == (("192.168.100.1",), ("192.168.100.0/24",))
    assert port.gids is not None
    assert [(gid.index, gid.kind, gid.ipv4) for gid in port.gids] == [
        (0, "IB/RoCE v1", ""), (1, "RoCE v2", ""), (2, "IB/RoCE v1", "192.168.100.1"),
        (3, "RoCE v2", "192.168.100.1"),
    ]  # fmt: skip
    assert [gid.index for gid in port.gids if gid.usable] == [3]
    # What an older script said: judged by the interface's addresses.
    old = {port.device: port for port in spark(rdma=without_gids()).rdma}
    assert old["rocep1s0f1"].gids is None
    assert old["rocep1s0f1"].addressed


def test_infiniband_needs_no_ipv4_address() -> None:
    port = Rdma(
        device="mlx5_0", port=1, state="ACTIVE", layer="InfiniBand", rate=400, interface="ib0"
    )
    assert port.addressed
    assert not replace(port, layer="Ethernet").addressed


def test_an_index_for_one_node_is_that_nodes() -> None:
    def made(number: int, index: str) -> NodeReport:
        entry = Node(
            name=f"spark{number}", control="x", data="192.168.100.1",
            env={"NCCL_IB_GID_INDEX": index},
        )  # fmt: skip
        moved = edited("rdma", ("|3|RoCE v2", "|4|RoCE v2")) if number == 2 else PARTS["rdma"]
        return NodeReport(node=entry, snapshot=spark(entry, rdma=moved))

    assert examined("gid", [made(1, "3"), made(2, "4")]).worst is OK
    drifted = examined("gid", [made(1, "3"), made(2, "3")])
    assert drifted.nodes == {"spark1": OK, "spark2": FAIL}
    assert "that GID of rocep1s0f1 is empty; the RoCE v2 IPv4 GID is 4" in said(drifted)


def test_what_the_image_sets_counts_where_nothing_else_is_set() -> None:
    bad, good = {"NCCL_IB_GID_INDEX": "9"}, {"NCCL_IB_GID_INDEX": "3"}

    def made(**entry: Any) -> list[NodeReport]:
        nodes = [Node(name=f"spark{n}", control="x", data="192.168.100.1", **entry) for n in (1, 2)]
        return [NodeReport(node=one, snapshot=spark(one)) for one in nodes]

    assert examined("gid", made(), image_env=bad).worst is FAIL
    assert examined("gid", made(), image_env=good).worst is OK
    assert examined("gid", made(), image_env=bad, env=good).worst is OK
    assert examined("gid", made(env=good), image_env=bad).worst is OK


def test_a_port_that_no_node_reaches_is_its_owners() -> None:
    unreached = (Unreached(node="spark2", address="10.0.0.2", port=9, why="No route to host"),)
    nodes = [
        NodeReport(node=each.node, snapshot=replace(each.snapshot, unreached=unreached))
        for n, each in enumerate(ring(3), 1)
        if each.snapshot is not None and n != 2
    ]
    result = examined("reachable", [nodes[0], ring(3)[1], nodes[1]])
    assert result.nodes == {"spark1": OK, "spark2": FAIL, "spark3": OK}
    assert "all others cannot connect to 10.0.0.2: No route to host" in said(result)
    quiet = [
        replace(each, snapshot=replace(each.snapshot, unreached=None))
        for each in ring(3)
        if each.snapshot is not None
    ]
    assert examined("reachable", quiet).worst is Severity.UNKNOWN


def test_settings_in_files_that_all_nodes_have_are_only_said() -> None:
    nodes = [
        replace(
            each, snapshot=replace(each.snapshot, nccl_conf={"/etc/nccl.conf": {"NCCL_X": "1"}})
        )
        for each in ring(3)
        if each.snapshot is not None
    ]
    assert examined("nccl-conf", nodes).worst is INFO
    assert "/etc/nccl.conf: NCCL_X=1" in said(examined("nccl-conf", nodes))


def test_a_kernel_log_that_may_not_be_read_is_unknown() -> None:
    entry = Node(name="a", control="a")
    report = NodeReport(node=entry, snapshot=spark(entry, kernel=""))
    assert examined("gpu-log", [report]).nodes == {"a": Severity.UNKNOWN}


def test_one_node_is_a_topology_without_a_ring() -> None:
    assert topology([spark()]).ring == ()
