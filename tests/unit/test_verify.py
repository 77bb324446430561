"""What verify does around the checks: tiers, the seal, the node; report and foreign config."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from sparkimage import emit, node, planning, progress, report, seal, verify
from sparkimage.cli_verify import tiers_of
from sparkimage.emulation import program
from sparkimage.engine import Engine
from sparkimage.errors import (
    CommandError,
    ConfigError,
    EngineError,
    PreflightError,
    UsageError,
    VerifyError,
)
from sparkimage.keys import Keyring
from sparkimage.model import MatrixFile
from sparkimage.plan import Plan
from sparkimage.run import Completed, Local
from sparkimage.seal import Check
from sparkimage.store import Image, Store
from sparkimage.tier import DEFAULT, Tier
from tests.unit import project_maker as maker
from tests.unit.oci_maker import Files, make_image
from tests.unit.seal_maker import check, made

ENGINE = Engine(
    host="unix:///x", docker=("docker",), version="29.0", buildx="x", arch="arm64", private=False,
    containerd_store=True, data_root="/", bin=None,
)  # fmt: skip


class Fake:
    """A runner whose commands answer what they are told to."""

    def __init__(self, *answers: tuple[int, str, str]) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, ...]] = []

    def run(self, argv: Sequence[str], *, check: bool = True, **_more: object) -> Completed:
        self.asked.append(tuple(argv))
        code, out, err = self.answers.pop(0)
        if check and code:
            raise CommandError(argv, code, out + err)
        return Completed(argv=tuple(argv), returncode=code, stdout=out, stderr=err)


FITTING: Files = {
    "bin/run": program("arm64", b""),
    "etc/os-release": b"VERSION_CODENAME=trixie\n",
    "var/lib/dpkg/status": b"Package: x-root\nStatus: install ok installed\nVersion: 1\n",
}
"""What the plan of these tests asks of an image's files."""


class Bench:
    """A plan, its project, and an image that fits it in a store."""

    def __init__(self, folder: Path) -> None:
        self.project = folder / "project"
        self.project.mkdir()
        data = maker.document(
            {"app": {"1.0.0": maker.APP}},
            {"base": {}, "app": {"wheels": {"pin": "app"}}},
            [maker.include("v", "base", "app", app="1.0.0")],
        )
        data["pins"]["os"] = {"trixie": maker.OS}
        data["layers"]["base"] = {"base": "os"}
        data["include"][0]["pins"]["os"] = "trixie"
        read = maker.write(self.project, data)
        folder_of = self.project / "images" / "app"
        (folder_of / "test_app.py").write_text("def test_a(check): ...\ndef helper(): ...\n")
        (variant,) = read.variants
        self.plan = planning.make(read, variant, maker.locked(read), maker.ORIGIN)
        self.store = Store.open(folder / "store")
        self.image = self.good(make_image(self.store, [FITTING]))
        self.keys = Keyring(folder=folder / "keys")

    def good(self, image: Image) -> Image:
        config = {
            "Entrypoint": list(self.plan.entrypoint), "Cmd": list(self.plan.cmd) or None,
            "Labels": dict(self.plan.labels), "Env": ["PATH=/bin"],
        }  # fmt: skip
        return replace(image, config={**image.config, "config": config})

    def verify(self, live: Any, *tiers: Tier, runner: Any = None) -> verify.Outcome:
        return verify.verify(
            self.plan, self.image, live=live, project=self.project, store=self.store,
            runner=runner or Local(), keys=self.keys, tiers=tiers,
        )  # fmt: skip

    def verdict(self) -> seal.Verdict | None:
        return seal.verdict(
            self.store, self.image.digest, keys=self.keys,
            plan_checksum=verify.checksum(self.plan, self.project),
        )  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def never() -> verify.Live:
    raise EngineError("no engine answers")


def live() -> verify.Live:
    return verify.Live(engine=ENGINE, reference="r:v")


def test_the_static_tier_needs_no_engine(bench: Bench) -> None:
    outcome = bench.verify(never, Tier.STATIC)
    assert outcome.checks
    found = bench.verdict()
    assert found is not None
    assert (found.result, found.tiers) == ("PASSED", (Tier.STATIC,))
    with pytest.raises(EngineError):
        bench.verify(never, Tier.STATIC, Tier.RUN)


FAULTS: dict[str, dict[str, Any]] = {
    "static/platform": {"architecture": "amd64"},
    "static/exec-form": {"Entrypoint": ["/bin/sh", "-c", "run"]},
    "static/labels": {"Labels": {}},
}


