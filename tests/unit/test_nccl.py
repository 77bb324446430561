"""Which build of NCCL each rank loads."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from sparkimage.core.errors import LaunchError
from sparkimage.image import layerindex
from sparkimage.image.layerindex import image_files
from sparkimage.image.store import Store
from sparkimage.image.streams import EMPTY_SHA256
from sparkimage.serve import nccl
from sparkimage.serve.nccl import Library
from tests.lab.standin_vllm import nccl as standin
from tests.unit import good_maker

PIN = Library(path="/usr/lib/x/libnccl.so.2.30.4", version="2.30.4", build_id="aa", sha256="1" * 64)
TORCH = Library(path="/opt/t/libnccl.so.2", version="2.28.9", build_id="bb", sha256="2" * 64)
SAME = Library(path="/opt/libnccl.so.2", version="2.30.4", build_id="aa", sha256="3" * 64)
OTHER = Library(path="/m/libnccl.so.2", version="2.30.4", build_id="cc", sha256="4" * 64)
GONE = Library(path="/gone/libnccl.so.2", sha256=EMPTY_SHA256)
IMAGE = (TORCH, PIN)


def test_the_library_that_was_measured() -> None:
    assert nccl.choose((TORCH, PIN), "2.30.4", {}) == PIN
    assert nccl.choose((SAME, PIN), "2.30.4", {}) == PIN
    assert nccl.choose((SAME, PIN), "2.30.4", {"LD_PRELOAD": f"/x.so:{SAME.path}"}) == SAME
    # The file that the image's own LD_PRELOAD names may not exist.
    assert nccl.choose((PIN,), "2.30.4", {"LD_PRELOAD": "/gone.so"}) == PIN
    for libraries in ((TORCH,), ()):
        with pytest.raises(LaunchError, match=r"has no NCCL 2\.30\.4"):
            nccl.choose(libraries, "2.30.4", {})


def problems(*files: Library, pinned: Library | None = PIN) -> str:
    """Of a rank with these files, beside one that is as it should be."""
    found = nccl.problems({"n1": (PIN,), "n2": files}, IMAGE, pinned)
    return "\n".join(found["n2"])


def test_files_of_nccl_that_are_as_they_should_be() -> None:
    assert problems(PIN) == ""
    # A stripped copy is the same build.
    assert problems(PIN, SAME) == ""
    assert problems(PIN, pinned=None) == ""
    assert problems(SAME, pinned=None) == ""
    assert nccl.problems({"n1": (), "n2": ()}, (), None) == {"n1": [], "n2": []}


def test_files_of_nccl_that_are_not() -> None:
    assert problems(PIN, OTHER).splitlines()[:3] == [
        "would load /m/libnccl.so.2",
        "    seen: NCCL 2.30.4, Build ID cc, sha256 444444444444…",
        "    expected: NCCL 2.30.4, Build ID aa, sha256 111111111111… (the pinned one)",
    ]
    assert "would load /opt/t/libnccl.so.2" in problems(TORCH)
    assert "/gone/libnccl.so.2 is not in its container" in problems(GONE)
    assert "/gone/libnccl.so.2 is not in its container" in problems(GONE, pinned=None)
    damaged = Library(path=PIN.path, build_id="aa", sha256="5" * 64)
    for pinned in (PIN, None):
        text = problems(damaged, pinned=pinned)
        assert f"{PIN.path} is not the file of the image: damaged there" in text
        assert "    seen: Build ID aa, sha256 555555555555…\n    expected: NCCL 2.30.4, " in text


def test_a_file_of_the_image_whose_sha256_is_not_known() -> None:
    """A large one under a name of its own."""
    own = Library(path="/opt/libnccl-own.so", version="2.30.4", build_id="aa")
    seen = {"n1": (Library(path=own.path, build_id="aa", sha256="6" * 64),)}
    assert nccl.problems(seen, (own,), own) == {"n1": []}
    other = {"n1": (Library(path=own.path, build_id="cc", sha256="6" * 64),)}
    assert "is not the file of the image" in nccl.problems(other, (own,), own)["n1"][0]


def test_ranks_that_differ_without_a_pin() -> None:
    found = nccl.problems({"n1": (SAME,), "n2": (OTHER,)}, IMAGE, None)
    one, other = (text.splitlines() for texts in found.values() for text in texts)
    assert one[:2] == [
        "would load /opt/libnccl.so.2", "    seen: NCCL 2.30.4, Build ID aa, sha256 333333333333…",
    ]  # fmt: skip
    assert "Build ID cc" in other[1]
    assert other[2] == "    expected: the same on all ranks"


def test_what_a_node_says_of_its_files() -> None:
    data = standin.library("arm64", "2.30.4")
    hashed, beginning = hashlib.sha256(data).hexdigest(), base64.b64encode(data[:500]).decode()
    said = f"@@ /a/libnccl.so.2\n{hashed}  -\n{beginning}\n@@ /gone\n{EMPTY_SHA256}  -\n\n"
    one, gone = nccl.parse(said)
    assert (one.path, one.sha256) == ("/a/libnccl.so.2", hashed)
    assert one.build_id == standin.build_id("2.30.4")
    assert (gone.path, gone.is_there) == ("/gone", False)
    assert nccl.parse("") == ()


@pytest.mark.parametrize(
    ("files", "env", "expected"),
    [
        ({}, (), {}),
        ({"etc/nccl.conf": b"# none\nOTHER=1\n"}, (), {}),
        (
            {
                "etc/nccl.conf": b"NCCL_NET=Socket\n NCCL_X=1\nNCCL_IB_GID_INDEX=3\n",
                "root/.nccl.conf": b"NCCL_IB_GID_INDEX=1\nNCCL_IB_GID_INDEX=2\n",
            },
            (),
            {
                "/root/.nccl.conf": {"NCCL_IB_GID_INDEX": "1"},
                "/etc/nccl.conf": {"NCCL_NET": "Socket", "NCCL_IB_GID_INDEX": "3"},
            },
        ),
        (
            {"root/.nccl.conf": b"NCCL_A=1\n", "opt/n": b"NCCL_B=2\n"},
            ("NCCL_CONF_FILE=/opt/n",),
            {"/opt/n": {"NCCL_B": "2"}},
        ),
    ],
)
def test_settings_in_files_of_an_image(
    tmp_path: Path, files: good_maker.Files, env: tuple[str, ...], expected: dict[str, object]
) -> None:
    store = Store.open(tmp_path / "store")
    descriptor, diff_id = good_maker.put_layer(store, {"etc/other": b"NCCL_C=3\n", **files})
    config = {
        "os": "linux", "architecture": "arm64", "config": {"Env": list(env)},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    }  # fmt: skip
    image = good_maker.put_image(store, config, [descriptor])
    found = nccl.conf(store, image, image_files(store, image))
    assert found == expected
    assert list(found) == list(expected)
    assert nccl.of_image(store, image) == ((), expected)


def test_what_is_known_of_an_image_is_read_once(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "store")
    image = good_maker.make(store)
    seen = nccl.libraries(image_files(store, image))
    assert seen
    for _ in range(2):
        assert nccl.of_image(store, image) == (seen, {})
        # It could not be read again.
        for layer in image.layers:
            store.path(layer.digest).unlink(missing_ok=True)
            store.forget_fact(layerindex.FACT, layer.diff_id)
