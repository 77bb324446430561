"""The doctor's checks: each in a case in which it passes, and in cases in which it does not."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkimage.config.inventory import Node
from sparkimage.core.errors import UnreachableError
from sparkimage.nodes.fabric import data_link
from sparkimage.nodes.session import NodeReport
from sparkimage.nodes.snapshot import Unreached
from sparkimage.serve.doctor import doctor
from sparkimage.serve.doctor.checks import (
    TEXTS,
    Check,
    ClusterReport,
    Finding,
    Result,
    Severity,
    grouped,
    in_words,
    merged,
    odd,
)
from tests.lab.command import call
from tests.unit.spark_facts import PARTS, edited, info, spark, without_gids

ONE_GPU = {"Source": "cdi", "ID": "nvidia.com/gpu=0"}

PROJECT = Path(__file__).resolve().parents[2]
MODEL = "/models/m"
BOTH = {"hca": ("rocep1s0f1", "roceP2p1s0f1")}
"""Both devices of the port."""
OK, INFO, WARN, FAIL = Severity.OK, Severity.INFO, Severity.WARN, Severity.FAIL


def node_report(number: int, node: Mapping[str, Any] | None = None, **changes: Any) -> NodeReport:
    """Node sparkN, as it should be but for these parts of what it says."""
    name = f"spark{number}"
    own = {
        "machine": edited("machine", ("spark1", name), ("-0001", f"-000{number}")),
        "links": edited(
            "links", ("192.168.100.1", f"192.168.100.{number}"),
            ("192.168.101.1", f"192.168.101.{number}"),
        ),
        "rdma": edited("rdma", ("c0a8:6401", f"c0a8:640{number}"),
                       ("c0a8:6501", f"c0a8:650{number}")),
    }  # fmt: skip
    given_node = {"data": f"192.168.100.{number}", **(node or {})}
    entry = Node(name=name, control=name, **given_node)
    unreached = changes.pop("unreached", ())
    snapshot = spark(entry, **{**own, **changes})
    return NodeReport(node=entry, snapshot=replace(snapshot, unreached=unreached))


def cluster(*nodes: NodeReport, **more: Any) -> ClusterReport:
    return ClusterReport(nodes=nodes, model=MODEL, **{"cuda": "13.0", "pushed": {}, **more})


def check(id: str) -> Check:
    return doctor.CHECKS[id]


def examined(id: str, *reports: NodeReport, **more: Any) -> Result:
    return check(id).examine(cluster(*reports, **more))


def text_of(result: Result) -> str:
    return "\n".join(f"{one.what} → {one.fix}" for one in result.findings)


def unreachable(number: int) -> NodeReport:
    name = f"spark{number}"
    error = UnreachableError(
        f"{name}: its host key is not known here", definite=True, hint=f"connect once: ssh {name}"
    )
    return NodeReport(node=Node(name=name, control=name), error=error)


def test_two_sparks_as_they_should_be() -> None:
    found = doctor.examine(cluster(node_report(1, BOTH), node_report(2, BOTH)))
    worst = dict.fromkeys(doctor.CHECKS, OK) | {"ring": Severity.UNKNOWN}
    assert {one.check.id: one.worst for one in found.results} == worst
    assert found.findings == ()


def test_what_is_known_of_an_nccl_depends_on_the_nodes() -> None:
    four = [node_report(number) for number in range(1, 5)]
    wedge = examined("combinations", *four, nccl="2.28.9")
    assert wedge.worst is WARN
    assert "NCCL 2.28.9 is known to wedge long generations at TP=4 → Pin 2.30.4" in text_of(wedge)
    assert "wedge" not in text_of(examined("combinations", *four[:2], nccl="2.28.9"))
    nvls = examined("combinations", *four[:2], nccl="2.30.4")
    assert nvls.worst is INFO
    assert "NCCL_NVLS_ENABLE" in text_of(nvls)
    assert examined("combinations", four[0], nccl="2.30.4").worst is OK
    other = [
        node_report(number, gpus="@smi\n0, NVIDIA H200, 580.95.05, 143771, GPU-1, 143000")
        for number in (1, 2)
    ]
    assert examined("combinations", *other, nccl="2.30.4").worst is OK
    assert examined("combinations", *four, nccl="2.32.3").worst is OK


XID = "[6.0] NVRM: Xid (PCI:000f:01:00): {}, pid=82074, name=python, channel 0x02"
SECOND = (("168.100.1/24", "168.100.2/24"), ("168.101.1/24", "168.101.2/24"))
BARE_TWIN = {
    "links": edited("links", *SECOND, ("192.168.101.2/24", "fe80::2/64")),
    "rdma": without_gids(),
}
# Of each check: what is wrong on spark2, how bad it is, and what is said of it.
WRONG: list[tuple[str, dict[str, Any], Severity, str]] = [
    ("distinct", {"machine": PARTS["machine"]}, FAIL, "these are one machine, spark1"),
    ("arch", {"machine": edited("machine", ("aarch64", "x86_64"))}, FAIL,
     "arm64: spark1; amd64: spark2"),
    ("system", {"machine": edited("machine", ("6.17.0-1014", "6.14.0-1000"))}, INFO,
     "different kernels"),
    ("system", {"machine": edited("machine", ("24.04.4", "24.04.3"))}, INFO, "different systems"),
    ("combinations", {"machine": edited("machine", ("6.17.0-1014", "7.0.0-1019")),
                      "memory": edited("memory", ("CmaFree", "CmaUsed"))}, WARN,
     "kernel 7.0.0-1019-nvidia is known to break RDMA"),
    ("docker", {"docker": "permission denied"}, FAIL, "usermod -aG docker nv"),
    ("docker", {"docker": "permission denied", "node": {"sudo": True}}, FAIL, "through sudo"),
    ("docker", {"docker": "sh: docker: not found"}, FAIL, "no docker command"),
    ("docker", {"docker": "@late"}, FAIL, "it hangs"),
    ("docker", {"docker": "Cannot connect"}, FAIL, "does not answer: Cannot connect"),
    ("docker", {"docker": None}, FAIL, "does not answer: no output"),
    ("docker", {"docker": info(ServerVersion="19.03.1")}, FAIL, "19.03.1 is too old"),
    ("engines", {"docker": info(ServerVersion="26.1.5")}, INFO,
     "29.1.3: spark1; 26.1.5: spark2"),
    ("engines", {"docker": info(DriverStatus=[])}, INFO, "different image stores"),
    ("gpu", {"gpus": None}, FAIL, "no nvidia-smi"),
    ("gpu", {"gpus": "@smi\nNo devices were found"}, FAIL, "No devices were found"),
    ("gpu", {"gpus": "@smi\n@late"}, FAIL, "no answer in time"),
    ("gpu", {"gpus": "@smi"}, FAIL, "it prints nothing"),
    ("gpu", {"gpus": "@smi\nFailed to initialize NVML: Driver/library version mismatch"}, FAIL,
     "sudo reboot"),
    ("gpu", {"node": {"gpus": 2}}, FAIL, "finds 1 GPUs, the fleet file says 2"),
    ("gpu-free", {"gpus": PARTS["gpus"] + "\n@process 4711, VLLM::Worker\n@process 5, x"}, WARN,
     "VLLM::Worker (process 4711) and 1 more uses the GPU"),
    ("gpus-equal", {"gpus": edited("gpus", ("GB10", "GB300"))}, WARN, "1 x NVIDIA GB300: spark2"),
    ("gpus-equal", {"gpus": "@smi\n0, NVIDIA GB10, 1, 9, a, 9\n1, NVIDIA GB10, 1, 9, b, 9"}, FAIL,
     "2 x NVIDIA GB10: spark2"),
    ("driver", {"gpus": edited("gpus", (": 13.0", ": 12.8"))}, FAIL, "supports CUDA 12.8"),
    ("drivers-equal", {"gpus": edited("gpus", ("580.95.05", "590.10"))}, WARN, "590.10: spark2"),
    ("gpus-flag", {"hooks": None, "docker": info(CDISpecDirs=[])}, FAIL, "no CDI device"),
    ("gpus-flag", {"hooks": None, "docker": info(DiscoveredDevices=[ONE_GPU])}, FAIL,
     "nvidia.com/gpu=all; it has only nvidia.com/gpu=0"),
    ("gpus-flag", {"hooks": None, "cdi": None, "docker": info(DiscoveredDevices=None)}, FAIL,
     "nvidia-ctk runtime configure"),
    ("nvidia-runtime", {"docker": info(Runtimes={"runc": {}})}, INFO, "`--gpus all` works"),
    ("nvidia-runtime", {"docker": info(Runtimes={"runc": {}}), "hooks": None}, INFO,
     "`--device nvidia.com/gpu=all` works"),
    ("cdi", {"cdi": edited("cdi", ("580.95.05", "570.1.2"))}, WARN, "nvidia-ctk cdi generate"),
    ("rdma", {"rdma": None}, FAIL, "no RDMA device"),
    ("rdma", {"rdma": edited("rdma", ("ACTIVE", "DOWN"))}, FAIL, "is up: rocep1s0f0"),
    ("rdma", {"node": {"data": "10.0.0.1"}}, FAIL,
     "enP7s7, its data interface, belongs to no RDMA device"),
    ("verbs", {"infiniband": None}, FAIL, "there is no /dev/infiniband"),
    ("verbs", {"infiniband": "rdma_cm"}, FAIL, "no verbs device, only rdma_cm"),
    ("hca", {"node": {"hca": ("mlx5_0",)}}, FAIL, "no RDMA device mlx5_0"),
    ("hca", {"node": {"hca": ("rocep1s0f0:1",)}}, FAIL, "rocep1s0f0 is down"),
    ("hca", {}, INFO, "roceP2p1s0f1 is on the same port of the machine and is not used"),
    ("hca", {"node": {"hca": ("rocep1s0f1",)}}, INFO, "`hca: [rocep1s0f1, roceP2p1s0f1]`"),
    ("hca", BARE_TWIN, INFO, "roceP2p1s0f1 is on the same port of the machine, and cannot"),
    ("gid", {"node": BOTH, **BARE_TWIN}, FAIL,
     "its interface enP2p1s0f1np1 has no IPv4 address → there: give enP2p1s0f1np1 an IPv4 address"),
    ("gid", {"node": BOTH, "rdma": edited("rdma", ("|RoCE v2|0000", "|IB/RoCE v1|0000"))}, FAIL,
     "rocep1s0f1 has no RoCE v2 GID for the IPv4 address of enp1s0f1np1"),
    ("gid", {"node": {"env": {"NCCL_IB_GID_INDEX": "1"}}}, FAIL,
     "is fe80::4ebb:47ff:fe00:1 (RoCE v2); the RoCE v2 IPv4 GID is 3"),
    ("gid", {"node": {"env": {"NCCL_IB_GID_INDEX": "7"}}}, FAIL, "of rocep1s0f1 is empty"),
    ("rails", {"node": {"data": "192.168.7.2"},
               "links": edited("links", ("192.168.100.1/24", "192.168.7.2/24"))}, FAIL,
     "of spark2; networks: 192.168.100.0/24: spark1; 192.168.7.0/24: spark2"),
    ("rails", {"node": BOTH, "links": edited("links", *SECOND, (".101.2/24", ".7.2/24"))}, FAIL,
     "roceP2p1s0f1 of spark2 reaches no RDMA device in use of spark1"),
    ("settings", {"node": {**BOTH, "env": {"NCCL_IB_MERGE_NICS": "0"}}}, WARN,
     "rocep1s0f1, roceP2p1s0f1 are one port"),
    ("settings", {"node": {"env": {"NCCL_NVLS_ENABLE": "1"}}}, WARN, "NVIDIA GB10 has no NVLink"),
    ("nccl-conf", {"nccl": "@file /etc/nccl.conf\nNCCL_IB_GID_INDEX=3"}, WARN,
     "settings of NCCL that not all nodes have: /etc/nccl.conf: NCCL_IB_GID_INDEX=3"),
    ("reachable", {"unreached": (Unreached(node="spark1", address="192.168.100.1", port=4711,
                                           why="no answer in 5 s"),)}, OK,
     "spark2 cannot connect to 192.168.100.1: no answer in 5 s"),
    ("cma", {"memory": edited("memory", ("32768", "0"), ("20000", "940604"))}, FAIL,
     "CmaFree 963.2 MB is more than CmaTotal 0 B → there: boot with kho=off"),
    ("gpu-log", {"kernel": f"{XID.format(31)}\n{XID.format(43)}\n@read"}, WARN,
     "Xid 31, once since the boot: The GPU reports a memory fault"),
    ("gpu-log", {"kernel": f"{XID.format(79)}\n{XID.format(79)}\n@read"}, FAIL,
     "Xid 79, 2 times since the boot: The GPU has fallen off the bus"),
    ("gpu-log", {"kernel": "[5.0] NVRM: fallen off the bus and is not responding\n@read"}, FAIL,
     "a GPU has fallen off the bus"),
    ("gpu-log", {"kernel": "[5.0] NVRM: Out of memory [NV_ERR_NO_MEMORY] (0x51)\n@read"}, WARN,
     "the driver ran out of memory"),
    ("interface", {"node": {"data": "10.9.9.9"}}, FAIL, "no interface has the data address"),
    ("interface", {"node": {"interface": "eth7"}}, FAIL,
     "no interface eth7; there are: enP7s7 (1 Gbit/s), enp1s0f1np1 (200 Gbit/s)"),
    ("interface", {"node": {"interface": "enp1s0f1np1"}, "links": "enp1s0f1np1 200000 9000 up"},
     FAIL, "interface enp1s0f1np1 has no address"),
    ("interface", {"node": {"interface": "enp1s0f0np0"}}, FAIL, "enp1s0f0np0 is down"),
    ("network", {"links": edited("links", ("168.100.1/24", "168.100.2/30"))}, WARN,
     "192.168.100.0/24: spark1; 192.168.100.0/30: spark2"),
    ("network", {"node": {"data": "10.0.0.1"}}, WARN, "10.0.0.0/24: spark2"),
    ("subnets", {"links": edited("links", ("192.168.101.1/24", "192.168.100.7/24"))}, WARN,
     "enp1s0f1np1 and enP2p1s0f1np1 are both in 192.168.100.0/24"),
    ("speed", {"node": {"data": "10.0.0.1"}}, WARN, "set `data: 192.168.10"),
    ("speed", {"links": edited("links", ("200000", "100000"), ("8.100.1", "8.100.2"))}, WARN,
     "200 Gbit/s: spark1; 100 Gbit/s: spark2"),
    ("speed", {"links": "eth0 1000 1500 up\n@ eth0 192.168.100.2/24"}, WARN,
     "its fastest interface is eth0 (1 Gbit/s)"),
    ("mtu", {"links": edited("links", ("np1 200000 9000", "np1 200000 1500"),
                             ("8.100.1", "8.100.2"))}, FAIL,
     "different MTUs: in 192.168.100.0/24, 9000: spark1; 1500: spark2"),
    ("mtu", {"node": BOTH, "links": edited("links", *SECOND, ("enP2p1s0f1np1 200000 9000",
                                                              "enP2p1s0f1np1 200000 1500"))}, WARN,
     "enP2p1s0f1np1 has 200 Gbit/s and an MTU of 1500"),
    ("memlock", {"limits": "memlock=64\ndocker=65536"}, INFO, "--ulimit memlock=-1:-1"),
    ("memlock", {"limits": "memlock=64", "docker": info(SecurityOptions=["name=rootless"])}, FAIL,
     "is rootless"),
    ("memory", {"memory": edited("memory", ("119000000", "60000000"))}, FAIL,
     "61.4 GB of 128.5 GB are available"),
    ("memory", {"memory": edited("memory", ("125513000", "64000000"), ("119000000", "60000000"))},
     WARN, "the smallest one limits all"),
    ("page-cache", {"memory": edited("memory", ("115000000", "20000000"))}, WARN, "drop_caches"),
    ("swap", {"memory": edited("memory", ("SwapTotal:      0", "SwapTotal: 16000000"))}, WARN,
     "16.4 GB of swap"),
    ("disk", {"disk": edited("disk", ("2750000000", "900000"))}, FAIL, "has 921.6 MB free"),
    ("disk", {"disk": edited("disk", ("2750000000", "9000000"))}, WARN, "has 9.2 GB free"),
    ("model", {"model": "@missing"}, FAIL, "/models/m does not exist"),
    ("model", {"model": "@closed"}, FAIL, "is not readable by nv"),
    ("model", {"model": "@folder"}, FAIL, "is empty"),
    ("model", {"model": "@folder\n@late"}, FAIL, "not be read in time"),
    ("shards", {"model": edited("model", ("38000000000 ./model-00002-of-00002.safetensors\n", ""))},
     FAIL, "index names are missing: model-00002-of-00002.safetensors"),
    ("shards", {"model": edited("model", ("1500 ./config.json\n", ""))}, FAIL, "no config.json"),
    ("shards", {"model": edited("model", ("9000000 ./tokenizer.json\n", ""))}, WARN,
     "it has no tokenizer"),
    ("shards", {"model": f"{PARTS['model']}\n@pointer tokenizer.json"}, FAIL,
     "Git LFS pointers in place of the files: tokenizer.json → there: hf download"),
    ("shards", {"model": edited("model", ("38000000000 ./m", "37999999999 ./m"),
                                ("@length 37999999999", "@length 38000000000"))}, FAIL,
     "files that are cut off: model-00002-of-00002.safetensors; the first has 38.0 GB of 38.0 GB"),
    ("shards", {"model": edited("model", ("@total 77", "@total 99"))}, WARN,
     "the files have 78.0 GB, the index says 100.0 GB"),
    ("shards", {"model": edited("model", ("38000000000", "0"))}, FAIL, "empty files: model-00002"),
    ("model-equal", {"model": edited("model", ("38000000000", "38000000001"))}, FAIL,
     "the models differ, in model-00002-of-00002.safetensors"),
    ("fit", {"model": edited("model", ("38000000000", "380000000000"))}, FAIL, "420.0 GB"),
    ("clock", {"clock": "now=1790000005.0"}, WARN, "its clock is +4.8 s off the others'"),
    ("clock", {"clock": "now=1790000500.0"}, FAIL, "its clock is +500 s off this machine's"),
    ("ntp", {"clock": edited("clock", ("yes", "no"))}, WARN, "set-ntp true"),
    ("held", {"held": "vim\nnvidia-driver-580-open"}, WARN,
     "held back from upgrades, but not on all nodes: nvidia-driver-580-open"),
]  # fmt: skip


def test_model_that_is_not_as_pushed() -> None:
    reports = node_report(1), node_report(2)
    wrong = {"spark2": ["config.json is missing", "a", "b", "c"]}
    result = examined("model-pushed", *reports, pushed=wrong)
    assert result.nodes == {"spark1": OK, "spark2": FAIL}
    assert text_of(result) == (
        "not the model that was pushed: config.json is missing, a, b and 1 more → "
        "sparkimage model push /models/m"
    )
    assert not examined("model-pushed", *reports, pushed=None).nodes


@pytest.mark.parametrize(("id", "changes", "severity", "words"), WRONG)
def test_what_is_wrong_on_one_node_is_found(
    id: str, changes: dict[str, Any], severity: Severity, words: str
) -> None:
    result = examined(id, node_report(1), node_report(2, **changes))
    assert result.nodes["spark2"] is severity
    assert words in text_of(result)
    assert result.worst in (severity, result.check.worst)
    assert all(one.check == id and one.why == result.check.why for one in result.findings)
    assert all(one.fix or one.severity is INFO for one in result.findings)


def test_every_check_was_seen_to_fail() -> None:
    elsewhere = {"reach", "ports", "ring", "reachable", "settings", "model-pushed"}
    assert doctor.CHECKS.keys() == {id for id, *_ in WRONG} | elsewhere
    for one in doctor.CHECKS.values():
        seen = [severity for id, _, severity, _ in WRONG if id == one.id]
        assert one.id in elsewhere or one.worst in seen


def test_every_text_of_the_file_was_said_of_some_node() -> None:
    elsewhere = {
        "reach", "ports", "gpu/profile", "held/same", "rails/crossed", "settings/merge-ring",
        "nccl-conf/same", "model-pushed",
    }  # fmt: skip
    said = {
        finding.what
        for id, changes, *_ in WRONG
        for finding in examined(id, node_report(1), node_report(2, **changes)).findings
    }
    texts = {
        id if case is None else f"{id}/{case}": (check if case is None else check["cases"][case])
        for id, check in TEXTS.items()
        for case in check.get("cases", [None])
    }
    for key in {key for key in texts if not key.startswith("ring/")} - elsewhere:
        pattern = re.sub(r"\\\{.*?\\\}", ".*", re.escape(texts[key]["what"]))
        assert any(re.fullmatch(pattern, what) for what in said), key


def test_a_kernel_that_was_started_without_what_it_is_known_for_is_only_told() -> None:
    """With kho=off: https://github.com/NVIDIA/NV-Kernels/pull/590"""
    off: dict[str, Any] = {
        "machine": edited("machine", ("spark1", "spark2"), ("6.17.0-1014", "7.0.0-1019")),
        "memory": edited("memory", ("32768", "0"), ("20000", "0")),
    }
    assert examined("combinations", node_report(1), node_report(2, **off)).worst is INFO
    assert examined("cma", node_report(1), node_report(2, **off)).worst is OK


