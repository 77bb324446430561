"""The lab's own proof: the nodes are what the other tests take them for, and faults are faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from sparkimage.build.engine.engine import Engine
from sparkimage.core.errors import GateError
from sparkimage.image import archive
from sparkimage.image.store import Image, Store
from sparkimage.verify import policy
from sparkimage.verify.policy import Required
from tests.lab import fleet as fleets
from tests.lab.fleet import CONTROL, DATA, FOUR, Fleet
from tests.lab.node import PASSWORD, READY_S, USERS, Node, wait
from tests.lab.node_image import Release, given, run
from tests.lab.payload import PLAIN, Payload, sealed
from tests.unit.seal_maker import PLAN

MAY = {"root": "direct", "worker": "direct", "sudoer": "sudo", "asker": "password", "plain": "no"}
NAME = "lab/payload:one"
MIB = 1 << 20
TRANSPORT = 255


class Images:
    """A store with a payload, and what of it is sent to nodes."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.payload = Payload.of(3 * MIB, 2 * MIB, MIB)
        self.image = self.payload.put(store, NAME)

    def file(self, image: Image | None = None) -> bytes:
        return b"".join(archive.stream(image or self.image, NAME, self.store))

    def load(self, node: Node, image: Image | None = None) -> str:
        return node.docker("load", given=self.file(image))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    return Images(Store.open(tmp_path_factory.mktemp("images")))


def test_engines_and_stores_are_those_of_the_field(fleet: Fleet) -> None:
    template = "{{.ServerVersion}} {{.Driver}} {{json .DriverStatus}}"
    versions: dict[Release, set[str]] = {}
    for name, said in fleet.each(lambda node: node.docker("info", "--format", template)).items():
        version, driver, status = said.split(maxsplit=2)
        spec = FOUR[name]
        versions.setdefault(spec.release, set()).add(version)
        assert driver == ("overlayfs" if spec.containerd_store else "overlay2")
        assert ("io.containerd.snapshotter.v1" in status) == spec.containerd_store
    older, newer = (versions[release] for release in (Release.TRIXIE, Release.TESTING))
    assert len(older) == len(newer) == 1
    # Both may be given.
    assert older != newer or given(Release.TRIXIE) is not None


GRANTED = """
docker version && echo direct >&3 && exit
sudo -n docker version && echo sudo >&3 && exit
sudo -S docker version && echo password >&3 && exit
echo no >&3
"""


def test_users_may_what_they_are_said_to(fleet: Fleet) -> None:
    def granted(node: Node, user: str) -> str:
        words = ("sh", "-c", f"exec 3>&1 >/dev/null 2>&1; {GRANTED}")
        done = fleet.ssh(f"{user}@{node.name}", *words, given=f"{PASSWORD}\n".encode())
        return done.stdout.decode().strip()

    def on_all(user: str) -> set[str]:
        return set(fleet.each(partial(granted, user=user)).values())

    # All at once: sudo takes seconds to refuse a password.
    with ThreadPoolExecutor() as pool:
        found = dict(zip(MAY, pool.map(on_all, MAY), strict=True))
    assert found == {user: {may} for user, may in MAY.items()}


def test_the_same_image_runs_on_every_node(fleet: Fleet, images: Images) -> None:
    plain = Payload(parts=images.payload.parts, packed=PLAIN).put(images.store)
    for image in (images.image, plain):
        fleet.each(partial(images.load, image=image))
        for node in fleet:
            assert node.diff_ids(NAME) == tuple(layer.diff_id for layer in image.layers)
            assert node.docker("run", "--rm", "--network=none", NAME) == "it runs"
            assert list(node.images()) == [NAME]
            blobs = {layer.digest for layer in image.layers}
            assert (node.blobs() >= blobs) == node.spec.containerd_store


def test_a_changed_layer_is_the_only_one_that_differs(images: Images) -> None:
    top = images.payload.changed(-1).put(images.store)
    middle = images.payload.changed(1).put(images.store)

    def same(image: Image) -> list[bool]:
        return [a == b for a, b in zip(image.layers, images.image.layers, strict=True)]

    assert same(top) == [True, True, True, False]
    assert same(middle) == [True, True, False, True]


def test_the_gate_takes_a_sealed_payload(images: Images) -> None:
    digest = images.image.digest
    asked = {"plan_checksum": PLAN, "required": Required(), "name": NAME}
    with pytest.raises(GateError, match="no seal"):
        policy.check(images.store, digest, **asked)  # type: ignore[arg-type]
    sealed(images.store, images.image, NAME)
    assert policy.check(images.store, digest, **asked).verdict is not None  # type: ignore[arg-type]
    sealed(images.store, images.image, NAME, result="FAILED")
    with pytest.raises(GateError, match="says FAILED"):
        policy.check(images.store, digest, **asked)  # type: ignore[arg-type]


