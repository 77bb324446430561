"""Which wheel an installer takes on a platform, and what uv's failures mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from sparkimage.config.address import WHEELS, Mirrors
from sparkimage.core.errors import LockError, NetworkError
from sparkimage.resolve import wheels


def package(*files: str, **more: Any) -> dict[str, Any]:
    return {
        "name": "x",
        "version": "1.0",
        "wheels": [
            {"url": f"https://files.example.org/{f}", "hashes": {"sha256": f * 2}, "size": 5}
            for f in files
        ],
        **more,
    }


def pylock(package: dict[str, Any]) -> dict[str, Any]:
    return {"lock-version": "1.0", "created-by": "uv", "packages": [package]}


def pick(platform: str, *files: str, python: str = "3.13", glibc: str = "2.39") -> str:
    (wheel,) = wheels.pick(pylock(package(*files)), "pin 1", platform, python, glibc, None)
    return wheel.file


PURE = "x-1.0-py3-none-any.whl"
ARM = "x-1.0-cp313-cp313-manylinux_2_28_aarch64.whl"
ARM_OLD = "x-1.0-cp313-cp313-manylinux2014_aarch64.manylinux_2_17_aarch64.whl"
ARM_STABLE = "x-1.0-cp39-abi3-manylinux_2_28_aarch64.whl"
AMD = "x-1.0-cp313-cp313-manylinux1_x86_64.whl"


@pytest.mark.parametrize(
    ("platform", "files", "best"),
    [
        ("linux/arm64", (PURE, ARM, AMD), ARM),
        ("linux/amd64", (PURE, ARM, AMD), AMD),
        ("linux/amd64", (ARM, PURE), PURE),
        ("linux/arm64", (ARM_OLD, ARM), ARM),
        ("linux/arm64", (ARM_STABLE, ARM_OLD), ARM_OLD),
        ("linux/arm64", (PURE, ARM_STABLE), ARM_STABLE),
    ],
)
def test_the_best_tag_is_taken_in_any_order(
    platform: str, files: tuple[str, ...], best: str
) -> None:
    assert pick(platform, *files) == best
    assert pick(platform, *reversed(files)) == best


@pytest.mark.parametrize(
    "file",
    [
        AMD,
        "x-1.0-cp313-cp313-musllinux_1_2_aarch64.whl",
        "x-1.0-cp313-cp313-manylinux_2_40_aarch64.whl",
        "x-1.0-cp312-cp312-manylinux_2_28_aarch64.whl",
        "x-1.0-cp313-cp313-macosx_11_0_arm64.whl",
        "x-1.0-cp313-cp313-win_arm64.whl",
    ],
)
def test_what_does_not_run_there_is_not_taken(file: str) -> None:
    with pytest.raises(LockError, match=r"pin 1: x 1\.0 has no wheel for linux/arm64"):
        pick("linux/arm64", file)


def test_a_local_wheel_has_a_path_and_its_size_from_the_disk(tmp_path: Path) -> None:
    (tmp_path / "x-1.0+local-py3-none-any.whl").write_bytes(b"12345678")
    path = "some/x-1.0+local-py3-none-any.whl"
    local = {
        "name": "x",
        "version": "1.0+local",
        "wheels": [{"path": path, "hashes": {"sha256": "a" * 64}}],
    }
    (wheel,) = wheels.pick(pylock(local), "pin 1", "linux/amd64", "3.13", "2.39", tmp_path)
    assert (wheel.file, wheel.size) == ("x-1.0+local-py3-none-any.whl", 8)


def test_a_quoted_address_is_unquoted() -> None:
    address = "https://files.example.org/x-1.0%2Blocal-py3-none-any.whl#frag"
    local = {
        "name": "x",
        "version": "1.0+local",
        "wheels": [{"url": address, "hashes": {"sha256": "a" * 64}}],
    }
    (wheel,) = wheels.pick(pylock(local), "pin 1", "linux/amd64", "3.13", "2.39", None)
    assert wheel.file == "x-1.0+local-py3-none-any.whl"


@pytest.mark.parametrize(
    ("output", "kind", "what"),
    [
        ("error sending request for url", NetworkError, "the wheel index cannot be reached"),
        ("dns error: no such host", NetworkError, "the wheel index cannot be reached"),
        ("because x==9 was not found", LockError, "cannot be resolved"),
    ],
)
def test_no_network_is_not_no_version(output: str, kind: type[Exception], what: str) -> None:
    error = wheels._explain("pin x 1 on linux/arm64", output, ())
    assert isinstance(error, kind)
    assert what in str(error)
    assert "pin x 1 on linux/arm64" in str(error)


# As uv writes it, wrapped as on a terminal, and with what came before.
WITHDRAWN = [
    (("  x No solution found when resolving dependencies:\n"
     "  ╰─▶ Because there is no version of nvidia-nccl-cu13==2.30.4 and you require\n"
     "      nvidia-nccl-cu13==2.30.4, we can conclude that your requirements are\n"
     "      unsatisfiable.\n"), ("nvidia-nccl-cu13==2.30.4",)),
    (("error: No solution found when resolving dependencies\n"
     "  cause: Because there is no version of b[x]==3.0 and all versions of a depend on b[x]==3.0, "
     "we can conclude that all versions of a cannot be used.\n"
     "         And because you require a==1.0, we can conclude that your requirements are "
     "unsatisfiable.\n"), ("b==3.0",)),
    (("Because there is no\n      version of torch==2.9.0+cu130 and you require "
     "torch==2.9.0+cu130, we can conclude …"), ("torch==2.9.0+cu130",)),
    (("Because there is no version of a==1 and there is no version of b==2, … Because there is no "
     "version of a==1, …"), ("a==1", "b==2")),
    ("  cause: Hash mismatch for `b==1.0`\n\n  Expected:\n    sha256:00\n", ()),
    ("error: Failed to fetch: `https://files.example.org/x-1.0-py3-none-any.whl`\n", ()),
    ("Because only a<=1.0 is available and you require a>=2, we can conclude …", ()),
    ("", ()),
]  # fmt: skip


@pytest.mark.parametrize(("said", "gone"), WITHDRAWN)
def test_what_uv_says_was_withdrawn(said: str, gone: tuple[str, ...]) -> None:
    assert wheels.withdrawn(said) == gone


@pytest.mark.parametrize(
    ("said", "other"),
    [
        ("error: Failed to download `b==1.0`\n  cause: Hash mismatch for `b==1.0`\n", True),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", True),
        (WITHDRAWN[0][0], False),
        ("", False),
    ],
)
def test_what_says_that_a_file_was_altered(said: str, other: bool) -> None:
    refused = wheels.refused("x", said)
    assert (refused is not None and "another hash" in refused.message) is other


def test_a_withdrawn_wheel_is_named_with_its_pin() -> None:
    error = wheels._explain("pin nccl 2.30.4 on linux/arm64", WITHDRAWN[0][0], ())
    assert isinstance(error, LockError)
    assert "pin nccl 2.30.4 on linux/arm64" in error.message
    assert "nvidia-nccl-cu13==2.30.4" in error.message
    assert "name a mirror" in error.hint


def test_a_mirror_is_in_the_environment_and_not_in_the_arguments() -> None:
    address = "https://user:secret@index.example/simple"
    said = wheels.environment(Mirrors(rules={WHEELS: address}))
    assert said["UV_DEFAULT_INDEX"] == said["PIP_INDEX_URL"] == address
    assert not {"UV_DEFAULT_INDEX", "PIP_INDEX_URL"} & set(wheels.environment(Mirrors()))


def test_the_ca_bundle_that_the_user_names_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text("x")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "nothing.pem"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(bundle))
    assert wheels.ca_bundle() == str(bundle)
