"""The private Docker Engine of a home: starts, stops and shows it.

For machines where no engine answers. It has its own packages, data root, socket, bridge, cgroup
and firewall rules, and the containerd image store; another dockerd beside it is not disturbed.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sparkimage.build.engine import emulation, engine, processes
from sparkimage.build.engine.emulation import ensure_emulation
from sparkimage.build.engine.engine import Choice, Engine
from sparkimage.build.engine.processes import SCRIPT
from sparkimage.core import debian_tools, locks
from sparkimage.core.errors import CommandError, EngineError, EnginePermissionError, PreflightError
from sparkimage.core.paths import EnginePlace
from sparkimage.core.process import Runner
from sparkimage.core.rights import root_prefix, run_as_root

__all__ = ["Status", "down", "ensure", "ensure_emulation", "status", "up"]

READY_S = 60.0
"""Seconds that dockerd gets until it answers; 1 to 3 on an idle machine."""
MOUNTED = 3
"""How the script's purge ends where something is mounted in the engine's folder."""
LOG_TAIL_BYTES = 4000
LOG_MAX_BYTES = 20 * 10**6
POOLS = tuple(
    ipaddress.IPv4Network(f"{prefix}.{n}.0.0/16")
    for prefix, numbers in ((172, range(31, 17, -1)), (10, range(213, 253)))
    for n in numbers
)
"""Private address ranges (RFC 1918), those first that dockerd itself takes last."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What ``engine status`` shows."""

    used: Engine | None
    why: str
    """Why this engine is used, or why none can be."""
    running: bool
    """Whether the private engine's daemon runs."""
    pid: int | None
    bridge: str | None
    """Of the private engine, while there is one."""
    installed: bool
    """Whether the private engine's packages are there."""
    size_bytes: int
    """On disk, all of the private engine."""
    free_bytes: int
    """On the disk with the data root of the engine used, else with the home."""
    platforms: tuple[str, ...]
    """Whose programs run on this machine, natively or emulated."""


def ensure(home: Path, runner: Runner, say: Callable[[str], None]) -> Engine:
    """The engine to use, as ``engine.find``, after starting the private one when none answers.

    An engine that this user may not talk to is an error all the same: a second engine beside it
    would be a surprise.
    """
    try:
        return engine.find(home, runner)
    except EnginePermissionError:
        raise
    except EngineError as error:
        if engine.choice() is Choice.SYSTEM:
            raise
        say(error.message)
        return up(home, runner, say)


def up(home: Path, runner: Runner, say: Callable[[str], None]) -> Engine:
    """Start the private engine, installing it where it is not; the running one when it answers.

    Raises ``PreflightError`` when this machine cannot, ``NetworkError`` when the packages cannot
    be fetched, ``EngineError`` with the end of its log when the daemon does not come up.
    """
    place = EnginePlace.of(home)
    with _locked(place, say):
        try:
            return engine.private(home, runner)
        except EnginePermissionError:
            raise
        except EngineError:
            pass  # not there, or not well: begin anew
        debian_tools.install(place, runner, say)
        if processes.stop(place, runner):
            say("ended what was left of a private engine that had died")
        _clean(place, runner)
        pool, mtu = _network(place, runner)
        _configure(place, pool, mtu)
        say(f"starting a private Docker Engine in {place.engine}")
        _start(place, pool, mtu, runner)
        return engine.private(home, runner)


def down(home: Path, runner: Runner, purge: bool) -> None:
    """Stop the private engine and remove its bridge, rules, cgroup and emulators; with ``purge``
    its packages and all its images and caches too. Nothing happens where there is none.

    Raises ``EngineError`` when something does not end, ``PreflightError`` without root's rights.
    """
    place = EnginePlace.of(home)
    if not (place.engine.exists() or processes.processes(place)):
        return
    with _locked(place, lambda _: None):
        processes.stop(place, runner)
        emulation.unregister(place, runner)
        _clean(place, runner)
        if purge:
            try:
                run_as_root(runner, ("sh", str(SCRIPT), "purge", str(place.engine), str(place.run)))
            except CommandError as error:
                mounted = error.returncode == MOUNTED
                raise EngineError(
                    f"{place.engine} was not removed"
                    + (": something is mounted below it" if mounted else " entirely"),
                    hint=(
                        f"findmnt --raw | grep {place.engine}, umount what it shows"
                        if mounted
                        else "put right what it says below"
                    )
                    + ", then `python build.py engine down --purge`",
                    detail=error.detail,
                ) from None
            place.lock.unlink(missing_ok=True)


