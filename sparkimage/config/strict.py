"""What the models of all files that people write have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=128)]

KINDS = ("debian", "deb", "image", "git", "wheels")
"""Of pins."""


class Strict(BaseModel):
    """Frozen, and unknown keys are refused."""

    # A file's model has a validator for all that is within: each command waits for what is built.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)
