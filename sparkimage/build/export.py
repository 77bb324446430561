"""Runs bake: builds a plan's image, or a layer's below it, and puts it into the store."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from sparkimage.build import bake, buildkit
from sparkimage.build.context import BuildContext
from sparkimage.build.engine import content
from sparkimage.config import folders
from sparkimage.config.address import image_name, without_login
from sparkimage.config.plan import Plan
from sparkimage.core import locks
from sparkimage.core.errors import (
    BuildError,
    EngineError,
    LockError,
    PreflightError,
    SparkError,
)
from sparkimage.core.files import free_bytes, write
from sparkimage.core.program import program
from sparkimage.core.progress import View
from sparkimage.core.units import human
from sparkimage.image import archive
from sparkimage.image.store import Image
from sparkimage.resolve import fetch, wheels

CACHE_IN_USE = "build-cache.lock"
"""The lock file of the home that every build holds, shared, from its inputs on until its layers are
in the store."""
LOGS = "logs"
"""The folder of the home with the log of each variant's last build."""
DEFINITION, POLICY = "bake.json", "policy.json"
ORPHANED = re.compile(r"could not get object info|repository does not contain ref|not our ref")
"""BuildKit's words for a commit that was force-pushed away: it fetches branches and tags."""
FULL = "no space left on device"
FULL_BYTES = 100_000_000
"""A disk with less free than this has stopped a build."""
DENIED = re.compile(r'source "([^"]+)" denied by policy')


def build_on_lowest(plan: Plan, cut: int, own: str, folder: str, context: BuildContext) -> Image:
    """As ``build``, in the private engine, with the layers below ``cut`` as an image on which the
    others are built: what only the lower ones are made of is not on the disk meanwhile."""
    lowest = replace(plan, layers=plan.layers[:cut])
    title = f"building {plan.variant}, the layers below {plan.layers[cut].name}"
    with prepared(lowest, folder, context):
        base = build(lowest, own, folder, context, title)
    drop_cache(context, inputs=True)
    upper = replace(plan, layers=plan.layers[cut:])
    with prepared(upper, folder, context, base=(own, base.digest)):
        return build(upper, own, folder, context)


def build(plan: Plan, own: str, folder: str, context: BuildContext, title: str = "") -> Image:
    """Build what is ``prepared`` into the store, and into the private engine as ``own``, where
    nothing is unpacked until it is run."""
    title = title or f"building {plan.variant}"
    layout = f"type=oci,tar=false,name={plan.image},{bake.COMPRESSION},dest="
    store = context.store
    if context.builder.remote or not content.linkable(context.engine, context.home, store.root):
        with store.incoming() as incoming:
            run(plan, folder, layout + str(incoming), context, title)
            image = store.resolve(store.adopt(incoming).digest)
    else:
        # The blobs are made first: the export leaves out those that it finds linked.
        blobs = f"type=image,store=false,name={plan.image},{bake.COMPRESSION}"
        run(plan, folder, blobs, context, title)
        with store.staging() as staging:
            content.link(context.home, staging / "blobs" / "sha256", context.runner)
            run(plan, folder, layout + str(staging), context)
            image = store.resolve(store.adopt(staging).digest)
    if context.engine.private and not context.builder.remote:
        path = Path(folder, "image.tar")
        path.write_bytes(archive.without_layers(image, own, store))
        content.add_image(context.home, path, context.runner)
    return image


@contextmanager
def prepared(
    plan: Plan, folder: str, context: BuildContext, base: tuple[str, str] | None = None
) -> Iterator[None]:
    """What ``run`` reads in ``folder``, the bake file and the source policy, and all inputs that
    these name: no process of this home removes any of it, or the build cache, meanwhile.

    The lowest layer lies on the engine's image ``base``, by name and digest, if that is given.
    """
    with locks.shared(context.home / CACHE_IN_USE, context.view.say, "drops the build cache"):
        definition, policy = context.definition([plan]), bake.policy([plan], context.mirrors)
        if base is not None:
            name, digest = base
            upper = plan.layers[0].name if len(plan.layers) > 1 else None
            source = f"docker-image://{image_name(name)}"
            definition["target"][bake.target_name(plan, upper)]["contexts"]["layer"] = source
            # BuildKit asks for the tag, and then for what the tag stands for.
            for identifier in (source, f"{source}@{digest}"):
                policy["rules"].append(bake.rule("ALLOW", identifier, "EXACT"))
        for file, document in ((DEFINITION, definition), (POLICY, policy)):
            Path(folder, file).write_text(json.dumps(document, indent=1))
        yield


