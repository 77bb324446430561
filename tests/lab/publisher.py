"""A project whose images are of two platforms, ready to publish, and the command line for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console

from sparkimage.config.address import Mirrors, Place
from sparkimage.core import paths
from sparkimage.core.process import Local
from sparkimage.core.progress import View
from sparkimage.image import layerindex
from sparkimage.image.store import Image
from sparkimage.registry import cosign, publish, sbom, tags
from sparkimage.registry.cosign import Trust
from sparkimage.registry.publish import Outcome, Publication
from sparkimage.resolve.context import ResolveContext
from sparkimage.resolve.skopeo import Repository
from sparkimage.resolve.tools import Tools
from sparkimage.verify import seal
from sparkimage.verify.policy import Required
from tests.lab import hostile
from tests.lab import payload as payloads
from tests.lab.payload import Payload
from tests.lab.project import Project
from tests.unit import elf_maker, good_maker
from tests.unit import project_maker as maker

ARCHES = ("amd64", "arm64")
CHANNEL = "stable"
DIST = "usr/local/lib/python3.13/dist-packages"
SMALL = Payload.of(200_000, 50_000)


def name(arch: str) -> str:
    return f"small-{arch}"


class Publisher(Project):
    """The project, with a variant for each platform."""

    @classmethod
    def make(cls, folder: Path, *, channels: bool = False) -> Publisher:
        data = maker.document(
            {"os": {"trixie": maker.OS}},
            {"os": {"base": "os", "expect": {"project": "vllm"}}},
            [maker.include(name(a), "os", platform=f"linux/{a}", os="trixie") for a in ARCHES],
        )
        if channels:
            data["channels"] = {CHANNEL: ["small-*"]}
        made = cls(folder=folder)
        made.write_matrix(data)
        hostile.make_key(made.key)
        for words in (made.tools.skopeo, made.tools.cosign):
            # A home of its own needs no programs of its own.
            tree = next((Path(word) for word in words[:1] if "registry-" in word), None)
            if tree is not None:
                tree = tree.parents[3]
                own = folder / "home" / "tools" / tree.name
                own.parent.mkdir(parents=True, exist_ok=True)
                if not own.exists():
                    own.symlink_to(tree)
        return made

    def image(
        self,
        arch: str = "amd64",
        payload: Payload = SMALL,
        *,
        vllm: str = "0.32.0",
        nccl: str = "2.30.4",
        created: str = "2000-01-01T00:00:00Z",
    ) -> Image:
        """The variant's image with what makes its versions, sealed so that the gate takes it."""
        store, plan = self.store, self.plan(name(arch))
        # -1 is the busybox, which the lab has for amd64.
        begin = -1 if arch == ARCHES[0] else 0
        layers = [
            payloads._layer(store, payload, n, arch) for n in range(begin, len(payload.parts))
        ]
        library = elf_maker.nccl(arch, nccl)
        versions = good_maker.put_layer(store, {
            f"{DIST}/vllm-{vllm}.dist-info/METADATA":
                f"Metadata-Version: 2.1\nName: vllm\nVersion: {vllm}\n".encode(),
            f"{DIST}/torch/version.py": b"cuda: Optional[str] = '13.0'\n",
            f"usr/lib/{plan.triplet}/libnccl.so.{nccl}": library,
            f"usr/lib/{plan.triplet}/libnccl.so.2": f"libnccl.so.{nccl}",
            "etc/os-release": b"ID=debian\nVERSION_ID=13\n",
            "var/lib/dpkg/status":
                b"Package: libc6\nStatus: install ok installed\nArchitecture: all\nVersion: 2.41\n",
        })  # fmt: skip
        listed = [(blob.to_dict(), id) for blob, id in layers]
        listed.insert(1, versions)
        config = payloads._config(arch, [id for _, id in listed])
        config["config"]["Labels"] = dict(plan.labels)
        config["created"] = created
        made = good_maker.put_image(store, config, [blob for blob, _ in listed])
        return self.seal_image(made, plan.variant)

    def item(self, image: Image, arch: str = "amd64", *, real_sbom: bool = False) -> publish.Item:
        """What `publish` makes of it; syft takes a second, so that it is asked where it counts."""
        store, plan = self.store, self.plan(name(arch))
        files = layerindex.image_files(store, image)
        verdict = seal.verdict(store, image.digest)
        assert verdict is not None
        return publish.Item(
            plan=plan, image=image, measured=tags.measure(files, plan.expect), verdict=verdict,
            required=Required(tiers=plan.requires),
            sbom=sbom.create(plan, image, files, store, Local())
            if real_sbom
            else {"packages": [{"name": "one"}, {"name": "two"}]},
        )  # fmt: skip

    @property
    def key(self) -> Path:
        """The publisher's key; its public half is beside it."""
        return self.folder / "publisher.pem"

    @property
    def tools(self) -> Tools:
        """Of the machine's home: fetched once for all tests."""
        home = paths.home()
        return Tools(
            outside=ResolveContext(home=home, runner=Local(), mirrors=Mirrors(), say=print)
        )

    @property
    def trust(self) -> Trust:
        return Trust.of(str(hostile.public(self.key)), None, None, self.tools)

    def repository(self, address: str, **more: Any) -> Repository:
        return Repository(place=Place.parse(address), tools=self.tools, **more)

    def publish(self, to: Repository, *items: publish.Item, **more: Any) -> Outcome:
        with cosign.signer(str(self.key), None, None, self.tools) as signer:
            return Publication(
                items=items, store=self.store, to=to, view=View(Console(quiet=True), quiet=True),
                signer=signer, **more,
            ).run()  # fmt: skip

    def environment(self, **more: str) -> dict[str, str]:
        keys = {
            "SPARKIMAGE_KEY": str(self.key),
            "SPARKIMAGE_PUBLIC_KEY": str(hostile.public(self.key)),
        }
        return super().environment(**{**keys, **more})

    def docker_config(self, registry: str, user: str, password: str) -> Path:
        """A folder for DOCKER_CONFIG with a login, as `docker login` writes it."""
        import base64

        folder = self.folder / "docker"
        folder.mkdir(exist_ok=True)
        auth = base64.b64encode(f"{user}:{password}".encode()).decode()
        (folder / "config.json").write_text(json.dumps({"auths": {registry: {"auth": auth}}}))
        return folder
