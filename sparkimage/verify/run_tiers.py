"""Verifies an image: runs the checks of each tier, and writes the seal.

The checks of the run tier run under pytest in a process of their own, against a container of
exactly this digest. The engine emulates an image of another architecture.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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
from sparkimage.core.program import program
from sparkimage.image.store import Image, Store
from sparkimage.verify import gpu, layer_checks, plan_record, run_entrypoint, seal, static
from sparkimage.verify.plan_record import PlanRecord, check_folders

Progress = Callable[[int, int], None]
"""Takes the number of checks that are done, and of all; called by one thread at a time."""


@dataclass(frozen=True, kw_only=True)
class Live:
    """An engine, and its name or id for the image."""

    engine: Engine
    reference: str


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The results of a verification."""

    checks: tuple[seal.Check, ...]
    started: float
    finished: float
    """Unix times in seconds."""
    not_run: Mapping[str, str] = field(default_factory=dict)
    """Tiers, or ids of checks, that could not run here, and why."""
    tools: Mapping[str, str] = field(default_factory=dict)
    """What ran the checks, with its version."""

    @property
    def failed(self) -> tuple[seal.Check, ...]:
        return tuple(check for check in self.checks if not check.passed)

    @property
    def seconds(self) -> float:
        return self.finished - self.started


def verify(
    record: PlanRecord,
    image: Image,
    *,
    live: Callable[[], Live],
    project: Path,
    store: Store,
    runner: Runner,
    tiers: Sequence[Tier] = DEFAULT,
    progress: Progress = lambda _done, _total: None,
    write_seal: bool = True,
) -> Outcome:
    """Run every check of these tiers, and write the seal, PASSED or FAILED.

    ``live`` is called once, and only for tiers that need an engine; the static tier runs meanwhile.
    The record is stored beside the image. Raises ``VerifyError`` with each failed check, what was
    seen and what was expected; ``ImageMissingError`` when the engine lacks the image,
    ``PreflightError`` when none of the tiers can run here, ``StoreError`` for a damaged image.
    """
    plan = record.plan
    outcome = _run(plan, image, live, project, store, runner, tiers, progress)
    if write_seal:
        plan_record.save(store, image.digest, record)
        statement = seal.statement(
            digest=image.digest,
            image=plan.image,
            platform=plan.platform,
            checks=outcome.checks,
            lock_checksum=plan.lock_checksum,
            plan_checksum=record.checksum,
            tools=outcome.tools,
            host=f"{os.uname().sysname} {os.uname().release} {os.uname().machine}",
            started=outcome.started,
            finished=outcome.finished,
            not_run=outcome.not_run,
        )
        seal.save(store, statement)
    if outcome.failed:
        lines = [
            f"✗ {check.id} ({check.title})\n    found     {_short(check.seen)}\n"
            f"    expected  {_short(check.expected)}"
            for check in outcome.failed
        ]
        raise VerifyError(
            f"{plan.variant} ({image.digest[:19]}) failed {len(lines)} of {len(outcome.checks)} "
            "checks",
            detail="\n".join(lines),
            hint="fix the layer that the check belongs to, and build again; no name was moved",
        )
    return outcome


def _run(
    plan: Plan, image: Image, live: Callable[[], Live], project: Path, store: Store,
    runner: Runner, tiers: Sequence[Tier], progress: Progress,
) -> Outcome:  # fmt: skip
    started = time.time()
    checks: list[seal.Check] = []
    not_run: dict[str, str] = {}
    tools = {"sparkimage": sparkimage.__version__}
    counter = _Counter(progress)
    if Tier.STATIC in tiers:
        counter.total += static.count(plan, image, store, project)
    if Tier.RUN in tiers:
        counter.total += layer_checks.count(plan, project, in_container=True)
        counter.total += plan.answer is not None
    counter.add(0)
    refusal = None
    with ThreadPoolExecutor(1, "static") as executor:
        static_tier = None
        if Tier.STATIC in tiers:
            static_tier = executor.submit(static.examine, plan, image, store, project)
            static_tier.add_done_callback(counter.add_all)
        try:
            if set(tiers) - {Tier.STATIC}:
                at = live()
                tools["docker"] = at.engine.version
                if Tier.RUN in tiers:
                    checks += _run_tier(plan, at, project, runner, not_run, counter)
                if Tier.NODE in tiers:
                    node = gpu.examine(plan, at.engine, at.reference, runner)
                    counter.add(len(node.checks))
                    checks += node.checks
                    not_run |= node.not_run
        except SparkError as error:
            refusal = error
        if static_tier is not None:
            checks = [*static_tier.result(), *checks]
    if refusal is not None:
        # An image that the static tier refuses may be unable to start: then its reasons count.
        if all(check.passed for check in checks):
            raise refusal
        ran = {check.tier for check in checks}
        not_run |= {tier: f"not run: {refusal.message}" for tier in tiers if tier not in ran}
    if not checks:
        raise PreflightError(
            f"{plan.variant}: " + "; ".join(f"{name}: {why}" for name, why in not_run.items()),
            hint="run it on a node; `--tier static,run` runs anywhere",
        )
    return Outcome(
        checks=tuple(checks), started=started, finished=time.time(), not_run=not_run, tools=tools
    )


