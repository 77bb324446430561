"""Images on their way into a registry: by digest first, proven there, and tags last.

Blobs go straight from the store, only those that the repository lacks. A tag is put when all that
it names is there and has been read back, so that an interruption leaves no tag that names less
than it says.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sparkimage.config.matrix import Matrix, Variant
from sparkimage.config.plan import LABEL, Plan
from sparkimage.core.errors import PublishedError, RegistryError, UsageError
from sparkimage.core.progress import Moved, View
from sparkimage.image.store import INDEX, MANIFEST, Image, Store
from sparkimage.registry import attachments, provenance, remote, sbom, uploading
from sparkimage.registry.oci import Document, Repository
from sparkimage.registry.remote import Reference
from sparkimage.registry.signing import Keyless, Signer
from sparkimage.registry.tags import Measured, agree, joint_checksum, version_tag
from sparkimage.verify import dsse, policy, seal
from sparkimage.verify.policy import Required
from sparkimage.verify.seal import Verdict

WORKERS = 3
"""Blobs on their way at once."""
MOUNTED = "repositories"
"""The kind of fact that lists where on a registry we have published before."""
MOUNTS = 4
"""So many other repositories are asked for a blob."""


class Change(StrEnum):
    """What became of a tag."""

    NEW = "new"
    MOVED = "moved"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image to publish: its plan, its seal, and what was found in it."""

    plan: Plan
    image: Image
    measured: Measured
    verdict: Verdict
    required: Required
    bill: Mapping[str, Any]
    """The SBOM."""


