"""Starts an image by its own ENTRYPOINT, as its users do, and waits for its answer.

The matrix says what it answers. It runs beside the other checks: under emulation a large program
takes minutes to parse its arguments. Its time limit counts from its start; when it is over the
container is removed, so that the other checks get the processor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from sparkimage.build.engine.engine import OWNER, Engine
from sparkimage.config.plan import Answer, Plan
from sparkimage.config.tier import Tier
from sparkimage.core.errors import CommandError
from sparkimage.core.locks import owner
from sparkimage.core.process import Runner
from sparkimage.verify.seal import Check

ID = "entrypoint-answers"
LIMIT_S = 300.0
"""Seconds that a program has to answer."""
EMULATED_S = 600.0
"""The same under emulation; a program that is silent for longer has neither passed nor failed."""
GPU_ONLY_S = 60.0
"""The same under emulation for a program that can answer only with a GPU: a broken script,
interpreter or import fails sooner. vLLM takes four minutes to report a missing GPU."""
LINES_KEPT = 3


@dataclass(frozen=True, kw_only=True)
class RunningEntrypoint:
    """A container of the image with its own ENTRYPOINT."""

    plan: Plan
    engine: Engine
    runner: Runner
    answer: Answer
    container: str
    tier: Tier

    def run(self) -> Check | str:
        """Start the container and wait for its exit, or for the time limit, and remove it then.

        Returns the check, or why it has no result.
        """
        docker = self.engine.docker
        start = self.runner.run([*docker, "start", self.container], check=False)
        if start.returncode:
            return self._check(f"not started: {(start.stderr.strip() or '?')[-600:]}")
        emulated = self.engine.arch != self.plan.arch
        without_gpu = self.answer.without_gpu if self.tier is not Tier.NODE else None
        limit_s = (GPU_ONLY_S if without_gpu else EMULATED_S) if emulated else LIMIT_S
        try:
            wait = self.runner.run([*docker, "wait", self.container], timeout_s=limit_s)
        except CommandError as error:
            if error.returncode != 124:
                raise
            self.remove()
            silent = f"no answer after {limit_s:.0f} s"
            if not emulated:
                return self._check(silent)
            why = "it answers only with a GPU; " if without_gpu else ""
            return f"not run: {why}{silent} of emulation"
        code = wait.stdout.strip()
        logs = self.runner.run([*docker, "logs", self.container])
        output = logs.stdout + logs.stderr
        lines = [line.strip() for line in output.splitlines()]
        if code == "0" and self.answer.says in output:
            return self._check(self.answer.says)
        if without_gpu is not None and code != "0" and without_gpu in output:
            line = next(line for line in reversed(lines) if without_gpu in line)
            return f"not run: it answers only with a GPU (exit code {code}: {line[:200]})"
        return self._check(f"exit code {code}: {' / '.join(lines[-LINES_KEPT:])[-600:]}")

    def remove(self) -> None:
        """Remove the container, running or not."""
        argv = [*self.engine.docker, "rm", "--force", self.container]
        self.runner.run(argv, check=False)

    def _check(self, seen: str) -> Check:
        title = f"`{' '.join((*self.plan.entrypoint, *self.answer.args))}` answers as planned"
        id, says = f"{self.tier}/{ID}", self.answer.says
        return Check.compare(id, title, seen, says, tier=self.tier, layer="_every")


@dataclass(frozen=True, kw_only=True)
class PendingAnswer:
    """The result of a container that still runs."""

    tier: Tier
    future: Future[Check | str]

    def add(self, checks: list[Check], not_run: dict[str, str]) -> None:
        """Wait for the result, and add it to ``checks`` or to ``not_run``."""
        result = self.future.result()
        if isinstance(result, str):
            not_run[f"{self.tier}/{ID}"] = result
        else:
            checks.append(result)


@contextmanager
def started(
    plan: Plan,
    engine: Engine,
    reference: str,
    runner: Runner,
    *,
    tier: Tier = Tier.RUN,
    options: Sequence[str] = (),
) -> Iterator[PendingAnswer | None]:
    """Start the image in the background; None where the plan says no answer.

    ``options`` are of ``docker create``. The container is removed at the end.
    """
    if plan.answer is None:
        yield None
        return
    argv = [
        *engine.docker, "create", "--pull", "never", "--platform", plan.platform,
        "--network", "none", "--label", f"{OWNER}={owner()}", *options,
        reference, *plan.answer.args,
    ]  # fmt: skip
    container = runner.run(argv).stdout.strip()
    entrypoint = RunningEntrypoint(
        plan=plan, engine=engine, runner=runner, answer=plan.answer, container=container, tier=tier
    )
    with ThreadPoolExecutor(1, "entrypoint") as executor:
        try:
            yield PendingAnswer(tier=tier, future=executor.submit(entrypoint.run))
        finally:
            # Ends a `docker wait` that still runs.
            entrypoint.remove()
