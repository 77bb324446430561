"""A node that gets a model: what it has of it, and the commands of ``data/node/model.sh``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparkimage.config.address import parse_ip
from sparkimage.core.errors import NodeError, SparkError
from sparkimage.core.process import Completed
from sparkimage.core.program import program
from sparkimage.core.progress import Moved
from sparkimage.core.units import human
from sparkimage.nodes import ssh
from sparkimage.nodes.fabric import data_link
from sparkimage.nodes.model_manifest import Manifest
from sparkimage.nodes.model_plan import FolderState, lacking, to_hash
from sparkimage.nodes.refusals import FULL, last_line
from sparkimage.nodes.retag import AGAIN
from sparkimage.nodes.script import RemoteScript
from sparkimage.nodes.session import SPARE, NodeSession

HASH_RATE = 20_000_000
"""Bytes a second that a node reads and hashes at least; a slower one counts as hung."""


def words(verb: str, folder: str, *more: str) -> list[str]:
    """The command that runs ``model.sh``."""
    return ["sh", "-c", ssh.text("model"), "model", verb, folder, *more]


@dataclass(kw_only=True, eq=False)
class ModelNode:
    """A node, and the state of the model's folder there."""

    session: NodeSession
    folder: str
    seen: FolderState | None = None
    expected: int = 0
    """Bytes that it lacked at first."""
    seconds: float = 0.0
    """How long they took."""
    tries: int = 0
    """Attempts in a row that brought nothing."""
    port: str = ""
    """Of its sshd, as it sees it itself."""
    failed: str = ""
    """Why it could not keep what came."""

    @property
    def name(self) -> str:
        return self.session.name

    @property
    def now(self) -> FolderState:
        """The latest state."""
        assert self.seen is not None
        return self.seen

    def look(self) -> FolderState:
        """A new state of the folder. Raises ``NodeError``."""
        state = FolderState.read(self.name, self.call("look").stdout)
        self.seen = state if self.seen is None else state.after(self.seen)
        return self.seen

    def call(
        self, verb: str, *more: str, given: str | None = None, timeout_s: float | None = None
    ) -> Completed:
        """Run a command of ``model.sh`` to its end. Raises ``NodeError`` when it fails."""
        done = self.session.remote.run(
            words(verb, self.folder, *more), check=False, stdin=given, timeout_s=timeout_s
        )
        if done.returncode != 0:
            raise self.refusal(f"model.sh {verb}", done.returncode, done.stdout + done.stderr)
        return done

    def refusal(self, what: str, code: int, output: str) -> NodeError:
        """The error for what a command printed."""
        if FULL in output.lower():
            return NodeError(
                f"{self.name}: the disk of {self.folder} is full",
                hint=f"free some: {program()} model gc {self.folder}; then {AGAIN}",
            )
        why = last_line(output) or "it printed nothing"
        return NodeError(
            f"{self.name}: {what} failed (code {code}): {why}",
            hint=f"look there: {self.session.remote.ssh}",
        )

    def check(self) -> None:
        """Whether the folder may be replaced, and has room for what is missing.

        Raises ``NodeError``.
        """
        state, folder, shell = self.now, self.folder, self.session.remote.ssh
        if state.state == "closed":
            raise NodeError(
                f"{self.name}: {folder} is not a folder that this user can read",
                hint=f"look there: {shell} ls -ld {folder}",
            )
        if state.state == "mount":
            raise NodeError(
                f"{self.name}: {folder} is a file system of its own, and cannot be replaced",
                hint=f"push to a folder below it: --to {folder}/NAME",
            )
        if not state.writable:
            raise NodeError(
                f"{self.name}: no permission to write in {state.place}, where {folder} is put",
                hint=f"{shell} sudo chown $USER {state.place}",
            )

    def check_space(self, manifest: Manifest) -> None:
        """Whether what is missing has room. Raises ``NodeError``."""
        need = sum(lacking(manifest, self.now).values())
        if need and self.now.free < need + SPARE:
            raise NodeError(
                f"{self.name}: {self.now.place} has {human(self.now.free)} free, the model needs "
                f"{human(need + SPARE)}",
                hint=f"free some: {program()} model gc",
            )

    def unhashed(self, manifest: Manifest) -> int:
        """Bytes that ``hash`` reads."""
        return sum(entry.size for entry in to_hash(manifest, self.now))

    def hash(self, manifest: Manifest, moved: Moved) -> None:
        """Read the files that may be what the manifest has; ``moved`` gets their bytes.

        Raises ``NodeError``.
        """
        entries = {entry.path: entry for entry in to_hash(manifest, self.now)}
        if not entries:
            return
        patience = self.session.remote.patience_s
        longest = max(entry.size for entry in entries.values()) / HASH_RATE
        script = RemoteScript(self.session.remote, words("hash", self.folder))
        hashes = {}
        try:
            with script.limit():
                script.write("".join(f"{path}\n" for path in entries).encode())
                script.input.close()
                script.process.stdin = None
                script.extend(patience + longest)
                for line in script.lines():
                    sha256, _, path = line.partition("  ")
                    if path in entries:
                        hashes[path] = sha256
                        moved(entries[path].size)
                    script.extend(patience + longest)
            script.rest()
        except (BrokenPipeError, ValueError):
            script.rest()
        finally:
            script.kill()
        if (lost := script.lost()) is not None:
            raise lost
        # A file that cannot be read is sent.
        self.seen = self.now.with_hashes(hashes)

    def ready(self) -> None:
        """Prepare for what will come, and end what still comes of an earlier attempt.

        Raises ``NodeError``.
        """
        self.port = self.call("ready").stdout.strip()

    @property
    def hop(self) -> tuple[str, str]:
        """How another node reaches it by ssh, and knows its host key: at its data address, by
        number, so that nodes need not know each other's names."""
        remote, link = self.session.remote, data_link(self.session.now)
        data = remote.node.data
        if data is None:
            return remote.hop_to(link.address or remote.node.control, self.port)
        return remote.hop_to(data if parse_ip(data) else link.address or data)

    def abandon(self) -> None:
        """End all that runs there."""
        self.session.abandon()

    def clean(self) -> None:
        """Remove what arrived there, and what an undo would need. Raises ``NodeError``."""
        self.call("clean")

    def record(self, manifest: Manifest) -> None:
        """Keep there that the folder is what the manifest says. Raises ``NodeError``."""
        self.call("record", given=f"{manifest.text}@@\n{self.now.as_listed()}")


