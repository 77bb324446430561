"""A node over SSH: the commands that run there, and the errors of ssh.

OpenSSH's own client is used: the user's ssh_config, agent and known_hosts apply. Host keys are
always checked, and no password is ever asked for.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import shlex
import socket
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path

from sparkimage.config.inventory import Node
from sparkimage.core.errors import CommandError, NodeError, UnreachableError
from sparkimage.core.process import Completed, Local, Runner, start_bytes

CONNECT_S = 10
TRANSPORT = 255
"""ssh's own exit code: the connection failed, not the command."""
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


@dataclass(kw_only=True)
class Remote:
    """A node that runs commands, as the ``Runner`` of this machine does."""

    node: Node
    sockets: Path
    patience_s: float = PATIENCE_S
    abandoned: threading.Event = field(default_factory=threading.Event)
    """Set when nobody waits for this node any more."""
    dials: bool | None = None
    """The engine is reached through its command, not through a forwarded socket; None: not known
    yet."""
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

    def remote_forward(self, here: Path, to: Sequence[str]) -> int:
        """A port of the loopback there that leads to the socket ``here``, as long as the
        connection that ssh reaches ``to``.

        Raises ``CommandError`` where sshd there forbids it.
        """
        forward = ["-O", "forward", "-R", f"127.0.0.1:0:{here}"]
        return int(Local().run(["ssh", *forward, *to], timeout_s=self.patience_s).stdout)

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
