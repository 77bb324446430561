"""A registry that the nodes reach over TLS, behind a wire, and what puts an image into it."""

from __future__ import annotations

import json
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sparkimage.image.store import Image, Store
from tests.lab import servers
from tests.lab.fleet import Fleet
from tests.lab.node import READY_S, Node, put
from tests.lab.node_image import run
from tests.lab.servers import LOOPBACK
from tests.lab.wire import Wire, wire

REPOSITORY = "team/payload"
NOTE = "dev.sparkimage.lab.note"


@dataclass(frozen=True, kw_only=True)
class Mirror:
    """The registry; see ``mirror``."""

    here: str
    """Its address for this process."""
    wire: Wire
    """Between it and the nodes."""
    authority: Path
    """The certificate of who signed its certificate."""

    @property
    def address(self) -> str:
        """Its address for the nodes."""
        return f"{self.wire.address}:{self.wire.port}"

    @property
    def repository(self) -> str:
        return f"{self.address}/{REPOSITORY}"

    def trust(self, node: Node) -> None:
        """Let the node's Docker take its certificate, as an administrator does."""
        content = self.authority.read_bytes()
        put(node, {f"/etc/docker/certs.d/{self.address}/ca.crt": (0o644, content)})

    def distrust(self, node: Node) -> None:
        node.exec("rm", "-rf", f"/etc/docker/certs.d/{self.address}")

    def push(self, store: Store, image: Image, *, annotated: bool = False) -> str:
        """Put the image there, byte by byte; returns the digest that the registry says.

        ``annotated``: as a tool does that writes the manifest anew.
        https://github.com/opencontainers/distribution-spec/blob/main/spec.md#push
        """
        manifest = store.path(image.digest).read_bytes()
        if annotated:
            changed = {**image.manifest, "annotations": {NOTE: "another manifest"}}
            manifest = json.dumps(changed).encode()
        for digest in [image.manifest["config"]["digest"], *(one.digest for one in image.layers)]:
            if self._ask("HEAD", f"blobs/{digest}") is None:
                said = self._ask("POST", "blobs/uploads/")
                assert said is not None
                location = urllib.parse.urljoin(f"https://{self.here}/", said["location"])
                mark = "&" if "?" in location else "?"
                content = store.path(digest).read_bytes()
                self._ask("PUT", f"{location}{mark}digest={urllib.parse.quote(digest)}", content)
        said = self._ask("PUT", "manifests/one", manifest, kind=image.manifest["mediaType"])
        assert said is not None
        return said["docker-content-digest"]

    def _ask(
        self, method: str, path: str, content: bytes | None = None,
        *, kind: str = "application/octet-stream",
    ) -> dict[str, str] | None:  # fmt: skip
        """The answer's headers; None where there is no such thing."""
        url = path if path.startswith("https:") else f"https://{self.here}/v2/{REPOSITORY}/{path}"
        request = urllib.request.Request(url, content, {"Content-Type": kind}, method=method)
        trusted = ssl.create_default_context(cafile=str(self.authority))
        direct = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trusted)
        )
        try:
            with direct.open(request, timeout=READY_S) as answer:
                return {key.lower(): value for key, value in answer.headers.items()}
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise


@contextmanager
def mirror(folder: Path, fleet: Fleet) -> Iterator[Mirror]:
    """A registry with its files in ``folder``, which all nodes reach and trust."""
    first = next(iter(fleet))
    gateway = run([
        *first.engine.docker, "inspect", "--format", "{{.NetworkSettings.Gateway}}",
        first.container,
    ])  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    servers.certify(folder, gateway)
    with (
        servers.registry(folder / "files", tls=folder) as registry,
        wire(gateway, (LOOPBACK, int(registry.address.rpartition(":")[2]))) as between,
    ):
        made = Mirror(here=registry.address, wire=between, authority=folder / "ca.crt")
        fleet.each(made.trust)
        yield made
        fleet.each(made.distrust)
