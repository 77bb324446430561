"""A node's snapshot: what is read out of the script's words, whatever they are."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkimage.config.inventory import Node
from sparkimage.core.errors import EngineError, EnginePermissionError, NodeError
from sparkimage.core.process import Local
from sparkimage.image.store import Layer
from sparkimage.nodes import engines, fabric, reading, ssh
from sparkimage.nodes.maintenance import plan_removal
from sparkimage.nodes.snapshot import STAGING, UNLIMITED, NodeSnapshot
from tests.unit import engine_29
from tests.unit.spark_facts import NOW, PARTS, edited, info, spark, text

NODE = Node(name="n", control="n")


def test_dgx_spark_snapshot() -> None:
    snapshot = spark()
    assert (snapshot.arch, snapshot.os, snapshot.product) == (
        "arm64",
        "Ubuntu 24.04.4 LTS",
        "NVIDIA_DGX_Spark",
    )
    assert (snapshot.user, snapshot.groups, snapshot.used_address) == (
        "nv",
        ("nv", "sudo", "docker"),
        "10.0.0.1",
    )
    link = snapshot.interface_of("192.168.100.1")
    assert link is not None
    assert (link.addresses, link.networks) == (("192.168.100.1",), ("192.168.100.0/24",))
    assert snapshot.interfaces[0].networks == ("10.0.0.0/24", "")
    assert (link.name, link.speed, link.mtu, link.state) == ("enp1s0f1np1", 200000, 9000, "up")
    assert snapshot.interface_of("10.9.9.9") is None
    assert [link.speed for link in snapshot.interfaces if link.name == "docker0"] == [None]
    assert (snapshot.driver, snapshot.module, snapshot.cuda) == ("580.95.05", "580.95.05", "13.0")
    assert [gpu.name for gpu in snapshot.gpus] == ["NVIDIA GB10"]
    assert snapshot.gpus[0].memory is None
    assert snapshot.unified
    assert snapshot.memory == 125513000 * 1024
    assert snapshot.verbs == ("uverbs0", "uverbs1", "uverbs2", "uverbs3")
    assert (snapshot.docker.version, snapshot.docker.containerd) == ("29.1.3", True)
    assert "nvidia" in snapshot.docker.runtimes
    assert snapshot.has_cdi
    assert (snapshot.memlock, snapshot.docker_memlock) == (16323340 * 1024, UNLIMITED)
    assert snapshot.listening == (("0.0.0.0", 22), ("127.0.0.1", 631), ("::", 22))
    assert snapshot.skew_s == pytest.approx(0.25)
    assert snapshot.synced is True
    assert snapshot.model.size == 78_009_091_500
    assert snapshot.model.lacking == ()


@pytest.mark.parametrize(
    ("interface", "own", "plug"),
    [
        ("enp1s0f1np1", ("rocep1s0f1",), ("rocep1s0f1", "roceP2p1s0f1")),
        # The other plug's are down.
        ("enp1s0f0np0", ("rocep1s0f0",), ("rocep1s0f0",)),
        ("enP7s7", (), ()),
    ],
)
def test_rdma_devices_of_an_interface_and_its_twin(
    interface: str, own: tuple[str, ...], plug: tuple[str, ...]
) -> None:
    snapshot = spark(Node(name="n", control="n", interface=interface))
    link = fabric.data_link(snapshot)
    assert link
    assert (fabric.hcas(snapshot), fabric.plug(snapshot, link.interface)) == (own, plug)


def test_gpu_with_dedicated_memory() -> None:
    output = (
        "@smi\n0, NVIDIA H100, 580.95.05, 81559, GPU-1, 81000\n"
        "1, NVIDIA H100, 580.95.05, 81559, GPU-2, 4"
    )
    snapshot = spark(gpus=output)
    assert not snapshot.unified
    assert [gpu.memory for gpu in snapshot.gpus] == [81559 * 1024 * 1024] * 2
    assert [gpu.free for gpu in snapshot.gpus] == [81000 * 1024 * 1024, 4 * 1024 * 1024]


@pytest.mark.parametrize(
    ("hooks", "version", "folders", "works"),
    [
        ("/usr/bin/nvidia-container-runtime-hook", "26.1.5", [], True),
        ("/usr/bin/nvidia-cdi-hook", "29.1.3", ["/etc/cdi"], True),
        ("/usr/bin/nvidia-cdi-hook", "28.5.2", ["/etc/cdi"], False),
        ("/usr/bin/nvidia-cdi-hook", "29.1.3", [], False),
        ("", "29.1.3", ["/etc/cdi"], False),
    ],
)
def test_gpus_flag(hooks: str, version: str, folders: list[str], works: bool) -> None:
    output = info(ServerVersion=version, CDISpecDirs=folders)
    assert spark(hooks=hooks, docker=output).gpus_flag is works


CDI = ("--device", "nvidia.com/gpu=all")
LISTED = [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}, {"Source": "cdi", "ID": CDI[1]}]
HOOK = "/usr/bin/nvidia-container-runtime-hook"


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"hooks": HOOK}, ("--gpus", "all")),
        ({"DiscoveredDevices": LISTED}, CDI),
        # An engine that lists no devices, and a specification in its folder.
        ({"DiscoveredDevices": None}, CDI),
        ({"DiscoveredDevices": LISTED[:1]}, None),
        ({"DiscoveredDevices": None, "cdi": "/etc/cdi/x.json|vendor.org/net|"}, None),
        ({"DiscoveredDevices": None, "cdi": None}, None),
        ({"CDISpecDirs": []}, None),
    ],
)
def test_how_docker_gives_gpus(changes: dict[str, Any], options: tuple[str, str] | None) -> None:
    parts = {"hooks": None, **{k: v for k, v in changes.items() if k in ("hooks", "cdi")}}
    facts = {k: v for k, v in changes.items() if k not in parts}
    snapshot = spark(**parts, docker=info(ServerVersion="28.5.2", **facts))
    assert snapshot.gives_gpus is (options is not None)
    assert snapshot.gpu_options == (options or ("--gpus", "all"))


@pytest.mark.parametrize(
    ("output", "error", "what", "hint"),
    [
        ("permission denied while trying to connect to the Docker daemon socket",
         EnginePermissionError, "has no permission to use its Docker", "usermod -aG docker nv"),
        ("sudo: a password is required", EnginePermissionError, "through sudo", "NOPASSWD"),
        ("sh: 1: docker: not found", EngineError, "it has no docker command", "install Docker"),
        ("@late", EngineError, "its Docker does not answer: it hangs", "restart docker"),
        ('{"ServerVersion": ""}\nCannot connect to the Docker daemon', EngineError,
         "does not answer: Cannot connect", "restart docker"),
        ('{"ServerErrors": ["permission denied"]}', EnginePermissionError, "has no permission",
         "usermod"),
        (info(ServerVersion="19.03.1"), EngineError, "19.03.1 is too old", "install 20.10"),
    ],
)  # fmt: skip
def test_docker_errors(output: str, error: type[EngineError], what: str, hint: str) -> None:
    found = spark(docker=output).docker_error()
    assert type(found) is error
    assert found.message.startswith("spark1: ")
    assert what in found.message
    assert hint in found.hint
    assert spark().docker_error() is None


def test_model_checksum_covers_names_and_sizes() -> None:
    model = spark().model
    other = spark(model=edited("model", ("1500 ./config", "1501 ./config"))).model
    turned = spark(model="\n".join(reversed(PARTS["model"].splitlines()))).model
    assert model.checksum != other.checksum
    assert model.checksum == turned.checksum


def test_clock_without_fractions() -> None:
    assert spark(clock="now=1790000007.%N").skew_s == 7.0


def test_limits() -> None:
    assert spark(limits="memlock=unlimited").memlock == UNLIMITED
    assert spark(limits="memlock=64").memlock == 65536
    assert spark(limits="memlock=?").memlock is None
    assert spark(limits="docker=18446744073709551615").docker_memlock == UNLIMITED


def test_control_characters_are_removed() -> None:
    snapshot = spark(
        machine="kernel=6\x1b[2J\nhost=a\x07b",
        docker=info(ServerVersion="29\x1b[31m", Runtimes={"x\x1b": {}}, CDISpecDirs=["\x9b1m"]),
        model="@folder\n1 ./a\x1b]0;b",
    )
    assert (snapshot.kernel, snapshot.host) == ("6[2J", "ab")
    assert list(snapshot.model.files) == ["a]0;b"]
    assert "\\u00" not in json.dumps(snapshot.to_dict())
    assert snapshot.docker.runtimes == ("x",)


def test_json_has_no_list_of_model_files() -> None:
    made = json.loads(json.dumps(spark().to_dict()))
    assert made["model"]["files"] == 5
    assert made["listening"] == [22, 631]


@given(st.text())
def test_parse_accepts_any_text(output: str) -> None:
    assert isinstance(reading.parse(output, NODE, now=NOW), NodeSnapshot)


# Words that such lines are made of, in any order.
WORDS = st.sampled_from(
    [
        *sorted({word for body in PARTS.values() for word in body.split()}), "@", "@late", "{", "[",
        '{"a":', "null", "-1", "|||||", "0A", "\n", "=", ",,,,", "9" * 30, "\x00", "\udcff",
    ]
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(sorted(PARTS)), st.lists(WORDS).map(" ".join)))
def test_parse_accepts_any_part(changes: dict[str, str]) -> None:
    snapshot = spark(NODE, **changes)
    json.dumps(snapshot.to_dict())


TEXTS = st.text(max_size=8)


@given(st.dictionaries(st.sampled_from(["ServerVersion", "DockerRootDir", "Runtimes",
       "DriverStatus", "CDISpecDirs", "DiscoveredDevices", "SecurityOptions", "ServerErrors"]),
       st.recursive(st.none() | st.integers() | TEXTS, max_leaves=6, extend=lambda value: (
           st.lists(value, max_size=4) | st.dictionaries(TEXTS, value, max_size=4)))))  # fmt: skip
def test_parse_accepts_any_docker_info(changes: dict[str, object]) -> None:
    made = spark(docker=info(**changes)).to_dict()
    json.dumps(made)
    assert not reading.CONTROL.search(made["docker"]["version"] + made["docker"]["error"])


# Over what its ranks talk


RANKS = {
    "links": "eth0 1000 1500 up\nfast 200000 9000 up\ndark 200000 9000 up\n@ eth0 10.1.0.1/24\n"
    "@ eth0 fe80::1/64\n@ fast fe80::2/64\n@ fast fd00::2/64\n@ fast 10.2.0.1/24",
    "rdma": "r0|1|4: ACTIVE|Ethernet|200 Gb/sec|fast\nr1|1|1: DOWN|Ethernet|200 Gb/sec|eth0",
    "machine": "connection=10.0.0.9 50000 10.1.0.1 22",
}


@pytest.mark.parametrize(
    ("node", "resolved", "address", "interface"),
    [
        ({"data": "10.2.0.1"}, "", "10.2.0.1", "fast"),
        ({"data": "spark-fast"}, "10.2.0.1", "10.2.0.1", "fast"),
        ({}, "", "10.1.0.1", "eth0"),
        ({"control": "10.2.0.1"}, "", "10.2.0.1", "fast"),
        # Its own name may be any of its addresses.
        ({"control": "n"}, "10.2.0.1", "10.1.0.1", "eth0"),
        # The client's way to it is not the node's own address: nothing is guessed.
        ({"data": "127.0.0.2"}, "127.0.0.2", "", ""),
        ({"interface": "fast"}, "10.1.0.1", "10.2.0.1", "fast"),
        ({"interface": "fast"}, "fd00::2", "fd00::2", "fast"),
        ({"interface": "dark"}, "", "", "dark"),
        ({"interface": "fsat"}, "", "", ""),
    ],
)
def test_data_link(node: dict[str, Any], resolved: str, address: str, interface: str) -> None:
    snapshot = spark(Node(**{"name": "n", "control": "n", **node}), names=resolved, **RANKS)
    link = fabric.data_link(snapshot)
    assert (link.address, link.interface.name) == (address, interface)
    assert fabric.hcas(snapshot) == {"fast": ("r0",), "eth0": ("r1",)}.get(interface, ())
    named = Node(**{"name": "n", "control": "n", **node, "hca": ("r7", "r8")})
    assert fabric.hcas(spark(named, **RANKS)) == ("r7", "r8")


def test_link_local_address_is_the_last_choice() -> None:
    assert fabric.usable(["fe80::1", "169.254.3.4", "fd00::2", "10.2.0.1", "127.0.0.1"]) == [
        "10.2.0.1", "fd00::2", "169.254.3.4",
    ]  # fmt: skip


# The script itself


def script(folder: str = "") -> NodeSnapshot:
    words = ssh.script("snapshot", "docker", "images containers machine", "", "", "", folder)
    output = Local().run(words, timeout_s=60).stdout
    return reading.read(output, NODE, now=time.time())


def model_of(folder: Path) -> Path:
    made = folder / "a model"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "a-1.safetensors").write_bytes(b"x" * 10)
    (made / ".cache").mkdir()
    (made / ".cache" / "note").write_text("x")
    (made / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "a-1.safetensors", "b": "a-2.safetensors"}})
    )
    return made


def test_script_on_this_machine(tmp_path: Path) -> None:
    snapshot = script(str(model_of(tmp_path)))
    assert snapshot.kernel == Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert snapshot.memory
    assert snapshot.free
    assert snapshot.available
    assert snapshot.host
    assert snapshot.boot
    assert snapshot.memlock is not None
    assert snapshot.skew_s is not None
    assert abs(snapshot.skew_s) < 30
    assert list(snapshot.model.files.items())[:2] == [("a-1.safetensors", 10), ("config.json", 2)]
    assert snapshot.model.lacking == ("a-2.safetensors",)
    found = snapshot.disk("model")
    assert found is not None
    assert found.free < found.total


def test_model_behind_symlinks_of_a_download_cache(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1").write_bytes(b"12345")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "a.safetensors").symlink_to("../blobs/1")
    assert script(str(tmp_path / "snapshot")).model.size == 5


def test_missing_model(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert script(str(tmp_path / "no")).model.state == "missing"
    assert script(str(tmp_path / "file")).model.state == "closed"
    assert script().model.state == ""


@pytest.mark.parametrize("output", ["This account is closed.", "", "\n@@ machine\nkernel=6"])
def test_shell_that_does_not_run_the_script(output: str) -> None:
    with pytest.raises(NodeError, match="n: its shell did not run the script") as caught:
        reading.read(output, NODE, now=NOW)
    assert caught.value.detail == output


def test_missing_parts_are_empty() -> None:
    snapshot = reading.parse(text(**dict.fromkeys(PARTS)), NODE, now=NOW)
    empty: tuple[object, ...] = (None, "", (), frozenset(), False)
    assert {key for key, value in vars(snapshot).items() if value not in empty} == {
        "node", "docker", "model", "nccl_conf",
    }  # fmt: skip


# Its images


D = [f"sha256:{n:064x}" for n in range(10)]


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


def read(*images: dict[str, Any], **parts: str) -> NodeSnapshot:
    return spark(NODE, images="\n".join(map(json.dumps, images)), **parts)


def test_the_id_of_a_name() -> None:
    snapshot = read(image(D[1], "a:b"))
    assert (snapshot.id_of("a:b"), snapshot.id_of("a:c")) == (D[1], "")


def test_references_by_digest_are_no_tags() -> None:
    """Docker 29 lists them among both; only what a pull from here left is a name to give up."""
    pulled, stranger = f"127.0.0.1:40001/{STAGING}@{D[1]}", f"registry.lab/r@{D[1]}"
    both = {"RepoDigests": [pulled, stranger]}
    for tags in (["a:b", pulled, stranger], ["a:b"]):
        snapshot = read({**image(D[1], *tags), **both})
        assert snapshot.images[0].tags == ("a:b", pulled)
        assert snapshot.staged() == [pulled]
    ours = {"Config": {"Labels": {"dev.sparkimage.variant": "v"}}}
    old, newest = image(D[2], f"registry.lab/r@{D[2]}") | ours, image(D[3], "r:v") | ours
    snapshot = read({**image(D[1], pulled), **both}, old, newest)
    assert plan_removal(snapshot, keep=1) == [pulled, D[2]]


def test_an_image_of_docker_29_is_what_it_is_elsewhere() -> None:
    """Of its fields some are gone, and empty ones of the config are left out."""
    there = read(engine_29.IMAGE, docker=json.dumps(engine_29.INFO))
    assert (there.docker.version, there.docker.containerd) == ("29.2.1", True)
    assert (there.docker.default_runtime, there.docker.rootless) == ("runc", False)
    (image,) = there.images
    assert (image.id, image.tags) == (engine_29.MANIFEST, ("r:payload",))
    (older,) = read(engine_29.OLDER, docker=info(ServerVersion="26.1.5", DriverStatus=[])).images
    assert (older.id, older.tags) == (engine_29.CONFIG, ("r:payload",))
    assert image.identity == older.identity


@pytest.mark.parametrize(
    ("numbers", "containerd", "keeps"),
    [
        ((26, 1, 5), True, False),
        ((26, 1, 5), False, True),
        ((28, 0), True, True),
        ((29, 6, 2), True, True),
        ((29, 7, 0), True, False),
        ((29, 7, 0), False, True),
        ((30,), True, False),
    ],
)
def test_engines_that_let_a_second_pull_keep_layers(
    numbers: tuple[int, ...], containerd: bool, keeps: bool
) -> None:
    assert engines.keeps_of_one_pull(numbers, containerd=containerd) is keeps


def test_broken_json_hides_no_image() -> None:
    broken = spark(NODE, images=f'{{"Id": 1, "Config": 2}}\nbroken {{\n{json.dumps(image(D[1]))}')
    assert broken.by_id(D[1]) is not None


def test_image_disks_by_store() -> None:
    disks = "docker /dev/a 10 4 6 40% /\ncontainerd /dev/b 10 4 2 40% /var/lib/containerd"
    assert [disk.free for disk in read(disk=disks).image_disks] == [6 * 1024, 2 * 1024]
    overlay2 = info(DriverStatus=[["Backing Filesystem", "extfs"]])
    assert [disk.of for disk in read(disk=disks, docker=overlay2).image_disks] == ["docker"]
    assert len(read().image_disks) == 1


def test_changed_middle_layer_costs_the_layers_above_on_overlay2_only() -> None:
    layers = [
        Layer(digest=f"blob{n}", size=1, media_type="t", diff_id=diff_id)
        for n, diff_id in enumerate(D[:5])
    ]
    other = image(D[6], layers=[*D[:2], D[9], *D[3:5]])
    overlay2 = info(DriverStatus=[["Backing Filesystem", "extfs"]])
    snapshot = read(other, image(D[7], layers=D[:1]), docker=overlay2, content="")
    assert snapshot.missing(layers, {}) == [2, 3, 4]
    known = {D[6]: [layer.digest for layer in layers if layer is not layers[2]]}
    assert read(other, content="").missing(layers, known) == [2]


def test_identity_does_not_depend_on_the_store() -> None:
    first = read(image(D[1], "a:b", x="1")).images[0]
    other = image(D[7], x="1")
    other["Config"] |= {"Image": "sha256:0", "Env": [], "Domainname": ""}
    assert read(other).images[0].identity == first.identity
    assert read(image(D[1], x="2")).images[0].identity != first.identity
    assert read(image(D[1], layers=D[:2], x="1")).images[0].identity != first.identity


def test_image_without_date_or_config() -> None:
    bare = {key: value for key, value in image(D[1]).items() if key not in ("Created", "Config")}
    assert read(bare).images[0].labels == {}


def test_containerd_lists_its_blobs() -> None:
    listed = "@socket /run/x\nsha256:aa\nsha256:bb\n@whole"
    assert read(content=listed).blobs({}) == {"sha256:aa", "sha256:bb"}


def test_containerd_lists_incomplete_layers() -> None:
    active = "REF\tSIZE\tAGE\t\nlayer-sha256:cc\t6.3 MB\t2 minutes\t\nindex-sha256:dd\t1 B\t1 s\t"
    snapshot = read(content=f"sha256:aa\n@whole\n{active}")
    assert snapshot.content == frozenset({"sha256:aa"})
    assert snapshot.incomplete == {"sha256:cc"}


def test_blobs_without_permission_to_list_them() -> None:
    receipt = json.dumps({"digest": D[2], "layers": [D[8]]})
    snapshot = read(image(D[1]), image(D[2]), receipts=f"{receipt}\nbroken {{", content="x")
    assert snapshot.content is None
    # Known, and there; not what is known and not there.
    assert snapshot.blobs({D[1]: [D[7]], D[3]: [D[9]]}) == {D[7], D[8]}


LINKS = (
    "eth0 1000 1500 up\nwlan0 -1 1500 up\nfast0 200000 9000 up\n@ eth0 10.0.0.1/24\n"
    "@ fast0 fe80::1/64\n@ fast0 192.168.9.1/24\n@ lo 127.0.0.1/8"
)


def test_warning_for_layers_on_the_slow_network() -> None:
    warned = fabric.slow(read(links=LINKS))
    assert warned is not None
    assert "eth0 (1 Gbit/s), but fast0 has 200 Gbit/s" in warned
    assert "data: 192.168.9.1" in warned
    fast = Node(name="n", control="n", data="192.168.9.1")
    assert fabric.slow(spark(fast, links=LINKS)) is None
    # What it does not know it does not guess.
    assert fabric.slow(read(links="eth0 -1 1500 up\n@ eth0 10.0.0.1/24")) is None


def ours(id: str, created: str, *tags: str) -> dict[str, Any]:
    labels = {"Labels": {"dev.sparkimage.variant": "v"}}
    return {**image(id, *tags), "Created": created, "Config": labels}


def test_removal_keeps_tagged_foreign_and_newest_images() -> None:
    snapshot = read(
        ours(D[1], "5", "r:v"),
        ours(D[2], "4", "r:v-previous"),
        ours(D[3], "3"),
        ours(D[4], "2"),
        image(D[5], "x:y"),
        image(D[6]),
        ours(D[7], "9", "sparkimage-staging:abc"),
    )
    assert plan_removal(snapshot, 2) == ["sparkimage-staging:abc", D[3], D[4]]
    assert plan_removal(snapshot, 3) == ["sparkimage-staging:abc", D[4]]
    assert plan_removal(snapshot, 1) == ["sparkimage-staging:abc", D[3], D[4]]
    assert plan_removal(snapshot, 9) == ["sparkimage-staging:abc"]


def test_name_that_a_pull_left_is_a_staging_name() -> None:
    left = f"127.0.0.1:4000/{STAGING}@{D[9]}"
    pulled = image(D[1])
    pulled["RepoDigests"] = [left, f"registry.test/{STAGING}@{D[9]}"]
    snapshot = read(pulled, image(D[2], "r:v"))
    assert snapshot.images[0].tags == (left,)
    assert plan_removal(snapshot, 1) == [left]
