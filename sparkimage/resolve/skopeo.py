"""A repository of a registry, read and written by skopeo: https://github.com/containers/skopeo.

Manifests are read by ``skopeo inspect --raw``, blobs by its image proxy, which streams them without
a copy on disk; both are verified against their digests.
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
from functools import cached_property
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
from sparkimage.image.store import DOCKER_INDEX, INDEX, Descriptor, Store
from sparkimage.image.streams import CHUNK, digest_of
from sparkimage.resolve import outputs
from sparkimage.resolve.auth import CERTIFICATES, Access
from sparkimage.resolve.tools import Tools

T = TypeVar("T")
RETRIES = 4
"""Retries after network errors, after 1, 2, 4… seconds; uploaded blobs stay."""
REPLY_MAX = 1 << 16
"""Most bytes of a reply of the image proxy."""
ABSENT = re.compile(
    r"manifest unknown|name unknown|not known to registry|unknown: .*not found|\b404\b",
    re.IGNORECASE,
)
DENIED = re.compile(r"denied|\b403\b|forbidden", re.IGNORECASE)
UNAUTHORIZED = re.compile(r"unauthorized|authentication required|\b401\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A manifest or an index, byte for byte."""

    data: bytes

    @property
    def digest(self) -> str:
        return digest_of(self.data)

    @property
    def content(self) -> dict[str, Any]:
        """Its JSON; empty where it is not valid."""
        try:
            content = json.loads(self.data)
        except ValueError:
            content = None
        return content if isinstance(content, dict) else {}

    @property
    def is_index(self) -> bool:
        kind = self.content.get("mediaType")
        return kind in (INDEX, DOCKER_INDEX) or (kind is None and "manifests" in self.content)


@dataclass(kw_only=True)
class BlobCounts:
    """What a copy did with the blobs of an image."""

    uploaded: int = 0
    mounted: int = 0
    existing: int = 0
    """Blobs that the repository already had."""
    bytes: int = 0
    """Size of the uploaded ones."""


@dataclass(kw_only=True)
class Repository:
    """One repository of a registry."""

    place: Place
    tools: Tools
    retries: int = RETRIES
    pause: Callable[[float], None] = time.sleep
    """Waits for so many seconds before a retry."""
    access: Access = field(init=False)

    def __post_init__(self) -> None:
        self.access = Access(place=self.place)

    @property
    def program(self) -> tuple[str, ...]:
        """The command line of skopeo. Its policy is off: signatures are verified by cosign."""
        return (*self.tools.skopeo, "--insecure-policy")

    @property
    def runner(self) -> Runner:
        return self.tools.runner

    # Manifests

    @cached_property
    def readable(self) -> bool:
        """Whether the repository could be read when this was first asked.

        Some registries deny access to a repository that does not exist yet. Raises as ``manifest``
        where the registry does not answer or refuses the login.
        """
        try:
            self.manifest("latest")
        except RegistryError as error:
            if not (self.access.user and DENIED.search(error.detail)):
                raise
            return False
        return True

    def manifest(self, reference: str) -> Manifest | None:
        """The manifest or index of a tag or a digest; None where there is none.

        Raises ``PublishedError`` when it does not have that digest, ``RegistryError`` when the
        registry refuses, ``NetworkError`` when it does not answer.
        """
        argv = [*self.program, "inspect", "--raw", *self.access.skopeo, self._name(reference)]

        def inspect() -> Manifest | None:
            process = self.runner.run(argv, env=self.access.environment, check=False)
            if process.returncode == 0:
                return Manifest(data=process.stdout.encode())
            if ABSENT.search(process.stderr) and not UNAUTHORIZED.search(process.stderr):
                return None
            raise self.error(process.stderr, f"the manifest {reference}")

        manifest = self._retry(inspect)
        if manifest is not None and ":" in reference and manifest.digest != reference:
            raise PublishedError(
                f"{self.place} returns {manifest.digest[:19]} for the manifest {reference[:19]}",
                hint="its storage is damaged, or a proxy changes manifests: publish it again",
            )
        return manifest

    def digest_of(self, tag: str) -> str | None:
        """The current digest of a tag."""
        manifest = self.manifest(tag)
        return None if manifest is None else manifest.digest

    def tags(self) -> list[str]:
        """The tags of the repository; none where it does not exist."""
        argv = [*self.program, "list-tags", *self.access.skopeo, f"docker://{self.place}"]
        process = self.runner.run(argv, env=self.access.environment, check=False)
        return list(json.loads(process.stdout)["Tags"]) if process.returncode == 0 else []

    def copy(
        self, store: Store, image: Descriptor, moved: Callable[[str], None] = lambda _: None
    ) -> BlobCounts:
        """Copy an image of the store, or an index whose images were copied, by digest only.

        Blobs that the repository has are skipped; those of another repository of the registry are
        mounted. ``moved`` takes the digest of each blob that is done. Raises ``StoreError`` for a
        blob that is corrupt in the store, which is not uploaded; else as ``manifest``.
        """
        counts = BlobCounts()

        def line(text: str) -> None:
            if "mount OK" in text:
                counts.mounted += 1
            elif (match := re.search(r"Skipping blob (sha256:\w+)", text)) is not None:
                moved(match[1])
            elif (match := re.search(r"Upload of layer (sha256:\w+) complete", text)) is not None:
                counts.uploaded += 1
                counts.bytes += store.path(match[1]).stat().st_size
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
        return counts

    def tag(self, digest: str, tag: str) -> None:
        """Point a tag at a digest of the repository."""
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
            # Only its debug lines say what it does with each blob.
            *self.program, "--debug", "copy", "--preserve-digests", *own, *words, source,
            self._name(to),
        ]  # fmt: skip

        def copy() -> None:
            fatal: list[str] = []

            def read(text: str) -> None:
                line(text)
                if "level=fatal" in text:
                    fatal.append(text)

            try:
                self.runner.run(argv, env=self.access.environment, on_stderr=read)
            except CommandError as error:
                raise self.error("".join(fatal) or error.output, "an upload") from None

        self._retry(copy)

    def _retry(self, action: Callable[[], T]) -> T:
        for attempt in range(self.retries):
            try:
                return action()
            except NetworkError:
                self.pause(2.0**attempt)
        return action()

    def _name(self, reference: str) -> str:
        return f"docker://{self.place}{'@' if ':' in reference else ':'}{reference}"

    # Blobs

    @contextmanager
    def blobs(self, digest: str) -> Iterator[BlobReader]:
        """Read blobs of the image ``digest``. Raises as ``manifest``."""
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
                reader = BlobReader(repository=self, socket=ours)
                reader.call("Initialize")
                reader.image, _, _ = reader.call("OpenImage", self._name(digest))
                yield reader
        finally:
            process.terminate()
            with process:
                pass

    # Errors

    def error(self, output: str, what: str) -> SparkError:
        """The error for the output of skopeo or cosign; ``what`` failed to be read or written."""
        registry, lines = self.place.registry, output.strip().splitlines()
        fatal = [line for line in lines if "level=fatal" in line or line.startswith("Error:")]
        reason = (fatal or lines or [""])[-1]
        reason = reason.partition("level=fatal msg=")[2].strip('"').replace('\\"', '"') or reason
        reason = reason.removeprefix("Error: ")
        # Without the state of an upload in its URL.
        reason = re.sub(r"\?[^\s\"]*", "", reason)
        user = self.access.user
        known = outputs.explain(
            "registry", reason, detail=reason,
            registry=registry, repository=self.place.repository, what=what,
            certificates=CERTIFICATES[0] / registry,
            login=f"refuses the login of {user}" if user else "requires a login",
        )  # fmt: skip
        assert known is not None
        return known

    def damaged_blob(self, digest: str, why: str) -> PublishedError:
        """The error for a blob that does not match its digest or size."""
        return PublishedError(
            f"the blob {digest[:19]} is damaged in {self.place}: {why}",
            hint="its operator must remove that blob from its storage; then publish again",
        )


