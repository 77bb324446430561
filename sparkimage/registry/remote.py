"""Reads a published image from its registry, and verifies it: nothing else is trusted."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sparkimage.config.address import Place, image_name
from sparkimage.config.defaults import LABEL
from sparkimage.core.errors import GateError, PublishedError
from sparkimage.core.program import program
from sparkimage.core.progress import Moved
from sparkimage.image.settings import Settings
from sparkimage.registry import provenance, sbom, tags
from sparkimage.registry.cosign import Attestation, Signature, Trust
from sparkimage.registry.tags import Measured
from sparkimage.resolve.skopeo import Manifest, Repository
from sparkimage.verify import policy, seal
from sparkimage.verify.policy import Required
from sparkimage.verify.seal import Result, Verdict

NAMES = {seal.TEST_RESULT: "seal", sbom.PREDICATE: "SBOM", provenance.PREDICATE: "provenance"}
"""The predicate types that are verified, with what they are called."""
PLATFORMS_MAX = 16
"""Most images of an index: each of them costs about ten starts of skopeo and cosign."""
REPUBLISH = "publish the image again"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An image in a registry: by its tag, by its digest, or both."""

    place: Place
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse it as the Docker CLI does: without a tag and a digest it is ``latest``."""
        name = image_name(text)
        tag = name.tag or (None if name.digest else "latest")
        return cls(place=Place.parse(text), tag=tag, digest=name.digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.place}{tag}{f'@{self.digest}' if self.digest else ''}"


@dataclass(frozen=True, kw_only=True)
class PlatformImage:
    """The image of one platform in a registry, not verified yet."""

    digest: str
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    signatures: tuple[Signature, ...] | None
    """The verified ones; None where no signature is attached."""
    attestations: tuple[Attestation, ...]

    @property
    def platform(self) -> str:
        return f"{self.config.get('os')}/{self.config.get('architecture')}"

    @property
    def settings(self) -> Settings:
        return Settings.of(self.config)

    @property
    def labels(self) -> Mapping[str, str]:
        return self.settings.labels

    @property
    def lock(self) -> str:
        """sha256 of the lock, by the image's label."""
        return self.labels.get(f"{LABEL}lock", "").removeprefix("sha256:")

    @property
    def size(self) -> int:
        return sum(int(layer["size"]) for layer in self.manifest["layers"])

    def of_type(self, predicate_type: str) -> tuple[Attestation, ...]:
        return tuple(a for a in self.attestations if a.predicate_type == predicate_type)

    def verified(self, predicate_type: str) -> list[Attestation]:
        return [a for a in self.of_type(predicate_type) if a.verified]


@dataclass(frozen=True, kw_only=True)
class RemoteImage:
    """The target of a reference: the images of an index, or one image."""

    reference: Reference
    document: Manifest
    signatures: tuple[Signature, ...] | None
    """As in ``PlatformImage``: of the index, or of the one image."""
    images: tuple[PlatformImage, ...]

    @property
    def digest(self) -> str:
        return self.document.digest


@dataclass(frozen=True, kw_only=True)
class VerifiedImage:
    """The image of one platform, verified."""

    image: PlatformImage
    verdict: Verdict
    measured: Measured


def read(reference: Reference, repository: Repository, trust: Trust) -> RemoteImage:
    """Read the target of ``reference``; each manifest and config is verified against its digest.

    Raises ``PublishedError`` for what is missing or damaged.
    """
    target = reference.digest or str(reference.tag)
    document = repository.manifest(target)
    if document is None:
        shown = sorted(tag for tag in repository.tags() if not tag.startswith("sha256-"))[-8:]
        raise PublishedError(
            f"{repository.place} has no {target}",
            hint=f"its tags: {', '.join(shown) or 'none'}",
        )
    if not document.is_index:
        images = [_image(repository, document, trust)]
        signatures = images[0].signatures
    else:
        images = _images(repository, document, trust)
        signatures = trust.signatures(repository, document.digest)
    return RemoteImage(
        reference=reference, document=document, signatures=signatures, images=tuple(images)
    )


def refresh(remote: RemoteImage, repository: Repository, trust: Trust) -> RemoteImage:
    """Read the signatures and attestations of ``remote`` again. Raises as ``read``."""
    images = [
        replace(
            image,
            signatures=trust.signatures(repository, image.digest),
            attestations=trust.attestations(repository, image.digest, NAMES),
        )
        for image in remote.images
    ]
    signatures = images[0].signatures
    if remote.document.is_index:
        signatures = trust.signatures(repository, remote.digest)
    return replace(remote, signatures=signatures, images=tuple(images))


