"""What a published image is called: by what was measured in it, never by what it says of itself."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import semver
from packaging.version import InvalidVersion, Version

from sparkimage.config.plan import canonical
from sparkimage.core.errors import VerifyError
from sparkimage.image.layerindex import ImageFiles
from sparkimage.verify import static_nccl

_VLLM = re.compile(r"(?:^|/)vllm-([^/]+)\.dist-info/METADATA$")
_TORCH = re.compile(r"(?:^|/)torch/version\.py$")
Order = tuple[tuple[semver.Version, int], ...]
"""Later images have greater ones: vLLM's version, then CUDA's, then NCCL's."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Versions as a container of the image would see them; None for what is not in it."""

    vllm: str | None = None
    cuda: str | None = None
    nccl: str | None = None

    def to_dict(self) -> dict[str, str]:
        """Those that were found."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @classmethod
    def of_dict(cls, given: Mapping[str, Any]) -> Measured:
        """What ``to_dict`` gave."""
        return cls(**{name: str(given[name]) for name in ("vllm", "cuda", "nccl") if name in given})

    @property
    def order(self) -> Order:
        return tuple(ordered(value) for value in (self.vllm, self.cuda, self.nccl))


def measure(files: ImageFiles) -> Measured:
    """Read the versions off the image's files. Raises ``VerifyError`` where two contradict."""
    seen: dict[str, set[str]] = {"vllm": set(), "cuda": set(), "nccl": set()}
    for path, entry in files.final.items():
        if (found := _VLLM.search(path)) is not None:
            seen["vllm"].add(found[1])
        elif _TORCH.search(path) and entry.seen.get("cuda") not in (None, "None"):
            seen["cuda"].add(str(entry.seen["cuda"]))
        elif static_nccl.is_copy(entry) and entry.seen.get("nccl"):
            seen["nccl"].add(str(entry.seen["nccl"]))
    twice = {name: sorted(values) for name, values in seen.items() if len(values) > 1}
    if twice:
        name, values = next(iter(twice.items()))
        raise VerifyError(
            f"the image holds {name} in the versions {', '.join(values)}: no tag can say which",
            hint="build it with one of them",
        )
    return Measured(**{name: min(values, default=None) for name, values in seen.items()})


def version_tag(measured: Measured, checksum: str) -> str:
    """``<vllm>-cu<cuda>-nccl<nccl>-<lock8>``; what is not in the image is left out."""
    parts = [
        measured.vllm or "",
        f"cu{measured.cuda.replace('.', '')}" if measured.cuda else "",
        f"nccl{measured.nccl}" if measured.nccl else "",
    ]
    said = [part for part in parts if part] or ["lock"]
    tag = "-".join([*said, checksum[:8]])
    # A tag has no plus: https://github.com/opencontainers/distribution-spec/blob/main/spec.md
    return re.sub(r"[^A-Za-z0-9_.-]", "_", tag)[:128]


def joint_checksum(checksums: Mapping[str, str]) -> str:
    """Of the locks of several platforms; of one platform its own."""
    if len(checksums) == 1:
        return next(iter(checksums.values()))
    return hashlib.sha256(canonical(dict(checksums)).encode()).hexdigest()


def agree(all_: Iterable[tuple[str, Measured]]) -> Measured:
    """What the platforms of one index hold alike. Raises ``VerifyError`` where they differ."""
    found = dict(all_)
    first = next(iter(found.values()))
    if any(one != first for one in found.values()):
        said = "\n".join(f"{name}: {one.to_dict()}" for name, one in sorted(found.items()))
        raise VerifyError(
            "the platforms hold different versions: no one tag can name them all",
            detail=said,
            hint="publish them one by one, or build them alike",
        )
    return first


def ordered(version: str | None) -> tuple[semver.Version, int]:
    """A version of Python's or of semver's kind as semver orders it, and its post release."""
    if version is None:
        return semver.Version(0), 0
    try:
        read = Version(version)
    except InvalidVersion:
        found = semver.Version.parse(version, optional_minor_and_patch=True)
        return found, 0
    major, minor, patch = (*read.release, 0, 0)[:3]
    early = [str(part) for part in (read.pre or ())]
    early += ["dev", str(read.dev)] if read.dev is not None else []
    made = semver.Version(major, minor, patch, prerelease=".".join(early) or None)
    return made, -1 if read.post is None else read.post
