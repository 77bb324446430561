"""Images as files: out of the store with their seal, and into one, through the gate.

A file is the archive that every engine loads, with ``sparkimage/seal.json`` inside, which only
we read: the name, the digest, the plan and its checks, the seal's statements, their signed
envelopes where it was saved with a key, and why it is unverified where it is.
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
from pathlib import Path
from typing import IO, Any

from sparkimage.config.tier import Tier
from sparkimage.core.errors import GateError, StoreError, UsageError
from sparkimage.core.files import atomic_file
from sparkimage.core.units import human
from sparkimage.image import archive
from sparkimage.image.store import TAR, Image, Readable, Store
from sparkimage.registry.cosign import Signer, Trust
from sparkimage.verify import plan_record, policy, seal
from sparkimage.verify.plan_record import PlanRecord
from sparkimage.verify.policy import PolicyDecision, Required

SEAL = "sparkimage/seal.json"
SMALL_MAX = 64 << 20
"""Bytes of the JSON documents of an archive, far more than 20 statements have."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An image that was taken in."""

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
    """The bytes of the file in which ``image`` ships, under the name that it was built for.

    ``signer`` signs its seal.
    """
    statements = []
    # What the gate was overruled about ships without the seal that it refused.
    with contextlib.suppress(GateError):
        statements = [one.statement for one in seal.history(store, image.digest)]
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
    """See that a file of ``size`` bytes can be written as ``path``, before it is made.

    Raises ``UsageError`` where ``path`` is a folder, or is in none; ``StoreError`` for a folder
    that may not be written to, or whose disk is too full.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a folder", hint=f"name a file in it: -o {path / 'FILE'}")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise UsageError(f"the folder {folder} is not there", hint=f"mkdir -p {folder}")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise StoreError(f"{folder} may not be written to", hint="name a file elsewhere with -o")
    free = shutil.disk_usage(folder).free
    if free < size:
        raise StoreError(
            f"{folder} has {human(free)} free, the file needs {human(size)}",
            hint="free some disk, or write it elsewhere",
        )


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that has its name only when it is whole.

    Raises as ``refuse_target``, and ``StoreError`` when it cannot be written.
    """
    refuse_target(path)
    try:
        with atomic_file(path.absolute().parent) as file:
            yield file.sink
            file.rename_to(path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error}", hint="free some disk, or write it elsewhere"
        ) from None


@dataclass(kw_only=True)
class _Incoming:
    """What has come of an archive so far."""

    documents: dict[str, Any] = field(default_factory=dict)
    decision: PolicyDecision | None = None
    digest: str = ""
    name: str = ""
    record: PlanRecord | None = None
    failed: tuple[seal.Result, ...] = ()
    """Statements that came and say FAILED."""


def load(
    source: Readable,
    store: Store,
    *,
    tiers: Sequence[Tier] | None = None,
    trust: Trust | None = None,
    allow_unverified: bool = False,
    say: Callable[[str], None] | None = None,
) -> Loaded:
    """Take in the image of ``source`` and name it, if its seal fits.

    The seal is judged before the layers come, and with what the store knows of the image after, by
    the plan that comes with it; with ``trust`` it must be signed. ``tiers`` are what it must have
    passed here (default: what its own plan says). Nothing is named when it is refused. What
    ``allow_unverified`` lets in is marked in the store: it ships no further until it is proven
    here, or comes again with a seal that fits.
    Raises ``GateError``; ``StoreError`` for a file that is none, or whose blobs are not what their
    digests say.
    """
    incoming = _Incoming()

    def required(record: PlanRecord) -> Required:
        needs = record.required
        return needs if tiers is None else replace(needs, tiers=tuple(tiers))

    def judged() -> PlanRecord:
        if incoming.record is None:
            _identify(incoming)
            incoming.record = _record(incoming)
            needs = required(incoming.record)
            incoming.decision = _judge(incoming, needs, trust, allow_unverified, say)
        return incoming.record

    waits = say or (lambda line: print(line, file=sys.stderr))
    with store.in_use(waits), store.incoming():
        try:
            with tarfile.open(fileobj=source, mode="r|") as tar:  # type: ignore[call-overload]
                for member in tar:
                    if member.name.startswith("blobs/sha256/") and member.isfile():
                        judged()
                        _take(tar, member, store)
                    elif member.isfile() and member.size <= SMALL_MAX:
                        content = tar.extractfile(member)
                        assert content is not None
                        incoming.documents[member.name] = json.load(content)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise StoreError(
                f"this is no whole archive of an image: {error}", hint="save or copy it again"
            ) from None
        record = judged()
        assert incoming.decision is not None
        if not store.holds(incoming.digest):
            raise StoreError(
                f"the archive of {incoming.digest[:19]} is incomplete", hint="save it again"
            )
        decision = incoming.decision
        if decision.verdict is not None:
            decision = _with_ours(store, decision, record, required(record), allow_unverified, say)
        else:
            _add(store, incoming.digest, incoming.failed)
        seal.set_mark(store, incoming.digest, decision.unverified or None)
        with store.naming(incoming.name, waits):
            plan_record.keep(store, incoming.digest, record)
            store.name(incoming.name, store.descriptor(incoming.digest))
    return Loaded(image=store.resolve(incoming.digest), name=incoming.name, decision=decision)


