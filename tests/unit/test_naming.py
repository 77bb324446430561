"""What a published image is called."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkimage.config import planning
from sparkimage.config.plan import Expected
from sparkimage.core.errors import UsageError, VerifyError
from sparkimage.image.layerindex import image_files
from sparkimage.image.store import Store
from sparkimage.registry import tags
from sparkimage.registry.publish import channels
from sparkimage.registry.tags import Measured, ordered, version_tag
from tests.unit import elf_maker, good_maker
from tests.unit import project_maker as maker

DIST = good_maker.DIST


def files(tmp_path: Path, *more: good_maker.Files) -> tags.Measured:
    store = Store.open(tmp_path)
    layers = [good_maker.put_layer(store, one) for one in (*good_maker.stack(), *more)]
    config = good_maker.config([id for _, id in layers])
    image = good_maker.put_image(store, config, [blob for blob, _ in layers])
    return tags.measure(image_files(store, image), good_maker.plan().expect)


def test_versions_are_measured_in_the_layers(tmp_path: Path) -> None:
    seen = files(tmp_path)
    assert seen == Measured(project="vllm", version="0.32.0+x", cuda="13.0", nccl="2.30.4")


def test_what_a_higher_layer_removed_is_not_measured(tmp_path: Path) -> None:
    seen = files(
        tmp_path,
        {f"{DIST}/vllm-0.31.0.dist-info/METADATA": b""},
        {f"{DIST}/.wh.vllm-0.31.0.dist-info": b""},
    )
    assert seen.version == "0.32.0+x"


def test_what_is_not_expected_is_measured_where_it_is_there_once(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    other = {"opt/libnccl.so.2.28.9": elf_maker.nccl("arm64", "2.28.9")}
    layers = [good_maker.put_layer(store, one) for one in (*good_maker.stack(), other)]
    config = good_maker.config([id for _, id in layers])
    image = good_maker.put_image(store, config, [blob for blob, _ in layers])
    seen = tags.measure(image_files(store, image), Expected())
    assert seen == Measured(cuda="13.0")
    assert Measured.from_dict(seen.to_dict()) == seen
    full = Measured(project="vllm", version="0.32.0", nccl="2.30.4")
    assert full.to_dict() == {"vllm": "0.32.0", "nccl": "2.30.4"}
    assert Measured.from_dict(full.to_dict()) == full


def test_two_versions_have_no_tag(tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match=r"2 versions of nccl: 2.28.9, 2.30.4"):
        files(tmp_path, {"opt/libnccl.so.2.28.9": elf_maker.nccl("arm64", "2.28.9")})


@pytest.mark.parametrize(
    ("measured", "tag"),
    [
        (
            Measured(version="0.32.0", cuda="13.0", nccl="2.30.4"),
            "0.32.0-cu130-nccl2.30.4-01234567",
        ),
        (
            Measured(version="1.dev2+gab", cuda="13.0", nccl="2.30.4"),
            "1.dev2_gab-cu130-nccl2.30.4-01234567",
        ),
        (Measured(nccl="2.30.4"), "nccl2.30.4-01234567"),
        (Measured(), "lock-01234567"),
    ],
)
def test_tags_say_what_was_measured(measured: Measured, tag: str) -> None:
    assert version_tag(measured, "0123456789abcdef") == tag


def test_versions_of_python_and_semver_are_ordered_alike() -> None:
    names = ["0.1.0-dev3", "0.31.2", "0.32.0.dev5", "0.32.0rc1", "0.32.0", "0.32.0.post1", "1.0"]
    assert sorted(names, key=ordered) == names
    assert ordered(None) < ordered("0.0.1")
    assert ordered("0.32.0+cu130") == ordered("0.32.0")


def test_platforms_must_hold_the_same() -> None:
    one, two = Measured(version="1.0"), Measured(version="1.1")
    assert tags.agree([("a", one), ("b", one)]) == one
    with pytest.raises(VerifyError, match="different versions"):
        tags.agree([("a", one), ("b", two)])


def test_one_lock_stands_for_itself_and_several_for_all() -> None:
    assert tags.joint_checksum({"a": "1" * 64}) == "1" * 64
    both = tags.joint_checksum({"a": "1" * 64, "b": "2" * 64})
    assert both == tags.joint_checksum({"b": "2" * 64, "a": "1" * 64})
    assert both != tags.joint_checksum({"a": "2" * 64, "b": "1" * 64})


@pytest.mark.parametrize(
    ("names", "chosen", "said"),
    [
        (("x-amd64",), {}, ()),
        (("x-amd64", "x-arm64"), {"stable": ["x-*"]}, ("stable",)),
        (("x-amd64",), {"stable": ["x-*"]}, "would lack the platforms x-arm64"),
        (("x-amd64",), {"stable": ["x-amd64"]}, "would lack the platforms x-arm64"),
        (("x-amd64", "y-arm64"), {}, "differ by more than their platform"),
        (("y-arm64",), {"stable": ["x-*"]}, ()),
    ],
)
def test_an_index_is_whole_or_refused(
    tmp_path: Path,
    names: tuple[str, ...],
    chosen: dict[str, list[str]],
    said: str | tuple[str, ...],
) -> None:
    data = maker.document(
        {"os": {"trixie": maker.OS}},
        {"os": {"base": "os"}, "more": {}},
        [
            maker.include("x-amd64", "os", platform="linux/amd64", os="trixie"),
            maker.include("x-arm64", "os", os="trixie"),
            maker.include("y-arm64", "os", "more", os="trixie"),
        ],
    )
    read = maker.write(tmp_path, {**data, "channels": chosen})
    given = [one for one in read.variants if one.name in names]
    plans = planning.make_all(read, given, maker.locked(read), maker.ORIGIN)
    if isinstance(said, str):
        with pytest.raises(UsageError, match=said):
            channels(read, plans)
    else:
        assert channels(read, plans) == said
