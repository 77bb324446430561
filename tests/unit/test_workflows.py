"""The workflows: what their steps call exists here, they may do little, and linters see faults.

That the linters find nothing in what is there is `make workflows`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from sparkimage.cli import app as cli
from sparkimage.cli import show
from sparkimage.config import lockfile, matrix, planning
from sparkimage.config.pins import GitPin, ImagePin, WheelsPin
from sparkimage.config.plan import Origin

PROJECT = Path(__file__).resolve().parents[2]
FILES = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
NAMES = {"docs", "nightly", "outdated", "publish", "release", "test"}
CHECKOUT = "actions/checkout@"
PAGES = ("actions/upload-pages-artifact@", "actions/deploy-pages@")
"""What publishes the site; nothing else may use an action that is not a checkout."""
BIN = PROJECT / ".venv" / "bin"


def workflow(name: str) -> dict[str, Any]:
    # In YAML 1.1, which PyYAML reads, the key `on` is a boolean.
    return {
        "on" if key is True else key: value
        for key, value in yaml.safe_load(
            (PROJECT / ".github" / "workflows" / f"{name}.yml").read_text()
        ).items()
    }


def jobs() -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    for name in sorted(NAMES):
        for job, given in workflow(name)["jobs"].items():
            yield name, job, given


def steps() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, job, given in jobs():
        for step in given["steps"]:
            yield f"{name}/{job}", step


def test_these_are_all() -> None:
    assert {path.stem for path in FILES} == NAMES
    assert {path.suffix for path in FILES[0].parent.iterdir()} == {".yml"}


# What steps call.


def called(run: str) -> list[str]:
    """The words of a step's one command, without where its output goes."""
    assert "\n" not in run.strip(), "one command a step"
    words = shlex.split(run)
    if ">" in words or ">>" in words:
        at = next(i for i, word in enumerate(words) if word in (">", ">>"))
        assert len(words) == at + 2, run
        words = words[:at]
    # No second command, and nothing that would hide that the first one failed.
    assert not any(set(word) & set(";|&`") or "$(" in word for word in words), run
    return words