def test_a_node_that_cannot_be_reached_is_a_finding_and_the_others_are_examined() -> None:
    found = doctor.examine(cluster(node_report(1), unreachable(2), node_report(3, gpus=None)))
    by_id = {one.check.id: one for one in found.results}
    assert by_id["reach"].nodes == {"spark1": OK, "spark2": FAIL, "spark3": OK}
    assert by_id["gpu"].nodes == {"spark1": OK, "spark2": Severity.UNKNOWN, "spark3": FAIL}
    first = found.findings[0]
    assert (first.what, first.fix) == (
        "its host key is not known here", "connect once: ssh spark2",
    )  # fmt: skip


def test_a_data_address_that_is_a_name() -> None:
    named = {"data": "spark1-fast"}
    known = node_report(1, named, names="192.168.100.1")
    assert known.snapshot is not None
    link = data_link(known.snapshot)
    assert (link.interface.name, link.network) == ("enp1s0f1np1", "192.168.100.0/24")
    unknown = examined("interface", node_report(2), node_report(1, named, names="127.0.1.1"))
    assert "no interface has the data address spark1-fast" in text_of(unknown)


def test_a_wlan_beside_the_cable_is_nobodys_business() -> None:
    wlan = PARTS["links"] + "\nwlP9s9 -1 1500 up\n@ wlP9s9 10.0.0.77/24"
    assert examined("subnets", node_report(1, links=wlan), node_report(2)).worst is OK


