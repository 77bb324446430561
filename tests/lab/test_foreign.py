"""Foreign eyes: programs of other people read an image of the store, and see what we say of it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
from pathlib import Path

import pytest

from sparkimage.core.debian_tools import install_on_host
from sparkimage.core.process import Local
from sparkimage.image import archive
from sparkimage.verify import pipeline
from tests.lab.conftest import Lab

NAME = "good"


@pytest.fixture(scope="module")
def good(lab: Lab) -> pipeline.Result:
    for program in ("skopeo", "umoci"):
        install_on_host((program,), program, Local(), print)
    return lab.build("good-amd64")


@pytest.fixture(scope="module")
def layout(lab: Lab, good: pipeline.Result, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `save` writes, unpacked: an OCI layout."""
    folder = tmp_path_factory.mktemp("foreign")
    file = folder / "image.tar"
    with file.open("wb") as sink:
        for chunk in archive.stream(good.image, NAME, lab.context.store):
            sink.write(chunk)
    with tarfile.open(file) as saved:
        saved.extractall(folder / "layout", filter="data")
    file.unlink()
    return folder / "layout"


def run(*argv: str, **environment: str) -> str:
    done = subprocess.run(
        argv, check=False, capture_output=True, text=True, env=environment or None
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_skopeo_sees_the_same_image(good: pipeline.Result, layout: Path) -> None:
    seen = json.loads(run("skopeo", "inspect", f"oci:{layout}:{NAME}"))
    assert seen["Digest"] == good.image.digest
    assert seen["Layers"] == [layer.digest for layer in good.image.layers]
    assert seen["Labels"] == dict(good.plan.labels)
    config = json.loads(run("skopeo", "inspect", "--config", f"oci:{layout}:{NAME}"))
    assert config["config"]["Entrypoint"] == ["vllm", "serve"]
    assert config["rootfs"]["diff_ids"] == [layer.diff_id for layer in good.image.layers]


@pytest.mark.thorough
def test_umoci_unpacks_what_we_say_is_in_it(
    good: pipeline.Result, layout: Path, tmp_path: Path
) -> None:
    # Debian's umoci knows no zstd: skopeo recompresses for it, which leaves every diffID.
    source, target = f"oci:{layout}:{NAME}", f"oci:{tmp_path}/gzip:{NAME}"
    run("skopeo", "copy", "--quiet", "--dest-compress-format", "gzip", source, target)
    run("umoci", "unpack", "--image", f"{tmp_path}/gzip:{NAME}", f"{tmp_path}/bundle")
    root = tmp_path / "bundle" / "rootfs"
    system = root / "usr/lib/x86_64-linux-gnu/libnccl.so.2.30.4"
    (ours,) = (check.seen for check in good.checks if check.id == "static/nccl-bytes")
    with system.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    assert digest == ours
    bundled = root / "usr/local/lib/python3.13/dist-packages/nvidia/nccl/lib/libnccl.so.2"
    assert bundled.readlink() == Path("/usr/lib/x86_64-linux-gnu/libnccl.so.2.30.4")
    spec = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert spec["process"]["args"][:2] == ["vllm", "serve"]
