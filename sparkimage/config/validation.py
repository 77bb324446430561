"""A YAML file against its model: every problem in the file's own words, each with its line."""

from __future__ import annotations

import re
import shlex
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from sparkimage.config import suggestions
from sparkimage.config.address import without_login
from sparkimage.config.yamlfile import Document, Key
from sparkimage.core.errors import ConfigError, Problem
from sparkimage.core.spelling import closest

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=128)]
Model = TypeVar("Model", bound="Strict")
Finding = tuple[Key, str, str]
"""A problem of a part of a file: the key below that part, what is wrong, and the next action."""
MAX_PROBLEMS = 100
"""Of one report: more may be the same one for each of thousands of variants."""
MAX_NAMES = 20
MAX_LETTERS = 80

WANTED = {
    "string_type": "one word", "model_type": "a mapping", "model_attributes_type": "a mapping",
    "dict_type": "a mapping", "list_type": "a list", "int_type": "a whole number",
    "float_type": "a number", "bool_type": "true or false", "pattern_regex": "a regular expression",
}  # fmt: skip
"""The type that is wanted, by pydantic's type of the error:
https://docs.pydantic.dev/latest/errors/validation_errors/"""
LIMITS = {
    "greater_than": "it must be more than {gt}",
    "greater_than_equal": "it must be at least {ge}",
    "less_than": "it must be less than {lt}",
    "less_than_equal": "it must be at most {le}",
    "too_long": "at most {max_length} entries can be here",
    "string_too_long": "at most {max_length} characters can be here",
    "too_short": "at least {min_length} entry must be here",
    "string_too_short": "at least {min_length} character must be here",
    "literal_error": "it must be {expected}",
    "enum": "it must be {expected}",
    "int_parsing_size": "it must be a smaller number",
}
"""The next action for a value of the right type, with the names of the error's context."""
TYPE_NAMES = {list: "a list", dict: "a mapping", NoneType: "empty"}


class Strict(BaseModel):
    """Base of the models of all files that people write: frozen, unknown keys are refused."""

    REMOVED: ClassVar[dict[str, str]] = {}
    """Keys that are known, but not taken, and what to write in their place."""

    # Each command builds the validators of only those models that it uses.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, defer_build=True)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        """The JSON schema of the file, for editors."""
        dialect = "https://json-schema.org/draft/2020-12/schema"
        return {"$schema": dialect, **cls.model_json_schema()}


@dataclass
class Report:
    """The problems of one document beyond its form."""

    document: Document
    problems: dict[Problem, None] = field(default_factory=dict)
    """Each one once, in order."""

    def add(self, key: Key, what: str, todo: str) -> None:
        """Add a problem at ``key``. Raises ``ConfigError`` when the report is full."""
        self.problems[self.document.problem(key, what, todo)] = None
        if len(self.problems) >= MAX_PROBLEMS:
            self.close()

    def extend(self, key: Key, findings: Iterable[Finding], prefix: str = "") -> None:
        """Add the problems of the part at ``key``; raises as ``add`` does."""
        for below, what, todo in findings:
            self.add((*key, *below), prefix + what, todo)

    def require(
        self, key: Key, name: str, known: Collection[str], what: str, *, if_none: str = ""
    ) -> None:
        """Add the problem ``what`` unless ``name`` is known; ``if_none`` where no name is."""
        if name not in known:
            self.add(key, what, if_none if if_none and not known else nearest(name, known))

    def close(self, warnings: Iterable[Problem] = ()) -> None:
        """Raise ``ConfigError`` when there are problems, beside the warnings."""
        if self.problems:
            raise ConfigError(list({**self.problems, **dict.fromkeys(warnings)}))


def dotted(key: Key) -> str:
    """A key of a file for messages: its parts with dots between them."""
    return ".".join(shown(part) for part in key) or "the file"


def parse(document: Document, model: type[Model]) -> Model:
    """The document as ``model``. Raises ``ConfigError`` with every problem."""
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise ConfigError([_problem(document, model, e) for e in errors]) from None


def nearest(name: str, known: Iterable[str]) -> str:
    """The next action for an unknown name: the nearest known one, or all of them."""
    names = sorted(known)
    if (other := closest(name, names)) is not None:
        return f"did you mean {other!r}?"
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return "known are " + ", ".join(names[:MAX_NAMES]) + more if names else "none is known"


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where an error is: the key in the file, the types that the models want there and in the
    mapping around it, and the field's description."""

    key: Key
    wanted: tuple[Any, ...]
    around: tuple[Any, ...]
    about: str


def _place(model: type[Strict], loc: tuple[str | int, ...]) -> _Place:
    """Follow pydantic's location through the models: it has parts that are no keys of the file,
    namely the kind of a union's member, and ``[key]``."""
    key: Key = ()
    wanted, around, about = _options(model), _options(model), ""
    for part in loc:
        if part == "[key]":
            continue
        if len(wanted) > 1:
            wanted = tuple(member for member in wanted if part in _kinds(member))
            continue
        if not wanted:
            break
        around, here = wanted, wanted[0]
        if get_origin(here) in (dict, list):
            wanted = _options(get_args(here)[-1])
        elif isinstance(here, type) and issubclass(here, BaseModel):
            field = _fields(here).get(str(part))
            about = (field.description or "") if field else ""
            wanted = _options(field.annotation) if field else ()
        else:
            break
        key = (*key, part)
    return _Place(key=key, wanted=wanted, around=around, about=about)


