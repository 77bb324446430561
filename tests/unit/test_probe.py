"""What is made of the words of a node."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sparkimage.config.inventory import Node
from sparkimage.core.errors import EngineError, EnginePermissionError, NodeError
from sparkimage.nodes import snapshot
from sparkimage.nodes.maintenance import plan_removal
from sparkimage.nodes.snapshot import Seen, chain_ids

NODE = Node(name="n", control="n")
D = [f"sha256:{n:064x}" for n in range(10)]
CONTAINERD = [["driver-type", "io.containerd.snapshotter.v1"]]


def image(id: str, *tags: str, layers: list[str] | None = None, **labels: str) -> dict[str, Any]:
    return {
        "Id": id,
        "RepoTags": list(tags),
        "Os": "linux",
        "Architecture": "arm64",
        "RootFS": {"Layers": layers or [D[0]]},
        "Size": 5,
        "Created": "2026-01-01T00:00:00Z",
        "Config": {"Labels": labels, "Hostname": "", "Env": None},
    }


def said(*images: dict[str, Any], **parts: str) -> str:
    info = {
        "ServerVersion": "28.5.2",
        "DockerRootDir": "/var/lib/docker",
        "Architecture": "aarch64",
        "DriverStatus": [["Backing Filesystem", "extfs"]],
    }
    told = {
        "node": "nv\nnv docker\n1000\n10.0.0.9 5000 10.0.0.1 22",
        "info": "@root /var/lib/docker\n" + json.dumps(info),
        "images": "\n".join(map(json.dumps, images)),
        "disk": "/dev/nvme0n1p2 1000 400 600 40% /\n/dev/nvme0n1p2 1000 400 600 40% /",
        **parts,
    }
    return "".join(f"\n@@ {name}\n{text}\n" for name, text in told.items())


def read(*images: dict[str, Any], **parts: str) -> Seen:
    return snapshot.read(said(*images, **parts), NODE, now=1003.5)


def containerd(**more: Any) -> str:
    info = {"ServerVersion": "28", "DockerRootDir": "/d", "Architecture": "x86_64"}
    return json.dumps({**info, "DriverStatus": CONTAINERD, **more})


def test_a_node_is_read() -> None:
    seen = read(image(D[1], "a:b"))
    assert (seen.user, seen.groups, seen.version) == ("nv", ("nv", "docker"), "28.5.2")
    assert (seen.arch, seen.store, seen.skew_s) == ("arm64", "overlay2", -3.5)
    assert (seen.free, seen.used_address) == (600, "10.0.0.1")
    assert seen.by_tag("a:b") == seen.by_id(D[1])
    assert seen.by_tag("a:c") is None


def test_overlay2_has_every_layer_with_those_below_it() -> None:
    seen = read(image(D[1], layers=D[2:4]), image(D[5], layers=D[2:3]))
    assert seen.chains() == set(chain_ids(D[2:4]))


def test_an_identity_does_not_depend_on_the_store() -> None:
    one = read(image(D[1], "a:b", x="1")).images[0]
    other = image(D[7], x="1")
    other["Config"] |= {"Image": "sha256:0", "Env": [], "Domainname": ""}
    assert read(other).images[0].identity == one.identity
    assert read(image(D[1], x="2")).images[0].identity != one.identity
    assert read(image(D[1], layers=D[:2], x="1")).images[0].identity != one.identity


def test_an_image_without_a_date_or_config_is_read() -> None:
    bare = {key: value for key, value in image(D[1]).items() if key not in ("Created", "Config")}
    assert read(bare).images[0].labels == {}


def test_containerd_has_what_it_lists() -> None:
    listed = "@socket /run/x\nsha256:aa\nsha256:bb\n@whole"
    assert read(info=containerd(), content=listed).blobs({}) == {"sha256:aa", "sha256:bb"}


def test_containerd_has_parts_of_what_was_broken_off() -> None:
    active = "REF\tSIZE\tAGE\t\nlayer-sha256:cc\t6.3 MB\t2 minutes\t\nindex-sha256:dd\t1 B\t1 s\t"
    seen = read(info=containerd(), content=f"sha256:aa\n@whole\n{active}")
    assert seen.content == frozenset({"sha256:aa"})
    assert seen.begun == {"sha256:cc"}


def test_a_user_who_may_not_list_goes_by_what_is_known_of_the_images() -> None:
    receipt = json.dumps({"digest": D[2], "layers": [D[8]]})
    seen = read(
        image(D[1]), image(D[2]), info=containerd(), receipts=f"{receipt}\nbroken {{", content="x"
    )
    assert seen.content is None
    # Known, and there; not what is known and not there.
    assert seen.blobs({D[1]: [D[7]], D[3]: [D[9]]}) == {D[7], D[8]}


@pytest.mark.parametrize(
    ("words", "error", "hint"),
    [
        ("permission denied while trying to connect", EnginePermissionError, "usermod -aG docker"),
        ("sudo: a password is required", EnginePermissionError, "NOPASSWD"),
        ("sh: 1: docker: not found", EngineError, "install Docker"),
        ("Cannot connect to the Docker daemon at unix:///x", EngineError, "restart docker"),
    ],
)
def test_a_docker_that_cannot_be_used(words: str, error: type[Exception], hint: str) -> None:
    with pytest.raises(error) as caught:
        read(info=f"@root \n{words}")
    assert hint in getattr(caught.value, "hint", "")


def test_a_shell_that_speaks_of_other_things() -> None:
    with pytest.raises(NodeError, match="makes no sense"):
        snapshot.read("Welcome to the machine", NODE)


LINKS = (
    "eth0 1000\nwlan0 -1\nfast0 200000\n@ eth0 10.0.0.1\n@ fast0 fe80::1\n@ fast0 192.168.9.1\n"
    "@ lo 127.0.0.1"
)


def test_layers_on_the_slow_network_are_pointed_out() -> None:
    warned = snapshot.slow(NODE, read(links=LINKS))
    assert warned is not None
    assert "eth0 (1000 Mbit/s)" in warned
    assert "data: 192.168.9.1" in warned
    fast = Node(name="n", control="n", data="192.168.9.1")
    assert snapshot.slow(fast, read(links=LINKS)) is None
    # What it does not know it does not guess.
    assert snapshot.slow(NODE, read(links="eth0 -1\n@ eth0 10.0.0.1")) is None


def ours(id: str, created: str, *tags: str) -> dict[str, Any]:
    labels = {"Labels": {"dev.sparkimage.variant": "v"}}
    return {**image(id, *tags), "Created": created, "Config": labels}


def test_removal_keeps_names_foreigners_and_the_newest() -> None:
    seen = read(
        ours(D[1], "5", "r:v"),
        ours(D[2], "4", "r:v-previous"),
        ours(D[3], "3"),
        ours(D[4], "2"),
        image(D[5], "x:y"),
        image(D[6]),
        ours(D[7], "9", "sparkimage-staging:abc"),
    )
    assert plan_removal(seen, 2) == ["sparkimage-staging:abc", D[3], D[4]]
    assert plan_removal(seen, 3) == ["sparkimage-staging:abc", D[4]]
    assert plan_removal(seen, 1) == ["sparkimage-staging:abc", D[3], D[4]]
    assert plan_removal(seen, 9) == ["sparkimage-staging:abc"]


def test_what_a_pull_left_is_a_staging_name() -> None:
    left = f"127.0.0.1:4000/{snapshot.STAGING}@{D[9]}"
    one = image(D[1])
    one["RepoDigests"] = [left, f"registry.test/{snapshot.STAGING}@{D[9]}"]
    seen = read(one, image(D[2], "r:v"))
    assert seen.images[0].tags == (left,)
    assert plan_removal(seen, 1) == [left]
