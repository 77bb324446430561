"""Failures of a model's files."""

from __future__ import annotations

from sparkimage.serve.explain.entries import Area, Entry, sign
from sparkimage.serve.explain.table.links import DOCTOR, LAUNCH, VLLM

ENTRIES = (
    Entry(
        id="model-not-there",
        area=Area.MODEL,
        title="The model's folder is not in the container",
        says="Repo id must be in the form 'repo_name' or 'namespace/repo_name': '/…'.",
        signs=(sign("Repo id must be in the form", r"namespace/repo_name': '(?P<path>/[^']*)'"),),
        cause="vLLM takes a path that does not exist for a name on Hugging Face: the folder is "
        "not mounted, or is empty on this node.",
        cure=f"{LAUNCH} with `--model DIR` mounts it at the same path and first sees that every "
        f"node has it; {DOCTOR} compares sizes.",
        sources=(f"{VLLM}10974", "https://github.com/gpustack/gpustack/issues/1268"),
    ),
    Entry(
        id="broken-safetensors",
        area=Area.MODEL,
        title="A file of weights is broken or a mere pointer",
        says="SafetensorError: Error while deserializing header: HeaderTooLarge",
        signs=(
            sign(
                "Error while deserializing header: ",
                r"deserializing header: (?P<reason>\w+)",
                unless=r"deserializing header: header too large",
            ),
        ),
        cause="The download broke off, or git fetched Git LFS pointers instead of the files.",
        cure="`ls -lh` the model's folder on every node: a pointer has about 130 bytes. Fetch "
        f"it again (`git lfs pull`, `hf download`); {DOCTOR} compares sizes over the nodes.",
        sources=(
            "https://github.com/deepseek-ai/DeepSeek-V3/issues/557",
            "https://github.com/microsoft/OmniParser/issues/34",
        ),
    ),
    Entry(
        id="gated-model",
        area=Area.MODEL,
        title="Hugging Face wants a login for this model",
        says="OSError: You are trying to access a gated repo.",
        signs=(
            sign("You are trying to access a gated repo"),
            sign("Cannot access gated repo for url", r"for url (?P<url>\S+)"),
        ),
        cause="The model is fetched at start, without a token that was granted access.",
        cure="Download it once (with `HF_TOKEN` in the environment), bring it to the nodes, "
        f"and give its folder: {LAUNCH} with `--model DIR`.",
        sources=(
            "https://github.com/h2oai/h2ogpt/issues/1600",
            "https://github.com/zylon-ai/private-gpt/issues/1861",
        ),
    ),
    Entry(
        id="missing-shards",
        area=Area.MODEL,
        title="A file of weights is missing",
        says="Error: Weight files referenced in index but missing:",
        signs=(
            sign("Weight files referenced in index but missing"),
            sign("weights were not initialized from checkpoint"),
        ),
        cause="The download is not whole: the index names a shard that is not on this node.",
        cure="Count the shards on every node (`ls *.safetensors | wc -l`) and fetch the model "
        "again, "
        f"which takes only what is missing; {DOCTOR} compares sizes.",
        sources=(
            "https://github.com/noonghunna/club-3090/issues/1036",
            "https://github.com/hiyouga/LlamaFactory/issues/7837",
        ),
    ),
)
