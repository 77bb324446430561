"""Executes a plan: preflight, BuildKit, the store, the proof, and only then the name.

An image gets its name, in the store and in the engine, when its checks have passed. Until then it
lies in the store by digest, and in the engine under a name of this process; an interrupted build
leaves the name where it was, and BuildKit's cache lets the next run resume. What is verified and
named is the image of one digest, never what a name stands for: other processes may move names.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sparkimage.build import bake, preflight
from sparkimage.build.context import Workshop
from sparkimage.build.engine.engine import OWNER, Engine, docker_client, owner
from sparkimage.config.address import WHEELS
from sparkimage.config.plan import Plan
from sparkimage.config.tier import DEFAULT
from sparkimage.core.errors import (
    BuildError,
    CommandError,
    EngineError,
    GateError,
    ImageMissingError,
    LockError,
    VerifyError,
)
from sparkimage.core.process import Runner
from sparkimage.core.progress import Build, View
from sparkimage.image import archive
from sparkimage.image.store import Descriptor, Image
from sparkimage.resolve import fetch as inputs
from sparkimage.resolve import wheels
from sparkimage.verify import plan_record, policy, run_tiers, seal
from sparkimage.verify.plan_record import PlanRecord

STAGING = "-unproven"
"""Follows the name of an image that was refused, in the engine alone, for whoever looks into it."""
OWN = re.compile(r":unproven-(?P<pid>\d+)$")
"""The tag of an image that a process has not proven yet."""
POLICY = "policy.json"
ORPHANED = re.compile(r"could not get object info|repository does not contain ref|not our ref")
"""What BuildKit says of a commit that was force-pushed away: it fetches branches and tags."""
DENIED = re.compile(r'source "([^"]+)" denied by policy')


@dataclass(frozen=True, kw_only=True)
class Result:
    """One image that was built and proven."""

    plan: Plan
    image: Image
    checks: tuple[seal.Check, ...]
    seconds: float
    unchanged: bool
    not_run: Mapping[str, str] = field(default_factory=dict)
    """Checks that could not run here, and why."""


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


def build(plan: Plan, shop: Workshop, *, rebuild: bool = False, repair: bool = False) -> Result:
    """Build ``plan``, prove the image, and give it its name.

    An image that is there, proven and unchanged is left alone unless ``rebuild``. ``repair`` first
    removes what is damaged in the store. Waits for another process that builds for the same name.
    Raises ``BuildError``, ``VerifyError``, ``PreflightError``, ``NetworkError``, ``StoreError``.
    """
    preflight.refuse_unresolved([plan])
    preflight.refuse_open_steps(plan, shop.project)
    say = shop.view.say
    with shop.store.naming(plan.image, say), shop.store.in_use(say):
        return _build(plan, shop, rebuild=rebuild, repair=repair)


def _build(plan: Plan, shop: Workshop, *, rebuild: bool, repair: bool) -> Result:
    began = time.monotonic()
    key = fingerprint(plan, shop.project)
    record = plan_record.record(plan, shop.project, plan_record.sources_checksum(shop.matrix_file))
    if repair:
        _repair(plan, shop)
    elif not rebuild and (image := _unchanged(plan, shop, key)) is not None:
        verdict = _sealed(record, image, shop)
        if verdict is not None:
            plan_record.keep(shop.store, image.digest, record)
            return Result(
                plan=plan, image=image, checks=tuple(verdict.checks),
                seconds=time.monotonic() - began, unchanged=True, not_run=verdict.not_run,
            )  # fmt: skip
    preflight.check(plan, shop)
    preflight.reachable(plan, shop)
    with execute(plan, shop) as staged:
        try:
            outcome = _prove(record, staged, shop)
        except VerifyError:
            _tag(staged.id, plan.image + STAGING, shop)
            raise
        _name(plan, staged, shop)
    for layer in plan.layers:
        if (fetched := preflight.fetch_key(layer)) is not None:
            shop.store.put_fact("fetched", fetched, {"variant": plan.variant})
    digest = staged.image.digest
    shop.store.put_fact("built", key, {"digest": digest, "variant": plan.variant})
    return Result(
        plan=plan,
        image=shop.store.resolve(digest),
        checks=outcome.checks,
        seconds=time.monotonic() - began,
        unchanged=False,
        not_run=outcome.not_run,
    )


def _name(plan: Plan, staged: Staged, shop: Workshop) -> None:
    """Let the name stand for what was proven, in the engine and in the store."""
    digest = staged.image.digest
    _tag(staged.id, plan.image, shop)
    shop.store.name(plan.image, shop.store.descriptor(digest))
    _remove(plan.image + STAGING, shop)
    if _engine_id(plan.image, shop.engine, shop.runner) != staged.id:
        raise EngineError(
            f"{plan.image} was moved to another image in the engine at {shop.engine.host} while it "
            "was named",
            hint=f"run it by its id, {staged.id[:19]}; or the same command again, when nobody else "
            "tags it",
        )


def _tag(image_id: str, name: str, shop: Workshop) -> None:
    shop.runner.run([*shop.engine.docker, "tag", image_id, name])


def _remove(name: str, shop: Workshop) -> None:
    """Take a name back in the engine; that it is not there is no failure."""
    shop.runner.run([*shop.engine.docker, "image", "rm", "--no-prune", name], check=False)


def _sealed(record: PlanRecord, image: Image, shop: Workshop) -> seal.Verdict | None:
    """The seal of an image that was built and proven, where the gate would let it ship."""
    try:
        decision = policy.ask(
            shop.store,
            image.digest,
            plan_checksum=record.checksum,
            # What only a node can prove is not proven by building again.
            required=policy.Required(tiers=DEFAULT),
            keys=shop.keys,
        )
    except GateError:
        return None
    return decision.verdict


def _unchanged(plan: Plan, shop: Workshop, key: str) -> Image | None:
    """The image of an earlier build of the very same inputs, if store and engine still hold it."""
    fact = shop.store.get_fact("built", key)
    if fact is None or shop.store.names().get(plan.image) != fact.get("digest"):
        return None
    if not shop.store.holds(fact["digest"]):
        return None
    image = shop.store.resolve(fact["digest"])
    held = _engine_id(plan.image, shop.engine, shop.runner)
    return image if held in _ids(image) else None


def _ids(image: Image) -> tuple[str, ...]:
    """What engines may call exactly this image: its manifest's digest, or its config's."""
    return image.digest, image.manifest["config"]["digest"]


def _engine_id(reference: str, engine: Engine, runner: Runner) -> str | None:
    done = runner.run(
        [*engine.docker, "image", "inspect", "--format", "{{.Id}}", reference], check=False
    )
    return done.stdout.strip() if done.returncode == 0 else None


def _repair(plan: Plan, shop: Workshop) -> None:
    digest = shop.store.names().get(plan.image)
    if digest is None:
        return
    for damaged in shop.store.damaged(digest):
        shop.view.say(f"removing the damaged blob {damaged}")
        shop.store.discard(damaged)


@dataclass(frozen=True, kw_only=True)
class Staged:
    """An image that is in the store by digest and in the engine by id, and has no name yet."""

    image: Image
    id: str


@contextmanager
def execute(plan: Plan, shop: Workshop) -> Iterator[Staged]:
    """Run bake. For as long as the context lasts the engine holds the image, which has no name but
    one of this process, and need not have one then."""
    _sweep(plan, shop)
    repository, _, _ = plan.image.rpartition(":")
    own = f"{repository}:unproven-{os.getpid()}"
    try:
        image = _execute(plan, own, shop)
        held = _engine_id(own, shop.engine, shop.runner)
        if held not in _ids(image):
            raise EngineError(
                f"the engine at {shop.engine.host} has {held} where {image.digest} was built",
                hint="run the same command again, when nobody else uses the tag unproven-…",
            )
        yield Staged(image=image, id=held)
    finally:
        _remove(own, shop)


def _sweep(plan: Plan, shop: Workshop) -> None:
    """Remove the containers and the names of processes that were killed."""
    form = "{{.ID}} {{.Label " + json.dumps(OWNER) + "}}"
    argv = [
        *shop.engine.docker, "ps", "--all", "--filter", f"label={OWNER}", "--format", form,
    ]  # fmt: skip
    for line in shop.runner.run(argv).stdout.splitlines():
        container, _, whose = line.partition(" ")
        machine, _, pid = whose.rpartition("-")
        # An engine may be shared with another machine, whose processes cannot be seen here.
        if machine == os.uname().nodename and not Path("/proc", pid).exists():
            shop.runner.run([*shop.engine.docker, "rm", "--force", container], check=False)
    repository, _, _ = plan.image.rpartition(":")
    argv = [
        *shop.engine.docker, "image", "ls", "--filter", f"reference={repository}:unproven-*",
        "--format", "{{.Repository}}:{{.Tag}}",
    ]  # fmt: skip
    for name in shop.runner.run(argv).stdout.split():
        match = OWN.search(name)
        if match is not None and not Path("/proc", match["pid"]).exists():
            _remove(name, shop)


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
    state = Build([layer.name for layer in plan.layers], foreign=source)
    view = shop.view if title else View(shop.view.console, quiet=True)
    with view.build(state, title) as feed:
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
    if _engine_id(name, shop.engine, shop.runner) not in _ids(image):
        raise EngineError(
            f"the engine at {shop.engine.host} did not load {image.digest[:19]}",
            detail=said,
            hint="look at its log, and at its free disk",
        )


def _save(reference: str, shop: Workshop) -> Descriptor:
    with closing(docker_client(shop.engine.host)) as client:
        chunks = client.images.get(reference).save(chunk_size=1 << 20, named=False)
        return shop.store.import_docker_archive(ChunkReader(chunks))


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


def _prove(record: PlanRecord, staged: Staged, shop: Workshop) -> run_tiers.Outcome:
    def live() -> run_tiers.Live:
        # The containerd store unpacks with the first container. This one is never started; an
        # image without a command of its own asks for one.
        created = shop.runner.run(
            [
                *shop.engine.docker, "create", "--pull", "never", "--label", f"{OWNER}={owner()}",
                "--platform", record.plan.platform, "--entrypoint", "none", staged.id,
            ]
        ).stdout.strip()  # fmt: skip
        shop.runner.run([*shop.engine.docker, "rm", created])
        return run_tiers.Live(engine=shop.engine, reference=staged.id)

    with shop.view.counted("verifying") as progress:
        return run_tiers.verify(
            record,
            staged.image,
            live=live,
            project=shop.project,
            store=shop.store,
            runner=shop.runner,
            keys=shop.keys,
            progress=progress,
        )


def engine_reference(plan: Plan, image: Image, engine: Engine, runner: Runner) -> str:
    """The id by which the engine holds exactly this image.

    Raises ``ImageMissingError`` when it does not hold it.
    """
    for one in _ids(image):
        if _engine_id(one, engine, runner) in _ids(image):
            return one
    raise ImageMissingError(
        f"the engine does not hold {image.digest[:19]} ({plan.variant})",
        hint=f"python build.py image {plan.variant} --rebuild",
    )
