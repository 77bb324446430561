"""A value of the wrong form: the nearest one that has the right form is named."""

from __future__ import annotations

import pytest

from sparkimage.config import suggestions
from sparkimage.config.pins import COMMIT, IMAGE, INSIDE, PYTHON, REPOSITORY, REQUIREMENT, SHA256

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
    ],
)
def test_what_was_meant(text: str, pattern: str, meant: str | None) -> None:
    assert suggestions.meant(text, pattern) == meant
