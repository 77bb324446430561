"""The engine's decisions, without a Docker engine."""

from __future__ import annotations

import http.server
import ipaddress
import json
import os
import socket
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkimage.build.engine import emulation, engine, private, processes
from sparkimage.build.engine.emulation import Entry
from sparkimage.core import debian_tools, paths
from sparkimage.core.arch import native_arch
from sparkimage.core.errors import (
    EngineError,
    EnginePermissionError,
    PreflightError,
    SparkError,
    UsageError,
)
from sparkimage.core.paths import EnginePlace
from sparkimage.core.process import Local, start_bytes

ROUTES = """Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0
eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


class UnixServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


@contextmanager
def api(path: Path, version: dict[str, object], status: int = 200) -> Iterator[str]:
    """An HTTP server on a socket that answers every question with ``version``, as an engine of
    another age or make would, which cannot be installed here."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps(version).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def address_string(self) -> str:
            return "unix"

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with UnixServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"unix://{path}"
        finally:
            server.shutdown()
            thread.join()


def described(host: str, *prefix: str) -> engine.Engine:
    return engine.describe(host, prefix, Local(), is_private=False, folder=None)


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARKIMAGE_HOME", "/srv/spark")
    assert paths.home() == Path("/srv/spark")
    monkeypatch.setenv("SPARKIMAGE_HOME", "spark")
    with pytest.raises(PreflightError, match="a relative path"):
        paths.home()
    monkeypatch.delenv("SPARKIMAGE_HOME")
    monkeypatch.setenv("XDG_DATA_HOME", "/srv/data")
    assert paths.home() == Path("/srv/data/sparkimage")
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert paths.home() == Path("/home/somebody/.local/share/sparkimage")


@given(st.text(alphabet="abcd/", max_size=150))
def test_every_socket_path_fits_and_names_fit_the_kernel(name: str) -> None:
    place = EnginePlace.of(Path("/srv", name.lstrip("/")))
    for path in (place.socket, place.run / paths.LONGEST_SOCKET):
        assert len(os.fsencode(path)) <= 107
    assert len(place.bridge) <= 15


def test_two_homes_share_no_name() -> None:
    one, other = EnginePlace.of(Path("/srv/a")), EnginePlace.of(Path("/srv/b"))
    assert one.bridge != other.bridge
    assert one.cgroup != other.cgroup
    assert emulation.entry_name(one, "arm64") != emulation.entry_name(other, "arm64")
    assert EnginePlace.of(Path("/srv/x/../a")) == one


def test_routes_are_read() -> None:
    assert private.parse_routes(ROUTES) == (
        ("eth0", ipaddress.IPv4Network("0.0.0.0/0"), 100),
        ("docker0", ipaddress.IPv4Network("172.17.0.0/16"), 0),
        ("eth0", ipaddress.IPv4Network("192.0.2.0/24"), 0),
    )


@given(st.sets(st.sampled_from(private.POOLS), max_size=len(private.POOLS) - 1))
def test_a_free_range_is_free(taken: set[ipaddress.IPv4Network]) -> None:
    pool = private.free_pool(taken, "89ba9cdf")
    assert not any(pool.overlaps(network) for network in taken)


def test_the_last_range_is_taken_again_while_it_is_free() -> None:
    for last in private.POOLS:
        assert private.free_pool([], "89ba9cdf", last) == last
        assert private.free_pool([last], "89ba9cdf", last) != last


def test_no_free_range_is_said() -> None:
    with pytest.raises(PreflightError, match="no private address range"):
        private.free_pool(private.POOLS, "89ba9cdf")


def test_daemon_config_takes_proxies_and_the_cgroup() -> None:
    pool = private.POOLS[0]
    plain = private.daemon_config(pool, 1400, "sparkimage-x", {})
    assert "proxies" not in plain
    assert plain["features"] == {"containerd-snapshotter": True}
    assert plain["cgroup-parent"] == "/sparkimage-x"
    behind = private.daemon_config(
        pool, 1400, "sparkimage-x", {"https_proxy": "p:1", "NO_PROXY": "localhost"}
    )
    assert behind["proxies"] == {"https-proxy": "p:1", "no-proxy": "localhost"}


