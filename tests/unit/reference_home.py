"""A home whose store has an image of a real variant, of the matrix as it is, without a seal."""

from __future__ import annotations

from pathlib import Path

from sparkimage.config import lockfile, matrix, planning
from sparkimage.config.plan import Origin
from sparkimage.image.store import Store
from sparkimage.verify import plan_record
from tests.unit import good_maker

PROJECT = Path(__file__).resolve().parents[2]


def make(home: Path, name: str) -> Store:
    """Put it there, and return the store."""
    read = matrix.load(PROJECT / "matrix.yaml")
    lock = lockfile.load(PROJECT / "matrix.lock")
    (variant,) = matrix.select(read, names=[name])
    plan = planning.make(read, variant, lock, Origin(source="s", revision="r", epoch=0))
    store = Store.open(home / "store")
    layer, diff_id = good_maker.put_layer(store, {"file": b""})
    image = good_maker.put_image(store, good_maker.config([diff_id]), [layer])
    sources = plan_record.sources_checksum(PROJECT / "matrix.yaml")
    plan_record.save(store, image.digest, plan_record.record(plan, PROJECT, sources))
    store.name(plan.image, store.descriptor(image.digest))
    return store
