"""The static checks of NCCL: every copy in every layer, and which one is loaded.

torch loads the copy of its own wheel unless LD_PRELOAD, or a link in that copy's place, names
another one. With two copies in an image the wrong one may be loaded.
"""

from __future__ import annotations

import base64
import posixpath
from collections.abc import Iterable, Iterator, Set
from typing import Any

from sparkimage.config.plan import Plan
from sparkimage.image import layerscan
from sparkimage.image.layerindex import Entry, ImageFiles
from sparkimage.image.linking import Root
from sparkimage.verify.seal import NCCL_BUILDS

SONAME = "libnccl.so.2"
"""The check that says which builds of NCCL the image has."""
Compared = tuple[str, str, Any, Any]
"""A check's name and title, what was seen, what is expected."""


def is_copy(entry: Entry) -> bool:
    """Whether a file is an NCCL library by its name or by its SONAME."""
    if entry.kind not in ("0", "1"):
        return False
    named = layerscan.NCCL.search(entry.path) is not None
    return named or (entry.elf is not None and (entry.elf.soname or "").startswith("libnccl.so"))


def system_path(plan: Plan) -> str:
    """The path of the only copy, without a leading slash."""
    return f"usr/lib/{plan.triplet}/libnccl.so.{plan.expect.nccl}"


def checks(plan: Plan, files: ImageFiles, root: Root, own_layers: Set[int]) -> Iterator[Compared]:
    """The comparisons for NCCL; where the plan expects none, only that of the builds."""
    copies = [e for layer in files.layers for e in layer if is_copy(e)]
    final = [e for e in copies if root.final.get(e.path) is e]
    yield _builds(final)
    if plan.expect.nccl is None:
        return
    system = system_path(plan)
    seen = [_evidence(e, e in final) for e in copies]
    allowed = [e for e in copies if e.layer not in own_layers or e.path == system]
    yield (
        "nccl-every-layer",
        "our layers contain no libnccl but the pinned one",
        seen,
        [_evidence(e, e in final) for e in allowed],
    )
    visible = sorted(e.path for e in final)
    yield "nccl-root", "a container sees the pinned libnccl only", visible, [system]
    yield (
        "nccl-version",
        "each visible libnccl has the pinned version, its SONAME and architecture",
        {e.path: _identity(e) for e in final},
        {system: [plan.expect.nccl, SONAME, plan.arch]},
    )
    names = [p for p, e in root.final.items() if layerscan.NCCL.search(p) and e.kind != "5"]
    targets = {path: root.real(path) for path in sorted(names)}
    expected = dict.fromkeys(sorted(_places(plan, root)), system)
    yield "nccl-places", "every libnccl.so* leads to the pinned one", targets, expected
    if any(w.name.startswith("nvidia-nccl") for layer in plan.layers for w in layer.wheels):
        library = root.final.get(system)
        sha256 = library.seen.get("sha256") if library else "missing"
        yield "nccl-bytes", "libnccl has the sha256 of its wheel's RECORD", sha256, _recorded(root)


def _builds(final: Iterable[Entry]) -> Compared:
    """Which builds of NCCL a container sees. A version is no identity: two builds of one version
    were seen to behave differently (https://github.com/vllm-project/vllm/issues/46097)."""
    first: dict[str, dict[str, Any]] = {}
    seen, expected, names = [], [], []
    for entry in sorted(final, key=lambda entry: entry.path):
        version = entry.seen.get("nccl")
        fact = {
            "path": entry.path,
            "version": version,
            "build_id": entry.elf.build_id if entry.elf else None,
            "sha256": entry.seen.get("sha256"),
        }
        expected.append(fact)
        known = first.setdefault(version or entry.path, fact)
        if known is fact:
            names.append(f"{version or entry.path} has Build ID {fact['build_id']}")
        # A stripped copy keeps its Build ID.
        key = "build_id" if known["build_id"] and fact["build_id"] else "sha256"
        if known[key] != fact[key]:
            fact = {**fact, "differs": f"another build of {version} than {known['path']}"}
        seen.append(fact)
    title = ", ".join(["one build of each version of NCCL", *names])
    return NCCL_BUILDS, title, seen, expected


def _places(plan: Plan, root: Root) -> list[str]:
    folder = posixpath.dirname(system_path(plan))
    places = [system_path(plan), f"{folder}/{SONAME}"]
    # Of the plan, or of a base image that has it.
    status = root.file("var/lib/dpkg/status")
    if status is not None and "libnccl-dev" in status.seen.get("packages", {}):
        places.append(f"{folder}/libnccl.so")
    # torch looks beside itself, wherever it is installed.
    torch = [p.removesuffix("torch/version.py") for p, e in root.final.items() if "cuda" in e.seen]
    default = [f"usr/local/lib/python{plan.python}/dist-packages/"] if plan.python else []
    return [*places, *(f"{site}nvidia/nccl/lib/{SONAME}" for site in torch or default)]


def _identity(entry: Entry) -> list[Any]:
    head = entry.elf
    return [
        entry.seen.get("nccl"),
        head.soname if head else None,
        head.arch if head else "no ELF file",
    ]


def _evidence(entry: Entry, seen: bool) -> dict[str, Any]:
    version, soname, _ = _identity(entry)
    return {
        "path": entry.path,
        "layer": entry.layer,
        "sha256": entry.seen.get("sha256"),
        "build_id": entry.elf.build_id if entry.elf else None,
        "soname": soname,
        "version": version,
        "visible": seen,
    }


def _recorded(root: Root) -> str:
    for path, entry in root.final.items():
        if "nvidia_nccl" in path and path.endswith("/RECORD"):
            for line in str(entry.seen.get("text", "")).splitlines():
                name, _, rest = line.partition(",")
                if name == f"nvidia/nccl/lib/{SONAME}":
                    value = rest.partition(",")[0].removeprefix("sha256=")
                    return base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)).hex()
    return "no RECORD of an NCCL wheel"
