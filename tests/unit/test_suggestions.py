"""A value of the wrong form: the nearest one that has the right form is named."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from sparkimage.config import suggestions
from sparkimage.config.inventory import ADDRESS, FleetFile
from sparkimage.config.patch_specs import ROOT, PatchFile
from sparkimage.config.pins import COMMIT, IMAGE, INSIDE, PYTHON, REPOSITORY, REQUIREMENT, SHA256
from sparkimage.config.schema import MatrixFile, MirrorsFile
from sparkimage.config.validation import Strict
from sparkimage.verify.rules import Rules

SHM = r"^[1-9][0-9]*[kmg]?$"
SIZE = r"^[0-9]+(\.[0-9]+)?(MB|GB|TB)$"
SNAPSHOT = r"^[0-9]{8}T[0-9]{6}Z$"
NAME = r"^[a-z0-9][a-z0-9_-]*$"


@pytest.mark.parametrize(
    ("text", "pattern", "meant"),
    [
        ("git@github.com:a/b.git", REPOSITORY, "ssh://git@github.com/a/b.git"),
        ("github.com/a/b", REPOSITORY, "https://github.com/a/b"),
        ("https://me:token@github.com/a/b", REPOSITORY, "https://github.com/a/b"),
        ("docker://nvidia/cuda:13.0.3-base", IMAGE, "nvidia/cuda:13.0.3-base"),
        ("https://ghcr.io/a/b:1", IMAGE, "ghcr.io/a/b:1"),
        ("NVIDIA/cuda:13", IMAGE, "nvidia/cuda:13"),
        ("nvidia/cuda@sha256:abcd", IMAGE, None),
        ("vllm >= 0.32.0", REQUIREMENT, "vllm==0.32.0"),
        ("vllm[b12x]~=0.33.0", REQUIREMENT, "vllm[b12x]==0.33.0"),
        ("vllm=0.33.0", REQUIREMENT, "vllm==0.33.0"),
        ("vllm @ git+https://github.com/a/b", REQUIREMENT, None),
        ("A" * 40, COMMIT, "a" * 40),
        ("v0.11.0", COMMIT, None),
        ("sha256:" + "0" * 64, SHA256, "0" * 64),
        ("3.13.1", PYTHON, "3.13"),
        ("150 GB", SIZE, "150GB"),
        ("150G", SIZE, "150GB"),
        ("2026-09-01", SNAPSHOT, "20260901T000000Z"),
        ("2026-09-01T10:00:00Z", SNAPSHOT, "20260901T000000Z"),
        ("./docker/", INSIDE, "docker"),
        ("/docker", INSIDE, "docker"),
        ("../docker", INSIDE, None),
        ("my layer", NAME, "my-layer"),
        ("My.Layer", NAME, "my-layer"),
        ("x" * 1000 + " ", NAME, None),
        ("16GB", SHM, "16g"),
        ("[fe80::1]", ADDRESS, "fe80::1"),
        ("ssh://nv@spark1", ADDRESS, "spark1"),
        (".cache/vllm", r"^/[^:,]+$", None),
        ("usr/local", ROOT, "/usr/local"),
        ("numpy==2.3.0; python_version < '3.13'", REQUIREMENT, "numpy==2.3.0"),
    ],
)
def test_what_was_meant(text: str, pattern: str, meant: str | None) -> None:
    assert suggestions.meant(text, pattern) == meant


def patterns(schema: dict[str, Any] | list[Any]) -> Iterator[str]:
    """Every pattern of a JSON schema."""
    if isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        # Its keys are patterns, too.
        yield from schema.get("patternProperties", {})
    for part in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(part, dict | list):
            yield from patterns(part)


@pytest.mark.parametrize("model", [MatrixFile, MirrorsFile, FleetFile, PatchFile, Rules])
def test_every_form_is_told_in_words(model: type[Strict]) -> None:
    assert set(patterns(model.json_schema())) <= suggestions.FORMS.keys()
