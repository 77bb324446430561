"""Named build contexts, sources, frontends and build secrets, with a real builder and servers."""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from sparkimage.build import builder, preflight
from sparkimage.build.context import BuildContext
from sparkimage.build.engine.engine import Engine
from sparkimage.build.secrets import BuildSecrets
from sparkimage.config.address import Mirrors
from sparkimage.config.plan import GitTree
from sparkimage.core.errors import BuildError, LockError, NetworkError, PreflightError
from sparkimage.core.process import Completed, Local
from sparkimage.image.layerindex import decompressed
from sparkimage.image.store import Image, Store
from sparkimage.resolve import source_tree
from tests.lab import command, payload, servers
from tests.lab.conftest import REPOSITORY, Lab
from tests.unit import project_maker as maker
from tests.unit.git_maker import SITE, Remote

NAME, TOKEN = "SPARKIMAGE_LAB_TOKEN", "lab-7c1d-never-seen-anywhere"
WORDS = b"one\ntwo\n"
SYNTAX = "# syntax=docker/dockerfile:1.9\n"
DOCKERFILES = {
    "base": "FROM layer AS base\n",
    "taken": f"""{SYNTAX}FROM devel AS build
ARG TREE_COMMIT
RUN --network=none --mount=type=bind,from=tree,target=/src \\
    cat /src/a/b.txt >/out.txt; echo "$TREE_COMMIT" >>/out.txt
FROM layer AS taken
ARG WORDS_VERSION
COPY --from=build /out.txt /opt/out.txt
COPY --from=words words.txt /opt/words.txt
COPY --from=lab/other:9 /etc/passwd /opt/passwd
RUN --network=none echo "$WORDS_VERSION" >/opt/version
""",
    "secret": f"""FROM layer AS secret
RUN --network=none --mount=type=secret,id={NAME},required=true,target=/run/token \\
    cat /run/token; sha256sum </run/token >/token.sha256
""",
    "telling": f"""FROM layer AS telling
RUN --network=none --mount=type=secret,id={NAME},target=/run/token \\
    echo "it is $(cat /run/token)"; false
""",
    "leaking": f"""FROM layer AS leaking
RUN --network=none --mount=type=secret,id={NAME},target=/run/token \\
    cat /run/token >/etc/token
""",
    "agent": """FROM layer AS agent
RUN --network=none --mount=type=ssh test -S "$SSH_AUTH_SOCK"
""",
    # With this line our reader leaves the file to BuildKit.
    "open": """# escape=`
FROM layer AS open
COPY --from=lab/other:9 /etc/passwd /opt/passwd
""",
}
SOURCE = f"""{SYNTAX}ARG BASE=debian:13
ARG IMAGE=registry.example/none
ARG TAG=1
FROM $BASE AS first
ARG SERVER_COMMIT
COPY . /app/
RUN echo "$SERVER_COMMIT" >/app/commit
FROM first AS other
FROM $IMAGE:$TAG AS again
COPY server /again/
"""


class Recorder(Local):
    """Runs commands, and keeps their arguments."""

    def __init__(self) -> None:
        self.argv: list[str] = []

    def run(self, argv: Sequence[str], **options: Any) -> Completed:
        self.argv += argv
        return super().run(argv, **options)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """A small project of every kind of input, locked."""

    lab: Lab
    tree: str
    """The commit of the pin ``tree``."""
    recorder: Recorder = field(default_factory=Recorder)

    def build(self, name: str, context: BuildContext | None = None) -> Image:
        """Build a variant, and verify nothing."""
        plan = self.lab.plan(name)
        context = replace(context or self.lab.context, runner=self.recorder)
        preflight.check(plan, context)
        with builder.execute(plan, context) as staged:
            return staged.image

    def files(self, image: Image) -> Mapping[str, bytes]:
        """The files of all layers."""
        found = {}
        for layer in image.layers:
            with (
                self.lab.store.open_blob(layer.digest) as blob,
                tarfile.open(
                    fileobj=io.BytesIO(decompressed(blob, layer.media_type).read())
                ) as archive,
            ):
                for member in archive:
                    if (content := archive.extractfile(member)) is not None:
                        found[member.name] = content.read()
        return found


