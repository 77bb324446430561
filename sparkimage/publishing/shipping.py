"""Images as files: out of the store with their seal, and into one, through the gate.

A file is the archive that every engine loads, with ``sparkimage/seal.json`` inside, which only
we read: the name, the digest, the seal's envelopes, and why it is unverified where it is.
"""

from __future__ import annotations

import contextlib
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from sparkimage.errors import GateError, StoreError
from sparkimage.proof import gate, seal
from sparkimage.proof.gate import Passage, Required
from sparkimage.proof.keys import Keyring
from sparkimage.storage import archive
from sparkimage.storage.store import TAR, Image, Readable, Store
from sparkimage.writing import unnamed

SEAL = "sparkimage/seal.json"
SMALL_MAX = 64 << 20
"""Bytes of the JSON documents of an archive, far more than 20 statements have."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """An image that was taken in."""

    image: Image
    name: str
    passage: Passage


def chunks(
    image: Image, name: str, passage: Passage, store: Store, keys: Keyring
) -> Iterator[bytes]:
    """The bytes of the file in which ``image`` ships as ``name``."""
    envelopes = []
    # What the gate was overruled about ships without the seal that it refused.
    with contextlib.suppress(GateError):
        envelopes = [one.envelope for one in seal.history(store, image.digest, keys)]
    shipped = {
        "name": name,
        "digest": image.digest,
        "envelopes": envelopes,
        "unverified": passage.unverified or None,
    }
    return archive.stream(image, name, store, {SEAL: shipped})


@contextmanager
def written(path: Path) -> Iterator[IO[bytes]]:
    """A file to write that has its name only when it is whole.

    Raises ``StoreError`` when it cannot be written.
    """
    try:
        with unnamed(path.absolute().parent) as file:
            yield file.sink
            file.name(path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error}", hint="free some disk, or write it elsewhere"
        ) from None


@dataclass(kw_only=True)
class _Incoming:
    """What has come of an archive so far."""

    documents: dict[str, Any] = field(default_factory=dict)
    passage: Passage | None = None
    digest: str = ""
    name: str = ""
    failed: tuple[seal.Signed, ...] = ()
    """Statements that came and say FAILED."""


def load(
    source: Readable,
    store: Store,
    *,
    required: Callable[[str], Required],
    keys: Keyring,
    allow_unverified: bool = False,
    say: Callable[[str], None] | None = None,
) -> Loaded:
    """Take in the image of ``source`` and name it, if its seal fits.

    The seal is judged before the layers come, and with what the store knows of the image after;
    ``required`` says by the image's name what it must hold. Nothing is named when it is refused.
    What ``allow_unverified`` lets in is marked in the store: it ships no further until it is
    proven here, or comes again with a seal that fits. Raises ``GateError``; ``StoreError`` for a
    file that is none, or whose blobs are not what their digests say.
    """
    incoming = _Incoming()

    def judged() -> None:
        if incoming.passage is None:
            _identify(incoming)
            needs = required(incoming.name)
            incoming.passage = _judge(incoming, needs, keys, allow_unverified, say)

    with store.incoming():
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
        judged()
        assert incoming.passage is not None
        if not store.holds(incoming.digest):
            raise StoreError(
                f"the archive of {incoming.digest[:19]} is incomplete", hint="save it again"
            )
        passage = incoming.passage
        if passage.verdict is not None:
            needs = required(incoming.name)
            passage = _with_ours(store, passage, needs, keys, allow_unverified, say)
        else:
            _add(store, incoming.digest, incoming.failed, keys)
        seal.set_mark(store, incoming.digest, passage.unverified or None)
        store.name(incoming.name, store.descriptor(incoming.digest))
    return Loaded(image=store.resolve(incoming.digest), name=incoming.name, passage=passage)


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


def _judge(
    incoming: _Incoming,
    required: Required,
    keys: Keyring,
    allow_unverified: bool,
    say: Callable[[str], None] | None,
) -> Passage:
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
        believed = seal.read(shipped.get("envelopes"), incoming.digest, keys)
        incoming.failed = tuple(
            one for one in believed if one.statement["predicate"]["result"] == "FAILED"
        )
        if shipped.get("unverified"):
            raise GateError(
                f"{incoming.digest[:19]} was shipped unverified: {shipped['unverified']}",
                hint="prove it where it was built, and save it again",
            )
        return gate.judge(believed, incoming.digest, None, required)
    except GateError as refusal:
        if not allow_unverified:
            raise
        return gate.overruled(incoming.digest, refusal, say)


def _take(tar: tarfile.TarFile, member: tarfile.TarInfo, store: Store) -> None:
    wanted = f"sha256:{member.name.removeprefix('blobs/sha256/')}"
    store.path(wanted)
    content = tar.extractfile(member)
    assert content is not None
    found = store.put_stream(content, TAR).digest
    if found != wanted:
        raise StoreError(
            f"the archive's blob {wanted} holds other bytes: {found}", hint="copy it again"
        )


def _with_ours(
    store: Store,
    passage: Passage,
    required: Required,
    keys: Keyring,
    allow_unverified: bool,
    say: Callable[[str], None] | None,
) -> Passage:
    """Add the seal that came to the one that is here, and ask about both."""
    assert passage.verdict is not None
    digest, came = passage.digest, passage.verdict.statements
    both = _add(store, digest, came, keys)
    try:
        return gate.judge(both, digest, came[-1].plan, required)
    except GateError as refusal:
        if not allow_unverified:
            raise
        return gate.overruled(digest, refusal, say)


def _add(
    store: Store, digest: str, came: Sequence[seal.Signed], keys: Keyring
) -> list[seal.Signed]:
    """Keep what came beside what is here; returns both, oldest first."""
    before: tuple[seal.Signed, ...] = ()
    with contextlib.suppress(GateError):
        before = seal.history(store, digest, keys)
    known = [one.envelope for one in before]
    both = [*before, *(one for one in came if one.envelope not in known)]
    both.sort(key=lambda one: str(one.statement["predicate"]["finished"]))
    seal.keep(store, digest, [one.envelope for one in both])
    return both
