"""What the Dockerfiles of a project's own layers have against the plan: said before a build.

BuildKit would say most of it too, after the layers below, and some of it never: a last stage that
is not built on the layer below is a whole image without them.
"""

from __future__ import annotations

import json
import posixpath
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from sparkimage.config import dockerfile, yamlfile
from sparkimage.config.dockerfile import Dockerfile, Instruction, Use
from sparkimage.config.plan import LayerPlan, Plan
from sparkimage.config.schema import LAYER
from sparkimage.config.validation import nearest
from sparkimage.core import secrets
from sparkimage.core.errors import ConfigError, Problem
from sparkimage.core.spelling import closest

INSTRUCTIONS = (
    "ADD", "ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "EXPOSE", "FROM", "HEALTHCHECK", "LABEL",
    "MAINTAINER", "ONBUILD", "RUN", "SHELL", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR",
)  # fmt: skip
"""https://docs.docker.com/reference/dockerfile/#overview"""
CONTEXTS = (LAYER, "tools", "inputs", "uv")
"""Build contexts that each of our layers may have, beside its `inputs`."""
OTHER_ESCAPE = re.compile(r"(?im)^#\s*escape\s*=\s*`")
Finding = tuple[int, str, str]
"""The line, what is wrong, and the next action."""


def refuse(plan: Plan, matrix_file: Path) -> None:
    """Raises ``ConfigError`` with every problem of the layers' own Dockerfiles and arguments."""
    project = matrix_file.parent
    problems: list[Problem] = []
    read: dict[str, Dockerfile] = {}
    for layer in plan.layers:
        problems += _arguments(layer, matrix_file)
        if layer.source is not None or not (project / layer.dockerfile).is_file():
            continue
        try:
            text = (project / layer.dockerfile).read_bytes().decode().removeprefix("\ufeff")
        except UnicodeDecodeError as error:
            problems.append(Problem.of_encoding(layer.dockerfile, error))
            continue
        if OTHER_ESCAPE.search(text):
            continue
        read[layer.name] = dockerfile.parse(text)
        found = _findings(layer, text, read[layer.name], (project / layer.dockerfile).parent)
        problems += [
            Problem(file=layer.dockerfile, line=line, what=what, todo=todo)
            for line, what, todo in found
        ]
    if not problems:
        problems += _entrypoint(plan, read)
    if problems:
        raise ConfigError(problems)


def _arguments(layer: LayerPlan, matrix_file: Path) -> Iterator[Problem]:
    """Secrets among the arguments of the matrix, which plans, logs and the history have."""
    words = [f"{name}={value}" for name, value in layer.args.items()]
    for found in secrets.in_environment(words):
        name, _, kind = found.partition(": ")
        line = yamlfile.load(matrix_file).line(("layers", layer.name, "args", name))
        what = f"layer {layer.name}: the argument {name} is a secret ({kind})"
        todo = f"take it as a build secret: `secrets: [{name}]`"
        yield Problem(file=matrix_file.name, line=line, what=what, todo=todo)


def _findings(layer: LayerPlan, text: str, read: Dockerfile, folder: Path) -> Iterator[Finding]:
    instructions = list(dockerfile.instructions(text))
    unknown = [one for one in instructions if one.word not in INSTRUCTIONS]
    for one in unknown:
        yield one.line, f"unknown instruction {one.word}", nearest(one.word, INSTRUCTIONS)
    if not read.stages:
        if not unknown:
            what = "no `FROM`" if instructions else "the file is empty"
            yield 1, what, f"begin it with `FROM layer AS {layer.name}`"
        return
    yield from _outside(layer, read)
    for one in instructions:
        yield from _secrets(one)
        if one.word in ("COPY", "ADD") and layer.root is None:
            yield from _copied(one, layer, folder)


def _outside(layer: LayerPlan, read: Dockerfile) -> Iterator[Finding]:
    """What the last stage takes that is no input, and a base that is not the layer below."""
    taken = [one.context for one in layer.inputs]
    contexts = {*CONTEXTS, *taken}
    reach = read.reach(None, layer.args, contexts)
    if reach.base.name != LAYER:
        use = reach.base
        what = f"the last stage is built {use}, not on the layer below"
        todo = "write `FROM layer`; COPY what it needs of another image from an input"
        yield use.line, what, todo
    for use in reach.outside:
        name = dockerfile.familiar(use.name)
        if use == reach.base or name in contexts or name.lower() == dockerfile.SCRATCH:
            continue
        yield use.line, f"{use}: the layer has no such input", _input(use, name, taken)


