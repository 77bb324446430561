"""Executes a plan with BuildKit: puts the image into the store by its digest, and into the engine.

Its only name then is one of this process, which the next build removes if this one is killed;
BuildKit's cache lets that one resume.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from sparkimage.build import bake, export
from sparkimage.build.context import BuildContext
from sparkimage.build.engine.engine import OWNER, Engine, docker_client
from sparkimage.config import folders
from sparkimage.config.plan import Plan
from sparkimage.core import locks
from sparkimage.core.errors import (
    CommandError,
    EngineError,
    ImageMissingError,
)
from sparkimage.core.program import program
from sparkimage.image import archive
from sparkimage.image.store import Image
from sparkimage.image.streams import stream
from sparkimage.resolve import fetch

OWN = "unproven-"
"""Prefix of the tag of an image that a process has not verified yet; its owner follows."""


def fingerprint(plan: Plan, project: Path) -> str:
    """sha256 over all that a build depends on, read from disk now.

    That includes every file of the layers' folders, without their own checks.
    """
    digest = hashlib.sha256(plan.checksum().encode())
    own = [layer for layer in plan.layers if layer.source is None]
    names = [folders.dockerfile(project, layer).parent.name for layer in own]
    names += [layer.name for layer in plan.layers]
    for name in dict.fromkeys([folders.TOOLS, folders.BUILDER, *names]):
        folder = folders.of(project, name)
        for path in sorted(folder.rglob("*")):
            if "__pycache__" in path.parts or (path.parent == folder and path.match("test_*.py")):
                continue
            status = path.lstat()
            head = f"{name}/{path.relative_to(folder)}\0{status.st_mode:o}\0"
            if path.is_symlink():
                content = os.fsencode(path.readlink())
            else:
                content = path.read_bytes() if path.is_file() else b""
            digest.update(head.encode() + hashlib.sha256(content).digest())
    for layer in plan.layers:
        if layer.find_links is not None:
            for path in sorted((project / layer.find_links).glob("*.whl")):
                digest.update(path.name.encode() + hashlib.sha256(path.read_bytes()).digest())
    digest.update(fetch.uv_pins().encode() + bake.COMPRESSION.encode())
    return digest.hexdigest()


def tag(image_id: str, name: str, engine: Engine) -> None:
    """Tag an image in the engine. Raises ``CommandError``."""
    with engine.cli() as docker:
        docker.image.tag(image_id, name)


def untag(name: str, engine: Engine) -> None:
    """Remove a tag in the engine, if it exists."""
    with suppress(CommandError), engine.cli() as docker:
        docker.image.remove(name, prune=False)


def ids(image: Image) -> tuple[str, ...]:
    """The ids that an engine may give this very image: its manifest's digest, or its config's."""
    return image.digest, image.manifest["config"]["digest"]


def engine_id(reference: str, engine: Engine) -> str | None:
    """The engine's id of the image with this name or id; None where it has none."""
    with suppress(CommandError), engine.cli() as docker:
        return docker.image.inspect(reference).id
    return None


@dataclass(frozen=True, kw_only=True)
class Staged:
    """An image that is in the store by digest, without a name yet."""

    image: Image
    engine: Engine
    own: str
    """The name of this process under which the engine keeps it."""
    load: Callable[[], object]
    """Loads it into the engine."""

    @cached_property
    def id(self) -> str:
        """The engine's id of the image, which is loaded when this is read first: its layers can be
        read from the store meanwhile. Raises ``EngineError``."""
        self.load()
        image_id = engine_id(self.own, self.engine)
        if image_id not in ids(self.image):
            raise EngineError(
                f"the engine at {self.engine.host} has {image_id} instead of {self.image.digest}",
                hint=f"run the same command again, when nobody else uses the tag {OWN}…",
            )
        return image_id


