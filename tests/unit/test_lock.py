"""The lock: what it says against a matrix, and that damage in it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkimage import lock, matrix
from sparkimage.errors import LockError
from sparkimage.lock import Lock, Wheel, WheelsEntry

PROJECT = Path(__file__).resolve().parents[2]
ONE = Wheel(name="a", version="1.0", file="a-1.0-py3-none-any.whl", size=3, sha256="a" * 64)
ASKED = {"require": ["a==1.0"], "exclude": [], "python": "3.13"}


def entry(*platforms: str) -> WheelsEntry:
    return WheelsEntry(asked=ASKED, platforms=dict.fromkeys(platforms, (ONE,)))


@pytest.mark.parametrize("pin", ["no", "on", "null", "y", "1", "2e3"])
@pytest.mark.parametrize("value", ["no", "2.30", "1:30", "a b", 'with "quotes"', "~"])
def test_no_name_becomes_something_else(tmp_path: Path, pin: str, value: str) -> None:
    made = Lock(file="matrix.lock", entries={(pin, value): entry("linux/arm64")})
    (tmp_path / "matrix.lock").write_text(lock.dump(made))
    assert lock.load(tmp_path / "matrix.lock") == made


def test_a_matrix_without_wheels_has_a_lock_without_pins(tmp_path: Path) -> None:
    empty = Lock(file="matrix.lock", entries={})
    (tmp_path / "matrix.lock").write_text(lock.dump(empty))
    assert lock.load(tmp_path / "matrix.lock") == empty


def test_order_in_is_not_order_out() -> None:
    two = Wheel(name="b", version="1.0", file="b.whl", size=3, sha256="b" * 64)
    entries = {
        ("p", "1"): WheelsEntry(
            asked=ASKED, platforms={"linux/arm64": (two, ONE), "linux/amd64": (ONE,)}
        ),
        ("a", "1"): entry("linux/amd64"),
    }
    turned = {
        ("a", "1"): entry("linux/amd64"),
        ("p", "1"): WheelsEntry(
            asked=ASKED, platforms={"linux/amd64": (ONE,), "linux/arm64": (ONE, two)}
        ),
    }
    assert lock.dump(Lock(file="f", entries=entries)) == lock.dump(Lock(file="f", entries=turned))


def test_the_real_lock_without_one_platform() -> None:
    read = matrix.load(PROJECT / "matrix.yaml")
    held = lock.load(PROJECT / "matrix.lock")
    vllm = held.entries["vllm", "0.32.0"]
    lacking = WheelsEntry(
        asked=vllm.asked,
        platforms={p: w for p, w in vllm.platforms.items() if p != "linux/amd64"},
    )
    entries = {**held.entries, ("vllm", "0.32.0"): lacking}
    assert lock.check(read, Lock(file="f", entries=entries)) == [
        "pin vllm 0.32.0 is not locked for linux/amd64"
    ]
    with pytest.raises(LockError, match=r"f holds nothing for pin vllm 0.32.0 on linux/amd64"):
        Lock(file="f", entries=entries).wheels("vllm", "0.32.0", "linux/amd64")


def test_every_disagreement_is_told_at_once() -> None:
    read = matrix.load(PROJECT / "matrix.yaml")
    held = lock.load(PROJECT / "matrix.lock")
    entries = dict(held.entries)
    del entries["nccl", "2.30.7"]
    entries["old", "1"] = entry("linux/arm64")
    entries["vllm", "0.32.0"] = entry("linux/arm64")
    assert lock.check(read, Lock(file="f", entries=entries)) == [
        "pin nccl 2.30.7 is not locked",
        "pin vllm 0.32.0 asks for something else than was locked",
        "pin vllm 0.32.0 is not locked for linux/amd64",
        "pin old 1 is locked but no variant uses it",
    ]


GOOD = lock.dump(Lock(file="f", entries={("p", "1"): entry("linux/arm64")}))


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("a" * 64, "a" * 63, "is damaged"),
        ("a" * 64, "g" * 64, "is damaged"),
        ("a 1.0 3", "a 1.0 three", "is damaged"),
        ("a 1.0 3", "a 1.0", "is damaged"),
        ("asked:", "axed:", "is damaged"),
        ("linux/arm64:\n", "linux/arm64: [\n", "cannot be read"),
        ("version: 1", "version: 2", "is not a lock of version 1"),
    ],
)
def test_damage_is_told_with_the_remedy(tmp_path: Path, old: str, new: str, what: str) -> None:
    assert old in GOOD
    path = tmp_path / "matrix.lock"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(LockError, match=f"^matrix.lock {what}") as error:
        lock.load(path)
    assert error.value.hint == lock.REMEDY


def test_a_missing_lock_is_told_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(LockError, match=r"^matrix.lock is missing$") as error:
        lock.load(tmp_path / "matrix.lock")
    assert error.value.hint == lock.REMEDY
    with pytest.raises(LockError, match="cannot be read"):
        lock.load(tmp_path)
