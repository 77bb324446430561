"""A YAML file against its model: every deviation in a user's words, each with its line."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sparkimage.config.strict import Strict
from sparkimage.config.yamlfile import Document, Key
from sparkimage.core.errors import ConfigError, Problem

Model = TypeVar("Model", bound=Strict)
MOST_KNOWN = 20
MOST_LETTERS = 80

WANTED = {
    "string_type": "one word", "model_type": "a mapping", "model_attributes_type": "a mapping",
    "dict_type": "a mapping", "list_type": "a list", "int_type": "a whole number",
    "float_type": "a number", "bool_type": "true or false", "pattern_regex": "a regular expression",
}  # fmt: skip
"""What is wanted, by pydantic's type of the error that something else is there:
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
    "union_tag_invalid": "give it `kind:` and one of {expected_tags}",
    "union_tag_not_found": "give it `kind:`",
}
"""What to do about a value that is of the right type, with the names of the error's context."""
KINDS_OF_VALUE = {list: "a list", dict: "a mapping", NoneType: "empty"}


def dotted(key: Key) -> str:
    """A place of a file: its keys with dots between them."""
    return ".".join(shown(part) for part in key) or "the file"


def parse(document: Document, model: type[Model], spell: Callable[[Key], str] = dotted) -> Model:
    """The document as ``model``; ``spell`` names a place in messages.

    Raises ``ConfigError`` with every problem.
    """
    try:
        return model.model_validate(document.data)
    except ValidationError as error:
        errors = error.errors(include_url=False)
        raise ConfigError([_problem(document, model, e, spell) for e in errors]) from None


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint for a word that names nothing: the nearest known one, or all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word[:MOST_LETTERS], names[:1000], n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f" and {len(names) - MOST_KNOWN} more" if len(names) > MOST_KNOWN else ""
    return "known are " + ", ".join(names[:MOST_KNOWN]) + more if names else "none is known"


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where an error is: the path as the file has it, what the models want there and in the
    mapping around it, and what is said of the field."""

    key: Key
    wanted: tuple[Any, ...]
    around: tuple[Any, ...]
    about: str


def _place(model: type[Strict], loc: tuple[str | int, ...]) -> _Place:
    """Follow pydantic's location through the models: it holds marks that are no keys of the file,
    namely the kind of a member of a union, and ``[key]``."""
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
    """The types that an annotation allows, but for the None of what can be left out."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, UnionType):
        members = (member for member in get_args(annotation) if member is not NoneType)
        return tuple(option for member in members for option in _options(member))
    return (annotation,)


def _kinds(model: type[BaseModel]) -> tuple[Any, ...]:
    return get_args(model.model_fields["kind"].annotation)


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _problem(
    document: Document, model: type[Strict], error: Any, spell: Callable[[Key], str]
) -> Problem:
    """One pydantic error in a user's words."""
    place = _place(model, error["loc"])
    key, kind, given = place.key, error["type"], error["input"]
    where, last = spell(key), shown(str(key[-1])) if key else ""
    value = KINDS_OF_VALUE.get(type(given)) or shown(given, quote=True)
    if key in document.words and given is not None and not isinstance(given, str):
        # As it is in the file, not as Python writes it: 3.10 is the number 3.1.
        value = shown(document.words[key])
    about = f" ({place.about})" if place.about else ""
    what, todo = f"{where} cannot be {value}", f"write something else{about}"
    if kind == "extra_forbidden":
        what = f"unknown key {shown(last, quote=True)} in {spell(key[:-1])}"
        todo = nearest(last, [name for around in place.around for name in _fields(around)])
    elif kind == "missing":
        what, todo = f"{where} is missing", f"add `{last}:`{about}"
    elif kind == "string_type" and type(given) not in KINDS_OF_VALUE:
        what, todo = f"{where} must be text, but is {value}", f'quote it: "{value}"'
    elif kind in WANTED:
        what = f"{where} must be {WANTED[kind]}, but is {value}"
        before = "" if not key else f"{last}: " if isinstance(key[-1], str) else "- "
        todo = f"{WANTED[kind]} is wanted here: `{before}{_example(place.wanted, value)}`{about}"
    elif kind == "string_pattern_mismatch":
        what = f"{where}: {value} does not have the right form"
        todo = f"it must match {error['ctx']['pattern']}{about}"
    elif kind in LIMITS:
        what = f"{where} is {value if given not in ('', [], {}) else 'empty'}"
        todo = LIMITS[kind].format_map(error.get("ctx", {})) + about
    return Problem(file=document.file, line=document.line(key), what=what, todo=todo)


def _example(wanted: tuple[Any, ...], value: str) -> str:
    """What a value of these types looks like, with the one that is there in a list."""
    if len(wanted) > 1:
        return "{kind: …}"
    (kind,) = wanted or (str,)
    if get_origin(kind) is dict:
        return "{NAME: …}"
    if get_origin(kind) is list:
        return "[…]" if value in KINDS_OF_VALUE.values() else f"[{value}]"
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        names = [f"{name}: …" for name, field in _fields(kind).items() if field.is_required()]
        return "{" + ", ".join(names) + "}"
    return {bool: "true", int: "1", float: "0.5"}.get(kind, "…")


def shown(given: object, *, quote: bool = False) -> str:
    """What a file has, for a message: on one line, and not too much of it."""
    text = str(given)
    short = text[:MOST_LETTERS]
    if quote and isinstance(given, str):
        short = repr(short)
    plain = "".join(letter if letter.isprintable() else f"\\u{ord(letter):04x}" for letter in short)
    return plain + "…" * (len(text) > MOST_LETTERS)
