"""The HTML report of one image: its checks, its NCCL libraries, its layers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sparkimage.config import folders
from sparkimage.config.plan import Plan
from sparkimage.config.tier import Tier
from sparkimage.core import templates
from sparkimage.image.store import Image
from sparkimage.verify.seal import Check, Verdict

TITLES = {
    Tier.STATIC: "Static: the layers of the store, without an engine",
    Tier.RUN: "Run: a container of the image",
    Tier.NODE: "Node: a container with a GPU",
}
LIBRARY = re.compile(r"/?[^\s,'\"]*libnccl\.so[^\s,'\"]*")
EXACT = {"path": "", "build_id": "Build ID", "sha256": "sha256"}
"""The facts of a library that have a line of their own, and its title."""
LOADED = ("test_torch_maps_exactly_one_nccl", "test_preload_names_the_library")
"""Checks of a layer that tell which library programs load, the most reliable first."""
FILES = "static/nccl-root"
"""The check that lists the library files; every other path is a link."""


def page(plan: Plan, image: Image, verdict: Verdict, project: Path) -> str:
    """The page as HTML; ``project`` has the Dockerfiles, which name the layers."""
    nccl = [check for check in verdict.checks if "nccl" in check.id]
    return templates.render(
        "report.html",
        plan=plan,
        image=image,
        verdict=verdict,
        tiers=[_tier(verdict, tier) for tier in Tier],
        nccl=nccl,
        libraries=_libraries(nccl),
        layers=layer_rows(plan, image, project),
    )


def _tier(verdict: Verdict, tier: Tier) -> dict[str, Any]:
    checks = [check for check in verdict.checks if check.tier is tier]
    return {
        "name": str(tier),
        "title": TITLES[tier],
        "checks": checks,
        "passed": sum(check.passed for check in checks),
        "why_not": verdict.not_run.get(tier, "not run"),
        # Checks that did not run, of a tier that ran.
        "not_run": {n: why for n, why in verdict.not_run.items() if n.startswith(f"{tier}/")},
    }


def _libraries(checks: list[Check]) -> list[dict[str, Any]]:
    """Every path of libnccl that the checks report, with what they report about it."""
    seen = {check.id: list(_paths(check.seen)) for check in checks}
    paths: dict[str, list[str]] = {}
    for path, fact in (pair for pairs in seen.values() for pair in pairs):
        facts = paths.setdefault(path, [])
        if fact and fact not in facts:
            facts.append(fact)
    telling = {id_.rpartition("/")[2]: facts for id_, facts in seen.items() if len(facts) == 1}
    loaded = [telling[name][0][0] for name in LOADED if name in telling]
    regular = {path for path, _ in seen.get(FILES, ())}

    def note(path: str) -> str:
        if path in loaded[:1]:
            return "★ loaded by programs"
        if not regular:
            return "also present"
        return "another copy" if path in regular else "a link"

    return [
        {"path": path, "facts": facts, "loaded": path in loaded[:1], "note": note(path)}
        for path, facts in sorted(paths.items())
    ]


def _paths(value: Any) -> Iterator[tuple[str, str]]:
    """Each path of a libnccl in what a check saw, with what is known about it."""
    if isinstance(value, dict):
        path = value.get("path")
        if isinstance(path, str) and LIBRARY.fullmatch(path):
            facts = {key: fact for key, fact in value.items() if key not in EXACT}
            if "visible" in facts:
                facts["visible"] = "yes" if facts["visible"] else "no, overwritten or deleted above"
            yield _absolute(path), ", ".join(f"{key} {fact}" for key, fact in facts.items())
            for key, name in EXACT.items():
                if name and value.get(key):
                    yield _absolute(path), f"{name} {value[key]}"
            return
        value = [*value, *value.values()]
    if isinstance(value, list):
        for member in value:
            yield from _paths(member)
    elif isinstance(value, str):
        # A SONAME alone is no path.
        yield from ((_absolute(path), "") for path in LIBRARY.findall(value) if "/" in path)


def _absolute(path: str) -> str:
    return "/" + path.lstrip("/")


def layer_rows(plan: Plan, image: Image, project: Path) -> list[dict[str, Any]]:
    """The layers of an image from the lowest up: name, digest, size in bytes, width of its bar in
    percent of the largest."""
    largest = max((layer.size for layer in image.layers), default=1) or 1
    names = _layer_names(plan, project)
    # Unknown where Dockerfiles and layers do not match (a base image has many).
    if len(names) != len(image.layers):
        names = [""] * len(image.layers)
    return [
        {
            "name": name,
            "digest": layer.digest,
            "size": layer.size,
            "width": max(100 * layer.size / largest, 0.3),
        }
        for layer, name in zip(image.layers, names, strict=True)
    ]


def _layer_names(plan: Plan, project: Path) -> list[str]:
    """The layer of each step that writes files, by the Dockerfiles."""
    names = []
    for layer in plan.layers:
        path = folders.dockerfile(project, layer)
        if layer.source is None and path.is_file():
            last = re.split(r"^FROM .*$", path.read_text(), flags=re.MULTILINE)[-1]
            names += [layer.name] * len(re.findall(r"^(?:RUN|COPY|ADD)\b", last, re.MULTILINE))
    return names
