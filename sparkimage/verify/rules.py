"""The rules of the static tier: exceptions that an image may contain, each with its reason."""

from __future__ import annotations

import fnmatch
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import Field

from sparkimage.config import validation, yamlfile
from sparkimage.config.validation import Strict

FILE = "static.yaml"
Text = Annotated[str, Field(min_length=1)]


def matches(path: str, *globs: str) -> bool:
    """Whether one of the globs matches the whole path."""
    return bool(globs) and _compiled(globs).match(path) is not None


@cache
def _compiled(globs: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(fnmatch.translate, globs)))


class PathRule(Strict):
    """Files by their path."""

    path: Text
    reason: Text


class Library(Strict):
    """A library by its name."""

    name: Text
    reason: Text


class Needs(Strict):
    """Libraries that some files need and that the image may lack."""

    files: Text
    needs: list[Text] = Field(min_length=1)
    reason: Text

    def covers(self, path: str, name: str) -> bool:
        """Whether the rule covers this library of this file."""
        return matches(name, *self.needs) and matches(path, self.files)


class LoadedBefore(Needs):
    """The same, where the image must have the library at another path."""

    origin: Text = Field(alias="from")


class Setuid(PathRule):
    """A file that has the set-user-ID or set-group-ID bit."""

    mode: str = Field(pattern=r"^[246][0-7]{3}$")


class SecretRule(PathRule):
    """A file in which something looks like a secret."""

    kinds: list[Text] = Field(min_length=1)


class Leftover(Strict):
    """Files that a build step must not leave behind."""

    name: Text
    pattern: re.Pattern[str]
    reason: Text


class Rules(Strict):
    """static.yaml"""

    foreign_elf: list[PathRule] = Field(default=[])
    driver_libraries: list[Library] = Field(default=[])
    loaded_before: list[LoadedBefore] = Field(default=[])
    absent: list[Needs] = Field(default=[])
    setuid: list[Setuid] = Field(default=[])
    secrets: list[SecretRule] = Field(default=[])
    leftovers: list[Leftover] = Field(default=[])
    rewritten: list[PathRule] = Field(default=[])
    foreign_distribution: list[PathRule] = Field(default=[])

    def merged(self, more: Rules) -> Rules:
        """These rules and ``more``."""
        joined = {n: [*getattr(self, n), *getattr(more, n)] for n in Rules.model_fields}
        return self.model_copy(update=joined)


@cache
def builtin() -> Rules:
    """The rules that come with this package."""
    text = files("sparkimage").joinpath("data", FILE).read_text("utf-8")
    return Rules.model_validate(yaml.safe_load(text))


def load(project: Path | None) -> Rules:
    """The built-in rules and those of the project. Raises ``ConfigError``."""
    file = project / FILE if project is not None else None
    if file is None or not file.is_file():
        return builtin()
    return builtin().merged(validation.parse(yamlfile.load(file), Rules))
