"""Options and arguments that several commands have, each said once."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from sparkimage.cli import base, complete

FLEET_FILE = "fleet.yaml"
"""The default of ``--nodes``."""


def flag(name: str, help: str) -> Any:
    """An option that is on or off, without a ``--no-`` form."""
    return typer.Option(name, help=help)


def value(metavar: str, help: str, *names: str, **settings: Any) -> Any:
    """An option with a value, with ``settings`` of ``typer.Option``."""
    return typer.Option(*names, metavar=metavar, help=help, **settings)


Json = Annotated[bool, flag("--json", "Print the result as JSON.")]
Mirror = Annotated[
    list[str] | None,
    typer.Option(
        "--mirror",
        metavar="FROM=TO",
        callback=base.use_mirrors,
        help="Use TO in place of FROM: the start of a URL, `wheels`, `debian` or `ubuntu`.",
    ),
]
AllowUnverified = Annotated[
    bool,
    flag("--allow-unverified", "Accept an image without a valid seal, and mark it UNVERIFIED."),
]
SignKey = Annotated[
    str | None,
    value(
        "FILE|KMS",
        "Sign with this key: ed25519 (PEM), a cosign key file or a KMS URI.",
        "--key",
        envvar="SPARKIMAGE_KEY",
    ),
]
TrustKey = Annotated[
    str | None,
    value(
        "FILE|KMS",
        "Require a signature by this public key: PEM file or KMS URI.",
        "--key",
        envvar="SPARKIMAGE_PUBLIC_KEY",
    ),
]
Reference = Annotated[
    str,
    typer.Argument(
        help="A variant (or the beginning of its name), an image name or a digest (4 digits).",
        autocompletion=complete.references,
    ),
]
Nodes = Annotated[
    str,
    value(
        "FILE|NAMES",
        "fleet.yaml, or comma-separated ssh host names.",
        autocompletion=complete.fleets,
    ),
]
Patience = Annotated[float, value("SECONDS", "Give up on a node after SECONDS of silence.", min=1)]
Partial = Annotated[
    bool, flag("--partial", "Continue without the nodes that fail; leaves a MIXED fleet.")
]
Name = Annotated[str | None, value("NAME", "The deployment, if more than one runs.")]
PlanFormat = Literal["table", "json", "bake", "policy", "github"]
Print = Annotated[PlanFormat | None, typer.Option("--print", help="Print the plan; build nothing.")]
Builder = Annotated[str | None, value("NAME", "Build with this buildx builder.")]
Secret = Annotated[
    list[str] | None,
    value(
        "id=NAME,src=FILE",
        "A layer's build secret (or env=VARIABLE); default: the environment variable NAME.",
    ),
]
Lean = Annotated[bool, flag("--lean", "Use half the disk: drop the build cache after the build.")]
