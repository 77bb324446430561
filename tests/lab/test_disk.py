"""How much disk a build takes: each layer once as a blob, and once as files where that is short."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from sparkimage.build import builder, export, preflight
from sparkimage.build.engine import content, private
from sparkimage.config import matrix
from sparkimage.core import paths
from sparkimage.core.errors import PreflightError
from sparkimage.core.paths import EnginePlace
from sparkimage.core.process import Local
from sparkimage.image.store import Store
from sparkimage.verify import pipeline
from tests.lab import disk, hostile, servers
from tests.lab.conftest import PROJECT, REPOSITORY, Lab, spare_engine

GB = 10**9
DISK = 14 * GB
"""What GitHub's hosted runners have."""
LIMIT = 13 * GB
NAME = f"{REPOSITORY}:tiny-amd64"


class Spare(Lab):
    """The lab's project on an engine and with a store that begin with nothing."""

    def __init__(self, lab: Lab, home: Path, store: Path) -> None:
        super().__init__(lab.project, store, private.up(home, Local(), print))
        self.context = dataclasses.replace(self.context, home=home)
        self.place = EnginePlace.of(home)

    def has_cache(self) -> bool:
        """Whether BuildKit has anything in its cache."""
        output = self.runner.run([*self.engine.docker, "buildx", "du"]).stdout
        return output.split()[-2:] != ["Total:", "0B"]

    def unpacked_bytes(self) -> int:
        """Of all layers that are unpacked, in the build cache or for running."""
        driver = "io.containerd.snapshotter.v1.overlayfs"
        folder = self.place.data / "containerd" / "daemon" / driver / "snapshots"
        output = self.runner.run(["du", "--summarize", "--bytes", str(folder)]).stdout
        return int(output.split()[0])

    def blob(self, digest: str) -> Path:
        """The engine's file of a blob."""
        return self.place.data / content.BLOBS / digest.removeprefix("sha256:")


@pytest.fixture(scope="module")
def spare(lab: Lab) -> Iterator[Spare]:
    with spare_engine("disk") as (home, _):
        made = Spare(lab, home, home / "store")
        yield made
        made.said.close()


def test_a_layer_is_one_file_of_engine_and_store(spare: Spare) -> None:
    made = spare.build("tiny-amd64", rebuild=True)
    for digest, _ in made.image.blobs():
        assert spare.store.path(digest).samefile(spare.blob(digest))
        assert spare.store.is_shared(digest)
    assert spare.store.damaged(made.image.digest) == []
    assert NAME in spare.images()
    # Links that no image of the store needs are not in it.
    held = {path.name for path in (spare.store.root / "blobs" / "sha256").iterdir()}
    assert held == {d.removeprefix("sha256:") for d, _ in made.image.blobs()} | {
        made.image.digest.removeprefix("sha256:")
    }
    assert spare.has_cache()


def test_lean_drops_the_cache_and_keeps_the_image(spare: Spare) -> None:
    before = spare.build("tiny-amd64", rebuild=True)
    lean = dataclasses.replace(spare.context, lean=True)
    made = pipeline.build(before.plan, lean, rebuild=True)
    assert made.image.digest == before.image.digest
    assert not spare.has_cache()
    assert spare.docker.image.inspect(NAME).id == made.image.digest
    # Nothing is unpacked until it is run.
    assert spare.unpacked_bytes() < 1_000_000
    spare.docker.run(NAME, ["true"], remove=True)
    assert spare.build("tiny-amd64").unchanged
    # The next build starts from nothing and makes the same.
    assert spare.build("tiny-amd64", rebuild=True).image.digest == made.image.digest


@contextmanager
def own_folders(home: Path, *names: str) -> Iterator[list[Path]]:
    """Folders of a spare home's own, with links to what is in the shared ones that they are links
    to."""
    shared = {home / name: (home / name).readlink() for name in names}
    for folder, place in shared.items():
        folder.unlink()
        folder.mkdir()
        for path in place.glob("[!.]*"):
            (folder / path.name).symlink_to(path)
    yield list(shared)
    for folder, place in shared.items():
        shutil.rmtree(folder, ignore_errors=True)
        folder.symlink_to(place)


def test_layers_that_are_built_on_those_below_are_the_same(spare: Spare) -> None:
    plan = spare.plan("good-amd64")
    with builder.execute(plan, spare.context) as staged:
        whole = staged.image
    with own_folders(spare.context.home, "debs", "inputs", "roots", "tools") as folders:
        assert all(any(folder.iterdir()) for folder in folders)
        with builder.execute(plan, spare.context, lean=True) as staged:
            assert staged.image.digest == whole.digest
            assert staged.id == whole.digest
        # What the upper layers are made of has been made once more.
        debs, inputs, roots, _ = folders
        assert not debs.exists()
        assert not roots.exists()
        assert not any(inputs.glob("*/debs"))
    assert not spare.has_cache()
    assert not [name for name in spare.images() if builder.OWN in name]


