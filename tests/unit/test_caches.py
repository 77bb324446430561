"""Saved compiled caches: their keys, what ranks share, and the folder that they are kept in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from sparkimage.config.profiles import Profile
from sparkimage.core.errors import StoreError
from sparkimage.serve.cache_store import CacheStore, Key, Saved, split
from sparkimage.serve.caches import settings_of

KEY = Key(digest="sha256:" + "a" * 64, model="m" * 64, profile="four", settings="s", gpus="GB10")
PROFILE = Profile(variants=["*"])


def keep(store: CacheStore, key: Key = KEY, text: str = "kernel") -> Saved:
    new = store.root / ".new-1" / "new"
    new.mkdir(parents=True)
    (new / "shared.tar").write_text(text)
    (new / "shared.sums").write_text(f"{'1' * 64}  vllm/{text}\n")
    return store.keep(new, key, variant="good", model="/m", ranks=1, by="me")


@pytest.fixture
def store(tmp_path: Path) -> CacheStore:
    return CacheStore(tmp_path / "caches")


def test_what_all_ranks_have_alike_is_shared() -> None:
    first = {"vllm/a": "1", "vllm/rank_0": "2", "triton/t": "3"}
    second = {"vllm/a": "1", "vllm/rank_1": "2", "triton/t": "4"}
    assert split([first, second]) == {
        "shared": {"vllm/a": "1"},
        "rank-0": {"vllm/rank_0": "2", "triton/t": "3"},
        "rank-1": {"vllm/rank_1": "2", "triton/t": "4"},
    }
    assert split([first]) == {"shared": first}
    assert split([{}, {}]) == {}


def test_a_key_has_all_that_kernels_depend_on() -> None:
    assert settings_of(PROFILE) == settings_of(replaced(port=9000, shm_size="2g"))
    assert settings_of(PROFILE) != settings_of(replaced(env={"A": "1"}))
    others = [replace(KEY, **{name: "x"}) for name in ("digest", "model", "settings", "gpus")]
    assert len({KEY.id, *(other.id for other in others)}) == 5
    assert [KEY.differences(other) for other in others] == [
        ["image"], ["model"], ["profile"], ["GPU"],
    ]  # fmt: skip
    assert KEY.differences(KEY) == []


def replaced(**fields: object) -> Profile:
    return Profile.model_validate({"variants": ["*"], **fields})


def test_only_the_very_key_is_found(store: CacheStore) -> None:
    saved = keep(store)
    assert store.find(KEY) == saved
    assert store.find(replace(KEY, gpus="GB200")) is None
    assert saved.parts(3) == ["shared"]
    assert store.sums(saved, 3) == f"{'1' * 64}  vllm/kernel\n"
    assert [one.path for one in store.source(saved).files] == ["shared.sums", "shared.tar"]


def test_new_ones_replace_the_old_ones(store: CacheStore) -> None:
    old = keep(store)
    new = keep(store, text="more kernels")
    assert store.all() == [new]
    assert not store.folder(old).exists()


def test_a_record_that_is_not_its_own_is_damaged(store: CacheStore) -> None:
    keep(store)
    assert store.may_have(KEY.digest)
    assert not store.may_have("sha256:" + "b" * 64)
    file = store.root / f"{KEY.id}.json"
    for text in ("{", json.dumps({**json.loads(file.read_text()), "key": {}}), "[]",
                 file.read_text().replace("four", "five")):  # fmt: skip
        file.write_text(text)
        assert store.all() == []
        assert store.may_have("sha256:" + "b" * 64)
        with pytest.raises(StoreError, match="is damaged"):
            store.find(KEY)


def test_an_archive_that_is_gone_or_shorter_is_damaged(store: CacheStore) -> None:
    saved = keep(store)
    archive = store.folder(saved) / "shared.tar"
    archive.write_text("kerne")
    with pytest.raises(StoreError, match=r"shared\.tar is not as it was saved"):
        store.source(saved)
    archive.unlink()
    with pytest.raises(StoreError, match=r"shared\.tar is not as it was saved"):
        store.source(saved)


def test_those_of_no_image_are_removed(store: CacheStore) -> None:
    saved = keep(store)
    gone = keep(store, replace(KEY, digest="sha256:" + "b" * 64), "old")
    (store.root / f"{KEY.id}-0000").mkdir()
    assert store.collect([KEY.digest]) == len("old") + len(f"{'1' * 64}  vllm/old\n")
    assert store.all() == [saved]
    assert not store.folder(gone).exists()
    assert not (store.root / f"{KEY.id}-0000").exists()
    # What another command writes to just now stays.
    assert (store.root / ".new-1").exists()
    assert store.collect([]) > 0
    assert store.all() == []