def targets() -> set[str]:
    return set(re.findall(r"^([a-z0-9-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE))


def test_every_step_is_a_make_target_or_a_command_of_build_py() -> None:
    app = typer.main.get_command(cli.app)
    assert isinstance(app, typer.core.TyperGroup)
    seen = 0
    for where, step in steps():
        if "run" not in step:
            continue
        seen += 1
        words = called(step["run"])
        if words[0] == "make":
            wanted = [word for word in words[1:] if word != "--silent"]
            assert wanted, where
            assert set(wanted) <= targets(), (where, wanted)
            continue
        assert words[:2] == ["python3", "build.py"], (where, words)
        name = words[2]
        command = app.commands[name]
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words[3:] if word.startswith("--")} <= known, (where, words)
    assert seen > 10


def test_variables_come_through_the_environment_and_are_words_of_the_shell() -> None:
    for where, step in steps():
        run = step.get("run", "")
        assert "${{" not in run, where
        for name in re.findall(r"\$\{?(\w+)", run):
            assert name in step.get("env", {}) or name == "GITHUB_OUTPUT", (where, name)
            assert f'"${name}"' in run, (where, name)
    makefile = (PROJECT / "Makefile").read_text()
    for name in ("ONLY", "TO", "VERSION", "NEWS", "REGISTRY_USER", "REGISTRY_TOKEN"):
        # $(NAME) would be text that make expands, and the shell after it.
        assert f"$({name})" not in makefile
        assert f"${{{name}}}" not in makefile.replace("$${", "")


@pytest.mark.parametrize("target", ["ci-plan", "release-notes", "source-archive", "propose"])
@pytest.mark.parametrize(
    "form", ["$(shell touch {0})", '"; touch {0}; "', "`touch {0}`", "$$(touch {0})"]
)
def test_what_a_workflow_hands_to_make_is_never_run(target: str, form: str, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    evil = form.format(planted)
    # python3 stands still: what counts is what make and the shell make of the word.
    for name in ("python3", "python"):
        (tmp_path / name).write_text('#!/bin/sh\nprintf "%s\\n" "$@" >> "$0.saw"\nexit 1\n')
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["make", "-C", str(PROJECT), f"BIN={tmp_path}", "-o", "venv", target],
        env={
            **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "ONLY": evil, "VERSION": evil, "NEWS": evil,
        },
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    saw = "".join(path.read_text() for path in tmp_path.glob("*.saw"))
    assert f"{evil}\n" in saw
    assert not planted.exists()


def stand_in(folder: Path, name: str, says: str = "") -> Path:
    """A program on the PATH that keeps its words and what it is given, and says ``says``."""
    program = folder / name
    program.write_text(
        f"#!/bin/sh\nprintf '%s\\n' \"$*\" >> '{program}.words'\n"
        f'case "$*" in *-stdin*|*"-file -"*) cat >> \'{program}.given\';; esac\n'
        f"case \"$*\" in *list*) printf '%s' '{says}';; esac\n"
    )
    program.chmod(0o755)
    return program


def test_a_login_is_a_word_of_no_process(tmp_path: Path) -> None:
    docker = stand_in(tmp_path, "docker")
    env = {
        **os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "TO": "reg.example:5000/a/b",
        "REGISTRY_USER": "who", "REGISTRY_TOKEN": "se'cr$et`",
    }  # fmt: skip
    for target in ("login", "logout"):
        done = subprocess.run(
            ["make", "-C", str(PROJECT), target],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "se'cr" not in done.stdout + done.stderr
    assert Path(f"{docker}.words").read_text().splitlines() == [
        "login --username who --password-stdin reg.example:5000",
        "logout reg.example:5000",
    ]
    assert Path(f"{docker}.given").read_text() == "se'cr$et`"


def test_a_login_to_nowhere_is_refused() -> None:
    done = subprocess.run(
        ["make", "-C", str(PROJECT), "login"],
        env={**os.environ, "TO": ""}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "TO is not set" in done.stderr


def test_outdated_pins_become_an_issue(tmp_path: Path) -> None:
    gh = stand_in(tmp_path, "gh", says="[]")
    news = tmp_path / "news.json"
    news.write_text('[{"pin": "vllm 0.32.0", "what": "torch", "locked": "1", "newest": "2"}]')
    subprocess.run(
        ["make", "-C", str(PROJECT), "propose"],
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "NEWS": str(news)},
        capture_output=True, check=True,
    )  # fmt: skip
    words = Path(f"{gh}.words").read_text().splitlines()
    assert [line.split()[:2] for line in words] == [["issue", "list"], ["issue", "create"]]
    assert "| `vllm 0.32.0` | `torch` | `1` | `2` |" in Path(f"{gh}.given").read_text()


# What they may do.


def test_nothing_is_permitted_but_what_each_job_names() -> None:
    permitted = {}
    for name, job, given in jobs():
        assert workflow(name)["permissions"] == {}, name
        permitted[f"{name}/{job}"] = {
            key for key, value in given["permissions"].items() if value == "write"
        }
        assert given["permissions"].get("contents") in ("read", "write") or job == "publish"
    assert {where: able for where, able in permitted.items() if able} == {
        "outdated/outdated": {"issues"},
        "docs/publish": {"pages", "id-token"},
        "publish/publish": {"packages", "id-token"},
        "release/release": {"contents"},
    }


def test_whoever_may_write_outside_waits_for_an_environment() -> None:
    for name, job, given in jobs():
        if {"packages", "id-token"} & set(given["permissions"]) or name == "release":
            environment = given["environment"]
            wanted = ("github-pages",) if name == "docs" else ("publish", "release")
            named = environment if isinstance(environment, str) else environment["name"]
            assert named in wanted, (name, job)


def test_the_site_is_published_from_main_alone() -> None:
    read, publish = (workflow("docs")["jobs"][job] for job in ("build", "publish"))
    main = "github.ref == 'refs/heads/main'"
    assert publish["if"] == main
    assert publish["needs"] == "build"
    kept = [step for step in read["steps"] if step.get("uses", "").startswith(PAGES[0])]
    assert [step["if"] for step in kept] == [main]
    # A proposal's site is built and read, too.
    assert "pull_request" in workflow("docs")["on"]
    assert "if" not in read
    assert all("if" not in step for step in read["steps"] if "run" in step)


def test_every_job_ends_and_every_workflow_has_a_group() -> None:
    for name, job, given in jobs():
        assert 0 < given["timeout-minutes"] <= 360, (name, job)
        assert workflow(name)["concurrency"]["group"]
    # One that is ended in the middle would leave tags that name less than they say.
    for name in ("publish", "release"):
        assert workflow(name)["concurrency"]["cancel-in-progress"] is False


def test_actions_are_pinned_to_a_commit_with_its_version_beside_it() -> None:
    used = 0
    for path in FILES:
        for line in path.read_text().splitlines():
            if "uses:" in line:
                used += 1
                assert re.fullmatch(
                    r" +uses: actions/[a-z-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", line
                ), (path.name, line)
    pins = {step["uses"] for _, step in steps() if "uses" in step}
    assert sorted(pin.partition("@")[0] + "@" for pin in pins) == sorted([CHECKOUT, *PAGES])
    assert used == len([step for _, step in steps() if "uses" in step])


def test_a_checkout_leaves_no_token_behind() -> None:
    for where, step in steps():
        if step.get("uses", "").startswith(CHECKOUT):
            assert step["with"]["persist-credentials"] is False, where


def test_no_job_restores_a_cache() -> None:
    for path in FILES:
        text = "\n".join(
            line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")
        )
        assert "cache" not in text, path.name
        assert "download-artifact" not in text, path.name
    # The matrix could name a cache in a registry, too; what is published must not begin in one.
    assert matrix.load(PROJECT / "matrix.yaml").cache is None


def test_images_know_the_commit_that_touched_their_inputs() -> None:
    # A shallow clone would say of every input that its last commit is the tag's.
    for name, job, given in jobs():
        if name == "publish":
            assert given["steps"][0]["with"]["fetch-depth"] == 0, job


def test_secrets_reach_the_step_that_needs_them() -> None:
    for where, step in steps():
        text = json.dumps(step.get("env", {}))
        if "secrets." in text or "github.token" in text:
            assert called(step["run"])[1] in ("login", "propose", "release"), where
    for name, job, given in jobs():
        assert "env" not in given, (name, job)
        assert "env" not in workflow(name), name


# Which runner.


@pytest.fixture(scope="module")
def read() -> matrix.Matrix:
    return matrix.load(PROJECT / "matrix.yaml")


def test_a_variant_that_compiles_or_begins_whole_has_a_runner_of_ones_own(
    read: matrix.Matrix,
) -> None:
    held = lockfile.load(PROJECT / "matrix.lock")
    plans = planning.make_all(read, read.variants, held, Origin(source="s", revision="r", epoch=0))
    rows = json.loads(show.as_github(plans, read))["include"]
    assert {row["variant"]: row["runner"] for row in rows} == {
        "vllm0.32.0-nccl2.30.4-arm64": ["ubuntu-24.04-arm"],
        "vllm0.32.0-nccl2.30.7-arm64": ["ubuntu-24.04-arm"],
        "vllm0.32.0-nccl2.30.4-amd64": ["ubuntu-24.04"],
        "vllm0.33.0-nccl2.30.7-arm64": ["ubuntu-24.04-arm"],
        "vllm0.33.0-nccl2.30.7-amd64": ["ubuntu-24.04"],
        "ds4-flash": ["self-hosted", "linux", "arm64", "big"],
        "ds4-flash-20260621": ["self-hosted", "linux", "arm64", "big"],
        "ds4-flash-ga": ["self-hosted", "linux", "arm64", "big"],
        "ds4-flash-ga-ready": ["self-hosted", "linux", "arm64", "big"],
    }
    job = workflow("publish")["jobs"]["publish"]
    assert job["runs-on"] == "${{ matrix.runner }}"
    assert job["strategy"]["matrix"] == "${{ fromJSON(needs.plan.outputs.matrix) }}"
    # A hosted runner's own engine would need more than its disk.
    engines = {row["variant"]: row["engine"] for row in rows}
    assert (engines["vllm0.32.0-nccl2.30.4-arm64"], engines["ds4-flash"]) == ("private", "auto")
    (build,) = (step for step in job["steps"] if step["name"] == "Build and prove")
    assert build["env"]["SPARKIMAGE_ENGINE"] == "${{ matrix.engine }}"
    # Every `matrix.` of the job is a key of the rows.
    used = set(re.findall(r"matrix\.(\w+)", json.dumps(job))) - {"outputs"}
    assert used <= set(rows[0]) | {"matrix"}


def test_the_plan_of_a_publish_is_one_line_of_a_steps_output() -> None:
    done = ci_plan("vllm*")
    assert done.returncode == 0, done.stderr
    key, _, value = done.stdout.partition("=")
    assert key == "matrix"
    assert value.count("\n") == 1
    assert len(json.loads(value)["include"]) == 5


def test_a_tag_publishes_what_is_resolved_and_names_the_rest() -> None:
    done = ci_plan("")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout.removeprefix("matrix="))["include"]
    assert {row["variant"] for row in rows} >= {"vllm0.32.0-nccl2.30.4-arm64"}
    assert "ds4-flash" not in {row["variant"] for row in rows}
    assert "ds4-flash is left out, its pins are not resolved: " in done.stderr


@pytest.mark.parametrize("only", ["*", "ds4-flash*"])
def test_a_publish_that_names_what_is_not_resolved_is_refused_before_a_job_starts(
    only: str,
) -> None:
    done = ci_plan(only)
    assert done.returncode != 0
    assert "matrix=" not in done.stdout
    assert "not resolved" in done.stderr


def ci_plan(only: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--silent", "-C", str(PROJECT), "--no-print-directory", "ci-plan"],
        env={**os.environ, "ONLY": only, "SPARKIMAGE_MIRRORS": os.devnull},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


# The linters.

GOOD = """\
name: planted
on: push
permissions: {}
concurrency:
  group: planted
  cancel-in-progress: true
jobs:
  one:
    name: one
    runs-on: ubuntu-24.04
    timeout-minutes: 5
    permissions:
      contents: read # to check it out
    steps:
      - name: Check out
        uses: actions/checkout@8e8c483db84b4bee98b60c0593521ed34d9990e8 # v6.0.1
        with:
          persist-credentials: false
      - name: Run
        env:
          REF: ${{ github.head_ref }}
        run: echo "$REF"
"""


def lint(program: str, text: str, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    """As `make workflows` calls it, on a project with this workflow alone."""
    (tmp_path / ".git").mkdir()
    folder = tmp_path / ".github" / "workflows"
    folder.mkdir(parents=True)
    (folder / "planted.yml").write_text(text)
    words = next(
        line.replace("$(BIN)/", "").split()
        for line in (PROJECT / "Makefile").read_text().splitlines()
        if line.startswith("\t") and re.search(rf"(^\t\$\(BIN\)/|\" ){program} ", line)
    )
    words = words[words.index(program) :]
    if program == "actionlint":
        words = [".github/workflows/planted.yml" if "*" in word else word for word in words]
    return subprocess.run(
        [str(BIN / program), *words[1:]], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"},
    )  # fmt: skip


@pytest.mark.parametrize("program", ["actionlint", "zizmor"])
def test_a_good_workflow_passes(program: str, tmp_path: Path) -> None:
    done = lint(program, GOOD, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("program", "before", "after", "says"),
    [
        ("zizmor", 'echo "$REF"', 'echo "${{ github.head_ref }}"', "template-injection"),
        ("zizmor", "@8e8c483db84b4bee98b60c0593521ed34d9990e8 # v6.0.1", "@v6", "unpinned-uses"),
        ("zizmor", "        with:\n          persist-credentials: false\n", "", "artipacked"),
        ("zizmor", "permissions: {}", "permissions: write-all", "excessive-permissions"),
        ("zizmor", "on: push", "on: pull_request_target", "dangerous-triggers"),
        (
            "zizmor",
            "contents: read # to",
            "packages: write\n      contents: read # to",
            "undocumented",
        ),
        ("zizmor", "    name: one\n", "", "anonymous-definition"),
        ("actionlint", "ubuntu-24.04", "ubuntu-24.40", 'label "ubuntu-24.40" is unknown'),
        ("actionlint", "    steps:", "    stps:", 'unexpected key "stps"'),
        ("actionlint", "github.head_ref", "github.head_rev", 'property "head_rev" is not defined'),
        ("actionlint", 'echo "$REF"', "echo ${{ github.head_ref }}", "untrusted"),
        ("actionlint", "contents: read", "contents: reed", '"reed" is invalid'),
        ("actionlint", '"$REF"', "$REF", "SC2086"),
    ],
)
def test_a_planted_fault_is_found(
    program: str, before: str, after: str, says: str, tmp_path: Path
) -> None:
    assert before in GOOD
    done = lint(program, GOOD.replace(before, after), tmp_path)
    assert done.returncode != 0
    assert says in done.stdout + done.stderr


def test_no_finding_is_ignored() -> None:
    for path in (PROJECT / ".github").rglob("*"):
        if path.is_file():
            assert "zizmor:" not in path.read_text(), path
            assert path.name not in ("zizmor.yml", "zizmor.yaml", "actionlint.yaml")


# What Renovate knows of the matrix.

RENOVATE = PROJECT / ".github" / "renovate.json"


def managers() -> list[dict[str, Any]]:
    config = json.loads(RENOVATE.read_text())
    assert "custom.regex" in config["enabledManagers"]
    found: list[dict[str, Any]] = config["customManagers"]
    return found


def matches(text: str) -> list[tuple[str, re.Match[str]]]:
    """What each expression finds, with the name of what it finds. RE2, which Renovate uses, and
    Python's differ in how a group is named."""
    found = []
    for manager in managers():
        for expression in manager["matchStrings"]:
            assert not re.search(r"\(\?<?[=!]|\\\d", expression), "RE2 looks neither way"
            for match in re.finditer(expression.replace("(?<", "(?P<"), text):
                template = manager.get("depNameTemplate", "{{{depName}}}").strip("{}")
                found.append((match.groupdict().get(template, template), match))
    return found


def test_renovate_reads_the_matrix_alone() -> None:
    for manager in managers():
        (pattern,) = manager["managerFilePatterns"]
        assert re.fullmatch(pattern.strip("/"), "matrix.yaml")
        assert manager["customType"] == "regex"


def test_every_expression_of_renovate_finds_something() -> None:
    text = (PROJECT / "matrix.yaml").read_text()
    for manager in managers():
        for expression in manager["matchStrings"]:
            assert re.search(expression.replace("(?<", "(?P<"), text), expression


def test_renovate_knows_every_pin_of_an_exact_version(read: matrix.Matrix) -> None:
    seen = {
        (name, match["currentValue"], match.groupdict().get("currentDigest"))
        for name, match in matches((PROJECT / "matrix.yaml").read_text())
    }
    wanted: set[tuple[str, str, str | None]] = set()
    for values in read.pins.values():
        for pin in values.values():
            if isinstance(pin, WheelsPin):
                wanted |= {
                    (name.partition("[")[0], version, None)
                    for name, _, version in (one.partition("==") for one in pin.require)
                }
            elif isinstance(pin, ImagePin):
                tagged, _, digest = pin.image.partition("@")
                name, _, tag = tagged.rpartition(":")
                # CUDA's tags are a version and what is in the image.
                value = tag.split("-")[0] if name == "nvidia/cuda" else tag
                wanted.add((name, value, digest or None))
            elif isinstance(pin, GitPin) and pin.branch is not None:
                wanted.add((pin.repository, pin.branch, pin.commit))
    assert seen == wanted


@pytest.mark.parametrize(("name", "old", "new"), [("nvidia/cuda", "13.0.3", "13.9.7")])
def test_a_proposal_of_renovate_is_a_whole_matrix(
    name: str, old: str, new: str, tmp_path: Path
) -> None:
    text = (PROJECT / "matrix.yaml").read_text()
    places = sorted((match.span() for found, match in matches(text) if found == name), reverse=True)
    for first, last in places:
        # As Renovate does it: every place of the old version in what the expression found.
        text = text[:first] + text[first:last].replace(old, new) + text[last:]
    for folder in ("images", "patches"):
        (tmp_path / folder).symlink_to(PROJECT / folder)
    (tmp_path / "matrix.yaml").write_text(text)
    moved = matrix.load(tmp_path / "matrix.yaml")
    uses = [
        variant.pins[pin]
        for variant, pin in itertools.product(moved.variants, moved.pins)
        if pin in variant.pins
    ]
    assert new in uses
    assert old not in uses
    # The toolkit of wheels has versions of its own.
    rest = re.sub(r"#.*|cuda-toolkit\S+", "", text)
    assert old not in rest, "each place of the old version has moved"


def test_renovate_moves_nothing_by_itself_whose_neighbour_no_rule_knows() -> None:
    waits: set[str] = set()
    for rule in json.loads(RENOVATE.read_text())["packageRules"]:
        if rule.get("dependencyDashboardApproval"):
            waits |= set(rule["matchPackageNames"])
    names = {name for name, _ in matches((PROJECT / "matrix.yaml").read_text())}
    assert waits <= names
    assert names - waits == {"nvidia/cuda"}
