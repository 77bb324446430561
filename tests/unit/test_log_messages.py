"""Each message in the sources of a release is named as the failure that it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sparkimage.serve.explain import knowledge

MESSAGES: dict[str, list[tuple[str, str, str, str]]] = yaml.safe_load(
    Path(__file__).with_name("log_messages.yaml").read_text()
)
"""Project → first and last release with the message, the message, and the failure."""
PREFIXES = {
    "vLLM": "(EngineCore pid=9) ERROR 11-29 10:00:00 [core.py:1161] ",
    "NCCL": "spark1:101:202 [0] ",
}
ROWS = [
    pytest.param(PREFIXES.get(project, "") + message, says, id=f"{project} {last} {says} {number}")
    for project, rows in MESSAGES.items()
    for number, (_, last, message, says) in enumerate(rows)
]


@pytest.mark.parametrize(("line", "says"), ROWS)
def test_a_message_of_a_release_is_named(line: str, says: str) -> None:
    found = [match.entry.id for match in knowledge.read([line])]
    assert found[:1] == ([] if says == "nothing" else [says])
