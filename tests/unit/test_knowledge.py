"""Known failures are named in real logs, whatever wrote them, and only there."""

from __future__ import annotations

import gzip
import io
import json
import re
import string
import tracemalloc
from contextlib import suppress

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sparkimage.serve.explain import failures, knowledge, loglines, together
from sparkimage.serve.explain.failures import Entry
from tests.unit.log_excerpts import HEALTHY, LOOKS_LIKE, TRUE

IDS = list(failures.known().by_id)
QUOTES = [
    pytest.param(id_, url, text, id=f"{id_}-{number}")
    for id_, quotes in TRUE.items()
    for number, (url, text) in enumerate(quotes)
]


def found(text: str) -> list[str]:
    return [match.entry.id for match in knowledge.read(text.splitlines())]


def test_there_is_a_quotation_and_a_near_miss_for_every_entry() -> None:
    assert sorted(IDS) == sorted(set(IDS))
    for entry in failures.known().by_id.values():
        if entry.id == failures.FIRST_FAULT:
            continue
        assert entry.id in TRUE or entry.id in found(entry.says), entry.id
        assert entry.near or LOOKS_LIKE.get(entry.id), entry.id
        assert [near for near in entry.near if entry.id in found(near)] == []
    assert not set(TRUE) - set(IDS)
    assert not set(LOOKS_LIKE) - set(IDS)


@pytest.mark.parametrize(("id_", "url", "text"), QUOTES)
def test_a_real_line_is_named(id_: str, url: str, text: str) -> None:
    del url
    assert id_ in found(text)


@pytest.mark.parametrize("id_", LOOKS_LIKE)
def test_a_line_that_looks_like_it_is_not(id_: str) -> None:
    for text in LOOKS_LIKE[id_]:
        assert id_ not in found(text), text


@pytest.mark.parametrize("entry", failures.known().by_id.values(), ids=IDS)
def test_an_entry_is_whole_and_its_words_are_those_of_a_source(entry: Entry) -> None:
    assert entry.title
    assert entry.cause.endswith((".", ")"))
    assert entry.fix.endswith((".", ")"))
    assert entry.sources
    assert all(re.fullmatch(r"https://github\.com/\S+", url) for url in entry.sources)
    if entry.id not in TRUE:
        return
    urls = {url for url, _ in TRUE[entry.id]}
    assert urls & set(entry.sources), "one of the quotations is from a page that the entry names"
    quoted = "\n".join(text for _, text in TRUE[entry.id]).lower()
    if entry.signs and entry.id != failures.MIXED_NCCL:
        for piece in re.split(r"…|\d+|'", entry.says.lower()):
            words = piece.strip(" .,:\"'()/")
            assert words in quoted, f"{words!r} is not in the quotation"


def test_every_pattern_compiles() -> None:
    known = failures.known()
    signs = [sign for entry in known.by_id.values() for sign in entry.signs]
    signs += [*known.handled, *known.wrappers]
    values = [value for entry in known.by_id.values() for value in entry.values]
    regexes = [
        *(one for sign in signs for one in (sign.pattern, sign.unless) if one is not None),
        *(one for value in values for one in value.of.values()),
        *(one for place in known.places for one in (*place.files, *place.says)),
    ]  # fmt: skip
    assert len(regexes) > 500
    assert all(regex.compiled for regex in regexes)


def test_nothing_is_found_in_a_healthy_log() -> None:
    reading = knowledge.Reading()
    for line in HEALTHY.splitlines():
        reading.take(line)
    assert reading.matches() == []
    facts = reading.facts
    assert facts.vllm == "0.9.0.1"
    assert facts.releases == {"2.30.4": ["", "spark-1"]}
    assert facts.via == {"NET/IB": 2}
    assert list(facts.phases) == ["weights", "compile", "graph capture", "ready"]
    assert facts.to_dict()["nccl"] == {"2.30.4": [], "2.30.4+cuda13.2": ["spark-1"]}


def test_a_wedge_says_which_nccl_was_loaded() -> None:
    wedge = TRUE["shm-broadcast"][0][1]
    ready = "INFO:     Application startup complete.\n"
    bad = knowledge.read(f"NCCL version 2.28.9+cuda13.0\n{ready}{wedge}\n{wedge}".splitlines())
    assert [(m.entry.id, m.line_number, m.count) for m in bad] == [("shm-broadcast", 3, 2)]
    assert bad[0].captured["nccl"] == "2.28.9+cuda13.0"
    assert "known to wedge" in bad[0].note
    good = knowledge.read(f"NCCL version 2.30.4+cuda13.2\n{ready}{wedge}".splitlines())
    assert "2.30.4" in good[0].note
    assert "wedge" not in good[0].note
    silent = knowledge.read([wedge])
    assert "NCCL_DEBUG=INFO" in silent[0].note


