"""Images on their way into a registry: by digest first, verified there, and tags last.

skopeo brings the blobs that the repository lacks, cosign what is attached. A tag is put when all
that it names is there and has been read back, so that an interruption leaves no tag that names less
than it says.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sparkimage.config.matrix import Matrix, Variant
from sparkimage.config.plan import LABEL, Plan
from sparkimage.core.errors import PublishedError, RegistryError, UsageError
from sparkimage.core.progress import View
from sparkimage.image.store import INDEX, Image, Store
from sparkimage.registry import provenance, remote, sbom
from sparkimage.registry.cosign import Signer
from sparkimage.registry.remote import Reference
from sparkimage.registry.skopeo import Copied, Repository
from sparkimage.registry.tags import Measured, agree, joint_checksum, version_tag
from sparkimage.verify import policy, seal
from sparkimage.verify.policy import Required
from sparkimage.verify.seal import Verdict


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


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was published."""

    repository: str
    digest: str
    tags: Mapping[str, Change]
    platforms: Mapping[str, tuple[str, Copied]]
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
            "sent": sum(blobs.bytes for _, blobs in self.platforms.values()),
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


def index_of(items: Sequence[Item], store: Store) -> bytes:
    """The index of several platforms; of one image its own manifest."""
    if len(items) == 1:
        return store.path(items[0].image.digest).read_bytes()
    listed = []
    for item in sorted(items, key=lambda one: one.plan.platform):
        os_, _, architecture = item.image.platform.partition("/")
        entry = store.descriptor(item.image.digest).to_dict()
        listed.append({**entry, "platform": {"architecture": architecture, "os": os_}})
    made = {"schemaVersion": 2, "mediaType": INDEX, "manifests": listed}
    return json.dumps(made, separators=(",", ":")).encode()