@dataclass(kw_only=True)
class FolderMove:
    """Puts the new folder of a model in the place of the one that is there: see ``Move``. A script
    there waits for ``go``, and runs to its end by itself."""

    node: ModelNode
    script: RemoteScript | None = None

    @property
    def session(self) -> NodeSession:
        return self.node.session

    @property
    def name(self) -> str:
        return self.node.name

    @property
    def input(self) -> int:
        assert self.script is not None
        return self.script.input.fileno()

    def prepare(self) -> None:
        script = RemoteScript(self.session.remote, words("move", self.node.folder))
        self.script = script
        with script.limit():
            line = next(script.lines(), "")
        if line != "@@ armed":
            raise self._failure(script, f"{line}\n{script.rest()}")

    def go(self) -> bytes:
        return b"go\n"

    def confirm(self, answer: bytes) -> None:  # noqa: ARG002
        assert self.script is not None
        output = self.script.rest()
        if "@@ moved" not in output.splitlines():
            raise self._failure(self.script, output)

    def undo(self) -> None:
        self.node.call("undo")

    def close(self) -> None:
        if self.script is not None:
            self.script.close()

    def _failure(self, script: RemoteScript, output: str) -> SparkError:
        what = f"the move of {self.node.folder}"
        return script.lost() or self.node.refusal(what, script.code, output)


def by_name(nodes: Sequence[ModelNode]) -> dict[str, ModelNode]:
    """The nodes by their names."""
    return {node.name: node for node in nodes}
