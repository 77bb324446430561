"""Which build of NCCL each rank loads, compared on all nodes before anything starts.

Two ranks with different ones hang without a word, or break off while they join (2.30.4 and 2.30.7
do: "Message truncated"), and a version is no identity: two builds of one version were seen to
behave differently (https://github.com/vllm-project/vllm/issues/46097). That all nodes have the same
image proves it of neither a mount, nor a variable, nor a damaged file: so the files are read as the
ranks' own containers see them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from sparkimage.core.errors import LaunchError, NodeError
from sparkimage.core.program import program
from sparkimage.image import elf
from sparkimage.image.store import Image, Store
from sparkimage.image.streams import EMPTY_SHA256
from sparkimage.nodes.concurrent import run_on_all
from sparkimage.nodes.reading import nccl_conf, parts_of
from sparkimage.nodes.retag import AGAIN, failure
from sparkimage.nodes.session import NodeSession

if TYPE_CHECKING:
    from sparkimage.image.layerindex import ImageFiles

FACT = "nccl-1"
"""The fact of the store. Raise its number with every change of what is kept."""
READ_S = 120.0
"""Seconds in which a node reads its files, of some 250 MB each."""
MISSING = re.compile(r"could not find the file|no such file", re.IGNORECASE)
"""What `docker cp` says of a file that is not there."""
FIX = (
    "correct VLLM_NCCL_SO_PATH in `env` of the profile and the node (where the image sets it, they "
    "win)"
)
DAMAGE_FIX = (
    "there: docker image rm --force the image, and others that share this layer; then distribute "
    "it again"
)


@dataclass(frozen=True, kw_only=True)
class Library:
    """A file of NCCL; what is not known is empty."""

    path: str = ""
    version: str = ""
    build_id: str = ""
    sha256: str = ""

    @property
    def build(self) -> str:
        """What tells two builds apart: a stripped copy keeps its Build ID."""
        return self.build_id or self.sha256

    @property
    def is_there(self) -> bool:
        return self.sha256 != EMPTY_SHA256

    def differs(self, other: Library) -> bool:
        """It is known to be another file."""
        if self.sha256 and other.sha256:
            return self.sha256 != other.sha256
        return bool(self.build_id) and self.build_id != other.build_id

    def __str__(self) -> str:
        words = [f"NCCL {self.version}"] if self.version else []
        words += [f"Build ID {self.build_id}"] if self.build_id else []
        words += [f"sha256 {self.sha256[:12]}…"] if self.sha256 else []
        return ", ".join(words)


def of_image(store: Store, image: Image) -> tuple[tuple[Library, ...], dict[str, dict[str, str]]]:
    """``libraries`` and ``conf`` of an image; kept in the store, for an image has 80,000 files.

    Raises ``StoreError``.
    """
    kept = store.get_fact(FACT, image.digest)
    if kept is None:
        from sparkimage.image.layerindex import image_files

        files = image_files(store, image)
        kept = {
            "libraries": [asdict(one) for one in libraries(files)],
            "conf": conf(store, image, files),
        }
        store.put_fact(FACT, image.digest, kept)
    return tuple(Library(**one) for one in kept["libraries"]), kept["conf"]


def libraries(files: ImageFiles) -> tuple[Library, ...]:
    """Every libnccl that a container of the image sees, by path."""
    from sparkimage.verify import static_nccl

    copies = sorted(
        (entry for entry in files.final.values() if static_nccl.is_copy(entry)),
        key=lambda entry: entry.path,
    )
    return tuple(
        Library(
            path=f"/{entry.path}",
            version=str(entry.seen.get("nccl") or ""),
            build_id=(entry.elf.build_id if entry.elf else None) or "",
            sha256=str(entry.seen.get("sha256") or ""),
        )
        for entry in copies
    )


def conf(store: Store, image: Image, files: ImageFiles) -> dict[str, dict[str, str]]:
    """The settings in the files of an image that NCCL reads where no variable is set, by file, the
    strongest first: https://docs.nvidia.com/deeplearning/nccl/user-guide/docs/env.html"""
    from sparkimage.image import layerindex

    found: list[str] = []
    for path in (image.settings.env.get("NCCL_CONF_FILE") or "/root/.nccl.conf", "/etc/nccl.conf"):
        entry = files.final.get(path.lstrip("/"))
        if entry is not None and entry.is_file:
            data = layerindex.content(store, image.layers[entry.layer], entry.path)
            found += [f"@file {path}", *data.decode(errors="replace").splitlines()]
    return {file: settings for file, settings in nccl_conf(found).items() if settings}