def status(home: Path, runner: Runner) -> Status:
    """See ``Status``. Raises nothing for an engine that does not answer: that is a status."""
    place = EnginePlace.of(home)
    used: Engine | None = None
    try:
        found = engine.look(home, runner)
        used, why = found.engine, found.why
    except EngineError as error:
        why = error.message
    process = processes.daemon(place)
    roots = (Path(used.data_root) if used else place.engine, place.engine, *place.engine.parents)
    return Status(
        used=used,
        why=why,
        running=process is not None,
        pid=process.pid if process else None,
        bridge=place.bridge if Path("/sys/class/net", place.bridge).exists() else None,
        installed=debian_tools.installed(place),
        size_bytes=_size(place.engine, runner),
        free_bytes=shutil.disk_usage(next(path for path in roots if os.path.exists(path))).free,
        platforms=emulation.emulated(runner),
    )


def free_pool(
    taken: Iterable[ipaddress.IPv4Network],
    tag: str,
    last: ipaddress.IPv4Network | None = None,
) -> ipaddress.IPv4Network:
    """The first range that overlaps nothing taken: the last one used, else from a place of the
    home's own on, so that two homes choose differently. Pure.

    Raises ``PreflightError`` when all are taken.
    """
    occupied = tuple(taken)
    first = int(tag, 16) % len(POOLS)
    wished = () if last is None else (last,)
    for pool in wished + POOLS[first:] + POOLS[:first]:
        if not any(pool.overlaps(network) for network in occupied):
            return pool
    raise PreflightError(
        "no private address range is free for the engine's bridge",
        hint="look at `ip route`; use this machine's own Docker Engine instead",
    )


def parse_routes(text: str) -> tuple[tuple[str, ipaddress.IPv4Network, int], ...]:
    """Interface, network and metric of each line of /proc/net/route (little-endian hex; on every
    machine that this runs on). Pure."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        address, mask = (ipaddress.IPv4Address(bytes.fromhex(fields[n])[::-1]) for n in (1, 7))
        found.append((fields[0], ipaddress.IPv4Network(f"{address}/{mask}"), int(fields[6])))
    return tuple(found)


def daemon_config(
    pool: ipaddress.IPv4Network, mtu: int, cgroup: str, environment: dict[str, str]
) -> dict[str, object]:
    """What goes into dockerd's configuration file; proxies come from ``environment``. Pure."""
    config: dict[str, object] = {
        "features": {"containerd-snapshotter": True},
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "cgroup-parent": f"/{cgroup}",
        "default-address-pools": [{"base": str(pool), "size": 24}],
        # --mtu holds for the default bridge only.
        "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": str(mtu)}},
        "log-level": "info",
    }
    proxies = {
        key: value
        for key, name in (
            ("http-proxy", "HTTP_PROXY"), ("https-proxy", "HTTPS_PROXY"), ("no-proxy", "NO_PROXY")
        )
        if (value := environment.get(name) or environment.get(name.lower()))
    }  # fmt: skip
    return {**config, "proxies": proxies} if proxies else config


