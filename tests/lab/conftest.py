"""The lab: the product's own code, layers and checks on small images."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import python_on_whales
import yaml
from rich.console import Console

from sparkimage.build import builder, preflight
from sparkimage.build.context import BuildContext
from sparkimage.build.engine import builders, private
from sparkimage.build.engine.engine import Engine
from sparkimage.build.engine.private import ensure
from sparkimage.config import lockfile
from sparkimage.config.address import Mirrors
from sparkimage.core import debian_tools, paths
from sparkimage.core.paths import EnginePlace
from sparkimage.core.process import Local
from sparkimage.core.progress import View
from sparkimage.core.rights import run_as_root
from sparkimage.image.store import Image, Store
from sparkimage.resolve import resolver
from sparkimage.verify import pipeline
from tests.lab import fleet as fleets
from tests.lab import recipe as recipes
from tests.lab import sampling, standins
from tests.lab.distribution import Distribution
from tests.lab.fleet import Fleet
from tests.lab.modelling import Models
from tests.lab.project import Project
from tests.lab.recipe import Recipe
from tests.lab.shipment import Shipment
from tests.lab.tools import WORKER, making

PROJECT = Path(__file__).resolve().parents[2]
REPOSITORY = f"sparkimage-lab-{WORKER}"
STORE = paths.home() / f"lab-store-{WORKER}"
"""On the home's disk: a temporary folder may be memory."""


def matrix_data() -> dict[str, Any]:
    """The lab's matrix: the real layers, and stand-ins for the gigabytes."""
    product = yaml.safe_load((PROJECT / "matrix.yaml").read_text())
    python = {"kind": "wheels", "python": "3.13"}
    vllm = ["vllm==0.32.0+standin", "nvidia-cuda-runtime==13.0.96"]
    links = {"find_links": "wheels"}
    layers = ["debian", "python", "cuda", "torch", "vllm", "nccl", "nccl-pip", "serve"]
    return {
        "version": 1,
        "repository": REPOSITORY,
        "pins": {
            "debian": product["pins"]["debian"],
            "vllm": {
                "0.32.0+standin": {**python, **links, "require": ["torch==2.13.0+standin", *vllm]},
                "toolkit": {
                    **python,
                    "require": [
                        "nvidia-cuda-cccl==13.0.85",
                        "nvidia-cuda-crt==13.0.88",
                        "nvidia-cuda-nvcc==13.0.88",
                        "nvidia-cuda-runtime==13.0.96",
                        "nvidia-nvvm==13.0.88",
                    ],
                },
            },
            "nccl": {
                "2.30.4": {
                    **python,
                    **links,
                    "require": ["nvidia-nccl-cu13==2.30.4+standin"],
                    "version": "2.30.4",
                },
                # What the field shipped: old bytes where the new version was said to be.
                "lie": {
                    **python,
                    **links,
                    "require": ["nvidia-nccl-cu13==2.28.9+standin"],
                    "version": "2.30.4",
                },
            },
        },
        "layers": {
            "debian": {"base": "debian"},
            "python": {"debs": "debian"},
            "cuda": {"wheels": {"pin": "vllm", "select": ["nvidia-*"]}},
            "torch": {
                "wheels": {"pin": "vllm", "select": ["torch"]},
                "expect": {"cuda": "13"},
            },
            "vllm": {
                "wheels": {"pin": "vllm"},
                "expect": {"version": "vllm", "project": "vllm"},
            },
            "nccl": {"wheels": {"pin": "nccl"}},
            "nccl-pip": {"expect": {"nccl": "nccl"}},
            "serve": {},
        },
        "defaults": {**product["defaults"], "name": "good-{arch}", "layers": layers},
        "axes": {
            "platform": ["linux/amd64", "linux/arm64"],
            "debian": ["trixie"],
            "vllm": ["0.32.0+standin"],
            "nccl": ["2.30.4"],
        },
        "include": [
            {
                "name": f"plain-{arch}",
                "platform": f"linux/{arch}",
                "layers": ["debian", "python"],
                "entrypoint": [],
                "pins": {"debian": "trixie"},
            }
            for arch in ("amd64", "arm64")
        ]
        + [
            {
                "name": "tiny-amd64",
                "platform": "linux/amd64",
                "layers": ["debian"],
                "entrypoint": [],
                "pins": {"debian": "trixie"},
            },
            {
                # The real compiler, which the others have no need of.
                "name": "toolkit-amd64",
                "platform": "linux/amd64",
                "layers": ["debian", "python", "cuda"],
                "entrypoint": [],
                "pins": {"debian": "trixie", "vllm": "toolkit"},
            },
        ],
        "groups": {"default": ["good-amd64"]},
    }


