"""A real private engine of its own home, beside whatever else runs here."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparkimage.build.engine import emulation, engine, private, processes
from sparkimage.build.engine.emulation import program
from sparkimage.build.engine.engine import Engine
from sparkimage.core import debian_tools, paths
from sparkimage.core.arch import ARCHES, native_arch
from sparkimage.core.errors import EngineError, EnginePermissionError, NetworkError
from sparkimage.core.paths import EnginePlace
from sparkimage.core.process import Local
from sparkimage.core.rights import root_prefix, run_as_root
from tests.lab import command
from tests.lab.node import READY_S
from tests.lab.tools import making

NOBODY = 65534
# Waits for ever: pause(); arm64 has only ppoll(0, 0, 0, 0), its registers are 0 at the start.
PAUSE = {
    "amd64": bytes.fromhex("b8220000000f05"),
    "arm64": bytes.fromhex("280980d2010000d4"),
}
RUNNER = Local()


@dataclass(frozen=True, kw_only=True)
class Lab:
    home: Path
    place: EnginePlace

    def up(self) -> Engine:
        return private.up(self.home, RUNNER, print)

    def docker(self, *argv: str) -> str:
        prefix = engine.private(self.home, RUNNER).docker
        return RUNNER.run((*prefix, *argv)).stdout.strip()


@contextmanager
def new_lab(name: str, tree: EnginePlace) -> Iterator[Lab]:
    """A home beside the real one (on the same disk, where the daemon's data may be), with the
    files of ``tree`` by hard links where that one is installed."""
    home = paths.home() / f"lab-{name}-{os.getpid()}"
    lab = Lab(home=home, place=EnginePlace.of(home))
    lab.place.engine.mkdir(parents=True)
    try:
        if debian_tools.installed(tree):
            run_as_root(RUNNER, ("cp", "-al", str(tree.root), str(lab.place.root)))
        yield lab
    finally:
        private.down(home, RUNNER, purge=True)
        home.rmdir()


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    # Emulators are the machine's.
    with making("spare-engine"), new_lab("a", EnginePlace.of(paths.home())) as made:
        yield made


@pytest.fixture(autouse=True)
def only_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARKIMAGE_ENGINE", "private")


def traces(lab: Lab, tools: Path) -> list[str]:
    """All that an engine leaves on a machine, but for its files; ``tools`` is a tree's usr/."""
    ids = {lab.place.bridge, lab.place.cgroup, lab.place.tag, str(lab.place.engine)}
    found = [f"process {p.program}" for p in processes.processes(lab.place)]
    found += [f"link {p}" for p in Path("/sys/class/net").iterdir() if p.name in ids]
    found += [
        f"cgroup {p}" for p in Path("/sys/fs/cgroup").glob("**/sparkimage-*") if p.name in ids
    ]
    mounts = Path("/proc/self/mountinfo").read_text()
    found += [f"mount {line}" for line in mounts.splitlines() if str(lab.place.engine) in line]
    found += [f"emulator {e.name}" for e in emulation.entries() if lab.place.tag in e.name]
    found += [f"rule {line}" for line in rules(tools).splitlines() if lab.place.bridge in line]
    return found


def rules(usr: Path) -> str:
    """All firewall rules of this machine, which may have no iptables of its own."""
    return "".join(
        in_tree(usr, "/usr/sbin/iptables-nft", "-t", table, "-S") for table in ("nat", "filter")
    )


def in_tree(usr: Path, *argv: str) -> str:
    script = 'mount --rbind "$1" /usr; shift; exec "$@"'
    enter = ("unshare", "--mount", "--propagation", "private", "sh", "-euc", script, "sh")
    return run_as_root(RUNNER, (*enter, str(usr), *argv)).stdout


def paused_image(lab: Lab, folder: Path, name: str) -> None:
    """An image of one program of 130 bytes that waits for ever."""
    (folder / "pause").write_bytes(program(native_arch(), PAUSE[native_arch()]))
    (folder / "pause").chmod(0o755)
    (folder / "Dockerfile").write_text('FROM scratch\nCOPY pause /pause\nCMD ["/pause"]\n')
    lab.docker("buildx", "build", "--quiet", "--tag", name, str(folder))


def test_up_makes_an_engine_that_answers_and_up_again_is_the_same(lab: Lab) -> None:
    first = lab.up()
    process = processes.daemon(lab.place)
    assert process is not None
    assert first.private
    assert first.containerd_store
    assert first.arch == native_arch()
    assert first.data_root == str(lab.place.data)
    assert engine.usable(first.version)
    client = engine.docker_client(first.host)
    assert client.ping()
    client.close()
    assert lab.up() == engine.find(lab.home, RUNNER) == first
    assert processes.daemon(lab.place) == process
    assert lab.docker("version", "--format", "{{.Server.Version}}") == first.version


def test_programs_that_call_docker_reach_the_engine_by_its_environment(lab: Lab) -> None:
    made = lab.up()
    assert made.bin is not None
    assert [path.name for path in made.bin.iterdir()] == ["docker"]
    said = RUNNER.run(
        ("env", "docker", "info", "--format", "{{.DockerRootDir}}"), env=made.environment
    )
    assert said.stdout.strip() == str(lab.place.data)
    assert said.stderr == ""


def test_a_shell_uses_the_engine_after_engine_env(lab: Lab) -> None:
    made = lab.up()
    env = {**os.environ, "SPARKIMAGE_HOME": str(lab.home), "SPARKIMAGE_ENGINE": "private"}
    said = command.call(["engine", "env"], env)
    assert said.returncode == 0, said.stderr
    script = 'eval "$(cat)" && docker version --format "$DOCKER_HOST {{.Server.Version}}"'
    shown = RUNNER.run(["sh", "-c", script], stdin=said.stdout)
    assert shown.stdout == f"{made.host} {made.version}\n"
    own = command.call(
        ["engine", "env"], {**env, **made.environment, "SPARKIMAGE_ENGINE": "system"}
    )
    assert own.stdout == f"# nothing to set: the engine is your own, at {made.host}\n"


def test_status_shows_the_engine(lab: Lab) -> None:
    lab.up()
    status = private.status(lab.home, RUNNER)
    assert status.used == engine.find(lab.home, RUNNER)
    assert status.why == "SPARKIMAGE_ENGINE=private"
    assert status.running
    assert status.bridge == lab.place.bridge
    assert status.size_bytes > (lab.place.root / "usr/sbin/dockerd").stat().st_size
    assert status.free_bytes > 0
    assert status.platforms[0] == f"linux/{native_arch()}"


def test_a_build_runs_steps_on_the_engines_own_network(lab: Lab, tmp_path: Path) -> None:
    lab.up()
    mtu = lab.place.config.read_text().partition('driver.mtu": "')[2].partition('"')[0]
    tini = lab.place.root / "usr" / "bin" / "tini-static"
    (tmp_path / "tini").write_bytes(tini.read_bytes())
    (tmp_path / "tini").chmod(0o755)
    (tmp_path / "Dockerfile").write_text(
        'FROM scratch AS step\nCOPY tini /tini\nRUN ["/tini", "--version"]\n'
        "FROM scratch\nCOPY --from=step /tini /tini\n"
    )
    lab.docker("buildx", "build", "--quiet", "--tag", "built:1", str(tmp_path))
    assert lab.docker("image", "inspect", "--format", "{{.RepoTags}}", "built:1") == "[built:1]"
    assert "tini version" in lab.docker("run", "--rm", "built:1", "/tini", "--version")
    options = lab.docker("network", "inspect", "--format", "{{json .Options}}", "bridge")
    assert f'"com.docker.network.driver.mtu":"{mtu}"' in options
    assert f'"com.docker.network.bridge.name":"{lab.place.bridge}"' in options


def test_a_dead_engine_is_an_error_and_up_recovers(lab: Lab, tmp_path: Path) -> None:
    lab.up()
    paused_image(lab, tmp_path, "pause:1")
    lab.docker("run", "--detach", "pause:1")
    dead = processes.daemon(lab.place)
    assert dead is not None
    run_as_root(RUNNER, ("kill", "-KILL", str(dead.pid)))
    assert dead.wait(READY_S)
    with pytest.raises(EngineError, match="it has died") as caught:
        engine.find(lab.home, RUNNER)
    assert not isinstance(caught.value, EnginePermissionError)
    left = processes.processes(lab.place)
    assert "pause" in {process.program for process in left}
    said: list[str] = []
    private.up(lab.home, RUNNER, said.append)
    assert "stopped what was left of a private engine that had died" in said
    assert not any(process.runs() for process in left)
    assert lab.docker("image", "inspect", "--format", "{{.RepoTags}}", "pause:1") == "[pause:1]"


def test_another_user_is_told_that_permission_lacks(lab: Lab) -> None:
    lab.up()
    if os.geteuid() != 0:  # then it is this user who gets the wrong socket
        socket = str(lab.place.socket)
        debian_tools.engine_script(RUNNER, "own", socket, "0:0")
        with pytest.raises(EnginePermissionError, match="has no access to it"):
            lab.up()
        owner = f"{os.geteuid()}:{os.getegid()}"
        debian_tools.engine_script(RUNNER, "own", socket, owner)
        assert lab.up().private
        return
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # in another process, since its rights never come back
        said = b"found"
        try:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            engine.find(lab.home, RUNNER)
        except EngineError as error:
            said = f"{type(error).__name__}: {error.message}: {error.hint}".encode()
        finally:
            os.write(writer, said)
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        said_there = answer.read()
    assert said_there.startswith("EnginePermissionError: ")
    assert f"(id {NOBODY}) has no access to it" in said_there
    assert "usermod -aG docker" in said_there


def test_no_engine_is_an_error_and_ensure_starts_one(lab: Lab) -> None:
    lab.up()
    private.down(lab.home, RUNNER, purge=False)
    assert traces(lab, lab.place.root / "usr") == []
    with pytest.raises(EngineError, match="no Docker engine is at") as caught:
        engine.find(lab.home, RUNNER)
    assert caught.value.hint == "sparkimage engine up"
    status = private.status(lab.home, RUNNER)
    assert (status.used, status.running, status.bridge) == (None, False, None)
    assert "no Docker engine is at" in status.why
    said: list[str] = []
    assert private.ensure(lab.home, RUNNER, said.append).private
    assert said[0] == caught.value.message


def test_two_commands_at_once_start_one_engine_that_outlives_them(lab: Lab) -> None:
    private.down(lab.home, RUNNER, purge=False)
    code = (
        "import sys; from pathlib import Path; from sparkimage.build.engine import private as p; "
        "from sparkimage.core.process import Local; p.up(Path(sys.argv[1]), Local(), print)"
    )
    commands = [
        subprocess.Popen([sys.executable, "-c", code, str(lab.home)], stdout=subprocess.PIPE)
        for _ in range(2)
    ]
    said = [command.communicate()[0].decode() for command in commands]
    assert [command.returncode for command in commands] == [0, 0]
    assert "".join(said).count("starting a private Docker Engine") == 1
    daemons = [p for p in processes.processes(lab.place) if p.program == "dockerd"]
    assert len(daemons) == 1
    assert engine.find(lab.home, RUNNER).private


@pytest.mark.thorough
def test_a_range_that_another_network_took_is_given_up(lab: Lab) -> None:
    def gateway() -> ipaddress.IPv4Address:
        path = "{{(index .IPAM.Config 0).Gateway}}"
        return ipaddress.IPv4Address(lab.docker("network", "inspect", "--format", path, "bridge"))

    usr, link = lab.place.root / "usr", f"other-{lab.place.tag}"
    lab.up()
    before = gateway()
    private.down(lab.home, RUNNER, purge=False)
    in_tree(usr, "/usr/bin/ip", "link", "add", link, "type", "bridge")
    try:
        in_tree(usr, "/usr/bin/ip", "address", "add", f"{before + 256}/24", "dev", link)
        in_tree(usr, "/usr/bin/ip", "link", "set", link, "up")
        lab.up()
        routes = private.parse_routes(Path("/proc/net/route").read_text())
    finally:
        in_tree(usr, "/usr/bin/ip", "link", "delete", link)
    of_bridge = [network for name, network, _ in routes if name == lab.place.bridge]
    assert [gateway() in network for network in of_bridge] == [True]
    assert not any(before in network for network in of_bridge)
    assert sum(str(of_bridge[0].supernet(new_prefix=16)) in r for r in rules(usr).split("-A")) == 3
    # And from now on it is this one, though the first is free again.
    private.down(lab.home, RUNNER, purge=False)
    lab.up()
    assert gateway() in of_bridge[0]


@pytest.mark.thorough
def test_a_daemon_that_cannot_start_shows_the_end_of_its_log(lab: Lab) -> None:
    with new_lab("b", lab.place) as other:
        other.place.data.mkdir()
        (other.place.data / "buildkit").touch()
        with pytest.raises(EngineError, match="ended while starting") as caught:
            other.up()
        assert "not a directory" in caught.value.detail
        assert str(other.place.log) in caught.value.hint
        assert traces(other, lab.place.root / "usr") == []


def test_two_engines_never_meet_and_a_purge_leaves_nothing(lab: Lab) -> None:
    first = lab.up()
    usr = lab.place.root / "usr"
    before = {line for line in rules(usr).splitlines() if lab.place.bridge in line}
    with new_lab("c", lab.place) as other:
        second = other.up()
        assert second.host != first.host
        other.docker("network", "create", "own")
        # One rule translates addresses, two let packets pass.
        assert len(before) == sum(other.place.bridge in line for line in rules(usr).splitlines())
        links = {path.name for path in Path("/sys/class/net").iterdir()}
        own = f"br-{other.docker('network', 'inspect', '--format', '{{.Id}}', 'own')[:12]}"
        assert {own, other.place.bridge, lab.place.bridge} <= links
        private.down(other.home, RUNNER, purge=True)
        assert traces(other, usr) == []
        assert own not in {path.name for path in Path("/sys/class/net").iterdir()}
        assert list(other.home.iterdir()) == []
    assert engine.find(lab.home, RUNNER) == first
    assert {line for line in rules(usr).splitlines() if lab.place.bridge in line} == before
    assert len(before) == 3


def test_a_purge_never_goes_through_a_mount(lab: Lab, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    with new_lab("d", lab.place) as other:
        place = other.place.engine / "mounted"
        place.mkdir()
        run_as_root(RUNNER, ("mount", "--bind", str(tmp_path), str(place)))
        try:
            with pytest.raises(EngineError, match="something is mounted") as caught:
                private.down(other.home, RUNNER, purge=True)
            assert str(place) in caught.value.detail
        finally:
            run_as_root(RUNNER, ("umount", str(place)))
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.emulated
def test_our_emulator_is_registered_works_and_goes_with_the_engine(lab: Lab) -> None:
    foreign = next(arch for arch in ARCHES if arch != native_arch())
    before = {entry.name for entry in emulation.entries()}
    emulation.register(lab.home, RUNNER, foreign, print)
    name = emulation.entry_name(lab.place, foreign)
    entry = next(entry for entry in emulation.entries() if entry.name == name)
    assert "F" in entry.flags
    assert emulation.qemu_major(entry.interpreter, RUNNER) == emulation.QEMU_MIN
    assert emulation.probe(foreign, RUNNER)
    assert f"linux/{foreign}" in emulation.emulated(RUNNER)
    # Registered again, and needed again: neither disturbs the other.
    emulation.register(lab.home, RUNNER, foreign, print)
    emulation.ensure_emulation(lab.home, RUNNER, f"linux/{foreign}", print)
    private.down(lab.home, RUNNER, purge=False)
    after = {entry.name for entry in emulation.entries()}
    assert name not in after
    assert before - {name} <= after


APT_LISTS = "/var/lib/apt/lists/lock"
HOLD = """
import fcntl, sys
with open(sys.argv[1], "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_apt() -> Iterator[subprocess.Popen[str]]:
    """A process that has the lock of apt's lists until its input ends."""
    argv = [*root_prefix(RUNNER), sys.executable, "-c", HOLD, APT_LISTS]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


@pytest.mark.thorough
@pytest.mark.usefixtures("lab")
def test_an_apt_that_is_at_work_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with another_apt() as other:

        def say(line: str) -> None:
            said.append(line)
            if line == "waiting for another apt-get":
                assert other.stdin is not None
                other.stdin.close()

        # mmdebstrap is there, and of its newest version: nothing changes.
        debian_tools.install_on_host(("mmdebstrap",), "no-such-program", RUNNER, say)
    assert said == ["installing mmdebstrap with apt-get", "waiting for another apt-get"]
    monkeypatch.setattr(debian_tools, "APT_PATIENCE_S", 0)
    with another_apt(), pytest.raises(NetworkError) as refused:
        debian_tools.install_on_host(("mmdebstrap",), "no-such-program", RUNNER, said.append)
    assert "Could not get lock /var/lib/apt/lists/lock" in refused.value.detail


def test_only_root_has_nothing_before_its_commands() -> None:
    assert root_prefix(RUNNER)[:2] == (() if os.geteuid() == 0 else ("sudo", "-n"))
