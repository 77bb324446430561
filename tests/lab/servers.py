"""Real small servers on the loopback: a registry, a git server, a folder over HTTP."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

LOOPBACK = "127.0.0.1"
READY_S = 30.0
END_S = 10.0
ATTEMPTS = 5
"""A free port may be taken by another program before the server takes it."""


@dataclass(frozen=True, kw_only=True)
class Registry:
    """A registry that answers over plain HTTP; BuildKit takes that on the loopback."""

    address: str
    folder: Path


@dataclass(frozen=True, kw_only=True)
class Web:
    """A folder over HTTP, and the paths that were asked for, in order."""

    url: str
    seen: list[str] = field(default_factory=list)


@contextmanager
def registry(
    folder: Path, *, home: Path, tls: tuple[Path, Path] | None = None
) -> Iterator[Registry]:
    """The CNCF distribution registry with its storage in ``folder``; over TLS with a certificate
    and its key."""
    program = _registry_program(home)
    folder.mkdir(parents=True, exist_ok=True)
    secure = f', tls: {{certificate: "{tls[0]}", key: "{tls[1]}"}}' if tls is not None else ""
    with TemporaryDirectory(prefix="lab-registry-") as name:
        config = Path(name, "config.yml")

        def argv(port: int) -> list[str]:
            config.write_text(
                "version: 0.1\n"
                "log: {level: error, accesslog: {disabled: true}}\n"
                "storage:\n"
                f'  filesystem: {{rootdirectory: "{folder.resolve()}"}}\n'
                "  delete: {enabled: true}\n"
                f'http: {{addr: "{LOOPBACK}:{port}"{secure}}}\n'
            )
            return [program, "serve", str(config)]

        with _serving(argv, Path(name, "log")) as port:
            yield Registry(address=f"{LOOPBACK}:{port}", folder=folder)


@contextmanager
def git_server(base: Path) -> Iterator[str]:
    """Every repository below ``base`` over the git protocol; yields git://127.0.0.1:PORT."""

    def argv(port: int) -> list[str]:
        return [
            "git", "daemon", "--export-all", "--reuseaddr", f"--base-path={base.resolve()}",
            f"--listen={LOOPBACK}", f"--port={port}", str(base.resolve()),
        ]  # fmt: skip

    with (
        TemporaryDirectory(prefix="lab-git-") as name,
        _serving(argv, Path(name, "log")) as port,
    ):
        yield f"git://{LOOPBACK}:{port}"


@contextmanager
def http_folder(folder: Path) -> Iterator[Web]:
    """The files of ``folder`` over HTTP."""
    seen: list[str] = []
    handler = partial(_Handler, seen=seen, directory=str(folder))
    with ThreadingHTTPServer((LOOPBACK, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield Web(url=f"http://{LOOPBACK}:{server.server_port}", seen=seen)
        finally:
            server.shutdown()
            thread.join()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(self, *args: Any, seen: list[str], **more: Any) -> None:
        self.seen = seen
        super().__init__(*args, **more)

    def send_head(self) -> Any:
        self.seen.append(self.path)
        return super().send_head()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def _serving(argv: Callable[[int], Sequence[str]], log: Path) -> Iterator[int]:
    """Run ``argv(port)`` until it listens on that port; it has ended afterwards."""
    for attempt in range(1, ATTEMPTS + 1):
        port = free_port()
        with log.open("w") as out:
            process = subprocess.Popen(
                argv(port), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )
        try:
            if _listens(process, port):
                yield port
                return
        finally:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        said = log.read_text()
        if attempt == ATTEMPTS or "address already in use" not in said.lower():
            raise RuntimeError(f"{process.args!r} does not listen on port {port}:\n{said}")


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.create_server((LOOPBACK, 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until ``process`` takes connections; False when it ends or the time is over."""
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((LOOPBACK, port), timeout=1):
                return process.poll() is None
        except OSError:
            try:
                process.wait(0.02)
            except subprocess.TimeoutExpired:
                continue
            return False
    return False


def _registry_program(home: Path) -> str:
    """The registry's program: the machine's own, else out of Debian's package."""
    own = shutil.which("docker-registry")
    if own is not None:
        return own
    tree = home / "lab-tools" / "docker-registry"
    if not tree.exists():
        tree.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix="docker-registry-", dir=tree.parent) as name:
            _apt_download("docker-registry", Path(name))
            (deb,) = Path(name).glob("docker-registry_*.deb")
            made = Path(name, "tree")
            subprocess.run(["dpkg-deb", "-x", str(deb), str(made)], check=True)
            made.rename(tree)
    return str(tree / "usr" / "bin" / "docker-registry")


def _apt_download(package: str, folder: Path) -> None:
    download = ["apt-get", "-qq", "download", package]
    if subprocess.run(download, cwd=folder, check=False, capture_output=True).returncode != 0:
        subprocess.run(["apt-get", "-qq", "update"], check=True)
        subprocess.run(download, cwd=folder, check=True)
