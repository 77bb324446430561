"""A node's compiled caches: runs ``data/node/caches.sh`` there, in a container of the image."""

from __future__ import annotations

import hashlib
import posixpath
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparkimage.core.errors import NodeError
from sparkimage.core.files import atomic_file
from sparkimage.core.program import program
from sparkimage.image.streams import EMPTY_SHA256
from sparkimage.nodes import ssh
from sparkimage.nodes.model_manifest import CHUNK
from sparkimage.nodes.refusals import FULL, last_line
from sparkimage.nodes.script import RemoteScript
from sparkimage.nodes.session import NodeSession
from sparkimage.serve.cache_store import Saved
from sparkimage.serve.command import Mount

READ_S = 600.0
"""Seconds that a node may take to read or write all of its caches."""
LOOK = """
cd "$1" 2>/dev/null &&
    cat -- $(ls config.json hf_quant_config.json params.json 2>/dev/null) </dev/null | sha256sum
cat -- "$2/.saved" 2>/dev/null || :
"""
"""The sha256 of what makes a model's kernels what they are, in its folder; the node's record."""
LINE = re.compile(r"([0-9a-f]{64}) [ *]([^\x00-\x1f\\]+)")
"""A line of ``sha256sum``; names with other characters are escaped, and left out."""


@dataclass(kw_only=True, eq=False)
class CacheNode:
    """The caches of one rank on its node."""

    session: NodeSession
    rank: int
    image: str
    """The image's id there."""
    folder: str
    """That of the image's caches."""
    model: str = ""
    """The sha256 of the model's configuration; nothing where there is none."""
    record: Mapping[str, str] = field(default_factory=dict)
    """What was saved from there or brought: contents by key."""

    @property
    def name(self) -> str:
        return self.session.name

    @property
    def gpus(self) -> str:
        """The names of its GPUs."""
        return ", ".join(sorted({gpu.name for gpu in self.session.now.gpus}))

    def packs(self, saved: Saved) -> str:
        """The folder there that archives are sent to."""
        return posixpath.join(posixpath.dirname(self.folder), "packs", saved.key.id)

    def look(self, model: str) -> None:
        """See what it has. ``model``: the model's folder. Raises ``NodeError``."""
        words = ["sh", "-c", LOOK, "look", model, self.folder]
        first, *rest = [*self.session.remote.run(words).stdout.splitlines(), ""]
        sha256 = first.partition(" ")[0] if first.endswith(" -") else ""
        self.model = "" if sha256 == EMPTY_SHA256 else sha256
        pairs = (line.split() for line in rest)
        self.record = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}

    def has(self, saved: Saved) -> bool:
        """Whether this very set was saved from there, or brought."""
        return self.record.get(saved.key.id) == saved.content

    def hashes(self, caches: Sequence[str]) -> dict[str, str]:
        """The sha256 of each file of these caches, by path. Raises ``NodeError``."""
        matches = map(LINE.fullmatch, self._call("list", *caches).splitlines())
        return {match[2]: match[1] for match in matches if match}

    def pack(self, name: str, files: Mapping[str, str], folder: Path) -> None:
        """Write an archive of these files (sha256 by path) to ``folder``, and their sums.

        Raises ``NodeError`` where one of them is not what it was.
        """
        script = RemoteScript(self.session.remote, self._words("pack"), bulk=True)
        try:
            with script.limit(READ_S), atomic_file(folder) as archive:
                script.write("".join(f"{path}\n" for path in files).encode())
                script.input.close()
                script.process.stdin = None
                assert script.process.stdout is not None
                while piece := script.process.stdout.read(CHUNK):
                    archive.sink.write(piece)
                output = script.rest()
                archive.rename_to(folder / f"{name}.tar")
        except (BrokenPipeError, ValueError):
            output = script.rest()
        finally:
            script.kill()
        if (lost := script.lost()) is not None:
            raise lost
        if script.code != 0 or _hashes_of(folder / f"{name}.tar") != files:
            if script.code != 0:
                raise self._refusal("read", script.code, output)
            raise NodeError(
                f"{self.name}: a cache changed while it was read",
                hint="the server must not compile any more: launch --save-caches again",
            )
        sums = "".join(f"{sha256}  {path}\n" for path, sha256 in sorted(files.items()))
        (folder / f"{name}.sums").write_text(sums)

    def lacks(self, sums: str) -> bool:
        """Whether one of these files, whatever its content, is not there. Raises ``NodeError``."""
        paths = "".join(f"{line.split('  ', 1)[1]}\n" for line in sums.splitlines())
        done = self.session.remote.run(
            self._words("lacks"), check=False, stdin=paths, timeout_s=READ_S
        )
        if done.returncode not in (0, 1):
            raise self._refusal("read", done.returncode, done.stdout + done.stderr)
        return done.returncode == 1

    def keep_record(self, saved: Saved) -> None:
        """Keep there that it has this set. Raises ``NodeError``."""
        self._call("record", saved.key.id, saved.content)

    def unpack(self, saved: Saved, *, replace: bool) -> None:
        """Prove what was sent, and put it in place. Files that are there stay; with ``replace`` the
        caches that are there go. Raises ``NodeError``."""
        mode = "replace" if replace else "keep"
        packs = self.packs(saved)
        mount = Mount(source=packs, target="/packs", readonly=True)
        words = [saved.key.id, saved.content, mode, *saved.parts(self.rank)]
        try:
            self._call("unpack", *words, mounts=[mount])
        finally:
            self.discard(saved)

    def discard(self, saved: Saved) -> None:
        """Remove what was sent."""
        at, name = posixpath.split(self.packs(saved))
        own = [posixpath.join(at, name), posixpath.join(at, f".{name}.sparkimage")]
        self.session.remote.run(["rm", "-rf", "--", *own], check=False)

    def make_folder(self) -> None:
        """Make the folder of the image's caches. Raises ``NodeError``."""
        self.session.remote.run(["mkdir", "-p", "--", self.folder])

    def _call(self, verb: str, *words: str, mounts: Sequence[Mount] = ()) -> str:
        done = self.session.remote.run(
            self._words(verb, *words, mounts=mounts), check=False, timeout_s=READ_S
        )
        if done.returncode != 0:
            raise self._refusal(verb, done.returncode, done.stdout + done.stderr)
        return done.stdout

    def _words(self, verb: str, *words: str, mounts: Sequence[Mount] = ()) -> list[str]:
        """The command that runs ``caches.sh`` in a container."""
        all_ = [Mount(source=self.folder, target="/caches"), *mounts]
        return [
            *self.session.remote.docker.split(), "run", "--rm", "--interactive",
            "--network", "none", "--entrypoint", "sh",
            # It needs no GPU, and nothing that the image preloads.
            "--env", "LD_PRELOAD=", "--env", "NVIDIA_VISIBLE_DEVICES=void",
            *(word for mount in all_ for word in ("--mount", str(mount))),
            self.image, "-c", ssh.text("caches"), "caches", verb, *words,
        ]  # fmt: skip

    def _refusal(self, verb: str, code: int, output: str) -> NodeError:
        if FULL in output.lower():
            return NodeError(
                f"{self.name}: the disk of {self.folder} is full",
                hint=f"free some: {program()} gc; there: docker system df",
            )
        why = last_line(output) or "it printed nothing"
        return NodeError(
            f"{self.name}: cannot {verb} the caches in {self.folder} (code {code}): {why}",
            hint=f"look there: {self.session.remote.ssh} ls -l {self.folder}",
        )


def _hashes_of(file: Path) -> dict[str, str]:
    """The sha256 of each file of an archive, by path; empty where it cannot be read."""
    found = {}
    try:
        with tarfile.open(file) as archive:
            for member in archive:
                if (data := archive.extractfile(member)) is None:
                    continue
                sha256 = hashlib.sha256()
                while piece := data.read(CHUNK):
                    sha256.update(piece)
                found[member.name] = sha256.hexdigest()
    except (OSError, tarfile.TarError):
        return {}
    return found
