"""An entry means its own messages, not others of the same words: the whole end of a log decides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from sparkimage.serve.explain import knowledge
from sparkimage.serve.explain.found import Match

TABLE: dict[str, dict[str, list[Any]]] = yaml.safe_load(
    Path(__file__).with_name("log_lookalikes.yaml").read_text()
)
ROWS = [
    *((message, id_) for id_, row in TABLE.items() for message in row["means"]),
    *((message, other) for row in TABLE.values() for message, other in row["not"]),
]
CORE = "(EngineCore pid=48) ERROR 11-30 09:01:00 [core.py:1584] "
API = "(APIServer pid=1) "
PACKAGES = "/usr/local/lib/python3.12/dist-packages"


def read(message: str, *more: str, file: str = "vllm/model_executor/models/one.py") -> list[Match]:
    """What a log says that ends with this exception and what vLLM prints after one."""
    return knowledge.read(
        [
            f"{CORE}EngineCore failed to start.",
            f"{CORE}Traceback (most recent call last):",
            f'{CORE}  File "{PACKAGES}/{file}", line 10, in load',
            f"{CORE}    raise error",
            *(CORE + line for line in (message, *more)),
            f"{API}Traceback (most recent call last):",
            f'{API}  File "{PACKAGES}/vllm/v1/engine/utils.py", line 1473, in wait_for_engine_startup',
            f"{API}    raise RuntimeError(",
            f"{API}RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {{}}",
        ]
    )


@pytest.mark.parametrize(("message", "id_"), ROWS)
def test_a_message_is_named_as_what_it_means(message: str, id_: str) -> None:
    assert [match.entry.id for match in read(message)] == [id_]


TITLES = {
    "ValueError: Model architecture One was supported in vLLM until v0.7.2, and is not supported anymore.": "no more",
    "ValueError: Model architecture One is not supported in-tree anymore. Please install the plugin at x": "no more",
    "ValueError: Model architectures ['One'] are not supported for now.": "does not know",
    "ValueError: Invalid data-parallel launch options: `--node-rank` must be between 0 and 1; got 2.": "Options",
    "RuntimeError: Configuration mismatch detected for engine 1.": "Ranks were started",
    "NotImplementedError: Transformers modeling backend does not support MXFP4 quantization yet.": "does not run with",
    "ValueError: Unknown quantization method: odd. Must be one of ['fp8'].": "is not the model's",
    "huggingface_hub.errors.LocalTokenNotFoundError: Token is required, but no token found.": "no token",
    "Error response from daemon: mounting shm tmpfs: invalid argument": "/dev/shm",
    "Error response from daemon: error creating overlay mount to /x: invalid argument": "layers of an image",
}
"""Message → words of the title for what it names."""


@pytest.mark.parametrize("message", TITLES)
def test_the_title_is_of_what_the_message_names(message: str) -> None:
    first, *_ = knowledge.read([message])
    assert TITLES[message] in first.title


def test_a_refused_value_ends_the_title_and_its_advice_begins_the_fix() -> None:
    first, *_ = read(
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
        "  Value error, No `--runner generate` here. Use `--runner pooling` for it. "
        "[type=value_error, input_value=ArgsKwargs((), {}), input_type=ArgsKwargs]",
        file="vllm/config/model.py",
    )
    assert first.title.startswith("A value of the configuration is refused: No `--runner generate`")
    assert first.fix.startswith("The message says it: Use `--runner pooling` for it. Else: ")


ADVICE = {
    "ValueError: hybrid transfer is not supported (tp_ratio=2); use equal TP for both": "use equal TP for both",
    "RuntimeError: sampling unavailable. Unset VLLM_USE_FLASHINFER_SAMPLER=1.": "Unset VLLM_USE",
    "ValueError: GPU index 3 exceeds the list.Ensure the lists cover every GPU.": "Ensure the lists",
    "RuntimeError: Step5 needs rows in one page; increase --block-size.": "increase --block-size",
    "ValueError: odd was found. Used tensors are 3; dropped layers are 4.": "",
    "ValueError: odd was found. Please open an issue.": "",
}
"""Message → how what it says is to be done begins; empty: it says nothing of that."""


@pytest.mark.parametrize("message", ADVICE)
def test_what_an_unknown_message_says_is_to_be_done_is_shown(message: str) -> None:
    (match,) = read(message)
    said = "The message says it: "
    begins = f"{said}{ADVICE[message]}"
    assert match.fix.startswith(begins) if ADVICE[message] else said not in match.fix


def test_an_exit_with_a_text_is_where_it_began_and_one_with_a_number_is_not() -> None:
    (match,) = read("SystemExit: SM107 supports bf16, nvfp4, or mxfp8 combine")
    assert match.line.endswith("mxfp8 combine")
    assert "SystemExit" not in read("SystemExit: 1")[0].line


def test_advice_to_ignore_an_error_hides_none() -> None:
    (match,) = read("ValueError: odd metadata. Pass `x=True` to ignore this error.")
    assert not match.known
    assert knowledge.read(["ValueError: odd metadata. Ignoring the error."]) == []


def test_a_channel_that_timed_out_comes_before_the_end_of_ray() -> None:
    timeout = "ray.exceptions.RayChannelTimeoutError: System error: Timed out waiting for object available to read."
    found = [
        match.entry.id for match in knowledge.read([timeout, "(raylet) Raylet is terminated."])
    ]
    assert found == ["ray-channel", "ray-ended"]
    killed = (
        "(raylet) A worker died or was killed while executing a task by an unexpected system error."
    )
    found = [match.entry.id for match in knowledge.read([killed, "(raylet) Raylet is terminated."])]
    assert found == ["ray-worker-lost", "ray-ended"]


def test_an_image_that_cannot_be_fetched_is_no_other_node() -> None:
    reading = knowledge.Reading()
    reading.take(f"{API}INFO:     Application startup complete.")
    error = "aiohttp.client_exceptions.ClientConnectorError: Cannot connect to host images:80 ssl:default [Connection refused]"
    reading.take(f"{API}ERROR 11-30 09:10:00 [serving_chat.py:9] {error}")
    assert "not-reached" not in {match.entry.id for match in reading.remarks()}
    first, *_ = knowledge.read(["RuntimeError: Connection refused [10.0.0.2]:29501"])
    assert first.entry.id == "not-reached"
