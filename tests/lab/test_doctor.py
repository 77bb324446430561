"""The doctor on real nodes: what it says of them when they are well, and of each fault."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sparkimage.config import inventory
from sparkimage.nodes import fabric, reading, ssh
from tests.lab.fleet import CONTROL, DATA, Fleet
from tests.lab.node import Node, put
from tests.lab.project import Project
from tests.lab.spark_standin import HCA, LINK, address, dressed


@dataclass(frozen=True, kw_only=True)
class DoctorProject(Project):
    """A folder with a fleet.yaml, and nodes that look like Sparks."""

    fleet: Fleet

    def environment(self, **more: str) -> dict[str, str]:
        return super().environment(**{**self.fleet.environment, "COLUMNS": "80", **more})

    def write(self, **changes: dict[str, Any]) -> None:
        """fleet.yaml, with keys of nodes changed."""
        data = self.fleet.data()
        for node in self.fleet:
            data["nodes"][node.name] |= {"data": address(node), **changes.get(node.name, {})}
        (self.folder / "fleet.yaml").write_text(json.dumps(data))

    def doctor(self, *words: str) -> subprocess.CompletedProcess[str]:
        return self.run("doctor", "--model", "/models/m", *words)

    def findings(self, check: str, *words: str) -> dict[str, str]:
        """What a check says of each node, and how to fix it."""
        done = self.doctor("--json", *words)
        assert done.returncode in (0, 19), done.stderr
        found: dict[str, str] = {}
        for one in json.loads(done.stdout)["findings"]:
            for node in one["nodes"] if one["check"] == check else ():
                line = f"{one['severity']}: {one['what']} → {one['fix']}\n"
                found[node] = found.get(node, "") + line
        return found


@pytest.fixture
def project(fleet: Fleet, tmp_path: Path) -> Iterator[DoctorProject]:
    with dressed(fleet):
        made = DoctorProject(folder=tmp_path, fleet=fleet)
        made.write()
        yield made


def listen(node: Node, port: int) -> None:
    node.exec(
        "sh", "-c",
        f"setsid socat TCP-LISTEN:{port},fork /dev/null </dev/null >/dev/null 2>&1 & "
        f"until grep -qi ':{port:04X} .* 0A ' /proc/net/tcp; do sleep 0.02; done",
    )  # fmt: skip


def test_four_nodes_that_are_well(project: DoctorProject) -> None:
    done = project.doctor()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 failures" in done.stdout
    stores = "different image stores: overlay2: node1, node3; containerd: node2, node4"
    assert stores in " ".join(done.stdout.split())
    made = json.loads(project.doctor("--json").stdout)
    states = {one["check"]: one["result"] for one in made["checks"]}
    assert {id for id, state in states.items() if state == "ok"} >= {
        "reach", "distinct", "arch", "docker", "gpu", "gpus-equal", "driver", "gpus-flag", "rdma",
        "verbs", "gid", "rails", "reachable", "interface", "speed", "mtu", "model", "shards",
        "model-equal", "clock", "ports",
    }  # fmt: skip
    assert "fail" not in states.values()
    facts = made["nodes"]["node4"]
    assert facts["docker"]["version"] == project.fleet["node4"].version
    assert facts["docker"]["containerd"] is True
    assert facts["model"]["files"] == 4
    assert facts["rdma"][0]["interface"] == LINK
    assert facts["rdma"][0]["mtu"] == 9000
    assert facts["rdma"][0]["gids"] == [
        {"index": 3, "kind": "RoCE v2", "gid": "::ffff:192.168.100.4"}
    ]
    assert facts["unreached"] == []
    # The nodes' own disks are small.
    assert states["disk"] == "warn"
    strict = project.doctor("--strict")
    assert strict.returncode == 19
    assert "0 failures and 2 warnings on node1, node2, node3, node4" in strict.stderr


@pytest.mark.thorough
def test_nodes_as_they_are_without_gpu_and_network(fleet: Fleet, tmp_path: Path) -> None:
    bare = DoctorProject(folder=tmp_path, fleet=fleet)
    (tmp_path / "fleet.yaml").write_text(json.dumps(fleet.data()))
    done = bare.doctor()
    assert done.returncode == 19
    for said in (
        "✗ all 4 nodes: there is no nvidia-smi: the driver is not installed",
        "it has no RDMA device",
        "there is no /dev/infiniband",
        "no interface has the data address 127.0.0.2",
        "/models/m does not exist",
    ):
        assert said in " ".join(done.stdout.split()), done.stdout
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: 5 failures on node1, node2, node3, node4\n→ ")


def test_what_is_wrong_with_one_node_is_said_of_it(project: DoctorProject) -> None:
    node1, node2, node3, node4 = project.fleet
    node2.exec("rm", "-r", "/dev/infiniband")
    listen(node1, 8000)
    listen(node4, 8000)
    put(node3, {
        "/usr/local/bin/date": (0o755, b'#!/bin/sh\necho "$(($(/usr/bin/date +%s) + 400)).5"\n'),
        "/models/m/a.safetensors": (0o644, b"x"),
    })  # fmt: skip
    node4.exec("rm", "/models/m/a.safetensors", "/usr/local/bin/nvidia-container-runtime-hook")

    done = project.doctor("--json")
    assert done.returncode == 19
    found: dict[str, dict[str, str]] = {}
    for one in json.loads(done.stdout)["findings"]:
        for name in one["nodes"] if one["severity"] == "fail" else ():
            found.setdefault(one["check"], {})[name] = f"{one['what']} → {one['fix']}"
    assert {check: set(names) for check, names in found.items()} == {
        "verbs": {"node2"}, "ports": {"node1"}, "clock": {"node3"}, "shards": {"node4"},
        "model-equal": {"node3", "node4"}, "gpus-flag": {"node4"},
    }  # fmt: skip
    assert "modprobe -a ib_uverbs" in found["verbs"]["node2"]
    assert "port 8000 (API) is in use" in found["ports"]["node1"]
    # Less the time that a loaded machine takes to ask.
    off = re.search(r"its clock is \+(\d+) s off", found["clock"]["node3"])
    assert off is not None
    assert 370 <= int(off[1]) <= 401
    assert "index names are missing: a.safetensors" in found["shards"]["node4"]
    assert "a.safetensors" in found["model-equal"]["node3"]
    assert project.findings("ports", "--port", "8001") == {}


def test_a_firewall_between_the_nodes(project: DoctorProject) -> None:
    """As ufw has it: ssh is let in, all else is dropped. Nothing listens on afterwards."""
    node1, node2, *_ = project.fleet
    rule = ("-p", "tcp", "-d", address(node2), "!", "--dport", "22", "-j", "DROP")
    node2.exec("iptables", "-I", "INPUT", *rule)
    try:
        found = project.findings("reachable")
        assert set(found) == {"node2"}
        assert "all others cannot connect to 192.168.100.2: no answer in 5 s" in found["node2"]
        assert "ufw allow" in found["node2"]
    finally:
        node2.exec("iptables", "-D", "INPUT", *rule)
    listening = node1.exec("cat", "/proc/net/tcp")
    assert ":1F40 00000000:0000 0A" not in listening
    assert "perl" not in node1.exec("ps", "ax")


@pytest.mark.thorough
def test_a_fleet_file_that_does_not_fit_the_nodes(project: DoctorProject) -> None:
    project.write(
        node1={"interface": "eth9"}, node2={"hca": ["mlx5_9"]}, node3={"gpus": 2},
        node4={"data": project.fleet["node4"].inside},
    )  # fmt: skip
    assert f"{LINK} (200 Gbit/s), eth0 (10 Gbit/s)" in project.findings("interface")["node1"]
    assert f"no RDMA device mlx5_9; there are: {HCA}" in project.findings("hca")["node2"]
    assert "the fleet file says 2" in project.findings("gpu")["node3"]
    assert "set `data: 192.168.100.4`" in project.findings("speed")["node4"]
    assert set(project.findings("rdma")) == {"node4"}


@pytest.mark.thorough
def test_a_data_address_that_is_a_name(project: DoctorProject) -> None:
    # Its own name is its address among the nodes.
    project.write(node1={"data": "node1"})
    assert "its data goes over eth0" in project.findings("speed")["node1"]


@pytest.mark.thorough
def test_who_may_not_talk_to_docker(project: DoctorProject) -> None:
    project.write(
        node1={"user": "plain"}, node2={"user": "sudoer", "sudo": True},
        node3={"user": "asker", "sudo": True}, node4={"user": "worker"},
    )  # fmt: skip
    found = project.findings("docker")
    assert set(found) == {"node1", "node3"}
    assert "sudo usermod -aG docker plain" in found["node1"]
    assert "asker may not run docker through sudo without a password" in found["node3"]


@pytest.mark.thorough
def test_nodes_that_cannot_be_asked_hold_up_nobody(project: DoctorProject) -> None:
    node1, node2, node3, node4 = project.fleet
    node1.control.cut()
    node2.change_host_key()
    node3.kill_dockerd()
    node4.pause_dockerd()
    done = project.doctor("--json")
    assert done.returncode == 19
    made = json.loads(done.stdout)
    said = {
        (node, one["check"]): f"{one['what']} → {one['fix']}"
        for one in made["findings"]
        for node in one["nodes"]
    }
    assert "cannot be reached" in said["node1", "reach"]
    assert "the host key has changed" in said["node2", "reach"]
    assert "ssh-keygen -R" in said["node2", "reach"]
    assert "its Docker does not answer: dial unix /var/run/docker.sock" in said["node3", "docker"]
    assert "its Docker does not answer: it hangs" in said["node4", "docker"]
    states = {one["check"]: one["nodes"] for one in made["checks"]}
    assert states["gpu"] == {"node1": "unknown", "node2": "unknown", "node3": "ok", "node4": "ok"}


def test_an_interrupt_waits_for_no_node(tmp_path: Path) -> None:
    """Not even for one that takes a connection and says nothing, though it has ten minutes."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f'#!/bin/sh\nexec "{shutil.which("ssh")}" -o ConnectTimeout=600 "$@"\n')
    ssh.chmod(0o755)
    made = Project(folder=tmp_path)
    with socket.create_server((CONTROL, 0)) as node:
        nodes = {"node1": {"control": CONTROL, "port": node.getsockname()[1]}}
        (tmp_path / "fleet.yaml").write_text(json.dumps({"version": 1, "nodes": nodes}))
        process = subprocess.Popen(
            made.argv("doctor", "--patience", "600"), text=True, stderr=subprocess.PIPE,
            env=made.environment(PATH=f"{tmp_path}:{os.environ['PATH']}"),
        )  # fmt: skip
        with node.accept()[0]:
            process.send_signal(signal.SIGTERM)
            _, stderr = process.communicate(timeout=300)
    assert process.returncode == 130, stderr
    assert stderr.startswith("interrupted: ")