@dataclass(kw_only=True)
class Blobs:
    """What became of an image's blobs."""

    uploaded: int = 0
    mounted: int = 0
    there: int = 0
    bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was published."""

    repository: str
    digest: str
    tags: Mapping[str, Change]
    platforms: Mapping[str, tuple[str, Blobs]]
    sent: int
    """Bytes of blobs that went out, those that went again counted again."""
    seconds: float
    added: tuple[str, ...] = ()
    """What was attached or put beside blobs and tags."""

    @property
    def changed(self) -> bool:
        """Whether the registry has anything that it did not have."""
        moved = any(one is not Change.UNCHANGED for one in self.tags.values())
        brought = any(one.uploaded + one.mounted for _, one in self.platforms.values())
        return bool(moved or brought or self.added)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return {
            "repository": self.repository,
            "digest": self.digest,
            "changed": self.changed,
            "tags": {tag: str(change) for tag, change in self.tags.items()},
            "platforms": {
                platform: {
                    "digest": digest,
                    "uploaded": blobs.uploaded,
                    "mounted": blobs.mounted,
                    "there": blobs.there,
                    "bytes": blobs.bytes,
                }
                for platform, (digest, blobs) in self.platforms.items()
            },
            "added": list(self.added),
            "sent": self.sent,
            "seconds": round(self.seconds, 3),
        }


def family(matrix: Matrix, variant: Variant) -> tuple[Variant, ...]:
    """The variants that differ from this one by their platform alone, itself among them."""

    def kind(one: Variant) -> object:
        return one.layers, tuple(sorted(one.pins.items())), one.entrypoint, one.cmd

    return tuple(one for one in matrix.variants if kind(one) == kind(variant))


def channels(matrix: Matrix | None, plans: Sequence[Plan]) -> tuple[str, ...]:
    """The channels that stand for the images of these plans, which must be complete.

    None where ``matrix`` does not have their variants any more. Raises ``UsageError`` for variants
    that are no one image, or lack a platform.
    """
    strange = [one.variant for one in plans if _kind(one) != _kind(plans[0])]
    if strange:
        raise UsageError(
            f"{plans[0].variant} and {', '.join(strange)} differ by more than their platform",
            hint="one index holds the platforms of one image: publish them one by one",
        )
    names = [plan.variant for plan in plans]
    given = [one for one in matrix.variants if one.name in names] if matrix is not None else []
    if matrix is None or not given:
        return ()
    complete = family(matrix, given[0])
    named = tuple(
        channel
        for channel, variants in matrix.channels.items()
        if any(name in variants for name in names)
    )
    lacking = [one.name for one in complete if one.name not in names]
    if lacking and (len(names) > 1 or named):
        why = f"the channel {named[0]}" if named else "the index"
        raise UsageError(
            f"the set is incomplete: {why} would lack {', '.join(lacking)}",
            hint=f"python build.py publish {' '.join(one.name for one in complete)} --to …",
        )
    return named


def _kind(plan: Plan) -> object:
    """All that the platforms of one image have in common."""
    pins = {name: value for name, value in plan.labels.items() if name.startswith(f"{LABEL}pin.")}
    return [layer.name for layer in plan.layers], pins, plan.entrypoint, plan.cmd


def index_of(items: Sequence[Item], store: Store) -> Document:
    """The index of several platforms; of one image its own manifest."""
    if len(items) == 1:
        data = store.path(items[0].image.digest).read_bytes()
        return Document(data=data, media_type=MANIFEST)
    listed = []
    for item in sorted(items, key=lambda one: one.plan.platform):
        os_, _, architecture = item.image.platform.partition("/")
        entry = store.descriptor(item.image.digest).to_dict()
        listed.append({**entry, "platform": {"architecture": architecture, "os": os_}})
    made = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
    return Document(data=json.dumps(made, separators=(",", ":")).encode(), media_type=INDEX)


class _EndedError(Exception):
    """Another blob failed: this one need not go on."""


@dataclass(kw_only=True)
class Publication:
    """One image, of one platform or several, on its way to one repository."""

    items: Sequence[Item]
    store: Store
    to: Repository
    view: View
    signer: Signer | Keyless
    trusted: Mapping[str, dsse.PublicKey] = field(default_factory=dict)
    """Others than the signer, whose images' tags may be moved."""
    channels: Sequence[str] = ()
    part: int = uploading.PART
    """Bytes of a blob that go out at once."""
    added: list[str] = field(default_factory=list)

    def run(self) -> Outcome:
        """Do it. Raises ``RegistryError``, ``NetworkError``, ``StoreError``; then no tag names
        anything that is not whole."""
        began = time.monotonic()
        measured = agree((one.plan.variant, one.measured) for one in self.items)
        checksum = joint_checksum({one.plan.platform: one.plan.lock_checksum for one in self.items})
        tags = [version_tag(measured, checksum), *self.channels]
        self.to.ready()
        brought = self._bring()
        for item in self.items:
            data = self.store.path(item.image.digest).read_bytes()
            self._put(Document(data=data, media_type=MANIFEST), f"{item.plan.platform} manifest")
        whole = index_of(self.items, self.store)
        if len(self.items) > 1:
            self._put(whole, "index")
        for item in self.items:
            self._attach(item, tags if len(self.items) == 1 else ())
        if len(self.items) > 1:
            self._sign(whole, tags, "index")
        self._ask_as_a_stranger(whole)
        changes = self._name(whole, tags)
        self._remember()
        return Outcome(
            repository=str(self.to.place),
            digest=whole.digest,
            tags=changes,
            platforms={
                item.plan.platform: (item.image.digest, brought[item.image.digest])
                for item in self.items
            },
            sent=self.to.sent,
            seconds=time.monotonic() - began,
            added=tuple(self.added),
        )

    # Blobs

    def _bring(self) -> dict[str, Blobs]:
        """Bring every blob that is not there; what became of each image's."""
        counts = {item.image.digest: Blobs() for item in self.items}
        owner: dict[str, tuple[int, Blobs]] = {}
        for item in self.items:
            for digest, size in item.image.blobs():
                owner.setdefault(digest, (size, counts[item.image.digest]))
        others = self._others()
        lock, ended = threading.Lock(), threading.Event()
        total = sum(size for size, _ in owner.values())
        with self.view.transfer(f"publishing to {self.to.place}", total) as shown:

            def moved(count: int) -> None:
                if ended.is_set():
                    raise _EndedError
                with lock:
                    shown(count)

            def one(digest: str) -> None:
                size, count = owner[digest]
                how = self._blob(digest, size, others, moved)
                with lock:
                    setattr(count, how, getattr(count, how) + 1)
                    count.bytes += size if how == "uploaded" else 0

            pool = ThreadPoolExecutor(WORKERS)
            # The longest first.
            order = sorted(owner, key=lambda digest: -owner[digest][0])
            waiting = [pool.submit(one, digest) for digest in order]
            try:
                for done in waiting:
                    done.result()
            except BaseException:
                # Not handled, only cleaned up after: nobody goes on for nothing. A failure waits
                # for the other uploads; an interrupt waits for no registry that is silent.
                failed = any(blob.done() and blob.exception() is not None for blob in waiting)
                ended.set()
                pool.shutdown(wait=failed, cancel_futures=True)
                raise
            pool.shutdown()
        return counts

    def _blob(self, digest: str, size: int, others: tuple[str, ...], moved: Moved) -> str:
        held = self.to.blob_size(digest)
        if held is not None:
            if held not in (size, -1):
                raise self.to.damaged(digest, held, size)
            moved(size)
            return "there"
        location = uploading.mount(self.to, digest, others) if others else None
        if location == "":
            moved(size)
            return "mounted"
        uploading.upload(
            self.to, self.store, digest, size, moved, location=location or "", part=self.part
        )
        return "uploaded"

    def _others(self) -> tuple[str, ...]:
        known = self.store.get_fact(MOUNTED, self.to.place.registry) or []
        return tuple(one for one in known if one != self.to.place.repository)[:MOUNTS]

    def _remember(self) -> None:
        """Where blobs can be taken over from, the latest first."""
        known = self.store.get_fact(MOUNTED, self.to.place.registry) or []
        own = self.to.place.repository
        latest = [own, *(one for one in known if one != own)][: MOUNTS + 1]
        if latest != known:
            self.store.put_fact(MOUNTED, self.to.place.registry, latest)

    # Names

    def _put(self, document: Document, what: str) -> None:
        held = self.to.manifest(document.digest)
        if held is None or held.data != document.data:
            self.to.put_manifest(document.digest, document)
            self.added.append(what)

    def _name(self, whole: Document, tags: Sequence[str]) -> dict[str, Change]:
        """Put the tags, all looked at before the first one moves, and read them back."""
        before = {tag: self.to.digest_of(tag) for tag in tags}
        for tag, held in before.items():
            if held is not None and held != whole.digest:
                self._may_move(tag, held)
        for tag, held in before.items():
            if held != whole.digest:
                self.to.put_manifest(tag, whole)
        for tag in tags:
            now = self.to.digest_of(tag)
            if now != whole.digest:
                raise RegistryError(
                    f"{self.to.place}:{tag} was given to {str(now)[:19]} by somebody else",
                    hint="look at it (python build.py inspect), and run the same command again; "
                    f"what is published stays as {self.to.place}@{whole.digest[:19]}…",
                )
        return {
            tag: Change.UNCHANGED
            if held == whole.digest
            else Change.NEW if held is None else Change.MOVED
            for tag, held in before.items()
        }  # fmt: skip

    def _may_move(self, tag: str, held: str) -> None:
        """Refuse to move a tag backwards, or from what is not ours."""
        at = Reference(place=self.to.place, tag=None, digest=held)
        try:
            there = remote.read(at, self.to, self._believed)
            facts = remote.judge(there, lambda _: Required(tiers=()))
            measured = agree((one.reading.platform, one.measured) for one in facts)
        except PublishedError as error:
            raise RegistryError(
                f"{self.to.place}:{tag} stands for {held[:19]}, which is not known to be ours",
                hint="remove that tag in the registry, or publish to another repository",
                detail=error.message,
            ) from None
        ours = self.items[0].measured
        made = max(str(one.reading.config.get("created")) for one in facts)
        mine = max(str(item.image.config.get("created")) for item in self.items)
        if (measured.order, made) > (ours.order, mine):
            raise RegistryError(
                f"{self.to.place}:{tag} would go backwards: it stands for {measured.to_dict()} of "
                f"{made}, and this is {ours.to_dict()} of {mine}",
                hint="publish the newer one, or leave the channel out of the matrix",
            )

    # What is attached

    @property
    def _believed(self) -> remote.Trusted:
        mine = self._mine
        return mine if isinstance(mine, Keyless) else {**self.trusted, **mine}

    @property
    def _mine(self) -> remote.Trusted:
        if isinstance(self.signer, Keyless):
            return self.signer
        return {dsse.key_id(self.signer.public): self.signer.public}

    def _attach(self, item: Item, tags: Sequence[str]) -> None:
        """Attach the seal, the SBOM and the provenance; what others attached stays."""
        if isinstance(self.signer, Keyless):
            self._attach_keyless(item, tags, self.signer)
            return
        digest = item.image.digest
        mine = {dsse.key_id(self.signer.public): self.signer.public}
        kept, reused = [], {}
        for one in attachments.read(self.to, digest, "att"):
            said = attachments.statement_of(one, mine)
            if said is None or said.foreign or _failed(said):
                kept.append((one.listed, one.data))
            elif not said.why:
                reused[attachments.payload(said.said)] = (one.listed, one.data)
        layers = list(kept)
        for said_, envelope in self._statements(item):
            known = reused.get(attachments.payload(said_))
            if known is not None:
                layers.append(known)
            elif envelope is not None:
                layers.append(attachments.envelope_layer(envelope, said_))
            else:
                layers.append(attachments.statement_layer(said_, self.signer))
        data = self.store.path(digest).read_bytes()
        document = Document(data=data, media_type=MANIFEST)
        if attachments.write(self.to, document, "att", layers):
            self.added.append(f"{item.plan.platform} seal, SBOM, provenance")
        self._sign(document, tags, item.plan.platform)

    def _attach_keyless(self, item: Item, tags: Sequence[str], by: Keyless) -> None:
        """The same by cosign itself, what is there already left as it is."""
        digest = item.image.digest
        reference = f"{self.to.place}@{digest}"
        held = [
            (said.kind, said.said.get("predicate"))
            for one in attachments.read(self.to, digest, "att")
            if (said := attachments.statement_of(one, {})) is not None
        ]
        for statement, _ in self._statements(item):
            kind = str(statement["predicateType"])
            if (kind, statement["predicate"]) not in held:
                by.attest(reference, statement, replace=kind != seal.TEST_RESULT)
                self.added.append(f"{item.plan.platform} {kind}")
        data = self.store.path(digest).read_bytes()
        self._sign(Document(data=data, media_type=MANIFEST), tags, item.plan.platform)

    def _statements(
        self, item: Item
    ) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any] | None]]:
        """Each statement, with its envelope where the signer has signed it already."""
        passed = [
            one for one in item.verdict.statements
            if one.statement["predicate"]["result"] == "PASSED"
        ]  # fmt: skip
        # What is published stands on what never failed: a stranger must not have to weigh it.
        policy.judge(passed, item.image.digest, item.verdict.statements[-1].plan, item.required)
        own = "" if isinstance(self.signer, Keyless) else dsse.key_id(self.signer.public)
        for one in passed:
            yield one.statement, one.envelope if one.key == own else None
        digest, name = item.image.digest, item.plan.image
        yield provenance.statement(sbom.PREDICATE, name, digest, item.bill), None
        made = provenance.predicate(item.plan, item.image, item.measured, item.verdict)
        yield provenance.statement(provenance.PREDICATE, name, digest, made), None

    def _sign(self, document: Document, tags: Sequence[str], what: str) -> None:
        """Sign the digest, and the tags that it has and had."""
        if isinstance(self.signer, Keyless):
            layers_ = attachments.read(self.to, document.digest, "sig")
            known = {tag for one in layers_ for tag in attachments.signature_of(one, {}).tags}
            if not layers_ or not set(tags) <= known:
                self.signer.sign(f"{self.to.place}@{document.digest}", sorted(known | set(tags)))
                self.added.append(f"{what} signature")
            return
        mine = {dsse.key_id(self.signer.public): self.signer.public}
        kept, signed = [], set(tags)
        reused = []
        for one in attachments.read(self.to, document.digest, "sig"):
            held = attachments.signature_of(one, mine)
            if not held.believed:
                kept.append((one.listed, one.data))
            elif held.digest == document.digest:
                signed |= set(held.tags)
                reused.append((held, (one.listed, one.data)))
        layers = list(kept)
        same = [layer for held, layer in reused if set(held.tags) == signed]
        if same:
            layers.append(same[0])
        else:
            place = str(self.to.place)
            layers.append(
                attachments.signature_layer(document.digest, place, sorted(signed), self.signer)
            )
        if attachments.write(self.to, document, "sig", layers):
            self.added.append(f"{what} signature")

    def _ask_as_a_stranger(self, whole: Document) -> None:
        """See that what is there now is what anybody may believe."""
        at = Reference(place=self.to.place, tag=None, digest=whole.digest)
        needs = {item.image.digest: item.required for item in self.items}
        there = remote.read(at, self.to, self._mine)
        remote.judge(there, lambda one: needs[one.digest])
        remote.whole_blobs(there, self.to, deep=False)


def _failed(said: attachments.Statement) -> bool:
    """Whether somebody with our key says that the image failed: that is not ours to remove."""
    if said.why or said.kind != seal.TEST_RESULT:
        return False
    return bool((said.said.get("predicate") or {}).get("result") != "PASSED")
