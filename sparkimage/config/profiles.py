"""Profiles of matrix.yaml: the arguments with which a variant serves, and on how many nodes.

A profile is no part of any plan: changing one neither unseals an image nor changes the lock.
The arguments are vLLM's: https://docs.vllm.ai/en/latest/cli/serve/
"""

from __future__ import annotations

import fnmatch
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import Field, JsonValue

from sparkimage.config import environment, validation
from sparkimage.config.defaults import API_PORT, MASTER_PORT
from sparkimage.config.environment import Environment, Variable
from sparkimage.config.validation import Finding, Name, Strict

RANKS = "correct one of them, so that each GPU is one rank"
Word = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]
"""A word of a command line: at least one character, and no control characters."""
Positive = Annotated[int, Field(ge=1)]
Port = Annotated[int, Field(ge=1, le=65535)]
DSPARK_MIN = 5
"""DeepSeek-V4-Flash's vLLM fork takes no fewer speculative tokens with the method dspark."""


class Speculative(Strict):
    """--speculative-config"""

    method: str = Field(pattern=r"^[a-z0-9_]+$", description="deepseek_mtp, dspark, …")
    num_speculative_tokens: Positive
    draft_sample_method: str | None = Field(default=None, pattern=r"^[a-z0-9_]+$")
    rejection_sample_method: str | None = Field(default=None, pattern=r"^[a-z0-9_]+$")
    enable_adaptive_verification: bool | None = None
    model: Word | None = Field(default=None, description="the draft model, for methods with one")


FLAGS: Mapping[str, str] = {
    "tensor_parallel": "--tensor-parallel-size",
    "pipeline_parallel": "--pipeline-parallel-size",
    "expert_parallel": "--enable-expert-parallel",
    "prefix_caching": "--enable-prefix-caching",
    "compilation": "--compilation-config",
    "speculative": "--speculative-config",
    "flashinfer_autotune": "--enable-flashinfer-autotune",
}
"""vLLM's names of the arguments that have another name here."""


class Serve(Strict):
    """vLLM's arguments, in the order of its command line; default: vLLM's own defaults."""

    REMOVED: ClassVar[dict[str, str]] = {"api_key": environment.instead("VLLM_API_KEY")}
    tensor_parallel: Positive = 1
    pipeline_parallel: Positive = 1
    expert_parallel: bool = False
    kv_cache_dtype: Word | None = None
    block_size: Positive | None = None
    prefix_caching: bool | None = None
    max_model_len: Positive | None = Field(default=None, description="tokens of context")
    max_num_seqs: Positive | None = None
    max_num_batched_tokens: Positive | None = None
    gpu_memory_utilization: float | None = Field(default=None, gt=0, le=1)
    compilation: dict[str, JsonValue] = Field(default={}, description="--compilation-config")
    speculative: Speculative | None = None
    reasoning_parser: Word | None = None
    tool_call_parser: Word | None = Field(
        default=None, description="also sets --enable-auto-tool-choice"
    )
    load_format: Word | None = None
    tokenizer_mode: Word | None = None
    flashinfer_autotune: bool | None = None
    trust_remote_code: bool = False
    served_model_name: list[Word] = Field(default=[])
    more: list[Word] = Field(
        default=[], description="arguments without a key here, as vLLM takes them"
    )

    def arguments(self) -> Iterator[tuple[str, ...]]:
        """The command line of all but ``more``: an option with its values at a time."""
        for name, value in self:
            flag = _flag(name)
            if name == "more" or value in (None, [], {}):
                continue
            match value:
                case True:
                    yield (flag,)
                case False:
                    # One that is off by default needs no word.
                    if Serve.model_fields[name].default is None:
                        yield (flag.replace("--enable-", "--no-enable-"),)
                case dict():
                    yield flag, _compact(value)
                case Speculative():
                    yield flag, _compact(value.model_dump(exclude_none=True))
                case list():
                    yield flag, *value
                case _:
                    yield flag, str(value)
            if name == "tool_call_parser":
                yield ("--enable-auto-tool-choice",)


def _flag(field: str) -> str:
    return FLAGS.get(field, f"--{field.replace('_', '-')}")


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


