"""A model's manifest, what a node has of it, and the plan of its transfers."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkimage.core.errors import NodeError, UsageError
from sparkimage.nodes import model_plan, model_store
from sparkimage.nodes.model_manifest import Entry, Manifest, hash_all, scan
from sparkimage.nodes.model_plan import (
    HERE,
    FolderState,
    build,
    differences,
    lacking,
    misbuilt,
    plan,
    split,
    to_hash,
)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make(folder: Path, cache: Path) -> Manifest:
    return hash_all(scan(folder), cache, lambda _: None)


def write(folder: Path, **files: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


# The manifest


def test_manifest_of_a_plain_folder(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", b=b"two", a=b"one")
    write(folder / "sub", c=b"two")
    (folder / ".cache").mkdir()
    (folder / ".gitattributes").write_text("hidden")
    made = make(folder, tmp_path / "cache.json")
    assert made.entries == (
        Entry(path="a", size=3, sha256=sha(b"one")),
        Entry(path="b", size=3, sha256=sha(b"two")),
        Entry(path="sub/c", size=3, sha256=sha(b"two")),
    )
    # Each content once.
    assert made.size == 6
    assert made.text == f"{sha(b'one')} 3 a\n{sha(b'two')} 3 b\n{sha(b'two')} 3 sub/c\n"
    assert made.digest == sha(made.text.encode())


def test_files_that_have_not_changed_are_not_read_again(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", a=b"one", b=b"two")
    cache = tmp_path / "cache.json"
    first = make(folder, cache)
    stat = (folder / "a").stat()
    with (folder / "a").open("r+b") as file:
        file.write(b"eno")
    os.utime(folder / "a", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert make(folder, cache) == first
    os.utime(folder / "a")
    assert make(folder, cache).entries[0].sha256 == sha(b"eno")
    # A cache that is no cache is made anew.
    cache.write_text("[]")
    assert make(folder, cache).entries[1] == first.entries[1]


def hub(folder: Path) -> Path:
    """A repository of Hugging Face's cache, whose large blob is not what its name says."""
    small = b"{}"
    git = hashlib.sha1(b"blob 2\0" + small, usedforsecurity=False).hexdigest()
    for name in ("blobs", "refs", "snapshots/1"):
        (folder / name).mkdir(parents=True)
    (folder / "refs" / "main").write_text("1")
    write(folder / "blobs", **{"5" * 64: b"large", git: small})
    (folder / "snapshots" / "1" / "large.safetensors").symlink_to(f"../../blobs/{'5' * 64}")
    (folder / "snapshots" / "1" / "config.json").symlink_to(f"../../blobs/{git}")
    return folder


def test_manifest_of_hugging_faces_cache(tmp_path: Path) -> None:
    repo = hub(tmp_path / "models--o--m")
    made = {entry.path: entry for entry in make(repo, tmp_path / "1.json").entries}
    # Named by its sha256, which is not computed again; the node does that.
    assert made[f"blobs/{'5' * 64}"].sha256 == "5" * 64
    link = made["snapshots/1/large.safetensors"]
    assert (link.sha256, link.size, link.link) == ("5" * 64, 5, f"../../blobs/{'5' * 64}")
    assert made["snapshots/1/config.json"].sha256 == sha(b"{}")
    # A snapshot alone: its links lead out of the folder, so they become files.
    snapshot = make(repo / "snapshots" / "1", tmp_path / "2.json").entries
    assert [(entry.path, entry.link) for entry in snapshot] == [
        ("config.json", ""), ("large.safetensors", ""),
    ]  # fmt: skip


def test_small_blob_that_is_corrupt(tmp_path: Path) -> None:
    repo = hub(tmp_path / "models--o--m")
    (blob,) = (path for path in (repo / "blobs").iterdir() if len(path.name) == 40)
    blob.write_bytes(b"[]")
    with pytest.raises(UsageError, match=f"{blob} is corrupt: git's hash of it is ") as error:
        make(repo, tmp_path / "1.json")
    assert "download the model again" in error.value.hint


