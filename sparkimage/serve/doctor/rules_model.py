"""The doctor's checks of the model's folder. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from sparkimage.core.units import human
from sparkimage.nodes.snapshot import Folder, NodeSnapshot
from sparkimage.serve.doctor.checks import (
    FAIL,
    WARN,
    ClusterReport,
    Finding,
    Findings,
    check,
    each,
    found,
    grouped,
    in_words,
    odd,
)

SHOWN = 3
"""Files that a finding names; the rest is counted."""
WEIGHTS = (".safetensors", ".bin", ".gguf", ".pt")


def with_model(cluster: ClusterReport) -> bool:
    """Of checks of a folder that was named."""
    return bool(cluster.model)


def has_files(node: NodeSnapshot) -> bool:
    """All of its files are known."""
    return not node.model.late and bool(node.model.files)


@check(
    "model",
    seen=lambda node: f"{len(node.model.files)} files, {human(node.model.size)}",
    applies=with_model,
)
@each
def folder(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """A folder that is not there, or cannot be read."""
    model, path = cluster.model, shlex.quote(cluster.model)
    if node.model.late:
        yield found(FAIL, f"{model} could not be read in time", f"there: ls -l {path}")
    elif node.model.state == "missing":
        fix = f"there: hf download MODEL --local-dir {path}"
        yield found(FAIL, f"{model} is not there", fix)
    elif node.model.state == "closed":
        what = f"{model} cannot be read by {node.user}, or is no folder"
        yield found(FAIL, what, f"there: ls -ld {path}")
    elif node.model.state == "folder" and not node.model.files:
        yield found(FAIL, f"{model} is empty", f"there: ls -la {path}")


@check(
    "shards",
    seen=lambda node: (
        f"{len(node.model.named)} files of its index" if node.model.named else "no index"
    ),
    applies=with_model,
    knows=has_files,
)
@each
def shards(cluster: ClusterReport, node: NodeSnapshot) -> Findings:
    """A model that is not whole."""
    files, lacking = node.model.files, node.model.lacking
    again = (
        f"there: hf download MODEL --local-dir {shlex.quote(cluster.model)} (it goes on from there)"
    )
    if lacking:
        verb = "is" if len(lacking) == 1 else "are"
        yield found(FAIL, f"{some(lacking)} of its index {verb} not there", again)
    if "config.json" not in files and not any(name.endswith(".gguf") for name in files):
        yield found(WARN, "it has no config.json: vLLM knows a model by it", again)
    empty = [name for name, size in files.items() if not size and name.endswith(WEIGHTS)]
    if empty:
        yield found(FAIL, f"{some(empty)} empty", again)


def some(names: Sequence[str]) -> str:
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
    groups = grouped((one.name, one.model.checksum) for one in cluster.known)
    if len(groups) < 2:
        return
    by_name = {one.name: one.model for one in cluster.known}
    norm, other, *_ = (by_name[names[0]] for names in groups.values())
    sizes = grouped((one.name, human(one.model.size)) for one in cluster.known)
    path = shlex.quote(f"{cluster.model}/")
    sums = f": {in_words(sizes)}" if len(sizes) > 1 else ""
    yield Finding(
        nodes=odd(groups), severity=FAIL,
        what=f"not the same model everywhere{sums}; they differ in {some(difference(norm, other))}",
        fix=f"from a node that has it whole: rsync -a {path} NODE:{path}",
    )  # fmt: skip


def difference(first: Folder, second: Folder) -> list[str]:
    """The files that are not in both with one size."""
    return sorted({name for name, _ in first.files.items() ^ second.files.items()})


@check(
    "fit",
    seen=lambda node: f"{human(node.model.size)}, {human(capacity(node))}",
    applies=with_model,
    knows=lambda node: has_files(node) and capacity(node) > 0,
)
def fit(cluster: ClusterReport) -> Findings:
    """A model that is larger than all memory."""
    room = cluster.utilization * sum(map(capacity, cluster.known))
    size = max((one.model.size for one in cluster.known), default=0)
    if size > room:
        yield Finding(
            nodes=tuple(one.name for one in cluster.known), severity=FAIL,
            what=f"the model has {human(size)}; {cluster.utilization:.0%} of the GPUs' memory "
            f"together are {human(room)}",
            fix="more nodes, or a model with smaller weights",
        )  # fmt: skip


def capacity(node: NodeSnapshot) -> int:
    """Bytes that the GPUs of a node can hold."""
    return (node.memory or 0) if node.unified else sum(one.memory or 0 for one in node.gpus)