def test_the_ports_are_the_heads() -> None:
    taken = PARTS["ports"] + "\n00000000:1F40\n0100007F:734F"
    worker = {"role": "worker"}
    head = {"role": "head"}
    assert examined("ports", node_report(1), node_report(2, ports=taken)).worst is OK
    result = examined("ports", node_report(1, worker), node_report(2, head, ports=taken))
    assert result.nodes == {"spark1": OK, "spark2": FAIL}
    assert "port 8000 (API)" in text_of(result)
    assert "port 29519 (ranks) is in use: something listens on 127.0.0.1" in text_of(result)
    free = examined("ports", node_report(1, ports=taken), port=8001, master_port=29520)
    assert free.worst is OK


def test_a_head_that_cannot_be_reached_does_not_make_another_one_the_head() -> None:
    taken = PARTS["ports"] + "\n00000000:1F40"
    assert examined("ports", unreachable(1), node_report(2, ports=taken)).findings == ()


def test_one_machine_alone_needs_no_network() -> None:
    found = doctor.examine(
        ClusterReport(nodes=(node_report(1, rdma=None, infiniband=None, links=""),))
    )
    assert found.findings == ()
    asked = {one.check.id for one in found.results if one.worst is not Severity.UNKNOWN}
    assert not asked & {"rdma", "verbs", "interface", "speed", "mtu", "model"}


