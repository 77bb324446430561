"""The lock's verbs against real servers: outdated pins are listed, nothing moves by itself."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from sparkimage.config.address import Mirrors
from sparkimage.core import paths
from sparkimage.core.errors import Locked, LockError, NetworkError
from sparkimage.core.process import Local
from sparkimage.resolve import images
from sparkimage.resolve.context import ResolveContext
from tests.lab import cuda_base, servers, standins
from tests.lab.conftest import PROJECT, REPOSITORY, Lab
from tests.lab.recipe import TWIN, Recipe


@pytest.fixture
def kept(recipe: Recipe) -> Iterator[str]:
    """The recipe's lock, put back afterwards."""
    path = recipe.lab.project / "matrix.lock"
    held = path.read_text()
    yield held
    path.write_text(held)


def test_lock_is_idempotent_and_asks_nothing(recipe: Recipe, kept: str) -> None:
    before = len(recipe.apt.seen)
    again = recipe.lab.run("lock")
    assert again.returncode == 0, again.stderr
    assert again.stdout == "matrix.lock is unchanged\n"
    assert (recipe.lab.project / "matrix.lock").read_text() == kept
    assert len(recipe.apt.seen) == before


def test_check_needs_no_socket(recipe: Recipe) -> None:
    alone = subprocess.run(
        ["unshare", "--net", "--", *recipe.lab.argv("lock", "--check")],
        env=recipe.lab.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (alone.returncode, alone.stdout) == (0, "matrix.lock fits matrix.yaml\n")


def test_update_moves_one_pin_and_nothing_else(recipe: Recipe, kept: str) -> None:
    path = recipe.lab.project / "matrix.lock"
    lines = kept.splitlines()
    # As if the package had been another one when it was locked.
    at = next(i for i, line in enumerate(lines) if "deb libnccl2 " in line)
    lines[at] = lines[at].replace(lines[at].split()[6], "0" * 64)
    stale = "\n".join(lines) + "\n"
    path.write_text(stale)
    untouched = recipe.lab.run("lock", "--update", "vllm==20260727")
    assert untouched.returncode == 0, untouched.stderr
    assert path.read_text() == stale
    moved = recipe.lab.run("lock", "--update", "nccl")
    assert moved.returncode == 0, moved.stderr
    assert path.read_text() == kept


def test_what_is_newer_is_told_and_not_followed(recipe: Recipe, kept: str) -> None:
    """A tag that moved, a branch that went on, a package in a later version."""
    lab = recipe.lab
    path = lab.project / "matrix.lock"
    repository = f"{recipe.registry.address}/nvidia/cuda"
    base, devel = (f"{repository}:{cuda_base.TAGS[one]}" for one in ("base", "devel"))
    create = [*lab.engine.docker, "buildx", "imagetools", "create", "--tag"]
    subprocess.run([*create, f"{repository}:kept", base], check=True, capture_output=True)
    subprocess.run([*create, base, devel], check=True, capture_output=True)
    data = json.loads(json.dumps(recipe.data))
    pin = data["pins"]["nccl"]["2.30.4-cuda13.2"]
    pin["packages"] = ["libnccl2=2.28.9-1+cuda13.0", "libnccl-dev=2.28.9-1+cuda13.0"]
    lab.write(data)
    try:
        locked = lab.run("lock")
        assert locked.returncode == 0, locked.stderr
        assert "note: nccl 2.30.4-cuda13.2: NCCL 2.28.9 is known to wedge" in locked.stdout
        older = path.read_text()
        rows = json.loads(lab.run("lock", "--outdated", "--json").stdout)
        table = lab.run("lock", "--outdated")
        assert path.read_text() == older
    finally:
        lab.write(recipe.data)
        path.write_text(kept)
        subprocess.run([*create, base, f"{repository}:kept"], check=True, capture_output=True)
    assert "sparkimage lock --update NAME" in table.stdout
    seen = {(row["pin"], row["what"]) for row in rows}
    assert ("cuda 13.0.3", "tag of docker.io/nvidia/cuda") in seen
    assert {
        "pin": "vllm 20260613",
        "what": f"branch {data['pins']['vllm']['20260613']['branch']}",
        "locked": recipe.fork.recipe[:12],
        "newest": recipe.fork.latest[:12],
    } in rows
    assert {
        "pin": "nccl 2.30.4-cuda13.2",
        "what": "libnccl2",
        "locked": "2.28.9-1+cuda13.0",
        "newest": "2.30.4-1+cuda13.2",
    } in rows


@pytest.mark.usefixtures("kept")
def test_a_withdrawn_package_is_no_build(recipe: Recipe) -> None:
    data = json.loads(json.dumps(recipe.data))
    data["pins"]["nccl"]["2.30.4-cuda13.2"]["packages"] = ["libnccl2=2.28.8-1+cuda13.0"]
    path = recipe.lab.project / "matrix.lock"
    recipe.lab.write(data)
    try:
        gone = recipe.lab.run("lock")
        assert gone.returncode == 11
        assert "no longer has libnccl2 2.28.8-1+cuda13.0" in gone.stderr
        assert "unresolved:" in path.read_text()
        stopped = recipe.lab.run("image", TWIN)
        assert stopped.returncode == 11
        assert "sparkimage lock" in stopped.stderr
    finally:
        recipe.lab.write(recipe.data)


def test_what_cannot_be_reached_is_reported_pin_by_pin(recipe: Recipe, kept: str) -> None:
    path = recipe.lab.project / "matrix.lock"
    path.unlink()
    alone = subprocess.run(
        ["unshare", "--net", "--", *recipe.lab.argv("lock")],
        env=recipe.lab.environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert alone.returncode == 10, alone.stderr
    for pin in ("cuda 13.0.3", "vllm 20260613", "nccl 2.30.4-cuda13.2"):
        assert f"✗ pin {pin}" in alone.stderr
    assert recipe.lab.run("lock", "--check").returncode == 0
    # And where they can be, the same command resolves them all, to the same lock.
    assert recipe.lab.run("lock").returncode == 0
    assert path.read_text() == kept


def asked(address: str, path: str) -> LockError | NetworkError:
    """What comes of a pin whose registry is this one."""
    context = ResolveContext(
        home=paths.home(),
        runner=Local(),
        mirrors=Mirrors(rules={"docker.io": address}),
        say=lambda _line: None,
    )
    with pytest.raises((LockError, NetworkError)) as caught:
        images.resolve(Locked.pin("x", "1"), f"docker.io/{path}", "linux/amd64", context)
    assert isinstance(caught.value, LockError | NetworkError)
    return caught.value


def test_what_a_registry_says_counts_not_what_it_is_called(tmp_path: Path) -> None:
    """Numbers and words of a refusal stand in ports, names, tags and digests as well."""
    digest = "sha256:" + "401" * 21 + "0"
    for path in ("denied/x401:403", f"denied/x403@{digest}"):
        # Nothing listens there: below the ports that systems hand out.
        dead = asked("127.0.0.1:14010", path)
        assert isinstance(dead, NetworkError)
        assert dead.message.endswith("cannot be reached")
        with servers.registry(tmp_path / "open") as empty:
            assert "the registry has no docker.io/denied/x40" in asked(empty.address, path).message
        with servers.registry(tmp_path / "closed", login=True) as closed:
            refused = asked(closed.address, path)
        assert isinstance(refused, LockError)
        assert refused.message.endswith("wants another login")
        assert refused.hint == f"docker login {closed.address}"


def test_debians_mirror_is_asked_in_place_of_the_default(lab: Lab, tmp_path: Path) -> None:
    held = (lab.project / "matrix.lock").read_text()
    with servers.http_folder(tmp_path) as web:
        mirror = f"debian={web.url}/debian"
        done = lab.run("lock", "--update", "debian", "--mirror", mirror)
    assert done.returncode in (10, 11)
    assert "pin debian trixie" in done.stderr
    assert "/debian/dists/trixie/InRelease" in web.seen
    assert (lab.project / "matrix.lock").read_text() == held


def test_an_index_mirror_serves_lock_and_build(lab: Lab, tmp_path: Path) -> None:
    """An index of our own in a container, which steps can reach too, holds what no other has."""
    folder = tmp_path / "index"
    name, version = "sparkimage-lab-standin", "1.2.3"
    made = standins.wheel(
        folder / "simple" / name, name.replace("-", "_"), version, {"lab_standin.py": "x = 1\n"}
    )
    page = f'<a href="{made.name}">{made.name}</a>\n'
    (made.parent / "index.html").write_text(page)
    project = tmp_path / "project"
    (project / "images").mkdir(parents=True)
    for one in (PROJECT / "images").iterdir():
        (project / "images" / one.name).symlink_to(one)
    plain = lab.plain("amd64")
    server = str(
        lab.docker.run(
            plain, ["-m", "http.server", "--directory", "/srv", "80"], entrypoint="python3",
            detach=True, remove=True, volumes=[(folder, "/srv", "ro")],
        ).id
    )  # fmt: skip
    try:
        address = str(lab.docker.container.inspect(server).network_settings.ip_address)
        mine = Lab(
            project, lab.context.store.root, lab.engine, {"wheels": f"http://{address}/simple"}
        )
        data = lab.data | {"include": []}
        data["axes"] = {}
        data["pins"] = {
            "debian": data["pins"]["debian"],
            "tool": {
                version: {"kind": "wheels", "python": "3.13", "require": [f"{name}=={version}"]}
            },
        }
        data["layers"] = {
            "debian": {"base": "debian"},
            "python": {"debs": "debian"},
            "tool": {"wheels": {"pin": "tool"}},
        }
        data["include"] = [
            {
                "name": "mirrored",
                "platform": "linux/amd64",
                "layers": list(data["layers"]),
                "entrypoint": [],
                "pins": {"debian": "trixie", "tool": version},
            }
        ]
        data["groups"] = {"default": ["mirrored"]}
        mine.write(data)
        mine.lock()
        assert address not in (project / "matrix.lock").read_text()
        built = mine.build("mirrored")
        assert address not in json.dumps(built.image.config)
        said = lab.docker.run(
            f"{REPOSITORY}:mirrored", ["-c", "import lab_standin; print(lab_standin.x)"],
            entrypoint="python3", remove=True,
        )  # fmt: skip
        assert str(said).strip() == "1"
        mine.said.close()
    finally:
        lab.docker.container.remove(server, force=True)
        shutil.rmtree(folder)
    with servers.http_folder(tmp_path) as web:
        gone = Lab(project, lab.context.store.root, lab.engine, {"wheels": f"{web.url}/none"})
        refused = gone.run("lock", "--update", "tool")
        assert refused.returncode in (10, 11)
        assert "pin tool 1.2.3" in refused.stderr
        gone.said.close()
