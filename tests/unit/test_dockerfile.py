"""Which steps of a layer's Dockerfile could take in what the lock does not hold."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkimage.build.preflight import open_steps

IMAGES = Path(__file__).resolve().parents[2] / "images"


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("FROM layer AS a\nENV X=1\n", ()),
        ("FROM layer\nRUN apt-get update\n", ("RUN apt-get update",)),
        ("FROM layer\nrun\ttrue\n", ("run true",)),
        ("FROM layer\nRUN --network=none true\n", ()),
        (
            "FROM layer\nRUN --mount=type=tmpfs,target=/run \\\n    --network=none \\\n    true\n",
            (),
        ),
        ("FROM layer\nRUN \\\n# why: --network=none\n    true\n", ("RUN true",)),
        ("# RUN true\nFROM layer\n  # RUN true\n", ()),
        ("RUN --mount=type=bind,from=uv,target=/uv \\\n  install\nRUN two\n", ("RUN two",)),
        ("RUN one\nRUN --network=none two\nRUN three\n", ("RUN one", "RUN three")),
        ("RUN --network=default true\n", ("RUN --network=default true",)),
    ],
)
def test_a_step_is_closed_or_installs_wheels(text: str, steps: tuple[str, ...]) -> None:
    assert open_steps(text) == steps


@pytest.mark.parametrize(
    "step",
    [
        "RUN docker run --network=none x; wget https://example.org",
        "RUN echo from=uv; wget https://example.org",
        "RUN --mount=type=bind,from=uvx,target=/x wget https://example.org",
    ],
)
def test_only_flags_close_a_step(step: str) -> None:
    assert open_steps(f"FROM layer\n{step}\n") == (step,)


@pytest.mark.parametrize(
    "path", sorted(IMAGES.glob("*/Dockerfile")), ids=lambda path: path.parent.name
)
def test_every_step_of_ours_is_closed(path: Path) -> None:
    assert open_steps(path.read_text()) == ()