def test_without_rdma_on_purpose() -> None:
    bare: dict[str, Any] = {"rdma": None, "infiniband": None}
    found = doctor.examine(cluster(node_report(1, **bare), node_report(2, **bare), rdma=False))
    assert found.findings == ()


def test_a_node_that_is_meant_to_have_no_gpu() -> None:
    assert examined("gpu", node_report(1, {"gpus": 0}, gpus=None)).worst is OK


def test_fewer_gpus_than_a_profile_wants() -> None:
    assert examined("gpu", node_report(1), node_report(2), gpus=1).worst is OK
    few = examined("gpu", node_report(1), gpus=2)
    assert "nvidia-smi finds 1 GPUs, the profile wants 2" in text_of(few)
    # A node that is meant to have none.
    assert examined("gpu", node_report(1, {"gpus": 0}, gpus=None), gpus=1).worst is FAIL


def test_what_is_held_everywhere_is_only_said() -> None:
    both: dict[str, Any] = {"held": "docker-ce"}
    assert examined("held", node_report(1, **both), node_report(2, **both)).worst is INFO
    assert examined("held", node_report(1, held="vim"), node_report(2)).worst is OK


def test_a_server_that_takes_less_memory_needs_less() -> None:
    small = node_report(1, memory=edited("memory", ("119000000", "60000000")))
    assert examined("memory", small).worst is FAIL
    assert examined("memory", small, utilization=0.4).worst is OK


