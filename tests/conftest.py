"""What all tests share."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Generator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from sparkimage.core.errors import SparkError
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
# Messages name the program as data and docs do, however a test starts it.
os.environ["SPARKIMAGE_PROGRAM"] = "sparkimage"


GROUPS = {
    "nodes": re.compile(r"\b(Fleet|Shipment|Distribution|Models)\b"),
    "lab": re.compile(r"\b(Lab|Recipe)\b"),
}
"""What is dear to make, the dearest first, and how a file of tests shows that it takes it: one
process runs all of these."""


@cache
def _group(file: Path) -> tuple[int, str]:
    """In which turn, and with which others, the tests of a file run."""
    if file.parent.name != "lab":
        return len(GROUPS) + 1, file.name
    text = file.read_text()
    found = (n for n, sign in enumerate(GROUPS.values()) if sign.search(text))
    turn = next(found, len(GROUPS))
    return turn, [*GROUPS, file.name][turn]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest groups begin first, and the many small ones fill what is left."""
    items.sort(key=lambda item: _group(item.path)[0])


class Grouped(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Gives each process whole groups of tests. xdist's own groups (3.8) are lost on pytest 9.2,
    whose ids of tests cannot be changed: https://github.com/pytest-dev/pytest-xdist."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(self.config.rootpath / nodeid.partition("::")[0])[1]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Grouped:
    """See ``Grouped``."""
    return Grouped(config, log)


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