def _configure(place: EnginePlace, pool: ipaddress.IPv4Network, mtu: int) -> None:
    text = json.dumps(daemon_config(pool, mtu, place.cgroup, dict(os.environ)), indent=1)
    # A proxy's address may hold a password.
    place.config.unlink(missing_ok=True)
    handle = os.open(place.config, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as sink:
        sink.write(text)
    debian_tools.link_cli(place)


def _network(place: EnginePlace, runner: Runner) -> tuple[ipaddress.IPv4Network, int]:
    """A free address range, and the MTU of the way out: a larger one loses packets silently."""
    try:
        written = json.loads(place.config.read_text())["default-address-pools"][0]["base"]
        last = ipaddress.IPv4Network(written)
    except (OSError, ValueError, LookupError):
        last = None
    routes = parse_routes(Path("/proc/net/route").read_text())
    ways_out = sorted((metric, link) for link, network, metric in routes if network.prefixlen == 0)
    taken = [network for _, network, _ in routes if network.prefixlen > 0]
    mtu = 1500
    if ways_out:
        mtu = int(Path("/sys/class/net", ways_out[0][1], "mtu").read_text())
    pool = free_pool(taken, place.tag, last)
    if last not in (None, pool):
        # dockerd gives the bridge the address that it remembers, and the networks of a user's
        # own lie in the range that is somebody else's by now.
        run_as_root(runner, ("rm", "-rf", str(place.data / "network")))
    return pool, mtu


def _start(place: EnginePlace, pool: ipaddress.IPv4Network, mtu: int, runner: Runner) -> None:
    if place.log.exists() and place.log.stat().st_size > LOG_MAX_BYTES:
        place.log.replace(place.log.with_suffix(".old"))
    place.log.touch()
    said_before = place.log.stat().st_size
    argv = (
        "sh", str(SCRIPT), "start", str(place.engine), str(place.run), place.bridge,
        str(pool), f"{pool[1]}/24", str(mtu),
    )  # fmt: skip
    pid = int(run_as_root(runner, argv).stdout)
    process = processes.of_pid(pid)
    if process is None or not processes.wait_until(
        lambda: _answers(place, runner), process, READY_S
    ):
        died = process is None or not process.runs()
        processes.stop(place, runner)
        _clean(place, runner)
        raise EngineError(
            "the private Docker Engine "
            + ("ended while starting" if died else f"did not answer within {READY_S:g} s"),
            hint=f"its whole log is {place.log}",
            detail=_tail(place.log, said_before),
        )


def _answers(place: EnginePlace, runner: Runner) -> bool:
    if not place.socket.exists():
        return False
    if place.socket.stat().st_uid != os.geteuid():
        owner = f"{os.geteuid()}:{os.getegid()}"
        run_as_root(runner, ("sh", str(SCRIPT), "own", str(place.socket), owner))
    from docker.errors import DockerException

    try:
        client = engine.docker_client(place.host)
    except EngineError:
        return False
    try:
        return bool(client.ping())
    except (DockerException, OSError):
        return False
    finally:
        client.close()


def _clean(place: EnginePlace, runner: Runner) -> None:
    """Remove what a stopped engine left in the kernel and in its run folder."""
    argv = ("clean", str(place.engine), str(place.run), place.bridge, place.cgroup)
    run_as_root(runner, ("sh", str(SCRIPT), *argv))


def _tail(log: Path, begin: int) -> str:
    data = log.read_bytes()[begin:][-LOG_TAIL_BYTES:]
    return data.decode(errors="replace")


def _size(folder: Path, runner: Runner) -> int:
    """Bytes on disk; what this user may not read counts where sudo needs no password."""
    if not folder.exists():
        return 0
    argv = ("du", "--summarize", "--one-file-system", "--block-size=1", str(folder))
    try:
        prefix = root_prefix(runner, ask=False)
    except PreflightError:
        prefix = ()
    said = runner.run((*prefix, *argv), check=False).stdout
    return int(said.split()[0]) if said else 0


@contextmanager
def _locked(place: EnginePlace, say: Callable[[str], None]) -> Iterator[None]:
    """One command at a time changes the engine; another one waits."""
    place.lock.parent.mkdir(parents=True, exist_ok=True)
    with locks.exclusive(place.lock, say, "changes the private engine"):
        yield