def _images(repository: Repository, index: Manifest, trust: Trust) -> list[PlatformImage]:
    name, hint = f"the index {index.digest[:19]}", "publish all of its platforms again"
    try:
        entries = [
            (f"{entry['platform']['os']}/{entry['platform']['architecture']}", str(entry["digest"]))
            for entry in index.content["manifests"]
        ]
    except (KeyError, TypeError):
        raise PublishedError(f"{name} of {repository.place} is not valid", hint=hint) from None
    if not 0 < len(entries) <= PLATFORMS_MAX:
        raise PublishedError(
            f"{name} of {repository.place} has {len(entries)} images, not 1 to {PLATFORMS_MAX}",
            hint=hint,
        )
    images = []
    for listed, digest in entries:
        manifest = repository.manifest(digest)
        if manifest is None:
            raise PublishedError(
                f"{name} of {repository.place} lists {listed}, but its image {digest[:19]} does "
                "not exist",
                hint=hint,
            )
        image = _image(repository, manifest, trust)
        if image.platform != listed:
            raise PublishedError(
                f"{name} lists {listed}, but its image is for {image.platform}", hint=hint
            )
        images.append(image)
    return images


def _image(repository: Repository, document: Manifest, trust: Trust) -> PlatformImage:
    manifest = document.content
    try:
        config = manifest["config"]
        with repository.blobs(document.digest) as blobs:
            data = b"".join(blobs.read(str(config["digest"]), int(config["size"])))
        image = PlatformImage(
            digest=document.digest, manifest=manifest, config=json.loads(data), signatures=None,
            attestations=(),
        )  # fmt: skip
        # Raise here for what is missing in them.
        _ = image.size, image.platform, image.labels
    except (AttributeError, KeyError, TypeError, ValueError):
        raise PublishedError(
            f"{document.digest[:19]} of {repository.place} is not an image", hint=REPUBLISH
        ) from None
    return replace(
        image,
        signatures=trust.signatures(repository, document.digest),
        attestations=trust.attestations(repository, document.digest, NAMES),
    )


# Verification


def judge(
    remote: RemoteImage,
    required: Callable[[PlatformImage], Required],
    *,
    lock: str | None = None,
) -> tuple[VerifiedImage, ...]:
    """Verify the signatures and attestations of each platform. Raises ``PublishedError``.

    ``lock`` is the expected sha256 of the lock, where the caller knows it.
    """
    _check_signature(remote.signatures, remote.digest, remote.reference)
    images = tuple(
        _verified(image, remote.reference, required(image), lock) for image in remote.images
    )
    if remote.reference.tag is not None:
        _check_tag(remote.reference.tag, remote, images)
    return images


def _check_signature(
    signatures: Sequence[Signature] | None, digest: str, reference: Reference
) -> None:
    short = digest[:19]
    if signatures is None:
        raise PublishedError(
            f"{short} of {reference.place} is unsigned",
            hint=f"it was not published by `{program()} publish`, or its signature was removed",
        )
    if not signatures:
        raise PublishedError(
            f"{short} of {reference.place} is signed by a key that is not trusted here",
            hint="pass the publisher's public key (PEM): --key FILE",
        )
    if not any(signature.digest == digest for signature in signatures):
        raise PublishedError(
            f"the signature of {short} is of another image, {signatures[0].digest[:19]}",
            hint=f"it was copied from there: {REPUBLISH}",
        )


def _verified(
    image: PlatformImage, reference: Reference, required: Required, lock: str | None
) -> VerifiedImage:
    _check_signature(image.signatures, image.digest, reference)
    short = image.digest[:19]
    for attestation in image.attestations:
        if attestation.verified and attestation.subject != image.digest:
            raise PublishedError(
                f"an attestation of {short} (the {NAMES[attestation.predicate_type]}) is of "
                f"another image, {attestation.subject[:19] or 'or of several'}",
                hint=f"it was copied from there: {REPUBLISH}",
            )
    verdict = _verdict(image, required)
    source = _predicate(image, provenance.PREDICATE)
    _predicate(image, sbom.PREDICATE)
    try:
        source_lock = str(source["buildDefinition"]["internalParameters"]["lock"]["sha256"])
        measured = provenance.measured_of(source)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise PublishedError(
            f"the provenance of {short} has no lock or no versions", hint=REPUBLISH
        ) from None
    sealed = sorted({result.checksum("lock") for result in verdict.results})
    locks = {"label": image.lock, "provenance": source_lock, "seal": ", ".join(sealed)}
    if lock is not None:
        locks["local lock"] = lock
    if len(set(locks.values())) > 1:
        raise PublishedError(
            f"the lock's checksums of {short} differ",
            detail="\n".join(f"{name}: {value[:16] or 'none'}" for name, value in locks.items()),
            hint="it was built from another lock: publish what is locked now",
        )
    return VerifiedImage(image=image, verdict=verdict, measured=measured)


