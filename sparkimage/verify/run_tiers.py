"""Proves an image: reads its layers, starts it, runs the checks of its layers, writes the seal.

The checks of the run tier run under pytest in a process of their own, against a container made
from the image's digest. The engine emulates where the image is of another architecture than the
machine.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sparkimage
from sparkimage.build.engine.engine import OWNER, Engine
from sparkimage.config.plan import Plan
from sparkimage.config.tier import DEFAULT, Tier
from sparkimage.core.errors import (
    CommandError,
    ImageMissingError,
    PreflightError,
    SparkError,
    VerifyError,
)
from sparkimage.core.locks import owner
from sparkimage.core.process import Runner
from sparkimage.image.store import Image, Store
from sparkimage.verify import gpu, layer_checks, plan_record, run_entrypoint, seal, static
from sparkimage.verify.plan_record import PlanRecord, check_folders

Progress = Callable[[int, int], None]
"""Takes how many checks are done, and of how many; from more than one thread, not at once."""


def nothing(_done: int, _total: int) -> None:
    """Shows no progress."""


@dataclass(frozen=True, kw_only=True)
class Live:
    """An engine, and what it knows the image by."""

    engine: Engine
    reference: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a verification came to."""

    checks: tuple[seal.Check, ...]
    seconds: float
    not_run: Mapping[str, str] = field(default_factory=dict)
    """Tiers, or ids of checks, that were asked for and could not run here, and why."""

    tools: Mapping[str, str] = field(default_factory=dict)
    """What ran them, with its version."""

    @property
    def failed(self) -> tuple[seal.Check, ...]:
        return tuple(check for check in self.checks if not check.passed)


def verify(
    record: PlanRecord,
    image: Image,
    *,
    live: Callable[[], Live],
    project: Path,
    store: Store,
    runner: Runner,
    tiers: Sequence[Tier] = DEFAULT,
    progress: Progress = nothing,
) -> Outcome:
    """Run every check of these tiers against ``image`` and write the seal, PASSED or FAILED.

    The image's record is kept beside it.
    Raises as ``run``, and ``VerifyError`` with each failed check, what was seen and what was
    expected.
    """
    began, plan = time.time(), record.plan
    outcome = run(
        plan, image, live=live, project=project, store=store, runner=runner, tiers=tiers,
        progress=progress,
    )  # fmt: skip
    ran = {check.tier for check in outcome.checks}
    plan_record.keep(store, image.digest, record)
    seal.save(
        store,
        seal.statement(
            digest=image.digest,
            platform_name=plan.platform,
            result="FAILED" if outcome.failed else "PASSED",
            tiers=[tier for tier in Tier if tier in ran],
            checks=outcome.checks,
            lock_checksum=plan.lock_checksum,
            tools=outcome.tools,
            host=f"{os.uname().sysname} {os.uname().release} {os.uname().machine}",
            started=began,
            finished=time.time(),
            plan_checksum=record.checksum,
            image=plan.image,
            not_run=outcome.not_run,
        ),
    )
    if outcome.failed:
        raise failed(plan.variant, image.digest, outcome.failed, len(outcome.checks))
    return outcome


def run(
    plan: Plan,
    image: Image,
    *,
    live: Callable[[], Live],
    project: Path,
    store: Store,
    runner: Runner,
    tiers: Sequence[Tier] = DEFAULT,
    progress: Progress = nothing,
) -> Outcome:
    """Run every check of these tiers against ``image``; seals nothing.

    ``live`` is called once, and only for tiers that need an engine; the layers are read meanwhile.
    ``progress`` takes how many checks are done, of how many. Raises ``ImageMissingError``
    when the engine lacks the image, ``PreflightError`` when not one of the tiers can run here.
    """
    began = time.time()
    checks: list[seal.Check] = []
    not_run: dict[str, str] = {}
    tools = {"sparkimage": sparkimage.__version__}
    total = 0
    if Tier.STATIC in tiers:
        total += static.count(plan, image, store, project)
    if Tier.RUN in tiers:
        total += layer_checks.count(plan, project, in_container=True)
        total += plan.answer is not None
    counter = _Counter(progress, total)
    with ThreadPoolExecutor(1, "static") as beside:
        layers = None
        if Tier.STATIC in tiers:
            layers = beside.submit(_static_tier, plan, image, store, project, counter)
        refused = None
        try:
            if set(tiers) - {Tier.STATIC}:
                at = live()
                tools["docker"] = at.engine.version
                if Tier.RUN in tiers:
                    checks += _run_tier(plan, at, project, runner, not_run, counter)
                if Tier.NODE in tiers:
                    came = gpu.examine(plan, at.engine, at.reference, runner)
                    counter.done(len(came.checks))
                    checks += came.checks
                    not_run |= came.not_run
        except SparkError as error:
            refused = error
        if layers is not None:
            checks = [*layers.result(), *checks]
    if refused is not None:
        # What the static tier refuses may well not start: then it says why.
        if all(check.passed for check in checks):
            raise refused
        ran = {check.tier for check in checks}
        not_run |= {tier: f"not run: {refused.message}" for tier in tiers if tier not in ran}
    if not checks:
        raise PreflightError(
            f"{plan.variant}: " + "; ".join(f"{name}: {why}" for name, why in not_run.items()),
            hint="run it on a node; `--tier static,run` can be run anywhere",
        )
    return Outcome(checks=tuple(checks), seconds=time.time() - began, not_run=not_run, tools=tools)


