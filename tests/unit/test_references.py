"""What a name on the command line means: through the command line, on a store with one image."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sparkimage.image.store import Store
from sparkimage.verify import plan_record, seal
from tests.lab.command import call
from tests.unit import good_maker, reference_home, seal_maker

PROJECT = Path(__file__).resolve().parents[2]
BUILT, OTHER = "vllm0.32.0-nccl2.30.4-arm64", "vllm0.32.0-nccl2.30.4-amd64"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose store has the image of ``BUILT``."""
    reference_home.make(tmp_path / "home", BUILT)
    return tmp_path / "home"


def inspect(
    home: Path, reference: str, *words: str, cwd: Path = PROJECT
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SPARKIMAGE_HOME": str(home), "SPARKIMAGE_MIRRORS": os.devnull}
    return call([*words, "inspect", reference, "--json"], environment, cwd=cwd)


def digest(home: Path) -> str:
    (held,) = Store.open(home / "store").names().values()
    return held


def test_an_image_has_a_name_an_alias_and_a_digest(home: Path) -> None:
    begin = digest(home).removeprefix("sha256:")
    names = [BUILT, f"spark-vllm:{BUILT}", "default", BUILT[:-2], begin[:4], begin[:20], begin]
    for reference in names:
        done = inspect(home, reference)
        assert done.returncode == 0, (reference, done.stderr)
        facts = json.loads(done.stdout)
        assert facts["digest"] == digest(home)
        assert facts["variant"] == BUILT
        # What is no name by itself is said.
        means = f"{reference} is {BUILT}\n"
        assert done.stderr == (means if reference in ("default", BUILT[:-2]) else "")


@pytest.mark.parametrize(
    ("reference", "code", "said", "hint"),
    [
        (OTHER, 5, f"variant {OTHER} is not built on this machine", f"sparkimage image {OTHER}"),
        (BUILT.replace("vllm", "vlm"), 5, "there is no variant or image", f"mean {BUILT!r}?"),
        ("qqqq", 5, "there is no variant or image 'qqqq'", "sparkimage images"),
        (BUILT[:-5], 2, "may be any of 2 variants", f"pass {OTHER} or {BUILT}"),
        ("ds4", 2, "'ds4' may be any of 4 variants", "ds4-flash-ga"),
    ],
)
def test_what_is_not_there_has_the_right_next_step(
    home: Path, reference: str, code: int, said: str, hint: str
) -> None:
    done = inspect(home, reference)
    assert done.returncode == code
    assert said in done.stderr
    assert hint in done.stderr


def test_a_seal_of_another_plan_is_outdated(home: Path) -> None:
    environment = {**os.environ, "SPARKIMAGE_HOME": str(home), "SPARKIMAGE_MIRRORS": os.devnull}
    store, held = Store.open(home / "store"), digest(home)

    def shown() -> tuple[str | None, str]:
        (image,) = json.loads(call(["images", "--json"], environment, cwd=PROJECT).stdout)
        text = call(["inspect", "default"], environment, cwd=PROJECT).stdout
        return image["seal"], text.splitlines()[-1]

    own = plan_record.load(store, held).current_checksum
    none = "seal\tnone for its plan and today's checks: sparkimage verify default"
    assert shown() == (None, none)
    seal.save(store, seal_maker.made(digest=held, plan="0" * 64, finished=1))
    assert shown() == ("outdated", none)
    seal.save(store, seal_maker.made(digest=held, plan=own, finished=2))
    state, row = shown()
    assert state == "PASSED static+run"
    assert row.startswith("seal\tPASSED: 2 passed")


def test_two_digests_that_begin_alike_are_told_apart(home: Path) -> None:
    store, seen = Store.open(home / "store"), dict[str, str]()
    for number in range(10_000):
        settings = {**good_maker.config([]), "comment": str(number)}
        image = good_maker.put_image(store, settings, [])
        begin = image.digest[7:11]
        if begin in seen:
            break
        seen[begin] = image.digest
    for name, held in (("other:one", image.digest), ("other:two", seen[begin])):
        store.name(name, store.descriptor(held))
    done = inspect(home, begin)
    assert done.returncode == 5
    assert f"the digests of 2 images begin with {begin}" in done.stderr
    assert image.digest[7:19] in done.stderr


def test_a_project_is_found_from_below_and_by_directory(home: Path, tmp_path: Path) -> None:
    below = PROJECT / "images"
    assert inspect(home, "default", cwd=below).returncode == 0
    assert inspect(home, "default", "-C", str(PROJECT), cwd=tmp_path).returncode == 0
    nowhere = inspect(home, "default", cwd=tmp_path)
    assert nowhere.returncode == 5
    # Files are named as they are found from where the command was called.
    below = tmp_path / "p" / "images"
    below.mkdir(parents=True)
    (tmp_path / "p" / "matrix.yaml").write_text("version: 2\n")
    for words, folder, file in (
        (("-C", "p"), tmp_path, "p/matrix.yaml"),
        ((), below, "../matrix.yaml"),
        ((), tmp_path / "p", "matrix.yaml"),
    ):
        assert f"  {file}:1: version is 2" in inspect(home, "default", *words, cwd=folder).stderr
    wrong = inspect(home, "default", "-C", str(tmp_path / "none"), cwd=tmp_path)
    assert (wrong.returncode, "No such file or directory" in wrong.stderr) == (2, True)


def test_a_strangers_matrix_above_is_left_alone(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to give a file away")
    below = tmp_path / "below"
    below.mkdir()
    shutil.copy(PROJECT / "matrix.yaml", tmp_path)
    environment = {**os.environ, "SPARKIMAGE_HOME": str(tmp_path / "home")}
    found = call(["lock", "--check"], environment, cwd=below)
    assert "the file does not exist" not in found.stderr
    os.chown(tmp_path / "matrix.yaml", 12345, -1)
    left = call(["lock", "--check"], environment, cwd=below)
    assert left.returncode == 2
    assert "the file does not exist" in left.stderr
