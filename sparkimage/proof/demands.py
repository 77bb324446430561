"""What a seal of a plan must say, and what it is valid for: asked on every way out, so that nothing
is loaded here that only a proof needs."""

from __future__ import annotations

import ast
import hashlib
from pathlib import Path

from sparkimage.plans.plan import Plan
from sparkimage.proof import rules
from sparkimage.proof.gate import Required
from sparkimage.tier import Tier

CHECKERS = (
    "layers/elf.py", "layers/layerindex.py", "layers/layerscan.py", "layers/linking.py",
    "layers/secrets.py", "proof/gpu_probe.py", "proof/node.py", "proof/rules.py",
    "proof/starting.py", "proof/static.py", "proof/static_nccl.py", "storage/settings.py",
)  # fmt: skip
"""The package's own files that hold checks."""


def check_folders(plan: Plan, project: Path) -> tuple[Path, ...]:
    """The folders whose checks an image of ``plan`` must pass: its layers', and everyone's."""
    names = ["_every", *(name for layer in plan.layers for name in (*layer.checks, layer.name))]
    folders = (project / "images" / name for name in dict.fromkeys(names))
    return tuple(folder for folder in folders if any(folder.glob("test_*.py")))


def checksum(plan: Plan, project: Path) -> str:
    """sha256 over the plan and the text of its checks: what a seal is valid for."""
    digest = hashlib.sha256(plan.checksum().encode())
    for folder in check_folders(plan, project):
        for path in sorted(folder.glob("*.py")):
            digest.update(path.read_bytes())
    digest.update(rules.checksum_text(project))
    for name in CHECKERS:
        digest.update((Path(__file__).parents[1] / name).read_bytes())
    return digest.hexdigest()


def required(plan: Plan, project: Path) -> Required:
    """What a seal of ``plan`` must say before its image ships.

    A seal of the same ``checksum`` ran the same static checks, so that only those of the layers
    are named.
    """
    ids = []
    if Tier.RUN in plan.requires:
        for folder in check_folders(plan, project):
            for path in sorted(folder.glob("test_*.py")):
                parts = ast.parse(path.read_text(), str(path)).body
                functions = [one.name for one in parts if isinstance(one, ast.FunctionDef)]
                ids += [f"{folder.name}/{one}" for one in functions if one.startswith("test_")]
    return Required(tiers=plan.requires, checks=tuple(ids))
