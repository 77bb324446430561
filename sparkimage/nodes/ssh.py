"""A node over SSH: one connection for commands, and one for layers where it has a data address.

OpenSSH's own client is used: the user's ssh_config, agent and known_hosts apply. Host keys are
always checked, and no password is ever asked for.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from sparkimage.config.inventory import Node
from sparkimage.core.errors import CommandError, NodeError, UnreachableError
from sparkimage.core.process import Completed, Local, Runner, start_bytes
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.script import TRANSPORT, RemoteScript

if TYPE_CHECKING:
    from sparkimage.nodes.engine_api import EngineApi

CONNECT_S = 10
KEEPALIVE_S = 15.0
"""Seconds between two keepalives to a node, which gives up after four that are missing."""
LINGER_S = 1.0
"""Seconds that a connection gets to close."""
PATIENCE_S = 60.0
"""Default seconds without any progress after which a node counts as hung."""
OPTIONS = (
    "BatchMode=yes",
    f"ConnectTimeout={CONNECT_S}",
    "ServerAliveInterval=5",
    "ServerAliveCountMax=3",
    "StrictHostKeyChecking=yes",
    "ControlPersist=no",
    "Compression=no",
    "LogLevel=ERROR",
    # That of a connection that was killed is in the way.
    "StreamLocalBindUnlink=yes",
)
QUICK = ("aes128-gcm@openssh.com",)
IMAGES, CONTAINERS, MACHINE = "images", "containers", "machine"
"""The optional parts of a snapshot: the engine's images, our containers, and what serving a model
needs. The user, Docker, disks and network interfaces are always part of it."""
END = "@@ end"
ASK = "@@ ask "
"""The beginning of the line with which snapshot.sh asks for what the engine says."""
ENGINE = "/var/run/docker.sock"
"""The engine's socket where nothing else is configured."""


@contextmanager
def remotes(nodes: Sequence[Node], patience_s: float) -> Iterator[list[Remote]]:
    """These nodes, not yet connected; their connections end with the context, and the folder of
    their sockets, whose path is short."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    prefix = "sparkimage-ssh-"
    for old in base.glob(f"{prefix}*"):
        pid = old.name.removeprefix(prefix).partition("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=base))
    remotes = [Remote(node=node, sockets=folder, patience_s=patience_s) for node in nodes]
    try:
        yield remotes
    finally:
        run_on_all(remotes, Remote.close)
        shutil.rmtree(folder, ignore_errors=True)


def lock_owner() -> str:
    """Who holds the lock of the nodes' images, as other runs are told."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{os.uname().nodename} (process {os.getpid()})"


def destination(node: Node) -> list[str]:
    """The words by which ssh and ssh-copy-id reach a node."""
    port = ["-p", str(node.port)] if node.port else []
    return [*port, f"{node.user}@{node.control}" if node.user else node.control]


def settings(runner: Runner, *words: str) -> list[tuple[str, str]]:
    """What ssh would use with these words, after the user's ssh_config; some keys come several
    times. Raises ``CommandError``."""
    lines = runner.run(["ssh", "-G", *words]).stdout.splitlines()
    return [(key, value) for key, _, value in (line.partition(" ") for line in lines)]


def script(name: str, docker: str, *words: str) -> list[str]:
    """The command that runs a script of ``data/node`` on a node, with its arguments."""
    return ["sh", "-c", text(name), name, docker, *words]


def text(name: str) -> str:
    """The text of a script of ``data/node``."""
    return resources.files("sparkimage").joinpath("data", "node", f"{name}.sh").read_text()


@dataclass(frozen=True, kw_only=True)
class Link:
    """An ssh connection that others share."""

    script: RemoteScript
    """The command that holds it."""
    to: Sequence[str]
    """The arguments of ssh that go through it."""
    engine: Path
    """A socket here that leads to the engine's, where sshd there lets it."""


