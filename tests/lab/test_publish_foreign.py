"""Foreign eyes: others' programs read what was published, behind a login and a private CA."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sparkimage.build.engine.engine import Engine
from sparkimage.config.address import Mirrors
from sparkimage.core import paths
from sparkimage.core.arch import native_arch
from sparkimage.core.errors import Locked
from sparkimage.core.process import Local
from sparkimage.image.store import Image
from sparkimage.registry import sbom
from sparkimage.resolve import apt
from sparkimage.resolve.apt_source import Source
from sparkimage.resolve.context import ResolveContext
from sparkimage.verify import seal
from tests.lab import hostile, servers
from tests.lab.publisher import Publisher, name
from tests.lab.servers import Registry
from tests.lab.tools import TOOLS, making

PASSPHRASE = "of the lab"
SLSA = "slsaprovenance1"


@dataclass(frozen=True, kw_only=True)
class Published:
    """An image in a registry with a login and TLS of a private CA."""

    publisher: Publisher
    registry: Registry
    image: Image
    reference: str
    cosign: tuple[str, ...]
    environment: dict[str, str]

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            argv, env={**os.environ, **self.environment}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    folder = tmp_path_factory.mktemp("foreign")
    (folder / "publisher").mkdir()
    publisher = Publisher.make(folder / "publisher")
    image = publisher.image()
    cosign = publisher.tools.cosign
    with servers.registry(folder / "data", login=True, tls=folder / "tls") as registry:
        config = publisher.docker_config(registry.address, servers.USER, servers.PASSWORD)
        environment = {
            "DOCKER_CONFIG": str(config),
            "SSL_CERT_FILE": str(registry.ca),
            "REGISTRY_AUTH_FILE": str(config / "config.json"),
            "COSIGN_PASSWORD": PASSPHRASE,
        }
        to = f"{registry.address}/foreign/image"
        done = publisher.run("publish", name("amd64"), "--to", to, "--json", **environment)
        assert done.returncode == 0, done.stderr
        (tag,) = json.loads(done.stdout)["tags"]
        yield Published(
            publisher=publisher, registry=registry, image=image, reference=f"{to}:{tag}",
            cosign=cosign, environment=environment,
        )  # fmt: skip


def public(there: Published) -> str:
    return str(hostile.public(there.publisher.key))


def test_cosign_verifies_the_signature(there: Published) -> None:
    said = there.run(
        *there.cosign, "verify", "--key", public(there), "--insecure-ignore-tlog", there.reference
    ).stdout
    (one,) = json.loads(said)
    assert one["critical"]["image"]["docker-manifest-digest"] == there.image.digest


@pytest.mark.parametrize("kind", [seal.TEST_RESULT, "spdxjson", SLSA])
def test_cosign_verifies_every_attestation(there: Published, kind: str) -> None:
    there.run(
        *there.cosign, "verify-attestation", "--key", public(there), "--type", kind,
        "--insecure-ignore-tlog", there.reference,
    )  # fmt: skip


def test_cosign_refuses_another_key(there: Published, tmp_path: Path) -> None:
    there.run(*there.cosign, "generate-key-pair", "--output-key-prefix", str(tmp_path / "other"))
    refused = there.run(
        *there.cosign, "verify", "--key", str(tmp_path / "other.pub"), "--insecure-ignore-tlog",
        there.reference, check=False,
    )  # fmt: skip
    assert refused.returncode != 0
    assert "no matching signatures" in refused.stderr


def test_a_key_of_cosign_signs_and_both_believe_it(there: Published, tmp_path: Path) -> None:
    there.run(*there.cosign, "generate-key-pair", "--output-key-prefix", str(tmp_path / "own"))
    key, pub = str(tmp_path / "own.key"), str(tmp_path / "own.pub")
    to = f"{there.registry.address}/foreign/cosign"
    words = ("publish", name("amd64"), "--to", to, "--key", key, "--json")
    done = there.publisher.run(*words, **there.environment)
    assert done.returncode == 0, done.stderr
    (tag,) = json.loads(done.stdout)["tags"]
    ours = there.publisher.run("verify-published", f"{to}:{tag}", "--key", pub, **there.environment)
    assert ours.returncode == 0, ours.stderr
    for verb in (["verify"], ["verify-attestation", "--type", SLSA]):
        there.run(*there.cosign, *verb, "--key", pub, "--insecure-ignore-tlog", f"{to}:{tag}")
    # ECDSA signs differently each time: what is there is kept.
    again = there.publisher.run(*words, **there.environment)
    assert json.loads(again.stdout)["changed"] is False
    wrong = there.publisher.run(*words, **{**there.environment, "COSIGN_PASSWORD": "another"})
    assert wrong.returncode == 9
    assert "COSIGN_PASSWORD" in wrong.stderr
    assert PASSPHRASE not in done.stdout + done.stderr + wrong.stderr


STAND_IN = """#!/bin/sh
# cosign with a key in place of a CI job's identity and of the transparency log.
verb=$1
shift
case $verb in
version) echo "GitVersion: v2.5.0"; exit ;;
download) exec $COSIGN "$verb" "$@" ;;
sign | attest) exec $COSIGN "$verb" --key "$OWN.key" --tlog-upload=false "$@" ;;
esac
for word in "$@"; do
    shift
    case $word in
    --certificate-*) word=skip ;;
    *) [ "$last" = skip ] || set -- "$@" "$word" ;;
    esac
    last=$word
