"""Every fault of the table is refused by the check meant for it, and the good image by none."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from sparkimage.config.plan import Plan
from sparkimage.image.layerindex import image_files
from sparkimage.image.store import Image, Store
from tests.lab import mutants
from tests.lab.conftest import Lab
from tests.unit import good_maker


def test_mutants_of_a_made_image(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "good")
    _proven(good_maker.plan(), good_maker.make(store), store, tmp_path / "work", "made image")


def test_mutants_of_the_labs_image(lab: Lab, tmp_path: Path) -> None:
    made = lab.build("good-amd64")
    _proven(made.plan, made.image, lab.context.store, tmp_path / "work", "good-amd64 of the lab")


def test_every_check_has_a_mutant(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    image = good_maker.make(store)
    plan = mutants.with_patch(good_maker.plan(), image_files(store, image))
    meant = {one.check for one in mutants.MUTANTS}
    assert set(mutants.examined(plan, image, store)) == meant


def _proven(plan: Plan, image: Image, store: Store, work: Path, title: str) -> None:
    results = list(mutants.run(plan, image, store, work))
    mutants.report(title, results, Console(width=120))
    assert len(results) >= 25
    assert [one.mutant.name for one in results if not one.killed] == []