def _input(use: Use, name: str, taken: Sequence[str]) -> str:
    if use.instruction == "ADD ":
        return (
            "give it a pin of kind file (of kind git for a repository), name that as an input "
            "(`inputs: {NAME: PIN}`), and write `COPY --from=NAME`"
        )
    if (other := closest(name, (*taken, *CONTEXTS))) is not None:
        return f"did you mean {other!r}?"
    return f"pin that image, and name the pin as an input: `inputs: {{{name}: PIN}}`"


def _secrets(one: Instruction) -> Iterator[Finding]:
    """Secrets that the image's config or history would show."""
    found = secrets.in_text(one.rest)
    if one.word in ("ENV", "ARG", "LABEL") and not found:
        found = secrets.in_environment(_words(one.rest))
    if found:
        todo = (
            "take it in a step as a build secret (`secrets: [NAME]` and `RUN "
            "--mount=type=secret,id=NAME`), or pass it to the container"
        )
        yield one.line, f"{one.word} with a secret ({', '.join(found)})", todo


def _copied(one: Instruction, layer: LayerPlan, folder: Path) -> Iterator[Finding]:
    """Files that are not in the layer's folder, which is all that BuildKit has of the project."""
    words = _words(one.rest)
    flags = [word for word in words if word.startswith("--")]
    if any(flag.startswith(("--from", "--exclude")) for flag in flags) or "<<" in one.rest:
        return
    if (folder / ".dockerignore").exists():
        return
    for source in [word for word in words if not word.startswith("--")][:-1]:
        if re.search(r"[*?\[\\$]", source) or dockerfile.REMOTE.match(source):
            continue
        path = folder / posixpath.normpath(f"/{source}").lstrip("/")
        place = f"images/{layer.name}"
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            what = f"{one.word} {source}: it is a link that leads out of {place}"
            yield one.line, what, "copy the file there: BuildKit sees that folder alone"
        elif not path.exists():
            known = [each.relative_to(folder).as_posix() for each in folder.rglob("*")]
            what = f"{one.word} {source}: {place} has no such file"
            yield one.line, what, nearest(source, known)


def _entrypoint(plan: Plan, read: dict[str, Dockerfile]) -> Iterator[Problem]:
    """The ENTRYPOINT of the highest layer that has one, if a Dockerfile of the project says it."""
    for layer in reversed(plan.layers):
        if layer.source is not None:
            return
        if layer.name not in read:
            continue
        stage = read[layer.name].stages[-1]
        if not stage.entrypoints:
            if stage.uses[0].name != LAYER:
                return  # that of another stage, maybe
            continue
        one = stage.entrypoints[-1]
        written = _exec_form(one.rest)
        seen = ("/bin/sh", "-c", one.rest) if written is None else tuple(written)
        if seen == plan.entrypoint:
            return
        what = f"ENTRYPOINT {one.rest}, and the matrix says {json.dumps(plan.entrypoint)}"
        if written is None:
            what = f"ENTRYPOINT {one.rest} is in shell form, which forwards no signals"
        todo = f"write `ENTRYPOINT {json.dumps(plan.entrypoint)}`, or correct the matrix"
        yield Problem(file=layer.dockerfile, line=one.line, what=what, todo=todo)
        return


def _exec_form(rest: str) -> list[str] | None:
    """The words of a command in exec form; None for one in shell form."""
    try:
        words = json.loads(rest)
    except ValueError:
        return None
    return words if isinstance(words, list) and all(isinstance(w, str) for w in words) else None


def _words(rest: str) -> list[str]:
    """The words of an instruction, its flags among them; those of the JSON form, too."""
    flags, _, form = rest.partition("[")
    if form and not flags.replace("--", "").strip(" abcdefghijklmnopqrstuvwxyz=/0123456789:._-"):
        return [*flags.split(), *(_exec_form(f"[{form}") or [])]
    try:
        return shlex.split(rest)
    except ValueError:  # an open quotation mark: BuildKit will say so
        return rest.split()
