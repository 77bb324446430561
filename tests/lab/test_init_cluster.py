"""`init` on nodes that look like Sparks, over ssh: what it finds, writes and leaves as it was."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.lab import command
from tests.lab.fleet import CONTROL, Fleet
from tests.lab.node import Node
from tests.lab.spark_standin import HCA, LINK, dressed

MINE = "# my own words\n"


@dataclass(frozen=True, kw_only=True)
class Beginner:
    """A user in a folder of their own, who can reach the nodes by ssh."""

    folder: Path
    fleet: Fleet

    @property
    def file(self) -> Path:
        return self.folder / "fleet.yaml"

    def call(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        # The user's own ssh_config names no host.
        env = {**os.environ, **self.fleet.environment, "HOME": str(self.folder), **more}
        return command.call(words, env, cwd=self.folder)

    def init(self, *nodes: Node, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        hosts = [f"root@{CONTROL}:{node.port}" for node in nodes]
        return self.call("init", *hosts, *options)


def said(node: Node) -> dict[str, object]:
    """What a fleet file is to say of a node, whose fast network is not ours."""
    return {
        "control": CONTROL, "user": "root", "port": node.port,
        "role": "head" if node.name == "node1" else "worker", "interface": LINK, "hca": [HCA],
    }  # fmt: skip


@pytest.fixture
def beginner(fleet: Fleet, tmp_path: Path) -> Iterator[Beginner]:
    with dressed(fleet):
        yield Beginner(folder=tmp_path, fleet=fleet)


def test_a_fleet_file_of_four_sparks(beginner: Beginner) -> None:
    *three, fourth = beginner.fleet
    missing = beginner.call("doctor")
    assert "→ write it: sparkimage init; " in missing.stderr
    dry = beginner.init(*three, options=("--dry-run",))
    assert (dry.returncode, beginner.file.exists()) == (0, False)
    done = beginner.init(*three)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("node1, node2, node3 added\n\nNext: sparkimage doctor\n")
    assert "This machine is not in the nodes' fast network" in done.stdout
    assert dry.stdout.endswith(beginner.file.read_text())
    first = {node.name: said(node) for node in three}
    assert yaml.safe_load(beginner.file.read_text()) == {"version": 1, "nodes": first}
    facts = json.loads(beginner.call("doctor", "--json").stdout)
    states = {one["check"]: one["result"] for one in facts["checks"]}
    assert {states[check] for check in ("reach", "rdma", "gid", "rails", "interface")} == {"ok"}
    # What is there stays, word for word; what was left out comes to it.
    before = beginner.file.read_text() + MINE
    beginner.file.write_text(before)
    again = beginner.init(*three)
    assert (again.returncode, beginner.file.read_text()) == (0, before)
    assert "fleet.yaml is as it was" in again.stderr
    refused = beginner.init(fourth)
    assert (refused.returncode, beginner.file.read_text()) == (2, before)
    assert refused.stderr.endswith("fleet.yaml is there already\n→ add node4 to it: --yes\n")
    added = beginner.init(fourth, options=("--yes",))
    assert added.returncode == 0, added.stderr
    after = beginner.file.read_text()
    assert after.startswith(before.removesuffix(MINE))
    assert after.endswith(MINE)
    assert yaml.safe_load(after)["nodes"] == {**first, "node4": said(fourth)}


def test_what_nodes_lack_is_said_with_the_command_for_it(beginner: Beginner) -> None:
    node1, node2, node3, _ = beginner.fleet
    listed = subprocess.run(
        ["ssh-keygen", "-lf", node2.folder / "host.pub"], check=True, capture_output=True, text=True
    )
    hosts = [f"plain@{CONTROL}:{node1.port}", f"nv@localhost:{node2.port}",
             f"ghost@{CONTROL}:{node3.port}", "nowhere.invalid"]  # fmt: skip
    done = beginner.call("init", *hosts)
    told = " ".join(done.stdout.split())
    assert done.returncode == 13
    assert not beginner.file.exists()
    for words in (
        # Without the right to Docker it is a node all the same.
        "plain has no permission to use its Docker",
        f"ssh -t -p {node1.port} plain@{CONTROL} sudo usermod -aG docker plain",
        f"it shows ED25519 {listed.stdout.split()[1]}. Compare that",
        f"ssh-copy-id -p {node2.port} nv@localhost",
        "it does not have your key",
        f"ssh-copy-id -p {node3.port} ghost@{CONTROL}",
        "nowhere.invalid: host name not found",
    ):
        assert words in told, done.stdout
    names = f"localhost:{node2.port}, {CONTROL}:{node3.port}, nowhere.invalid"
    assert f"error: {names} cannot be used yet: " in done.stderr
    assert "leave them out: --partial" in done.stderr
    assert beginner.call("init", *hosts, "--partial").returncode == 0
    nodes = yaml.safe_load(beginner.file.read_text())["nodes"]
    assert [*nodes] == ["node1"]
    # One Spark has no network of its own.
    assert nodes["node1"].keys() == {"control", "user", "port", "role"}


AVAHI = """\
#!/bin/sh
# Stands in for avahi-browse, as Debian 12's prints two machines.
cat <<'END'
+;eth0;IPv4;node3;_ssh._tcp;local
=;eth0;IPv6;node3;_ssh._tcp;local;node3;fe80::1;22;
=;eth0;IPv4;node3;_ssh._tcp;local;node3;192.168.1.23;22;
=;eth0;IPv4;a\\032nas;_ssh._tcp;local;nas.invalid;192.168.1.99;22;"a=b"
END
"""


def test_nodes_that_nobody_named(beginner: Beginner, tmp_path: Path) -> None:
    _, node2, _, _ = beginner.fleet
    node2.exec("rm", "/usr/local/bin/nvidia-smi")
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "config").write_text("Host node1 node2 *.example\nInclude more\n")
    (tmp_path / ".ssh" / "more").write_text("host=gone.invalid\n")
    bin_ = tmp_path / "bin"
    bin_.mkdir()
    (bin_ / "avahi-browse").write_text(AVAHI)
    (bin_ / "avahi-browse").chmod(0o755)
    path = f"{bin_}{os.pathsep}{beginner.fleet.environment['PATH']}"
    done = beginner.call("init", "--json", PATH=path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert [one["name"] for one in facts["nodes"]] == ["node1", "node3"]
    assert {one["host"]: (one["source"], one["why"]) for one in facts["left_out"]} == {
        "node2": ("ssh_config", "it has no NVIDIA GPU"),
        "gone.invalid": ("ssh_config", "host name not found"),
        "nas.invalid": ("mDNS", "host name not found"),
    }
    nodes = yaml.safe_load(beginner.file.read_text())["nodes"]
    assert "data" not in nodes["node1"]
    assert nodes["node1"]["interface"] == LINK
    assert nodes["node3"]["role"] == "worker"
