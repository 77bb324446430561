"""`init project`: what it writes is a project, and nothing of the user's is lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from sparkimage.cli import init
from sparkimage.config import folders, matrix
from tests.lab import command

PROJECT = Path(__file__).resolve().parents[2]
HINT = "→ choose another folder: sparkimage init project DIR"


def run(cwd: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return command.call(["init", "project", *words], os.environ, cwd=cwd)


def content(folder: Path) -> Mapping[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_a_new_project_is_one_variant_of_vllm(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "Our_Images"
    done = run(tmp_path, "new/Our_Images")
    assert (done.returncode, done.stderr) == (0, "")
    read = matrix.load(folder / "matrix.yaml")
    (variant,) = read.variants
    assert (variant.repository, variant.name) == ("our-images", "vllm0.32.0-arm64")
    assert read.warnings == ()
    assert not any(init.NAME.encode() in text for text in content(folder).values())
    written, _, following = done.stdout.partition("\nNext: ")
    assert written.split() == [f"new/Our_Images/{path}" for path in sorted(content(folder))]
    assert following.splitlines() == [
        "sparkimage --matrix-file new/Our_Images/matrix.yaml lock",
        "      sparkimage --matrix-file new/Our_Images/matrix.yaml image",
    ]


@pytest.mark.parametrize("name", ["0", "yes", "2026-11-30", "null"])
def test_a_folder_whose_name_is_no_text_in_yaml(tmp_path: Path, name: str) -> None:
    assert run(tmp_path, name).returncode == 0
    (variant,) = matrix.load(tmp_path / name / "matrix.yaml").variants
    assert variant.repository == f"images-{name}"


def test_a_full_project_is_this_one(tmp_path: Path) -> None:
    done = run(tmp_path, "all", "--full")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("Next: sparkimage --matrix-file all/matrix.yaml image\n")
    ours, theirs = (matrix.load(folder / "matrix.yaml") for folder in (PROJECT, tmp_path / "all"))
    assert theirs.variants == ours.variants
    tracked = ["git", "ls-files", "images", "patches", "matrix.yaml", "matrix.lock"]
    listed = subprocess.run(tracked, cwd=PROJECT, check=True, capture_output=True, text=True)
    assert sorted(content(tmp_path / "all")) == sorted(listed.stdout.split())


@pytest.mark.thorough
def test_a_clone_that_is_read_only_can_be_installed(tmp_path: Path) -> None:
    """As `pipx install .` and `uvx --from .` do; with the user's own index of packages."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "--quiet", PROJECT, clone], check=True)
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    alone = ["unshare", "--mount", "sh", "-c", mount, str(clone)] if os.geteuid() == 0 else []
    uvx = [str(Path(sys.executable).with_name("uvx")), "--from", str(clone), "sparkimage"]
    env = {name: value for name, value in os.environ.items()
           if name not in ("PYTHONPATH", "SPARKIMAGE_PROGRAM")}  # fmt: skip
    clone.chmod(0o555)

    def called(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*alone, *uvx, *words], cwd=tmp_path, env=env, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    done = called("init", "project", "all", "--full")
    assert done.returncode == 0, done.stderr
    assert f"Next: uvx --from {clone} sparkimage --matrix-file all/matrix.yaml image" in done.stdout
    planned = called("--matrix-file", "all/matrix.yaml", "--matrix", "--print", "json")
    assert planned.returncode == 0, planned.stderr
    variants = matrix.load(PROJECT / "matrix.yaml").variants
    assert len(json.loads(planned.stdout)) >= len(variants)
    clone.chmod(0o755)


def test_its_layer_is_ours(tmp_path: Path) -> None:
    assert run(tmp_path).returncode == 0
    path = Path("images", "serve", "Dockerfile")
    assert (tmp_path / path).read_text() == (PROJECT / path).read_text()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "images" / "serve").mkdir(parents=True)
    for name in ("README.md", "images/serve/Dockerfile", "other"):
        (tmp_path / name).write_text("mine")
    before = content(tmp_path)
    done = run(tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "error: . already has README.md, images/serve/Dockerfile", HINT
    ]  # fmt: skip
    assert content(tmp_path) == before


@pytest.mark.parametrize("folder", ["file", "file/below"])
def test_a_folder_that_cannot_be_written(tmp_path: Path, folder: str) -> None:
    (tmp_path / "file").write_text("")
    done = run(tmp_path, folder)
    assert done.returncode == 2
    assert done.stderr.startswith("error: file")
    assert "cannot be written: " in done.stderr
    assert done.stderr.endswith(f"{HINT}\n")


def test_a_projects_own_folders_go_before_the_packages(tmp_path: Path) -> None:
    for name in (folders.TOOLS, folders.BUILDER, folders.EVERY):
        ours = folders.of(tmp_path, name)
        assert (ours.name, any(ours.iterdir())) == (name, True)
        own = tmp_path / "images" / name
        # What is left of a folder that a commit removed.
        (own / "__pycache__").mkdir(parents=True)
        assert folders.of(tmp_path, name) == ours
        (own / "__pycache__").rmdir()
        assert folders.of(tmp_path, name) == own
    assert folders.of(tmp_path, "app") == tmp_path / "images" / "app"


def test_texts_name_the_program_that_was_started(tmp_path: Path) -> None:
    # As pip installs it: a script called sparkimage.
    script = tmp_path / "sparkimage"
    script.write_text("from sparkimage.cli.app import main\nmain()\n")
    assert run(tmp_path).returncode == 0
    done = subprocess.run(
        [sys.executable, str(script), "lock", "--check"], cwd=tmp_path, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)}, check=False,
    )  # fmt: skip
    assert "→ run `sparkimage lock`, and commit matrix.lock" in done.stderr
