"""Publishes images to a registry: by digest first, verified there, and tags last.

skopeo copies the blobs that the repository lacks, cosign attaches signatures and attestations. Tags
are set when everything has been uploaded and read back, so that an interruption never leaves a tag
of an incomplete image.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from sparkimage.config.defaults import LABEL
from sparkimage.config.matrix import Matrix
from sparkimage.config.plan import Plan
from sparkimage.config.variants import Variant
from sparkimage.core.errors import PublishedError, RegistryError, UsageError
from sparkimage.core.program import program
from sparkimage.core.progress import View
from sparkimage.image.store import INDEX, Image, Store
from sparkimage.registry import provenance, remote, sbom
from sparkimage.registry.cosign import Signature, Signer
from sparkimage.registry.remote import PlatformImage, Reference, RemoteImage
from sparkimage.registry.tags import Measured, agree, joint_checksum, version_tag
from sparkimage.resolve.skopeo import BlobCounts, Repository
from sparkimage.verify import policy, seal
from sparkimage.verify.policy import Required
from sparkimage.verify.seal import Verdict


class Change(StrEnum):
    """What happened to a tag."""

    NEW = "new"
    MOVED = "moved"
    UNCHANGED = "unchanged"


@dataclass(frozen=True, kw_only=True)
class Item:
    """One image to publish."""

    plan: Plan
    image: Image
    measured: Measured
    verdict: Verdict
    required: Required
    sbom: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class PublishedPlatform:
    """The image of one platform in the registry."""

    digest: str
    blobs: BlobCounts


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What was published."""

    repository: str
    digest: str
    tags: Mapping[str, Change]
    platforms: Mapping[str, PublishedPlatform]
    seconds: float
    added: tuple[str, ...] = ()
    """Manifests, signatures and attestations that were uploaded."""

    @property
    def changed(self) -> bool:
        """Whether anything in the registry changed."""
        moved = any(change is not Change.UNCHANGED for change in self.tags.values())
        blobs = [platform.blobs for platform in self.platforms.values()]
        return moved or any(b.uploaded + b.mounted for b in blobs) or bool(self.added)

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        platforms = {
            name: {"digest": platform.digest, **asdict(platform.blobs)}
            for name, platform in self.platforms.items()
        }
        return {
            **vars(self),
            "changed": self.changed,
            "platforms": platforms,
            "sent": sum(platform.blobs.bytes for platform in self.platforms.values()),
            "seconds": round(self.seconds, 3),
        }


def channels(matrix: Matrix | None, plans: Sequence[Plan]) -> tuple[str, ...]:
    """The channel tags of the images of these plans; none where ``matrix`` lacks their variants.

    Raises ``UsageError`` for variants that differ by more than their platform, or where a platform
    is missing.
    """
    others = [plan.variant for plan in plans if _content(plan) != _content(plans[0])]
    if others:
        raise UsageError(
            f"{plans[0].variant} and {', '.join(others)} differ by more than their platform",
            hint="an index has the platforms of one image: publish them one by one",
        )
    names = [plan.variant for plan in plans]
    variants = matrix.variants if matrix is not None else ()
    first = next((variant for variant in variants if variant.name in names), None)
    if matrix is None or first is None:
        return ()
    platforms = [v.name for v in variants if _variant_content(v) == _variant_content(first)]
    tags = tuple(
        channel
        for channel, members in matrix.channels.items()
        if any(name in members for name in names)
    )
    missing = [name for name in platforms if name not in names]
    if missing and (len(names) > 1 or tags):
        target = f"the channel {tags[0]}" if tags else "the index"
        raise UsageError(
            f"{target} would lack the platforms {', '.join(missing)}",
            hint=f"{program()} publish {' '.join(platforms)} --to …",
        )
    return tags


def _content(plan: Plan) -> object:
    """What the platforms of one image have in common."""
    values = {
        name: value
        for name, value in plan.labels.items()
        if name.startswith((f"{LABEL}pin.", f"{LABEL}axis."))
    }
    layers = [layer.name for layer in plan.layers]
    return layers, values, plan.entrypoint, plan.cmd, plan.user


