"""What a registry holds, and whether it may be believed: asked of the registry alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sparkimage.config.address import Place, image_name
from sparkimage.config.plan import LABEL
from sparkimage.core.errors import GateError, PublishedError
from sparkimage.core.progress import Moved
from sparkimage.image.settings import Settings
from sparkimage.registry import provenance, sbom, tags
from sparkimage.registry.cosign import Signature, Statement, Trust
from sparkimage.registry.skopeo import Document, Repository
from sparkimage.registry.tags import Measured
from sparkimage.verify import policy, seal
from sparkimage.verify.policy import Required
from sparkimage.verify.seal import Result, Verdict

NAMES = {
    seal.TEST_RESULT: "the seal", sbom.PREDICATE: "the SBOM",
    provenance.PREDICATE: "the provenance",
}  # fmt: skip
"""What the kinds of statements are called."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An image of a registry: by its tag, by its digest, or both."""

    place: Place
    tag: str | None
    digest: str | None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read it as the Docker CLI does: without a tag and a digest it is ``latest``."""
        name = image_name(text)
        tag = name.tag or (None if name.digest else "latest")
        return cls(place=Place.parse(text), tag=tag, digest=name.digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.place}{tag}{f'@{self.digest}' if self.digest else ''}"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One platform's image, as the registry has it. Nothing of it is believed yet."""

    digest: str
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    signatures: tuple[Signature, ...] | None
    """Those that count; None where there is none at all."""
    statements: tuple[Statement, ...]

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
        """The lock's checksum, as the image's label says it."""
        return self.labels.get(f"{LABEL}lock", "").removeprefix("sha256:")

    @property
    def size(self) -> int:
        return sum(int(layer["size"]) for layer in self.manifest["layers"])

    def of(self, kind: str) -> tuple[Statement, ...]:
        return tuple(one for one in self.statements if one.kind == kind)


@dataclass(frozen=True, kw_only=True)
class RemoteImage:
    """What a reference stands for: the images of an index, or the one manifest."""

    reference: Reference
    digest: str
    document: Document
    signatures: tuple[Signature, ...] | None
    """As of a ``Reading``: over the index, or over the one manifest."""
    images: tuple[Reading, ...]

    @property
    def is_index(self) -> bool:
        return self.document.is_index


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is believed of one platform's image."""

    reading: Reading
    verdict: Verdict
    measured: Measured


def read(reference: Reference, repository: Repository, trust: Trust) -> RemoteImage:
    """Read what ``reference`` stands for, each document proven against its digest.

    Raises ``PublishedError`` for what is missing or damaged.
    """
    named = reference.digest or str(reference.tag)
    document = repository.manifest(named)
    if document is None:
        raise PublishedError(
            f"{repository.place} has no {named}",
            hint="there are " + (", ".join(_shown(repository.tags())) or "no tags in it"),
        )
    if not document.is_index:
        one = _image(repository, document, trust)
        return RemoteImage(
            reference=reference, digest=document.digest, document=document,
            signatures=one.signatures, images=(one,),
        )  # fmt: skip
    images = []
    for entry in document.content.get("manifests") or ():
        platform = entry.get("platform") or {}
        said = f"{platform.get('os')}/{platform.get('architecture')}"
        held = repository.manifest(str(entry.get("digest")))
        if held is None:
            raise PublishedError(
                f"the index {document.digest[:19]} of {repository.place} names {said}, and its "
                f"image {str(entry.get('digest'))[:19]} is not there",
                hint="publish all of its platforms again",
            )
        one = _image(repository, held, trust)
        if one.platform != said:
            raise PublishedError(
                f"the index {document.digest[:19]} names {said}, and its image is for "
                f"{one.platform}",
                hint="publish all of its platforms again",
            )
        images.append(one)
    if not images:
        raise PublishedError(
            f"the index {document.digest[:19]} of {repository.place} is empty",
            hint="publish its platforms again",
        )
    return RemoteImage(
        reference=reference, digest=document.digest, document=document,
        signatures=trust.signatures(repository, document.digest), images=tuple(images),
    )  # fmt: skip