def test_what_is_known_of_a_release_is_told_where_it_shows() -> None:
    timeout = TRUE["nccl-timeout"][0][1]
    (match,) = knowledge.read(f"NCCL version 2.30.4+cuda13.2\n{timeout}".splitlines())
    assert "2.30.4 is known to deadlock over RoCE on four GB10" in match.note
    assert "NCCL_NVLS_ENABLE" in match.note
    assert "https://github.com/NVIDIA/nccl/issues/2334" in match.note
    (match,) = knowledge.read(f"NCCL version 2.29.7+cuda13.2\n{timeout}".splitlines())
    assert match.note == "NCCL that was loaded: 2.29.7+cuda13.2"


def test_a_combination_shows_as_failures_that_are_known() -> None:
    known = failures.known()
    assert [one.id for one in known.combinations if not set(one.shows) <= known.by_id.keys()] == []
    assert all(one.nccl or one.kernel for one in known.combinations)


def test_each_start_in_a_log_is_judged_for_itself() -> None:
    start = "INFO [api_server.py:1896] vLLM API server version 0.10.2"
    wedge, ready = TRUE["shm-broadcast"][0][1], "INFO:     Application startup complete."
    old, new = "NCCL version 2.28.9+cuda13.0", "NCCL version 2.30.4+cuda13.2"
    # Two starts that were slow, and no wedge; the library was changed in between.
    assert knowledge.read([start, old, wedge, ready, start, new, wedge, ready]) == []
    # A wedge of the first start is one of the library of then.
    (match,) = knowledge.read([start, old, ready, wedge, start, new, ready])
    assert match.captured["nccl"] == "2.28.9+cuda13.0"
    # One in the second start, which never came to its end.
    (match,) = knowledge.read([start, old, ready, start, new, wedge])
    assert match.captured["nccl"] == "2.30.4+cuda13.2"
    # A worker has no API that is ready; its graphs are its last phase.
    graphs = "INFO [gpu_model_runner.py:1608] Graph capturing finished in 17 secs, took 0.48 GiB"
    assert knowledge.read([wedge, graphs]) == []
    assert [m.entry.id for m in knowledge.read([graphs, wedge])] == ["shm-broadcast"]


def test_what_a_line_names_is_kept() -> None:
    texts = {id_: quotes[0][1] for id_, quotes in TRUE.items()}
    wanted = {
        "preload-ignored": {"file": "libgamemodeauto.so.0", "nccl": ""},
        "port-in-use": {"port": "29500"},
        "kv-cache-too-small": {"asked": "262144", "possible": "34736"},
        "memory-not-free": {
            "device": "cuda:1", "free": "19.77", "total": "22.05", "wanted": "0.9",
        },
        "master-not-reached": {"address": "172.17.0.9", "port": "46229"},
        "undefined-symbol": {
            "library": "/workspace/vllm-abo/vllm/_C.abi3.so",
            "symbol": "_ZN5torch3jit17parseSchemaOrNameERKSsb",
        },
    }  # fmt: skip
    for id_, captured in wanted.items():
        (match,) = [m for m in knowledge.read([texts[id_]]) if m.entry.id == id_]
        assert match.captured == captured


def test_ranks_with_different_nccl_are_found_in_one_log_and_across_logs() -> None:
    lines = ["one  | NCCL version 2.28.9+cuda13.0", "two  | NCCL version 2.30.4+cuda13.2"]
    (match,) = knowledge.read(lines)
    assert match.entry.id == "mixed-nccl"
    assert "2.28.9 (one)" in match.note
    readings = [knowledge.Reading(source="head.log"), knowledge.Reading(source="worker.log")]
    for reading, line in zip(readings, lines, strict=True):
        reading.take(line.split("| ")[1])
        assert reading.matches() == []
    (across,) = together.across(readings)
    assert across.note == "2.28.9 (head.log); 2.30.4 (worker.log)"
    assert together.across(readings[:1]) == []


PREFIXES = st.sampled_from(
    ["", "2026-08-13T11:27:02.123456789Z ", "spark-1  | ", "vllm-ds4-1  | ", "[rank3]: ",
     "(EngineCore_DP0 pid=77352) ", "\x1b[36m(Worker_TP0 pid=1)\x1b[0;0m ", "^[[0;36mone^[[0m ",
     "spark-2  | 2026-08-13T11:27:02.1Z ", "2026-08-13 11:27:02 ",
     "2026-08-13T11:27:02.123456789+00:00 stderr F "]
)  # fmt: skip


