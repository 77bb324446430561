"""What a name on the command line refers to: an image of the store, or a variant of the matrix."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from sparkimage.cli import base
from sparkimage.core.errors import ImageMissingError, UsageError
from sparkimage.core.program import program

if TYPE_CHECKING:
    from sparkimage.config.matrix import Matrix
    from sparkimage.image.store import Image, Store
    from sparkimage.verify.plan_record import PlanRecord

IMAGE = re.compile(r".*:.*|[0-9a-f]{12,}")
"""What names an image without the matrix: REPOSITORY:TAG, a digest or a prefix of one."""
DIGEST = re.compile(r"[0-9a-f]{4,}")


def find(
    store: Store, reference: str, matrix: Matrix | None = None
) -> tuple[PlanRecord, Image, Matrix | None]:
    """The record and the image of a reference, and the matrix if a variant's name needed it: not
    that of an image that was built from the files as they are, which would say the same.

    Raises ``ImageMissingError`` when the store does not have it, ``UsageError`` when it may mean
    several, ``GateError`` for an image without a plan.
    """
    from sparkimage.verify import plan_record

    def kept(name: str) -> tuple[PlanRecord, Image]:
        image = store.resolve(name)
        return plan_record.load(store, image.digest), image

    if IMAGE.fullmatch(reference) or _is_digest(store, reference):
        return *kept(reference), matrix
    names = [name for name in store.names() if name.rpartition(":")[2] == reference]
    if matrix is None and len(names) == 1:
        record, image = kept(names[0])
        if record.sources == plan_record.sources_checksum(base.matrix_file()):
            return record, image, None
    matrix = matrix or base.read_matrix_if_any()
    return *kept(_name_in(store, reference, matrix)), matrix


def image_name(store: Store, reference: str) -> str:
    """The image name of a variant, built or not; an image name as it is. Raises as ``find``."""
    if ":" in reference:
        return reference
    matrix = base.read_matrix_if_any()
    return _names(store, matrix)[_variant(store, reference, matrix)]


def _is_digest(store: Store, reference: str) -> bool:
    """Whether this is the beginning of a stored image's digest."""
    return DIGEST.fullmatch(reference) is not None and any(
        digest.startswith(f"sha256:{reference}") for digest in store.names().values()
    )


def _names(store: Store, matrix: Matrix | None) -> dict[str, str]:
    """The image names by variant: those of the store, and over them those of the matrix. The image
    of a variant that has left the matrix is still in the store."""
    own = matrix.repositories if matrix is not None else ()
    kept = sorted(store.names(), key=lambda name: name.rpartition(":")[0] in own)
    names = {name.rpartition(":")[2]: name for name in kept}
    return names | {one.name: one.image for one in (matrix.variants if matrix else ())}


def _variant(store: Store, reference: str, matrix: Matrix | None) -> str:
    """The one variant that a reference means: its name, its unique beginning, or a group of one."""
    names = _names(store, matrix)
    if reference in names:
        return reference
    group = matrix.groups.get(reference) if matrix is not None else None
    meant = list(group) if group is not None else sorted(_beginning(reference, names))
    if not meant:
        from sparkimage.core.spelling import closest

        near = closest(reference, names)
        raise ImageMissingError(
            f"there is no variant or image {reference!r}",
            hint=f"did you mean {near!r}?" if near else f"list what there is: {program()} images",
        )
    if len(meant) > 1:
        raise UsageError(
            f"{reference!r} may be any of {len(meant)} variants", hint=f"pass {' or '.join(meant)}"
        )
    base.say(f"{reference} is {meant[0]}")
    return meant[0]


def _beginning(reference: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if reference and name.startswith(reference)]


def _name_in(store: Store, reference: str, matrix: Matrix | None) -> str:
    """The image name of the variant that a reference means. Raises ``ImageMissingError`` where it
    is not built yet."""
    variant = _variant(store, reference, matrix)
    name = _names(store, matrix)[variant]
    if name not in store.names():
        raise ImageMissingError(
            f"variant {variant} is not built on this machine",
            hint=f"build it: {program()} image {variant}",
        )
    return name
