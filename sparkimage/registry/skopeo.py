"""A repository of a registry, read and written by skopeo.

https://github.com/containers/skopeo. Manifests come from ``skopeo inspect --raw``, blobs from its
image proxy, which streams them without a copy on disk; both are proven against their digests.
"""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sparkimage.config.address import Place
from sparkimage.core.errors import (
    CommandError,
    NetworkError,
    PublishedError,
    RegistryError,
    SparkError,
)
from sparkimage.core.process import Runner, start_bytes
from sparkimage.image.store import INDEX, Descriptor, Store, digest_of
from sparkimage.registry.auth import CERTIFICATES, Access
from sparkimage.registry.tools import Tools

T = TypeVar("T")
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
RETRIES = 4
"""So often what can pass is tried again, after 1, 2, 4… seconds; blobs that have arrived stay."""
READ = 1 << 20
REPLY_MAX = 1 << 16
"""Bytes of a reply of the image proxy."""
ABSENT = re.compile(
    r"manifest unknown|name unknown|not known to registry|unknown: .*not found|\b404\b",
    re.IGNORECASE,
)
DENIED = r"denied|\b403\b|Forbidden"
UNAUTHORIZED = r"(?i)unauthorized|authentication required|invalid username/password|\b401\b"
PASSING = (
    r"(?i)connection re(?:fused|set)|no such host|timeout|timed out|EOF|broken pipe|i/o"
    r"|unreachable|closed network|server misbehaving|\b5\d\d\b|\b429\b|too ?many ?requests"
)
FAILURES: Sequence[tuple[str, type[SparkError], str, str]] = (
    (
        r"x509|failed to verify certificate", RegistryError,
        "the certificate of {registry} is not trusted here",
        "put its CA into {certificates}/ca.crt, or name a bundle with SSL_CERT_FILE",
    ),
    (
        r"(?i)no space left|disk quota|\b507\b", RegistryError,
        "{registry} has no room left ({what})",
        "its operator must free some; what has arrived stays, and no tag was moved",
    ),
    (UNAUTHORIZED, RegistryError, "{registry} {login}", "docker login {registry}"),
    (
        DENIED, RegistryError,
        "{registry} does not let this login write to {repository} ({what})",
        "docker login {registry} with an account that may, or ask its operator",
    ),
    (
        PASSING, NetworkError, "{registry} does not answer, or breaks off ({what})",
        "run the same command again when it is well: what has arrived there stays",
    ),
    ("", RegistryError, "{registry} refuses {what}", "look at what it says below"),
)  # fmt: skip
"""What skopeo and cosign say when they fail: the first that fits, the error, its message and hint.
"""


@dataclass(frozen=True, kw_only=True)
class Document:
    """A manifest as the registry has it, byte for byte."""

    data: bytes

    @property
    def digest(self) -> str:
        return digest_of(self.data)

    @property
    def content(self) -> dict[str, Any]:
        """Its JSON; empty for what is none."""
        try:
            read = json.loads(self.data)
        except ValueError:
            read = None
        return read if isinstance(read, dict) else {}

    @property
    def is_index(self) -> bool:
        kind = self.content.get("mediaType")
        return kind in (INDEX, DOCKER_INDEX) or (kind is None and "manifests" in self.content)


@dataclass(kw_only=True)
class Copied:
    """What became of an image's blobs."""

    uploaded: int = 0
    mounted: int = 0
    there: int = 0
    """Those that the repository had."""
    bytes: int = 0
    """Of those that were uploaded."""


