"""Executes a plan with BuildKit: the image comes into the store by its digest, and into the engine.

It has no name then but one of this process, which a killed build leaves for the next one to remove;
BuildKit's cache lets that one resume.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sparkimage.build import bake, buildkit
from sparkimage.build.context import Workshop
from sparkimage.build.engine.engine import OWNER, Engine, docker_client
from sparkimage.config.address import WHEELS
from sparkimage.config.plan import Plan
from sparkimage.core import locks
from sparkimage.core.errors import (
    BuildError,
    CommandError,
    EngineError,
    ImageMissingError,
    LockError,
)
from sparkimage.core.progress import View
from sparkimage.image import archive
from sparkimage.image.store import Descriptor, Image
from sparkimage.resolve import fetch as inputs
from sparkimage.resolve import wheels

OWN = "unproven-"
"""Begins the tag of an image that a process has not proven yet; its owner follows."""
POLICY = "policy.json"
ORPHANED = re.compile(r"could not get object info|repository does not contain ref|not our ref")
"""What BuildKit says of a commit that was force-pushed away: it fetches branches and tags."""
DENIED = re.compile(r'source "([^"]+)" denied by policy')


def fingerprint(plan: Plan, project: Path) -> str:
    """sha256 over everything that decides a build's result, read from disk now.

    That is every file of the layers' folders, but for their own checks.
    """
    digest = hashlib.sha256(plan.checksum().encode())
    folders = [project / "images" / "_tools", project / "images" / "_builder"]
    folders += [project / "images" / layer.name for layer in plan.layers]
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if "__pycache__" in path.parts or (path.parent == folder and path.match("test_*.py")):
                continue
            status = path.lstat()
            head = f"{path.relative_to(project)}\0{status.st_mode:o}\0"
            if path.is_symlink():
                content = os.fsencode(path.readlink())
            else:
                content = path.read_bytes() if path.is_file() else b""
            digest.update(head.encode() + hashlib.sha256(content).digest())
    for layer in plan.layers:
        if layer.find_links is not None:
            for path in sorted((project / layer.find_links).glob("*.whl")):
                digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    digest.update(inputs.uv_pins().encode() + bake.COMPRESSION.encode())
    return digest.hexdigest()


def tag(image_id: str, name: str, engine: Engine) -> None:
    """Let ``name`` stand for an image in the engine. Raises ``CommandError``."""
    with engine.cli() as docker:
        docker.image.tag(image_id, name)


def untag(name: str, engine: Engine) -> None:
    """Take a name back in the engine; that it is not there is no failure."""
    with suppress(CommandError), engine.cli() as docker:
        docker.image.remove(name, prune=False)


def ids(image: Image) -> tuple[str, ...]:
    """What engines may call exactly this image: its manifest's digest, or its config's."""
    return image.digest, image.manifest["config"]["digest"]


def engine_id(reference: str, engine: Engine) -> str | None:
    """What the engine calls the image that a name or an id stands for; None where it has none."""
    with suppress(CommandError), engine.cli() as docker:
        return docker.image.inspect(reference).id
    return None


@dataclass(frozen=True, kw_only=True)
class Staged:
    """An image that is in the store by digest and in the engine by id, and has no name yet."""

    image: Image
    id: str


@contextmanager
def execute(plan: Plan, shop: Workshop) -> Iterator[Staged]:
    """Run bake. For as long as the context lasts the engine holds the image, which has no name but
    one of this process, and need not have one then."""
    _sweep(plan, shop.engine)
    own = f"{plan.image.rpartition(':')[0]}:{OWN}{locks.owner()}"
    try:
        image = _execute(plan, own, shop)
        held = engine_id(own, shop.engine)
        if held not in ids(image):
            raise EngineError(
                f"the engine at {shop.engine.host} has {held} where {image.digest} was built",
                hint="run the same command again, when nobody else uses the tag unproven-…",
            )
        yield Staged(image=image, id=held)
    finally:
        untag(own, shop.engine)


def _sweep(plan: Plan, engine: Engine) -> None:
    """Remove the containers and the names of processes that were killed."""
    repository = plan.image.rpartition(":")[0]
    with engine.cli() as docker:
        for container in docker.container.list(all=True, filters=[("label", OWNER)]):
            labels = container.config.labels or {}
            if locks.has_ended(labels.get(OWNER, "")):
                container.remove(force=True)
        images = docker.image.list(filters=[("reference", f"{repository}:{OWN}*")])
        for name in {name for image in images for name in image.repo_tags}:
            if locks.has_ended(name.partition(f":{OWN}")[2]):
                untag(name, engine)


def _execute(plan: Plan, own: str, shop: Workshop) -> Image:
    definition = shop.definition([plan])
    target = bake.target_name(plan)
    with TemporaryDirectory(prefix="sparkimage-bake-") as folder:
        file = Path(folder, "bake.json")
        file.write_text(json.dumps(definition, indent=1))
        policy = json.dumps(bake.policy([plan], shop.outside.mirrors), indent=1)
        Path(folder, POLICY).write_text(policy)
        title = f"building {plan.variant}"
        if shop.builder.remote or shop.engine.containerd_store:
            with shop.store.incoming() as incoming:
                output = f"type=oci,tar=false,dest={incoming},name={plan.image},{bake.COMPRESSION}"
                _bake(plan, file, {f"{target}.output": output}, shop, title)
                descriptor = shop.store.adopt(incoming)
            with shop.view.busy("handing it to the engine"):
                if shop.builder.remote:
                    _load(own, shop.store.resolve(descriptor.digest), shop)
                else:
                    output = f"type=image,name={own},{bake.COMPRESSION}"
                    _bake(plan, file, {f"{target}.output": output}, shop, "")
        else:
            # BuildKit in an engine with the older image store knows no OCI export.
            _bake(plan, file, {f"{target}.output": f"type=docker,name={own}"}, shop, title)
            with shop.view.busy("saving it into the image store"):
                descriptor = _save(own, shop)
    return shop.store.resolve(descriptor.digest)


def _bake(plan: Plan, file: Path, overrides: dict[str, str], shop: Workshop, title: str) -> None:
    argv = [
        *shop.builder.buildx, "bake", *shop.builder.options, "--file", str(file),
        "--progress", "rawjson",
    ]  # fmt: skip
    for key, value in overrides.items():
        argv += ["--set", f"{key}={value}"]
    argv.append(bake.target_name(plan))
    source = next((layer.name for layer in plan.layers if layer.source is not None), None)
    state = buildkit.Build([layer.name for layer in plan.layers], foreign=source)
    view = shop.view if title else View(shop.view.console, quiet=True)
    with buildkit.show(view, state, title) as feed:
        # The builder is the one that the user has chosen, the engine's own by default.
        environment = _bake_environment(shop, file.with_name(POLICY))
        done = shop.runner.run(argv, on_stderr=feed, check=False, env=environment)
    if done.returncode != 0:
        if not engine_answers(shop):
            raise EngineError(
                f"the engine at {shop.engine.host} went away during the build of {plan.variant}",
                hint="start it (`python build.py engine up`) and run the same command: "
                "finished layers are kept",
            )
        said = "\n".join(state.errors)
        if denied := DENIED.findall(said):
            raise BuildError(
                f"the build of {plan.variant} asks for {', '.join(sorted(set(denied)))}, which the "
                "lock does not hold",
                detail=said,
                hint="pin it in the matrix, and name it where the layer takes it "
                "(`source.images`), or take it out of the Dockerfile",
            )
        if gone := wheels.withdrawn(said):
            raise inputs.withdrawn(plan, gone)
        if wheels.altered(said):
            raise inputs.altered(plan.variant, said)
        if ORPHANED.search(said):
            raise LockError(
                f"the build of {plan.variant} cannot have its commit: no branch or tag of the "
                "repository leads to it any more",
                detail=said,
                hint="give it one in a mirror of the repository (git push MIRROR COMMIT:refs/heads/"
                "kept), and name that with --mirror",
            )
        raise BuildError(
            f"the build of {plan.variant} failed",
            detail="\n".join(dict.fromkeys(state.errors)) or f"buildx ended with {done.returncode}",
            hint="to run it by hand: "
            f"python build.py image {plan.variant} --print bake >bake.json; "
            "docker buildx bake -f bake.json",
        )


def _bake_environment(shop: Workshop, policy: Path) -> dict[str, str]:
    # Provenance, buildx's default, would make the index differ from run to run.
    # Without the second one, the docker driver also exports every layer below as an image.
    index = shop.outside.mirrors.client(WHEELS)
    return {
        **shop.builder.environment,
        **({bake.INDEX_VARIABLE: index} if index is not None else {}),
        # https://docs.docker.com/build/building/variables/#experimental_buildkit_source_policy
        "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY": str(policy),
        "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",
        "BUILDX_NO_DEFAULT_LOAD": "1",
    }


def engine_answers(shop: Workshop) -> bool:
    """Whether the engine still answers at all."""
    try:
        return shop.runner.run([*shop.engine.docker, "version"], check=False).returncode == 0
    except CommandError:
        return False


def _load(name: str, image: Image, shop: Workshop) -> None:
    """Let the engine load an image from the store, and name it ``name``."""
    with closing(docker_client(shop.engine.host)) as client:
        answers = client.api.load_image(  # type: ignore[no-untyped-call]
            archive.stream(image, name, shop.store), quiet=True
        )
        said = "".join(str(one.get("error") or one.get("stream") or "") for one in answers)
    if engine_id(name, shop.engine) not in ids(image):
        raise EngineError(
            f"the engine at {shop.engine.host} did not load {image.digest[:19]}",
            detail=said,
            hint="look at its log, and at its free disk",
        )


def _save(reference: str, shop: Workshop) -> Descriptor:
    with closing(docker_client(shop.engine.host)) as client:
        chunks = client.images.get(reference).save(chunk_size=1 << 20, named=False)
        return archive.import_docker_archive(ChunkReader(chunks), shop.store)


class ChunkReader:
    """A file to read from over an iterator of chunks, for tarfile's streaming mode."""

    def __init__(self, chunks: Any) -> None:
        self.chunks = iter(chunks)
        self.held = b""

    def read(self, size: int = -1) -> bytes:
        """Up to ``size`` bytes; fewer only at the end."""
        parts = [self.held]
        length = len(self.held)
        while size < 0 or length < size:
            chunk = next(self.chunks, b"")
            if not chunk:
                break
            parts.append(chunk)
            length += len(chunk)
        data = b"".join(parts)
        if size < 0:
            self.held = b""
            return data
        self.held = data[size:]
        return data[:size]


def engine_reference(plan: Plan, image: Image, engine: Engine) -> str:
    """The id by which the engine holds exactly this image.

    Raises ``ImageMissingError`` when it does not hold it.
    """
    for one in ids(image):
        if engine_id(one, engine) in ids(image):
            return one
    raise ImageMissingError(
        f"the engine does not hold {image.digest[:19]} ({plan.variant})",
        hint=f"python build.py image {plan.variant} --rebuild",
    )
