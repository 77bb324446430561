"""What an image was proven against, kept beside it: its plan, and the checks that it asks for.

Everything after the build reads this and not today's matrix: what was proven is what ships. It is
asked on every way out, so that nothing is loaded here that only a proof needs.
"""

from __future__ import annotations

import ast
import hashlib
import io
import tokenize
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sparkimage.config import patch_specs
from sparkimage.config.plan import Plan, canonical
from sparkimage.config.tier import Tier
from sparkimage.core.errors import GateError, UsageError
from sparkimage.image.store import Store
from sparkimage.verify.policy import Required

CHECKS_VERSION = 3
"""Of the package's own checks. It goes up with every change that may change a result: all seals
that were made before are then asked for again. A test compares ``CHECKERS`` with what they were."""
CHECKERS = (
    "core/arch.py", "data/secrets.yaml", "data/static.yaml", "image/elf.py", "image/layerindex.py",
    "image/layerscan.py", "image/linking.py", "image/secrets.py", "image/settings.py",
    "verify/gpu.py", "verify/gpu_probe.py", "verify/layer_checks.py", "verify/rules.py",
    "verify/run_entrypoint.py", "verify/static.py", "verify/static_nccl.py",
    "verify/torch_probe.py",
)  # fmt: skip
"""The package's own files that hold checks."""
RULES = "static.yaml"
"""A project's own rules of the static tier."""
KIND = "plan"
"""The kind of fact under which a record is kept."""


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """The plan of an image, and what it was proven by."""

    plan: Plan
    checks: Mapping[str, Any]
    """``version`` of the package's own checks; sha256 of the code of each file of the layers'
    checks (``files``), and of the project's ``rules``; the ids of the layers' checks (``ids``)."""
    sources: str = ""
    """sha256 of the files that the plan was made from; see ``sources_checksum``."""

    @property
    def checksum(self) -> str:
        """sha256 over the plan and its checks: what a seal is valid for."""
        text = self.plan.checksum() + canonical(self.checks)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def current_checksum(self) -> str:
        """The same with the version of the checks that this program has."""
        return replace(self, checks={**self.checks, "version": CHECKS_VERSION}).checksum

    @property
    def required(self) -> Required:
        """What a seal must say before the image ships.

        A seal of the same checksum ran the same static checks, so that only those of the layers
        are named.
        """
        ids = self.checks["ids"] if Tier.RUN in self.plan.requires else ()
        return Required(tiers=self.plan.requires, checks=tuple(ids))

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        plan = self.plan.to_dict()
        return {"plan": plan, "checks": dict(self.checks), "sources": self.sources}

    @classmethod
    def from_dict(cls, data: Any) -> PlanRecord:
        """What ``to_dict`` made. Raises ``ValueError`` for anything else."""
        try:
            checks = data["checks"]
            made = cls(
                plan=Plan.from_dict(data["plan"]),
                checks={
                    "version": int(checks["version"]),
                    "files": {str(name): str(value) for name, value in checks["files"].items()},
                    "rules": str(checks["rules"]),
                    "ids": [str(one) for one in checks["ids"]],
                },
                sources=str(data["sources"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"no plan with its checks: {error!r}") from None
        return made


def record(plan: Plan, project: Path, sources: str = "") -> PlanRecord:
    """The record of ``plan``, with the checks as they are in ``project`` now."""
    files, ids = {}, []
    for folder in check_folders(plan, project):
        for path in sorted(folder.glob("*.py")):
            text = path.read_text()
            files[f"{folder.name}/{path.name}"] = code_checksum(text)
            if path.name.startswith("test_"):
                functions = [
                    one.name for one in ast.parse(text).body if isinstance(one, ast.FunctionDef)
                ]
                ids += [f"{folder.name}/{name}" for name in functions if name.startswith("test_")]
    rules = project / RULES
    checks = {
        "version": CHECKS_VERSION,
        "files": files,
        "rules": hashlib.sha256(rules.read_bytes()).hexdigest() if rules.is_file() else "",
        "ids": ids,
    }
    return PlanRecord(plan=plan, checks=checks, sources=sources)


def again(old: PlanRecord, project: Path) -> PlanRecord:
    """A record of the same plan, with the checks as they are in ``project`` now.

    Raises ``UsageError`` where a layer is not there, whose checks would be left out in silence.
    """
    layers = {name.partition("/")[0] for name in old.checks["files"]}
    gone = sorted(name for name in layers if not (project / "images" / name).is_dir())
    if gone:
        raise UsageError(
            f"{project}/images lacks {', '.join(gone)}, whose checks {old.plan.variant} must pass",
            hint="name the matrix of the project that it was built from: --matrix-file FILE",
        )
    return record(old.plan, project, old.sources)


def keep(store: Store, digest: str, kept: PlanRecord) -> None:
    """Keep the record beside the image ``digest``."""
    store.put_fact(KIND, digest, kept.to_dict())


def kept(store: Store, digest: str) -> PlanRecord:
    """The record that is kept beside the image ``digest``. Raises ``GateError`` for none."""
    found = store.get_fact(KIND, digest)
    try:
        return PlanRecord.from_dict(found)
    except ValueError:
        what = "is damaged" if store.has_fact(KIND, digest) else "is not in the store"
        raise GateError(
            f"the plan of {digest[:19]} {what}",
            hint="build the image again (python build.py image VARIANT): what is unchanged is not "
            "made anew; or load it again",
        ) from None


def check_folders(plan: Plan, project: Path) -> tuple[Path, ...]:
    """The folders whose checks an image of ``plan`` must pass: its layers', and everyone's."""
    names = ["_every", *(name for layer in plan.layers for name in (*layer.checks, layer.name))]
    folders = (project / "images" / name for name in dict.fromkeys(names))
    return tuple(folder for folder in folders if any(folder.glob("test_*.py")))


def sources_checksum(matrix_file: Path) -> str:
    """sha256 over the files that plans are made from: as long as it is the same, so are they."""
    files = (matrix_file, matrix_file.with_suffix(".lock"), matrix_file.parent / patch_specs.FILE)
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest())
    return digest.hexdigest()


def code_checksum(text: str) -> str:
    """sha256 over Python code without its comments, docstrings, and blank lines.

    Made of the text and not of the syntax tree, whose form differs between versions of Python.
    """
    rows = text.split("\n")
    lines = [row.encode() for row in rows]
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = rows[row - 1][:column].encode()
    nodes = list(ast.walk(ast.parse(text)))
    # A blank line of a string is part of it.
    strings = {
        row
        for node in nodes
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno is not None
        for row in range(node.lineno, node.end_lineno)
    }
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in nodes:
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            doc = node.body[0]
            assert doc.end_lineno is not None
            assert doc.end_col_offset is not None
            # The syntax tree counts columns in bytes of UTF-8.
            before = lines[doc.lineno - 1][: doc.col_offset]
            after = lines[doc.end_lineno - 1][doc.end_col_offset :]
            rest = [b""] * (doc.end_lineno - doc.lineno)
            lines[doc.lineno - 1 : doc.end_lineno] = [before + after, *rest]
            strings -= set(range(doc.lineno, doc.end_lineno))
    code = [line if row in strings else line.rstrip() for row, line in enumerate(lines)]
    kept_code = b"\n".join(line for row, line in enumerate(code) if line or row in strings)
    return hashlib.sha256(kept_code).hexdigest()
