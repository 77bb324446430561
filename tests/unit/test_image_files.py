"""Files of an image, read layer by layer from the top."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkimage.core.errors import LockError
from sparkimage.image.layerindex import content, image_files
from sparkimage.image.store import Descriptor as Layer
from sparkimage.image.store import Image, Store
from sparkimage.resolve.image_files import ImageLayers
from tests.unit.oci_maker import Files, make_image


def layers_of(store: Store, image: Image, cache: Path, read: list[str]) -> ImageLayers:
    """The layers of an image of a store; ``read`` gets the digest of each blob that is read."""

    def blob(layer: Layer) -> Iterator[bytes]:
        read.append(layer.digest)
        with store.open_blob(layer.digest) as source:
            while piece := source.read(7):
                yield piece

    layers = [
        Layer(digest=one.digest, size=one.size, media_type=one.media_type) for one in image.layers
    ]
    return ImageLayers(title="pin os x", layers=layers, blob=blob, cache=cache)


@pytest.mark.parametrize("packed", ["", "+gzip", "+zstd"])
def test_what_a_container_sees(tmp_path: Path, packed: str) -> None:
    store = Store.open(tmp_path / "store")
    image = make_image(store, packed=packed)
    files = layers_of(store, image, tmp_path / "cache", [])
    paths = ["/etc/a", "/link", "/etc/gone", "/opt/dir/f", "/opt/new", "/etc", "/none"]
    seen = files.read(paths)
    assert seen == dict(zip(paths, [b"two", b"two", None, None, b"n", None, None], strict=True))
    assert files.named("f") == ["/opt/dir/f"]


def test_links_of_folders_are_followed(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    base: Files = {"usr": None, "usr/lib": None, "usr/lib/a": b"old", "lib": "usr/lib", "x": "/x"}
    image = make_image(store, [base, {"usr/lib/a": b"new", "b": "../lib/a"}])
    files = layers_of(store, image, tmp_path / "cache", [])
    assert files.read(["/lib/a", "/b", "/x", "/x/y"]) == {
        "/lib/a": b"new", "/b": b"new", "/x": None, "/x/y": None,
    }  # fmt: skip


def test_no_layer_is_read_that_need_not_be(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    image = make_image(store, [{"low": b"1", "far": b"3"}, {"a": b"2"}, {"top": b"2"}])
    low, middle, top = (layer.digest for layer in image.layers)
    read: list[str] = []
    files = layers_of(store, image, tmp_path / "cache", read)
    assert (files.read(["/a"]), read) == ({"/a": b"2"}, [top, middle])
    assert files.read(["/low"]) == {"/low": b"1"}
    assert files.read(["/low", "/a", "/none"]) == {"/low": b"1", "/a": b"2", "/none": None}
    assert read == [top, middle, low]
    assert files.read(["/far"]) == {"/far": b"3"}
    assert read == [top, middle, low, low]


def test_a_hard_link_is_the_file_that_it_links_to(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("./a")
        member.size = 1
        archive.addfile(member, io.BytesIO(b"x"))
        member = tarfile.TarInfo("./b")
        member.type, member.linkname = tarfile.LNKTYPE, "./a"
        archive.addfile(member)
    layer = Layer(digest="sha256:0", size=1, media_type="application/x.tar")
    files = ImageLayers(
        title="x", layers=[layer], blob=lambda _: iter([buffer.getvalue()]), cache=tmp_path
    )
    assert files.read(["/b"]) == {"/b": b"x"}


def test_a_layer_that_is_none(tmp_path: Path) -> None:
    layer = Layer(digest="sha256:0", size=1, media_type="x.tar+gzip")
    files = ImageLayers(
        title="pin os x", layers=[layer], blob=lambda _: iter([b"x"]), cache=tmp_path
    )
    with pytest.raises(LockError, match="pin os x: the layer sha256:0 cannot be unpacked"):
        files.read(["/a"])


names = st.sampled_from(["a", "b", "a/b", "a/c", "a/b/c"])
marks = st.sampled_from([".wh.a", "a/.wh.b", "a/.wh..wh..opq", "a/b/.wh..wh..opq"])
layers = st.lists(
    st.dictionaries(names, st.binary(min_size=1, max_size=2) | st.none(), max_size=3).flatmap(
        lambda files: st.sets(marks, max_size=2).map(lambda more: files | dict.fromkeys(more, b""))
    ),
    min_size=1,
    max_size=4,
)


@given(layers)
def test_it_is_as_the_static_tier_sees_it(made: list[Files]) -> None:
    with TemporaryDirectory() as folder:
        store = Store.open(Path(folder))
        image = make_image(store, made)
        final = image_files(store, image).final
        expected = {
            path: content(store, image.layers[final[path].layer], path)
            if path in final and final[path].is_file
            else None
            for path in ("a", "b", "a/b", "a/c", "a/b/c")
        }
        seen = layers_of(store, image, Path(folder, "cache"), []).read(f"/{p}" for p in expected)
        assert {path.lstrip("/"): data for path, data in seen.items()} == expected
