"""The facts of a machine: what is read out of the script's words, whatever they are."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkimage.core.errors import CommandError
from sparkimage.core.process import Completed, Local
from sparkimage.nodes import ssh
from sparkimage.serve.doctor import asking, reading
from sparkimage.serve.doctor.facts import UNLIMITED, Facts
from tests.unit.spark_facts import NOW, PARTS, edited, info, spark, text


def test_a_spark_is_read() -> None:
    one = spark()
    assert (one.arch, one.os, one.product) == ("arm64", "Ubuntu 24.04.4 LTS", "NVIDIA_DGX_Spark")
    assert (one.user, one.groups, one.used_address) == ("nv", ("nv", "sudo", "docker"), "10.0.0.1")
    link = one.interface_of("192.168.100.1")
    assert link is not None
    assert (link.addresses, link.networks) == (("192.168.100.1",), ("192.168.100.0/24",))
    assert one.interfaces[0].networks == ("10.0.0.0/24", "")
    assert (link.name, link.speed, link.mtu, link.state) == ("enp1s0f1np1", 200000, 9000, "up")
    assert one.interface_of("10.9.9.9") is None
    assert [two.speed for two in one.interfaces if two.name == "docker0"] == [None]
    assert (one.driver, one.module, one.cuda) == ("580.95.05", "580.95.05", "13.0")
    assert [gpu.name for gpu in one.gpus] == ["NVIDIA GB10"]
    assert one.gpus[0].memory is None
    assert one.unified
    assert one.memory == 125513000 * 1024
    assert one.verbs == ("uverbs0", "uverbs1", "uverbs2", "uverbs3")
    assert (one.docker.version, one.docker.containerd) == ("29.1.3", True)
    assert one.nvidia_runtime
    assert one.has_cdi
    assert (one.memlock, one.docker_memlock) == (16323340 * 1024, UNLIMITED)
    assert one.listening == (("0.0.0.0", 22), ("127.0.0.1", 631), ("::", 22))
    assert one.skew_s == pytest.approx(0.25)
    assert one.synced is True
    assert one.model.size == 78_000_091_500
    assert one.model.lacking == ()


def test_the_devices_of_an_interface_and_its_twin() -> None:
    one = spark()
    assert one.hcas_of("enp1s0f1np1") == ("rocep1s0f1",)
    assert one.twins_of("enp1s0f1np1") == ("rocep1s0f1", "roceP2p1s0f1")
    # The other plug's are down.
    assert one.twins_of("enp1s0f0np0") == ("rocep1s0f0",)
    assert one.twins_of("enP7s7") == ()


def test_a_gpu_with_a_memory_of_its_own() -> None:
    said = "@smi\n0, NVIDIA H100, 580.95.05, 81559, GPU-1\n1, NVIDIA H100, 580.95.05, 81559, GPU-2"
    one = spark(gpus=said)
    assert not one.unified
    assert [gpu.memory for gpu in one.gpus] == [81559 * 1024 * 1024] * 2


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
def test_when_gpus_all_works(hooks: str, version: str, folders: list[str], works: bool) -> None:
    said = info(ServerVersion=version, CDISpecDirs=folders)
    assert spark(hooks=hooks, docker=said).gpus_flag is works


@pytest.mark.parametrize(
    ("said", "denied", "missing", "late"),
    [
        (
            "permission denied while trying to connect to the Docker daemon socket",
            True,
            False,
            False,
        ),
        ("sudo: a password is required", True, False, False),
        ("sh: 1: docker: not found", False, True, False),
        ("@late", False, False, True),
        ('{"ServerVersion": ""}\nCannot connect to the Docker daemon', False, False, False),
        ('{"ServerErrors": ["permission denied"]}', True, False, False),
    ],
)
def test_why_docker_does_not_answer(said: str, denied: bool, missing: bool, late: bool) -> None:
    engine = spark(docker=said).docker
    assert not engine.version
    assert engine.error
    assert (engine.denied, engine.missing, engine.late) == (denied, missing, late)


def test_the_checksum_is_of_names_and_sizes() -> None:
    whole = spark().model
    other = spark(model=edited("model", ("1500 ./config", "1501 ./config"))).model
    turned = spark(model="\n".join(reversed(PARTS["model"].splitlines()))).model
    assert whole.checksum != other.checksum
    assert whole.checksum == turned.checksum


def test_a_clock_without_fractions() -> None:
    assert spark(clock="now=1790000007.%N").skew_s == 7.0


def test_limits() -> None:
    assert spark(limits="memlock=unlimited").memlock == UNLIMITED
    assert spark(limits="memlock=64").memlock == 65536
    assert spark(limits="memlock=?").memlock is None
    assert spark(limits="docker=18446744073709551615").docker_memlock == UNLIMITED


def test_nothing_that_a_terminal_would_obey_gets_through() -> None:
    one = spark(
        machine="kernel=6\x1b[2J\nhost=a\x07b",
        docker=info(ServerVersion="29\x1b[31m", Runtimes={"x\x1b": {}}, CDISpecDirs=["\x9b1m"]),
        model="@folder\n1 ./a\x1b]0;b",
    )
    assert (one.kernel, one.host) == ("6[2J", "ab")
    assert one.model.files[0].name == "a]0;b"
    assert "\\u00" not in json.dumps(one.to_dict())
    assert one.docker.runtimes == ("x",)


def test_json_leaves_out_the_files_of_the_model() -> None:
    made = json.loads(json.dumps(spark().to_dict()))
    assert made["model"]["files"] == 4
    assert made["listening"] == [22, 631]


@given(st.text())
def test_no_text_is_too_wrong_to_be_read(said: str) -> None:
    assert isinstance(reading.read(said, now=NOW), Facts)


# Words that such lines are made of, in any order.
WORDS = st.sampled_from(
    [
        *sorted({word for body in PARTS.values() for word in body.split()}), "@", "@late", "{", "[",
        '{"a":', "null", "-1", "|||||", "0A", "\n", "=", ",,,,", "9" * 30, "\x00", "\udcff",
    ]
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(sorted(PARTS)), st.lists(WORDS).map(" ".join)))
def test_no_part_is_too_wrong_to_be_read(changes: dict[str, str]) -> None:
    one = spark(**changes)
    json.dumps(one.to_dict())


TEXTS = st.text(max_size=8)


@given(st.dictionaries(st.sampled_from(["ServerVersion", "DockerRootDir", "Runtimes",
       "DriverStatus", "CDISpecDirs", "DiscoveredDevices", "SecurityOptions", "ServerErrors"]),
       st.recursive(st.none() | st.integers() | TEXTS, max_leaves=6, extend=lambda one: (
           st.lists(one, max_size=4) | st.dictionaries(TEXTS, one, max_size=4)))))  # fmt: skip
def test_no_answer_of_docker_is_too_wrong_to_be_read(changes: dict[str, object]) -> None:
    made = spark(docker=info(**changes)).to_dict()
    json.dumps(made)
    assert not reading.CONTROL.search(made["docker"]["version"] + made["docker"]["error"])


# The script itself


def script(folder: str = "") -> Facts:
    return asking.ask(Local(), "docker", folder)


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


def test_the_script_says_what_this_machine_is(tmp_path: Path) -> None:
    one = script(str(model_of(tmp_path)))
    assert one.kernel == Path("/proc/sys/kernel/osrelease").read_text().strip()
    assert one.memory
    assert one.free
    assert one.available
    assert one.host
    assert one.boot
    assert one.memlock is not None
    assert one.skew_s is not None
    assert abs(one.skew_s) < 30
    assert [(file.name, file.size) for file in one.model.files[:2]] == [
        ("a-1.safetensors", 10), ("config.json", 2),
    ]  # fmt: skip
    assert one.model.lacking == ("a-2.safetensors",)
    found = one.disk("model")
    assert found is not None
    assert found.free < found.total


def test_a_model_in_a_download_cache_is_behind_links(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "1").write_bytes(b"12345")
    (tmp_path / "snapshot").mkdir()
    (tmp_path / "snapshot" / "a.safetensors").symlink_to("../blobs/1")
    assert script(str(tmp_path / "snapshot")).model.size == 5


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert script(str(tmp_path / "no")).model.state == "missing"
    assert script(str(tmp_path / "file")).model.state == "closed"
    assert script().model.state == ""


def test_a_docker_that_hangs_holds_up_nothing(tmp_path: Path) -> None:
    slow = tmp_path / "docker"
    slow.write_text("#!/bin/sh\nexec sleep 100\n")
    slow.chmod(0o755)
    made = ssh.text("facts").replace("bounded 10 $docker", "bounded 1 $docker")
    done = subprocess.run(
        ["sh", "-c", made, "facts", str(slow), ""], capture_output=True, text=True, check=True,
        timeout=30,
    )  # fmt: skip
    one = reading.read(done.stdout, now=NOW)
    assert one.docker.late
    assert one.memory


class Closed:
    def run(
        self, _argv: Sequence[str], /, *, timeout_s: float | None = None, check: bool = True
    ) -> Completed:
        words = ["sh", "-c", "echo This account is closed. >&2; exit 1"]
        return Local().run(words, timeout_s=timeout_s, check=check)


def test_a_shell_that_does_not_do_it() -> None:
    with pytest.raises(CommandError) as caught:
        asking.ask(Closed(), "docker")
    assert "This account is closed." in caught.value.detail


def test_what_is_left_out_is_unknown() -> None:
    one = reading.read(text(**dict.fromkeys(PARTS)), now=NOW)
    assert one == Facts(docker=one.docker)