class _Counter:
    """Counts the checks that are done, from several threads."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.total = self.done = 0
        self.lock = threading.Lock()

    def add(self, count: int = 1) -> None:
        with self.lock:
            self.done += count
            # The number of checks of the node tier is known when it has run.
            self.total = max(self.total, self.done)
            self.progress(self.done, self.total)

    def add_all(self, future: Future[tuple[seal.Check, ...]]) -> None:
        if future.exception() is None:
            self.add(len(future.result()))


def _run_tier(
    plan: Plan, at: Live, project: Path, runner: Runner, not_run: dict[str, str], counter: _Counter
) -> list[seal.Check]:
    with (
        container(at.engine, runner, at.reference, plan.platform) as name,
        run_entrypoint.started(plan, at.engine, at.reference, runner) as answer,
    ):
        checks = examine(
            plan, name, project=project, engine=at.engine, runner=runner, done=counter.add
        )
        if answer is not None:
            answer.add(checks, not_run)
            counter.add()
    return checks


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 400 else text[:400] + " …"


def examine(
    plan: Plan,
    container: str,
    *,
    project: Path,
    engine: Engine,
    runner: Runner,
    done: Callable[[], None] = lambda: None,
) -> list[seal.Check]:
    """Run every check of ``plan`` that needs a container in this one; writes no seal.

    ``done`` is called after each check.
    """
    # Importing pytest is slow.
    from sparkimage.verify.checks import DONE, REQUEST

    folders = check_folders(plan, project)
    output: list[str] = []

    def read(line: str) -> None:
        output.append(line)
        if line.startswith(DONE):
            done()

    with TemporaryDirectory(prefix="sparkimage-verify-") as name:
        request, results = Path(name, "request.json"), Path(name, "results.json")
        request.write_text(json.dumps({"plan": plan.to_dict(), "results": str(results)}))
        argv = [
            sys.executable, "-m", "pytest", "--quiet", "--capture=no",
            "-p", "sparkimage.verify.checks", "-p", "no:cacheprovider",
            f"--hosts=docker://{container}", "--import-mode=importlib",
            "--confcutdir", str(folders[0].parent), "--rootdir", name, "-c", os.devnull,
            *map(str, folders),
        ]  # fmt: skip
        environment = {
            **engine.environment,
            REQUEST: str(request),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        process = runner.run(argv, env=environment, check=False, on_stdout=read)
        text = "\n".join(output) + process.stderr
        # 0 and 1: the checks passed or failed; with any other code they did not run.
        if process.returncode not in (0, 1) or not results.is_file():
            raise CommandError(argv, process.returncode, text)
        checks = [
            seal.Check(**{**result, "tier": Tier(result["tier"])})
            for result in json.loads(results.read_text())
        ]
    if not checks:
        raise SparkError(f"{plan.variant}: no check ran", detail=text)
    return checks


@contextmanager
def container(engine: Engine, runner: Runner, reference: str, platform: str) -> Iterator[str]:
    """An idle container of the image, removed at the end."""
    argv = [
        *engine.docker, "run", "--detach", "--pull", "never", "--platform", platform,
        "--network", "none", "--label", f"{OWNER}={owner()}",
        "--entrypoint", "sleep", reference, "infinity",
    ]  # fmt: skip
    try:
        name = runner.run(argv).stdout.strip()
    except CommandError as error:
        if "No such image" in error.output or "not found" in error.output.lower():
            raise ImageMissingError(
                f"{reference} is not in the engine", hint=f"build it: {program()} image"
            ) from None
        raise
    try:
        yield name
    finally:
        runner.run([*engine.docker, "rm", "--force", name], check=False)
