"""A project of one's own from nothing: begun, locked, built and verified, all by its commands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from sparkimage.build.engine.engine import Engine
from sparkimage.image.store import Store
from tests.lab import command, standins
from tests.lab.conftest import PROJECT, REPOSITORY

CHANGES = {
    # No gigabytes, and no emulation.
    'require: ["vllm==0.32.0"]': (
        'require: ["vllm==0.32.0+standin", "torch==2.13.0+standin", '
        '"nvidia-cuda-runtime==13.0.96"], find_links: wheels, version: 0.32.0+standin'
    ),
    "[debian, python, cuda-math, cuda-sparse, cuda, compilers, cudnn, torch, vllm, serve]": (
        "[debian, python, cuda, torch, vllm, serve]"
    ),
    "platform: [linux/arm64]": "platform: [linux/amd64]",
}


def test_a_new_project_locks_and_builds(tmp_path: Path, engine: Engine) -> None:
    folder = tmp_path / f"{REPOSITORY}-new"
    folder.mkdir()
    environment = {**os.environ, "SPARKIMAGE_STORE": str(tmp_path / "store")}

    def run(*words: str) -> str:
        done = command.call(words, environment, cwd=folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert run("init", "project").endswith("\n\nNext: sparkimage lock\n      sparkimage image\n")
    text = (folder / "matrix.yaml").read_text()
    for old, new in CHANGES.items():
        assert text.count(old) == 1
        text = text.replace(old, new)
    (folder / "matrix.yaml").write_text(text)
    standins.make(folder / "wheels")
    # The same Debian packages as everywhere in the lab, which are there.
    (folder / "matrix.lock").write_text((PROJECT / "matrix.lock").read_text())
    assert "wrote matrix.lock" in run("lock")
    name = f"{folder.name}:vllm0.32.0-amd64"
    try:
        assert "checks passed, sealed" in run("image")
        assert name in Store.open(tmp_path / "store").names()
        argv = [*engine.docker, "run", "--rm", name, "--help"]
        assert (
            "usage: vllm serve"
            in subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        )
    finally:
        subprocess.run([*engine.docker, "rmi", name], check=False, capture_output=True)
