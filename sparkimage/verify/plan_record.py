"""The plan of an image and the checks that it was verified with, stored beside the image.

Everything after the build reads this record and not the current matrix: what was verified is what
ships. Every command that ships imports it, so it imports nothing that only the checks need.
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

from sparkimage.config import folders
from sparkimage.config.plan import Plan, canonical
from sparkimage.config.tier import Tier
from sparkimage.core.errors import ConfigError, GateError, Problem, UsageError
from sparkimage.core.program import program
from sparkimage.image.store import Store
from sparkimage.verify.policy import Required

CHECKS_VERSION = 9
"""Version of the package's own checks. Raise it with every change that may change a result: older
seals are then no longer valid. A test compares ``CHECKERS`` with what they were."""
CHECKERS = (
    "core/arch.py", "data/secrets.yaml", "data/static.yaml", "image/elf.py", "image/layerindex.py",
    "image/layerscan.py", "image/linking.py", "core/secrets.py", "image/settings.py",
    "verify/gpu.py", "verify/gpu_probe.py", "verify/layer_checks.py", "verify/rules.py",
    "verify/run_entrypoint.py", "verify/static.py", "verify/static_config.py",
    "verify/static_nccl.py", "verify/static_order.py", "core/debian_version.py",
    "verify/torch_probe.py",
)  # fmt: skip
"""The package's own files that contain checks."""
RULES = "static.yaml"
"""A project's own rules of the static tier."""
KIND = "plan"
"""The kind of fact of the store that a record is."""


@dataclass(frozen=True, kw_only=True)
class PlanRecord:
    """The plan of an image, and the checks that it was verified with."""

    plan: Plan
    checks: Mapping[str, Any]
    """``version`` of the package's own checks; sha256 of the code of each file of the layers'
    checks (``files``), and of the project's ``rules``; the ids of the layers' checks (``ids``)."""
    sources: str = ""
    """sha256 of the files that the plan was made from: see ``sources_checksum``."""

    @property
    def checksum(self) -> str:
        """sha256 of the plan and its checks; a seal is valid for one such checksum."""
        text = self.plan.checksum() + canonical(self.checks)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def current_checksum(self) -> str:
        """The same with this program's version of the checks."""
        return replace(self, checks={**self.checks, "version": CHECKS_VERSION}).checksum

    @property
    def required(self) -> Required:
        """What must have passed before the image ships.

        A seal with the same checksum ran the same static checks, so only those of the layers are
        listed.
        """
        ids = self.checks["ids"] if Tier.RUN in self.plan.requires else ()
        return Required(tiers=self.plan.requires, checks=tuple(ids))

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {**vars(self), "plan": self.plan.to_dict()}

    @classmethod
    def from_dict(cls, data: Any) -> PlanRecord:
        """The inverse of ``to_dict``. Raises ``ValueError`` for anything else."""
        try:
            checks = data["checks"]
            return cls(
                plan=Plan.from_dict(data["plan"]),
                checks={
                    "version": int(checks["version"]),
                    "files": {str(name): str(value) for name, value in checks["files"].items()},
                    "rules": str(checks["rules"]),
                    "ids": [str(id) for id in checks["ids"]],
                },
                sources=str(data["sources"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a plan with its checks: {error!r}") from None


def record(plan: Plan, project: Path, sources: str = "") -> PlanRecord:
    """The record of ``plan`` with the current checks of ``project``."""
    files, ids = {}, []
    for folder in check_folders(plan, project):
        for path in sorted(folder.glob("*.py")):
            text, module = parsed(path)
            files[f"{folder.name}/{path.name}"] = code_checksum(text)
            if path.name.startswith("test_"):
                functions = [node for node in module.body if isinstance(node, ast.FunctionDef)]
                names = [function.name for function in functions]
                ids += [f"{folder.name}/{name}" for name in names if name.startswith("test_")]
    rules = project / RULES
    checks = {
        "version": CHECKS_VERSION,
        "files": files,
        "rules": hashlib.sha256(rules.read_bytes()).hexdigest() if rules.is_file() else "",
        "ids": ids,
    }
    return PlanRecord(plan=plan, checks=checks, sources=sources)


def parsed(path: Path) -> tuple[str, ast.Module]:
    """A Python file of a layer's folder, as text and parsed. Raises ``ConfigError``."""
    place = f"images/{path.parent.name}/{path.name}"
    line, what = 1, ""
    try:
        text = path.read_text("utf-8")
        return text, ast.parse(text)
    except UnicodeDecodeError as error:
        raise ConfigError([Problem.of_encoding(place, error)]) from None
    except SyntaxError as error:
        line, what = error.lineno or 1, f"invalid Python: {error.msg}"
    except ValueError as error:  # a null character
        what = f"invalid Python: {error}"
    todo = "correct it: it has the layer's checks"
    raise ConfigError([Problem(file=place, line=line, what=what, todo=todo)])


def refresh(old: PlanRecord, project: Path) -> PlanRecord:
    """A record of the same plan with the current checks of ``project``.

    Raises ``UsageError`` for a layer that ``project`` lacks: its checks would be skipped silently.
    """
    layers = {name.partition("/")[0] for name in old.checks["files"]}
    missing = sorted(name for name in layers if not folders.of(project, name).is_dir())
    if missing:
        raise UsageError(
            f"{project}/images lacks {', '.join(missing)}, whose checks {old.plan.variant} "
            "must pass",
            hint="pass the matrix of the project that it was built from: --matrix-file FILE",
        )
    return record(old.plan, project, old.sources)


def save(store: Store, digest: str, record: PlanRecord) -> None:
    """Store the record beside the image ``digest``."""
    store.put_fact(KIND, digest, record.to_dict())


def load(store: Store, digest: str) -> PlanRecord:
    """The record of the image ``digest``. Raises ``GateError`` where there is none."""
    try:
        return PlanRecord.from_dict(store.get_fact(KIND, digest))
    except ValueError:
        what = "is damaged" if store.has_fact(KIND, digest) else "is not in the store"
        raise GateError(
            f"the plan of {digest[:19]} {what}",
            hint=f"build the image again ({program()} image VARIANT: unchanged layers are "
            "cached), or load it again",
        ) from None


def check_folders(plan: Plan, project: Path) -> tuple[Path, ...]:
    """The folders whose checks an image of ``plan`` must pass: its layers', and ``_every``."""
    layers = (name for layer in plan.layers for name in (*layer.checks, layer.name))
    found = (folders.of(project, name) for name in dict.fromkeys([folders.EVERY, *layers]))
    return tuple(folder for folder in found if any(folder.glob("test_*.py")))


def sources_checksum(matrix_file: Path) -> str:
    """sha256 of the files that plans are made from: while it is the same, so are the plans."""
    files = (matrix_file, matrix_file.with_suffix(".lock"), matrix_file.parent / folders.PATCH_FILE)
    digest = hashlib.sha256()
    for path in files:
        digest.update(hashlib.sha256(path.read_bytes() if path.is_file() else b"").digest())
    return digest.hexdigest()


def code_checksum(text: str) -> str:
    """sha256 of Python code without its comments, docstrings and blank lines.

    Of the text and not of the syntax tree, which differs between versions of Python.
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
