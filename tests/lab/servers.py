"""Real small servers on the loopback: a registry, a git server, a folder over HTTP."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.lab.node import READY_S
from tests.lab.tools import TOOLS, making

LOOPBACK = "127.0.0.1"
END_S = 10.0


USER, PASSWORD = "lab", "only-for-the-lab"
HTPASSWD = "lab:$2y$04$abcdefghijklmnopqrstuuMMCJX0dpdqHp5ccjOFpzCqB5W6BHhFK\n"


@dataclass(frozen=True, kw_only=True)
class Registry:
    """A registry on the loopback; over plain HTTP, which BuildKit takes there, or TLS."""

    address: str
    folder: Path
    ca: Path | None = None
    """The CA of its certificate, which nobody knows but who is told."""


@dataclass(frozen=True, kw_only=True)
class Web:
    """A folder over HTTP, and the paths that were asked for, in order."""

    url: str
    seen: list[str] = field(default_factory=list)


@contextmanager
def registry(
    folder: Path, *, login: bool = False, tls: Path | None = None, auth: str = ""
) -> Iterator[Registry]:
    """The CNCF distribution registry with its storage in ``folder``.

    ``login``: it wants ``USER`` with ``PASSWORD``; ``tls``: a folder with what ``certify`` makes;
    ``auth``: more lines of its configuration.
    """
    program = _registry_program()
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="lab-registry-") as name:
        config = Path(name, "config.yml")
        more = auth
        if tls is not None:
            if not (tls / "server.crt").is_file():
                certify(tls)
            more = f'  tls: {{certificate: "{tls}/server.crt", key: "{tls}/server.key"}}\n{auth}'
        if login:
            Path(name, "htpasswd").write_text(HTPASSWD)
            more += f'auth:\n  htpasswd: {{realm: lab, path: "{name}/htpasswd"}}\n'

        def argv(port: int) -> list[str]:
            config.write_text(
                "version: 0.1\n"
                "log: {level: error, accesslog: {disabled: true}}\n"
                "storage:\n"
                f'  filesystem: {{rootdirectory: "{folder.resolve()}"}}\n'
                "  delete: {enabled: true}\n"
                f'http:\n  addr: "{LOOPBACK}:{port}"\n{more}'
            )
            return [program, "serve", str(config)]

        with _serving(argv, Path(name, "log")) as port:
            ca = tls / "ca.crt" if tls is not None else None
            yield Registry(address=f"{LOOPBACK}:{port}", folder=folder, ca=ca)


def certify(folder: Path, *more: str) -> None:
    """Make ``ca.crt`` and a certificate of it for the loopback (and ``more`` addresses),
    ``server.crt`` and its key."""
    from datetime import UTC, datetime, timedelta
    from ipaddress import ip_address

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    folder.mkdir(parents=True, exist_ok=True)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    names = [x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, n)]) for n in ("lab", "host")]
    addresses = [x509.IPAddress(ip_address(one)) for one in (LOOPBACK, *more)]
    now = datetime.now(UTC)
    made = []
    for key, name, is_ca in zip(keys, names, (True, False), strict=True):
        made.append(
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(keys[0].public_key()),
                critical=False,
            )
            .add_extension(
                x509.KeyUsage(
                    digital_signature=True, key_cert_sign=is_ca, crl_sign=is_ca,
                    content_commitment=False, key_encipherment=False, data_encipherment=False,
                    key_agreement=False, encipher_only=False, decipher_only=False,
                ),
                critical=True,
            )
            .sign(keys[0], hashes.SHA256())
        )  # fmt: skip
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(made[0].public_bytes(pem))
    (folder / "server.crt").write_bytes(made[1].public_bytes(pem))
    (folder / "server.key").write_bytes(
        keys[1].private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )


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


IN_A_NAMESPACE = """
mount --bind "$1" /etc/passwd; mount -t tmpfs tmpfs /run; mkdir /run/sshd
shift; exec "$@"
"""
"""What sshd finds on a machine that it is installed on: a user and a folder of its own."""


@dataclass(frozen=True, kw_only=True)
class SshServer:
    """OpenSSH's server on the loopback, which lets ``key`` in as this user."""

    address: str
    """HOST:PORT"""
    key: Path
    known_hosts: str
    """The line that a client has of it."""


@contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """An ssh server with its keys in ``folder``. Only root can run one that is not installed."""
    tree = _unpacked("openssh-server", "libwrap0")
    folder.mkdir()
    for name in ("host", "user"):
        keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(keygen, check=True)
    users = Path("/etc/passwd").read_text()
    if "\nsshd:" not in users:
        users += "sshd:x:64999:65534::/run/sshd:/usr/sbin/nologin\n"
    (folder / "passwd").write_text(users)
    libraries = [str(path) for path in (tree / "usr" / "lib").iterdir() if "-linux-" in path.name]
    # Since OpenSSH 9.8 it has several programs.
    paths = [
        f"{option} {program}\n"
        for option, program in (
            ("SshdSessionPath", tree / "usr/lib/openssh/sshd-session"),
            ("SshdAuthPath", tree / "usr/lib/openssh/sshd-auth"),
        )
        if program.is_file()
    ]

    def argv(port: int) -> list[str]:
        (folder / "sshd_config").write_text(
            f"Port {port}\nListenAddress {LOOPBACK}\nHostKey {folder}/host\n"
            f"AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
            f"PermitRootLogin yes\n{''.join(paths)}"
        )
        return [
            "unshare", "--mount", "sh", "-ec", IN_A_NAMESPACE, "sh", str(folder / "passwd"),
            "env", f"LD_LIBRARY_PATH={':'.join(libraries)}",
            str(tree / "usr/sbin/sshd"), "-D", "-e", "-f", str(folder / "sshd_config"),
        ]  # fmt: skip

    with _serving(argv, folder / "log") as port:
        host = " ".join((folder / "host.pub").read_text().split()[:2])
        yield SshServer(
            address=f"{LOOPBACK}:{port}", key=folder / "user",
            known_hosts=f"[{LOOPBACK}]:{port} {host}\n",
        )  # fmt: skip


@contextmanager
def ssh_agent(*keys: Path) -> Iterator[str]:
    """An ssh agent that has ``keys``; yields its socket."""
    # A socket's path has at most 107 bytes.
    with TemporaryDirectory(prefix="lab-agent-", dir="/tmp") as name:
        place = f"{name}/socket"
        with subprocess.Popen(["ssh-agent", "-D", "-a", place], stdout=subprocess.PIPE) as agent:
            assert agent.stdout is not None
            # It has its socket when it says where that is.
            agent.stdout.readline()
            try:
                for key in keys:
                    environment = {"PATH": os.environ["PATH"], "SSH_AUTH_SOCK": place}
                    subprocess.run(["ssh-add", "-q", str(key)], env=environment, check=True)
                yield place
            finally:
                agent.terminate()


@contextmanager
def http_folder(folder: Path) -> Iterator[Web]:
    """The files of ``folder`` over HTTP."""
    seen: list[str] = []
    handler = partial(_Handler, seen=seen, directory=str(folder))
    with answering(handler) as port:
        yield Web(url=f"http://{LOOPBACK}:{port}", seen=seen)


@contextmanager
def answering(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[int]:
    """A server whose requests ``handler`` answers; yields its port on the loopback."""
    with ThreadingHTTPServer((LOOPBACK, 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield server.server_port
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
    with quiet_port() as port:
        with log.open("w") as out:
            process = subprocess.Popen(
                argv(port), stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT
            )
        try:
            if not _listens(process, port):
                raise RuntimeError(
                    f"{process.args!r} does not listen on port {port}:\n{log.read_text()}"
                )
            yield port
        finally:
            process.terminate()
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def quiet_port() -> Iterator[int]:
    """A port of the loopback that nobody else is given meanwhile: it is bound, and does not listen,
    so that who connects is refused, and one server that sets SO_REUSEADDR may have it."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((LOOPBACK, 0))
        port: int = held.getsockname()[1]
        yield port


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


def _registry_program() -> str:
    """The registry's program: the machine's own, else out of Debian's package."""
    own = shutil.which("docker-registry")
    return own or str(_unpacked("docker-registry") / "usr" / "bin" / "docker-registry")


def _unpacked(*packages: str) -> Path:
    """The files of Debian's packages, in a folder that is called as the first of them."""
    tree = TOOLS / packages[0]
    with making(tree.name):
        if not tree.exists():
            with TemporaryDirectory(prefix=f"{tree.name}-", dir=TOOLS) as name:
                made = Path(name, "tree")
                for package in packages:
                    _apt_download(package, Path(name))
                    (deb,) = Path(name).glob(f"{package}_*.deb")
                    subprocess.run(["dpkg-deb", "-x", str(deb), str(made)], check=True)
                made.rename(tree)
    return tree


def _apt_download(package: str, folder: Path) -> None:
    download = ["apt-get", "-qq", "download", package]
    if subprocess.run(download, cwd=folder, check=False, capture_output=True).returncode != 0:
        subprocess.run(["apt-get", "-qq", "update"], check=True)
        subprocess.run(download, cwd=folder, check=True)
