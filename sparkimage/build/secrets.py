"""Build secrets: where each value comes from, and that none stays in an image or a log.

Only BuildKit reads a value, for the steps that mount it:
https://docs.docker.com/build/building/secrets/. Commands, bake files and plans have names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sparkimage.config.plan import LayerPlan, Plan
from sparkimage.config.validation import nearest
from sparkimage.core import secrets
from sparkimage.core.errors import BuildError, PreflightError, UsageError
from sparkimage.image.layerindex import decompressed
from sparkimage.image.store import Image, Store

AGENT = "SSH_AUTH_SOCK"
MAX_BYTES = 500 * 1024
"""Of one secret: https://github.com/moby/buildkit/blob/master/session/secrets/secrets.go"""
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, kw_only=True)
class BuildSecrets:
    """The secrets that the user gives: with ``--secret``, else in the environment."""

    given: Mapping[str, Path | str] = field(default_factory=dict)
    """By name, the file or the environment variable of ``--secret``."""

    @classmethod
    def parse(cls, words: Iterable[str], known: Collection[str]) -> BuildSecrets:
        """The secrets of ``id=NAME,src=FILE`` and ``id=NAME,env=VARIABLE`` words; ``known`` are the
        names that layers have. Raises ``UsageError``.
        """
        given: dict[str, Path | str] = {}
        for word in words:
            fields = dict(part.partition("=")[::2] for part in word.split(",", 1))
            if fields.keys() not in ({"id", "src"}, {"id", "env"}) or not all(fields.values()):
                raise UsageError(
                    f"--secret {word!r} is not id=NAME,src=FILE or id=NAME,env=VARIABLE",
                    hint="for instance --secret id=HF_TOKEN,src=/run/user/1000/token",
                )
            if fields["id"] not in known:
                todo = f"add `secrets: [{fields['id']}]` to the layer whose step mounts it"
                raise UsageError(
                    f"--secret {word!r}: no layer has the secret {fields['id']!r}",
                    hint=nearest(fields["id"], known) if known else todo,
                )
            if fields["id"] in given:
                raise UsageError(
                    f"--secret {word!r}: {fields['id']!r} is given twice", hint="leave one out"
                )
            if (variable := fields.get("env")) is not None:
                if not os.environ.get(variable):
                    raise UsageError(
                        f"--secret {word!r}: the environment has no {variable}",
                        hint=f"export {variable}=…",
                    )
                given[fields["id"]] = variable
                continue
            path = Path(fields["src"]).absolute()
            if not path.is_file() or not os.access(path, os.R_OK):
                raise UsageError(f"--secret {word!r}: the file cannot be read", hint="correct it")
            if path.stat().st_size > MAX_BYTES:
                raise UsageError(
                    f"--secret {word!r}: the file is larger than {MAX_BYTES // 1024} KiB",
                    hint="BuildKit hands over no larger one",
                )
            given[fields["id"]] = path
        return cls(given=given)

    def of(self, layer: LayerPlan) -> Mapping[str, list[str]]:
        """What a layer's bake target has of them.

        https://docs.docker.com/build/bake/reference/#targetsecret
        """
        given = [self._given(name) for name in layer.secrets]
        # A path may have a comma: the fields are those of CSV.
        secret = [
            f'id={name},"src={str(source).replace(chr(34), chr(34) * 2)}"'
            if isinstance(source, Path)
            else f"id={name},env={source}"
            for name, source in zip(layer.secrets, given, strict=True)
        ]
        ssh = ["default"] if layer.ssh else []
        return {key: words for key, words in (("secret", secret), ("ssh", ssh)) if words}

    def require(self, plans: Iterable[Plan]) -> None:
        """Raise ``PreflightError`` for what the builds of ``plans`` need and is not given."""
        missing: dict[str, list[str]] = {}
        for plan in plans:
            for layer in plan.layers:
                where = f"layer {layer.name} of {plan.variant}"
                for name in layer.secrets:
                    if self._given(name) is None:
                        missing.setdefault(f"the secret {name}", []).append(where)
                if layer.ssh and not Path(os.environ.get(AGENT) or ".").is_socket():
                    missing.setdefault("an ssh agent", []).append(where)
        if missing:
            names = [what.split()[-1] for what in missing if what.startswith("the secret")]
            hints = [
                f"export {name}=…, or pass --secret id={name},src=FILE"
                if name.isidentifier()
                else f"pass --secret id={name},src=FILE or --secret id={name},env=VARIABLE"
                for name in names
            ]
            if "an ssh agent" in missing:
                hints.append('eval "$(ssh-agent)"; ssh-add')
            raise PreflightError(
                f"not given to the build: {', '.join(missing)}",
                detail="\n".join(f"{what}: {', '.join(of)}" for what, of in missing.items()),
                hint="; ".join(hints),
            )

    def _given(self, name: str) -> Path | str | None:
        """The file of a secret, or the name of its variable; None where it is not given."""
        return self.given.get(name) or (name if os.environ.get(name) else None)

    def _values(self, plan: Plan) -> dict[str, list[str]]:
        """Each secret's value by its lines, which a log has one by one."""
        values: dict[str, list[str]] = {}
        for name in sorted({name for layer in plan.layers for name in layer.secrets}):
            source = self._given(name)
            if isinstance(source, Path):
                text = source.read_text(errors="surrogateescape")
            else:
                text = os.environ.get(source or name, "")
            lines = (line.strip() for line in text.splitlines())
            values[name] = [line for line in lines if len(line) >= secrets.SHORT]
        return values

    def hide(self, plan: Plan) -> Callable[[str], str]:
        """What replaces the values of a plan's secrets in a text."""
        return secrets.hider(
            line for lines in self._values(plan).values() for line in lines
        )  # fmt: skip

    def refuse_leaks(self, plan: Plan, image: Image, store: Store) -> None:
        """Raise ``BuildError`` where a layer or the config has a secret's value; those blobs are
        removed from the store."""
        values = self._values(plan)
        wanted = {name: [line.encode(errors="surrogateescape") for line in lines]
                  for name, lines in values.items() if lines}  # fmt: skip
        if not wanted:
            return
        config = image.manifest["config"]
        blobs = [(config["digest"], config["mediaType"], "the config")]
        blobs += [
            (layer.digest, layer.media_type, f"layer {number}")
            for number, layer in enumerate(image.layers)
        ]
        leaks = []
        for digest, media_type, title in blobs:
            with store.open_blob(digest) as blob:
                found = set(_found(wanted, decompressed(blob, media_type)))
            leaks += [f"{title} has the value of {name}" for name in sorted(found)]
            if found:
                store.discard(digest)
        if leaks:
            raise BuildError(
                f"the image of {plan.variant} would hold a build secret",
                detail="\n".join(leaks),
                hint="use a secret only within its step, and write it to no file: RUN "
                "--mount=type=secret,id=NAME; the builder's cache has it until `docker buildx "
                "prune`",
            )


def _found(wanted: Mapping[str, Sequence[bytes]], stream: object) -> Iterator[str]:
    """The names of the values, all lines of which are in the stream."""
    left = {(name, line) for name, lines in wanted.items() for line in lines}
    longest = max(len(line) for _, line in left)
    tail = b""
    while left and (piece := stream.read(CHUNK_BYTES)):  # type: ignore[attr-defined]
        text = tail + piece
        left = {(name, line) for name, line in left if line not in text}
        tail = text[-longest:]
    yield from wanted.keys() - {name for name, _ in left}


NO_SECRETS = BuildSecrets()
