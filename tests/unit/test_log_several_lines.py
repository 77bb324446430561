"""What an exception says below its own line is shown, and known failures are found in it."""

from __future__ import annotations

import pytest

from sparkimage.serve.explain import knowledge
from sparkimage.serve.explain.found import Match

TRACEBACK = ["Traceback (most recent call last):", '  File "/vllm/engine/arg_utils.py", line 2']
REFUSED = [
    "pydantic_core._pydantic_core.ValidationError: 2 validation errors for ParallelConfig",
    "tensor_parallel_size",
    "  Input should be greater than or equal to 1 [type=greater_than_equal, input_value=0]",
    "    For further information visit https://errors.pydantic.dev/2.12/v/greater_than_equal",
    "distributed_executor_backend",
    "  Input should be 'ray' or 'mp' [type=literal_error, input_value='mpx', input_type=str]",
    "    For further information visit https://errors.pydantic.dev/2.12/v/literal_error",
]
REASONS = [line.strip() for line in REFUSED[1:] if "further" not in line]
PREFIXES = ["", "(APIServer pid=1) ", "(EngineCore pid=9) ERROR 11-29 10:00:00 [core.py:1161] "]


def first(prefix: str, *lines: str) -> Match:
    found, *_ = knowledge.read([f"{prefix}{line}" for line in (*TRACEBACK, *lines)])
    return found


@pytest.mark.parametrize("prefix", PREFIXES, ids=["bare", "process", "level"])
def test_field_reason_and_input_of_each_refused_value_are_shown(prefix: str) -> None:
    match = first(prefix, *REFUSED)
    assert match.entry.id == "config-refused"
    assert match.count == 1
    assert match.message == REASONS
    assert "    distributed_executor_backend" in match.as_lines()
    assert match.to_dict()["message"] == REASONS


@pytest.mark.parametrize("prefix", PREFIXES, ids=["bare", "process", "level"])
def test_an_unknown_exception_is_shown_with_all_that_it_says(prefix: str) -> None:
    match = first(prefix, "ValueError: the plugin says no:", *(f"  reason {n}" for n in range(6)))
    assert not match.known
    assert match.message == [f"reason {n}" for n in range(6)]
    assert match.near[-7].endswith("the plugin says no:")
    assert list(match.near[-6:]) == match.message


AFTER = {
    "a level": "INFO 11-29 10:00:01 [core.py:9] odd",
    "a process": "(Worker_TP0 pid=7) odd",
    "an exception": "RuntimeError: odd",
    "a wrapper": "Process EngineCore:",
    "a traceback": "Traceback (most recent call last):",
    "NCCL": "spark1:101:202 [0] NCCL WARN odd",
}


@pytest.mark.parametrize("line", AFTER.values(), ids=AFTER)
def test_what_others_say_is_of_no_message(line: str) -> None:
    assert first("", "ValueError: no:", "  reason", line, "  later").message == ["reason"]


def test_text_after_a_blank_line_is_of_no_message_but_of_the_hubs() -> None:
    assert first("", "ValueError: no:", "  reason", "", "the user writes on").message == ["reason"]
    hub = "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: R)"
    where = "Repository Not Found for url: https://huggingface.co/api/models/x/y."
    assert first("", hub, "", where, "", "the user writes on").message == [where]


def test_a_known_failure_is_found_over_lines_that_a_terminal_broke() -> None:
    heads = ["  Value error, Total number of attention heads (64) must be divisible by tensor"]
    refused = "pydantic_core.ValidationError: 1 validation error for VllmConfig"
    match = first("", refused, *heads, "  parallel size (3).")
    assert (match.entry.id, match.captured["asked"]) == ("heads-not-divisible", "3")
    assert match.line == refused
    other = first("", refused, *heads, "", "parallel size (3).")
    assert other.entry.id == "config-refused"


WARNED = [
    "/opt/x/bitsandbytes/main.py:149: UserWarning: Found duplicate libcudart.so files.",
    "If you get `CUDA error: invalid device function` errors, this might be the cause.",
]


@pytest.mark.parametrize("end", [["  warn(msg)"], []], ids=["source line", "none"])
def test_a_warning_of_python_is_no_failure_and_hides_none(end: list[str]) -> None:
    assert knowledge.read([*WARNED, *end, "INFO 11-29 10:00:01 [core.py:9] odd"]) == []
    (match,) = knowledge.read([*WARNED, *end, *TRACEBACK, "ValueError: odd"])
    assert match.line == "ValueError: odd"
    (known,) = knowledge.read(
        [*WARNED, *end, "RuntimeError: CUDA error: unspecified launch failure"]
    )
    assert known.entry.id == "cuda-fault"


@pytest.mark.parametrize("prefix", PREFIXES, ids=["bare", "process", "level"])
def test_an_exception_that_python_ignores_is_not_where_it_began(prefix: str) -> None:
    ignored = ["Exception ignored in: <function Communicator.__del__ at 0x7f>", *TRACEBACK]
    match = first(prefix, "ValueError: odd", *ignored, "AttributeError: no attribute 'comm'")
    assert match.line.endswith("ValueError: odd")
    lines = [*ignored, "AttributeError: no attribute 'comm'", *TRACEBACK, "ValueError: odd"]
    (match,) = knowledge.read([f"{prefix}{line}" for line in lines])
    assert match.line.endswith("ValueError: odd")


@pytest.mark.parametrize(
    ("end", "advice"),
    [
        ("ValueError: The pool is too small. Please raise pool_size.", "Please raise pool_size"),
        ("ValueError: No scales: Run it once or add 2.5 GiB.", "Run it once or add 2.5 GiB"),
        ("ValueError: The pool is too small. Please report this issue.", ""),
        ("ValueError: The pool is too small", ""),
    ],
)  # fmt: skip
def test_what_a_message_itself_says_is_to_be_done_comes_first(end: str, advice: str) -> None:
    match = first("", end)
    assert not match.known
    said, _, rest = match.fix.rpartition(" Else: ")
    assert said == (f"The message says it: {advice}." if advice else "")
    assert rest