@dataclass(kw_only=True)
class Remote:
    """A node that runs commands, as the ``Runner`` of this machine does."""

    node: Node
    sockets: Path
    patience_s: float = PATIENCE_S
    answered_at: float = 0.0
    """When its snapshot was complete: seconds since 1970."""
    abandoned: threading.Event = field(default_factory=threading.Event)
    """Set when nobody waits for this node any more."""
    dials: bool | None = None
    """The engine is reached through its command, not through a forwarded socket; None: not known
    yet."""
    _opening: Future[str] | None = None
    _link: Link | None = None
    _engine: EngineApi | None = None
    _closed: threading.Event = field(default_factory=threading.Event)
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def docker(self) -> str:
        """The docker command there."""
        return "sudo -n docker" if self.node.sudo else "docker"

    @property
    def ssh(self) -> str:
        """The ssh command that hints show."""
        return " ".join(["ssh", *destination(self.node)])

    def hop_to(self, address: str, port: str = "") -> tuple[str, str]:
        """The arguments of ssh that reach it from another node at this address, and the lines of
        known_hosts by which that node knows it: its keys as they are known here."""
        port = port or self._ssh_config["port"]
        to = ["-l", self._ssh_config["user"], "-p", port, "--", address]
        known = "".join(f"{_known_as(address, port)} {key}\n" for key in self._host_keys)
        return shlex.join(to), known

    def snapshot(
        self, *parts: str, lock: bool = False, owner: str = "", model: str = ""
    ) -> list[str]:
        """The command that takes a snapshot with these parts. ``lock``: it also locks the node
        for ``owner`` until it ends."""
        address = self.node.data or self.node.control
        requested = " ".join(parts), "lock" if lock else "", owner
        return self.script("snapshot", *requested, address, model)

    def script(self, name: str, *words: str) -> list[str]:
        """The command that runs a script of ``data/node`` there, with its arguments."""
        return script(name, self.docker, *words)

    def begin(self, words: Sequence[str]) -> None:
        """Start to open the connection that all commands share, with the command that holds it.

        The command writes its output up to the line ``@@ end`` and then waits until its input
        ends.
        """
        pool = ThreadPoolExecutor(1)
        self._opening = pool.submit(self._open, words)
        pool.shutdown(wait=False)

    def open(self, words: Sequence[str]) -> str:
        """The output of the command that holds the connection; started now unless ``begin`` did.

        Raises ``UnreachableError`` or ``NodeError``.
        """
        if self._opening is None:
            self.begin(words)
        assert self._opening is not None
        try:
            return self._opening.result()
        finally:
            self._opening = None

    def _open(self, words: Sequence[str]) -> str:
        self._link, output = self._hold(words)
        self.answered_at = time.time()
        self._closed.clear()
        threading.Thread(target=self._keep_alive, args=(self._link.script,), daemon=True).start()
        return output

    @property
    def engine(self) -> EngineApi:
        """Its engine, through the connection that all commands share."""
        assert self._engine is not None
        return self._engine

    @contextmanager
    def bulk(self) -> Iterator[EngineApi]:
        """Its engine over the data address, where there is one.

        Raises ``UnreachableError`` or ``NodeError``.
        """
        if not self.node.data:
            yield self.engine
            return
        from sparkimage.nodes.engine_api import EngineApi

        link, _ = self._hold(["sh", "-c", f"echo '{END}'; cat >/dev/null"], bulk=True)
        try:
            yield EngineApi(self, link)
        finally:
            link.script.close()

    def remote_forward(self, here: Path, link: Link) -> int:
        """A port of the loopback there that leads to the socket ``here``, as long as the link.

        Raises ``CommandError`` where sshd there forbids it.
        """
        forward = ["-O", "forward", "-R", f"127.0.0.1:0:{here}"]
        return int(Local().run(["ssh", *forward, *link.to], timeout_s=self.patience_s).stdout)

    def look(self, words: Sequence[str]) -> str:
        """The output of another snapshot of a connected node.

        Raises ``UnreachableError`` or ``NodeError``.
        """
        with contextlib.closing(RemoteScript(self, words)) as script:
            return self._read(script, self._link)

    def _hold(self, words: Sequence[str], *, bulk: bool = False) -> tuple[Link, str]:
        """Open a connection that others share, with the command that holds it, and its output.

        A node whose sshd was too busy to answer is asked once more.
        """
        try:
            return self._held(words, bulk=bulk)
        except UnreachableError as error:
            if not error.busy:
                raise
            return self._held(words, bulk=bulk)

    def _held(self, words: Sequence[str], *, bulk: bool) -> tuple[Link, str]:
        to = ["-S", str(self._socket_of("data")), *self._bulk()] if bulk else self._control()
        engine = self._socket_of("data-engine" if bulk else "engine")
        forward = [] if self.node.sudo else ["-L", f"{engine}:{ENGINE}"]
        script = RemoteScript(self, words, bulk=bulk, master=["-M", *forward, *to])
        link = Link(script=script, to=to, engine=engine)
        return link, self._read(script, link)

    def _read(self, script: RemoteScript, link: Link | None) -> str:
        """What a script writes until its end, and what the engine says where it asks for it."""
        output: list[str] = []
        with script.limit():
            for line in script.lines():
                if line == END:
                    script.unwatch()
                    return "\n".join(output)
                if line.startswith(ASK):
                    assert link is not None
                    output += self._ask_engine(script, link, *line.removeprefix(ASK).split())
                else:
                    output.append(line)
        output.append(script.rest())
        raise script.lost() or NodeError(
            f"{self.name}: its shell ended with exit code {script.code}",
            detail="\n".join(output), hint=f"look there: {self.ssh}",
        )  # fmt: skip

    def _ask_engine(self, script: RemoteScript, link: Link, way: str, *parts: str) -> Iterator[str]:
        """What the engine says for these parts of a snapshot; the script gets what it needs of it.

        What a lost connection lacks the script's own end explains.
        """
        # Not before there is a connection: it takes longer to import than most commands need.
        from sparkimage.nodes import engine_api

        if self._engine is None or self._engine.link is not link:
            self.dials = None if way == "socket" else True
            self._engine = engine_api.EngineApi(self, link)
        with contextlib.suppress(UnreachableError, OSError):
            yield from engine_api.describe(self._engine, parts, script.write)

    def run(
        self,
        words: Sequence[str],
        *,
        timeout_s: float | None = None,
        check: bool = True,
        stdin: str | None = None,
    ) -> Completed:
        """Run a command there to its end.

        Raises ``CommandError`` when ``check`` and the exit code is not 0, ``UnreachableError``
        when the connection fails, ``NodeError`` when it does not end in time.
        """
        argv = ["ssh", *self._control(), shlex.join(words)]
        limit = timeout_s or self.patience_s
        try:
            done = Local().run(argv, check=False, timeout_s=limit, stdin=stdin)
        except CommandError:
            raise self.timed_out("answer", limit) from None
        if done.returncode == TRANSPORT:
            raise self.unreachable(done.stderr)
        if check and done.returncode != 0:
            raise CommandError(
                [*self.ssh.split(), shlex.join(words)], done.returncode, done.stdout + done.stderr
            )
        return done

    def start(
        self,
        words: Sequence[str],
        *,
        bulk: bool = False,
        apart: bool = False,
        to: Sequence[str] = (),
        stream: socket.socket | None = None,
    ) -> subprocess.Popen[bytes]:
        """Start a command there; ``bulk`` goes over the data address, where there is one, ``apart``
        in any case through a connection of its own, or with these arguments of ssh (``to``). Once
        abandoned, it is killed at once. ``stream`` as of ``start_bytes``."""
        own = bulk and (self.node.data or apart)
        to = to or (self._bulk() if own else self._control())
        process = start_bytes(["ssh", *to, shlex.join(words)], stream=stream)
        self._started = [old for old in self._started if old.returncode is None]
        self._started.append(process)
        if self.abandoned.is_set():
            process.kill()
        return process

    def unreachable(self, stderr: str, *, bulk: bool = False) -> UnreachableError:
        """The error for a connection that failed; ``bulk``: to the data address, where there is
        one."""
        data = self.node.data if bulk else None
        at = f" at its data address {data}" if data else ""
        ssh = self.ssh.replace("ssh", f"ssh -o HostName={data}", 1) if data else self.ssh
        for pattern, reason, what, hint in DEFINITE:
            if re.search(pattern, stderr, re.IGNORECASE):
                return UnreachableError(
                    f"{self.name}: {what}{at}", definite=True, reason=reason, detail=stderr.strip(),
                    hint=hint.format(ssh=ssh, host=self.node.control),
                )  # fmt: skip
        last = stderr.strip().splitlines()[-1] if stderr.strip() else "the connection was lost"
        return UnreachableError(
            f"{self.name} cannot be reached{at}: {last}",
            busy=re.search(BUSY, last) is not None, hint=f"try: {ssh} true",
        )  # fmt: skip

    def timed_out(self, what: str, seconds: float | None = None) -> NodeError:
        """The error for a node that gave no ``what`` for so many seconds; default: its patience."""
        return NodeError(
            f"{self.name}: no {what} for {seconds or self.patience_s:g} s: it hangs",
            hint=f"look there: {self.ssh} {self.docker} info; more time: --patience SECONDS",
        )

    def forward_port(self, port: int) -> Path:
        """A socket here that leads to the port on the loopback there, as long as the connection.

        Raises ``CommandError`` where sshd there forbids it.
        """
        here = self._socket_of(str(port))
        if not here.exists():
            forward = ["-O", "forward", "-L", f"{here}:127.0.0.1:{port}"]
            Local().run(["ssh", *forward, *self._control()])
        return here

    @property
    def _short(self) -> str:
        """Its name in those of sockets, whose paths are short."""
        own = re.fullmatch(r"[\w.-]{1,20}", self.name)
        return self.name if own else hashlib.sha256(self.name.encode()).hexdigest()[:20]

    def _socket_of(self, name: str) -> Path:
        return self.sockets / f"{self._short}.{name}"

    def close(self) -> None:
        """Close the connection, which ends the lock."""
        if self._opening is not None:
            # Nobody needs its result.
            if not self._opening.done():
                self.abandon()
            self._opening.exception()
            self._opening = None
        self._closed.set()
        if self._engine is not None:
            self._engine.close()
            self._engine = None
        if self._link is not None:
            # Commands that still run would keep it open.
            self._link.script.close(LINGER_S)
            self._link = None

    def abandon(self) -> None:
        """Kill every command of this node; none can be started afterwards."""
        self.abandoned.set()
        for process in list(self._started):
            process.kill()

    def _control(self) -> list[str]:
        socket = self.sockets / self._short
        return ["-S", str(socket), *self._options(), *self._ciphers(), "--", self.node.control]

    def _options(self) -> list[str]:
        user = ["-l", self.node.user] if self.node.user else []
        port = ["-p", str(self.node.port)] if self.node.port else []
        return [*(word for option in OPTIONS for word in ("-o", option)), *user, *port]

    def _bulk(self) -> list[str]:
        """To the data address, where there is one, under the host key that is known for the control
        address."""
        hostname = self.node.data or self._ssh_config["hostname"]
        return [
            *self._options(), *self._ciphers(), "-o", "ControlPath=none",
            "-o", f"HostName={hostname}", "-o", f"HostKeyAlias={self._key_name}",
            "--", self.node.control,
        ]  # fmt: skip

    @cached_property
    def _host_keys(self) -> list[str]:
        """Its keys in the files of known_hosts here."""
        names = ("userknownhostsfile", "globalknownhostsfile")
        files = [word for name in names for word in self._ssh_config.get(name, "").split()]
        found = [
            line.partition(" ")[2]
            for file in filter(os.path.exists, files)
            for line in Local()
            .run(["ssh-keygen", "-F", self._key_name, "-f", file], check=False)
            .stdout.splitlines()
            if not line.startswith(("#", "@"))
        ]
        return list(dict.fromkeys(found))

    @property
    def _key_name(self) -> str:
        """The name that its host key has in known_hosts."""
        config = self._ssh_config
        if "hostkeyalias" in config:
            return config["hostkeyalias"]
        return _known_as(config["hostname"], config["port"])

    def _ciphers(self) -> list[str]:
        """The user's ciphers, the cheapest one first where it is among them.

        AES-GCM takes half of the default's time on processors with AES instructions:
        docs/benchmarks.md.
        """
        ciphers = sorted(
            self._ssh_config["ciphers"].split(","), key=lambda cipher: cipher not in QUICK
        )
        return ["-o", f"Ciphers={','.join(ciphers)}"]

    @cached_property
    def _ssh_config(self) -> dict[str, str]:
        """What ssh_config sets for this node."""
        return dict(settings(Local(), *self._options(), "--", self.node.control))

    def _keep_alive(self, master: RemoteScript) -> None:
        with contextlib.suppress(OSError, ValueError):
            while not self._closed.wait(KEEPALIVE_S):
                master.write(b".")


