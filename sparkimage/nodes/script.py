"""A command that runs on a node while this process writes to it and reads from it."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sparkimage.core.errors import NodeError
from sparkimage.nodes.ssh import TRANSPORT, Remote

POLL_S = 0.5
"""Seconds between two looks whether a command has timed out."""
CLOSE_S = 5.0
"""Seconds that a command gets to end when its streams are closed."""


class Limited:
    """What talks with a node, and is stopped when a step takes longer than its limit."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.timed_out = False
        self._deadline: float | None = None
        self._unwatched = threading.Event()

    def stop(self) -> None:
        """Whoever waits for it finds that it has ended."""
        raise NotImplementedError

    def watch(self) -> None:
        """Begin to stop what exceeds its limit."""
        threading.Thread(target=self._watch, daemon=True).start()

    @contextmanager
    def limit(self, seconds: float | None = None) -> Iterator[None]:
        """Stop it when the block takes more seconds; default: the node's ``patience_s``."""
        self.extend(self.remote.patience_s if seconds is None else seconds)
        try:
            yield
        finally:
            self._deadline = None

    def extend(self, seconds: float) -> None:
        """Set the limit to so many seconds from now."""
        self._deadline = time.monotonic() + seconds

    def unwatch(self) -> None:
        """Let it run without a limit."""
        self._unwatched.set()

    def _watch(self) -> None:
        while not self._unwatched.wait(POLL_S):
            deadline = self._deadline
            if deadline is not None and time.monotonic() > deadline:
                self.timed_out = True
                self.stop()
                return


class RemoteScript(Limited):
    """A command that is killed when a step takes longer than its limit.

    ``bulk``: over the data address, where there is one. ``master``: the arguments of ssh that make
    the connection that others share (ControlMaster). ``apart``: never through that one.
    """

    def __init__(
        self,
        remote: Remote,
        words: Sequence[str],
        *,
        bulk: bool = False,
        master: Sequence[str] = (),
        apart: bool = False,
    ) -> None:
        super().__init__(remote)
        self.bulk, self.master = bulk, bool(master)
        self._stderr: str | None = None
        self.process = remote.start(words, bulk=bulk, apart=apart, to=master)
        self.watch()

    @property
    def input(self) -> IO[bytes]:
        """Its standard input."""
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def code(self) -> int:
        """Its exit code."""
        return int(self.process.returncode)

    def write(self, data: bytes) -> None:
        """Write to its standard input. Raises ``BrokenPipeError`` or ``ValueError`` when it has
        ended."""
        self.input.write(data)
        self.input.flush()

    def lines(self) -> Iterator[str]:
        """The lines of its standard output, until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            yield line.decode("utf-8", "replace").rstrip("\n")

    def rest(self, seconds: float | None = None) -> str:
        """Close its input and wait until it ends; the rest of its output, with its errors.

        ``lost`` says whether it was killed or cut off.
        """
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            self.process.stdin = None
        with self.limit(seconds):
            stdout, stderr = self.process.communicate()
        self.unwatch()
        self._stderr = stderr.decode("utf-8", "replace")
        return stdout.decode("utf-8", "replace") + self._stderr

    def errors(self) -> str:
        """What a command that has ended wrote to its standard error."""
        if self._stderr is None:
            assert self.process.stderr is not None
            self._stderr = self.process.stderr.read().decode("utf-8", "replace")
        return self._stderr

    def lost(self) -> NodeError | None:
        """Why it did not run to its end: it timed out, or a connection failed; else None."""
        if self.timed_out:
            return self.remote.timed_out("answer" if self.master else "progress")
        if self.code == TRANSPORT:
            return self.remote.unreachable(self.errors(), bulk=self.bulk)
        return None

    def stop(self) -> None:
        if not self.ended:
            self.process.kill()

    def kill(self) -> None:
        """Kill it and close its streams."""
        self.unwatch()
        self.stop()
        self.process.wait()
        self._close_streams()

    def close(self, seconds: float = CLOSE_S) -> None:
        """Close its streams, wait so many seconds until it ends, and kill it then."""
        self.unwatch()
        self._close_streams()
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _close_streams(self) -> None:
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


@dataclass(frozen=True, kw_only=True)
class Link:
    """An ssh connection that others share."""

    script: RemoteScript
    """The command that holds it."""
    to: Sequence[str]
    """The arguments of ssh that go through it."""
    engine: Path
    """A socket here that leads to the engine's, where sshd there lets it."""