def _image(repository: Repository, document: Document, trust: Trust) -> Reading:
    manifest = document.content
    try:
        described = manifest["config"]
        with repository.blobs(document.digest) as blobs:
            read = blobs.read(str(described["digest"]), int(described["size"]))
            config = json.loads(b"".join(read))
        assert isinstance(manifest["layers"], list)
    except (AssertionError, KeyError, TypeError, ValueError):
        raise PublishedError(
            f"{document.digest[:19]} of {repository.place} is no image",
            hint="publish the image again",
        ) from None
    return Reading(
        digest=document.digest,
        manifest=manifest,
        config=config,
        signatures=trust.signatures(repository, document.digest),
        statements=trust.statements(repository, document.digest),
    )


def _shown(tags: Sequence[str]) -> list[str]:
    return sorted(tag for tag in tags if not tag.startswith("sha256-"))[-8:]


# What is believed


def judge(
    whole: RemoteImage, required: Callable[[Reading], Required], *, lock: str | None = None
) -> tuple[Facts, ...]:
    """What may be believed of each platform. Raises ``PublishedError`` with the reason.

    ``lock`` is the checksum that the lock must have, where the caller knows it.
    """
    believe(whole.signatures, whole.digest, whole.reference)
    facts = tuple(_facts(one, whole.reference, required(one), lock) for one in whole.images)
    tag = whole.reference.tag
    if tag is not None:
        _right_tag(tag, whole, facts)
    return facts


def believe(signatures: Sequence[Signature] | None, digest: str, reference: Reference) -> None:
    """See that a trusted key signed this digest. Raises ``PublishedError``."""
    short = digest[:19]
    if signatures is None:
        raise PublishedError(
            f"{short} of {reference.place} is unsigned",
            hint="it was not published by `python build.py publish`, or its signature was removed",
        )
    if not signatures:
        raise PublishedError(
            f"{short} of {reference.place} is signed by a key that is not trusted here",
            hint="--key FILE names the publisher's public key (PEM)",
        )
    if not any(one.digest == digest for one in signatures):
        raise PublishedError(
            f"the signature of {short} is of another image, {signatures[0].digest[:19]}",
            hint="somebody moved it there: publish the image again",
        )


def _facts(one: Reading, reference: Reference, required: Required, lock: str | None) -> Facts:
    believe(one.signatures, one.digest, reference)
    short = one.digest[:19]
    for statement in one.statements:
        if statement.verified and statement.subject != one.digest:
            raise PublishedError(
                f"an attestation of {short} ({NAMES.get(statement.kind, statement.kind)}) is of "
                f"another image, {statement.subject[:19] or 'or of several'}",
                hint="somebody moved it there: publish the image again",
            )
    verdict = _verdict(one, required)
    source = _only(one, provenance.PREDICATE)
    _only(one, sbom.PREDICATE)
    try:
        said = source["buildDefinition"]["internalParameters"]["lock"]["sha256"]
        measured = provenance.measured_of(source)
    except (KeyError, TypeError):
        raise PublishedError(
            f"the provenance of {short} says no lock or no versions",
            hint="publish it again",
        ) from None
    seen = {"its label": one.lock, "its provenance": str(said), "its seal": _locks(verdict)}
    if lock is not None:
        seen["the lock here"] = lock
    if len(set(seen.values())) > 1:
        raise PublishedError(
            f"the lock's checksum of {short} is not the same everywhere",
            detail="\n".join(f"{where}: {value[:16]}" for where, value in seen.items()),
            hint="it was built from another lock: publish what is locked now",
        )
    return Facts(reading=one, verdict=verdict, measured=measured)


def results(one: Reading) -> tuple[Result, ...]:
    """The seal's statements that count, oldest first. Raises ``PublishedError``."""
    try:
        found = seal.read(
            [statement.content for statement in one.of(seal.TEST_RESULT) if statement.verified],
            one.digest,
        )
    except GateError as refusal:
        raise PublishedError(refusal.message, hint="publish the image again") from None
    return tuple(sorted(found, key=lambda result: str(result.statement["predicate"]["finished"])))