def results(image: PlatformImage) -> tuple[Result, ...]:
    """The verified test results, oldest first. Raises ``PublishedError``."""
    statements = [attestation.statement for attestation in image.verified(seal.TEST_RESULT)]
    try:
        parsed = seal.parse(statements, image.digest)
    except GateError as refusal:
        raise PublishedError(refusal.message, hint=REPUBLISH) from None
    return tuple(sorted(parsed, key=lambda result: result.finished))


def _verdict(image: PlatformImage, required: Required) -> Verdict:
    short = image.digest[:19]
    found = results(image)
    if not found:
        raise _missing(image, seal.TEST_RESULT, f"{short} has no seal")
    for result in found:
        if not result.passed:
            failed = result.predicate["failedTests"]
            beside = " beside one that says PASSED" if len(found) > 1 else ""
            raise PublishedError(
                f"the seal of {short} says FAILED{beside}: {len(failed)} checks, {result.finished}",
                detail="\n".join(f"✗ {name}" for name in failed),
                hint="do not use this image; verify it where it was built and publish it again",
            )
    try:
        decision = policy.judge(found, image.digest, found[-1].checksum("plan"), required)
    except GateError as refusal:
        raise PublishedError(
            refusal.message, detail=refusal.detail,
            hint="verify it where it was built, and publish it again",
        ) from None  # fmt: skip
    assert decision.verdict is not None
    return decision.verdict


def _predicate(image: PlatformImage, predicate_type: str) -> Mapping[str, Any]:
    """The predicate of the only verified attestation of a type."""
    verified = image.verified(predicate_type)
    if len(verified) != 1:
        why = f"{image.digest[:19]} has {len(verified) or 'no'} verified {NAMES[predicate_type]}"
        raise _missing(image, predicate_type, why)
    return verified[0].predicate


def _missing(image: PlatformImage, predicate_type: str, why: str) -> PublishedError:
    """The error where not exactly one attestation of a type is verified."""
    if image.verified(predicate_type) or not image.of_type(predicate_type):
        return PublishedError(why, hint=REPUBLISH)
    return PublishedError(
        f"the {NAMES[predicate_type]} of {image.digest[:19]} is signed by a key that is not "
        "trusted here, or was edited",
        hint="pass the publisher's public key (PEM): --key FILE",
    )


def _check_tag(tag: str, remote: RemoteImage, images: Sequence[VerifiedImage]) -> None:
    signed = {
        signed_tag
        for signature in remote.signatures or ()
        if signature.digest == remote.digest
        for signed_tag in signature.tags
    }
    if tag in signed:
        return
    measured = tags.agree((verified.image.platform, verified.measured) for verified in images)
    locks = {verified.image.platform: verified.image.lock for verified in images}
    version_tag = tags.version_tag(measured, tags.joint_checksum(locks))
    raise PublishedError(
        f"{remote.reference.place}:{tag} was moved: it is now {remote.digest[:19]} "
        f"({version_tag}), which was signed for {', '.join(sorted(signed)) or 'no tag'}",
        hint="use the image's own tag or digest, and find out who moved this tag",
    )


def check_blobs(
    remote: RemoteImage, repository: Repository, *, deep: bool, moved: Moved = lambda _: None
) -> None:
    """Check that every blob exists with its size; ``deep`` reads and verifies them all.

    ``moved`` takes the number of bytes that were read. Raises ``PublishedError``.
    """
    checked = set()
    for image in remote.images:
        with repository.blobs(image.digest) as blobs:
            for blob in (image.manifest["config"], *image.manifest["layers"]):
                digest, size = str(blob["digest"]), int(blob["size"])
                if digest in checked:
                    continue
                checked.add(digest)
                if not deep:
                    blobs.check(digest, size)
                    continue
                for chunk in blobs.read(digest, size):
                    moved(len(chunk))


def verify(
    text: str,
    trust: Trust,
    required: Callable[[PlatformImage], Required],
    *,
    digest: str | None = None,
    lock: str | None = None,
    deep: bool = False,
    moved: Moved = lambda _: None,
) -> tuple[RemoteImage, tuple[VerifiedImage, ...]]:
    """Verify a published image, before anything of it is used. Raises ``PublishedError``.

    ``digest`` is of an image that must be the target of the reference ``text``, or in its index;
    the other arguments are those of ``judge`` and ``check_blobs``.
    """
    reference = Reference.parse(text)
    repository = Repository(place=reference.place, tools=trust.tools)
    remote = read(reference, repository, trust)
    images = judge(remote, required, lock=lock)
    if digest is not None and digest not in {remote.digest, *(i.digest for i in remote.images)}:
        raise PublishedError(
            f"{reference} is {remote.digest[:19]}, not {digest[:19]}",
            hint="publish the image first",
        )
    check_blobs(remote, repository, deep=deep, moved=moved)
    return remote, images
