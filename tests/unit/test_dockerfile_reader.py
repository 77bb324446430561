"""What a Dockerfile takes from outside, read as BuildKit reads it."""

from __future__ import annotations

import pytest

from sparkimage.config import dockerfile

LIKE_VLLM = """\
# A comment
ARG CUDA_VERSION=13.0.3
ARG NCCL_VERSION=2.31.2
ARG BUILD_BASE_IMAGE=builder:cuda${CUDA_VERSION}
ARG FINAL_BASE_IMAGE=nvidia/cuda:${CUDA_VERSION}-base

FROM ${BUILD_BASE_IMAGE} AS base
ARG PIP_INDEX_URL UV_INDEX_URL
ARG torch_cuda_arch_list='7.5 8.0'
RUN --mount=type=cache,target=/cache \\
    # don't
    dnf install -y "gcc" && \\

    echo it's done

FROM base AS tests
COPY --from=tests.example/fixtures:1 / /
ARG only_in_tests

FROM ${FINAL_BASE_IMAGE} AS vllm-base
COPY --from=base --chown=1:1 /a /b
RUN --mount=type=bind,from=base,src=/dist,target=/dist \\
    --mount=type=bind,source=.git,target=.git pip install /dist/*.whl
FROM vllm-base AS vllm-openai
ENTRYPOINT ["vllm", "serve"]
"""


def outside(text: str, target: str | None = None, *contexts: str, **given: str) -> list[str]:
    found = dockerfile.parse(text).reach(target, given, contexts).outside
    return [f"{use.line}: {use}" for use in found]


def test_a_dockerfile_like_vllms() -> None:
    read = dockerfile.parse(LIKE_VLLM)
    assert read.targets == ("base", "tests", "vllm-base", "vllm-openai")
    assert outside(LIKE_VLLM) == ["7: FROM builder:cuda13.0.3", "20: FROM nvidia/cuda:13.0.3-base"]
    given = {"BUILD_BASE_IMAGE": "build", "FINAL_BASE_IMAGE": "layer", "CUDA_VERSION": "13.1"}
    reach = read.reach("vllm-openai", given, ("build", "layer"))
    assert [stage.name for stage in reach.stages] == ["base", "vllm-base", "vllm-openai"]
    assert str(reach.base) == "FROM layer"
    assert {arg for stage in reach.stages for arg in stage.args} == {
        "PIP_INDEX_URL", "UV_INDEX_URL", "torch_cuda_arch_list",
    }  # fmt: skip
    assert read.reach("base", {}, ()).stages[0].args["torch_cuda_arch_list"] == "7.5 8.0"
    assert read.lines["NCCL_VERSION"] == 3
    with pytest.raises(KeyError):
        read.reach("vllm-openia", given, ())


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("FROM scratch\n", ["1: FROM scratch"]),
        ("FROM --platform=$BUILDPLATFORM golang:1 AS go\n", ["1: FROM golang:1"]),
        ("from a as B\nfrom b\ncopy --from=0 / /\n", ["1: FROM a"]),
        # A stage is known from its own line on, and the last one of a name counts.
        ("FROM two AS one\nFROM one AS two\nFROM two\n", ["1: FROM two"]),
        ("FROM a AS x\nFROM b AS x\nFROM x\n", ["2: FROM b"]),
        ("FROM a\nCOPY --from=5 / /\n", ["1: FROM a", "2: COPY --from=5"]),
        ("FROM a\nADD https://e.example/x.tgz /\n", ["1: FROM a", "2: ADD https://e.example/x.tgz"]),
        ("FROM a\nADD git@e.example:y.git#v1 /\n", ["1: FROM a", "2: ADD git@e.example:y.git#v1"]),
        ("FROM a\nADD x.tgz /x\nCOPY https /\n", ["1: FROM a"]),
        (
            "FROM a\nRUN --network=none --mount=type=bind,from=tool:1,target=/t /t/x\n",
            ["1: FROM a", "2: RUN --mount=from=tool:1"],
        ),
        ("FROM a\nRUN echo --mount=type=bind,from=no\n", ["1: FROM a"]),
        # What is in a heredoc is no instruction.
        ("FROM a\nRUN <<EOF\nFROM b\nEOF\nCOPY --from=c / /\n", ["1: FROM a", "5: COPY --from=c"]),
        ("FROM a\nRUN <<-'E' cat\n\tFROM b\n\tE\nFROM d\n", ["5: FROM d"]),
        ("FROM a\nCOPY <<A <<B /\nFROM b\nA\nFROM c\nB\nFROM d\n", ["7: FROM d"]),
        ("ARG V\nFROM a${V:+-dev}:${V:-1}\n", ["2: FROM a:1"]),
        ("ARG A=b\nARG B=${A}c\nFROM $B\n", ["3: FROM bc"]),
        ("FROM ${NONE}\n", ["1: FROM '${NONE}'"]),
    ],
)  # fmt: skip
def test_what_is_taken_from_outside(text: str, found: list[str]) -> None:
    assert outside(text) == found


def test_a_named_context_goes_before_a_stage_and_an_image() -> None:
    text = "FROM far AS base\nFROM base\nCOPY --from=alpine:3 / /\n"
    assert outside(text, None, "base", "alpine:3") == ["2: FROM base", "3: COPY --from=alpine:3"]
    assert outside(text, None, "alpine:3") == ["1: FROM far", "3: COPY --from=alpine:3"]


def test_a_named_context_is_found_by_the_shortest_name() -> None:
    read = dockerfile.parse("FROM docker.io/library/alpine:latest\n")
    assert dockerfile.familiar(read.reach(None, {}, ("alpine",)).base.name) == "alpine"


def test_arguments_change_what_is_taken() -> None:
    text = "ARG KIND=cpu\nFROM big AS with-gpu\nFROM small AS with-cpu\nFROM with-${KIND}\n"
    assert outside(text) == ["3: FROM small"]
    assert outside(text, KIND="gpu") == ["2: FROM big"]
    assert outside(text, KIND="none") == ["4: FROM with-none"]
