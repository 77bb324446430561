"""What a shell completes: variants and images, nodes, profiles. Silent where nothing is known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from sparkimage.cli import base
from sparkimage.core.errors import SparkError
from sparkimage.core.files import find_up


def _that_begin(words: Iterator[str], incomplete: str) -> list[str]:
    found: list[str] = []
    with suppress(SparkError, OSError):
        found += (word for word in words if word.startswith(incomplete))
    return sorted(set(found))


def variants(incomplete: str) -> list[str]:
    """Variants and groups of the matrix."""

    def words() -> Iterator[str]:
        from sparkimage.config.matrix import load

        matrix = load(base.matrix_file())
        yield from matrix.groups
        yield from (variant.name for variant in matrix.variants)

    return _that_begin(words(), incomplete)


def references(incomplete: str) -> list[str]:
    """Variants, and those of the images in the store."""

    def words() -> Iterator[str]:
        yield from (name.rpartition(":")[2] for name in base.open_store().names())

    return sorted({*_that_begin(words(), incomplete), *variants(incomplete)})


def nodes(incomplete: str) -> list[str]:
    """The names in fleet.yaml."""

    def words() -> Iterator[str]:
        yield from base.read_fleet("fleet.yaml").names

    return _that_begin(words(), incomplete)


def fleets(incomplete: str) -> list[str]:
    """Fleet files here, and the names in fleet.yaml."""
    files = (str(path) for path in Path().glob("*.y*ml"))
    above = [str(path)] if (path := find_up(Path("fleet.yaml"))).exists() else []
    return sorted({*_that_begin(iter([*files, *above]), incomplete), *nodes(incomplete)})


def profiles(incomplete: str) -> list[str]:
    """The launch profiles of the matrix."""

    def words() -> Iterator[str]:
        from sparkimage.config.matrix import load

        yield from load(base.matrix_file()).profiles

    return _that_begin(words(), incomplete)
