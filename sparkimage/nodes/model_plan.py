"""What a node has of a model, and the transfers that bring what is missing. Pure.

A node's folder is known by its record: the manifest that it was proven to have, and size, inode and
time of each file then. Files that are no more what the record says must be hashed again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from sparkimage.core.errors import NodeError
from sparkimage.nodes.model_manifest import Entry, Manifest, digest_of

HERE = ""
"""The name of this machine in a chain."""
STREAMS = 4
"""Connections at once to one node: one cipher fills no link of 100 Gbit/s."""
STREAM_BYTES = 500_000_000
"""Bytes from which on a connection of its own pays."""


@dataclass(frozen=True, kw_only=True)
class FolderState:
    """The folder of a model on a node."""

    state: str
    """``folder``, ``missing``, ``closed`` (not readable, or no folder) or ``mount`` (a file system
    of its own)."""
    place: str
    """The folder that is there of those above it."""
    writable: bool
    free: int
    """Bytes."""
    digest: str
    """Of the manifest that the folder was proven to have; empty: none."""
    files: Mapping[str, str]
    """Size, inode and time of each file, by its path."""
    known: Mapping[str, str]
    """The sha256 of files that have not changed since they were proven, by their paths."""
    staged: Mapping[str, int]
    """Bytes of what has arrived, by sha256."""
    parts: Mapping[str, int]
    """Bytes of what has arrived in part, by sha256."""
    previous: bool
    """The folder before this one is kept."""

    @classmethod
    def read(cls, node: str, output: str) -> FolderState:
        """From the output of ``model.sh look``. Raises ``NodeError`` where it is not complete."""
        sections: dict[str, list[str]] = {}
        for line in output.splitlines():
            if line.startswith("@@ "):
                sections[line[3:]] = current = []
            elif sections:
                current.append(line)
        if "end" not in sections:
            raise NodeError(
                f"{node}: cannot look at its model folder", detail=output.strip(),
                hint="its login shell must run `sh -c` and print nothing else",
            )  # fmt: skip
        facts = dict(line.partition("=")[::2] for line in sections["state"])
        manifest = sections["manifest"]
        recorded = listing(sections["listing"])
        files = listing(sections["files"])
        proven = {path: sha256 for sha256, _, path in (one.split(" ", 2) for one in manifest)}
        staged = {name: int(size) for size, name in map(str.split, sections["staged"])}
        return cls(
            state=facts["state"],
            place=facts["place"],
            writable="writable" in facts,
            free=int(facts.get("free", 0)) * 1024,
            digest=digest_of("".join(f"{line}\n" for line in manifest)) if manifest else "",
            files=files,
            known={
                path: sha256
                for path, sha256 in proven.items()
                if path in files and files[path] == recorded.get(path)
            },
            staged={name: size for name, size in staged.items() if "." not in name},
            parts={
                name.removesuffix(".part"): size for name, size in staged.items() if "." in name
            },
            previous="previous" in facts,
        )

    @property
    def arrived(self) -> int:
        """Bytes of all that has arrived and is not part of the folder yet."""
        return sum(self.staged.values()) + sum(self.parts.values())

    def size_of(self, path: str) -> int | None:
        """Bytes of a file; None where there is none."""
        return int(self.files[path].split()[0]) if path in self.files else None

    def as_listed(self) -> str:
        """The files as the node lists them."""
        return "".join(sorted(f"{facts} ./{path}\n" for path, facts in self.files.items()))

    def with_hashes(self, hashes: Mapping[str, str]) -> FolderState:
        """With the sha256 of more files, and of their other names."""
        by_facts = {self.files[path]: sha256 for path, sha256 in hashes.items()}
        more = {path: by_facts[facts] for path, facts in self.files.items() if facts in by_facts}
        return replace(self, known={**more, **self.known})

    def after(self, earlier: FolderState) -> FolderState:
        """With what an earlier state has known of the files that have not changed since."""
        return self.with_hashes(
            {
                path: sha256
                for path, sha256 in earlier.known.items()
                if self.files.get(path) == earlier.files[path]
            }
        )


def listing(lines: Sequence[str]) -> dict[str, str]:
    """Size, inode and time of each file, by its path, of what ``model.sh`` lists."""
    found = {}
    for line in lines:
        size, inode, time, path = line.split(" ", 3)
        found[path.removeprefix("./")] = f"{size} {inode} {time}"
    return found


def differences(manifest: Manifest, state: FolderState) -> list[str]:
    """How a folder differs from the manifest, as far as that is known without reading its files;
    what has changed since it was proven counts. Empty where it does not."""
    found = []
    for entry in manifest.entries:
        if entry.path not in state.files:
            found.append(f"{entry.path} is missing")
        elif (size := state.size_of(entry.path)) != entry.size:
            found.append(f"{entry.path} has {size} bytes, not {entry.size}")
        elif entry.path not in state.known:
            found.append(f"{entry.path} is not proven, or has changed since")
        elif state.known[entry.path] != entry.sha256:
            found.append(f"{entry.path} has another sha256")
    paths = {entry.path for entry in manifest.entries}
    return found + [f"{path} is not in the manifest" for path in state.files if path not in paths]


def to_hash(manifest: Manifest, state: FolderState) -> list[Entry]:
    """The files that may be what the manifest has, and must be read to know; one name of each."""
    found: dict[str, Entry] = {}
    for entry in manifest.entries:
        if entry.path not in state.known and state.size_of(entry.path) == entry.size:
            found.setdefault(state.files[entry.path], entry)
    return list(found.values())


def lacking(manifest: Manifest, state: FolderState) -> dict[str, int]:
    """Bytes of each content that is not on the node yet, by sha256: of those that have arrived in
    part, the rest."""
    own = set(state.known.values())
    return {
        sha256: max(0, size - state.parts.get(sha256, 0))
        for sha256, size in manifest.contents.items()
        if sha256 not in own and state.staged.get(sha256) != size
    }


def origins(manifest: Manifest, state: FolderState) -> dict[str, str]:
    """The files of the folder as it is that are part of the new one, by their new paths."""
    own = {sha256: path for path, sha256 in state.known.items()}
    return {
        entry.path: own[entry.sha256]
        for entry in manifest.entries
        if entry.sha256 in own and entry.sha256 not in state.staged and not entry.link
    }


def build(manifest: Manifest, state: FolderState) -> str:
    """The input of ``model.sh build``: where the new folder takes each file from."""
    own, lines = origins(manifest, state), []
    for entry in manifest.entries:
        origin = f"link {entry.link}" if entry.link else f"blob {entry.sha256}"
        if entry.path in own:
            origin = f"old {own[entry.path]}"
        lines.append(f"{origin}\n{entry.path}\n")
    return f"{manifest.text}@@\n{''.join(lines)}"


def misbuilt(manifest: Manifest, state: FolderState, built: Mapping[str, str]) -> list[str]:
    """What is wrong with a new folder that was built from this state."""
    own = origins(manifest, state)
    found = [
        f"{entry.path} is not complete in the new folder"
        for entry in manifest.entries
        if built.get(entry.path, "").partition(" ")[0] != str(entry.size)
    ]
    found += [
        f"{path} has changed since it was hashed"
        for path, former in own.items()
        if built.get(path) not in (None, state.files[former])
    ]
    paths = {entry.path for entry in manifest.entries}
    return found + [f"{path} is not in the manifest" for path in built if path not in paths]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """The bytes of a content from ``offset`` on; nodes that have more of it drop what they have."""

    sha256: str
    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Chain:
    """One connection: from here to the first node, which passes all on to the next one."""

    nodes: tuple[str, ...]
    pieces: tuple[Piece, ...]

    @property
    def size(self) -> int:
        return sum(piece.length for piece in self.pieces)


@dataclass(kw_only=True)
class _Lane:
    pieces: list[Piece] = field(default_factory=list)
    size: int = 0


def plan(
    contents: Mapping[str, int],
    parts: Mapping[str, Mapping[str, int]],
    lacking: Mapping[str, Collection[str]],
    cut: Collection[tuple[str, str]] = (),
) -> list[Chain]:
    """The transfers that bring each node what it lacks (nodes in their order), each content once
    for all nodes that lack it.

    ``contents`` are bytes by sha256, ``parts`` what each node has of them. Hops in ``cut`` are not
    used; a node that cannot be reached from ``HERE`` so is tried by itself.
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for sha256 in contents:
        nodes = tuple(node for node in lacking if sha256 in lacking[node])
        if nodes:
            groups.setdefault(nodes, []).append(sha256)
    chains = [(nodes, group) for all_, group in groups.items() for nodes in split(all_, cut)]
    return [
        Chain(nodes=nodes, pieces=tuple(lane.pieces))
        for nodes, group in chains
        for lane in _lanes(
            [_piece(sha256, contents[sha256], nodes, parts) for sha256 in group],
            max(1, STREAMS // len(chains)),
        )
    ]


def split(nodes: Sequence[str], cut: Collection[tuple[str, str]]) -> list[tuple[str, ...]]:
    """Chains of these nodes without the hops in ``cut``."""
    alone = [node for node in nodes if (HERE, node) in cut]
    chains: list[list[str]] = []
    for node in nodes:
        if node in alone:
            continue
        if chains and (chains[-1][-1], node) not in cut:
            chains[-1].append(node)
        else:
            chains.append([node])
    return [*map(tuple, chains), *((node,) for node in alone)]


def _piece(
    sha256: str, size: int, nodes: Sequence[str], parts: Mapping[str, Mapping[str, int]]
) -> Piece:
    offset = min(size, *(parts[node].get(sha256, 0) for node in nodes))
    return Piece(sha256=sha256, offset=offset, length=size - offset)


def _lanes(pieces: Sequence[Piece], most: int) -> list[_Lane]:
    """Pieces for up to so many connections, about the same bytes for each."""
    total = sum(piece.length for piece in pieces)
    lanes = [_Lane() for _ in range(min(most, len(pieces), 1 + total // STREAM_BYTES))]
    for piece in sorted(pieces, key=lambda one: -one.length):
        lane = min(lanes, key=lambda one: one.size)
        lane.pieces.append(piece)
        lane.size += piece.length
    return lanes