class Profile(Strict):
    """How a variant is started on a fleet."""

    variants: list[str] = Field(min_length=1, description="globs on the variants that it fits")
    nodes: Positive = Field(default=1, description="how many it is for")
    gpus: Positive = Field(default=1, description="of each node")
    scale: bool = Field(
        default=False,
        description="fits more nodes, too: all their GPUs are ranks, tensor and pipeline follow",
    )
    rdma: bool | None = Field(
        default=None, description="NCCL must use InfiniBand or RoCE; default: with several nodes"
    )
    serve: Serve = Field(default=Serve(), description="vLLM's arguments")
    env: Environment = Field(default={}, description="environment variables of the server")
    secrets: list[Variable] = Field(
        default=[],
        description="variables of the server whose values `launch` takes from its own environment",
    )
    caches: dict[Name, Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f:,]+$")]] = Field(
        default={}, description="name, then the folder in the container that is kept on the node"
    )
    port: Port = Field(default=API_PORT, description="of the API, on the head")
    master_port: Port = Field(
        default=MASTER_PORT, description="of the ranks' rendezvous, on the head"
    )
    shm_size: str = Field(
        default="16g", pattern=r"^[1-9][0-9]*[kmg]?$", description="of /dev/shm, as Docker takes it"
    )
    restart: Literal["no", "unless-stopped"] = Field(
        default="no", description="Docker's restart policy"
    )
    chat_template: Word | None = Field(
        default=None, description="file with a chat template, relative to matrix.yaml"
    )
    command: list[Word] | None = Field(
        default=None,
        description="words before MODEL; default: as the image's ENTRYPOINT needs",
    )

    @property
    def wants_rdma(self) -> bool:
        return self.nodes > 1 if self.rdma is None else self.rdma

    def on(self, nodes: int, gpus: int) -> Profile:
        """Itself; one that scales on so many nodes with so many GPUs each.

        Tensor parallelism divides a model's attention heads, whose number is a multiple of some
        power of two: it takes as many of the GPUs, and pipeline parallelism the rest.
        https://docs.vllm.ai/en/latest/serving/parallelism_scaling/
        """
        if not self.scale:
            return self
        ranks = nodes * gpus
        tensor = ranks & -ranks
        parallel = {"tensor_parallel": tensor, "pipeline_parallel": ranks // tensor}
        serve = self.serve.model_copy(update=parallel)
        return self.model_copy(update={"nodes": nodes, "gpus": gpus, "serve": serve})


BUILT_IN: Mapping[str, Profile] = {
    "auto": Profile(
        variants=["*"],
        scale=True,
        serve=Serve(
            prefix_caching=True, max_model_len=32768, max_num_seqs=8, gpu_memory_utilization=0.80
        ),
        caches={
            "vllm": "/root/.cache/vllm",
            "triton": "/root/.triton/cache",
            "flashinfer": "/root/.cache/flashinfer",
        },
    )
}
"""For any model that the nodes hold together; a matrix may have one of the same name."""
KEYS: Mapping[str, str] = {
    **{_flag(field): f"serve.{field}" for field in Serve.model_fields},
    "-tp": "serve.tensor_parallel",
    "-pp": "serve.pipeline_parallel",
    "-O": "serve.compilation",
    "-cc": "serve.compilation",
    "-sc": "serve.speculative",
    "--enable-auto-tool-choice": "serve.tool_call_parser",
    "--port": "port",
    "--master-port": "master_port",
}
"""The profile's keys by the arguments of vLLM that they set."""
SECRET_ARGUMENTS = {"--api-key": "VLLM_API_KEY", "--hf-token": "HF_TOKEN"}
"""The variables that vLLM reads in place of arguments."""
DERIVED = (
    "serve", "--model", "--host", "--headless", "--nnodes", "-n", "--node-rank", "-r",
    "--master-addr", "--distributed-executor-backend",
)  # fmt: skip
"""Arguments that are derived from the fleet and the image."""


def flag(word: str) -> str:
    """The argument that a word sets, in one spelling: without ``no-``, ``enable-`` and the part
    behind a dot, and with hyphens for underscores, as vLLM's own parser takes them."""
    name = word.partition("=")[0]
    if not name.startswith("--"):
        return name
    name = name.replace("_", "-")
    plain = name[2:].removeprefix("no-").removeprefix("enable-").partition(".")[0]
    spellings = (f"--{plain}", f"--enable-{plain}")
    return next((known for known in (*KEYS, *DERIVED) if known in spellings), name)


def problems(profile: Profile, variants: Iterable[str]) -> Iterator[Finding]:
    """What is wrong with a profile beyond its form. Pure."""
    serve, names = profile.serve, list(variants)
    for i, glob in enumerate(profile.variants):
        if not fnmatch.filter(names, glob):
            yield ("variants", i), f"{glob!r} is no variant", validation.nearest(glob, names)
    tensor, pipeline = serve.tensor_parallel, serve.pipeline_parallel
    if profile.scale:
        if (tensor, pipeline) != (1, 1):
            what = "tensor and pipeline follow from the nodes where a profile scales"
            yield ("serve", "tensor_parallel"), what, "leave them out, or leave out `scale`"
    elif tensor * pipeline != profile.nodes * profile.gpus:
        what = f"tensor {tensor} x pipeline {pipeline} is not nodes {profile.nodes} x gpus "
        yield ("serve", "tensor_parallel"), f"{what}{profile.gpus}", RANKS
    if profile.port == profile.master_port:
        yield ("master_port",), "port and master_port are the same", "use two ports"
    spec = serve.speculative
    if spec is not None and spec.method == "dspark" and spec.num_speculative_tokens < DSPARK_MIN:
        key = ("serve", "speculative", "num_speculative_tokens")
        what = f"dspark with {spec.num_speculative_tokens} speculative tokens"
        yield key, what, f"it needs at least {DSPARK_MIN}"
    tokens, seqs = serve.max_num_batched_tokens, serve.max_num_seqs
    if tokens is not None and seqs is not None and tokens < seqs:
        what = f"{tokens} tokens a batch are fewer than {seqs} sequences"
        yield ("serve", "max_num_batched_tokens"), what, "use at least max_num_seqs"
    if profile.chat_template is not None and "--chat-template" in map(flag, serve.more):
        yield ("chat_template",), "--chat-template is in `serve.more`, too", "remove one of them"
    yield from _more(serve.more)
    yield from environment.problems(profile.env)
    yield from _secrets(profile)
    yield from _caches(profile.caches)


def _more(words: Sequence[str]) -> Iterator[Finding]:
    for i, word in enumerate(words):
        name, key = flag(word), ("serve", "more", i)
        if name in KEYS:
            yield key, f"{word} has a key of its own", f"set `{KEYS[name]}` of the profile"
        elif name in DERIVED and (word.startswith("-") or i == 0):
            yield key, f"{word} is derived from the fleet and the image", "remove it"
        elif i == 0 and not word.startswith("-"):
            yield key, f"{word!r} is no argument", "an argument begins with --"


def _secrets(profile: Profile) -> Iterator[Finding]:
    for i, name in enumerate(profile.secrets):
        if name in profile.env:
            yield ("secrets", i), f"{name} is in `env`, too", "remove it there"
        elif kind := environment.secret("", name):
            yield ("secrets", i), f"this is a secret ({kind})", "write the name of its variable"
    for key, words in ((("serve", "more"), profile.serve.more), (("command",), profile.command)):
        option = ""
        # A word may be several for a shell, or by mistake.
        for i, word in ((i, word) for i, text in enumerate(words or ()) for word in text.split()):
            value = word
            if word.startswith("-"):
                option, value = flag(word), word.partition("=")[2]
            name = option.lstrip("-").replace("-", "_").upper()
            if kind := environment.secret(name, value):
                todo = environment.instead(SECRET_ARGUMENTS.get(option, "NAME"))
                yield (*key, i), f"the value of {option} is a secret ({kind})", todo


def _caches(caches: Mapping[str, str]) -> Iterator[Finding]:
    folders = sorted((f"{path.rstrip('/')}/", name) for name, path in caches.items())
    for (above, other), (path, name) in itertools.combinations(folders, 2):
        if path.startswith(above):
            what = f"the caches {name} and {other} are inside each other"
            yield ("caches", name), what, "use separate folders"


def fitting(profiles: Mapping[str, Profile], variant: str) -> list[str]:
    """The names of the profiles for a variant."""
    return [
        name
        for name, profile in profiles.items()
        if any(fnmatch.fnmatchcase(variant, glob) for glob in profile.variants)
    ]