class Lab(Project):
    """A project that borrows the real layers and is built, with a store of its own."""

    def __init__(
        self, project: Path, store: Path, engine: Engine, mirrors: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(folder=project)
        self.project = project
        self.mirrors = dict(mirrors or {})
        self.data: dict[str, Any] = {}
        self.engine = engine
        self.runner = Local()
        self.said = (project / "said").open("a+")
        self.context = BuildContext(
            matrix_file=project / "matrix.yaml",
            store=Store.open(store),
            engine=engine,
            view=View(Console(file=self.said, width=200)),
            home=paths.home(),
            runner=self.runner,
            mirrors=Mirrors(rules=self.mirrors),
            say=lambda _line: None,
            builder=builders.own(engine),
        )
        self.docker = python_on_whales.DockerClient(client_call=list(engine.docker))

    def add_layer(self, name: str, dockerfile: str) -> None:
        """A layer that only the lab has; its steps are closed as those of a real one."""
        folder = self.project / "images" / name
        folder.mkdir(exist_ok=True)
        closed = dockerfile.replace("RUN ", "RUN --network=none ")
        (folder / "Dockerfile").write_text(dockerfile if "from=uv" in dockerfile else closed)

    def write(self, data: dict[str, Any]) -> None:
        """Write the matrix; the first one is the lab's own."""
        self.data = self.data or data
        # JSON is YAML.
        (self.project / "matrix.yaml").write_text(json.dumps(data, indent=1))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """The matrix, the lock, the patches and the layers, put back afterwards."""
        data, lock = deepcopy(self.data), self.project / "matrix.lock"
        patches, layers = self.project / "patches", self.project / "images"
        files = {file: file.read_text() for file in (lock, *patches.glob("*"))}
        folders = set(layers.iterdir())
        try:
            yield
        finally:
            # In its place: who holds the data holds what is put back.
            self.data.clear()
            self.data |= data
            self.write(self.data)
            for folder in set(layers.iterdir()) - folders:
                shutil.rmtree(folder)
            for file in set(patches.glob("*")) - set(files):
                file.unlink()
            for file, text in files.items():
                file.write_text(text)

    @property
    def store(self) -> Store:
        return self.context.store

    def lock(self) -> None:
        """Resolve what the lock lacks; the real one's Debian packages hold here too."""
        read = self.read_matrix()
        file = self.project / "matrix.lock"
        held = lockfile.load(file if file.is_file() else PROJECT / "matrix.lock")
        made = resolver.resolve(read, held, self.context, resolver.Update())
        assert made.failures == {}
        file.write_text(lockfile.dump(made.lock))

    def build(self, name: str, **options: bool) -> pipeline.Result:
        return pipeline.build(self.plan(name), self.context, **options)

    def unproven(self, name: str) -> Image:
        """Build it and prove nothing: no name moves."""
        plan = self.plan(name)
        preflight.check(plan, self.context)
        with builder.execute(plan, self.context) as staged:
            return staged.image

    def plain(self, arch: str) -> str:
        """The name of an image of the layers debian and python, which the engine holds."""
        plan = self.plan(f"plain-{arch}")
        names = (plan.image + pipeline.REFUSED, plan.image)
        if not any(self.docker.image.exists(name) for name in names):
            preflight.check(plan, self.context)
            with builder.execute(plan, self.context) as staged:
                self.docker.image.tag(staged.id, plan.image + pipeline.REFUSED)
        return next(name for name in names if self.docker.image.exists(name))

    def environment(self, **more: str) -> dict[str, str]:
        # The user's own file of mirrors.
        file = self.project / "mirrors.yaml"
        file.write_text(json.dumps({"mirrors": self.mirrors}))
        return {
            **os.environ,
            "SPARKIMAGE_STORE": str(self.context.store.root),
            "SPARKIMAGE_MIRRORS": str(file),
            **more,
        }

    def clean(self) -> None:
        """Forget what this lab named."""
        for name in self.images():
            self.docker.image.remove(name, force=True)
        store = self.context.store
        for name in [n for n in store.names() if n.startswith(f"{REPOSITORY}:")]:
            store.unname(name)
        store.gc()
        # What was proven of an image that is made again is proven again.
        for kind in ("built", "plan", "seal"):
            shutil.rmtree(store.root / "facts" / kind, ignore_errors=True)

    def images(self) -> set[str]:
        """The lab's names in the engine."""
        # Those of other names, which another process may remove meanwhile, are not looked at.
        mine = self.docker.image.list(filters=[("reference", f"{REPOSITORY}:*")])
        return {
            tag for image in mine for tag in image.repo_tags if tag.startswith(f"{REPOSITORY}:")
        }


SHARED = ("roots", "tools", "inputs", "debs", "git")
"""Folders of the home that a spare engine's home has too."""


@contextmanager
def spare_engine(name: str) -> Iterator[tuple[Path, Engine]]:
    """An engine that may be killed, or begins with nothing cached; and its home."""
    with making("spare-engine"):
        yield from _spare_engine(paths.home() / f"lab-{name}-{os.getpid()}")


def _spare_engine(home: Path) -> Iterator[tuple[Path, Engine]]:
    place, tree = EnginePlace.of(home), EnginePlace.of(paths.home())
    place.engine.mkdir(parents=True)
    for shared in SHARED:
        (paths.home() / shared).mkdir(exist_ok=True)
        (home / shared).symlink_to(paths.home() / shared)
    runner = Local()
    if debian_tools.installed(tree):
        run_as_root(runner, ("cp", "-al", str(tree.root), str(place.root)))
    try:
        yield home, private.up(home, runner, print)
    finally:
        private.down(home, runner, purge=True)
        for shared in SHARED:
            (home / shared).unlink()
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def engine() -> Engine:
    """The engine that the product would use, set up where there is none."""
    return ensure(paths.home(), Local(), print)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[Lab]:
    """The lab's project, locked; what it named is gone afterwards."""
    project = tmp_path_factory.mktemp("lab")
    (project / "images").mkdir()
    for folder in (PROJECT / "images").iterdir():
        (project / "images" / folder.name).symlink_to(folder)
    standins.make(project / "wheels")
    made = Lab(project, STORE, engine)
    data = matrix_data()
    from tests.lab.wrong import NEEDS_GPU, WRONG, add

    for one in (*WRONG, NEEDS_GPU):
        add(made, data, one)
    made.write(data)
    made.lock()
    # A run that was killed has not done it.
    made.clean()
    yield made
    made.clean()
    made.said.close()


@pytest.fixture(scope="session")
def recipe(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Recipe]:
    """The recipe's variants against small real servers; see recipe.py."""
    arm64 = any(item.get_closest_marker("arm64") for item in request.session.items)
    with recipes.serve(lab, tmp_path_factory.mktemp("recipe"), arm64=arm64) as made:
        yield made


@pytest.fixture
def edited(recipe: Recipe) -> Iterator[Recipe]:
    """The recipe for a test that changes its project, which is put back afterwards."""
    with recipe.lab.kept():
        yield recipe


@pytest.fixture(scope="session")
def four(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[Fleet]:
    """The four nodes, as the last test left them; see fleet.py. `make test-all` has the docker
    command of each one's release on it."""
    quick = pytestconfig.getoption("markexpr") == "not thorough"
    specs = {
        name: replace(spec, older_cli=spec.older_cli and quick)
        for name, spec in fleets.FOUR.items()
    }
    with fleets.fleet(engine, tmp_path_factory.mktemp("fleet"), specs) as made:
        yield made


@pytest.fixture
def fleet(four: Fleet) -> Fleet:
    """The four nodes, as they began."""
    four.reset()
    return four


@pytest.fixture
def shipment(tmp_path: Path, fleet: Fleet) -> Shipment:
    """A project with one variant for the four nodes."""
    return Shipment.make(tmp_path, fleet)


@pytest.fixture(scope="session", params=sampling.params("pair", fleets.PAIRS), ids="+".join)
def pair(four: Fleet, request: pytest.FixtureRequest) -> Fleet:
    """Two of the four nodes, as the last test left them."""
    return four.only(*request.param)


@pytest.fixture
def two(pair: Fleet) -> Fleet:
    """Two of the four nodes, as they began."""
    pair.reset()
    return pair


@pytest.fixture
def small_shipment(tmp_path: Path, two: Fleet) -> Shipment:
    """A project with one variant for two nodes."""
    return Shipment.make(tmp_path, two)


@pytest.fixture(scope="session")
def trip(pair: Fleet, tmp_path_factory: pytest.TempPathFactory) -> Distribution:
    """One image after the other on its way to two nodes."""
    return Distribution(Shipment.make(tmp_path_factory.mktemp("distribution"), pair))


@pytest.fixture
def distribution(trip: Distribution) -> Iterator[Distribution]:
    """Two nodes with one image everywhere."""
    yield from trip.prepared()


@pytest.fixture
def models(tmp_path: Path, four: Fleet) -> Iterator[Models]:
    """A model's folder and the four nodes, which have none."""
    made = Models(four, tmp_path)
    made.write_fleet()
    made.clear()
    yield made
    made.clear()