@contextmanager
def execute(plan: Plan, context: BuildContext, *, lean: bool = False) -> Iterator[Staged]:
    """Run bake. Within the context the engine keeps the image under a name of this process.

    ``lean`` drops the build cache once the image is in the store, before it is unpacked.
    """
    _sweep(plan, context.engine)
    own = f"{plan.image.rpartition(':')[0]}:{OWN}{locks.owner()}"
    with TemporaryDirectory(prefix="sparkimage-bake-") as folder:
        try:
            image, load = _execute(plan, own, folder, context, lean)
            context.secrets.refuse_leaks(plan, image, context.store)
            yield Staged(image=image, engine=context.engine, own=own, load=load)
        finally:
            untag(own, context.engine)


def _sweep(plan: Plan, engine: Engine) -> None:
    """Remove the containers and the names of processes that were killed."""
    repository = plan.image.rpartition(":")[0]
    with engine.cli() as docker:
        containers = docker.container.list(all=True, filters=[("label", OWNER)])
        images = docker.image.list(filters=[("reference", f"{repository}:{OWN}*")])
    # Each may be removed by somebody else at the same time: another build sweeps, too.
    for container in containers:
        with suppress(CommandError), engine.cli():
            if locks.has_ended((container.config.labels or {}).get(OWNER, "")):
                container.remove(force=True)
    for image in images:
        with suppress(CommandError), engine.cli():
            for name in image.repo_tags:
                if locks.has_ended(name.partition(f":{OWN}")[2]):
                    untag(name, engine)


def _execute(
    plan: Plan, own: str, folder: str, context: BuildContext, lean: bool
) -> tuple[Image, Callable[[], object]]:
    """The image in the store, and what loads it into the engine as ``own``."""
    local = context.engine.private and not context.builder.remote
    if context.builder.remote or context.engine.containerd_store:
        cut = next((n for n, layer in enumerate(plan.layers) if layer.wheels), 0)
        in_parts = local and lean and cut > 0
        if in_parts:
            image = export.build_on_lowest(plan, cut, own, folder, context)
        else:
            with export.prepared(plan, folder, context):
                image = export.build(plan, own, folder, context)
        if lean:
            export.drop_cache(context, inputs=in_parts)

        def load() -> None:
            if not local:
                context.view.say("loading it into the engine")
                if context.builder.remote or lean:
                    _load(own, image, context)
                else:
                    output = f"type=image,name={own},{bake.COMPRESSION}"
                    with export.prepared(plan, folder, context):
                        export.run(plan, folder, output, context)

        return image, load
    # BuildKit in an engine with the older image store cannot export an OCI layout.
    with export.prepared(plan, folder, context):
        title = f"building {plan.variant}"
        export.run(plan, folder, f"type=docker,name={own}", context, title)
    with (
        context.view.busy("saving it into the image store"),
        closing(docker_client(context.engine.host)) as client,
    ):
        chunks = client.images.get(own).save(chunk_size=1 << 20, named=False)
        descriptor = archive.import_docker_archive(stream(iter(chunks)), context.store)
    return context.store.resolve(descriptor.digest), lambda: None


def _load(name: str, image: Image, context: BuildContext) -> None:
    """Load an image from the store into the engine, as ``name``."""
    with closing(docker_client(context.engine.host)) as client:
        answers = client.api.load_image(  # type: ignore[no-untyped-call]
            archive.stream(image, name, context.store), quiet=True
        )
        output = "".join(str(line.get("error") or line.get("stream") or "") for line in answers)
    if engine_id(name, context.engine) not in ids(image):
        raise EngineError(
            f"the engine at {context.engine.host} did not load {image.digest[:19]}",
            detail=output,
            hint="look at its log, and at its free disk",
        )


def engine_reference(plan: Plan, image: Image, engine: Engine) -> str:
    """The id of exactly this image in the engine.

    Raises ``ImageMissingError`` when the engine does not have it.
    """
    for reference in ids(image):
        if engine_id(reference, engine) in ids(image):
            return reference
    raise ImageMissingError(
        f"the engine does not have {image.digest[:19]} ({plan.variant})",
        hint=f"{program()} image {plan.variant} --rebuild",
    )
