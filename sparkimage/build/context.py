"""Everything that a build works with on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparkimage.build import bake
from sparkimage.build.engine.builders import Builder
from sparkimage.build.engine.engine import Engine
from sparkimage.config.plan import Plan
from sparkimage.core.process import Runner
from sparkimage.core.progress import View
from sparkimage.image.store import Store
from sparkimage.resolve import fetch as inputs
from sparkimage.resolve.context import Inputs, Outside


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """An engine, a store, a builder, and the way to what lies elsewhere."""

    matrix_file: Path
    store: Store
    engine: Engine
    view: View
    outside: Outside
    builder: Builder
    """Where BuildKit runs: in the engine, or elsewhere."""
    cache: str | None = None
    """REGISTRY/REPOSITORY that keeps the build cache."""

    @property
    def project(self) -> Path:
        """The folder of the matrix, with images/ in it."""
        return self.matrix_file.parent

    @property
    def home(self) -> Path:
        return self.outside.home

    @property
    def runner(self) -> Runner:
        return self.outside.runner

    def inputs(self, plan: Plan) -> Inputs:
        """Make everything ready that the build of ``plan`` takes in; errors as there."""
        arch = self.builder.native(plan.arch)
        return inputs.ready(plan, project=self.project, outside=self.outside, builder_arch=arch)

    def definition(self, plans: Sequence[Plan]) -> dict[str, Any]:
        """The bake file for these plans, with everything made ready that it names."""
        given = {plan.variant: self.inputs(plan) for plan in plans}
        return bake.definition(plans, given, self.outside.mirrors, self.cache)