@dataclass(kw_only=True)
class BlobReader:
    """The blobs of one image, through skopeo's image proxy.

    https://github.com/containers/skopeo/blob/main/cmd/skopeo/proxy.go: requests and replies are
    packets of JSON; a reply with data comes with the read end of a pipe.
    """

    repository: Repository
    socket: socket.socket
    image: Any = None

    def call(self, method: str, *arguments: Any) -> tuple[Any, int, int]:
        """The value of the reply, its pipe and the pipe's id. Raises as ``Repository.manifest``."""
        self._send(method, *arguments)
        return self._reply()

    def check(self, digest: str, size: int) -> None:
        """Check that a blob exists with this size in bytes. Raises ``PublishedError``."""
        pipe, pipe_id = self._open(digest, size)
        os.close(pipe)
        self._send("FinishPipe", pipe_id)
        # Ignore the reply: nobody read the pipe.
        self.socket.recv(REPLY_MAX)

    def read(self, digest: str, size: int) -> Iterator[bytes]:
        """The content of a blob, verified. Raises ``PublishedError``."""
        pipe, pipe_id = self._open(digest, size)
        # The proxy closes the pipe when it has the request.
        self._send("FinishPipe", pipe_id)
        with os.fdopen(pipe, "rb") as source:
            while piece := source.read(CHUNK):
                yield piece
        try:
            self._reply()
        except RegistryError:
            raise self.repository.damaged_blob(digest, "it is corrupt") from None

    def _send(self, method: str, *arguments: Any) -> None:
        self.socket.send(json.dumps({"method": method, "args": arguments}).encode())

    def _reply(self) -> tuple[Any, int, int]:
        data, pipes, _, _ = socket.recv_fds(self.socket, REPLY_MAX, 1)
        reply: Mapping[str, Any] = json.loads(data) if data else {"error": "skopeo exited: EOF"}
        if not reply.get("success"):
            raise self.repository.error(str(reply.get("error")), "a blob")
        return reply["value"], pipes[0] if pipes else -1, int(reply["pipeid"])

    def _open(self, digest: str, size: int) -> tuple[int, int]:
        try:
            actual, pipe, pipe_id = self.call("GetBlob", self.image, digest, size)
        except RegistryError as error:
            if "unknown" not in error.detail and "404" not in error.detail:
                raise
            raise PublishedError(
                f"{self.repository.place} lacks the blob {digest[:19]}",
                hint="publish the image again",
            ) from None
        if actual not in (size, -1):
            os.close(pipe)
            raise self.repository.damaged_blob(digest, f"{actual} bytes of {size}")
        return pipe, pipe_id