@dataclass(kw_only=True)
class Publication:
    """One image, of one platform or several, on its way to one repository."""

    items: Sequence[Item]
    store: Store
    to: Repository
    view: View
    signer: Signer
    channels: Sequence[str] = ()
    added: list[str] = field(default_factory=list)

    def run(self) -> Outcome:
        """Do it. Raises ``RegistryError``, ``NetworkError``, ``StoreError``; then no tag names
        anything that is not complete."""
        began = time.monotonic()
        measured = agree((one.plan.variant, one.measured) for one in self.items)
        checksum = joint_checksum({one.plan.platform: one.plan.lock_checksum for one in self.items})
        tags = [version_tag(measured, checksum), *self.channels]
        old = self.to.ready()
        copied = {}
        for item in self.items:
            copied[item.plan.platform] = (item.image.digest, self._copy(item, old))
            # Its first image makes it one that can be read.
            old = True
        digest = self.items[0].image.digest
        if len(self.items) > 1:
            index = self.store.put_bytes(index_of(self.items, self.store), INDEX)
            digest = index.digest
            if not self._is_there(digest):
                self.to.copy(self.store, index)
                self._read_back(digest, "index")
        for item in self.items:
            self._attach(item)
            self._sign(item.image.digest, tags if len(self.items) == 1 else (), item.plan.platform)
        if len(self.items) > 1:
            self._sign(digest, tags, "index")
        self._ask_as_a_stranger(digest)
        return Outcome(
            repository=str(self.to.place),
            digest=digest,
            tags=self._name(digest, tags),
            platforms=copied,
            seconds=time.monotonic() - began,
            added=tuple(self.added),
        )

    # Images

    def _copy(self, item: Item, old: bool) -> Copied:
        """Bring an image's missing blobs and its manifest, and read that back."""
        digest = item.image.digest
        sizes = dict(item.image.blobs())
        was_there = old and self._is_there(digest)
        title = f"publishing {item.plan.variant} to {self.to.place}"
        with self.view.transfer(title, sum(sizes.values())) as moved:
            copied = self.to.copy(
                self.store, self.store.descriptor(digest), lambda blob: moved(sizes.get(blob, 0))
            )
        copied.there = len(sizes) - copied.uploaded - copied.mounted
        if not was_there:
            self._read_back(digest, f"{item.plan.platform} manifest")
        return copied

    def _is_there(self, digest: str) -> bool:
        return self.to.manifest(digest) is not None

    def _read_back(self, digest: str, what: str) -> None:
        if not self._is_there(digest):
            raise RegistryError(
                f"{self.to.place.registry} has nothing for {digest[:19]}, which it has taken",
                hint="it changes manifests: publish to a registry that keeps them as they are",
            )
        self.added.append(what)

    # Names

    def _name(self, digest: str, tags: Sequence[str]) -> dict[str, Change]:
        """Put the tags, all looked at before the first one moves, and read them back."""
        before = {tag: self.to.digest_of(tag) for tag in tags}
        for tag, held in before.items():
            if held is not None and held != digest:
                self._may_move(tag, held)
        for tag, held in before.items():
            if held != digest:
                self.to.tag(digest, tag)
        for tag in tags:
            now = self.to.digest_of(tag)
            if now != digest:
                raise RegistryError(
                    f"{self.to.place}:{tag} was given to {str(now)[:19]} by somebody else",
                    hint="look at it (python build.py inspect), and run the same command again; "
                    f"what is published stays as {self.to.place}@{digest[:19]}…",
                )
        return {
            tag: Change.UNCHANGED
            if held == digest
            else Change.NEW if held is None else Change.MOVED
            for tag, held in before.items()
        }  # fmt: skip

    def _may_move(self, tag: str, held: str) -> None:
        """Refuse to move a tag backwards, or from what is not ours."""
        at = Reference(place=self.to.place, tag=None, digest=held)
        try:
            there = remote.read(at, self.to, self.signer.trust)
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

    def _attach(self, item: Item) -> None:
        """Attach the seal, the SBOM and the provenance that are not there; others' stay."""
        digest = item.image.digest
        held = [one for one in self.signer.trust.statements(self.to, digest) if one.verified]
        for statement in self._statements(item):
            kind = str(statement["predicateType"])
            same = [one for one in held if one.kind == kind]
            if any(one.predicate == statement["predicate"] for one in same):
                continue
            # There is one SBOM and one provenance; test results add up.
            replace = bool(same) and kind != seal.TEST_RESULT
            self.signer.attest(self.to, digest, statement, replace=replace)
            self.added.append(f"{item.plan.platform} {remote.NAMES[kind].removeprefix('the ')}")

    def _statements(self, item: Item) -> Iterator[Mapping[str, Any]]:
        passed = [
            one for one in item.verdict.statements
            if one.statement["predicate"]["result"] == "PASSED"
        ]  # fmt: skip
        # What is published stands on what never failed: a stranger must not have to weigh it.
        policy.judge(passed, item.image.digest, item.verdict.statements[-1].plan, item.required)
        for one in passed:
            yield one.statement
        digest, name = item.image.digest, item.plan.image
        yield provenance.statement(sbom.PREDICATE, name, digest, item.bill)
        made = provenance.predicate(item.plan, item.image, item.measured, item.verdict)
        yield provenance.statement(provenance.PREDICATE, name, digest, made)

    def _sign(self, digest: str, tags: Sequence[str], what: str) -> None:
        """Sign the digest, and the tags that it has and had."""
        held = self.signer.trust.signatures(self.to, digest) or ()
        mine = [one for one in held if one.digest == digest]
        known = {tag for one in mine for tag in one.tags}
        if not mine or not set(tags) <= known:
            self.signer.sign(self.to, digest, known | set(tags))
            self.added.append(f"{what} signature")

    def _ask_as_a_stranger(self, digest: str) -> None:
        """See that what is there now is what anybody may believe."""
        at = Reference(place=self.to.place, tag=None, digest=digest)
        needs = {item.image.digest: item.required for item in self.items}
        there = remote.read(at, self.to, self.signer.trust)
        remote.judge(there, lambda one: needs[one.digest])
        remote.whole_blobs(there, self.to, deep=False)
