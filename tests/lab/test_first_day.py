"""The first day of somebody who follows README: its own code blocks, in order, on a plain machine.

The default image is a small stand-in, `make test` runs the tests that need no engine, and the four
Sparks are the lab's nodes; all else is as a user has it: the environment, the private engine, ssh.
"""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from sparkimage.build.engine.engine import Engine
from tests.lab import fleet as fleets
from tests.lab.fleet import Fleet
from tests.lab.newcomer import PROJECT, VARIANT, Newcomer, System, blocks, clone, newcomer
from tests.lab.spark_standin import dressed

README = (PROJECT / "README.md").read_text()
BUILD, SPARKS = blocks(README)[:2]
NODES = [f"spark{number}.local" for number in (1, 2, 3, 4)]


def test_readme_has_the_blocks_that_are_followed() -> None:
    assert BUILD == ["make image", "make test"]
    assert [line.split()[1] for line in SPARKS] == [
        "init", "doctor", "distribute", "model", "launch",
    ]  # fmt: skip
    assert re.findall(r"nv@(\S+)", SPARKS[0]) == NODES
    assert {line.split()[0] for line in SPARKS} == {"./build.py"}
    assert VARIANT in README


@pytest.fixture(scope="module")
def origin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clone(tmp_path_factory.mktemp("origin"))


def build(here: Newcomer) -> None:
    """README's first block."""
    image, test = BUILD
    said = here.ok(image)
    assert "checks passed, sealed" in said
    assert "\nNext: ./build.py init " in said
    assert f"./build.py distribute {VARIANT}" in said
    # What the program says can be pasted; once more, nothing is to do.
    here.ok(f'eval "$(./build.py engine env)" && docker image inspect spark-vllm:{VARIANT}')
    assert "unchanged" in here.ok(image)
    if here.system is System.TRIXIE:
        # Of the project's own matrix, and with a browser, in which the site is read.
        here.ok("git checkout --quiet HEAD~1")
        here.ok("apt-get update -qq && apt-get install -qq --yes --no-install-recommends chromium")
    site, tests = re.findall(r"^=+ (.*\d+ passed.*) in ", here.ok(test), re.MULTILINE)
    assert "failed" not in tests
    assert ("skipped" in site) == (here.system is not System.TRIXIE)


@pytest.mark.thorough
@pytest.mark.parametrize("system", System)
def test_an_image_on_a_plain_machine(engine: Engine, origin: Path, system: System) -> None:
    with newcomer(engine, system, origin) as here:
        build(here)


@pytest.mark.thorough
@pytest.mark.parametrize("system", [System.BOOKWORM, System.TRIXIE])
def test_pipx_and_uvx_install_from_a_clone_that_is_read_only(
    engine: Engine, origin: Path, system: System
) -> None:
    with newcomer(engine, system, origin) as here:
        assert here.run("touch /origin/file").returncode != 0
        here.ok("apt-get update -qq && apt-get install -qq --yes --no-install-recommends pipx")
        here.ok("pipx install /origin && pipx install uv", cwd="/origin")
        for folder, program in (("one", "sparkimage"), ("two", "uvx --from /origin sparkimage")):
            call = f"PATH=~/.local/bin:$PATH; {program}"
            assert here.ok(f"{call} --version", cwd="/").startswith("sparkimage 0.1.0")
            said = here.ok(f"{call} init project {folder} --full", cwd=here.system.home)
            assert f"Next: {program} " in said
            planned = here.ok(f"{call} -C {folder} --matrix --print table", cwd=here.system.home)
            assert VARIANT in planned


def accept(fleet: Fleet, here: Newcomer) -> None:
    """What a person does who is told what the nodes lack: on the nodes' own screens."""
    key = here.ok("cat ~/.ssh/id_ed25519.pub")
    for node in fleet:
        node.exec("sh", "-c", "cat >>/etc/ssh/authorized_keys", given=key.encode())
    keys = "".join(
        f"{name} {(node.folder / 'host.pub').read_text()}"
        for name, node in zip(NODES, fleet, strict=True)
    )
    here.ok(f"cat >~/.ssh/known_hosts <<'END'\n{keys}END")


@pytest.mark.thorough
def test_four_sparks(
    engine: Engine, origin: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    specs = {name: replace(spec, spark=True) for name, spec in fleets.FOUR.items()}
    with ExitStack() as stack:
        fleet = stack.enter_context(fleets.fleet(engine, tmp_path_factory.mktemp("sparks"), specs))
        for node in fleet:
            # Those of `dressed` are the same.
            node.exec("rm", "-r", "/dev/infiniband")
            node.exec("useradd", "-m", "-s", "/bin/sh", "-G", "docker", "nv")
        stack.enter_context(dressed(fleet))
        for node in fleet:
            node.exec("chown", "nv", "/models")
        hosts = dict(zip(NODES, (node.inside for node in fleet), strict=True))
        with newcomer(engine, System.TRIXIE, origin, hosts) as here:
            here.ok(BUILD[0])
            init, doctor, distribute, push, launch = SPARKS
            refused = here.run(init)
            assert refused.returncode == 13
            assert "ssh-copy-id nv@spark1.local" in refused.stdout
            here.ok("ssh-keygen -q -t ed25519 -N '' -f ~/.ssh/id_ed25519")
            accept(fleet, here)
            here.ok(init)
            here.ok(doctor)
            here.ok(distribute)
            here.ok("mkdir -p /models/NAME && cd /models/NAME && echo '{}' | tee config.json "
                    "standin.json tokenizer.json >/dev/null")  # fmt: skip
            if (pushed := here.run(push)).returncode:
                # Nodes whose names the others do not know get their files from here.
                assert "run the same command again: what has arrived stays there" in pushed.stderr
                here.ok(push)
            assert here.ok(launch).splitlines()[-1].endswith(":8000/v1")
            status = json.loads(here.ok("./build.py status --json"))
            assert len(status["sets"][0]["members"]) == 4
            here.ok("./build.py stop")
