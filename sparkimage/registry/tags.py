"""The version tags of published images: measured in their files, never taken from labels."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from packaging.version import InvalidVersion, Version

from sparkimage.config.plan import Expected, canonical
from sparkimage.core.errors import VerifyError
from sparkimage.image.layerindex import ImageFiles
from sparkimage.verify import static_nccl

_TORCH = re.compile(r"(?:^|/)torch/version\.py$")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The versions that are installed in an image; None for what it does not contain."""

    project: str = ""
    """The Python project that ``version`` is of."""
    version: str | None = None
    cuda: str | None = None
    nccl: str | None = None

    def to_dict(self) -> dict[str, str]:
        """Those that are not None, by what they are of."""
        versions = {self.project: self.version, "cuda": self.cuda, "nccl": self.nccl}
        return {name: value for name, value in versions.items() if value is not None}

    @classmethod
    def from_dict(cls, versions: Mapping[str, str]) -> Measured:
        """The inverse of ``to_dict``. Raises ``ValueError`` for anything else."""
        project, *others = [name for name in versions if name not in ("cuda", "nccl")] or [""]
        if others:
            raise ValueError(f"versions of several projects: {versions}")
        own = {name: versions[name] for name in ("cuda", "nccl") if name in versions}
        return cls(project=project, version=versions.get(project), **own)

    @property
    def order(self) -> tuple[Version, ...]:
        """Sorts images by the version of their project, then CUDA's, then NCCL's."""
        return tuple(ordered(value) for value in (self.version, self.cuda, self.nccl))


def measure(files: ImageFiles, expect: Expected) -> Measured:
    """The versions by the image's files, of what is expected of it and of what it has once.

    Raises ``VerifyError`` where it has two versions of something expected.
    """
    project = expect.project or ""
    metadata = re.compile(
        rf"(?:^|/){project.replace('-', '[-_.]')}-([^/]+)\.dist-info/METADATA$", re.IGNORECASE
    )
    seen: dict[str, set[str]] = {"version": set(), "cuda": set(), "nccl": set()}
    for path, entry in files.final.items():
        if project and (match := metadata.search(path)) is not None:
            seen["version"].add(match[1])
        elif _TORCH.search(path) and entry.seen.get("cuda") not in (None, "None"):
            seen["cuda"].add(str(entry.seen["cuda"]))
        elif static_nccl.is_copy(entry) and entry.seen.get("nccl"):
            seen["nccl"].add(str(entry.seen["nccl"]))
    for name, values in seen.items():
        if len(values) > 1 and getattr(expect, name) is not None:
            what = project if name == "version" else name
            raise VerifyError(
                f"the image has {len(values)} versions of {what}: {', '.join(sorted(values))}",
                hint="build it with one of them: its tag names one",
            )
    once = {name: min(values) for name, values in seen.items() if len(values) == 1}
    return Measured(project=project if "version" in once else "", **once)


def version_tag(measured: Measured, checksum: str) -> str:
    """``<version>-cu<cuda>-nccl<nccl>-<lock8>``; without what is not in the image."""
    parts = [
        measured.version or "",
        f"cu{measured.cuda.replace('.', '')}" if measured.cuda else "",
        f"nccl{measured.nccl}" if measured.nccl else "",
    ]
    versions = [part for part in parts if part] or ["lock"]
    tag = "-".join([*versions, checksum[:8]])
    # A tag cannot contain a plus: https://github.com/opencontainers/distribution-spec/blob/main/spec.md
    return re.sub(r"[^A-Za-z0-9_.-]", "_", tag)[:128]


def joint_checksum(checksums: Mapping[str, str]) -> str:
    """One checksum for the locks of several platforms; of one platform its own."""
    if len(checksums) == 1:
        return next(iter(checksums.values()))
    return hashlib.sha256(canonical(dict(checksums)).encode()).hexdigest()


def agree(platforms: Iterable[tuple[str, Measured]]) -> Measured:
    """The versions that all platforms of an index have. Raises ``VerifyError`` if they differ."""
    versions = dict(platforms)
    first = next(iter(versions.values()))
    if any(measured != first for measured in versions.values()):
        raise VerifyError(
            "the platforms have different versions: one tag cannot name them",
            detail="\n".join(f"{name}: {m.to_dict()}" for name, m in sorted(versions.items())),
            hint="publish them one by one, or build them with the same versions",
        )
    return first


def ordered(version: str | None) -> Version:
    """A version by which it is sorted: without its local part; the lowest for none."""
    try:
        return Version(Version(version or "0").public)
    except InvalidVersion:
        return Version("0")
