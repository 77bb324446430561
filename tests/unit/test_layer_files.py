"""Dockerfiles of a project's own layers: what is wrong with them is said before a build."""

from __future__ import annotations

from pathlib import Path

import pytest

from sparkimage.build import layer_files
from sparkimage.config import planning
from sparkimage.core.errors import ConfigError, Problem
from tests.unit import project_maker as maker

TOKEN = "hf_" + "aB1" * 11 + "x"
RUN = 'ENTRYPOINT ["run"]\n'


def problems(
    folder: Path, text: str | bytes, *, files: tuple[str, ...] = (), args: str = ""
) -> tuple[Problem, ...]:
    """What is said of layer ``up`` with this Dockerfile, these files and this argument X."""
    pins = {"os": {"trixie": maker.OS}, "cuda": {"13": maker.CUDA}, "words": {"a": maker.FILE}}
    up = {"inputs": {"devel": "cuda", "words": "words"}, "args": {"X": args}}
    layers = {"base": {"base": "os"}, "up": up, "top": {"args": {}}}
    read = maker.write(folder, maker.document(pins, layers, [maker.include("v", *layers)]))
    (folder / "images" / "up" / "Dockerfile").write_bytes(
        text if isinstance(text, bytes) else text.encode()
    )
    for name in files:
        place = folder / "images" / "up" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("x")
    (plan,) = planning.make_all(read, read.variants, maker.locked(read), maker.ORIGIN)
    try:
        layer_files.refuse(plan, read.file)
    except ConfigError as error:
        return error.problems
    return ()


@pytest.mark.parametrize(
    ("text", "line", "what", "todo"),
    [
        ("", 1, "the file is empty", "begin it with `FROM layer AS up`"),
        ("RUN true\n", 1, "no `FROM`", "begin it with `FROM layer AS up`"),
        ("FORM layer\n", 1, "unknown instruction FORM", "did you mean 'FROM'?"),
        ("# x\nFROM layer\nENTRYPONT x\n", 3, "unknown instruction ENTRYPONT", "'ENTRYPOINT'?"),
        ("FROM ubuntu:24.04\n", 1, "built FROM ubuntu:24.04, not on the layer below",
         "write `FROM layer`"),
        ("FROM layer AS a\nFROM scratch\nCOPY --from=a / /\n", 2,
         "built FROM scratch, not on the layer below", "write `FROM layer`"),
        ("FROM layer\nCOPY --from=ghcr.io/astral-sh/uv:0.9 /uv /bin/\n", 2,
         "COPY --from=ghcr.io/astral-sh/uv:0.9: the layer has no such input",
         "`inputs: {ghcr.io/astral-sh/uv:0.9: PIN}`"),
        ("FROM layer\nCOPY --from=word /a /\n", 2, "the layer has no such input", "'words'?"),
        ("FROM layer\nRUN --mount=type=bind,from=devl,target=/x true\n", 2, "no such input",
         "did you mean 'devel'?"),
        ("FROM layer\nADD https://a.example/x /x\n", 2, "ADD https://a.example/x: the layer has no",
         "a pin of kind file"),
        ("FROM layer\nCOPY start.sh /\n", 2, "COPY start.sh: images/up has no such file",
         "did you mean 'star.sh'?"),
        ('FROM layer\nCOPY --chmod=755 ["a b", "/x"]\n', 2, "COPY a b: images/up has no", "known"),
        ("FROM layer\nCOPY out /x\n", 2, "COPY out: it is a link that leads out of images/up",
         "copy the file there"),
        (f"FROM layer\nENV HF_TOKEN={TOKEN}\n", 2, "ENV with a secret (Hugging Face token,",
         "`secrets: [NAME]`"),
        ("FROM layer\nENV DB_PASSWORD=correcthorse\n", 2, "ENV with a secret", "build secret"),
        ("FROM layer\nENTRYPOINT run now\n", 2, "ENTRYPOINT run now is in shell form",
         'write `ENTRYPOINT ["run"]`'),
        ("FROM layer\nENTRYPOINT ['run']\n", 2, "is in shell form", 'write `ENTRYPOINT ["run"]`'),
        ('FROM layer\nENTRYPOINT ["ran"]\n', 2, 'ENTRYPOINT ["ran"], and the matrix says ["run"]',
         "or correct the matrix"),
        (b"FROM layer\n# \xff\n", 2, "invalid UTF-8", "save it as UTF-8"),
    ],
)  # fmt: skip
def test_a_problem_has_its_line_and_next_action(
    tmp_path: Path, text: str | bytes, line: int, what: str, todo: str
) -> None:
    (tmp_path / "images" / "up").mkdir(parents=True)
    (tmp_path / "images" / "up" / "out").symlink_to("/etc/hostname")
    (one,) = problems(tmp_path, text, files=("star.sh",))
    assert (one.file, one.line) == ("images/up/Dockerfile", line)
    assert (what in one.what, todo in one.todo) == (True, True), one


@pytest.mark.parametrize(
    "text",
    [
        f"FROM layer AS up\n{RUN}",
        f"from layer\n{RUN}",
        f"\ufeffFROM layer\r\n{RUN}",
        f"ARG BELOW=layer\nFROM ${{BELOW}}\n{RUN}",
        'FROM layer\nENTRYPOINT [ "run" ]\nHEALTHCHECK CMD run\nONBUILD RUN true\n',
        f"FROM devel AS a\nRUN x\nFROM layer\nCOPY --from=a /x /y\nCOPY --from=words * /z/\n{RUN}",
        f"FROM layer AS a\nFROM a\n{RUN}",
        f"FROM layer\nCOPY sub/start.sh *.py ./sub/ /x/\nCOPY --link ['start.sh'] /\n{RUN}".replace(
            "['start.sh']", "sub/start.sh"
        ),
        f"FROM layer\nCOPY <<EOF /x\nFORM here\nEOF\nRUN <<EOF\nFORM there\nEOF\n{RUN}",
        f"FROM layer\nCOPY $X /y\nADD ${{X}}.tar /\n{RUN}",
        "FROM layer\nENV HF_HUB_DISABLE_IMPLICIT_TOKEN=1 \\\n  A_TOKEN=/run/secrets/a\n" + RUN,
        f"# escape=`\nFROM other\n{RUN}",
        f"FROM layer\nRUN --mount=type=bind,from=tools,target=/run/tools true\n{RUN}",
        "FROM layer\n",
    ],
)
def test_what_is_right_is_not_refused(tmp_path: Path, text: str) -> None:
    assert problems(tmp_path, text, files=("sub/start.sh",)) == ()


def test_a_secret_among_the_matrixs_arguments_has_its_line(tmp_path: Path) -> None:
    (one,) = problems(tmp_path, "FROM layer\n" + RUN, args=TOKEN)
    assert (one.file, one.line) == ("matrix.yaml", 1)
    assert one.what == "layer up: the argument X is a secret (Hugging Face token)"
    assert TOKEN not in str(one)
    assert problems(tmp_path, "FROM layer\n" + RUN, args="16") == ()


def test_every_problem_is_in_one_report(tmp_path: Path) -> None:
    found = problems(tmp_path, "FROM layer\nCOPY a /\nCOPY b /\nENV A_TOKEN=correcthorse\n")
    assert [one.line for one in found] == [2, 3, 4]


def test_problems_of_several_files_are_counted_together() -> None:
    problems = [Problem(file=file, line=1, what="x", todo="y") for file in ("a", "a", "b")]
    assert ConfigError(problems).message == "3 problems in 2 files"
    assert ConfigError(problems[:2]).message == "2 problems in a"
