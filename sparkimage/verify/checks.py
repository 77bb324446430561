"""The pytest plugin under which the layers' checks of a container run, and what they are given.

A check is a test function in ``images/<layer>/test_*.py`` that compares through ``check`` what is
seen in the image with what the plan expects. Both go into the seal, whether equal or not.
Fixtures: ``plan`` (the plan as plain data), ``host`` (testinfra's own, in a container of
the image), ``torch`` (what `import torch` brings into a process of it), ``check``. A check that
asks for no container is none of these: see ``layer_checks``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any, Protocol

import pytest
from testinfra import backend
from testinfra.backend.base import CommandResult
from testinfra.backend.docker import DockerBackend

from sparkimage.verify import layer_checks

REQUEST = "SPARKIMAGE_CHECK_REQUEST"
"""Environment variable with the path of the request file that ``verify`` writes."""
DONE = "checked "
"""Begins a line of the output: a check is done."""
PROBE = Path(__file__).with_name("torch_probe.py")
NOT_BEGUN = "waiting for init preliminary setup"
"""What runc says when it lost its own child, under load, before the command of an exec had begun:
https://github.com/opencontainers/runc/pull/2812."""


class Container(DockerBackend):  # type: ignore[misc]  # testinfra has no types
    """testinfra's, which begins a command once more that the engine did not come to begin: that
    is no word about the image."""

    def run(self, command: str, *args: str, **kwargs: Any) -> CommandResult:
        """Raises as testinfra's own."""
        came = super().run(command, *args, **kwargs)
        if NOT_BEGUN in came.stdout + came.stderr:
            came = super().run(command, *args, **kwargs)
        return came


class Check(Protocol):
    """Compares ``seen`` with ``expected`` and keeps both as evidence."""

    def __call__(self, title: str, *, seen: Any, expected: Any) -> None: ...


class Report:
    """Gathers one result per check and writes them when the session ends."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.request = request
        self.results: list[dict[str, Any]] = []
        self.evidence: dict[str, list[dict[str, Any]]] = {}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        # A fixture that fails is a check that failed; one that passes is no result yet.
        if call.when == "call" or report.failed:
            evidence = self.evidence.get(item.nodeid, [])
            wrong = [one for one in evidence if one["seen"] != one["expected"]]
            shown = wrong[0] if wrong else evidence[-1] if evidence else {}
            passed = bool(report.passed and evidence)
            crash = "" if report.passed else str(call.excinfo.value if call.excinfo else "")
            if report.passed and not evidence:
                crash = "the check compared nothing"
            print(f"\n{DONE}{item.nodeid}", flush=True)
            self.results.append(
                {
                    "id": f"{item.path.parent.name}/{getattr(item, 'originalname', item.name)}",
                    "layer": item.path.parent.name,
                    "title": shown.get("title", item.name),
                    "result": "PASSED" if passed else "FAILED",
                    "seen": shown.get("seen", crash[:2000]),
                    "expected": shown.get("expected", "an answer"),
                    "evidence": evidence,
                }
            )
        return report

    def pytest_sessionfinish(self) -> None:
        Path(self.request["results"]).write_text(json.dumps(self.results))


def pytest_configure(config: pytest.Config) -> None:
    """Have testinfra talk to containers as ``Container`` does, and begin the report that the
    ``check`` fixture writes to."""
    backend.BACKENDS["docker"] = f"{__name__}.{Container.__name__}"
    request = json.loads(Path(os.environ[REQUEST]).read_text())
    config.pluginmanager.register(Report(request), "sparkimage-report")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the checks that need no container to the static tier."""
    static = [
        one
        for one in items
        if isinstance(one, pytest.Function) and not layer_checks.needs_container(one.obj)
    ]
    items[:] = [one for one in items if one not in static]
    config.hook.pytest_deselected(items=static)


@pytest.fixture(scope="session")
def request_data() -> dict[str, Any]:
    """What ``verify`` asked for."""
    data: dict[str, Any] = json.loads(Path(os.environ[REQUEST]).read_text())
    return data


@pytest.fixture(scope="session")
def plan(request_data: dict[str, Any]) -> dict[str, Any]:
    """The plan of the image; every expected value comes from here."""
    data: dict[str, Any] = request_data["plan"]
    return data


@pytest.fixture(scope="session")
def imported() -> list[CommandResult]:
    """What `import torch` came to, once it was tried."""
    return []


@pytest.fixture(scope="module")
def torch(host: Any, imported: list[CommandResult]) -> dict[str, Any]:
    """What `import torch` brings into a process: the libnccl that is mapped, what its
    ncclGetVersion() says, and torch.version.cuda. Once for the checks of all layers: under
    emulation it takes a minute."""
    if not imported:
        imported.append(host.run("python3 -c %s", PROBE.read_text()))
    (done,) = imported
    assert done.rc == 0, done.stderr[-1500:]
    seen: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return seen


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Check:
    """Compare, and keep the evidence."""
    report = request.config.pluginmanager.get_plugin("sparkimage-report")
    assert isinstance(report, Report)
    kept = report.evidence.setdefault(request.node.nodeid, [])

    def compare(title: str, *, seen: Any, expected: Any) -> None:
        # Through JSON, so that what the seal holds is what was compared.
        seen, expected = json.loads(json.dumps([seen, expected]))
        kept.append({"title": title, "seen": seen, "expected": expected})
        assert seen == expected, f"{title}: seen {seen!r}, expected {expected!r}"

    return compare
