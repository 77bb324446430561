"""Profiles of matrix.yaml: with what arguments a variant serves, on how many nodes.

A profile is no part of any plan: another one neither unseals an image nor changes the lock.
The arguments are vLLM's: https://docs.vllm.ai/en/latest/cli/serve/
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from sparkimage.config import validation
from sparkimage.config.defaults import API_PORT, MASTER_PORT
from sparkimage.config.strict import Name, Strict
from sparkimage.config.yamlfile import Key

Word = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]
"""What a command line can hold: at least one character, and none that controls."""
Positive = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
Wrong = tuple[Key, str, str]
"""Where in a profile, what is wrong, and what to do about it."""
DSPARK_LEAST = 5
"""vLLM's fork of DeepSeek-V4-Flash refuses a smaller number with the method dspark."""


class Speculative(Strict):
    """--speculative-config"""

    method: str = Field(pattern=r"^[a-z0-9_]+$", description="deepseek_mtp, dspark, …")
    num_speculative_tokens: Positive
    draft_sample_method: str | None = Field(default=None, pattern=r"^[a-z0-9_]+$")
    model: Word | None = Field(default=None, description="a draft model, where the method has one")


class Serve(Strict):
    """vLLM's arguments. What is not said is left to vLLM's own default."""

    tensor_parallel: Positive = 1
    pipeline_parallel: Positive = 1
    expert_parallel: bool = False
    max_model_len: Positive | None = Field(default=None, description="tokens of context")
    max_num_seqs: Positive | None = None
    max_num_batched_tokens: Positive | None = None
    kv_cache_dtype: Word | None = None
    block_size: Positive | None = None
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    prefix_caching: bool | None = None
    compilation: dict[str, JsonValue] = Field(default={}, description="--compilation-config")
    speculative: Speculative | None = None
    reasoning_parser: Word | None = None
    tool_call_parser: Word | None = Field(
        default=None, description="with it --enable-auto-tool-choice"
    )
    load_format: Word | None = None
    tokenizer_mode: Word | None = None
    trust_remote_code: bool = False
    flashinfer_autotune: bool | None = None
    served_model_name: list[Word] = Field(default=[])
    more: list[Word] = Field(
        default=[], description="arguments that have no key here, as vLLM takes them"
    )


class Profile(Strict):
    """How a variant is started on a fleet."""

    variants: list[str] = Field(min_length=1, description="globs on the variants that it is for")
    nodes: Positive = 1
    gpus: Positive = Field(default=1, description="of each node")
    rdma: bool | None = Field(
        default=None, description="NCCL must use InfiniBand or RoCE; default: with several nodes"
    )
    serve: Serve = Serve()
    env: dict[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")], str] = Field(default={})
    caches: dict[Name, Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f:,]+$")]] = Field(
        default={}, description="name, then the folder in the container that outlives it"
    )
    port: Port = Field(default=API_PORT, description="of the API, on the head")
    master_port: Port = Field(default=MASTER_PORT, description="where the ranks meet, on the head")
    shm_size: str = Field(default="16g", pattern=r"^[1-9][0-9]*[kmg]?$")
    restart: Literal["no", "unless-stopped"] = Field(
        default="no", description="Docker's policy for a container that ends"
    )
    command: list[Word] | None = Field(
        default=None,
        description="what stands before MODEL; default: read from the image's ENTRYPOINT",
    )

    @property
    def wants_rdma(self) -> bool:
        return self.nodes > 1 if self.rdma is None else self.rdma


TYPED: Mapping[str, str] = {
    "--tensor-parallel-size": "serve.tensor_parallel",
    "-tp": "serve.tensor_parallel",
    "--pipeline-parallel-size": "serve.pipeline_parallel",
    "-pp": "serve.pipeline_parallel",
    "--enable-expert-parallel": "serve.expert_parallel",
    "--max-model-len": "serve.max_model_len",
    "--max-num-seqs": "serve.max_num_seqs",
    "--max-num-batched-tokens": "serve.max_num_batched_tokens",
    "--kv-cache-dtype": "serve.kv_cache_dtype",
    "--block-size": "serve.block_size",
    "--gpu-memory-utilization": "serve.gpu_memory_utilization",
    "--enable-prefix-caching": "serve.prefix_caching",
    "--compilation-config": "serve.compilation",
    "-O": "serve.compilation",
    "-cc": "serve.compilation",
    "--speculative-config": "serve.speculative",
    "-sc": "serve.speculative",
    "--reasoning-parser": "serve.reasoning_parser",
    "--tool-call-parser": "serve.tool_call_parser",
    "--enable-auto-tool-choice": "serve.tool_call_parser",
    "--load-format": "serve.load_format",
    "--tokenizer-mode": "serve.tokenizer_mode",
    "--trust-remote-code": "serve.trust_remote_code",
    "--enable-flashinfer-autotune": "serve.flashinfer_autotune",
    "--served-model-name": "serve.served_model_name",
    "--port": "port",
    "--master-port": "master_port",
}
"""Arguments that have a key of their own."""
DERIVED = (
    "serve", "--model", "--host", "--headless", "--nnodes", "-n", "--node-rank", "-r",
    "--master-addr", "--distributed-executor-backend",
)  # fmt: skip
"""Arguments that follow from the fleet and the image."""
DERIVED_ENV = (
    "VLLM_HOST_IP", "LD_PRELOAD", "NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME", "NCCL_IB_HCA",
    "NCCL_IB_DISABLE",
)  # fmt: skip


