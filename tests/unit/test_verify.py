"""What verify does around the checks: tiers, the seal, the node; report and foreign config."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from sparkimage.build.engine.emulation import program
from sparkimage.build.engine.engine import Engine
from sparkimage.cli.verify import tiers_of
from sparkimage.config import planning
from sparkimage.config.plan import Answer, Expected, Plan
from sparkimage.config.schema import MatrixFile
from sparkimage.config.tier import DEFAULT, Tier
from sparkimage.core import progress
from sparkimage.core.errors import (
    CommandError,
    ConfigError,
    EngineError,
    GateError,
    PreflightError,
    UsageError,
    VerifyError,
)
from sparkimage.core.process import Completed, Local
from sparkimage.image.store import Image, Store
from sparkimage.verify import (
    gpu,
    plan_record,
    report,
    run_entrypoint,
    run_tiers,
    seal,
    static,
)
from sparkimage.verify.seal import Check
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
        self.limits: list[float] = []

    def run(
        self, argv: Sequence[str], *, check: bool = True, timeout_s: float | None = None,
        **_more: object,
    ) -> Completed:  # fmt: skip
        self.asked.append(tuple(argv))
        self.limits += [] if timeout_s is None else [timeout_s]
        code, out, err = self.answers.pop(0)
        if check and code:
            raise CommandError(argv, code, out + err)
        return Completed(argv=tuple(argv), returncode=code, stdout=out, stderr=err)


FITTING: Files = {
    "bin/run": program("arm64", b""),
    "etc/os-release": b"VERSION_CODENAME=trixie\n",
    "var/lib/dpkg/status": b"Package: x-root\nStatus: install ok installed\nVersion: 1\n",
    **{
        f"usr/local/lib/python3.12/dist-packages/{name}-1.0.dist-info/METADATA": (
            f"Name: {name}\nVersion: 1.0\n".encode()
        )
        for name in ("app", "lib")
    },
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
        text = "def test_a(host, check): ...\ndef helper(): ...\n"
        (folder_of / "test_app.py").write_text(text)
        (variant,) = read.variants
        self.plan = planning.make(read, variant, maker.locked(read), maker.ORIGIN)
        self.store = Store.open(folder / "store")
        self.image = self.good(make_image(self.store, [FITTING]))

    def good(self, image: Image) -> Image:
        config = {
            "Entrypoint": list(self.plan.entrypoint), "Cmd": list(self.plan.cmd) or None,
            "Labels": dict(self.plan.labels), "Env": ["PATH=/bin"],
        }  # fmt: skip
        return replace(image, config={**image.config, "config": config})

    def verify(self, live: Any, *tiers: Tier, runner: Any = None) -> run_tiers.Outcome:
        return run_tiers.verify(
            plan_record.record(self.plan, self.project), self.image, live=live,
            project=self.project, store=self.store, runner=runner or Local(),
            tiers=tiers,
        )  # fmt: skip

    def verdict(self) -> seal.Verdict | None:
        return seal.verdict(
            self.store, self.image.digest,
            plan_checksum=plan_record.record(self.plan, self.project).checksum,
        )  # fmt: skip


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def never() -> run_tiers.Live:
    raise EngineError("no engine answers")


def live() -> run_tiers.Live:
    return run_tiers.Live(engine=ENGINE, reference="r:v")


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
    with pytest.raises(VerifyError, match=r"failed \d+ of \d+ checks"):
        bench.verify(never, *DEFAULT)
    found = bench.verdict()
    assert found is not None
    assert found.result == "FAILED"
    assert id in [one.id for one in found.failed]
    said = found.newest.predicate
    assert (said["tiers"], said["notRun"]) == (["static"], {"run": "not run: no engine answers"})


def test_what_is_required_is_of_the_plan_and_its_checks(bench: Bench) -> None:
    def record(plan: Plan) -> plan_record.PlanRecord:
        return plan_record.record(plan, bench.project)

    required = record(bench.plan).required
    every = ("_every/test_platform_of_the_programs", "_every/test_package_database")
    assert (required.tiers, required.checks) == (DEFAULT, (*every, "app/test_a"))
    more = replace(bench.plan, requires=tuple(Tier))
    assert record(more).required.tiers == tuple(Tier)
    # Asking for more leaves the seal as it is; other checks do not.
    before = record(bench.plan).checksum
    assert record(more).checksum == before
    only = replace(bench.plan, requires=(Tier.STATIC,))
    assert record(only).required.checks == ()
    file = bench.project / "images" / "app" / "test_app.py"
    file.write_text('"""Words."""\n\n# And more.\n' + file.read_text() + "\n")
    assert record(bench.plan).checksum == before
    file.write_text("def test_b(check): ...\n")
    assert record(bench.plan).checksum != before


def test_the_record_of_an_image_outlives_the_project(bench: Bench) -> None:
    made = plan_record.record(bench.plan, bench.project, "1" * 64)
    bench.verify(never, Tier.STATIC)
    plan_record.save(bench.store, bench.image.digest, made)
    shutil.rmtree(bench.project)
    kept = plan_record.load(bench.store, bench.image.digest)
    assert kept == made
    assert kept.checksum == made.checksum == kept.current_checksum
    # Its layers' checks would be left out in silence.
    with pytest.raises(UsageError, match=r"lacks app, whose checks v must pass"):
        plan_record.refresh(kept, bench.project)


@pytest.mark.parametrize("data", [b"", b"null", b"{}", b'{"plan": {}, "checks": []}'])
def test_a_record_that_is_damaged_or_missing_is_said(bench: Bench, data: bytes) -> None:
    digest = bench.image.digest
    with pytest.raises(GateError, match="is not in the store"):
        plan_record.load(bench.store, digest)
    plan_record.save(bench.store, digest, plan_record.record(bench.plan, bench.project))
    (file,) = (bench.store.root / "facts" / plan_record.KIND).iterdir()
    file.write_bytes(data)
    with pytest.raises(GateError, match="is damaged"):
        plan_record.load(bench.store, digest)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("x = 1\n", '"""Doc.\n\nMore é."""\nx = 1  # é\n\n# more\n', True),
        ("def f():\n    return 1\n", 'def f():\n    """D."""\n    # d\n    return 1\n', True),
        ('x = "# a"\n', 'x = "# b"\n', False),
        ('def f(): "d"\n', 'def g(): "d"\n', False),
        ('x = """a\n\nb"""\n', 'x = """a\nb"""\n', False),
        ('x = """a\n \nb"""\n', 'x = """a\n\nb"""\n', False),
        ('x = f"""a\n\n{1}"""\n', 'x = f"""a\n{1}"""\n', False),
    ],
)
def test_a_comment_is_no_part_of_a_check(one: str, other: str, same: bool) -> None:
    assert (plan_record.code_checksum(one) == plan_record.code_checksum(other)) is same


RECORDED = Path(__file__).with_name("checks-version.json")


def test_changed_checks_have_a_new_version() -> None:
    """Where this fails: raise ``CHECKS_VERSION`` if a result may be another one than before
    (all images are then to be proven again), and record the code: make golden."""
    package = Path(plan_record.__file__).parents[1]
    digest = hashlib.sha256()
    for name in plan_record.CHECKERS:
        text = (package / name).read_text()
        if name.endswith(".py"):
            digest.update(plan_record.code_checksum(text).encode())
        else:
            digest.update(json.dumps(yaml.safe_load(text), sort_keys=True).encode())
    now = {"version": plan_record.CHECKS_VERSION, "code": digest.hexdigest()}
    if os.environ.get("GOLDEN") == "write":
        RECORDED.write_text(json.dumps(now, indent=1) + "\n")
    assert json.loads(RECORDED.read_text()) == now


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


# The ENTRYPOINT

ANSWER = Answer(args=("--help",), says="usage: run", without_gpu="no device")
CREATED = (0, "c1\n", "")
REMOVED = (0, "", "")


def start(
    bench: Bench, *answers: tuple[int, str, str], arch: str = "arm64", tier: Tier = Tier.RUN,
    answer: Answer | None = ANSWER,
) -> tuple[list[Check], dict[str, str], Fake]:  # fmt: skip
    runner = Fake(CREATED, *answers, REMOVED)
    checks: list[Check] = []
    not_run: dict[str, str] = {}
    plan = replace(bench.plan, answer=answer)
    with run_entrypoint.started(
        plan, replace(ENGINE, arch=arch), "r:v", runner, tier=tier
    ) as answer_:
        if answer_ is not None:
            answer_.add(checks, not_run)
    return checks, not_run, runner


def ended(code: int, out: str = "", err: str = "") -> list[tuple[int, str, str]]:
    return [(0, "", ""), (0, f"{code}\n", ""), (0, out, err)]


def test_the_entrypoint_answers_as_it_is(bench: Bench) -> None:
    checks, not_run, runner = start(bench, *ended(0, "usage: run [x]\n"))
    assert ([one.result for one in checks], not_run) == (["PASSED"], {})
    assert checks[0].id == "run/entrypoint-answers"
    assert "--entrypoint" not in runner.asked[0]
    assert runner.asked[0][-2:] == ("r:v", "--help")
    assert runner.asked[-1][-3:] == ("rm", "--force", "c1")
    checks, not_run, _ = start(bench, *ended(0, "usage: run"), tier=Tier.NODE)
    assert [(one.id, one.tier) for one in checks] == [("node/entrypoint-answers", Tier.NODE)]


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ([(1, "", "exec /bin/run: exec format error")], "exec format error"),
        ([(1, "", 'exec: "run": executable file not found in $PATH')], "not found in $PATH"),
        (ended(1, "", "ModuleNotFoundError: No module named 'vllm'\n"), "ModuleNotFoundError"),
        (ended(2, "", "error: unrecognized arguments: run\n"), "exit code 2"),
        (ended(0, "hello\n"), "hello"),
        # The word alone is no answer, and a want of a GPU does not end well.
        (ended(1, "usage: run\n"), "exit code 1"),
        (ended(0, "", "no device"), "exit code 0"),
    ],
)
def test_an_entrypoint_that_does_not_start_has_failed(
    bench: Bench, answers: list[tuple[int, str, str]], said: str
) -> None:
    for arch in ("arm64", "amd64"):
        checks, not_run, _ = start(bench, *answers, arch=arch)
        assert ([one.result for one in checks], not_run) == (["FAILED"], {})
        assert said in checks[0].seen


def test_what_answers_with_a_gpu_only_has_not_passed(bench: Bench) -> None:
    answers = ended(1, "", "Traceback:\nRuntimeError: no device here\n")
    checks, not_run, _ = start(bench, *answers)
    assert checks == []
    assert not_run == {
        "run/entrypoint-answers": "not run: it answers only with a GPU "
        "(exit code 1: RuntimeError: no device here)"
    }
    # With a GPU it is a failure.
    checks, not_run, _ = start(bench, *answers, tier=Tier.NODE)
    assert ([one.result for one in checks], not_run) == (["FAILED"], {})


SILENT = [(0, "", ""), (124, "", "no end"), REMOVED]


def test_silence_is_a_failure_and_under_emulation_nothing(bench: Bench) -> None:
    checks, not_run, runner = start(bench, *SILENT)
    assert ([one.result for one in checks], not_run) == (["FAILED"], {})
    assert runner.limits == [run_entrypoint.LIMIT_S]
    checks, not_run, _ = start(bench, *SILENT, arch="amd64")
    assert checks == []
    assert not_run["run/entrypoint-answers"].endswith("of emulation")
    assert start(bench, answer=None)[2].asked == []


def test_the_wait_for_an_answer_ends_before_the_other_checks_do(bench: Bench) -> None:
    runner = Fake(CREATED, *SILENT, REMOVED)
    plan = replace(bench.plan, answer=ANSWER)
    with run_entrypoint.started(plan, replace(ENGINE, arch="amd64"), "r:v", runner) as answer_:
        assert answer_ is not None
        # Nobody has asked for it yet; the other checks go on.
        said = answer_.future.result()
        assert said == "not run: it answers only with a GPU; no answer after 60 s of emulation"
        assert runner.limits == [60.0]
        assert runner.asked[-1][-3:] == ("rm", "--force", "c1")


def test_what_did_not_run_stands_in_the_seal_and_the_report(bench: Bench) -> None:
    why = {"run/entrypoint-answers": f"not run: {EVIL}", "node": "not run: no GPU (none)"}
    text = page(bench, check("l/test_a"), statements={"not_run": why})
    assert "1 of 1 checks passed, 1 not run" in text
    assert "not run: &lt;script&gt;" in text
    assert "not run: no GPU (none)" in text
    found = seal.verdict(bench.store, bench.image.digest)
    assert found is not None
    assert (found.result, found.not_run, found.to_dict()["notRun"]) == ("PASSED", why, why)
    # What has run once has a result.
    later = replace(check("run/entrypoint-answers", "FAILED"), seen="exit code 1")
    page(bench, later, check("node/x", tier=Tier.NODE))
    found = seal.verdict(bench.store, bench.image.digest)
    assert found is not None
    assert (found.result, found.not_run) == ("FAILED", {})


def test_answer_is_a_field_of_the_matrix(tmp_path: Path) -> None:
    data = maker.document({"os": {"trixie": maker.OS}}, {"base": {"base": "os"}},
                          [maker.include("v", "base", os="trixie"),
                           {**maker.include("other", "base", os="trixie"), "entrypoint": ["x"]},
                           {**maker.include("own", "base", os="trixie"), "entrypoint": ["x"],
                            "answer": {"args": [], "says": "x"}}])  # fmt: skip
    data["defaults"]["answer"] = {"args": ["--help"], "says": "usage", "without_gpu": "no GPU"}
    read = maker.write(tmp_path, data)
    lock = maker.locked(read)
    plans = [planning.make(read, one, lock, maker.ORIGIN) for one in read.variants]
    assert {plan.variant: plan.answer for plan in plans} == {
        "v": Answer(args=("--help",), says="usage", without_gpu="no GPU"),
        "other": None,
        "own": Answer(args=(), says="x"),
    }
    data["defaults"]["answer"] = {"args": [], "says": ""}
    with pytest.raises(ConfigError):
        maker.write(tmp_path, data)


# The node tier

INFO = (0, json.dumps({"Runtimes": {"runc": {}, "nvidia": {}}}), "")
BARE: dict[str, Any] = {
    "gpus": 0, "memlock": -1, "devices": [], "infiniband": ["uverbs0"], "workers": [],
}  # fmt: skip
LIBRARY = "/usr/lib/aarch64-linux-gnu/libnccl.so.2.30.4"
WORKER = {"nccl": 0, "mapped": [LIBRARY]}
GOOD = {**BARE, "gpus": 2, "devices": ["/dev/nvidia0", "/dev/nvidia1"], "workers": [WORKER] * 2}
REFUSED = (125, "", "could not select device driver with capabilities: [[gpu]]")


def seen(base: Mapping[str, Any], banner: str = "", **change: Any) -> tuple[int, str, str]:
    return (0, f"{banner}\nseen {json.dumps({**base, **change})}\n", "")


def good(banner: str = "NCCL version 2.30.4+cuda13.0", **change: Any) -> tuple[int, str, str]:
    return seen(GOOD, banner, **change)


def nodes(bench: Bench, *answers: tuple[int, str, str]) -> gpu.NodeOutcome:
    plan = replace(bench.plan, expect=Expected(nccl="2.30.4"))
    return gpu.examine(plan, ENGINE, "r:v", Fake(*answers))


def test_a_node_with_gpus_passes(bench: Bench) -> None:
    came = nodes(bench, seen(BARE), good())
    assert came.not_run == {}
    assert {one.tier for one in came.checks} == {Tier.NODE}
    assert [one.id for one in came.checks if not one.passed] == []
    assert len(came.checks) == 6
    plan = replace(bench.plan, answer=ANSWER)
    runner = Fake(seen(BARE), good(), CREATED, *ended(0, "usage: run"), REMOVED)
    came = gpu.examine(plan, ENGINE, "r:v", runner)
    assert came.checks[-1].id == "node/entrypoint-answers"
    assert came.checks[-1].passed
    (created,) = [argv for argv in runner.asked if "create" in argv]
    assert created[created.index("--gpus") + 1] == "all"


@pytest.mark.parametrize(
    ("id", "answer"),
    [
        ("node/infiniband", good(infiniband=[])),
        ("node/memlock", good(memlock=65536)),
        ("node/nccl-communicator", good(workers=[WORKER, {**WORKER, "nccl": 2}])),
        ("node/nccl-mapped", good(workers=[WORKER, {**WORKER, "mapped": [LIBRARY, "/b.so"]}])),
        ("node/nccl-mapped", good(workers=[WORKER, {**WORKER, "mapped": ["/pip/libnccl.so.2"]}])),
        ("node/nccl-banner", good("NCCL version 2.28.9+cuda13.0")),
        ("node/nccl-banner", good("")),
    ],
)
def test_each_node_check_can_fail(bench: Bench, id: str, answer: tuple[int, str, str]) -> None:
    came = nodes(bench, seen(BARE), answer)
    assert [one.id for one in came.checks if not one.passed] == [id]


@pytest.mark.parametrize("answer", [REFUSED, seen(BARE)])
def test_a_gpu_that_the_engine_cannot_hand_out_is_a_failure(
    bench: Bench, answer: tuple[int, str, str]
) -> None:
    bare = seen(BARE, devices=["/dev/nvidia0"], infiniband=[])
    came = nodes(bench, bare, answer, (0, json.dumps({"Runtimes": {"runc": {}}}), ""))
    assert came.not_run == {}
    failed = {one.id: one.seen for one in came.checks if not one.passed}
    assert set(failed) == {"node/runtime", "node/infiniband"}
    assert "/dev/nvidia0 cannot be handed out (no nvidia runtime" in failed["node/runtime"]
    cdi = json.dumps({"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=all"}]})
    for info, way in ((INFO, "(nvidia)"), ((0, cdi, ""), "(nvidia.com/gpu=all)")):
        (runtime, *_) = nodes(bench, bare, answer, info).checks
        assert way in runtime.seen


def test_gpus_by_cdi_where_there_is_no_nvidia_runtime(bench: Bench) -> None:
    bare, unresolved = seen(BARE, devices=["/dev/nvidia0"]), (125, "", "unresolvable CDI devices")
    has_cdi = (0, json.dumps({"CDISpecDirs": ["/etc/cdi"]}), "")
    plan = replace(bench.plan, expect=Expected(nccl="2.30.4"), answer=ANSWER)
    runner = Fake(bare, REFUSED, has_cdi, good(), CREATED, *ended(0, "usage: run"), REMOVED)
    came = gpu.examine(plan, ENGINE, "r:v", runner)
    assert [one.id for one in came.checks if not one.passed] == []
    (created,) = [argv for argv in runner.asked if "create" in argv]
    assert created[created.index("--device") + 1] == "nvidia.com/gpu=all"
    assert "--gpus" not in created
    (runtime, *_) = nodes(bench, bare, REFUSED, has_cdi, unresolved).checks
    assert "unresolvable CDI devices" in runtime.seen


def test_an_engine_that_may_not_lift_the_limit_of_locked_memory(bench: Bench) -> None:
    refused = (125, "", "runc create failed: error setting rlimit type 8: not permitted")
    limited: dict[str, Any] = {"memlock": 8 << 20}
    answers = refused, seen(BARE, "", **limited), refused, good(**limited)
    failed = [one for one in nodes(bench, *answers).checks if not one.passed]
    assert [(one.id, one.seen) for one in failed] == [("node/memlock", 8 << 20)]


@pytest.mark.parametrize("answers", [[seen(BARE), seen(BARE)], [seen(BARE), REFUSED]])
def test_without_a_gpu_nothing_has_passed(bench: Bench, answers: list[Any]) -> None:
    came = nodes(bench, *answers)
    assert came.checks == ()
    assert came.not_run[Tier.NODE].startswith("not run: no GPU (")
    with pytest.raises(PreflightError, match="node: not run: no GPU"):
        bench.verify(live, Tier.NODE, runner=Fake(*answers))
    assert bench.verdict() is None
    outcome = bench.verify(live, Tier.STATIC, Tier.NODE, runner=Fake(*answers))
    assert outcome.not_run[Tier.NODE].startswith("not run: no GPU")
    found = bench.verdict()
    assert found is not None
    assert found.tiers == (Tier.STATIC,)


def test_an_image_of_which_no_nccl_is_expected_is_not_asked_for_one(bench: Bench) -> None:
    worker = {"nccl": "libnccl.so.2: cannot open shared object file", "mapped": []}
    plan = replace(bench.plan, expect=Expected())
    runner = Fake(seen(BARE), good(workers=[worker] * 2))
    came = gpu.examine(plan, ENGINE, "r:v", runner)
    assert [one.id for one in came.checks] == ["node/runtime", "node/infiniband", "node/memlock"]
    assert all(one.passed for one in came.checks)
    no_python = (127, "", 'exec: "python3": executable file not found in $PATH')
    came = gpu.examine(plan, ENGINE, "r:v", Fake(no_python))
    assert (came.checks, came.not_run) == ((), {Tier.NODE: gpu.NO_PYTHON})
    with pytest.raises(CommandError):
        nodes(bench, no_python)


def test_another_failure_of_the_node_is_an_error(bench: Bench) -> None:
    for answers in ([(125, "", "No such image")], [seen(BARE), (125, "", "No such image")]):
        with pytest.raises(CommandError):
            nodes(bench, *answers)


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
    seal.save(bench.store, made(*checks, digest=bench.image.digest, **more))
    found = seal.verdict(bench.store, bench.image.digest)
    assert found is not None
    return report.page(bench.plan, bench.image, found, bench.project)


def test_a_report_shows_everything_and_loads_nothing(bench: Bench) -> None:
    winner = "/usr/lib/aarch64-linux-gnu/libnccl.so.2.30.4"
    library = {"path": "opt/x/libnccl.so.2", "layer": 3, "version": "2.28.9"}
    copies = [{**library, "build_id": "c0ffee", "sha256": "5" * 64}]
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
    assert "layer 3, version 2.28.9<" in text
    assert "Build ID c0ffee<" in text
    assert f"sha256 {'5' * 64}<" in text
    for said in (bench.image.digest, "FAILED", "not run"):
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


# Progress


def test_verifying_says_how_far_it_is(bench: Bench) -> None:
    seen: list[tuple[int, int]] = []
    run_tiers.verify(
        plan_record.record(bench.plan, bench.project), bench.image, live=never,
        project=bench.project, store=bench.store, runner=Local(), tiers=[Tier.STATIC],
        progress=lambda *counts: seen.append(counts),
    )  # fmt: skip
    total = static.count(bench.plan, bench.image, bench.store, bench.project)
    assert total > 20
    assert seen == [(0, total), (total, total)]


def test_a_count_in_lines_and_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_S", 0.0)
    for terminal in (False, True):
        said = io.StringIO()
        view = progress.View(Console(file=said, width=120, force_terminal=terminal))
        with view.counted("verifying") as count:
            count(31, 72)
        assert re.search(r"verifying +31/72", said.getvalue())
    quiet = io.StringIO()
    with progress.View(Console(file=quiet), quiet=True).counted("verifying") as count:
        count(31, 72)
    assert quiet.getvalue() == ""


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