def test_a_path_with_a_space_is_quoted_in_the_fix() -> None:
    result = check("model").examine(
        ClusterReport(nodes=(node_report(1, model="@missing"),), model="/models/a b")
    )
    assert "--local-dir '/models/a b'" in text_of(result)


def test_an_unknown_model_is_not_compared() -> None:
    result = examined("model-equal", node_report(1), node_report(2, model="@missing"))
    assert result.nodes == {"spark1": OK, "spark2": Severity.UNKNOWN}


def test_the_worst_comes_first_and_the_same_is_said_once() -> None:
    bad: dict[str, Any] = {"gpus": None, "held": "docker-ce"}
    found = doctor.examine(cluster(node_report(1, **bad), node_report(2, **bad)))
    severities = [one.severity for one in found.findings]
    assert severities == sorted(severities, key=list(Severity).index, reverse=True)
    gpu = [one for one in found.findings if one.check == "gpu"]
    assert [one.nodes for one in gpu] == [("spark1", "spark2")]


def test_as_json() -> None:
    found = doctor.examine(cluster(node_report(1), node_report(2, gpus=None), unreachable(3)))
    made = json.loads(json.dumps(found.to_dict()))
    assert made["result"] == "fail"
    assert made["failed"] == found.count(FAIL)
    assert made["nodes"]["spark3"] is None
    assert made["nodes"]["spark1"]["gpus"][0]["name"] == "NVIDIA GB10"
    assert {one["check"] for one in made["checks"]} == doctor.CHECKS.keys()
    assert made["findings"][0].keys() == {"check", "severity", "nodes", "what", "why", "fix"}


