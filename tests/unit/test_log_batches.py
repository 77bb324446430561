"""A log that is read many lines at a time says what it says line by line."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkimage.serve.explain import batches, loglines
from sparkimage.serve.explain.knowledge import Reading
from tests.unit.test_log_cases import LOGS

FRAMES = [
    '  File "/x/y3.py", line 7, in f', "    g(3)", "  raise odd from other", '  File "cut',
    "    # NCCL version 2.30.4+cuda13.2", "    (Worker_TP0 pid=7) INFO 11-29 10:00:00 odd",
]  # fmt: skip
TRACEBACK = ["Traceback (most recent call last):", *FRAMES]
NOTHING = ["3f2a", "a 17 b", "", "  indented", "torch.nn.Module", "Loading it takes a while"]
UNKNOWN = ["ValueError: no 17", "KeyError", "odd.Error: 3", "RuntimeError: odd &quot;NCCL&quot;"]
KNOWN = [
    "RuntimeError: NCCL error: unhandled cuda error (run with NCCL_DEBUG=INFO for details)",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "RuntimeError: Engine core initialization failed. See root cause above.",
    "OSError: [Errno 98] Address already in use", "KeyboardInterrupt: terminated",
    "Failed to load plugin odd", "Last error:", "x.py:3: UserWarning: odd", "Killed",
    "During handling of the above exception, another exception occurred:",
    "Exception ignored in: odd", "no matching manifest for linux/arm64",
]  # fmt: skip
PREFIXED = [
    f"{before}{body}"
    for before in ("INFO:     ", "(APIServer pid=1) ERROR 11-29 10:00:00 [serving_chat.py:9] ",
                   "node1  | ", "[rank0]: ", "(Worker_TP1 pid=9) WARNING 11-29 10:00:02 [w.py:1] ",
                   "\x1b[36m(Worker_TP0 pid=1)\x1b[0;0m ")
    for body in ("Application startup complete.", "vLLM API server version 0.33.0", "odd",
                 "Exception in ASGI application", "Shutting down", *TRACEBACK[:2], *UNKNOWN[:1],
                 "Received request cmpl-1: prompt: 'ValueError: no'")
]  # fmt: skip


def told(reading: Reading) -> object:
    began = reading.began()
    return (
        reading.lines,
        asdict(reading.facts),
        [match.to_dict() for match in (*reading.matches(), *reading.remarks())],
        began and began.to_dict(),
    )


def line_by_line(lines: Iterable[str]) -> Reading:
    reading = Reading()
    for line in lines:
        reading.take(line)
    return reading


def same(blocks: Sequence[Sequence[str]]) -> None:
    reading = Reading()
    for lines in blocks:
        batches.read(reading, lines)
    assert told(reading) == told(line_by_line(chain.from_iterable(blocks)))


PIECES = st.one_of(
    st.sampled_from([[line] for line in (*NOTHING, *FRAMES, *UNKNOWN, *KNOWN, *PREFIXED)]),
    st.builds(lambda line, count: [line] * count, st.sampled_from(NOTHING), st.integers(50, 150)),
    st.builds(
        lambda frames, end: [*TRACEBACK[:1], *frames, end],
        st.lists(st.sampled_from(FRAMES), max_size=8), st.sampled_from([*UNKNOWN, *KNOWN]),
    ),
)  # fmt: skip


@given(st.lists(st.lists(PIECES, max_size=12).map(lambda pieces: [*chain(*pieces)]), max_size=4))
def test_lines_of_all_kinds(blocks: list[list[str]]) -> None:
    same(blocks)


REPEATED = [[*TRACEBACK[:3], "ValueError: no 17"], [*TRACEBACK[:3], "ValueError: no 18"]]
OOM = KNOWN[1]
NO_DEVICE = "Failed to infer device type"
SURVIVED = "odd for benchmark choice 3"


@pytest.mark.parametrize(
    "blocks",
    [
        [[SURVIVED], [*TRACEBACK[:3], "ValueError: no 17"]],
        [TRACEBACK[:3], ["torch.nn.Module"]],
        [["Last error:"], ["an error of nccl that is without a word of its own"]],
        [["ValueError: no 17"], ["3f2a", "4f2a"]],
        [["INFO:     Application startup complete."], *REPEATED,
         [*TRACEBACK[:3], "SystemExit: 3"], KNOWN[:1]],
        [*REPEATED, [*TRACEBACK[:3], f"ValueError: {SURVIVED}"], [*TRACEBACK[:3], OOM]],
        [*REPEATED, [SURVIVED], REPEATED[1], [*TRACEBACK[:3], OOM]],
        [*REPEATED, [*TRACEBACK[:3], "ValueError: x.py:3: UserWarning: odd"],
         ["Unknown mode: preload of /lib/x.so cannot be preloaded: ignored", NO_DEVICE]],
        [*REPEATED, [*TRACEBACK[:3], OOM], REPEATED[1]],
    ],
)  # fmt: skip
def test_what_looks_as_if_it_told_nothing(blocks: list[list[str]]) -> None:
    same(blocks)


@given(st.lists(st.text(max_size=40).filter(lambda text: "\n" not in text and "\0" not in text)))
def test_any_lines(lines: list[str]) -> None:
    same([lines])


@pytest.mark.parametrize("path", sorted(LOGS.iterdir()), ids=lambda path: path.name)
def test_real_logs_alone_and_among_much_that_tells_nothing(path: Path) -> None:
    with path.open("rb") as stream:
        lines = list(loglines.lines_of(stream))
    same([lines])
    seeded = random.Random(path.name)
    noise = [[f"{number:x}" for number in range(300)], [*TRACEBACK[:3], "ValueError: no 17"] * 30]
    at = sorted(seeded.randrange(len(lines) + 1) for _ in range(4))
    blocks = [lines[start:end] for start, end in zip([0, *at], [*at, len(lines)], strict=True)]
    same([[*block, *seeded.choice(noise)] for block in blocks])