@pytest.mark.parametrize("id", FAULTS)
def test_each_static_check_can_fail(bench: Bench, id: str) -> None:
    fault = dict(FAULTS[id])
    config = dict(bench.image.config)
    config |= {key: fault.pop(key) for key in list(fault) if key == "architecture"}
    config["config"] = {**config["config"], **fault}
    bench.image = replace(bench.image, config=config)
    # The engine that cannot start such an image does not keep the seal from being written.
    with pytest.raises(VerifyError, match="is refused"):
        bench.verify(never, *DEFAULT)
    found = bench.verdict()
    assert found is not None
    assert found.result == "FAILED"
    assert id in [one.id for one in found.failed]
    said = found.statement["predicate"]
    assert (said["tiers"], said["notRun"]) == (["static"], {"run": "not run: no engine answers"})


def test_what_is_required_is_of_the_plan_and_its_checks(bench: Bench) -> None:
    required = verify.required(bench.plan, bench.project)
    assert (required.tiers, required.checks) == (DEFAULT, ("app/test_a",))
    more = replace(bench.plan, requires=tuple(Tier))
    assert verify.required(more, bench.project).tiers == tuple(Tier)
    # Asking for more leaves the seal as it is; other checks do not.
    before = verify.checksum(bench.plan, bench.project)
    assert verify.checksum(more, bench.project) == before
    only = replace(bench.plan, requires=(Tier.STATIC,))
    assert verify.required(only, bench.project).checks == ()
    (bench.project / "images" / "app" / "test_app.py").write_text("def test_b(check): ...\n")
    assert verify.checksum(bench.plan, bench.project) != before


def test_requires_is_a_field_of_the_matrix(tmp_path: Path) -> None:
    data = maker.document({"os": {"trixie": maker.OS}}, {"base": {"base": "os"}},
                          [maker.include("v", "base", os="trixie")])  # fmt: skip
    assert maker.write(tmp_path, data).requires == DEFAULT
    read = maker.write(tmp_path, {**data, "requires": ["node", "static"]})
    assert read.requires == (Tier.STATIC, Tier.NODE)
    (variant,) = read.variants
    plan = planning.make(read, variant, maker.locked(read), maker.ORIGIN)
    assert plan.requires == (Tier.STATIC, Tier.NODE)
    for wrong in (["moon"], []):
        with pytest.raises(ConfigError):
            maker.write(tmp_path, {**data, "requires": wrong})
    assert "requires" in MatrixFile.model_fields


def test_tiers_of_a_word() -> None:
    assert tiers_of("node, static") == (Tier.STATIC, Tier.NODE)
    with pytest.raises(UsageError, match="no such tier: moon"):
        tiers_of("static,moon")


# The node tier

INFO = json.dumps({"Runtimes": {"runc": {}, "nvidia": {}}})
CDI = json.dumps({"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=all"}]})
GOOD: dict[str, Any] = {
    "gpus": 1, "memlock": -1, "infiniband": ["uverbs0"], "nccl": 0,
    "mapped": ["/usr/lib/libnccl.so.2.30.4"],
}  # fmt: skip


def seen(banner: str = "NCCL version 2.30.4+cuda13.0", **change: Any) -> tuple[int, str, str]:
    return (0, f"{banner}\nseen {json.dumps({**GOOD, **change})}\n", "")


def nodes(bench: Bench, *answers: tuple[int, str, str]) -> node.Examined:
    plan = replace(bench.plan, versions={"nccl": "2.30.4"})
    return node.examine(plan, ENGINE, "r:v", Fake(*answers))


def test_a_node_with_a_gpu_passes(bench: Bench) -> None:
    for info in (INFO, CDI):
        came = nodes(bench, (0, info, ""), seen())
        assert came.not_run == ""
        assert {one.tier for one in came.checks} == {Tier.NODE}
        assert [one.id for one in came.checks if not one.passed] == []
        assert len(came.checks) == 6


@pytest.mark.parametrize(
    ("id", "answer"),
    [
        ("node/infiniband", seen(infiniband=[])),
        ("node/memlock", seen(memlock=65536)),
        ("node/nccl_communicator", seen(nccl=2)),
        ("node/nccl_mapped", seen(mapped=["/a/libnccl.so.2", "/b/libnccl.so.2"])),
        ("node/nccl_banner", seen("NCCL version 2.28.9+cuda13.0")),
        ("node/nccl_banner", seen("")),
    ],
)
def test_each_node_check_can_fail(bench: Bench, id: str, answer: tuple[int, str, str]) -> None:
    came = nodes(bench, (0, INFO, ""), answer)
    assert [one.id for one in came.checks if not one.passed] == [id]


@pytest.mark.parametrize(
    "answers",
    [
        [(0, json.dumps({"Runtimes": {"runc": {}}}), "")],
        [(0, INFO, ""), seen(gpus=0)],
        [(0, INFO, ""), (125, "", "could not select device driver with capabilities: [[gpu]]")],
    ],
)
def test_without_a_gpu_nothing_has_passed(bench: Bench, answers: list[Any]) -> None:
    came = nodes(bench, *answers)
    assert came.checks == ()
    assert came.not_run.startswith("not run: no GPU (")
    with pytest.raises(PreflightError, match="node: not run: no GPU"):
        bench.verify(live, Tier.NODE, runner=Fake(*answers))
    assert bench.verdict() is None
    outcome = bench.verify(live, Tier.STATIC, Tier.NODE, runner=Fake(*answers))
    assert outcome.not_run[Tier.NODE].startswith("not run: no GPU")
    found = bench.verdict()
    assert found is not None
    assert found.tiers == (Tier.STATIC,)


