"""The layers' own checks that bytes can prove: test functions that ask for no container.

They are in ``images/<layer>/test_*.py``, beside the others. One whose arguments are all of
``GIVEN`` belongs to the static tier and is called here; every other one asks for a container of
the image, and runs under pytest (``proof/checks.py``).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from sparkimage.config.plan import Plan
from sparkimage.config.tier import Tier
from sparkimage.image.linking import Root
from sparkimage.image.settings import Settings
from sparkimage.verify.plan_record import check_folders
from sparkimage.verify.seal import Check

GIVEN = frozenset({"plan", "root", "env", "check"})
"""The plan as plain data, the files that a container sees, the image's ENV, and what compares."""


def needs_container(function: Callable[..., Any]) -> bool:
    """Whether a check asks for more than the image's bytes."""
    return not set(inspect.signature(function).parameters) <= GIVEN


def examine(plan: Plan, settings: Settings, root: Root, project: Path) -> Iterator[Check]:
    """Run those of every layer of ``plan``."""
    given = {"plan": plan.to_dict(), "root": root, "env": settings.env}
    for id, one in _functions(plan, project):
        if not needs_container(one):
            yield _run(id, one, given)


def count_of_run(plan: Plan, project: Path) -> int:
    """How many checks of ``plan`` ask for a container."""
    return sum(needs_container(one) for _, one in _functions(plan, project))


def _functions(plan: Plan, project: Path) -> Iterator[tuple[str, Callable[..., None]]]:
    for folder in check_folders(plan, project):
        for path in sorted(folder.glob("test_*.py")):
            for name, one in _read(path).items():
                if name.startswith("test_") and inspect.isfunction(one):
                    yield f"{folder.name}/{name}", one


def _read(path: Path) -> dict[str, Any]:
    """What a file of checks defines. Not by ``runpy``, which two threads cannot use at once, and
    not by an import, which leaves bytecode in the layer's folder."""
    namespace: dict[str, Any] = {"__name__": path.stem, "__file__": str(path)}
    exec(compile(path.read_text(), str(path), "exec", dont_inherit=True), namespace)  # noqa: S102
    return namespace


def _run(id: str, function: Callable[..., None], given: dict[str, Any]) -> Check:
    compared: list[tuple[str, Any, Any]] = []

    def check(title: str, *, seen: Any, expected: Any) -> None:
        # Through JSON, so that what a seal holds is what was compared.
        seen, expected = json.loads(json.dumps([seen, expected]))
        compared.append((title, seen, expected))

    names = inspect.signature(function).parameters
    try:
        function(**{name: {**given, "check": check}[name] for name in names})
    except Exception as error:  # noqa: BLE001 - as under pytest, whatever it dies of has failed
        compared.append((id, f"{type(error).__name__}: {error}", "an answer"))
    compared = compared or [(id, "the check compared nothing", "an answer")]
    wrong = [one for one in compared if one[1] != one[2]]
    title, seen, expected = (wrong or compared)[0]
    return Check(
        id=id, layer=id.partition("/")[0], title=title, seen=seen, expected=expected,
        result="FAILED" if wrong else "PASSED", tier=Tier.STATIC,
    )  # fmt: skip