def test_all_problems_of_a_folder_at_once(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "m",
        **{
            "a\nb": b"", "part.incomplete": b"1", "good": b"1",
            "w.safetensors": b"version https://git-lfs.github.com/spec/v1\noid sha256:55\n",
        },
    )  # fmt: skip
    (folder / "broken").symlink_to("nowhere")
    (folder / "loop").symlink_to(".")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.path.relpath(folder / "socket"))
        with pytest.raises(UsageError) as error:
            scan(folder)
    assert error.value.message == f"6 problems in {folder}"
    assert error.value.detail.splitlines() == [
        f"'{folder}/a\\nb': control character or backslash in its name",
        f"{folder}/broken: a broken link",
        f"{folder}/loop: a link to a folder above it",
        f"{folder}/part.incomplete: a download that is not complete",
        f"{folder}/socket: not a file",
        f"{folder}/w.safetensors: a Git LFS pointer, not the file; git lfs pull",
    ]


@pytest.mark.parametrize("name", ["nothing", "file", "empty"])
def test_no_model(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="is not a folder" if name != "empty" else "1 problem in"):
        scan(tmp_path / name)


def test_manifests_are_kept_by_path(tmp_path: Path) -> None:
    made = Manifest(entries=(Entry(path="a", size=3, sha256=sha(b"one")),))
    for folder in ("/models/b", "/models/a"):
        model_store.keep(tmp_path, folder, made, source="/m", by="me", nodes=["node1"])
    (tmp_path / "models" / "other.json").write_text("{}")
    assert [model.folder for model in model_store.kept(tmp_path)] == ["/models/a", "/models/b"]
    found = model_store.find(tmp_path, "/models/b")
    assert found is not None
    assert found.manifest == made
    assert model_store.find(tmp_path, "/models") is None


# A node


MODEL = Manifest(
    entries=(
        Entry(path="a", size=3, sha256="a" * 64),
        Entry(path="b", size=5, sha256="b" * 64),
        Entry(path="l", size=5, sha256="b" * 64, link="b"),
    )
)
LISTED = "3 11 1.5 ./a\n5 12 1.5 ./b\n5 12 1.5 ./l\n"


def look(
    manifest: str = "", listing: str = "", files: str = "", staged: str = "", facts: str = ""
) -> FolderState:
    return FolderState.read(
        "node1",
        f"@@ state\nstate=folder\nplace=/models\nwritable=yes\nfree=1000\n{facts}@@ manifest\n"
        f"{manifest}@@ listing\n{listing}@@ files\n{files}@@ staged\n{staged}@@ end\n",
    )


def test_folder_that_is_as_it_was_proven() -> None:
    state = look(MODEL.text, LISTED, LISTED)
    assert state.digest == MODEL.digest
    assert state.free == 1_024_000
    assert state.as_listed() == LISTED
    assert differences(MODEL, state) == []
    assert to_hash(MODEL, state) == []
    assert lacking(MODEL, state) == {}


def test_folder_that_differs() -> None:
    files = LISTED.replace("3 11 1.5 ./a", "3 11 2.5 ./a").replace("./l", "./x")
    state = look(MODEL.text, LISTED, files)
    assert differences(MODEL, state) == [
        "a is not proven, or has changed since", "l is missing", "x is not in the manifest",
    ]  # fmt: skip
    other = look(MODEL.text.replace("a" * 64, "c" * 64), LISTED, LISTED.replace("5 12", "6 12"))
    assert differences(MODEL, other) == [
        "a has another sha256", "b has 6 bytes, not 5", "l has 6 bytes, not 5",
    ]  # fmt: skip


def test_copy_by_hand_is_hashed_once_for_each_file() -> None:
    state = look(files=LISTED)
    assert [entry.path for entry in to_hash(MODEL, state)] == ["a", "b"]
    hashed = state.with_hashes({"a": "a" * 64, "b": "b" * 64})
    assert differences(MODEL, hashed) == []
    # Which the next look does not forget, but for what has changed meanwhile.
    assert differences(MODEL, look(files=LISTED).after(hashed)) == []
    later = look(files=LISTED.replace("3 11 1.5", "3 11 1.6")).after(hashed)
    assert differences(MODEL, later) == ["a is not proven, or has changed since"]


def test_what_is_lacking() -> None:
    state = look(staged=f"5 {'b' * 64}\n2 {'a' * 64}.part\n")
    assert lacking(MODEL, state) == {"a" * 64: 1}
    assert state.arrived == 7
    # A file that was written to after it was proven is none.
    assert lacking(MODEL, look(staged=f"6 {'b' * 64}\n")) == {"a" * 64: 3, "b" * 64: 5}


