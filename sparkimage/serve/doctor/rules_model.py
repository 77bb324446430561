"""The doctor's checks of the model's folder. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from sparkimage.core.units import human, plural
from sparkimage.nodes.snapshot import Folder, NodeSnapshot
from sparkimage.serve.doctor.checks import (
    ClusterReport,
    Findings,
    check,
    finding,
    grouped,
    in_words,
    node_check,
    odd,
)  # fmt: skip

SHOWN = 3
"""Files that a finding names; the rest is counted."""
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")
POINTER = range(120, 146)
"""Bytes of a Git LFS pointer: 125, and the digits of the size.
https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md"""
CONFIGS = {"config.json", "params.json"}
"""What vLLM recognises a model by; the second one is Mistral's."""
TOKENIZERS = {
    "tokenizer.json", "tokenizer.model", "tekken.json", "vocab.json", "vocab.txt", "spiece.model",
    "sentencepiece.bpe.model",
}  # fmt: skip
"""Files that hold a tokenizer's vocabulary; tokenizer_config.json alone is none."""


def with_model(cluster: ClusterReport) -> bool:
    """A model folder is given."""
    return bool(cluster.model)


def has_files(node: NodeSnapshot) -> bool:
    """All of its model's files are known."""
    return not node.model.late and bool(node.model.files)


@node_check(
    "model",
    seen=lambda node: f"{plural(len(node.model.files), 'file')}, {human(node.model.size)}",
    applies=with_model,
)
def folder(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """A folder that does not exist, or cannot be read."""
    case = "late" if node.model.late else node.model.state
    if case == "folder" and not node.model.files:
        case = "empty"
    if case in ("late", "missing", "closed", "empty"):
        path = shlex.quote(cluster.model)
        yield finding(f"model/{case}", model=cluster.model, path=path, node=node)


@node_check(
    "shards",
    seen=lambda node: (
        f"{plural(len(node.model.named), 'file')} in its index" if node.model.named else "no index"
    ),
    applies=with_model,
    knows=has_files,
)
def shards(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """An incomplete model."""
    model, path = node.model, shlex.quote(cluster.model)
    files, weights = model.files, [name for name in model.files if name.endswith(WEIGHTS)]
    if model.lacking:
        yield finding("shards/missing", files=listed(model.lacking), path=path)
    if pointers := pointers_of(model):
        yield finding("shards/pointers", files=listed(pointers), path=path)
    if empty := [name for name in weights if not files[name]]:
        yield finding("shards/empty", files=listed(empty), path=path)
    cut = [name for name, length in model.lengths.items() if files.get(name, length) < length]
    if cut:
        has, wants = human(files[cut[0]]), human(model.lengths[cut[0]])
        yield finding("shards/cut", files=listed(cut), path=path, has=has, wants=wants)
    size = sum(files.get(name, 0) for name in model.named)
    if size < model.total and not (model.lacking or pointers or empty or cut):
        total = human(model.total)
        yield finding("shards/smaller", size=human(size), total=total, path=path)
    if any(name.endswith(".gguf") for name in files):
        return
    if not CONFIGS & files.keys():
        yield finding("shards/config", path=path)
    if not any(name in TOKENIZERS or name.endswith(".tiktoken") for name in files):
        yield finding("shards/tokenizer", path=path)


def pointers_of(model: Folder) -> list[str]:
    """The Git LFS pointers: by their first line, or their size where nobody read it."""
    by_size = (
        name
        for name, size in model.files.items()
        if size in POINTER and name.endswith(WEIGHTS) and name not in model.lengths
    )
    return sorted({*model.pointers, *by_size})


def listed(names: Sequence[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


@check(
    "model-equal",
    seen=lambda node: node.model.checksum,
    applies=lambda cluster: cluster.several and bool(cluster.model),
    knows=has_files,
)
def equal(cluster: ClusterReport) -> Findings:
    """Folders that differ, by names and sizes."""
    groups = grouped((node.name, node.model.checksum) for node in cluster.known)
    if len(groups) < 2:
        return
    files = {node.name: node.model.files for node in cluster.known}
    first, second, *_ = (files[names[0]].items() for names in groups.values())
    sizes = grouped((node.name, human(node.model.size)) for node in cluster.known)
    yield finding(
        "model-equal", *odd(groups), path=shlex.quote(f"{cluster.model}/"),
        sizes=f" ({in_words(sizes)})" if len(sizes) > 1 else "",
        files=listed(sorted({name for name, _ in first ^ second})),
    )  # fmt: skip


@node_check(
    "model-pushed",
    seen=lambda node: plural(len(node.model.files), "file"),
    applies=lambda cluster: cluster.pushed is not None,
    knows=has_files,
)
def pushed(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """A folder that is not what `model push` has proven there."""
    assert cluster.pushed is not None
    if wrong := cluster.pushed.get(node.name):
        yield finding("model-pushed", files=listed(wrong), path=shlex.quote(cluster.model))


@check(
    "fit",
    seen=lambda node: f"{human(node.model.size)}, {human(capacity(node))}",
    applies=with_model,
    knows=lambda node: has_files(node) and capacity(node) > 0,
)
def fit(cluster: ClusterReport) -> Findings:
    """A model that is larger than the memory of all GPUs."""
    room = cluster.utilization * sum(map(capacity, cluster.known))
    size = max((node.model.size for node in cluster.known), default=0)
    if size > room:
        yield finding(
            "fit", *(node.name for node in cluster.known), size=human(size), room=human(room),
            utilization=cluster.utilization,
        )  # fmt: skip


def capacity(node: NodeSnapshot) -> int:
    """Bytes of memory of a node's GPUs."""
    return (node.memory or 0) if node.unified else sum(gpu.memory or 0 for gpu in node.gpus)
