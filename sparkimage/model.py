"""The shape of matrix.yaml: strict models, which are also its JSON schema."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]
Platform = Literal["linux/amd64", "linux/arm64"]
PLATFORMS: tuple[Platform, ...] = ("linux/amd64", "linux/arm64")


class Strict(BaseModel):
    """Frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class DebianPin(Strict):
    """A Debian suite's minimal root."""

    kind: Literal["debian"]
    suite: str = Field(pattern=r"^[a-z]+$", description="Debian's code name, such as trixie")


class WheelsPin(Strict):
    """Python wheels, resolved together into hash-pinned requirements."""

    kind: Literal["wheels"]
    require: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[^\s;,*]+$")]] = (
        Field(min_length=1, description="exact requirements, NAME==VERSION")
    )
    exclude: list[str] = Field(default=[], description="projects that another pin provides")
    python: str = Field(pattern=r"^3\.\d+$", description="Python's X.Y in the image, quoted")
    find_links: str | None = Field(default=None, description="folder with local wheels")
    version: str | None = Field(default=None, description="default: the pin's own name")


Pin = Annotated[DebianPin | WheelsPin, Field(discriminator="kind")]


class WheelsUse(Strict):
    """Which wheels of a pin a layer takes."""

    pin: Name
    select: list[str] = Field(
        default=[], description="globs on project names; none: what no other layer takes"
    )


class LayerSpec(Strict):
    """What the folder images/<layer>/ needs."""

    pins: list[Name] = []
    wheels: WheelsUse | None = None
    platforms: list[Platform] = Field(default=list(PLATFORMS), min_length=1)
    args: dict[str, str] = Field(default={}, description="build arguments")

    def uses(self) -> tuple[str, ...]:
        """Every pin that the layer needs a value of."""
        return (*self.pins, *((self.wheels.pin,) if self.wheels else ()))


class Defaults(Strict):
    """What every variant has that does not say otherwise."""

    name: str = Field(description="template over the axes and {arch}")
    layers: list[Name] = Field(min_length=1, description="from the lowest up")
    entrypoint: list[str] = []
    cmd: list[str] = []


class Include(Strict):
    """A variant of its own, beside the product of the axes."""

    name: str
    platform: Platform
    layers: list[Name] | None = Field(default=None, min_length=1)
    entrypoint: list[str] | None = None
    cmd: list[str] | None = None
    pins: dict[Name, str] = {}


class MatrixFile(Strict):
    """matrix.yaml"""

    version: Literal[1]
    repository: str = Field(
        pattern=r"^[a-z0-9]+([._/-][a-z0-9]+)*$", description="images are <repository>:<variant>"
    )
    source: str | None = Field(default=None, description="address for the OCI source label")
    pins: dict[Name, dict[str, Pin]] = Field(description="pin name, then value, then what it is")
    layers: dict[Name, LayerSpec]
    defaults: Defaults
    axes: dict[Name, Annotated[list[str], Field(min_length=1)]] = {}
    exclude: list[dict[Name, str]] = []
    include: list[Include] = []
    groups: dict[Name, Annotated[list[str], Field(min_length=1)]]


def schema() -> dict[str, Any]:
    """The JSON schema of matrix.yaml, for editors."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **MatrixFile.model_json_schema(),
    }