def _verdict(one: Reading, required: Required) -> Verdict:
    short = one.digest[:19]
    found = results(one)
    if not found:
        raise _absent(one, seal.TEST_RESULT, f"{short} has no seal")
    for result in found:
        said = result.statement["predicate"]
        if said["result"] != "PASSED":
            beside = " beside one that says PASSED" if len(found) > 1 else ""
            raise PublishedError(
                f"the seal of {short} says FAILED{beside}: {len(said['failedTests'])} checks, "
                f"{said['finished']}",
                detail="\n".join(f"✗ {name}" for name in said["failedTests"]),
                hint="do not use this image; prove it where it was built and publish it again",
            )
    try:
        decision = policy.judge(found, one.digest, found[-1].plan, required)
    except GateError as refusal:
        raise PublishedError(
            refusal.message, detail=refusal.detail,
            hint="prove it where it was built, and publish it again",
        ) from None  # fmt: skip
    assert decision.verdict is not None
    return decision.verdict


def _only(one: Reading, kind: str) -> Mapping[str, Any]:
    """The predicate of the one statement of a kind that counts."""
    found = [statement for statement in one.of(kind) if statement.verified]
    if len(found) != 1:
        what = NAMES[kind].removeprefix("the ")
        why = f"{one.digest[:19]} has {len(found) or 'no'} {what} that is believed"
        raise _absent(one, kind, why)
    return found[0].predicate


def _absent(one: Reading, kind: str, why: str) -> PublishedError:
    """The error for a kind of which not one statement counts."""
    if any(said.verified for said in one.of(kind)) or not one.of(kind):
        return PublishedError(why, hint="publish the image again")
    return PublishedError(
        f"{NAMES[kind]} of {one.digest[:19]} is signed by a key that is not trusted here, or was "
        "edited",
        hint="--key FILE names the publisher's public key (PEM)",
    )


def _locks(verdict: Verdict) -> str:
    found = {
        str(entry["digest"]["sha256"])
        for one in verdict.statements
        for entry in one.statement["predicate"]["configuration"]
        if entry["name"] == "lock"
    }
    return ", ".join(sorted(found)) or "none"


def version_tag(facts: Sequence[Facts]) -> str:
    """The tag that these platforms' images have by what was measured."""
    measured = tags.agree((one.reading.platform, one.measured) for one in facts)
    locks = {one.reading.platform: one.reading.lock for one in facts}
    return tags.version_tag(measured, tags.joint_checksum(locks))


def _right_tag(tag: str, whole: RemoteImage, facts: Sequence[Facts]) -> None:
    signed = {
        name for one in whole.signatures or () if one.digest == whole.digest for name in one.tags
    }  # fmt: skip
    if tag in signed:
        return
    raise PublishedError(
        f"{whole.reference.place}:{tag} was moved: it stands for {whole.digest[:19]} "
        f"({version_tag(facts)}), which was signed for {', '.join(sorted(signed)) or 'no tag'}",
        hint="ask for the image by its own tag or digest, and find out who moved this one",
    )


def whole_blobs(
    whole: RemoteImage, repository: Repository, *, deep: bool, moved: Moved = lambda _: None
) -> None:
    """See that every blob is there in its size; ``deep`` reads and proves them all.

    Raises ``PublishedError``.
    """
    seen = set()
    for one in whole.images:
        with repository.blobs(one.digest) as blobs:
            for blob in (one.manifest["config"], *one.manifest["layers"]):
                digest, size = str(blob["digest"]), int(blob["size"])
                if digest in seen:
                    continue
                seen.add(digest)
                if not deep:
                    blobs.check(digest, size)
                    continue
                for piece in blobs.read(digest, size):
                    moved(len(piece))


def verify(
    text: str,
    trust: Trust,
    required: Callable[[Reading], Required],
    *,
    digest: str | None = None,
    lock: str | None = None,
    deep: bool = False,
    moved: Moved = lambda _: None,
) -> tuple[RemoteImage, tuple[Facts, ...]]:
    """The one question before anything of a registry is used. Raises ``PublishedError``.

    ``digest`` is of an image that must be among those that ``text`` stands for.
    """
    reference = Reference.parse(text)
    repository = Repository(place=reference.place, tools=trust.tools)
    whole = read(reference, repository, trust)
    facts = judge(whole, required, lock=lock)
    if digest is not None and digest not in {whole.digest, *(i.digest for i in whole.images)}:
        raise PublishedError(
            f"{reference} stands for {whole.digest[:19]}, not for {digest[:19]}",
            hint="publish the image first",
        )
    whole_blobs(whole, repository, deep=deep, moved=moved)
    return whole, facts