def _identify(incoming: _Incoming) -> None:
    """Set the digest and the name, as the archive's index says them."""
    try:
        (entry,) = incoming.documents["index.json"]["manifests"]
        incoming.digest, annotations = str(entry["digest"]), entry.get("annotations", {})
        incoming.name = str(annotations["org.opencontainers.image.ref.name"])
    except (KeyError, TypeError, ValueError):
        raise StoreError(
            "this is no archive of one image: it has no index.json before its blobs",
            hint="make it with `python build.py save`",
        ) from None


def _record(incoming: _Incoming) -> PlanRecord:
    """The plan that came. Without one nobody could say what the image must be."""
    shipped = incoming.documents.get(SEAL)
    try:
        made = PlanRecord.from_dict(shipped.get("plan") if isinstance(shipped, dict) else None)
    except ValueError:
        raise StoreError(
            f"the archive of {incoming.digest[:19]} holds no plan of its image",
            hint="save it with `python build.py save` of this version",
        ) from None
    if made.plan.image != incoming.name:
        raise StoreError(
            f"the archive's plan is of {made.plan.image}, its image is {incoming.name}",
            hint="save it again with `python build.py save`",
        )
    return made


def _judge(
    incoming: _Incoming,
    required: Required,
    trust: Trust | None,
    allow_unverified: bool,
    say: Callable[[str], None] | None,
) -> PolicyDecision:
    """The gate's word on what came before the blobs."""
    try:
        shipped = incoming.documents.get(SEAL)
        if not isinstance(shipped, dict):
            raise GateError(
                f"the archive of {incoming.digest[:19]} has no seal",
                hint="save it with `python build.py save`",
            )
        if shipped.get("digest") != incoming.digest or shipped.get("name") != incoming.name:
            raise GateError(
                f"the archive's seal is of {shipped.get('name')} ({str(shipped.get('digest'))[:19]}"
                f"), its image is {incoming.name} ({incoming.digest[:19]})",
                hint="save it again with `python build.py save`",
            )
        believed = seal.read(_statements(shipped, incoming.digest, trust), incoming.digest)
        incoming.failed = tuple(
            one for one in believed if one.statement["predicate"]["result"] == "FAILED"
        )
        if shipped.get("unverified"):
            raise GateError(
                f"{incoming.digest[:19]} was shipped unverified: {shipped['unverified']}",
                hint="prove it where it was built, and save it again",
            )
        assert incoming.record is not None
        return policy.judge(believed, incoming.digest, incoming.record.checksum, required)
    except GateError as refusal:
        if not allow_unverified:
            raise
        return policy.overruled(incoming.digest, refusal, say)


def _statements(shipped: dict[str, Any], digest: str, trust: Trust | None) -> Any:
    """The seal's statements that came; with ``trust``, those that it covers."""
    if trust is None:
        return shipped.get("statements")
    envelopes = shipped.get("envelopes")
    if not isinstance(envelopes, list) or not envelopes:
        raise GateError(
            f"the seal of {digest[:19]} is not signed",
            hint="save it with a key where it was built: python build.py save … --key FILE",
        )
    return [trust.blob_statement(one, digest) for one in envelopes]


def _take(tar: tarfile.TarFile, member: tarfile.TarInfo, store: Store) -> None:
    wanted = f"sha256:{member.name.removeprefix('blobs/sha256/')}"
    store.path(wanted)
    content = tar.extractfile(member)
    assert content is not None
    found = store.put_stream(content, TAR).digest
    if found != wanted:
        raise StoreError(f"the archive's blob {wanted} is corrupt: {found}", hint="copy it again")


def _with_ours(
    store: Store,
    decision: PolicyDecision,
    record: PlanRecord,
    required: Required,
    allow_unverified: bool,
    say: Callable[[str], None] | None,
) -> PolicyDecision:
    """Add the seal that came to the one that is here, and ask about both."""
    assert decision.verdict is not None
    digest, came = decision.digest, decision.verdict.statements
    both = _add(store, digest, came)
    try:
        return policy.judge(both, digest, record.checksum, required)
    except GateError as refusal:
        if not allow_unverified:
            raise
        return policy.overruled(digest, refusal, say)


def _add(store: Store, digest: str, came: Sequence[seal.Result]) -> list[seal.Result]:
    """Keep what came beside what is here; returns both, oldest first."""
    before: tuple[seal.Result, ...] = ()
    with store.locked():
        with contextlib.suppress(GateError):
            before = seal.history(store, digest)
        both = [*before, *(one for one in came if one not in before)]
        both.sort(key=lambda one: str(one.statement["predicate"]["finished"]))
        seal.keep(store, digest, [one.statement for one in both])
    return both
