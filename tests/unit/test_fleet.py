"""The fleet file: valid ones, and every problem of invalid ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sparkimage.config import inventory
from sparkimage.config.inventory import Node
from sparkimage.core.errors import ConfigError, UsageError

PROJECT = Path(__file__).resolve().parents[2]


def load(folder: Path, nodes: Any, **more: Any) -> inventory.Fleet:
    path = folder / "fleet.yaml"
    path.write_text(json.dumps({"version": 1, "nodes": nodes, **more}, indent=1))
    return inventory.load(path)


def problems(folder: Path, nodes: Any, **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, nodes, **more)
    return caught.value.detail


def test_left_out_fields_are_left_to_ssh_config(tmp_path: Path) -> None:
    read = load(tmp_path, {"spark1": {}, "spark2": {"control": "10.0.0.2", "data": "10.9.0.2"}})
    assert read.nodes[0] == Node(name="spark1", control="spark1")
    assert read.nodes[1].data == "10.9.0.2"
    assert read.names == ("spark1", "spark2")


def test_a_data_address_that_is_the_control_address_is_none(tmp_path: Path) -> None:
    read = load(tmp_path, {"a": {"control": "h", "data": "h"}})
    assert read.nodes[0].data is None


def test_interface_hca_and_gpus_of_a_node(tmp_path: Path) -> None:
    hca = ["rocep1s0f1", "roceP2p1s0f1:1"]
    read = load(tmp_path, {"a": {"interface": "enp1s0f1np1", "hca": hca, "gpus": 0}, "b": {}})
    assert read.nodes[0].interface == "enp1s0f1np1"
    assert read.nodes[0].hca == tuple(hca)
    assert read.nodes[0].gpus == 0
    assert (read.nodes[1].interface, read.nodes[1].hca, read.nodes[1].gpus) == (None, (), None)


@pytest.mark.parametrize(
    ("spec", "detail"),
    [
        ({"interface": "eth0;reboot"}, "does not have the right form"),
        ({"interface": "a-name-of-16-char"}, "does not have the right form"),
        ({"hca": ["=mlx5_0"]}, "does not have the right form"),
        ({"hca": []}, "nodes.a.hca is empty"),
        ({"hca": "mlx5_0"}, "nodes.a.hca must be a list, but is 'mlx5_0'"),
        ({"gpus": -1}, "nodes.a.gpus is -1"),
        ({"gpus": "2"}, "write a whole number: `gpus: 2`"),
        ({"control": "a.local:2222"}, "write `control: a.local`, and sshd's port as `port: 2222`"),
        ({"control": "nv@a.local"}, "did you mean 'a.local'? (address for ssh, without `user`"),
        ({"data": "192.168.100.1/24"}, "did you mean '192.168.100.1'?"),
        ({"sudo": "yes"}, "nodes.a.sudo must be true or false, but is 'yes'"),
        ({"labels": {"x": 1}}, "nodes.a.labels.x must be text, but is 1"),
        ({"labels": []}, "write a mapping: `labels: {NAME: …}`"),
        ({"contrl": "x"}, "did you mean 'control'"),
        ({"control": "-oProxyCommand=evil"}, "does not have the right form"),
        ({"control": "a b"}, "does not have the right form"),
        ({"user": "root;reboot"}, "does not have the right form"),
        ({"port": 70000}, "it must be at most 65535"),
        ({"role": "boss"}, "it must be 'head' or 'worker'"),
        ({"control": "0.0.0.0"}, "not the address of a host"),
    ],
)
def test_a_wrong_node(tmp_path: Path, spec: dict[str, Any], detail: str) -> None:
    assert detail in problems(tmp_path, {"a": spec})


@pytest.mark.parametrize("name", ["a;reboot", "$(reboot)", "-a", "a b", "`x`", "a/b", ""])
def test_a_name_with_shell_syntax_is_refused(tmp_path: Path, name: str) -> None:
    assert "form" in problems(tmp_path, {name: {}})
    with pytest.raises(UsageError):
        inventory.of_names([name])


def test_every_problem_has_its_line(tmp_path: Path) -> None:
    same = {"control": "h1"}
    detail = problems(tmp_path, {"a": {**same, "role": "head"}, "b": {**same, "role": "head"}})
    assert "b and a have the same address h1" in detail
    assert "a and b both have the role head" in detail
    assert "fleet.yaml:9" in detail


def test_one_host_with_two_ports_is_two_nodes(tmp_path: Path) -> None:
    given = {name: {"control": "h", "port": port} for name, port in (("a", 22), ("b", 23))}
    assert len(load(tmp_path, given).nodes) == 2


def test_unknown_keys_and_versions(tmp_path: Path) -> None:
    assert "unknown key 'node'" in problems(tmp_path, {"a": {}}, node=1)
    assert "version is 2\n    it must be 1" in problems(tmp_path, {"a": {}}, version=2)
    assert "it must be a smaller number" in problems(tmp_path, {"a": {}}, version=10**40)
    assert "nodes" in problems(tmp_path, {})


def test_names_alone() -> None:
    read = inventory.read("spark1, root@spark2", Path())
    assert read.nodes == (
        Node(name="spark1", control="spark1"),
        Node(name="spark2", control="spark2", user="root"),
    )
    with pytest.raises(UsageError, match="twice"):
        inventory.read("a,a", Path())


def test_a_file_beside_the_matrix_is_found(tmp_path: Path) -> None:
    load(tmp_path, {"a": {}})
    assert inventory.read("fleet.yaml", tmp_path).names == ("a",)
    with pytest.raises(UsageError) as caught:
        inventory.read("other.yaml", tmp_path)
    assert caught.value.hint == "write it: sparkimage init; or pass names: --nodes spark1,spark2"


def test_a_missing_file_names_the_nearest_one(tmp_path: Path) -> None:
    (tmp_path / "matrix.yaml").touch()
    with pytest.raises(UsageError) as missing:
        inventory.read(str(tmp_path / "fleet.yaml"), tmp_path)
    assert missing.value.hint is not None
    assert missing.value.hint.startswith("write it: ")
    near = tmp_path / "fleet-lab.yaml"
    near.touch()
    with pytest.raises(UsageError) as missing:
        inventory.read(str(tmp_path / "flet-lab.yml"), tmp_path)
    assert missing.value.hint is not None
    assert missing.value.hint.startswith(f"did you mean {near}? Or write it: ")


def test_variables_of_one_node(tmp_path: Path) -> None:
    env = {"NCCL_IB_GID_INDEX": "4", "NCCL_DEBUG_SUBSYS": "INIT"}
    assert load(tmp_path, {"a": {"env": env}, "b": {}}).nodes[0].env == env
    wrong = {"NCCL_IB_GID_INDEX": "", "LD_PRELOAD": "/x", "NCCL_IB_HCA": "mlx5_0"}
    wrong["HF_TOKEN"] = "5up3r53cr3t"
    detail = problems(tmp_path, {"a": {"env": wrong}})
    assert "NCCL_IB_GID_INDEX is '': NCCL would read 0" in detail
    assert "LD_PRELOAD is derived from the library in the image" in detail
    assert "set `interface` and `hca` of a node instead" in detail
    assert "the value of HF_TOKEN is a secret (by its name)" in detail
    assert wrong["HF_TOKEN"] not in detail
    assert "nodes.a.env.X must be text" in problems(tmp_path, {"a": {"env": {"X": 3}}})