def matrix_data(tree: str, server: str) -> dict[str, Any]:
    layers: dict[str, Any] = {name: {} for name in DOCKERFILES}
    layers["base"] = {"base": "tiny"}
    layers["taken"] = {
        "inputs": {"tree": "tree", "devel": "tiny", "words": "words", "lab/other:9": "tiny"}
    }
    for name in ("secret", "telling", "leaking"):
        layers[name] = {"secrets": [NAME]}
    layers["agent"] = {"ssh": True}
    layers["server"] = {
        "source": {"pin": "server", "context": "docker", "target": "first",
                   "images": {"BASE": "tiny"}}
    }  # fmt: skip
    layers["again"] = {
        "source": {"pin": "server", "context": "docker", "target": "again",
                   "inputs": {"registry.example/{tiny}/below:latest": "layer"}},
        "args": {"IMAGE": "registry.example/{tiny}/below", "TAG": "latest"},
    }  # fmt: skip
    names = {
        "taken": ["base", "taken"],
        "again": ["base", "again"],
        "server": ["server"],
        **{name: ["base", name] for name in ("secret", "telling", "leaking", "agent", "open")},
    }
    pins = {"tiny": "1.0.0", "tree": "one", "server": "one", "words": "v1"}
    data = maker.document(
        {
            "tiny": {"1.0.0": {"kind": "image", "image": "lab/tiny:1"}},
            "tree": {"one": {"kind": "git", "repository": f"{SITE}/tree.git", "commit": tree}},
            "server": {
                "one": {"kind": "git", "repository": f"{SITE}/server.git", "commit": server}
            },
            "words": {"v1": {"kind": "file", "url": "https://files.example/words.txt"}},
        },
        layers,
        [
            maker.include(name, *stack, platform="linux/amd64", **pins)
            for name, stack in names.items()
        ],
    )
    return {**data, "repository": REPOSITORY}


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, engine: Engine) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "web").mkdir()
    (folder / "web" / "words.txt").write_bytes(WORDS)
    (folder / "site").mkdir()
    tree = Remote.make(folder / "site", "tree.git").commit({"a/b.txt": "from the tree\n"})
    server = Remote.make(folder / "site", "server.git").commit(
        {"docker/Dockerfile": SOURCE, "docker/server": "it serves\n", "README": "no\n"}
    )
    with ExitStack() as stack:
        registry = stack.enter_context(servers.registry(folder / "registry"))
        git = stack.enter_context(servers.git_server(folder / "site"))
        web = stack.enter_context(servers.http_folder(folder / "web"))
        push_tiny(engine, registry, folder / "tiny")
        mirrors = {"docker.io": registry.address, SITE: git, "https://files.example": web.url}
        project = folder / "project"
        project.mkdir()
        lab = Lab(project, folder / "store", engine, mirrors)
        maker.write(project, matrix_data(tree, server))
        for name, text in DOCKERFILES.items():
            (project / "images" / name / "Dockerfile").write_text(text)
        done = lab.run("lock")
        assert done.returncode == 0, done.stderr
        yield Bench(lab=lab, tree=tree)
        lab.said.close()


