"""The layers' own checks of the static tier: test functions that need no container.

They are in ``images/<layer>/test_*.py``. A function whose arguments are all in ``ARGUMENTS``
belongs to the static tier and is called here; every other one needs a container of the image, and
runs under pytest (``verify/checks.py``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from traceback import extract_tb
from typing import Any

from sparkimage.config.plan import Plan
from sparkimage.config.tier import Tier
from sparkimage.core.errors import ConfigError, Problem
from sparkimage.image.linking import Root
from sparkimage.image.settings import Settings
from sparkimage.verify.plan_record import check_folders, parsed
from sparkimage.verify.seal import Check

ARGUMENTS = frozenset({"plan", "root", "env", "check"})
"""The plan as plain data, the image's root file system, its ENV, and the function that compares."""


class Comparisons:
    """The argument ``check`` of a check: compares ``seen`` with ``expected`` and records both."""

    def __init__(self, id: str, tier: Tier) -> None:
        self.id, self.tier = id, tier
        self.checks: list[Check] = []

    def __call__(self, title: str, *, seen: Any, expected: Any) -> None:
        check = Check.compare(self.id, title, seen, expected, tier=self.tier)
        self.checks.append(check)
        assert check.passed, f"{title}: seen {check.seen!r}, expected {check.expected!r}"

    def result(self, error: str) -> Check:
        """The result of the check; ``error`` is the exception that it ended with, or empty."""
        failed = next((check for check in self.checks if not check.passed), None)
        if failed is None and (error or not self.checks):
            seen = error or "the check compared nothing"
            return Check.compare(self.id, self.id, seen, "a comparison", tier=self.tier)
        return failed or self.checks[0]


def needs_container(function: Callable[..., Any]) -> bool:
    """Whether a check needs more than the image's files and config."""
    return not set(inspect.signature(function).parameters) <= ARGUMENTS


def examine(plan: Plan, settings: Settings, root: Root, project: Path) -> Iterator[Check]:
    """Run the checks of the static tier of every layer of ``plan``."""
    arguments = {"plan": plan.to_dict(), "root": root, "env": settings.env}
    for id, function in _functions(plan, project):
        if not needs_container(function):
            yield _run(id, function, arguments)


def count(plan: Plan, project: Path, *, in_container: bool) -> int:
    """How many checks of the layers of ``plan`` need a container, or need none; runs none.

    Raises ``ConfigError`` for a file of checks that cannot be loaded.
    """
    functions = (function for _, function in _functions(plan, project))
    return sum(needs_container(function) is in_container for function in functions)


def _functions(plan: Plan, project: Path) -> Iterator[tuple[str, Callable[..., None]]]:
    for folder in check_folders(plan, project):
        for path in sorted(folder.glob("test_*.py")):
            for name, function in _execute(path).items():
                if name.startswith("test_") and inspect.isfunction(function):
                    yield f"{folder.name}/{name}", function


def _execute(path: Path) -> dict[str, Any]:
    """What a file of checks defines. Not by ``runpy``, which two threads cannot use at once, and
    not by an import, which leaves bytecode in the layer's folder."""
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    _, module = parsed(path)
    code = compile(module, str(path), "exec", dont_inherit=True)
    try:
        exec(code, namespace)  # noqa: S102
    except Exception as error:  # noqa: BLE001 - the file is the project's
        line = [at.lineno for at in extract_tb(error.__traceback__) if at.filename == str(path)]
        problem = Problem(
            file=f"images/{path.parent.name}/{path.name}",
            line=line[-1] if line and line[-1] else 1,
            what=f"its checks cannot be loaded: {type(error).__name__}: {error}",
            todo="correct it: it may import what this program's own environment has",
        )
        raise ConfigError([problem]) from None
    return namespace


def _run(id: str, function: Callable[..., None], arguments: dict[str, Any]) -> Check:
    comparisons, error = Comparisons(id, Tier.STATIC), ""
    arguments = {**arguments, "check": comparisons}
    try:
        function(**{name: arguments[name] for name in inspect.signature(function).parameters})
    except Exception as raised:  # noqa: BLE001 - as under pytest, any exception is a failed check
        error = f"{type(raised).__name__}: {raised}"
    return comparisons.result(error)
