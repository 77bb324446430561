"""What a build uses on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sparkimage.build import bake
from sparkimage.build.engine.builders import Builder
from sparkimage.build.engine.engine import Engine
from sparkimage.build.secrets import NO_SECRETS, BuildSecrets
from sparkimage.config.plan import Plan
from sparkimage.core.progress import View
from sparkimage.image.store import Store
from sparkimage.resolve import fetch
from sparkimage.resolve.context import ResolveContext


@dataclass(frozen=True, kw_only=True)
class BuildContext(ResolveContext):
    """An engine, a store and a builder, and how this machine fetches what goes into a build."""

    matrix_file: Path
    store: Store
    engine: Engine
    view: View
    builder: Builder
    """Where BuildKit runs: in the engine, or elsewhere."""
    cache: str | None = None
    """REGISTRY/REPOSITORY that keeps the build cache."""
    secrets: BuildSecrets = NO_SECRETS
    lean: bool = False
    """Whether to drop the build cache before an image is unpacked."""

    @property
    def project(self) -> Path:
        """The folder of the matrix, with images/ in it."""
        return self.matrix_file.parent

    def definition(self, plans: Sequence[Plan]) -> dict[str, Any]:
        """Fetch all inputs of these plans; returns their bake file. Errors as ``fetch.ready``."""
        inputs = {
            plan.variant: fetch.ready(plan, self.project, self, self.builder.native(plan.arch))
            for plan in plans
        }
        return bake.definition(plans, inputs, self.mirrors, self.cache, self.secrets)
