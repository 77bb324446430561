"""What all tests share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from sparkimage.errors import SparkError
from tests.lab import sampling

# No test is one of a timing: a busy machine is no reason to fail.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    call: pytest.CallInfo[None],
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """An error of the product's own shows its details below its message."""
    report = yield
    if report.failed and call.excinfo is not None and isinstance(call.excinfo.value, SparkError):
        error = call.excinfo.value
        report.sections.append(("detail", f"{error.detail}\n→ {error.hint}"))
    return report


# The commands that tests start keep their bytecode, as a user's do: without it each start compiles
# all modules anew, which makes half a second of the processor's.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


SHARED = ("four", "recipe", "lab")
"""Fixtures that are dear to make, the dearest first: one process runs all tests that take one."""


# Before xdist, which reads the groups in the same hook.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest groups begin first, and the many small ones fill what is left."""

    def rank(item: pytest.Item) -> int:
        assert isinstance(item, pytest.Function)
        for n, name in enumerate(SHARED):
            if name in item.fixturenames:
                return n
        return len(SHARED) + (0 if "lab" in item.path.parts else 1)

    for item in items:
        n = rank(item)
        # What takes the recipe takes the lab, too.
        group = item.path.name if n >= len(SHARED) else "four" if n == 0 else "lab"
        item.add_marker(pytest.mark.xdist_group(group))
    items.sort(key=rank)


def pytest_report_header() -> str:
    return f"LAB_SEED={sampling.SEED}: picks what `make test` tries of several ways"


# A shell that starts a run in the background has it ignore SIGINT, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def golden() -> Callable[[str, str], None]:
    """Compare text with tests/golden/<name>; `make golden` (GOLDEN=write) records it anew."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if os.environ.get("GOLDEN") == "write":
            path.write_text(text)
        assert path.read_text() == text, f"{name} has changed; if that is right: make golden"

    return compare
