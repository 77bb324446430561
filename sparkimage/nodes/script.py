"""A script that goes on on a node while it is fed and read from here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import IO

from sparkimage.core.errors import NodeError
from sparkimage.nodes import ssh
from sparkimage.nodes.ssh import Remote, RemoteForward, Watch


class RemoteScript:
    """It is ended when a step of the talk with it takes longer than its limit, or when the
    connection ends that a lent port (``forward``) hangs on."""

    def __init__(
        self,
        remote: Remote,
        words: Sequence[str],
        *,
        bulk: bool = False,
        forward: RemoteForward | None = None,
    ) -> None:
        self.remote, self.bulk, self.forward = remote, bulk, forward
        self._complaint = ""
        self.process = remote.start(words, bulk=bulk)
        self.watch = Watch(self.process, needs=forward.connection if forward is not None else None)

    @property
    def input(self) -> IO[bytes]:
        """Its standard input."""
        assert self.process.stdin is not None
        return self.process.stdin

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    def limit(self, seconds: float | None = None) -> AbstractContextManager[None]:
        """What happens within may take so many seconds; default: the node's patience."""
        return self.watch.limit(self.remote.patience_s if seconds is None else seconds)

    def write(self, data: bytes) -> None:
        """Give it something. Raises ``BrokenPipeError`` or ``ValueError`` when it has ended."""
        self.input.write(data)
        self.input.flush()

    def lines(self) -> Iterator[str]:
        """What it says, line by line, to its end."""
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            yield raw.decode("utf-8", "replace").rstrip("\n")

    def rest(self, seconds: float | None = None) -> str:
        """End its input and wait for its end; the rest of what it says. Whether it came to its own
        end, ``lost`` says."""
        if self.process.stdin is not None:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
            self.process.stdin = None
        with self.limit(seconds):
            stdout, stderr = self.process.communicate()
        self.watch.close()
        self._complaint = stderr.decode("utf-8", "replace")
        return stdout.decode("utf-8", "replace") + self._complaint

    @property
    def code(self) -> int:
        """Its exit code."""
        return int(self.process.returncode)

    def lost(self) -> NodeError | None:
        """Why it did not come to its own end: it hung, or a connection ended."""
        if self.watch.hung:
            return self.remote.hangs("progress", self.remote.patience_s)
        if self.code != 0 and self.forward is not None and self.watch.cut:
            return self.remote.cut(self.forward)
        return self.remote.failure(self.process, self._complaint, bulk=self.bulk)

    def kill(self) -> None:
        """End it at once."""
        self.watch.close()
        ssh.kill(self.process)
