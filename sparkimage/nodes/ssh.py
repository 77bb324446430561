"""A node over SSH: one connection for commands, and one for layers where it has a data address.

OpenSSH's own client is used: the user's ssh_config, agent and known_hosts hold. Host keys are
always checked, and no password is ever asked for.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import re
import shlex
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

from sparkimage.config.inventory import Node
from sparkimage.core.errors import CommandError, NodeError, UnreachableError
from sparkimage.core.process import Completed, Local, start_bytes
from sparkimage.nodes.concurrent import run_on_all

TRANSPORT = 255
"""ssh's own exit code: the connection failed, not the command."""
CONNECT_S = 10
KEEPALIVE_S = 15.0
"""Seconds between two signs of life to a node; it waits for four of them."""
LINGER_S = 1.0
"""Seconds that a connection may take to end by itself."""
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
)
QUICK = ("aes128-gcm@openssh.com",)
IMAGES, CONTAINERS, MACHINE = "images", "containers", "machine"
"""The parts that a snapshot may be asked for beside what it always says (user, Docker, disks,
network interfaces): the engine's images, our containers, what a server of models needs."""
END = "@@ end"


@contextmanager
def sockets() -> Iterator[Path]:
    """A folder for the control sockets of one run, with a short path. Removed afterwards."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    prefix = "sparkimage-ssh-"
    for old in base.glob(f"{prefix}*"):
        pid = old.name.removeprefix(prefix).partition("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(old, ignore_errors=True)
    made = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=base))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


@contextmanager
def remotes(nodes: Sequence[Node], patience_s: float) -> Iterator[list[Remote]]:
    """These nodes, not yet connected; their connections end with the context."""
    with sockets() as folder:
        made = [Remote(node=node, sockets=folder, patience_s=patience_s) for node in nodes]
        try:
            yield made
        finally:
            run_on_all(made, Remote.close)


def lock_owner() -> str:
    """Who changes the nodes' images now, for those who find them locked."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{os.uname().nodename} (process {os.getpid()})"


def script(name: str, docker: str, *words: str) -> list[str]:
    """The command that runs one of our scripts on a node, with its arguments."""
    return ["sh", "-c", text(name), name, docker, *words]


def text(name: str) -> str:
    """The text of one of our scripts for nodes."""
    return resources.files("sparkimage").joinpath("data", "node", f"{name}.sh").read_text()


@dataclass(frozen=True, kw_only=True)
class RemoteForward:
    """A port of a node's loopback that leads here, and the connection that it hangs on."""

    port: int
    connection: subprocess.Popen[bytes]