def test_the_script_with_busybox(project: DoctorProject) -> None:
    node = project.fleet["node1"]
    node.exec("sh", "-c", "mkdir -p /models/bin && busybox --install -s /models/bin")
    said = node.exec(
        "env", "PATH=/models/bin:/usr/bin", "busybox", "sh", "-c", ssh.text("snapshot"),
        "snapshot", "docker", "images containers machine", "lock", "lab", "", "/models/m",
        given=f"{node.store}|/var/lib/docker\n".encode(),
    )  # fmt: skip
    assert said.startswith("@@ ask socket images containers machine\n")
    said += f"\n@@ docker\n{node.docker('info', '--format', '{{json .}}')}"
    entry = inventory.Node(name="node1", control="node1", interface=LINK)
    one = reading.read(said, entry, now=time.time())
    assert one.docker.version == node.version
    assert list(one.model.files) == [
        "a.safetensors", "config.json", "model.safetensors.index.json", "tokenizer.json",
    ]  # fmt: skip
    assert one.interface_of(address(node)) is not None
    assert fabric.hcas(one) == (HCA,)
    assert one.lock == "held"
    assert ("0.0.0.0", 22) in one.listening
    assert one.memory
    assert one.disk("docker")
    assert one.skew_s is not None
    assert one.memlock is not None


@pytest.mark.thorough
def test_two_names_of_one_machine(project: DoctorProject) -> None:
    port = project.fleet["node1"].port
    nodes = {
        name: {"control": control, "port": port, "user": "root"}
        for name, control in (("a", CONTROL), ("b", DATA))
    }
    (project.folder / "fleet.yaml").write_text(json.dumps({"version": 1, "nodes": nodes}))
    assert "these are one machine, node1" in project.findings("distinct")["a"]


@pytest.mark.thorough
def test_names_without_a_file(project: DoctorProject) -> None:
    done = project.doctor("--nodes", "node1,node2", "--no-rdma", "--json")
    assert set(json.loads(done.stdout)["nodes"]) == {"node1", "node2"}
