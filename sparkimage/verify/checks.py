"""The pytest plugin that runs the layers' checks against a container of the image.

A check is a test function in ``images/<layer>/test_*.py`` that compares through ``check`` what is
seen in the image with what the plan expects. Both are recorded in the seal.
Fixtures: ``plan`` (the plan as plain data), ``host`` (testinfra's, in a container of the image),
``torch`` (what `import torch` loads into a process), ``check``. A check that uses only the plan
and the image's files runs in the static tier instead: see ``layer_checks``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from testinfra import backend
from testinfra.backend.base import CommandResult
from testinfra.backend.docker import DockerBackend

from sparkimage.config.tier import Tier
from sparkimage.verify.layer_checks import Comparisons, needs_container

REQUEST = "SPARKIMAGE_CHECK_REQUEST"
"""Environment variable with the path of the request file that ``verify`` writes."""
DONE = "checked "
"""Begins a line of the output when a check is done."""
PROBE = Path(__file__).with_name("torch_probe.py")
NOT_STARTED = "waiting for init preliminary setup"
"""What runc prints when, under load, it lost its own child before the command of an exec started:
https://github.com/opencontainers/runc/pull/2812."""


class Container(DockerBackend):  # type: ignore[misc]  # testinfra has no types
    """testinfra's backend, which retries a command once that runc failed to start: such a failure
    tells nothing about the image."""

    def run(self, command: str, *args: str, **kwargs: Any) -> CommandResult:
        """Raises as testinfra's own."""
        result = super().run(command, *args, **kwargs)
        if NOT_STARTED in result.stdout + result.stderr:
            result = super().run(command, *args, **kwargs)
        return result


class Report:
    """Collects one result per check and writes them when the session ends."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: list[dict[str, Any]] = []
        self.comparisons: dict[str, Comparisons] = {}

    def of(self, item: pytest.Item) -> Comparisons:
        """The comparisons of a check."""
        name = getattr(item, "originalname", item.name)
        new = Comparisons(f"{item.path.parent.name}/{name}", Tier.RUN)
        return self.comparisons.setdefault(item.nodeid, new)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        # A fixture that fails is a failed check; one that succeeds is no result yet.
        if call.when == "call" or report.failed:
            print(f"\n{DONE}{item.nodeid}", flush=True)
            error = "" if report.passed else str(call.excinfo.value if call.excinfo else "failed")
            self.results.append(asdict(self.of(item).result(error[:2000])))
        return report

    def pytest_sessionfinish(self) -> None:
        self.path.write_text(json.dumps(self.results))


def pytest_configure(config: pytest.Config) -> None:
    """Make testinfra use ``Container``, and register the report that ``check`` writes to."""
    backend.BACKENDS["docker"] = f"{__name__}.{Container.__name__}"
    config.pluginmanager.register(Report(Path(_request()["results"])), "sparkimage-report")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the checks that need no container to the static tier."""
    static = [
        item
        for item in items
        if isinstance(item, pytest.Function) and not needs_container(item.obj)
    ]
    items[:] = [item for item in items if item not in static]
    config.hook.pytest_deselected(items=static)


def _request() -> dict[str, Any]:
    request: dict[str, Any] = json.loads(Path(os.environ[REQUEST]).read_text())
    return request


@pytest.fixture(scope="session")
def plan() -> dict[str, Any]:
    """The plan of the image; every expected value comes from here."""
    plan: dict[str, Any] = _request()["plan"]
    return plan


@pytest.fixture(scope="session")
def torch_imports() -> list[CommandResult]:
    """The result of `import torch`, once it has run."""
    return []


@pytest.fixture(scope="module")
def torch(host: Any, torch_imports: list[CommandResult]) -> dict[str, Any]:
    """What `import torch` loads into a process: the mapped libnccl, its ncclGetVersion(), and
    torch.version.cuda. Runs once for the checks of all layers: under emulation it takes a
    minute."""
    if not torch_imports:
        torch_imports.append(host.run("python3 -c %s", PROBE.read_text()))
    (result,) = torch_imports
    assert result.rc == 0, result.stderr[-1500:]
    seen: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return seen


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Comparisons:
    """Compares what is seen with what is expected, and records both."""
    report = request.config.pluginmanager.get_plugin("sparkimage-report")
    assert isinstance(report, Report)
    return report.of(request.node)