def test_another_failure_of_the_node_is_an_error(bench: Bench) -> None:
    with pytest.raises(CommandError):
        nodes(bench, (0, INFO, ""), (125, "", "No such image"))


# The report


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "data")]


EVIL = "<script>alert(1)</script>\"'&"


def page(bench: Bench, *checks: Check, statements: Mapping[str, Any] | None = None) -> str:
    more = dict(statements or {})
    seal.save(bench.store, made(*checks, digest=bench.image.digest, **more), bench.keys)
    found = seal.verdict(bench.store, bench.image.digest, keys=bench.keys)
    assert found is not None
    return report.page(bench.plan, bench.image, found, bench.project)


def test_a_report_shows_everything_and_loads_nothing(bench: Bench) -> None:
    winner = "/usr/lib/aarch64-linux-gnu/libnccl.so.2.30.4"
    copies = [{"path": "opt/x/libnccl.so.2", "layer": 3, "version": "2.28.9"}]
    text = page(
        bench,
        replace(check("static/nccl_copies", tier=Tier.STATIC), seen=copies, expected=copies),
        replace(
            check("nccl-pip/test_torch_maps_exactly_one_nccl"), seen=[winner], expected=[winner]
        ),
        check("l/test_b", "FAILED"),
    )
    parser = Tags()
    parser.feed(text)
    assert parser.links == []
    assert "http" not in text
    assert {"script", "link", "img", "iframe"} & set(parser.tags) == set()
    assert parser.tags.count("svg") == len(bench.image.layers)
    (row,) = re.findall(r'<tr class="winner">.*?</tr>', text)
    assert winner in row
    assert "/opt/x/libnccl.so.2" in text
    assert "layer 3, version 2.28.9" in text
    for said in (bench.image.digest, "FAILED", "not run", next(iter(bench.keys.trusted()))):
        assert said in text
    assert all(layer.digest in text for layer in bench.image.layers)


def test_a_report_escapes_all_that_it_is_given(bench: Bench) -> None:
    bench.plan = replace(
        bench.plan, variant=EVIL, image=EVIL, entrypoint=(EVIL,), versions={EVIL: EVIL}
    )
    evil = Check(
        id=f"nccl{EVIL}", layer=EVIL, title=EVIL, result="FAILED",
        seen={EVIL: EVIL, "path": f"/x/libnccl.so{EVIL}"}, expected=EVIL * 30,
    )  # fmt: skip
    text = page(bench, evil, statements={"image": EVIL})
    parser = Tags()
    parser.feed(text)
    assert "script" not in parser.tags
    assert "<script" not in text
    assert "alert(1)" in text


# What other programs read


def test_the_config_of_container_structure_test(bench: Bench) -> None:
    said = yaml.safe_load(emit.structure_test(bench.plan, bench.image.config))
    assert said["schemaVersion"] == "2.0.0"
    assert said["metadataTest"]["entrypoint"] == ["run"]
    assert said["metadataTest"]["envVars"] == [{"key": "PATH", "value": "/bin"}]
    labels = {one["key"]: one["value"] for one in said["metadataTest"]["labels"]}
    assert labels == bench.plan.labels
    layers = tuple(replace(layer, name="nccl-pip") for layer in bench.plan.layers)
    plan: Plan = replace(bench.plan, layers=layers, versions={"nccl": "2.30.4"})
    said = yaml.safe_load(emit.structure_test(plan, bench.image.config))
    library = "/usr/lib/aarch64-linux-gnu/libnccl.so.2.30.4"
    assert {"key": "LD_PRELOAD", "value": library} in said["metadataTest"]["envVars"]
    assert [one["path"] for one in said["fileExistenceTests"]] == [
        library,
        "/usr/local/lib/python3.12/dist-packages/nvidia/nccl/lib/libnccl.so.2",
        "/usr/lib/aarch64-linux-gnu/libnccl.so.2",
    ]
    assert [one["command"] for one in said["commandTests"]] == ["python3", "readlink", "readlink"]


# Progress


def test_a_transfer_in_lines_and_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_S", 0.0)
    for terminal in (False, True):
        said = io.StringIO()
        view = progress.View(Console(file=said, width=120, force_terminal=terminal))
        with view.transfer("saving [v]", 2_000_000) as moved:
            moved(1_000_000)
            moved(1_000_000)
        assert "saving [v]" in said.getvalue()
        assert "2.0 MB" in said.getvalue() or "2.0/2.0 MB" in said.getvalue()
        assert ("/s" in said.getvalue()) or terminal