# The network


def test_bytes_are_counted_on_the_wire_that_they_took(fleet: Fleet) -> None:
    node = fleet["node1"]
    given = bytes(MIB)
    assert fleet.ssh("node1", "cat", given=given).stdout == given
    assert node.control.up > MIB
    assert node.control.down > MIB
    assert node.data.up == 0
    to_data = ("-p", str(node.port))
    assert fleet.ssh(DATA, "cat", options=to_data, given=given).stdout == given
    assert node.data.up > MIB
    assert node.control.up < 2 * MIB


def test_the_fleet_file_names_what_answers(fleet: Fleet) -> None:
    for name, said in fleet.data("worker")["nodes"].items():
        for address in (said["control"], said["data"]):
            done = fleet.ssh(
                f"{said['user']}@{address}", "hostname", options=("-p", str(said["port"]))
            )
            assert done.stdout.decode().strip() == name
    assert list(fleet.data("root", "node2")["nodes"]) == ["node2"]


def test_nodes_reach_each_other(fleet: Fleet) -> None:
    def hostname(source: str, *words: str) -> str:
        done = fleet.ssh(source, "ssh", "-o", "BatchMode=yes", *words, "hostname")
        return done.stdout.decode().strip() or f"{done.returncode}"

    other = fleet["node3"]
    for user in USERS:
        assert hostname(f"{user}@node2", other.name) == "node3"
    assert hostname("node2", f"worker@{other.inside}") == "node3"
    assert hostname("worker@node2", "-p", str(other.port), f"root@{DATA}") == "node3"
    fleet["node2"].part(other)
    assert hostname("node2", other.name) == f"{TRANSPORT}"
    assert hostname("node2", "node1") == "node1"
    fleet["node2"].join()
    assert hostname("node2", other.name) == "node3"


def test_a_cut_wire_is_one_node_that_cannot_be_reached(fleet: Fleet) -> None:
    with waiting(fleet, "node2") as command:
        for wire in fleet["node2"].wires:
            wire.cut()
        assert command.wait(READY_S) == TRANSPORT
    codes = fleet.each(lambda node: fleet.ssh(node.name, "true").returncode)
    assert codes == {"node1": 0, "node2": TRANSPORT, "node3": 0, "node4": 0}
    fleet["node2"].control.restore()
    assert fleet.ssh("node2", "true").returncode == 0


def test_a_wire_that_hangs_ends_nothing(fleet: Fleet) -> None:
    with waiting(fleet, "node2") as command:
        fleet["node2"].control.hang()
        assert command.stdin is not None
        command.stdin.close()
        with pytest.raises(subprocess.TimeoutExpired):
            command.wait(0.5)
        alive = ("-o", "ConnectTimeout=1")
        assert fleet.ssh("node2", "true", options=alive).returncode == TRANSPORT
        fleet["node2"].control.restore()
        assert command.wait(READY_S) == 0


def test_a_flipped_bit_does_not_get_past_ssh(fleet: Fleet) -> None:
    wire = fleet["node1"].control
    wire.flip_after(MIB)
    done = fleet.ssh("node1", "cat", given=bytes(4 * MIB))
    assert done.returncode == TRANSPORT
    assert MIB < wire.up < 5 * MIB
    assert fleet.ssh("node1", "true").returncode == 0


