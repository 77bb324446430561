"""Pages from the templates in ``data/``."""

from __future__ import annotations

import json

from sparkimage.core.units import human


def render(name: str, **values: object) -> str:
    """The template ``data/<name>.j2`` with these values; those in HTML are escaped.

    Raises ``jinja2.TemplateError`` for an invalid template, or one that needs another value.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sparkimage", "data"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"human": human, "as_text": as_text}
    return environment.get_template(f"{name}.j2").render(values)


def as_text(value: object, indent: int | None = None) -> str:
    """Text as it is, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=indent)
