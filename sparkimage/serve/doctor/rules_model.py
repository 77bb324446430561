"""The doctor's rules of the model's folder. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from sparkimage.core.units import human
from sparkimage.serve.doctor.diagnosis import Case, Finding, grouped, in_words, odd
from sparkimage.serve.doctor.facts import Facts, Folder
from sparkimage.serve.doctor.severity import Severity

SHOWN = 3
"""Files that a finding names; the rest is counted."""


def folder(case: Case) -> Iterator[Finding]:
    """A folder that is not there, or cannot be read."""
    path = shlex.quote(case.model)
    for one, facts in case.known:
        what, mend = {
            "missing": (
                f"{case.model} is not there",
                f"there: hf download MODEL --local-dir {path}",
            ),
            "closed": (
                f"{case.model} cannot be read by {facts.user}, or is no folder",
                f"there: ls -ld {path}",
            ),
        }.get(facts.model.state, ("", ""))
        if facts.model.late:
            what, mend = f"{case.model} could not be read in time", f"there: ls -l {path}"
        elif facts.model.state == "folder" and not facts.model.files:
            what, mend = f"{case.model} is empty", f"there: ls -la {path}"
        if what:
            yield Finding(nodes=(one.name,), severity=Severity.FAIL, what=what, mend=mend)


def shards(case: Case) -> Iterator[Finding]:
    """A model that is not whole."""
    path = shlex.quote(case.model)
    again = f"there: hf download MODEL --local-dir {path} (it goes on from there)"
    for one, facts in case.known:
        lacking = facts.model.lacking
        if lacking:
            yield Finding(
                nodes=(one.name,), severity=Severity.FAIL,
                what=f"{some(lacking)} of its index "
                f"{'is' if len(lacking) == 1 else 'are'} not there",
                mend=again,
            )  # fmt: skip
        names = {file.name for file in facts.model.files}
        if "config.json" not in names and not any(name.endswith(".gguf") for name in names):
            yield Finding(
                nodes=(one.name,), severity=Severity.WARN,
                what="it has no config.json: vLLM knows a model by it", mend=again,
            )  # fmt: skip
        empty = [file.name for file in facts.model.files if not file.size and weights(file.name)]
        if empty:
            yield Finding(
                nodes=(one.name,), severity=Severity.FAIL, what=f"{some(empty)} empty", mend=again
            )


def weights(name: str) -> bool:
    """Whether a file holds weights."""
    return name.endswith((".safetensors", ".bin", ".gguf", ".pt"))


def some(names: tuple[str, ...] | list[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def equal(case: Case) -> Iterator[Finding]:
    """Folders that differ, by names and sizes."""
    groups = grouped((one.name, facts.model.checksum) for one, facts in case.known)
    if len(groups) < 2:
        return
    by_name = {one.name: facts.model for one, facts in case.known}
    norm = by_name[next(iter(groups.values()))[0]]
    other = by_name[list(groups.values())[1][0]]
    sizes = grouped((one.name, human(facts.model.size)) for one, facts in case.known)
    path = shlex.quote(f"{case.model}/")
    sums = f": {in_words(sizes)}" if len(sizes) > 1 else ""
    yield Finding(
        nodes=odd(groups), severity=Severity.FAIL,
        what=f"not the same model everywhere{sums}; they differ in {some(difference(norm, other))}",
        mend=f"from a node that has it whole: rsync -a {path} NODE:{path}",
    )  # fmt: skip


def difference(first: Folder, second: Folder) -> list[str]:
    """The files that are not in both with one size."""
    both = {file.name: file.size for file in first.files}
    others = {file.name: file.size for file in second.files}
    return sorted(name for name in {*both, *others} if both.get(name) != others.get(name))


def fit(case: Case) -> Iterator[Finding]:
    """A model that is larger than all memory."""
    room = sum(capacity(facts) for _, facts in case.known)
    size = max((facts.model.size for _, facts in case.known), default=0)
    if size > case.utilization * room:
        yield Finding(
            nodes=tuple(one.name for one, _ in case.known), severity=Severity.FAIL,
            what=f"the model has {human(size)}; {case.utilization:.0%} of the GPUs' memory "
            f"together are {human(case.utilization * room)}",
            mend="more nodes, or a model with smaller weights",
        )  # fmt: skip


def capacity(facts: Facts) -> int:
    """Bytes that the GPUs of a machine can hold."""
    if facts.unified:
        return facts.memory or 0
    return sum(one.memory or 0 for one in facts.gpus)


def described(facts: Facts) -> str:
    """The folder in words."""
    return f"{len(facts.model.files)} files, {human(facts.model.size)}"