def test_damage_of_a_file_that_both_have_is_mended(spare: Spare) -> None:
    made = spare.build("tiny-amd64", rebuild=True)
    layer = made.image.layers[0].digest
    path = spare.store.path(layer)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.write(data)
    assert spare.store.damaged(made.image.digest) == [layer]
    mended = spare.build("tiny-amd64", repair=True)
    assert mended.image.digest == made.image.digest
    assert spare.store.damaged(mended.image.digest) == []
    assert spare.store.path(layer).samefile(spare.blob(layer))


def test_a_store_on_another_file_system_has_files_of_its_own(spare: Spare, lab: Lab) -> None:
    with disk.file_system("other", GB) as place:
        other = Spare(lab, spare.context.home, place / "store")
        made = other.build("tiny-amd64")
        assert other.store.damaged(made.image.digest) == []
        assert not any(other.store.is_shared(digest) for digest, _ in made.image.blobs())
        other.said.close()


def test_a_short_disk_drops_the_cache_by_itself(spare: Spare) -> None:
    plan = spare.plan("tiny-amd64")
    unpacked = int(plan.download_bytes * preflight.UNPACKED)
    lean = int(plan.download_bytes * preflight.COMPRESSED) + unpacked + preflight.BASE_BYTES
    # What is cached need not be made.
    export.drop_cache(spare.context)
    with disk.file_system("short", 3 * GB) as place:
        data = EnginePlace.of(place / "home").data
        data.mkdir(parents=True)
        mine = dataclasses.replace(
            spare.context,
            home=place / "home",
            store=Store.open(place / "home" / "store"),
            engine=dataclasses.replace(spare.engine, data_root=str(data)),
        )
        users = dataclasses.replace(mine, engine=dataclasses.replace(mine.engine, private=False))

        def leave(bytes_free: int) -> None:
            filler = place / "filler"
            filler.unlink(missing_ok=True)
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, disk.free(place) - bytes_free)

        assert not preflight.check(plan, mine)
        leave(lean + 2 * unpacked)
        assert not preflight.check(plan, mine)
        leave(lean + unpacked // 2)
        assert preflight.check(plan, mine)
        with pytest.raises(PreflightError, match="needs"):
            preflight.check(plan, users)
        leave(lean - unpacked // 2)
        with pytest.raises(PreflightError, match="needs") as error:
            preflight.check(plan, mine)
        assert "free some disk" in error.value.hint
        # A cache that may be the user's own is dropped for the asking only.
        leave(2 * lean)
        with pytest.raises(PreflightError, match="needs") as error:
            preflight.check(plan, users)
        assert "sparkimage image tiny-amd64 --lean" in error.value.hint
        assert preflight.check(plan, dataclasses.replace(users, lean=True))


@pytest.mark.arm64
@pytest.mark.thorough
def test_the_default_variant_is_built_and_published_on_14_gb(tmp_path: Path) -> None:
    needed = DISK + 5 * GB
    if disk.free(paths.home()) < needed:
        pytest.skip(f"{paths.home()} has less than {needed / GB:.0f} GB free")
    with (
        servers.registry(tmp_path / "registry") as registry,
        disk.file_system("small", DISK) as place,
    ):
        key = hostile.make_key(place / "key.pem")
        (place / "tmp").mkdir()
        environment = {
            **os.environ,
            "SPARKIMAGE_HOME": str(place / "home"),
            "SPARKIMAGE_ENGINE": "private",
            "TMPDIR": str(place / "tmp"),
        }
        environment.pop("SPARKIMAGE_STORE", None)

        def run(*words: str) -> None:
            """Run it as a user does; each line that it says begins a step."""
            sampler.begin(" ".join(words[:1]))
            with subprocess.Popen(
                [sys.executable, "-P", "-m", "sparkimage", *words], cwd=PROJECT, env=environment,
                stderr=subprocess.PIPE, text=True,
            ) as process:  # fmt: skip
                assert process.stderr is not None
                said = []
                for line in process.stderr:
                    said.append(line)
                    sampler.begin(line.rstrip())
            assert process.returncode == 0, "".join(said)

        try:
            with disk.Sampler(place) as sampler:
                run("image")
                to = f"{registry.address}/spark-vllm"
                (variant,) = matrix.select(matrix.load(PROJECT / "matrix.yaml"), group="default")
                run("publish", variant.name, "--to", to, "--key", str(key))
        finally:
            private.down(place / "home", Local(), purge=True)
            print(sampler.report())
        said = "the disk is short: dropping the build cache before unpacking"
        assert any(step.endswith(said) for step in sampler.peaks)
        assert sampler.peak <= LIMIT
