"""Names of images, and the mirrors of addresses."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparkimage.config import mirrors
from sparkimage.config.address import Mirrors, Place, image_name, parse_rules
from sparkimage.core.errors import ConfigError, UsageError

DIGEST = f"sha256:{'a' * 64}"


@pytest.mark.parametrize(
    ("text", "repository", "tag", "digest"),
    [
        ("debian", "docker.io/library/debian", None, None),
        ("debian:13", "docker.io/library/debian", "13", None),
        ("nvidia/cuda:13.0", "docker.io/nvidia/cuda", "13.0", None),
        ("registry.example/a/b", "registry.example/a/b", None, None),
        ("localhost/a", "localhost/a", None, None),
        ("localhost:5000/a", "localhost:5000/a", None, None),
        ("registry.example:5000/a/b:c", "registry.example:5000/a/b", "c", None),
        (f"debian@{DIGEST}", "docker.io/library/debian", None, DIGEST),
        (f"registry:5000/a:b@{DIGEST}", "registry:5000/a", "b", DIGEST),
    ],
)
def test_a_name_is_parsed_as_docker_does(
    text: str, repository: str, tag: str | None, digest: str | None
) -> None:
    name = image_name(text)
    assert (name.repository, name.tag, name.digest) == (repository, tag, digest)
    # In full it reads as itself.
    assert image_name(str(name)) == name


@pytest.mark.parametrize(
    ("text", "registry", "repository", "loopback"),
    [
        ("r.example:5000/a/b", "r.example:5000", "a/b", False),
        ("127.0.0.1:5000/a", "127.0.0.1:5000", "a", True),
        ("localhost/a", "localhost", "a", True),
        ("[::1]:5000/a", "[::1]:5000", "a", True),
        ("team/image", "docker.io", "team/image", False),
        ("127.0.0.1.example/a", "127.0.0.1.example", "a", False),
    ],
)
def test_places(text: str, registry: str, repository: str, loopback: bool) -> None:
    place = Place.parse(text)
    assert (place.registry, place.repository) == (registry, repository)
    assert place.is_loopback is loopback


def test_the_default_registry_by_name_is_the_default_registry() -> None:
    assert image_name("docker.io/debian:13") == image_name("debian:13")


RULES = {
    "docker.io": "registry.example:5000/hub",
    "docker.io/nvidia": "https://nvidia.example/",
    "https://git.example/": "/srv/git/",
    "https://repo.example": "http://127.0.0.1:8000/repo/",
    "registry.example:50": "other",
}


@pytest.mark.parametrize(
    ("address", "mirrored"),
    [
        ("docker.io/library/debian", "registry.example:5000/hub/library/debian"),
        ("docker.io/nvidia/cuda", "https://nvidia.example/cuda"),
        ("docker.io/nvidia2/cuda", "registry.example:5000/hub/nvidia2/cuda"),
        ("https://git.example/a/b.git", "/srv/git/a/b.git"),
        ("https://repo.example/x/", "http://127.0.0.1:8000/repo/x/"),
        ("https://repo.example.org/x", None),
        ("https://git.example", None),
        ("registry.example:5000/a", None),
        ("registry.example:50/a", "other/a"),
        ("docker.iox/a", None),
        ("http://docker.io/a", None),
    ],
)
def test_the_longest_rule_that_fits_whole_parts(address: str, mirrored: str | None) -> None:
    assert Mirrors(rules=RULES).of(address) == (mirrored or address)


def test_a_rule_for_a_whole_address() -> None:
    mirrors = Mirrors(rules={"docker.io/nvidia/cuda": "registry.example/cuda"})
    assert mirrors.of("docker.io/nvidia/cuda") == "registry.example/cuda"


def test_a_port_stays_with_its_host() -> None:
    mirrors = Mirrors(rules={"registry.example": "mirror.example/hub"})
    assert mirrors.of("registry.example:5000/a") != "mirror.example/hub:5000/a"


parts = st.lists(st.text("abc", min_size=1, max_size=2), min_size=1, max_size=4)
addresses = parts.map("/".join)
rules = st.dictionaries(addresses, addresses, max_size=6)


@settings(max_examples=30)
@given(rules=rules, address=addresses)
def test_only_a_beginning_of_whole_parts_is_replaced(rules: dict[str, str], address: str) -> None:
    fitting = [start for start in rules if address.startswith(f"{start}/")]
    if address in rules:
        return
    expected = address
    if fitting:
        longest = max(fitting, key=len)
        expected = rules[longest] + address.removeprefix(longest)
    assert Mirrors(rules=rules).of(address) == expected
    # The order in which rules are written means nothing.
    assert Mirrors(rules=dict(reversed(rules.items()))).of(address) == expected


def test_mirrors_of_the_clients_defaults() -> None:
    mirrors = parse_rules(["wheels=https://index.example/simple?a=b", "debian=http://deb.example"])
    assert mirrors.client("wheels") == "https://index.example/simple?a=b"
    assert mirrors.client("debian") == "http://deb.example"
    assert Mirrors().client("wheels") is None


@pytest.mark.parametrize("word", ["", "bad", "=to", "from=", "=", "a b=c", "a=b c", "a=b\n"])
def test_an_invalid_mirror_option(word: str) -> None:
    with pytest.raises(UsageError, match="is not FROM=TO") as error:
        parse_rules(["docker.io=x", word])
    assert repr(word) in error.value.message
    assert "--mirror docker.io=" in error.value.hint


def test_a_mirrors_file_of_the_user(tmp_path: Path) -> None:
    path = tmp_path / "mirrors.yaml"
    path.write_text("mirrors:\n  docker.io: registry.example\n  wheels: https://index.example\n")
    assert mirrors.read(path) == {
        "docker.io": "registry.example",
        "wheels": "https://index.example",
    }


@pytest.mark.parametrize(
    "text",
    [
        "docker.io: registry.example\n",
        "mirrors: [docker.io]\n",
        "mirrors: {docker.io: 1}\n",
        "mirrors: {docker.io: ''}\n",
        "mirrors:\n",
        "mirrors: {a: b}\nmore: 1\n",
        "[]",
        "a: [",
        "",
    ],
)
def test_an_invalid_mirrors_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "mirrors.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        mirrors.read(path)
    for problem in error.value.problems:
        assert problem.line >= 1
        assert problem.todo
        assert problem.file == str(path)


@pytest.mark.parametrize(
    ("start", "to", "what", "todo"),
    [
        ("wheels", "index.example/simple", "which is no address", "'https://index.example/simple'"),
        ("debian", "cache.example/debian", "which is no address", "'https://cache.example/debian'"),
        ("https://github.com", "git.example", "which is no address", "'https://git.example'"),
        ("docker.io", "https://me:pw@registry.example/hub", "'https://registry.example/hub': a reg",
         "did you mean 'registry.example/hub'?"),
        ("wheels", "http://index.example/simple", "", ""),
        ("https://github.com", "ssh://git@git.example", "", ""),
        ("docker.io", "registry.example:5000/hub", "", ""),
        ("docker.io/nvidia", "127.0.0.1:5000/nvidia", "", ""),
    ],
)  # fmt: skip
def test_a_mirror_is_what_it_replaces(
    tmp_path: Path, start: str, to: str, what: str, todo: str
) -> None:
    file = tmp_path / "mirrors.yaml"
    file.write_text(f'mirrors:\n  "{start}": "{to}"\n')
    if not what:
        assert mirrors.read(file) == {start: to}
        assert parse_rules([f"{start}={to}"]).rules == {start: to}
        return
    with pytest.raises(ConfigError) as error:
        mirrors.read(file)
    (problem,) = error.value.problems
    assert (problem.line, what in problem.what, todo in problem.todo) == (2, True, True), problem
    with pytest.raises(UsageError, match="the mirror of"):
        parse_rules([f"{start}={to}"])