class _Counter:
    """How many checks are done, of how many; told from more than one thread."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress = progress
        self.total = total
        self.count = 0
        self.lock = threading.Lock()
        progress(0, total)

    def done(self, count: int = 1) -> None:
        with self.lock:
            self.count += count
            # How many a node comes to, it says when it has been looked at.
            self.total = max(self.total, self.count)
            self.progress(self.count, self.total)


def _static_tier(
    plan: Plan, image: Image, store: Store, project: Path, counter: _Counter
) -> tuple[seal.Check, ...]:
    """Starts no engine. Raises ``StoreError`` for a damaged image."""
    found = static.examine(plan, image, store, project)
    counter.done(len(found))
    return found


def _run_tier(
    plan: Plan, at: Live, project: Path, runner: Runner, not_run: dict[str, str], counter: _Counter
) -> list[seal.Check]:
    with (
        container(at.engine, runner, at.reference, plan.platform) as started,
        run_entrypoint.begun(plan, at.engine, at.reference, runner) as entrypoint,
    ):
        found = examine(
            plan, started, project=project, engine=at.engine, runner=runner, done=counter.done
        )
        checks = [*found]
        if entrypoint is not None:
            entrypoint.add(checks, not_run)
            counter.done()
    return checks


def failed(variant: str, digest: str, checks: tuple[seal.Check, ...], total: int) -> VerifyError:
    """The error for an image that did not pass."""
    lines = [
        f"✗ {check.id}: {check.title}\n    seen      {_short(check.seen)}\n"
        f"    expected  {_short(check.expected)}"
        for check in checks
    ]
    return VerifyError(
        f"{variant} ({digest[:19]}) is refused: {len(checks)} of {total} checks failed",
        detail="\n".join(lines),
        hint="correct the layer that the check stands with, and build again; nothing was named",
    )


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 400 else text[:400] + " …"


def examine(
    plan: Plan,
    started: str,
    *,
    project: Path,
    engine: Engine,
    runner: Runner,
    done: Callable[[], None] = lambda: None,
) -> tuple[seal.Check, ...]:
    """Run every check of ``plan`` that asks for a container, in ``started``; seals nothing.

    ``done`` is called after each one.
    """
    # With pytest, which takes its time.
    from sparkimage.verify.checks import DONE, REQUEST

    folders = check_folders(plan, project)
    output: list[str] = []

    def take(line: str) -> None:
        output.append(line)
        if line.startswith(DONE):
            done()

    with TemporaryDirectory(prefix="sparkimage-verify-") as name:
        request, results = Path(name, "request.json"), Path(name, "results.json")
        request.write_text(json.dumps({"plan": plan.to_dict(), "results": str(results)}))
        argv = [
            sys.executable, "-m", "pytest", "--quiet", "--capture=no",
            "-p", "sparkimage.verify.checks", "-p", "no:cacheprovider",
            f"--hosts=docker://{started}", "--import-mode=importlib",
            "--confcutdir", str(folders[0].parent), "--rootdir", name, "-c", os.devnull,
            *map(str, folders),
        ]  # fmt: skip
        environment = {
            **engine.environment,
            REQUEST: str(request),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        ran = runner.run(argv, env=environment, check=False, on_stdout=take)
        text = "\n".join(output) + ran.stderr
        # 0 and 1 are verdicts; anything else is a verification that did not take place.
        if ran.returncode not in (0, 1) or not results.is_file():
            raise CommandError(argv, ran.returncode, text)
        found: list[dict[str, Any]] = json.loads(results.read_text())
    if not found:
        raise SparkError(f"{plan.variant}: no check ran", detail=text)
    keys = ("id", "layer", "title", "result", "seen", "expected")
    return tuple(seal.Check(**{key: one[key] for key in keys}) for one in found)


@contextmanager
def container(engine: Engine, runner: Runner, reference: str, platform: str) -> Iterator[str]:
    """A container of the image that does nothing, for as long as the context lasts."""
    argv = [
        *engine.docker, "run", "--detach", "--rm", "--pull", "never", "--platform", platform,
        "--network", "none", "--label", f"{OWNER}={owner()}",
        "--entrypoint", "sleep", reference, "infinity",
    ]  # fmt: skip
    try:
        started = runner.run(argv).stdout.strip()
    except CommandError as error:
        if "No such image" in error.output or "not found" in error.output.lower():
            raise ImageMissingError(
                f"the engine holds no {reference}", hint="build it: python build.py image"
            ) from None
        raise
    try:
        yield started
    finally:
        runner.run([*engine.docker, "kill", started], check=False)
