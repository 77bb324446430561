"""The files that people write or that may be damaged, with faults put in at random: each is taken,
or refused in words; nothing else comes out of any. MUTANTS=N tries so many."""

from __future__ import annotations

import copy
import datetime as dt
import json
import math
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkimage.build import bake
from sparkimage.cli import show
from sparkimage.config import inventory, lockfile, matrix, planning
from sparkimage.config.address import Mirrors
from sparkimage.config.lock_items import Wheel
from sparkimage.config.lockfile import Entry
from sparkimage.config.patch_planning import PatchPlanner
from sparkimage.core.errors import ConfigError, LockError
from tests.unit import project_maker as maker

PROJECT = Path(__file__).resolve().parents[2]
FLEET = """\
version: 1
nodes:
  spark1: {control: 192.168.1.11, data: 10.100.0.1, user: me, role: head}
  spark2:
    control: spark2.local
    data: 10.100.0.2
    port: 2222
    interface: enp1s0f1np1
    hca: [rocep1s0f1, "roceP2p1s0f1:1"]
    gpus: 1
    sudo: true
    role: worker
    labels: {rack: a1}
"""
KEPT = (
    "nvidia-cublas", "nvidia-cusparse", "nvidia-cuda-nvcc", "nvidia-cudnn-cu13", "nvidia-nccl-cu13",
    "tilelang", "torch", "vllm",
)  # fmt: skip
"""The wheels that stay in the lock, which is large."""


def with_every_key(text: str) -> str:
    """The project's matrix with what it does not use itself."""
    for old, new in (
        (
            "  python: {debs: debian}\n",
            "  python: {debs: debian, when: {flavor: '!bare'}, args: {F: '{flavor} {nccl}'}}\n",
        ),
        ("axes:\n", "axes:\n  flavor: [plain]\n"),
        ("exclude:\n", "exclude:\n  - {flavor: '!plain', platform: [linux/amd64]}\n"),
        ("  entrypoint: [", "  user: '0'\n  entrypoint: ["),
        ("include:\n", ("include:\n  - {name: 'x-{arch}-{flavor}', extends: ds4-flash, user: app,\n"
         "     platforms: [linux/arm64], repository: 'x/{arch}', axes: {flavor: bare}}\n")),
    ):  # fmt: skip
        assert old in text
        text = text.replace(old, new, 1)
    return text


def texts() -> dict[str, str]:
    """The project's own files, the lock with few lines and with all pins resolved."""
    read = matrix.load(PROJECT / "matrix.yaml")
    lock = lockfile.load(PROJECT / "matrix.lock")
    entries = {}
    for key, entry in lock.entries.items():
        platforms = {
            platform: tuple(i for i in items if not isinstance(i, Wheel) or i.name in KEPT)[:7]
            for platform, items in entry.platforms.items()
        }
        for platform in lockfile.requests(read)[key][1]:
            platforms.setdefault(platform, maker.items(read, key))
        entries[key] = Entry(requested=entry.requested, platforms=platforms)
    return {
        "matrix.yaml": with_every_key((PROJECT / "matrix.yaml").read_text()),
        "patches/patches.yaml": (PROJECT / "patches" / "patches.yaml").read_text(),
        "matrix.lock": lockfile.dump(replace(lock, entries=entries)),
        "fleet.yaml": FLEET,
    }


