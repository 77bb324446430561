"""The command line through its own door; and what it shows of a build."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import typer
from rich.console import Console

from sparkimage import __version__
from sparkimage.build import buildkit
from sparkimage.cli import base, examples, interrupted
from sparkimage.cli.app import app
from sparkimage.cli.commands import Commands
from sparkimage.config import lockfile
from sparkimage.core.progress import View
from sparkimage.core.units import clock, human
from tests.lab import command, terminal
from tests.unit import reference_home

PROJECT = Path(__file__).resolve().parents[2]
NOWHERE = Path("nowhere")
"""A home that is refused as soon as it is asked for, so that no test starts an engine."""


def run(
    *words: str, cwd: Path = PROJECT, home: Path = NOWHERE, **more: str
) -> subprocess.CompletedProcess[str]:
    return command.call(words, {**environment(home), **more}, cwd=cwd)


def environment(home: Path = NOWHERE) -> dict[str, str]:
    return {
        **os.environ,
        "SPARKIMAGE_HOME": str(home),
        # Whoever runs the tests has mirrors of their own, and a terminal of any width.
        "SPARKIMAGE_MIRRORS": os.devnull,
        "COLUMNS": "200",
    }


@pytest.mark.parametrize(
    "words", [(), ("--version",), ("lock", "--nope"), ("--debug", "verify", "nothing"), ("images",)]
)
def test_a_call_is_what_a_real_start_is(words: tuple[str, ...]) -> None:
    real = subprocess.run(
        [*command.PROGRAM, *words], cwd=PROJECT, env=environment(), capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    called = run(*words)
    # A traceback begins in the frames of what started it.
    seen = [one.stderr.rpartition("Traceback")[2].splitlines()[-4:] for one in (real, called)]
    assert seen[0] == seen[1]
    assert (called.returncode, called.stdout) == (real.returncode, real.stdout)


@pytest.mark.parametrize(
    ("words", "not_needed"),
    [
        (("--help",), ("pydantic", "yaml", "sparkimage.config.schema", "sparkimage.nodes")),
        (("doctor", "--help"), ("pydantic", "yaml", "sparkimage.cli.launch", "sparkimage.nodes")),
        (("images",), ("pydantic", "yaml")),
        (("gc", "--nodes", "a", "--help"), ("pydantic", "yaml")),
        (
            ("image", "--print", "table"),
            ("jinja2", "rich", "sparkimage.build", "sparkimage.cli.fleet"),
        ),
        (("nodes", "--nodes", "fleet.yaml"), ("jinja2", "requests", "sparkimage.config.lockfile")),
        (("status", "--nodes", "fleet.yaml"), ("requests", "sparkimage.serve.explain")),
        (("doctor", "--nodes", "fleet.yaml"), ("jinja2", "sparkimage.build", "sparkimage.verify")),
    ],
)
def test_a_command_imports_only_what_it_needs(
    words: tuple[str, ...], not_needed: tuple[str, ...]
) -> None:
    imported = imports(words)
    assert "sparkimage.cli.app" in imported
    assert not imported & set(not_needed)


def test_a_command_for_an_image_imports_no_more(tmp_path: Path) -> None:
    name = "vllm0.32.0-nccl2.30.4-arm64"
    reference_home.make(tmp_path, name)
    shown = imports(("inspect", name), tmp_path)
    assert "sparkimage.verify.summary" in shown
    # The image was built from the matrix as it is.
    matrix = {f"sparkimage.config.{name}" for name in ("matrix", "pins", "lockfile")}
    assert not shown & {"rich", "packaging", "sparkimage.nodes", *matrix}
    image = ("launch", name, "--allow-unverified")
    launch = (*image, "--model", "/m", "--nodes", "a", "--profile", "single")
    planned = imports((*launch, "--dry-run"), tmp_path)
    assert "sparkimage.serve.launch" in planned
    assert not planned & {"rich", "packaging", CACHES}
    assert CACHES in imports(launch, tmp_path)


CACHES = "sparkimage.serve.caches"


def imports(words: tuple[str, ...], home: Path = NOWHERE) -> set[str]:
    """The modules that a command has imported at its end."""
    script = (
        "import atexit, sys; from sparkimage.cli.app import main; "
        "atexit.register(lambda: print(*sys.modules, file=sys.stderr)); main()"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script, *words], cwd=PROJECT, env=environment(home),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return set(done.stderr.splitlines()[-1].split())


def test_help_and_version() -> None:
    assert "--matrix" in run("--help").stdout
    first, *pins = run("--version").stdout.splitlines()
    assert re.fullmatch(
        rf"sparkimage {__version__} \((commit [0-9a-f]+(, changed)?|.* unknown)\)", first
    )
    assert any(line.split()[:2] == ["nccl", "2.30.4,"] for line in pins)
    assert run().returncode == 0


def test_a_wrong_matrix_is_a_report_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "matrix.yaml").write_text("verion: 1\n")
    done = run("--print", "table", cwd=tmp_path)
    assert done.returncode == 2
    assert "matrix.yaml:1: unknown key 'verion' in the file" in done.stderr
    assert "did you mean 'version'?" in done.stderr
    assert "Traceback" not in done.stderr
    assert "Traceback" in run("--debug", "--print", "table", cwd=tmp_path).stderr


def test_an_unknown_variant_has_its_nearest() -> None:
    done = run("image", "vllm0.32.0-nccl2.30.4-amr64", "--print", "json")
    assert done.returncode == 2
    assert "did you mean 'vllm0.32.0-nccl2.30.4-arm64'?" in done.stderr


def test_print_forms_build_nothing() -> None:
    github = run("--matrix", "--print", "github")
    rows = json.loads(github.stdout)["include"]
    platforms = ["linux/arm64", "linux/arm64", "linux/arm64", "linux/amd64", "linux/amd64"]
    assert [row["platform"] for row in rows] == platforms
    assert "warning: ds4-flash is left out, its pins are not resolved: " in github.stderr
    named = run("--matrix", "--only", "*", "--print", "github")
    assert (named.returncode, named.stdout) == (11, "")
    assert "ds4-flash" in named.stderr
    only = json.loads(run("--matrix", "--only", "*2.30.7*", "--print", "json").stdout)
    assert [plan["variant"] for plan in only] == [
        "vllm0.32.0-nccl2.30.7-arm64",
        "vllm0.33.0-nccl2.30.7-arm64",
        "vllm0.33.0-nccl2.30.7-amd64",
    ]
    assert "2.30.7" in run("--print", "table").stdout


def test_the_lock_is_checked_offline(tmp_path: Path) -> None:
    assert run("lock", "--check").returncode == 0
    for name in ("images", "patches"):
        (tmp_path / name).symlink_to(PROJECT / name)
    text = (PROJECT / "matrix.yaml").read_text()
    (tmp_path / "matrix.yaml").write_text(text.replace("vllm==0.32.0", "vllm==0.32.1"))
    (tmp_path / "matrix.lock").write_text((PROJECT / "matrix.lock").read_text())
    for words in (("lock", "--check"), ("--print", "table")):
        stale = run(*words, cwd=tmp_path)
        assert stale.returncode == 11
        assert "pin vllm 0.32.0 has changed since it was locked" in stale.stderr


def test_what_is_not_resolved_is_said_and_fits() -> None:
    done = run("lock", "--check")
    assert done.returncode == 0
    assert done.stderr.startswith("to resolve them where they can be reached: ")
    assert done.stderr.endswith(" lock\n")
    first, *rest = done.stdout.splitlines()
    assert first == "matrix.lock fits matrix.yaml"
    held = lockfile.load(PROJECT / "matrix.lock")
    keys = sorted(key for key, entry in held.entries.items() if entry.unresolved is not None)
    assert rest == [f"  not resolved yet: {pin} {value}" for pin, value in keys]
    machine = run("lock", "--check", "--json")
    assert machine.stderr == ""
    facts = json.loads(machine.stdout)
    assert facts["fits"]
    assert [(one["pin"], one["value"]) for one in facts["unresolved"]] == keys


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("image", "ds4-flash"), "ds4-flash cannot be built yet"),
        (("--matrix", "--only", "ds4-flash-ga*"),
         "ds4-flash-ga, ds4-flash-ga-ready cannot be built yet"),
        pytest.param(
            ("image", "ds4-flash", "--print", "bake"), "ds4-flash cannot be built yet"),
    ],
)  # fmt: skip
def test_what_is_not_resolved_is_refused_before_an_engine_is_asked_for(
    words: tuple[str, ...], named: str
) -> None:
    # The home is no place at all: whoever asks for it, as for an engine, ends with 9.
    done = run(*words)
    assert done.returncode == 11
    assert done.stdout == ""
    assert named in done.stderr
    assert "when `sparkimage lock` last ran:" in done.stderr
    assert "pin vllm 20260" in done.stderr or "pin vllm ready-20260" in done.stderr
    assert "run `sparkimage lock`" in done.stderr


def test_the_patches_of_the_real_matrix() -> None:
    table = run("patches")
    assert (table.returncode, table.stderr) == (0, "")
    patch = "sm12x-deep-gemm-fallbacks"
    assert f"{patch}: " in table.stdout
    assert "Apache-2.0" in table.stdout
    rows = json.loads(run("patches", "--json").stdout)
    keys = {"patch", "variant", "layer", "number", "of", "pin", "state", "reason"}
    assert all(set(row) == keys for row in rows)
    # What holds no commit of a fork is not in question.
    states = {row["variant"]: row["state"] for row in rows if row["patch"] == patch}
    assert states.pop("ds4-flash") in ("applied", "not resolved")
    assert states == {
        "ds4-flash-20260621": "does not fit",
        "ds4-flash-ga": "not needed",
        "ds4-flash-ga-ready": "not needed",
    }
    assert all(row["variant"] in table.stdout for row in rows)


@pytest.mark.parametrize(
    "words",
    [
        ("--mirror", "bad", "--print", "policy"),
        ("image", "--mirror", "bad", "--print", "policy"),
        ("--mirror", "bad", "lock", "--outdated"),
        pytest.param(("lock", "--check", "--mirror", "bad")),
        pytest.param(("--mirror", "bad", "--print", "table")),
    ],
)
def test_a_mirror_that_is_none(words: tuple[str, ...]) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "--mirror 'bad' is not FROM=TO" in done.stderr


def test_a_policy_is_printed_without_an_engine(tmp_path: Path) -> None:
    words = ("image", "--print", "policy", "--mirror", "docker.io=registry.example")
    done = run(*words, home=tmp_path / "home")
    assert done.returncode == 0
    assert [rule["action"] for rule in json.loads(done.stdout)["rules"]] == ["DENY", "ALLOW"]
    assert not (tmp_path / "home").exists()
    (tmp_path / "mirrors.yaml").write_text("mirors: {}\n")
    wrong = run(*words, SPARKIMAGE_MIRRORS=str(tmp_path / "mirrors.yaml"))
    assert wrong.returncode == 2
    assert "mirrors.yaml:1: mirrors is missing" in wrong.stderr


def test_what_excludes_each_other() -> None:
    for words in (
        ("--check", "--outdated"),
        ("--outdated", "--update", "x"),
        ("--check", "--only", "*"),
    ):
        done = run("lock", *words)
        assert done.returncode == 2
        assert "--check, --outdated, and --update or --only exclude each other" in done.stderr


def test_the_schema_is_json() -> None:
    assert json.loads(run("schema").stdout)["title"] == "MatrixFile"


def event(**parts: object) -> str:
    # As buildx writes it: indented, one document after the other.
    return json.dumps(parts, indent=2)


STREAM = [
    event(vertexes=[{"digest": "0", "name": "[a--root 1/1] ADD root.tar /", "started": "t"}]),
    event(vertexes=[{"digest": "0", "name": "[a--root 1/1] ADD root.tar /", "started": "t",
                     "completed": "t"}]),
    event(vertexes=[{"digest": "1", "name": "[a--low low 1/1] RUN x", "started": "t"}]),
    event(statuses=[{"id": "extracting", "vertex": "1", "current": 1500, "total": 3000}]),
    event(logs=[{"vertex": "1", "data": base64.b64encode(b"the reason\n").decode()}]),
    event(vertexes=[{"digest": "1", "name": "[a--low low 1/1] RUN x", "started": "t",
                     "completed": "t"}]),
    event(vertexes=[{"digest": "2", "name": "[a high 1/2] RUN y", "started": "t", "completed": "t",
                     "cached": True}]),
    event(vertexes=[{"digest": "3", "name": "[a high 2/2] RUN z", "started": "t"}]),
    event(logs=[{"vertex": "3", "data": base64.b64encode(b"no such file\n").decode()}]),
    event(vertexes=[{"digest": "3", "name": "[a high 2/2] RUN z", "started": "t",
                     "completed": "t", "error": "exit code: 3"}]),
    event(vertexes=[{"digest": "4", "name": "[a] exporting to oci image format", "started": "t"}]),
    "ERROR: failed to solve: exit code: 3",
]  # fmt: skip


@pytest.mark.parametrize("terminal", [True, False])
def test_a_build_is_shown_by_layers(terminal: bool) -> None:
    said = io.StringIO()
    console = Console(file=said, force_terminal=terminal, width=80)
    build = buildkit.Build(["root", "low", "high", "empty"], clock=lambda: 0.0)
    with buildkit.show(View(console), build, "building it") as feed:
        for document in STREAM:
            for line in document.splitlines():
                feed(line)
    states = {row.name: row.state for row in build.rows.values()}
    assert states == {
        "root": "done", "low": "done", "high": "failed", "empty": "cached", "export": "running",
    }  # fmt: skip
    assert build.rows["low"].current == 1500
    assert build.rows["root"].state == "done"
    assert build.rows["empty"].state == "cached"
    assert "no such file" in build.errors[0]
    written = build.transcript()
    assert "[a--low low 1/1] RUN x\nthe reason\n" in written
    assert "[a high 2/2] RUN z\nno such file\n" in written
    assert "exit code: 3" in written
    assert build.errors[-1].startswith("ERROR")
    text = said.getvalue()
    assert "building it" in text
    if terminal:
        seen = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
        assert all(len(line) <= 80 for line in re.split(r"[\r\n]+", seen))
        assert "1.5 kB" in text or "2 kB" in text
    else:
        assert "layer low: running" in text
        assert "layer high: failed after 0.0 s" in text


def test_units() -> None:
    assert [human(n) for n in (0, 999, 1500, 2_500_000, 3_600_000_000, 5e12)] == [
        "0 B", "999 B", "2 kB", "2.5 MB", "3.6 GB", "5000.0 GB",
    ]  # fmt: skip
    assert [clock(s) for s in (0.04, 59, 61)] == ["0.0 s", "59.0 s", "1m 01s"]


def test_what_ships_and_verifies_without_an_engine(tmp_path: Path) -> None:
    asked = {
        ("verify", "0123456789ab", "--tier", "moon"): (5, "the image store has no"),
        ("report", "nowhere", "-o", "x"): (5, "there is no variant or image 'nowhere'"),
        ("save", "0123456789ab", "-o", str(tmp_path / "x")): (5, "the image store has no"),
        ("load", str(tmp_path / "none.tar")): (2, "no such file: "),
    }
    for words, (code, said) in asked.items():
        done = run(*words, home=tmp_path, SPARKIMAGE_ENGINE="system", DOCKER_HOST="unix:///no")
        assert done.returncode == code, done.stderr
        assert said in done.stderr
    broken = tmp_path / "broken.tar"
    broken.write_bytes(b"x" * 2000)
    done = run("load", str(broken), home=tmp_path)
    assert done.returncode == 8
    assert "incomplete or corrupt" in done.stderr
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("command_name", ["status", "logs", "stop", "restart", "receipts", "nodes"])
def test_nodes_that_cannot_be_reached_are_said_to_be_so(command_name: str, tmp_path: Path) -> None:
    # A port of this machine where nobody listens.
    node = "{control: %s, port: 1}"
    (tmp_path / "fleet.yaml").write_text(
        f"version: 1\nnodes: {{one: {node % '127.0.0.1'}, two: {node % 'localhost'}}}\n"
    )
    fleet = str(tmp_path / "fleet.yaml")
    done = run(command_name, "--nodes", fleet, home=tmp_path / "home")
    assert done.returncode == 13
    assert "could not reach any of 2 nodes" in done.stderr
    assert "one cannot be reached" in done.stderr
    # Nothing is said of what nobody has seen.
    assert not re.search("nothing|no such|no deployment|no receipts", done.stdout + done.stderr)


def test_status_is_watched_until_an_interrupt(tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(
        "version: 1\nnodes: {one: {control: 127.0.0.1, port: 1}}\n"
    )
    words = ("status", "--watch", "--nodes", str(tmp_path / "fleet.yaml"))
    with subprocess.Popen(
        [*command.PROGRAM, *words], cwd=PROJECT, env=environment(tmp_path / "home"), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline().endswith(", every 5 s until Ctrl-C\n")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said.endswith("interrupted: nothing was changed\n")


def test_what_an_interruption_left_is_below_what_the_terminal_shows_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = interrupted.sentence("distribute", ())
    base.print_interrupted(sentence)
    assert capsys.readouterr().err == f"{sentence}\n"
    ours, its = os.openpty()
    termios.tcsetwinsize(its, (24, 40))
    monkeypatch.delenv("COLUMNS", raising=False)
    with open(ours, "rb", buffering=0) as screen, open(its, "w") as shown:
        monkeypatch.setattr(sys, "stderr", shown)
        base.print_interrupted(sentence)
        shown.flush()
        seen = b""
        while not seen.endswith(b"continue\r\n"):
            seen += screen.read(4096)
    lines = seen.decode().splitlines()
    assert lines[0] == ""
    assert " ".join(lines[1:]) == sentence
    assert max(map(len, lines)) <= 40


def test_an_example_is_a_command_that_there_is() -> None:
    root = typer.main.get_command(app)
    assert isinstance(root, Commands)
    seen = set()
    for words, lines in examples.EXAMPLES.items():
        for line in lines:
            argv = shlex.split(line.partition("sparkimage ")[2].partition(" >")[0])
            # It takes away from the words what it has read.
            context = root.make_context("sparkimage", [*argv], resilient_parsing=True)
            assert not context.params.get("unknown")
            if not argv[0].startswith("-"):
                name, made, rest = root.resolve_command(context, argv)
                assert made is not None
                made.make_context(name, rest, parent=context, resilient_parsing=True)
                seen.add(words.split()[0])
    assert seen >= set(root.commands) - {"man"}
    assert set(examples.PAGES) >= set(root.commands) - {"man"}
    assert all((PROJECT / "docs" / f"{page}.md").is_file() for page in examples.PAGES.values())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("lock", "--nope"), "error: no such option: --nope\n→ sparkimage lock --help\n"),
        (("verify",), "error: missing argument 'REFERENCE'\n→ sparkimage verify --help\n"),
        (("nodes", "--patience", "0"), "error: invalid value for '--patience': it must be greater"),
        (("imge",), "error: no such command 'imge'. Did you mean 'image', 'images'?\n"),
    ],
)
def test_a_wrong_command_line_has_the_form_of_all_errors(words: tuple[str, ...], said: str) -> None:
    done = run(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(said)


def test_debug_may_stand_anywhere_but_among_the_words_of_others() -> None:
    for words in (("--debug", "verify", "none"), ("verify", "none", "--debug")):
        assert "Traceback" in run(*words).stderr
    assert "no such file" not in run("explain", "--", "--debug").stdout
    assert "cannot read --debug" in run("explain", "--", "--debug").stderr


def test_errors_have_colour_in_a_terminal_only() -> None:
    shown = terminal.call(["verify", "none"], environment(), 60, cwd=PROJECT)
    assert shown.stdout.startswith("\x1b[31merror:\x1b[0m ")
    plain = terminal.call(["verify", "none"], {**environment(), "NO_COLOR": "1"}, 60, cwd=PROJECT)
    assert plain.stdout.startswith("error: ")
    assert run("verify", "none").stderr.startswith("error: ")


def test_what_an_interruption_left_is_said_by_command() -> None:
    assert interrupted.sentence("distribute", ()) == (
        "interrupted: no name was changed; run the same command again to continue"
    )
    assert interrupted.sentence("nodes", ()) == "interrupted: nothing was changed"
    assert interrupted.sentence("model status", ()) == "interrupted: nothing was changed"
    assert interrupted.sentence("init nv@spark1", ()) == "interrupted: no file was written"
    assert interrupted.sentence("logs", ["the deployment keeps running"]) == (
        "interrupted: the deployment keeps running"
    )
    root = typer.main.get_command(app)
    assert isinstance(root, Commands)
    named = {words.split()[0] for words in (*interrupted.LEFT, *interrupted.RESUMES)}
    assert named <= set(root.commands)


def test_the_manual_page_has_every_command() -> None:
    page = run("man").stdout
    assert page.startswith(".TH SPARKIMAGE 1")
    root = typer.main.get_command(app)
    assert isinstance(root, Commands)
    assert all(f".SS {name}" in page.replace("\\-", "-") for name in root.commands)
    assert ".B 13\n" in page
    assert "for clusters of Docker nodes\n" in page
    # As --help has it: with values and default.
    assert ".B \\-\\-print <run|compose>\n" in page
    assert "[default: vllm]\n" in page
    # A line of text that begins with a dot would be a request of troff.
    requests = set(re.findall(r"(?m)^\.(\w+)", page))
    assert requests == {"TH", "SH", "SS", "PP", "TP", "B", "nf", "fi"}


@pytest.mark.parametrize(
    ("words", "count", "found"),
    [
        ("sparkimage ver", 1, {"verify", "verify-published"}),
        ("sparkimage image vllm0.33.0-nccl2.30.7-ar", 2, {"vllm0.33.0-nccl2.30.7-arm64"}),
        ("sparkimage image def", 2, {"default"}),
        ("sparkimage distribute --nodes fl", 3, {"fleet.yaml"}),
        ("sparkimage logs --node sp", 3, {"spark1", "spark2"}),
        ("sparkimage launch --profile ds4-m", 3, {"ds4-mtp"}),
    ],
)
def test_a_shell_completes(words: str, count: int, found: set[str], tmp_path: Path) -> None:
    for name in ("matrix.yaml", "images", "patches"):
        (tmp_path / name).symlink_to(PROJECT / name)
    (tmp_path / "fleet.yaml").write_text("version: 1\nnodes: {spark1: {}, spark2: {}}\n")
    done = run(
        cwd=tmp_path, home=tmp_path / "home", COMP_WORDS=words, COMP_CWORD=str(count),
        _SPARKIMAGE_COMPLETE="complete_bash", SPARKIMAGE_PROGRAM="sparkimage",
    )  # fmt: skip
    assert set(done.stdout.split()) == found


def test_an_empty_store_says_how_to_begin(tmp_path: Path) -> None:
    empty = {**environment(), "SPARKIMAGE_HOME": str(tmp_path)}
    shown = command.call(["images"], empty, cwd=PROJECT)
    assert shown.stderr == "no images yet; build the default one: sparkimage image\n"
    told = command.call(["images", "--json"], empty, cwd=PROJECT)
    assert (told.stdout, told.stderr) == ("[]\n", "")
