"""The lab: the product's own code, layers and checks on small images with real NCCL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import python_on_whales

from sparkimage import builder, lock, matrix, origin, paths, plan, resolve
from sparkimage.builder import Workshop
from sparkimage.engine import Engine, ensure
from sparkimage.plan import Plan
from sparkimage.progress import View
from sparkimage.run import Local
from sparkimage.store import Store
from tests.lab import standins

PROJECT = Path(__file__).resolve().parents[2]
BORROWED = ("_every", "_tools", "debian", "python", "cuda", "torch", "vllm", "nccl", "serve")
REPOSITORY = "sparkimage-lab"


def matrix_data() -> dict[str, Any]:
    """The lab's matrix: the real layers, a real NCCL, stand-ins for the gigabytes."""
    python = {"kind": "wheels", "python": "3.13"}
    vllm = ["vllm==0.32.0+standin", "nvidia-cuda-runtime==13.0.96"]
    links = {"find_links": "wheels"}
    layers = ["debian", "python", "cuda", "torch", "vllm", "nccl", "serve"]
    return {
        "version": 1,
        "repository": REPOSITORY,
        "pins": {
            "debian": {"trixie": {"kind": "debian", "suite": "trixie"}},
            "vllm": {
                "0.32.0+standin": {**python, **links, "require": ["torch==2.13.0+standin", *vllm]},
                "cpu": {
                    **python,
                    **links,
                    "require": ["torch==2.13.1+standin.cpu", *vllm],
                    "version": "0.32.0+standin",
                },
            },
            "nccl": {
                "2.30.4": {**python, "require": ["nvidia-nccl-cu13==2.30.4"]},
                # What the field shipped: old bytes where the new version was said to be.
                "lie": {
                    **python,
                    "require": ["nvidia-nccl-cu13==2.28.9"],
                    "version": "2.30.4",
                },
            },
        },
        "layers": {
            "debian": {"pins": ["debian"]},
            "python": {},
            "cuda": {"wheels": {"pin": "vllm", "select": ["nvidia-*"]}},
            "torch": {"wheels": {"pin": "vllm", "select": ["torch"]}},
            "vllm": {"wheels": {"pin": "vllm"}},
            "nccl": {"wheels": {"pin": "nccl"}},
            "serve": {},
        },
        "defaults": {"name": "good-{arch}", "layers": layers, "entrypoint": ["vllm", "serve"]},
        "axes": {
            "platform": ["linux/amd64", "linux/arm64"],
            "debian": ["trixie"],
            "vllm": ["0.32.0+standin"],
            "nccl": ["2.30.4"],
        },
        "include": [],
        "groups": {"default": ["good-amd64"]},
    }


class Lab:
    """A project of its own that borrows the real layers, with a store of its own."""

    def __init__(self, project: Path, store: Path, engine: Engine) -> None:
        self.project = project
        self.engine = engine
        self.runner = Local()
        from rich.console import Console

        self.said = (project / "said").open("a+")
        self.shop = Workshop(
            project=project,
            home=paths.home(),
            store=Store.open(store),
            engine=engine,
            runner=self.runner,
            view=View(Console(file=self.said, width=200)),
        )
        self.docker = python_on_whales.DockerClient(client_call=list(engine.docker))

    def add_layer(self, name: str, dockerfile: str) -> None:
        """A layer that only the lab has."""
        folder = self.project / "images" / name
        folder.mkdir(exist_ok=True)
        (folder / "Dockerfile").write_text(dockerfile)

    def write(self, data: dict[str, Any]) -> None:
        # JSON is YAML.
        (self.project / "matrix.yaml").write_text(json.dumps(data, indent=1))

    def lock(self) -> None:
        read = matrix.load(self.project / "matrix.yaml")
        made = resolve.resolve(read, self.runner, lambda _line: None)
        (self.project / "matrix.lock").write_text(lock.dump(made))

    def plan(self, name: str) -> Plan:
        read = matrix.load(self.project / "matrix.yaml")
        held = lock.load(self.project / "matrix.lock")
        (variant,) = matrix.select(read, names=[name])
        return plan.make(read, variant, held, origin.of(self.project, None, self.runner))

    def build(self, name: str, **options: bool) -> builder.Result:
        return builder.build(self.plan(name), self.shop, **options)

    def environment(self, **more: str) -> dict[str, str]:
        return {**os.environ, "SPARKIMAGE_STORE": str(self.shop.store.root), **more}

    def argv(self, *words: str) -> list[str]:
        return [
            sys.executable, "-m", "sparkimage",
            "--matrix-file", str(self.project / "matrix.yaml"), *words,
        ]  # fmt: skip

    def run(self, *words: str, **more: str) -> subprocess.CompletedProcess[str]:
        """The command line, as a user calls it."""
        return subprocess.run(
            self.argv(*words),
            env=self.environment(**more),
            capture_output=True,
            text=True,
            check=False,
        )

    def images(self) -> set[str]:
        """The lab's names in the engine."""
        return {
            tag
            for image in self.docker.image.list()
            for tag in image.repo_tags
            if tag.startswith(f"{REPOSITORY}:")
        }


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The engine that the product would use, set up where there is none."""
    return ensure(paths.home(), Local(), print)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[Lab]:
    """The lab's project, locked; what it named is gone afterwards."""
    project = tmp_path_factory.mktemp("lab")
    (project / "images").mkdir()
    for name in BORROWED:
        (project / "images" / name).symlink_to(PROJECT / "images" / name)
    standins.make(project / "wheels")
    # On the home's disk: a temporary folder may be memory.
    made = Lab(project, paths.home() / "lab-store", engine)
    data = matrix_data()
    from tests.lab.wrong import WRONG, add

    for wrong in WRONG:
        add(made, data, wrong)
    made.write(data)
    made.lock()
    yield made
    for name in made.images():
        made.docker.image.remove(name, force=True)
    for name in [n for n in made.shop.store.names() if n.startswith(f"{REPOSITORY}:")]:
        made.shop.store.unname(name)
    made.shop.store.gc()
    made.said.close()