@example(prefixes=["^[[0;36mone^[[0m "], id_="rdma-broke", form=0)
@given(
    prefixes=st.lists(PREFIXES, max_size=3),
    id_=st.sampled_from(sorted(TRUE)),
    form=st.integers(0, 2),
)
def test_what_stands_before_a_line_changes_nothing(
    prefixes: list[str], id_: str, form: int
) -> None:
    for _, text in TRUE[id_]:
        plain = knowledge.read(text.splitlines())
        lines = ["".join(prefixes) + line for line in text.splitlines()]
        forms: tuple[list[str] | list[bytes], ...] = (
            lines,
            [f"{line}\r\n".encode() for line in lines],
            [json.dumps({"log": f"{line}\n", "stream": "stderr"}) for line in lines],
        )
        again = knowledge.read(forms[form])
        assert [(m.entry.id, m.line_number, m.count, m.captured) for m in again] == [
            (m.entry.id, m.line_number, m.count, m.captured) for m in plain
        ]


@given(st.lists(st.one_of(st.text(), st.binary()), max_size=30))
def test_no_text_raises(lines: list[str | bytes]) -> None:
    knowledge.read(lines)


@given(st.binary(max_size=4000))
def test_no_bytes_raise(data: bytes) -> None:
    with suppress(loglines.EmptyArchiveError):
        knowledge.read(loglines.lines_of(io.BytesIO(data)))


@given(
    st.lists(st.text(string.printable.replace("\n", "")), max_size=20),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_lines_come_out_as_they_went_in(lines: list[str], encoding: str) -> None:
    data = "".join(f"{line}\n" for line in lines).encode(encoding)
    assert list(loglines.lines_of(io.BytesIO(data))) == lines


def test_utf16_of_a_windows_shell_is_read() -> None:
    text = "one\r\nRuntimeError: Failed to infer device type\r\n"
    (match,) = knowledge.read(loglines.lines_of(io.BytesIO(text.encode("utf-16"))))
    assert (match.entry.id, match.line_number) == ("no-device-type", 2)


def test_gzip_is_read_as_far_as_it_is_whole() -> None:
    text = b"one\n" * 5000 + b"RuntimeError: Failed to infer device type\n"
    packed = gzip.compress(text)
    (match,) = knowledge.read(loglines.lines_of(io.BytesIO(packed)))
    assert (match.entry.id, match.line_number) == ("no-device-type", 5001)
    with pytest.raises(loglines.EmptyArchiveError):
        list(loglines.lines_of(io.BytesIO(packed[:30] + b"x" * 99)))


@pytest.mark.parametrize("size", [30, 4_000, loglines.REFILL])
def test_a_line_that_containerd_cut_is_one_line(size: int) -> None:
    said = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. " + "x" * size
    pieces = [said[at : at + 30] for at in range(0, len(said), 30)]
    tags = ["P"] * (len(pieces) - 1) + ["F"]
    log = [
        f"2026-09-14T08:11:41.183920384+00:00 {stream} {tag} {text}"
        for tag, piece in zip(tags, pieces, strict=True)
        for stream, text in (("stderr", piece), ("stdout", "two "))
    ]
    (match,) = knowledge.read(loglines.lines_of(io.BytesIO("\n".join(log).encode())))
    assert match.captured == {"asked": "2.00 GiB"}
    assert match.line_number == len(log) - 1
    # A log that ends within a line keeps what it has of it.
    lines = list(loglines.lines_of(io.BytesIO("\n".join(log[:5]).encode())))
    assert lines[:5] == [""] * 5
    assert knowledge.read(lines)[0].captured == match.captured


@pytest.mark.parametrize(
    "line",
    [
        b"\x00" * 40_000
        + b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        b"torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\x00\x00",
        b"&gt; torch.OutOfMemoryError: &#39;CUDA out of memory. Tried to allocate 2.00 GiB&#39;",
    ],
)
def test_what_a_tool_put_into_a_line_changes_nothing(line: bytes) -> None:
    (match,) = knowledge.read(loglines.lines_of(io.BytesIO(line + b"\n")))
    assert match.captured == {"asked": "2.00 GiB"}


class Endless(io.RawIOBase):
    """Megabytes without a line's end, then many lines."""

    def __init__(self, long: int, lines: int) -> None:
        self.left = [b"x" * loglines.REFILL] * long + [
            b"\nNCCL INFO Channel 00/0 : 0[0] -> 1[0] via NET/IB/0" * 1000
        ] * lines

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        del size
        return self.left.pop() if self.left else b""


def test_memory_does_not_grow_with_the_log() -> None:
    peaks = []
    for size in (8, 80):
        stream = Endless(size, size // 4)
        tracemalloc.start()
        knowledge.read(loglines.lines_of(stream))  # type: ignore[arg-type]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 2 * peaks[0]
