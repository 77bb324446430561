"""Every check of a layer is made to fail somewhere; here those that no image is made wrong for."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]
SYSTEM = "/usr/lib/aarch64-linux-gnu/libnccl.so.2.30.4"


def function(id: str) -> Callable[..., None]:
    """A check by its id."""
    folder, _, name = id.partition("/")
    (path,) = (PROJECT / "images" / folder).glob("test_*.py")
    spec = importlib.util.spec_from_file_location(f"check_{folder}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: Callable[..., None] = getattr(module, name)
    return found


def compare(title: str, *, seen: Any, expected: Any) -> None:
    assert seen == expected, title


def host(output: str = "", has: tuple[str, ...] = ()) -> SimpleNamespace:
    return SimpleNamespace(
        run=lambda *_words: SimpleNamespace(stdout=output), exists=lambda name: name in has
    )


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "_every/test_no_layer_over_4_gb": (
        {"ours": SimpleNamespace(layer_sizes=lambda: [4_000_000_000])},
        {"ours": SimpleNamespace(layer_sizes=lambda: [1, 4_000_000_001])},
    ),
    "nccl-pip/test_linker_cache_knows_it": (
        {"host": host(f"{SYSTEM}\n"), "system": SYSTEM},
        {"host": host("/usr/lib/aarch64-linux-gnu/libnccl.so.2.28.9\n"), "system": SYSTEM},
    ),
    "prebuilt/test_tools": (
        {"host": host(has=("apt-get", "ldconfig", "python3"))},
        {"host": host(has=("apt-get", "ldconfig"))},
    ),
}
"""Each with what it passes on, and what it fails on."""


@pytest.mark.parametrize("id", CASES)
def test_a_check_passes_and_fails(id: str) -> None:
    good, wrong = CASES[id]
    function(id)(check=compare, **good)
    with pytest.raises(AssertionError):
        function(id)(check=compare, **wrong)


def checks() -> Iterator[str]:
    for path in sorted((PROJECT / "images").glob("*/test_*.py")):
        for one in ast.parse(path.read_text()).body:
            if isinstance(one, ast.FunctionDef) and one.name.startswith("test_"):
                yield f"{path.parent.name}/{one.name}"


def test_every_check_is_made_to_fail_somewhere() -> None:
    lab = "".join(path.read_text() for path in (PROJECT / "tests" / "lab").glob("*.py"))
    found = list(checks())
    assert len(found) > 30
    assert [id for id in found if f'"{id}"' not in lab and id not in CASES] == []