def flag(word: str) -> str:
    """What argument a word sets, in one spelling: ``--no-x`` is ``--enable-x`` or ``--x``, and an
    underscore is a hyphen, as vLLM's own parser has it."""
    name = word.partition("=")[0]
    if not name.startswith("--"):
        return name
    name = name.replace("_", "-")
    known = (*TYPED, *DERIVED)
    plain = name.removeprefix("--no-") if name.startswith("--no-") else name[2:]
    plain = plain.removeprefix("enable-")
    # vLLM's `--tensor-parallel-size.x` sets a part of it: still the same argument.
    plain = plain.partition(".")[0]
    return next((one for one in known if one in (f"--{plain}", f"--enable-{plain}")), name)


def problems(profile: Profile, variants: Iterable[str]) -> Iterator[Wrong]:
    """What is wrong with a profile beyond its form. Pure."""
    serve, names = profile.serve, list(variants)
    for i, glob in enumerate(profile.variants):
        if not any(fnmatch.fnmatchcase(name, glob) for name in names):
            yield ("variants", i), f"{glob!r} is no variant", validation.nearest(glob, names)
    tensor, pipeline = serve.tensor_parallel, serve.pipeline_parallel
    if tensor * pipeline != profile.nodes * profile.gpus:
        what = f"tensor {tensor} x pipeline {pipeline} is not nodes {profile.nodes} x gpus "
        yield ("serve", "tensor_parallel"), f"{what}{profile.gpus}", "each GPU is one rank"
    if profile.port == profile.master_port:
        yield ("master_port",), "port and master_port are the same", "give each its own"
    spec = serve.speculative
    if spec is not None and spec.method == "dspark" and spec.num_speculative_tokens < DSPARK_LEAST:
        key = ("serve", "speculative", "num_speculative_tokens")
        what = f"dspark with {spec.num_speculative_tokens} speculative tokens"
        yield key, what, f"it needs at least {DSPARK_LEAST}"
    tokens, seqs = serve.max_num_batched_tokens, serve.max_num_seqs
    if tokens is not None and seqs is not None and tokens < seqs:
        what = f"{tokens} tokens a batch are fewer than {seqs} sequences"
        yield ("serve", "max_num_batched_tokens"), what, "let it be at least max_num_seqs"
    yield from _more(serve.more)
    yield from _env(profile.env)
    yield from _caches(profile.caches)


def _more(words: Sequence[str]) -> Iterator[Wrong]:
    for i, word in enumerate(words):
        name, key = flag(word), ("serve", "more", i)
        if name in TYPED:
            yield key, f"{word} has a key of its own", f"set `{TYPED[name]}` of the profile instead"
        elif name in DERIVED and (word.startswith("-") or i == 0):
            yield key, f"{word} follows from the fleet and the image", "leave it out"
        elif i == 0 and not word.startswith("-"):
            yield key, f"{word!r} is no argument", "an argument begins with --"


def _env(env: Mapping[str, str]) -> Iterator[Wrong]:
    for name, value in env.items():
        if name == "LD_PRELOAD":
            what = "LD_PRELOAD follows from the library that was measured in the image"
            yield ("env", name), what, "leave it out"
        elif name in DERIVED_ENV:
            what = f"{name} follows from the fleet and its nodes"
            yield ("env", name), what, "leave it out; a node's `interface` and `hca` decide"
        elif name == "NCCL_DEBUG" and value.upper() not in ("INFO", "TRACE"):
            what = f"NCCL_DEBUG {value} hides what is proven from the logs"
            yield ("env", name), what, "INFO is the default"
        if "\0" in value or "\n" in value:
            yield ("env", name), f"{name} has more than one line", "write it in one"


def _caches(caches: Mapping[str, str]) -> Iterator[Wrong]:
    for name, path in caches.items():
        for other, above in caches.items():
            inside = f"{path.rstrip('/')}/".startswith(f"{above.rstrip('/')}/")
            if name != other and inside and (len(path), name) > (len(above), other):
                what = f"the caches {name} and {other} lie in one another"
                yield ("caches", name), what, "give each a folder of its own"


def fitting(profiles: Mapping[str, Profile], variant: str) -> list[str]:
    """The names of the profiles for a variant."""
    return [
        name
        for name, one in profiles.items()
        if any(fnmatch.fnmatchcase(variant, glob) for glob in one.variants)
    ]
