"""Measure `publish` beside `docker push` of the same image to the same registry."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

from sparkimage.build.engine.engine import Engine
from sparkimage.image import archive
from tests.lab import servers
from tests.lab.payload import Payload
from tests.lab.publisher import Publisher, name

MIB = 1 << 20
PAYLOAD = Payload.of(64 * MIB, 64 * MIB, 48 * MIB, 16 * MIB, MIB)


def push(engine: Engine, publisher: Publisher, reference: str) -> float:
    """Load the image into the engine, and time its push."""
    image = publisher.store.resolve(publisher.plan(name("amd64")).image)
    process = subprocess.Popen([*engine.docker, "load", "--quiet"], stdin=subprocess.PIPE,
                               stdout=subprocess.DEVNULL)  # fmt: skip
    assert process.stdin is not None
    for chunk in archive.stream(image, reference, publisher.store):
        process.stdin.write(chunk)
    process.stdin.close()
    assert process.wait() == 0
    began = time.monotonic()
    subprocess.run([*engine.docker, "push", "--quiet", reference], check=True, capture_output=True)
    return time.monotonic() - began


def publish(publisher: Publisher, to: str) -> tuple[float, dict[str, int]]:
    began = time.monotonic()
    done = publisher.run("publish", name("amd64"), "--to", to, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    whole = time.monotonic() - began
    print(f"  of that in the registry: {said['seconds']:.1f} s, sent {said['sent']}")
    return whole, said["platforms"]["linux/amd64"]


def test_publish_beside_docker_push(engine: Engine, tmp_path: Path) -> None:
    publisher = Publisher.make(tmp_path)
    with servers.registry(tmp_path / "registry") as registry:
        at = registry.address
        for turn, payload in (("cold", PAYLOAD), ("one top layer changed", PAYLOAD.changed(-1))):
            image = publisher.image(payload=payload)
            print(f"\n{turn}: {image.size / 1e6:.0f} MB in {len(image.layers)} layers")
            ours, blobs = publish(publisher, f"{at}/bench/ours")
            again, _ = publish(publisher, f"{at}/bench/ours")
            theirs = push(engine, publisher, f"{at}/bench/theirs:x")
            print(
                f"  publish {ours:.1f} s {blobs}; again {again:.1f} s; docker push {theirs:.1f} s"
            )
    for reference in (f"{at}/bench/theirs:x",):
        subprocess.run([*engine.docker, "image", "rm", reference], check=True, capture_output=True)