@contextmanager
def waiting(fleet: Fleet, to: str) -> Iterator[subprocess.Popen[bytes]]:
    """An SSH command that has answered, and waits for the end of its input."""
    argv = ["ssh", "-F", str(fleet.ssh_config), to, "echo here; cat >/dev/null"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        yield process
        process.kill()


def test_another_host_key_is_refused(fleet: Fleet) -> None:
    fleet["node4"].change_host_key()
    done = fleet.ssh("node4", "true")
    assert done.returncode == TRANSPORT
    assert b"Host key verification failed" in done.stderr
    fleet["node4"].restore_host_key()
    assert fleet.ssh("node4", "true").returncode == 0


# The engine


def test_a_killed_daemon_comes_back_with_its_images(two: Fleet, images: Images) -> None:
    two.each(images.load)
    before = two.each(Node.images)
    two.each(Node.kill_dockerd)
    for node in two:
        with pytest.raises(RuntimeError, match="Docker daemon"):
            node.docker("version")
    two.each(Node.start_dockerd)
    assert two.each(Node.images) == before
    two.each(Node.stop_dockerd)
    two.each(Node.start_dockerd)
    assert two.each(Node.images) == before


def test_a_daemon_killed_in_mid_load_names_nothing(two: Fleet, images: Images) -> None:
    whole = images.file()

    def broken(node: Node) -> int:
        argv = ["ssh", "-F", str(two.ssh_config), node.name, "docker load"]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL) as loading:
            assert loading.stdin is not None
            loading.stdin.write(whole[: len(whole) // 2])
            loading.stdin.flush()
            wait(
                lambda: "docker" in node.exec("sh", "-c", "pgrep -fl '[d]ocker load' || :"),
                "docker load has not begun",
            )
            node.kill_dockerd()
            # docker hears of it when it sends on.
            with suppress(BrokenPipeError):
                loading.stdin.write(whole[len(whole) // 2 :])
                loading.stdin.close()
            return loading.wait(READY_S)

    assert 0 not in two.each(broken).values()
    two.each(Node.start_dockerd)
    assert list(two.each(Node.images).values()) == [{}] * 2
    two.each(images.load)
    assert [list(held) for held in two.each(Node.images).values()] == [[NAME]] * 2


def test_a_paused_daemon_keeps_everybody_waiting(fleet: Fleet) -> None:
    node = fleet["node3"]
    node.pause_dockerd()
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(node.docker, "version")
        with pytest.raises(TimeoutError):
            asked.result(0.5)
        node.resume_dockerd()
        assert "Version" in asked.result(READY_S)


def test_a_full_disk_is_full(two: Fleet, images: Images) -> None:
    for node in two:
        node.fill_disk(2 * MIB)
        assert node.disk_free() <= 2 * MIB

    def refusal(node: Node) -> str:
        try:
            return images.load(node)
        except RuntimeError as error:
            return str(error)

    for name, said in two.each(refusal).items():
        assert "no space left on device" in said, name
    assert [held for held in two.each(Node.images).values() if held] == []
    two.each(Node.free_disk)
    two.each(images.load)
    assert [list(held) for held in two.each(Node.images).values()] == [[NAME]] * 2


def test_reset_leaves_a_node_as_it_began(two: Fleet, images: Images) -> None:
    before = two.each(Node.disk_used)
    two.each(images.load)
    for node in two:
        node.docker("run", "--detach", "--network=none", NAME, "sleep 600")
        node.docker("tag", NAME, "lab/other:name")
        assert node.disk_used() > before[node.name] + 6 * MIB
    first, second = two
    for user in USERS:
        to = f"{user}@{first.name}"
        assert two.ssh(to, "mkdir", "-p", ".local/state/sparkimage").returncode == 0
    first.kill_dockerd()
    first.control.cut()
    second.pause_dockerd()
    second.change_host_key()
    second.fill_disk(0)
    wiped = two.reset()
    for node in two:
        assert node.images() == {}, node.name
        assert node.dangling() == set(), node.name
        assert node.blobs() == set(), (node.name, wiped)
        assert node.docker("ps", "--all", "--quiet") == ""
        assert node.disk_used() < before[node.name] + MIB
        assert two.ssh(node.name, "true").returncode == 0
    assert first.exec("find", "/root", "/home", "-name", "sparkimage") == ""


def test_servers_are_on_the_loopback_only(fleet: Fleet) -> None:
    listening = subprocess.run(
        ["ss", "--tcp", "--listening", "--numeric", "--no-header"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    for node in fleet:
        found = [line.split()[3] for line in listening.splitlines() if f":{node.port} " in line]
        assert sorted(found) == [f"{CONTROL}:{node.port}", f"{DATA}:{node.port}"]


PROGRAM = """
import sys
from pathlib import Path
from sparkimage.core import paths
from sparkimage.build.engine.private import ensure
from sparkimage.core.process import Local
from tests.lab.fleet import fleet
from tests.lab.node import Spec
engine = ensure(paths.home(), Local(), print)
with fleet(engine, Path(sys.argv[1]), {"alone": Spec()}) as made:
    print("container", made["alone"].container, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_node_outlives_its_tests(engine: Engine, tmp_path: Path, number: signal.Signals) -> None:
    argv = [sys.executable, "-P", "-c", PROGRAM, str(tmp_path / "killed")]
    root = Path(__file__).resolve().parents[2]
    template = "{{range .Mounts}}{{.Name}} {{end}}"
    with (tmp_path / "said").open("w") as said, subprocess.Popen(
        argv, env={**os.environ, "PYTHONPATH": str(root)}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        name = next(
            (line.split()[1] for line in process.stdout if line.startswith("container ")), None
        )
        assert name is not None, (tmp_path / "said").read_text()
        volumes = run([*engine.docker, "inspect", "--format", template, name]).split()
        process.send_signal(number)
        process.wait(READY_S)
    if number == signal.SIGKILL:
        assert name in listed(engine, "ps", "--all", "--format={{.Names}}")
        # The next fleet sweeps up.
        with fleets.fleet(engine, tmp_path / "next", {}):
            pass
    assert name not in listed(engine, "ps", "--all", "--format={{.Names}}")
    assert volumes
    assert not set(volumes) & listed(engine, "volume", "ls", "--quiet")


def listed(engine: Engine, *words: str) -> set[str]:
    return set(run([*engine.docker, *words]).split())
