"""Failures of what a server was told."""

from __future__ import annotations

from sparkimage.serve.explain.entries import Area, Entry, sign
from sparkimage.serve.explain.table.links import LAUNCH, VLLM

ENTRIES = (
    Entry(
        id="doubled-entrypoint",
        area=Area.ARGUMENTS,
        title="`vllm serve` stands twice: the image's ENTRYPOINT has it already",
        says="vllm: error: unrecognized arguments: serve …",
        signs=(
            sign("unrecognized arguments: ", r"error: unrecognized arguments: (vllm )?serve\b"),
        ),
        cause="The command after the image's name began with `vllm serve` (or `serve`); it "
        "follows the ENTRYPOINT, it does not replace it.",
        cure=f"Give the arguments alone: `docker run … IMAGE MODEL --port …`. {LAUNCH} reads "
        "the ENTRYPOINT from the image.",
        sources=(f"{VLLM}37133", f"{VLLM}22072"),
    ),
    Entry(
        id="unknown-argument",
        area=Area.ARGUMENTS,
        title="This vLLM does not know an argument",
        says="vllm: error: unrecognized arguments: --…",
        signs=(
            sign(
                "unrecognized arguments: ",
                r"error: unrecognized arguments: (?P<argument>--?[\w-]+)",
            ),
        ),
        cause="The argument is of another version of vLLM, or misspelt.",
        cure="Take it out of the profile, or choose a variant whose vLLM has it: `docker run "
        "--rm IMAGE --help=all`.",
        sources=(f"{VLLM}42399", "https://github.com/vllm-project/recipes/issues/20"),
    ),
    Entry(
        id="context-too-long",
        area=Area.ARGUMENTS,
        title="--max-model-len is more than the model was made for",
        says="User-specified max_model_len (131072) is greater than the derived max_model_len (…)",
        signs=(
            sign(
                "is greater than the derived max_model_len",
                r"max_model_len \((?P<asked>\d+)\) is greater",
            ),
        ),
        cause="The model's config.json names a shorter context.",
        cure="Lower `max_model_len` in the profile. `VLLM_ALLOW_LONG_MAX_MODEL_LEN=1` goes "
        "over it, for models that are known to bear it (DeepSeek-V4-Flash is run so).",
        sources=(f"{VLLM}3676", "https://github.com/vllm-project/vllm/pull/20904"),
    ),
    Entry(
        id="too-few-gpus",
        area=Area.ARGUMENTS,
        title="More GPUs are asked for than there are",
        says="please ensure that world_size (2) is less than than max local gpu count (1)",
        signs=(
            sign(
                "is less than than max local gpu count",
                r"world_size \((?P<asked>\d+)\) .* gpu count \((?P<has>\d+)\)",
            ),
            sign(
                "cannot be larger than the number of available GPUs",
                r"size \((?P<asked>\d+)\) cannot be larger .*GPUs \((?P<has>\d+)\)",
            ),
        ),
        cause="tensor x pipeline parallel size is more than nodes x GPUs, or `--nnodes`, "
        "`--node-rank` and `--master-addr` are missing, so that vLLM counts one node alone.",
        cure=f"{LAUNCH} derives them from the fleet and checks tensor x pipeline = nodes x GPUs.",
        sources=(f"{VLLM}15217", "https://github.com/NVIDIA-NeMo/Skills/issues/1059"),
    ),
    Entry(
        id="dspark-too-few",
        area=Area.ARGUMENTS,
        title="DSpark wants at least as many speculative tokens as its block has",
        says="Smaller values produce incorrect output. Use num_speculative_tokens=… or larger",
        signs=(
            sign(
                "Smaller values produce incorrect output",
                r"num_speculative_tokens=(?P<wants>\w+)",
            ),
        ),
        cause="`num_speculative_tokens` in the speculative config is below the checkpoint's "
        "`dspark_block_size`.",
        cure="Set it to 5 for DeepSeek-V4-Flash-0731; profiles here refuse less. More than the "
        "block has starts, but hardly any draft is accepted.",
        sources=(f"{VLLM}50012", "https://github.com/vllm-project/vllm/pull/41834"),
    ),
    Entry(
        id="unknown-speculation",
        area=Area.ARGUMENTS,
        title="This vLLM does not know the speculative method",
        says="ValueError: Unknown speculative decoding method: …",
        signs=(
            sign("speculative", r"Unknown speculative decoding method: (?P<method>[\w-]+)"),
            sign("speculative", r"Unsupported speculative method: '(?P<method>[^']+)'"),
        ),
        cause="`method` in `--speculative-config` is of another version (`dspark` came with "
        "the GA fork, `deepseek_mtp` before it).",
        cure="Use the profile of this variant, or set its method.",
        sources=(f"{VLLM}47825", "https://github.com/vllm-project/vllm-ascend/issues/9144"),
    ),
    Entry(
        id="unknown-tokenizer-mode",
        area=Area.ARGUMENTS,
        title="This vLLM does not know the tokenizer mode",
        says="ValueError: No tokenizer registered for tokenizer_mode='…'.",
        signs=(sign("No tokenizer registered", r"tokenizer_mode='(?P<mode>[^']+)'"),),
        cause="`--tokenizer-mode` names one of a newer vLLM or of a fork.",
        cure="Choose a variant that has it; `deepseek_v4` needs the fork's or a later vLLM.",
        sources=(f"{VLLM}30933",),
    ),
    Entry(
        id="unknown-tool-parser",
        area=Area.ARGUMENTS,
        title="This vLLM does not know the tool call parser",
        says="invalid tool call parser: …",
        signs=(sign("invalid tool call parser", r"parser: (?P<parser>[\w.-]+)"),),
        cause="`--tool-call-parser` names one that this version does not have.",
        cure="Use the profile of this variant, or the parser's name of this version.",
        sources=("https://github.com/vllm-project/vllm-ascend/issues/8997",),
    ),
    Entry(
        id="trust-remote-code",
        area=Area.ARGUMENTS,
        title="The model brings code of its own, which was not allowed",
        says="… contains custom code which must be executed to correctly load the model.",
        signs=(
            sign("contains custom code which must be executed to correctly load the model"),
            sign("to execute the configuration file in that repo on your local machine"),
        ),
        cause="The model's folder holds Python that vLLM runs only when told to.",
        cure="Read that code, then give `--trust-remote-code` (a flag of the profile).",
        sources=(
            f"{VLLM}9531",
            "https://github.com/runpod-workers/worker-vllm/issues/43",
        ),
    ),
)