@pytest.mark.parametrize(
    ("version", "good"),
    [
        ("26.1.5+dfsg1", True), ("23.0.0", True), ("28.5.2", True),
        ("20.10.24+dfsg1", False), ("", False), ("dev", False),
    ],
)  # fmt: skip
def test_engines_before_23_are_too_old(version: str, good: bool) -> None:
    assert engine.usable(version) is good


def test_buildx_version_is_read() -> None:
    assert engine.parse_buildx("github.com/docker/buildx 0.13.1+ds1 0.13.1-1\n") == "0.13.1+ds1"
    assert engine.parse_buildx("github.com/docker/buildx v0.29.1 a32761aeb3") == "0.29.1"


def test_a_wrong_choice_of_engine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARKIMAGE_ENGINE", "mine")
    with pytest.raises(UsageError, match="auto, system or private"):
        engine.choice()
    monkeypatch.setenv("SPARKIMAGE_ENGINE", "")
    assert engine.choice() is engine.Choice.AUTO


def test_absent_and_dead_engines_are_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with pytest.raises(EngineError, match="no Docker engine is at") as absent:
        described(f"unix://{path}")
    assert not isinstance(absent.value, EnginePermissionError)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(EngineError, match="it has died"):
        described(f"unix://{path}")


def test_an_old_engine_and_podman_are_refused_with_the_reason(tmp_path: Path) -> None:
    old: dict[str, object] = {"Version": "20.10.24", "ApiVersion": "1.41"}
    with api(tmp_path / "old", old) as host, pytest.raises(EngineError, match=r"version 20\.10"):
        described(host, "true")
    podman: dict[str, object] = {
        "Version": "25.1.0", "ApiVersion": "1.41", "Components": [{"Name": "Podman Engine"}]
    }  # fmt: skip
    with api(tmp_path / "pod", podman) as host, pytest.raises(EngineError, match=r"Podman 25\.1"):
        described(host, "true")


def test_an_engine_without_buildx_is_refused(tmp_path: Path) -> None:
    new: dict[str, object] = {"Version": "26.1.5", "ApiVersion": "1.45"}
    with api(tmp_path / "new", new) as host, pytest.raises(EngineError, match="has no buildx"):
        described(host, "false")


def test_an_engine_that_answers_with_an_error_is_no_missing_engine(tmp_path: Path) -> None:
    with (
        api(tmp_path / "bad", {"message": "disk full"}, status=500) as host,
        pytest.raises(EngineError, match="disk full"),
    ):
        described(host, "true")


def test_find_names_both_places_where_it_looked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    monkeypatch.delenv("SPARKIMAGE_ENGINE", raising=False)
    monkeypatch.delenv("DOCKER_CONTEXT", raising=False)
    with pytest.raises(EngineError) as caught:
        engine.find(tmp_path / "home", Local())
    assert str(EnginePlace.of(tmp_path / "home").socket) in caught.value.message
    assert caught.value.hint == "sparkimage engine up"


def test_only_the_engines_own_processes_are_ours() -> None:
    place, other = EnginePlace.of(Path("/srv/a")), EnginePlace.of(Path("/srv/ab"))
    dockerd = ["dockerd", "--data-root", str(place.data)]
    shim = ["x", "-address", str(place.run / "containerd" / "containerd.sock")]
    config = ["containerd", "--config", str(place.run / "containerd" / "containerd.toml")]
    for program, argv in (
        ("dockerd", dockerd), ("containerd", config), ("containerd-shim-runc-v2", shim)
    ):  # fmt: skip
        assert processes.is_ours(program, argv, "0::/\n", place)
        assert not processes.is_ours(program, argv, "0::/\n", other)
    assert not processes.is_ours("vim", ["vim", str(place.data)], "0::/\n", place)
    assert not processes.is_ours("dockerd", ["dockerd"], "0::/docker/x\n", place)
    inside = f"9:pids:/\n0::/{place.cgroup}/buildkit/abc\n"
    assert processes.is_ours("sleep", ["sleep", "9"], inside, place)
    assert not processes.is_ours("sleep", ["sleep", "9"], inside, other)


