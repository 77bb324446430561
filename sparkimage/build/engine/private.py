"""The private Docker Engine of a home: starts, stops and describes it.

For machines where no engine answers. It has its own packages, data root, socket, bridge, cgroup
and firewall rules, and the containerd image store; it does not disturb another dockerd.
"""

from __future__ import annotations

import ipaddress
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sparkimage.build.engine import emulation, engine, processes
from sparkimage.build.engine.engine import Choice, Engine
from sparkimage.core import debian_tools, files, locks
from sparkimage.core.debian_tools import engine_script
from sparkimage.core.errors import CommandError, EngineError, EnginePermissionError, PreflightError
from sparkimage.core.paths import EnginePlace
from sparkimage.core.process import Runner
from sparkimage.core.program import program
from sparkimage.core.rights import root_prefix, run_as_root

READY_S = 60.0
"""Seconds that dockerd gets until it answers; it takes 1 to 3 on an idle machine."""
MOUNTED = 3
"""Exit code of the script's purge where something is mounted below the engine's folder."""
LOG_TAIL_BYTES = 4000
LOG_MAX_BYTES = 20 * 10**6
POOLS = tuple(
    ipaddress.IPv4Network(f"{prefix}.{n}.0.0/16")
    for prefix, numbers in ((172, range(31, 17, -1)), (10, range(213, 253)))
    for n in numbers
)
"""Private address ranges (RFC 1918); first those that another dockerd would take last."""


@dataclass(frozen=True, kw_only=True)
class Status:
    """What ``engine status`` shows."""

    used: Engine | None
    why: str
    """Why this engine is used, or why none can be."""
    running: bool
    """Whether the private engine's daemon runs."""
    bridge: str | None
    """Of the private engine, while there is one."""
    size_bytes: int
    """Of all files of the private engine."""
    free_bytes: int
    """On the disk of the data root of the engine used, else of the home."""
    platforms: tuple[str, ...]
    """Those whose programs run on this machine, natively or emulated."""


def ensure(home: Path, runner: Runner, say: Callable[[str], None]) -> Engine:
    """The engine to use, as ``engine.find``; starts the private one when none answers.

    An engine that this user has no access to is an error all the same: a second engine beside it
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
    """Start the private engine unless it answers; install it where it is missing.

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
            pass  # not running, or broken: start anew
        debian_tools.install(place, runner, say)
        if processes.stop(place, runner):
            say("stopped what was left of a private engine that had died")
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
    with _locked(place, locks.silent):
        processes.stop(place, runner)
        emulation.unregister(place, runner)
        _clean(place, runner)
        if purge:
            try:
                engine_script(runner, "purge", str(place.engine), str(place.run))
            except CommandError as error:
                problem, fix = "was not removed entirely", "fix the errors below"
                if error.returncode == MOUNTED:
                    problem = "was not removed: something is mounted below it"
                    fix = f"findmnt --raw | grep {place.engine}, umount what it shows"
                raise EngineError(
                    f"{place.engine} {problem}",
                    hint=f"{fix}, then `{program()} engine down --purge`",
                    detail=error.detail,
                ) from None
            place.lock.unlink(missing_ok=True)


def status(home: Path, runner: Runner) -> Status:
    """The status of the engine; one that does not answer is no error."""
    place = EnginePlace.of(home)
    used: Engine | None = None
    try:
        used, why = engine.find_with_reason(home, runner)
    except EngineError as error:
        why = error.message
    roots = (Path(used.data_root) if used else place.engine, place.engine, *place.engine.parents)
    return Status(
        used=used,
        why=why,
        running=processes.daemon(place) is not None,
        bridge=place.bridge if Path("/sys/class/net", place.bridge).exists() else None,
        size_bytes=_size(place.engine, runner),
        free_bytes=shutil.disk_usage(next(path for path in roots if os.path.exists(path))).free,
        platforms=emulation.emulated(runner),
    )


def free_pool(
    taken: Iterable[ipaddress.IPv4Network],
    tag: str,
    last: ipaddress.IPv4Network | None = None,
) -> ipaddress.IPv4Network:
    """The first range that overlaps no network of ``taken``: the last one used, else from a start
    that depends on the home's tag, so that two homes choose differently. Pure.

    Raises ``PreflightError`` when all are taken.
    """
    networks = tuple(taken)
    first = int(tag, 16) % len(POOLS)
    preferred = () if last is None else (last,)
    for pool in preferred + POOLS[first:] + POOLS[:first]:
        if not any(pool.overlaps(network) for network in networks):
            return pool
    raise PreflightError(
        "no private address range is free for the engine's bridge",
        hint="look at `ip route`; use this machine's own Docker Engine instead",
    )


def parse_routes(text: str) -> tuple[tuple[str, ipaddress.IPv4Network, int], ...]:
    """Interface, network and metric of each line of /proc/net/route (little-endian hex; on every
    machine that this runs on). Pure."""
    routes = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        address, mask = (ipaddress.IPv4Address(bytes.fromhex(fields[n])[::-1]) for n in (1, 7))
        routes.append((fields[0], ipaddress.IPv4Network(f"{address}/{mask}"), int(fields[6])))
    return tuple(routes)


