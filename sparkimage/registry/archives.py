"""Images as files: saved from the store with their seal, and loaded through the gate.

A file is the archive that every engine loads, with ``sparkimage/seal.json`` inside, which only we
read: the name, the digest, the plan and its checks, the statements of the seal, their signed
envelopes if it was saved with a key, and why it is unverified if it is.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from sparkimage.config.tier import Tier
from sparkimage.core.errors import GateError, PreflightError, StoreError, UsageError
from sparkimage.core.files import atomic_file
from sparkimage.core.program import program
from sparkimage.core.units import human
from sparkimage.image import archive
from sparkimage.image.store import TAR, Image, Store
from sparkimage.image.streams import Readable
from sparkimage.registry.cosign import Signer, Trust
from sparkimage.verify import plan_record, policy, seal
from sparkimage.verify.plan_record import PlanRecord
from sparkimage.verify.policy import PolicyDecision

SEAL = "sparkimage/seal.json"
SMALL_MAX = 64 << 20
"""Bytes of the JSON documents of an archive, far more than 20 statements have."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An image that was loaded."""

    image: Image
    name: str
    decision: PolicyDecision


def chunks(
    image: Image,
    record: PlanRecord,
    decision: PolicyDecision,
    store: Store,
    signer: Signer | None = None,
) -> Iterator[bytes]:
    """The bytes of the file for ``image``, under the name that it was built for.

    ``signer`` signs its seal.
    """
    statements = []
    # An image that the gate refused ships without an invalid seal.
    with contextlib.suppress(GateError):
        statements = [result.statement for result in seal.history(store, image.digest)]
    shipped = {
        "name": record.plan.image,
        "digest": image.digest,
        "plan": record.to_dict(),
        "statements": statements,
        "envelopes": [signer.envelope(one) for one in statements] if signer is not None else [],
        "unverified": decision.unverified or None,
    }
    return archive.stream(image, record.plan.image, store, {SEAL: shipped})


def refuse_target(path: Path, size: int = 0) -> None:
    """Check that a file of ``size`` bytes can be written to ``path``.

    Raises ``UsageError`` where ``path`` is a folder or its folder does not exist;
    ``PreflightError`` for a folder that is not writable, or whose disk is too full.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint=f"pass a file in it: -o {path / 'FILE'}")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} does not exist", hint=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PreflightError(f"{folder} is not writable", hint="write the file elsewhere with -o")
    free = shutil.disk_usage(folder).free
    if free < size:
        raise PreflightError(
            f"{folder} has {human(free)} free, the file needs {human(size)}",
            hint="free some disk, or write it elsewhere",
        )


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write, which gets its name when it is complete.

    Raises as ``refuse_target``, and ``PreflightError`` when it cannot be written.
    """
    refuse_target(path)
    try:
        with atomic_file(path.absolute().parent) as file:
            yield file.sink
            file.rename_to(path)
    except OSError as error:
        raise PreflightError(
            f"{path} cannot be written: {error}", hint="free some disk, or write it elsewhere"
        ) from None


def load(
    source: Readable,
    store: Store,
    *,
    tiers: Sequence[Tier] | None = None,
    trust: Trust | None = None,
    allow_unverified: bool = False,
    say: Callable[[str], None] | None = None,
) -> Loaded:
    """Load the image of ``source`` into the store, and name it if its seal is valid.

    The gate judges the seal before the layers are read, by the plan in the archive, and again with
    the statements that the store has; with ``trust`` the seal must be signed. ``tiers`` must have
    passed (default: those of its own plan). A refused image gets no name. What
    ``allow_unverified`` lets in is marked in the store: it does not ship further until it is
    verified here, or loaded again with a valid seal.
    Raises ``GateError``; ``StoreError`` for a file that is no archive, or has corrupt blobs.
    """
    wait = say or (lambda line: print(line, file=sys.stderr))
    loading = _Loading(
        store=store, tiers=tiers, trust=trust, allow_unverified=allow_unverified, say=say
    )
    with store.in_use(wait), store.incoming():
        try:
            with tarfile.open(fileobj=source, mode="r|") as tar:  # type: ignore[call-overload]
                for member in tar:
                    loading.read(tar, member)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise StoreError(
                f"the archive is incomplete or corrupt: {error}", hint="save or copy it again"
            ) from None
        return loading.finish(wait)