def _variant_content(variant: Variant) -> object:
    values = sorted(variant.pins.items()), sorted(variant.axes.items())
    return (
        variant.layers, values, variant.entrypoint, variant.cmd, variant.user, variant.repository
    )  # fmt: skip


def index_of(items: Sequence[Item], store: Store) -> bytes:
    """The index of these platforms."""
    manifests = []
    for item in sorted(items, key=lambda item: item.plan.platform):
        os_, _, architecture = item.image.platform.partition("/")
        entry = store.descriptor(item.image.digest).to_dict()
        manifests.append({**entry, "platform": {"architecture": architecture, "os": os_}})
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
    return json.dumps(index, separators=(",", ":")).encode()


@dataclass(kw_only=True)
class Publication:
    """Publishes one image, of one platform or several, to one repository."""

    items: Sequence[Item]
    store: Store
    to: Repository
    view: View
    signer: Signer
    channels: Sequence[str] = ()
    added: list[str] = field(default_factory=list)

    def run(self) -> Outcome:
        """Upload, attach, sign, verify, tag.

        Raises ``RegistryError``, ``NetworkError``, ``StoreError``, ``PublishedError``; no tag is
        set then on an incomplete image.
        """
        started = time.monotonic()
        measured = agree((item.plan.variant, item.measured) for item in self.items)
        locks = {item.plan.platform: item.plan.lock_checksum for item in self.items}
        tags = [version_tag(measured, joint_checksum(locks)), *self.channels]
        readable = self.to.readable
        platforms = {}
        for item in self.items:
            blobs = self._copy(item, readable)
            platforms[item.plan.platform] = PublishedPlatform(digest=item.image.digest, blobs=blobs)
            # The first image creates the repository.
            readable = True
        digest = self.items[0].image.digest
        if len(self.items) > 1:
            index = self.store.put_bytes(index_of(self.items, self.store), INDEX)
            digest = index.digest
            if self.to.manifest(digest) is None:
                self.to.copy(self.store, index)
                self.added.append("index")
        reference = Reference(place=self.to.place, tag=None, digest=digest)
        published = remote.read(reference, self.to, self.signer.trust)
        self._verify(self._attach(published, tags))
        return Outcome(
            repository=str(self.to.place),
            digest=digest,
            tags=self._set_tags(digest, tags),
            platforms=platforms,
            seconds=time.monotonic() - started,
            added=tuple(self.added),
        )

    def _copy(self, item: Item, readable: bool) -> BlobCounts:
        """Upload an image's missing blobs and its manifest."""
        digest = item.image.digest
        sizes = dict(item.image.blobs())
        exists = readable and self.to.manifest(digest) is not None
        title = f"publishing {item.plan.variant} to {self.to.place}"
        with self.view.transfer(title, sum(sizes.values())) as moved:
            blobs = self.to.copy(
                self.store, self.store.descriptor(digest), lambda blob: moved(sizes.get(blob, 0))
            )
        blobs.existing = len(sizes) - blobs.uploaded - blobs.mounted
        if not exists:
            self.added.append(f"{item.plan.platform} manifest")
        return blobs

    # Attestations and signatures

    def _attach(self, published: RemoteImage, tags: Sequence[str]) -> RemoteImage:
        """Attach and sign what ``published`` lacks; returns it as it is then."""
        before = len(self.added)
        items = {item.image.digest: item for item in self.items}
        for image in published.images:
            self._attest(items[image.digest], image)
        for image in published.images if len(self.items) > 1 else ():
            self._sign(image.digest, image.signatures, (), image.platform)
        what = "index" if len(self.items) > 1 else self.items[0].plan.platform
        self._sign(published.digest, published.signatures, tags, what)
        if len(self.added) == before:
            return published
        return remote.refresh(published, self.to, self.signer.trust)

    def _attest(self, item: Item, image: PlatformImage) -> None:
        """Attach the seal, the SBOM and the provenance, where missing; those of others stay."""
        for statement in self._statements(item):
            predicate_type = str(statement["predicateType"])
            existing = [a.predicate for a in image.verified(predicate_type)]
            if statement["predicate"] in existing:
                continue
            # An image has one SBOM and one provenance, but any number of test results.
            replace = bool(existing) and predicate_type != seal.TEST_RESULT
            self.signer.attest(self.to, image.digest, statement, replace=replace)
            self.added.append(f"{item.plan.platform} {remote.NAMES[predicate_type]}")

    def _statements(self, item: Item) -> Iterator[Mapping[str, Any]]:
        digest, name = item.image.digest, item.plan.image
        passed = [result for result in item.verdict.results if result.passed]
        # The published results must suffice without those that say FAILED.
        policy.judge(passed, digest, item.verdict.newest.checksum("plan"), item.required)
        for result in passed:
            yield result.statement
        yield seal.in_toto(sbom.PREDICATE, name, digest, item.sbom)
        source = provenance.predicate(item.plan, item.image, item.measured, item.verdict)
        yield seal.in_toto(provenance.PREDICATE, name, digest, source)

    def _sign(
        self, digest: str, signatures: Sequence[Signature] | None, tags: Sequence[str], what: str
    ) -> None:
        """Sign the digest with these tags and those that it was signed for before."""
        own = [signature for signature in signatures or () if signature.digest == digest]
        known = {tag for signature in own for tag in signature.tags}
        if not own or not set(tags) <= known:
            self.signer.sign(self.to, digest, known | set(tags))
            self.added.append(f"{what} signature")

    def _verify(self, published: RemoteImage) -> None:
        """Verify it as any other client does."""
        required = {item.image.digest: item.required for item in self.items}
        remote.judge(published, lambda image: required[image.digest])
        remote.check_blobs(published, self.to, deep=False)

    # Tags

    def _set_tags(self, digest: str, tags: Sequence[str]) -> dict[str, Change]:
        """Set the tags, after all of them were checked, and read the changed ones back."""
        before = {tag: self.to.digest_of(tag) for tag in tags}
        changed = {tag: old for tag, old in before.items() if old != digest}
        for tag, old in changed.items():
            if old is not None:
                self._check_move(tag, old)
        for tag in changed:
            self.to.tag(digest, tag)
        for tag in changed:
            now = self.to.digest_of(tag)
            if now != digest:
                raise RegistryError(
                    f"{self.to.place}:{tag} was set to {str(now)[:19]} by another client",
                    hint=f"look at it ({program()} inspect), and run the same command again; "
                    f"the image stays as {self.to.place}@{digest[:19]}…",
                )
        return {
            tag: Change.UNCHANGED
            if tag not in changed
            else Change.NEW if old is None else Change.MOVED
            for tag, old in before.items()
        }  # fmt: skip

    def _check_move(self, tag: str, digest: str) -> None:
        """Refuse to move a tag to an older image, or from an image that we did not publish."""
        reference = Reference(place=self.to.place, tag=None, digest=digest)
        try:
            current = remote.read(reference, self.to, self.signer.trust)
            images = remote.judge(current, lambda _: Required(tiers=()))
            measured = agree((i.image.platform, i.measured) for i in images)
        except PublishedError as error:
            raise RegistryError(
                f"{self.to.place}:{tag} is {digest[:19]}, which was not published with this key",
                hint="remove that tag in the registry, or publish to another repository",
                detail=error.message,
            ) from None
        new = self.items[0].measured
        created = max(str(verified.image.config.get("created")) for verified in images)
        new_created = max(str(item.image.config.get("created")) for item in self.items)
        if (measured.order, created) > (new.order, new_created):
            raise RegistryError(
                f"{self.to.place}:{tag} is newer: it is {measured.to_dict()} of {created}, and "
                f"this is {new.to_dict()} of {new_created}",
                hint="publish the newer one, or remove the channel from the matrix",
            )