done
exec $COSIGN "$verb" --key "$OWN.pub" --insecure-ignore-tlog "$@"
"""


def test_without_a_key_cosign_brings_and_believes(there: Published, tmp_path: Path) -> None:
    there.run(*there.cosign, "generate-key-pair", "--output-key-prefix", str(tmp_path / "own"))
    program = tmp_path / "bin" / "cosign"
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(0o755)
    environment = {
        **there.environment,
        "COSIGN": " ".join(there.cosign),
        "SPARKIMAGE_KEY": "",
        "SPARKIMAGE_PUBLIC_KEY": "",
        "OWN": str(tmp_path / "own"),
        "PATH": f"{program.parent}:{os.environ['PATH']}",
    }
    to = f"{there.registry.address}/foreign/keyless"
    who = ("--identity", "^job$", "--issuer", "https://issuer.example")
    words = ("publish", name("amd64"), "--to", to, *who, "--json")
    done = there.publisher.run(*words, **environment)
    assert done.returncode == 0, done.stderr
    (tag,) = json.loads(done.stdout)["tags"]
    again = there.publisher.run(*words, **environment)
    assert json.loads(again.stdout)["changed"] is False
    good = there.publisher.run("verify-published", f"{to}:{tag}", *who, **environment)
    assert good.returncode == 0, good.stderr
    # Nobody else is believed.
    there.run(*there.cosign, "generate-key-pair", "--output-key-prefix", str(tmp_path / "other"))
    other = {**environment, "OWN": str(tmp_path / "other")}
    bad = there.publisher.run("verify-published", f"{to}:{tag}", *who, **other)
    assert (bad.returncode, "not trusted here" in bad.stderr) == (16, True)
    half = there.publisher.run("verify-published", f"{to}:{tag}", *who[:2], **environment)
    assert (half.returncode, "belong together" in half.stderr) == (2, True)


def test_skopeo_copies_it_bit_for_bit(there: Published, tmp_path: Path) -> None:
    there.run(
        *there.publisher.tools.skopeo, "--insecure-policy", "copy", "--quiet",
        "--preserve-digests", f"docker://{there.reference}",
        f"oci:{tmp_path}/copy:x",
    )  # fmt: skip
    (one,) = json.loads((tmp_path / "copy" / "index.json").read_text())["manifests"]
    assert one["digest"] == there.image.digest


def test_oras_copies_it_bit_for_bit(there: Published, tmp_path: Path) -> None:
    source = Source(suite="trixie", arch=native_arch())
    context = ResolveContext(home=paths.home(), runner=Local(), mirrors=Mirrors(), say=print)
    tool = TOOLS / "oras"
    with making(tool.name):
        if not (tool / "usr/bin/oras").exists():
            debs = apt.resolve(Locked.tool("oras"), source, ["oras"], context)
            (deb,) = [one for one in debs if one.name == "oras"]
            files = apt.fetch(Locked.tool("oras"), source, [deb], context)
            subprocess.run(["dpkg-deb", "-x", str(files[deb.file]), str(tool)], check=True)
    oras = str(tool / "usr/bin/oras")
    there.run(oras, "cp", "--to-oci-layout", there.reference, f"{tmp_path}/copy:x")
    listed = json.loads((tmp_path / "copy" / "index.json").read_text())["manifests"]
    assert there.image.digest in [one["digest"] for one in listed]


def test_docker_pulls_and_runs_it(engine: Engine, there: Published) -> None:
    docker = engine.docker
    config = {"DOCKER_CONFIG": there.environment["DOCKER_CONFIG"]}
    pulled = f"{there.reference.rpartition(':')[0]}@{there.image.digest}"
    # The tree's CLI is called with a configuration of its own.
    own = [word for n, word in enumerate(docker) if "--config" not in docker[max(n - 1, 0) : n + 1]]
    environment = {**os.environ, **engine.environment, **config}

    def run(*words: str) -> str:
        done = subprocess.run(
            [*own, *words], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    try:
        run("pull", "--quiet", pulled)
        layers = json.loads(run("image", "inspect", pulled))[0]["RootFS"]["Layers"]
        assert layers == [layer.diff_id for layer in there.image.layers]
        assert run("run", "--rm", pulled).strip() == "it runs"
    finally:
        subprocess.run([*own, "image", "rm", "--force", pulled], env=environment, check=False)


def test_the_sbom_is_spdx_for_others_too(there: Published, tmp_path: Path) -> None:
    bill = there.publisher.item(there.image, real_sbom=True).sbom
    file = tmp_path / "bill.spdx.json"
    file.write_text(json.dumps(bill))
    # syft reads it as it reads anybody's.
    said = there.run(*sbom._syft(), "convert", str(file), "-o", "syft-json").stdout
    names = {one["name"] for one in json.loads(said)["artifacts"]}
    assert {"vllm", "libc6", "libnccl.so.2.30.4"} <= names
