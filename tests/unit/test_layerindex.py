"""What the index says a container sees, against really applying the layers to a folder."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkimage.image.layerindex import FACT, Entry, ImageFiles, image_files
from sparkimage.image.store import Store
from tests.unit.oci_maker import PACK, Files, make_image, tar

NAMES = ("a", "b", "c")
PATHS = [
    *NAMES,
    *(f"{x}/{y}" for x in NAMES for y in NAMES),
    *(f"{x}/{y}/{z}" for x in NAMES for y in NAMES for z in NAMES),
]


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    elif os.path.lexists(path):
        path.unlink()


def apply(root: Path, layer: bytes) -> None:
    """Unpack one layer over ``root`` as the OCI image spec says: its whiteouts first, since they
    hide only what lies below the layer."""
    with tarfile.open(fileobj=io.BytesIO(layer)) as archive:
        members = archive.getmembers()
        for member in members:
            path = root / member.name
            if path.name == ".wh..wh..opq":
                for old in path.parent.iterdir() if path.parent.is_dir() else ():
                    remove(old)
            elif path.name.startswith(".wh."):
                remove(path.with_name(path.name.removeprefix(".wh.")))
        for member in members:
            path = root / member.name
            if path.name.startswith(".wh."):
                continue
            both_folders = member.isdir() and path.is_dir() and not path.is_symlink()
            if (path.is_symlink() or path.exists()) and not both_folders:
                remove(path)
            archive.extract(member, root, filter="fully_trusted")


def seen(root: Path) -> dict[str, str]:
    found = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = Path(folder, name)
            kind = "2" if path.is_symlink() else "5" if path.is_dir() else "0"
            found[str(path.relative_to(root))] = kind
    return found


@st.composite
def stacks(draw: st.DrawFn) -> list[Files]:
    """Layers as a builder makes them: a folder before what is in it, and nothing twice."""
    stack: list[Files] = []
    for _ in range(draw(st.integers(1, 4))):
        files: Files = {}
        for path in sorted(draw(st.sets(st.sampled_from(PATHS), max_size=7))):
            above = [str(p) for p in reversed(Path(path).parents) if str(p) != "."]
            if any(files.get(p) is not None for p in above):
                continue
            files |= dict.fromkeys(above)
            folder, name = os.path.split(path)
            kind = draw(st.sampled_from(["file", "link", "folder", "whiteout", "opaque"]))
            if kind == "whiteout":
                files[os.path.join(folder, f".wh.{name}")] = b""
            elif kind == "opaque":
                files |= {path: None, f"{path}/.wh..wh..opq": b""}
            else:
                files[path] = {"file": path.encode(), "link": "nowhere", "folder": None}[kind]
        # A name is either made or removed by one layer.
        stack.append(
            {
                p: c
                for p, c in files.items()
                if not (
                    (base := os.path.basename(p)).startswith(".wh.")
                    and os.path.join(os.path.dirname(p), base[4:]) in files
                )
            }
        )
    return stack


@settings(max_examples=40, deadline=None)
@given(stack=stacks(), packed=st.sampled_from(sorted(PACK)))
def test_final_is_what_a_container_sees(
    tmp_path_factory: pytest.TempPathFactory, stack: list[Files], packed: str
) -> None:
    folder = tmp_path_factory.mktemp("stack")
    store = Store.open(folder / "store")
    root = folder / "root"
    root.mkdir()
    for files in stack:
        apply(root, tar(files))
    final = image_files(store, make_image(store, stack, packed)).final
    assert {path: entry.kind for path, entry in final.items()} == seen(root)
    shutil.rmtree(folder)


def entry(layer: int, path: str, kind: str = "0") -> Entry:
    return Entry(layer, path, kind, 1, 0o644, "")


def test_a_whiteout_hides_only_what_lies_below_its_layer() -> None:
    files = ImageFiles(((entry(0, "a"),), (entry(1, "b"), entry(1, ".wh.b"), entry(1, ".wh.a"))))
    assert list(files.final) == ["b"]


def test_folders_that_no_layer_lists_are_emptied_too() -> None:
    low = (entry(0, "usr/lib/x/y"), entry(0, "usr/bin/z"))
    assert list(ImageFiles((low, (entry(1, "usr/.wh.lib"),))).final) == ["usr/bin/z"]
    assert list(ImageFiles((low, (entry(1, "usr"),))).final) == ["usr"]
    assert list(ImageFiles((low, (entry(1, ".wh..wh..opq"),))).final) == []
    again = ((entry(1, ".wh.usr"),), (entry(2, "usr/lib/new"),), (entry(3, "usr/.wh.lib"),))
    assert list(ImageFiles((low, *again)).final) == []


def test_large_layers_are_laid_over_each_other_in_one_pass() -> None:
    # Comparing every file with every other would not end within the suite's time.
    many = [f"d{i % 300}/f{i}" for i in range(60_000)]
    low = tuple(entry(0, path) for path in many)
    top = tuple(entry(1, path) for path in many[::2])
    final = ImageFiles((low, top, (entry(2, "d1/.wh..wh..opq"),))).final
    assert len(final) == 60_000 - 200
    assert final["d0/f0"].layer == 1


@pytest.mark.parametrize("packed", PACK)
@pytest.mark.parametrize("cut", [1, 600])
def test_a_layer_that_ends_early_is_named(tmp_path: Path, packed: str, cut: int) -> None:
    store = Store.open(tmp_path)
    image = make_image(store, [{"a": os.urandom(5000)}], packed)
    path = store.path(image.layers[0].digest)
    data = path.read_bytes()
    path.chmod(0o644)
    path.write_bytes(data[:-cut])
    with pytest.raises(Exception, match=image.layers[0].digest) as error:
        image_files(store, image)
    assert type(error.value).__name__ == "StoreError"
    assert store.get_fact(FACT, image.layers[0].diff_id) is None