WORDS = st.lists(
    st.sampled_from(sorted({w for body in PARTS.values() for w in body.split()})), max_size=8
)


@given(
    st.lists(st.dictionaries(st.sampled_from(sorted(PARTS)), WORDS.map(" ".join)), min_size=1,
             max_size=3),
    st.booleans(),
)  # fmt: skip
def test_no_machine_is_too_strange_to_be_examined(
    changes: Sequence[dict[str, str]], sudo: bool
) -> None:
    reports = [node_report(n, {"sudo": sudo}, **some) for n, some in enumerate(changes, 1)]
    json.dumps(doctor.examine(cluster(*reports)).to_dict())


# What rules are made of


def test_groups_in_words() -> None:
    groups = grouped([("a", "1"), ("b", "2"), ("c", "2")])
    assert in_words(groups) == "2: b, c; 1: a"
    assert odd(groups) == ("a",)
    assert odd(grouped([("a", "1"), ("b", "2")])) == ("a", "b")
    assert in_words(grouped([("a", "1")])) == "1"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"))))
def test_merging_loses_no_node(pairs: list[tuple[str, str]]) -> None:
    findings = [Finding(nodes=(node,), severity=WARN, what=what) for node, what in pairs]
    came = merged(findings, ["a", "b", "c"])
    assert len({replace(one, nodes=()) for one in came}) == len(came)
    assert {(node, one.what) for one in came for node in one.nodes} == set(pairs)


