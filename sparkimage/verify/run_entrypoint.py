"""Starts an image as its users do, by its own ENTRYPOINT, and listens for its answer.

The matrix says how it answers. It runs beside the other checks: under emulation a program of many
modules takes minutes to come to its arguments. Its time counts from its start, and when that is
over it is gone, whether the other checks are done or not: they need the processor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

from sparkimage.build.engine.engine import OWNER, Engine
from sparkimage.config.plan import Answer, Plan
from sparkimage.config.tier import Tier
from sparkimage.core.errors import CommandError
from sparkimage.core.locks import owner
from sparkimage.core.process import Runner
from sparkimage.verify.seal import Check

ID = "entrypoint-answers"
LIMIT_S = 300.0
"""Seconds that a program has for its answer."""
EMULATED_S = 600.0
"""The same under emulation; one that is silent for longer has neither passed nor failed."""
GPU_ONLY_S = 60.0
"""The same under emulation where no answer can come for want of a GPU: what is broken (the script,
its interpreter, the first imports) ends sooner. vLLM takes four minutes to miss its GPU."""
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

    def outcome(self) -> Check | str:
        """Start it. The check; or why it says nothing here. Waits for the program's end, or for
        the end of its time, and removes the container then."""
        says = self.answer.says
        docker = self.engine.docker
        done = self.runner.run([*docker, "start", self.container], check=False)
        if done.returncode:
            return self._check(f"not started: {(done.stderr.strip() or '?')[-600:]}")
        emulated = self.engine.arch != self.plan.arch
        wanted = self.answer.without_gpu if self.tier is not Tier.NODE else None
        limit_s = (GPU_ONLY_S if wanted else EMULATED_S) if emulated else LIMIT_S
        try:
            waited = self.runner.run([*docker, "wait", self.container], timeout_s=limit_s)
        except CommandError as error:
            if error.returncode != 124:
                raise
            self.remove()
            silent = f"no answer after {limit_s:.0f} s"
            if not emulated:
                return self._check(silent)
            why = "it answers with a GPU only; " if wanted else ""
            return f"not run: {why}{silent} of emulation"
        code = waited.stdout.strip()
        logs = self.runner.run([*docker, "logs", self.container])
        output = logs.stdout + logs.stderr
        if code == "0" and says in output:
            return self._check(says)
        if wanted is not None and code != "0" and wanted in output:
            line = next(line for line in reversed(output.splitlines()) if wanted in line)
            return f"not run: it answers with a GPU only (exit code {code}: {line.strip()[:200]})"
        last = " / ".join(line.strip() for line in output.splitlines()[-LINES_KEPT:])
        return self._check(f"exit code {code}: {last[-600:]}")

    def remove(self) -> None:
        """End the program, where it still runs."""
        argv = [*self.engine.docker, "rm", "--force", self.container]
        self.runner.run(argv, check=False)

    def _check(self, seen: str) -> Check:
        title = f"what `{' '.join((*self.plan.entrypoint, *self.answer.args))}` says"
        check = Check.compare(f"{self.tier}/{ID}", title, seen, self.answer.says, tier=self.tier)
        return replace(check, layer="_every")


@dataclass(frozen=True, kw_only=True)
class PendingAnswer:
    """What waits for the answer of a container, beside whatever else is done."""

    tier: Tier
    came: Future[Check | str]

    def add(self, checks: list[Check], not_run: dict[str, str]) -> None:
        """Put the outcome where it belongs, when there is one."""
        outcome = self.came.result()
        if isinstance(outcome, str):
            not_run[f"{self.tier}/{ID}"] = outcome
        else:
            checks.append(outcome)


@contextmanager
def begun(
    plan: Plan,
    engine: Engine,
    reference: str,
    runner: Runner,
    *,
    tier: Tier = Tier.RUN,
    options: Sequence[str] = (),
) -> Iterator[PendingAnswer | None]:
    """The image, started for as long as the context lasts; None where it has no answer to give."""
    if plan.answer is None:
        yield None
        return
    argv = [
        *engine.docker, "create", "--pull", "never", "--platform", plan.platform,
        "--network", "none", "--label", f"{OWNER}={owner()}", *options,
        reference, *plan.answer.args,
    ]  # fmt: skip
    container = runner.run(argv).stdout.strip()
    started = RunningEntrypoint(
        plan=plan, engine=engine, runner=runner, answer=plan.answer, container=container, tier=tier
    )
    with ThreadPoolExecutor(1, "entrypoint") as beside:
        try:
            yield PendingAnswer(tier=tier, came=beside.submit(started.outcome))
        finally:
            # What still waits for it then has its end.
            started.remove()
