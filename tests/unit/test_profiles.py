"""Profiles of the matrix: valid ones, what is refused with its line, what they do not change."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkimage.config import lockfile, matrix, planning, profiles
from sparkimage.config.matrix import Matrix
from sparkimage.config.profiles import Profile, Serve, Speculative
from sparkimage.core.errors import ConfigError
from sparkimage.verify import plan_record
from tests.unit import project_maker as maker

PROJECT = Path(__file__).resolve().parents[2]
GOOD: dict[str, Any] = {
    "variants": ["one*"],
    "nodes": 4,
    "serve": {
        "tensor_parallel": 2,
        "pipeline_parallel": 2,
        "max_model_len": 1000,
        "max_num_seqs": 8,
        "speculative": {"method": "dspark", "num_speculative_tokens": 5},
        "more": ["--seed", "7", "--enforce-eager"],
    },
    "env": {"A": "b"},
    "caches": {"vllm": "/root/.cache/vllm", "triton": "/root/.triton/cache"},
}


def load(folder: Path, profile: Any, **more: Any) -> Matrix:
    data = maker.document(
        {"os": {"trixie": maker.OS}},
        {"os": {"base": "os"}},
        [maker.include("one", "os", os="trixie")],
    )
    data["profiles"] = {"p": profile}
    return maker.write(folder, data | more)


def changed(**values: Any) -> dict[str, Any]:
    """The good one with other values; ``a__b`` is b within a."""
    profile = copy.deepcopy(GOOD)
    for key, value in values.items():
        place: Any = profile
        *path, last = key.split("__")
        for part in path:
            place = place[part]
        place[last] = value
    return profile


def problems(folder: Path, **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, changed(**values))
    return caught.value.detail


def test_a_good_profile(tmp_path: Path) -> None:
    profile = load(tmp_path, GOOD).profiles["p"]
    assert profile.wants_rdma
    assert (profile.port, profile.master_port, profile.shm_size, profile.restart) == (
        8000,
        29519,
        "16g",
        "no",
    )
    assert not Profile(variants=["a"]).wants_rdma
    assert not Profile(variants=["a"], nodes=2, rdma=False).wants_rdma


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"nodes": 3}, "tensor 2 x pipeline 2 is not nodes 3 x gpus 1"),
        ({"gpus": 2}, "is not nodes 4 x gpus 2"),
        ({"variants": ["two"]}, "'two' is no variant"),
        ({"master_port": 8000}, "port and master_port are the same"),
        ({"serve__speculative__num_speculative_tokens": 4}, "it needs at least 5"),
        ({"serve__speculative__num_speculative_tokens": 0}, "it must be at least 1"),
        ({"serve__max_model_len": 0}, "it must be at least 1"),
        ({"serve__max_num_seqs": -1}, "it must be at least 1"),
        ({"serve__max_num_batched_tokens": 7}, "7 tokens a batch are fewer than 8 sequences"),
        ({"serve__gpu_memory_utilization": 0}, "it must be more than 0"),
        ({"serve__gpu_memory_utilization": 1.01}, "it must be at most 1"),
        ({"serve__max_modle_len": 1}, "did you mean 'max_model_len'?"),
        ({"serve__speculative__tokens": 1}, "unknown key 'tokens'"),
        ({"gpu": 1}, "did you mean 'gpus'?"),
        (
            {"serve__more": ["--chat-template", "/m/c.jinja"], "chat_template": "c.jinja"},
            "remove one of them",
        ),
        ({"serve__more": ["--max-model-len", "7"]}, "set `serve.max_model_len`"),
        ({"serve__more": ["--max_model_len=7"]}, "set `serve.max_model_len`"),
        ({"serve__more": ["--no-enable-prefix-caching"]}, "set `serve.prefix_caching`"),
        ({"serve__more": ["-tp", "4"]}, "set `serve.tensor_parallel`"),
        ({"serve__more": ["--compilation-config.level", "3"]}, "set `serve.compilation`"),
        ({"serve__more": ["--node-rank", "1"]}, "is derived from the fleet and the image"),
        ({"serve__more": ["--master-addr=h"]}, "is derived from the fleet and the image"),
        ({"serve__more": ["serve"]}, "is derived from the fleet and the image"),
        ({"serve__more": ["x"]}, "'x' is no argument"),
        ({"env__LD_PRELOAD": "/x"}, "derived from the library in the image"),
        ({"env__NCCL_IB_HCA": "x"}, "set `interface` and `hca` of a node"),
        ({"env__NCCL_IB_GID_INDEX": "3"}, "an index into the table of one RDMA device"),
        ({"env__NCCL_DEBUG": "WARN"}, "do not show which NCCL runs"),
        ({"env__NCCL_DEBUG_FILE": "/tmp/nccl.%h"}, "the log does not have what NCCL says"),
        ({"env__PYTHONUNBUFFERED": ""}, "NCCL's last lines stay in the process"),
        ({"env__A": "a\nb"}, "more than one line"),
        ({"caches__vllm": "relative"}, "does not have the right form"),
        ({"caches__more": "/root/.cache/vllm/more"}, "are inside each other"),
        ({"caches__more": "/root/.cache/vllm/"}, "are inside each other"),
        ({"restart": "always"}, "'no' or 'unless-stopped'"),
        ({"scale": True}, "follow from the nodes where a profile scales"),
        ({"shm_size": "big"}, "does not have the right form"),
    ],
)
def test_what_is_refused(tmp_path: Path, values: dict[str, Any], words: str) -> None:
    detail = problems(tmp_path, **values)
    assert words in detail
    assert detail.startswith(f"{tmp_path}/matrix.yaml:")


KEY = "sk-5up3r53cr3t"
HF = "hf_" + "aB" * 17
EXPORT = "export VLLM_API_KEY for `launch` instead, and write `secrets: [VLLM_API_KEY]`"


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (
            {"env__VLLM_API_KEY": KEY},
            f"the value of VLLM_API_KEY is a secret (by its name)\n    {EXPORT}",
        ),
        ({"env__vllm_token": KEY}, "the value of vllm_token is a secret (by its name)"),
        ({"env__A": HF}, "the value of A is a secret (Hugging Face token)"),
        (
            {"env__HF_TOKEN": HF},
            "the value of HF_TOKEN is a secret (Hugging Face token, by its name)",
        ),
        ({"env__A": f"https://me:{KEY}@example.org/"}, "is a secret (login in an address)"),
        ({"env__VLLM_API_KEY": "$VLLM_API_KEY"}, EXPORT),
        ({"serve__more": ["--seed", "7", "--api-key", "a", KEY]}, EXPORT),
        ({"serve__more": [f"--api_key={KEY}"]}, "the value of --api-key is a secret"),
        ({"serve__more": ["--hf-token", HF]}, "write `secrets: [HF_TOKEN]`"),
        ({"serve__more": [f"--admin-api-key={KEY}"]}, "the value of --admin-api-key is a secret"),
        ({"serve__more": ["--hf-overrides", f'{{"x": "{HF}"}}']}, "of --hf-overrides is a secret"),
        ({"serve__more": [f"--api-key {KEY}"]}, "the value of --api-key is a secret"),
        ({"serve__api_key": KEY}, EXPORT),
        ({"command": ["sglang", "--api-key", KEY]}, "the value of --api-key is a secret"),
        ({"command": ["sh", "-c", f"vllm serve --api-key {KEY}"]}, "the value of --api-key is"),
        ({"secrets": [HF]}, "this is a secret (Hugging Face token)"),
        ({"secrets": ["A"]}, "A is in `env`, too"),
        # As they are mistyped.
        ({"env__VLLM_API_KEY": 53073105}, "env.VLLM_API_KEY must be text, but is ***"),
        ({"env__VLLM_API_KEY": [KEY]}, "env.VLLM_API_KEY must be one word"),
        ({"env": f"VLLM_API_KEY={KEY}"}, "env must be a mapping, but is 'VLLM_API_KEY=***'"),
        (
            {"serve__more": f"--seed 7 --api-key {KEY * 9}"},
            "but is '--seed 7 --api-key ***'",
        ),
        ({"secrets": [f"VLLM_API_KEY={KEY}"]}, "secrets.0: 'VLLM_API_KEY=***' does not have"),
        ({"secrets": {"VLLM_API_KEY": KEY}}, "secrets must be a list, but is a mapping"),
        ({"envs": {"VLLM_API_KEY": KEY}}, "did you mean 'env'?"),
    ],
)
def test_a_secret_is_refused_and_not_shown(
    tmp_path: Path, values: dict[str, Any], words: str
) -> None:
    detail = problems(tmp_path, **values)
    assert words in detail
    assert not any(secret[:6] in detail for secret in (KEY, HF, "53073105"))


def test_a_secret_is_not_shown_where_the_file_is_no_yaml(tmp_path: Path) -> None:
    load(tmp_path, GOOD)
    file = tmp_path / "matrix.yaml"
    for value in (f" @{KEY}", f" !{KEY}", f"{KEY}", f' "{KEY}', f" *{KEY}", f" {KEY}: x"):
        file.write_text(
            f"version: 1\nprofiles:\n  p:\n    env:\n      HF_TOKEN:{value}\n      A: b\n"
        )
        with pytest.raises(ConfigError) as caught:
            matrix.load(file)
        assert caught.value.problems[0].line == 5
        assert KEY not in caught.value.detail


@pytest.mark.parametrize(
    "values",
    [
        {"env": {"HF_TOKEN": "/run/secrets/hf", "OPENAI_API_KEY": "EMPTY", "A_SECRET": "1"}},
        {"env": {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1", "HF_TOKEN_PATH": "/root/.cache/hf/token"}},
        {"env": {"TOKENIZERS_PARALLELISM": "false", "VLLM_ATTENTION_BACKEND": "FLASH_ATTN_MLA"}},
        {"env": {"HTTPS_PROXY": "http://proxy.example:3128", "VLLM_API_KEY": ""}},
        {"serve__more": ["--hf-token", "--api-key", "EMPTY", "--ssl-keyfile", "/etc/ssl/key.pem"]},
        {"serve__more": ["--long-prefill-token-threshold", "1000000", "--tokenizer", "org/token"]},
        {"serve__more": ["--kv-cache-memory-bytes", "6442450944", "--moe-backend", "marlin"]},
        {"secrets": ["VLLM_API_KEY", "HF_TOKEN"]},
    ],
)  # fmt: skip
def test_what_only_looks_like_a_secret_is_none(tmp_path: Path, values: dict[str, Any]) -> None:
    assert load(tmp_path, changed(**values)).profiles["p"].nodes == 4


def test_all_problems_with_their_lines(tmp_path: Path) -> None:
    load(tmp_path, GOOD)
    text = ((tmp_path / "matrix.yaml").read_text().replace('"nodes": 4', '\n"nodes": 3')).replace(
        '"num_speculative_tokens": 5', '\n"num_speculative_tokens": 2'
    )
    (tmp_path / "matrix.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        matrix.load(tmp_path / "matrix.yaml")
    assert [problem.line for problem in caught.value.problems] == [2, 3]


def test_profiles_change_neither_plan_nor_seal_nor_lock(tmp_path: Path) -> None:
    matrices = (
        load(tmp_path / "a", GOOD),
        load(tmp_path / "b", changed(port=9, env={})),
        load(tmp_path / "c", GOOD, profiles={}),
    )
    locks = [maker.locked(read) for read in matrices]
    assert len({lockfile.dump(each) for each in locks}) == 1
    plans = [
        planning.make(read, read.variants[0], lock, maker.ORIGIN)
        for read, lock in zip(matrices, locks, strict=True)
    ]
    assert len({plan.checksum() for plan in plans}) == 1
    seals = {
        plan_record.record(plan, read.root).checksum
        for plan, read in zip(plans, matrices, strict=True)
    }
    assert len(seals) == 1


def test_a_profile_as_vllm_takes_it() -> None:
    assert [*Serve().arguments()] == [
        ("--tensor-parallel-size", "1"),
        ("--pipeline-parallel-size", "1"),
    ]
    serve = Serve(
        expert_parallel=True,
        prefix_caching=False,
        flashinfer_autotune=True,
        gpu_memory_utilization=0.5,
        compilation={"level": 3},
        speculative=Speculative(method="dspark", num_speculative_tokens=5),
        tool_call_parser="hermes",
        served_model_name=["a", "b"],
        more=["--seed", "7"],
    )
    assert [*serve.arguments()][2:] == [
        ("--enable-expert-parallel",),
        ("--no-enable-prefix-caching",),
        ("--gpu-memory-utilization", "0.5"),
        ("--compilation-config", '{"level":3}'),
        ("--speculative-config", '{"method":"dspark","num_speculative_tokens":5}'),
        ("--tool-call-parser", "hermes"),
        ("--enable-auto-tool-choice",),
        ("--enable-flashinfer-autotune",),
        ("--served-model-name", "a", "b"),
    ]


def test_the_profiles_of_the_project() -> None:
    read = matrix.load(PROJECT / "matrix.yaml")
    assert profiles.fitting(read.profiles, "ds4-flash") == ["ds4-mtp", "single"]
    assert profiles.fitting(read.profiles, "ds4-flash-ga") == [
        "ds4-dspark", "ds4-dspark-2", "single",
    ]  # fmt: skip
    now = profiles.fitting(read.profiles, "vllm0.33.0-nccl2.30.7-arm64")
    nodes = {name: read.profiles[name].nodes for name in now}
    assert nodes == {"ds41": 4, "ds41-2": 2, "glm53-2": 2, "qwen38": 1, "qwen38-2": 2, "single": 1}
    # On unified memory it fails where False does not: NVIDIA/dgx-spark-playbooks#97
    assert "expandable_segments:True" not in str(read.profiles)


@given(st.lists(st.sampled_from([*profiles.KEYS, *profiles.DERIVED]), min_size=1), st.booleans())
def test_no_argument_with_a_key_passes_as_another(words: list[str], assigned: bool) -> None:
    more = [f"{word}=1" if assigned and word.startswith("--") else word for word in words]
    reported = {key[-1] for key, _, _ in profiles._more(more)}
    assert reported >= {i for i, word in enumerate(more) if word.startswith("-")}


@given(st.from_regex(r"--[a-z][a-z_-]{0,20}", fullmatch=True))
def test_an_underscore_in_a_flag_is_a_hyphen(word: str) -> None:
    assert profiles.flag(word) == profiles.flag(word.replace("_", "-")[:2] + word[2:])
    assert json.dumps(profiles.flag(word))