def test_each_check_says_what_and_why() -> None:
    for one in doctor.CHECKS.values():
        assert re.fullmatch(r"[a-z-]+", one.id)
        assert len(one.title) <= 27, "the table must fit"
        assert one.why.endswith(".")
        assert all(link.startswith("https://") for link in one.sources)


def test_the_page_of_the_checks_has_them_all() -> None:
    page = run("--reference").stdout
    assert page == doctor.page()
    assert all(f"| `{one.id}` | {one.title} |" in page for one in doctor.CHECKS.values())


# Through the command line


def run(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
    return call(["doctor", *words], {**os.environ, "COLUMNS": "80", **more}, cwd=PROJECT)


def test_this_machine_alone() -> None:
    done = run("--local", "--model", "/nowhere/at/all")
    assert done.returncode == 19, done.stderr
    assert "/nowhere/at/all does not exist" in done.stdout
    assert "on this machine" in done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    made = json.loads(run("--local", "--json").stdout)
    assert list(made["nodes"]) == ["this machine"]


def test_a_folder_of_pointers_and_of_a_file_that_is_cut_off(tmp_path: Path) -> None:
    """As the script reads them: a header of safetensors says how long its file is."""
    header = json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}).encode()
    whole = len(header).to_bytes(8, "little") + header + b"x" * 16
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{'a' * 64}\nsize 4976698672\n"
    )
    for name, content in {
        "whole.safetensors": whole, "cut.safetensors": whole[:-7], "config.json": b"{}",
        "pointer.safetensors": pointer.encode(), "tokenizer.json": pointer.encode(),
        "model.safetensors.index.json": b'{"metadata": {"total_size": 99}, "weight_map": {}}',
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(content)
    size = len(whole)
    made = json.loads(run("--local", "--json", "--model", str(tmp_path)).stdout)
    said = [one["what"] for one in made["findings"] if one["check"] == "shards"]
    assert said == [
        "Git LFS pointers in place of the files: pointer.safetensors, tokenizer.json",
        f"files that are cut off: cut.safetensors; the first has {size - 7} B of {size} B",
    ]


def test_what_does_not_go_together() -> None:
    done = run("--local", "--nodes", "spark1")
    assert done.returncode == 2
    assert "cannot be combined with" in done.stderr


@pytest.mark.parametrize(
    ("cuda", "severity"), [("", OK), ("12.9", OK), ("13", FAIL), ("13.0", FAIL), ("14.1", FAIL)]
)
def test_a_driver_is_held_against_the_cuda_of_the_images(cuda: str, severity: Severity) -> None:
    old = node_report(1, gpus=edited("gpus", (": 13.0", ": 12.8")))
    result = check("driver").examine(cluster(old, cuda=cuda))
    assert result.worst is severity