def push_tiny(engine: Engine, registry: servers.Registry, folder: Path) -> None:
    """A busybox as the image lab/tiny:1."""
    folder.mkdir()
    (folder / "root.tar").write_bytes(b"".join(payload.busybox_tar("amd64")))
    (folder / "Dockerfile").write_text("FROM scratch\nADD root.tar /\n")
    name = f"{registry.address}/lab/tiny:1"
    subprocess.run(
        [*engine.docker, "buildx", "build", "--quiet", "--provenance=false",
         "--platform=linux/amd64", f"--output=type=image,name={name},push=true", str(folder)],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    subprocess.run([*engine.docker, "rmi", name], check=True, stdout=subprocess.DEVNULL)


def test_a_layer_is_built_from_its_inputs(bench: Bench) -> None:
    image = bench.build("taken")
    files = bench.files(image)
    assert files["opt/out.txt"] == f"from the tree\n{bench.tree}\n".encode()
    assert files["opt/words.txt"] == WORDS
    assert files["opt/passwd"] == files["etc/passwd"]
    assert files["opt/version"] == b"v1\n"
    labels = image.settings.labels
    assert labels["dev.sparkimage.commit.tree"] == bench.tree
    sha256 = hashlib.sha256(WORDS).hexdigest()
    assert labels["dev.sparkimage.file.words"] == f"sha256:{sha256}"


def test_a_source_in_a_folder_is_the_lowest_layer(bench: Bench) -> None:
    image = bench.build("server")
    files = bench.files(image)
    assert files["app/server"] == b"it serves\n"
    assert (
        files["app/commit"] == f"{image.settings.labels['dev.sparkimage.commit.server']}\n".encode()
    )
    assert "app/README" not in files
    # Its images are as they are: it has no version that its build would ask git for.
    assert image.settings.env.keys() <= {"PATH"}


def test_a_source_whose_base_is_made_of_two_arguments(bench: Bench) -> None:
    files = bench.files(bench.build("again"))
    assert files["again/server"] == b"it serves\n"
    assert files["etc/passwd"]
    assert "app/server" not in files


def test_what_is_not_pinned_is_denied_with_what_to_do(bench: Bench) -> None:
    with pytest.raises(
        BuildError, match=r"needs docker-image://.*lab/other:9.*not locked"
    ) as error:
        bench.build("open")
    assert "(`inputs`, or `source.images`)" in error.value.hint


def test_a_file_that_changed_at_its_address_is_refused(bench: Bench, tmp_path: Path) -> None:
    plan = bench.lab.plan("taken")
    context = replace(bench.lab.context, home=tmp_path)
    with ExitStack() as stack:
        web = stack.enter_context(servers.http_folder(tmp_path))
        (tmp_path / "words.txt").write_bytes(WORDS + b"three\n")
        rules = {**bench.lab.mirrors, "https://files.example": web.url}
        changed = replace(context, mirrors=Mirrors(rules=rules))
        with pytest.raises(LockError, match=r"pin words v1: .* and the lock says"):
            preflight.reachable(plan, changed)
    with pytest.raises(NetworkError, match=r"words.txt cannot be reached"):
        preflight.reachable(plan, changed)


@pytest.fixture(params=["environment", "file"])
def secrets(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> BuildSecrets:
    """The secret, given in each of the two ways."""
    if request.param == "environment":
        monkeypatch.setenv(NAME, TOKEN)
        return BuildSecrets()
    (tmp_path / "a,token").write_text(TOKEN)
    return BuildSecrets.parse([f"id={NAME},src={tmp_path / 'a,token'}"], {NAME})


def holders(store: Store, text: bytes) -> list[str]:
    """The files of the store that have the text, also where they are packed."""
    found = []
    for path in store.root.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            if data.startswith(b"\x28\xb5\x2f\xfd"):
                data = decompressed(io.BytesIO(data), "+zstd").read()
            if text in data:
                found.append(path.name)
    return found


def test_a_secret_reaches_its_step_and_nothing_else(bench: Bench, secrets: BuildSecrets) -> None:
    image = bench.build("secret", replace(bench.lab.context, secrets=secrets))
    sha256 = hashlib.sha256(TOKEN.encode()).hexdigest()
    assert bench.files(image)["token.sha256"].startswith(sha256.encode())
    assert holders(bench.lab.store, sha256.encode()) != []
    assert holders(bench.lab.store, TOKEN.encode()) == []
    assert not any(TOKEN in word for word in bench.recorder.argv)
    plan = bench.lab.plan("secret")
    definition = replace(bench.lab.context, secrets=secrets).definition([plan])
    assert NAME in repr(definition)
    assert TOKEN not in repr((plan, definition))
    bench.lab.said.seek(0)
    assert TOKEN not in bench.lab.said.read()


def test_a_step_that_says_its_secret_says_stars(bench: Bench, secrets: BuildSecrets) -> None:
    with pytest.raises(BuildError) as error:
        bench.build("telling", replace(bench.lab.context, secrets=secrets))
    assert "it is ***" in error.value.detail
    assert TOKEN not in error.value.detail


def test_an_image_that_would_hold_a_secret_is_refused(bench: Bench, secrets: BuildSecrets) -> None:
    with pytest.raises(BuildError, match="the image of leaking would hold a build secret") as error:
        bench.build("leaking", replace(bench.lab.context, secrets=secrets))
    assert error.value.detail == f"layer 1 has the value of {NAME}"
    assert holders(bench.lab.store, TOKEN.encode()) == []


def test_a_secret_that_is_not_given_is_told_before_the_build(bench: Bench) -> None:
    environment = {key: text for key, text in bench.lab.environment().items() if key != NAME}
    done = command.call(bench.lab.words("image", "taken", "secret"), environment)
    assert done.returncode == 9
    assert done.stderr.splitlines() == [
        f"error: not given to the build: the secret {NAME}",
        f"  the secret {NAME}: layer secret of secret",
        f"→ export {NAME}=…, or pass --secret id={NAME},src=FILE",
    ]


def test_an_ssh_agent_reaches_its_step(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with pytest.raises(PreflightError, match="not given to the build: an ssh agent"):
        bench.build("agent")
    with servers.ssh_agent() as socket:
        monkeypatch.setenv("SSH_AUTH_SOCK", socket)
        bench.build("agent")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.SshServer]:
    with servers.ssh_server(tmp_path_factory.mktemp("ssh") / "server") as made:
        yield made


def ssh_environment(server: servers.SshServer, folder: Path, *, known: bool) -> dict[str, str]:
    """A user whose own ssh knows the server, or does not, and asks no other configuration."""
    hosts = folder / "known_hosts"
    hosts.write_text(server.known_hosts if known else "")
    return {"GIT_SSH_COMMAND": f"ssh -F none -o UserKnownHostsFile={hosts}"}


def test_a_private_repository_is_locked_and_built_with_the_users_own_ssh(
    bench: Bench, server: servers.SshServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = bench.lab.project.parent / "site"
    mirror = ["--mirror", f"{SITE}=ssh://root@{server.address}{site}"]
    known = ssh_environment(server, tmp_path, known=True)
    environment = bench.lab.environment(**known, SPARKIMAGE_HOME=str(tmp_path / "home"))
    words = ["lock", "--update", "tree", *mirror]

    def lock(**more: str) -> subprocess.CompletedProcess[str]:
        return command.call(bench.lab.words(*words), {**environment, **more})

    nobody = lock(SSH_AUTH_SOCK="")
    assert nobody.returncode == 11
    assert "pin tree one: the server of https://git.example/tree.git wants a login" in nobody.stderr
    assert "ssh-add a key that it takes" in nobody.stderr
    with servers.ssh_agent(server.key) as agent:
        monkeypatch.setenv("SSH_AUTH_SOCK", agent)
        stranger = lock(**ssh_environment(server, tmp_path, known=False), SSH_AUTH_SOCK=agent)
        assert stranger.returncode == 11
        assert f"accept it once: ssh -T root@{server.address}" in stranger.stderr
        ssh_environment(server, tmp_path, known=True)
        done = lock(SSH_AUTH_SOCK=agent)
        assert (done.returncode, done.stderr) == (0, "")
        assert f"tree one any: {bench.tree[:12]}\n" in done.stdout
        for name, text in known.items():
            monkeypatch.setenv(name, text)
        rules = {**bench.lab.mirrors, SITE: f"ssh://root@{server.address}{site}"}
        private = replace(bench.lab.context, mirrors=Mirrors(rules=rules))
        # A clone that has nothing yet.
        (tree,) = (tree for layer in bench.lab.plan("taken").layers for tree in layer.trees)
        assert isinstance(tree, GitTree)
        folder = source_tree.checkout(tree, replace(private, home=tmp_path / "other"))
        assert (folder / "a" / "b.txt").read_text() == "from the tree\n"
        files = bench.files(bench.build("taken", private))
        assert files["opt/out.txt"].startswith(b"from the tree")
        assert bench.files(bench.build("server", private))["app/server"] == b"it serves\n"