def daemon_config(
    pool: ipaddress.IPv4Network, mtu: int, cgroup: str, environment: dict[str, str]
) -> dict[str, object]:
    """The contents of dockerd's configuration file; proxies are from ``environment``. Pure."""
    config: dict[str, object] = {
        "features": {"containerd-snapshotter": True},
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "cgroup-parent": f"/{cgroup}",
        "default-address-pools": [{"base": str(pool), "size": 24}],
        # --mtu holds for the default bridge only.
        "default-network-opts": {"bridge": {"com.docker.network.driver.mtu": str(mtu)}},
        "log-level": "info",
    }
    names = ("http_proxy", "https_proxy", "no_proxy")
    proxies = {
        name.replace("_", "-"): value
        for name in names
        if (value := environment.get(name.upper()) or environment.get(name))
    }
    return {**config, "proxies": proxies} if proxies else config


def _configure(place: EnginePlace, pool: ipaddress.IPv4Network, mtu: int) -> None:
    text = json.dumps(daemon_config(pool, mtu, place.cgroup, dict(os.environ)), indent=1)
    # A proxy's address may contain a password.
    files.write(place.config, text.encode(), mode=0o600)
    debian_tools.link_cli(place)


def _network(place: EnginePlace, runner: Runner) -> tuple[ipaddress.IPv4Network, int]:
    """A free address range, and the MTU of the default route: a larger one loses packets
    silently."""
    last = None
    with suppress(OSError, ValueError, LookupError):
        config = json.loads(place.config.read_text())
        last = ipaddress.IPv4Network(config["default-address-pools"][0]["base"])
    routes = parse_routes(Path("/proc/net/route").read_text())
    defaults = sorted((metric, link) for link, network, metric in routes if network.prefixlen == 0)
    mtu = int(Path("/sys/class/net", defaults[0][1], "mtu").read_text()) if defaults else 1500
    taken = [network for _, network, _ in routes if network.prefixlen > 0]
    pool = free_pool(taken, place.tag, last)
    if last not in (None, pool):
        # dockerd would give the bridge the address that it remembers, and the user's own networks
        # are in the range that another network has now.
        run_as_root(runner, ("rm", "-rf", str(place.data / "network")))
    return pool, mtu


def _start(place: EnginePlace, pool: ipaddress.IPv4Network, mtu: int, runner: Runner) -> None:
    if place.log.exists() and place.log.stat().st_size > LOG_MAX_BYTES:
        place.log.replace(place.log.with_suffix(".old"))
    place.log.touch()
    log_size = place.log.stat().st_size
    pid = engine_script(
        runner, "start", str(place.engine), str(place.run), place.bridge, str(pool),
        f"{pool[1]}/24", str(mtu),
    ).stdout  # fmt: skip
    process = processes.of_pid(int(pid))
    if process is None or not processes.wait_until(
        lambda: _answers(place, runner), process, READY_S
    ):
        ended = process is None or not process.runs()
        processes.stop(place, runner)
        _clean(place, runner)
        output = place.log.read_bytes()[log_size:][-LOG_TAIL_BYTES:]
        raise EngineError(
            "the private Docker Engine "
            + ("ended while starting" if ended else f"did not answer within {READY_S:g} s"),
            hint=f"its whole log is {place.log}",
            detail=output.decode(errors="replace"),
        )


def _answers(place: EnginePlace, runner: Runner) -> bool:
    if not place.socket.exists():
        return False
    if place.socket.stat().st_uid != os.geteuid():
        engine_script(runner, "own", str(place.socket), f"{os.geteuid()}:{os.getegid()}")
    with suppress(EngineError):
        # The client asks for the version at once.
        engine.docker_client(place.host).close()
        return True
    return False


def _clean(place: EnginePlace, runner: Runner) -> None:
    """Remove what a stopped engine left in the kernel and in its run folder."""
    engine_script(runner, "clean", str(place.engine), str(place.run), place.bridge, place.cgroup)


def _size(folder: Path, runner: Runner) -> int:
    """Bytes on disk; those that this user may not read only where sudo needs no password."""
    if not folder.exists():
        return 0
    argv = ("du", "--summarize", "--one-file-system", "--block-size=1", str(folder))
    prefix: tuple[str, ...] = ()
    with suppress(PreflightError):
        prefix = root_prefix(runner, ask=False)
    output = runner.run((*prefix, *argv), check=False).stdout
    return int(output.split()[0]) if output else 0


@contextmanager
def _locked(place: EnginePlace, say: Callable[[str], None]) -> Iterator[None]:
    """Only one command at a time changes the engine; others wait."""
    place.lock.parent.mkdir(parents=True, exist_ok=True)
    with locks.exclusive(place.lock, say, "changes the private engine"):
        yield