def drop_cache(context: BuildContext, *, inputs: bool = False) -> None:
    """Remove all of the builder's cache that no build uses, and the fetched ``inputs`` of layers;
    waits for the builds of this home."""
    with locks.exclusive(context.home / CACHE_IN_USE, context.view.say, "builds, too"):
        argv = [*context.builder.buildx, "prune", *context.builder.options, "--all", "--force"]
        context.runner.run(argv, env=context.builder.environment)
        if context.engine.private and not context.builder.remote:
            # Else the files of the cache are on the disk yet when the image is unpacked.
            content.collect_garbage(context.home, context.runner)
        if inputs:
            fetch.discard(context.home)


def _stages(plan: Plan, context: BuildContext) -> dict[str, str]:
    """The layer of each stage of the plan's own Dockerfiles, and of the variant's target."""
    layers: dict[str, list[str]] = {bake.target_name(plan): [plan.layers[-1].name]}
    for layer in plan.layers:
        if layer.source is None:
            text = folders.dockerfile(context.project, layer).read_text()
            for stage in buildkit.FROM.findall(text):
                layers.setdefault(stage.lower(), []).append(layer.name)
    return {stage: names[0] for stage, names in layers.items() if len(names) == 1}


def run(plan: Plan, folder: str, output: str, context: BuildContext, title: str = "") -> None:
    """Run bake for what is ``prepared``; without a title its progress is not shown."""
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
    state = buildkit.Build(
        layers, foreign=source, stages=_stages(plan, context), hide=context.secrets.hide(plan)
    )
    view = context.view if title else View(quiet=True)
    with buildkit.show(view, state, title) as feed:
        done = context.runner.run(argv, on_stderr=feed, check=False, env=environment)
    log = _keep_log(plan, state, context) if title else None
    if done.returncode != 0:
        error = _explain(plan, state.errors, done.returncode, context)
        if log is not None:
            error.detail = f"{error.detail}\nthe whole log: {log}".lstrip()
        raise error


def _keep_log(plan: Plan, state: buildkit.Build, context: BuildContext) -> Path | None:
    """Keep the output of all steps in the home, in place of that of the variant's last build."""
    log = context.home / LOGS / f"{plan.variant}.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        write(log, without_login(state.transcript()).encode(), mode=0o600)
    except OSError:
        return None  # A full disk must not hide what failed.
    return log


def _explain(
    plan: Plan, errors: Sequence[str], returncode: int, context: BuildContext
) -> SparkError:
    """The error for a build that failed, by BuildKit's own errors."""
    if not _engine_answers(context):
        return EngineError(
            f"the engine at {context.engine.host} stopped during the build of {plan.variant}",
            hint=f"start it (`{program()} engine up`) and run the same command: "
            "finished layers are cached",
        )
    output = without_login("\n".join(dict.fromkeys(errors)))
    place = Path(context.engine.data_root)
    free = free_bytes(place)
    # BuildKit 0.13 reports a full disk as "unsupported diff media type" when it makes a blob.
    if FULL in output or (not context.builder.remote and free < FULL_BYTES):
        return PreflightError(
            f"the build of {plan.variant} filled the disk: {place} has {human(free)} free",
            detail=output,
            hint="free some disk, or try --lean, then run the same command: what is built is "
            "cached",
        )
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
        f"{program()} image {plan.variant} --print bake >bake.json; "
        "docker buildx bake -f bake.json",
    )


def _engine_answers(context: BuildContext) -> bool:
    """Whether the engine still answers."""
    return context.runner.run([*context.engine.docker, "version"], check=False).returncode == 0