@dataclass(kw_only=True)
class Repository:
    """One repository of a registry."""

    place: Place
    tools: Tools
    retries: int = RETRIES
    pause: Callable[[float], None] = time.sleep
    """Waits for so many seconds before something is tried again."""
    access: Access = field(init=False)

    def __post_init__(self) -> None:
        self.access = Access(place=self.place)

    @property
    def program(self) -> tuple[str, ...]:
        """The words that start skopeo; what is copied is judged here and by cosign, not by it."""
        return (*self.tools.skopeo, "--insecure-policy")

    @property
    def runner(self) -> Runner:
        return self.tools.runner

    # Manifests

    def ready(self) -> bool:
        """See that the registry answers and takes the login; whether the repository can be read.

        Some registries deny to read what does not exist yet. Raises as ``manifest``.
        """
        try:
            self.manifest("latest")
        except RegistryError as error:
            if not (self.access.user and re.search(DENIED, error.detail)):
                raise
            return False
        return True

    def manifest(self, reference: str) -> Document | None:
        """What a tag or a digest stands for; None where there is nothing.

        Raises ``PublishedError`` when it is not what the digest says, ``RegistryError`` for a
        definite refusal, ``NetworkError`` where the registry does not answer.
        """
        argv = [*self.program, "inspect", "--raw", *self.access.skopeo, self._name(reference)]

        def inspect() -> Document | None:
            done = self.runner.run(argv, env=self.access.environment, check=False)
            if done.returncode == 0:
                return Document(data=done.stdout.encode())
            if ABSENT.search(done.stderr) and not re.search(UNAUTHORIZED, done.stderr):
                return None
            raise self.failure(done.stderr, f"the manifest {reference}")

        found = self._retried(inspect)
        if found is None:
            return None
        if ":" in reference and found.digest != reference:
            raise PublishedError(
                f"{self.place} answers {found.digest[:19]} for the manifest {reference[:19]}",
                hint="its storage is damaged, or somebody stands between: publish it again",
            )
        return found

    def digest_of(self, tag: str) -> str | None:
        """The digest that a tag stands for now."""
        found = self.manifest(tag)
        return None if found is None else found.digest

    def tags(self) -> list[str]:
        """The tags of the repository; none where it does not exist."""
        argv = [*self.program, "list-tags", *self.access.skopeo, f"docker://{self.place}"]
        done = self.runner.run(argv, env=self.access.environment, check=False)
        return list(json.loads(done.stdout)["Tags"]) if done.returncode == 0 else []

    def copy(
        self, store: Store, image: Descriptor, moved: Callable[[str], None] = lambda _: None
    ) -> Copied:
        """Bring an image of the store, or an index whose images are there, by its digest alone.

        Blobs that the registry has are not sent again; those that another repository of it has are
        mounted. ``moved`` takes the digest of each one that is there. Raises ``StoreError`` for a
        blob that is corrupt here, which never becomes one of the registry; else as ``manifest``.
        """
        copied = Copied()

        def line(text: str) -> None:
            if "mount OK" in text:
                copied.mounted += 1
            elif (match := re.search(r"Skipping blob (sha256:\w+)", text)) is not None:
                moved(match[1])
            elif (match := re.search(r"Upload of layer (sha256:\w+) complete", text)) is not None:
                copied.uploaded += 1
                copied.bytes += store.path(match[1]).stat().st_size
                moved(match[1])

        with store.layout(image) as folder:
            try:
                self._copy(f"oci:{folder}:x", image.digest, ["--multi-arch=index-only"], line)
            except RegistryError as error:
                match = re.search(r"(?:did not match, expected|blobs/sha256/) ?(\S+)", error.detail)
                if match is None:
                    raise
                digest = f"sha256:{match[1].strip(',:').removeprefix('sha256:')}"
                raise store.damage(digest, "is missing or is corrupt") from None
        return copied

    def tag(self, digest: str, tag: str) -> None:
        """Let a tag stand for what the repository has under this digest."""
        source = [f"--src-{word.removeprefix('--')}" for word in self.access.skopeo]
        self._copy(self._name(digest), tag, [*source, "--multi-arch=index-only"])

    def _copy(
        self,
        source: str,
        to: str,
        words: Sequence[str],
        line: Callable[[str], None] = lambda _: None,
    ) -> None:
        own = [f"--dest-{word.removeprefix('--')}" for word in self.access.skopeo]
        argv = [
            # Its debugging lines alone say what became of each blob.
            *self.program, "--debug", "copy", "--preserve-digests", *own, *words, source,
            self._name(to),
        ]  # fmt: skip

        def copy() -> None:
            fatal: list[str] = []

            def one(text: str) -> None:
                line(text)
                if "level=fatal" in text:
                    fatal.append(text)

            try:
                self.runner.run(argv, env=self.access.environment, on_stderr=one)
            except CommandError as error:
                raise self.failure("".join(fatal) or error.output, "an upload") from None

        self._retried(copy)

    def _retried(self, do: Callable[[], T]) -> T:
        for attempt in range(self.retries):
            try:
                return do()
            except NetworkError:
                self.pause(2.0**attempt)
        return do()

    def _name(self, reference: str) -> str:
        return f"docker://{self.place}{'@' if ':' in reference else ':'}{reference}"

    # Blobs

    @contextmanager
    def blobs(self, digest: str) -> Iterator[Blobs]:
        """The blobs of the image ``digest``."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = [f"{name}={value}" for name, value in self.access.environment.items()]
        argv = [
            "env", *environment, *self.program, "experimental-image-proxy",
            f"--sockfd={theirs.fileno()}", *self.access.skopeo,
        ]  # fmt: skip
        process = start_bytes(argv, keep=[theirs.fileno()])
        theirs.close()
        try:
            with ours:
                made = Blobs(repository=self, socket=ours)
                made.call("Initialize")
                made.image, _, _ = made.call("OpenImage", self._name(digest))
                yield made
        finally:
            process.terminate()
            with process:
                pass

    # Failures

    def failure(self, said: str, what: str) -> SparkError:
        """The error for what skopeo or cosign said when it failed."""
        registry, lines = self.place.registry, said.strip().splitlines()
        fatal = [line for line in lines if "level=fatal" in line or line.startswith("Error:")]
        said = (fatal or lines or [""])[-1]
        said = said.partition("level=fatal msg=")[2].strip('"').replace('\\"', '"') or said
        said = said.removeprefix("Error: ")
        # The state of an upload in its address says nothing to people.
        said = re.sub(r"\?[^\s\"]*", "", said)
        user = self.access.user
        facts = {
            "registry": registry, "repository": self.place.repository, "what": what,
            "certificates": CERTIFICATES[0] / registry,
            "login": f"refuses the login of {user}" if user else "wants a login",
        }  # fmt: skip
        _, kind, message, hint = next(one for one in FAILURES if re.search(one[0], said))
        return kind(message.format(**facts), hint=hint.format(**facts), detail=said)

    def damaged(self, digest: str, seen: int, size: int) -> PublishedError:
        """The error for a blob that is not what its digest says."""
        return PublishedError(
            f"the blob {digest[:19]} is damaged in {self.place}: {seen} bytes of {size}"
            if seen != size
            else f"the blob {digest[:19]} is damaged in {self.place}: it is corrupt",
            hint="its operator must remove that blob from its storage; then publish again",
        )


@dataclass(kw_only=True)
class Blobs:
    """The blobs of one image, through skopeo's image proxy.

    https://github.com/containers/skopeo/blob/main/cmd/skopeo/proxy.go: a request is one packet of
    JSON, its reply another, with the reading end of a pipe where there are bytes to come.
    """

    repository: Repository
    socket: socket.socket
    image: Any = None

    def call(self, method: str, *words: Any) -> tuple[Any, int, int]:
        """The reply's value, its pipe, and the pipe's number. Raises as ``Repository.manifest``."""
        self._send(method, *words)
        return self._reply()

    def check(self, digest: str, size: int) -> None:
        """See that a blob is there in its size. Raises ``PublishedError``."""
        _, pipe, number = self._open(digest, size)
        os.close(pipe)
        self._send("FinishPipe", number)
        # What it says of a pipe that nobody read is of no matter.
        self.socket.recv(REPLY_MAX)

    def read(self, digest: str, size: int) -> Iterator[bytes]:
        """The bytes of a blob, proven. Raises ``PublishedError``."""
        _, pipe, number = self._open(digest, size)
        # The pipe ends when this is answered.
        self._send("FinishPipe", number)
        with os.fdopen(pipe, "rb") as source:
            while piece := source.read(READ):
                yield piece
        try:
            self._reply()
        except RegistryError:
            raise self.repository.damaged(digest, size, size) from None

    def _send(self, method: str, *words: Any) -> None:
        self.socket.send(json.dumps({"method": method, "args": words}).encode())

    def _reply(self) -> tuple[Any, int, int]:
        data, pipes, _, _ = socket.recv_fds(self.socket, REPLY_MAX, 1)
        reply: Mapping[str, Any] = json.loads(data) if data else {"error": "skopeo ended: EOF"}
        if not reply.get("success"):
            raise self.repository.failure(str(reply.get("error")), "a blob")
        return reply["value"], pipes[0] if pipes else -1, int(reply["pipeid"])

    def _open(self, digest: str, size: int) -> tuple[Any, int, int]:
        try:
            held, pipe, number = self.call("GetBlob", self.image, digest, size)
        except RegistryError as error:
            if "unknown" not in error.detail and "404" not in error.detail:
                raise
            raise PublishedError(
                f"{self.repository.place} lacks the blob {digest[:19]}",
                hint="publish the image again",
            ) from None
        if held not in (size, -1):
            os.close(pipe)
            raise self.repository.damaged(digest, held, size)
        return held, pipe, number