def choose(libraries: Sequence[Library], pin: str, env: Mapping[str, str]) -> Library:
    """The libnccl to preload: of the pin's version, one that the image's LD_PRELOAD names before
    others, one of the system before torch's. Raises ``LaunchError`` where there is none."""
    preload = env.get("LD_PRELOAD", "").replace(":", " ").split()
    fitting = [one for one in libraries if one.version == pin]
    if not fitting:
        has = ", ".join(f"{one.version or 'unknown'} ({one.path})" for one in libraries)
        raise LaunchError(
            f"the image has no NCCL {pin}, which its matrix expects: it has {has or 'none'}",
            hint=f"rebuild it: {program()} image VARIANT --rebuild",
        )
    return min(
        fitting, key=lambda one: (one.path not in preload, not one.path.startswith("/usr/lib/"))
    )


def require(
    containers: Sequence[tuple[NodeSession, str]],
    image: Sequence[Library],
    pinned: Library | None,
) -> None:
    """All ranks' containers, by rank, load the same NCCL, and the pinned one where there is a pin;
    ``image``: those of the image as it was measured.

    Raises ``LaunchError`` with every rank that does not, or could not be asked.
    """
    seen: dict[str, tuple[Library, ...]] = {}

    def look(of: tuple[NodeSession, str]) -> None:
        session, container = of
        words = "nccl", container, *(one.path for one in image)
        done = session.call(*words, timeout_s=READ_S)
        seen[session.name] = parse(done.stdout)
        if not all(one.is_there for one in seen[session.name]) and not MISSING.search(done.stderr):
            raise NodeError(
                f"{session.name}: docker cp failed", detail=done.stderr.strip(),
                hint=f"look there: {session.remote.ssh} {session.remote.docker} info",
            )  # fmt: skip

    errors = run_on_all(containers, look, name=lambda of: of[0].name)
    if errors:
        raise failure(errors, len(containers), "could not read the NCCL of its container")
    by_rank = {session.name: seen[session.name] for session, _ in containers}
    found = problems(by_rank, image, pinned)
    if failed := [name for name, texts in found.items() if texts]:
        raise LaunchError(
            f"{len(failed)} of {len(containers)} ranks would load another NCCL: it hangs without a "
            "word",
            detail="\n".join(
                f"✗ {name} (rank {rank}): {text}"
                for rank, (name, texts) in enumerate(found.items())
                for text in texts
            ),
            hint=f"fix that on each node, then {AGAIN}",
        )


def parse(output: str) -> tuple[Library, ...]:
    """The files of a container, from the output of ``data/node/nccl.sh``. Pure."""
    found = []
    for path, (hashed, *beginning) in parts_of(output).items():
        head = elf.read(lambda: b"", base64.b64decode("".join(beginning)))
        build_id = (head.build_id if head else None) or ""
        found.append(Library(path=path, sha256=hashed.split()[0], build_id=build_id))
    return tuple(found)


def problems(
    seen: Mapping[str, Sequence[Library]], image: Sequence[Library], pinned: Library | None
) -> dict[str, list[str]]:
    """What is wrong with the files that the ranks on these nodes load, and what to do. Pure."""
    found = {node: list(_problems(files, image, pinned)) for node, files in seen.items()}
    builds = {frozenset(one.build for one in files) for files in seen.values()}
    if len(builds) > 1 and not any(found.values()):
        for node, files in seen.items():
            found[node] = [_text(f"would load {one.path}", one, "the same on all ranks", FIX)
                           for one in files]  # fmt: skip
    return found


def _problems(
    files: Sequence[Library], image: Sequence[Library], pinned: Library | None
) -> Iterator[str]:
    measured = {one.path: one for one in image}
    for one in files:
        own = measured.get(one.path)
        if not one.is_there:
            what = f"{one.path} is not in its container"
            yield _text(what, "nothing", pinned or "NCCL", f"{FIX}, or the cache that hides it")
        elif own is not None and own.differs(one):
            what = f"{one.path} is not the file of the image: damaged there, or mounted over"
            yield _text(what, one, own, DAMAGE_FIX)
        elif pinned is not None and one.build != pinned.build:
            yield _text(f"would load {one.path}", one, f"{pinned} (the pinned one)", FIX)


def _text(what: str, seen: object, expected: object, fix: str) -> str:
    return f"{what}\n    seen: {seen}\n    expected: {expected}\n    → {fix}"