def _known_as(host: str, port: str) -> str:
    """A host's name in known_hosts."""
    return host if port == "22" else f"[{host}]:{port}"


BUSY = r"banner exchange|kex_exchange_identification"
"""What ssh says where a node took the connection, and its sshd did not answer or dropped it: it
starts too slowly, or has MaxStartups logins to do. No command has been started by then."""
CHANGED_KEY, UNKNOWN_KEY, LOGIN, NO_HOST = "changed-key", "unknown-key", "login", "no-host"
DEFINITE = (
    (
        r"host identification has changed|host key for .* has changed",
        CHANGED_KEY,
        "the host key has changed",
        "find out why before you trust it; then: ssh-keygen -R {host} and {ssh}",
    ),
    (
        r"host key verification failed|no .* host key is known",
        UNKNOWN_KEY,
        "the host key is not in known_hosts",
        "connect once by hand and compare the key: {ssh}",
    ),
    (
        r"permission denied \(|too many authentication failures",
        LOGIN,
        "ssh authentication failed",
        "install your key: ssh-copy-id {host}, or set `user` in the fleet file",
    ),
    (
        r"could not resolve hostname",
        NO_HOST,
        "host name not found",
        "correct the name (`control` or `data` in a fleet file), or your ssh_config",
    ),
)
