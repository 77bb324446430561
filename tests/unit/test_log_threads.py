"""Lines that people showed in public threads: what began it is named first, or nothing is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sparkimage.serve.explain import knowledge

THREADS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name("log_threads.yaml").read_text()
)


@pytest.mark.parametrize("name", THREADS)
def test_the_lines_of_a_thread_are_named_by_what_began_it(name: str) -> None:
    thread = THREADS[name]
    matches = knowledge.read(thread["log"].splitlines())
    if thread["says"] == "nothing":
        assert matches == []
        return
    first = matches[0]
    assert first.entry.id == thread["says"]
    assert (first.place.id if first.place else None) == thread.get("place")
    if "title" in thread:
        assert first.title == thread["title"]
