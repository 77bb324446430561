"""The connections with a node: one for commands, its engine and the lock, and one for layers where
it has a data address."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sparkimage.config.inventory import Node
from sparkimage.core.errors import NodeError, UnreachableError
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.script import Link, RemoteScript
from sparkimage.nodes.ssh import Remote

if TYPE_CHECKING:
    from sparkimage.nodes.engine_api import EngineApi

KEEPALIVE_S = 15.0
"""Seconds between two keepalives to a node, which gives up after four that are missing."""
LINGER_S = 1.0
"""Seconds that a connection gets to close."""
END = "@@ end"
ASK = "@@ ask "
"""The beginning of the line with which snapshot.sh asks for what the engine says."""
ENGINE = "/var/run/docker.sock"
"""The engine's socket where nothing else is configured."""


@contextmanager
def connections(nodes: Sequence[Node], patience_s: float) -> Iterator[list[Connection]]:
    """These nodes, not yet connected; their connections end with the context, and the folder of
    their sockets, whose path is short."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    prefix = "sparkimage-ssh-"
    for old in base.glob(f"{prefix}*"):
        pid = old.name.removeprefix(prefix).partition("-")[0]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(old, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", dir=base))
    connections = [Connection(node=node, sockets=folder, patience_s=patience_s) for node in nodes]
    try:
        yield connections
    finally:
        run_on_all(connections, Connection.close)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def begun(
    nodes: Sequence[Node], patience_s: float, *parts: str, lock: bool = False, owner: str = "",
    model: str = "",
) -> Iterator[list[Connection]]:  # fmt: skip
    """``connections`` that take a snapshot, as ``Remote.snapshot`` says: the nodes answer while the
    caller imports and reads what it needs."""
    with connections(nodes, patience_s) as remotes:
        for remote in remotes:
            remote.begin(remote.snapshot(*parts, lock=lock, owner=owner, model=model))
        yield remotes


@dataclass(kw_only=True)
class Connection(Remote):
    """A node that is connected, or will be, with its engine."""

    answered_at: float = 0.0
    """When its snapshot was complete: seconds since 1970."""
    _opening: Future[str] | None = None
    _link: Link | None = None
    _engine: EngineApi | None = None
    _closed: threading.Event = field(default_factory=threading.Event)

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

    def _keep_alive(self, master: RemoteScript) -> None:
        with contextlib.suppress(OSError, ValueError):
            while not self._closed.wait(KEEPALIVE_S):
                master.write(b".")
