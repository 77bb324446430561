"""Files of an image of a real registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkimage.config.address import Mirrors, Place
from sparkimage.config.lock_items import PinnedImage
from sparkimage.core.errors import Locked, LockError
from sparkimage.core.process import Local
from sparkimage.image.store import MANIFEST, Descriptor, Image, Store
from sparkimage.resolve import image_files
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.skopeo import Repository
from sparkimage.resolve.tools import Tools
from tests.lab import servers
from tests.lab.conftest import STORE
from tests.unit.oci_maker import make_image

PIN = Locked.pin("os", "1")


def descriptor(store: Store, image: Image) -> Descriptor:
    size = store.path(image.digest).stat().st_size
    return Descriptor(media_type=MANIFEST, digest=image.digest, size=size)


def test_a_file_is_read_from_a_registry(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    image = make_image(store)
    home = tmp_path / "home"
    (home / "tools").mkdir(parents=True)
    for tree in (STORE.parent / "tools").glob("registry-*"):
        (home / "tools" / tree.name).symlink_to(tree)
    with servers.registry(tmp_path / "registry") as registry:
        mirrors = Mirrors(rules={"docker.io": registry.address})
        context = ResolveContext(home=home, runner=Local(), mirrors=mirrors, say=print)
        place = Place.parse(f"{registry.address}/team/os")
        Repository(place=place, tools=Tools(outside=context)).copy(store, descriptor(store, image))
        there = PinnedImage(name="docker.io/team/os", digest=image.digest, tagged=image.digest)
        assert image_files.read_file(PIN, there, "/link", context) == b"two"
        assert image_files.read_file(PIN, there, "/opt/dir/f", context) is None
        gone = PinnedImage(name=there.name, digest=f"sha256:{'0' * 64}", tagged=image.digest)
        with pytest.raises(LockError, match=r"^pin os 1: the registry has no docker.io/team/os@"):
            image_files.read_file(PIN, gone, "/link", context)
        layer = image.layers[0].digest.removeprefix("sha256:")
        blobs = registry.folder / "docker" / "registry" / "v2" / "blobs" / "sha256"
        (blobs / layer[:2] / layer / "data").write_bytes(b"x")
        with pytest.raises(LockError, match=r"^pin os 1: ") as error:
            image_files.read_file(PIN, there, "/etc/none", context)
        assert "name a mirror" in error.value.hint
