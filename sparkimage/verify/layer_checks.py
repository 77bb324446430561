"""The layers' own checks of the static tier: test functions that need no container.

They are in ``images/<layer>/test_*.py``. A function whose arguments are all in ``ARGUMENTS``
belongs to the static tier and is called here; every other one needs a container of the image, and
runs under pytest (``verify/checks.py``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sparkimage.config.plan import Plan
from sparkimage.config.tier import Tier
from sparkimage.image.linking import Root
from sparkimage.image.settings import Settings
from sparkimage.verify.plan_record import check_folders
from sparkimage.verify.seal import Check

ARGUMENTS = frozenset({"plan", "root", "env", "check"})
"""The plan as plain data, the image's root file system, its ENV, and the function that compares."""


def needs_container(function: Callable[..., Any]) -> bool:
    """Whether a check needs more than the image's files and config."""
    return not set(inspect.signature(function).parameters) <= ARGUMENTS


def examine(plan: Plan, settings: Settings, root: Root, project: Path) -> Iterator[Check]:
    """Run these checks of every layer of ``plan``."""
    arguments = {"plan": plan.to_dict(), "root": root, "env": settings.env}
    for id, function in _functions(plan, project):
        if not needs_container(function):
            yield _run(id, function, arguments)


def count(plan: Plan, project: Path, *, in_container: bool) -> int:
    """How many checks of the layers of ``plan`` need a container, or need none; runs none."""
    functions = (function for _, function in _functions(plan, project))
    return sum(needs_container(function) is in_container for function in functions)


def _functions(plan: Plan, project: Path) -> Iterator[tuple[str, Callable[..., None]]]:
    for folder in check_folders(plan, project):
        for path in sorted(folder.glob("test_*.py")):
            for name, function in _read(path).items():
                if name.startswith("test_") and inspect.isfunction(function):
                    yield f"{folder.name}/{name}", function


def _read(path: Path) -> dict[str, Any]:
    """What a file of checks defines. Not by ``runpy``, which two threads cannot use at once, and
    not by an import, which leaves bytecode in the layer's folder."""
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    exec(compile(path.read_text(), str(path), "exec", dont_inherit=True), namespace)  # noqa: S102
    return namespace


def _run(id: str, function: Callable[..., None], arguments: dict[str, Any]) -> Check:
    comparisons: list[Check] = []

    def check(title: str, *, seen: Any, expected: Any) -> None:
        comparisons.append(Check.compare(id, title, seen, expected, tier=Tier.STATIC))

    names = inspect.signature(function).parameters
    try:
        function(**{name: {**arguments, "check": check}[name] for name in names})
    except Exception as error:  # noqa: BLE001 - as under pytest, any exception is a failed check
        check(id, seen=f"{type(error).__name__}: {error}", expected="an answer")
    if not comparisons:
        check(id, seen="the check compared nothing", expected="an answer")
    return next((check for check in comparisons if not check.passed), comparisons[0])