def test_output_that_is_cut_off() -> None:
    with pytest.raises(NodeError, match="node1: cannot look at its model folder"):
        FolderState.read("node1", "@@ state\nstate=folder\n")


def test_new_folder_takes_what_is_there() -> None:
    renamed = LISTED.replace("./a", "./former a")
    state = look(MODEL.text.replace(" a\n", " former a\n"), renamed, renamed)
    state = model_plan.FolderState(**{**vars(state), "staged": {"b" * 64: 5}})
    assert build(MODEL, state) == (
        f"{MODEL.text}@@\nold former a\na\nblob {'b' * 64}\nb\nlink b\nl\n"
    )
    built = {"a": "3 11 1.5", "b": "5 20 2.5", "l": "5 20 2.5"}
    assert misbuilt(MODEL, state, built) == []
    assert misbuilt(MODEL, state, {**built, "a": "3 11 9.9", "b": "6 20 2.5", "x": "1 1 1"}) == [
        "b is not complete in the new folder", "a has changed since it was hashed",
        "x is not in the manifest",
    ]  # fmt: skip


# The plan


NONE: dict[str, dict[str, int]] = {"1": {}, "2": {}, "3": {}}


def test_one_chain_for_all_nodes_that_lack_the_same() -> None:
    contents = {"x": 10, "y": 20, "z": 30}
    needs = {"1": {"x", "y"}, "2": {"y"}, "3": {"x", "y"}}
    chains = plan(contents, NONE, needs)
    assert [(chain.nodes, [piece.sha256 for piece in chain.pieces]) for chain in chains] == [
        (("1", "3"), ["x"]), (("1", "2", "3"), ["y"]),
    ]  # fmt: skip
    assert sum(chain.size for chain in chains) == 30


def test_part_that_is_there_is_not_sent_again() -> None:
    parts = {"1": {"x": 7}, "2": {"x": 4}}
    (chain,) = plan({"x": 10}, parts, {"1": {"x"}, "2": {"x"}})
    (piece,) = chain.pieces
    # The first drops what it has.
    assert (piece.offset, piece.length) == (4, 6)


def test_large_files_go_through_several_connections() -> None:
    contents = {str(number): 500_000_000 for number in range(9)}
    chains = plan(contents, {"1": {}}, {"1": set(contents)})
    assert len(chains) == model_plan.STREAMS
    assert sorted(len(chain.pieces) for chain in chains) == [2, 2, 2, 3]
    assert len(plan({"x": 500}, {"1": {}}, {"1": {"x"}})) == 1


@pytest.mark.parametrize(
    ("cut", "chains"),
    [
        ([], [("1", "2", "3")]),
        ([("1", "2")], [("1",), ("2", "3")]),
        ([("1", "2"), ("2", "3")], [("1",), ("2",), ("3",)]),
        # What is lost from here is tried by itself, and stops nobody.
        ([(HERE, "1")], [("2", "3"), ("1",)]),
        ([(HERE, "2")], [("1", "3"), ("2",)]),
    ],
)
def test_hops_that_failed_are_not_used(
    cut: list[tuple[str, str]], chains: list[tuple[str, ...]]
) -> None:
    assert split(("1", "2", "3"), cut) == chains


NODES = st.sampled_from(["1", "2", "3", "4"])


@given(
    contents=st.dictionaries(
        st.text("abcdef", min_size=1, max_size=2), st.integers(0, 2_000_000_000)
    ),
    data=st.data(),
)
def test_every_node_gets_all_that_it_lacks_once(
    contents: dict[str, int], data: st.DataObject
) -> None:
    some = st.sets(st.sampled_from(sorted(contents))) if contents else st.just(set())
    needs = {node: data.draw(some) for node in "1234"}
    cut = data.draw(st.sets(st.tuples(st.sampled_from(["", "1", "2", "3", "4"]), NODES)))
    parts: dict[str, dict[str, int]] = {node: {} for node in needs}
    chains = plan(contents, parts, needs, cut)
    got = [(node, p.sha256) for chain in chains for node in chain.nodes for p in chain.pieces]
    assert sorted(got) == sorted((node, sha256) for node in needs for sha256 in needs[node])
    hops = {hop for chain in chains for hop in zip(chain.nodes, chain.nodes[1:], strict=False)}
    assert not hops & cut
