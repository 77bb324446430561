"""Sends files of a model down a chain of nodes, and reads what each of them proves."""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from sparkimage.core.errors import NodeError, SparkError
from sparkimage.core.progress import Moved
from sparkimage.nodes import ssh
from sparkimage.nodes.model_manifest import CHUNK, SourceFile
from sparkimage.nodes.model_node import HASH_RATE, ModelNode, words
from sparkimage.nodes.model_plan import HERE, Chain, Piece
from sparkimage.nodes.script import RemoteScript

LATE_S = 0.25
"""Seconds that a limited rate makes up for."""


class Limiter:
    """Lets no more than so many bytes a second pass, all streams together; None: any number."""

    def __init__(self, rate: float | None) -> None:
        self.rate, self.free_at = rate, time.monotonic()
        self.lock = threading.Lock()

    def take(self, count: int, stop: threading.Event) -> None:
        """Wait until ``count`` bytes may pass, or ``stop`` is set."""
        if self.rate is None:
            return
        with self.lock:
            now = time.monotonic()
            wait = max(0.0, self.free_at - now)
            # Who comes late on a busy machine may catch up.
            self.free_at = max(now - LATE_S, self.free_at) + count / self.rate
        stop.wait(wait)


@dataclass(kw_only=True)
class Report:
    """What came of all streams of an attempt."""

    proven: Callable[[str, str], None]
    """Gets a node and the sha256 of a file that has arrived there."""
    damaged: list[tuple[str, str]] = field(default_factory=list)
    """Nodes, and the sha256 of what arrived and was not that."""
    failed: dict[str, str] = field(default_factory=dict)
    """Why nodes could not keep what came."""
    cut: dict[tuple[str, str], str] = field(default_factory=dict)
    """Hops that failed, and why."""
    error: SparkError | None = None
    """What is wrong with the source."""

    def read(self, line: str) -> None:
        """Take a line of ``model.sh relay``."""
        mark, _, rest = line.partition(" ")
        node, _, rest = rest.partition(" ")
        kind, _, rest = rest.partition(" ")
        if mark != "@@":
            return
        if kind == "proven":
            self.proven(node, rest)
        elif kind == "damaged":
            self.damaged.append((node, rest))
        elif kind == "failed":
            self.failed[node] = rest
        elif kind == "cut":
            to, _, why = rest.partition(" ")
            self.cut[node, to] = why


@dataclass(kw_only=True, eq=False)
class Stream:
    """One connection, with the files that go through it."""

    chain: Chain
    nodes: Mapping[str, ModelNode]
    source: Mapping[str, SourceFile]
    """Files by their sha256."""
    limiter: Limiter
    report: Report
    name: str
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Send all, and wait until every node has proven it, or why not is in the report."""
        first, *others = (self.nodes[name] for name in self.chain.nodes)
        hops = [word for node in others for word in (*node.hop, node.name)]
        argv = words("relay", first.folder, ssh.text("model"), first.name, *hops)
        self.script = RemoteScript(first.session.remote, argv, bulk=True, apart=True)
        reader = threading.Thread(target=self._read, daemon=True)
        reader.start()
        try:
            self._send()
            self.script.input.close()
        except (BrokenPipeError, ValueError):
            pass
        except SparkError as error:
            self.report.error = error
            self.script.process.kill()
        except OSError as error:
            self.report.error = NodeError(
                f"{self.source_file}: {error.strerror}",
                hint="make it a file that this user can read",
            )
            self.script.process.kill()
        finally:
            self._finish(reader, first)

    def _finish(self, reader: threading.Thread, first: ModelNode) -> None:
        """Until the nodes have hashed what came."""
        script = self.script
        with script.limit(self._patience(self.chain.pieces)):
            reader.join()
        with contextlib.suppress(OSError, ValueError):
            script.input.close()
        script.process.stdin = None
        script.rest()
        if self.stop.is_set() or self.report.error is not None:
            return
        if (lost := script.lost()) is not None:
            self.report.cut[HERE, first.name] = lost.message
            if script.timed_out:
                # Which of them hangs shows when each is sent to from here.
                for hop in zip(self.chain.nodes, self.chain.nodes[1:], strict=False):
                    self.report.cut.setdefault(hop, lost.message)

    def kill(self) -> None:
        """End it."""
        self.stop.set()
        with contextlib.suppress(AttributeError):
            self.script.process.kill()

    def _patience(self, pieces: Sequence[Piece]) -> float:
        longest = max((piece.offset + piece.length for piece in pieces), default=0)
        first = self.nodes[self.chain.nodes[0]]
        return first.session.remote.patience_s + 2 * longest / HASH_RATE

    def _read(self) -> None:
        for line in self.script.lines():
            self.report.read(line)
            self.script.extend(self._patience(self.chain.pieces))

    def _send(self) -> None:
        with contextlib.suppress(OSError):
            fcntl.fcntl(self.script.input, fcntl.F_SETPIPE_SZ, CHUNK)
        pieces = self.chain.pieces
        lines = "".join(f"{one.offset} {one.length} {one.sha256}\n" for one in pieces)
        with self._progress():
            self.script.write(f"{len(pieces)}\n{lines}".encode())
        for piece in pieces:
            self._send_piece(piece)

    def _send_piece(self, piece: Piece) -> None:
        file = self.source[piece.sha256]
        self.source_file = file.real
        at, end = piece.offset, piece.offset + piece.length
        with file.real.open("rb") as data:
            while at < end:
                count = min(CHUNK, end - at)
                self.limiter.take(count, self.stop)
                # The kernel copies it: a read and a write here took as much as the cipher.
                with self._progress():
                    sent = os.sendfile(self.script.input.fileno(), data.fileno(), at, count)
                if not sent:
                    raise changed(file.real)
                at += sent
        if file.has_changed():
            raise changed(file.real)

    @contextmanager
    def _progress(self) -> Iterator[None]:
        """What must not take longer than the node's patience. Raises ``BrokenPipeError`` when
        nobody needs it."""
        if self.stop.is_set() or all(name in self.report.failed for name in self.chain.nodes):
            raise BrokenPipeError
        with self.script.limit():
            yield


def changed(file: Path) -> NodeError:
    """The error for a file that was written to while it was sent."""
    return NodeError(
        f"{file} has changed since it was hashed; no folder was replaced",
        hint="wait until nothing writes there, then run the same command again",
    )


def corrupt(file: Path, seen: str, name: str) -> NodeError:
    """The error for a file that is not what its name or its hash of before says."""
    return NodeError(
        f"{file} is corrupt: its sha256 is {seen[:12]}…, not {name[:12]}…; no folder was replaced",
        hint="remove it and download the model again",
    )


class Watch:
    """Tells of the bytes that arrive at a node, until it is closed."""

    def __init__(self, node: ModelNode, moved: Moved) -> None:
        self.script = RemoteScript(node.session.remote, words("watch", node.folder))
        self.seen, self.moved = node.now.arrived, moved
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self.script.lines():
                if line.isdecimal() and int(line) > self.seen:
                    self.moved(int(line) - self.seen)
                    self.seen = int(line)

    def close(self) -> None:
        """End it."""
        self.script.kill()
