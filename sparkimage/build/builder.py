"""Executes a plan with BuildKit: puts the image into the store by its digest, and into the engine.

Its only name then is one of this process, which the next build removes if this one is killed;
BuildKit's cache lets that one resume.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory

from sparkimage.build import bake, buildkit
from sparkimage.build.context import BuildContext
from sparkimage.build.engine.engine import OWNER, Engine, docker_client
from sparkimage.config import folders
from sparkimage.config.address import without_login
from sparkimage.config.plan import Plan
from sparkimage.core import locks
from sparkimage.core.errors import (
    BuildError,
    CommandError,
    EngineError,
    ImageMissingError,
    LockError,
    SparkError,
)
from sparkimage.core.progress import View
from sparkimage.image import archive
from sparkimage.image.store import Image
from sparkimage.resolve import fetch, wheels

OWN = "unproven-"
"""Prefix of the tag of an image that a process has not verified yet; its owner follows."""
DEFINITION, POLICY = "bake.json", "policy.json"
ORPHANED = re.compile(r"could not get object info|repository does not contain ref|not our ref")
"""BuildKit's words for a commit that was force-pushed away: it fetches branches and tags."""
DENIED = re.compile(r'source "([^"]+)" denied by policy')


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
def execute(plan: Plan, context: BuildContext) -> Iterator[Staged]:
    """Run bake. Within the context the engine keeps the image under a name of this process."""
    _sweep(plan, context.engine)
    own = f"{plan.image.rpartition(':')[0]}:{OWN}{locks.owner()}"
    with TemporaryDirectory(prefix="sparkimage-bake-") as folder:
        try:
            image, load = _execute(plan, own, folder, context)
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
    plan: Plan, own: str, folder: str, context: BuildContext
) -> tuple[Image, Callable[[], object]]:
    """The image in the store, and what loads it into the engine as ``own``."""
    definition = context.definition([plan])
    Path(folder, DEFINITION).write_text(json.dumps(definition, indent=1))
    policy = bake.policy([plan], context.mirrors)
    Path(folder, POLICY).write_text(json.dumps(policy, indent=1))
    title = f"building {plan.variant}"
    if context.builder.remote or context.engine.containerd_store:
        with context.store.incoming() as incoming:
            output = f"type=oci,tar=false,dest={incoming},name={plan.image},{bake.COMPRESSION}"
            _bake(plan, folder, output, context, title)
            image = context.store.resolve(context.store.adopt(incoming).digest)

        def load() -> None:
            context.view.say("loading it into the engine")
            if context.builder.remote:
                _load(own, image, context)
            else:
                _bake(plan, folder, f"type=image,name={own},{bake.COMPRESSION}", context)

        return image, load
    # BuildKit in an engine with the older image store cannot export an OCI layout.
    _bake(plan, folder, f"type=docker,name={own}", context, title)
    with (
        context.view.busy("saving it into the image store"),
        closing(docker_client(context.engine.host)) as client,
    ):
        chunks = client.images.get(own).save(chunk_size=1 << 20, named=False)
        descriptor = archive.import_docker_archive(Chunks(iter(chunks)), context.store)
    return context.store.resolve(descriptor.digest), lambda: None


def _bake(plan: Plan, folder: str, output: str, context: BuildContext, title: str = "") -> None:
    """Run bake for the files in ``folder``; without a title its progress is not shown."""
    target = bake.target_name(plan)
    argv = [
        *context.builder.buildx, "bake", *context.builder.options,
        "--file", f"{folder}/{DEFINITION}", "--progress", "rawjson",
        "--set", f"{target}.output={output}", target,
    ]  # fmt: skip
    environment = {
        **context.builder.environment,
        **bake.index_variables(plan.layers, context.mirrors),
        # https://docs.docker.com/build/building/variables/#experimental_buildkit_source_policy
        "EXPERIMENTAL_BUILDKIT_SOURCE_POLICY": f"{folder}/{POLICY}",
        # Provenance, buildx's default, would make the index differ from run to run.
        "BUILDX_NO_DEFAULT_ATTESTATIONS": "1",
        # Else the docker driver exports every layer below as an image, too.
        "BUILDX_NO_DEFAULT_LOAD": "1",
    }
    source = next((layer.name for layer in plan.layers if layer.source is not None), None)
    layers = [layer.name for layer in plan.layers]
    state = buildkit.Build(layers, foreign=source, hide=context.secrets.hide(plan))
    view = context.view if title else View(context.view.console, quiet=True)
    with buildkit.show(view, state, title) as feed:
        done = context.runner.run(argv, on_stderr=feed, check=False, env=environment)
    if done.returncode != 0:
        raise _explain(plan, state.errors, done.returncode, context)


def _explain(
    plan: Plan, errors: Sequence[str], returncode: int, context: BuildContext
) -> SparkError:
    """The error for a build that failed, by BuildKit's own errors."""
    if not engine_answers(context):
        return EngineError(
            f"the engine at {context.engine.host} stopped during the build of {plan.variant}",
            hint="start it (`python build.py engine up`) and run the same command: "
            "finished layers are cached",
        )
    output = without_login("\n".join(dict.fromkeys(errors)))
    if denied := DENIED.findall(output):
        return BuildError(
            f"the build of {plan.variant} needs {', '.join(sorted(set(denied)))}, which is not "
            "locked",
            detail=output,
            hint="pin it in the matrix, and name it where the layer takes it (`inputs`, or "
            "`source.images`), or remove it from the Dockerfile",
        )
    if refused := wheels.refused(plan.variant, output):
        return refused
    if ORPHANED.search(output):
        return LockError(
            f"the build of {plan.variant} cannot fetch its commit: no branch or tag of the "
            "repository leads to it any more",
            detail=output,
            hint="give it a branch in a mirror of the repository (git push MIRROR "
            "COMMIT:refs/heads/kept), and name that with --mirror",
        )
    return BuildError(
        f"the build of {plan.variant} failed",
        detail=output or f"buildx ended with {returncode}",
        hint="to run it by hand: "
        f"python build.py image {plan.variant} --print bake >bake.json; "
        "docker buildx bake -f bake.json",
    )


def engine_answers(context: BuildContext) -> bool:
    """Whether the engine still answers."""
    return context.runner.run([*context.engine.docker, "version"], check=False).returncode == 0


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


@dataclass
class Chunks:
    """A stream over an iterator, for tarfile's streaming mode, which takes pieces of any size."""

    chunks: Iterator[bytes]

    def read(self, _size: int = -1, /) -> bytes:
        """The next piece; empty at the end."""
        return next(self.chunks, b"")


def engine_reference(plan: Plan, image: Image, engine: Engine) -> str:
    """The id of exactly this image in the engine.

    Raises ``ImageMissingError`` when the engine does not have it.
    """
    for reference in ids(image):
        if engine_id(reference, engine) in ids(image):
            return reference
    raise ImageMissingError(
        f"the engine does not have {image.digest[:19]} ({plan.variant})",
        hint=f"python build.py image {plan.variant} --rebuild",
    )