@dataclass(kw_only=True)
class _Loading:
    """An archive while it is read."""

    store: Store
    tiers: Sequence[Tier] | None
    trust: Trust | None
    allow_unverified: bool
    say: Callable[[str], None] | None
    documents: dict[str, Any] = field(default_factory=dict)
    failed: tuple[seal.Result, ...] = ()
    """Test results in the archive that say FAILED."""

    def read(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        is_blob = member.name.startswith("blobs/sha256/")
        if not member.isfile() or (not is_blob and member.size > SMALL_MAX):
            return
        content = tar.extractfile(member)
        assert content is not None
        if not is_blob:
            self.documents[member.name] = json.load(content)
            return
        # Refuse it before the first layer is read.
        _ = self.decision
        expected = f"sha256:{member.name.removeprefix('blobs/sha256/')}"
        self.store.path(expected)
        digest = self.store.put_stream(content, TAR).digest
        if digest != expected:
            raise StoreError(
                f"the archive's blob {expected} is corrupt: {digest}", hint="copy it again"
            )

    def finish(self, wait: Callable[[str], None]) -> Loaded:
        """Judge the seal with what the store has, and name the image."""
        decision, store, digest = self.decision, self.store, self.digest
        if not store.holds(digest):
            raise StoreError(f"the archive of {digest[:19]} is incomplete", hint="save it again")
        if decision.verdict is not None:
            results = self._add(decision.verdict.results)
            decision = self._judge(lambda: results)
        else:
            self._add(self.failed)
        seal.set_unverified(store, digest, decision.unverified or None)
        with store.naming(self.name, wait):
            plan_record.save(store, digest, self.record)
            store.name(self.name, store.descriptor(digest))
        return Loaded(image=store.resolve(digest), name=self.name, decision=decision)

    @cached_property
    def _identity(self) -> tuple[str, str]:
        try:
            (entry,) = self.documents["index.json"]["manifests"]
            name = str(entry.get("annotations", {})["org.opencontainers.image.ref.name"])
            return str(entry["digest"]), name
        except (AttributeError, KeyError, TypeError, ValueError):
            raise StoreError(
                "this is not an archive of one image: it has no index.json before its blobs",
                hint=f"create it with `{program()} save`",
            ) from None

    @property
    def digest(self) -> str:
        return self._identity[0]

    @property
    def name(self) -> str:
        return self._identity[1]

    @property
    def shipped(self) -> dict[str, Any]:
        shipped = self.documents.get(SEAL)
        return shipped if isinstance(shipped, dict) else {}

    @cached_property
    def record(self) -> PlanRecord:
        """The plan in the archive, without which nobody knows what the image must be."""
        try:
            record = PlanRecord.from_dict(self.shipped.get("plan"))
        except ValueError:
            raise StoreError(
                f"the archive of {self.digest[:19]} has no plan of its image",
                hint=f"save it with `{program()} save` of this version",
            ) from None
        if record.plan.image != self.name:
            raise StoreError(
                f"the archive's plan is of {record.plan.image}, but its image is {self.name}",
                hint=f"save it again with `{program()} save`",
            )
        return record

    @cached_property
    def decision(self) -> PolicyDecision:
        """The decision of the gate about the seal in the archive."""
        _ = self.record
        return self._judge(self._results)

    def _judge(self, results: Callable[[], Sequence[seal.Result]]) -> PolicyDecision:
        required = self.record.required
        if self.tiers is not None:
            required = replace(required, tiers=tuple(self.tiers))
        try:
            return policy.judge(results(), self.digest, self.record.checksum, required)
        except GateError as refusal:
            if not self.allow_unverified:
                raise
            return policy.override(self.digest, refusal, self.say)

    def _results(self) -> tuple[seal.Result, ...]:
        """The test results in the archive, signed where that is required."""
        shipped, digest = self.shipped, self.digest
        if shipped.get("digest") != digest or shipped.get("name") != self.name:
            raise GateError(
                f"the archive's seal is of {shipped.get('name')} "
                f"({str(shipped.get('digest'))[:19]}), but its image is {self.name} "
                f"({digest[:19]})",
                hint=f"save it again with `{program()} save`",
            )
        statements = shipped.get("statements")
        if self.trust is not None:
            envelopes = shipped.get("envelopes")
            if not isinstance(envelopes, list) or not envelopes:
                raise GateError(
                    f"the seal of {digest[:19]} is not signed",
                    hint=f"save it with a key where it was built: {program()} save … --key FILE",
                )
            statements = [self.trust.verify_envelope(envelope, digest) for envelope in envelopes]
        results = seal.parse(statements, digest)
        self.failed = tuple(result for result in results if not result.passed)
        if shipped.get("unverified"):
            raise GateError(
                f"{digest[:19]} was shipped unverified: {shipped['unverified']}",
                hint="verify it where it was built, and save it again",
            )
        return results

    def _add(self, results: Sequence[seal.Result]) -> list[seal.Result]:
        """Add these to the test results that the store has; returns all of them, oldest first."""
        stored: tuple[seal.Result, ...] = ()
        with self.store.locked():
            with contextlib.suppress(GateError):
                stored = seal.history(self.store, self.digest)
            new = [result for result in results if result not in stored]
            merged = sorted([*stored, *new], key=lambda result: result.finished)
            seal.replace(self.store, self.digest, [result.statement for result in merged])
        return merged