@dataclass(kw_only=True)
class Remote:
    """A node that can be talked to; a ``Runner``, as this machine is."""

    node: Node
    sockets: Path
    patience_s: float = PATIENCE_S
    heard_at: float = 0.0
    """When it had answered: seconds since 1970."""
    _opening: Future[str] | None = None
    _master: subprocess.Popen[bytes] | None = None
    _beating: threading.Event = field(default_factory=threading.Event)
    _asked: dict[str, str] | None = None
    _started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    given_up: threading.Event = field(default_factory=threading.Event)
    """Whoever waits for this node waits no more."""

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def docker(self) -> str:
        """The words that call docker there."""
        return "sudo -n docker" if self.node.sudo else "docker"

    @property
    def ssh(self) -> str:
        """How a user reaches it, to look closer."""
        port = f" -p {self.node.port}" if self.node.port else ""
        user = f"{self.node.user}@" if self.node.user else ""
        return f"ssh{port} {user}{self.node.control}"

    @property
    def hop(self) -> str:
        """The words with which ssh reaches it from another node, over the data addresses."""
        user = ["-l", self.node.user] if self.node.user else []
        port = ["-p", str(self.node.port)] if self.node.port else []
        return " ".join([*user, *port, "--", self.node.data or self.node.control])

    def snapshot(
        self, *parts: str, lock: bool = False, owner: str = "", model: str = ""
    ) -> list[str]:
        """The command that takes these parts of its snapshot, and locks it against other runs for
        as long as it holds the connection. ``owner`` is what others are told."""
        address = self.node.data or self.node.control
        wanted = " ".join(parts), "lock" if lock else "", owner
        return self.script("snapshot", *wanted, address, model)

    def script(self, name: str, *words: str) -> list[str]:
        """The command that runs one of our scripts there, with its arguments."""
        return script(name, self.docker, *words)

    def begin(self, words: Sequence[str]) -> None:
        """Begin to open the connection that all commands share, with the command that holds it.

        The command says what it has to say up to the line ``@@ end`` and then stays until its
        input ends.
        """
        pool = ThreadPoolExecutor(1)
        self._opening = pool.submit(self._open, words)
        pool.shutdown(wait=False)

    def open(self, words: Sequence[str]) -> str:
        """What that command says; it is begun now where it was not.

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
        argv = ["ssh", "-M", "-S", str(self._socket), *self._control(), shlex.join(words)]
        self._master, said = self._hold(argv)
        self.heard_at = time.time()
        self._beating.clear()
        threading.Thread(target=self._beat, args=(self._master,), daemon=True).start()
        return said

    @contextmanager
    def remote_forward(self, socket: Path) -> Iterator[RemoteForward]:
        """A port of the loopback there that leads to ``socket`` here, over the data address.

        Raises ``UnreachableError`` or ``NodeError``, and ``CommandError`` where sshd there forbids
        it.
        """
        process, path, to = self._master, self._socket, self._control()
        if self.node.data:
            path, to = self._here("data"), self._bulk()
            words = ["sh", "-c", f"echo '{END}'; cat >/dev/null"]
            argv = ["ssh", "-M", "-S", str(path), *to, shlex.join(words)]
            # One that was killed has left its own.
            path.unlink(missing_ok=True)
            process, _ = self._hold(argv, self.node.data)
        assert process is not None
        try:
            forward = ["-O", "forward", "-R", f"127.0.0.1:0:{socket}"]
            argv = ["ssh", "-S", str(path), *forward, *to]
            said = Local().run(argv, timeout_s=self.patience_s).stdout
            yield RemoteForward(port=int(said), connection=process)
        finally:
            if process is not self._master:
                _close(process)

    def _hold(
        self, argv: Sequence[str], data: str | None = None
    ) -> tuple[subprocess.Popen[bytes], str]:
        """Start what holds a connection (to the ``data`` address); what it says up to its end."""
        process = self._begin(argv)
        said: list[str] = []
        assert process.stdout is not None
        watch = Watch(process)
        with watch.limit(self.patience_s):
            for raw in process.stdout:
                line = raw.decode("utf-8", "replace").rstrip("\n")
                if line == END:
                    break
                said.append(line)
            else:
                assert process.stderr is not None
                words_said = process.stderr.read().decode("utf-8", "replace")
                code = _close(process)
                if watch.hung:
                    raise self.hangs("answer", self.patience_s)
                if code == TRANSPORT:
                    raise self._unreachable(words_said, data)
                raise NodeError(
                    f"{self.name}: its shell ended with exit code {code}",
                    detail="\n".join(said) + words_said, hint=f"look there: {self.ssh}",
                )  # fmt: skip
        watch.close()
        return process, "\n".join(said)

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
        argv = ["ssh", "-S", str(self._socket), *self._control(), shlex.join(words)]
        limit = timeout_s or self.patience_s
        try:
            done = Local().run(argv, check=False, timeout_s=limit, stdin=stdin)
        except CommandError:
            raise self.hangs("answer", limit) from None
        if done.returncode == TRANSPORT:
            raise self._unreachable(done.stderr)
        if check and done.returncode != 0:
            raise CommandError(
                [*self.ssh.split(), shlex.join(words)], done.returncode, done.stdout + done.stderr
            )
        return done

    def start(self, words: Sequence[str], *, bulk: bool = False) -> subprocess.Popen[bytes]:
        """Start a command there; ``bulk`` goes over the data address, where there is one."""
        to = (
            self._bulk() if bulk and self.node.data else ["-S", str(self._socket), *self._control()]
        )
        return self._begin(["ssh", *to, shlex.join(words)])

    def failure(
        self, process: subprocess.Popen[bytes], said: str, *, bulk: bool = False
    ) -> UnreachableError | None:
        """Why a started command that has ended could not be talked to; None when it could."""
        if process.returncode != TRANSPORT:
            return None
        return self._unreachable(said, self.node.data if bulk else None)

    def cut(self, forward: RemoteForward) -> UnreachableError:
        """Why the connection that a port hung on has ended."""
        assert forward.connection.stderr is not None
        said = forward.connection.stderr.read().decode("utf-8", "replace")
        return self._unreachable(said, self.node.data)

    def hangs(self, what: str, seconds: float) -> NodeError:
        """The error for a node that was given so many seconds: no ``what`` came of it."""
        return NodeError(
            f"{self.name}: no {what} for {seconds:g} s: it hangs",
            hint=f"look there: {self.ssh} {self.docker} info; more time: --patience SECONDS",
        )

    def forward(self, path: str) -> Path:
        """A socket here that leads to the socket ``path`` there, as long as the connection."""
        return self._forward("d", path)

    def forward_port(self, port: int) -> Path:
        """A socket here that leads to the port on the loopback there, as long as the connection.

        Raises ``CommandError`` where sshd there forbids it.
        """
        here = self._here(str(port))
        return here if here.exists() else self._forward(str(port), f"127.0.0.1:{port}")

    def _forward(self, name: str, there: str) -> Path:
        here = self._here(name)
        argv = ["ssh", "-S", str(self._socket), "-O", "forward", "-L", f"{here}:{there}"]
        Local().run([*argv, *self._control()])
        return here

    def _here(self, name: str) -> Path:
        return self.sockets / f"{self.name[:20]}.{name}"

    def close(self) -> None:
        """End the connection, and with it the lock."""
        if self._opening is not None:
            # Nobody wants to know any more.
            if not self._opening.done():
                self.abandon()
            self._opening.exception()
            self._opening = None
        self._beating.set()
        if self._master is not None:
            # It would wait for commands of which nobody wants to know any more.
            _close(self._master, LINGER_S)
            self._master = None

    def abandon(self) -> None:
        """End all that goes on with this node, at once; nothing is begun afterwards."""
        self.given_up.set()
        for process in list(self._started):
            process.kill()

    def _begin(self, argv: Sequence[str]) -> subprocess.Popen[bytes]:
        process = start_bytes(argv)
        self._started = [one for one in self._started if one.returncode is None]
        self._started.append(process)
        if self.given_up.is_set():
            process.kill()
        return process

    @property
    def _socket(self) -> Path:
        return self.sockets / self.name[:20]

    def _control(self) -> list[str]:
        return [*self._options(), "-o", f"Ciphers={self._ciphers()}", "--", self.node.control]

    def _options(self) -> list[str]:
        found = [word for option in OPTIONS for word in ("-o", option)]
        if self.node.user is not None:
            found += ["-l", self.node.user]
        if self.node.port is not None:
            found += ["-p", str(self.node.port)]
        return found

    def _bulk(self) -> list[str]:
        """To the data address, under the host key that is known for the control address."""
        known = self._settings()
        alias = known.get("hostkeyalias") or known["hostname"]
        if "hostkeyalias" not in known and known["port"] != "22":
            alias = f"[{alias}]:{known['port']}"
        return [
            *self._options(), "-o", f"Ciphers={self._ciphers()}", "-o", "ControlPath=none",
            "-o", f"HostName={self.node.data}", "-o", f"HostKeyAlias={alias}",
            "--", self.node.control,
        ]  # fmt: skip

    def _ciphers(self) -> str:
        """The user's ciphers, the one first that costs least where it is among them.

        AES-GCM takes half of the default's time on processors with AES instructions:
        docs/benchmarks.md.
        """
        listed = self._settings()["ciphers"].split(",")
        return ",".join(sorted(listed, key=lambda one: one not in QUICK))

    def _settings(self) -> dict[str, str]:
        """What ssh_config comes to for this node."""
        if self._asked is None:
            argv = ["ssh", "-G", *self._options(), "--", self.node.control]
            said = Local().run(argv).stdout
            self._asked = dict(line.split(" ", 1) for line in said.splitlines() if " " in line)
        return self._asked

    def _beat(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            while not self._beating.wait(KEEPALIVE_S):
                process.stdin.write(b".")
                process.stdin.flush()

    def _unreachable(self, said: str, data: str | None = None) -> UnreachableError:
        """``data`` is the data address, where that was talked to."""
        at = f" at its data address {data}" if data else ""
        try_ = self.ssh.replace("ssh", f"ssh -o HostName={data}", 1) if data else self.ssh
        for pattern, what, todo in DEFINITE:
            if re.search(pattern, said, re.IGNORECASE):
                return UnreachableError(
                    f"{self.name}: {what}{at and f' ({at.strip()})'}", definite=True,
                    detail=said.strip(), hint=todo.format(ssh=try_, host=self.node.control),
                )  # fmt: skip
        last = said.strip().splitlines()[-1] if said.strip() else "the connection was cut"
        return UnreachableError(
            f"{self.name} cannot be reached{at}: {last}", definite=False, hint=f"try: {try_} true"
        )


DEFINITE = (
    (
        r"host identification has changed|host key for .* has changed",
        "its host key is not the one that is known",
        "find out why before you trust it; then: ssh-keygen -R {host} and {ssh}",
    ),
    (
        r"host key verification failed|no .* host key is known",
        "its host key is not known here",
        "connect once by hand and compare the key: {ssh}",
    ),
    (
        r"permission denied \(|too many authentication failures",
        "it refuses this user's keys",
        "put your key there: ssh-copy-id {host}, or name the `user` in the fleet file",
    ),
    (
        r"could not resolve hostname",
        "its address is no host that can be found",
        "correct `control` or `data` of the node in the fleet file, or your ssh_config",
    ),
)


class Watch:
    """Kills a process when a step of the talk with it takes too long, or when the connection that
    it needs beside its own has ended."""

    def __init__(
        self, process: subprocess.Popen[bytes], needs: subprocess.Popen[bytes] | None = None
    ) -> None:
        self.process, self.needs = process, needs
        self.hung = False
        self._until: float | None = None
        self._over = threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    @contextmanager
    def limit(self, seconds: float) -> Iterator[None]:
        """What happens within may take so many seconds."""
        self.extend(seconds)
        try:
            yield
        finally:
            self._until = None

    def extend(self, seconds: float) -> None:
        """From now on so many seconds."""
        self._until = time.monotonic() + seconds

    @property
    def cut(self) -> bool:
        """Whether the other connection has ended."""
        return self.needs is not None and self.needs.poll() is not None

    def close(self) -> None:
        """Look no more."""
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(0.5) and self.process.poll() is None:
            until = self._until
            self.hung = until is not None and time.monotonic() > until
            if self.hung or self.cut:
                self.process.kill()
                return


def kill(process: subprocess.Popen[bytes]) -> None:
    """End it at once."""
    if process.poll() is None:
        process.kill()
    process.wait()
    _close_pipes(process)


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout, process.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _close(process: subprocess.Popen[bytes], seconds: float = 5.0) -> int:
    """Its exit code; it may take so long to end by itself."""
    _close_pipes(process)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
    return process.wait()