TEXTS = texts()
DATA = {name: yaml.safe_load(text) for name, text in TEXTS.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("project")
    (made / "patches").mkdir()
    (made / "images").symlink_to(PROJECT / "images")
    for name, text in TEXTS.items():
        (made / name).write_text(text)
    return made


def use(folder: Path, name: str, content: bytes) -> ConfigError | LockError | None:
    """How the project with this file in it is refused by what reads the file."""
    (folder / name).write_bytes(content)
    try:
        if name == "fleet.yaml":
            inventory.load(folder / name)
            return None
        read = matrix.load(folder / "matrix.yaml")
        lock = lockfile.load(folder / "matrix.lock")
        if wrong := lockfile.check(read, lock):
            if name == "matrix.lock":
                return LockError("does not fit", detail="\n".join(wrong), hint=lockfile.REMEDY)
            lock = maker.locked(read)
        plans = planning.make_all(read, read.variants, lock, maker.ORIGIN)
        json.dumps([plan.to_dict() for plan in plans])
        show.plans_table(plans).text(80)
        bake.policy(plans, Mirrors(rules=read.mirrors))
        for variant in read.variants:
            list(PatchPlanner(matrix=read, variant=variant, lock=lock).states())
    except (ConfigError, LockError) as error:
        return error
    finally:
        (folder / name).write_text(TEXTS[name])
    return None


def test_the_files_are_good(folder: Path) -> None:
    for name, text in TEXTS.items():
        assert use(folder, name, text.encode()) is None
    read, lock = matrix.load(folder / "matrix.yaml"), lockfile.load(folder / "matrix.lock")
    together = planning.make_all(read, read.variants, lock, maker.ORIGIN)
    assert together == tuple(planning.make(read, v, lock, maker.ORIGIN) for v in read.variants)


TOKENS = [
    b"!!bool maybe", b"!!timestamp x", b"!!int x", b"!!float ''", b"!!set {a: }", b"!!omap [a]",
    b"!!binary =", b"!!null x", b"!!map x", b"!!seq x", b"!mine", b"!!python/object/apply:os.x []",
    b"&a ", b"*a", b"&a [*a]", b"<<: *a", b"<<: {a: b}", b"=", b"~", b"null", b"yes", b"3.10",
    b"0x" + b"f" * 99, b"1" * 99, b"9" * 5000, b"1e999", b".inf", b".nan", b"1:59:59", b"-1",
    b"0b_", b"2024-13-45", b"2024-01-01", b"0001-01-01 00:00:00 +23:59", b"\x00", b'"\\0"', b"\xff",
    b'"\\ud800"', b"\xed\xa0\x80", b"\xef\xbb\xbf", b"\xc2\x85", b"\t", b"\r", b"\n", b"  ",
    b"---\n", b"...\n", b"%YAML 3.0\n", b"%TAG ! x\n", b"? ", b"- ", b": ", b"[", b"]", b"{", b"}",
    b"- " * 99, b"#", b"|\n", b">-\n", b"'", b'"', b"@", b"`", b"a" * 300, b"{nccl:>3000000000}",
    b"[" * 99, b"{debian.x}", b"{flavor}", b"!plain", b"{0}", b"{", b"[a, [b, {c: d}]]",
    b"{a: {b: [c]}}", b"linux/amd64", b"any",
]  # fmt: skip
VALUES: list[Any] = [
    None, True, 0, -1, 1.5, 10**40, math.inf, math.nan, "", " ", "\0", "\n", "x", "a" * 300, "../x",
    "/x", "{nccl:>9}", "{nccl.x}", "{", "*", "[", "1", "3.10", "any", "layer", "default",
    "platform", "python", "patches", "vllm", "linux/arm64", "linux/amd64", "a" * 40, "1" * 64,
    "sha256:" + "0" * 64, "commit " + "a" * 40 + " " + "b" * 40, "patch 1 " + "0" * 64,
    "wheel a 1 1 " + "0" * 64 + " a b", "deb a 1 root 1 " + "0" * 64 + " a",
    "!plain", "{flavor}", ["!a", "b"], {"flavor": "!x"}, {"nccl": "nccl"},
    "image", "size", [], {}, [[]], [{}], [None], [1], ["x", "x"],
    ["*"] * 200, {"": ""}, {"x": None}, {"kind": "git"}, {"kind": []},
    {"kind": "image", "image": 1},
    {"pin": "vllm"}, {"x": {"y": [{"z": 1}]}}, dt.date(2024, 1, 1), b"bytes",
]  # fmt: skip


@st.composite
def bytes_of(draw: st.DrawFn, text: str) -> bytes:
    """The text with up to three pieces cut out, put in, or taken from elsewhere."""
    content = text.encode()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(content)))
        if draw(st.booleans()):
            # Where a value begins: most of what is put in elsewhere is no YAML.
            starts = [n for sign in (b": ", b"- ", b"[") if (n := content.find(sign, at)) >= 0]
            at = min(starts, default=at) + 2
        end = at + draw(st.sampled_from([0, 0, 1, 2, 10, 80, 1000]))
        if draw(st.booleans()):
            ends = [n for sign in b"\n,]}" if (n := content.find(sign, at)) >= 0]
            end = min(ends, default=at)
        other = draw(st.integers(0, len(content)))
        new = draw(
            st.sampled_from(TOKENS) | st.binary(max_size=3) | st.just(content[other : other + 90])
        )
        content = content[:at] + new + content[end:]
    return content


def places(data: Any) -> Iterator[tuple[Any, Any]]:
    """Every list and mapping in ``data`` with each of its keys."""
    for key in list(data) if isinstance(data, dict) else range(len(data)):
        yield data, key
        if isinstance(data[key], dict | list):
            yield from places(data[key])


@st.composite
def structure_of(draw: st.DrawFn, data: Any) -> bytes:
    """The data with up to three values replaced, moved, renamed, wrapped or left out."""
    data = copy.deepcopy(data)
    for _ in range(draw(st.integers(1, 3))):
        every = list(places(data))
        if not every:
            break
        (where, key), (there, other) = draw(st.sampled_from(every)), draw(st.sampled_from(every))
        how = draw(st.sampled_from(["value", "value", "value", "move", "name", "wrap", "drop"]))
        if how == "value":
            where[key] = copy.deepcopy(draw(st.sampled_from(VALUES)))
        elif how == "move":
            where[key] = copy.deepcopy(there[other])
        elif how == "wrap":
            where[key] = draw(st.sampled_from([[where[key]], {"x": where[key]}]))
        elif how == "drop":
            del where[key]
        elif isinstance(where, dict):
            name = draw(st.sampled_from([v for v in VALUES if isinstance(v, str)]) | st.just(other))
            where[name] = where.pop(key)
    return yaml.dump(data, Dumper=yaml.CSafeDumper, sort_keys=False).encode()


files = st.sampled_from(list(TEXTS)).flatmap(
    lambda name: st.tuples(st.just(name), bytes_of(TEXTS[name]) | structure_of(DATA[name]))
)


@settings(max_examples=int(os.environ.get("MUTANTS", "300")))
@given(file=files)
def test_a_bad_file_is_refused_in_words(folder: Path, file: tuple[str, bytes]) -> None:
    error = use(folder, *file)
    if error is None:
        return
    message = f"{error.message}\n{error.detail}"
    for word in ("Input should", "instance of", "valid dictionary", "[key]", "function-"):
        assert word not in message
    if isinstance(error, ConfigError):
        for problem in error.problems:
            assert problem.todo
            assert problem.line >= 1
    else:
        assert error.hint