def test_a_process_is_known_by_its_start_and_seen_to_end() -> None:
    running = start_bytes([sys.executable, "-c", "input()"])
    process = processes.of_pid(running.pid)
    assert process is not None
    assert process.runs()
    assert not process.wait(0.0)
    later = processes.Process(pid=process.pid, start=process.start + 1, program="")
    assert not later.runs()
    assert later.wait(0.0)
    assert not processes.wait_until(lambda: False, process, 0.0)
    running.communicate(b"\n")
    assert process.wait(5.0)
    assert processes.of_pid(running.pid) is None


def entry(flags: str = "OCF", *, path: str = "/q10", on: bool = True, arch: str = "arm64") -> Entry:
    magic = emulation.magic(arch).hex()
    return Entry(name="q", enabled=on, interpreter=path, flags=flags, magic=magic)


@pytest.mark.parametrize(
    ("entries", "good"),
    [
        ([], False),
        ([entry()], True),
        ([entry("OC")], False),
        ([entry(path="/q7")], False),
        ([entry(path="/gone")], False),
        ([entry(on=False)], False),
        ([entry(arch="amd64")], False),
        ([entry(), entry(path="/q7")], False),
        ([entry(), entry(path="/q7", on=False), entry(path="/q7", arch="amd64")], True),
    ],
)
def test_what_emulation_suffices(entries: list[Entry], good: bool) -> None:
    versions = {"/q10": 10, "/q7": 7}
    assert emulation.suffices(entries, "arm64", versions.get) is good


def test_an_entry_of_the_kernel_is_read() -> None:
    text = (
        "enabled\ninterpreter /usr/bin/qemu-aarch64\nflags: OCF\noffset 0\n"
        "magic 7f454c460201010000000000000000000200b700\n"
        "mask ffffffffffffff00fffffffffffffffffeffffff\n"
    )
    found = emulation.parse_entry("q", text)
    assert found == entry(path="/usr/bin/qemu-aarch64")
    assert text.splitlines()[-1] == f"mask {emulation.MASK.hex()}"


def test_the_probe_runs_natively_and_an_unknown_platform_is_refused(tmp_path: Path) -> None:
    assert emulation.probe(native_arch(), Local())
    emulation.ensure_emulation(tmp_path, Local(), f"linux/{native_arch()}", print)
    with pytest.raises(UsageError, match="windows/amd64"):
        emulation.ensure_emulation(tmp_path, Local(), "windows/amd64", print)
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_qemu_has_no_version(tmp_path: Path) -> None:
    assert emulation.qemu_major(str(tmp_path / "none"), Local()) is None
    assert emulation.qemu_major("/bin/true", Local()) is None
    assert emulation.qemu_major("/etc/passwd", Local()) is None


def test_a_half_made_tree_is_not_installed(tmp_path: Path) -> None:
    place = EnginePlace.of(tmp_path)
    assert not debian_tools.installed(place)
    (place.root / "usr").mkdir(parents=True)
    assert not debian_tools.installed(place)
    (place.root / "recipe.json").write_text("of another version")
    assert not debian_tools.installed(place)


def test_a_home_below_usr_is_refused() -> None:
    with pytest.raises(PreflightError, match="replaces /usr"):
        debian_tools.install(EnginePlace.of(Path("/usr/spark")), Local(), print)


def test_stopping_what_was_never_there_does_nothing(tmp_path: Path) -> None:
    private.down(tmp_path / "none", Local(), purge=True)
    assert not (tmp_path / "none").exists()


def test_every_error_of_the_engine_says_what_to_do() -> None:
    errors: list[SparkError] = []
    for host in ("unix:///nowhere/docker.sock", "tcp://127.0.0.1:1"):
        with pytest.raises(EngineError) as caught:
            described(host)
        errors.append(caught.value)
    assert all(error.hint for error in errors)
