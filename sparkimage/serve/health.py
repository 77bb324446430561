"""Asks a server on a node whether it is well, through the ssh connection that is open anyway."""

from __future__ import annotations

import contextlib
import http.client
import socket
from pathlib import Path

HEALTH = "/health"
ASK_S = 5.0
"""Seconds for one answer."""


class _Socket(http.client.HTTPConnection):
    """HTTP over a socket of this machine that ssh leads to the node's loopback."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(path: Path, *, timeout_s: float = ASK_S) -> int | None:
    """The status code of ``/health``; None when nobody answers."""
    with contextlib.closing(_Socket(path, timeout_s)) as connection:
        try:
            connection.request("GET", HEALTH)
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None


def words(status: int | None) -> str:
    """What the answer means."""
    if status is None:
        return "no answer"
    return "ok" if status == http.client.OK else f"HTTP {status}"