def _options(annotation: Any) -> tuple[Any, ...]:
    """The types that an annotation allows, without the None of what can be left out."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        members = (member for member in get_args(annotation) if member is not NoneType)
        return tuple(option for member in members for option in _options(member))
    return (annotation,)


def _kinds(member: Any) -> tuple[Any, ...]:
    """The parts of pydantic's locations that mean this member of a union."""
    if isinstance(member, type) and issubclass(member, BaseModel):
        return get_args(member.model_fields["kind"].annotation)
    return ("list",) if get_origin(member) is list else ("word",)


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _problem(document: Document, model: type[Strict], error: Any) -> Problem:
    """One pydantic error in a user's words."""
    place = _place(model, error["loc"])
    key, kind, value = place.key, error["type"], error["input"]
    if isinstance(value, str):
        # Before it is cut, or quoted.
        value = document.hide(value)
    where, last = dotted(key), shown(str(key[-1])) if key else ""
    text = TYPE_NAMES.get(type(value)) or shown(value, quote=True)
    if key in document.literals and value is not None and not isinstance(value, str):
        # As it is in the file, not as Python writes it: 3.10 is the number 3.1.
        text = shown(document.hide(document.literals[key]))
    about = f" ({place.about})" if place.about else ""
    what, todo = f"{where} cannot be {text}", f"write something else{about}"
    if kind == "extra_forbidden":
        what = f"unknown key {shown(last, quote=True)} in {dotted(key[:-1])}"
        known = [name for around in place.around for name in _fields(around)]
        removed = (around.REMOVED.get(last) for around in place.around)
        todo = next(filter(None, removed), None) or nearest(last, known)
    elif kind == "missing":
        what, todo = f"{where} is missing", f"add `{last}:`{about}"
    elif kind == "string_type" and type(value) not in TYPE_NAMES:
        what, todo = f"{where} must be text, but is {text}", f'quote it: "{text}"'
    elif kind in WANTED:
        what = f"{where} must be {WANTED[kind]}, but is {text}"
        before = "" if not key else f"{last}: " if isinstance(key[-1], str) else "- "
        todo = f"write {WANTED[kind]}: `{before}{_example(place.wanted, text)}`{about}"
    elif kind == "string_pattern_mismatch":
        what = f"{where}: {text} does not have the right form"
        meant = suggestions.meant(value, error["ctx"]["pattern"])
        if meant == without_login(value):
            what = f"{where}: {text} has a login, which plans and labels would show"
        todo = suggestions.advice(value, error["ctx"]["pattern"]) or ""
        todo = todo or (f"did you mean {meant!r}?" if meant else "")
        todo = (todo or f"it must be {suggestions.FORMS[error['ctx']['pattern']]}") + about
    elif kind == "union_tag_invalid":
        tag = error["ctx"]["tag"]
        what = f"{where} is of the unknown kind {shown(tag, quote=True)}"
        todo = nearest(tag, [name for member in place.wanted for name in _kinds(member)])
    elif kind == "union_tag_not_found":
        kinds = ", ".join(name for member in place.wanted for name in _kinds(member))
        what, todo = f"{where} has no `kind`", f"add `kind:` and one of {kinds}"
    elif kind in LIMITS:
        what = f"{where} is {text if value not in ('', [], {}) else 'empty'}"
        todo = LIMITS[kind].format_map(error.get("ctx", {})) + about
    return document.problem(key, what, todo)


def _example(wanted: tuple[Any, ...], text: str) -> str:
    """A value of these types, with the one of the file in a list."""
    if len(wanted) > 1:
        return "{kind: …}"
    (kind,) = wanted or (str,)
    if kind is float and (number := re.fullmatch(r"'?([0-9.]{1,9})(%?)'?", text)):
        return f"{number[1]}" if not number[2] else f"{float(number[1]) / 100:g}"
    if kind is int and (number := re.fullmatch(r"'?([0-9]{1,9})(?i:([km])i?)?'?", text)):
        # vLLM's own short form: 256K are 262144.
        return str(int(number[1]) << {"": 0, "k": 10, "m": 20}[(number[2] or "").lower()])
    if get_origin(kind) is dict:
        return "{NAME: …}"
    if get_origin(kind) is list:
        if text == TYPE_NAMES[dict] and get_origin(_options(get_args(kind)[0])[0]) is not None:
            return "[{NAME: …}]"
        return "[…]" if text in TYPE_NAMES.values() else f"[{_words(text)}]"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        names = [f"{name}: …" for name, field in _fields(kind).items() if field.is_required()]
        return "{" + ", ".join(names) + "}"
    return {bool: "true", int: "1", float: "0.5"}.get(kind, "…")


def _words(text: str) -> str:
    """The words of a quoted value, as the entries of a list."""
    try:
        words = shlex.split(text.strip("'").replace(",", " "))
    except ValueError:
        return text
    return ", ".join(shown(word, quote=True) for word in words) or text


def shown(value: object, *, quote: bool = False) -> str:
    """A value of a file for messages: on one line, and cut where it is long."""
    text = without_login(str(value))
    short = text[:MAX_LETTERS]
    if quote and isinstance(value, str):
        short = repr(short)
    plain = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in short)
    return plain + "…" * (len(text) > MAX_LETTERS)
