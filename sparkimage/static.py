"""The static tier: what the layers and the config of the store say, without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sparkimage.plan import Plan
from sparkimage.seal import Check
from sparkimage.store import Image, Store


def examine(plan: Plan, image: Image, store: Store, project: Path) -> tuple[Check, ...]:
    """The results of every static check of ``image`` against ``plan``."""
    del store, project
    config = image.config.get("config") or {}
    command = {"Entrypoint": list(plan.entrypoint), "Cmd": list(plan.cmd)}
    labels = config.get("Labels") or {}
    return (
        _check("platform", "platform in the image's config", image.platform, plan.platform),
        _check(
            "command",
            "ENTRYPOINT and CMD, in exec form",
            {name: config.get(name) or [] for name in command},
            command,
        ),
        _check(
            "labels",
            "labels",
            {name: labels.get(name) for name in plan.labels},
            dict(plan.labels),
        ),
    )


def _check(name: str, title: str, seen: Any, expected: Any) -> Check:
    result = "PASSED" if seen == expected else "FAILED"
    return Check(
        id=f"static/{name}", layer="_every", title=title, result=result, seen=seen,
        expected=expected,
    )  # fmt: skip
